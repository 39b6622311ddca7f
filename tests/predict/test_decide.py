"""From probabilities to classes."""

from __future__ import annotations

import numpy as np
import pytest

from whatwhere.data.classes import find_classes, find_labels
from whatwhere.errors import ShapeError, UsageError
from whatwhere.predict.decide import decide, parse_thresholds, to_values

BINARY = find_classes([], "0=background,200=salt")
THREE = find_classes([], "0=background,4=water,9=roof")
LABELS = find_labels(["a", "b"], [[], []])


def test_a_label_is_there_from_its_threshold_on() -> None:
    p = np.array([[[0.39, 0.4, 0.41]]])
    assert decide(p, BINARY, [0.4]).tolist() == [[0, 1, 1]]
    both = np.concatenate([p, p])
    assert decide(both, LABELS, [0.4, 0.41]).tolist() == [[[0, 1, 1]], [[0, 0, 1]]]


def test_a_softmax_gives_the_likeliest_class() -> None:
    p = np.array([0.2, 0.5, 0.3])[:, None, None]
    assert decide(p, THREE, []).tolist() == [[1]]
    with pytest.raises(ShapeError, match="3 probabilities a pixel are needed"):
        decide(p[:2], THREE, [])


def test_masks_hold_values_and_background_where_there_is_no_data() -> None:
    labels = np.array([[0, 1, 2]])
    assert to_values(labels, THREE).tolist() == [[0, 4, 9]]
    valid = np.array([[True, True, False]])
    assert to_values(labels, THREE, valid).tolist() == [[0, 4, 0]]


def test_thresholds_are_read_for_one_or_each_label() -> None:
    assert parse_thresholds("0.25", BINARY) == (0.25,)
    assert parse_thresholds("salt=0.25", BINARY) == (0.25,)
    assert parse_thresholds("0.3", LABELS) == (0.3, 0.3)
    assert parse_thresholds("b=0.3,a=0.6", LABELS) == (0.6, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("high", "thresholds are numbers from 0 to 1"),
        ("1.5", "thresholds are numbers from 0 to 1"),
        ("nan", "thresholds are numbers from 0 to 1"),
        ("a=0.5", "a number is needed for a, b"),
        ("a=0.5,c=0.5", "a number is needed for a, b"),
    ],
)
def test_wrong_thresholds_are_told(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_thresholds(text, LABELS)
