"""Shapes in and out, and the pixels that they cover."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from whatwhere.errors import DataError, OutputError, UsageError
from whatwhere.grid import Grid
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, parse_crs, same_crs, to_wkt
from whatwhere.io.vector import (
    Features,
    are_areas,
    buffered,
    burn,
    covered,
    field_names,
    move_features,
    overlap_problem,
    read_features,
    write_features,
)

UTM = to_wkt(parse_crs("EPSG:32633"))
DEGREES = to_wkt(parse_crs(LONGITUDE_LATITUDE))
SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
BOW = [[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]
BOXES = shapely.box(
    np.array([500000.0, 500020, 500040]), 0, np.array([500010.0, 500030, 500050]), 10
)
FORMATS = {"gpkg": "GPKG", "fgb": "FlatGeobuf", "shp": "ESRI Shapefile", "geojson": "GeoJSON"}


def geojson(path: Path, *geometries: Any, fields: list[dict[str, Any]] | None = None) -> Path:
    """A GeoJSON file written plainly; a list of rings is a polygon."""
    features = [
        {
            "type": "Feature",
            "properties": fields[i] if fields else {},
            "geometry": {"type": "Polygon", "coordinates": g} if isinstance(g, list) else g,
        }
        for i, g in enumerate(geometries)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def stored(path: Path, shapes: Any = BOXES, crs: str | None = "EPSG:32633", **more: Any) -> Path:
    """A file that pyogrio writes, with the fields `name` and `n`."""
    names = np.array(["a", "b", None], dtype=object)[: len(shapes)]
    fields = [names, np.arange(1, 4)[: len(shapes)]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyogrio.raw.write(
            str(path),
            shapely.to_wkb(shapes),
            fields,
            ["name", "n"],
            **{"driver": FORMATS[path.suffix[1:]], "geometry_type": "Polygon", "crs": crs, **more},
        )
    return path


def features(shapes: Any, crs: str = UTM, values: tuple[str, ...] = ()) -> Features:
    return Features(Path("made.gpkg"), crs, np.array(shapes, dtype=object), values, ())


def centres(grid: Grid) -> tuple[NDArray[Any], NDArray[Any]]:
    rows, columns = np.mgrid[: grid.height, : grid.width] + 0.5
    t = grid.transform
    return t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f


def inside(shape: Any, grid: Grid) -> NDArray[np.bool_]:
    """The plain oracle: whether each pixel's centre lies in a shape."""
    return np.asarray(shapely.contains_xy(shape, *centres(grid)))


def near_edge(shape: Any, grid: Grid, reach: float) -> NDArray[np.bool_]:
    edge = shapely.boundary(shape)
    return np.asarray(shapely.distance(edge, shapely.points(*centres(grid))) < reach)


# Reading.


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_is_read_with_its_fields_and_coordinate_system(
    tmp_path: Path, suffix: str
) -> None:
    crs = "EPSG:4326" if suffix == "geojson" else "EPSG:32633"
    shapes = move_shapes(BOXES, UTM, DEGREES) if suffix == "geojson" else BOXES
    path = stored(tmp_path / f"a.{suffix}", shapes, crs)
    read = read_features(path, field="name")
    order = np.argsort([value or "z" for value in read.values])
    assert [read.values[i] for i in order] == ["a", "b", ""]
    assert same_crs(read.crs, crs)
    assert shapely.equals_exact(
        shapely.normalize(read.shapes[order]), shapely.normalize(shapes), 1e-6
    ).all()
    assert read.dropped == () and sorted(read.numbers) == [1, 2, 3]
    assert read_features(path).values == ()
    assert read_features(path, field="n").values == tuple(
        str("ab".find(v) + 1 if v else 3) for v in read.values
    )
    assert field_names(path) == {"name": 2, "n": 3}


@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
@pytest.mark.parametrize("name", ["a", "a.csv", "a.vrt", "a!b;c d.txt", "http:.x", "ä.shp"])
def test_the_content_decides_not_the_name(tmp_path: Path, suffix: str, name: str) -> None:
    crs = "EPSG:4326"
    path = stored(tmp_path / f"x.{suffix}", shapely.box([0], [0], [1], [1]), crs)
    assert read_features(path.rename(tmp_path / name), field="name").values == ("a",)


@pytest.mark.parametrize("suffix", ["fgb", "shp"])
def test_formats_that_go_by_their_names_are_told_apart(tmp_path: Path, suffix: str) -> None:
    path = stored(tmp_path / f"a.{suffix}")
    path.rename(tmp_path / "b.csv")
    with pytest.raises(DataError, match=rf"b\.csv: this is a .* must end in \.{suffix}"):
        read_features(tmp_path / "b.csv")
    folder = tmp_path / "a!b"
    folder.mkdir()
    for part in (tmp_path / "b.csv", *tmp_path.glob("a.*")):
        part.rename(folder / part.name.replace("b.csv", f"a.{suffix}"))
    with pytest.raises(DataError, match="Rename the file or its folder"):
        read_features(folder / f"a.{suffix}")


def test_a_name_like_an_archive_is_refused(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.zip", [SQUARE])
    with pytest.raises(DataError, match="one in .zip for an archive. Rename the file"):
        read_features(path)


VRT = (
    "<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>{}</SrcDataSource></OGRVRTLayer>"
    "</OGRVRTDataSource>"
)


def test_what_is_no_file_of_its_own_is_read_only_on_trust(tmp_path: Path) -> None:
    real = stored(tmp_path / "x.gpkg")
    vrt = tmp_path / "a.geojson"
    vrt.write_text(VRT.format(real))
    archive = Path("/vsisubfile/0," + str(real))
    for path, told in ((vrt, "this is XML"), (archive, "inside another file")):
        with pytest.raises(DataError, match=f"{told}.*--trust"):
            read_features(path)
        assert read_features(path, trust=True, field="n").values == ("1", "2", "3")
    for name in ("https://example.com/a.geojson", "s3://b/a.gpkg", "zip+https://b/a.zip"):
        with pytest.raises(DataError, match="on a network"):
            read_features(Path(name))
    with pytest.raises(DataError, match="cannot be read"):
        read_features(Path("zip://nothing/here.zip"), trust=True)


def test_trust_reads_other_formats_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('WKT,kind\n"POLYGON ((0 0,1 0,1 1,0 0))",roof\n')
    with pytest.raises(DataError, match="this is no GeoJSON, GeoPackage, shapefile or FlatGeobuf"):
        read_features(path)
    with pytest.raises(DataError, match="it has no coordinate system"):
        read_features(path, trust=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"hello", "this is no GeoJSON"),
        (b"PK\x03\x04", "this is no GeoJSON"),
        (b'{"type": "Topology"}', "damaged or cannot be read"),
        (b'{"type": "FeatureCollection", "features": []}', "it holds no features"),
        (b"SQLite format 3\x00" + b"\0" * 200, "damaged or cannot be read"),
    ],
)
def test_bad_files_are_told_by_name(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    for read in (read_features, field_names)[: 1 if content and b"[]" in content else 2]:
        with pytest.raises(DataError, match=f"bad.json: .*{told}") as caught:
            read(path)
        assert len(caught.value.problems) == 1


def test_folders_and_forbidden_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="this is not a plain file"):
        read_features(tmp_path)
    path = stored(tmp_path / "a.gpkg")

    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(DataError, match="the file may not be read"):
        read_features(path)


def test_text_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.geojson", [SQUARE], fields=[{"name": "x"}])
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"\xe9"'))
    with pytest.raises(DataError, match="its text is not in UTF-8"):
        read_features(path, field="name")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_short_is_never_read_in_part(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 80, (2, 60))
    shapes = shapely.box(x, y, x + 1, y + 1)
    path = tmp_path / f"a.{suffix}"
    crs = "EPSG:4326"
    fields = [np.arange(60)]
    pyogrio.raw.write(
        str(path), shapely.to_wkb(shapes), fields, ["n"],
        driver=FORMATS[suffix], geometry_type="Polygon", crs=crs,
    )  # fmt: skip
    data = path.read_bytes()
    assert len(read_features(path).shapes) == 60
    for cut in (*range(3, 150, 21), *range(150, len(data) - 2, len(data) // 25), len(data) - 3):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=f"a.{suffix}"):
            read_features(path, field="n")


def test_altered_bytes_end_in_an_error_or_in_valid_shapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in FORMATS:
        path = stored(tmp_path / f"a.{suffix}", BOXES, "EPSG:32633")
        data = path.read_bytes()
        for _ in range(60):
            altered = bytearray(data)
            for place in rng.integers(0, len(data), 6):
                altered[place] = rng.integers(256)
            path.write_bytes(altered)
            with contextlib.suppress(DataError):
                assert shapely.is_valid(read_features(path, field="name").shapes).all()


def test_a_shapefile_needs_its_parts(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.shp")
    table = tmp_path / "a.dbf"
    rows = table.read_bytes()
    table.write_bytes(rows[:-100])
    with pytest.raises(DataError, match="a.dbf does not have a whole row for each of 3 shapes"):
        read_features(path)
    table.unlink()
    assert len(read_features(path).shapes) == 3
    with pytest.raises(DataError, match="the file a.dbf beside it, which holds its fields"):
        read_features(path, field="n")
    (tmp_path / "a.prj").unlink()
    with pytest.raises(DataError, match=r"no coordinate system \(its .prj is missing\)"):
        read_features(path)
    (tmp_path / "a.shx").unlink()
    with pytest.raises(DataError, match="the file a.shx beside it"):
        read_features(path)


def test_layers_are_named_where_there_are_several(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.gpkg", layer="roads")
    stored(path, BOXES[:1], layer="houses")
    fields = [np.array(["x"], dtype=object)]
    pyogrio.raw.write(str(path), None, fields, ["styleQML"], layer="layer_styles", driver="GPKG")
    with pytest.raises(DataError, match="it has 2 layers: roads, houses"):
        read_features(path)
    assert len(read_features(path, layer="houses").shapes) == 1
    with pytest.raises(
        DataError, match="no layer 'house'; it has roads, houses. Is 'houses' meant"
    ):
        read_features(path, layer="house")


def test_a_style_table_is_no_layer_and_a_table_has_no_shapes(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.gpkg")
    fields = [np.array(["x"], dtype=object)]
    pyogrio.raw.write(str(path), None, fields, ["styleQML"], layer="layer_styles", driver="GPKG")
    assert len(read_features(path).shapes) == 3
    table = tmp_path / "t.gpkg"
    pyogrio.raw.write(str(table), None, fields, ["kind"], driver="GPKG")
    with pytest.raises(DataError, match="it has a table without shapes"):
        read_features(table)
    empty = tmp_path / "e.gpkg"
    shutil.copy(table, empty)
    with sqlite3.connect(empty) as database:
        database.execute("DELETE FROM gpkg_contents")
        database.execute("DROP TABLE gpkg_ogr_contents")
        database.execute("DROP TABLE t")
    database.close()
    with pytest.raises(DataError, match="e.gpkg"):
        read_features(empty)


def test_a_file_without_features_may_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "none.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}', encoding="utf-8")
    with pytest.raises(DataError, match="it holds no features"):
        read_features(path)
    nothing = read_features(path, empty=True)
    assert len(nothing.shapes) == 0 and nothing.crs and nothing.values == ()


def test_a_missing_field_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.gpkg")
    with pytest.raises(DataError, match="no field 'Nam'; it has name, n. Is 'name' meant?"):
        read_features(path, field="Nam")
    with pytest.raises(DataError, match="no field 'x'; it has no fields."):
        read_features(geojson(tmp_path / "b.geojson", [SQUARE]), field="x")


def test_values_are_text_as_people_write_it(tmp_path: Path) -> None:
    fields: list[dict[str, Any]] = [
        {"i": 7, "f": 2.0, "g": 0.1, "b": True, "t": "roof ", "m": "x", "d": "2020-01-31",
         "l": [1, 2]},
        {"i": None, "f": None, "g": None, "b": None, "t": None, "m": 5, "d": None, "l": None},
    ]  # fmt: skip
    path = geojson(tmp_path / "a.geojson", [SQUARE], [SQUARE], fields=fields)
    read = {name: read_features(path, field=name).values for name in fields[0]}
    assert read == {
        **{"i": ("7", ""), "f": ("2", ""), "g": ("0.1", ""), "b": ("true", ""), "t": ("roof ", "")},
        **{"m": ("x", "5"), "d": ("2020-01-31", ""), "l": ("1, 2", "")},
    }
    small = tmp_path / "s.gpkg"
    write_features(small, UTM, BOXES[:2], {"x": np.array([0.1, 3], dtype=np.float32)})
    assert read_features(small, field="x").values == ("0.1", "3")


def test_different_values_are_counted_up_to_a_thousand(tmp_path: Path) -> None:
    shapes = shapely.points(np.arange(1500.0), 0.0)
    columns = {"all": np.arange(1500), "two": np.arange(1500) % 2, "none": np.full(1500, np.nan)}
    path = write_features(tmp_path / "a.gpkg", UTM, shapes, columns)
    assert field_names(path) == {"all": 1000, "two": 2, "none": 0}


# Coordinate systems.


def test_geojson_is_longitude_and_latitude_and_other_files_must_say(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.geojson", [SQUARE])
    assert same_crs(read_features(path).crs, "EPSG:4326")
    text = path.read_text()
    path.write_text(text.replace('"features"', '"crs": null, "features"'))
    assert parse_crs(read_features(path).crs).is_geographic
    for suffix in ("gpkg", "fgb"):
        with pytest.raises(DataError, match="it has no coordinate system"):
            read_features(stored(tmp_path / f"a.{suffix}", crs=None))
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(DataError, match="its coordinate system, site, has no place on the ground"):
        read_features(stored(tmp_path / "l.gpkg", crs=local))


def test_degrees_that_are_none_are_refused(tmp_path: Path) -> None:
    metres = [[[733601.0 + x, 3724689.0 + y] for x, y in SQUARE]]
    path = geojson(tmp_path / "a.geojson", metres, metres, [SQUARE])
    with pytest.raises(DataError, match="longitudes and latitudes .* are like 733601, 3724689"):
        read_features(path)
    path = geojson(tmp_path / "a.geojson", metres, [SQUARE], [SQUARE])
    assert len(read_features(path).shapes) == 3


def test_a_shapefile_whose_system_cannot_be_read(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.shp")
    (tmp_path / "a.prj").write_text("nonsense")
    with pytest.raises(DataError, match=r"a\.shp: it has no coordinate system|cannot be read"):
        read_features(path)


@pytest.mark.parametrize(
    ("altered", "told"),
    [
        ({"driver": "SQLite"}, "it looks like GPKG, but would be read as SQLite"),
        ({"crs": "EPSG:1"}, "its coordinate system cannot be read: 'EPSG:1'"),
    ],
)
def test_what_gdal_makes_of_a_file_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: dict[str, str], told: str
) -> None:
    path = stored(tmp_path / "a.gpkg")
    info = {**pyogrio.read_info(path), **altered}
    monkeypatch.setattr(pyogrio, "read_info", lambda *_, **__: info)
    with pytest.raises(DataError, match=rf"a\.gpkg: {told}"):
        read_features(path)


def test_what_gdal_warns_of_becomes_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = stored(tmp_path / "a.gpkg"), pyogrio.raw.read

    def warned(*args: Any, **options: Any) -> Any:
        warnings.warn("odd\nthings.", RuntimeWarning, stacklevel=1)
        return read(*args, **options)

    monkeypatch.setattr(pyogrio.raw, "read", warned)
    assert [problem.cause for problem in read_features(path).dropped] == ["odd things."]

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pyogrio.raw, "read", full)
    with pytest.raises(DataError, match="the memory is too small"):
        read_features(path)


# What is repaired and left out.


def test_what_is_repaired_or_left_out_is_counted(tmp_path: Path) -> None:
    collection = {
        "type": "GeometryCollection",
        "geometries": [
            {"type": "Point", "coordinates": [9, 9]},
            {"type": "Polygon", "coordinates": [SQUARE]},
            {"type": "GeometryCollection", "geometries": [
                {"type": "Polygon", "coordinates": [[[5, 5], [6, 5], [6, 6], [5, 5]]]}]},
        ],
    }  # fmt: skip
    high = {"type": "Polygon", "coordinates": [[[x, y, 7] for x, y in SQUARE]]}
    flat = [[[0, 0], [1, 1], [2, 2], [0, 0]]]
    still = {"type": "LineString", "coordinates": [[3, 3], [3, 3]]}
    path = geojson(
        tmp_path / "a.geojson",
        *([SQUARE], None, [], [BOW], collection, high, flat, still, [[[0, 0], [1, 1]]], [SQUARE]),
        fields=[{"k": i} for i in range(1, 11)],
    )
    read = read_features(path, field="k")
    assert read.numbers == (1, 4, 5, 6, 10) and read.values == ("1", "4", "5", "6", "10")
    assert shapely.is_valid(read.shapes).all() and not shapely.has_z(read.shapes).any()
    assert are_areas(read.shapes).all()
    assert shapely.area(read.shapes).tolist() == [1, 2, 1.5, 1, 1]
    assert [str(problem) for problem in read.dropped] == [
        f"{path}: 2 of 10 features have no shape (number 2, 3). They are left out.",
        f"{path}: 1 of 10 features have rings or lines that are not complete (number 9). "
        "They are left out.",
        f"{path}: 2 of 10 features have no extent (number 7, 8). They are left out.",
        f"{path}: 1 of 10 features have edges that cross (number 4). They are repaired.",
        f"{path}: 1 of 10 features mix kinds of shapes (number 5). "
        "Their areas, else lines, are kept.",
        f"{path}: 1 of 10 features have heights (number 6). The heights are not used.",
    ]


def test_shapes_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.geojson", [SQUARE], [SQUARE])
    head, _, tail = path.read_text().rpartition("[1, 1]")
    path.write_text(f"{head}[NaN, 1]{tail}")
    read = read_features(path)
    assert read.numbers == (1,)
    assert "coordinates that are not finite (number 2)" in read.dropped[0].cause


def test_a_file_of_nothing_usable_says_why(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.geojson", None, None, *[None] * 5)
    with pytest.raises(DataError, match="none of its features can be used: 7 of 7 .* 4, 5, …"):
        read_features(path)


def test_lines_and_points_of_a_collection_are_kept_where_there_are_no_areas(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    point = {"type": "Point", "coordinates": [5, 5]}
    path = geojson(
        tmp_path / "a.geojson",
        {"type": "GeometryCollection", "geometries": [point, line]},
        {"type": "GeometryCollection", "geometries": [point, point]},
    )
    assert [shape.geom_type for shape in read_features(path).shapes] == ["LineString", "MultiPoint"]


def test_features_with_the_same_id_make_no_noise(tmp_path: Path) -> None:
    path = geojson(tmp_path / "a.geojson", [SQUARE], [SQUARE])
    path.write_text(path.read_text().replace('"type": "Feature"', '"type": "Feature", "id": 3'))
    assert read_features(path).dropped == ()


# Moving and widening.


def test_moved_shapes_lie_where_they_should() -> None:
    there = move_features(features(BOXES, UTM, ("a", "b", "c")), DEGREES)
    back = move_features(there, UTM)
    assert shapely.equals_exact(back.shapes, BOXES, 1e-6).all()
    x, y = shapely.get_coordinates(there.shapes[0]).mean(axis=0)
    assert (x, y) == pytest.approx((15.00005, 0.00005), abs=5e-5) and there.dropped == ()
    with pytest.raises(DataError, match="made.gpkg: the raster has no coordinate system"):
        move_features(there, "")


def test_shapes_beyond_a_system_are_dropped_with_their_numbers() -> None:
    lost = shapely.box(10, 60, 20, 95)
    made = features([lost, shapely.box(1, 1, 2, 2), lost], DEGREES, ("a", "b", "c"))
    moved = move_features(made, to_wkt(parse_crs("EPSG:3857")))
    assert moved.values == ("b",) and moved.numbers == (2,)
    assert "2 of 3 features cannot be moved to EPSG:3857 (number 1, 3)" in moved.dropped[0].cause
    assert not len(move_features(features([lost], DEGREES), UTM).shapes)


def test_shapes_that_moving_breaks_are_mended() -> None:
    """A hole near a long edge: in the other system the edge, straight there too, cuts it off."""
    hole = shapely.box(19.9, 50.1, 20.1, 50.3)
    moved = move_features(features([shapely.box(0, 50, 40, 60) - hole], DEGREES), "EPSG:3035")
    assert shapely.is_valid(moved.shapes).all() and are_areas(moved.shapes).all()
    ring = move_shapes(np.array([shapely.box(0, 50, 40, 60)]), DEGREES, "EPSG:3035")[0]
    assert moved.shapes[0].area == pytest.approx(ring.area, rel=1e-3)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32633", "EPSG:2263"])
@pytest.mark.parametrize("latitude", [0.0, 60.0])
def test_widths_are_metres_on_the_ground_in_every_system(crs: str, latitude: float) -> None:
    """A straight line of 4 km, 5 m wide on each side, in degrees, metres, odd metres and feet."""
    local = f"+proj=laea +lat_0={latitude} +lon_0=15.5 +datum=WGS84 +units=m"
    line = shapely.segmentize(shapely.LineString([(-2000, 300), (2000, -500)]), 100)
    ends = move_shapes(np.array([line, shapely.Point(50, 60)]), local, to_wkt(parse_crs(crs)))
    roof = move_shapes(shapely.box([0], [0], [9], [9]), local, crs)
    made = features([*ends, *roof], to_wkt(parse_crs(crs)))
    wide = buffered(made, 5.0)
    assert are_areas(wide.shapes).all() and wide.shapes[2] == roof[0]
    ground = move_shapes(wide.shapes, crs, local)
    assert shapely.area(ground[0]) == pytest.approx(10 * line.length + 25 * np.pi, rel=0.002)
    assert shapely.area(ground[1]) == pytest.approx(25 * np.pi, rel=0.01)
    assert shapely.hausdorff_distance(ground[0], line.buffer(5.0)) < 0.05


def test_a_line_of_two_points_stays_straight_in_its_own_system() -> None:
    """40 km along a parallel in degrees: 6 m off the great circle, though 3 m wide."""
    line = shapely.LineString([(10.0, 50.0), (10.5, 50.0)])
    wide = buffered(features([line], DEGREES), 3.0).shapes[0]
    assert shapely.contains_xy(wide, np.linspace(10.0, 10.5, 1001), 50.0).all()


def test_widths_that_are_none_are_refused() -> None:
    for metres in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="cannot be made .* m wide. Give a width above 0"):
            buffered(features(BOXES), metres)
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    with pytest.raises(DataError, match="site has no place on the ground"):
        buffered(features(BOXES, local), 1.0)


def test_lines_that_lie_nowhere_are_dropped_when_widened() -> None:
    made = features([shapely.Point(0, 95), shapely.Point(0, 5)], DEGREES)
    wide = buffered(made, 5.0)
    assert wide.numbers == (2,)
    assert "1 of 2 features lie nowhere on the ground (number 1)" in wide.dropped[0].cause


# Burning.


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Small grids that are turned, mirrored, sheared, south-up, far away, or of long pixels."""
    turn, shear = draw(st.floats(0, 360)), draw(st.floats(-30, 30))
    across, down = draw(st.floats(0.2, 5)), draw(st.floats(0.2, 5)) * draw(st.sampled_from([-1, 1]))
    x, y = draw(st.sampled_from([(0.0, 0.0), (500000.0, 5e6), (-2e7, 3e6)]))
    matrix = Affine.rotation(turn) @ Affine.shear(shear) @ Affine.scale(across, down)
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return Grid(UTM, Affine.translation(x, y) @ matrix, height, width)


PLACES = st.floats(-4, 28).map(lambda place: round(place, 6))  # GEOS stumbles over 1e-272


@settings(max_examples=60, deadline=None)
@given(grids(), st.lists(st.tuples(*[PLACES] * 4, st.integers(0, 4)), max_size=5))
def test_burnt_pixels_are_those_whose_centre_is_inside(
    grid: Grid, boxes: list[tuple[float, float, float, float, int]]
) -> None:
    shapes, indexes = [], []
    for x0, y0, x1, y1, index in boxes:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        shapes.append(shapely.Polygon([grid.transform @ corner for corner in corners]))
        indexes.append(index)
    made: NDArray[Any] = np.array(shapes, dtype=object)
    expected = np.full((grid.height, grid.width), -1)
    doubtful = np.zeros(expected.shape, dtype=bool)
    for shape, index in sorted(zip(shapes, indexes, strict=True), key=lambda pair: pair[1]):
        expected[inside(shape, grid)] = index
        doubtful |= near_edge(shape, grid, 1e-6)
    burnt = burn(made, np.array(indexes, dtype=np.int64), grid, background=-1)
    assert burnt.dtype == np.int64 and burnt.shape == expected.shape
    assert (burnt == expected)[~doubtful].all()
    assert (covered(made, grid) == (expected >= 0))[~doubtful].all()


def test_holes_overlapping_parts_and_shapes_larger_than_the_grid() -> None:
    grid = Grid(UTM, Affine(1, 0, 0, 0, -1, 10), 10, 10)
    ring = shapely.box(1, 1, 9, 9) - shapely.box(3, 3, 7, 7)
    twice = shapely.MultiPolygon([shapely.box(0, 0, 6, 6), shapely.box(4, 4, 10, 10)])
    world = shapely.box(-1e9, -1e9, 1e9, 1e9)
    for shape in (ring, twice, world):
        assert (covered(np.array([shape]), grid) == inside(shape.buffer(0), grid)).all()
    far = shapely.box(100, 100, 200, 200)
    assert not covered(np.array([far]), grid).any()
    assert not covered(np.array([], dtype=object), grid).any()


def test_the_higher_class_wins_whatever_the_order() -> None:
    grid = Grid(UTM, Affine(1, 0, 0, 0, -1, 10), 10, 10)
    shapes = np.array([shapely.box(0, 0, 6, 10), shapely.box(4, 0, 10, 10)])
    for order in ([0, 1], [1, 0]):
        indexes = np.array([300, 70000])
        burnt = burn(shapes[order], indexes[order], grid, background=2)
        assert burnt[0].tolist() == [300] * 4 + [70000] * 6


def test_lines_cannot_be_burnt() -> None:
    grid = Grid(UTM, Affine(1, 0, 0, 0, -1, 10), 10, 10)
    with pytest.raises(DataError, match="lines and points cover no pixel.*--buffer-m"):
        covered(np.array([shapely.LineString([(0, 0), (5, 5)])]), grid)


# Shapes that miss the raster.

NEPAL = Grid(DEGREES, Affine(0.001, 0, 85.5, 0, -0.001, 27.7), 100, 100)


def told(shapes: Any, grid: Grid, crs: str = DEGREES) -> str | None:
    made = features(shapes, crs)
    return overlap_problem(move_features(made, grid.crs), made, grid)


def test_shapes_on_the_raster_are_no_problem() -> None:
    assert told([shapely.box(85.51, 27.61, 85.52, 27.62)], NEPAL) is None


def test_shapes_elsewhere_are_told_with_both_places() -> None:
    assert told([shapely.box(15, 47, 15.5, 48)], NEPAL) == (
        "the shapes lie at longitude 15.00000 to 15.50000, latitude 47.00000 to 48.00000, the "
        "raster at longitude 85.50000 to 85.60000, latitude 27.60000 to 27.70000: they do not meet."
    )
    mercator = to_wkt(parse_crs("EPSG:3857"))
    x, y = 9.52e6, 3.2e6
    grid = Grid(mercator, Affine(1, 0, x, 0, -1, y), 100, 100)
    assert "raster at longitude 85.51962 to 85.52051" in str(told([shapely.box(1, 1, 2, 2)], grid))


@pytest.mark.parametrize("place", [(85.55, 27.65), (-115.2, 36.1), (179.0, -17.0)])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_swapped_axes_are_named(place: tuple[float, float], crs: str) -> None:
    x, y = place
    wkt = to_wkt(parse_crs(crs))
    at = move_shapes(np.array([shapely.Point(x, y)]), DEGREES, wkt)[0]
    step = 0.001 if crs == "EPSG:4326" else 100.0
    grid = Grid(wkt, Affine(step, 0, at.x - step * 50, 0, -step, at.y + step * 50), 100, 100)
    said = told([shapely.box(y, x, y + 0.01, x + 0.01)], grid)
    assert said is not None and "With x and y swapped they would" in said


def test_places_without_longitudes_are_told_in_the_shapes_own_system() -> None:
    grid = Grid(UTM, Affine(1, 0, 5e5, 0, -1, 1e6), 10, 10)
    made = features([shapely.box(1e13, 0, 2e13, 1)], UTM)
    assert overlap_problem(made, made, grid) == (
        "the shapes lie at x 10000000000000.0 to 20000000000000.0, y 0.0 to 1.0 (EPSG:32633), the "
        "raster at x 500000.0 to 500010.0, y 999990.0 to 1000000.0 (EPSG:32633): they do not meet."
    )
    nowhere = Grid("", Affine(1, 0, 7, 0, -1, 9), 1, 1)
    assert "the raster at x 7.0 to 8.0, y 8.0 to 9.0 (no coordinate system)" in str(
        overlap_problem(made, made, nowhere)
    )


# Writing.

COLUMNS: dict[str, NDArray[Any]] = {
    "class": np.array(["roof", "grünes Dach", None], dtype=object),
    "id": np.array([1, 2, 3]),
    "area": np.array([1.5, np.nan, 3.0]),
    "sure": np.array([True, False, True]),
}


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".gpkg", ".fgb", ".GPKG"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = write_features(tmp_path / "new" / f"map{suffix}", UTM, BOXES, COLUMNS)
    assert os.listdir(path.parent) == [path.name]
    read = read_features(path, field="class")
    order = np.argsort([value or "z" for value in read.values])[[1, 0, 2]]
    assert [read.values[i] for i in order] == ["roof", "grünes Dach", ""]
    assert same_crs(read.crs, "EPSG:4326" if "json" in suffix else UTM)
    moved = move_features(read, UTM).shapes[order]
    assert (shapely.hausdorff_distance(moved, BOXES) < 0.002).all()
    for name, expected in (
        ("id", "123"),
        ("area", ("1.5", "", "3")),
        ("sure", ("true", "false", "true")),
    ):
        values = read_features(path, field=name).values
        assert [values[i] for i in order] == list(expected)
    if suffix == ".gpkg":
        assert pyogrio.list_layers(path)[:, 0].tolist() == ["map"]


def test_geojson_is_what_the_standard_says(tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.geojson", UTM, BOXES[:1], {"x": np.array([np.nan])})
    data = json.loads(path.read_text(encoding="utf-8"))
    assert "crs" not in data and data["features"][0]["properties"] == {"x": None}
    ring = np.array(data["features"][0]["geometry"]["coordinates"][0])
    x, y = ring[:-1].T
    area = ((np.roll(x, -1) + x) * (np.roll(y, -1) - y)).sum() / 2
    assert area > 0  # anticlockwise (RFC 7946, 3.1.6)
    assert np.allclose(ring.min(axis=0), (15.0, 0.0), atol=1e-7)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb"])
def test_no_shapes_make_a_file_without_features(tmp_path: Path, suffix: str) -> None:
    none = {name: column[:0] for name, column in COLUMNS.items()}
    path = write_features(tmp_path / f"a{suffix}", UTM, BOXES[:0], none)
    with pytest.raises(DataError, match="it holds no features"):
        read_features(path)
    if suffix != ".geojson":  # which has no place for fields without features
        assert list(field_names(path)) == list(COLUMNS)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb"])
def test_the_same_shapes_make_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "1999-01-01T00:00:00.000Z"})
    try:
        one, two = (write_features(tmp_path / n / f"a{suffix}", UTM, BOXES, COLUMNS) for n in "12")
        assert one.read_bytes() == two.read_bytes()
        assert b"1999-01" not in one.read_bytes()
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") == "1999-01-01T00:00:00.000Z"
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb"])
def test_mixed_single_and_multiple_shapes_become_multiple(tmp_path: Path, suffix: str) -> None:
    shapes = np.array([BOXES[0], shapely.MultiPolygon([BOXES[1], BOXES[2]])])
    path = write_features(tmp_path / f"a{suffix}", UTM, shapes, {})
    assert {shape.geom_type for shape in read_features(path).shapes} == {"MultiPolygon"}
    lines = np.array([shapely.LineString([(5e5, 0), (5e5, 9)]), shapely.Point(5e5, 0)])
    path = write_features(tmp_path / f"b{suffix}", UTM, lines, {})
    assert {shape.geom_type for shape in read_features(path).shapes} == {"LineString", "Point"}


def test_a_layer_can_be_named_and_a_system_can_be_missing(tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.gpkg", "", BOXES, {}, layer="roofs")
    assert pyogrio.list_layers(path)[:, 0].tolist() == ["roofs"]
    assert pyogrio.read_info(path)["crs"] is None
    with pytest.raises(UsageError, match="no coordinate system. Write a .gpkg"):
        write_features(tmp_path / "a.geojson", "", BOXES, {})


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    for name in ("a.shp", "a.kml", "a"):
        with pytest.raises(UsageError, match=r"written to \.geojson, \.json, \.gpkg, \.fgb"):
            write_features(tmp_path / name, UTM, BOXES, {})
    with pytest.raises(UsageError, match=r"the field x has the shape \(2,\), for 3 shapes"):
        write_features(tmp_path / "a.gpkg", UTM, BOXES, {"x": np.zeros(2)})
    with pytest.raises(UsageError, match="the field x holds neither text nor numbers"):
        write_features(tmp_path / "a.gpkg", UTM, BOXES, {"x": np.zeros(3, dtype="M8[s]")})
    with pytest.raises(UsageError, match="a GeoPackage keeps the name fid for itself"):
        write_features(tmp_path / "a.gpkg", UTM, BOXES, {"FID": np.zeros(3)})
    with pytest.raises(UsageError, match="Rename the file or its folder"):
        write_features(tmp_path / "a!b" / "a.gpkg", UTM, BOXES, {})
    assert not list(tmp_path.iterdir())
    words = {"w": np.array(["a", "b", "c"]), "h": np.array([1, 2, 0.5], dtype=np.float16)}
    path = write_features(tmp_path / "a.gpkg", UTM, BOXES, words)
    assert read_features(path, field="w").values == ("a", "b", "c")
    assert read_features(path, field="h").values == ("1", "2", "0.5")


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, shapely
from whatwhere.errors import OutputError
from whatwhere.io.vector import write_features
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
x = np.arange(1500.0)
for suffix in sys.argv[2:]:
    path = Path(sys.argv[1], "a" + suffix)
    path.write_text("old")
    try:
        write_features(path, "EPSG:32633", shapely.box(x, x, x + 1, x + 1), {"n": x})
    except OutputError as error:
        assert str(error).startswith(str(path)), error
        print(path.read_text())
print(*sorted(one.name for one in Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit the size of files")
def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    suffixes = [".fgb", ".geojson", ".gpkg"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path), *suffixes],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["old"] * 3 + [f"a{suffix}" for suffix in suffixes]
    assert done.stderr == ""


def test_shapes_that_are_missing_after_writing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gpkg"
    path.write_text("old")
    monkeypatch.setattr(pyogrio, "read_info", lambda *_, **__: {"features": 2})
    with pytest.raises(OutputError, match="2 of 3 shapes were written; is the disk full"):
        write_features(path, UTM, BOXES, {})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_a_coordinate_system_that_was_not_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """GDAL leaves it out where it cannot read its list of them, and says nothing."""
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    write = pyogrio.raw.write
    monkeypatch.setattr(pyogrio.raw, "write", lambda *a, **k: write(*a, **{**k, "crs": None}))
    with pytest.raises(OutputError, match="the coordinate system was not written"):
        write_features(path, UTM, BOXES, {})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# Real files.


def grid_of(path: Path) -> Grid:
    with rasterio.open(path) as file:
        return Grid(file.crs.to_wkt(), file.transform, file.height, file.width)


@pytest.fixture
def real_data_quiet(real_data: Callable[[str], Path]) -> Iterator[Callable[[str], Path]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield real_data


def test_buildings_of_banepa_are_burnt_as_an_oracle_says(
    real_data_quiet: Callable[[str], Path],
) -> None:
    folder = real_data_quiet("oam_banepa")
    grid = grid_of(folder / "scene_train.tif")
    read = read_features(folder / "buildings.geojson", field="building")
    assert len(read.shapes) == 1231 and all(read.values)
    moved = move_features(read, grid.crs)
    assert overlap_problem(moved, read, grid) is None
    burnt = covered(moved.shapes, grid)
    share = burnt.mean()
    assert 0.05 < share < 0.6
    ground = shapely.area(
        shapely.intersection(shapely.union_all(moved.shapes), shapely.box(*grid.bounds))
    )
    assert share == pytest.approx(ground / shapely.box(*grid.bounds).area, rel=0.002)
    tree = shapely.STRtree(moved.shapes)
    rng = np.random.default_rng(2)
    rows, columns = rng.integers(0, grid.height, 20000), rng.integers(0, grid.width, 20000)
    points = shapely.points(*(grid.transform @ (columns + 0.5, rows + 0.5)))
    hits = np.zeros(20000, dtype=bool)
    hits[tree.query(points, predicate="within")[0]] = True
    assert (burnt[rows, columns] == hits).all()


def test_land_cover_of_north_carolina(real_data_quiet: Callable[[str], Path]) -> None:
    folder = real_data_quiet("nc_landsat7")
    path = folder / "landsat96_polygons.shp"
    fields = field_names(path)
    assert fields["label"] == 7
    read = read_features(path, field="label")
    assert len(read.shapes) == 34 and len(set(read.values)) == 7
    grid = grid_of(folder / "scene_6band.tif")
    moved = move_features(read, grid.crs)
    assert overlap_problem(moved, read, grid) is None
    names = sorted(set(read.values))
    indexes = np.array([names.index(value) for value in moved.values])
    burnt = burn(moved.shapes, indexes, grid, background=-1)
    expected = np.full(burnt.shape, -1)
    for index in range(7):
        expected[inside(shapely.union_all(moved.shapes[indexes == index]), grid)] = index
    assert (burnt == expected).all() and len(np.unique(burnt)) == 8


def test_roads_and_buildings_of_spacenet(real_data_quiet: Callable[[str], Path]) -> None:
    folder = real_data_quiet("spacenet")
    roads = read_features(folder / "sample_roads_for_masking.geojson", field="road_type")
    assert not are_areas(roads.shapes).any() and len(roads.values) == 9
    grid = grid_of(folder / "road_mask_input.tif")
    wide = move_features(buffered(roads, 4.0), grid.crs)
    road = covered(wide.shapes, grid)
    assert 0 < road.mean() < 0.5
    houses = read_features(folder / "geotiff_labels.geojson", field="building")
    assert same_crs(houses.crs, "EPSG:32616") and len(houses.shapes) == 43
    grid = grid_of(folder / "sample_geotiff.tif")
    moved = move_features(houses, grid.crs)
    assert overlap_problem(moved, houses, grid) is None
    union = inside(shapely.union_all(moved.shapes), grid)
    assert (covered(moved.shapes, grid) != union).sum() <= 2
    told = overlap_problem(move_features(roads, grid.crs), roads, grid)
    assert told is not None and "longitude -115.2" in told
