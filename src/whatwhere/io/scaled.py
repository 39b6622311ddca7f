"""Rasters read at another pixel size than their own, and results brought back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from whatwhere.grid import Grid
from whatwhere.io.raster import Raster, read_mirrored
from whatwhere.types import Valid, Window

_NOTHING = 1e-9  # weights below it are rounding


@dataclass(frozen=True)
class Scaled:
    """A raster with more or fewer pixels for the same ground; reads like a `Raster`.

    Pixels lie where they lie whatever window is read: the same ground gives the same numbers.

    Attributes:
        raster: What is read.
        factor: How many pixels stand in the place of one, along a side.
    """

    raster: Raster
    factor: float

    @property
    def grid(self) -> Grid:
        whole = self.raster.grid
        return Grid(
            whole.crs,
            whole.transform @ Affine.scale(1 / self.factor),
            max(1, round(whole.height * self.factor)),
            max(1, round(whole.width * self.factor)),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self.grid.height, self.grid.width

    @property
    def path(self) -> Any:
        return self.raster.path

    @property
    def names(self) -> tuple[str, ...]:
        return self.raster.names

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.raster.numbers

    @property
    def notes(self) -> tuple[Any, ...]:
        return self.raster.notes

    def number_of(self, name: str) -> int | None:
        return self.raster.number_of(name)

    def read(
        self, window: Window, numbers: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float32], Valid]:
        """Read a window of the scaled raster; float32, else as `Raster.read`.

        Fewer pixels are weighted means of those they cover, more are interpolated; pixels without
        data do not take part, and one that is made of them by half or more has none.
        """
        rows = positions(window.row, window.height, self.factor)
        columns = positions(window.column, window.width, self.factor)
        radius = max(1.0, 1 / self.factor)
        first, last = reach(rows, radius)
        left, right = reach(columns, radius)
        source = Window(first, left, last - first, right - left)
        pixels, valid = self.raster.read_around(source, numbers)
        weights = (
            weigh(rows - first, last - first, radius),
            weigh(columns - left, right - left, radius),
        )
        values = np.where(valid, pixels, 0).astype(np.float32)
        share = _apply(valid[None].astype(np.float32), weights)[0]
        found = np.asarray(_apply(values, weights) / np.maximum(share, 1e-6), dtype=np.float32)
        return found, share > 0.5

    def read_around(
        self, window: Window, numbers: Sequence[int] | None = None
    ) -> tuple[NDArray[Any], Valid]:
        """Read a window that may go beyond the edges, as `Raster.read_around` does."""
        return read_mirrored(self.read, self.size, window, numbers)

    def is_empty(self, window: Window, numbers: Sequence[int] | None = None) -> bool:
        """Whether a window is known to have no data without reading it."""
        height, width = self.raster.size
        reaching = max(1, round(1 / self.factor)) + 1
        first = max(0, int(window.row / self.factor) - reaching)
        left = max(0, int(window.column / self.factor) - reaching)
        last = min(height, int((window.row + window.height) / self.factor) + reaching)
        right = min(width, int((window.column + window.width) / self.factor) + reaching)
        return self.raster.is_empty(Window(first, left, last - first, right - left), numbers)


def scaled(raster: Raster, factor: float) -> Raster | Scaled:
    """Return a raster with `factor` times the pixels along a side; itself where that is 1."""
    return raster if factor == 1 else Scaled(raster, factor)


def positions(first: int, count: int, factor: float) -> NDArray[np.float64]:
    """Return where the middles of scaled pixels lie among the unscaled ones' middles [px]."""
    middles = np.arange(first, first + count, dtype=np.float64) + 0.5
    return middles / factor - 0.5


def reach(places: NDArray[np.float64], radius: float) -> tuple[int, int]:
    """Return the first pixel that `weigh` looks at, and the one after the last."""
    return int(np.floor(places[0] - radius)) + 1, int(np.ceil(places[-1] + radius))


def weigh(places: NDArray[np.float64], length: int, radius: float) -> NDArray[np.float32]:
    """Return what each pixel of a side counts for values at some places.

    Args:
        places: `(N,)` among the pixels' middles [px].
        length: Of the side [px]; places beyond its ends take the end's value.
        radius: Of the triangle that weighs the pixels [px]: 1 interpolates, more smooths.

    Returns:
        `(N, length)`; each row sums to 1.
    """
    inside = np.clip(places, 0, length - 1)
    apart = np.abs(inside[:, None] - np.arange(length)) / radius
    weights = 1 - apart
    weights[weights < _NOTHING] = 0  # what lies `radius` away weighs nothing, however it is rounded
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def stretch(
    values: NDArray[np.float32],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    radius: float,
) -> NDArray[np.float32]:
    """Return `(K, H, W)` at other places, rows and columns among its pixels' middles [px]."""
    _, height, width = values.shape
    return _apply(values, (weigh(rows, height, radius), weigh(columns, width, radius)))


def _apply(
    values: NDArray[np.float32], weights: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.float32]:
    from scipy import sparse  # a few pixels of a side weigh on each value

    down, across = (sparse.csr_array(one) for one in weights)
    planes = [(across @ (down @ plane).T).T for plane in values]
    return np.stack(planes).astype(np.float32)
