"""Vector files from strangers: each would have us read, write or ask for something else."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from rasterio.crs import CRS

from hostile_rasters import Case, Place
from made_maps import NORTH_UP, UTM

WKT = UTM.to_wkt()


def vector_cases(place: Place) -> list[Case]:
    """Make all vector files."""
    makers = (made_of_others, geojson_cases, gpkg_cases, with_systems, beside_shapes, by_name)
    return [case for maker in makers for case in maker(place)]


def shapes() -> Any:
    """Two houses on the ground of the honest rasters."""
    corners = [[(2, 2), (20, 2), (20, 14), (2, 14)], [(24, 24), (44, 24), (44, 40), (24, 40)]]
    return np.array([shapely.Polygon([NORTH_UP @ one for one in ring]) for ring in corners])


def write(path: Path, crs: str = WKT, **options: Any) -> Path:
    """Write the houses."""
    drivers = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}
    fields = [np.array(["a", "b"], dtype=object)]
    pyogrio.raw.write(
        str(path), shapely.to_wkb(shapes()), fields, ["kind"], driver=drivers[path.suffix],
        geometry_type="Polygon", crs=crs, **options,
    )  # fmt: skip
    return path


def made_of_others(place: Place) -> Iterator[Case]:
    """Texts that stand for other files, and formats that we do not read."""
    canary = place.away / "canary.geojson"
    layer = (
        "<OGRVRTDataSource><OGRVRTLayer name='canary'><SrcDataSource>{}</SrcDataSource>{}"
        "</OGRVRTLayer></OGRVRTDataSource>"
    )

    def case(name: str, file: str, content: str | bytes) -> Case:
        path = place.file(name, file)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Case(name, "vector", path)

    for ending in ("geojson", "gpkg", "shp", "fgb", "vrt"):
        yield case(f"ogr vrt as {ending}", f"a.{ending}", layer.format(canary, ""))
    yield case("ogr vrt of an address", "a.geojson", layer.format(f"{place.url}/a.json", ""))
    sql = "<SrcSQL dialect='SQLITE'>select readfile('/etc/passwd') from canary</SrcSQL>"
    yield case("ogr vrt with sql", "a.geojson", layer.format(canary, sql))
    yield case(
        "ogr vrt behind flatgeobuf", "a.fgb", b"fgb\x03fgb" + layer.format(canary, "").encode()
    )
    yield case("ogr vrt behind flatgeobuf's magic", "a.fgb",
               b"fgb\x03fgb\x01\n" + layer.format(canary, "").encode())  # fmt: skip
    yield case("ogr vrt behind a shape's magic", "a.shp",
               b"\0\0\x27\x0a" + layer.format(canary, "").encode())  # fmt: skip
    entity = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{place.away / "canary.txt"}">]>'
    gml = (
        f"{entity}<ogr:FeatureCollection xmlns:ogr='http://ogr.maptools.org/' xmlns:xsi='http://www."
        f"w3.org/2001/XMLSchema-instance' xsi:schemaLocation='http://x {place.url}/a.xsd'>&x;"
        "</ogr:FeatureCollection>"
    )
    kml = (
        f"{entity}<kml><Document><NetworkLink><Link><href>{place.url}/a.kml</href></Link>"
        "</NetworkLink><name>&x;</name></Document></kml>"
    )
    for name, text in (("gml", gml), ("kml", kml), ("gpx", f"{entity}<gpx>&x;</gpx>")):
        yield case(f"{name} as geojson", "a.geojson", text)
        yield case(name, f"a.{name}", text)
    csv = (place.away / "canary.csv").read_bytes()
    yield case("csv as geojson", "a.geojson", csv)
    yield case("csv as gpkg", "a.gpkg", csv)
    algorithm = {
        "type": "gdal_streamed_alg",
        "command_line": f"gdal vector pipeline ! read {canary} ! write {place.made}/a.gpkg",
    }
    yield case("an algorithm of gdal", "a.geojson", json.dumps(algorithm))
    yield case("mapinfo", "a.shp", f'!table\n!version 300\nDefinition Table\n File "{canary}"\n')
    yield case("dxf", "a.geojson", "  0\nSECTION\n  2\nHEADER\n")
    path = place.file("zip as shp", "a.shp")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(canary, "a.geojson")
    yield Case("zip as shp", "vector", path)
    yield Case("a folder as shp", "vector", folder_of(place, "a folder as shp", "a.shp"))
    yield Case("a folder as gdb", "vector", folder_of(place, "a folder as gdb", "a.gdb"))


def folder_of(place: Place, name: str, file: str) -> Path:
    path = place.file(name, file)
    path.mkdir()
    write(path / "a.shp")
    return path


def collection(**more: Any) -> dict[str, Any]:
    """The houses as GeoJSON, whose longitudes and latitudes are not asked for."""
    rows = [
        {"type": "Feature", "properties": {"kind": "a"}, "geometry": shapely.geometry.mapping(one)}
        for one in shapes()
    ]
    return {"type": "FeatureCollection", **more, "features": rows}


def geojson_cases(place: Place) -> Iterator[Case]:
    """GeoJSON that names other places."""
    url, secret = f"{place.url}/crs", str(place.away / "canary.txt")

    def case(name: str, text: str, honest: bool = False) -> Case:
        path = place.file(f"geojson {name}", "a.geojson")
        path.write_text(text)
        return Case(f"geojson {name}", "vector", path, honest)

    def system(kind: str, **properties: Any) -> str:
        return json.dumps(collection(crs={"type": kind, "properties": properties}))

    yield case("with a link", system("link", href=url, type="ogcwkt"))
    yield case("with a url", system("url", url=url))
    yield case("with a loud link", system("LINK", HREF=url))
    yield case("with a hidden link", system("link", href=url).replace('"crs"', '"\\u0063r\\u0053"'))
    yield case("with an odd link", system("link", href=url).replace('"crs":', "'crs' /* */ :"))
    late = collection() | {"crs": {"type": "link", "properties": {"href": url}}}
    yield case("with a late link", json.dumps(late))
    inner = collection()
    inner["features"][0]["crs"] = {"type": "link", "properties": {"href": url}}
    yield case("with a link inside", json.dumps(inner))
    inner = collection()
    inner["features"][0]["geometry"]["crs"] = {"type": "link", "properties": {"href": url}}
    yield case("with a link in a shape", json.dumps(inner))
    yield case("of a system on a server", system("name", name=url))
    yield case("of a system in a file", system("name", name=secret))
    yield case("of a system behind vsicurl", system("name", name=f"/vsicurl/{url}"))
    yield case("of a system as a path", system("EPSG", code=secret))
    shift = f"+proj=utm +zone=45 +ellps=bessel +nadgrids={place.away / 'canary.gsb'}"
    yield case("of a system with a grid", system("name", name=shift))
    begun = f"+init={secret}:1"
    yield case("of a system begun elsewhere", system("name", name=begun))
    yield case("of a system in words", json.dumps(collection(crs=shift)))
    links = [{"rel": "next", "href": f"{url}/2"}, {"rel": "describedby", "href": url}]
    right = {"crs": {"type": "name", "properties": {"name": "EPSG:32645"}}}
    yield case("with links", json.dumps(collection(links=links, **right)), True)
    more = {"exceededTransferLimit": True, "properties": {"exceededTransferLimit": True}}
    yield case("that is not all", json.dumps(collection(**more, **right)), True)
    told = {"$schema": url, "$ref": url, "@context": url, "stac_version": "1.0.0", "url": url}
    yield case("with a schema", json.dumps(collection(**told, **right)), True)
    arcs = {"type": "Topology", "arcs": [], "objects": {"a": {"type": "Polygon", "arcs": []}}}
    yield case("that is topojson", json.dumps(arcs))
    esri = {"geometryType": "esriGeometryPolygon", "displayFieldName": "a", "features": []}
    yield case("of esri's", json.dumps({**esri, "url": url}))


def gpkg_cases(place: Place) -> Iterator[Case]:
    """GeoPackages, which are databases with programs in them."""
    canary, secret = place.away / "canary.tif", place.away / "canary.txt"

    def case(name: str, *statements: str, honest: bool = False) -> Case:
        path = write(place.file(f"gpkg {name}", "a.gpkg"), layer="houses")
        database(path, *statements)
        return Case(f"gpkg {name}", "vector", path, honest)

    def view(expression: str) -> tuple[str, ...]:
        """The layer itself is a view then."""
        return (
            "alter table houses rename to hidden",
            f"create view houses as select fid, geom, {expression} as kind from hidden",
        )

    pixel = f"gdal_get_pixel_value('{canary}', 1, 'pixel', 3, 3)"
    yield case("with pixels of others", *view(pixel))
    yield case(
        "with pixels of an address", *view(f"gdal_get_pixel_value('{place.url}/a',1,'pixel',3,3)")
    )
    geocode = f"ogr_geocode('a', 'raw', 'SERVICE=BING', 'QUERY_TEMPLATE={place.url}/%s')"
    yield case("that asks for places", *view(geocode))
    yield case("that asks with a cache", *view(
        f"ogr_geocode('a','raw','CACHE_FILE={place.made}/c.sqlite','QUERY_TEMPLATE={place.url}/%s')"
    ))  # fmt: skip
    yield case("with an extension", *view(f"load_extension('{secret}')"))
    yield case("that reads files", *view(f"readfile('{secret}')"))
    yield case("that writes files", *view(f"writefile('{place.made}/x', 'x')"))
    yield case("that exports", *view(f"ExportSHP('houses','geom','{place.made}/x','utf-8')"))
    yield case("with a tokenizer", *view("fts3_tokenizer('simple')"))
    trigger = (
        "create trigger t after update on houses begin select load_extension("
        f"'{secret}'); insert into houses(kind) values ({pixel}); end"
    )
    yield case("with triggers", trigger, honest=True)
    yield case("without end", *view(
        "(with recursive c(x) as (select 1 union all select x+1 from c) select max(x) from c)"
    ))  # fmt: skip
    column = "alter table houses add column more text generated always as ({}) virtual"
    yield case("with a column of pixels", column.format(pixel))
    yield case("with a column that asks", column.format(geocode))
    contents = (
        "alter table gpkg_contents rename to hidden",
        "create view gpkg_contents as with recursive c(x) as (select 1 union all select x+1 from c)"
        " select hidden.* from hidden, c",
    )
    yield case("whose contents are a view", *contents)
    yield case("with a virtual table", *virtual(f"VirtualOGR('{place.away / 'canary.geojson'}')"))
    yield case("with a virtual address", *virtual(f"VirtualOGR('{place.url}/a.json')"))
    yield case("with virtual shapes", *virtual(f"VirtualShape('{secret}', utf8, 4326)"))
    yield case("with a virtual text", *virtual(f"VirtualText('{secret}', utf8)"))
    yield case("with a virtual csv", *virtual(f"csv(filename='{secret}')"))
    path = write(place.file("gpkg of a journal", "a.gpkg"))
    database(path, "pragma journal_mode=wal", "update a set kind = 'c'")
    yield Case("gpkg of a journal", "vector", path, True)
    path = write(place.file("gpkg with a hot journal", "a.gpkg"))
    hot_journal(path, place.away / "canary.txt")
    yield Case("gpkg with a hot journal", "vector", path)
    path = write(place.file("gpkg with an open journal", "a.gpkg"))
    open_journal(path)
    yield Case("gpkg with an open journal", "vector", path)


def virtual(module: str) -> tuple[str, ...]:
    """The layer is a virtual table then, which this SQLite need not know."""
    return (
        "alter table houses rename to hidden",
        "pragma writable_schema=on",
        "insert into sqlite_master(type,name,tbl_name,rootpage,sql) values ('table','houses',"
        f"'houses',0,'create virtual table houses using {module.replace(chr(39), chr(39) * 2)}')",
    )


def database(path: Path, *statements: str) -> None:
    """Change a GeoPackage."""
    with sqlite3.connect(path) as base:
        base.isolation_level = None
        names = ("rtree", "trigger_insert", "trigger_delete", "trigger_update", "gpkg")
        for (name,) in base.execute(
            "select name from sqlite_master where type='trigger'"
        ).fetchall():
            if name.startswith(names):
                base.execute(f'drop trigger "{name}"')
        for statement in statements:
            base.execute(statement)
    base.close()


def hot_journal(path: Path, other: Path) -> None:
    """A journal that asks for pages to be put back, and names another one as its master."""
    pages = path.read_bytes()
    name = str(other).encode()
    magic = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    head = magic + (1).to_bytes(4, "big") + (7).to_bytes(4, "big")
    head += (
        (len(pages) // 4096).to_bytes(4, "big")
        + (512).to_bytes(4, "big")
        + (4096).to_bytes(4, "big")
    )
    page = b"\0" * 4096
    total = (7 + sum(page[i] for i in range(4096 - 200, 0, -200))) & 0xFFFFFFFF
    record = (1).to_bytes(4, "big") + page + total.to_bytes(4, "big")
    master = (2**31 // 4096).to_bytes(4, "big") + name + len(name).to_bytes(4, "big")
    master += (sum(name) & 0xFFFFFFFF).to_bytes(4, "big") + magic
    Path(f"{path}-journal").write_bytes(head.ljust(512, b"\0") + record + master)


def open_journal(path: Path) -> None:
    """What a program that is still at work has written is in a file beside it."""
    base = sqlite3.connect(path)
    base.execute("pragma journal_mode=wal")
    base.execute("pragma wal_autocheckpoint=0")
    base.execute("create table new(x)")
    base.commit()
    copies = {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal")}
    base.close()
    for end, data in copies.items():
        Path(f"{path}{end}").write_bytes(data)
    Path(f"{path}-shm").unlink(missing_ok=True)


def with_systems(place: Place) -> Iterator[Case]:
    """Coordinate systems that are kept in other files, or on servers."""
    grid = place.away / "canary.gsb"
    shift = CRS.from_proj4(
        "+proj=tmerc +lat_0=0 +lon_0=87 +k=0.9997 +x_0=500000 +ellps=bessel "
        f"+nadgrids={grid} +units=m"
    ).to_wkt()
    for ending in ("gpkg", "shp", "fgb"):
        name = f"grid shift in {ending}"
        path = write(place.file(name, f"a.{ending}"))
        if ending == "shp":
            path.with_suffix(".prj").write_text(shift)
        elif ending == "gpkg":
            quoted = shift.replace("'", "''")
            database(
                path,
                f"update gpkg_spatial_ref_sys set definition='{quoted}', organization='NONE', "
                "organization_coordsys_id=7",
            )
        else:
            path.unlink()
            write(path, shift)
        yield Case(name, "vector", path)
    for name, text in (("server", f"{place.url}/crs"), ("file", str(place.away / "canary.txt"))):
        path = write(place.file(f"gpkg of a system on a {name}", "a.gpkg"))
        database(
            path,
            f"update gpkg_spatial_ref_sys set definition='{text}', organization='{text}', "
            "organization_coordsys_id=7",
        )
        yield Case(f"gpkg of a system on a {name}", "vector", path)
        path = write(place.file(f"shp of a system on a {name}", "a.shp"))
        path.with_suffix(".prj").write_text(text)
        yield Case(f"shp of a system on a {name}", "vector", path)
        path = place.file(f"fgb of a system on a {name}", "a.fgb")
        owner = "N" * len(text)
        mine = WKT.replace('AUTHORITY["EPSG","32645"]', f'AUTHORITY["{owner}","7"]')
        write(path, mine)
        path.write_bytes(path.read_bytes().replace(owner.encode(), text.encode()))
        yield Case(f"fgb of a system on a {name}", "vector", path)


def beside_shapes(place: Place) -> Iterator[Case]:
    """What lies beside good shapefiles."""
    secret = place.away / "canary.txt"
    texts: dict[str, tuple[str, bytes]] = {
        "cpg": ("a.cpg", f"{secret}".encode()),
        "cst": ("a.cst", f"../../away/canary.txt//{secret}".encode()),
        "qix": ("a.qix", b"SQT\x01\x01" + b"\xff" * 60),
        "sbn": ("a.sbn", b"\0\0\x27\x0a" + b"\xff" * 200),
        "idm": ("a.idm", f"<OGRMILayerAttrIndex><MIIDFilename>{secret}</MIIDFilename>"
                f"<OGRMIAttrIndex><FieldIndex>0</FieldIndex><FieldName>kind</FieldName><IndexIndex>1"
                "</IndexIndex></OGRMIAttrIndex></OGRMILayerAttrIndex>".encode()),
        "xml": ("a.shp.xml", f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><a>&x;</a>'.encode()),
        "qpj": ("a.qpj", str(secret).encode()),
        "vrt": ("a.vrt", f"<OGRVRTDataSource>{secret}</OGRVRTDataSource>".encode()),
    }  # fmt: skip
    for name, (file, content) in texts.items():
        path = write(place.file(f"{name} beside a shp", "a.shp"))
        path.with_name(file).write_bytes(content)
        yield Case(f"{name} beside a shp", "vector", path, name not in ("cpg", "cst"))
    path = write(place.file("aux beside a gpkg", "a.gpkg"))
    Path(f"{path}.aux.xml").write_text("<PAMDataset/>")
    yield Case("aux beside a gpkg", "vector", path, True)


def by_name(place: Place) -> Iterator[Case]:
    """Names that are no files."""
    canary = place.away / "canary.geojson"
    names = {
        "postgres": f"PG:host=127.0.0.1 port={place.port} dbname=a",
        "mysql": f"MYSQL:a,host=127.0.0.1,port={place.port}",
        "csv": f"CSV:{place.away / 'canary.csv'}",
        "wfs": f"WFS:{place.url}/?",
        "oapif": f"OAPIF:{place.url}/",
        "elastic": f"ES:{place.url}",
        "carto": "CARTO:a",
        "address": f"{place.url}/a.geojson",
        "loud address": f"HTTP://127.0.0.1:{place.port}/a.geojson",
        "geojson": f"GeoJSON:{canary}",
        "geojson address": f"GeoJSON:{place.url}/a.geojson",
        "gpkg": f'GPKG:"{canary}"',
        "sqlite": f"file:{canary}?immutable=1",
        "vsicurl": f"/vsicurl/{place.url}/a.geojson",
        "vsisubfile": f"/vsisubfile/0,{canary}",
        "vsizip": f"/vsizip/{canary}",
        "zip": f"zip://{canary}!a.geojson",
        "s3": "s3://bucket/a.gpkg",
        "inline vrt": f"<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>{canary}"
        "</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>",
        "inline json": json.dumps(collection()),
        "adbc": f"ADBC:{canary}",
    }
    for name, text in names.items():
        yield Case(f"name: {name} of shapes", "vector", Path(text))
    writers: dict[str, Callable[[Path], Path]] = {"GPKG:": write_gpkg, "GeoJSON:": write_geojson}
    for prefix, writer in writers.items():
        path = writer(place.file(f"a file called {prefix[:-1]}", f"{prefix}canary.geojson"))
        shutil.copy(canary, path.with_name("canary.geojson"))
        yield Case(f"a file called {prefix}", "vector", Path(path.name), True, path.parent)


def write_gpkg(path: Path) -> Path:
    return write(path.with_name("x.gpkg")).rename(path)


def write_geojson(path: Path) -> Path:
    right = {"crs": {"type": "name", "properties": {"name": "EPSG:32645"}}}
    path.write_text(json.dumps(collection(**right)))
    return path
