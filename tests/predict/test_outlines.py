"""Outlines of objects on the map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import features
from scipy import ndimage
from shapely import affinity

from whatwhere.errors import UsageError
from whatwhere.grid import Grid
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes
from whatwhere.predict.outlines import SIMPLIFY_PX, make_square, outline, simplify
from whatwhere.predict.polygons import Joiner, Objects, find_pieces
from whatwhere.types import Window

SIDE = 200
UTM = "EPSG:32633"


def burn(shape: Any) -> NDArray[np.bool_]:
    """The pixels whose centres are inside."""
    burnt = features.rasterize([(shape, 1)], out_shape=(SIDE, SIDE), dtype="uint8")
    return np.asarray(burnt, dtype=np.bool_)


def objects_in(mask: NDArray[Any]) -> Objects:
    joiner = Joiner(*mask.shape)
    half = np.full(mask.shape, 0.5, dtype=np.float32)
    window = Window(0, 0, mask.shape[0], mask.shape[1])
    return joiner.add(find_pieces(mask.astype(np.int64), [1], half, window))


def stairs(truth: Any) -> Any:
    """The largest object of a shape's pixels, along their sides."""
    found = objects_in(burn(truth))
    return found.shapes[np.argmax(found.pixels)]


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def alike(one: Any, other: Any) -> float:
    return float(one.intersection(other).area / one.union(other).area)


def made(kind: str, a: float, b: float, angle: float, x: float, y: float) -> Any:
    """A shape whose sides are `a`, `b` or longer, turned about the middle of the picture."""
    if kind == "ellipse":
        shape = affinity.scale(shapely.Point(0, 0).buffer(1, quad_segs=64), a / 2, b / 2)
    elif kind == "L":
        shape = shapely.union(shapely.box(0, 0, a + 24, b), shapely.box(0, 0, a, b + 30))
    else:
        shape = shapely.box(0, 0, a, b)
    if kind == "yard":
        shape = shapely.box(-22, -25, a + 21, b + 23).difference(shape)
    middle = shape.centroid
    shape = affinity.translate(shape, SIDE / 2 + x - middle.x, SIDE / 2 + y - middle.y)
    return affinity.rotate(shape, angle, origin="centroid")


sizes = st.floats(21, 60)
larger = st.floats(30, 60)  # half a pixel of an axis is 7 % of a square of 30
angles = st.one_of(st.floats(0, 180), st.sampled_from([0.0, 45.0, 90.0, 1.0]))
shifts = st.floats(-0.5, 0.5)
kinds = st.sampled_from(["rectangle", "L", "ellipse", "yard"])


@settings(max_examples=120, deadline=None)
@given(kinds, sizes, sizes, angles, shifts, shifts)
@example("ellipse", 21.0, 21.0, 0.0, 0.0, 0.0)
@example("ellipse", 58.0, 58.0, 0.0, 0.0, 0.0)  # at its full tolerance too many pixels change
@example("rectangle", 21.0, 21.0, 45.0, 0.1, 0.2)
def test_straight_outlines_hold_the_same_pixels(
    kind: str, a: float, b: float, angle: float, x: float, y: float
) -> None:
    stair = stairs(made(kind, a, b, angle, x, y))
    (found,) = simplify(np.array([stair]), SIMPLIFY_PX)
    assert found.is_valid and len(found.interiors) == len(stair.interiors)
    assert overlap(burn(found), burn(stair)) >= 0.99
    most = 40 if kind == "ellipse" else 34
    assert shapely.get_num_coordinates(found) <= most


def test_straight_outlines_are_nearer_to_the_truth_with_fewer_points() -> None:
    rng = np.random.default_rng(8)
    before, after, points = [], [], []
    for kind in ("rectangle", "L", "yard"):
        for _ in range(20):
            a, b = rng.uniform(21, 60, 2)
            truth = made(kind, a, b, rng.uniform(0, 90), rng.random(), rng.random())
            stair = stairs(truth)
            (found,) = simplify(np.array([stair]), SIMPLIFY_PX)
            before.append(alike(stair, truth))
            after.append(alike(found, truth))
            points.append(shapely.get_num_coordinates([stair, found]))
    assert 1 - np.mean(after) < 0.4 * (1 - np.mean(before))
    assert np.divide(*np.sum(points, axis=0)) > 15


def test_no_tolerance_keeps_the_stairs_and_true_corners_stay() -> None:
    stair = np.array([stairs(made("ellipse", 30, 40, 20, 0, 0))])
    assert shapely.equals_exact(simplify(stair, 0), stair).all()
    box = np.array([shapely.box(2, 3, 30, 40), shapely.box(5, 5, 6, 6), shapely.box(5, 5, 9, 6)])
    pixels = objects_in(np.add.reduce([burn(each) for each in box[:1]])).shapes
    assert shapely.equals(simplify(pixels, SIMPLIFY_PX), box[:1]).all()
    for small in box[1:]:
        assert simplify(objects_in(burn(small)).shapes, SIMPLIFY_PX)[0].equals(small)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2.5), st.floats(0.35, 0.7))
def test_objects_of_any_form_stay_valid_and_keep_holes_and_pixels(
    seed: int, sigma: float, share: float
) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((60, 60)), sigma)
    stair = objects_in(noise > np.quantile(noise, share)).shapes
    fine, coarse = simplify(stair, SIMPLIFY_PX), simplify(stair, 3)
    for found in (fine, coarse):
        assert shapely.is_valid(found).all() and (shapely.area(found) > 0).all()
        holes = shapely.get_num_interior_rings(found)
        assert (holes == shapely.get_num_interior_rings(stair)).all()
    for one, other in zip(fine, stair, strict=True):
        assert (burn(one) ^ burn(other)).sum() <= max(4, 0.02 * other.area)


def test_many_objects_are_straightened_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    stair = objects_in(ndimage.gaussian_filter(rng.random((90, 90)), 2) > 0.5).shapes
    together = simplify(stair, SIMPLIFY_PX)
    monkeypatch.setattr("whatwhere.predict.outlines._AT_ONCE", 50)
    assert len(stair) > 5
    assert shapely.equals_exact(simplify(stair, SIMPLIFY_PX), together).all()


def right_angles(polygon: Any) -> float:
    """The largest cosine between sides that meet."""
    worst = 0.0
    for ring in (polygon.exterior, *polygon.interiors):
        points = np.array(ring.coords)[:-1]
        sides = np.roll(points, -1, axis=0) - points
        sides /= np.hypot(*sides.T)[:, None]
        worst = max(worst, float(np.abs((sides * np.roll(sides, 1, axis=0)).sum(axis=1)).max()))
    return worst


FLAT = np.eye(2)[None]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["rectangle", "L", "yard"]), larger, larger, angles, shifts, shifts)
def test_buildings_get_right_angles(
    kind: str, a: float, b: float, angle: float, x: float, y: float
) -> None:
    truth = made(kind, a, b, angle, x, y)
    (found,) = make_square(simplify(np.array([stairs(truth)]), SIMPLIFY_PX), FLAT)
    assert found.is_valid and right_angles(found) < 1e-6
    assert found.area == pytest.approx(truth.area, rel=0.05)
    assert alike(found, truth) >= 0.93
    corners = {"rectangle": 5, "L": 7, "yard": 10}[kind]
    assert shapely.get_num_coordinates(found) == corners


@pytest.mark.parametrize(("a", "b"), [(20, 20), (50, 50), (55, 25)])
def test_round_shapes_are_not_squared(a: float, b: float) -> None:
    plain = simplify(np.array([stairs(made("ellipse", a, b, 30, 0.2, 0.3))]), SIMPLIFY_PX)
    assert shapely.equals_exact(make_square(plain, FLAT), plain).all()


def test_jogs_are_evened_out_and_what_loses_its_form_is_kept() -> None:
    jogged = shapely.Polygon([(0, 0), (20, 0), (20, 1.5), (40, 1.5), (40, 30), (0, 30)])
    bitten = shapely.box(0, 0, 40, 30).difference(shapely.box(15, 0, 17, 4))
    cross = shapely.union(shapely.box(0, 28, 30, 30), shapely.box(28, 0, 30, 30))  # 2 px wide
    triangle = shapely.Polygon([(0, 0), (40, 0), (0, 40)])
    shapes = np.array([jogged, bitten, cross, triangle])
    found = make_square(shapes, np.tile(np.eye(2), (4, 1, 1)))
    assert shapely.get_num_coordinates(found[:2]).tolist() == [5, 5]
    assert alike(found[0], jogged) > 0.97 and alike(found[1], bitten) > 0.97
    assert shapely.equals_exact(found[2:], shapes[2:]).all()


def test_polygons_lie_on_the_map() -> None:
    mask = np.zeros((50, 60), dtype=np.int64)
    mask[10:20, 5:35] = 1
    mask[12:14, 8:10] = mask[13:18, 20:30] = 0
    mask[40, 40] = 1
    grid = Grid(UTM, Affine(2, 0, 500_000, 0, -2, 5_600_000), 50, 60)
    shapes, columns = outline(objects_in(mask), grid, min_area_m2=17)
    (shape,) = shapes  # the single pixel, 4 m², is left out, and the hole of 16 m² filled
    assert shape.bounds == (500_010, 5_599_960, 500_070, 5_599_980)
    assert len(shape.interiors) == 1 and shapely.Polygon(shape.interiors[0]).area == 200
    assert shape.exterior.is_ccw and not shape.interiors[0].is_ccw
    assert columns["area_m2"] == pytest.approx([1000], rel=1e-3)
    assert columns["pixels"].tolist() == [246] and columns["class_index"].tolist() == [1]
    assert columns["probability"].tolist() == [0.5]
    every, columns = outline(objects_in(mask), grid, simplify_px=0)
    assert shapely.area(every).tolist() == [984, 4]
    assert columns["area_m2"] == pytest.approx([984, 4], rel=1e-3)
    none, columns = outline(objects_in(mask), grid, square=True, min_area_m2=1e6)
    assert len(none) == len(columns["area_m2"]) == len(columns["pixels"]) == 0
    empty, columns = outline(objects_in(mask * 0), grid, square=True)
    assert len(empty) == len(columns["probability"]) == 0


def test_stairs_can_be_squared_and_stay_where_that_fails() -> None:
    grid = Grid("", Affine.identity(), SIDE, SIDE)
    house, pond = (made(kind, 50, 30, 40, 0, 0) for kind in ("rectangle", "ellipse"))
    (found,), _ = outline(objects_in(burn(house)), grid, simplify_px=0, square=True)
    assert shapely.get_num_coordinates(found) == 5 and right_angles(found) < 1e-6
    (found,), _ = outline(objects_in(burn(pond)), grid, simplify_px=0, square=True)
    assert found.equals(stairs(pond))


def test_right_angles_are_right_on_the_ground_in_degrees_too() -> None:
    """At 60° north a degree of longitude is half of one of latitude."""
    place = move_shapes(np.array([shapely.Point(15, 60)]), LONGITUDE_LATITUDE, UTM)[0]
    house = affinity.translate(affinity.rotate(shapely.box(-20, -12, 20, 12), 25), place.x, place.y)
    (truth,) = move_shapes(np.array([house]), UTM, LONGITUDE_LATITUDE)
    step = 1e-5
    corner = np.array([15 - SIDE / 2 * step, 60 + SIDE / 2 * step])
    way = Affine(step, 0, corner[0], 0, -step, corner[1])
    in_pixels = shapely.transform(truth, lambda points: (points - corner) / [step, -step])
    grid = Grid(LONGITUDE_LATITUDE, way, SIDE, SIDE)
    shapes, columns = outline(objects_in(burn(in_pixels)), grid, square=True)
    (found,) = move_shapes(shapes, LONGITUDE_LATITUDE, UTM)
    assert shapely.get_num_coordinates(found) == 5
    assert right_angles(found) < math.sin(math.radians(0.2))
    assert right_angles(shapes[0]) > math.sin(math.radians(10))
    assert alike(found, house) > 0.95
    assert columns["area_m2"] == pytest.approx([40 * 24], rel=0.03)


@pytest.mark.parametrize("name", ["simplify_px", "min_area_m2"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_numbers_below_zero_are_refused(name: str, value: float) -> None:
    grid = Grid("", Affine.identity(), 4, 4)
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=f"{name} is {value}: a number from 0 up is needed"):
        outline(objects_in(np.ones((4, 4))), grid, **arguments)
