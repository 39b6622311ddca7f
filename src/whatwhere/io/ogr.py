"""What GDAL is told of vector files, and what it tells: files, layers, fields, their types."""

from __future__ import annotations

import contextlib
import difflib
import glob
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import pyogrio.util
import shapely
from numpy.typing import NDArray

from whatwhere.errors import DataError, UsageError
from whatwhere.io import geojson, geopackage
from whatwhere.io.crs import (
    LONGITUDE_LATITUDE,
    Shapes,
    check_alone,
    crs_name,
    is_on_ground,
    parse_crs,
    to_wkt,
)
from whatwhere.io.image import fault, read_head

_SHAPEFILE = "ESRI Shapefile"
_PREFIXES = {"GeoJSON": "GeoJSON:{}", "GPKG": 'GPKG:"{}"'}  # they name the driver to GDAL
_ENDINGS = {_SHAPEFILE: ".shp", "FlatGeobuf": ".fgb"}  # these GDAL knows by their names
_BEGINNINGS = (
    (b"SQLite format 3\x00", "GPKG"),
    (b"fgb\x03fgb", "FlatGeobuf"),
    (b"\x00\x00\x27\x0a", _SHAPEFILE),
)
_TRUST = "If you know what it opens, say --trust (in Python trust=True)."
AGAIN = "Copy it again, or export it again."
_MOST_WKT = 1 << 20  # of a .prj file [bytes]
# What is said of a file that nobody needs to hear: shapes have numbers of their own, and rings that
# are not closed are counted.
_HARMLESS = re.compile("Several features with id|Non closed ring")


# What the library has been seen to raise; a NameError is its own.
_DAMAGED = (RuntimeError, OSError, ValueError, LookupError, OverflowError, TypeError, NameError)


class Source(NamedTuple):
    """A file that may be read.

    Attributes:
        path: What the user calls it.
        name: What GDAL is told.
        driver: What GDAL must read it with; None where the user trusts the name.
        trust: Whether the user trusts what it leads to.
    """

    path: Path
    name: str
    driver: str | None
    trust: bool

    @property
    def options(self) -> dict[str, str]:
        """How GDAL is to open it."""
        return {} if self.trust or self.driver != "GPKG" else dict(geopackage.OPEN)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[list[str]]:
    """Turn what GDAL says of a bad file into one sentence.

    Yields:
        A list that holds what it warned of when the block has ended.
    """
    heard: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        told = dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
        heard += [text for text in told if not _HARMLESS.match(text)]
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise fault(path, "its text is not in UTF-8.", "Save it as UTF-8.") from error
    except MemoryError as error:
        raise fault(path, "the memory is too small for it.", "Cut it into smaller ones.") from error
    except _DAMAGED as error:
        raise fault(
            path, f"the file is damaged or cannot be read ({short(error)}).", AGAIN
        ) from error


def short(error: Exception) -> str:
    """Return what an error says, in one line of bounded length."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def find_source(path: Path, trust: bool) -> Source:
    """Find out what a file is, and refuse what is not a file of its own."""
    text = path.as_posix()
    remote = re.match(r"([a-z0-9+]{2,}):/+", text, re.IGNORECASE)
    if trust and (remote or text.startswith("/vsi")):
        name = f"{remote[1]}://{text[remote.end() :]}" if remote else text
        return Source(path, name, None, trust)
    if remote or text.startswith("/vsi"):
        raise fault(path, "this is on a network, or inside another file.", _TRUST)
    head = read_head(path, 256)
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    driver = next((name for start, name in _BEGINNINGS if head.startswith(start)), None)
    if plain.startswith(b"{"):
        driver = "GeoJSON"
    if driver is None:
        if trust:
            return Source(path, plain_name(path), None, trust)
        if plain.startswith(b"<"):
            raise fault(path, "this is XML (VRT, GML, KML or the like).", _TRUST)
        raise fault(
            path,
            "this is no GeoJSON, GeoPackage, shapefile or FlatGeobuf, whatever its name says.",
            "Convert it to a GeoPackage.",
        )
    ending = _ENDINGS.get(driver)
    if ending and path.suffix.lower() != ending:
        raise fault(path, f"this is a {driver}, whose name must end in {ending}.", "Rename it.")
    if driver == _SHAPEFILE:
        _check_shapefile(path)
    if not trust:
        _check_system(path, driver, head)
    return Source(path, plain_name(path, _PREFIXES.get(driver, "{}")), driver, trust)


def _check_system(path: Path, driver: str, head: bytes) -> None:
    """Refuse what GDAL would take for something else, or whose system it would fetch.

    It does so as soon as it opens a file.
    """
    if driver == "GeoJSON":
        geojson.check_system(path, _TRUST)
    elif driver == "FlatGeobuf":
        # Of the four bytes that say how long the head is, the last one is 0, or it has 16 MB: text
        # in their place would make another format of the file.
        if len(head) < 12 or head[11]:
            raise fault(path, "the file is damaged: its head is too long.", AGAIN)
        (length,) = struct.unpack("<I", head[8:12])
        check_alone(path, read_head(path, 12 + length).decode("latin-1"))
    elif driver == _SHAPEFILE:
        for beside in path.parent.glob(f"{glob.escape(path.stem)}.[pP][rR][jJ]"):
            if beside.is_file() and beside.stat().st_size > _MOST_WKT:
                raise fault(path, f"{beside.name} beside it is larger than 1 MB.", AGAIN)
            check_alone(path, beside.read_bytes().decode("latin-1") if beside.is_file() else "")


def plain_name(path: Path, form: str = "{}") -> str:
    """Return a file's full name as GDAL is told it.

    Raises:
        DataError: The library would take it for something else.
    """
    name = form.format(path.absolute())
    if pyogrio.util.vsi_path(name) != name:
        raise fault(
            path,
            "a name with !, ; or // would be taken for an address, and one in .zip for an archive.",
            "Rename the file or its folder.",
        )
    return name


def _check_shapefile(path: Path) -> None:
    """Refuse a shapefile that lacks parts or bytes; GDAL would give null for what is missing."""
    beside = {one.suffix.lower(): one for one in path.parent.iterdir() if one.stem == path.stem}
    if ".shx" not in beside:
        raise fault(
            path,
            f"the file {path.stem}.shx beside it, which says where each shape begins, is missing.",
            "Copy all parts of the shapefile (.shp, .shx, .dbf, .prj).",
        )
    for part in (path, beside[".shx"]):
        with open(part, "rb") as stream:
            head = stream.read(28)
        words = struct.unpack(">i", head[24:28])[0] if len(head) == 28 else 2**30
        if part.stat().st_size < 2 * words:
            told = f"{part.name} has {part.stat().st_size:,} of {2 * words:,} bytes"
            raise fault(path, f"the file is damaged or truncated ({told}).", AGAIN)
    shapes = (beside[".shx"].stat().st_size - 100) // 8
    table = beside.get(".dbf")
    if table is None:
        return
    with open(table, "rb") as stream:
        head = stream.read(12)
    rows, start, width = struct.unpack("<IHH", head[4:12]) if len(head) == 12 else (-1, 0, 0)
    if rows < shapes or table.stat().st_size < start + rows * width:
        told = f"{table.name} does not have a whole row for each of {shapes:,} shapes"
        raise fault(path, f"the file is damaged or truncated ({told}).", AGAIN)


def open_layer(source: Source, layer: str | None) -> dict[str, Any]:
    """Choose the layer and return what pyogrio knows of it."""
    layers = _layers(source)
    spatial = [name for name, has_shapes in layers.items() if has_shapes]
    if layer is not None and layer not in layers:
        told = f"it has no layer {layer!r}; it has {_listed(layers)}.{_nearest(layer, layers)}"
        raise fault(source.path, told, "Name one of them by --layer.")
    if not layers:
        raise fault(source.path, "it has no layer.", "Give a file with shapes.")
    if not spatial or (layer is not None and not layers[layer]):
        raise fault(source.path, "it has a table without shapes.", "Give a layer with shapes.")
    if layer is None and len(spatial) > 1:
        told = f"it has {len(spatial)} layers: {_listed(spatial)}."
        raise fault(
            source.path, told, "Name one of them by --layer, or save it as a file of its own."
        )
    info: dict[str, Any] = pyogrio.read_info(
        source.name, layer=layer or spatial[0], **source.options
    )
    if source.driver not in (None, info["driver"]):
        told = f"it looks like {source.driver}, but would be read as {info['driver']}."
        raise fault(source.path, told, "Give it the ending of what it is.")
    return info


def _layers(source: Source) -> dict[str, bool]:
    """Return the layers of a file, and whether each has shapes."""
    if source.driver == "GPKG" and not source.trust:
        found = geopackage.layers_of(source.path, _TRUST)
    else:
        found = {str(name): kind is not None for name, kind in pyogrio.list_layers(source.name)}
    found.pop("layer_styles", None)
    return found


def read_system(source: Source, info: Mapping[str, Any]) -> str:
    """Return the coordinate system as WKT."""
    crs = info["crs"]
    if not crs and info["driver"] == "GeoJSON":
        crs = LONGITUDE_LATITUDE
    if not crs:
        beside = " (its .prj is missing)" if info["driver"] == _SHAPEFILE else ""
        raise fault(
            source.path,
            f"it has no coordinate system{beside}, so that nobody knows where its shapes lie.",
            "Give it one, for instance with ogr2ogr -a_srs.",
        )
    try:
        found = to_wkt(parse_crs(crs))
    except DataError as error:
        raise fault(
            source.path, f"its coordinate system cannot be read: {short(error)}.", AGAIN
        ) from error
    if not is_on_ground(found):
        raise fault(
            source.path,
            f"its coordinate system, {crs_name(found)}, has no place on the ground.",
            "Give it one, for instance with ogr2ogr -a_srs.",
        )
    if not source.trust:
        check_alone(source.path, found)
    return found


def check_field(source: Source, info: Mapping[str, Any], field: str) -> None:
    """Refuse a field that the layer does not have."""
    fields = [str(name) for name in info["fields"]]
    if field in fields:
        return
    if info["driver"] == _SHAPEFILE and not fields:
        raise fault(
            source.path,
            f"the file {source.path.stem}.dbf beside it, which holds its fields, is missing.",
            "Copy all parts of the shapefile (.shp, .shx, .dbf, .prj).",
        )
    has = f"it has {_listed(fields)}" if fields else "it has no fields"
    told = f"it has no field {field!r}; {has}.{_nearest(field, fields)}"
    raise fault(source.path, told, "Name one of its fields.")


def _nearest(word: str, words: Mapping[str, Any] | Sequence[str]) -> str:
    by_case = {one.casefold(): one for one in words}
    near = difflib.get_close_matches(word.casefold(), by_case, 1)
    return f" Is {by_case[near[0]]!r} meant?" if near else ""


def _listed(words: Mapping[str, Any] | Sequence[str]) -> str:
    shown = ", ".join(list(words)[:20])
    return shown + (f" and {len(words) - 20} more" if len(words) > 20 else "")


def texts(column: NDArray[Any], dtype: str) -> Iterator[str]:
    """Yield what a field holds as people write it: "" for null, whole numbers without a point.

    Args:
        column: `(N,)` as pyogrio read it: where one is null, integers and booleans are floats.
        dtype: pyogrio's name of the field's own type.
    """
    for value in column if column.dtype == np.float32 else column.tolist():
        if isinstance(value, np.ndarray):
            yield ", ".join(map(str, value.tolist()))
        elif value is None or value != value:
            yield ""
        elif dtype == "bool":
            yield "true" if value else "false"
        elif isinstance(value, float | np.floating):
            yield str(value).removesuffix(".0")
        else:
            yield str(value)


def check_degrees(path: Path, shapes: Shapes, crs: str) -> None:
    """Refuse a file most of whose shapes lie at no longitude and latitude, though it says so."""
    found = parse_crs(crs)
    if not found.is_geographic:
        return
    quarter = np.pi / 2 / found.units_factor[1] * (1 + 1e-9)
    limits = np.array([4, 1, 4, 1]) * quarter
    outside = (np.abs(shapely.bounds(shapes)) > limits).any(axis=1)
    if 2 * outside.sum() > len(shapes):
        x, y = shapely.bounds(shapes[outside][:1])[0, :2]
        raise fault(
            path,
            f"it says that its coordinates are longitudes and latitudes ({crs_name(crs)}), but "
            f"they are like {x:.10g}, {y:.10g}.",
            "Say in the file which coordinate system they are in, or put the longitude first.",
        )


@contextlib.contextmanager
def settings(options: Mapping[str, str]) -> Iterator[None]:
    """Set GDAL's options, and put back what a host program had set."""
    before = {name: pyogrio.get_gdal_config_option(name) for name in options}
    pyogrio.set_gdal_config_options(dict(options))
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


def as_column(path: Path, name: str, column: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a column as pyogrio takes it."""
    if column.shape != (count,):
        raise UsageError(
            f"{path}: the field {name} has the shape {column.shape}, for {count} shapes."
        )
    if column.dtype.kind in "U":
        return column.astype(object)
    if column.dtype == np.float16:
        return column.astype(np.float32)
    if column.dtype.kind == "O" and all(one is None or isinstance(one, str) for one in column):
        return column
    if column.dtype.kind not in "biuf" or column.dtype.itemsize > 8:
        raise UsageError(f"{path}: the field {name} holds neither text nor numbers.")
    return column


def layer_type(shapes: Shapes) -> tuple[str, bool]:
    """Return the type of the layer, and whether single shapes become multiple ones in it."""
    kinds = set(shapely.get_type_id(shapes).tolist())
    singles = ((3, 6, "Polygon"), (1, 5, "LineString"), (0, 4, "Point"))
    for single, multiple, name in singles:
        if kinds <= {single}:
            return name, False
        if kinds <= {single, multiple}:
            return f"Multi{name}", True
    return "Unknown", False
