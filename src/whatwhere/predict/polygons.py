"""From classes to polygons: the pieces of each block, joined across the seams of the blocks."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import DataError, ShapeError
from whatwhere.io.crs import Shapes
from whatwhere.predict.rings import (
    Numbers,
    corners_in,
    corners_of,
    from_rings,
    number_pixels,
    to_rings,
    trace,
)
from whatwhere.types import Window

# What zipfile and NumPy have been seen to raise for bytes that are cut short or altered.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, ValueError, LookupError, EOFError, OSError, MemoryError),
    *(NotImplementedError, RuntimeError, OverflowError, TypeError, SyntaxError),
)


@dataclass(frozen=True)
class Pieces:
    """The connected pieces of one block; pixels are connected where they share a side.

    Attributes:
        window: The block, in the scene's pixels.
        shapes: `(N,)` polygons along the pixels' sides, as (column, row) in the scene's pixels,
            the inside always on the same hand, in the order of their first pixels.
        classes: `(N,)` class indexes.
        pixels: `(N,)` how many each has.
        sums: `(N,)` the sum of the class's probability over the pixels of each.
        top: `(W,)` the number of the piece at each pixel of the block's first row, -1 for none.
        bottom: `(W,)` the same of its last row.
        left: `(H,)` the same of its first column.
        right: `(H,)` the same of its last column.
    """

    window: Window
    shapes: Shapes
    classes: Numbers
    pixels: Numbers
    sums: NDArray[np.float64]
    top: Numbers
    bottom: Numbers
    left: Numbers
    right: Numbers


@dataclass(frozen=True)
class Objects:
    """Polygons that no other block can add to.

    Attributes:
        shapes: `(N,)` polygons along the pixels' sides, as (column, row) in the scene's pixels.
        classes: `(N,)` class indexes.
        pixels: `(N,)` how many each has.
        probability: `(N,)` the mean of the class's probability over the pixels of each.
        keys: `(N, 2)` row and column of the first pixel of each. No two objects share it, and it
            does not depend on the blocks: the order to sort by.
    """

    shapes: Shapes
    classes: Numbers
    pixels: Numbers
    probability: NDArray[np.float64]
    keys: Numbers


def find_pieces(
    labels: NDArray[np.integer[Any]],
    wanted: Sequence[int],
    confidence: NDArray[np.float32],
    window: Window,
) -> Pieces:
    """Find the connected pieces of a block.

    Args:
        labels: `(H, W)` class indexes, negative where there is no data.
        wanted: The classes to be found.
        confidence: `(H, W)` the probability of the class that the pixel has, in [0, 1].
        window: Where the block lies in its scene.

    Raises:
        ShapeError: The arrays do not have the window's size.
    """
    size = (window.height, window.width)
    if labels.shape != size or confidence.shape != size:
        raise ShapeError(
            f"a block of {window.height}×{window.width} pixels came with labels of the shape "
            f"{labels.shape} and probabilities of {confidence.shape}: they must be the same."
        )
    values = np.where(np.isin(labels, [index for index in wanted if index >= 0]), labels, -1)
    run_of, first, number_of = number_pixels(values)
    numbers = number_of[run_of]
    kept = number_of >= 0
    owners, count = number_of[kept], int(number_of.max(initial=-1)) + 1
    lengths = np.diff(first, append=values.size)
    sums = np.add.reduceat(confidence.ravel(), first, dtype=np.float64)
    classes = np.zeros(count, dtype=np.int64)
    classes[owners] = values.ravel()[first[kept]]
    owner, rows, columns, signs = corners_in(numbers)
    return Pieces(
        window,
        trace(owner, rows + window.row, columns + window.column, signs),
        classes,
        np.bincount(owners, lengths[kept], minlength=count).astype(np.int64),
        np.bincount(owners, sums[kept], minlength=count).astype(np.float64),
        *(numbers[0].copy(), numbers[-1].copy(), numbers[:, 0].copy(), numbers[:, -1].copy()),
    )


def encode(pieces: Pieces) -> bytes:
    """Return bytes that hold the pieces of a block: NumPy's npz; equal pieces give equal bytes."""
    window = pieces.window
    points, rings, polygons = to_rings(pieces.shapes)
    stream = io.BytesIO()
    np.savez(
        stream,
        allow_pickle=False,
        window=np.array([window.row, window.column, window.height, window.width], dtype=np.int64),
        points=points.astype(np.int32),
        rings=rings,
        polygons=polygons,
        sums=pieces.sums,
        **{name: getattr(pieces, name).astype(np.int32) for name in _INTEGERS},
    )
    return stream.getvalue()


_INTEGERS = ("classes", "pixels", "top", "bottom", "left", "right")


def decode(data: bytes) -> Pieces:
    """Read what `encode` made; raises `DataError` where it is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
        window = Window(*map(int, arrays["window"]))
        ints = {name: arrays[name].astype(np.int64) for name in _INTEGERS}
        points, rings, polygons = (arrays[name] for name in ("points", "rings", "polygons"))
        _check(window, ints, arrays["sums"], points, rings, polygons)
        shapes = from_rings(points.astype(np.float64), rings, polygons)
        return Pieces(window, shapes, sums=arrays["sums"], **ints)
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"the polygons of a block are damaged ({reason}). Predict this block again."
        ) from error


def _check(
    window: Window,
    ints: dict[str, Numbers],
    sums: NDArray[Any],
    points: NDArray[Any],
    rings: NDArray[Any],
    polygons: NDArray[Any],
) -> None:
    """Raise `ValueError` where arrays that can be read do not fit each other."""
    count = len(ints["classes"])
    sides = dict.fromkeys(("top", "bottom"), window.width)
    sides |= dict.fromkeys(("left", "right"), window.height)
    for name, length in (sides | {"pixels": count}).items():
        if ints[name].shape != (length,):
            raise ValueError(f"{name} has the shape {ints[name].shape}, {length} are needed")
    if any(
        not -1 <= ints[name].min(initial=-1) <= ints[name].max(initial=-1) < count for name in sides
    ):
        raise ValueError("a border names a piece that is not there")
    if sums.shape != (count,) or sums.dtype != np.float64:
        raise ValueError(f"there are {count} pieces and sums of the shape {sums.shape}")
    for name, offsets, length, last in (
        ("polygons", polygons, count + 1, len(rings) - 1),
        ("rings", rings, len(rings), len(points)),
    ):
        if len(offsets) != length or offsets[0] != 0 or offsets[-1] != last:
            raise ValueError(f"the {name} do not fit what they are made of")
        if (np.diff(offsets) < (1 if name == "polygons" else 5)).any():
            raise ValueError(f"one of the {name} is too short")
    if (points[rings[:-1]] != points[rings[1:] - 1]).any():
        raise ValueError("one of the rings is not closed")
    if not count:
        return
    # Twice the area that each step of an outline sweeps: together they give each piece's pixels.
    x, y = points.astype(np.int64).T
    sweep = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    sweep[rings[1:] - 1] = 0
    if (np.add.reduceat(sweep, rings[polygons[:-1]]) != 2 * ints["pixels"]).any():
        raise ValueError("a polygon does not have the area of its pixels")


@dataclass
class _Open:
    """An object that a later block may add to."""

    index: int
    pixels: int
    total: float
    shapes: list[Any]
    members: list[int]
    waiting: int = 0  # sides of pixels whose neighbours have not come


class Joiner:
    """Joins the pieces of blocks that come in row-major order.

    What no later block can touch is handed out at once. What is kept are the objects that reach
    the edge of what has come, and one number for each column.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._row = self._column = self._tall = 0
        self._next = 0
        self._below = np.full(width, -1, dtype=np.int64)
        self._right = np.empty(0, dtype=np.int64)
        self._open: dict[int, _Open] = {}
        self._owner: dict[int, int] = {}

    def add(self, pieces: Pieces) -> Objects:
        """Take the next block; return the objects that are finished by now.

        Raises:
            DataError: Another block is next.
        """
        window = pieces.window
        self._expect(window)
        above = self._below[window.column : window.column + window.width].copy()
        before = self._right if window.column else np.full(window.height, -1, dtype=np.int64)
        top, bottom, left, right = (
            np.where(side >= 0, side + self._next, -1)
            for side in (pieces.top, pieces.bottom, pieces.left, pieces.right)
        )
        if window.row + window.height == self._height:
            bottom[:] = -1
        if window.column + window.width == self._width:
            right[:] = -1
        linked = top[above >= 0], left[before >= 0], bottom, right
        touching = np.setdiff1d(np.concatenate(linked), [-1])
        self._register(pieces, touching)
        self._wait(bottom, 1)
        self._wait(right, 1)
        for one, other in ((above, top), (before, left)):
            facing = (one >= 0) & (other >= 0)
            for pair in set(zip(one[facing].tolist(), other[facing].tolist(), strict=True)):
                self._link(*pair)
        self._wait(above, -1)
        self._wait(before, -1)
        self._below[window.column : window.column + window.width] = bottom
        self._right = right
        done = self._take(np.concatenate([above, before, touching]))
        alone = np.ones(len(pieces.shapes), dtype=np.bool_)
        alone[touching - self._next] = False
        self._next += len(pieces.shapes)
        return _objects(
            np.concatenate([pieces.shapes[alone], _joined([found.shapes for found in done])]),
            [*pieces.classes[alone].tolist(), *(found.index for found in done)],
            [*pieces.pixels[alone].tolist(), *(found.pixels for found in done)],
            [*pieces.sums[alone].tolist(), *(found.total for found in done)],
        )

    def finish(self) -> Objects:
        """Return what is left, which is nothing; raises `DataError` where blocks are missing."""
        if self._row < self._height:
            raise DataError(
                f"the block at row {self._row}, column {self._column} of a scene of "
                f"{self._height}×{self._width} pixels is missing. Predict the rest first."
            )
        return _objects(_joined([]), [], [], [])

    def _expect(self, window: Window) -> None:
        """Check that a block is the next one, and go on to the one after."""
        row, column, width = self._row, self._column, window.width
        fits = 0 < width <= self._width - column and 0 < window.height <= self._height - row
        same = column == 0 or window.height == self._tall
        if (window.row, window.column) != (row, column) or not (fits and same):
            raise DataError(
                f"a block of {window.height}×{width} pixels at row {window.row}, column "
                f"{window.column} came where one at row {row}, column {column} of a scene of "
                f"{self._height}×{self._width} pixels is next. Blocks come row by row, all of them."
            )
        self._tall, self._column = window.height, column + width
        if self._column == self._width:
            self._row, self._column = row + window.height, 0

    def _register(self, pieces: Pieces, touching: Numbers) -> None:
        for name in touching.tolist():
            number = name - self._next
            self._owner[name] = name
            self._open[name] = _Open(
                int(pieces.classes[number]),
                int(pieces.pixels[number]),
                float(pieces.sums[number]),
                [pieces.shapes[number]],
                [name],
            )

    def _wait(self, names: Numbers, step: int) -> None:
        found, times = np.unique(names[names >= 0], return_counts=True)
        for name, many in zip(found.tolist(), times.tolist(), strict=True):
            self._open[self._owner[name]].waiting += step * many

    def _link(self, one: int, other: int) -> None:
        """Make one object of two that share a side, where they are of the same class."""
        large, small = self._owner[one], self._owner[other]
        if large == small or self._open[large].index != self._open[small].index:
            return
        if len(self._open[large].members) < len(self._open[small].members):
            large, small = small, large
        kept, gone = self._open[large], self._open.pop(small)
        kept.pixels += gone.pixels
        kept.total += gone.total
        kept.waiting += gone.waiting
        kept.shapes += gone.shapes
        kept.members += gone.members
        self._owner.update(dict.fromkeys(gone.members, large))

    def _take(self, names: Numbers) -> list[_Open]:
        """Take out the objects among these that wait for nothing."""
        roots = {self._owner[name] for name in np.unique(names[names >= 0]).tolist()}
        done = [self._open.pop(root) for root in sorted(roots) if not self._open[root].waiting]
        for found in done:
            for name in found.members:
                del self._owner[name]
        return done


def _objects(shapes: Shapes, classes: list[int], pixels: list[int], sums: list[float]) -> Objects:
    """Put objects into the order of their first pixels."""
    points, rings, polygons = to_rings(shapes)
    keys = points[rings[polygons[:-1]]][:, ::-1].astype(np.int64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    counts = np.array(pixels, dtype=np.int64)
    means = np.array(sums, dtype=np.float64) / counts
    named = np.array(classes, dtype=np.int64)
    return Objects(shapes[order], named[order], counts[order], means[order], keys[order])


def _joined(groups: list[list[Any]]) -> Shapes:
    """Return one polygon for each group of pieces that do not overlap."""
    shapes = np.array([shape for group in groups for shape in group], dtype=np.object_)
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    piece, *places = corners_of(shapes)
    return trace(group_of[piece], *places)
