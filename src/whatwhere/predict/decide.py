"""From probabilities to classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import ShapeError, UsageError
from whatwhere.types import Classes, Labels, Valid


def decide(probabilities: NDArray[Any], classes: Classes, thresholds: Sequence[float]) -> Labels:
    """Give each pixel its class.

    A label is there where its probability is at least its threshold; a softmax gives the most
    likely class, the first one of equals.

    Args:
        probabilities: `(K, H, W)` in [0, 1].
        classes: The class table.
        thresholds: One for each label; empty for a softmax.

    Returns:
        `(H, W)` class indexes, or `(K, H, W)` zeros and ones for a multi-label table.
    """
    if len(probabilities) != classes.n_outputs:
        raise ShapeError(f"{classes.n_outputs} probabilities a pixel are needed.")
    if classes.task == "multiclass":
        likeliest: Labels = np.argmax(probabilities, axis=0).astype(np.int64)
        return likeliest
    wanted = np.asarray(thresholds, dtype=np.float64)
    # The least numbers of the probabilities' own type that are enough: no copy in float64.
    limits = wanted.astype(probabilities.dtype)
    limits = np.where(limits < wanted, np.nextafter(limits, np.inf, dtype=limits.dtype), limits)
    there = (probabilities >= limits[:, None, None]).astype(np.int64)
    return np.squeeze(there, axis=0) if classes.task == "binary" else there


def parse_thresholds(text: str, classes: Classes) -> tuple[float, ...]:
    """Read `0.4`, or `salt=0.4,fault=0.6` where there are several labels.

    Raises:
        UsageError: Softmax has no threshold; a number is not in [0, 1]; a label is not known.
    """
    if classes.task == "multiclass":
        raise UsageError("a net of several classes takes the most likely one: no --threshold.")
    names = [info.name for info in classes.labels]
    given: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        for target in [name.strip()] if equals else names:
            if target in given:
                raise UsageError(f"--threshold {text!r}: {target} is given twice.")
            given[target] = value
    unknown, missing = set(given) - set(names), set(names) - set(given)
    if unknown or missing:
        raise UsageError(f"--threshold {text!r}: a number is needed for {', '.join(names)}.")
    try:
        thresholds = tuple(float(given[name]) for name in names)
    except ValueError:
        thresholds = (-1.0,)
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise UsageError(f"--threshold {text!r}: thresholds are numbers from 0 to 1.")
    return thresholds


def to_values(labels: Labels, classes: Classes, valid: Valid | None = None) -> NDArray[np.uint8]:
    """Turn class indexes `(H, W)` into the values that a mask file holds.

    Where the image has no data the background is written, if the table has one.
    """
    table = np.array([info.value for info in classes], dtype=np.uint8)
    values: NDArray[np.uint8] = table[labels]
    background = [info.value for info in classes if info.role == "background"]
    if valid is not None and background:
        values = np.where(valid, values, np.uint8(background[0]))
    return values
