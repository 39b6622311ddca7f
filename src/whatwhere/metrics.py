"""Scores from counts: one confusion matrix over a whole set, and exact threshold curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whatwhere.types import Task

Counts: TypeAlias = NDArray[np.int64]
"""Pixels: `(n, n)`, rows are truth and columns prediction; for multi-label `(K, 2, 2)`."""

Metric: TypeAlias = Literal["iou", "dice", "mean_iou", "mean_iou_images", "pixel_accuracy"]
METRICS: tuple[Metric, ...] = ("iou", "dice", "mean_iou", "mean_iou_images", "pixel_accuracy")

STEPS = 1000
"""Thresholds are multiples of 1/1000."""


def count(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], valid: NDArray[np.bool_], n: int
) -> Counts:
    """Count pixels into a confusion matrix.

    Args:
        truth: `(H, W)` class indexes below `n`.
        predicted: `(H, W)` class indexes below `n`.
        valid: `(H, W)`, the pixels that count.
        n: The number of classes.

    Returns:
        `(n, n)`: how many pixels of the row's class were given the column's.
    """
    pairs = truth[valid] * n + predicted[valid]
    return np.bincount(pairs, minlength=n * n).reshape(n, n).astype(np.int64)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, in [0, 1]; None where there is nothing to score."""

    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    support: int


@dataclass(frozen=True)
class Scores:
    """Scores of a set.

    Attributes:
        classes: In the order of the class table.
        mean_iou: Mean over the classes that are there, in truth or in prediction.
        pixel_accuracy: Share of the pixels given their own class (for multi-label: of all
            decisions); None where no pixel counts.
    """

    classes: tuple[ClassScores, ...]
    mean_iou: float | None
    pixel_accuracy: float | None

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes that are there, as `mean_iou`."""
        return _mean([row.dice for row in self.classes])


def scores(counts: Counts) -> Scores:
    """Return IoU, Dice, precision and recall of each class, mean IoU and pixel accuracy.

    Args:
        counts: `(n, n)` for classes that exclude each other, `(K, 2, 2)` for labels that do not.
    """
    if counts.ndim == 3:
        hits, support = counts[:, 1, 1], counts[:, 1].sum(axis=1)
        claimed = counts[:, :, 1].sum(axis=1)
        right, total = int(counts[:, 0, 0].sum() + hits.sum()), int(counts.sum())
    else:
        hits, support, claimed = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
        right, total = int(hits.sum()), int(counts.sum())
    rows = tuple(
        ClassScores(
            iou=_share(hit, there + said - hit),
            dice=_share(2 * hit, there + said),
            precision=_share(hit, said),
            recall=_share(hit, there),
            support=there,
        )
        for hit, there, said in zip(hits.tolist(), support.tolist(), claimed.tolist(), strict=True)
    )
    return Scores(rows, _mean([row.iou for row in rows]), _share(right, total))


def mean_over_images(counts: list[Counts]) -> float | None:
    """Return the mean of the images' mean IoU; images without a pixel that counts are left out."""
    return _mean([scores(one).mean_iou for one in counts])


@dataclass(frozen=True)
class ThresholdHistogram:
    """How often each probability was given to a label's pixels and to the others, by image.

    Attributes:
        there: `(images, labels, STEPS + 1)` pixels where the label is; bin k holds the
            probabilities in [k/1000, (k+1)/1000), the last one 1.0 itself.
        absent: The same where it is not.
    """

    there: NDArray[np.int64]
    absent: NDArray[np.int64]

    @classmethod
    def of_image(
        cls, probabilities: NDArray[Any], truth: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> ThresholdHistogram:
        """Count one image.

        Args:
            probabilities: `(K, H, W)` in [0, 1].
            truth: `(K, H, W)`, where each label is.
            valid: `(H, W)`.
        """
        bins = np.floor(probabilities.astype(np.float64) * STEPS).astype(np.int64)

        def histogram(where: NDArray[np.bool_]) -> NDArray[np.int64]:
            rows = [
                np.bincount(b[w & valid], minlength=STEPS + 1)
                for b, w in zip(bins, where, strict=True)
            ]
            return np.stack(rows)[None].astype(np.int64)

        return cls(histogram(truth), histogram(~truth))

    @classmethod
    def join(cls, parts: list[ThresholdHistogram]) -> ThresholdHistogram:
        """Put the images of several histograms into one."""
        return cls(
            np.concatenate([part.there for part in parts]),
            np.concatenate([part.absent for part in parts]),
        )

    def sum(self) -> ThresholdHistogram:
        """Return the histogram of all images together, as one."""
        return ThresholdHistogram(
            self.there.sum(axis=0, keepdims=True), self.absent.sum(axis=0, keepdims=True)
        )

    def confusion(self) -> Counts:
        """Return `(images, labels, STEPS + 1, 2, 2)`: the counts at each threshold k/1000.

        A pixel is the label's where its probability is at least the threshold.
        """

        def at_least(bins: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.cumsum(bins[..., ::-1], axis=-1)[..., ::-1]

        hits, false = at_least(self.there), at_least(self.absent)
        missed, rest = hits[..., :1] - hits, false[..., :1] - false
        rows = [np.stack([rest, false], axis=-1), np.stack([missed, hits], axis=-1)]
        return np.stack(rows, axis=-2)


def threshold_curve(
    histogram: ThresholdHistogram, label: int, metric: Metric
) -> NDArray[np.float64]:
    """Return a metric at each threshold 0, 0.001 … 1.

    `iou` and `dice` are the label's own over the whole set, `mean_iou` averages it with the
    background's, `mean_iou_images` averages that over the images.

    Returns:
        `(STEPS + 1,)`; NaN where there is nothing to score.
    """
    mine = ThresholdHistogram(
        histogram.there[:, label : label + 1], histogram.absent[:, label : label + 1]
    )
    if metric == "mean_iou_images":
        return _nanmean(_nanmean(_iou(mine.confusion()[:, 0])).T)
    whole = mine.sum().confusion()[0, 0]  # (thresholds, 2, 2)
    if metric == "iou":
        return _iou(whole)[..., 1]
    if metric == "dice":
        iou = _iou(whole)[..., 1]
        return 2 * iou / (1 + iou)
    if metric == "mean_iou":
        return _nanmean(_iou(whole))
    right = whole[..., 0, 0] + whole[..., 1, 1]
    total = whole.sum(axis=(-2, -1))
    return np.where(total > 0, right / np.maximum(total, 1), np.nan)


def best_threshold(curve: NDArray[np.float64]) -> float:
    """Return the best threshold of a curve, the one nearest 0.5 where several are equally good."""
    if np.isnan(curve).all():
        return 0.5
    best = np.flatnonzero(curve == np.nanmax(curve))
    return float(best[np.argmin(np.abs(best - STEPS // 2))]) / STEPS


def truth_of_labels(truth: NDArray[np.int64], task: Task) -> NDArray[np.bool_]:
    """Return `(K, H, W)`: where each label that has a probability of its own is."""
    return (truth == 1)[None] if task == "binary" else truth.astype(np.bool_)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _iou(counts: Counts) -> NDArray[np.float64]:
    """`(..., 2, 2)` → `(..., 2)`, NaN where a class is nowhere."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(axis=-1)
    return np.where(there.any(axis=-1), total / np.maximum(there.sum(axis=-1), 1), np.nan)
