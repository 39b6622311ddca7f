"""Packages through the face: saved, opened, trained on; models of arcgis.learn; their defects."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from made import blocks_folder, labels_folder, write_pair
from made_scenes import town
from test_foreign import Bomb, fastai_state, write_emd
from test_learn import Told
from whatwhere import bundle, jobs, pictures
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.face.packed import open_trained
from whatwhere.io.esri import read_definition
from whatwhere.learn import SegmentationData, UnetClassifier, prepare_data
from whatwhere.nn.build import build_model
from whatwhere.packages import SCRIPT
from whatwhere.raster_function import RasterFunction
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)
NAMES = {1: "roof", 2: "road"}
TINY: dict[str, Any] = {"pretrained_backbone": False, "decoder_channels": "8,8,4,4,4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, each of a brightness of its own."""
    return blocks_folder(tmp_path_factory.mktemp("data") / "blocks", [(32, 32)] * 12)


def prepared(folder: Path, work: Path, names: dict[int, str] | None = None) -> SegmentationData:
    return prepare_data(
        folder, names or NAMES, batch_size=4, val_split_pct=0.25, working_dir=work, talk=QUIET
    )


@pytest.fixture(scope="module")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentationData:
    return prepared(folder, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def unet(data: SegmentationData) -> UnetClassifier:
    """Trained, and not as usual; no test may change it."""
    unet = UnetClassifier(
        data, "resnet10t", focal_loss=True, dice_loss_fraction=0.25, class_balancing=True,
        mixup=True, dice_loss_average="macro", **TINY,
    )  # fmt: skip
    unet.fit(1, lr=0.01)
    return unet


@pytest.fixture(scope="module")
def package(unet: UnetClassifier) -> Path:
    return unet.save("blocks")


@pytest.fixture(scope="module")
def pixels(data: SegmentationData) -> NDArray[np.uint8]:
    return np.asarray(Image.open(data.path / "images" / "b01.png"))


# Saved and opened again


@pytest.mark.parametrize("name", ["blocks.emd", "blocks.dlpk", "", "bundle.json"])
def test_what_is_saved_gives_the_same_probabilities(
    unet: UnetClassifier, data: SegmentationData, package: Path, pixels: Any, name: str
) -> None:
    chances = unet.predict(pixels, probabilities=True)
    path = package / name
    loaded = UnetClassifier(data, "resnet10t", **TINY)
    loaded.load(path)
    for other in (
        UnetClassifier.from_model(path, talk=QUIET),
        UnetClassifier.from_model(str(path), data),
        UnetClassifier.from_emd(data, path),
        UnetClassifier(data, "resnet10t", pretrained_path=path, decoder_channels="8,8,4,4,4"),
        loaded,
    ):
        np.testing.assert_array_equal(other.predict(pixels, probabilities=True), chances)


def test_what_lies_in_the_folder(
    unet: UnetClassifier, data: SegmentationData, package: Path
) -> None:
    assert package == data.working_dir / "models" / "blocks"
    names = {path.name for path in package.iterdir() if not path.name.startswith("weights-")}
    assert names == {"bundle.json", "blocks.emd", "blocks.dlpk", SCRIPT, "report.html"}
    found = read_definition(package / "blocks.emd")
    assert {one.value: one.name for one in found.classes} == data.class_mapping
    assert {one.value: list(one.color or ()) for one in found.classes} == data.color_mapping
    assert float(found.lines["accuracy"]) == pytest.approx(unet.accuracy(), abs=1e-4)
    told = json.loads(found.lines["per_class_metrics"])
    table = {
        name: {key: None if np.isnan(value) else value for key, value in column.items()}
        for name, column in unet.per_class_metrics().to_dict().items()
    }
    assert told == table
    function = RasterFunction()
    function.initialize(model=str(package / "blocks.emd"), device=-1)
    assert function.getConfiguration()["extractBands"] == (0,)


def test_what_is_unpacked_goes_with_the_classifier(package: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.dlpk"
    shutil.copy(package / "blocks.dlpk", alone)
    other = UnetClassifier.from_model(alone, talk=QUIET)
    place = other.run
    assert place is not None and place.is_dir() and place.name == "elsewhere"
    saved = other.save(tmp_path / "again")
    assert bundle.load(saved).digest == bundle.load(package).digest
    del other
    gc.collect()
    assert not place.exists() and sorted(path.name for path in tmp_path.iterdir()) == [
        *("again", "elsewhere.dlpk"),
    ]


def test_a_run_can_be_trained_on_from_a_package(
    package: Path, data: SegmentationData, tmp_path: Path, folder: Path
) -> None:
    here = prepared(folder, tmp_path)
    other = UnetClassifier.from_model(package / "blocks.dlpk", here)
    other.fit(1, lr=1e-9)
    assert other.run == tmp_path / "models" / "fit_001"
    old, new = bundle.load(package).weights, bundle.load(other.run).weights
    np.testing.assert_allclose(new["head.weight"], old["head.weight"], atol=1e-6)


def test_the_script_can_be_left_out(unet: UnetClassifier, tmp_path: Path) -> None:
    saved = unet.save(tmp_path / "bare", save_inference_file=False, compute_metrics=False)
    assert not (saved / SCRIPT).exists() and not (saved / "report.html").exists()
    lines = read_definition(saved / "bare.emd").lines
    assert lines["InferenceFunction"] == "" and "accuracy" not in lines
    assert UnetClassifier.from_model(saved / "bare.dlpk", talk=QUIET).run is not None


def test_what_pro_cannot_run_is_saved_without_the_script(tmp_path: Path) -> None:
    labels = prepare_data(labels_folder(tmp_path / "l"), batch_size=4, chip_size=16, talk=QUIET)
    unet = UnetClassifier(labels, "tutorial", n_filters=2)
    unet.fit(1, lr=0.01)
    unet.talk = talk = Told()
    saved = unet.save("labels")
    assert f"note     save: {SCRIPT} is not written: labels that overlap" in talk.text
    assert [one.value for one in read_definition(saved / "labels.emd").classes] == [1, 2]
    again = UnetClassifier.from_model(saved / "labels.dlpk", talk=QUIET)
    image = np.asarray(Image.open(labels.valid_ds[0].image))
    np.testing.assert_array_equal(again.predict(image), unet.predict(image))


def test_packages_that_cannot_be_opened(
    package: Path, data: SegmentationData, tmp_path: Path
) -> None:
    shutil.copy(package / "blocks.emd", tmp_path)
    (tmp_path / "x.dlpk").write_bytes(b"no zip")
    (tmp_path / "m.pth").write_bytes(b"")
    for name, match in (
        ("blocks.emd", r"the bundle is not beside it: .* Copy the whole folder"),
        ("none.emd", "there is no such file"),
        ("none.dlpk", "the package cannot be read: No such file"),
        ("x.dlpk", "this is no package, or a damaged one"),
        ("m.pth", "files of this kind can run code"),
    ):
        for opened in (
            lambda path: UnetClassifier.from_model(path, data),
            lambda path: UnetClassifier(data, pretrained_path=path),
            UnetClassifier(data, **TINY).load,
        ):
            with pytest.raises(BundleError, match=match):
                opened(tmp_path / name)


# How it was trained


@pytest.mark.slow
def test_losses_and_balancing_survive(unet: UnetClassifier, package: Path, tmp_path: Path) -> None:
    here = prepared(unet.data.path if unet.data else Path(), tmp_path)
    again = UnetClassifier.from_model(package / "blocks.emd", here)
    for name in ("class_balancing", "focal_loss", "dice_loss_fraction", "mixup"):
        assert getattr(again, name) == getattr(unet, name), name
    assert (again.class_balancing, again.focal_loss, again.dice_loss_fraction) == (True, True, 0.25)
    again.fit(1, lr=0.001)
    recipe = bundle.load_card(again.runs[0]).recipe
    assert (recipe["loss"], recipe["class_weights"]) == ("0.75*focal+0.25*dice", "balanced")
    assert recipe["mixup"] == 0.4 and again.mixup
    other = UnetClassifier.from_model(package, here, focal_loss=False, class_balancing=False)
    assert (other.recipe.loss, other.recipe.class_weights) == ("cross_entropy", "")
    assert (other.focal_loss, other.class_balancing) == (False, False)


def test_ignored_classes_survive(data: SegmentationData, folder: Path, tmp_path: Path) -> None:
    here = prepared(folder, tmp_path)
    first = UnetClassifier(here, "tutorial", n_filters=2, ignore_classes=[2])
    first.fit(1, lr=0.01)
    saved = first.save("without_roads")
    assert read_definition(saved / "without_roads.emd").lines["ModelParameters"][
        "ignore_classes"
    ] == [2]
    here.talk = talk = Told()
    again = UnetClassifier.from_model(saved / "without_roads.dlpk", here)
    assert "note     ignore_classes: [2], as it was trained." in talk.text
    again.talk = QUIET
    again.fit(1, lr=0.01)
    card = bundle.load_card(again.runs[0])
    assert card.classes.names == ["background", "roof"] and card.classes.ignored == (2,)
    assert list(again.per_class_metrics().columns) == ["background", "roof"]
    assert set(np.unique(again.predict(data.valid_ds[0].image))) <= {0, 1}
    all_three = UnetClassifier.from_model(saved, here, ignore_classes=[])
    assert not all_three.recipe.classes.endswith("ignore")
    renamed = prepared(folder, tmp_path, {1: "house", 2: "road"})
    assert not UnetClassifier.from_model(saved, renamed).recipe.classes.endswith("ignore")


# A model of arcgis.learn


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three bands."""
    place = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(2)
    for i in range(8):
        mask = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)
        image = np.stack([mask * 90, 200 - mask * 60, mask * 20 + 50], axis=-1)
        noisy = image + rng.integers(0, 30, image.shape)
        write_pair(place, f"c{i}", noisy.astype(np.uint8), mask)
    return place


FOREIGN = [{"Value": 1, "Name": "roof"}, {"Value": 2, "Name": "road"}]


def test_the_description_alone(
    tmp_path: Path, colours: Path, real_data: Callable[[str], Path]
) -> None:
    real = real_data("esri_exports") / "drone_classified_tiles" / "trained_model_30e.emd"
    talk = Told()
    found = UnetClassifier.from_model(real, talk=talk)
    assert "warning" in talk.text and "'30e.pth', are not beside it" in talk.text
    recipe = found.recipe
    assert (recipe.model, recipe.chip_size, recipe.orientation) == ("resnet34", 400, "free")
    assert recipe.classes == "0=NoData,1=1,2=2" and recipe.bands == "red=1,green=2,blue=3"
    assert found.run is None and not found.recipe.pretrained
    for verb in (lambda: found.predict(real), lambda: found.save("x"), lambda: found.net):
        with pytest.raises(UsageError, match=r"30e\.pth'.* Train it: from_model\(path, prepare_d"):
            verb()
    with pytest.raises(UsageError, match="fit: this net was made without data"):
        found.fit(1)
    data = prepared(colours, tmp_path)
    fresh = UnetClassifier.from_model(
        real, data, backbone="resnet10t", decoder_channels="8,8,4,4,4"
    )
    fresh.fit(1, lr=0.01)
    assert fresh.predict(data.valid_ds[0].image).shape == (32, 32)
    with pytest.raises(BundleError, match=r"are not beside it: no weights are taken"):
        UnetClassifier(data, pretrained_path=real)
    with pytest.raises(UsageError, match="takes no image|there is no model 'resnet33'"):
        UnetClassifier.from_model(real, data, backbone="resnet33")


def foreign(folder: Path, state: Any = None, **changes: Any) -> Path:
    path = write_emd(folder, **{"Classes": FOREIGN, **changes})
    if state is not None:
        torch.save({"model": state, "opt": {}}, folder / "m.pth")
    return path


@pytest.mark.slow
def test_a_backbone_is_taken_and_the_decoder_starts_anew(tmp_path: Path, colours: Path) -> None:
    state = fastai_state()
    path = foreign(tmp_path / "theirs", state)
    data = prepared(colours, tmp_path / "work")
    talk = Told()
    unet = UnetClassifier.from_model(path, data, talk=talk, decoder_channels="8,8,4,4,4")
    assert "its backbone is taken (120 arrays). The decoder starts anew" in talk.text
    assert "classes  NoData, roof, road  background, roof, road" in talk.text
    assert unet.frozen and unet.recipe.encoder_lr == 0.1 and unet.run is None
    with pytest.raises(UsageError, match="its backbone was taken, and the decoder starts anew"):
        unet.predict(np.zeros((3, 32, 32)))
    unet.talk = QUIET
    unet.fit(1, lr=0.01)  # the backbone rests
    assert unet.run is not None
    weights = bundle.load(unet.run).weights
    theirs = state["layers.0.5.0.downsample.0.weight"].numpy()
    np.testing.assert_array_equal(weights["encoder.body.layer2.0.downsample.0.weight"], theirs)
    first = state["layers.0.0.weight"].numpy()
    np.testing.assert_array_equal(weights["encoder.body.conv1.weight"], first)
    assert unet.predict(np.zeros((3, 32, 32), np.uint8)).shape == (32, 32)


@pytest.mark.slow
def test_bands_of_a_foreign_backbone_are_fitted(tmp_path: Path, folder: Path) -> None:
    state = fastai_state(bands=4)
    path = foreign(
        tmp_path / "theirs", state, ExtractBands=[0, 1, 2, 3], IsMultispectral=True,
        Bands=["Blue", "Green", "Red", "NIR"],
    )  # fmt: skip
    data = prepared(folder, tmp_path / "work")
    talk = Told()
    unet = UnetClassifier(
        data, "timm:resnet18", pretrained_path=path, talk=talk, decoder_channels="8,8,4,4,4"
    )
    assert "bands    blue, green, red, nir  grey" in talk.text
    unet.talk = QUIET
    unet.fit(1, lr=0.01)
    assert unet.run is not None
    first = bundle.load(unet.run).weights["encoder.body.conv1.weight"]
    theirs = state["layers.0.0.weight"].numpy()
    np.testing.assert_allclose(first, theirs.sum(axis=1, keepdims=True), rtol=1e-5)


def test_weights_of_the_same_net_are_all_taken(tmp_path: Path, colours: Path) -> None:
    torch.manual_seed(0)
    net = build_model("resnet18", 3, 3, decoder_channels=(8, 8, 4, 4, 4)).eval()
    path = foreign(tmp_path / "theirs", net.state_dict())
    talk = Told()
    unet = UnetClassifier.from_model(path, talk=talk, decoder_channels="8,8,4,4,4")
    assert "arrays fit and are taken" in talk.text and unet.run is not None
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 64, 96)).astype(np.uint8)
    mean, std = (
        np.array(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    given = torch.from_numpy(((image / 255 - mean) / std).astype(np.float32))[None]
    with torch.inference_mode():
        wanted = torch.softmax(net(given), 1)[0].numpy()
    found = unet.predict(image, probabilities=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    data = prepared(colours, tmp_path / "work")
    loaded = UnetClassifier(data, "resnet18", **TINY)
    with pytest.raises(UsageError, match=r"does not go with this net:[\s\S]*NoData, roof, road"):
        loaded.load(path)
    loaded.load(path, strict=False)
    np.testing.assert_allclose(loaded.predict(image, probabilities=True), wanted, atol=1e-5)
    saved = unet.save(tmp_path / "ours")
    assert {row.name for row in read_definition(saved / "ours.emd").classes} == {
        *("NoData", "roof", "road")
    }
    stats = {"NormalizationStats": None, "IsMultispectral": True}
    bare = foreign(tmp_path / "bare", net.state_dict(), **stats)
    UnetClassifier.from_model(bare, talk=talk, decoder_channels="8,8,4,4,4")
    assert "it does not tell how values are normalised: they are not taken" in talk.text


def test_a_foreign_model_is_loaded_into_a_net(tmp_path: Path, colours: Path) -> None:
    path = foreign(tmp_path / "theirs", fastai_state())
    data = prepared(colours, tmp_path / "work", {0: "NoData", **NAMES})
    unet = UnetClassifier(data, "resnet18", **TINY)
    unet.load(path)
    with pytest.raises(UsageError, match="its backbone was taken, and the decoder starts anew"):
        unet.accuracy()
    assert unet._next(epochs=1, lr=0.1).pretrained_path.endswith("m_backbone_new_decoder")
    other = UnetClassifier(data, "resnet10t", **TINY)
    with pytest.raises(UsageError, match=r"model +resnet18 +resnet10t"):
        other.load(path)


@pytest.mark.parametrize(
    ("state", "changes", "match"),
    [
        ({"layers.0.0.weight": torch.zeros(64, 5, 7, 7)}, {},
         r"they do not fit resnet18: encoder\.body\.conv1\.weight \(64, 3, 7, 7\) against \(64, 5"),
        (fastai_state(), {"ModelParameters": {"backbone": "resnet10t"}}, "do not fit resnet10t"),
        (fastai_state(), {"ExtractBands": None, "IsMultispectral": True}, "not tell its bands"),
        (fastai_state(), {"ModelParameters": {"backbone": "tutorial"}}, "not those of tutorial"),
        ({"a": 1}, {}, "it holds no tensors by name"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_a_message(
    tmp_path: Path, colours: Path, state: Any, changes: dict[str, Any], match: str
) -> None:
    path = foreign(tmp_path / "theirs", state, **changes)
    data = prepared(colours, tmp_path / "work")
    talk = Told()
    unet = UnetClassifier.from_model(path, data, talk=talk)
    assert talk.lines[-1].startswith("warning")
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(talk.lines[-1])
    assert unet.run is None and not unet.recipe.pretrained_path and not unet.frozen
    with pytest.raises(BundleError, match=match):
        UnetClassifier(data, unet.recipe.model, pretrained_path=path)
    with pytest.raises(UsageError, match="nothing was trained yet"):
        unet.predict(np.zeros((3, 8, 8)))


def test_no_code_of_a_foreign_model_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    path = foreign(tmp_path / "theirs", {**fastai_state(), "x": Bomb(marker)})
    talk = Told()
    unet = UnetClassifier.from_model(path, talk=talk)
    assert "may run code when it is opened, or it is damaged. Nothing of it was run" in talk.text
    assert unet.run is None and not marker.exists()
    packed = shutil.make_archive(str(tmp_path / "m"), "zip", tmp_path / "theirs")
    dlpk = Path(packed).rename(tmp_path / "m.dlpk")
    assert UnetClassifier.from_model(dlpk, talk=talk).recipe.model == "resnet18"
    assert open_trained(tmp_path / "theirs").foreign is not None  # the folder that they save to
    assert not marker.exists()


def test_a_foreign_model_without_a_backbones_name(tmp_path: Path) -> None:
    path = foreign(tmp_path / "theirs", ModelParameters={})
    with pytest.raises(UsageError, match="it does not name its backbone: say backbone=…"):
        UnetClassifier.from_model(path, talk=QUIET)
    assert UnetClassifier.from_model(path, backbone="resnet18", talk=QUIET).recipe.model
    export = foreign(tmp_path / "export", ModelFile=None, ModelParameters=None)
    with pytest.raises(BundleError, match="training data and no trained model. prepare_data takes"):
        UnetClassifier.from_model(export)


# Their defects, which are not here


def test_1_what_one_net_ignores_another_counts(folder: Path, tmp_path: Path) -> None:
    here = prepared(folder, tmp_path)
    plain = UnetClassifier(here, "tutorial", n_filters=2)
    plain.fit(1, lr=0.01)
    before = plain.accuracy()
    other = UnetClassifier(here, "tutorial", n_filters=2, ignore_classes=[1])
    other.fit(1, lr=0.01)
    fresh = UnetClassifier.from_model(plain.runs[0], here)
    assert before == plain.accuracy() == fresh.accuracy()
    assert fresh.per_class_metrics().to_dict() == plain.per_class_metrics().to_dict()
    assert len(other.per_class_metrics().columns) == 2 < len(fresh.per_class_metrics().columns)


def test_3_a_scheme_that_there_is_not_is_answered(data: SegmentationData) -> None:
    talk = Told()
    unet = UnetClassifier(data, "resnet10t", tail_weights_type="no_such", talk=talk, **TINY)
    assert "note     tail_weights_type: bands called red" in talk.text and unet.recipe.model
    with pytest.raises(UsageError, match="norm must be one of batch, group, none, not 'no_such'"):
        UnetClassifier(data, "resnet10t", norm="no_such", **TINY)


def test_10_the_best_epoch_is_kept_where_best_is_said(folder: Path, tmp_path: Path) -> None:
    unet = UnetClassifier(prepared(folder, tmp_path), "tutorial", n_filters=2)
    unet.fit(3, lr=0.3, checkpoint="best", one_cycle=False)  # too fast: losses go up and down
    lines = (unet.runs[0] / "log.csv").read_text().splitlines()
    column = lines[0].split(",").index("val_loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    scores = bundle.load_card(unet.runs[0]).scores
    assert scores["val_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert scores["epoch"] == 1 + int(np.argmin(losses))


def test_11_accuracy_is_over_all_pixels_whatever_the_batches(tmp_path: Path) -> None:
    sizes = [(32, 32)] * 9 + [(16, 24), (48, 40), (8, 8)]
    folder = blocks_folder(tmp_path / "blocks", sizes)
    found = []
    for batch in (1, 5):
        here = prepare_data(
            folder, NAMES, batch_size=batch, val_split_pct=0.4, chip_size=16,
            working_dir=tmp_path / str(batch), talk=QUIET,
        )  # fmt: skip
        unet = UnetClassifier(here, "tutorial", n_filters=2)
        if not found:
            unet.fit(1, lr=0.01)
            saved = unet.save(tmp_path / "saved")
        unet = UnetClassifier.from_model(saved, here)
        right, total = 0, 0
        assert len({here.plan.survey.facts[pair.key].size for pair in here.valid_ds}) > 1
        for pair in here.valid_ds:
            truth = np.asarray(Image.open(pair.masks[0]))
            right += int((unet.predict(pair.image) == truth).sum())
            total += truth.size
        found.append(unet.accuracy())
        assert found[-1] == right / total
    assert found[0] == found[1]


def test_12_faults_of_the_report_are_told(
    unet: UnetClassifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(unet.runs[0], copy)
    (copy / "report" / "validation.json").write_text('{"classes": 3')
    other = UnetClassifier.from_model(copy, talk=QUIET)
    with pytest.raises(BundleError, match=r"validation\.json: the run's scores cannot be read"):
        other.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert other.save(tmp_path / "saved", compute_metrics=False).is_dir()

    def spoilt(*_: Any) -> bytes:
        raise DataError("the curves cannot be drawn")

    monkeypatch.setattr(pictures, "draw_curves", spoilt)
    fresh = UnetClassifier(prepared(folder, tmp_path / "work"), "tutorial", n_filters=2)
    with pytest.raises(DataError, match="the curves cannot be drawn"):
        fresh.fit(1, lr=0.01)


# From a scene to chips, to a net, to a package, and back


def there_and_back(
    scene: Path, labels: Path, place: Path, layout: str, side: int, **settings: Any
) -> UnetClassifier:
    """Train on chips of a scene; the package says bit for bit what the net says."""
    jobs.chip(scene, place / "chips", labels=labels, chip_size=side, format=layout, talk=QUIET)
    data = prepare_data(
        place / "chips", chip_size=side, batch_size=8, working_dir=place / "work", talk=QUIET
    )
    unet = UnetClassifier(data, **settings)
    unet.fit(2, lr=1e-3)
    saved = unet.save("there")
    images = [pair.image for pair in data.valid_ds[:3]]
    for name in ("there.emd", "there.dlpk"):
        back = UnetClassifier.from_model(saved / name, talk=QUIET)
        for image in images:
            before, after = (one.predict(image, probabilities=True) for one in (unet, back))
            assert before.dtype == after.dtype == np.float32
            np.testing.assert_array_equal(after, before)
        assert back.data is None and images
    return unet


@pytest.mark.parametrize("layout", [pytest.param("folder", marks=pytest.mark.slow), "esri"])
def test_there_and_back_with_made_houses(tmp_path: Path, layout: str) -> None:
    scene, houses, _ = town(tmp_path)
    there_and_back(scene, houses, tmp_path, layout, 64, backbone="tutorial", n_filters=2)


def crop(scene: Path, target: Path, side: int) -> Path:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(scene) as file:
        window = Window(700, 700, side, side)  # built over
        place = file.window_transform(window)
        profile = {**file.profile, "width": side, "height": side, "transform": place}
        with rasterio.open(target, "w", **profile) as out:
            out.write(file.read(window=window))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "esri"])
def test_there_and_back_with_houses_of_banepa(
    tmp_path: Path, real_data: Callable[[str], Path], layout: str
) -> None:
    real = real_data("oam_banepa")
    scene = crop(real / "scene_train.tif", tmp_path / "crop.tif", 768)
    there_and_back(
        scene, real / "buildings.geojson", tmp_path, layout, 96,
        backbone="resnet18", pretrained_backbone=False,
    )  # fmt: skip


@pytest.mark.slow
def test_there_and_back_with_filters_of_imagenet(
    tmp_path: Path, real_data: Callable[[str], Path], real_weights: Callable[[str], Path]
) -> None:
    real = real_data("oam_banepa")
    weights = real_weights("tf_efficientnet_lite0.safetensors")
    scene = crop(real / "scene_train.tif", tmp_path / "crop.tif", 640)
    unet = there_and_back(
        scene, real / "buildings.geojson", tmp_path, "folder", 96,
        backbone="tf_efficientnet_lite0", pretrained_backbone=weights,
    )  # fmt: skip
    assert unet.frozen
