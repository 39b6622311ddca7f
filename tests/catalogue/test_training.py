"""The catalogue of faults, D75 to D93: training and numbers."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from cases import At, Case, Catalogue, Words, check, check_words
from made import salt_folder, snapshot, write_pair
from made_files import noise
from told import assert_told, call
from whatwhere import files, nets, training
from whatwhere.config import make_recipe
from whatwhere.data.plan import plan_data
from whatwhere.errors import NumericsError, OutputError
from whatwhere.talk import QUIET
from whatwhere.train.callbacks import Overflows
from whatwhere.train.module import Segmentation
from whatwhere.train.readers import told_here
from whatwhere.train.state import States, read_state

CASES = Catalogue()
case = CASES.case

SETTINGS = ("--n-filters", 2, "--epochs", 3, "--batch-size", 4, "--save-minutes", 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("training") / "data", 12, (32, 32))


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a training that nothing happens to."""
    run = tmp_path_factory.mktemp("calm") / "run"
    assert_told(train(data, run), 0, "next: ")
    return weights(run)


class Died(BaseException):
    """A process that is gone, as far as it can be played."""


@pytest.fixture(scope="module")
def died(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a training that died after its fourth state."""
    run = tmp_path_factory.mktemp("died") / "run"
    write, count = States.write, 0

    def dying(self: States, step: int, state: bytes) -> Path:
        nonlocal count
        count += 1
        path = write(self, step, state)
        if count == 4:
            raise Died
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(States, "write", dying)
        with pytest.raises(Died):
            train(data, run)
    return run


@pytest.fixture
def run(died: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(died, tmp_path / "run"))


def train(data: Path, run: Path, *words: object) -> Result:
    """Train without the rehearsal, which other tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_rehearse", lambda *_: None)
        return call("train", data, "-o", run, *SETTINGS, *words)


def go_on(data: Path, run: Path, *words: object) -> Result:
    return call("train", data, "-o", run, "--resume", *words)


def weights(run: Path) -> str:
    return str(json.loads((run / "bundle" / "bundle.json").read_text())["weights"]["sha256"])


def assert_error(result: Result, code: int, *told: str) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_told(result, code, *told)
    check_words(result.output, code)


@contextlib.contextmanager
def at_step(number: int, act: Callable[[Any], Any]) -> Iterator[None]:
    """Let something happen in a step of the training itself, not of the rehearsal."""
    step, seen = Segmentation.training_step, 0

    def training_step(self: Segmentation, batch: Any, place: int) -> Any:
        nonlocal seen
        loss = step(self, batch, place)
        if self.trainer.max_epochs == 3:
            seen += 1
            if seen == number:
                loss = act(loss)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmentation, "training_step", training_step)
        yield


# ---------------------------------------------------------------- 75 to 79: numbers and memory


def test_d75_a_loss_that_is_no_number(data: Path, calm: str, tmp_path: Path) -> None:
    """The last good weights stay, the images are named, and the training can go on."""
    run, measure, count = tmp_path / "run", Segmentation.measure, 0

    def measured(self: Segmentation, batch: Any) -> Any:
        nonlocal count
        loss, pixels, logits = measure(self, batch)
        count += self.trainer.max_epochs == 3 and self.training
        return (loss * math.nan if count == 5 else loss), pixels, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmentation, "measure", measured)
        ended = train(data, run)
    told = (
        r"error: the training loss is nan at step 4, of s\d\d, s\d\d, s\d\d, s\d\d\. The last good"
    )
    assert_error(
        ended, 6, told, "try a smaller --lr, and look at the images with `whatwhere inspect`"
    )
    kept = [read_state(path) for path in States(run / "checkpoints").paths()]
    assert [state["global_step"] for state in kept] == [3, 4]
    assert all(t.isfinite().all() for s in kept for t in s["state_dict"].values())
    assert_told(call("predict", run, data / "images" / "s00.png", "-o", tmp_path / "m.png"), 0)
    assert_told(go_on(data, run), 0, "after 2 of 2 batches|step 4")
    assert weights(run) == calm


@case(
    "D76-sixteen-bits-are-not-for-processors",
    2,
    "--precision 16 is not for the processor.*Take bf16",
)
def _(at: At) -> Words:
    return "train", salt_folder(at.data, 4, (32, 32)), "-o", at.out, "--precision", 16


def test_d76_steps_that_overflow_again_and_again_end_a_training() -> None:
    """What torch's scaler does is played: it is lowered where a step is left out."""

    class Trainer:
        class precision_plugin:
            class scaler:
                scale = 2.0**16

                @classmethod
                def get_scale(cls) -> float:
                    return cls.scale

    trainer: Any = Trainer()
    scaler, watch = Trainer.precision_plugin.scaler, Overflows()
    for step in range(200):  # now and then one is lost
        scaler.scale *= 0.5 if step % 3 == 0 else 2 if step % 3 == 1 else 1
        watch.on_train_batch_end(trainer)
    for _ in range(25):
        scaler.scale /= 2
        told = caught(watch, trainer)
    assert "25 steps in a row were left out" in told and "--precision bf16 or 32" in told


def caught(watch: Overflows, trainer: Any) -> str:
    try:
        watch.on_train_batch_end(trainer)
    except NumericsError as error:
        return str(error)
    return ""


@case(
    "D77-a-rate-that-is-too-high", 6, r"the training loss is (nan|inf) at step \d, of s\d\d.*--lr"
)
def _(at: At) -> Words:
    data = salt_folder(at.data, 12, (32, 32))
    return "train", data, "-o", at.out, "--n-filters", 2, "--batch-size", 4, "--lr", 1e36


@case("D78-batches-of-one-pixel", 0, "rehearsal passed")
def _(at: At) -> Words:
    for i in range(4):
        write_pair(at.data, f"p{i}", noise(16, 16, seed=i), noise(16, 16, seed=i + 50) >> 7)
    words = ("--n-filters", 2, "--batch-size", 1, "--dry-run")
    return "train", at.data, "-o", at.out, *words


def test_d79_a_card_whose_memory_is_full(data: Path, tmp_path: Path) -> None:
    def full(_loss: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with at_step(1, full):
        ended = train(data, tmp_path / "run")
    assert_error(ended, 5, "error: the memory is full. Try a smaller --batch-size or --tile")


# ---------------------------------------------------------------- 80 to 83: readers and chance


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_d80_a_reader_that_the_system_ends(data: Path, tmp_path: Path) -> None:
    """D80, and D81: nobody is left behind."""

    def end(loss: Any) -> Any:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        return loss

    with at_step(1, end):
        ended = train(data, tmp_path / "run", "--workers", 1, "--batch-size", 1)
    assert_error(
        ended, 5, r"a process that reads ahead(, number \d+,)? was ended from outside.*the memory "
        r"was full\. Take fewer --workers; --resume goes on",
    )  # fmt: skip
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_d81_a_reader_that_hangs_or_fails_is_told_in_one_sentence(data: Path) -> None:
    loader = plan_data(data, make_recipe(), QUIET).loader("train", workers=2)
    assert 0 < loader.timeout < 3600
    hangs = told_here(RuntimeError("DataLoader timed out after 900 seconds"))
    assert isinstance(hangs, OutputError) and "gave a batch for 900 s" in str(hangs)
    passed_on = (
        "Caught NumericsError in DataLoader worker process 0.\nOriginal Traceback (most recent "
        "call last):\n  File x\nwhatwhere.errors.NumericsError: too large.\n"
    )
    assert str(told_here(NumericsError(passed_on))) == "too large."
    other = RuntimeError("shapes cannot be multiplied")
    assert told_here(other) is other


def test_d82_no_epoch_repeats_another_and_d83_no_run_differs(data: Path) -> None:
    def epochs() -> list[bytes]:
        batches: Any = plan_data(data, make_recipe(batch_size=4), QUIET).loader("train")
        found = []
        for epoch in range(3):
            batches.batch_sampler.sampler.set_epoch(epoch)
            found.append(b"".join(batch["image"].numpy().tobytes() for batch in batches))
        return found

    first = epochs()
    assert len(set(first)) == 3 and epochs() == first


def test_d83_the_same_seed_gives_the_same_weights(data: Path, calm: str, tmp_path: Path) -> None:
    assert_told(train(data, tmp_path / "run"), 0)
    assert weights(tmp_path / "run") == calm
    assert_told(train(data, tmp_path / "other", "--seed", 7), 0)
    assert weights(tmp_path / "other") != calm


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
