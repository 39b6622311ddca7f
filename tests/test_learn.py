"""The face that looks like arcgis.learn's: what it takes, says, refuses, trains and keeps."""

from __future__ import annotations

import csv
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from made import blocks_folder, labels_folder, salt_folder, snapshot, write_pair
from made_scenes import town
from own_nets import Chain
from whatwhere import bundle, jobs
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.face.inline import NotebookTalk, page
from whatwhere.face.tables import Table, frame
from whatwhere.face.words import NOTES, REFUSALS, band_words, check_words, class_words, loss_words
from whatwhere.learn import SegmentationData, UnetClassifier, prepare_data
from whatwhere.runs import split_keys
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)
TINY: dict[str, Any] = {"pretrained_backbone": False, "decoder_channels": "8,8,4,4,4"}


class Told(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, each of a brightness of its own."""
    return blocks_folder(tmp_path_factory.mktemp("data") / "blocks", [(32, 32)] * 12)


@pytest.fixture(scope="module")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentationData:
    work = tmp_path_factory.mktemp("work")
    names = {1: "roof", 2: "road"}
    return prepare_data(
        folder, names, batch_size=4, val_split_pct=0.25, working_dir=work, talk=QUIET
    )


def small(data: SegmentationData, **settings: Any) -> UnetClassifier:
    """A net that trains in a second: no backbone."""
    return UnetClassifier(data, "tutorial", n_filters=2, **settings)


@pytest.fixture(scope="module")
def unet(data: SegmentationData) -> UnetClassifier:
    """Trained twice, on a backbone; no test may change it."""
    unet = UnetClassifier(data, "resnet10t", focal_loss=True, class_balancing=True, **TINY)
    unet.fit(2, lr=0.01)
    unet.fit(1, lr=slice(0.001, 0.01), one_cycle=False, early_stopping=True)
    return unet


# prepare_data


def test_the_data_tell_what_they_are(data: SegmentationData, folder: Path) -> None:
    masks = [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]
    counts = np.bincount(np.concatenate(masks).ravel()).tolist()
    assert data.classes == ["background", "roof", "road"]
    assert data.class_mapping == {0: "background", 1: "roof", 2: "road"}
    assert list(data.color_mapping) == [0, 1, 2] and data.c == 3
    assert data.num_pixels_per_class == dict(enumerate(counts))
    assert set(data.class_weight) == {0, 1, 2} and min(data.class_weight.values()) > 0
    assert (data.chip_size, data.batch_size, data.path) == (32, 4, folder)
    assert (len(data.train_ds), len(data.valid_ds), len(data.test_ds)) == (9, 3, 0)
    assert next(iter(data.train_dl))["image"].shape == (4, 1, 32, 32)
    assert len(list(data.valid_dl)) == 1 and not list(data.test_dl)
    for told in (repr(data), data._repr_html_()):
        for words in ("roof", "9 train", "3 validate", "32×32", "grey", "4 a step"):
            assert words in told
    assert "rgb(230, 159, 0)" in data._repr_html_()


def test_chips_are_no_longer_than_the_longest_image(folder: Path) -> None:
    talk = Told()
    assert prepare_data(folder, talk=talk).chip_size == 32
    assert "note     chip_size: 32 px" in talk.text
    assert prepare_data(folder, chip_size=16, talk=QUIET).chip_size == 16
    assert prepare_data(folder, resize_to=(64, 48), talk=QUIET).chip_size == 64


def test_transforms_false_leaves_training_chips_alone(folder: Path) -> None:
    def chips(**said: Any) -> Any:
        data = prepare_data(folder, talk=QUIET, **said)
        batch = next(iter(data.train_dl))
        order = np.argsort(batch["index"].numpy())
        return batch["image"].numpy()[order]

    plain = chips(transforms=False)
    data = prepare_data(folder, transforms=False, talk=QUIET)
    for pair, chip in zip(data.train_ds, plain, strict=True):
        np.testing.assert_array_equal(chip, data.plan.reader(pair)[0])
    assert not np.array_equal(chips(), plain)
    assert not np.array_equal(chips(lighting_transforms=False), plain)


def test_bands_are_named_and_chosen(tmp_path: Path) -> None:
    import tifffile

    rng = np.random.default_rng(0)
    for i in range(4):
        write_pair(
            tmp_path, f"p{i}", np.zeros((16, 16), "uint8"), rng.integers(0, 2, (16, 16), "uint8")
        )
        (tmp_path / "images" / f"p{i}.png").unlink()
        bands = rng.integers(0, 99, (16, 16, 4)).astype(np.uint16)
        path = tmp_path / "images" / f"p{i}.tif"
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    names = ["Blue", "Green", "Red", "NIR"]
    data = prepare_data(
        tmp_path, bands=names, extract_bands=[0, 2, 3], rgb_bands=["nir", 1, "blue"], talk=QUIET
    )
    assert data.bands.names == ("blue", "red", "nir") and data.bands.numbers == (1, 3, 4)
    data.show_batch(rows=1)
    with pytest.raises(UsageError, match="three of blue, red, nir, or three numbers from 0 to 2"):
        data.show_batch(rgb_bands=["green", "red", "blue"])
    assert band_words(["1", "3"], None) == "1,3" and band_words(None, [0, 2]) == "1,3"
    assert band_words("rgb", None) == "rgb"
    for said, match in (
        ((names, [4]), "there are 4 bands, from 0 on: 4"),
        ((names, [-1]), "-1 is no place"),
        (("rgb", [0]), "goes with a list of all bands"),
    ):
        with pytest.raises(UsageError, match=match):
            band_words(*said)


def test_places_for_validation_and_test(tmp_path: Path, folder: Path) -> None:
    valid = blocks_folder(tmp_path / "valid", [(32, 32)] * 2, seed=8)
    test = blocks_folder(tmp_path / "test", [(32, 32)] * 3, seed=9)
    before = snapshot(folder)
    data = prepare_data(
        folder, valid_path=valid, test_path=[test], working_dir=tmp_path / "work", talk=QUIET
    )
    assert [len(one) for one in (data.train_ds, data.valid_ds, data.test_ds)] == [12, 2, 3]
    pixels = np.asarray(Image.open(data.valid_ds[0].image))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(valid / "images" / "b00.png")))
    again = prepare_data(
        folder, valid_path=valid, test_path=[test], working_dir=tmp_path / "work", talk=QUIET
    )
    assert again.path == data.path and len(list(data.path.parent.iterdir())) == 1
    assert snapshot(folder) == before
    both = prepare_data([folder, valid], working_dir=tmp_path / "both", talk=QUIET)
    assert len(both.train_ds) + len(both.valid_ds) == 14


def test_labels_that_overlap_from_two_places(tmp_path: Path, folder: Path) -> None:
    one, two = (labels_folder(tmp_path / name, 4, seed=s) for s, name in enumerate("ab"))
    data = prepare_data([one, two], working_dir=tmp_path / "work", talk=QUIET)
    assert data.class_mapping == {1: "bright", 2: "left"}
    assert len(data.train_ds) + len(data.valid_ds) == 8
    data.show_batch(rows=1)
    with pytest.raises(DataError, match="some of the folders have a folder of masks for each"):
        prepare_data([one, folder], working_dir=tmp_path / "work", talk=QUIET)


def test_a_table_of_images_and_masks(tmp_path: Path, folder: Path) -> None:
    names = sorted(path.name for path in (folder / "images").iterdir())
    columns = {
        "image": [str(folder / "images" / name) for name in names],
        "mask": [str(folder / "masks" / name) for name in names],
    }

    class Rows(dict[str, list[str]]):
        columns = ("image", "mask")

    data = prepare_data(None, images_df=Rows(columns), working_dir=tmp_path, talk=QUIET)
    assert len(data.train_ds) + len(data.valid_ds) == 12
    with pytest.raises(UsageError, match="path is empty: give a folder; for images_df give work"):
        prepare_data(None, images_df=Rows(columns), talk=QUIET)
    with pytest.raises(UsageError, match="leave the paths out"):
        prepare_data(folder, images_df=Rows(columns), talk=QUIET)
    with pytest.raises(UsageError, match="must have two columns"):
        prepare_data(None, images_df=object(), working_dir=tmp_path, talk=QUIET)
    columns["image"][0] = "nowhere.png"
    with pytest.raises(UsageError, match=r"images_df: there is no nowhere\.png"):
        prepare_data(None, images_df=Rows(columns), working_dir=tmp_path, talk=QUIET)


def test_a_stratified_split_has_each_set_of_classes_in_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[:8] = 1 + (i % 3 == 0)
        write_pair(tmp_path / "d", f"p{i:02d}", rng.integers(0, 99, (16, 16), "uint8"), mask)
    data = prepare_data(
        tmp_path / "d", val_split_pct=0.25, stratify=True, working_dir=tmp_path / "w", talk=QUIET
    )
    rare = [int(pair.key.rpartition("p")[2]) % 3 == 0 for pair in data.valid_ds]
    assert (len(rare), sum(rare)) == (6, 2)
    with pytest.raises(DataError, match="no set of classes is in enough images"):
        prepare_data(
            tmp_path / "d", val_split_pct=0.01, stratify=True, working_dir=tmp_path, talk=QUIET
        )


def test_a_scene_with_its_labels(tmp_path: Path) -> None:
    scene, houses, truth = town(tmp_path)
    data = prepare_data(scene, chip_size=64, labels=houses, val_split_pct=0.2, talk=QUIET)
    assert data.classes == ["background", "town_houses"]
    assert "blocks of scenes" in repr(data) and data.working_dir == tmp_path
    assert data.train_ds and data.valid_ds and data.plan.orientation == "free"
    assert sum(data.num_pixels_per_class.values()) <= truth.size
    with pytest.raises(UsageError, match=r"list rasters in a data\.toml"):
        prepare_data(scene, labels=houses, valid_path=scene, talk=QUIET)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"chip_sizes": 3}, "prepare_data has no keyword 'chip_sizes'. Did you mean 'chip_size'"),
        ({"zzz": 3}, "no keyword 'zzz'. The guide lists"),
        ({"dataset_type": "PASCAL_VOC_rectangles"}, "dataset_type must be None or 'Classified_Til"),
        ({"transforms": ([], [])}, "transforms must be None or False"),
        ({"val_split_pct": 1}, "val_split_pct must be above 0 and below 1, not 1"),
        ({"alpha": 7}, "alpha must be from 0 to 1"),
        ({"class_mapping": {1: "a"}, "classes": "a,b"}, "say the same: leave one out"),
        ({"class_mapping": {"roof": "a"}}, "'roof' is no whole number.*class_field"),
        ({"class_mapping": {1: "a,b"}}, "'a,b' is no name"),
        ({"class_mapping": {7: "a"}}, "the class table does not know 1 "),
        ({"emd": {"Classes": [3]}}, "emd must be a dictionary"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_prepare_data_refuses(folder: Path, said: dict[str, Any], match: str) -> None:
    with pytest.raises((UsageError, DataError), match=match):
        prepare_data(folder, talk=QUIET, **said)


def test_a_class_mapping_says_what_values_mean() -> None:
    assert class_words({1: "roof", "2": "road"}) == "0=background,1=roof,2=road"
    assert class_words({0: "sea", 1: "land"}) == "0=sea,1=land"
    assert class_words({255: "salt", 7: "ignore"}) == "0=background,255=salt,7=ignore"


def test_an_emd_names_the_classes(folder: Path) -> None:
    emd = {"Classes": [{"Value": 1, "Name": "roof"}, {"ClassValue": 2, "ClassName": "road"}]}
    talk = Told()
    data = prepare_data(folder, emd=emd, eas={"NumBands": 1}, talk=talk)
    assert data.class_mapping == {0: "background", 1: "roof", 2: "road"}
    assert "note     eas: classes and pixel values are counted" in talk.text


@pytest.mark.parametrize("name", sorted(NOTES))
def test_what_has_nothing_to_do_is_said(name: str) -> None:
    talk = Told()
    check_words({name: "x"}, (), "here", talk)
    assert talk.lines == [f"note     {name}: {NOTES[name]}"]
    check_words({name: None}, (), "here", talk)
    assert len(talk.lines) == 1


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_what_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"here: {name} is not here: "):
        check_words({name: "x"}, (), "here", QUIET)
    check_words({name: None}, (), "here", QUIET)


# UnetClassifier: what it decides


def test_losses_are_written_as_recipes_write_them() -> None:
    talk = Told()
    assert loss_words(None, False, 0, False, "micro", talk) is None
    assert loss_words(None, True, 0, False, "micro", talk) == "focal"
    assert loss_words("lovasz", False, 0, False, "micro", talk) == "lovasz"
    assert not talk.lines
    assert loss_words(None, False, 0.25, False, "micro", talk) == "0.75*cross_entropy+0.25*dice"
    assert "macro" in talk.text
    assert loss_words(None, True, 1, False, "macro", talk) == "dice"
    for said, match in (
        ((None, False, 2, False, "micro"), "from 0 to 1, not 2"),
        ((None, False, 0.5, False, "nano"), "micro or macro, not 'nano'"),
        (("dice", True, 0, False, "micro"), "loss= says it all"),
    ):
        with pytest.raises(UsageError, match=match):
            loss_words(*said, talk)


def test_the_net_is_named_in_many_ways(data: SegmentationData) -> None:
    def resnet10t() -> None:
        """As a function of torchvision is given."""

    for name in ("resnet10t", "timm:resnet10t", resnet10t):
        assert UnetClassifier(data, name, **TINY).recipe.model == "resnet10t"
    own = UnetClassifier(data, Chain(1, (4, 6)))
    assert own.encoder is not None and own.recipe.model.endswith("Chain") and not own.frozen
    assert "resnet34" in UnetClassifier(None, pretrained_backbone=False).recipe.model
    assert "not trained yet" in repr(own)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"backend": "tensorflow"}, "backend must be pytorch"),
        ({"backbone": "resnet33"}, "there is no model 'resnet33'. Did you mean"),
        ({"backbone": "hf:resnet50_sentinel2_all_moco"}, "only timm's names are known"),
        ({"backbone": 3}, "a name or a torch module, not 3"),
        ({"mixup": -1.0}, r"mixup must be at least 0\.0"),
        ({"class_balance": True}, "no keyword 'class_balance'. Did you mean 'class_balancing'"),
        ({"model": "resnet34"}, "say backbone="),
        ({"ignore_classes": [1, 2]}, "leaves 1 of 3 classes"),
        ({"ignore_classes": [9]}, "the classes are 0 background, 1 roof, 2 road"),
        ({"pretrained_backbone": "no.safetensors"}, r"no\.safetensors"),
        ({"pretrained_backbone": "a.safetensors", "pretrained_path": "run"}, "Leave one out"),
        ({"upsample": "nearby"}, "upsample must be one of"),
    ],
)
def test_what_a_classifier_refuses(
    data: SegmentationData, said: dict[str, Any], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        UnetClassifier(data, **{"backbone": "resnet10t", **said})


def test_weights_that_cannot_be_had_are_an_error_with_ways_out(
    data: SegmentationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.create_connection", _unreachable)
    with pytest.raises(UsageError, match=r"--no-pretrained|pretrained=False"):
        UnetClassifier(data, "resnet10t")


def _unreachable(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


def test_a_backbone_with_weights_rests_until_it_is_let_go(
    data: SegmentationData, real_weights: Callable[[str], Path]
) -> None:
    file = real_weights("tf_efficientnet_lite0.safetensors")
    unet = UnetClassifier(data, "tf_efficientnet_lite0", pretrained_backbone=file)
    assert unet.frozen and unet._next(epochs=7).freeze_epochs == 7
    assert unet._next(lr=1.0).encoder_lr == 0.1
    unet.unfreeze()
    assert unet._next(epochs=7).freeze_epochs == 0
    unet.freeze()
    assert unet._next(epochs=7).freeze_epochs == 7
    with pytest.raises(UsageError, match="a tutorial net has no backbone to freeze"):
        small(data).freeze()


def test_a_tail_learns_while_the_backbone_rests(folder: Path, tmp_path: Path) -> None:
    data = prepare_data(
        folder, {1: "roof", 2: "road"}, train_tail=True, batch_size=4, working_dir=tmp_path,
        talk=QUIET,
    )  # fmt: skip
    unet = UnetClassifier(data, "resnet10t", **TINY)
    unet.fit(1, lr=0.01)
    before = bundle.load(unet.runs[0]).weights
    unet.freeze()
    unet.fit(1, lr=0.01)
    after = bundle.load(unet.runs[1]).weights
    moved = {n for n, one in after.items() if not np.array_equal(one, before[n])}
    assert {n for n in moved if n.startswith("encoder")} == {"encoder.body.conv1.0.weight"}
    assert "head.weight" in moved
    again = UnetClassifier.from_model(unet.runs[1], data)
    assert again.recipe.train_first


def test_values_may_be_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    said: dict[str, Any] = {"batch_size": 4, "working_dir": tmp_path, "talk": QUIET}
    data = prepare_data(folder, {1: "roof", 2: "road"}, do_normalize=False, **said)
    count = len(data.bands.names)
    assert (data.normalization.mean, data.normalization.std) == ((0.0,) * count, (1.0,) * count)
    pair = data.train_ds[0]
    with Image.open(pair.image) as picture:
        pixels = np.asarray(picture)
    seen = data.plan.reader(pair)[0]
    np.testing.assert_array_equal(seen[0], pixels.reshape(*pixels.shape[:2], -1)[..., 0])
    unet = small(data)
    unet.fit(1, lr=0.01)
    card = bundle.load_card(unet.runs[0])
    assert card.recipe["normalize"] is False and card.normalization == data.normalization


# Training


def test_a_score_may_decide_which_epoch_is_kept(folder: Path, tmp_path: Path) -> None:
    names = {1: "roof", 2: "road"}
    data = prepare_data(folder, names, batch_size=4, working_dir=tmp_path, talk=QUIET)
    unet = small(data)
    unet.fit(3, lr=0.01, monitor="valid_miou")
    card = bundle.load_card(unet.runs[0])
    log = jobs_log(unet.runs[0])
    best = max(log, key=lambda row: float(row["val_mean_iou"]))
    assert card.recipe["monitor"] == "mean_iou" and unet.monitor == "valid_miou"
    assert card.scores["mean_iou"] == pytest.approx(float(best["val_mean_iou"]))
    assert card.scores["epoch"] == int(best["epoch"])
    again = UnetClassifier.from_model(unet.runs[0], data)
    assert again.recipe.monitor == "loss"  # each fit says it anew
    with pytest.raises(UsageError, match="monitor is said to fit"):
        small(data, monitor="mean_iou")


def jobs_log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_gpu_has_a_number(data: SegmentationData, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert small(data, device=1).device == "cuda" and chosen == [1]
    assert small(data, device="CPU").device == small(data, device=-1).device == "cpu"
    with pytest.raises(UsageError, match="there are 2 GPUs, from 0 on: 2"):
        small(data, device=2)


def test_each_fit_is_a_run_that_begins_with_the_one_before(unet: UnetClassifier) -> None:
    assert [run.name for run in unet.runs] == ["fit_001", "fit_002"]
    first, second = (bundle.load_card(run) for run in unet.runs)
    assert second.recipe["pretrained_path"] == str(unet.runs[0])
    assert (first.recipe["schedule"], second.recipe["schedule"]) == ("one_cycle", "plateau")
    assert (second.recipe["stop_patience"], second.recipe["stop_min_delta"]) == (5, 0.001)
    assert second.recipe["encoder_lr"] == pytest.approx(0.1) and second.recipe["lr"] == 0.01
    assert first.recipe["loss"] == second.recipe["loss"] == "focal"
    assert first.recipe["class_weights"] == "balanced"
    assert unet.report == unet.runs[1] / "report.html"
    figure = unet.plot_losses()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 3]
    assert "fit_002" in repr(unet) and "mean IoU" in repr(unet)


def test_a_fit_without_a_rate_asks_for_one(data: SegmentationData, tmp_path: Path) -> None:
    unet = small(prepare_data(data.path, batch_size=4, working_dir=tmp_path, talk=QUIET))
    unet.talk = talk = Told()
    unet.fit(1)
    rate = bundle.load_card(unet.runs[0]).recipe["lr"]
    assert f"learning rate {rate:.3g}" in talk.text and 1e-6 < rate < 1


def test_the_range_of_rates_can_be_said(data: SegmentationData) -> None:
    with pytest.raises(UsageError, match="rates 0 < low < high, not 100 from 1.0 to 0.1"):
        small(data).lr_find(start_lr=1.0, end_lr=0.1)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"monitor": "iou"}, "must be one of valid_loss, accuracy, valid_miou, dice, not 'iou'"),
        ({"checkpoint": "worst"}, "checkpoint must be True, False, best or all"),
        ({"callbacks": [1]}, "fit: callbacks is not here: fastai"),
        ({"clipp": 1.0}, "fit has no keyword 'clipp'. Did you mean 'clip'"),
        ({"seed": 1}, "fit has no keyword 'seed'"),
        ({"lr": (1, 0.1)}, "a rate, or a low and a high one"),
        ({"lr": 0.1, "epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_fit_refuses(data: SegmentationData, said: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        small(data).fit(**said)


def test_an_interrupted_fit_leaves_its_best_weights(
    data: SegmentationData, tmp_path: Path, unet: UnetClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Any, output: Path, **__: Any) -> None:
        shutil.copytree(unet.runs[0], output)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train", stopped)
    other = small(prepare_data(data.path, working_dir=tmp_path, talk=QUIET))
    with pytest.raises(KeyboardInterrupt):
        other.fit(1, lr=0.1)
    assert other.run == tmp_path / "models" / "fit_001"


# Scores, pictures, predictions


def test_scores_are_counted_over_the_whole_set(
    unet: UnetClassifier, data: SegmentationData
) -> None:
    assert unet.run is not None
    table = np.zeros((3, 3))
    for key in split_keys(unet.run, "val"):
        said = unet.predict(data.path / "images" / f"{key}.png")
        truth = np.asarray(Image.open(data.path / "masks" / f"{key}.png"))
        np.add.at(table, (truth.ravel(), said.ravel()), 1)
    hits, true, claimed = np.diag(table), table.sum(1), table.sum(0)
    assert unet.accuracy() == pytest.approx(hits.sum() / table.sum())
    found = unet.mIOU()
    assert isinstance(found, dict)
    np.testing.assert_allclose(list(found.values()), hits / (true + claimed - hits))
    assert unet.mIOU(mean=True) == pytest.approx(np.mean(hits / (true + claimed - hits)))
    metrics = unet.per_class_metrics()
    assert list(metrics.columns) == data.classes
    assert list(metrics.index) == ["precision", "recall", "f1"]
    assert metrics["road"]["recall"] == pytest.approx(hits[2] / true[2])
    assert metrics["road"]["f1"] == pytest.approx(2 * hits[2] / (true[2] + claimed[2]))
    assert list(unet.per_class_metrics(ignore_classes=[0]).columns) == ["roof", "road"]
    assert unet.mIOU(split="train") != found
    with pytest.raises(UsageError, match="there is no split 'all'"):
        unet.mIOU(split="all")


def test_a_table_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    table = frame({"roof": {"f1": 0.5}, "road": {"f1": float("nan")}})
    assert isinstance(table, Table) and table.to_dict()["roof"] == {"f1": 0.5}
    assert table.T.columns == ["f1"] and table.T.index == ["roof", "road"]
    assert repr(table).splitlines()[1].split() == ["f1", "0.500000", "nan"]
    assert "<th>road</th>" in table._repr_html_()


def test_pictures_are_figures(unet: UnetClassifier, data: SegmentationData) -> None:
    figure = data.show_batch(rows=2, ncols=2, imsize=1, alpha=0.5)
    assert len(figure.axes) == 4
    assert [len(axes.images) for axes in figure.axes] == [2] * 4
    overlay = np.asarray(figure.axes[0].images[1].get_array())
    assert set(np.unique(overlay[..., 3])) <= {0.0, 0.5}
    results = unet.show_results(rows=2, imsize=1, index=1)
    assert len(results.axes) == 4 and results.axes[1].get_title() == "prediction"
    assert unet.show_results(rows=1, imsize=1, return_fig=False) is None
    with pytest.raises(UsageError, match="there is no image 9 in the validation split"):
        unet.show_results(index=9)
    with pytest.raises(UsageError, match="there is no image in the testing split"):
        data.show_batch(data_loader="testing")


def test_an_array_and_a_picture_give_the_same(unet: UnetClassifier, data: SegmentationData) -> None:
    path = data.path / "images" / "b00.png"
    pixels = np.asarray(Image.open(path))
    said = unet.predict(pixels)
    assert said.shape == pixels.shape and said.dtype == np.uint8
    np.testing.assert_array_equal(unet.predict(path), said)
    np.testing.assert_array_equal(unet.predict(pixels[None]), said)
    chances = unet.predict(pixels, probabilities=True)
    np.testing.assert_array_equal(chances.argmax(0), said)
    assert isinstance(unet.net, nn.Module)


def test_files_are_predicted_as_the_command_line_does(
    unet: UnetClassifier, data: SegmentationData, tmp_path: Path
) -> None:
    path = data.path / "images" / "b00.png"
    (written,) = unet.predict_raster(path, tmp_path / "mask.png", overlay=False)
    assert written.files == (tmp_path / "mask.png",)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), unet.predict(path))
    (scene,) = unet.predict_raster(path, tmp_path / "map.tif")
    assert scene.files[0] == tmp_path / "map.tif"
    with pytest.raises(UsageError, match="predict_raster has no keyword 'polygon'. Did you mean"):
        unet.predict_raster(path, tmp_path, polygon="a.gpkg")


def test_thresholds_are_tuned_and_kept(tmp_path: Path) -> None:
    data = prepare_data(salt_folder(tmp_path / "salt", 10, (32, 32)), batch_size=4, talk=QUIET)
    unet = small(data)
    unet.fit(1, lr=0.01)
    (threshold,) = unet.tune_threshold().values()
    assert unet.run is not None and bundle.load_card(unet.run).thresholds == (threshold,)
    at_best = unet.mIOU()
    assert isinstance(at_best, dict)
    pixels = np.asarray(Image.open(data.valid_ds[0].image))
    chances = unet.predict(pixels, probabilities=True)[0]
    np.testing.assert_array_equal(unet.predict(pixels), chances >= threshold)
    scored = jobs.evaluate(unet.run, data.path, part="val", talk=QUIET)
    assert scored["classes"][1]["iou"] == pytest.approx(at_best[1])


# Keeping


def test_what_is_saved_is_loaded_again(
    unet: UnetClassifier, data: SegmentationData, tmp_path: Path
) -> None:
    folder = unet.save("blocks")
    assert folder == data.working_dir / "models" / "blocks"
    assert folder.joinpath("report.html").is_file()
    assert unet.save("blocks") == folder  # once more
    pixels = np.asarray(Image.open(data.path / "images" / "b01.png"))
    chances = unet.predict(pixels, probabilities=True)
    for other in (
        UnetClassifier.from_model(folder, talk=QUIET),
        UnetClassifier.from_emd(data, folder),
        UnetClassifier.from_model(unet.runs[1] / "bundle", data),
    ):
        np.testing.assert_array_equal(other.predict(pixels, probabilities=True), chances)
    loaded = UnetClassifier(data, "resnet10t", **TINY)
    loaded.load("blocks")
    np.testing.assert_array_equal(loaded.predict(pixels, probabilities=True), chances)
    assert loaded.accuracy() == pytest.approx(unet.accuracy())
    alone = UnetClassifier.from_model(folder, talk=QUIET)
    with pytest.raises(UsageError, match="fit: this net was made without data"):
        alone.fit(1)
    assert alone.save(tmp_path / "copy") == tmp_path / "copy"


def test_what_one_side_trains_the_other_takes(unet: UnetClassifier, data: SegmentationData) -> None:
    scores = jobs.evaluate(unet.runs[1], data.path, part="val", talk=QUIET)
    assert scores["pixel_accuracy"] == pytest.approx(unet.accuracy())
    trained = jobs.train(
        data.path, data.working_dir / "cli", classes="0=background,1=roof,2=road", n_filters=2,
        batch_size=4, epochs=1, talk=QUIET,
    )  # fmt: skip
    assert trained is not None
    taken = UnetClassifier.from_model(trained.path, data)
    assert taken.recipe.model == "tutorial" and taken.accuracy() > 0
    assert taken.accuracy() == trained.scores["pixel_accuracy"]
    taken.fit(1, lr=1e-4)
    assert bundle.load_card(taken.runs[0]).recipe["pretrained_path"] == str(trained.path)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"framework": "torchscript"}, "framework must be PyTorch, not 'torchscript'"),
        ({"publish": True}, "save: publish is not here: there is no portal"),
        ({"quality": 1}, "save has no keyword 'quality'"),
        ({"name_or_path": "fit_001"}, "a run is in this folder"),
    ],
)
def test_what_save_refuses(unet: UnetClassifier, said: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        unet.save(**{"name_or_path": "refused", **said})
    assert not (unet.runs[0].parent / "refused").exists()


def test_what_cannot_be_loaded(unet: UnetClassifier, data: SegmentationData, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"does not go with this net:[\s\S]*resnet10t +tutorial"):
        small(data).load(unet.runs[0])
    other = prepare_data(folder, {1: "a", 2: "b"}, working_dir=data.working_dir, talk=QUIET)
    blank = UnetClassifier(other, "resnet10t", **TINY)
    with pytest.raises(UsageError, match="background, roof, road +background, a, b"):
        blank.load(unet.runs[0])
    blank.load(unet.runs[0], strict=False)
    with pytest.raises(BundleError, match="there is no such folder"):
        blank.load("nothing")
    with pytest.raises(UsageError, match="nothing was trained yet: fit"):
        UnetClassifier(other, "resnet10t", **TINY).accuracy()
    with pytest.raises(UsageError, match="no epoch was trained here yet"):
        blank.plot_losses()
    with pytest.raises(UsageError, match="there is no report, only the bundle"):
        _ = UnetClassifier.from_model(unet.runs[0] / "bundle", data).report


# Their defects, which are not here


def test_classes_that_one_net_ignores_are_of_no_concern_to_another(
    data: SegmentationData, tmp_path: Path
) -> None:
    before = data.classes
    one = small(data, ignore_classes=[2])
    two = small(data)
    assert data.classes == before and two.recipe.classes == "0=background,1=roof,2=road"
    one.fit(1, lr=0.01)
    two.fit(1, lr=0.01)
    assert list(one.per_class_metrics().columns) == ["background", "roof"]
    assert list(two.per_class_metrics().columns) == before
    assert one.run is not None
    masks = [np.asarray(Image.open(p.masks[0])) for p in data.valid_ds]
    counted = sum(row["support"] for row in one._scores("val")["classes"])
    assert counted == sum(int((mask != 2).sum()) for mask in masks)


def test_how_it_was_trained_is_remembered(unet: UnetClassifier, data: SegmentationData) -> None:
    again = UnetClassifier.from_model(unet.runs[0], data)
    assert (again.recipe.loss, again.recipe.class_weights) == ("focal", "balanced")
    other = UnetClassifier.from_model(unet.runs[0], data, loss="lovasz", class_weights="")
    assert (other.recipe.loss, other.recipe.class_weights) == ("lovasz", "")
    assert UnetClassifier.from_model(unet.runs[0], data, dice_loss_fraction=1).recipe.loss == "dice"


def test_statistics_do_not_differ_between_runs(folder: Path) -> None:
    one, two = (prepare_data(folder, norm_pct=0.3, talk=QUIET) for _ in range(2))
    assert one.normalization == two.normalization
    trained = [np.asarray(Image.open(pair.image), dtype=np.float64) for pair in one.train_ds]
    assert one.normalization.mean[0] == pytest.approx(np.mean(trained))


def test_one_hot_pixel_does_not_flatten_a_scene(tmp_path: Path) -> None:
    import rasterio

    scene, houses, _ = town(tmp_path)
    said: dict[str, Any] = {"chip_size": 64, "labels": houses, "talk": QUIET}
    before = prepare_data(scene, **said).normalization
    with rasterio.open(scene, "r+") as file:
        pixels = file.read().astype(np.uint16)
        profile = {**file.profile, "dtype": "uint16"}
    pixels[:, 5, 5] = 65535
    with rasterio.open(scene, "w", **profile) as file:
        file.write(pixels)
    after = prepare_data(scene, **said).normalization
    np.testing.assert_allclose(after.std, before.std, rtol=0.05)


@pytest.mark.parametrize(("word", "told"), [("best", False), (True, False), ("all", True)])
def test_words_for_checkpoints_are_taken(
    data: SegmentationData, monkeypatch: pytest.MonkeyPatch, word: Any, told: bool
) -> None:
    monkeypatch.setattr(jobs, "train", lambda *_, **__: None)
    unet = small(data)
    unet.talk = talk = Told()
    unet.fit(1, lr=0.1, checkpoint=word)
    assert ("the best epoch is kept, and no other" in talk.text) == told


def test_nothing_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prepare_data(folder, stratify=True, val_split_pct=0.3, working_dir=tmp_path, talk=QUIET)
    assert capsys.readouterr() == ("", "")


def test_scores_of_a_net_trained_on_another_split_are_told(
    unet: UnetClassifier, data: SegmentationData, folder: Path
) -> None:
    talk = Told()
    other = prepare_data(folder, {1: "roof", 2: "road"}, seed=7, talk=talk)
    UnetClassifier.from_model(unet.save("elsewhere"), other).accuracy()
    assert "warning  this net was trained on this data, dealt otherwise" in talk.text


# In a notebook


class _Place:
    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, shown: str) -> None:
        self.pages.append(shown)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for IPython: what is displayed is kept."""
    found: list[Any] = []

    def display(one: Any, display_id: bool = False) -> _Place | None:
        place = _Place() if display_id else None
        found.append(place or one)
        return place

    fake = types.ModuleType("IPython")
    fake.version_info = (9, 0)  # type: ignore[attr-defined]  # Matplotlib asks for it
    shell = types.SimpleNamespace(kernel=True, execution_count=1)
    fake.get_ipython = lambda: shell  # type: ignore[attr-defined]
    fake.display = types.SimpleNamespace(  # type: ignore[attr-defined]
        display=display, HTML=lambda text: text, Image=lambda data, format: data
    )
    monkeypatch.setitem(sys.modules, "IPython", fake)
    return found


def test_pictures_are_shown_once_in_a_cell(data: SegmentationData, shown: list[Any]) -> None:
    figure = data.show_batch(rows=1, imsize=1)
    assert len(shown) == 1 and shown[0].startswith(b"\x89PNG")
    figure._ipython_display_()  # what a notebook does with the result of a cell
    assert len(shown) == 1
    sys.modules["IPython"].get_ipython().execution_count = 2
    figure._ipython_display_()
    assert len(shown) == 2


def test_progress_has_one_place_for_each_cell(
    shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whatwhere.face.inline._PAUSE", -1)
    talk = NotebookTalk()
    talk.say("data     <b>")
    for _ in talk.track(range(3), "looking", 3):
        pass
    talk.say("epoch   1/9  loss 0.5")
    (place,) = shown
    last = place.pages[-1]
    assert "<details>" in last and "&lt;b&gt;" in last
    assert last.index("</details>") < last.index("epoch   1/9")
    assert any("<progress" in page for page in place.pages) and "<progress" not in last
    sys.modules["IPython"].get_ipython().execution_count = 2
    talk.say("note     here")
    assert len(shown) == 2 and "epoch" not in shown[1].pages[-1]
    assert not talk.is_plain and page([]) == ""


def test_without_a_notebook_lines_are_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data(folder)
    assert "classes  0 → background" in capsys.readouterr().err
