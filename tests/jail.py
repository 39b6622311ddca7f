"""Reads files from strangers in every way that users do; as a program, in a process of its own.

`python tests/jail.py FOLDER` reads the corpus that lies there (`cases.pickle`), after everything
was imported and tried once on honest files, and says where it is by names that `strace` sees.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hostile_rasters import Case, Place, honest, honest_pixels
from hostile_vectors import shapes, write
from made_maps import make_predictor, save_bundle
from whatwhere import jobs
from whatwhere.errors import WhatwhereError
from whatwhere.io.crs import pixel_size_m
from whatwhere.io.hints import undeclared_nodata
from whatwhere.io.image import read_image, read_mask
from whatwhere.io.raster import close_handles, open_raster
from whatwhere.io.vector import burn, field_names, move_features, read_features
from whatwhere.talk import QUIET
from whatwhere.types import Window

MARK = "/whatwhere-jail/"
"""Names of files that are not there begin so: they tell a tracer which case is read."""

CONTROL = "control"
"""The last case: something is read that nobody may read."""


def read_raster(path: Path) -> Any:
    """Look at a scene and read it: its pixels and where it lies."""
    raster = open_raster(path)
    undeclared_nodata(raster)
    pixels, valid = raster.read(Window(0, 0, *raster.size))
    raster.read_around(Window(-5, -5, 20, 20))
    raster.is_empty(Window(0, 0, *raster.size))
    pixel_size_m(raster.grid)
    assert valid.all()
    return pixels


def read_shapes(path: Path) -> Any:
    """Read shapes, move and burn them: how many there are."""
    scene = open_raster(Path(os.environ["WHATWHERE_JAIL"]) / "work" / "scene.tif")
    features = move_features(read_features(path), scene.grid.crs)
    burn(features.shapes, np.ones(len(features.shapes), np.int64), scene.grid, background=0)
    return len(features.shapes), sorted(field_names(path))


def read_field(path: Path) -> Any:
    return sorted(read_features(path, field="kind").values)


READERS: dict[str, list[Callable[[Path], Any]]] = {
    "raster": [read_raster, read_image, read_mask],
    "vector": [read_shapes, read_field],
}


def results(case: Case) -> Iterator[tuple[str, Any]]:
    """What every reader gives for a case, or says of it."""
    for reader in READERS[case.kind]:
        try:
            yield reader.__name__, reader(case.path)
        except WhatwhereError as error:
            yield reader.__name__, error
    close_handles()


def verbs(case: Case, root: Path) -> Iterator[tuple[str, Any]]:
    """What the verbs give for a case, or say of it."""
    work = root / "work"
    scene, labels = work / "scene.tif", work / "labels.gpkg"
    if case.kind == "raster":
        yield "inspect", attempt(jobs.inspect, case.path, labels=labels, talk=QUIET)
        yield "labels", attempt(jobs.inspect, scene, labels=case.path, talk=QUIET)
        yield (
            "predict",
            attempt(jobs.predict, work / "run", case.path, work / "out" / "map.tif", talk=QUIET),
        )
        yield "images", attempt(jobs.predict, work / "run", case.path, work / "out", talk=QUIET)
    else:
        yield "inspect", attempt(jobs.inspect, scene, labels=case.path, talk=QUIET)
        yield "aoi", attempt(jobs.inspect, scene, labels=labels, aoi=case.path, talk=QUIET)
    close_handles()


def attempt(verb: Callable[..., Any], *words: Any, **named: Any) -> Any:
    try:
        return verb(*words, **named)
    except WhatwhereError as error:
        return error


@contextlib.contextmanager
def within(case: Case) -> Iterator[None]:
    """Be where the user is."""
    before = Path.cwd()
    os.chdir(case.cwd or before)
    try:
        yield
    finally:
        os.chdir(before)


def prepare(root: Path) -> None:
    """Make honest files and a net, and go all the ways once."""
    os.environ["WHATWHERE_JAIL"] = str(root)
    work = root / "work"
    (work / "out").mkdir(parents=True, exist_ok=True)
    scene = honest(work / "scene.tif")
    labels = write(work / "labels.gpkg")
    save_bundle(work / "run" / "bundle", make_predictor(bands=["band 1"]))
    for case in (Case("a scene", "raster", scene), Case("labels", "vector", labels)):
        for _, found in [*results(case), *verbs(case, root)]:
            assert found is not None
    for path in (work / "out").iterdir():
        path.unlink()


def main(root: Path) -> None:
    prepare(root)
    place, cases = pickle.loads((root / "cases.pickle").read_bytes())
    assert isinstance(place, Place) and len(honest_pixels()) and len(shapes())
    for number, case in enumerate(cases):
        os.access(f"{MARK}{number}", os.F_OK)
        with within(case):
            for _ in [*results(case), *verbs(case, root)]:
                pass
    os.access(f"{MARK}{CONTROL}", os.F_OK)
    (place.away / "canary.txt").read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
