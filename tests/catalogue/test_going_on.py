"""The catalogue of faults, D84 to D93: ends, places to write, and going on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cases import At, Case, Catalogue, Words, check
from made import salt_folder, snapshot
from told import assert_told
from training_cases import assert_error, at_step, go_on, train, weights
from whatwhere import files, nets
from whatwhere.train.state import States, read_state
from whatwhere.training import run as training

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_going_on(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


# ---------------------------------------------------------------- 84 to 86: ends


def test_d84_a_run_that_died_goes_on_to_the_same_weights(data: Path, run: Path, calm: str) -> None:
    refused = train(data, run)
    assert_error(refused, 2, "a training that was not finished is in this folder. --resume goes on")
    assert_told(go_on(data, run), 0, "resume   at epoch 2, after 2 of 2 batches|resume   at epoch")
    assert weights(run) == calm and not (run / "checkpoints").exists()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_d85_a_signal_keeps_the_step(name: str, data: Path, calm: str, tmp_path: Path) -> None:
    """D85, and D86: a terminal that is closed."""
    run, number = tmp_path / "run", getattr(signal, name)

    def ask(loss: Any) -> Any:
        os.kill(os.getpid(), number)
        return loss

    with at_step(3, ask):
        ended = train(data, run, "--save-minutes", 60)
    assert_told(ended, 128 + number, "stopped  --resume goes on from here", "interrupted: what was")
    assert [read_state(p)["global_step"] for p in States(run / "checkpoints").paths()] == [3]
    assert_told(go_on(data, run), 0, "step 3")
    assert weights(run) == calm


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_d85_a_second_signal_stops_at_once(data: Path, tmp_path: Path) -> None:
    def insist(loss: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with at_step(3, insist):
        ended = train(data, tmp_path / "run", "--save-minutes", 60)
    assert_told(ended, 143, "interrupted")


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_d86_a_reader_of_a_pipe_that_goes(data: Path) -> None:
    words = [sys.executable, "-m", "whatwhere", "inspect", str(data)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait(120) == 0, told
    assert "Traceback" not in told and "Exception" not in told


# ---------------------------------------------------------------- 87 to 90: places to write


@pytest.mark.parametrize(
    ("number", "code"),
    [(2, errno.ENOSPC), (6, errno.EDQUOT), (9, errno.EIO), (14, errno.ENOSPC)],
)
def test_d87_a_disk_that_is_full(
    number: int, code: int, data: Path, calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some write of the training fails: recipe, state, weights, card, log or report."""
    run, whole, count = tmp_path / "run", os.fsync, 0
    begun = training._whole_run

    def fsync(descriptor: int) -> None:
        nonlocal count
        if os.path.isfile(f"/proc/self/fd/{descriptor}"):
            count += 1
            if count == number:
                raise OSError(code, os.strerror(code))
        whole(descriptor)

    def from_here(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            return begun(*args)

    monkeypatch.setattr(training, "_whole_run", from_here)
    ended = train(data, run)
    if number == 14:
        assert count >= number, "the training writes less often than that"
    assert_error(
        ended, 5, rf"run/.*: cannot write this file: {os.strerror(code)}\. Nothing that was"
    )
    assert not [one for one in snapshot(run) if files.TEMPORARY in one]
    for path in States(run / "checkpoints").paths():
        read_state(path)
    monkeypatch.setattr(training, "_whole_run", begun)
    assert_told(go_on(data, run), 0)
    assert weights(run) == calm


@case(
    "D88-the-output-lies-below-a-file", 5, "out.txt/run: cannot make this folder: Not a directory"
)
def _(at: At) -> Words:
    (at.folder / "out.txt").write_text("here first")
    return "train", salt_folder(at.data, 4, (32, 32)), "-o", at.folder / "out.txt" / "run"


def test_d88_an_output_that_cannot_be_written_is_found_before_the_data_is_looked_at(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, which nobody may write to")

    def looked(*_: Any) -> Any:
        raise AssertionError("the data was looked at")

    monkeypatch.setattr(training, "plan_data", looked)
    assert_error(train(data, Path("/proc/run")), 5, r"/proc/run: cannot make this folder: .*\.")


@case("D88-a-missing-folder-is-made", 0, "rehearsal passed")
def _(at: At) -> Words:
    data = salt_folder(at.data, 4, (32, 32))
    return "train", data, "-o", at.out / "a" / "b", "--n-filters", 2, "--dry-run"


def test_d89_no_place_for_temporary_files_elsewhere_is_needed(
    data: Path, calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert_told(train(data, tmp_path / "run"), 0)
    assert weights(tmp_path / "run") == calm and not (tmp_path / "gone").exists()


def test_d90_two_runs_in_one_folder(data: Path, run: Path, calm: str) -> None:
    before = snapshot(run)
    with files.locked(run):
        busy = go_on(data, run)
        assert_error(
            busy, 75, rf"run: process {os.getpid()} is at work in this folder\. Wait for it"
        )
    assert snapshot(run) == before
    (run / files.LOCK).write_text("999999")  # left by a process that is dead
    assert_told(go_on(data, run), 0)
    assert weights(run) == calm


# ---------------------------------------------------------------- 91 to 93: going on


def test_d91_a_clock_that_jumps(
    data: Path, run: Path, calm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back to 1970, and on to 2040: what is newest the step says, not the time of a file."""
    older, newer = States(run / "checkpoints").paths()
    os.utime(older, (2.2e9, 2.2e9))
    os.utime(newer, (0, 0))
    times = iter([0.0, 2.2e9] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(times))
    step = read_state(newer)["global_step"]
    assert_told(go_on(data, run), 0, rf"\(step {step}\)")
    assert weights(run) == calm
    rows = (run / "log.csv").read_text().splitlines()
    assert all(0 <= float(row.split(",")[1]) < 600 for row in rows[1:])


def test_d92_another_recipe_is_refused(data: Path, run: Path) -> None:
    before = snapshot(run)
    ended = go_on(data, run, "--lr", 0.5)
    assert_error(
        ended, 2, "not the training that was begun there", r"lr +0\.001 +0\.5", "Leave these"
    )
    assert snapshot(run) == before


def test_d92_other_data_is_refused(data: Path, run: Path, tmp_path: Path) -> None:
    """One pixel of one image: so a flipped bit of a JPEG is found too (A07)."""
    other = Path(shutil.copytree(data, tmp_path / "data"))
    with Image.open(other / "images" / "s00.png") as picture:
        pixels = np.array(picture)
    pixels[3, 3] ^= 1
    Image.fromarray(pixels).save(other / "images" / "s00.png")
    before = snapshot(run)
    assert_error(
        go_on(other, run), 2, r"images +\w{16,64} +\w{16,64}", "Make them the same again, or begin"
    )
    assert snapshot(run) == before


def test_d92_another_version_is_refused(
    data: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = nets.versions()["torch"]
    versions = {**nets.versions(), "torch": "1.0"}
    monkeypatch.setattr(nets, "versions", lambda: versions)
    assert_error(go_on(data, run), 2, rf"torch +{re.escape(now)} +1\.0")


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_d93_a_damaged_state_is_passed_over(how: str, data: Path, run: Path, calm: str) -> None:
    older, newer = States(run / "checkpoints").paths()
    whole = bytearray(newer.read_bytes())
    whole[len(whole) // 2] ^= 1
    newer.write_bytes({"cut": bytes(whole[:-9]), "empty": b"", "flipped": bytes(whole)}[how])
    step = read_state(older)["global_step"]
    told = "this state is damaged: .* The one before it is taken"
    assert_told(go_on(data, run), 0, told, rf"\(step {step}\)")
    assert weights(run) == calm


def test_d93_no_state_at_all(data: Path, run: Path, calm: str) -> None:
    shutil.rmtree(run / "checkpoints")
    assert_told(go_on(data, run), 0, "no state was kept yet: the training begins again")
    assert weights(run) == calm
