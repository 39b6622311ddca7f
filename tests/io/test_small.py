"""Small GeoTIFFs are read back the same by GDAL and without it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from whatwhere.grid import Grid
from whatwhere.io.crs import to_wkt
from whatwhere.io.image import read_image
from whatwhere.io.raster import open_raster
from whatwhere.io.small import encode_geotiff
from whatwhere.types import Window

TURNED = Affine(0.5, 0.1, 500000, 0.2, -0.5, 3000000)
GRID = Grid(to_wkt(CRS.from_epsg(32645)), TURNED, 20, 30)
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def made(kind: str, bands: int) -> Any:
    rng = np.random.default_rng(bands)
    if kind.startswith("f"):
        return rng.normal(0, 100, (bands, 20, 30)).astype(kind)
    limits = np.iinfo(kind)
    top = min(limits.max, 2**24)  # images are read as float32 where numbers are so large
    return rng.integers(limits.min, top, (bands, 20, 30), dtype=kind, endpoint=True)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("gaps", [False, True])
def test_pixels_place_and_gaps_survive(tmp_path: Path, kind: str, gaps: bool) -> None:
    valid = np.random.default_rng(9).random((20, 30)) < 0.7
    for bands in (1, 2, 3, 4, 6):
        names = [f"b{i}" for i in range(bands)]
        pixels = made(kind, bands)
        path = tmp_path / f"{bands}.tif"
        path.write_bytes(encode_geotiff(pixels, GRID, names, valid=valid if gaps else None))
        raster = open_raster(path)
        assert raster.names == tuple(names) and raster.dtype == kind
        assert raster.grid.transform == GRID.transform and raster.grid.crs == GRID.crs
        wanted = valid if gaps else np.ones_like(valid)
        for found, there in (raster.read(Window(0, 0, 20, 30)), read_image(path)):
            assert np.array_equal(there, wanted)
            assert np.array_equal(found[:, there], pixels[:, there].astype(found.dtype))


def test_colours_are_seen_as_such(tmp_path: Path) -> None:
    import rasterio

    for gaps, names in itertools.product(
        (False, True), (["Red", "green", "blue"], ["a", "b", "c"])
    ):
        valid = np.ones((20, 30), dtype=np.bool_) if gaps else None
        for more in ([], ["nir"]):
            named = [*names, *more]
            data = encode_geotiff(made("uint8", len(named)), GRID, named, valid=valid)
            with rasterio.MemoryFile(data) as memory, memory.open() as file:
                kinds = [one.name for one in file.colorinterp]
                assert (kinds[:3] == ["red", "green", "blue"]) == (names[0] == "Red")
                assert [i for i, one in enumerate(kinds) if one == "alpha"] == [len(named)] * gaps


@pytest.mark.parametrize(
    ("kind", "nodata", "kept"),
    [
        ("uint8", 0.0, 0.0),
        ("uint8", -9999.0, None),
        ("int16", -9999.0, -9999.0),
        ("uint16", 0.5, None),
        ("uint16", np.nan, None),
        ("float32", -9999.0, -9999.0),
        ("float64", None, None),
    ],
)
def test_what_stands_for_no_data_is_kept_where_the_type_has_it(
    tmp_path: Path, kind: str, nodata: float | None, kept: float | None
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(encode_geotiff(made(kind, 2), GRID, ["a", "b"], nodata=nodata))
    assert open_raster(path).nodata == (kept, kept)
    nowhere = Grid("", Affine.identity(), 20, 30)
    path.write_bytes(encode_geotiff(made(kind, 2), nowhere, ["a", "b"]))
    assert not open_raster(path).grid.is_placed
