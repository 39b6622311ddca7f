"""A trained net as a package for ArcGIS: its definition, the script that runs it, and one file.

NAME/bundle.json, NAME/weights-*.safetensors   the bundle, which is all that this package reads
NAME/NAME.emd                                  what Esri's tools want to know of it
NAME/WhatwhereClassifier.py                    what ArcGIS Pro runs; experimental
NAME/report.html                               of the training, where there is one
NAME/NAME.dlpk                                 all of them in one file
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from whatwhere import bundle, files
from whatwhere._version import __version__
from whatwhere.bundle import CARD, Card
from whatwhere.config import MODELS
from whatwhere.errors import BundleError, OutputError, UsageError
from whatwhere.io.esri import class_rows
from whatwhere.notation import parse_loss

SCRIPT = "WhatwhereClassifier.py"
"""The file in which ArcGIS Pro finds a class of the same name."""

VERSION = "WhatwhereVersion"
"""The line by which a definition is known to be one of this package."""

MONITORED = {
    **{"val_loss": "valid_loss", "mean_iou": "valid_miou", "mean_dice": "dice"},
    "pixel_accuracy": "accuracy",
}
"""What arcgis.learn calls the scores of a card."""

REPORT = "report.html"

MOST_MEMBERS = 1000
MOST_BYTES = 8 << 30
"""What a package may hold when it is opened."""

_STEP = 1 << 20  # bytes that are copied at once
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date of a zip: the same input gives the same bytes
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)

SCRIPT_TEXT = '''"""Runs a net of the Python package whatwhere in ArcGIS Pro. Experimental."""

import os

try:
    from whatwhere.raster_function import RasterFunction
except ModuleNotFoundError as error:
    if error.name != "whatwhere":
        raise
    raise ImportError(
        "This model is run by the package whatwhere, which this Python does not have. Clone the "
        "environment of ArcGIS Pro, and in the clone type: python -m pip install whatwhere"
    ) from error


class WhatwhereClassifier(RasterFunction):
    """Gives each pixel its class; whatwhere.raster_function says how."""

    folder = os.path.dirname(os.path.abspath(__file__))
'''


def definition_of(
    card: Card,
    name: str,
    *,
    script: bool = True,
    scores: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the lines of a bundle's `.emd` file.

    What is not known is left out, and nothing is put in its place.

    Args:
        card: The bundle's.
        name: Of the package.
        script: Whether the script lies beside it, for ArcGIS Pro to run.
        scores: Of the validation split, as `evaluate` gives them.
    """
    height, width = card.chip_size
    colours = card.bands.names == ("red", "green", "blue")
    lines: dict[str, Any] = {
        "Framework": "PyTorch",
        "ModelConfiguration": "whatwhere",
        "ModelType": "ImageClassification",
        "ModelName": "UnetClassifier",
        "ModelFile": CARD,
        "ModelFormat": "NCHW",
        "InferenceFunction": SCRIPT if script else "",
        "Description": _description(card, name, script),
        VERSION: card.versions.get("whatwhere", __version__),
        "ImageHeight": height,
        "ImageWidth": width,
        "ImageSpaceUsed": "MAP_SPACE" if card.orientation == "free" else "PIXEL_SPACE",
        "SupportsVariableTileSize": True,
        "Classes": _class_rows(card),
        "ignore_mapped_class": [],
    }
    extracted = extract_bands(card)
    if extracted is not None:
        lines["ExtractBands"] = list(extracted)
    if card.pixel_size is not None:
        side = {"x": card.pixel_size, "y": card.pixel_size}
        lines |= {"MinCellSize": side, "MaxCellSize": side}
    lines |= {
        "IsMultispectral": not colours,
        "ImageryType": "RGB" if colours else "multispectral",
        "IsImageNetNormalization": False,
        "Bands": list(card.bands.names),
        "NormalizationStats": {
            "band_mean_values": list(card.normalization.mean),
            "band_std_values": list(card.normalization.std),
        },
        "DoNormalize": card.recipe.get("normalize", True),
        "backend": "pytorch",
        "ModelParameters": _parameters(card),
    }
    return {**lines, **_course(card), **_scored(scores)}


def extract_bands(card: Card) -> tuple[int, ...] | None:
    """Return the places of the bands in a file, from 0; None where they depend on the file."""
    if card.bands.numbers:
        return tuple(number - 1 for number in card.bands.numbers)
    return None if card.bands.convert else tuple(range(len(card.bands)))


def why_not(card: Card) -> str:
    """Return why ArcGIS Pro cannot run a net; empty where it can."""
    if card.classes.task == "multilabel":
        return "labels that overlap do not fit into one raster of classes"
    if card.resize:
        height, width = card.resize
        return f"the net stretches every image to {height}×{width} px, which is not for scenes"
    if ":" in card.model:
        return "the net is on an encoder of your own, which is not in the bundle"
    return ""


def dice_share(loss: str) -> float | None:
    """Return the share of dice in a loss; None where arcgis.learn has no words for the loss."""
    parts = parse_loss(loss)
    others = set(parts) - {"dice"}
    if len(others) > 1 or not others <= {"cross_entropy", "focal"}:
        return None
    share = parts.get("dice", 0.0)
    if others and abs(share + parts[others.pop()] - 1) > 1e-6:
        return None
    return share if len(parts) > 1 else float("dice" in parts)


def _description(card: Card, name: str, script: bool) -> str:
    size = "" if card.pixel_size is None else f", for pixels of {card.pixel_size:.3g} m"
    told = f"{name}: a U-Net ({card.model}) of whatwhere{size}."
    if script:
        told += (
            f" Experimental: {SCRIPT} follows the published interface of raster functions, and has "
            "not been run in ArcGIS Pro. It wants the package whatwhere in the same Python."
        )
    return told


def _class_rows(card: Card) -> list[dict[str, Any]]:
    """The classes by value; labels that overlap count from 1."""
    rows = class_rows(card.classes)
    if card.classes.task != "multilabel":
        return rows
    return [{**row, "Value": number} for number, row in enumerate(rows, 1)]


def _parameters(card: Card) -> dict[str, Any]:
    """How the net is built and what it was trained with."""
    recipe = card.recipe
    found: dict[str, Any] = {
        "backbone": card.model,
        "backend": "pytorch",
        "mixup": bool(recipe.get("mixup", False)),
        "ignore_classes": list(card.classes.ignored),
    }
    loss, weights = recipe.get("loss"), recipe.get("class_weights")
    if isinstance(loss, str):
        share = dice_share(loss)
        found |= {"loss": loss, "focal_loss": "focal" in parse_loss(loss)}
        found |= {} if share is None else {"dice_loss_fraction": share}
    if isinstance(weights, str):
        found |= {"class_balancing": weights == "balanced", "class_weights": weights}
    return found


def _course(card: Card) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lr, first = card.recipe.get("lr"), card.recipe.get("encoder_lr")
    if isinstance(lr, float):
        found["LearningRate"] = f"{lr:.4e}"
        if card.model not in MODELS and isinstance(first, float):
            found["LearningRate"] = f"slice('{lr * first:.4e}', '{lr:.4e}', None)"
    for score, name in MONITORED.items():
        if score in card.scores:
            found[f"monitored_{name}"] = card.scores[score]
    if card.resize:
        found["resize_to"] = list(card.resize)
    return found


def _scored(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    if scores is None:
        return {}
    table = {
        row["name"]: {
            "precision": row["precision"],
            "recall": row["recall"],
            "f1": row["dice"],
        }
        for row in scores["classes"]
    }
    found = {"per_class_metrics": json.dumps(table, ensure_ascii=False)}
    accuracy = scores["pixel_accuracy"]
    return found if accuracy is None else {"accuracy": f"{accuracy:.4e}", **found}


def write_package(
    source: Path,
    folder: Path,
    name: str,
    *,
    script: bool = True,
    report: bool = True,
    scores: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a bundle with its definition, the script and the report, and all of it in one file.

    The same input gives the same bytes.

    Args:
        source: A run or bundle.
        folder: One that is there is replaced, file by file.
        name: Of the definition and of the one file.
        script: Write the script for ArcGIS Pro, if it can run this net.
        report: Write the run's report, if it has one.
        scores: Of the validation split, as `evaluate` gives them; None where they are not known.

    Returns:
        What was written, the one file last.

    Raises:
        BundleError: The bundle is missing or damaged.
        UsageError: The name cannot be a file's.
        OutputError: It cannot be written.
    """
    if not name.strip(" .") or any(sign in name for sign in '/\\:*?"<>|\0'):
        raise UsageError(f"{name!r} cannot be the name of a package: it is to be a file's.")
    found = bundle.load(source)
    replaced = (folder / CARD).is_file()
    with_script = script and not why_not(found.card)
    lines = definition_of(found.card, name, script=with_script, scores=scores)
    page = (source.parent if source.is_file() else source) / REPORT
    text = page.read_bytes() if report and page.is_file() else None
    bundle.save(folder, found.card, found.weights)
    head = json.loads((folder / CARD).read_bytes())
    made = [folder / CARD, folder / str(head["weights"]["file"])]
    made.append(files.write_json(folder / f"{name}.emd", lines))
    if with_script:
        made.append(files.write_text(folder / SCRIPT, SCRIPT_TEXT))
    elif replaced:
        files.remove(folder / SCRIPT)
    if text is not None:
        made.append(files.write_bytes(folder / REPORT, text))
    elif replaced and page.absolute().parent != folder.absolute():
        files.remove(folder / REPORT)  # of the net that was here before
    package = folder / f"{name}.dlpk"
    _zip(package, made)
    return [*made, package]


def _zip(package: Path, members: Sequence[Path]) -> None:
    """Put files into a zip as they are; nothing in it depends on the time or the machine."""
    with files.replacing(package) as temporary, zipfile.ZipFile(temporary, "x") as archive:
        for path in members:
            info = zipfile.ZipInfo(path.name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = path.stat().st_size
            with archive.open(info, "w") as target, path.open("rb") as stream:
                shutil.copyfileobj(stream, target, _STEP)


def open_package(path: Path, into: Path, most_bytes: int = MOST_BYTES) -> Path:
    """Unpack a `.dlpk` file.

    Nothing is written outside of the folder, and nothing is left in it if something is wrong.

    Args:
        path: The file.
        into: A folder that is not there, or empty.
        most_bytes: What its files may take together.

    Returns:
        The `.emd` file in it.

    Raises:
        BundleError: It is missing, damaged, too large, holds a name that leads out of it or two
            that some system takes for one, or not exactly one `.emd`.
        OutputError: It cannot be unpacked there.
    """
    if into.is_dir() and any(into.iterdir()):
        raise OutputError(f"{into}: something is in this folder: a package is not unpacked there.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(archive.infolist(), path, most_bytes)
            (emd,) = (name for name in members if name.lower().endswith(".emd"))
            try:
                left = most_bytes
                for name, info in members.items():
                    left -= _unpack(archive, info, into / name, left, path)
            except BaseException:
                shutil.rmtree(into, ignore_errors=True)
                raise
    except (BundleError, OutputError):
        raise
    except _FAULTS as error:
        raise BundleError(
            f"{path}: this is no package, or a damaged one: {str(error)[:200]}. Copy it again."
        ) from error
    except OSError as error:
        told = error.strerror or str(error)
        raise BundleError(f"{path}: the package cannot be read: {told}.") from error
    return into / emd


def _checked(
    infos: Sequence[zipfile.ZipInfo], path: Path, most_bytes: int
) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a package by their names; refuse what is not one."""
    if len(infos) > MOST_MEMBERS:
        raise BundleError(
            f"{path}: {len(infos):,} files are in it, at most {MOST_MEMBERS:,} are read."
        )
    total = sum(info.file_size for info in infos)
    if total > most_bytes:
        raise BundleError(
            f"{path}: it says that it holds {total / 2**30:.3g} GB, at most "
            f"{most_bytes / 2**30:.3g} GB are unpacked."
        )
    found: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, bool] = {}  # names as any system takes them, and whether they are folders
    for info in infos:
        parts = _parts(info, path)
        folder = info.filename.endswith(("/", "\\"))
        for depth in range(1, len(parts) + 1):
            inner = depth < len(parts) or folder
            plain = "/".join(part.rstrip(" .").casefold() for part in parts[:depth])
            if plain in seen and not (inner and seen[plain]):
                raise BundleError(
                    f"{path}: two of its files have the name {info.filename[:80]!r}, or names that "
                    "differ in case alone."
                )
            seen[plain] = inner
        if not folder:
            found["/".join(parts)] = info
    definitions = [name for name in found if name.lower().endswith(".emd")]
    if len(definitions) != 1:
        shown = ", ".join(name[:80] for name in sorted(definitions or found)[:8]) or "nothing"
        raise BundleError(
            f"{path}: one .emd file must be in a package, and there are {len(definitions)}; found "
            f"were {shown}."
        )
    return found


def _parts(info: zipfile.ZipInfo, path: Path) -> list[str]:
    """Return the parts of a member's name; refuse one that leads out, or is no plain file."""
    told = info.orig_filename
    name = told.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    strange = bool(PureWindowsPath(told).drive) or any(sign in told for sign in "\0:")
    if name.startswith("/") or strange or ".." in parts or not parts:
        raise BundleError(
            f"{path}: the name {told[:80]!r} in it leads out of the package, which is not unpacked."
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
        raise BundleError(
            f"{path}: {told[:80]!r} in it is a link, a device, or encrypted, and is not unpacked."
        )
    return parts


def _unpack(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int, path: Path
) -> int:
    """Unpack one file and return its size; its bytes are counted, whatever it says of itself."""
    size = 0
    with (
        archive.open(info) as stream,
        files.replacing(target) as temporary,
        temporary.open("xb") as out,
    ):
        while data := stream.read(_STEP):
            size += len(data)
            if size > min(info.file_size, left):
                raise BundleError(f"{path}: {info.filename[:80]!r} is larger than it says.")
            out.write(data)
    return size
