"""The raster function, called as Esri's interface says: block by block, with padding and masks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from test_bundle import make_card
from whatwhere import bundle
from whatwhere.errors import BundleError, ShapeError, UsageError
from whatwhere.nn.build import build_model, geometry
from whatwhere.packages import SCRIPT, open_package, write_package
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import load
from whatwhere.raster_function import RasterFunction, usual_padding
from whatwhere.types import Bands, Classes, ClassInfo, Geometry, Normalization

NAMES = ("sea", "roof", "road", "tree")
COLORS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115))


def table(count: int) -> Classes:
    infos = [
        ClassInfo(NAMES[i], 10 * i, COLORS[i], "background" if i == 0 else "class", (10 * i,))
        for i in range(count)
    ]
    return Classes(tuple(infos), "multiclass" if count > 2 else "binary")


def save_net(folder: Path, model: str = "tutorial", classes: int = 4, **changes: Any) -> Path:
    """Write a package with a net whose weights and norms are drawn."""
    torch.manual_seed(1)
    arguments = {"tutorial": {"n_filters": 2}, "unet2015": {"n_filters": 2}}.get(model, {})
    bands = changes.pop("bands", Bands(("red", "nir"), (1, 4)))
    labels = table(classes)
    net = build_model(model, len(bands), labels.n_outputs, **arguments)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    *_, head = (one for one in net.modules() if isinstance(one, nn.Conv2d))
    image = torch.from_numpy(scene(188, 188, len(bands), seed=5)[None].astype(np.float32))
    with torch.no_grad():  # so that all classes are there
        logits = net.eval()((image - 100) / 50)
        spread = logits.std(dim=(0, 2, 3))
        head.weight /= spread[:, None, None, None]
        head.bias -= logits.mean(dim=(0, 2, 3))  # type: ignore[operator]
        head.bias /= spread
    weights = {name: one.numpy() for name, one in net.state_dict().items()}
    card = make_card(
        **{
            "model": model, "arguments": arguments, "classes": labels, "bands": bands,
            "normalization": Normalization((100.0,) * len(bands), (50.0,) * len(bands)),
            "resize": None, "orientation": "free", "geometry": geometry(net),
            "thresholds": (0.5,) if classes == 2 else (), **changes,
        }
    )  # fmt: skip
    bundle.save(folder / "source", card, weights)
    write_package(folder / "source", folder / "net", "net")
    return folder / "net"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_net(tmp_path_factory.mktemp("package"))


def made(package: Path, **scalars: Any) -> tuple[RasterFunction, dict[str, Any]]:
    function = RasterFunction()
    function.initialize(model=str(package / "net.emd"), device=-1)
    return function, function.getConfiguration(**scalars)


def scene(height: int, width: int, bands: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    """Blots of many sizes, so that classes come in patches."""
    rng = np.random.default_rng(seed)
    result = np.zeros((bands, height, width))
    for size in (4, 16, 64):
        coarse = rng.uniform(0, 85, (bands, -(-height // size), -(-width // size)))
        result += np.kron(coarse, np.ones((1, size, size)))[:, :height, :width]
    return result.astype(np.uint8)


def blocks(
    raster: NDArray[Any], there: NDArray[np.bool_], configuration: dict[str, Any]
) -> Iterator[tuple[int, int, tuple[int, int], dict[str, Any]]]:
    """Cut a raster as Pro does: fixed blocks with padding, and a mask of 0 beyond the raster."""
    pad, tx, ty = (configuration[name] for name in ("padding", "tx", "ty"))
    extracted = configuration.get("extractBands")
    bands = raster[list(extracted)] if extracted is not None else raster
    height, width = there.shape
    for top in range(0, height, ty):
        for left in range(0, width, tx):
            pixels = np.zeros((len(bands), ty + 2 * pad, tx + 2 * pad), raster.dtype)
            mask = np.zeros(pixels.shape, np.uint8)
            rows = slice(max(top - pad, 0), min(top + ty + pad, height))
            columns = slice(max(left - pad, 0), min(left + tx + pad, width))
            place = (
                slice(rows.start - top + pad, rows.stop - top + pad),
                slice(columns.start - left + pad, columns.stop - left + pad),
            )
            pixels[:, *place] = bands[:, rows, columns]
            mask[:, *place] = there[rows, columns]
            yield top, left, (ty, tx), {"raster_pixels": pixels, "raster_mask": mask}


def classified(
    function: RasterFunction,
    raster: NDArray[Any],
    configuration: dict[str, Any],
    there: NDArray[np.bool_] | None = None,
    within: tuple[int, int] = (0, 0),
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Classify a raster block by block, between so many rows and columns from its edges."""
    there = np.ones(raster.shape[1:], np.bool_) if there is None else there
    height, width = there.shape
    ty, tx = configuration["ty"], configuration["tx"]
    whole = np.zeros((-(-height // ty) * ty, -(-width // tx) * tx), np.int32)
    mask = np.zeros(whole.shape, np.uint8)
    for top, left, shape, given in blocks(raster, there, configuration):
        if top + ty <= within[0] or top >= height - within[0]:
            continue
        if left + tx <= within[1] or left >= width - within[1]:
            continue
        found = function.updatePixels((left, top), shape, {"pixelType": "i4"}, **given)
        assert found["output_pixels"].shape == found["output_mask"].shape == shape
        assert found["output_pixels"].dtype == np.int32 and found["output_mask"].dtype == np.uint8
        whole[top : top + ty, left : left + tx] = found["output_pixels"]
        mask[top : top + ty, left : left + tx] = found["output_mask"]
    return whole[:height, :width], mask[:height, :width]


def values_of(package: Path, labels: NDArray[Any]) -> NDArray[np.int32]:
    return np.array([info.value for info in bundle.load_card(package).classes], np.int32)[labels]


# What it says of itself


def test_parameters_are_those_of_the_interface() -> None:
    function = RasterFunction()
    function.initialize()  # as Pro does before a model is chosen
    asked = {one["name"]: one for one in function.getParameterInfo()}
    assert list(asked) == [
        *("raster", "model", "padding", "batch_size", "predict_background"),
        *("test_time_augmentation", "tile_size", "device"),
    ]
    for one in asked.values():
        keys = {"name", "dataType", "value", "required", "displayName", "description"}
        assert keys <= set(one) <= {*keys, "domain"}
        assert one["dataType"] in ("numeric", "string", "raster", "rasters", "boolean")
        assert ("domain" in one) == (one["value"] in ("True", "False"))
    assert [one["name"] for one in asked.values() if one["required"]] == ["raster", "model"]
    assert function.name and function.description
    with pytest.raises(UsageError, match="no model is loaded"):
        function.getConfiguration()


def test_values_come_from_the_net(package: Path) -> None:
    function, configuration = made(package)
    asked = {one["name"]: one["value"] for one in function.getParameterInfo()}
    assert (asked["padding"], asked["tile_size"], asked["batch_size"]) == (128, 1024, 4)
    assert (asked["predict_background"], asked["test_time_augmentation"]) == ("True", "False")
    assert configuration == {
        "padding": 128, "tx": 2 * 768, "ty": 2 * 768, "extractBands": (0, 3), "inputMask": True,
        "fixedTileSize": 1, "inheritProperties": 14, "invalidateProperties": 14,
    }  # fmt: skip
    card = bundle.load_card(package)
    assert usual_padding(card.geometry) >= (card.geometry.margin or 0)
    assert (
        usual_padding(Geometry(16, 92, 92, 12)) == 96 and usual_padding(Geometry(32, None)) == 128
    )


def test_values_may_come_as_text(package: Path) -> None:
    function, configuration = made(
        package, padding="32", tile_size="200.0", batch_size=10.0, predict_background="false",
        test_time_augmentation="True", device="cpu", raster=None, model="x",
    )  # fmt: skip
    assert (configuration["padding"], configuration["tx"]) == (32, 3 * 128)  # a multiple of 16
    assert not function.predict_background and function.test_time_augmentation
    assert (function.tile_size, function.batch_size) == (200, 10)


@pytest.mark.parametrize(
    ("scalars", "match"),
    [
        ({"padding": -1}, "padding must be a whole number from 0 up, not -1"),
        ({"padding": "many"}, "padding must be a whole number from 0 up, not 'many'"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up"),
        ({"tile_size": 1.5}, "tile_size must be a whole number"),
        ({"tile_size": float("nan")}, "tile_size must be a whole number"),
        ({"predict_background": "maybe"}, "predict_background must be True or False, not 'maybe'"),
        ({"tile_size": 260}, "tile_size 260 has no room between two paddings of 128 px. Take at "
                             "least 272"),
        ({"device": "tpu"}, "--device must be auto, cpu, cuda, mps, not 'tpu'"),
    ],
)  # fmt: skip
def test_what_is_refused(package: Path, scalars: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        made(package, **scalars)


def test_classes_are_a_table_of_the_output(package: Path) -> None:
    function, _ = made(package)
    info = {"bandCount": 2, "pixelType": "u1", "cellSize": (0.3, 0.3), "statistics": ({},)}
    found = function.updateRasterInfo(raster_info={}, output_info=info, padding=128)
    out = found["output_info"]
    assert (out["bandCount"], out["pixelType"], out["statistics"]) == (1, "i4", ())
    assert out["histogram"] == () and out["cellSize"] == (0.3, 0.3)
    told = json.loads(out["rasterAttributeTable"])
    assert [one["attributes"] for one in told["features"]] == [
        {"OID": i + 1, "Value": 10 * i, "Class": NAMES[i],
         "Red": COLORS[i][0], "Green": COLORS[i][1], "Blue": COLORS[i][2]}
        for i in range(4)
    ]  # fmt: skip
    kinds = {one["name"]: one["type"] for one in told["fields"]}
    assert kinds["OID"] == "esriFieldTypeOID" and kinds["Class"] == "esriFieldTypeString"
    assert {kinds[name] for name in ("Value", "Red", "Green", "Blue")} == {"esriFieldTypeInteger"}


# Its classes


@pytest.mark.parametrize(
    ("model", "orientation", "augmented"),
    [
        *(("tutorial", "free", False), ("tutorial", "free", True), ("tutorial", "upright", True)),
        *(("unet2015", "free", False), ("unet2015", "upright", True)),
    ],
)
def test_blocks_and_the_whole_agree(
    tmp_path: Path, model: str, orientation: str, augmented: bool
) -> None:
    """With and without augmentation alike: no seam, and the class of the mean probability."""
    package = save_net(tmp_path, model, orientation=orientation)
    function, configuration = made(
        package, tile_size=320, batch_size=1, test_time_augmentation=augmented
    )
    raster = scene(304, 288)
    predictor = load(package, device="cpu", tile=1024)
    far = configuration["padding"]  # a pixel nearer the edge sees what lies beyond it
    found, _ = classified(function, raster, configuration, within=(far, far))
    assert configuration["tx"] < 150 and far >= (predictor.card.geometry.margin or 0)
    turns: list[tuple[bool, bool, bool]] = [(False, False, False)]
    if augmented:
        turns.append((False, True, False))
    if augmented and orientation == "free":
        both = (False, True)
        turns = [(down, across, swap) for down in both for across in both for swap in both]
    total = np.zeros((4, 304, 288))
    for down, across, swap in turns:
        turned = raster[:, :: -1 if down else 1, :: -1 if across else 1]
        turned = turned.swapaxes(1, 2) if swap else turned
        answer = predictor.probabilities(np.ascontiguousarray(turned))
        answer = answer.swapaxes(1, 2) if swap else answer
        total += answer[:, :: -1 if down else 1, :: -1 if across else 1]
    whole = values_of(package, total.argmax(0))
    inside = (slice(far, 304 - far), slice(far, 288 - far))
    second, first = np.sort(total / len(turns), axis=0)[-2:]
    level = first - second < 1e-5  # the last digit decides
    differs = (found != whole)[inside]
    assert not differs[~level[inside]].any() and differs.mean() < 0.001
    assert len(np.unique(found[inside])) > 2


def test_the_size_of_blocks_does_not_matter(package: Path) -> None:
    raster, there = scene(300, 330), np.ones((300, 330), np.bool_)
    there[100:140, :200] = False
    results = []
    for scalars in ({"tile_size": 304, "batch_size": 1}, {"tile_size": 400, "batch_size": 9}):
        function, configuration = made(package, **scalars)
        results.append(classified(function, raster, configuration, there))
    margin = bundle.load_card(package).geometry.margin or 0
    inside = (slice(margin, 300 - margin), slice(margin, 330 - margin))
    (one, mask), (other, same_mask) = results
    np.testing.assert_array_equal(mask[inside], same_mask[inside])
    found = load(package, device="cpu", tile=1024).probabilities(raster, there)
    second, first = np.sort(found, axis=0)[-2:]
    level = first - second < 1e-5  # the last digit decides
    differs = (one != other)[inside]
    assert not differs[~level[inside]].any() and differs.mean() < 0.001


def test_pixels_without_data_are_not_taken_for_dark_ones(package: Path) -> None:
    function, configuration = made(package, tile_size=288, batch_size=1)
    raster, there = scene(96, 96).astype(np.float32), np.ones((96, 96), np.bool_)
    there[20:50, 30:60] = False
    found, mask = classified(function, raster, configuration, there)
    np.testing.assert_array_equal(mask, there)
    assert set(np.unique(found[~there])) == {0}
    for filler in (0.0, 255.0, np.nan, 1e30):
        spoilt = np.where(there, raster, np.float32(filler))
        again, _ = classified(function, spoilt, configuration, there)
        np.testing.assert_array_equal(again, found)
    dark, _ = classified(function, np.where(there, raster, 0), configuration)
    assert (dark != found)[there].any()  # it matters
    holes = raster.copy()
    holes[3, ~there] = np.nan  # not finite in one band: no data, whatever the mask says
    again, mask = classified(function, holes, configuration)
    np.testing.assert_array_equal(again, found)
    np.testing.assert_array_equal(mask, there)


def test_masks_of_one_band_or_none(package: Path) -> None:
    function, configuration = made(package, tile_size=288, batch_size=1)
    (_, _, shape, given), *_ = blocks(scene(32, 32), np.ones((32, 32), np.bool_), configuration)
    one = {**given, "raster_mask": given["raster_mask"][0]}
    two = {**given, "raster_mask": given["raster_mask"].copy()}
    two["raster_mask"][1, 128:140] = 0
    found = [function.updatePixels((0, 0), shape, {}, **blocks) for blocks in (given, one, two)]
    np.testing.assert_array_equal(found[0]["output_pixels"], found[1]["output_pixels"])
    assert not found[2]["output_mask"][:12].any() and found[2]["output_mask"][12, 0]
    assert found[0]["raster_pixels"] is given["raster_pixels"]
    bare = function.updatePixels((0, 0), shape, {}, raster_pixels=given["raster_pixels"])
    assert bare["output_mask"].all()
    deep = function.updatePixels((0, 0), (1, *shape), {}, **given)
    assert deep["output_pixels"].shape == deep["output_mask"].shape == (1, *shape)


def test_background_can_be_left_out(package: Path, tmp_path: Path) -> None:
    raster = scene(64, 64)
    function, configuration = made(package, tile_size=288, predict_background=False)
    found, _ = classified(function, raster, configuration)
    (_, _, _, given), *_ = blocks(raster, np.ones((64, 64), np.bool_), configuration)
    predictor = load(package, device="cpu")
    predictor.card = predictor.card.replace(bands=Bands(("red", "nir"), (1, 2)))
    valid = (given["raster_mask"] > 0).all(0)
    chances = predictor.probabilities(given["raster_pixels"], valid)[:, 128:192, 128:192]
    np.testing.assert_array_equal(found, values_of(package, 1 + chances[1:].argmax(0)))
    two = save_net(tmp_path, classes=2)
    function, configuration = made(two, tile_size=288, predict_background=False)
    assert set(np.unique(classified(function, raster, configuration)[0])) == {10}


def test_thresholds_of_the_bundle_decide(tmp_path: Path) -> None:
    package = save_net(tmp_path, classes=2)
    raster = scene(64, 64)
    shares = []
    for threshold in (0.3, 0.5, 0.7):
        bundle.save_card(package, bundle.load_card(package).replace(thresholds=(threshold,)))
        function, configuration = made(package, tile_size=288)
        found, _ = classified(function, raster, configuration)
        assert set(np.unique(found)) <= {0, 10}
        shares.append(float((found == 10).mean()))
    assert shares[0] > shares[1] > shares[2]


def test_grey_rasters_come_without_a_place_for_bands(tmp_path: Path) -> None:
    package = save_net(tmp_path, bands=Bands(("grey",)))
    function, configuration = made(package, tile_size=288)
    assert configuration["extractBands"] == (0,)
    raster = scene(40, 40, bands=1)
    (_, _, shape, given), *_ = blocks(raster, np.ones((40, 40), np.bool_), configuration)
    flat = {name: one[0] for name, one in given.items()}
    found = [function.updatePixels((0, 0), shape, {}, **one) for one in (given, flat)]
    np.testing.assert_array_equal(found[0]["output_pixels"], found[1]["output_pixels"])


def test_colours_are_turned_into_grey_as_in_training(tmp_path: Path) -> None:
    package = save_net(tmp_path, bands=Bands(("grey",), convert=True))
    function, configuration = made(package, tile_size=288)
    assert "extractBands" not in configuration
    raster = scene(32, 32, bands=3)
    found, _ = classified(function, raster, configuration)
    (_, _, _, given), *_ = blocks(raster, np.ones((32, 32), np.bool_), configuration)
    predictor = load(package, device="cpu")
    valid = (given["raster_mask"] > 0).all(0)
    chances = predictor.probabilities(given["raster_pixels"], valid)[:, 128:160, 128:160]
    np.testing.assert_array_equal(found, values_of(package, chances.argmax(0)))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "there are no raster_pixels"),
        ({"raster_pixels": np.zeros((2, 256, 300))}, "256×300 px is nothing but its padding"),
        ({"raster_pixels": np.zeros((1, 288, 288))}, "band 2 is wanted, the image has 1"),
        ({"raster_pixels": np.zeros(9)}, r"\(bands, rows, columns\), not \(9,\)"),
        ({"raster_pixels": np.zeros((2, 9, 9)), "raster_mask": np.ones((2, 9, 8))},
         r"raster_mask is \(2, 9, 8\), and raster_pixels \(2, 9, 9\)"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_be(package: Path, given: dict[str, Any], match: str) -> None:
    function, _ = made(package, tile_size=288)
    with pytest.raises((ShapeError, UsageError), match=match):
        function.updatePixels((0, 0), (32, 32), {}, **given)


def test_a_net_that_looks_at_whole_tiles(tmp_path: Path) -> None:
    package = save_net(tmp_path, geometry=Geometry(16, None))
    function, configuration = made(package, tile_size=320, batch_size=4)
    assert (configuration["padding"], configuration["tx"]) == (128, 128)
    found, mask = classified(function, scene(130, 140), configuration)
    assert mask.all() and len(np.unique(found)) > 1


# How it gets there


def imported(path: Path) -> Any:
    """Import a file as Pro does: by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_in_an_unpacked_package_runs(package: Path, tmp_path: Path) -> None:
    emd = open_package(package / "net.dlpk", tmp_path / "pro")
    lines = json.loads(emd.read_text())
    module = imported(emd.parent / lines["InferenceFunction"])
    function = getattr(module, Path(lines["InferenceFunction"]).stem)()  # a class of this name
    function.initialize(model=str(emd), model_as_file=True, device=-1)
    configuration = function.getConfiguration(tile_size=288, batch_size=1)
    raster = scene(64, 64)
    found, _ = classified(function, raster, configuration)
    same, configuration = made(package, tile_size=288, batch_size=1)
    np.testing.assert_array_equal(found, classified(same, raster, configuration)[0])
    by_text = getattr(module, Path(SCRIPT).stem)()
    by_text.initialize(model=emd.read_text(), device="cpu")  # beside the script
    by_text.getConfiguration(tile_size=288, batch_size=1)
    np.testing.assert_array_equal(classified(by_text, raster, configuration)[0], found)
    lines["ModelFile"] = str(emd.parent / "bundle.json")
    RasterFunction().initialize(model=json.dumps(lines), model_as_file=False)


def test_the_script_says_what_is_missing(package: Path) -> None:
    bare = [sys.executable, "-I", "-S", str(package / SCRIPT)]  # a Python without packages
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "python -m pip install whatwhere" in done.stderr


def test_what_cannot_be_loaded(package: Path, tmp_path: Path) -> None:
    function = RasterFunction()
    lines = json.loads((package / "net.emd").read_text())
    for model, match in (
        (str(tmp_path / "no.emd"), "there is no such file"),
        ("{", "this is not JSON"),
        (json.dumps({**lines, "ModelFile": "m.pth"}), r"names 'm\.pth' as the model"),
        (json.dumps({"Classes": []}), "names None as the model"),
        (json.dumps(lines), "the bundle is not beside its definition"),
    ):
        with pytest.raises(BundleError, match=match):
            function.initialize(model=model)
    with pytest.raises(BundleError, match="cannot be read"):
        function.initialize(model=json.dumps(lines), model_as_file=True)
    bundle.save(tmp_path / "s", make_card(), {})
    write_package(tmp_path / "s", tmp_path / "resized", "resized")
    with pytest.raises(UsageError, match="the net stretches every image to 128×96"):
        function.initialize(model=str(tmp_path / "resized" / "resized.emd"))


def test_devices_have_numbers_in_pro(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def device_of(told: Any) -> str:
        function = RasterFunction()
        function.initialize(model=str(package / "net.emd"), device=told)
        return function.device

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [device_of(told) for told in (-1, "-1", "CPU", -2)] == ["cpu", "cpu", "cpu", "auto"]
    with pytest.raises(UsageError, match="there is no cuda device here"):
        device_of(0)
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr(
        "whatwhere.raster_function.load", lambda run, device: load(run, device="cpu")
    )
    assert device_of("1") == "cuda" and chosen == [1]
    with pytest.raises(UsageError, match="there are 2 GPUs, from 0 on: 2"):
        device_of(2)


def test_a_device_that_is_said_later(package: Path) -> None:
    function, _ = made(package)
    moved: list[str] = []
    assert function._predictor is not None
    function._predictor.backend.to = moved.append  # type: ignore[attr-defined]
    function.getConfiguration(device=-1)
    assert moved == []  # it is there
    function.getConfiguration(device="auto")
    assert len(moved) == 1 and function.device == "auto"


def test_the_classes_are_those_of_the_package(package: Path) -> None:
    """A block that is the whole raster says what `predict` says."""
    raster = scene(288, 288)[[0, 3]]
    function, _ = made(package, tile_size=288, padding=0)
    found = function.updatePixels((0, 0), (288, 288), {}, raster_pixels=raster)["output_pixels"]
    predictor = load(package, device="cpu")
    predictor.card = predictor.card.replace(bands=Bands(("red", "nir"), (1, 2)))
    card = predictor.card
    labels = decide(predictor.probabilities(raster), card.classes, card.thresholds)
    np.testing.assert_array_equal(found, values_of(package, labels))
