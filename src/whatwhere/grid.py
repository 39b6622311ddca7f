"""The grid of a raster: where its pixels lie on the ground."""

from __future__ import annotations

from dataclasses import dataclass

from affine import Affine

from whatwhere.types import Window


@dataclass(frozen=True)
class Grid:
    """Coordinate system, position and size.

    Attributes:
        crs: The coordinate system as WKT; empty where it is not known.
        transform: From (column, row) in pixels, the upper left corner of the first pixel being
            (0, 0), to (x, y) in the coordinate system.
        height: Rows [px].
        width: Columns [px].
    """

    crs: str
    transform: Affine
    height: int
    width: int

    @property
    def is_placed(self) -> bool:
        """Whether the pixels have coordinates at all."""
        return bool(self.crs) or self.transform != Affine.identity()

    @property
    def corners(self) -> list[tuple[float, float]]:
        """(x, y) of the four outer corners, clockwise from the first pixel's."""
        sides = ((0, 0), (self.width, 0), (self.width, self.height), (0, self.height))
        return [self.transform @ (float(column), float(row)) for column, row in sides]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest x, smallest y, largest x, largest y."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def part(self, window: Window) -> Grid:
        """Return the grid of a window of it; the window may go beyond the edges."""
        moved = self.transform @ Affine.translation(window.column, window.row)
        return Grid(self.crs, moved, window.height, window.width)
