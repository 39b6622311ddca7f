"""What ground rasters and parts of them cover, and where that of several is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from whatwhere.grid import Grid
from whatwhere.io.crs import (
    LONGITUDE_LATITUDE,
    Shapes,
    is_on_ground,
    move_points,
    move_shapes,
    parse_crs,
    same_crs,
)
from whatwhere.io.mend import unfinished
from whatwhere.types import Window

_PIECES = 8  # of each side of an outline: what is straight in one system is curved in others
_SAMPLES = 17  # points along a side of a raster that its place on the globe is measured at
_SLACK = 0.25  # what outlines may be off by, as they are moved [px]
_WIDER = 1.1  # balls, for what lies between the points that they were measured at

_Points = NDArray[np.float64]


def outline(grid: Grid) -> shapely.Polygon:
    """Return the ground of a grid in its own coordinate system, with points along its sides."""
    share = np.arange(_PIECES) / _PIECES
    around = np.concatenate([share, np.ones(_PIECES), 1 - share, np.zeros(_PIECES)])
    columns, rows = np.roll(around, _PIECES) * grid.width, around * grid.height
    matrix = grid.transform
    xs = matrix.a * columns + matrix.b * rows + matrix.c
    ys = matrix.d * columns + matrix.e * rows + matrix.f
    return shapely.Polygon(np.column_stack([xs, ys]))


class Ground:
    """Pieces of ground, found by what they are near to, whatever their coordinate systems.

    They are compared in pixels of the raster that is asked about, so that poles and the meridian of
    180° are places like all others. Without a coordinate system the coordinates are compared as
    they are.
    """

    def __init__(self, systems: Sequence[str], shapes: Shapes, reach: float) -> None:
        """Measure the pieces.

        Args:
            systems: The coordinate system of each, empty for none.
            shapes: `(N,)` polygons.
            reach: How far off something is still near [px of the raster that is asked about]; 0
                where only the same ground is meant.
        """
        self._shapes, self._reach = shapes, reach
        self._members = {
            crs: np.array([i for i, one in enumerate(systems) if one == crs], dtype=np.intp)
            for crs in dict.fromkeys(systems)
        }
        self._balls = {
            crs: _balls(move_shapes(shapes[mine], crs, LONGITUDE_LATITUDE))
            for crs, mine in self._members.items()
            if crs and is_on_ground(crs)
        }
        self._seen: dict[Grid, tuple[shapely.STRtree, NDArray[np.intp]]] = {}

    def near(self, raster: Grid, window: Window) -> set[int]:
        """Return the positions of the pieces that are near a window of a raster."""
        if raster not in self._seen:
            self._seen[raster] = self._seen_from(raster)
        tree, numbers = self._seen[raster]
        more = self._reach - _SLACK
        box = shapely.box(
            window.column - more,
            window.row - more,
            window.column + window.width + more,
            window.row + window.height + more,
        )
        return set(numbers[tree.query(box, predicate="intersects")].tolist())

    def _seen_from(self, raster: Grid) -> tuple[shapely.STRtree, NDArray[np.intp]]:
        """Move all that may be near a raster to its (column, row)."""
        on_ground = bool(raster.crs) and is_on_ground(raster.crs)
        middle, radius = _ball_of(raster, self._reach) if on_ground else (np.zeros(3), 0.0)
        shapes, numbers = [], []
        for crs, mine in self._members.items():
            if crs in self._balls and on_ground:
                middles, radii = self._balls[crs]
                off = np.linalg.norm(middles - middle, axis=1)
                mine = mine[off <= radii + radius]
            elif bool(crs) != bool(raster.crs) or not same_crs(crs, raster.crs):
                continue
            moved = move_shapes(self._shapes[mine], crs, raster.crs)
            good = ~unfinished(moved)
            moved, mine = moved[good], mine[good]
            if on_ground and parse_crs(raster.crs).is_geographic:
                moved, mine = _all_turns(moved, mine, raster.crs, same_crs(crs, raster.crs))
            shapes.append(moved)
            numbers.append(mine)
        there = np.concatenate(shapes) if shapes else np.empty(0, dtype=object)
        inverse = ~raster.transform
        matrix = np.array([[inverse.a, inverse.b], [inverse.d, inverse.e]])
        shift = np.array([inverse.c, inverse.f])
        there = shapely.transform(there, lambda points: points @ matrix.T + shift)
        which = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.intp)
        return shapely.STRtree(there), which


def _on_globe(longitudes: _Points, latitudes: _Points) -> _Points:
    """Return `(N, 3)` places on a ball of radius 1."""
    east, north = np.radians(longitudes), np.radians(latitudes)
    flat = np.cos(north)
    return np.column_stack([flat * np.cos(east), flat * np.sin(east), np.sin(north)])


def _balls(shapes: Shapes) -> tuple[_Points, _Points]:
    """Return a ball about each shape: middles `(N, 3)` and radii; NaN where it is nowhere."""
    points, owners = shapely.get_coordinates(shapes, return_index=True)
    good = np.isfinite(points).all(axis=1)
    owners, places = owners[good], _on_globe(*points[good].T)
    count = np.bincount(owners, minlength=len(shapes))
    sums = [np.bincount(owners, weights=axis, minlength=len(shapes)) for axis in places.T]
    with np.errstate(invalid="ignore"):
        middles = np.column_stack(sums) / count[:, None]
    radii = np.where(count > 0, 0.0, np.nan)
    np.maximum.at(radii, owners, np.linalg.norm(places - middles[owners], axis=1))
    return middles, radii * _WIDER


def _ball_of(raster: Grid, reach: float) -> tuple[_Points, float]:
    """Return the middle `(3,)` and the radius of a ball about a raster and what is near it."""
    columns, rows = np.meshgrid(
        np.linspace(-reach, raster.width + reach, _SAMPLES),
        np.linspace(-reach, raster.height + reach, _SAMPLES),
    )
    matrix = raster.transform
    xs = (matrix.a * columns + matrix.b * rows + matrix.c).ravel()
    ys = (matrix.d * columns + matrix.e * rows + matrix.f).ravel()
    xs, ys = move_points(xs, ys, raster.crs, LONGITUDE_LATITUDE)
    good = np.isfinite(xs) & np.isfinite(ys)
    if not good.any():
        return np.full(3, np.nan), math.nan
    places = _on_globe(xs[good], ys[good])
    middle: _Points = places.mean(axis=0)
    return middle, float(np.linalg.norm(places - middle, axis=1).max()) * _WIDER


def _all_turns(
    shapes: Shapes, numbers: NDArray[np.intp], crs: str, untouched: bool
) -> tuple[Shapes, NDArray[np.intp]]:
    """Return shapes in degrees as they are and a turn to the west and to the east.

    Those that were moved, and lie across the meridian where longitudes jump, are joined there; what
    goes around a pole is left out.
    """
    turn = 2 * math.pi / parse_crs(crs).units_factor[1]
    if not untouched:
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        wide = bounds[:, 2] - bounds[:, 0] > turn / 2
        shapes = shapes.copy()
        shapes[wide] = shapely.transform(
            shapes[wide], lambda points: points + np.where(points < 0, [turn, 0.0], 0.0)
        )
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        kept = bounds[:, 2] - bounds[:, 0] <= turn / 2
        shapes, numbers = shapes[kept], numbers[kept]
    west = shapely.transform(shapes, lambda points: points - np.array([turn, 0.0]))
    east = shapely.transform(shapes, lambda points: points + np.array([turn, 0.0]))
    return np.concatenate([west, shapes, east]), np.tile(numbers, 3)
