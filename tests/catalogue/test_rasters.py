"""The catalogue of faults, C58 to C66: what scenes hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray

from cases import At, Case, Catalogue, Words, check
from made_maps import NORTH_UP, UTM, make_pixels, write_scene
from made_scenes import bright_scene, truth_of, write_places
from scene_cases import (
    FOUND,
    PLACES,
    SIZE,
    TRUTH,
    houses,
    inspect,
    mapped,
    predict,
    scene,
)
from told import call

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rasters(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


# ---------------------------------------------------------------- 58 to 66: what it holds


def holed(dtype: str, mark: float, bands: int = 3) -> NDArray[Any]:
    """Pixels of which the first 10 rows hold a value that stands for no data."""
    pixels = make_pixels(*SIZE, bands).astype(dtype)
    pixels[:, :10] = mark
    return pixels


@case("C58-nodata-is-not-a-number", 0, "background .* 4,720 ", "0 errors")
def _(at: At) -> Words:
    at.data.mkdir()
    write_scene(at.data / "scene.tif", holed("float32", np.nan), nodata=np.nan)
    return inspect(at.data / "scene.tif", houses(at))


@case("C58-nodata-that-its-numbers-cannot-hold", 0, "background .* 5,632 ", "0 errors")
def _(at: At) -> Words:
    path = scene(at, nodata=254)
    data, tag = path.read_bytes(), struct.pack("<HHI", 42113, 2, 4)
    assert data.count(tag + b"254\0") == 1
    path.write_bytes(data.replace(tag + b"254\0", tag + b"nan\0"))
    return inspect(path, houses(at))


@case("C58-nodata-that-is-said-and-cannot-be", 3, "-1 cannot stand for no data.*--nodata from 0 to")
def _(at: At) -> Words:
    return inspect(scene(at), houses(at), "--nodata", -1)


@case("C58-nodata-of-each-band", 0, "background .* 4,666 ", "0 errors")
def _(at: At) -> Words:
    pixels = make_pixels(*SIZE, 2).astype(np.uint16)
    pixels[0, :10], pixels[1, :, 95] = 7000, 9000
    write_scene(at.folder / "data.tif", pixels)
    at.data.mkdir()
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><NoDataValue>{mark}</NoDataValue>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">../data.tif</SourceFilename>'
        f"<SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i, mark in ((1, 7000), (2, 9000))
    )
    where = ", ".join(map(str, NORTH_UP.to_gdal()))
    (at.data / "scene.vrt").write_text(
        f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}"><SRS>EPSG:32645</SRS>'
        f"<GeoTransform>{where}</GeoTransform>{bands}</VRTDataset>"
    )
    return inspect(at.data / "scene.vrt", houses(at), "--trust")


@case("C58-alpha", 0, "background .* 4,720 ", "red, green, blue", "0 errors")
def _(at: At) -> Words:
    at.data.mkdir()
    pixels = make_pixels(*SIZE, 4)
    pixels[3] = 255
    pixels[3, :10] = 0
    write_scene(at.data / "scene.tif", pixels, photometric="rgb", alpha="yes")
    return inspect(at.data / "scene.tif", houses(at))


@case(
    "C58-a-mask-beside-it", 0, r"note.*scene\.tif\.msk beside it is not read\. .*--trust", "5,632 "
)
def _(at: At) -> Words:
    path = scene(at)
    mask = np.full(SIZE, 255, dtype=np.uint8)
    mask[:10] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    assert path.with_name("scene.tif.msk").exists()
    return inspect(path, houses(at))


@case(
    "C59-no-data-at-all", 3, r"scene\.tif: no pixel of it has data\. Check --nodata, or take it out"
)
def _(at: At) -> Words:
    at.data.mkdir()
    write_scene(at.data / "scene.tif", np.zeros((3, *SIZE), dtype=np.uint8), nodata=0)
    return inspect(at.data / "scene.tif", houses(at))


@case("C59-a-map-of-no-data", 0, r"note .*scene\.tif: no pixel of it has data", "1 image segmented")
def _(at: At) -> Words:
    at.data.mkdir()
    write_scene(at.data / "scene.tif", np.zeros((3, *SIZE), dtype=np.uint8), nodata=0)
    return predict(at, at.data / "scene.tif")


def test_a_map_of_no_data_holds_none(tmp_path: Path, nets: Path) -> None:
    with mapped(CASES, "C59-a-map-of-no-data", tmp_path, nets) as made:
        assert (made.read() == made.nodata).all()


def sparse(at: At, side: int) -> Words:
    """A scene of which next to nothing is there."""
    at.data.mkdir()
    how = {"count": 1, "height": side, "width": side, "dtype": "uint8", "nodata": 0}
    how |= {"crs": UTM, "transform": NORTH_UP, "tiled": True, "SPARSE_OK": True}
    with rasterio.open(at.data / "big.tif", "w", **how) as file:
        place = rasterio.windows.Window(side - 80, side - 70, 64, 64)
        file.write(np.full((1, 64, 64), 200, dtype=np.uint8), window=place)
    return "predict", at.net("grey"), at.data / "big.tif", "-o", at.out / "map.tif"


@case("C60-sparse", 0, "1 image segmented")
def _(at: At) -> Words:
    return sparse(at, 2100)


def test_a_map_that_may_not_fit_is_a_bigtiff_from_its_first_byte(
    tmp_path: Path, nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C60-four-gigabytes: the limit is lowered in the place of a map of that size."""
    from whatwhere.io import geotiff

    monkeypatch.setattr(geotiff, "_CLASSIC_LIMIT", 0)
    with mapped(CASES, "C60-sparse", tmp_path, nets) as made:
        assert (made.read() != made.nodata).sum() == 64 * 64
    assert (tmp_path / "out" / "map.tif").read_bytes()[:4] == b"II+\0"


@pytest.mark.slow
def test_a_map_of_more_pixels_than_32_bits_count(tmp_path: Path, nets: Path) -> None:
    """C60-more-than-2-to-the-31."""
    check(Case("", 0, ("1 image segmented",), lambda at: sparse(at, 47_000)), tmp_path, nets)
    with rasterio.open(tmp_path / "out" / "map.tif") as made:
        last = rasterio.windows.Window(46_900, 46_900, 100, 100)
        assert made.width * made.height > 2**31
        assert (made.read(window=last) != made.nodata).sum() == 64 * 64


@case("C61-one-huge-strip", 0, r"note.*stored in pieces of \d+×4100 px.*TILED=YES", "0 errors")
def _(at: At) -> Words:
    truth = truth_of((64, 4100), PLACES, [1, 1])
    how = {"tiled": False, "blockysize": 16, "blockxsize": 4100}
    return inspect(bright_scene(at.data / "scene.tif", truth, **how), houses(at))


@case("C61-tiny-tiles", 0, FOUND, "0 errors, 0 warnings")
def _(at: At) -> Words:
    return inspect(scene(at, blockxsize=16, blockysize=16), houses(at))


@case("C62-bands-apart", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    return inspect(scene(at, interleave="band"), houses(at))


@case("C62-blue-first", 0, "1 image segmented")
def _(at: At) -> Words:
    pixels = make_pixels(*SIZE)
    at.data.mkdir()
    path = write_scene(at.data / "scene.tif", pixels[::-1])
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Blue", "Green", "Red")
    return predict(at, path)


@case("C62-red-first", 0, "1 image segmented")
def _(at: At) -> Words:
    at.data.mkdir()
    return predict(at, write_scene(at.data / "scene.tif", make_pixels(*SIZE), photometric="rgb"))


@case("C62-bands-that-say-nothing", 0, "band 1, band 2, band 3", "0 errors")
def _(at: At) -> Words:
    return inspect(scene(at, photometric="minisblack"), houses(at))


def test_bands_are_found_by_name_in_any_order(tmp_path: Path, nets: Path) -> None:
    found = []
    for name in ("C62-blue-first", "C62-red-first"):
        (tmp_path / name).mkdir()
        with mapped(CASES, name, tmp_path / name, nets) as made:
            found.append(made.read())
    assert np.array_equal(*found) and len(np.unique(found[0])) == 2


STALE = (".ovr", ".msk", ".aux.xml")


def test_what_lies_beside_a_map_does_not_outlive_it(tmp_path: Path, nets: Path) -> None:
    """C63-stale-files: overviews of the old map would be shown in the place of the new one's."""
    at = At(tmp_path, nets)
    path = scene(at)
    check(Case("", 0, (), lambda at: predict(at, path)), tmp_path, nets)
    made = at.out / "map.tif"
    with rasterio.open(made) as file:
        fresh = file.read(out_shape=(1, 16, 24))
    for ending in STALE:
        Path(f"{made}{ending}").write_bytes(b"old")
    assert call(*predict(at, path)).exit_code == 0
    with rasterio.open(made) as file:
        assert np.array_equal(file.read(out_shape=(1, 16, 24)), fresh)
    assert not Path(f"{made}.ovr").exists() and not Path(f"{made}.msk").exists()
    assert b"old" not in Path(f"{made}.aux.xml").read_bytes()


@case("C64-nothing-is-written-beside-inputs", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    path, labels = scene(at), houses(at, "houses.fgb")
    for one in (path, labels, at.data):
        one.chmod(0o555 if one.is_dir() else 0o444)
    return inspect(path, labels)


@case("C64-nor-by-a-map", 0, "1 image segmented")
def _(at: At) -> Words:
    path = scene(at)
    at.data.chmod(0o555)
    return predict(at, path)


@case("C65-damaged-overviews", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    path = scene(at)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    with tifffile.TiffFile(path) as tiff:
        places = [offset for page in tiff.pages[1:] for offset in page.dataoffsets]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 64] = bytes(64)
    path.write_bytes(data)
    return inspect(path, houses(at))


@case("C66-sparse-tiles", 0, FOUND, r"houses .* 12\.50%", "0 errors")
def _(at: At) -> Words:
    path = bright_scene(at.data / "small.tif", TRUTH)
    with rasterio.open(path) as file:
        pixels = file.read()
    how = {"count": 3, "height": 500, "width": 500, "dtype": "uint8", "nodata": 0}
    how |= {"crs": UTM, "transform": NORTH_UP, "tiled": True, "SPARSE_OK": True}
    with rasterio.open(at.data / "scene.tif", "w", blockxsize=64, blockysize=64, **how) as file:
        pixels = np.pad(pixels[:, :, :64], ((0, 0), (0, 0), (0, 0)))
        file.write(pixels, window=rasterio.windows.Window(0, 0, 64, 64))
    return inspect(at.data / "scene.tif", write_places(at.data / "houses.gpkg", [(8, 8, 16, 32)]))
