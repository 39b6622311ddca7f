"""Shapes made fit for use: valid, in two dimensions, of one kind each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from whatwhere.errors import Problem, Severity
from whatwhere.io.crs import Shapes

_POLYGONS, _LINES, _POINTS = (3, 6), (1, 2, 5), (0, 4)  # shapely's numbers of the types
_SHOWN = 5  # numbers of features in a message


def are_areas(shapes: Shapes) -> NDArray[np.bool_]:
    """Return `(N,)` True for polygons, which cover pixels; lines and points cover none."""
    return np.isin(shapely.get_type_id(shapes), _POLYGONS)


def problem_of(
    path: Path,
    numbers: NDArray[np.intp] | Sequence[int],
    total: int,
    severity: Severity,
    what: tuple[str, str],
) -> Problem:
    """Return one problem for all features of a kind; `what` is its cause and its remedy."""
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = ", …" if len(numbers) > _SHOWN else ""
    cause = f"{len(numbers):,} of {total:,} features {what[0]} (number {shown}{more})."
    return Problem(severity, str(path), cause, what[1])


def cleaned(path: Path, wkb: NDArray[np.object_]) -> tuple[Shapes, NDArray[np.intp], list[Problem]]:
    """Return valid shapes in two dimensions, their positions from 0, and what was done to them."""
    with np.errstate(invalid="ignore"):
        shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    lost = shapely.is_missing(shapes)
    unreadable = lost & np.array([one is not None for one in wkb])
    high = shapely.has_z(shapes)
    shapes = shapely.force_2d(shapes)
    endless = unfinished(shapes)
    mixed = (shapely.get_type_id(shapes) == 7) & ~endless
    for i in np.flatnonzero(mixed):
        shapes[i] = main_parts(shapes[i])
    empty = (shapely.is_empty(shapes) | lost) & ~unreadable
    good = ~(empty | unreadable | endless)
    broken = good & ~shapely.is_valid(shapes)
    shapes = mended(shapes, broken)
    flat = broken & shapely.is_empty(shapes)
    good &= ~flat
    gone = "They are left out."
    kinds: tuple[tuple[NDArray[np.bool_], Severity, tuple[str, str]], ...] = (
        (empty, "note", ("have no shape", gone)),
        (unreadable, "warning", ("have rings or lines that are not complete", gone)),
        (endless, "warning", ("have coordinates that are not finite", gone)),
        (flat, "warning", ("have no extent", gone)),
        (broken & ~flat, "note", ("have edges that cross", "They are repaired.")),
        (mixed & good, "note", ("mix kinds of shapes", "Their areas, else lines, are kept.")),
        (high & good, "note", ("have heights", "The heights are not used.")),
    )
    problems = [
        problem_of(path, np.flatnonzero(mask) + 1, len(wkb), severity, what)
        for mask, severity, what in kinds
        if mask.any()
    ]
    return shapes[good], np.flatnonzero(good), problems


def unfinished(shapes: Shapes) -> NDArray[np.bool_]:
    """Return `(N,)` True where a coordinate is not finite."""
    points, owners = shapely.get_coordinates(shapes, return_index=True)
    found = np.zeros(len(shapes), dtype=bool)
    found[owners[~np.isfinite(points).all(axis=1)]] = True
    return found


def main_parts(shape: shapely.Geometry) -> shapely.Geometry:
    """Return what a collection holds: its polygons, else its lines, else its points."""
    parts: Shapes = np.array([shape])
    while (shapely.get_type_id(parts) >= 4).any():
        parts = shapely.get_parts(parts)
    for kinds, join in (
        (_POLYGONS, shapely.multipolygons),
        (_LINES, shapely.multilinestrings),
        (_POINTS, shapely.multipoints),
    ):
        these = parts[np.isin(shapely.get_type_id(parts), kinds) & ~shapely.is_empty(parts)]
        if len(these):
            return these[0] if len(these) == 1 else join(these)
    return shapely.GeometryCollection()


def mended(shapes: Shapes, broken: NDArray[np.bool_]) -> Shapes:
    """Return the shapes with the broken ones repaired; what has no extent is empty then."""
    result = shapes.copy()
    for i in np.flatnonzero(broken):
        valid = shapely.make_valid(shapes[i], method="structure", keep_collapsed=False)
        valid = main_parts(valid)
        same = are_areas(shapes[i : i + 1])[0] == are_areas(np.array([valid]))[0]
        result[i] = valid if same else shapely.GeometryCollection()
    return result
