"""Trainings of which the catalogue of faults makes its cases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from cases import check_words
from told import assert_told, call
from whatwhere.train.module import Segmentation
from whatwhere.training import run as training

SETTINGS = ("--n-filters", 2, "--epochs", 3, "--batch-size", 4, "--save-minutes", 0)


class Died(BaseException):
    """A process that is gone, as far as it can be played."""


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
