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


def spans(length: int, tile: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut one side into tiles.

    Args:
        length: The side [px], at least 1.
        tile: The longest window [px].
        halo: The context on each side of a core [px].

    Yields:
        First pixel and length of the window, first pixel and length of the core. A side no longer
        than `tile` is one window.

    Raises:
        UsageError: The tile has no room for a core between its halos.
    """
    if length <= tile:
        yield 0, length, 0, length
        return
    core = tile - 2 * halo
    if core < 1:
        raise UsageError(
            f"a tile of {tile} px has no room between two halos of {halo} px. "
            f"Take at least {2 * halo + 1} px."
        )
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
        tile: The longest side of a window [px]; rounded down to what the stride allows.
        stride: The net's stride [px].
        margin: How far a pixel sees [px].
    """
    halo = -(-margin // stride) * stride
    tile = tile // stride * stride
    for row, rows, core_row, core_rows in spans(height, tile, halo):
        for column, columns, core_column, core_columns in spans(width, tile, halo):
            yield Tile(
                Window(row, column, rows, columns),
                Window(core_row, core_column, core_rows, core_columns),
            )
