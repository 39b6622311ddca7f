"""Pure geometry: how an image is cut into tiles whose cores cover it exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whatwhere.errors import UsageError
from whatwhere.types import Window


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
