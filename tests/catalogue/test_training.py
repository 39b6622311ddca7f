"""The catalogue of faults, D75 to D83: training and numbers."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cases import At, Case, Catalogue, Words, check
from made import salt_folder, write_pair
from made_files import noise
from told import assert_told, call
from training_cases import assert_error, at_step, go_on, train, weights
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


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
    scaler = SimpleNamespace(scale=2.0**16)
    scaler.get_scale = lambda: scaler.scale
    plugin = SimpleNamespace(scaler=scaler)
    trainer, watch = SimpleNamespace(precision_plugin=plugin, global_step=0), Overflows()

    def step(factor: float) -> None:
        trainer.global_step += 1
        scaler.scale *= factor
        for _ in range(2):  # a step of two batches
            watch.on_train_batch_end(cast(Any, trainer))

    for number in range(200):  # now and then one is lost
        step((0.5, 2, 1)[number % 3])
    for _ in range(23):
        step(0.5)
    step(0.5)
    with pytest.raises(NumericsError, match="25 steps in a row were left out.*--precision bf16 or"):
        step(0.5)


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
    """D80, and D81: nobody is left behind.

    torch raises out of the signal that a process has ended. Where that comes while a callback of
    the garbage collector runs (hypothesis sets one, whatwhere none), Python drops the error.
    """

    def end(loss: Any) -> Any:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        return loss

    callbacks = gc.callbacks.copy()
    gc.callbacks.clear()
    try:
        with at_step(1, end):
            ended = train(data, tmp_path / "run", "--workers", 1, "--batch-size", 1)
    finally:
        gc.callbacks.extend(callbacks)
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
