"""Breaks each reader and each writer on purpose, and sees whether its tests turn red.

`python tests/sabotage.py` runs the tests named beside each fault, in a process of their own into
which it puts the fault before anything else is imported. Each must fail. `python tests/sabotage.py
burn` does it for those whose name holds this word. A fault that no test notices makes the exit
status 1.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAME = "WHATWHERE_SABOTAGE"
ROOT = Path(__file__).resolve().parents[1]

Fault = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Sabotage:
    """A function, what becomes of its result, and who should notice.

    Attributes:
        place: `module:function` or `module:Class.function`.
        what: The fault, in words.
        fault: Changes the result.
        tests: Below `tests`.
    """

    place: str
    what: str
    fault: Fault
    tests: str


def first(change: Fault) -> Fault:
    """Change the first of several results."""
    return lambda found: (change(found[0]), *found[1:])


def replaced(**changes: Fault) -> Fault:
    """Change attributes of a dataclass."""

    def fault(found: Any) -> Any:
        return dataclasses.replace(
            found, **{name: change(getattr(found, name)) for name, change in changes.items()}
        )

    return fault


def nudged(data: bytes) -> bytes:
    """Another byte in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def negated(tensors: Any) -> Any:
    return {name: -one for name, one in tensors.items()}


SABOTAGES = (
    Sabotage("io.image:read_image", "mirrored", first(lambda p: p[..., ::-1]), "io/test_image.py"),
    Sabotage(
        "io.image:read_mask", "numbers off by one", first(lambda n: n + 1), "io/test_image.py"
    ),
    Sabotage("io.image:encode_png", "a byte off", nudged, "io/test_image.py"),
    Sabotage(
        "io.raster:Raster.read",
        "a column off",
        first(lambda p: np.roll(p, 1, -1)),
        "io/test_raster.py",
    ),
    Sabotage(
        "io.raster:open_raster",
        "names lost",
        replaced(names=lambda n: tuple("?" * len(n))),
        "io/test_raster.py",
    ),
    Sabotage(
        "io.scaled:Scaled.read",
        "a row off",
        first(lambda p: np.roll(p, 1, -2)),
        "io/test_scaled.py",
    ),
    Sabotage(
        "io.vector:read_features",
        "one feature less",
        replaced(shapes=lambda s: s[:-1]),
        "io/test_vector.py",
    ),
    Sabotage("io.vector:burn", "a column off", lambda b: np.roll(b, 1, -1), "io/test_vector.py"),
    Sabotage("io.vector:field_names", "none", lambda _: {}, "io/test_vector.py"),
    Sabotage(
        "io.vector:move_features",
        "not moved far enough",
        replaced(shapes=lambda s: s[::-1]),
        "io/test_vector.py",
    ),
    Sabotage("io.small:encode_geotiff", "a byte off", nudged, "io/test_small.py"),
    Sabotage("io.geotiff:encode_part", "a byte off", nudged, "io/test_geotiff.py"),
    Sabotage(
        "io.geotiff:encode_level",
        "tiles in another order",
        replaced(order=lambda o: o[::-1]),
        "io/test_geotiff.py",
    ),
    Sabotage(
        "io.geotiff:decode_part",
        "another stamp",
        replaced(stamp=lambda s: s + "x"),
        "predict/test_maps.py",
    ),
    Sabotage(
        "io.esri:read_map",
        "pairs swapped",
        lambda rows: [(b, a) for a, b in rows],
        "io/test_esri.py",
    ),
    Sabotage(
        "io.esri:definition_of", "no classes", replaced(classes=lambda _: ()), "io/test_esri.py"
    ),
    Sabotage("io.esri:read_sums", "nothing in them", lambda _: {}, "io/test_esri.py"),
    Sabotage("bundle:load", "weights negated", replaced(weights=negated), "test_bundle.py"),
    Sabotage(
        "bundle:load_card",
        "thresholds moved",
        replaced(thresholds=lambda t: tuple(x / 2 for x in t)),
        "test_bundle.py",
    ),
    Sabotage("bundle:_sealed", "a byte off", nudged, "test_bundle.py"),
    Sabotage("train.state:encode", "a byte off", nudged, "train/test_resume.py"),
    Sabotage("train.state:decode", "empty", lambda _: {}, "train/test_resume.py"),
    Sabotage("predict.polygons:encode", "a byte off", nudged, "predict/test_polygons.py"),
    Sabotage(
        "predict.polygons:decode",
        "points moved",
        replaced(points=lambda p: p + 1),
        "predict/test_polygons.py",
    ),
    Sabotage("foreign:read_tensors", "weights negated", negated, "test_foreign.py"),
    Sabotage("packages:_class_rows", "no classes", lambda _: [], "test_packages.py"),
    Sabotage(
        "config:to_toml", "a setting lost", lambda t: t.replace("epochs", "epoch"), "test_config.py"
    ),
    Sabotage("config:_read_toml", "nothing in it", lambda _: {}, "test_config.py"),
    Sabotage(
        "data.labels:read_labels",
        "labels turned",
        first(lambda x: x[..., ::-1]),
        "data/test_loader.py",
    ),
    Sabotage(
        "data.labels:read_pixels",
        "a column off",
        first(lambda x: np.roll(x, 1, -1)),
        "data/test_loader.py",
    ),
    Sabotage(
        "report:areas_csv",
        "the last line lost",
        lambda t: t[: t.rfind("\n", 0, -1)],
        "test_report.py",
    ),
)


def pytest_configure() -> None:
    """Put the fault in, before tests and what they test are imported."""
    place = os.environ.get(NAME)
    if not place:
        return
    (one,) = (one for one in SABOTAGES if one.place == place)
    module, _, names = place.partition(":")
    holder: Any = importlib.import_module(f"whatwhere.{module}")
    *outer, name = names.split(".")
    for word in outer:
        holder = getattr(holder, word)
    original = getattr(holder, name)

    @functools.wraps(original)
    def broken(*given: Any, **named: Any) -> Any:
        return one.fault(original(*given, **named))

    setattr(holder, name, broken)


def notices(one: Sabotage) -> str:
    """Return the first test that failed; empty where none did."""
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "sabotage", "-p", "no:cacheprovider"),
        *("-m", "not slow", "--tb=no", str(ROOT / "tests" / one.tests)),
    ]
    place = {**os.environ, NAME: one.place, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=place, cwd=ROOT)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (1, 2) or not failed:
        return ""
    return failed[0].split(" - ")[0].split("::", 1)[-1]


def main() -> None:
    """Break one after the other, and tell."""
    words = sys.argv[1:]
    missed = 0
    chosen = [one for one in SABOTAGES if not words or any(word in one.place for word in words)]
    for one in chosen:
        name = notices(one)
        missed += not name
        print(f"{one.place:32} {one.what:24} {name or 'NOTHING NOTICED IT'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults were noticed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
