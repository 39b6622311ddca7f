"""The plan of a prediction: its blocks, its shards, and what belongs to it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from made_maps import make_classes, make_pixels, write_scene
from whatwhere import files
from whatwhere.errors import DataError, OutputError, UsageError
from whatwhere.grid import Grid
from whatwhere.io.raster import open_raster
from whatwhere.predict import plan as module
from whatwhere.predict.plan import (
    FILE,
    Plan,
    block_of,
    describe_grid,
    describe_scene,
    grid_of,
    load_plan,
    nodata_of,
    parse_shard,
    require_space,
)
from whatwhere.types import Classes, ClassInfo

GRID = Grid("LOCAL_CS", Affine(0.1, 0.2, 1 / 3, 0.3, -0.1, 7), 700, 900)
SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
BATCH = {"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "3"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "0"}


def make_plan(**changes: Any) -> Plan:
    known: dict[str, Any] = {
        "scene": {"name": "a.tif", "bytes": 12, "digest": "abc"},
        "grid": describe_grid(GRID),
        "table": make_classes().to_json(),
        "bundles": ("net",),
        "engines": ("torch",),
        "bands": (1, 2, 3),
        "nodata": None,
        "trust": False,
        "factor": 1.0,
        "core": 256,
        "halo": 32,
        "blend": False,
        "batch": 1,
        "symmetries": 1,
        "block": 512,
        "thresholds": (0.5,),
        "outputs": ("mask",),
        "device": "cpu",
        "threads": 2,
    }
    return Plan(**{**known, **changes})


OTHERS: dict[str, Any] = {
    "scene": {"name": "a.tif", "bytes": 12, "digest": "abd"},
    "grid": describe_grid(dataclasses.replace(GRID, width=901)),
    "table": make_classes(3, "multiclass").to_json(),
    "bundles": ("net", "net"),
    "engines": ("onnx",),
    "bands": (3, 2, 1),
    "nodata": 0.0,
    "trust": True,
    "factor": 1.0000001,
    "core": 128,
    "halo": 64,
    "blend": True,
    "batch": 4,
    "symmetries": 8,
    "block": 1024,
    "thresholds": (0.51,),
    "outputs": ("mask", "entropy"),
    "device": "cuda",
    "threads": 3,
    "version": "0.0.0",
}


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("1/8", {}, (1, 8)),
        ("8/8", SLURM, (8, 8)),
        ("auto", SLURM, (3, 4)),
        ("auto/9", SLURM, (3, 9)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, (1, 1)),
        ("auto", BATCH, (3, 3)),
        ("auto/5", BATCH, (3, 5)),
        ("auto/2", KUBERNETES, (1, 2)),
        ("auto", {**SLURM, **BATCH}, (3, 4)),
    ],
)
def test_a_shard_is_read(text: str, environment: Mapping[str, str], shard: tuple[int, int]) -> None:
    assert parse_shard(text, environment) == shard


def test_an_array_with_steps_is_counted_without_gaps() -> None:
    """`--array=10-22:4` gives the indexes 10, 14, 18, 22."""
    array = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "4"}
    array["SLURM_ARRAY_TASK_COUNT"] = "4"
    found = [
        parse_shard("auto", {**array, "SLURM_ARRAY_TASK_ID": str(i)}) for i in (10, 14, 18, 22)
    ]
    assert found == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("auto", {}, r"no index of an array is given here .*Say --shard i/n"),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "²"}, "no index of an array is given"),
        ("auto", KUBERNETES, r"how many there are is not known\. Say --shard auto/n"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "how many there are is not known"),
        ("0/8", {}, r"--shard 0/8: part 0 of 8 is none\. They go from 1"),
        ("9/8", {}, "part 9 of 8 is none"),
        ("1/0", {}, "part 1 of 0 is none"),
        ("auto/0", SLURM, "part 3 of 0 is none"),
        ("auto/2", SLURM, "part 3 of 2 is none"),
        *[
            (text, SLURM, r"--shard must be like 1/8, auto or auto/8, not")
            for text in ("", "3", "a/b", "-1/8", "1/8/2", "auto/", "auto/x", "auto/²", "auto/4/2")
        ],
    ],
)
def test_a_shard_that_cannot_be_read_is_refused(
    text: str, environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_shard(text, environment)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([512, 1024]), st.integers(1, 40))
@settings(deadline=None, max_examples=50)
def test_shards_share_all_blocks_and_blocks_cover_the_scene_once(
    height: int, width: int, block: int, count: int
) -> None:
    grid = describe_grid(dataclasses.replace(GRID, height=height, width=width))
    plan = make_plan(grid=grid, block=block)
    shares = [list(plan.share((i, count))) for i in range(1, count + 1)]
    assert sorted(itertools.chain(*shares)) == list(range(plan.rows * plan.columns))
    lengths = list(map(len, shares))
    assert max(lengths) - min(lengths) <= 1
    covered = np.zeros((height, width), dtype=np.uint8)
    for number in range(plan.rows * plan.columns):
        window = plan.window(number)
        assert window.row % block == window.column % block == 0
        part = covered[window.slices]
        assert part.shape == (window.height, window.width) and 0 < part.size <= block**2
        part += 1
    assert (covered == 1).all()


# ---------------------------------------------------------------- the stamp and the file


def test_the_stamp_changes_with_every_field() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Plan)}
    stamps = {make_plan(**{name: value}).stamp for name, value in OTHERS.items()}
    assert len(stamps | {make_plan().stamp}) == len(OTHERS) + 1
    assert make_plan().stamp == make_plan().stamp


def test_the_stamp_does_not_change_with_the_order_of_words() -> None:
    scene = dict(reversed(make_plan().scene.items()))
    assert make_plan(scene=scene).stamp == make_plan().stamp


@pytest.mark.parametrize("nodata", [None, 0.0, -9999.5, math.nan, math.inf, -math.inf])
def test_a_plan_is_read_back(tmp_path: Path, nodata: float | None) -> None:
    plan = make_plan(nodata=nodata, thresholds=(0.1, 1 / 3))
    assert plan.settle(tmp_path).stamp == plan.stamp
    there = load_plan(tmp_path)
    assert there.stamp == plan.stamp and str(there.nodata) == str(nodata)
    assert dataclasses.replace(there, nodata=None) == dataclasses.replace(plan, nodata=None)
    assert grid_of(there) == GRID
    assert plan.settle(tmp_path).stamp == plan.stamp


def test_the_same_plan_goes_on_with_the_threads_of_the_parts_there(tmp_path: Path) -> None:
    first = make_plan(threads=2).settle(tmp_path)
    written = (tmp_path / FILE).read_bytes()
    again = make_plan(threads=16).settle(tmp_path)
    assert again.threads == 2 and again.stamp == first.stamp
    assert (tmp_path / FILE).read_bytes() == written


@pytest.mark.parametrize("mine", ["torch", "onnx"])
def test_the_same_plan_goes_on_with_the_engine_of_the_parts_there_if_it_may(
    tmp_path: Path, mine: str
) -> None:
    first = make_plan(engines=("onnx",)).settle(tmp_path)
    again = make_plan(engines=(mine,)).settle(tmp_path, [("torch", "onnx")])
    assert again.engines == ("onnx",) and again.stamp == first.stamp
    with pytest.raises(UsageError, match=r"engines +onnx +openvino *\n"):
        make_plan(engines=("openvino",)).settle(tmp_path, [("torch", "openvino")])
    both = make_plan(engines=("torch", "torch"), bundles=("net", "net"))
    with pytest.raises(
        UsageError, match=r"bundles +net +net, net *\n.*engines +onnx +torch, torch"
    ):
        both.settle(tmp_path, [("torch", "onnx"), ("torch", "onnx")])


def test_of_two_that_begin_at_once_the_first_plan_is_everybodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = files.create_json

    def late(path: Path, words: Any) -> bool:
        monkeypatch.setattr(files, "create_json", create)
        make_plan(threads=2).settle(tmp_path)  # another machine, after we looked
        return create(path, words)

    monkeypatch.setattr(files, "create_json", late)
    mine = make_plan(threads=16).settle(tmp_path)
    assert mine.threads == load_plan(tmp_path).threads == 2


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {"threads"}))
def test_another_plan_is_refused_and_told_in_what_it_differs(tmp_path: Path, name: str) -> None:
    make_plan().settle(tmp_path)
    written = (tmp_path / FILE).read_bytes()
    with pytest.raises(UsageError, match="there are parts of another plan in it") as caught:
        make_plan(**{name: OTHERS[name]}).settle(tmp_path)
    lines = str(caught.value).splitlines()
    assert "of the parts there" in lines[1] and "wanted now" in lines[1]
    assert [line.split()[0] for line in lines[2:-1]] == [name]
    assert lines[-1].startswith("Say the same as then")
    assert (tmp_path / FILE).read_bytes() == written


def test_long_words_of_a_plan_are_cut_in_the_table(tmp_path: Path) -> None:
    make_plan(bundles=("a" * 500,)).settle(tmp_path)
    with pytest.raises(UsageError) as caught:
        make_plan(bundles=("b" * 500,)).settle(tmp_path)
    assert max(map(len, str(caught.value).splitlines())) < 300 and "…" in str(caught.value)


def test_a_folder_without_a_plan_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no parts of a prediction\. Check the name"):
        load_plan(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 99}', "\xff"])
def test_a_plan_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    for act in (lambda: load_plan(tmp_path), lambda: make_plan().settle(tmp_path)):
        with pytest.raises(DataError, match=r"plan\.json: the plan cannot be read .*Remove its"):
            act()


@pytest.mark.parametrize("name", sorted(OTHERS))
@pytest.mark.parametrize("value", ["gone", None, "text", 0, -1, [], {}])
def test_a_plan_with_a_damaged_word_is_told(tmp_path: Path, name: str, value: Any) -> None:
    make_plan(nodata=5.0).settle(tmp_path)
    words = json.loads((tmp_path / FILE).read_text())
    if value == "gone":
        del words[name]
    else:
        words[name] = value
    (tmp_path / FILE).write_text(json.dumps(words))
    with pytest.raises(DataError, match=r"plan\.json: the plan is damaged \(.*Remove its folder"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    "grid", [{}, {**describe_grid(GRID), "transform": [1]}, {**describe_grid(GRID), "width": "x"}]
)
def test_a_damaged_grid_is_told(grid: Mapping[str, Any]) -> None:
    with pytest.raises(DataError, match="the plan's grid is damaged"):
        grid_of(make_plan(grid=grid))


# ---------------------------------------------------------------- scenes, blocks and numbers


def test_a_scene_is_told_from_another_of_the_same_name(tmp_path: Path) -> None:
    pixels = make_pixels(300, 300)
    one, other = (tmp_path / name / "a.tif" for name in "xy")
    for path in (one, other):
        path.parent.mkdir()
        write_scene(path, pixels)
    same = describe_scene(open_raster(one))
    assert same == describe_scene(open_raster(other)) and same["bytes"] == one.stat().st_size
    pixels[0, 150, 150] ^= 1
    write_scene(other, pixels)
    assert describe_scene(open_raster(other))["digest"] != same["digest"]


def test_a_change_at_either_end_of_a_large_scene_is_seen(tmp_path: Path) -> None:
    raster = open_raster(write_scene(tmp_path / "a.tif", make_pixels(2500, 2000)))
    first = describe_scene(raster)
    data = raster.path.read_bytes()
    assert len(data) > 64 * 65536  # samples do not cover it
    for at in (0, len(data) - 1):
        raster.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert describe_scene(raster)["digest"] != first["digest"]


def test_a_scene_that_is_no_file_is_known_by_its_name(tmp_path: Path) -> None:
    raster = open_raster(write_scene(tmp_path / "a.tif", make_pixels(20, 20)))
    remote = dataclasses.replace(
        raster, path=Path("https://example.org/a.tif"), trust=True, files=()
    )
    assert describe_scene(remote) == {
        **{"name": str(remote.path), "bytes": None, "digest": ""},
        "files": [],
    }


def test_blocks_shrink_where_a_pixel_has_many_probabilities() -> None:
    sides = [block_of(planes, 1.0) for planes in (1, 16, 17, 64, 65, 256, 257, 5000)]
    assert sides == [2048, 2048, 1024, 1024, 512, 512, 512, 512]
    assert [block_of(1, factor) for factor in (0.3, 1.5, 1.6, 4, 20)] == [
        2048,
        2048,
        1024,
        512,
        512,
    ]


def test_no_data_is_the_highest_number_that_no_class_has() -> None:
    def table(*values: int) -> Classes:
        infos = [ClassInfo(str(value), value, (0, 0, 0)) for value in values]
        return Classes(tuple(infos), "multiclass")

    assert nodata_of(table(0, 1)) == 255
    assert nodata_of(table(0, 255, 254)) == 253
    assert nodata_of(table(*range(1, 256))) == 0
    infos = (ClassInfo("a", 255, (0, 0, 0)), ClassInfo("b", 254, (0, 0, 0)))
    assert nodata_of(Classes(infos, "multilabel")) == 255  # its mask holds 0 and 1


def test_a_disk_that_is_too_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Status:
        f_bavail, f_frsize = 10, 2**20

    monkeypatch.setattr(module.os, "statvfs", lambda _: Status, raising=False)
    path = tmp_path / "not" / "yet" / "map.tif"
    assert require_space(path, 10 * 20 * 2**20 // 2, 1) == 10
    with pytest.raises(OutputError, match=r"map\.tif: about 100 MB are needed there, 10 MB are"):
        require_space(path, 1000 * 2**20, 1)
    monkeypatch.delattr(module.os, "statvfs", raising=False)
    assert require_space(path, 1000 * 2**20, 1) == 100
