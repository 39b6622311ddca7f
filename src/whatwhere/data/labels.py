"""Masks read into class indexes."""

from __future__ import annotations

import numpy as np

from whatwhere.data.classes import written
from whatwhere.data.sources import Pair
from whatwhere.io.image import fault, read_mask
from whatwhere.types import Classes, Labels, Valid


def read_labels(pair: Pair, classes: Classes, data: Valid | None = None) -> tuple[Labels, Valid]:
    """Read the mask or masks of a pair at their own size.

    Args:
        pair: Whose masks.
        classes: What their numbers mean.
        data: `(H, W)`, where the image has data: elsewhere a mask may hold anything.

    Raises:
        DataError: A number is in them that the class table does not know.
    """
    planes: list[Labels] = []
    counted: list[Valid] = []
    for i, path in enumerate(pair.masks):
        numbers, valid = read_mask(path)
        counts = valid if data is None or data.shape != valid.shape else valid & data
        if classes.task == "multilabel":
            planes.append(np.isin(numbers, classes.infos[i].raw).astype(np.int64))
            counted.append(valid)
            continue
        labels, known, _ = classes.encode(numbers)
        *_, unknown = classes.encode(numbers[counts])
        if unknown:
            listed = ", ".join(written(number) for number in sorted(unknown))
            table = ", ".join(written(number) for info in classes for number in info.raw)
            cause = f"the class table does not know {listed}; it knows {table}."
            raise fault(path, cause, "Correct the mask.")
        planes.append(labels)
        counted.append(known & valid)
    whole = planes[0] if classes.task != "multilabel" else np.stack(planes)
    return whole, np.logical_and.reduce(counted)
