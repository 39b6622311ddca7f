"""A net as one file: it answers as the net does, says what it is, or is not written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from made_maps import make_classes, make_pixels, make_predictor, save_bundle
from own_nets import Chain
from told import assert_told, call
from whatwhere import bundle, export, jobs
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, UsageError
from whatwhere.nn import trace
from whatwhere.nn.build import build_model
from whatwhere.nn.whole import ForMaps, OneTile, Whole
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.exported import library
from whatwhere.predict.graphs import Original
from whatwhere.talk import QUIET
from whatwhere.types import Bands, Geometry

TILE = 96
THEIRS = {
    *("model_type", "class_names", "tile_size", "tiles_size", "tiles_overlap", "resolution"),
    *("standardization_mean", "standardization_std", "seg_thresh", "seg_small_segment"),
}


def made(folder: Path, **changes: Any) -> tuple[Path, Predictor]:
    """A bundle of the tutorial's net with a threshold that is not the middle."""
    net = make_predictor("tutorial", upsample="bilinear", pixel_size=0.25, tile=2048)
    net.card = net.card.replace(**{"thresholds": (0.37,), **changes})
    return save_bundle(folder, net), net


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictor]:
    return made(tmp_path_factory.mktemp("runs") / "bundle")


@pytest.fixture(scope="module")
def free(run: tuple[Path, Predictor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("free") / "model.onnx"
    jobs.export(run[0], path, talk=QUIET)
    return path


@pytest.fixture(scope="module")
def fixed(run: tuple[Path, Predictor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "model.onnx"
    jobs.export(run[0], path, tile=TILE, talk=QUIET)
    return path


def words_in(path: Path) -> dict[str, Any]:
    """What the metadata hold."""
    kept = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    source = kept.pop("whatwhere_source", None)
    return {**{key: json.loads(text) for key, text in kept.items()}, "whatwhere_source": source}


def asked(path: Path, images: NDArray[Any]) -> NDArray[np.float32]:
    """What any program gets that runs the file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32)})
    return np.asarray(found)


def assert_near(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4
    assert np.ptp(wanted) > 0.1 or wanted.size < 50  # there is something to be near to


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16), (33, 64), (131, 97)])
def test_the_numbers_of_files_go_in_and_probabilities_come_out_at_any_size(
    run: tuple[Path, Predictor], free: Path, size: tuple[int, int]
) -> None:
    images = np.stack([make_pixels(*size, seed=seed) for seed in range(2)])
    wanted = np.stack([run[1].probabilities(image) for image in images])
    assert_near(asked(free, images), wanted)
    assert_near(asked(free, images[:1]), wanted[:1])


def test_the_file_says_what_it_is(run: tuple[Path, Predictor], free: Path) -> None:
    model = onnx.load(free)
    ends = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert ends == [["batch", 3, "height", "width"], ["batch", 1, "height", "width"]]
    words = words_in(free)
    card = Card.from_json(words["whatwhere_card"])
    assert card.replace(self_test={}) == run[1].card
    assert words["whatwhere_format"] == 1
    assert words["whatwhere_source"] == bundle.load(run[0]).digest
    about = words["whatwhere_export"]
    assert 0 < about["largest_difference"] <= 1e-4
    assert about["compared"] == [[1, 37, 57], [1, 5, 7], [2, 16, 48]]
    assert about["tile"] == 0 and about["memory_mb"] >= 1 and "torch" in about["versions"]
    assert not THEIRS & set(words)  # they want one size
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]


def test_nothing_tells_where_it_was_made(free: Path, fixed: Path) -> None:
    for path in (free, fixed):
        data = path.read_bytes()
        for word in (b"site-packages", b"whatwhere/nn", str(Path(torch.__file__).parent).encode()):
            assert word not in data


@pytest.mark.slow
def test_the_same_run_gives_the_same_file(
    run: tuple[Path, Predictor], free: Path, tmp_path: Path
) -> None:
    jobs.export(run[0], tmp_path / "again.onnx", talk=QUIET)
    assert (tmp_path / "again.onnx").read_bytes() == free.read_bytes()


@pytest.mark.parametrize(("off", "told"), [(2e-4, "0.0002"), (-1.0, "1"), (np.nan, "nan")])
def test_what_differs_is_not_written_and_what_was_there_stays(
    run: tuple[Path, Predictor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    off: float,
    told: str,
) -> None:
    def wrong(original: Original) -> export.Made:
        def ask(images: NDArray[np.float32]) -> NDArray[np.float32]:
            return original.ask(images) + np.float32(off)

        return export.Made(ask=ask, finish=lambda lines: b"wrong", self_test={})

    monkeypatch.setattr(export, "_make_onnx", wrong)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"from before")
    message = rf"not answer as the net does: at 1×37×57 px a probability is off by {told}"
    with pytest.raises(BundleError, match=message):
        jobs.export(run[0], path, talk=QUIET)
    assert path.read_bytes() == b"from before"
    with pytest.raises(BundleError, match="0.0001 is allowed. Nothing was written"):
        jobs.export(run[0], tmp_path / "other.onnx", talk=QUIET)
    assert list(tmp_path.iterdir()) == [path]


def shown_to_deepness(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A tile as QGIS Deepness handles it, by its documentation and its metadata alone."""
    words = words_in(path)
    mean = np.array(words["standardization_mean"], dtype=np.float32)[:, None, None]
    std = np.array(words["standardization_std"], dtype=np.float32)[:, None, None]
    image = (np.float32(pixels * (1 / 255)) - mean) / std
    found = asked(path, image[None])[0]
    found[found < words["seg_thresh"]] = 0
    return np.argmax(found, axis=0)


def test_the_form_for_qgis_gives_our_classes(run: tuple[Path, Predictor], fixed: Path) -> None:
    for seed in range(3):
        pixels = make_pixels(TILE, TILE, seed=seed)
        wanted = run[1].predict(pixels)
        assert 0.01 < wanted.mean() < 0.99
        assert np.mean(shown_to_deepness(fixed, pixels) != wanted) < 1e-3


def test_what_qgis_reads_in_the_file(fixed: Path) -> None:
    words = words_in(fixed)
    assert set(words) >= THEIRS
    assert {key: words[key] for key in THEIRS} == {
        "model_type": "Segmentor",
        "class_names": {"0": "class 0", "1": "class 1"},
        "tile_size": TILE,
        "tiles_size": TILE,
        "tiles_overlap": 50,  # at the most; 64 px on each side would be 134 %
        "resolution": 25.0,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
        "seg_thresh": 0.5,
        "seg_small_segment": 0,
    }
    (image,) = onnx.load(fixed).graph.input
    sides = [side.dim_value for side in image.type.tensor_type.shape.dim]
    assert sides == [1, 3, TILE, TILE]


def test_what_qgis_reads_of_other_nets() -> None:
    def words(task: str, shape: Geometry, tile: int) -> dict[str, Any]:
        card = make_predictor(classes=make_classes(3, task)).card.replace(geometry=shape)
        found = export.for_maps(card, tile)
        return {key: json.loads(text) for key, text in found.items()}

    several = words("multiclass", Geometry(32, 542), 512)
    assert several["class_names"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
    assert several["seg_thresh"] == 0  # a softmax takes the likeliest, however likely
    assert several["tiles_overlap"] == 25
    assert "resolution" not in several
    labels = words("multilabel", Geometry(16, 92, 92, 12), 512)
    assert labels["class_names"]["0"] == "none"
    assert labels["class_names"]["3"] == "class 2"
    assert labels["tiles_overlap"] == 36  # 92 px of mirror image on each side


class Given(torch.nn.Module):
    """Answers with logits that it was given."""

    def __init__(self, probabilities: NDArray[np.float32]) -> None:
        super().__init__()
        self.found = torch.from_numpy(probabilities)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.found


@pytest.mark.parametrize("thresholds", [(0.5,), (0.37,), (0.7,), (0.0,), (1.0,), (0.2, 0.9, 0.5)])
def test_a_threshold_lies_where_the_highest_channel_changes(thresholds: Sequence[float]) -> None:
    """Also at the threshold itself, and a number beside it."""
    edges = np.array(thresholds, dtype=np.float32)[:, None]
    near = [np.nextafter(edges, np.float32(side)) for side in (-1, 2)]
    random = np.random.default_rng(0).uniform(size=(len(thresholds), 60))
    values = np.hstack([edges, *near, random, 0 * edges, 0 * edges + 1]).clip(0, 1)
    probabilities = values.astype(np.float32)[None, :, None, :]
    net = ForMaps(Given(probabilities), thresholds)  # type: ignore[arg-type]
    found = net(torch.zeros(1, 1, 1, 1))[0].numpy()
    there = probabilities[0] >= np.array(thresholds)[:, None, None]
    told = np.argmax(np.where(found < 0.5, 0, found), axis=0)
    assert np.array_equal(told > 0, there.any(axis=0))
    assert np.take_along_axis(there, np.maximum(told - 1, 0)[None], axis=0)[0][told > 0].all()
    assert found.min() >= 0 and found.max() <= 1
    if thresholds == (0.5,):
        assert np.allclose(found[1], probabilities[0, 0], atol=1e-7)


def test_a_tile_of_a_net_with_a_border_is_mirrored_around() -> None:
    net = make_predictor("unet2015", n_filters=2, tile=2048)
    module = OneTile(Whole(net.net, net.card.normalization, "binary"), 128, net.card.geometry)
    pixels = make_pixels(128, 128)
    with torch.inference_mode():
        found = module(torch.from_numpy(pixels.astype(np.float32))[None])[0].numpy()
    assert_near(found, net.probabilities(pixels))


def test_a_graph_of_pytorch(run: tuple[Path, Predictor], tmp_path: Path) -> None:
    found = jobs.export(run[0], tmp_path / "model.pt2", tile=48, talk=QUIET)
    assert found["largest_difference"] <= 1e-4
    kept = {"whatwhere_card": "", "whatwhere_source": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=kept).module()
    assert Card.from_json(json.loads(kept["whatwhere_card"])) == run[1].card
    pixels = make_pixels(48, 48)
    answer = program(torch.from_numpy(pixels.astype(np.float32))[None])
    assert_near(answer.detach().numpy()[0], run[1].probabilities(pixels))
    assert b"site-packages" not in (tmp_path / "model.pt2").read_bytes()
    with pytest.raises(BundleError, match=r"model\.pt2: this is for PyTorch alone"):
        load(tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transposed"])
def test_a_graph_of_pytorch_takes_any_size(tmp_path: Path, upsample: str) -> None:
    net = make_predictor("tutorial", upsample=upsample, tile=2048)
    jobs.export(save_bundle(tmp_path / "b", net), tmp_path / "model.pt2", talk=QUIET)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count, size in ((1, (1, 1)), (2, (5, 7)), (1, (16, 40)), (3, (67, 35))):
        images = np.stack([make_pixels(*size, seed=seed) for seed in range(count)])
        answer = program(torch.from_numpy(images.astype(np.float32))).detach().numpy()
        wanted = np.stack([net.probabilities(image) for image in images])
        assert np.abs(answer - wanted).max() <= 1e-4


@pytest.mark.parametrize("name", ["model", "model.h5", "model.bin", "model.ONNXX"])
def test_other_endings_are_refused(run: tuple[Path, Predictor], tmp_path: Path, name: str) -> None:
    done = call("export", run[0], "-o", tmp_path / name)
    assert_told(done, 2, r"a net is exported as \.onnx, \.xml, \.pt2, \.dlpk or \.emd")
    assert not list(tmp_path.iterdir())


def test_what_has_no_meaning_is_refused(run: tuple[Path, Predictor], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m\.onnx: this is an export\. Give the run"):
        jobs.export(tmp_path / "m.onnx", tmp_path / "n.onnx")
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UsageError, match="this is a folder"):
        jobs.export(run[0], tmp_path / "m.onnx")
    for tile in (16, 5000):
        with pytest.raises(UsageError, match=f"--tile {tile}: of this net it may be 32 to 4096"):
            jobs.export(run[0], tmp_path / "n.onnx", tile=tile)
    with pytest.raises(BundleError, match="no such folder"):
        jobs.export(tmp_path / "nothing", tmp_path / "n.onnx")
    with pytest.raises(UsageError, match="--data and what goes with it is for --int8. Leave it"):
        jobs.export(run[0], tmp_path / "n.onnx", data=tmp_path)
    assert_told(
        call("export", run[0], "-o", tmp_path / "n.xml", "--buffer-m", 2), 2, "is for --int8"
    )


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r'no_such is needed .* pip install "whatwhere\[onnx\]"'):
        library("no_such")


def test_nets_without_an_end_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_model("tutorial", 3, 1)
    assert not trace.endless(net)
    monkeypatch.setattr(type(net), "__module__", "timm.models.swin_transformer")
    with pytest.raises(UsageError, match="swin_transformer has no graph for sizes that are left"):
        trace.trace(net, (2, 3, 69, 105), Geometry(32, None), free=True)


def test_same_padding_is_a_number_where_sides_divide() -> None:
    net = build_model("tf_mobilenetv3_small_minimal_100", 3, 1).eval()
    program = trace.trace(net, (2, 3, 69, 105), Geometry(32, None), free=True)
    pads = [n for n in program.graph.nodes if n.target is torch.ops.aten.pad.default]
    pads = [n for n in pads if n.args[2:] in ((), ("constant", 0.0))]  # the others mirror
    assert len(pads) == 5  # the stem and the first layer of each stage that halves its maps
    assert {side for pad in pads for side in pad.args[1]} == {0, 1}
    image = torch.from_numpy(make_pixels(77, 130) / np.float32(255))[None]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), net(image), rtol=1e-4, atol=1e-4)


def on_ones_own(folder: Path, encoder: torch.nn.Module) -> tuple[Path, Predictor]:
    """A bundle of a net on a module of one's own."""
    net = make_predictor(encoder, shape=Geometry(4, None))  # type: ignore[arg-type]
    net.card = net.card.replace(model=f"own:{type(encoder).__name__}")
    return save_bundle(folder, net), net


def test_a_net_that_no_graph_can_hold_is_refused_with_the_way_out(tmp_path: Path) -> None:
    class Moody(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Chain(3, (4, 6))

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return self.body(image if float(image.sum()) < 1e30 else -image)

    folder, _ = on_ones_own(tmp_path / "bundle", Moody())
    message = r"own:Moody cannot be exported as \.pt2 for images of any size: .*--tile 512 exports"
    with pytest.raises(UsageError, match=message):
        jobs.export(folder, tmp_path / "m.pt2", encoder=Moody(), talk=QUIET)


def test_a_net_on_an_encoder_of_ones_own(tmp_path: Path) -> None:
    folder, net = on_ones_own(tmp_path / "bundle", Chain(3, (4, 6)))
    with pytest.raises(BundleError, match="encoder of its own"):
        jobs.export(folder, tmp_path / "m.onnx")
    jobs.export(folder, tmp_path / "m.onnx", encoder=Chain(3, (4, 6)), talk=QUIET)
    pixels = make_pixels(41, 58)
    assert_near(load(tmp_path / "m.onnx").probabilities(pixels), net.probabilities(pixels))


def test_what_a_user_would_not_guess_is_said() -> None:
    def told(bands: str = "abc", task: str = "binary", tile: int = 64, **changes: Any) -> str:
        net = make_predictor(bands=bands, classes=make_classes(2, task))
        return " ".join(export.notes(net.card.replace(**changes), ".onnx", tile))

    assert "the size of its pixels is not known" in told()
    assert told(pixel_size=0.5) == ""
    assert told(tile=0) == ""
    assert "its labels may overlap" in told(task="multilabel")
    assert "it has 5 bands: geodeep takes nets of 3" in told(bands="abcde")
    assert "images stretched to 48×64 px" in told(resize=(48, 64), tile=0)


@pytest.mark.slow
def test_a_net_that_stretches_says_nothing_to_qgis(tmp_path: Path) -> None:
    stretched, net = made(tmp_path / "stretched", resize=(48, 64))
    jobs.export(stretched, tmp_path / "m.onnx", tile=64, talk=QUIET)
    assert not THEIRS & set(words_in(tmp_path / "m.onnx"))
    pixels = make_pixels(70, 50)
    jobs.export(stretched, tmp_path / "m.onnx", talk=QUIET)
    assert_near(load(tmp_path / "m.onnx").probabilities(pixels), net.probabilities(pixels))


def test_the_command_tells_how_near_it_is(
    run: tuple[Path, Predictor], free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(original: Original) -> export.Made:
        def finish(lines: Mapping[str, str]) -> bytes:
            return json.dumps(dict(lines)).encode()

        return export.Made(
            ask=lambda images: original.ask(images) + np.float32(2e-5), finish=finish, self_test={}
        )

    monkeypatch.setattr(export, "_make_onnx", same)
    path = tmp_path / "model.onnx"
    done = call("export", run[0], "-o", path, "--tile", 64)
    told = (r"model\.onnx: \d,\d+ bytes", r"from the net's is 2\.0e-05 \(1×64×64, 1×33×22, ")
    assert_told(done, 0, "compared at 3 sizes: off by 2.0e-05", *told)
    found = json.loads(call("export", run[0], "-o", path, "--json").stdout)
    assert found["file"] == str(path) and found["bytes"] == path.stat().st_size
    about = json.loads(json.loads(path.read_text(encoding="utf-8"))["whatwhere_export"])
    assert found["largest_difference"] == about["largest_difference"] == pytest.approx(2e-5, 0.01)


def test_packages_for_arcgis_are_exports_too(run: tuple[Path, Predictor], tmp_path: Path) -> None:
    found = jobs.export(run[0], tmp_path / "salt.dlpk", talk=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["salt.dlpk"]
    assert found["bytes"] == (tmp_path / "salt.dlpk").stat().st_size
    assert call("export", run[0], "-o", tmp_path / "salt.dlpk").exit_code == 0
    folder = tmp_path / "folder"
    jobs.export(run[0], folder / "salt.emd", talk=QUIET)
    assert {"salt.emd", "bundle.json"} <= {path.name for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"--tile is for \.onnx, \.xml and \.pt2"):
        jobs.export(run[0], tmp_path / "other.dlpk", tile=64)
    (folder / "splits.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="a run is in this folder"):
        jobs.export(run[0], folder / "salt.emd")


def test_geodeep_opens_ours_and_finds_our_classes(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    """It cuts tiles, drops half of the overlap on each side, and takes the median of 5×5 px.

    The crop is as large that its tiles lie where ours would.
    """
    geodeep = pytest.importorskip("geodeep")
    tile, side = 256, (640, 768)
    with rasterio.open(real_data("oam_banepa") / "scene_predict.tif") as source:
        window = rasterio.windows.Window(200, 300, side[1], side[0])
        pixels = source.read(window=window)
        transform = source.window_transform(window)
        profile = {**source.profile, "height": side[0], "width": side[1], "transform": transform}
    with rasterio.open(tmp_path / "crop.tif", "w", **profile) as file:
        file.write(pixels)
    net = make_predictor("tutorial", n_filters=4, upsample="bilinear", pixel_size=0.1322)
    net.card = net.card.replace(thresholds=(0.37,))
    folder = save_bundle(tmp_path / "bundle", net)
    jobs.export(folder, tmp_path / "m.onnx", tile=tile, talk=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a GPU too
        found = geodeep.segment(str(tmp_path / "crop.tif"), str(tmp_path / "m.onnx"))
    wanted = np.zeros(side, dtype=np.uint8)
    for top in range(0, side[0] - tile + 1, tile // 2):
        for left in range(0, side[1] - tile + 1, tile // 2):
            answer = net.predict(pixels[:, top : top + tile, left : left + tile])
            first = [tile // 4 if start else 0 for start in (top, left)]
            last = [
                tile * 3 // 4 if start + tile < whole else tile
                for start, whole in zip((top, left), side, strict=True)
            ]
            part = answer[first[0] : last[0], first[1] : last[1]]
            wanted[top + first[0] : top + last[0], left + first[1] : left + last[1]] = part
    around = np.lib.stride_tricks.sliding_window_view(np.pad(wanted, 2, mode="edge"), (5, 5))
    wanted = np.median(around, axis=(2, 3)).astype(np.uint8)
    assert 0.1 < wanted.mean() < 0.9
    assert found.shape == wanted.shape
    assert np.mean(found[2:-2, 2:-2] != wanted[2:-2, 2:-2]) < 1e-4


NETS = [
    ("tutorial", {"upsample": "transposed"}),
    ("tutorial", {"upsample": "nearest", "kernel_size": 5, "batchnorm": False}),
    ("unet2015", {"n_filters": 2}),
    ("resnet18", {"upsample": "nearest"}),
    ("resnet18", {"upsample": "bilinear", "norm": "group"}),
    ("resnet18", {"upsample": "transposed", "activation": "gelu"}),
    ("test_efficientnet", {"anything": True}),
    ("test_vit", {"upsample": "shuffle"}),
    ("test_convnext", {}),
    ("test_mambaout", {}),
    ("test_maxvit", {}),
    ("test_coatnet", {}),
    ("tf_efficientnet_lite0", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("tile", [0, 320])
@pytest.mark.parametrize(
    ("name", "arguments", "bands", "task"),
    [
        (*net, bands, task)
        for net, bands, task in zip(
            NETS,
            cycle(("a", "abc", "abcde")),
            cycle(("binary", "multiclass", "multilabel")),
            strict=False,
        )
    ]
    + [
        ("tutorial", {}, bands, task)
        for bands in ("a", "abc", "abcde")
        for task in ("binary", "multiclass", "multilabel")
    ],
)
def test_every_kind_of_net_answers_as_it_did(
    tmp_path: Path, name: str, arguments: dict[str, Any], bands: str, task: str, tile: int
) -> None:
    classes = make_classes(2 if task == "binary" else 3, task)
    shape = None
    if name not in ("tutorial", "unet2015"):  # measuring a margin takes long
        shape = Geometry(build_model(name, 3, 1).encoder.stride, None)  # type: ignore[union-attr]
    net = make_predictor(
        name, bands=bands, classes=classes, shape=shape, tile=tile or 2048, **arguments
    )
    limits = {} if task == "multiclass" else {"thresholds": (0.37, 0.6, 0.5)[: classes.n_outputs]}
    numbers = tuple(range(1, len(bands) + 1))
    net.card = net.card.replace(bands=Bands(tuple(bands), numbers), **limits)
    folder = save_bundle(tmp_path / "bundle", net)
    found = jobs.export(folder, tmp_path / "m.onnx", tile=tile, talk=QUIET)
    assert found["largest_difference"] <= 1e-4
    exported = load(tmp_path / "m.onnx")
    pixels = make_pixels(tile or 131, tile or 97, len(bands))
    wanted = net.probabilities(pixels)
    assert_near(exported.probabilities(pixels), wanted)
    if tile and task != "multilabel":
        told = shown_to_deepness(tmp_path / "m.onnx", pixels)
        ours = decide(wanted, classes, net.card.thresholds)
        assert np.mean(told != ours) < 1e-3


@pytest.mark.slow
def test_shifted_windows_are_exported_for_one_size(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    stride = build_model(name, 3, 1).encoder.stride  # type: ignore[union-attr]
    net = make_predictor(name, shape=Geometry(stride, None))
    folder = save_bundle(tmp_path / "bundle", net)
    with pytest.raises(UsageError, match="has no graph for sizes .* --tile 512 exports it"):
        jobs.export(folder, tmp_path / "m.onnx", talk=QUIET)
    for ending in ("onnx", "pt2"):
        found = jobs.export(folder, tmp_path / f"m.{ending}", tile=256, talk=QUIET)
        assert found["largest_difference"] <= 1e-4


@pytest.mark.slow
def test_a_graph_of_pytorch_of_other_nets(tmp_path: Path) -> None:
    for name in ("unet2015", "test_resnet", "test_vit", "test_convnext"):
        shape = None if name == "unet2015" else Geometry(32, None)
        arguments = {"n_filters": 2} if name == "unet2015" else {}
        folder = save_bundle(tmp_path / name, make_predictor(name, shape=shape, **arguments))
        for tile in (0, 64):
            found = jobs.export(folder, tmp_path / "m.pt2", tile=tile, talk=QUIET)
            assert found["largest_difference"] <= 1e-4, name
