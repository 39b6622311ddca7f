"""What labels say of the ground: shapes or a raster, read on the grid of a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from whatwhere.grid import Grid
from whatwhere.io.crs import Shapes, move_points, same_crs
from whatwhere.io.image import fault
from whatwhere.io.raster import Raster
from whatwhere.io.vector import burn, covered
from whatwhere.types import Valid, Window

NOWHERE = -(2**31)
"""The number of pixels that have no label."""

_MOST_PIXELS = 2**24  # of a label raster that are read at once


@dataclass(frozen=True, eq=False)
class ShapesOnGround:
    """Shapes in a scene's coordinate system, found quickly by place.

    Attributes:
        shapes: `(N,)`.
        bounds: `(N, 4)`: smallest x and y, largest x and y of each.
    """

    shapes: Shapes
    bounds: NDArray[np.float64]

    @classmethod
    def of(cls, shapes: Shapes) -> ShapesOnGround:
        """Measure shapes."""
        import shapely

        return cls(shapes, np.asarray(shapely.bounds(shapes)).reshape(-1, 4))

    def near(self, grid: Grid) -> NDArray[np.int64]:
        """Return the positions of those whose rectangle touches that of a grid."""
        x0, y0, x1, y1 = grid.bounds
        left, low, right, high = self.bounds.T
        return np.flatnonzero((left <= x1) & (right >= x0) & (low <= y1) & (high >= y0))

    def within(self, grid: Grid) -> Valid:
        """Return where pixels of a grid have their middle in a shape, `(H, W)`."""
        return covered(self.shapes[self.near(grid)], grid)


@dataclass(frozen=True, eq=False)
class VectorTruth:
    """Labels that are shapes; where they overlap the class with the higher number wins.

    Attributes:
        ground: The shapes.
        places: `(N,)` where in `table` each shape's number is.
        table: The number of pixels that are in no shape, then the shapes'.
    """

    ground: ShapesOnGround
    places: NDArray[np.int64]
    table: NDArray[np.int64]

    @classmethod
    def of(cls, ground: ShapesOnGround, numbers: NDArray[np.int64], background: int) -> VectorTruth:
        """Take shapes, the number of each one's class, and that of pixels in none of them."""
        known = np.unique(numbers)
        places = np.searchsorted(known, numbers) + 1
        return cls(ground, places, np.concatenate([[background], known]))

    def read(self, grid: Grid) -> tuple[NDArray[np.int64], Valid]:
        """Return the number of each pixel `(H, W)`, and where there is one."""
        near = self.ground.near(grid)
        burnt = burn(self.ground.shapes[near], self.places[near], grid, background=0)
        numbers: NDArray[np.int64] = self.table[burnt]
        return numbers, numbers != NOWHERE


@dataclass(frozen=True, eq=False)
class RasterTruth:
    """Labels that are a raster on any grid.

    Attributes:
        raster: Its first band holds whole numbers.
    """

    raster: Raster

    def read(self, grid: Grid) -> tuple[NDArray[np.int64], Valid]:
        """Return the number of the nearest pixel's, and where there is one.

        Raises:
            DataError: It is damaged, or holds other than whole numbers.
        """
        inside = self._beside(grid)
        if inside is not None:
            return self._window(*inside)
        rows, columns = np.mgrid[: grid.height, : grid.width] + 0.5
        xs, ys = _placed(grid.transform, columns.ravel(), rows.ravel())
        xs, ys = move_points(xs, ys, grid.crs, self.raster.grid.crs)
        across, down = _placed(~self.raster.grid.transform, xs, ys)
        shape = (grid.height, grid.width)
        return self._nearest(_whole(down).reshape(shape), _whole(across).reshape(shape))

    def _beside(self, grid: Grid) -> tuple[int, int, int, int] | None:
        """Row, column, height and width of a grid whose pixels are the raster's; else None."""
        mine = self.raster.grid
        if not same_crs(mine.crs, grid.crs):
            return None
        step = ~mine.transform @ grid.transform
        row, column = round(step.f), round(step.c)
        slip = max(abs(step.f - row), abs(step.c - column))
        turn = max(abs(step.a - 1), abs(step.e - 1), abs(step.b), abs(step.d))
        if slip + turn * max(grid.height, grid.width) > 0.01:
            return None
        return row, column, grid.height, grid.width

    def _window(
        self, row: int, column: int, height: int, width: int
    ) -> tuple[NDArray[np.int64], Valid]:
        """Read a window that may lie beyond the raster's edges."""
        numbers = np.zeros((height, width), dtype=np.int64)
        counted = np.zeros((height, width), dtype=np.bool_)
        top, left = max(row, 0), max(column, 0)
        bottom = min(row + height, self.raster.grid.height)
        right = min(column + width, self.raster.grid.width)
        if top < bottom and left < right:
            there = (slice(top - row, bottom - row), slice(left - column, right - column))
            window = Window(top, left, bottom - top, right - left)
            numbers[there], counted[there] = self._read(window)
        return numbers, counted

    def _nearest(
        self, down: NDArray[np.int64], across: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Valid]:
        """Read the pixels at some rows and columns, in pieces if they lie far apart."""
        height, width = self.raster.size
        inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
        numbers = np.zeros(down.shape, dtype=np.int64)
        counted = np.zeros(down.shape, dtype=np.bool_)
        if not inside.any():
            return numbers, counted
        top, left = int(down[inside].min()), int(across[inside].min())
        rows, columns = int(down[inside].max()) + 1 - top, int(across[inside].max()) + 1 - left
        if rows * columns > _MOST_PIXELS and down.size > 1:
            axis = int(np.argmax(down.shape))
            halves = zip(
                np.array_split(down, 2, axis), np.array_split(across, 2, axis), strict=True
            )
            found = [self._nearest(one, other) for one, other in halves]
            joined = [np.concatenate(parts, axis) for parts in zip(*found, strict=True)]
            return joined[0].astype(np.int64), joined[1].astype(np.bool_)
        read, valid = self._read(Window(top, left, rows, columns))
        at = down[inside] - top, across[inside] - left
        numbers[inside], counted[inside] = read[at], valid[at]
        return numbers, counted

    def _read(self, window: Window) -> tuple[NDArray[np.int64], Valid]:
        pixels, valid = self.raster.read(window, self.raster.numbers[:1])
        plane = pixels[0]
        if np.issubdtype(plane.dtype, np.floating):
            plane = np.where(valid, plane, 0)
            odd = plane[plane != np.floor(plane)]
            if odd.size:
                cause = f"labels are whole numbers; this holds {float(odd[0]):g}."
                raise fault(self.raster.path, cause, "Round them.")
        return plane.astype(np.int64), valid


Truth = VectorTruth | RasterTruth


Floats = NDArray[np.float64]


def _placed(transform: Affine, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    return (
        transform.a * xs + transform.b * ys + transform.c,
        transform.d * xs + transform.e * ys + transform.f,
    )


def _whole(places: NDArray[Any]) -> NDArray[np.int64]:
    """Round places down; those that are not finite lie nowhere."""
    far = np.where(np.isfinite(places), places, -1)
    whole: NDArray[np.int64] = np.floor(np.clip(far, -1, 2**31)).astype(np.int64)
    return whole
