"""Models of arcgis.learn: what their definition tells, and what of their weights is taken."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from whatwhere import foreign
from whatwhere.errors import BundleError
from whatwhere.foreign import Foreign, fit_tensors, read_foreign, read_tensors
from whatwhere.nn.build import build_light, build_model
from whatwhere.types import Bands

CLASSES = [
    {"Value": 1, "Name": "roof", "Color": [185, 2, 84]},
    {"Value": 2, "Name": "road, path", "Color": [-1, -1, -1]},
]
LINES: dict[str, Any] = {
    "Framework": "arcgis.learn.models._inferencing",
    "ModelConfiguration": "_unet",
    "ModelType": "ImageClassification",
    "ExtractBands": [0, 1, 2],
    "Classes": CLASSES,
    "ModelFile": "m.pth",
    "ImageHeight": 64,
    "ImageWidth": 96,
    "ImageSpaceUsed": "MAP_SPACE",
    "ModelParameters": {"backbone": "resnet18", "backend": "pytorch"},
    "IsMultispectral": False,
}


def write_emd(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = {name: value for name, value in {**LINES, **changes}.items() if value is not None}
    path = folder / "m.emd"
    path.write_text(json.dumps(lines))
    return path


def told_by(folder: Path, **changes: Any) -> Foreign:
    return read_foreign(write_emd(folder, **changes))


class Stage(nn.Module):
    """A block of a ResNet with the names that torchvision gives its parts."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, bias=False), nn.BatchNorm2d(outer)
        if inner != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
            )


def fastai_state(bands: int = 3) -> dict[str, torch.Tensor]:
    """Tensors as fastai names those of a U-Net on a resnet18: drawn, none of them alike."""
    torch.manual_seed(3)
    stages = [
        nn.Sequential(Stage(inner, outer), Stage(outer, outer))
        for inner, outer in ((64, 64), (64, 128), (128, 256), (256, 512))
    ]
    encoder = nn.Sequential(
        nn.Conv2d(bands, 64, 7, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3), *stages
    )
    state = {f"layers.0.{name}": one.clone() for name, one in encoder.state_dict().items()}
    for one in state.values():
        if one.is_floating_point():
            one.uniform_(0.01, 0.02)
    return {
        **state,
        "layers.1.weight": torch.ones(512),
        "layers.4.shuf.conv.0.bias": torch.zeros(1024),
        "layers.12.0.weight": torch.zeros(3, 99, 1, 1),
    }


# The definition


def test_a_real_definition(real_data: Callable[[str], Path]) -> None:
    path = real_data("esri_exports") / "drone_classified_tiles" / "trained_model_30e.emd"
    found = read_foreign(path)
    assert found.classes.names == ["NoData", "1", "2"]
    assert [info.color for info in found.classes][1:] == [(185, 2, 84), (171, 175, 202)]
    assert [info.value for info in found.classes] == [0, 1, 2]
    assert (found.backbone, found.chip_size, found.orientation) == ("resnet34", (400, 400), "free")
    assert found.bands == Bands(("red", "green", "blue"), (1, 2, 3))
    assert found.weights is None and found.told == "its weights, '30e.pth', are not beside it"
    assert found.normalization is not None
    pixel = np.array([0.0, 128.0, 255.0])
    theirs = (pixel / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    ours = found.normalization.apply(pixel[:, None, None])[:, 0, 0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_class_table_begins_with_no_data(tmp_path: Path) -> None:
    one = told_by(tmp_path, Classes=CLASSES[:1]).classes
    assert (one.names, one.task, one.infos[0].role) == (["NoData", "roof"], "binary", "background")
    rows = [{"Value": 900, "Name": "x"}, {"Value": 0, "Name": "sea"}, {"Value": 3, "Name": "3"}]
    table = told_by(tmp_path, Classes=rows).classes
    assert table.names == ["sea", "3", "x"] and table.task == "multiclass"
    assert [info.raw for info in table] == [(0,), (3,), (900,)]
    assert [info.value for info in table] == [0, 1, 2]  # a mask holds bytes
    old = [{"ClassValue": 4, "ClassName": "old", "Color": [1, 2, 3]}]
    assert told_by(tmp_path, Classes=old).classes.infos[1].color == (1, 2, 3)


def test_values_between_lowest_and_highest_are_brought_into_units_of_the_file(
    tmp_path: Path,
) -> None:
    low, high = [100.0, 0.0, -5.0, 7.0], [1100.0, 50.0, 5.0, 7.0]
    mean, std = [0.25, 0.5, 0.75, 0.0], [0.1, 0.2, 0.05, 0.0]
    stats = {
        "band_min_values": low, "band_max_values": high,
        "scaled_mean_values": mean, "scaled_std_values": std,
    }  # fmt: skip
    said: dict[str, Any] = {
        "IsMultispectral": True, "NormalizationStats": stats, "ExtractBands": [2, 0],
        "Bands": ["Blue", "Green", "NIR", "flat"], "IsImageNetNormalization": False,
    }  # fmt: skip
    found = told_by(tmp_path, **said)
    assert found.bands == Bands(("nir", "blue"), (3, 1)) and found.normalization is not None
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-5, 1100, (2, 4, 4))
    theirs = [
        ((pixels[i] - low[b]) / (high[b] - low[b]) - mean[b]) / std[b] for i, b in ((0, 2), (1, 0))
    ]
    np.testing.assert_allclose(found.normalization.apply(pixels), theirs, rtol=1e-4)
    named = told_by(tmp_path, **{**said, "ExtractBands": ["nir", "flat"]})
    assert named.bands == Bands(("nir", "flat"), (3, 4))
    assert named.normalization is not None and named.normalization.std[1] == 1.0
    short = {**stats, "band_min_values": [1.0, 2.0]}
    assert told_by(tmp_path, **{**said, "NormalizationStats": short}).normalization is None
    wild = {**stats, "scaled_std_values": [0.1, "x", 0.1, 0.1]}
    assert told_by(tmp_path, **{**said, "NormalizationStats": wild}).normalization is None
    assert told_by(tmp_path, **{**said, "DoNormalize": False}).normalization is None
    only = {name: [column[0], column[2]] for name, column in stats.items()}
    of_two = told_by(
        tmp_path, **{**said, "NormalizationStats": only, "ExtractBands": [4, 5], "Bands": None}
    )
    assert of_two.bands == Bands(("band 5", "band 6"), (5, 6))
    assert of_two.normalization is not None
    np.testing.assert_allclose(of_two.normalization.mean, [100 + 0.25 * 1000, -5 + 0.75 * 10])


def test_what_is_not_told_is_not_made_up(tmp_path: Path) -> None:
    bare = told_by(
        tmp_path, ModelParameters=None, ImageHeight=None, ImageSpaceUsed=None, ExtractBands=None
    )
    assert (bare.backbone, bare.chip_size, bare.orientation) == ("", None, "")
    assert bare.bands == Bands(("red", "green", "blue"), (1, 2, 3))
    assert told_by(tmp_path, ExtractBands=None, IsMultispectral=True).bands is None
    assert told_by(tmp_path, ExtractBands=["nir"], IsMultispectral=True).bands is None
    assert told_by(tmp_path, ImageSpaceUsed="PIXEL_SPACE").orientation == "upright"
    assert told_by(tmp_path, ExtractBands=[0]).normalization is None


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("../m.pth", "which is not beside it"),
        ("C:\\models\\m.pth", "which is not beside it"),
        ("/m.pth", "which is not beside it"),
        ("other.pth", "are not beside it"),
        (None, "it names no file of weights"),
    ],
)
def test_weights_are_looked_for_beside_the_definition(
    tmp_path: Path, named: str | None, told: str
) -> None:
    (tmp_path / "m.pth").write_bytes(b"")
    found = told_by(tmp_path / "inner", ModelFile=named)
    assert found.weights is None and told in found.told
    (tmp_path / "inner" / "m.pth").write_bytes(b"")
    assert told_by(tmp_path / "inner", ModelFile=".\\m.pth").weights is not None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ModelType": "ObjectDetection"}, "a model of the type ObjectDetection; here each pixel"),
        ({"ModelFile": None, "ModelParameters": None}, "describes training data and no trained"),
        ({"Classes": None}, "it names no classes"),
        ({"Classes": [7]}, "a class has no whole Value"),
    ],
)
def test_what_is_no_model_of_pixels(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BundleError, match=match):
        told_by(tmp_path, **changes)


def test_a_definition_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such file"):
        read_foreign(tmp_path / "m.emd")
    (tmp_path / "m.emd").write_text("{")
    with pytest.raises(BundleError, match="this is not JSON"):
        read_foreign(tmp_path / "m.emd")


# Its weights


def test_the_backbone_of_fastai_fits(tmp_path: Path) -> None:
    state = fastai_state()
    torch.save({"model": state, "opt": {"lr": 0.1}}, tmp_path / "m.pth")
    net = build_model("resnet18", 3, 3)
    found = fit_tensors(read_tensors(tmp_path / "m.pth"), net)
    assert not found.whole and not found.wrong
    own = {name for name in net.state_dict() if name.startswith("encoder.")}
    assert set(found.tensors) == own and len(own) == 120
    for ours, theirs in (
        ("encoder.body.conv1.weight", "layers.0.0.weight"),
        ("encoder.body.bn1.running_var", "layers.0.1.running_var"),
        ("encoder.body.layer1.0.conv1.weight", "layers.0.4.0.conv1.weight"),
        ("encoder.body.layer2.0.downsample.0.weight", "layers.0.5.0.downsample.0.weight"),
        ("encoder.body.layer4.1.bn2.bias", "layers.0.7.1.bn2.bias"),
    ):
        np.testing.assert_array_equal(found.tensors[ours], state[theirs].numpy())
    parallel = {
        f"module.{name}": one.half() if one.is_floating_point() else one
        for name, one in state.items()
    }
    torch.save(parallel, tmp_path / "m.pth")  # of several GPUs, in 16 bits, without "model"
    found = fit_tensors(read_tensors(tmp_path / "m.pth"), build_light("resnet18", 3, 3))
    assert found.tensors["encoder.body.conv1.weight"].dtype == np.float32


def test_a_net_of_ours_fits_as_a_whole(tmp_path: Path) -> None:
    net = build_model("resnet18", 3, 3)
    torch.save(net.state_dict(), tmp_path / "m.pth")
    found = fit_tensors(read_tensors(tmp_path / "m.pth"), build_light("resnet18", 3, 3))
    assert found.whole and set(found.tensors) == set(net.state_dict())
    np.testing.assert_array_equal(found.tensors["head.weight"], net.head.weight.detach().numpy())
    other = fit_tensors(read_tensors(tmp_path / "m.pth"), build_light("resnet18", 3, 4))
    assert other.wrong.startswith("head.weight (4, 16, 1, 1) against (3, 16, 1, 1); head.bias")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {**s, "layers.0.0.weight": torch.zeros(64, 4, 7, 7)},
         r"encoder\.body\.conv1\.weight \(64, 3, 7, 7\) against \(64, 4, 7, 7\)$"),
        (lambda s: {n: t for n, t in s.items() if "downsample" not in n},
         r"downsample\.0\.weight \(128, 64, 1, 1\) against nothing; .* and 15 more"),
        (lambda s: {**s, "layers.0.8.weight": torch.zeros(3)},
         r"encoder\.body\.8\.weight is left over"),
        (lambda s: {**s, "layers.0.1.bias": torch.zeros(64, dtype=torch.int64)},
         "bn1.bias torch.float32 against torch.int64"),
        (lambda s: {**s, "layers.0.1.bias": torch.full((64,), torch.nan)},
         "bn1.bias holds numbers that are not finite"),
        (lambda s: {n.replace("layers.0", "body"): t for n, t in s.items()},
         r"encoder\.body\.conv1\.weight \(64, 3, 7, 7\) against nothing"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Any]], dict[str, Any]], match: str
) -> None:
    found = fit_tensors(change(fastai_state()), build_light("resnet18", 3, 3))
    assert not found.tensors
    with pytest.raises(ValueError, match=match):
        raise ValueError(found.wrong)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def save_torch(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [save_torch, save_old, save_plain])
def test_no_code_of_a_file_is_run(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "m.pth"
    save({"model": {"layers.0.0.weight": torch.zeros(1), "x": Bomb(marker)}}, path)
    with pytest.raises(BundleError, match=r"m\.pth: its weights are not taken: it holds more than"):
        read_tensors(path)
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert marker.exists()  # the bomb is one


def spoiled() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"these are no weights"
    yield "zip", b"PK\x03\x04" + bytes(90)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in spoiled()])
def test_a_file_that_is_no_weights(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(BundleError, match=r"m\.pth: its weights (cannot be read|are not taken)"):
        read_tensors(tmp_path / "m.pth")


def test_a_damaged_file_of_weights(tmp_path: Path) -> None:
    torch.save(fastai_state(), tmp_path / "m.pth")
    data = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="its weights (cannot be read|are not taken)"):
        read_tensors(tmp_path / "m.pth")
    with pytest.raises(BundleError, match="its weights cannot be read: "):
        read_tensors(tmp_path / "nowhere.pth")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    for value in ({}, {"model": {"a": 1}}, [torch.zeros(2)], torch.zeros(2)):
        torch.save(value, tmp_path / "m.pth")
        with pytest.raises(BundleError, match="it holds no tensors by name"):
            read_tensors(tmp_path / "m.pth")
    sparse = torch.eye(3).to_sparse()
    torch.save({"a": sparse}, tmp_path / "m.pth")
    with pytest.raises(BundleError, match="it holds no tensors by name"):
        read_tensors(tmp_path / "m.pth")


def test_weights_that_are_too_large_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(200_000)}, tmp_path / "m.pth")
    monkeypatch.setattr(foreign, "_MOST_BYTES", 100_000)
    with pytest.raises(BundleError, match=r"its weights are not taken: 0\.00074. GB"):
        read_tensors(tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as archive,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert (tmp_path / "packed.pth").stat().st_size < 100_000
    with pytest.raises(BundleError, match=r"its weights are not taken: 0\.00074. GB"):
        read_tensors(tmp_path / "packed.pth")


def test_a_small_file_cannot_stand_for_a_large_tensor(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(1 << 40)  # one number, shown a million million times
    torch.save({"layers.0.0.weight": wide}, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 10_000
    found = fit_tensors(read_tensors(tmp_path / "m.pth"), build_light("resnet18", 3, 3))
    assert f"({1 << 40},)" in found.wrong
