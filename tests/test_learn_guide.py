"""The guide of those who come from arcgis.learn, held against the code; and its notebook."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from made_scenes import town
from test_bundle import make_card, make_weights
from whatwhere import bundle, jobs
from whatwhere.config import Recipe, to_dict
from whatwhere.data.esri_facts import facts_of
from whatwhere.data.esri_merge import merge
from whatwhere.face.words import DATA_WORDS, MODEL_WORDS, NOTES, REFUSALS, SETTINGS
from whatwhere.io.esri import DEFINITION, SUMS, Export, completed
from whatwhere.io.esri import definition_of as read_lines
from whatwhere.learn import SegmentationData, UnetClassifier, prepare_data
from whatwhere.packages import definition_of, write_package
from whatwhere.raster_function import RasterFunction
from whatwhere.talk import QUIET
from whatwhere.types import Bands

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "how-to" / "from-arcgis.md"
NOTEBOOK = ROOT / "examples" / "arcgis_style.ipynb"
LEAST = 0.95
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
    "unet.from_emd": ("data", "emd_path"),
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
        *("from_model", "from_emd", "__repr__", "__str__"),
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
    "env": ("_processorType", "_gpuid", "type_init_tail_parameters"),
    "folder": (
        *("images", "labels", "images2", "map.txt", "stats.txt", "esri_model_definition.emd"),
        *("esri_accumulated_stats.json", "transforms.json", "esri_normalization_stats.json"),
    ),
    "definition": (
        *("Classes", "ClassValue", "ClassName", "MetaDataMode", "ImageHeight", "ImageWidth"),
        *("ImageSpaceUsed", "AllTilesStats", "InputRastersProps", "MinCellSize", "MaxCellSize"),
        "IsMultidimensional",
    ),
    "sums": (
        *("MetaDataMode", "NumBands", "NumClasses", "NumTiles", "NumTilesAsDouble"),
        *("BandStatsState", "ClassPixelStats", "FeatureStats"),
    ),
    "export": (
        *("input_raster", "input_class_data", "chip_format", "tile_size", "stride_size"),
        *("metadata_format", "classvalue_field", "buffer_radius", "output_location"),
        *("exportAllTiles", "startIndex", "cellSize", "extent", "input_mask_polygons"),
        *("rotation_angle", "reference_system", "process_all_raster_items"),
        *("blacken_around_feature", "fix_chip_size", "additional_input_raster"),
        *("input_instance_data", "instance_class_value_field", "min_polygon_overlap_ratio"),
        *("gis", "future", "estimate"),
    ),
}
"""What their `save` writes, the lines of its definition, what Pro asks of the script, the switches
of `arcgis.env`, an export's files and what is in them, and the parameters of the tool."""

INSIDE = {
    *("Value", "Name", "Color", "Min", "Max", "Mean", "StdDev", "BandNames", "SensorName"),
    *("RasterCount", "M1", "M2", "Num", "NumImagesTotal", "NumImagesPerClass"),
    *("NumPixelsPerClass", "NumFeaturesPerClass"),
}
"""What lies in the lines of an export's files; it stands with the line it is in."""

SERVER = {
    "classify_pixels": (
        *("input_raster", "model", "model_arguments", "output_name", "outSR", "snapRaster"),
        *("cellSize", "extent", "parallelProcessingFactor", "processorType"),
        *("process_all_raster_items", "gis", "future", "estimate", "tiles_only"),
    ),
    "train_model": (
        *("input_folder", "model_type", "model_arguments", "batch_size", "max_epochs"),
        *("learning_rate", "backbone_model", "validation_percent", "pretrained_model"),
        *("stop_training", "freeze_model", "overwrite_model", "output_name", "context"),
        *("augmentation", "augmentation_parameters", "chip_size", "resize_to"),
        *("weight_init_scheme", "monitor"),
    ),
}
"""Parameters of what wants a server of Esri's."""

OTHERS = (
    *("PSPNetClassifier", "DeepLab", "MMSegmentation", "SamLoRA", "TinyUNetClassifier"),
    *("MultiTaskRoadExtractor", "ConnectNet", "HEDEdgeDetector", "BDCNEdgeDetector"),
    *("ChangeDetector", "MaXDeepLab", "estimate_batch_size", "AutoDL", "ModelExtension"),
    *("Model(item)", "list_models", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"),
)
"""What is told without being counted."""

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
        if row.name.startswith("_") and not row.name.endswith("__"):
            public = re.findall(r"`(\w+)`", row.told)
            assert public and set(public) <= members, row.name
        else:
            assert (row.name in members) == (row.state != "absent"), row.name


def lines_of(owner: str) -> list[Row]:
    return [row for row in rows() if row.owner == owner]


def words_of(told: str) -> set[str]:
    """What is written as code; of `name=value` the name."""
    return {one.partition("=")[0].strip('"') for one in re.findall(r"`([^`]+)`", told)}


def test_what_is_saved_is_as_the_guide_says(tmp_path: Path) -> None:
    bundle.save(tmp_path / "source", make_card(resize=None), make_weights())
    (tmp_path / "source" / "report.html").write_text("a report")
    made = [path.name for path in write_package(tmp_path / "source", tmp_path / "NAME", "NAME")]
    told = [name for row in lines_of("file") for name in words_of(row.told)]
    for row in lines_of("file"):
        assert row.state != "absent" and words_of(row.told), row.name
    assert all(any(fnmatch(name, pattern) for name in made) for pattern in told)
    assert all(any(fnmatch(name, pattern) for pattern in told) for name in made)


def test_a_definition_has_the_lines_that_the_guide_says() -> None:
    recipe = to_dict(Recipe(class_weights="balanced"))
    card = make_card(bands=Bands(("nir",), (4,)), pixel_size=0.5, recipe=recipe)
    row = {"name": "salt", "precision": 1.0, "recall": 1.0, "dice": 1.0}
    lines = definition_of(card, "x", scores={"classes": [row], "pixel_accuracy": 1.0})
    named = {one.name for one in lines_of("emd")}
    for one in lines_of("emd"):
        ours = {"WhatwhereVersion"} & words_of(one.told)  # under a name of its own
        assert ((ours or {one.name}) <= set(lines)) == (one.state != "absent"), one.name
        named |= ours
    assert set(lines) - named == {"Description"}
    (parameters,) = (one for one in lines_of("emd") if one.name == "ModelParameters")
    shown = set(re.findall(r"`(\w+)`", parameters.told))
    assert shown == set(lines["ModelParameters"]) - {"backbone", "backend"}


def test_switches_are_arguments() -> None:
    for row in lines_of("env"):
        assert words_of(row.told) & {*MODEL_WORDS, *NOTES}, row.name


# An export


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    scene, labels, _ = town(folder)
    jobs.chip(scene, folder / "chips", labels=labels, chip_size=128, format="esri", talk=QUIET)
    return folder / "chips"


def says(row: Row, verb: str) -> bool:
    """Whether a line begins with what is done: "read", "written", or "written and read"."""
    return verb in re.split(r"[:,;]| as ", row.told)[0].split()


def told_of(folder: Path) -> str:
    return " ".join(problem["cause"] for problem in jobs.inspect(folder, talk=QUIET)["problems"])


@pytest.mark.parametrize("name", BESIDE["folder"])
def test_an_export_has_the_files_that_the_guide_says(
    export: Path, tmp_path: Path, name: str
) -> None:
    (row,) = (one for one in lines_of("folder") if one.name == name)
    there = export / name
    assert there.exists() == says(row, "written") and row.state != "absent"
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    if not there.exists():
        (copy / name).write_text("{") if "." in name else (copy / name).mkdir()
    elif there.is_dir():
        shutil.rmtree(copy / name)
    else:
        (copy / name).unlink()
    assert (name in told_of(copy)) == says(row, "read")


class Asked(dict[str, Any]):
    """Lines of a file that notes which of them were asked for."""

    names: set[str]

    def __init__(self, lines: Any, names: set[str]) -> None:
        super().__init__({name: asked(value, names) for name, value in lines.items()})
        self.names = names

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def asked(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return Asked(value, names)
    return [asked(one, names) for one in value] if isinstance(value, list) else value


def keys_of(value: Any) -> set[str]:
    """All names in JSON, however deep."""
    if isinstance(value, dict):
        return {*value}.union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_lines_of_an_export_are_written_and_read_as_the_guide_says(export: Path) -> None:
    lines = {n: json.loads((export / f).read_text()) for n, f in FILES.items()}
    seen: dict[str, set[str]] = {name: set() for name in lines}
    boxes = {"NumImagesPerClass": [1], "NumFeaturesPerClass": [1]}  # of other kinds of exports
    definition, sums = (asked(lines[name], seen[name]) for name in FILES)
    for told in (sums, asked({**lines["sums"], "ClassPixelStats": None}, seen["sums"])):
        told["FeatureStats"] = asked(boxes, seen["sums"])
        if told["ClassPixelStats"] is None:
            del told["ClassPixelStats"]
        whole = completed(read_lines(definition, export), told)
        for shown in (whole, replace(whole, lines={})):  # where the definition says nothing
            one = Export(export, shown, told, None, ())
            facts_of(one)
            merge([one, one])
    inside = set()
    for owner in FILES:
        written, read = keys_of(lines[owner]), seen[owner]
        for row in lines_of(owner):
            assert (row.name in lines[owner]) == says(row, "written"), row.name
            assert (row.name in read) == says(row, "read"), row.name
            parts = words_of(row.told) & INSIDE
            assert parts <= written | read, row.name
            inside |= parts
    assert inside == INSIDE


FILES = {"definition": DEFINITION, "sums": SUMS}


def test_parameters_of_the_tool_are_those_of_chip(export: Path) -> None:
    ours = set(inspect.signature(jobs.chip).parameters)
    said = set()
    for row in lines_of("export"):
        named = words_of(row.told) & ours
        silent = row.told.startswith("nothing to say")
        assert (bool(named) or silent) == (row.state != "absent"), row.name
        said |= named
    assert ours - said == {"layer", "nodata", "trust", "classes", "bands", "talk", "seed"} | {
        *("split", "split_gap")
    }
    lines = json.loads((export / DEFINITION).read_text())
    assert lines["BlackenAroundFeature"] is False
    assert {path.suffix for path in (export / "images").iterdir()} == {".tif", ".tfw"}


# What is told without being counted


def test_what_is_beside_is_told() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    beside = text[text.index("## Beside these two") :]
    assert [name for name in OTHERS if f"`{name}`" not in beside] == []


@pytest.mark.parametrize("owner", sorted(SERVER))
def test_what_wants_a_server_has_its_place(owner: str) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    job, settings = {
        "classify_pixels": (jobs.predict, set()),
        "train_model": (jobs.train, SETTINGS),
    }[owner]
    table = text[text.index(f"| `{owner}` | `jobs.") :].partition("\n\n")[0].splitlines()[2:]
    named = set()
    for line in table:
        theirs, ours = line.strip("| ").split(" | ")
        named |= words_of(theirs)
        known = words_of(ours) & {*inspect.signature(job).parameters, *settings, *NOTES}
        assert known == words_of(ours) and (known or ours.startswith("none")), line
    assert named == set(SERVER[owner])


def test_each_of_their_defects_has_a_test() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = text[text.index("## Their defects") :].splitlines()
    lines = [line for line in table if re.match(r"\| \d+\. ", line)]
    assert [int(line[2:].partition(".")[0]) for line in lines] == list(range(1, 13))
    for line in lines:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
        assert tests, line
        for file, name in tests:
            source = (Path(__file__).parent / file).read_text(encoding="utf-8")
            assert f"\ndef {name}(" in source, name


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


@pytest.mark.slow
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
    assert (names["saved"] / "salt.dlpk").is_file() and names["again"].data is None
