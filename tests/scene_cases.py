"""Scenes and labels of which the catalogue of faults makes its cases."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from cases import At, Case, Words, check
from made_maps import UTM, write_scene
from made_scenes import Place, bright_scene, rectangle, truth_of, write_places
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes, to_wkt

SIZE = (64, 96)
PLACES: tuple[Place, ...] = ((8, 8, 16, 24), (40, 56, 8, 16))
PIXELS = sum(height * width for *_, height, width in PLACES)
TRUTH = truth_of(SIZE, PLACES, [1, 1])
FOUND = rf"houses +1 +1 +{PIXELS} "
RGB = ("red", "green", "blue")


NOWHERE: Any = {"crs": None, "transform": Affine.identity()}


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


def labels(at: At, **how: Any) -> Path:
    """The classes as a raster."""
    at.data.mkdir(exist_ok=True)
    return write_scene(at.data / "classes.tif", TRUTH[None].astype(np.uint8), **how)


def mapped(cases: Sequence[Case], name: str, folder: Path, nets: Path) -> Any:
    """Do a case that makes a map, and open what it made."""
    check(next(one for one in cases if one.name == name), folder, nets)
    return opened(folder / "out" / "map.tif")


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
