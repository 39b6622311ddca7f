"""Polygons along the sides of pixels: from numbered pixels, and from polygons that adjoin."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from whatwhere.io.crs import Shapes

Numbers: TypeAlias = NDArray[np.int64]


def number_pixels(values: NDArray[Any]) -> tuple[Numbers, Numbers, Numbers]:
    """Number the connected pieces of equal values that are not negative.

    The rows are cut into runs of equal values, and runs that lie on each other are connected.

    Returns:
        `(H, W)` the run of each pixel, `(R,)` the flat place of each run's first pixel, and `(R,)`
        the piece of each run, -1 for none; pieces are in the order of their first pixels.
    """
    from scipy import sparse

    starts = np.ones(values.shape, dtype=np.bool_)
    np.not_equal(values[:, 1:], values[:, :-1], out=starts[:, 1:])
    first = np.flatnonzero(starts)
    run_of = (np.cumsum(starts.ravel(), dtype=np.int64) - 1).reshape(values.shape)
    # Two runs lie on each other from where one of them starts.
    on = (values[1:] == values[:-1]) & (values[1:] >= 0) & (starts[1:] | starts[:-1])
    pairs = (np.ones(int(on.sum()), dtype=np.bool_), (run_of[:-1][on], run_of[1:][on]))
    graph = sparse.coo_array(pairs, shape=(len(first), len(first)))
    _, groups = sparse.csgraph.connected_components(graph, directed=False)
    number_of = np.full(len(first), -1, dtype=np.int64)
    kept = values.ravel()[first] >= 0
    _, where, inverse = np.unique(groups[kept], return_index=True, return_inverse=True)
    number_of[kept] = np.argsort(np.argsort(where))[inverse]
    return run_of, first, number_of


def corners_in(numbers: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return the corners of numbered pieces: piece, row, column, and +1 or -1.

    A point where four pixels meet counts for each of them, +1 for the upper left and lower right
    one, -1 for the others: the second difference of the piece's mask.
    """
    padded = np.pad(numbers, 1, constant_values=-1)
    beside = padded[:, 1:] != padded[:, :-1]
    under = padded[1:] != padded[:-1]
    turning = (beside[1:] | beside[:-1]) & (under[:, 1:] | under[:, :-1])
    rows, columns = np.nonzero(turning)
    four = [padded[rows + i, columns + j] for i in (0, 1) for j in (0, 1)]
    upper, lower = four[0] != four[1], four[2] != four[3]
    left, right = four[0] != four[2], four[1] != four[3]
    # Two neighbours of one piece cancel: beside each other first, then what is left of them.
    alone = [upper & (side | ~lower) for side in (left, right)]
    alone += [lower & (side | ~upper) for side in (left, right)]
    owners = np.concatenate(four)
    kept = np.concatenate(alone) & (owners >= 0)
    signs = np.repeat([1, -1, -1, 1], len(rows))
    return owners[kept], np.tile(rows, 4)[kept], np.tile(columns, 4)[kept], signs[kept]


def corners_of(shapes: Shapes) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return the corners of polygons that `trace` made: polygon, row, column, and +1 or -1."""
    points, rings, polygons = to_rings(shapes)
    owner = np.repeat(np.arange(len(shapes)), np.diff(rings[polygons]))
    # A horizontal side goes from a corner of +1 to one of -1.
    signs = np.where(points[:, 1] == np.roll(points[:, 1], -1), 1, -1)
    kept = np.ones(len(points), dtype=np.bool_)
    kept[rings[1:] - 1] = False
    columns, rows = points[kept].astype(np.int64).T
    return owner[kept], rows, columns, signs[kept]


def trace(owner: Numbers, rows: Numbers, columns: Numbers, signs: Numbers) -> Shapes:
    """Return the polygons that have these corners.

    The corners of disjoint masks add up to those of the mask together: at a seam they cancel. So
    the polygon of joined pieces comes out as if they had never been cut, without a vertex on a
    straight line.

    Args:
        owner: `(N,)` the polygon of each corner, from 0.
        rows: `(N,)`.
        columns: `(N,)`.
        signs: `(N,)` as `corners_in` gives them; corners may come several times.

    Returns:
        One polygon for each owner, outer ring first, each ring from its first corner, in the order
        of rows, along a horizontal side that has the inside below it.
    """
    if not len(owner):
        return np.empty(0, dtype=np.object_)
    order = np.lexsort((columns, rows, owner))
    owner, rows, columns, signs = (each[order] for each in (owner, rows, columns, signs))
    new = np.ones(len(owner), dtype=np.bool_)
    new[1:] = (np.diff(owner) != 0) | (np.diff(rows) != 0) | (np.diff(columns) != 0)
    total = np.add.reduceat(signs, np.flatnonzero(new))
    kept = np.repeat(np.flatnonzero(new), np.abs(total))
    signs = np.sign(np.repeat(total, np.abs(total)))
    owner, rows, columns = owner[kept], rows[kept], columns[kept]
    # Along a row, and along a column, corners are the ends of one side after the other. Where two
    # pixels of a polygon meet at a point alone, the sides are paired so that the two rings that
    # touch there pass by each other.
    down = np.lexsort((-signs * np.arange(len(signs)), rows, columns, owner))
    mate = np.empty(len(down), dtype=np.int64)
    mate[down] = down.reshape(-1, 2)[:, ::-1].ravel()
    sides = np.arange(len(signs)).reshape(-1, 2)
    sides[signs[::2] < 0] = sides[signs[::2] < 0, ::-1]
    chain, rings = _cycles((mate[sides[:, 1]] // 2).tolist())
    corners = sides[chain].ravel()
    offsets = 2 * np.append(rings, len(chain))
    ends = np.insert(corners, offsets[1:], corners[offsets[:-1]])
    offsets += np.arange(len(offsets))
    ring_owner = owner[ends[offsets[:-1]]]
    polygons = np.searchsorted(ring_owner, np.arange(owner[-1] + 2))
    points = np.column_stack([columns[ends], rows[ends]]).astype(np.float64)
    return from_rings(points, offsets, polygons)


def _cycles(following: list[int]) -> tuple[list[int], list[int]]:
    """Return the members of a permutation cycle by cycle, and where each cycle starts."""
    seen = bytearray(len(following))
    chain: list[int] = []
    starts = []
    for start in range(len(following)):
        if seen[start]:
            continue
        starts.append(len(chain))
        at = start
        while not seen[at]:
            seen[at] = 1
            chain.append(at)
            at = following[at]
    return chain, starts


def to_rings(shapes: Shapes) -> tuple[NDArray[np.float64], Numbers, Numbers]:
    """Return the points of polygons, where each ring starts, and where each polygon's rings do."""
    if not len(shapes):
        return np.empty((0, 2)), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    _, points, (rings, polygons) = shapely.to_ragged_array(shapes)
    return points, rings.astype(np.int64), polygons.astype(np.int64)


def from_rings(points: NDArray[np.float64], rings: Numbers, polygons: Numbers) -> Shapes:
    """Return the polygons that have these points, rings and polygons, as `to_rings` gives them."""
    if len(polygons) == 1:
        return np.empty(0, dtype=np.object_)
    kind = shapely.GeometryType.POLYGON
    shapes: Shapes = shapely.from_ragged_array(kind, points, (rings, polygons))
    return shapes
