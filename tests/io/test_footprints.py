"""Which pieces of ground are near a raster, whatever their coordinate systems."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from rasterio.crs import CRS

from whatwhere.grid import Grid
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, to_wkt
from whatwhere.io.footprints import Ground, outline
from whatwhere.types import Window


def grid(code: int, x: float, y: float, pixel: float, side: int = 100) -> Grid:
    crs = to_wkt(CRS.from_epsg(code)) if code else ""
    return Grid(crs, Affine(pixel, 0, x, 0, -pixel, y), side, side)


def near(raster: Grid, other: Grid, reach: float = 0) -> bool:
    shapes = np.array([outline(other)], dtype=object)
    whole = Window(0, 0, raster.height, raster.width)
    return bool(Ground([other.crs], shapes, reach).near(raster, whole))


def at(code: int, longitude: float, latitude: float) -> tuple[float, float]:
    x, y = rasterio.warp.transform("EPSG:4326", f"EPSG:{code}", [longitude], [latitude])
    return x[0], y[0]


def test_an_outline_is_the_grid_with_points_along_its_sides() -> None:
    turned = Grid("", Affine.translation(5, 7) @ Affine.rotation(30), 10, 20)
    found = outline(turned)
    assert found.area == pytest.approx(200) and len(found.exterior.coords) == 33
    assert {(round(x, 6), round(y, 6)) for x, y in turned.corners} <= {
        (round(x, 6), round(y, 6)) for x, y in found.exterior.coords
    }


@pytest.mark.parametrize("code", [32645, 3413, 4326, 0])
def test_how_near_is_counted_in_pixels(code: int) -> None:
    pixel = 0.001 if code == 4326 else 0.5
    x, y = (80.0, 27.0) if code == 4326 else (300000.0, 3000000.0)
    one = grid(code, x, y, pixel)
    for shift, apart in (((100, 0), 0), ((0, 100), 0), ((100, 100), 0), ((110, 107), 10)):
        other = grid(code, x + shift[0] * pixel, y - shift[1] * pixel, pixel)
        for reach in range(0, 13):
            assert near(one, other, reach) == near(other, one, reach) == (reach > apart)
    assert near(one, grid(code, x + 99 * pixel, y, pixel))


def test_turned_tiles_that_abut_do_not_overlap() -> None:
    for rotation in (0, 20, 45):
        turned = Affine.translation(250000, 7000000) @ Affine.rotation(rotation)
        crs = to_wkt(CRS.from_epsg(32633))
        one = Grid(crs, turned @ Affine.scale(10, -10), 512, 512)
        beside = Grid(crs, one.transform @ Affine.translation(512, 0), 512, 512)
        corner = Grid(crs, one.transform @ Affine.translation(511, 511), 512, 512)
        assert not near(one, beside) and near(one, beside, 1) and near(one, corner)


def test_scenes_over_a_pole() -> None:
    one = grid(3413, -5000, 5000, 10, 1000)
    assert near(one, grid(3413, -4000, 5500, 10, 1000))
    assert not near(one, grid(3413, 5000, 5000, 10, 1000))
    x, y = at(32661, 20, 89.99)
    assert near(one, grid(32661, x, y, 10)) and not near(one, grid(32661, x + 90000, y, 10))


def test_scenes_across_180_degrees() -> None:
    x, y = at(32660, 180, 0.5)
    one = grid(32660, x - 5000, y, 10, 1000)
    assert not near(one, grid(4326, 20, 0.45, 0.0001))
    for longitude in (179.99, 180.01, -179.99, -179.97):
        other = grid(4326, longitude, 0.45, 0.0001)
        assert near(one, other) and near(other, one), longitude
    x, y = at(32601, -179.99, 0.45)
    other = grid(32601, x, y, 10)
    assert near(one, other) and near(other, one)
    assert near(grid(4326, 200, 10, 0.01), grid(4326, -160, 10, 0.01))


def test_written_ground_is_found_again() -> None:
    one = grid(32645, 300000, 3000000, 10, 1000)
    shapes = move_shapes(np.array([outline(one)], dtype=object), one.crs, LONGITUDE_LATITUDE)
    ground = Ground([LONGITUDE_LATITUDE], shapes, 0)
    whole = Window(0, 0, 1000, 1000)
    assert ground.near(one, whole) == {0}
    for row, column in ((1000, 0), (0, 1000), (-1000, 0), (0, -1000)):
        assert ground.near(one.part(Window(row, column, 1000, 1000)), whole) == set()


def test_with_and_without_a_system_nothing_is_known() -> None:
    one, other = grid(32645, 300000, 3000000, 1), grid(0, 300000, 3000000, 1)
    assert not near(one, other) and not near(other, one) and near(other, other)
    assert Ground([], np.empty(0, dtype=object), 0).near(one, Window(0, 0, 9, 9)) == set()
