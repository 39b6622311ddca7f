"""Chips on disk: a training on them sees what a training on the scenes sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from made import salt_folder, snapshot
from made_maps import NORTH_UP, write_scene
from made_scenes import PLACES, Place, add_layer, bright_scene, town, truth_of, write_places
from whatwhere import jobs
from whatwhere.cli import app
from whatwhere.config import Recipe, make_recipe
from whatwhere.data.classes import find_classes, kept_spec, spec_of
from whatwhere.data.doctor import class_pixels
from whatwhere.data.inputs import Inputs
from whatwhere.data.lattice import chip_starts
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.scenes import Block
from whatwhere.errors import DataError, UsageError
from whatwhere.io.image import read_mask
from whatwhere.io.raster import open_raster
from whatwhere.talk import QUIET
from whatwhere.types import Classes, ClassInfo, Window

WORDS: dict[str, Any] = {"chip_size": 64, "talk": QUIET}
KINDS = ["roof", "tree", "water"]
NOTHING = -1


def planned(data: Path, recipe: Recipe | None = None, **said: Any) -> DataPlan:
    return plan_data(Inputs.of(data, **said), recipe or Recipe(), QUIET)


def seen(plan: DataPlan, split: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """The labels that a split shows of one scene, `NOTHING` elsewhere, and the pixels."""
    labels = np.full(size, NOTHING)
    pixels = np.zeros((len(plan.reader.bands), *size))
    for pair in plan.splits[split]:
        image, mine, counted = plan.reader(pair)
        if isinstance(pair, Block):
            window = pair.window
        else:
            row, column = (int(part[1:]) for part in pair.key.split("_")[-2:])
            window = Window(row, column, *counted.shape)
        mean = np.array(plan.reader.normalization.mean)[:, None, None]
        std = np.array(plan.reader.normalization.std)[:, None, None]
        before = labels[window.slices]
        both = (before != NOTHING) & counted
        assert np.array_equal(before[both], mine[both]), "chips that overlap agree"
        labels[window.slices] = np.where(counted, mine, before)
        raw = np.where(counted, image * std + mean, pixels[(slice(None), *window.slices)])
        pixels[(slice(None), *window.slices)] = raw
    return labels, pixels


def words_of(count: int) -> list[str]:
    return [KINDS[i % 3] for i in range(count)]


@pytest.mark.parametrize("suffix", [".geojson", ".tif"])
def test_a_training_sees_the_same_pixels_and_labels(tmp_path: Path, suffix: str) -> None:
    numbers = [1 + i % 3 for i in range(len(PLACES))]
    truth = truth_of((640, 640), PLACES, numbers)
    scene = bright_scene(tmp_path / "s.tif", truth // 2)
    said: dict[str, Any] = {"labels": tmp_path / f"l{suffix}"}
    if suffix == ".tif":
        write_scene(said["labels"], truth[None].astype(np.uint8))
    else:
        write_places(said["labels"], PLACES, columns={"kind": words_of(len(PLACES))})
        said["class_field"] = "kind"
    told = jobs.chip(scene, tmp_path / "out", **said, chip_size=80, seed=3, talk=QUIET)
    first = planned(scene, make_recipe(chip_size=80, seed=3), **said)
    again = planned(tmp_path / "out")
    assert again.classes.names == first.classes.names
    assert [info.value for info in again.classes] == [info.value for info in first.classes]
    assert again.classes.task == first.classes.task and again.classes.ignored == (255,)
    for split, pairs in again.splits.items():
        assert told["chips"][split] == len(pairs) > 0
        wanted, found = seen(first, split, truth.shape), seen(again, split, truth.shape)
        assert np.array_equal(wanted[0], found[0])
        assert np.allclose(wanted[1], found[1], atol=1e-3)
        assert (found[0] >= 0).any()
    for split in ("val", "test"):  # every pixel is scored once, in chips that overlap
        pixels = class_pixels(again.survey, again.splits[split], again.classes)
        assert pixels == class_pixels(first.survey, first.splits[split], first.classes)
    assert all(again.survey.facts[p.key].size == (80, 80) for p in again.survey.pairs)


def test_chips_lie_where_they_were_cut(tmp_path: Path) -> None:
    turned = Affine(0.5, 0.1, 500000, 0.2, -0.5, 3000000)
    pixels = np.random.default_rng(0).integers(1, 60_000, (4, 320, 320), dtype=np.uint16)
    scene = write_scene(tmp_path / "s.tif", pixels, transform=turned, nodata=0)
    places: list[Place] = [place for place in PLACES if max(place[:2]) < 280]
    labels = write_places(tmp_path / "l.gpkg", places, transform=turned)
    jobs.chip(scene, tmp_path / "out", labels=labels, bands="4,2,1", **WORDS)
    whole, truth = open_raster(scene), truth_of((320, 320), places, [1] * len(places))
    chips = sorted((tmp_path / "out").glob("*/images/*.tif"))
    assert len(chips) > 20
    for path in chips:
        chip = open_raster(path)
        assert chip.grid.crs == whole.grid.crs and chip.dtype == "uint16" and chip.nodata[0] == 0
        step = ~whole.grid.transform @ chip.grid.transform
        row, column = round(step.f), round(step.c)
        assert np.allclose(step[:6], [1, 0, column, 0, 1, row], atol=1e-6)
        assert path.stem == f"s_r{row:06d}_c{column:06d}"
        place = Window(row, column, *chip.size)
        assert np.array_equal(
            chip.read(Window(0, 0, *chip.size))[0], pixels[[3, 1, 0]][(slice(None), *place.slices)]
        )
        mask, _ = read_mask(path.parent.parent / "masks" / f"{path.stem}.png")
        labelled = mask != 255
        assert np.array_equal(mask[labelled], truth[place.slices][labelled])


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_pixels_without_data_or_label_count_nowhere(tmp_path: Path, kind: str) -> None:
    _, labels, truth = town(tmp_path)
    pixels = np.clip(60 + 60 * truth + np.arange(3)[:, None, None], 1, 255).astype(kind)
    mark = 0 if kind == "uint8" else -99
    pixels[:, 100:230, 50:300] = mark
    scene = write_scene(tmp_path / "gap.tif", pixels, nodata=mark)
    aoi = write_places(tmp_path / "aoi.gpkg", [(0, 0, 640, 500)])
    said = {"labels": labels, "aoi": aoi}
    told = jobs.chip(scene, tmp_path / "out", **said, **WORDS)
    first = planned(scene, make_recipe(chip_size=64), **said)
    again = planned(tmp_path / "out")
    assert told["left_out"] > 0 and told["classes"].endswith("255=ignore")
    for split in again.splits:
        wanted, found = seen(first, split, truth.shape), seen(again, split, truth.shape)
        assert np.array_equal(wanted[0], found[0]) and np.allclose(*(w[1] for w in (wanted, found)))
    ours, theirs = (plan.reader.normalization for plan in (first, again))
    assert np.allclose(ours.mean, theirs.mean, rtol=0.1), "no pixel without data was measured"
    for path in (tmp_path / "out").glob("*/images/*.tif"):
        chip = open_raster(path)
        window = Window(int(path.stem[5:11]), int(path.stem[-6:]), *chip.size)
        assert len(chip.names) == 3 and chip.dtype == kind
        _, valid = chip.read(Window(0, 0, *chip.size))
        assert np.array_equal(valid, (pixels[0] != mark)[window.slices])


def test_chips_overlap_in_training_alone(tmp_path: Path) -> None:
    places: list[Place] = [place for place in PLACES if max(place[:2]) < 290]
    truth = truth_of((320, 320), places, [1] * len(places))
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_places(tmp_path / "l.gpkg", places)
    plain = jobs.chip(scene, tmp_path / "a", labels=labels, **WORDS)
    more = jobs.chip(scene, tmp_path / "b", labels=labels, overlap=32, **WORDS)
    assert more["chips"]["train"] > 1.3 * plain["chips"]["train"]
    assert more["chips"]["val"] == plain["chips"]["val"]
    one, other = (seen(planned(tmp_path / name), "train", truth.shape) for name in "ab")
    assert np.array_equal(one[0], other[0])


def test_scenes_of_one_name_and_of_other_pixels(tmp_path: Path) -> None:
    places: list[Place] = [place for place in PLACES if max(place[:2]) < 290]
    truth = truth_of((320, 320), places, [1] * len(places))
    rows = []
    for i, (name, split) in enumerate({"a/t": "train", "b/t": "val", "c/u": "train"}.items()):
        step = 2 if i == 2 else 1  # its pixels are 1 m
        place = NORTH_UP @ Affine.translation(2000 * i, 0)
        bright_scene(
            tmp_path / f"{name}.tif",
            truth[::step, ::step],
            transform=place @ Affine.scale(step),
        )
        write_places(tmp_path / f"{name}.gpkg", places, transform=place)
        rows.append(f'[[scene]]\nimage = "{name}.tif"\nlabels = "{name}.gpkg"\nsplit = "{split}"\n')
    (tmp_path / "data.toml").write_text("\n".join(rows))
    out = tmp_path / "out"
    told = jobs.chip(tmp_path / "data.toml", out, **WORDS)
    assert told["chips"]["train"] > told["chips"]["val"] > 0 == told["chips"]["test"]
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.tif")}
    assert len(names) == told["chips"]["train"] + told["chips"]["val"]
    stems = {name.rsplit("_r", 1)[0] for name in names}
    assert stems == {"train/images/a/t", "val/images/b/t", "train/images/u"}
    fine = open_raster(next(out.rglob("u_r*.tif")))
    assert fine.dtype == "float32" and fine.grid.transform.a == pytest.approx(0.5, rel=0.01)
    again = planned(out)
    assert {split: len(pairs) for split, pairs in again.splits.items()} == told["chips"]


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    for i, name in enumerate(("houses", "sheds")):
        add_layer(tmp_path / "l.gpkg", name, PLACES[i::2])
    runner, out = CliRunner(), tmp_path / "out"
    words = ["chip", str(scene), "--labels", str(tmp_path / "l.gpkg"), "--layer", "sheds"]
    words += ["-o", str(out), "--chip-size", "64"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"chips of 64×64 px in {out}: " in done.stdout
    assert 'classes: "0=background,1=sheds,255=ignore", kept in classes.toml' in done.stdout
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("next: whatwhere ")]
    assert line == f"next: whatwhere train {out} -o RUN --orientation free"
    done = runner.invoke(app, ["inspect", str(out)])
    assert done.exit_code == 0 and "sheds" in done.stdout
    before = snapshot(out)
    done = runner.invoke(app, words)
    assert done.exit_code == 2 and "there is something in this folder" in done.output
    assert snapshot(out) == before
    done = runner.invoke(
        app, [*words[:-4], "-o", str(tmp_path / "j"), "--chip-size", "64", "--json"]
    )
    assert json.loads(done.stdout)["chip_px"] == [64, 64]


def test_what_cannot_be_done_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path / "in")
    out = tmp_path / "out"
    folder = salt_folder(tmp_path / "salt", 4)
    for data, said, message in (
        (
            scene,
            {"format": "coco"},
            "--format coco: chips are written as folder .* written yet",
        ),
        (scene, {"overlap": -1}, "--overlap must be at least 0 px, not -1"),
        (scene, {"overlap": 64}, "--overlap 64: chips of 64 px overlap by less than their side"),
        (folder, {"labels": None}, "salt: chips are cut from scenes; this is a folder of images"),
    ):
        words: dict[str, Any] = {"labels": labels, **WORDS, **said}
        with pytest.raises(UsageError, match=message):
            jobs.chip(data, out, **words)
        assert not out.exists()
    with pytest.raises(UsageError, match="town.tif: this is a file. Take a new folder"):
        jobs.chip(scene, scene, labels=labels, **WORDS)
    with pytest.raises(DataError, match="nowhere"):
        jobs.chip(scene, out, labels=tmp_path / "nowhere.gpkg", **WORDS)
    assert not out.exists()


# ---------------------------------------------------------------- where chips begin


@given(st.integers(1, 400), st.integers(1, 90), st.data())
@settings(max_examples=80, deadline=None)
def test_chips_cover_a_side_and_say_what_they_share(length: int, side: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, side - 1))
    found = chip_starts(length, side, overlap)
    times = np.zeros(length, dtype=int)
    first = np.zeros(length, dtype=int)
    for start, shared in found:
        assert start >= 0 and (start + side <= length or start == 0)
        times[start : start + side] += 1
        first[start + shared : start + side] += 1
    assert (first == 1).all() and (times >= 1).all()
    starts = [start for start, _ in found]
    assert starts == sorted(set(starts))
    assert all(shared >= min(overlap, length) for _, shared in found[1:])
    least = 1 if length <= side else 1 + -(-(length - side) // (side - overlap))
    assert len(found) == least


# ---------------------------------------------------------------- what the masks hold


def table(names: list[str]) -> Classes:
    infos = [
        ClassInfo(name, i, (i, i, i), "background" if name == "background" else "class", (i + 7,))
        for i, name in enumerate(names)
    ]
    return Classes(tuple(infos), "multiclass" if len(names) > 2 else "binary")


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["background", "roof"], ["background", "roof"]),
        (
            ["background", 'größe "x" = 3', "a,b", "Ignore"],
            ["background", 'größe "x" = 3', "a;b", "Ignore."],
        ),
    ],
)
def test_a_table_is_read_back(tmp_path: Path, names: list[str], read: list[str]) -> None:
    import tomli_w

    spec = spec_of(table(names), 255)
    (tmp_path / "classes.toml").write_text(tomli_w.dumps({"classes": spec}), encoding="utf-8")
    found = find_classes([], kept_spec(tmp_path))
    assert found.names == read and found.ignored == (255,)
    assert [(info.value, info.raw) for info in found] == [(i, (i,)) for i in range(len(names))]
    with pytest.raises(UsageError, match="the classes a,b, a;b cannot be told apart in a table"):
        spec_of(table(["a,b", "a;b"]), 255)


def test_a_folder_says_what_its_masks_hold(tmp_path: Path) -> None:
    salt_folder(tmp_path, 8)
    path = tmp_path / "classes.toml"
    path.write_text('classes = "0=rock,255=salt"\n')
    assert planned(tmp_path).classes.names == ["rock", "salt"]
    said = planned(tmp_path, make_recipe(classes="a,b"))
    assert said.classes.names == ["a", "b"], "what is typed goes before"
    for text, message in (
        ("classes = 3", "it must hold one line such as classes = "),
        ('classes = "a,b"', "it must hold one line such as classes = "),
        ('classes = "0=a,1=b"\nmore = 1', "it must hold one line such as classes = "),
        ("= 3", "this is not TOML"),
        ('classes = "0=a"', r"classes\.toml: --classes must name at least two classes"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            planned(tmp_path)
