"""Weights of the pixels between objects, for the loss of the 2015 U-Net."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WEIGHT, SIGMA = 10.0, 5.0
"""w0 and sigma [px]."""


def border_weights(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the weights that teach a net to keep objects apart.

    10 exp(-(d1 + d2)^2 / (2 · 5^2)) on the background, d1 and d2 the distances [px] to the nearest
    pixels of the nearest and of the second nearest object (Ronneberger et al. 2015, the second
    summand of equation 2). Objects are the parts of each class that hang together, over corners
    too; two that touch are two if their classes differ. Fewer than two give zeros.

    Each object is measured in its own surroundings only: farther away weights are below 1e-5, and
    are 0 here.

    Args:
        labels: `(H, W)` class indexes, 0 the background.

    Returns:
        `(H, W)` in [0, 10], 0 on objects.
    """
    from scipy import ndimage

    objects = np.zeros(labels.shape, dtype=np.int32)
    count = 0
    for index in np.unique(labels[labels > 0]):
        parts, more = ndimage.label(labels == index, structure=np.ones((3, 3)))
        np.add(parts, count, out=objects, where=parts > 0)
        count += more
    if count < 2:
        return np.zeros(labels.shape, dtype=np.float32)

    reach = math.ceil(SIGMA * math.sqrt(2 * math.log(WEIGHT * 1e5)))
    nearest, second = np.full((2, *labels.shape), np.inf)
    for number, (rows, columns) in enumerate(ndimage.find_objects(objects), start=1):
        box = (
            slice(max(rows.start - reach, 0), rows.stop + reach),
            slice(max(columns.start - reach, 0), columns.stop + reach),
        )
        distances = ndimage.distance_transform_edt(objects[box] != number)
        second[box] = np.minimum(second[box], np.maximum(nearest[box], distances))
        nearest[box] = np.minimum(nearest[box], distances)
    weights = WEIGHT * np.exp(-((nearest + second) ** 2) / (2 * SIGMA**2))
    return np.where(labels == 0, weights, 0.0).astype(np.float32)
