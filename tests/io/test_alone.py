"""What a file that is not trusted may not lead to, each told in one sentence."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import rasterio
import shapely
from rasterio.crs import CRS

from hostile_rasters import copied, honest
from hostile_vectors import collection, database, open_journal, virtual, write
from made_maps import NORTH_UP, UTM
from whatwhere.errors import DataError
from whatwhere.io.crs import check_alone
from whatwhere.io.image import read_head
from whatwhere.io.imagine import keeps_elsewhere
from whatwhere.io.raster import open_raster
from whatwhere.io.vector import read_features
from whatwhere.types import Window

TRUST = r"If you know what it opens, say --trust"


def test_a_file_of_imagine_with_pixels_elsewhere_needs_trust(tmp_path: Path) -> None:
    source = honest(tmp_path / "source.tif")
    path = copied(source, tmp_path / "a.img", driver="HFA", USE_SPILL="YES")
    plain = copied(source, tmp_path / "b.img", driver="HFA")
    assert keeps_elsewhere(path) and not keeps_elsewhere(plain)
    with pytest.raises(DataError, match=rf"a\.img: it keeps its pixels in another file.*{TRUST}"):
        open_raster(path)
    window = Window(0, 0, 48, 48)
    trusted, alone = open_raster(path, trust=True), open_raster(plain)
    assert (trusted.read(window)[0] == alone.read(window)[0]).all()


def test_a_tree_without_end_or_ground_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    for data in (b"EHFA_HEADER_TAG\0", b"EHFA_HEADER_TAG\0" + b"\x10\0\0\0" * 100):
        path.write_bytes(data)
        assert not keeps_elsewhere(path)


def test_a_mask_beside_a_file_of_imagine_is_not_read(tmp_path: Path) -> None:
    """GDAL looks for one whatever it is told."""
    path = copied(honest(tmp_path / "source.tif"), tmp_path / "a.img", driver="HFA")
    profile = {"driver": "GTiff", "height": 48, "width": 48, "count": 1, "dtype": "uint8"}
    with rasterio.open(f"{path}.msk", "w", crs=UTM, transform=NORTH_UP, **profile) as file:
        file.update_tags(INTERNAL_MASK_FLAGS_1="2")
    window = Window(0, 0, 48, 48)
    assert open_raster(path).read(window)[1].all()
    assert not open_raster(path, trust=True).read(window)[1].any()


@pytest.mark.parametrize(
    "text",
    [
        "+proj=utm +zone=45 +ellps=bessel +nadgrids=@null,/etc/a.gsb",
        'EXTENSION["PROJ4","+proj=longlat +geoidgrids=..\\a.gtx"]',
        'EXTENSION["PROJ4_GRIDS","~/a.gsb"]',
        'PARAMETERFILE["Latitude and longitude difference file","/etc/a.gsb"]',
        '{"name": "file", "value": "/etc/a.gsb"}',
        "+init=/etc/passwd:1",
        CRS.from_proj4("+proj=utm +zone=45 +ellps=bessel +nadgrids=/etc/a.gsb").to_wkt(),
    ],
)
def test_a_system_that_names_a_file_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="its coordinate system names a file of its own, .*Repr"):
        check_alone(Path("a.tif"), "", text)


@pytest.mark.parametrize(
    "text",
    [
        UTM.to_wkt(),
        CRS.from_epsg(3857).to_wkt(),
        CRS.from_epsg(31467).to_wkt(),
        CRS.from_proj4("+proj=utm +zone=45 +ellps=bessel +nadgrids=ntv2_0.gsb").to_wkt(),
        "+init=epsg:4326",
    ],
)
def test_a_usual_system_is_not(text: str) -> None:
    check_alone(Path("a.tif"), text)


def test_systems_of_all_codes_are_usual() -> None:
    for code in (4326, 27700, 28992, 2180, 5514, 31370, 2193, 3035, 6933, 25832, 4258, 3413):
        for version in ("WKT1_GDAL", "WKT2_2019"):
            check_alone(Path("a.tif"), CRS.from_epsg(code).to_wkt(version=version))


@pytest.mark.parametrize(
    ("crs", "told"),
    [
        ({"type": "link", "properties": {"href": "http://a/b"}}, "fetched from an address"),
        ({"type": "Link", "properties": {}}, "fetched from an address"),
        ({"type": "name", "properties": {"URL": "http://a/b"}}, "fetched from an address"),
        ({"type": "name", "properties": {"name": "+init=/etc/a:1"}}, "names a file of its own"),
    ],
)
def test_geojson_that_would_be_fetched_is_refused(tmp_path: Path, crs: object, told: str) -> None:
    path = tmp_path / "a.geojson"
    for text in (
        json.dumps(collection(crs=crs)),
        json.dumps(collection(crs=crs)).replace('"crs"', '"\\u0043RS"' + " " * 100),
        json.dumps(collection(crs=crs), indent=4),
        json.dumps({"type": "FeatureCollection", "x": " " * (2**24 - 60), "crs": crs}),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=told):
            read_features(path)


def test_geojson_whose_system_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    for crs in ("{'type': 'link'}", "/* */ {}", '{"type" "link"}', "{" * 5000):
        path.write_text(f'{{"type": "FeatureCollection", "crs": {crs}, "features": []}}')
        with pytest.raises(DataError, match=r"its coordinate system is no JSON .* member crs"):
            read_features(path)


def test_a_field_may_be_called_crs(tmp_path: Path) -> None:
    told = collection()
    for row in told["features"]:
        row["geometry"] = shapely.geometry.mapping(shapely.box(87, 27, 88, 28))
        row["properties"] = {"crs": "http://a/b", "é": "crs", "CRS": None}
    (tmp_path / "a.geojson").write_text(json.dumps(told))
    assert read_features(tmp_path / "a.geojson", field="crs").values == ("http://a/b",) * 2


def test_flatgeobuf_with_text_for_a_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.fgb"
    path.write_bytes(b"fgb\x03fgb\x01<OGRVRTDataSource>")
    with pytest.raises(DataError, match=r"a\.fgb: the file is damaged: its head is too long"):
        read_features(path)


def test_a_huge_prj_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.shp")
    path.with_suffix(".prj").write_text(" " * (2**20 + 1))
    with pytest.raises(DataError, match=r"a\.prj beside it is larger than 1 MB"):
        read_features(path)


# ---------------------------------------------------------------- GeoPackages


def test_layers_of_a_geopackage_are_those_that_gdal_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", layer="Häuser und Höfe")
    database(path, "create view apart as select 1", "create table other(x)")
    assert read_features(path, field="kind").values == ("a", "b")
    assert read_features(path, layer="Häuser und Höfe", field="kind").values == ("a", "b")


def test_views_and_virtual_tables_need_trust(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", layer="houses")
    database(path, *virtual("VirtualText('/etc/passwd', utf8)"))
    with pytest.raises(DataError, match=rf"'houses' in it is a virtual table, which.*{TRUST}"):
        read_features(path)
    path = write(tmp_path / "b.gpkg", layer="houses")
    database(path, 'create view "gpkg_more" as select 1')
    with pytest.raises(DataError, match=rf"'gpkg_more' in it is a view, which.*{TRUST}"):
        read_features(path)
    assert read_features(path, trust=True).path == path


def test_a_database_at_work_is_told_and_left(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg")
    open_journal(path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"a\.gpkg-wal beside it holds changes that are not in it"):
        read_features(path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_database_that_asks_for_too_much_is_broken_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg")
    with sqlite3.connect(path) as base:
        base.execute("drop table gpkg_contents")
    base.close()
    with pytest.raises(
        DataError, match=r"a\.gpkg: the file is damaged or cannot be read \(no such"
    ):
        read_features(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "y" * 300 + ".tif"])
def test_a_name_that_no_file_can_have_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no file can have this name .*Check it") as told:
        read_head(tmp_path / name)
    assert len(str(told.value)) < 300
