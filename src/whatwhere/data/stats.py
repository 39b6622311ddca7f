"""Mean and standard deviation of each band, in one pass over the pixels that count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import DataError
from whatwhere.types import Normalization, Valid


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each band; two of them can be merged.

    Attributes:
        count: Pixels that counted.
        mean: `(C,)` float64.
        squares: `(C,)` float64, the sum of squared deviations from the mean.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, pixels: NDArray[Any], valid: Valid) -> Moments:
        """Measure the valid pixels of one image `(C, H, W)`."""
        values = pixels[:, valid].astype(np.float64)
        if values.shape[1] == 0:
            return cls(0, np.zeros(len(pixels)), np.zeros(len(pixels)))
        mean = values.mean(axis=1)
        return cls(values.shape[1], mean, ((values - mean[:, None]) ** 2).sum(axis=1))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together.

        Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances", 1979, equation 2.1.
        """
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift**2 * (self.count * other.count / count)
        return Moments(count, mean, squares)

    def normalization(self) -> Normalization:
        """Return mean and standard deviation; a band that never changes has a deviation of 1.

        Raises:
            DataError: No pixel counted.
        """
        if self.count == 0:
            raise DataError("no pixel of the training images counts: all are without data.")
        mean = self.mean.tolist()
        std = [math.sqrt(s / self.count) for s in self.squares.tolist()]
        # What is left of a band that never changes is rounding, about 1e-16 of its mean.
        moves = [s > 1e-12 * abs(m) for s, m in zip(std, mean, strict=True)]
        kept = tuple(s if moving else 1.0 for s, moving in zip(std, moves, strict=True))
        return Normalization(tuple(mean), kept)


def measure(images: Iterable[tuple[NDArray[Any], Valid]]) -> Normalization:
    """Return the normalisation of a set of images `(C, H, W)` with their valid pixels.

    Raises:
        DataError: No pixel counts.
    """
    moments: Moments | None = None
    for pixels, valid in images:
        one = Moments.of(pixels, valid)
        moments = one if moments is None else moments.merge(one)
    if moments is None:
        raise DataError("there is no training image.")
    return moments.normalization()


HOT = 0.001
"""Share of the pixels at either end that scenes are measured without."""


def measure_sample(values: Sequence[NDArray[Any]]) -> Normalization:
    """Return the normalisation of scenes from some of their pixels, `(C, N)` each.

    Each band is clipped to its 0.1 and 99.9 percentile first: a glint of 65535 would flatten all
    others.

    Raises:
        DataError: There is no pixel.
    """
    together = np.concatenate(values, axis=1).astype(np.float64)
    if not together.shape[1]:
        raise DataError("no pixel of the training blocks has data.")
    low, high = np.quantile(together, [HOT, 1 - HOT], axis=1)
    clipped = np.clip(together, low[:, None], high[:, None])
    return measure([(clipped[:, None], np.ones((1, clipped.shape[1]), dtype=np.bool_))])
