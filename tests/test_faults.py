"""A disk that fails once: nothing corrupt under a final name, nothing older lost, then it works."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forks
from faults import Disk, left_over, lost, points, read_whole, snapshot
from hostile_rasters import honest
from made import salt_folder
from made_maps import make_predictor, save_bundle
from made_scenes import town
from whatwhere import files, jobs
from whatwhere.errors import OutputError
from whatwhere.talk import QUIET
from whatwhere.train.state import States

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")

Act = Callable[[Path], Any]
SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 4, "n_filters": 2, "save_minutes": 0.0}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What verbs are given: images, a scene, nets, a run."""
    shelf = tmp_path_factory.mktemp("shelf")
    salt_folder(shelf / "salt", 12, (32, 32))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (shelf / "images").mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(shelf / "images" / f"{name}.png")
    town(shelf, "town", bands=1)
    honest(shelf / "scene.tif")
    for seed, name in ((0, "new"), (1, "old")):
        save_bundle(shelf / name / "bundle", make_predictor(bands=["grey"], seed=seed))
    jobs.train(shelf / "salt", shelf / "run", talk=QUIET, **SMALL)
    return shelf


def fit(shelf: Path) -> tuple[Act, Act]:
    """A training without rehearsal or report."""
    settings = {"epochs": 2, "batch_size": 8, "save_minutes": 0.0}
    request = {"data": shelf / "salt", "settings": settings}
    return lambda _: None, lambda out: forks.fit_small({**request, "run": out / "run"})


def images(shelf: Path) -> tuple[Act, Act]:
    def act(out: Path, net: str = "new") -> None:
        more: dict[str, Any] = {"probabilities": True, "overlay": True, "table": out / "t.csv"}
        jobs.predict(shelf / net, shelf / "images", out / "masks", talk=QUIET, **more)

    return lambda out: act(out, "old"), act


def scene(shelf: Path) -> tuple[Act, Act]:
    def act(out: Path, net: str = "new") -> None:
        more: dict[str, Any] = {"probabilities": True, "polygons": out / "map.gpkg"}
        jobs.predict(shelf / net, shelf / "scene.tif", out / "map.tif", talk=QUIET, **more)

    return lambda out: act(out, "old"), act


def tune(shelf: Path) -> tuple[Act, Act]:
    return (
        lambda out: shutil.copytree(shelf / "run", out / "run"),
        lambda out: jobs.tune(out / "run", shelf / "salt", metric="dice", talk=QUIET),
    )


def chip(shelf: Path, layout: str = "folder") -> tuple[Act, Act]:
    labels = shelf / "town_houses.geojson"
    more: dict[str, Any] = {"labels": labels, "chip_size": 128, "format": layout}
    return (
        lambda _: None,
        lambda out: jobs.chip(shelf / "town.tif", out / "chips", talk=QUIET, **more),
    )


def export_chips(shelf: Path) -> tuple[Act, Act]:
    return chip(shelf, "esri")


def package(shelf: Path) -> tuple[Act, Act]:
    def act(out: Path, net: str = "new") -> None:
        jobs.export(shelf / net, out / "emd" / "net.emd", talk=QUIET)
        jobs.export(shelf / net, out / "net.dlpk", talk=QUIET)

    return lambda out: act(out, "old"), act


def train(shelf: Path) -> tuple[Act, Act]:
    """All that `train` does; it goes on where it was."""

    def act(out: Path) -> None:
        begun = (out / "run" / "recipe.toml").exists()
        jobs.train(shelf / "salt", out / "run", resume=begun, talk=QUIET, **SMALL)

    return lambda _: None, act


VERBS = {
    **{"fit": (fit, 12), "images": (images, 15), "scene": (scene, 10), "tune": (tune, 8)},
    **{"chip": (chip, 5), "esri": (export_chips, 3), "package": (package, 12)},
    "train": (train, 0),  # too long for here
}


@pytest.mark.parametrize("verb", [name for name, (_, most) in VERBS.items() if most])
def test_a_call_that_fails_spoils_nothing(shelf: Path, tmp_path: Path, verb: str) -> None:
    make, most = VERBS[verb]
    before, act = make(shelf)
    calm = tmp_path / "calm"
    calm.mkdir()
    before(calm)
    old = snapshot(calm)
    disk = Disk(calm)
    with disk.spinning():
        act(calm)
    new = snapshot(calm)
    chosen = points(disk.calls, most)
    assert len(set(chosen)) == most
    for kind, number, code in chosen:
        out = tmp_path / "out"
        out.mkdir()
        before(out)
        check_fault(Disk(out, kind, number, code), out, act, old, new)
        shutil.rmtree(out)


def check_fault(
    disk: Disk, out: Path, act: Act, old: dict[str, bytes], new: dict[str, bytes]
) -> None:
    """One call fails once."""
    told = f"{disk.kind} {disk.number}: {disk.code}"
    needed = disk.kind != "fsync of a folder"  # which not all systems can do
    failed = pytest.raises(OutputError) if needed else contextlib.nullcontext()
    with disk.spinning(), failed as caught:
        act(out)
    if caught is not None:
        message = str(caught.value)
        assert os.strerror(disk.code) in message and str(out) in message, message
    assert disk.hit and not left_over(out), told
    there = snapshot(out)
    for name, data in there.items():
        if data not in (old.get(name), new.get(name)):
            read_whole(out / name)
    assert not lost(old, there), told
    if needed:
        act(out)
    assert set(snapshot(out)) == set(new) and not left_over(out), told
    for name, data in snapshot(out).items():
        if data != new[name]:
            read_whole(out / name)


# ---------------------------------------------------------------- before the first step


def test_a_training_that_will_not_fit_is_refused_at_once(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 20_000)
    told = r"the states and the bundle of this training take about [\d,]+ bytes there, and 20,000 "
    with pytest.raises(OutputError, match=told):
        jobs.train(shelf / "salt", tmp_path / "run", talk=QUIET, **SMALL)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(files, "free_bytes", lambda _: None)  # a system that does not tell
    assert jobs.train(shelf / "salt", tmp_path / "run", talk=QUIET, **SMALL)


def test_a_training_that_goes_on_must_fit_too(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = States.write, 0

    def dying(self: States, step: int, data: bytes) -> Path:
        nonlocal count
        count += 1
        if count == 2:
            raise SystemExit
        return write(self, step, data)

    with monkeypatch.context() as patch:
        patch.setattr(States, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            jobs.train(shelf / "salt", tmp_path / "run", talk=QUIET, **SMALL)
    before = snapshot(tmp_path)
    monkeypatch.setattr(files, "free_bytes", lambda _: 9)
    with pytest.raises(
        OutputError, match=r"the next state and the bundle .* and 9 are free\. Free"
    ):
        jobs.train(shelf / "salt", tmp_path / "run", resume=True, talk=QUIET)
    assert snapshot(tmp_path) == before


def test_a_folder_for_the_rehearsal_that_cannot_be_made_is_told(
    shelf: Path, tmp_path: Path
) -> None:
    disk = Disk(tmp_path / "run" / files.TEMPORARY, "mkdir", 1, errno.ENOSPC)
    with disk.spinning(), pytest.raises(OutputError, match="cannot make a folder in it: No space"):
        jobs.train(shelf / "salt", tmp_path / "run", talk=QUIET, **SMALL)
    assert disk.hit and not (tmp_path / "run").exists()


def test_there_are_sixty_points_and_more() -> None:
    assert sum(most for _, most in VERBS.values()) >= 60


def test_what_is_free_is_what_the_system_says(tmp_path: Path) -> None:
    free = files.free_bytes(tmp_path / "not" / "there")
    assert free is not None and abs(free - shutil.disk_usage(tmp_path).free) < 2**30
    files.require_space(tmp_path, 1, "some bytes")
    with pytest.raises(
        OutputError, match=r"all of it take about [\d,]{20,} bytes there, and [\d,]+"
    ):
        files.require_space(tmp_path, 10**18, "all of it")


# ---------------------------------------------------------------- folders and what lies beside


def test_a_folder_shows_when_all_of_it_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files.building(out) as place:
        files.write_text(place / "inner" / "a", "1")
        files.write_text(place / "b", "2")
        assert files.holds_nothing(out)
    assert snapshot(out) == {"inner/a": b"1", "b": b"2"}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    disk = Disk(tmp_path, "replace", number, errno.EIO)

    def fill() -> None:
        with files.building(out) as place:
            files.write_text(place / "inner" / "a", "1")
            files.write_text(place / "b", "2")

    with disk.spinning(), pytest.raises(OutputError, match="Input/output error") as caught:
        fill()
    assert files.TEMPORARY not in str(caught.value) and str(out) in str(caught.value)
    assert disk.hit and not snapshot(out) and not left_over(out)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    files.write_text(tmp_path / f"{files.TEMPORARY}1-x.tmp" / "a", "1")
    (tmp_path / files.LOCK).touch()
    assert files.holds_nothing(tmp_path)
    with files.building(tmp_path) as place:
        files.write_text(place / "b", "2")
    assert snapshot(tmp_path) == {"b": b"2"}


def test_what_lies_beside_an_old_raster_goes_with_it_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    endings = ("", ".ovr", ".msk", ".aux.xml")
    old = {f"a.tif{ending}": b"old" for ending in endings}
    for name, data in old.items():
        (tmp_path / name).write_bytes(data)
    for number in (1, 2, 3, 4):  # three are moved aside, then the new one comes
        disk = Disk(tmp_path, "replace", number, errno.EACCES)
        with disk.spinning(), pytest.raises(OutputError, match="Permission denied"):
            files.write_bytes(path, b"new")
        assert disk.hit and snapshot(tmp_path) == old
    files.write_bytes(path, b"new")
    assert snapshot(tmp_path) == {"a.tif": b"new"}
