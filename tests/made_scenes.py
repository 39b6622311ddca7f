"""Rasters and shapes whose truth is known without reading them, for the tests of scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import shapely
from affine import Affine
from numpy.typing import NDArray

from made_maps import NORTH_UP, UTM, write_scene
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, to_wkt
from whatwhere.io.vector import write_features

Place = tuple[int, int, int, int]
"""First row, first column, height, width [px]."""


def rectangle(place: Place, transform: Affine = NORTH_UP) -> shapely.Polygon:
    """The pixels of a place as a polygon, a little wider, so that their middles are in it."""
    row, column, height, width = place
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    return shapely.Polygon([transform @ (column + x * width, row + y * height) for x, y in corners])


def write_places(
    path: Path,
    places: Sequence[Place],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    transform: Affine = NORTH_UP,
    degrees: bool = False,
) -> Path:
    """Write places as polygons, in the scene's system or in longitudes and latitudes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = np.array([rectangle(place, transform) for place in places])
    crs = to_wkt(UTM)
    if degrees or path.suffix == ".geojson":
        shapes, crs = move_shapes(shapes, crs, LONGITUDE_LATITUDE), LONGITUDE_LATITUDE
    fields = {name: np.array(column) for name, column in (columns or {}).items()}
    return write_features(path, crs, shapes, fields or {"id": np.arange(len(places))})


def add_layer(path: Path, layer: str, places: Sequence[Place]) -> Path:
    """Write places as polygons into a layer of a GeoPackage, beside those that are there."""
    shapes = shapely.to_wkb(np.array([rectangle(place) for place in places]))
    where = {"layer": layer, "driver": "GPKG", "geometry_type": "Polygon", "crs": to_wkt(UTM)}
    pyogrio.raw.write(str(path), shapes, [np.arange(len(places))], ["id"], **where)
    return path


def truth_of(size: tuple[int, int], places: Sequence[Place], numbers: Sequence[int]) -> Any:
    """The classes of a scene, by NumPy."""
    found = np.zeros(size, dtype=np.int64)
    for number in sorted(set(numbers)):
        for (row, column, height, width), mine in zip(places, numbers, strict=True):
            if mine == number:
                found[max(row, 0) : row + height, max(column, 0) : column + width] = number
    return found


def bright_scene(
    path: Path, truth: NDArray[np.int64], *, bands: int = 3, seed: int = 1, **profile: Any
) -> Path:
    """Write a scene whose brightness tells the class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 6, (bands, *truth.shape))
    pixels = np.clip(60 + 60 * truth + noise, 1, 255).astype(np.uint8)
    return write_scene(path, pixels, **profile)


PLACES: tuple[Place, ...] = tuple(
    (row + row // 7 % 9, column + column // 5 % 11, 24, 32)
    for row in range(8, 600, 64)
    for column in range(8, 600, 64)
)
"""A hundred houses on 640×640 px."""


def town(folder: Path, name: str = "town", **options: Any) -> tuple[Path, Path, NDArray[np.int64]]:
    """Write a scene of 640×640 px and its houses; and return their truth."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = truth_of((640, 640), PLACES, [1] * len(PLACES))
    scene = bright_scene(folder / f"{name}.tif", truth, **options)
    return scene, write_places(folder / f"{name}_houses.geojson", PLACES), truth
