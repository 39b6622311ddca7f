"""Coordinate systems: points and shapes from one to another, sizes and areas on the ground."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.crs
import rasterio.warp
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own complaints have no public name
from rasterio.errors import CRSError

from whatwhere.errors import DataError, Problem
from whatwhere.grid import Grid

LONGITUDE_LATITUDE = "OGC:CRS84"
"""Longitude and latitude in degrees, in this order: what GeoJSON holds."""

Shapes = NDArray[np.object_]
"""`(N,)` shapely geometries."""

FARTHEST = 1e12
"""No system has such coordinates, and PROJ turns round the Earth to them for ever."""


def parse_crs(text: str) -> rasterio.crs.CRS:
    """Return the coordinate system of WKT or an authority's code; raises `DataError`."""
    try:
        return rasterio.crs.CRS.from_user_input(text)
    except CRSError as error:
        raise DataError(f"{text[:60]!r} is no coordinate system: {error}.") from error


def check_alone(path: Path, *texts: str) -> None:
    """Refuse a coordinate system that leads to a file of its own.

    Shifts of a datum are kept in grids, which PROJ finds by their names where it was installed. A
    name with a folder in it may be of any file.

    Args:
        path: Where it comes from.
        texts: WKT, JSON or PROJ's words, with whatever stands around them.

    Raises:
        DataError: It names such a file.
    """
    for text in texts:
        for match in _FILES.finditer(text):
            names = next(part for part in match.groups() if part is not None)
            for name in names.split(","):
                if any(sign in name for sign in "/\\~"):
                    cause = f"its coordinate system names a file of its own, {name[:80]!r}."
                    problem = Problem("error", str(path), cause, "Reproject it to a plain one.")
                    raise DataError(str(problem), [problem])


# In PROJ's own words, in what GDAL makes of them, in the standard's WKT, and in JSON.
_FILES = re.compile(
    r'(?:grids|init|file|model|catalog)=([^\s"]*)|PROJ4_GRIDS"\s*,\s*"([^"]*)"'
    r'|PARAMETERFILE\s*[\[(]\s*"[^"]*"\s*,\s*"([^"]*)"|"value"\s*:\s*"([^"]*)"',
    re.IGNORECASE,
)


def to_wkt(crs: rasterio.crs.CRS | None) -> str:
    """Return WKT; empty for none."""
    return crs.to_wkt() if crs else ""


def same_crs(one: str, other: str) -> bool:
    """Whether two coordinate systems, in whatever words, are the same."""
    if one == other:
        return True
    return bool(one and other) and parse_crs(one) == parse_crs(other)


def crs_name(crs: str) -> str:
    """Return what people call it, such as `EPSG:3857`."""
    if not crs:
        return "no coordinate system"
    found = parse_crs(crs)
    authority = found.to_authority()
    return ":".join(authority) if authority else found.to_wkt().split('"')[1]


def move_points(
    xs: NDArray[np.float64], ys: NDArray[np.float64], source: str, target: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points in another coordinate system; not finite where it does not reach."""
    if same_crs(source, target) or not len(xs):
        return xs, ys
    start, end = parse_crs(source), parse_crs(target)
    points = np.array([xs, ys], dtype=np.float64)
    limits = np.array([[FARTHEST], [FARTHEST]])
    if start.is_geographic:
        limits[1] = math.pi / 2 / start.units_factor[1] * (1 + 1e-12)  # the poles
    there = np.flatnonzero((np.abs(points) <= limits).all(axis=0))
    moved = np.full(points.shape, np.inf)  # and not NaN, which would leave rings open
    _move(points, there, start, end, moved)
    moved[:, ~(np.abs(moved) <= FARTHEST).all(axis=0)] = np.inf
    return moved[0], moved[1]


def _move(
    points: NDArray[np.float64],
    part: NDArray[np.intp],
    source: rasterio.crs.CRS,
    target: rasterio.crs.CRS,
    moved: NDArray[np.float64],
) -> None:
    """Move some columns of `(2, N)` points; those that cannot be moved are left as they are.

    One of them spoils the call for all, so that they are looked for by halves.
    """
    if not len(part):
        return
    try:
        moved[:, part] = rasterio.warp.transform(source, target, *points[:, part])
    except CPLE_BaseError:
        if len(part) > 1:
            middle = len(part) // 2
            _move(points, part[:middle], source, target, moved)
            _move(points, part[middle:], source, target, moved)


def move_shapes(shapes: Shapes, source: str, target: str) -> Shapes:
    """Return shapes in another coordinate system; their vertices are moved, edges stay straight."""
    if same_crs(source, target) or not len(shapes):
        return shapes

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(move_points(points[:, 0], points[:, 1], source, target))

    result: Shapes = shapely.transform(shapes, moved)
    return result


def areas_m2(shapes: Shapes, crs: str) -> NDArray[np.float64]:
    """Return the areas of polygons on the ground [m²], whatever their system's units.

    Their edges are straight in their own system. They are moved to longitude and latitude, and from
    there to the equal-area cylinder about the ellipsoid (Snyder, "Map Projections", 1987, equations
    3-12, 10-1 and 10-2), where the area of a ring does not depend on where it lies. Without a
    coordinate system the areas are in its units.
    """
    found = np.asarray(shapely.area(shapes), dtype=np.float64)
    some = found > 0  # rings whose corners fall together cannot be cut finer
    if not crs or not some.any():
        return found
    shapes = shapes[some]
    bounds = shapely.bounds(shapes)
    extent = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    step = _DEGREES if parse_crs(crs).is_geographic else _UNITS
    fine = shapely.segmentize(shapes, np.maximum(np.nan_to_num(extent) / 64, step))
    moved = move_shapes(fine, crs, LONGITUDE_LATITUDE)
    there = np.isfinite(shapely.bounds(moved)).all(axis=1)
    found[some] = 0  # what lies nowhere has no area
    found[np.flatnonzero(some)[there]] = shapely.area(shapely.transform(moved[there], _unrolled))
    return found


_DEGREES, _UNITS = 0.05, 500.0  # edges shorter than this are straight enough in any system
_RADIUS, _ECCENTRICITY = 6378137.0, 0.0818191908426215  # of WGS 84 [m]


def _unrolled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move longitudes and latitudes to the equal-area cylinder [m]; rings go on across 180°."""
    e = _ECCENTRICITY
    sine = np.sin(np.radians(points[:, 1]))
    q = sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e)
    across = np.unwrap(points[:, 0], period=360)
    return np.column_stack([np.radians(across) * _RADIUS, (1 - e * e) * q * _RADIUS / 2])


def pixel_size_m(grid: Grid) -> float | None:
    """Return the side of a square of one middle pixel's area on the ground [m].

    None where the coordinate system is not known, or has no place on the ground.
    """
    if not grid.crs or not is_on_ground(grid.crs):
        return None
    column, row = grid.width / 2, grid.height / 2
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    square = shapely.Polygon([grid.transform @ (column + dx, row + dy) for dx, dy in corners])
    area = float(areas_m2(np.array([square]), grid.crs)[0])
    return math.sqrt(area) if math.isfinite(area) and area > 0 else None


def is_on_ground(crs: str) -> bool:
    """Whether a coordinate system says where on the Earth something lies."""
    found = parse_crs(crs)
    return bool(found.is_projected or found.is_geographic)


def local_system(crs: str, x: float, y: float) -> str:
    """Return an equal-area projection in metres about a point, as WKT.

    Where the point lies nowhere on the ground, it is the system itself.
    """
    longitude, latitude = move_points(np.array([x]), np.array([y]), crs, LONGITUDE_LATITUDE)
    where: dict[str, Any] = {"lat_0": float(latitude[0]), "lon_0": float(longitude[0])}
    if not all(map(math.isfinite, where.values())) or abs(where["lat_0"]) > 90:
        return crs
    return to_wkt(
        rasterio.crs.CRS.from_dict(proj="laea", datum="WGS84", units="m", no_defs=True, **where)
    )
