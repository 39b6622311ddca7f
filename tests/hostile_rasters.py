"""Rasters from strangers: each would have us read, write or ask for something else."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from numpy.typing import NDArray
from rasterio.crs import CRS

from made_maps import write_scene

SIDE = 48


@dataclass(frozen=True)
class Case:
    """A file as a user would name it.

    Attributes:
        name: What is wrong with it.
        kind: `raster` or `vector`.
        path: What is typed.
        honest: Whether the file itself is good, and what lies beside or in it is to be left alone.
        cwd: The folder that the user is in; None for any.
    """

    name: str
    kind: str
    path: Path
    honest: bool = False
    cwd: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a corpus lies.

    Attributes:
        inbox: The files from strangers, each in a folder of its own.
        away: What nobody may read: `canary.tif` and others.
        made: What nobody may write into.
        port: Of a server on this machine that nobody may ask.
    """

    inbox: Path
    away: Path
    made: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, case: str, name: str) -> Path:
        folder = self.inbox / case.replace(" ", "-").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def make_place(root: Path, port: int) -> Place:
    """Make the folders, and the files that nobody may read."""
    place = Place(root / "inbox", root / "away", root / "made", port)
    for folder in (place.inbox, place.away, place.made):
        folder.mkdir(parents=True)
    secret = np.full((1, SIDE, SIDE), 173, np.uint8)
    canary = write_scene(place.away / "canary.tif", secret, blockxsize=16, blockysize=16)
    for ending, driver in ((".img", "HFA"), (".png", "PNG")):
        copied(canary, canary.with_suffix(ending), driver=driver)
    (place.away / "canary.txt").write_bytes(b"the secret of the canary\n" * 100)
    (place.away / "canary.gsb").write_bytes(b"NUM_OREC" + b"\x0b" + b"\0" * 400)
    canary_vectors(place.away)
    return place


def canary_vectors(folder: Path) -> None:
    square = [[[0, 0], [0, 1], [1, 1], [0, 0]]]
    one = {"type": "Feature", "properties": {"s": "secret"}}
    one["geometry"] = {"type": "Polygon", "coordinates": square}
    text = json.dumps({"type": "FeatureCollection", "features": [one]})
    (folder / "canary.geojson").write_text(text)
    (folder / "canary.csv").write_text('WKT,s\n"POLYGON ((0 0,0 1,1 1,0 0))",secret\n')


def copied(source: Path, target: Path, **options: Any) -> Path:
    """Write a raster in another format, without anything beside it."""
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore")
        rasterio.shutil.copy(source, target, **options)
    return target


def honest_pixels(bands: int = 1) -> NDArray[np.uint8]:
    """What the good files hold."""
    return np.random.default_rng(1).integers(40, 90, (bands, SIDE, SIDE)).astype(np.uint8)


def honest(path: Path, **profile: Any) -> Path:
    return write_scene(path, honest_pixels(), **{"blockxsize": 16, "blockysize": 16, **profile})


def raster_cases(place: Place) -> list[Case]:
    """Make all rasters."""
    makers = (made_of_others, of_other_formats, beside_honest, within_honest, by_name)
    return [case for maker in makers for case in maker(place)]


def vrt(source: str, *, band: str = "", inside: str = "", attributes: str = "") -> str:
    """A virtual raster over one file."""
    simple = (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource>"
    )
    return (
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}" {attributes}>'
        "<SRS>EPSG:32645</SRS><GeoTransform>500000,0.5,0,3000000,0,-0.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1" {band}>{inside or simple}</VRTRasterBand>'
        "</VRTDataset>"
    )


def made_of_others(place: Place) -> Iterator[Case]:
    """Texts that stand for other files."""
    canary, secret = place.away / "canary.tif", place.away / "canary.txt"
    plain = vrt(str(canary))

    def case(name: str, file: str, text: str | bytes) -> Case:
        path = place.file(name, file)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Case(name, "raster", path)

    for ending in ("tif", "png", "jp2", "img", "jpg", "vrt"):
        yield case(f"vrt as {ending}", f"a.{ending}", plain)
    yield case("vrt behind a mark", "a.tif", "\ufeff" + plain)
    yield case("vrt behind blanks", "a.tif", "\r\n\t  " + plain)
    yield case("vrt behind a declaration", "a.tif", f'<?xml version="1.0"?>\n{plain}')
    yield case("vrt behind a comment", "a.tif", f"<!-- II*\0 -->{plain}")
    raw = (
        f'<SourceFilename relativetoVRT="0">{secret}</SourceFilename><ImageOffset>0</ImageOffset>'
        f"<PixelOffset>1</PixelOffset><LineOffset>{SIDE}</LineOffset>"
    )
    yield case("raw band", "a.tif", vrt("", band='subClass="VRTRawRasterBand"', inside=raw))
    derived = (
        "<PixelFunctionType>sqrt</PixelFunctionType><SimpleSource><SourceFilename>"
        f"{canary}</SourceFilename></SimpleSource>"
    )
    kind = 'subClass="VRTDerivedRasterBand"'
    yield case("derived band", "a.tif", vrt("", band=kind, inside=derived))
    code = (
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionType>f"
        "</PixelFunctionType><PixelFunctionCode><![CDATA[\nopen('"
        f"{place.made / 'python'}','w')\ndef f(*a): pass\n]]></PixelFunctionCode>"
        f"<SimpleSource><SourceFilename>{canary}</SourceFilename></SimpleSource>"
    )
    yield case("python band", "a.tif", vrt("", band=kind, inside=code))
    yield case("relative vrt", "a.tif", vrt("../../away/canary.tif").replace('VRT="0', 'VRT="1'))
    yield case("vrt of an address", "a.tif", vrt(f"{place.url}/a.tif"))
    yield case("vrt of vsicurl", "a.tif", vrt(f"/vsicurl/{place.url}/a.tif"))
    yield case("vrt of a subfile", "a.tif", vrt(f"/vsisubfile/0,{canary}"))
    warped = (
        f"<GDALWarpOptions><SourceDataset>{canary}</SourceDataset></GDALWarpOptions></VRTDataset>"
    )
    head = plain.replace("</VRTDataset>", warped)
    yield case("warped vrt", "a.tif", head.replace(" >", ' subClass="VRTWarpedDataset">', 1))
    for ending in ("tif", "mrf", "png"):
        yield case(f"mrf as {ending}", f"a.{ending}", mrf(place, f"mrf-{ending}"))
    cached = mrf(place, "cached", f"<CachedSource><Source>{canary}</Source></CachedSource>")
    yield case("mrf that caches", "a.tif", cached)
    yield case(
        "tile index",
        "a.tif",
        f"<GDALTileIndexDataset><IndexDataset>{place.away / 'canary.geojson'}</IndexDataset>"
        "<LocationField>s</LocationField></GDALTileIndexDataset>",
    )
    yield case(
        "wms",
        "a.tif",
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{place.url}/${{z}}</ServerUrl></Service>'
        f"<DataWindow><SizeX>{SIDE}</SizeX><SizeY>{SIDE}</SizeY></DataWindow>"
        f"<Cache><Path>{place.made}</Path></Cache></GDAL_WMS>",
    )
    yield case(
        "wcs",
        "a.tif",
        f"<WCS_GDAL><ServiceURL>{place.url}/?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
    )
    yield case(
        "wmts",
        "a.tif",
        f"<GDAL_WMTS><GetCapabilitiesUrl>{place.url}/?</GetCapabilitiesUrl></GDAL_WMTS>",
    )
    entity = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><a>&x;</a>'
    yield case("entity", "a.tif", entity)


def mrf(place: Place, name: str, more: str = "") -> str:
    return (
        f"<MRF_META>{more}<Raster><Size x='{SIDE}' y='{SIDE}'/><PageSize x='16' y='16' c='1'/>"
        f"<Compression>NONE</Compression><DataFile>{place.made}/{name}.dat</DataFile>"
        f"<IndexFile>{place.made}/{name}.idx</IndexFile></Raster></MRF_META>"
    )


def of_other_formats(place: Place) -> Iterator[Case]:
    """What GDAL knows and we do not, under an honest name."""
    canary = place.away / "canary.tif"
    contents: dict[str, bytes] = {
        "stacit": json.dumps(
            {
                "type": "FeatureCollection",
                "stac_version": "1.0.0",
                "features": [{"assets": {"a": {"href": str(canary)}}}],
            }
        ).encode(),
        "ermapper": b'DatasetHeader Begin\n Version = "5.0"\n DataFile = "../away/canary.txt"\n',
        "ozi": f"OziExplorer Map Data File Version 2.2\nx\n{canary}\n".encode(),
        "nitf": b"NITF02.10" + b"0" * 400,
        "pcidsk": b"PCIDSK  " + b" " * 1024,
        "pdf": b"%PDF-1.4\n1 0 obj<</F(" + str(canary).encode() + b")>>\n",
        "sqlite": b"SQLite format 3\0" + b"\0" * 100,
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
        "netcdf": b"CDF\x01" + b"\0" * 100,
        "grid": b"ncols 4\nnrows 4\nxllcorner 0\nyllcorner 0\ncellsize 1\n" + b"1 " * 16,
        "gif": b"GIF89a" + b"\1\0" * 50,
        "derived": b"DERIVED_SUBDATASET:LOGAMPLITUDE:" + str(canary).encode(),
    }
    for name, content in contents.items():
        path = place.file(f"{name} as tif", "a.tif")
        path.write_bytes(content)
        yield Case(f"{name} as tif", "raster", path)
    path = place.file("zip as tif", "a.tif")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(canary, "doc.kml")
    yield Case("zip as tif", "raster", path)
    folder = place.file("zarr as tif", "a.tif")
    folder.mkdir()
    (folder / ".zarray").write_text("{}")
    yield Case("zarr as tif", "raster", folder)


def beside_honest(place: Place) -> Iterator[Case]:
    """What lies beside good files and says something else."""
    canary = place.away / "canary.tif"
    pam = (
        "<PAMDataset><SRS>EPSG:4326</SRS><GeoTransform>9,1,0,9,0,-1</GeoTransform>"
        f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{canary}</MDI></Metadata>'
        '<PAMRasterBand band="1"><NoDataValue>50</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    world = b"9\n0\n0\n-9\n9\n9\n"
    tab = f'!table\nDefinition Table\n File "{canary}"\n Type "RASTER"\n (0,0) (0,0) Label "a",\n'
    texts: dict[str, tuple[str, bytes]] = {
        "ovr": ("a.tif.ovr", vrt(str(canary)).encode()),
        "msk": ("a.tif.msk", vrt(str(canary)).encode()),
        "aux.xml": ("a.tif.aux.xml", pam.encode()),
        "aux": ("a.aux", (place.away / "canary.img").read_bytes()),
        "imd": ("a.IMD", f'version = "{canary}";\nBEGIN_GROUP = BAND_P\n'.encode()),
        "rpb": ("a.RPB", b'satId = "QB02";\nSpecId = "RPC00B";\n'),
        "rpc": ("a_rpc.txt", b"LINE_OFF: 1\n"),
        "mtl": ("a_MTL.txt", b"GROUP = L1\nEND\n"),
        "tfw": ("a.tfw", world),
        "wld": ("a.wld", world),
        "tab": ("a.tab", tab.encode()),
        "prj": ("a.prj", b"http://127.0.0.1/"),
        "hdr": ("a.hdr", b"ENVI\nsamples = 48\nlines = 48\n"),
    }
    for name, (file, content) in texts.items():
        path = honest(place.file(f"{name} beside a tif", "a.tif"))
        path.with_name(file).write_bytes(content)
        yield Case(f"{name} beside a tif", "raster", path, True)
    path = honest(place.file("linked ovr beside a tif", "a.tif"))
    os.symlink(canary, path.with_name("a.tif.ovr"))
    yield Case("linked ovr beside a tif", "raster", path, True)
    shared = honest(place.file("all beside others", "source.tif"))
    for ending, driver, short in (
        ("png", "PNG", "pgw"),
        ("jpg", "JPEG", "jgw"),
        ("jp2", "JP2OpenJPEG", "j2w"),
        ("img", "HFA", "igw"),
    ):
        name = f"all beside a {ending}"
        path = place.file(name, f"a.{ending}")
        copied(shared, path, driver=driver)
        path.with_suffix(f".{short}").write_bytes(world)
        for end in (".aux.xml", ".ovr", ".msk"):
            text = pam if end == ".aux.xml" else vrt(str(canary))
            Path(f"{path}{end}").write_text(text)
        shutil.copy(place.away / "canary.img", path.with_suffix(".rrd"))
        yield Case(name, "raster", path, True)


def within_honest(place: Place) -> Iterator[Case]:
    """What good files say inside."""
    canary = place.away / "canary.tif"
    path = place.file("overview named inside", "a.tif")
    metadata = (
        f'<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{canary}</Item>'
        f'<Item name="OVERVIEW_FILE">{canary}</Item></GDALMetadata>'
    )
    pixels = honest_pixels()[0]
    tags = [(42112, "s", 0, metadata, True)]
    tifffile.imwrite(path, pixels, extratags=tags, metadata=None)
    yield Case("overview named inside", "raster", path, True)
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="1" SizeT="1" '
        f'SizeX="{SIDE}" SizeY="{SIDE}" SizeZ="1" Type="uint8"><TiffData><UUID '
        'FileName="../../away/canary.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
    )
    path = place.file("ome of other files", "a.ome.tif")
    tifffile.imwrite(path, pixels, description=ome, metadata=None)
    yield Case("ome of other files", "raster", path, True)
    grids = CRS.from_proj4(
        "+proj=tmerc +lat_0=0 +lon_0=87 +k=0.9997 +x_0=500000 +ellps=bessel "
        f"+nadgrids={place.away / 'canary.gsb'} +units=m"
    ).to_wkt()
    yield Case("grid shift in a tif", "raster", esri_tif(place, grids))
    yield from hfa_cases(place)
    yield from jp2_cases(place)


def esri_tif(place: Place, wkt: str) -> Path:
    """A GeoTIFF that says its coordinate system as Esri's programs do."""
    path = place.file("grid shift in a tif", "a.tif")
    text = f"ESRI PE String = {wkt}|"
    keys = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32767)
    keys += (3073, 34737, len(text), 0)
    tags: Sequence[Any] = [
        (33550, "d", 3, (0.5, 0.5, 0.0), True),
        (33922, "d", 6, (0, 0, 0, 500000.0, 3000000.0, 0), True),
        (34735, "H", len(keys), keys, True),
        (34737, "s", 0, text, True),
    ]
    tifffile.imwrite(path, honest_pixels()[0], extratags=tags, metadata=None)
    return path


def hfa_cases(place: Place) -> Iterator[Case]:
    """Files of Erdas Imagine that keep pixels or overviews elsewhere."""
    away = "../../away/canary.img"
    shared = honest(place.file("source of imagine", "source.tif"))
    stem = "x" * (len(away) - 4)
    path = place.file("imagine of other files", f"{stem}.img")
    copied(shared, path, driver="HFA", USE_SPILL="YES")
    path.write_bytes(path.read_bytes().replace(f"{stem}.ige".encode(), away.encode()))
    path.with_suffix(".ige").unlink()
    yield Case("imagine of other files", "raster", path)
    path = place.file("imagine with overviews elsewhere", f"{stem}.img")
    copied(shared, path, driver="HFA")
    with rasterio.Env(HFA_USE_RRD="YES", USE_RRD="YES"), rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    path.write_bytes(path.read_bytes().replace(f"{stem}.rrd".encode(), away.encode()))
    path.with_suffix(".rrd").unlink(missing_ok=True)
    yield Case("imagine with overviews elsewhere", "raster", path, True)


def jp2_cases(place: Place) -> Iterator[Case]:
    """JPEG 2000 whose boxes point elsewhere."""
    shared = honest(place.file("source of jp2", "source.tif"))

    def case(name: str, change: Callable[[bytes], bytes]) -> Case:
        path = place.file(name, "a.jp2")
        copied(shared, path, driver="JP2OpenJPEG", GeoJP2="NO", quality=100, reversible=True)
        path.write_bytes(change(path.read_bytes()))
        return Case(name, "raster", path, True)

    def system(name: str) -> Callable[[bytes], bytes]:
        return lambda data: changed(data, b"urn:ogc:def:crs:EPSG::32645", name.encode())

    yield case("jp2 with a system on a server", system(f"{place.url}/crs"))
    yield case("jp2 with a system in a file", system(str(place.away / "canary.txt")))
    words = (
        f'<GDALMultiDomainMetadata><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f"{place.away / 'canary.tif'}</MDI></Metadata></GDALMultiDomainMetadata>"
    )
    yield case("jp2 with an overview elsewhere", lambda data: data + box(b"xml ", words.encode()))
    link = (
        f'<gml:a xlink:href="{place.url}/x"/><gml:b xlink:href="file://{place.away}/canary.txt"/>'
    )
    yield case("jp2 with links", lambda data: data + box(b"xml ", link.encode()))


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace bytes in the boxes of a JPEG 2000 file, whose lengths are put right."""
    out = b""
    while data:
        length, kind = struct.unpack(">I4s", data[:8])
        length = length or len(data)
        inner = data[8:length]
        if kind in (b"asoc",):
            inner = changed(inner, old, new)
        elif kind == b"xml ":
            inner = inner.replace(old, new)
        last = struct.unpack(">I", data[:4])[0] == 0
        out += (b"\0\0\0\0" + kind + inner) if last else box(kind, inner)
        data = data[length:]
    return out


def by_name(place: Place) -> Iterator[Case]:
    """Names that are no files."""
    canary = place.away / "canary.tif"
    names = {
        "inline vrt": vrt(str(canary)),
        "inline mrf": mrf(place, "inline"),
        "inline wms": f"<GDAL_WMS><Service><ServerUrl>{place.url}</ServerUrl></Service></GDAL_WMS>",
        "address": f"{place.url}/a.tif",
        "secure address": f"https://127.0.0.1:{place.port}/a.tif",
        "vsicurl": f"/vsicurl/{place.url}/a.tif",
        "vsicurl with a query": f"/vsicurl?url={place.url}/a.tif",
        "vsis3": "/vsis3/bucket/a.tif",
        "s3": "s3://bucket/a.tif",
        "ftp": f"ftp://127.0.0.1:{place.port}/a.tif",
        "vsisubfile": f"/vsisubfile/0,{canary}",
        "vsizip": f"/vsizip/{canary}",
        "vsitar": f"/vsitar/{canary}",
        "vsistdin": "/vsistdin/",
        "vsimem": "/vsimem/a.tif",
        "zip": f"zip://{canary}!canary.tif",
        "file": f"file://{canary}",
        "vrt scheme": f"vrt://{canary}?bands=1",
        "raw": f"GTIFF_RAW:{canary}",
        "directory": f"GTIFF_DIR:1:{canary}",
        "memory": f"MEM:::DATAPOINTER=1,PIXELS={SIDE},LINES={SIDE}",
        "derived": f"DERIVED_SUBDATASET:LOGAMPLITUDE:{canary}",
        "jpeg subfile": f"JPEG_SUBFILE:0,100,{canary}",
        "netcdf": f'NETCDF:"{canary}":a',
        "hdf5": f'HDF5:"{canary}"://a',
        "zarr": f'ZARR:"/vsicurl/{place.url}/a.zarr"',
        "wms name": f"WMS:{place.url}/?",
        "wcs name": f"WCS:{place.url}/?",
        "wmts name": f"WMTS:{place.url}/?",
        "tile index name": f"GTI:{place.away / 'canary.geojson'}",
        "stac name": f'STACTA:"{place.url}/a.json"',
        "plmosaic": "PLMosaic:mosaic=a,api_key=b",
        "eeda": "EEDAI:a",
    }
    for name, text in names.items():
        yield Case(f"name: {name}", "raster", Path(text))
    for scheme in ("GTIFF_RAW", "file", "zip", "JPEG_SUBFILE"):
        path = honest(place.file(f"a file called {scheme}", f"{scheme}:canary.tif"))
        shutil.copy(canary, path.with_name("canary.tif"))
        yield Case(f"a file called {scheme}:", "raster", Path(path.name), True, path.parent)
