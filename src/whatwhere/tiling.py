"""Pure geometry: how an image is cut into tiles whose cores cover it exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import UsageError
from whatwhere.types import Geometry, Window


@dataclass(frozen=True)
class Tile:
    """A window that is computed, and the core of it that is kept.

    Attributes:
        window: What the net sees, within the image.
        core: What is kept, within the image; the cores of all tiles cover it exactly once.
    """

    window: Window
    core: Window

    @property
    def inner(self) -> Window:
        """The core in the window's own pixels."""
        return Window(
            self.core.row - self.window.row,
            self.core.column - self.window.column,
            self.core.height,
            self.core.width,
        )


def spans(length: int, tile: int, core: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut one side into tiles.

    Args:
        length: The side [px], at least 1.
        tile: A side no longer than this is one window [px].
        core: The length of a core [px]; the last one may be shorter.
        halo: The context on each side of a core [px].

    Yields:
        First pixel and length of the window, first pixel and length of the core.
    """
    if length <= tile:
        yield 0, length, 0, length
        return
    for start in range(0, length, core):
        stop = min(start + core, length)
        first, last = max(0, start - halo), min(length, stop + halo)
        yield first, last - first, start, stop - start


def tiles(height: int, width: int, tile: int, stride: int, margin: int) -> Iterator[Tile]:
    """Cut an image so that tiled and whole results agree.

    Windows start at multiples of the net's stride, and their halos are at least its margin: no kept
    pixel sees a cut edge.

    Args:
        height: Rows of the image [px].
        width: Columns of the image [px].
        tile: The longest side of a window [px].
        stride: The net's stride [px].
        margin: How far a pixel sees [px].

    Raises:
        UsageError: The image is larger than the tile, which has no room for a core between halos.
    """
    halo = -(-margin // stride) * stride
    if max(height, width) > tile and tile < 2 * halo + stride:
        raise UsageError(
            f"a tile of {tile} px has no room for a core of {stride} px between two halos of "
            f"{halo} px. Take at least {2 * halo + stride} px."
        )
    core = (tile - 2 * halo) // stride * stride
    for row, rows, core_row, core_rows in spans(height, tile, core, halo):
        for column, columns, core_column, core_columns in spans(width, tile, core, halo):
            yield Tile(
                Window(row, column, rows, columns),
                Window(core_row, core_column, core_rows, core_columns),
            )


def frames(length: int, tile: int, geometry: Geometry) -> Iterator[tuple[int, int, int]]:
    """Cut one side for a net whose result is smaller than what it is given.

    Args:
        length: The side [px], at least 1.
        tile: The longest window [px].
        geometry: Of the net, with a border.

    Yields:
        Where the core starts, which is where the window starts in an image that was extended by the
        border on all sides; the window's length; the core's length.

    Raises:
        UsageError: No window fits into the tile.
    """
    side = geometry.largest(tile)
    core = (side - 2 * geometry.border) // geometry.stride * geometry.stride
    if geometry.window(length) <= side:
        core = length
    if core < 1:
        least = geometry.window(geometry.stride)
        raise UsageError(
            f"a tile of {tile} px is too small for this net. Take at least {least} px."
        )
    for start in range(0, length, core):
        kept = min(core, length - start)
        yield start, geometry.window(kept), kept


def mirror(values: NDArray[Any], shape: tuple[int, int], before: tuple[int, int]) -> NDArray[Any]:
    """Cut a rectangle out of an image that goes on as its mirror image on all sides.

    The edge pixels are not repeated; an image of one row or column repeats it.

    Args:
        values: `(..., H, W)`.
        shape: (height, width) of the rectangle [px].
        before: How many rows and columns of it lie before the image's first ones; negative where it
            starts inside.

    Returns:
        `(..., height, width)`, contiguous.
    """
    for axis, side, start in ((-2, shape[0], before[0]), (-1, shape[1], before[1])):
        old = values.shape[axis]
        if old != side or start:
            values = np.take(values, reflect(np.arange(side) - start, old), axis=axis)
    return np.ascontiguousarray(values)


def reflect(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the positions within a side that positions beyond its ends are the mirror images of.

    Args:
        index: Any whole numbers.
        length: Of the side, at least 1; its first and last position are not repeated.
    """
    period = max(2 * (length - 1), 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


@dataclass(frozen=True)
class Lattice:
    """How a plane is cut into tiles, the same wherever one begins to look.

    Attributes:
        core: What a tile is there for [px]; a multiple of the stride.
        halo: Context on each side [px]; a multiple of the stride, or the net's border.
        geometry: Of the net.
        blend: Whether neighbours are blended over their halos, for a net that sees farther than
            they reach; else halos are discarded, and the result does not depend on the lattice.
    """

    core: int
    halo: int
    geometry: Geometry
    blend: bool

    @property
    def tile(self) -> int:
        """The side of what the net sees [px]."""
        if self.geometry.border:
            return self.geometry.window(self.core)
        return self.core + 2 * self.halo

    @property
    def whole(self) -> bool:
        """Whether windows end where the plane ends, as one of the whole plane would.

        That is at the next multiple of the stride: up to there a net mirrors what it is given, so
        it answers the same, and a window that is turned is still pooled as the plane is. Else
        windows go on beyond the plane, as its mirror image: a net with a border needs that, and one
        that looks at the whole tile is to see tiles of one size.
        """
        return self.geometry.border == 0 and self.geometry.margin is not None

    def lengths(self, side: int, block: int) -> list[int]:
        """Return what the net sees of one side of a plane, window by window [px].

        Args:
            side: Of the plane [px].
            block: Of which one is made after the other [px]; tiles that are blended reach into
                several, and are counted once.
        """
        starts = [0] if self.blend else range(0, side, block)
        step = side if self.blend else block
        return [
            span.length
            for first in starts
            for span in lattice_spans(self, first, min(first + step, side), side)
        ]


def make_lattice(geometry: Geometry, tile: int, overlap: int | None = None) -> Lattice:
    """Choose a lattice.

    Args:
        geometry: Of the net.
        tile: The longest side of what the net sees [px].
        overlap: Context on each side [px]; None takes what the net needs to see no seam, or
            `BLIND_MARGIN` if it looks at whole tiles.

    Raises:
        UsageError: The tile has no room for a core.
    """
    stride, border = geometry.stride, geometry.border
    if border:
        if overlap is not None:
            raise UsageError("this net's overlap is its border: leave --overlap out.")
        core = (geometry.largest(tile) - 2 * border) // stride * stride
        if core < stride:
            raise UsageError(
                f"a tile of {tile} px is too small for this net. Take at least "
                f"{geometry.window(stride)} px."
            )
        return Lattice(core, border, geometry, blend=False)
    needed = geometry.margin
    asked = overlap if overlap is not None else BLIND_MARGIN if needed is None else needed
    halo = -(-asked // stride) * stride
    blend = needed is None or halo < needed
    core = (tile - 2 * halo) // stride * stride
    if core < max(stride, 2 * halo if blend else 0):
        least = 2 * halo + max(stride, 2 * halo if blend else 0)
        raise UsageError(
            f"a tile of {tile} px has no room for a core between two halos of {halo} px. Take at "
            f"least {least} px{'' if blend else ', or a smaller --overlap, which blends'}."
        )
    return Lattice(core, halo, geometry, blend)


BLIND_MARGIN = 128
"""The halo of tiles for a net that looks at the whole tile [px]: seams are small, not absent."""


_LEAST = 256
"""What the last of the tiles that are blended sees at least, if a tile has as much [px]."""


@dataclass(frozen=True)
class Span:
    """One side of a tile of a lattice.

    Attributes:
        start: First pixel that the net sees; lies before 0 where the plane is mirrored.
        length: How many it sees [px].
        first: First pixel of the part of its result that is used.
        count: How many are used [px].
        skip: How many of its result lie before the first one used [px].
        weights: `(count,)`: what each used pixel counts; those of all tiles sum to 1.
    """

    start: int
    length: int
    first: int
    count: int
    skip: int
    weights: NDArray[np.float32]


def lattice_spans(lattice: Lattice, first: int, last: int, side: int) -> list[Span]:
    """Return one side of the tiles that give the pixels from `first` to before `last`.

    Where windows end with the plane, one that fits into a tile is one window.

    Args:
        lattice: How tiles lie; cores that are blended start at multiples of their length, others at
            multiples of the stride, counted from 0.
        first: From 0.
        last: At most `side`.
        side: Of the whole plane [px]: beyond it no tile is needed.
    """
    all_of_it = lattice.blend or (first, last) == (0, side)
    window = lattice.geometry.window
    if lattice.whole and all_of_it and window(side) <= lattice.tile:
        ones = np.ones(last - first, dtype=np.float32)
        return [Span(0, window(side), first, last - first, first, ones)]
    if lattice.blend:
        return _blended(lattice, first, last, side)
    stride, border = lattice.geometry.stride, lattice.geometry.border
    found = []
    for core in range(first // stride * stride, last, lattice.core):
        kept, stop = max(core, first), min(core + lattice.core, last)
        if border:
            start, length = core - border, window(stop - core)
            skip = kept - core
        else:
            end = core + window(stop - core) + lattice.halo
            start, length = _cut(lattice, core - lattice.halo, end, side)
            skip = kept - start
        ones = np.ones(stop - kept, dtype=np.float32)
        found.append(Span(start, length, kept, stop - kept, skip, ones))
    return found


def _cut(lattice: Lattice, start: int, end: int, side: int) -> tuple[int, int]:
    """Return first pixel and length of a window, of what lies within the plane if that ends it."""
    if lattice.whole:
        start, end = max(start, 0), min(end, lattice.geometry.window(side))
    return start, end - start


def _blended(lattice: Lattice, first: int, last: int, side: int) -> list[Span]:
    core, halo = lattice.core, lattice.halo
    # Where windows end with the plane, the one before the last needs no neighbour for its halo.
    total = max(1, -(-(side - halo * lattice.whole) // core))
    least = min(lattice.geometry.window(_LEAST), lattice.tile)
    rise = np.sin(np.pi / 2 * (np.arange(2 * halo) + 0.5) / max(2 * halo, 1)) ** 2
    found = []
    for i in range(max(0, (first - halo) // core), min(total, (last - 1 + halo) // core + 1)):
        edge = i * core - halo
        weights = np.ones(core + 2 * halo)
        if halo and i > 0:
            weights[: 2 * halo] = rise
        if halo and i < total - 1:
            weights[-2 * halo :] = 1 - rise
        start, length = _cut(lattice, edge, edge + len(weights), side)
        if lattice.whole and i == total - 1 and length < least:
            start, length = start + length - least, least
        kept, stop = max(edge, first), min(start + length, last)
        if stop > kept:
            used = weights[kept - edge : stop - edge].astype(np.float32)
            found.append(Span(start, length, kept, stop - kept, kept - start, used))
    return found
