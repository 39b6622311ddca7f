"""Points, shapes and areas in several coordinate systems."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray

from whatwhere.errors import DataError
from whatwhere.grid import Grid
from whatwhere.io.crs import (
    areas_m2,
    crs_name,
    is_on_ground,
    local_system,
    move_points,
    move_shapes,
    parse_crs,
    pixel_size_m,
    same_crs,
    to_wkt,
)

LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
RADIUS = 6378137.0  # of the sphere of EPSG:3857 [m]


def test_points_move_as_the_formula_says() -> None:
    """Spherical Mercator by the book (Snyder 1987, 7-1 and 7-2), longitude before latitude."""
    x, y = np.array([-115.2, 85.5]), np.array([36.1, -27.6])
    moved = move_points(x, y, "EPSG:4326", "EPSG:3857")
    assert moved[0] == pytest.approx(RADIUS * np.radians(x), abs=1e-3)
    assert moved[1] == pytest.approx(
        RADIUS * np.log(np.tan(np.pi / 4 + np.radians(y) / 2)), abs=1e-3
    )
    back = move_points(*moved, "EPSG:3857", "OGC:CRS84")
    assert back[0] == pytest.approx(x, abs=1e-9) and back[1] == pytest.approx(y, abs=1e-9)


def test_points_beyond_a_system_spoil_no_others() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-20, 20, 500), rng.uniform(-60, 60, 500)
    bad = rng.choice(500, 40, replace=False)
    expected = move_points(x, y, "EPSG:4326", "EPSG:3857")
    spoilt = y.copy()
    spoilt[bad] = rng.choice([95.0, -1e30, np.nan, np.inf], 40)
    moved = move_points(x, spoilt, "EPSG:4326", "EPSG:3857")
    good = np.delete(np.arange(500), bad)
    for found, wanted in zip(moved, expected, strict=True):
        assert not np.isfinite(found[bad]).any() and (found[good] == wanted[good]).all()
    mixed = move_points(np.array([15.0, -170.0, 16.0, 190.0]), np.full(4, 3.0), "EPSG:4326", LOCAL)
    assert not np.isfinite(mixed).any()


def test_points_that_a_projection_refuses_are_found_by_halves() -> None:
    x, y = np.full(9, 15.0), np.arange(9.0)
    x[4], y[4] = 1e11, 5.0  # turns that the projection of UTM refuses
    moved = move_points(x, y, "EPSG:4326", "EPSG:32633")
    assert np.isfinite(moved[0]).tolist() == [True] * 4 + [False] + [True] * 4
    assert np.delete(moved[0], 4) == pytest.approx(5e5, abs=1e-3)


def test_absurd_coordinates_take_no_time() -> None:
    start = time.perf_counter()
    x, y = move_points(np.array([1e30, 1e9]), np.array([1e30, 1e9]), "EPSG:3857", "EPSG:4326")
    assert not np.isfinite([x[0], y[0]]).any() and time.perf_counter() - start < 5


def test_shapes_that_cannot_be_moved_stay_shapes() -> None:
    shapes = np.array([shapely.box(0, 80, 1, 95), shapely.box(0, 0, 1, 1), shapely.Point(0, 95)])
    moved = move_shapes(shapes, "EPSG:4326", "EPSG:3857")
    assert [one.geom_type for one in moved] == ["Polygon", "Polygon", "Point"]
    assert np.isfinite(shapely.get_coordinates(moved[1])).all()
    assert np.isinf(shapely.get_coordinates(moved[0])).any()


def test_systems_are_compared_and_named() -> None:
    wkt = to_wkt(parse_crs("EPSG:32633"))
    assert same_crs(wkt, "EPSG:32633") and not same_crs(wkt, "EPSG:32634")
    assert not same_crs("", wkt) and same_crs("", "")
    assert crs_name(wkt) == "EPSG:32633" and crs_name(LOCAL) == "site"
    assert crs_name("") == "no coordinate system"
    assert is_on_ground(wkt) and is_on_ground("EPSG:4326") and not is_on_ground(LOCAL)
    assert to_wkt(None) == ""
    with pytest.raises(DataError, match="'nonsense' is no coordinate system"):
        parse_crs("nonsense")


def test_areas_and_pixels_are_metres_on_the_ground() -> None:
    """A degree square at 60° N: 111,412 m times 55,800 m, less as it narrows (WGS 84)."""
    square = np.array([shapely.box(15, 59.5, 16, 60.5)])
    square = shapely.segmentize(square, 0.01)
    assert areas_m2(square, "EPSG:4326")[0] == pytest.approx(6.2165e9, rel=1e-3)
    mercator = move_shapes(square, "EPSG:4326", "EPSG:3857")
    assert areas_m2(mercator, "EPSG:3857")[0] == pytest.approx(6.2165e9, rel=1e-3)
    assert areas_m2(square, "")[0] == pytest.approx(1.0)
    x, y = move_points(np.array([15.0]), np.array([60.0]), "EPSG:4326", "EPSG:3857")
    grid = Grid("EPSG:3857", Affine(2, 0, x[0], 0, -2, y[0]), 10, 10)
    assert pixel_size_m(grid) == pytest.approx(2 * np.cos(np.radians(60)), rel=0.005)
    for crs in ("", LOCAL):
        assert pixel_size_m(Grid(crs, grid.transform, 10, 10)) is None


def test_a_local_system_has_its_origin_where_it_was_asked_for() -> None:
    local = local_system("EPSG:3857", 1e6, 6e6)
    assert np.abs(move_points(np.array([1e6]), np.array([6e6]), "EPSG:3857", local)).max() < 1e-3
    assert local_system("EPSG:4326", 0, 95) == "EPSG:4326"


def box(*bounds: float) -> NDArray[np.object_]:
    return np.array([shapely.box(*bounds)])


def test_areas_hold_for_large_shapes_at_the_poles_and_across_180_degrees() -> None:
    earth = 510_065_621_724_089  # of the WGS 84 ellipsoid [m²]
    assert areas_m2(box(-180, -90, 180, 90), "EPSG:4326")[0] == pytest.approx(earth, rel=1e-9)
    holed = np.array([shapely.box(-180, -90, 180, 90) - shapely.box(-10, -10, 10, 10)])
    hole = areas_m2(box(-10, -10, 10, 10), "EPSG:4326")[0]
    assert areas_m2(holed, "EPSG:4326")[0] == pytest.approx(earth - hole, rel=1e-9)
    # A zone between two parallels takes its share of longitude, wherever it begins.
    one, other = (
        areas_m2(box(170, 60, 190, 70), "EPSG:4326"),
        areas_m2(box(0, 60, 20, 70), "EPSG:4326"),
    )
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    # The same ground in another system: a square of 10 km across 180 degrees, in UTM.
    east = box(829_000, 10_000, 839_000, 20_000)
    assert areas_m2(east, "EPSG:32660")[0] == pytest.approx(1e8 / 1.0009**2, rel=2e-3)
    world = box(-20037508.34, 6e6, 20037508.34, 1e7)
    top, bottom = (2 * np.arctan(np.exp(y / 6378137)) - np.pi / 2 for y in (1e7, 6e6))
    sphere = 2 * np.pi * 6371007.2**2 * (np.sin(top) - np.sin(bottom))
    assert areas_m2(world, "EPSG:3857")[0] == pytest.approx(sphere, rel=5e-3)


def test_an_area_does_not_depend_on_its_neighbours() -> None:
    small = shapely.box(85.1, 27.1, 85.2, 27.2)
    alone = areas_m2(np.array([small]), "EPSG:4326")[0]
    far = np.array([small, shapely.box(-179, -60, -170, -50), shapely.box(179, 0, 179.5, 1)])
    assert areas_m2(far, "EPSG:4326")[0] == alone and np.isfinite(areas_m2(far, "EPSG:4326")).all()


def test_a_ring_whose_corners_fall_together_has_no_area() -> None:
    """A pixel too small for numbers of that size; one beside it is measured all the same."""
    point = shapely.Polygon([(1e9, 1e9)] * 4)
    square = shapely.box(400_000, 5_000_000, 400_010, 5_000_010)
    found = areas_m2(np.array([point, square]), "EPSG:32633")
    assert found[0] == 0 and found[1] == pytest.approx(100, rel=2e-3)
    assert areas_m2(np.array([point]), "EPSG:32633").tolist() == [0]
