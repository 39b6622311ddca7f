"""The guide of those who come from arcgis.learn, held against the code; and its notebook."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from test_bundle import make_card, make_weights
from whatwhere import bundle
from whatwhere.config import Recipe, to_dict
from whatwhere.face.words import DATA_WORDS, MODEL_WORDS, NOTES, REFUSALS, SETTINGS
from whatwhere.learn import SegmentationData, UnetClassifier, prepare_data
from whatwhere.packages import definition_of, write_package
from whatwhere.raster_function import RasterFunction
from whatwhere.types import Bands

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "how-to" / "from-arcgis.md"
NOTEBOOK = ROOT / "examples" / "arcgis_style.ipynb"
LEAST = 0.92
"""Share of the names that must be the same or better."""

# Every name of arcgis.learn 2.4.4 for the classification of pixels.
SIGNATURES = {
    "prepare_data": (
        *("path", "class_mapping", "chip_size", "val_split_pct", "batch_size", "transforms"),
        *("collate_fn", "seed", "dataset_type", "resize_to", "working_dir"),
    ),
    "UnetClassifier": ("data", "backbone", "pretrained_path", "backend"),
    "unet.lr_find": ("allow_plot", "mixed_precision"),
    "unet.fit": (
        *("epochs", "lr", "one_cycle", "early_stopping", "checkpoint", "tensorboard", "monitor"),
        "mixed_precision",
    ),
    "unet.show_results": ("rows",),
    "data.show_batch": ("rows",),
    "unet.mIOU": ("mean", "show_progress"),
    "unet.per_class_metrics": ("ignore_classes",),
    "unet.save": (
        *("name_or_path", "framework", "publish", "gis", "compute_metrics", "save_optimizer"),
        "save_inference_file",
    ),
    "unet.load": ("name_or_path",),
    "unet.from_model": ("emd_path", "data"),
}
"""Arguments that have a place, in their order."""

KEYWORDS = {
    "prepare_data": (
        *("valid_path", "test_path", "stratify", "num_workers", "imagery_type", "bands"),
        *("rgb_bands", "extract_bands", "norm_pct", "do_normalize", "train_tail", "alpha"),
        *("lighting_transforms", "emd", "eas", "images_df"),
    ),
    "UnetClassifier": (
        *("class_balancing", "mixup", "focal_loss", "dice_loss_fraction", "dice_loss_average"),
        *("weighted_dice", "ignore_classes", "pretrained_backbone", "tail_weights_type"),
        *("chip_size", "wavelengths", "band_names"),
    ),
    "unet.lr_find": ("start_lr", "end_lr"),
    "unet.fit": ("callbacks", "save_callback_params"),
    "unet.show_results": (
        *("alpha", "data_loader", "index", "nodata", "imsize", "top", "rgb_bands"),
        *("statistics_type", "stretch_type", "return_fig"),
    ),
    "data.show_batch": (
        *("alpha", "ncols", "n_items", "imsize", "data_loader", "rgb_bands", "statistics_type"),
        "top",
    ),
    "unet.mIOU": ("split",),
    "unet.save": ("save_format", "post_processed", "quantized", "gradcam"),
    "unet.load": ("strict",),
}
"""Their keywords that have no place."""

MEMBERS = {
    "data": (
        *("show_batch", "classes", "class_mapping", "color_mapping", "chip_size", "c"),
        *("batch_size", "num_pixels_per_class", "class_weight", "train_ds", "valid_ds", "test_ds"),
        *("train_dl", "valid_dl", "test_dl", "path", "_bands", "_extract_bands"),
        *("_is_multispectral", "_val_split_pct"),
        *(f"_{k}_{n}_values" for k in ("band", "scaled") for n in ("min", "max", "mean", "std")),
    ),
    "unet": (
        *("mixup", "class_balancing", "focal_loss", "dice_loss_fraction", "weighted_dice"),
        *("dice_loss_average", "learn", "_device", "monitor", "lr_find", "fit", "unfreeze"),
        *("plot_losses", "show_results", "accuracy", "mIOU", "per_class_metrics"),
        *("available_metrics", "supported_backbones", "supported_datasets", "backbones"),
        *("torchgeo_backbones", "satlas_backbones", "transformer_backbones", "save", "load"),
        *("from_model", "from_emd", "__repr__"),
    ),
}

BESIDE = {
    "file": (
        *("NAME.pth", "NAME.emd", "NAME.dlpk", "ArcGISImageClassifier.py", "model_metrics.html"),
        *("loss_graph.png", "show_results.png"),
    ),
    "emd": (
        *("Framework", "ModelConfiguration", "ModelType", "InferenceFunction", "ExtractBands"),
        *("ignore_mapped_class", "SupportsVariableTileSize", "Classes", "ModelFormat"),
        *("MinCellSize", "MaxCellSize", "ArcGISLearnVersion", "monitored_valid_loss"),
        *("ModelFile", "ImageHeight", "ImageWidth", "ImageSpaceUsed", "LearningRate"),
        *("ModelName", "backend", "ModelParameters", "accuracy", "resize_to", "IsMultispectral"),
        *("IsImageNetNormalization", "Bands", "ImageryType", "NormalizationStats"),
        *("DoNormalize", "per_class_metrics"),
        *("DataRange", "Preprocessing", "radiometric_offset_correction"),
    ),
    "function": (
        *("padding", "batch_size", "predict_background", "test_time_augmentation", "tile_size"),
        *("device", "initialize", "getParameterInfo", "getConfiguration", "updateRasterInfo"),
        "updatePixels",
    ),
}
"""What their `save` writes, the lines of its definition, and what Pro asks of the script."""

KNOWN: dict[str, frozenset[str]] = {
    "prepare_data": DATA_WORDS | SETTINGS,
    "UnetClassifier": MODEL_WORDS | SETTINGS,
}


@dataclass(frozen=True)
class Row:
    """A line of the table: `owner(name=default)`, `owner.name`, or `owner name`."""

    owner: str
    name: str
    default: str | None
    is_argument: bool
    state: str
    told: str


def rows() -> list[Row]:
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        match = re.match(r"\| `([^`]+)` \| (same|better|absent) \| (.*) \|$", line)
        if match:
            name, state, told = match.groups()
            argument = re.match(r"([\w.]+)\((\w+)(?:=(.*))?\)$", name)
            owner, blank, word = name.partition(" ")
            if blank:
                found.append(Row(owner, word, None, False, state, told))
            elif argument:
                owner, word, default = argument.groups()
                found.append(Row(owner, word, default, True, state, told))
            else:
                owner, _, word = name.rpartition(".")
                found.append(Row(owner, word, None, False, state, told))
    return found


def callable_of(owner: str) -> Callable[..., Any]:
    if owner == "prepare_data":
        return prepare_data
    if owner == "UnetClassifier":
        return UnetClassifier.__init__
    kind, _, name = owner.partition(".")
    found: Callable[..., Any] = getattr(
        SegmentationData if kind == "data" else UnetClassifier, name
    )
    return found


def arguments_of(owner: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(callable_of(owner)).parameters)


def members_of(owner: str) -> set[str]:
    kind = SegmentationData if owner == "data" else UnetClassifier
    made = re.findall(r"self\.(\w+)(?:, self\.\w+)* =", inspect.getsource(kind))
    made += re.findall(r"self\.\w+, self\.(\w+) =", inspect.getsource(kind))
    many = re.findall(r"^\s+((?:self\.\w+, )*self\.\w+) =", inspect.getsource(kind), re.M)
    made += [word for line in many for word in re.findall(r"self\.(\w+)", line)]
    return {*dir(kind), *made}


def test_every_name_has_a_line() -> None:
    wanted = {
        (o, n) for table in (SIGNATURES, KEYWORDS) for o, names in table.items() for n in names
    }
    lines = rows()
    assert {(row.owner, row.name) for row in lines if row.is_argument} == wanted
    members = {
        (owner, name)
        for some in (MEMBERS, BESIDE)
        for owner, names in some.items()
        for name in names
    }
    assert {(row.owner, row.name) for row in lines if not row.is_argument} == members
    assert len(lines) == len(wanted) + len(members)


def test_the_share_of_what_is_the_same_or_better() -> None:
    counts = {state: sum(row.state == state for row in rows()) for state in ("same", "better")}
    total = len(rows())
    assert sum(counts.values()) / total >= LEAST
    absent = total - sum(counts.values())
    told = (
        f"Of {total} names {counts['same']} are the same, {counts['better']} better and {absent} "
        "absent."
    )
    assert told in GUIDE.read_text(encoding="utf-8")


@pytest.mark.parametrize("owner", sorted(SIGNATURES))
def test_arguments_have_their_places(owner: str) -> None:
    names = [name for name in arguments_of(owner) if name not in ("self", "cls")]
    assert tuple(names[: len(SIGNATURES[owner])]) == SIGNATURES[owner]


def test_arguments_are_taken_as_the_guide_says() -> None:
    for row in rows():
        if not row.is_argument:
            continue
        arguments = arguments_of(row.owner)
        where = f"{row.owner}({row.name})"
        if row.state == "absent":
            assert row.name in {*REFUSALS, *NOTES}, where
            continue
        taken = {*arguments, *NOTES, *KNOWN.get(row.owner, ())}
        assert row.name in taken, where
        if row.default is not None:
            assert arguments[row.name].default == ast.literal_eval(row.default), where


def test_members_are_there_as_the_guide_says() -> None:
    for row in rows():
        if row.is_argument or row.owner in BESIDE:
            continue
        members = members_of(row.owner)
        if row.name.startswith("_") and row.name != "__repr__":
            public = re.findall(r"`(\w+)`", row.told)
            assert public and set(public) <= members, row.name
        else:
            assert (row.name in members) == (row.state != "absent"), row.name


def lines_of(owner: str) -> list[Row]:
    return [row for row in rows() if row.owner == owner]


def test_what_is_saved_is_as_the_guide_says(tmp_path: Path) -> None:
    bundle.save(tmp_path / "source", make_card(resize=None), make_weights())
    (tmp_path / "source" / "report.html").write_text("a report")
    made = [path.name for path in write_package(tmp_path / "source", tmp_path / "NAME", "NAME")]
    told = [name for row in lines_of("file") for name in re.findall(r"`([^`]+)`", row.told)]
    for row in lines_of("file"):
        assert row.state != "absent" and re.search("`[^`]+`", row.told), row.name
    assert all(any(fnmatch(name, pattern) for name in made) for pattern in told)
    assert all(any(fnmatch(name, pattern) for pattern in told) for name in made)


def test_a_definition_has_the_lines_that_the_guide_says() -> None:
    recipe = to_dict(Recipe(class_weights="balanced"))
    card = make_card(bands=Bands(("nir",), (4,)), pixel_size=0.5, recipe=recipe)
    row = {"name": "salt", "precision": 1.0, "recall": 1.0, "dice": 1.0}
    lines = definition_of(card, "x", scores={"classes": [row], "pixel_accuracy": 1.0})
    for one in lines_of("emd"):
        assert (one.name in lines) == (one.state != "absent"), one.name
    named = {one.name for one in lines_of("emd")}
    assert set(lines) - named == {"WhatwhereVersion", "Description"}
    (parameters,) = (one for one in lines_of("emd") if one.name == "ModelParameters")
    shown = set(re.findall(r"`(\w+)`", parameters.told))
    assert shown == set(lines["ModelParameters"]) - {"backbone", "backend"}


def test_the_script_has_what_the_guide_says() -> None:
    asked = {one["name"] for one in RasterFunction().getParameterInfo()} - {"raster", "model"}
    told = {row.name for row in lines_of("function")}
    assert asked < told and all(callable(getattr(RasterFunction, n)) for n in told - asked)
    assert not [row.name for row in lines_of("function") if row.state == "absent"]


def test_every_line_that_is_not_the_same_says_how_or_why() -> None:
    assert [row.name for row in rows() if row.state != "same" and len(row.told) < 8] == []


def cells() -> list[str]:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_was_run_and_holds_no_wall_of_lines() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [one for one in outputs if one["output_type"] in ("stream", "error")]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 4  # a batch, the rates, the losses, the results
    assert NOTEBOOK.stat().st_size < 2_000_000


SHORTER = {"make_sections(60, seed=7, size=(64, 64)": "make_sections(12, seed=7, size=(32, 32)"}
SHORTER |= {"fit(8, lr=lr)": "fit(1, lr=lr)", "fit(4, lr=lr / 5)": "fit(1, lr=lr)"}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells():
        for slow, quick in SHORTER.items():
            cell = cell.replace(slow, quick)
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert names["again"].predict(names["wide"].image).tolist() == names["mask"].tolist()
    assert (tmp_path / "arcgis_style" / "wide_salt.tif").is_file()
    assert len(names["unet"].runs) == 2
