"""What a training is warned of, and when it is not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from whatwhere.train.warnings import Advice, Signs
from whatwhere.types import Task

NAMES = ["background", "salt", "fault"]
FINE = np.array([[9, 1, 1], [1, 5, 1], [1, 1, 5]])
BLANK = np.array([[9, 0, 0], [6, 0, 0], [6, 0, 0]])
NO_FAULT = np.array([[9, 1, 0], [1, 5, 0], [1, 4, 0]])


def told(
    counts: Iterable[NDArray[np.int64]],
    losses: Iterable[float] | None = None,
    shown: tuple[int, ...] = (1, 1, 1),
    at_floor: bool = False,
    task: Task = "multiclass",
) -> list[tuple[int, str]]:
    """What is said, with the epoch in which it is."""
    advice, found = Advice(task, NAMES), []
    every = list(counts)
    falling = [1 / (i + 1) for i in range(len(every))]
    for i, (one, loss) in enumerate(zip(every, losses or falling, strict=True), start=1):
        found += [(i, text) for text in advice.see(Signs(i, loss, one, shown, at_floor))]
    return found


def test_a_training_that_goes_well_is_told_nothing() -> None:
    assert told([FINE] * 20) == []


def test_nothing_but_background_is_told_once_after_three_epochs() -> None:
    ((epoch, text),) = told([BLANK] * 12)
    assert epoch == 3
    assert "nothing but background" in text
    assert "whatwhere lr-find" in text
    assert "--class-weights balanced" in text
    assert told([BLANK, BLANK, FINE, BLANK, BLANK, FINE]) == []
    assert [epoch for epoch, _ in told([FINE, BLANK, BLANK, BLANK])] == [4]


def test_a_split_that_has_nothing_but_background_may_be_told_so() -> None:
    assert told([np.diag([9, 0, 0])] * 9) == []


def test_labels_that_are_never_predicted_at_all_are_background() -> None:
    blank = np.array([[[5, 0], [3, 0]], [[8, 0], [0, 0]], [[8, 0], [0, 0]]])
    ((epoch, text),) = told([blank] * 9, task="multilabel")
    assert epoch == 3
    assert "nothing but background" in text
    empty = np.array([[[8, 0], [0, 0]]] * 3)
    assert told([empty] * 9, task="multilabel") == []


def test_a_class_that_was_never_predicted_is_named_after_five_epochs() -> None:
    ((epoch, text),) = told([NO_FAULT] * 12)
    assert epoch == 5
    assert "in 5 epochs fault was never predicted" in text
    assert told([FINE, *[NO_FAULT] * 9]) == []
    absent = NO_FAULT.copy()
    absent[2] = 0
    assert told([absent] * 9) == []


def test_a_label_that_was_never_predicted_is_named() -> None:
    counts = np.array([[[5, 0], [0, 3]], [[5, 0], [3, 0]], [[8, 0], [0, 0]]])
    ((epoch, text),) = told([counts] * 9, task="multilabel")
    assert epoch == 5
    assert "salt was never predicted" in text


def test_classes_that_no_chip_showed_are_named_in_the_first_epoch() -> None:
    ((epoch, text),) = told([FINE] * 4, shown=(5, 0, 0))
    assert epoch == 1
    assert "no chip of the first epoch showed salt, fault. Add" in text
    assert told([FINE] * 4, shown=()) == []


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [
        ([0.5] * 12, [6]),
        ([0.5, 0.502, 0.498, 0.5, 0.5, 0.501, 0.5], [6]),
        ([0.9, 0.5, *[0.5] * 5], [7]),
        ([0.5 - 0.0011 * i for i in range(12)], []),  # 1.1 % over 5 epochs
        ([0.5 - 0.0009 * i for i in range(6)], [6]),
        ([0.5, 0.6] * 6, []),
    ],
)
def test_a_loss_that_stands_still_is_told(losses: list[float], epochs: list[int]) -> None:
    found = told([FINE] * len(losses), losses)
    assert [epoch for epoch, _ in found] == epochs
    assert all("training loss moved by less than 1 %" in text for _, text in found)
    assert told([FINE] * len(losses), losses, at_floor=True) == []
