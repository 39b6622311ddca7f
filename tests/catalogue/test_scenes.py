"""The catalogue of faults, C51 to C74: rasters and vectors with coordinates."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
import tifffile
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from cases import At, Case, Catalogue, Words, check
from made_maps import NORTH_UP, UTM, make_pixels, write_scene
from made_scenes import Place, bright_scene, rectangle, truth_of, write_places
from told import call
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, to_wkt

CASES = Catalogue()
case = CASES.case

SIZE = (64, 96)
PLACES: tuple[Place, ...] = ((8, 8, 16, 24), (40, 56, 8, 16))
PIXELS = sum(height * width for *_, height, width in PLACES)
TRUTH = truth_of(SIZE, PLACES, [1, 1])
FOUND = rf"houses +1 +1 +{PIXELS} "
RGB = ("red", "green", "blue")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scenes(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


def scene(at: At, name: str = "scene.tif", **how: Any) -> Path:
    return bright_scene(at.data / name, TRUTH, **how)


def houses(at: At, name: str = "houses.gpkg", **how: Any) -> Path:
    return write_places(at.data / name, PLACES, **how)


def inspect(image: Path, labels: Path, *words: object) -> Words:
    return "inspect", image, "--labels", labels, *words


def predict(at: At, image: Path, *words: object) -> Words:
    return "predict", at.net(*RGB), image, "-o", at.out / "map.tif", *words


def opened(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def mapped(name: str, folder: Path, nets: Path) -> Any:
    """Do a case that makes a map, and open what it made."""
    check(next(one for one in CASES if one.name == name), folder, nets)
    return opened(folder / "out" / "map.tif")


def labels(at: At, **how: Any) -> Path:
    """The classes as a raster."""
    at.data.mkdir(exist_ok=True)
    return write_scene(at.data / "classes.tif", TRUTH[None].astype(np.uint8), **how)


# ---------------------------------------------------------------- 51 to 57: where it lies

NOWHERE: Any = {"crs": None, "transform": Affine.identity()}


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
    with mapped(name, tmp_path, nets) as made:
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


def geojson(
    at: At, shapes: Sequence[Any], fields: Sequence[Mapping[str, Any]] = (), **top: Any
) -> Path:
    """A file as people write it, for what no library would."""
    at.data.mkdir(exist_ok=True)
    rows = [
        {
            "type": "Feature",
            "properties": dict(fields[i]) if fields else {},
            "geometry": shape
            if shape is None or isinstance(shape, dict)
            else shapely.geometry.mapping(shape),
        }
        for i, shape in enumerate(shapes)
    ]
    path = at.data / "houses.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", **top, "features": rows}))
    return path


def degrees(*places: Place) -> list[Any]:
    shapes = np.array([rectangle(place) for place in places])
    return list(move_shapes(shapes, to_wkt(UTM), LONGITUDE_LATITUDE))


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
    with mapped("C59-a-map-of-no-data", tmp_path, nets) as made:
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
    with mapped("C60-sparse", tmp_path, nets) as made:
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
        with mapped(name, tmp_path / name, nets) as made:
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


# ---------------------------------------------------------------- 67 to 72: shapes

SQUARE = degrees(PLACES[0])[0]


def ring(*points: tuple[float, ...]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [points]}


@case(
    "C67-shapes-that-are-not-whole",
    0,
    r"note.*1 of 8 features have no shape \(number 2\)\. They are left out",
    r"note.*1 of 8 features have edges that cross \(number 3\)\. They are repaired",
    r"warning.*1 of 8 features have coordinates that are not finite \(number 4\)\. They are",
    r"note.*1 of 8 features have heights \(number 6\)\. The heights are not used",
    r"warning.*1 of 8 features have no extent \(number 7\)\. They are left out",
    "0 errors",
)
def _(at: At) -> Words:
    points = list(SQUARE.exterior.coords)
    a, b, c, d = points[:4]
    odd = [
        SQUARE,
        None,
        ring(a, c, b, d, a),
        ring(a, (float("nan"), 27.0), c, a),
        ring(a, b, c, d),
        ring(*((*point, 12.0) for point in points)),
        ring(a, a, a, a),
        ring(*reversed(points)),
    ]
    return inspect(scene(at), geojson(at, odd))


@case("C68-the-higher-class-lies-on-top", 0, r"1 +1 +1 +192 ", r"2 +2 +2 +192 ", "0 errors")
def _(at: At) -> Words:
    places = [(8, 8, 16, 24), (8, 16, 16, 12), (8, 16, 16, 4)]
    numbers = [1, 2, 1]
    path = write_places(at.data / "houses.gpkg", places, columns={"kind": numbers})
    return inspect(scene(at), path, "--class-field", "kind")


@case("C69-no-such-field", 3, r"it has no field 'Kind'; it has kind\. Is 'kind' meant\? Name one")
def _(at: At) -> Words:
    path = write_places(at.data / "houses.gpkg", PLACES, columns={"kind": ["a", "b"]})
    return inspect(scene(at), path, "--class-field", "Kind")


@case("C69-no-class", 0, "warning.*1 of 3 shapes have no kind. They are not labelled", "0 errors")
def _(at: At) -> Words:
    kinds = [{"kind": "roof"}, {"kind": None}, {"kind": "wall"}]
    path = geojson(at, degrees((8, 8, 16, 24), (40, 8, 8, 8), (40, 56, 8, 16)), kinds)
    return inspect(scene(at), path, "--class-field", "kind")


@case("C69-no-class-at-all", 3, "2 of 2 shapes have no kind", "nothing to tell apart|no pixel")
def _(at: At) -> Words:
    path = geojson(at, degrees(*PLACES), [{"kind": None}, {"kind": None}])
    return inspect(scene(at), path, "--class-field", "kind")


@case(
    "C70-outside",
    3,
    r"houses\.geojson: the shapes lie at longitude .*: they do not meet\. Give lab",
)
def _(at: At) -> Words:
    far = shapely.transform(SQUARE, lambda points: points + np.array([1.0, 0.0]))
    return inspect(scene(at), geojson(at, [far]))


@case("C70-partly-outside", 0, r"houses +1 +1 +128 ", "0 errors")
def _(at: At) -> Words:
    path = write_places(at.data / "houses.gpkg", [(-8, -8, 16, 24), (500, 500, 9, 9)])
    return inspect(scene(at), path)


@case("C70-none-at-all", 3, r"houses\.geojson: it holds no features\. Give")
def _(at: At) -> Words:
    return inspect(scene(at), geojson(at, []))


@case("C71-nested-deeply", 3, r"houses\.geojson: .*(damaged|no JSON|cannot be read).*\.")
def _(at: At) -> Words:
    path = geojson(at, degrees(*PLACES))
    text = path.read_text()
    path.write_text(text[:1] + '"deep": ' + "[" * 100_000 + "]" * 100_000 + ", " + text[1:])
    return inspect(scene(at), path)


@case("C71-a-ring-of-many-points", 0, "0 errors")
def _(at: At) -> Words:
    middle, angles = SQUARE.centroid, np.linspace(0, 2 * np.pi, 100_000)
    points = np.column_stack([np.cos(angles), np.sin(angles)]) * 4e-5 + [middle.x, middle.y]
    return inspect(scene(at), geojson(at, [shapely.Polygon(points)]))


@case("C72-a-key-twice", 0, FOUND, "0 errors")
def _(at: At) -> Words:
    path = geojson(at, degrees(*PLACES))
    path.write_text(path.read_text().replace('{"type"', '{"name": 1, "name": 2, "type"', 1))
    return inspect(scene(at), path)


@case("C72-numbers-that-json-has-not", 3, r"houses\.geojson: .*\.")
def _(at: At) -> Words:
    path = geojson(at, degrees(*PLACES))
    path.write_text(path.read_text().replace("[[[", "[[[Infinity, -nan], [", 1))
    return inspect(scene(at), path)


# ---------------------------------------------------------------- 73, 74: several files


def two(at: At, **how: Any) -> Words:
    """Two scenes with labels of their own, of which the second is another."""
    for i, more in enumerate(({}, how)):
        bright_scene(at.data / "scenes" / f"s{i}.tif", TRUTH, seed=i, **more)
        where = more.get("transform", NORTH_UP)
        path = at.data / "labels" / f"s{i}.gpkg"
        path.parent.mkdir(exist_ok=True)
        write_places(path, PLACES, transform=where)
    return "inspect", at.data / "scenes", "--labels", at.data / "labels"


def moved(size: float) -> Affine:
    return Affine(size, 0, 501000, 0, -size, 3000000)


@case(
    "C73-other-pixels", 0, r"warning.*s1\.tif: its pixels are 1\.6 m and are resampled to", "0 err"
)
def _(at: At) -> Words:
    return two(at, transform=moved(1.6))


@case(
    "C73-far-other-pixels",
    3,
    r"s\d\.tif: its pixels are .* m, those of the others .*--resolution-m",
)
def _(at: At) -> Words:
    return two(at, transform=moved(5.5))


@case("C73-another-system", 0, r"EPSG:32645", r"EPSG:32644", "0 errors")
def _(at: At) -> Words:
    words = two(at, transform=moved(0.5))
    path, other = at.data / "scenes" / "s1.tif", CRS.from_epsg(32644)
    with rasterio.open(path, "r+") as file:
        file.crs = other
    shapes = shapely.to_wkb(np.array([rectangle(place, moved(0.5)) for place in PLACES]))
    pyogrio.raw.write(
        str(at.data / "labels" / "s1.gpkg"), shapes, [np.arange(2)], ["id"], driver="GPKG",
        geometry_type="Polygon", crs=to_wkt(other),
    )  # fmt: skip
    return words


@case("C73-other-bands", 3, "the scenes do not all have the bands", r"s1: band 1, band 2")
def _(at: At) -> Words:
    return two(at, bands=2, transform=moved(0.5))


@case("C74-over-the-scene", 2, r"scene\.tif: this would overwrite a scene\. Choose another name")
def _(at: At) -> Words:
    path = scene(at)
    return "predict", at.net(*RGB), path, "-o", path


@case("C74-over-the-scene-by-a-link", 2, r"this would overwrite a scene\. Choose another name")
def _(at: At) -> Words:
    path = scene(at)
    (at.folder / "link").symlink_to(at.data)
    return "predict", at.net(*RGB), path, "-o", at.folder / "link" / "scene.tif"


@case("C74-over-an-image", 2, r"p\.png: this is read|would be overwritten|Choose another")
def _(at: At) -> Words:
    from PIL import Image

    at.data.mkdir()
    Image.fromarray(make_pixels(*SIZE).transpose(1, 2, 0)).save(at.data / "p.png")
    return "predict", at.net(*RGB), at.data / "p.png", "-o", at.data / "p.png"
