"""What several exports of Esri's say together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whatwhere.errors import DataError, Problem
from whatwhere.io.esri import CLASSIFIED, Definition, EsriClass, Export

MERGED = "MergedFrom"
"""A line of definitions that stand for several exports: their folders."""


def merge(exports: Sequence[Export]) -> tuple[Definition | None, list[Problem]]:
    """Return what several exports say together, and what is doubtful of it.

    Raises:
        DataError: A value has two names or a name two values, or the numbers of bands differ.
    """
    if not exports:
        return None, []
    first = exports[0].definition
    counts = {export.folder: count for export in exports if (count := _band_count(export))}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{folder}: {count}" for folder, count in counts.items())
        raise DataError(f"the exports do not have the same number of bands ({told}).")
    problems = []
    names = {tuple(b.casefold() for b in e.definition.bands): e for e in exports}
    if len(names) > 1 and all(names):
        told = "; ".join(f"{e.folder}: {', '.join(e.definition.bands)}" for e in names.values())
        cause = f"the exports' bands have different names ({told})."
        remedy = "They are taken by their numbers: check that these mean the same."
        problems.append(Problem("warning", str(exports[0].folder), cause, remedy))
    definitions = [export.definition for export in exports]
    cells = [one.cell_size for one in definitions if one.cell_size]
    tiles = [one.tiles for one in definitions]
    return dataclasses.replace(
        first,
        classes=_same_classes(exports),
        mode=next((one.mode for one in definitions if one.mode), ""),
        size=first.size if len({one.size for one in definitions}) == 1 else None,
        space=max(one.space for one in definitions),  # PIXEL_SPACE goes before
        bands=first.bands if len(names) == 1 else (),
        cell_size=(min(c[0] for c in cells), max(c[1] for c in cells)) if cells else None,
        tiles=None if None in tiles else sum(tile or 0 for tile in tiles),
    ), problems


def _same_classes(exports: Sequence[Export]) -> tuple[EsriClass, ...]:
    """Return the classes of all exports; those with a colour go before those without."""
    found: dict[int, tuple[EsriClass, Path]] = {}
    values: dict[str, tuple[int, Path]] = {}
    wrong = []
    for export in exports:
        own = {one.name for one in export.definition.classes}
        several = len(own) < len(export.definition.classes)
        for one in export.definition.classes:
            known, where = found.setdefault(one.value, (one, export.folder))
            if known.name != one.name:
                wrong.append(
                    f"{one.value} is {known.name!r} in {where}, {one.name!r} in {export.folder}"
                )
            elif known.color is None:
                found[one.value] = (one, where)
            value, other = values.setdefault(one.name, (one.value, export.folder))
            if value != one.value and other != export.folder and not several:
                wrong.append(f"{one.name!r} is {value} in {other}, {one.value} in {export.folder}")
    if wrong:
        raise DataError(
            f"the classes of the exports contradict each other: {'; '.join(wrong[:10])}. Export "
            "them with one schema, or correct their definitions."
        )
    return tuple(one for one, _ in found.values())


def _band_count(export: Export) -> int | None:
    """How many bands the chips have, as far as an export says it."""
    told = export.sums.get("NumBands")
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    return len(export.definition.bands) or None


def merged_lines(definition: Definition, folders: Sequence[Path]) -> dict[str, Any]:
    """Return the lines of a definition that stands for several folders."""
    lines: dict[str, Any] = {
        "MetaDataMode": definition.mode or CLASSIFIED,
        "Classes": [
            {"Value": one.value, "Name": one.name, "Color": list(one.color or (-1, -1, -1))}
            for one in definition.classes
        ],
        MERGED: [str(folder) for folder in folders],
    }
    if definition.size:
        lines |= dict(zip(("ImageHeight", "ImageWidth"), definition.size, strict=True))
    if definition.space:
        lines["ImageSpaceUsed"] = definition.space
    if definition.bands:
        lines["InputRastersProps"] = {"BandNames": list(definition.bands)}
    for name, size in zip(("MinCellSize", "MaxCellSize"), definition.cell_size or (), strict=False):
        lines[name] = {"x": size, "y": size}
    return lines
