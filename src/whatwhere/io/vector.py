"""Vector files: shapes in and out, and what of a raster they cover.

GeoJSON, GeoPackage, shapefiles and FlatGeobuf are read. What a file is, its content decides. Names
on a network, archives and files that point at other files are read only where the user trusts them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.errors import DataError, OutputError, Problem, UsageError
from whatwhere.grid import Grid
from whatwhere.io.crs import (
    LONGITUDE_LATITUDE,
    Shapes,
    crs_name,
    is_on_ground,
    local_system,
    move_points,
    move_shapes,
)
from whatwhere.io.image import fault
from whatwhere.io.mend import are_areas, cleaned, mended, problem_of, unfinished
from whatwhere.io.ogr import (
    AGAIN,
    as_column,
    check_degrees,
    check_field,
    explained,
    find_source,
    layer_type,
    open_layer,
    plain_name,
    read_system,
    settings,
    short,
    texts,
)
from whatwhere.types import Valid

SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb")
"""Endings of files that may hold shapes."""

WRITTEN = {".geojson": "GeoJSON", ".json": "GeoJSON", ".gpkg": "GPKG", ".fgb": "FlatGeobuf"}
"""Endings of files that are written, and GDAL's names of their formats."""
_MOST_VALUES = 1000
_CELL = 2.0  # shapes of so many degrees share a local system when they are widened
_PIECE_M = 500.0  # a straight line of this length is straight in every system, within 1 cm
_DATE = {"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"}  # the same file from the same shapes
_DIGITS = "8"  # of degrees in GeoJSON: 1 mm


@dataclass(frozen=True)
class Features:
    """The shapes of a file.

    Attributes:
        path: Where they come from.
        crs: Their coordinate system as WKT; never empty.
        shapes: `(N,)` valid geometries in two dimensions, none of them empty.
        values: The asked field of each shape as text, "" for null; () where none was asked for.
        dropped: What was repaired or left out.
        numbers: The position of each shape in the file, from 1.
    """

    path: Path
    crs: str
    shapes: Shapes
    values: tuple[str, ...]
    dropped: tuple[Problem, ...]
    numbers: tuple[int, ...] = ()


def read_features(
    path: Path,
    *,
    field: str | None = None,
    layer: str | None = None,
    trust: bool = False,
    empty: bool = False,
) -> Features:
    """Read the shapes of a file, and what one field says of each.

    Args:
        path: The file.
        field: The field whose values are wanted.
        layer: The layer; needed only where a file has several with shapes.
        trust: Read whatever the name leads to, such as an address or a VRT.
        empty: Whether a file without features is as good as one with some.

    Raises:
        DataError: The file is missing, damaged, of an unknown kind, or has no coordinate system;
            the layer or the field is not there; none of its shapes can be used.
    """
    with explained(path) as heard:
        source = find_source(path, trust)
        info = open_layer(source, layer)
        crs = read_system(source, info)
        if field is not None:
            check_field(source, info, field)
        _, _, wkb, columns = pyogrio.raw.read(
            source.name,
            layer=info["layer_name"],
            columns=[] if field is None else [field],
            datetime_as_string=True,
            **source.options,
        )
        if info["driver"] == "FlatGeobuf" and info["features"] not in (-1, len(wkb)):
            found = f"{len(wkb):,} of {info['features']:,} features"
            raise fault(path, f"the file is damaged or truncated ({found}).", AGAIN)
        if not len(wkb) and empty:
            return Features(path, crs, np.empty(0, dtype=object), (), ())
        if not len(wkb):
            raise fault(path, "it holds no features.", "Give a file with shapes.")
        shapes, kept, problems = cleaned(path, wkb)
    if not len(kept):
        told = " ".join(problem.cause for problem in problems)
        raise fault(path, f"none of its features can be used: {told}", AGAIN)
    check_degrees(path, shapes, crs)
    values: tuple[str, ...] = ()
    if field is not None:
        dtype = str(info["dtypes"][list(info["fields"]).index(field)])
        values = tuple(texts(columns[0][kept], dtype))
    said = [Problem("note", str(path), f"{text.rstrip('.')}.", "") for text in heard]
    return Features(path, crs, shapes, values, (*problems, *said), tuple((kept + 1).tolist()))


def field_names(path: Path, *, layer: str | None = None, trust: bool = False) -> dict[str, int]:
    """Return the fields and how many different values each has, null aside, up to 1,000.

    Raises:
        DataError: As `read_features`.
    """
    with explained(path):
        source = find_source(path, trust)
        info = open_layer(source, layer)
        _, _, _, columns = pyogrio.raw.read(
            source.name,
            layer=info["layer_name"],
            read_geometry=False,
            datetime_as_string=True,
            **source.options,
        )
    found = {}
    for name, dtype, column in zip(info["fields"], info["dtypes"], columns, strict=True):
        different = set(texts(column, str(dtype))) - {""}
        found[str(name)] = min(len(different), _MOST_VALUES)
    return found


def move_features(features: Features, crs: str) -> Features:
    """Return the shapes in another coordinate system, without those that it does not reach.

    Raises:
        DataError: `crs` is empty.
    """
    if not crs:
        raise fault(
            features.path,
            "the raster has no coordinate system, so that nobody knows where the shapes lie in it.",
            "Give the raster one, for instance with gdal_edit -a_srs.",
        )
    shapes = move_shapes(features.shapes, features.crs, crs)
    place = f"cannot be moved to {crs_name(crs)}"
    moved = _without(replace(features, crs=crs, shapes=shapes), unfinished(shapes), place)
    broken = ~shapely.is_valid(moved.shapes)
    if not broken.any():
        return moved
    whole = mended(moved.shapes, broken)
    return _without(replace(moved, shapes=whole), shapely.is_empty(whole), f"{place} whole")


def buffered(features: Features, metres: float) -> Features:
    """Return polygons in place of lines and points; polygons stay as they are.

    Each is widened in an equal-area system about its own place, whatever the units of its own.

    Args:
        features: Shapes of any kind.
        metres: How far a polygon reaches on each side of a line, or around a point [m].

    Raises:
        DataError: `metres` is not above 0, or the coordinate system has no place on the ground.
    """
    if not 0 < metres < np.inf:
        raise fault(
            features.path,
            f"lines and points cannot be made {metres:g} m wide.",
            "Give a width above 0.",
        )
    if not is_on_ground(features.crs):
        raise fault(
            features.path,
            f"{crs_name(features.crs)} has no place on the ground, so that a metre has no length.",
            "Give the file another coordinate system.",
        )
    degrees = move_shapes(features.shapes, features.crs, LONGITUDE_LATITUDE)
    bounds = shapely.bounds(degrees).reshape(-1, 4)
    lost = unfinished(degrees) | (np.abs(bounds[:, [1, 3]]) > 90).any(axis=1)
    kept = _without(features, lost, "lie nowhere on the ground")
    shapes = kept.shapes.copy()
    cells = np.floor((bounds[~lost, :2] + bounds[~lost, 2:]) / 2 / _CELL)
    thin = ~are_areas(shapes)
    for cell in np.unique(cells[thin], axis=0):
        these = thin & (cells == cell).all(axis=1)
        shapes[these] = _widened(shapes[these], features.crs, metres)
    broken = ~shapely.is_valid(shapes)
    return replace(kept, shapes=mended(shapes, broken) if broken.any() else shapes)


def burn(
    shapes: Shapes, indexes: NDArray[np.int64], grid: Grid, *, background: int
) -> NDArray[np.int64]:
    """Return the class of each pixel's centre.

    Args:
        shapes: `(N,)` polygons in the grid's coordinate system.
        indexes: `(N,)` the class of each. Where polygons of several classes overlap, the highest
            counts, whatever their order.
        grid: Any grid, turned or south-up ones too.
        background: What pixels get whose centre lies in no polygon.

    Returns:
        `(H, W)` class indexes.

    Raises:
        DataError: A shape is a line or a point.
    """
    if not are_areas(shapes).all():
        raise DataError("lines and points cover no pixel: give them a width with --buffer-m.")
    classes, ranks = np.unique(indexes, return_inverse=True)
    x0, y0, x1, y1 = grid.bounds
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    near = (bounds[:, 0] <= x1) & (bounds[:, 2] >= x0) & (bounds[:, 1] <= y1) & (bounds[:, 3] >= y0)
    parts, owners = shapely.get_parts(shapes[near], return_index=True)
    if not len(parts):
        return np.full((grid.height, grid.width), background, dtype=np.int64)
    places = 1 + np.ravel(ranks)[near][owners]
    order = np.argsort(places, kind="stable")  # what is burnt last stays
    burnt = rasterio.features.rasterize(
        zip(_in_pixels(parts[order], grid), places[order].tolist(), strict=True),
        out_shape=(grid.height, grid.width),
        fill=0,
        transform=Affine.identity(),
        dtype="int32",
    )
    result: NDArray[np.int64] = np.concatenate([[background], classes])[burnt]
    return result


def covered(shapes: Shapes, grid: Grid) -> Valid:
    """Return `(H, W)` True where a pixel's centre lies in one of the polygons, as `burn`."""
    inside: Valid = burn(shapes, np.ones(len(shapes), dtype=np.int64), grid, background=0) == 1
    return inside


def overlap_problem(features: Features, original: Features, grid: Grid) -> str | None:
    """Say why shapes and raster do not meet; None where their bounds do.

    Args:
        features: The shapes in the raster's coordinate system.
        original: The shapes as they were read.
        grid: The raster's grid.
    """
    if _meets(features.shapes, grid):
        return None
    swapped = shapely.transform(original.shapes, lambda points: points[:, ::-1])
    there = grid.bounds
    here = tuple(shapely.total_bounds(original.shapes).tolist())
    ours = _extent(here, original.crs, LONGITUDE_LATITUDE)
    theirs = _extent(there, grid.crs, LONGITUDE_LATITUDE)
    words, digits, system = ("longitude", "latitude"), 5, ""
    if ours is None or theirs is None:
        ours, theirs = here, _extent(there, grid.crs, original.crs)
        words, digits, system = ("x", "y"), 1, f" ({crs_name(original.crs)})"
    told = f"the shapes lie at {_range(ours, words, digits)}{system}"
    if theirs is None:
        told += f", the raster at {_range(there, ('x', 'y'), 1)} ({crs_name(grid.crs)})"
    else:
        told += f", the raster at {_range(theirs, words, digits)}{system}"
    told += ": they do not meet."
    if grid.crs and _meets(move_shapes(swapped, original.crs, grid.crs), grid):
        told += " With x and y swapped they would: the file has them in the wrong order."
    return told


def require_writable(path: Path, crs: str) -> str:
    """Return GDAL's name of the format that shapes are written in, before there are any.

    Raises:
        UsageError: The suffix is none of those that are written, the format needs a coordinate
            system, or the name would be taken for something else.
    """
    driver = WRITTEN.get(path.suffix.lower())
    if driver is None:
        raise UsageError(
            f"{path}: shapes are written to {', '.join(WRITTEN)}, by the name's ending."
        )
    if driver == "GeoJSON" and not crs:
        raise UsageError(
            f"{path}: GeoJSON holds longitudes and latitudes, and these shapes have no coordinate "
            "system. Write a .gpkg."
        )
    try:
        plain_name(path)
    except DataError as error:
        raise UsageError(str(error)) from error
    return driver


def write_features(
    path: Path,
    crs: str,
    shapes: Shapes,
    columns: Mapping[str, NDArray[Any]],
    *,
    layer: str | None = None,
) -> Path:
    """Write shapes and their fields in one step; the suffix decides the format.

    GeoJSON is written as RFC 7946 asks, in longitudes and latitudes; GeoPackage and FlatGeobuf keep
    the coordinate system. FlatGeobuf sorts the shapes by their places.

    Args:
        path: The file.
        crs: The coordinate system of the shapes; GeoJSON needs one.
        shapes: `(N,)` geometries; none make a file without features.
        columns: The fields: `(N,)` texts, integers, floats (NaN is written as null) or booleans.
        layer: What a layer is called; the file's name without its suffix where not given.

    Raises:
        UsageError: The suffix is none of those that are written, or a column does not fit.
        OutputError: The file cannot be written; what was there before stays.
    """
    driver = require_writable(path, crs)
    taken = {"fid", "geom"} & {name.lower() for name in columns} if driver == "GPKG" else set()
    if taken:
        raise UsageError(f"{path}: a GeoPackage keeps the name {min(taken)} for itself.")
    data = [as_column(path, name, column, len(shapes)) for name, column in columns.items()]
    kind, promote = layer_type(shapes)
    options = {"RFC7946": "YES", "COORDINATE_PRECISION": _DIGITS} if driver == "GeoJSON" else {}
    with files.replacing(path) as temporary, settings(_DATE), warnings.catch_warnings():
        name = str(temporary.absolute())
        warnings.simplefilter("ignore")  # that there is no coordinate system
        try:
            pyogrio.raw.write(
                name,
                shapely.to_wkb(shapes, output_dimension=2),
                data,
                list(columns),
                layer=layer or path.stem,
                driver=driver,
                geometry_type=kind,
                crs=crs or None,
                promote_to_multi=promote,
                layer_options=options,
            )
            info = pyogrio.read_info(name, force_feature_count=True)
        except (RuntimeError, ValueError) as error:
            raise OutputError(f"{path}: cannot be written ({short(error)}).") from error
        if info["features"] != len(shapes):
            raise OutputError(
                f"{path}: {info['features']:,} of {len(shapes):,} shapes were written; is the disk "
                "full?"
            )
        if crs and not info["crs"]:  # GDAL says nothing where it cannot read its list of systems
            raise OutputError(
                f"{path}: the coordinate system was not written. Try again; if it stays so, the "
                "files of PROJ cannot be read."
            )
    return path


def _without(features: Features, bad: NDArray[np.bool_], what: str) -> Features:
    """Leave shapes out, and say so."""
    if not bad.any():
        return features
    numbers = np.array(features.numbers or range(1, len(bad) + 1))
    cause = (what, "They are left out.")
    problem = problem_of(features.path, numbers[bad], len(bad), "warning", cause)
    kept = np.flatnonzero(~bad)
    return replace(
        features,
        shapes=features.shapes[kept],
        values=tuple(features.values[i] for i in kept) if features.values else (),
        dropped=(*features.dropped, problem),
        numbers=tuple(numbers[kept].tolist()),
    )


def _widened(shapes: Shapes, crs: str, metres: float) -> Shapes:
    """Return polygons around lines and points that lie near each other."""
    x0, y0, x1, y1 = shapely.total_bounds(shapes)
    local = local_system(crs, (x0 + x1) / 2, (y0 + y1) / 2)
    lengths = shapely.length(move_shapes(shapes, crs, local))
    with np.errstate(divide="ignore", invalid="ignore"):
        pieces = shapely.length(shapes) * (_PIECE_M / lengths)
    long = np.isfinite(pieces) & (lengths > _PIECE_M)
    shapes = shapes.copy()
    shapes[long] = shapely.segmentize(shapes[long], pieces[long])
    return move_shapes(shapely.buffer(move_shapes(shapes, crs, local), metres), local, crs)


def _in_pixels(shapes: Shapes, grid: Grid) -> Shapes:
    """Return shapes in (column, row), so that GDAL need not know how the grid lies."""
    inverse = ~grid.transform
    matrix = np.array([[inverse.a, inverse.b], [inverse.d, inverse.e]])
    origin = np.array([grid.transform.c, grid.transform.f])
    moved: Shapes = shapely.transform(shapes, lambda points: (points - origin) @ matrix.T)
    return moved


def _meets(shapes: Shapes, grid: Grid) -> bool:
    if not len(shapes):
        return False
    x0, y0, x1, y1 = grid.bounds
    left, bottom, right, top = shapely.total_bounds(shapes)
    return bool(left <= x1 and right >= x0 and bottom <= y1 and top >= y0)


_Bounds = tuple[float, ...]


def _extent(bounds: _Bounds, crs: str, target: str) -> _Bounds | None:
    """Return bounds in another system; None where it cannot be told."""
    if not crs or not np.isfinite(bounds).all():
        return None
    x0, y0, x1, y1 = bounds
    xs, ys = move_points(np.array([x0, x1, x1, x0]), np.array([y0, y0, y1, y1]), crs, target)
    found = (xs.min(), ys.min(), xs.max(), ys.max())
    return found if np.isfinite(found).all() else None


def _range(bounds: _Bounds, words: tuple[str, str], digits: int) -> str:
    x0, y0, x1, y1 = (f"{value:.{digits}f}" for value in bounds)
    return f"{words[0]} {x0} to {x1}, {words[1]} {y0} to {y1}"
