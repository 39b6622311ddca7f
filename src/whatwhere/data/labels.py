"""Images and masks read as pixels and class indexes, whether they are files or parts of scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.classes import written
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Pair
from whatwhere.io.image import fault, read_image, read_mask
from whatwhere.types import Bands, Classes, Labels, Valid


def read_pixels(pair: Pair, bands: Bands) -> tuple[NDArray[Any], Valid]:
    """Read the bands of a pair's image that the net sees `(C, H, W)`, and where it has data.

    Raises:
        DataError: The file cannot be read.
        ShapeError: The image does not have these bands.
    """
    if isinstance(pair, Block):
        return pair.read()
    pixels, valid = read_image(pair.image, trust=pair.trust)
    return bands.select(pixels, valid), valid


def read_labels(pair: Pair, classes: Classes, data: Valid | None = None) -> tuple[Labels, Valid]:
    """Read the mask or masks of a pair at their own size.

    Numbers that a scene's labels hold beside those of the table are not labelled.

    Args:
        pair: Whose masks.
        classes: What their numbers mean.
        data: `(H, W)`, where the image has data: elsewhere a mask may hold anything.

    Raises:
        DataError: A number is in them that the class table does not know.
    """
    if isinstance(pair, Block):
        numbers, counts = pair.labels()
        labels, known, _ = classes.encode(numbers)
        return labels, known & counts
    planes: list[Labels] = []
    counted: list[Valid] = []
    for i, path in enumerate(pair.masks):
        numbers, valid = read_mask(path, trust=pair.trust)
        counts = valid if data is None or data.shape != valid.shape else valid & data
        if classes.task == "multilabel":
            planes.append(np.isin(numbers, classes.infos[i].raw).astype(np.int64))
            counted.append(valid)
            continue
        labels, known, unknown = classes.encode(numbers)
        if unknown:
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
