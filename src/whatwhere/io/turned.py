"""A raster read on a grid that lies askew in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from whatwhere.types import Valid, Window

Read = Callable[[Window], tuple[NDArray[Any], Valid]]


def read_turned(
    read: Read, size: tuple[int, int], step: Affine, shape: tuple[int, int]
) -> tuple[NDArray[Any], Valid]:
    """Read pixels whose middles lie anywhere in a raster, each from the four around it.

    Pixels without data do not take part, and one that is made of them by half or more has none. A
    grid turned by right angles gets the raster's own numbers.

    Args:
        read: Reads a window of the raster: `(C, H, W)` and `(H, W)` valid.
        size: (height, width) of the raster [px].
        step: From (column, row) of the grid to (column, row) of the raster [px].
        shape: (height, width) of the grid [px]. All middles must lie inside the raster.

    Returns:
        `(C, H, W)` of the raster's number type, whole numbers rounded; and `(H, W)` valid.
    """
    down, across = np.mgrid[: shape[0], : shape[1]] + 0.5
    columns, rows = step @ (across, down)
    (top, low, row_part), (left, right, column_part) = (
        _between(places - 0.5, length) for places, length in zip((rows, columns), size, strict=True)
    )
    first, start = int(top.min()), int(left.min())
    height, width = int(low.max()) + 1 - first, int(right.max()) + 1 - start
    pixels, valid = read(Window(first, start, height, width))
    total = np.zeros((len(pixels), *shape))
    share = np.zeros(shape)
    for i, weight in ((top, 1 - row_part), (low, row_part)):
        for j, other in ((left, 1 - column_part), (right, column_part)):
            at = (i - first, j - start)
            counts = weight * other * valid[at]
            total += np.where(counts > 0, pixels[:, *at], 0) * counts
            share += counts
    found = total / np.maximum(share, 1e-9)
    if pixels.dtype.kind in "iu":
        found = np.rint(found)
    return found.astype(pixels.dtype), share > 0.5


def _between(
    places: NDArray[np.float64], length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """The pixels before and after some places among the middles of a side, and how far between."""
    inside = np.clip(places, 0, length - 1)
    before = np.floor(inside).astype(np.intp)
    return before, np.minimum(before + 1, length - 1), inside - before
