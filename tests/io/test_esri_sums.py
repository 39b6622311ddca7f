"""The sums and texts of an Esri export: right by NumPy, and as Esri's own files have them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from whatwhere.grid import Grid
from whatwhere.io.crs import parse_crs, same_crs, to_wkt
from whatwhere.io.esri import read_definition, read_map, read_sums
from whatwhere.io.esri_sums import BandSums, ClassSums, Export, as_text, map_text, world_text
from whatwhere.types import Classes, ClassInfo

SCALE = Affine(0.5, 0, 500_000.25, 0, -0.5, 3_000_000)


def table(*values: int) -> Classes:
    infos = [ClassInfo(f"kind {value}", value, (value, 0, 9), raw=(value,)) for value in values]
    return Classes(tuple(infos), "multiclass")


def grid(crs: str = "EPSG:32645", transform: Affine = SCALE) -> Grid:
    return Grid(to_wkt(parse_crs(crs)) if crs else "", transform, 100, 100)


def export(**changed: Any) -> Export:
    pixels = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    told: dict[str, Any] = {
        "size": (4, 4),
        "classes": table(1, 7),
        "bands": ("red", "band 4"),
        "grids": (grid(),),
        "values": BandSums.of(pixels, np.ones((4, 4), bool)),
        "labels": ClassSums.of(np.array([5, 0])),
    }
    return Export(**{**told, **changed})


# ---------------------------------------------------------------- sums of bands


@given(
    st.integers(0, 2**32),
    st.sampled_from([("float64", 1e6), ("float32", 1e3), ("uint16", 3e4), ("uint8", 120)]),
    st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_sums_are_those_of_all_pixels(seed: int, kind: tuple[str, float], count: int) -> None:
    rng = np.random.default_rng(seed)
    chips, parts = [], []
    for _ in range(count):
        shape = (2, *rng.integers(1, 9, 2))
        middle = kind[1] * (1 + 0.1 * rng.random())
        pixels = (middle + rng.normal(0, 1 + middle * 0.01 * rng.random(), shape)).astype(kind[0])
        valid = rng.random(shape[1:]) < rng.choice([0.0, 0.5, 1.0])
        chips.append(pixels[:, valid].astype(np.float64))
        parts.append(BandSums.of(pixels, valid))
    while len(parts) > 1:  # any two at a time, in any order
        one, other = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(one.merged(other))
    (found,) = parts
    whole = np.concatenate(chips, axis=1)
    assert found.count == whole.shape[1]
    if not whole.size:
        assert (found.low == math.inf).all() and (found.mean == 0).all()
        return
    assert_allclose(found.mean, whole.mean(axis=1), rtol=1e-9)
    assert_allclose(found.squares, whole.var(axis=1) * found.count, rtol=1e-9, atol=1e-6)
    assert np.array_equal(found.low, whole.min(axis=1))
    assert np.array_equal(found.high, whole.max(axis=1))
    if found.count > 1:
        assert_allclose(found.deviation, whole.std(axis=1, ddof=1), rtol=1e-9, atol=1e-6)


def test_a_large_offset_costs_no_digits() -> None:
    rng = np.random.default_rng(3)
    chips = [1e6 + i + rng.normal(0, 0.5, (1, 32, 32)) for i in range(200)]
    found = reduce(BandSums.merged, [BandSums.of(c, np.ones((32, 32), bool)) for c in chips])
    whole = np.concatenate([chip.ravel() for chip in chips])
    assert found.mean[0] == pytest.approx(whole.mean(), rel=1e-12)
    assert found.squares[0] == pytest.approx(whole.var() * whole.size, rel=1e-9)
    within = sum(float(chip.var() * chip.size) for chip in chips)
    assert found.squares[0] > 100 * within, "means that lie apart are part of the variance"


def test_one_pixel_has_no_deviation() -> None:
    found = BandSums.of(np.full((1, 1, 1), 7, np.uint8), np.ones((1, 1), bool))
    assert found.deviation[0] == 0 and found.mean[0] == 7


def test_esri_counts_the_deviation_of_a_sample(real_data: Callable[[str], Path]) -> None:
    folder = real_data("esri_exports") / "rgb_export_tiles"
    told = read_definition(folder / "esri_model_definition.emd").lines["AllTilesStats"]
    sums = read_sums(folder / "esri_accumulated_stats.json")["BandStatsState"]
    for band, state in zip(told, sums, strict=True):
        ends = np.array([float(state["Min"])]), np.array([float(state["Max"])])
        held = BandSums(state["Num"], *ends, np.array([state["M1"]]), np.array([state["M2"]]))
        assert held.deviation[0] == pytest.approx(band["StdDev"], rel=1e-15)
        assert math.sqrt(state["M2"] / state["Num"]) != pytest.approx(band["StdDev"], rel=1e-9)


# ---------------------------------------------------------------- sums of classes


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_classes_are_counted(rows: list[list[int]]) -> None:
    found = reduce(ClassSums.merged, [ClassSums.of(np.array(row)) for row in rows])
    columns = list(zip(*rows, strict=True))
    assert found.chips == len(rows)
    assert found.pixels.tolist() == [sum(column) for column in columns]
    assert found.chips_with.tolist() == [sum(n > 0 for n in column) for column in columns]
    assert found.least.tolist() == [min(column) for column in columns]
    assert found.most.tolist() == [max(column) for column in columns]
    kinds = [sum(n > 0 for n in row) for row in rows]
    assert found.kinds == (min(kinds), max(kinds), sum(kinds))


# ---------------------------------------------------------------- what the files hold


def test_texts_are_as_in_a_real_export(real_data: Callable[[str], Path]) -> None:
    folder = real_data("esri_exports") / "drone_classified_tiles"
    told = read_sums(folder / "esri_accumulated_stats.json")
    stats = told["ClassPixelStats"]
    spread, kinds = stats["PixelsPerClass"], stats["NumClassesPerImage"]
    labels = ClassSums(
        told["NumTiles"],
        np.array(stats["NumPixelsPerClass"]),
        np.array(stats["NumImagesPerClass"]),
        np.array([one["Min"] for one in spread]),
        np.array([one["Max"] for one in spread]),
        (kinds["Min"], kinds["Max"], kinds["Sum"]),
    )
    infos = [ClassInfo(row["ClassName"], row["ClassValue"], (0, 0, 0)) for row in told["Classes"]]
    ours = export(
        size=(400, 400),
        classes=Classes(tuple(infos), "binary"),
        bands=("a", "b", "c"),
        values=BandSums.of(np.ones((3, 2, 2)), np.ones((2, 2), bool)),
        labels=labels,
    )
    assert ours.summary().encode() == (folder / "stats.txt").read_bytes()
    sums = ours.sums()
    assert {name: sums[name] for name in told if name != "OutputFeatures"} == {
        name: value for name, value in told.items() if name != "OutputFeatures"
    }
    assert [name for name in sums if name in told] == list(told), "in the same order"
    names = [f"{number:09d}.tif" for number in (19, 1, 2)]
    head = (folder / "map.txt").read_bytes().splitlines(keepends=True)[:3]
    assert map_text(names).encode() == b"".join(head)


def test_the_definition_is_as_in_a_real_export(real_data: Callable[[str], Path]) -> None:
    folder = real_data("esri_exports") / "rgb_export_tiles"
    told = read_definition(folder / "esri_model_definition.emd").lines
    state = read_sums(folder / "esri_accumulated_stats.json")["BandStatsState"]
    columns = [np.array([float(s[name]) for s in state]) for name in ("Min", "Max", "M1", "M2")]
    ours = export(
        size=(4000, 4000),
        bands=("", "", ""),
        grids=(grid("EPSG:3857"),),
        values=BandSums(state[0]["Num"], *columns),
    ).definition()
    changed = {"MetaDataMode": "Classified_Tiles", "Classes": ours["Classes"]}
    second = {"InputRastersProps2", "AllTilesStats2"}
    theirs = {k: v for k, v in told.items() if k not in second and not k.startswith("WellKnown")}
    for name, value in {**theirs, **changed}.items():
        if name != "AllTilesStats":
            assert ours[name] == value, name
    for mine, other in zip(ours["AllTilesStats"], theirs["AllTilesStats"], strict=True):
        assert mine == {**other, "StdDev": pytest.approx(other["StdDev"], rel=1e-15)}
    assert not set(ours) - {*theirs, "Classes"}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ours = export(grids=(grid(), grid(transform=SCALE @ Affine.scale(3))))
    (tmp_path / "a.emd").write_text(as_text(ours.definition()), encoding="utf-8")
    (tmp_path / "s.json").write_text(as_text(ours.sums()), encoding="utf-8")
    (tmp_path / "map.txt").write_bytes(map_text(["000000000.tif", "000000001.tif"]).encode())
    read, sums = read_definition(tmp_path / "a.emd"), read_sums(tmp_path / "s.json")
    assert [(one.value, one.name, one.color) for one in read.classes] == [
        (1, "kind 1", (1, 0, 9)),
        (7, "kind 7", (7, 0, 9)),
    ]
    assert read.mode == "Classified_Tiles" and read.size == (4, 4) and read.space == "MAP_SPACE"
    assert read.bands == ("red", "Band_4") and read.cell_size == (0.5, 1.5)
    assert read.lines["MinCellSize"]["spatialReference"] == {"wkid": 32645, "latestWkid": 32645}
    assert read.lines["InputRastersProps"]["RasterCount"] == 2
    assert sums["NumTiles"] == sums["NextTileIndex"] == sums["NumTilesAsDouble"] == 1
    second = sums["BandStatsState"][1]
    assert (second["Min"], second["Max"], second["M1"], second["Num"]) == (16, 31, 23.5, 16)
    assert second["M2"] == 340 and second["Mean"] == second["M1"]
    assert second["StdDev"] == pytest.approx(np.std(np.arange(16), ddof=1), rel=1e-15)
    per_class = sums["ClassPixelStats"]["PixelsPerClass"]
    assert per_class[1] == {"Min": 0, "Max": 0, "Mean": 0, "Sum": 0, "Count": 1}
    assert read_map(tmp_path / "map.txt")[1] == ("images/000000001.tif", "labels/000000001.tif")


def test_a_system_without_a_number_is_told_in_words() -> None:
    local = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84"
    told = export(grids=(grid(local),)).definition()["MinCellSize"]["spatialReference"]
    assert list(told) == ["wkt"] and same_crs(told["wkt"], grid(local).crs)
    albers = export(grids=(grid("ESRI:102003"),)).definition()["MaxCellSize"]
    assert albers["spatialReference"] == {"wkid": 102003, "latestWkid": 102003}
    bare = export(grids=(grid(""),)).definition()
    assert bare["MinCellSize"] == {"x": 0.5, "y": 0.5} and bare["ImageSpaceUsed"] == "MAP_SPACE"
    nowhere = export(grids=(Grid("", Affine.identity(), 9, 9),))
    assert nowhere.definition()["ImageSpaceUsed"] == "PIXEL_SPACE"
    assert not {"MinCellSize", "MaxCellSize"} & {*nowhere.definition(), *nowhere.sums()}


def test_json_is_set_as_theirs() -> None:
    text = as_text({"a": {"b": [1, 2.5]}, "Name": "größe"})
    assert text.startswith('{\n  "a" : {\n    "b" : [\n      1,') and "größe" in text
    assert json.loads(text)["a"]["b"] == [1, 2.5]


def test_a_name_of_two_lines_stays_on_one() -> None:
    infos = (ClassInfo("two\r\nlines and a very long tail", 1, (0, 0, 0)),)
    told = export(classes=Classes(infos, "binary"), labels=ClassSums.of(np.array([5])))
    assert told.summary().splitlines()[-1].startswith("two lines and a very long tail")


@given(st.floats(-1e-6, 1e-6), st.floats(1e-6, 1e3), st.floats(-1e7, 1e7))
@settings(max_examples=60, deadline=None)
def test_a_world_file_has_all_digits(small: float, side: float, far: float) -> None:
    transform = Affine(side, small, far, -small, -side, -far)
    text = world_text(transform)
    assert "e" not in text.lower() and text.count("\n") == 6
    a, d, b, e, x, y = map(float, text.split())
    assert (a, d, b, e) == (side, -small, small, -side)
    assert (x, y) == transform @ (0.5, 0.5), "the middle of the first pixel"
