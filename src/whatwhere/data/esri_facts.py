"""What an export of Esri's says of itself, to be shown, and what is worth a note."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from whatwhere.data.classes import NODATA
from whatwhere.errors import Problem
from whatwhere.io.esri import SUMS, Definition, Export, definition_of
from whatwhere.types import Classes


def facts_of(export: Export) -> dict[str, Any]:
    """Return what an export says of itself, as JSON can hold it, for `inspect` to show."""
    definition = export.definition
    counts = _counts(export)
    return {
        "folder": str(export.folder),
        "mode": definition.mode,
        "chips": definition.tiles,
        "chip_px": list(definition.size) if definition.size else None,
        "listed": None if export.listed is None else len(export.listed),
        "classes": [
            {
                "value": one.value,
                "name": one.name,
                "color": list(one.color) if one.color else None,
                **counts.get(one.value, {}),
            }
            for one in definition.classes
        ],
        "bands": list(definition.bands),
        "cell_size": list(definition.cell_size) if definition.cell_size else None,
        "crs": _system(export),
        "statistics": _band_statistics(export),
        "missing": list(export.missing),
    }


def _counts(export: Export) -> dict[int, dict[str, int]]:
    """How many images, pixels and shapes of each class the sums count, by its value."""
    sums = export.sums
    told = next((sums[n] for n in ("ClassPixelStats", "FeatureStats") if n in sums), None)
    if not isinstance(told, Mapping):
        return {}
    rows = definition_of({"Classes": sums.get("Classes")}, export.folder / SUMS).classes
    found: dict[int, dict[str, int]] = {one.value: {} for one in rows}
    for name, ours in (
        ("NumImagesPerClass", "images"),
        ("NumPixelsPerClass", "pixels"),
        ("NumFeaturesPerClass", "shapes"),
    ):
        numbers = told.get(name)
        if isinstance(numbers, list) and len(numbers) == len(rows):
            for one, number in zip(rows, numbers, strict=True):
                if _number(number) is not None:
                    found[one.value][ours] = int(number)
    return found


def _band_statistics(export: Export) -> list[dict[str, Any]]:
    """Smallest, largest, mean and deviation of each band, as far as the export says them."""
    rows = export.definition.lines.get("AllTilesStats") or export.sums.get("BandStatsState")
    found = []
    for number, row in enumerate(rows if isinstance(rows, list) else (), 1):
        told = dict(row) if isinstance(row, Mapping) else {}
        squares, count = _number(told.get("M2")), _number(told.get("Num"))
        if squares is not None and squares >= 0 and count:
            told |= {"Mean": told.get("M1"), "StdDev": math.sqrt(squares / max(count, 1.0))}
        values = {ours: _number(told.get(name)) for name, ours in _STATISTICS.items()}
        if None not in values.values():
            name = told.get("BandName")
            found.append(
                {"band": name if isinstance(name, str) and name else str(number), **values}
            )
    return found


_STATISTICS = {"Min": "min", "Max": "max", "Mean": "mean", "StdDev": "std"}


def _number(value: Any) -> float | None:
    """Return a number that is one and finite; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def _system(export: Export) -> str:
    """The coordinate system of the cell sizes, such as `EPSG:3857`; empty where it is not said."""
    for lines in (export.definition.lines, export.sums):
        size = lines.get("MinCellSize")
        system = size.get("spatialReference") if isinstance(size, Mapping) else None
        known = system if isinstance(system, Mapping) else {}
        number = known.get("latestWkid", known.get("wkid"))
        if isinstance(number, int):
            return f"EPSG:{number}"
    return ""


def export_notes(
    definition: Definition,
    where: str,
    classes: Classes,
    numbers: Counter[int],
    bands: Mapping[int, int],
) -> list[Problem]:
    """Note what becomes of 0 in the labels, and of names for other bands than there are.

    Args:
        definition: What the export says.
        where: The folder.
        classes: The class table.
        numbers: How many pixels of the labels hold each number.
        bands: How many chips have which number of bands.
    """
    notes = []
    added = 0 not in {one.value for one in definition.classes}
    zero = next((info for info in classes if info.raw == (0,) and info.name == NODATA), None)
    if zero and added and definition.classes and numbers[0]:
        share = numbers[0] / max(numbers.total(), 1)
        cause = f"0 in its labels ({share:.1%}) is a class, {NODATA}, as it is in arcgis.learn."
        remedy = (
            'If such pixels are just not labelled, say so: --classes "0=ignore" (in Python '
            "ignore_classes=[0])."
        )
        notes.append(Problem("note", where, cause, remedy))
    if definition.bands and set(bands) != {len(definition.bands)}:
        cause = (
            f"it names {len(definition.bands)} bands, and its chips have "
            f"{' or '.join(map(str, sorted(bands)))}."
        )
        notes.append(Problem("note", where, cause, "They are taken by their numbers."))
    return notes
