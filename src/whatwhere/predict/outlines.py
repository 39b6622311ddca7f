"""Outlines of objects on the map: straight sides in place of the pixels' stairs, right angles."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from whatwhere.errors import UsageError
from whatwhere.grid import Grid
from whatwhere.io.crs import Shapes, areas_m2, parse_crs
from whatwhere.predict.polygons import Objects
from whatwhere.predict.rings import Numbers, from_rings, to_rings

SIMPLIFY_PX = 0.75
"""How far a straight side may pass by the middles of the stairs it replaces [px]."""

_AT_ONCE = 1 << 18  # points, so that the memory that is needed stays bounded
_CHANGED = 0.01  # of an object's pixels may change sides
_DIRECTED = 0.5  # of the length of an outline that must have one direction, to be squared
_ALIKE = 0.8  # the least intersection over union of a squared polygon with the one before
_BEND_PX, _BEND = 2.0, 0.07  # smaller bends have no say in it [px], [of the square root of area]
_JOG_PX = 3.0  # shorter sides are evened out when squaring
_PULL = 0.02  # of a vertex to its old place, where two sides fix their crossing to 1
_FARTHEST = 1.0  # that a vertex may move to where its sides cross [px]

Points = NDArray[np.float64]


def outline(
    objects: Objects,
    grid: Grid,
    *,
    simplify_px: float = SIMPLIFY_PX,
    square: bool = False,
    min_area_m2: float = 0.0,
) -> tuple[Shapes, dict[str, NDArray[Any]]]:
    """Turn objects into polygons on the map.

    Args:
        objects: As `Joiner` gives them.
        grid: Where the scene lies; without a coordinate system areas are in its units.
        simplify_px: How much stairs are straightened, see `simplify` [px]; 0 keeps them.
        square: Whether polygons get right angles, see `make_square`.
        min_area_m2: Smaller polygons are left out, smaller holes filled [m² on the ground].

    Returns:
        `(N,)` valid polygons in the grid's coordinates, outer rings counter-clockwise, in the order
        of the objects; and columns of `(N,)`: `class_index`, `area_m2` of the polygon,
        `probability`, `pixels`, and `row` and `column` of the first pixel of the object.

    Raises:
        UsageError: A number is negative or not finite.
    """
    for name, value in (("simplify_px", simplify_px), ("min_area_m2", min_area_m2)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value}: a number from 0 up is needed.")
    shapes = simplify(objects.shapes, simplify_px)
    if square:
        straight = shapes if simplify_px else simplify(shapes, SIMPLIFY_PX)
        squared = make_square(straight, _planes(shapes, grid))
        shapes = np.where(shapely.equals_exact(squared, straight), shapes, squared)
    shapes = shapely.transform(shapes, lambda points: _placed(points, grid))
    shapes = _filled(shapes, grid.crs, min_area_m2)
    areas = areas_m2(shapes, grid.crs)
    kept = ~(areas < min_area_m2)
    columns = {
        "class_index": objects.classes[kept],
        "area_m2": areas[kept],
        "probability": objects.probability[kept],
        "pixels": objects.pixels[kept],
        "row": objects.keys[kept, 0],
        "column": objects.keys[kept, 1],
    }
    return shapely.reverse(shapely.normalize(shapes[kept])), columns


def _placed(points: Points, grid: Grid) -> Points:
    """Return points `(N, 2)` of (column, row) as (x, y) on the map."""
    way = grid.transform
    xs = way.a * points[:, 0] + way.b * points[:, 1] + way.c
    return np.column_stack([xs, way.d * points[:, 0] + way.e * points[:, 1] + way.f])


def _planes(shapes: Shapes, grid: Grid) -> Points:
    """Return for each polygon `(2, 2)` from pixels to a plane in which ground angles are true."""
    way = grid.transform
    planes = np.tile([[way.a, way.b], [way.d, way.e]], (len(shapes), 1, 1))
    if grid.crs and parse_crs(grid.crs).is_geographic:  # a degree of longitude is the shorter one
        middles = shapely.get_coordinates(shapely.centroid(shapes))
        latitudes = _placed(middles, grid)[:, 1]
        planes[:, 0] *= np.cos(np.radians(np.clip(latitudes, -89, 89)))[:, None]
    scales = np.sqrt(np.abs(np.linalg.det(planes)))
    scaled: Points = planes / scales[:, None, None]
    return scaled


def _filled(shapes: Shapes, crs: str, least: float) -> Shapes:
    """Fill the holes whose area on the ground is below `least` [m²]."""
    points, rings, polygons = to_rings(shapes)
    holes = np.setdiff1d(np.arange(len(rings) - 1), polygons[:-1])
    if not least or not len(holes):
        return shapes
    alone = from_rings(points, rings, np.arange(len(rings)))[holes]
    gone = np.zeros(len(rings) - 1, dtype=np.bool_)
    gone[holes[areas_m2(alone, crs) < least]] = True
    lengths = np.diff(rings)
    kept_rings = np.append(0, np.cumsum(lengths[~gone]))
    kept_polygons = polygons - np.append(0, np.cumsum(gone))[polygons]
    return from_rings(points[~np.repeat(gone, lengths)], kept_rings, kept_polygons)


def simplify(shapes: Shapes, tolerance: float) -> Shapes:
    """Turn the stairs of pixels into straight sides; the result is valid and keeps every hole.

    The stairs are cut through their middles, so that true corners stay and no pixel's centre
    changes sides; Douglas and Peucker's algorithm ("Algorithms for the Reduction of the Number of
    Points", 1973) finds the sides; each side is laid through its part of the outline by least
    squares, and each vertex put to where its two sides cross. Where so many pixels along the
    stairs would change sides that they are more than two and more than 1 in 100 of the object's,
    three quarters of the tolerance are tried, then a half, a quarter, and none.

    Args:
        shapes: `(N,)` polygons as `Joiner` gives them.
        tolerance: How far a side may pass by the middles of the stairs [px]; 0 keeps the stairs.
            Above `SIMPLIFY_PX` the pixels that change sides are not counted.
    """
    found = shapes.copy()
    if tolerance == 0:
        return found
    sizes = np.cumsum(shapely.get_num_coordinates(shapes)) // _AT_ONCE
    for part in np.split(np.arange(len(shapes)), np.flatnonzero(np.diff(sizes)) + 1):
        todo = part
        for share in (1, 0.75, 0.5, 0.25, 0):
            if not len(todo):
                break
            found[todo] = _straight(shapes[todo], tolerance * share)
            good = shapely.is_valid(found[todo])
            if tolerance <= SIMPLIFY_PX:
                allowed = np.maximum(2, _CHANGED * shapely.area(shapes[todo]))
                good &= _changed(found[todo], shapes[todo]) <= allowed
            todo = todo[~good]
        found[todo] = shapes[todo]
    return found


def _straight(shapes: Shapes, tolerance: float) -> Shapes:
    stairs, rings, polygons = to_rings(shapes)
    points, starts = _middles(*_open(stairs, rings))
    points = _turned(points, starts)
    kept, kept_starts = _reduced(points, starts, tolerance)
    return _closed(_refitted(points, starts, kept, kept_starts), kept_starts, polygons)


def _changed(outlines: Shapes, shapes: Shapes) -> Numbers:
    """Return for each object how many pixels along its stairs have changed sides."""
    stairs, rings, polygons = to_rings(shapes)
    points, starts = _open(stairs, rings)
    spans = points[_after(starts)] - points
    lengths = np.abs(spans).sum(axis=1).astype(np.int64)
    side = np.repeat(np.arange(len(points)), lengths)
    ways = (spans / lengths[:, None])[side]
    steps = np.arange(len(side)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    middles = points[side] + ways * (steps + 0.5)[:, None]
    inward = np.column_stack([-ways[:, 1], ways[:, 0]]) / 2  # as `trace` lays rings
    owner = np.repeat(np.arange(len(shapes)), np.diff(starts[polygons]))[side]
    shapely.prepare(outlines)
    changed = []
    for pixels, is_in in ((middles + inward, True), (middles - inward, False)):
        inside = shapely.intersects_xy(outlines[owner], pixels[:, 0], pixels[:, 1])
        places = np.column_stack([owner, *pixels.T])[inside != is_in]
        changed.append(np.unique(places, axis=0)[:, 0].astype(np.int64))
    return np.bincount(np.concatenate(changed), minlength=len(shapes))


def _open(points: Points, rings: Numbers) -> tuple[Points, Numbers]:
    """Take the last point of each ring away, which is the first one again."""
    kept = np.ones(len(points), dtype=np.bool_)
    kept[rings[1:] - 1] = False
    return points[kept], rings - np.arange(len(rings))


def _closed(points: Points, starts: Numbers, polygons: Numbers) -> Shapes:
    """Return polygons of rings without their last points."""
    rings = starts + np.arange(len(starts))
    return from_rings(np.insert(points, starts[1:], points[starts[:-1]], axis=0), rings, polygons)


def _after(starts: Numbers) -> Numbers:
    """Return the place of the point after each point of rings."""
    after = np.arange(1, starts[-1] + 1)
    after[starts[1:] - 1] = starts[:-1]
    return after


def _middles(points: Points, starts: Numbers) -> tuple[Points, Numbers]:
    """Cut the steps off: a corner beside a step gives way to the middles of its two sides.

    A step is a side of one pixel between a turn to the left and one to the right.
    """
    after = _after(starts)
    before = np.argsort(after)
    sides = points[after] - points
    come = sides[before]
    turns = come[:, 0] * sides[:, 1] > come[:, 1] * sides[:, 0]
    steps = (np.abs(sides).sum(axis=1) == 1) & (turns != turns[after])
    soft = steps | steps[before]
    both = np.stack([points, (points + points[after]) / 2], axis=1)
    used = np.stack([~soft, soft | soft[after]], axis=1)
    counts = np.add.reduceat(used.sum(axis=1), starts[:-1])
    return both[used], np.append(0, np.cumsum(counts))


def _turned(points: Points, starts: Numbers) -> Points:
    """Let each ring start at the point that is farthest from its middle: it is a corner."""
    counts = np.diff(starts)
    low, high = (way.reduceat(points, starts[:-1], axis=0) for way in (np.minimum, np.maximum))
    away = np.square(points - np.repeat((low + high) / 2, counts, axis=0)).sum(axis=1)
    ring = np.repeat(np.arange(len(counts)), counts)
    farthest = np.lexsort((-away, ring))[starts[:-1]] - starts[:-1]
    place = np.arange(len(points)) - starts[ring] + farthest[ring]
    turned: Points = points[starts[ring] + place % counts[ring]]
    return turned


def _reduced(points: Points, starts: Numbers, tolerance: float) -> tuple[Numbers, Numbers]:
    """Return the places of the points that stay, each ring's first among them, and ring starts."""
    counts = np.diff(starts)
    ring = np.repeat(np.arange(len(counts)), counts)
    numbered = np.column_stack([points, np.arange(len(points))])  # heights are carried along
    chained = np.insert(numbered, starts[1:], numbered[starts[:-1]], axis=0)
    lines = shapely.linestrings(chained, indices=np.repeat(np.arange(len(counts)), counts + 1))
    left = shapely.get_coordinates(
        shapely.simplify(lines, tolerance, preserve_topology=False), include_z=True
    )
    stays = np.zeros(len(points), dtype=np.bool_)
    stays[left[:, 2].astype(np.int64)] = True
    stays |= (np.add.reduceat(stays, starts[:-1], dtype=np.int64) < 3)[ring]
    return np.flatnonzero(stays), np.append(0, np.cumsum(np.bincount(ring[stays])))


def _refitted(points: Points, starts: Numbers, kept: Numbers, kept_starts: Numbers) -> Points:
    """Return the kept points, each moved to where the lines through its two sides cross.

    A side's line has the least squares of distances to the outline between its ends.
    """
    bases = points[kept]
    side = np.repeat(np.arange(len(kept)), np.diff(kept, append=len(points)))
    one, other = points - bases[side], points[_after(starts)] - bases[side]
    middles, spans = (one + other) / 2, other - one
    weights = np.hypot(spans[:, 0], spans[:, 1])
    total = np.add.reduceat(weights, kept)
    means = np.add.reduceat(weights[:, None] * middles, kept, axis=0) / total[:, None]
    away = middles - means[side]
    xx, yy, xy = (
        np.add.reduceat(weights * (away[:, i] * away[:, j] + spans[:, i] * spans[:, j] / 12), kept)
        for i, j in ((0, 0), (1, 1), (0, 1))
    )
    angles = np.arctan2(2 * xy, xx - yy) / 2
    normals = np.column_stack([-np.sin(angles), np.cos(angles)])
    before = np.argsort(_after(kept_starts))
    # Least squares again, so that sides in almost one line do not send their vertex far away.
    matrix = np.tile(_PULL * np.eye(2), (len(kept), 1, 1))
    target = np.zeros((len(kept), 2))
    for sides in (np.arange(len(kept)), before):
        normal = normals[sides]
        gap = (normal * (means[sides] + bases[sides] - bases)).sum(axis=1)
        matrix += normal[:, :, None] * normal[:, None, :]
        target += normal * gap[:, None]
    moves = np.linalg.solve(matrix, target[:, :, None])[:, :, 0]
    far = np.hypot(moves[:, 0], moves[:, 1]) > _FARTHEST
    return np.round(bases + np.where(far[:, None], 0, moves), 6)  # whole numbers stay whole


def make_square(shapes: Shapes, planes: Points) -> Shapes:
    """Give polygons right angles, as buildings have them.

    The sides are turned by the outline's main direction, each is laid along the nearer axis,
    neighbours on one axis become one side, and sides shorter than 3 pixels are evened out. A
    polygon stays as it is where its sides have no main direction, as a circle's, or where less
    than 0.8 of it and the squared one together is common to both.

    Args:
        shapes: `(N,)` polygons with straight sides, in pixels.
        planes: `(N, 2, 2)` from pixels, for each polygon, to a plane where right angles are right
            ones on the ground, of about a pixel's scale.
    """
    points, rings, polygons = to_rings(shapes)
    owner = np.repeat(np.arange(len(shapes)), np.diff(rings[polygons]))
    flat = np.einsum("nij,nj->ni", planes[owner], points)
    turns = _turns(from_rings(flat, rings, polygons))
    backs = np.linalg.inv(planes)
    found = shapes.copy()
    for i in np.flatnonzero(np.abs(turns) > 0):
        turn = np.array([[turns[i].real, turns[i].imag], [-turns[i].imag, turns[i].real]])
        back = (backs[i] @ turn.T).T
        ends = rings[polygons[i] : polygons[i + 1] + 1]
        sides = [_squared(flat[a : b - 1] @ turn.T) for a, b in pairwise(ends)]
        if all(len(ring) for ring in sides):
            found[i] = shapely.Polygon(sides[0] @ back, [ring @ back for ring in sides[1:]])
    bad = ~shapely.is_valid(found)
    found[bad] = shapes[bad]
    common = shapely.area(shapely.intersection(found, shapes))
    both = shapely.area(found) + shapely.area(shapes) - common
    return np.where(common >= _ALIKE * both, found, shapes)


def _turns(shapes: Shapes) -> NDArray[np.complex128]:
    """Return for each polygon its main direction, a number of length 1; 0 where it has none.

    Directions count modulo a quarter turn: four times the angle is averaged. An outline without
    its small bends tells whether there is one and about where, the sides near it tell it exactly.
    """
    bends = np.minimum(_BEND_PX, _BEND * np.sqrt(shapely.area(shapes)))
    ways, owner = _ways(shapely.simplify(shapes, bends))
    lengths = np.abs(ways)
    share = np.abs(_summed(ways**4 / lengths**3, owner)) / np.bincount(owner, lengths)
    rough = _summed(ways**4 / lengths**2, owner)  # long sides count twice over
    ways, owner = _ways(shapes)
    fine = ways**4 / np.abs(ways) ** 2
    near = np.abs(np.angle(fine * rough[owner].conj())) < math.pi / 3
    main = np.angle(rough + _summed(near * fine, owner)) / 4
    turns: NDArray[np.complex128] = np.where(share >= _DIRECTED, np.exp(1j * main), 0)
    return turns


def _ways(shapes: Shapes) -> tuple[NDArray[np.complex128], Numbers]:
    """Return the sides of polygons as x + iy, and the polygon of each."""
    points, rings, polygons = to_rings(shapes)
    points, starts = _open(points, rings)
    spans = points[_after(starts)] - points
    ways: NDArray[np.complex128] = spans[:, 0] + 1j * spans[:, 1]
    real = ways != 0
    return ways[real], np.repeat(np.arange(len(shapes)), np.diff(starts[polygons]))[real]


def _summed(values: NDArray[np.complex128], owner: Numbers) -> NDArray[np.complex128]:
    real, imaginary = np.bincount(owner, values.real), np.bincount(owner, values.imag)
    total: NDArray[np.complex128] = real + 1j * imaginary
    return total


def _squared(points: Points) -> Points:
    """Return a ring of right angles for one whose main direction is an axis; empty for none.

    Args:
        points: `(N, 2)` without the first one again at the end.
    """
    spans = np.roll(points, -1, axis=0) - points
    middles = points + spans / 2
    flat = np.abs(spans[:, 0]) >= np.abs(spans[:, 1])
    (changes,) = np.nonzero(flat != np.roll(flat, 1))
    if len(changes) < 4:
        return np.empty((0, 2))
    order = np.roll(np.arange(len(points)), -changes[0])
    # A side counts by its length, less the more it leans: cut corners do not pull.
    squares = np.square(spans)
    weights = np.abs(squares[:, 0] - squares[:, 1]) / np.sqrt(squares.sum(axis=1)) + 1e-9
    across = np.where(flat, middles[:, 1], middles[:, 0])
    firsts = changes - changes[0]
    total = np.add.reduceat(weights[order], firsts)
    places = (np.add.reduceat((weights * across)[order], firsts) / total).tolist()
    sides = list(zip(places, total.tolist(), strict=True))
    is_flat = bool(flat[changes[0]])
    while len(sides) > 4:
        lengths = [abs(sides[k - 2][0] - sides[k][0]) for k in range(len(sides))]  # of k - 1
        least = min(range(len(sides)), key=lengths.__getitem__)
        if lengths[least] >= _JOG_PX:
            break
        start = (least - 2) % len(sides)
        is_flat ^= start % 2 == 1
        (one, first), _, (other, last), *rest = sides[start:] + sides[:start]
        sides = [((one * first + other * last) / (first + last), first + last), *rest]
    ring = [(place, sides[k - 1][0]) for k, (place, _) in enumerate(sides)]
    return np.array(
        [(b, a) if is_flat == (k % 2 == 0) else (a, b) for k, (a, b) in enumerate(ring)]
    )
