"""The catalogue of faults, C67 to C74: shapes, and several files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS

from cases import At, Case, Catalogue, Words, check
from made_maps import NORTH_UP, make_pixels
from made_scenes import bright_scene, rectangle, write_places
from scene_cases import (
    FOUND,
    PLACES,
    RGB,
    SIZE,
    TRUTH,
    degrees,
    geojson,
    inspect,
    scene,
)
from whatwhere.io.crs import to_wkt

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


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
