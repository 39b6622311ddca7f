"""The catalogue of faults, C51 to C57: where scenes and labels lie."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from cases import At, Case, Catalogue, Words, check
from made_maps import NORTH_UP, UTM, write_scene
from made_scenes import rectangle
from scene_cases import (
    FOUND,
    NOWHERE,
    PIXELS,
    PLACES,
    SIZE,
    geojson,
    houses,
    inspect,
    labels,
    mapped,
    opened,
    predict,
    scene,
)
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, to_wkt

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_places(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


# ---------------------------------------------------------------- 51 to 57: where it lies


@case("C51-no-coordinates-and-a-raster-of-labels", 0, rf"foreground .* {PIXELS} ", "0 errors")
def _(at: At) -> Words:
    return inspect(scene(at, **NOWHERE), labels(at, **NOWHERE))


@case("C51-no-coordinates-and-shapes", 3, "the raster has no coordinate system, so that.*gdal_edit")
def _(at: At) -> Words:
    return inspect(scene(at, **NOWHERE), houses(at))


@case("C51-no-coordinates-is-segmented", 0, "1 image segmented")
def _(at: At) -> Words:
    return predict(at, scene(at, **NOWHERE))


@case("C52-labels-in-another-system", 0, FOUND, "0 errors, 0 warnings")
def _(at: At) -> Words:
    return inspect(scene(at), houses(at, "houses.geojson"))


@case("C52-a-raster-of-labels-in-another-system", 0, r"foreground .* 512 +8\.33%", "0 errors")
def _(at: At) -> Words:
    with rasterio.open(labels(at)) as file:
        bounds, pixels = file.bounds, file.read()
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    mercator = CRS.from_epsg(3857)
    where, width, height = calculate_default_transform(
        UTM, mercator, pixels.shape[2], pixels.shape[1], *bounds, resolution=0.1
    )
    warped = np.zeros((1, height, width), dtype=np.uint8)
    there = {"src_transform": NORTH_UP, "src_crs": UTM, "dst_transform": where}
    reproject(pixels, warped, dst_crs=mercator, resampling=Resampling.nearest, **there)
    write_scene(at.data / "classes.tif", warped, crs=mercator, transform=where)
    return inspect(scene(at), at.data / "classes.tif")


TURNED = NORTH_UP @ Affine.rotation(30) @ Affine.shear(10, 0)


@case("C53-turned-and-sheared", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    return inspect(scene(at, transform=TURNED), houses(at, transform=TURNED))


@case("C53-a-map-of-it", 0, "1 image segmented")
def _(at: At) -> Words:
    return predict(at, scene(at, transform=TURNED))


SOUTH_UP = Affine(0.5, 0, 500000, 0, 0.5, 3000000)


@case("C54-south-up", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    return inspect(scene(at, transform=SOUTH_UP), houses(at, transform=SOUTH_UP))


@case("C54-a-map-of-it", 0, "1 image segmented")
def _(at: At) -> Words:
    return predict(at, scene(at, transform=SOUTH_UP))


@pytest.mark.parametrize(
    ("name", "transform"), [("C53-a-map-of-it", TURNED), ("C54-a-map-of-it", SOUTH_UP)]
)
def test_a_map_lies_as_its_scene(name: str, transform: Affine, tmp_path: Path, nets: Path) -> None:
    with mapped(CASES, name, tmp_path, nets) as made:
        assert (made.transform, made.crs, made.shape) == (transform, UTM, SIZE)


def placed_by_points(at: At) -> Path:
    path = scene(at, **NOWHERE)
    corners = ((0, 0), (0, SIZE[1]), (SIZE[0], 0))
    points = [GroundControlPoint(r, c, *(NORTH_UP @ (c, r))) for r, c in corners]
    with opened(path) as _, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as file:
            file.gcps = (points, UTM)
    return path


@case(
    "C55-control-points-alone",
    3,
    r"placed by ground control points, which are not read\. .*gdalwarp",
)
def _(at: At) -> Words:
    return inspect(placed_by_points(at), houses(at))


@case("C55-a-map-by-control-points", 0, "warning .*ground control points.*gdalwarp", "1 image segm")
def _(at: At) -> Words:
    return predict(at, placed_by_points(at))


@case(
    "C55-polynomials-alone", 3, r"placed by rational polynomials, which are not read\. .*gdalwarp"
)
def _(at: At) -> Words:
    path = scene(at, **NOWHERE)
    ones = [1.0] + [0.0] * 19
    offsets = {
        f"{name}_{what}": 1.0
        for name in ("height", "lat", "line", "long", "samp")
        for what in ("off", "scale")
    }
    rpcs = RPC(
        **offsets,
        line_num_coeff=ones,
        line_den_coeff=ones,
        samp_num_coeff=ones,
        samp_den_coeff=ones,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as file:
            file.rpcs = rpcs
    return inspect(path, houses(at))


DEGREES = CRS.from_epsg(4326)


@case("C56-degrees", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    where = Affine(5e-6, 0, 85.5, 0, -5e-6, 27.6)
    shapes = [rectangle(place, where) for place in PLACES]
    return inspect(scene(at, crs=DEGREES, transform=where), geojson(at, shapes))


@case("C56-across-the-date-line", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    zone, where = CRS.from_epsg(32760), Affine(10, 0, 832300, 0, -10, 8300000)
    shapes = np.array([rectangle(place, where) for place in PLACES])
    moved = move_shapes(shapes, to_wkt(zone), LONGITUDE_LATITUDE)
    west = shapely.bounds(moved)
    assert (west[:, 0] < -179).any() or (west[:, 2] > 179).any()
    return inspect(scene(at, crs=zone, transform=where), geojson(at, list(moved)))


@case("C57-latitude-first", 3, "they do not meet. With x and y swapped they would: the file has")
def _(at: At) -> Words:
    shapes = move_shapes(np.array([rectangle(p) for p in PLACES]), to_wkt(UTM), LONGITUDE_LATITUDE)
    swapped = shapely.transform(shapes, lambda points: points[:, ::-1])
    return inspect(scene(at), geojson(at, list(swapped)))
