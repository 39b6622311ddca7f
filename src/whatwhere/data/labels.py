"""Masks read into class indexes."""

from __future__ import annotations

import numpy as np

from whatwhere.data.sources import Pair
from whatwhere.errors import DataError
from whatwhere.io.image import read_mask
from whatwhere.types import Classes, Labels, Valid


def read_labels(pair: Pair, classes: Classes) -> tuple[Labels, Valid]:
    """Read the mask or masks of a pair at their own size.

    Raises:
        DataError: A number is in them that the class table does not know.
    """
    planes: list[Labels] = []
    counted: list[Valid] = []
    for i, path in enumerate(pair.masks):
        numbers, valid = read_mask(path)
        if classes.task == "multilabel":
            planes.append(np.isin(numbers, classes.infos[i].raw).astype(np.int64))
            counted.append(valid)
            continue
        labels, known, unknown = classes.encode(numbers)
        if any(number for number, count in unknown.items() if (numbers[valid] == number).any()):
            listed = ", ".join(str(number) for number in sorted(unknown))
            raise DataError(
                f"{path}: the class table does not know {listed}; it knows "
                f"{', '.join(str(n) for info in classes for n in info.raw)}. Correct the mask."
            )
        planes.append(labels)
        counted.append(known & valid)
    whole = planes[0] if classes.task != "multilabel" else np.stack(planes)
    return whole, np.logical_and.reduce(counted)
