"""What Esri's files say: the definition of an export or a model, its sums, and its list of chips.

ArcGIS Pro's *Export Training Data For Deep Learning* writes all three. Some versions leave fields
to be filled in, and put an example into them (`"ImageHeight": "e.g. 256"`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from whatwhere.errors import DataError, Problem
from whatwhere.types import COLOR_FLAG, Classes

DEFINITION = "esri_model_definition.emd"
SUMS = "esri_accumulated_stats.json"
MAP = "map.txt"
CLASSIFIED = "Classified_Tiles"
"""The kind of export that gives each pixel a class."""

_LARGEST = 16 << 20  # of a definition or sums [bytes]
_LARGEST_MAP = 256 << 20  # some million chips
_LARGEST_CELL = 1e9  # [map units]
_EXAMPLES = ("e.g.", "some description")
_CHIP = re.compile(rb"(?:\xef\xbb\xbf)?\s*images[\\/]", re.IGNORECASE)
_COLUMNS = re.compile(r"(.*?\S)\s+((?:labels|images2?|masks)[\\/].*)", re.IGNORECASE)


@dataclass(frozen=True)
class EsriClass:
    """A class as an export or a model names it.

    Attributes:
        value: What the labels hold.
        name: What people call it.
        color: `(red, green, blue)` in [0, 255]; None where it is left to chance (-1) or missing.
    """

    value: int
    name: str
    color: tuple[int, int, int] | None


@dataclass(frozen=True)
class Definition:
    """What a `.emd` file says.

    Attributes:
        path: The file.
        classes: In the order of the file.
        mode: Which kind of export it is, such as `Classified_Tiles`; empty where it is not said.
        size: (height, width) of a chip [px].
        space: `MAP_SPACE`, `PIXEL_SPACE` or empty.
        bands: Their names; empty where not all have one of their own.
        cell_size: The smallest and largest side of a pixel [map units].
        tiles: How many chips there are.
        lines: All of the file but examples to be filled in.
    """

    path: Path
    classes: tuple[EsriClass, ...]
    mode: str
    size: tuple[int, int] | None
    space: str
    bands: tuple[str, ...]
    cell_size: tuple[float, float] | None
    tiles: int | None
    lines: Mapping[str, Any] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Export:
    """What the files beside the chips of an export say.

    Attributes:
        folder: Where they lie.
        definition: What the definition says, and where it says nothing, the sums.
        sums: The accumulated statistics; empty where there are none.
        listed: The chips and their labels as the list has them; None where there is no list.
        missing: Which of the three files are not there.
    """

    folder: Path
    definition: Definition
    sums: Mapping[str, Any] = field(compare=False, repr=False)
    listed: tuple[tuple[str, str], ...] | None = field(repr=False)
    missing: tuple[str, ...]


def is_export(folder: Path) -> bool:
    """Whether one of Esri's files lies in a folder; a list of chips alone must list some."""
    if any(find_file(folder, name) for name in (DEFINITION, SUMS)):
        return True
    listed = find_file(folder, MAP)
    if listed is None:
        return False
    try:
        with open(listed, "rb") as stream:
            return bool(_CHIP.match(stream.read(256)))
    except OSError:
        return True  # reading it will say what is the matter


def read_export(folder: Path, above: Definition | None = None) -> Export:
    """Read the files beside an export's chips, whatever the case of their names.

    Args:
        folder: Where they lie.
        above: A definition that holds where the folder has none of its own.

    Raises:
        DataError: One of them is damaged.
    """
    paths = {name: find_file(folder, name) for name in (DEFINITION, SUMS, MAP)}
    definition, sums, listed = paths.values()
    told = read_sums(sums) if sums else {}
    known = read_definition(definition) if definition else above
    return Export(
        folder=folder,
        definition=completed(known or definition_of({}, folder / DEFINITION), told),
        sums=told,
        listed=tuple(read_map(listed)) if listed else None,
        missing=tuple(name for name, path in paths.items() if path is None),
    )


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of a folder that has this name, whatever its case."""
    if (folder / name).is_file():
        return folder / name
    if not folder.is_dir():
        return None
    alike = [p for p in folder.iterdir() if p.name.lower() == name and p.is_file()]
    return min(alike, default=None)


def read_definition(path: Path) -> Definition:
    """Read a `.emd` file, of an export or of a trained model.

    Raises:
        DataError: The file is missing, larger than 16 MB or no JSON object, or a class has no value
            or name.
    """
    return definition_of(_read_json(path), path)


def read_sums(path: Path) -> Mapping[str, Any]:
    """Read the accumulated statistics of an export, examples to be filled in left out.

    Raises:
        DataError: The file is missing, larger than 16 MB or no JSON object.
    """
    return _read_json(path)


def parse_definition(data: bytes, path: Path) -> Definition:
    """Read what a `.emd` file holds, for one inside another file; as `read_definition`."""
    return definition_of(_parse_json(data, path), path)


def definition_of(lines: Mapping[str, Any], path: Path) -> Definition:
    """Return what the lines of a definition or of sums say; raises as `read_definition`."""
    sides = [
        _whole(lines.get(name, lines.get(other)))
        for name, other in (("ImageHeight", "TileSizeY"), ("ImageWidth", "TileSizeX"))
    ]
    height, width = (side if side and side > 0 else None for side in sides)
    props = lines.get("InputRastersProps")
    names = props.get("BandNames") if isinstance(props, Mapping) else None
    tiles = _whole(lines.get("NumTilesAsDouble", lines.get("NumTiles")))
    mode, space = lines.get("MetaDataMode"), lines.get("ImageSpaceUsed")
    return Definition(
        path=path,
        classes=_classes(lines.get("Classes"), path),
        mode=_text(mode) if isinstance(mode, str) else "",
        size=(height, width) if height and width else None,
        space=_text(space) if isinstance(space, str) else "",
        bands=_bands(names),
        cell_size=_cell_size(lines),
        tiles=tiles if tiles is not None and tiles >= 0 else None,
        lines=lines,
    )


def completed(definition: Definition, sums: Mapping[str, Any]) -> Definition:
    """Return the definition with what only the sums say: kind, classes, chips, bands, sizes."""
    other = definition_of(sums, definition.path)
    empty: tuple[Any, ...] = (None, "", ())
    missing = {
        item.name: getattr(other, item.name)
        for item in dataclasses.fields(Definition)
        if getattr(definition, item.name) in empty
    }
    return dataclasses.replace(definition, **missing)


def read_map(path: Path) -> list[tuple[str, str]]:
    r"""Read the list of an export's chips: on each line an image and its label file.

    Returns:
        Paths below the export's folder with `/` between their parts; the second one is empty where
        a line names an image alone.

    Raises:
        DataError: The file is missing, too large or not UTF-8; or a path leads out of the folder.
    """
    text = _decoded(_read(path, _LARGEST_MAP), path)
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        columns = _split(line.strip())
        if len(columns) > 2:
            raise _fault(
                path,
                f"line {number} has {len(columns)} columns: {line.strip()[:80]!r}.",
                "An image and its label file are needed: images\\1.tif labels\\1.tif.",
            )
        if columns:
            image, label = (_inside(one, path, number) for one in (*columns, "")[:2])
            pairs.append((image, label))
    return pairs


def class_rows(classes: Classes) -> list[dict[str, Any]]:
    """Return a class table as `Classes` of a definition: value, name and colour of each class."""
    return [{"Value": info.value, "Name": info.name, "Color": list(info.color)} for info in classes]


def _split(line: str) -> list[str]:
    """Cut a line of the list into its columns: names may hold a blank."""
    words = line.split()
    if len(words) <= 2:
        return words
    found = _COLUMNS.fullmatch(line)
    return list(found.groups()) if found else re.split(r"\s{2,}|\t", line)


def _inside(text: str, path: Path, number: int) -> str:
    """Return a path of the list with `/`; refuse one that leads out of the folder."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    rooted = text[:1] in ("/", "\\") or bool(PureWindowsPath(text).drive)
    if ".." in parts or rooted or "\0" in text:
        raise _fault(
            path,
            f"line {number} leads out of the folder: {text[:80]!r}.",
            "Only chips below the folder are read: correct the line.",
        )
    return "/".join(parts)


def _classes(rows: Any, path: Path) -> tuple[EsriClass, ...]:
    if rows is None:
        return ()
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise _fault(path, "its Classes are no list.", "Export or save it again.")
    found: dict[int, EsriClass] = {}
    for row in rows:
        told = row if isinstance(row, Mapping) else {}
        value = _whole(told.get("Value", told.get("ClassValue")))
        name = told.get("Name", told.get("ClassName"))
        if value is None or not isinstance(name, str | int | float):
            cause = f"a class has no whole Value or no Name: {json.dumps(row)[:80]}."
            raise _fault(path, cause, "Export or save it again.")
        if not -COLOR_FLAG < value < COLOR_FLAG:
            raise _fault(path, f"a class has the Value {str(value)[:20]}.", "Take smaller ones.")
        one = EsriClass(value, _text(name) or str(value), _color(told.get("Color")))
        if found.setdefault(value, one).name != one.name:
            cause = f"{value} is called {found[value].name!r} and {one.name!r}."
            raise _fault(path, cause, "Give each value one name.")
    return tuple(found.values())


def _color(told: Any) -> tuple[int, int, int] | None:
    if not isinstance(told, Sequence) or isinstance(told, str):
        return None
    channels = [_whole(one) for one in told[:3]]
    known = [one for one in channels if one is not None and 0 <= one <= 255]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def _bands(names: Any) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, str):
        return ()
    told = tuple(_text(name) if isinstance(name, str) else "" for name in names)
    different = {name.casefold() for name in told}
    return told if all(told) and len(different) == len(told) else ()


def _cell_size(lines: Mapping[str, Any]) -> tuple[float, float] | None:
    sides = []
    for name in ("MinCellSize", "MaxCellSize"):
        told = lines.get(name)
        values = [told.get("x"), told.get("y")] if isinstance(told, Mapping) else [told]
        sides += [float(v) for v in values if isinstance(v, int | float) and _is_size(v)]
    return (min(sides), max(sides)) if sides else None


def _is_size(value: int | float) -> bool:
    return not isinstance(value, bool) and 0 < value < _LARGEST_CELL


def _whole(value: Any) -> int | None:
    """Return a whole number, written as one or as text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(name: Any) -> str:
    """Return a name without blanks around it, and without half characters."""
    return str(name).strip().encode("utf-8", "replace").decode()


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(_read(path, _LARGEST), path)


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    text = _decoded(data, path)
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"this is not JSON: {error}.", "Export or save it again.") from error
    if not isinstance(told, dict):
        raise _fault(path, "this is no JSON object.", "Export or save it again.")
    return {name: _filled(value) for name, value in told.items() if not _is_example(value)}


def _filled(value: Any) -> Any:
    """Leave out what is to be filled in, inside too."""
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items() if not _is_example(one)}
    return value


def _is_example(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower().startswith(_EXAMPLES)


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError as error:
        raise _fault(path, "there is no such file.", "Check the name.") from error
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise _fault(path, f"the file cannot be read: {told}.", "Copy it again.") from error
    if len(data) > most:
        raise _fault(path, f"it is larger than {most >> 20} MB.", "Export or save it again.")
    return data


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _fault(path, "it is not UTF-8.", "Save it as UTF-8 text.") from error


def _fault(path: Path, cause: str, remedy: str) -> DataError:
    return DataError(f"{path}: {cause} {remedy}", [Problem("error", str(path), cause, remedy)])
