"""Scores of a trained net on pairs, and the threshold chosen on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whatwhere.data.labels import read_labels
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Pair
from whatwhere.errors import DataError, UsageError
from whatwhere.metrics import (
    METRICS,
    Counts,
    Metric,
    Scores,
    ThresholdHistogram,
    best_threshold,
    count,
    mean_over_images,
    scores,
    threshold_curve,
    truth_of_labels,
)
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor
from whatwhere.types import Bands, Classes, Image, Labels, Valid, Window


@dataclass(frozen=True)
class Answer:
    """What the net says of one pair, at the image's own size."""

    pair: Pair
    probabilities: Image
    truth: Labels
    valid: Valid


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set.

    Attributes:
        classes: The class table.
        counts: The confusion matrix over the whole set.
        by_image: Those of the images, by the pair's key.
        thresholds: At which the labels were decided; empty for a softmax.
        histogram: How often each probability was given; None for a softmax.
        areas: A row for each image and class: pixels and objects, true and predicted.
    """

    classes: Classes
    counts: Counts
    by_image: dict[str, Counts]
    thresholds: tuple[float, ...]
    histogram: ThresholdHistogram | None
    areas: list[dict[str, Any]]

    @property
    def scores(self) -> Scores:
        return scores(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return what `evaluate --json` prints."""
        found = self.scores
        threshold: float | dict[str, float] | None = None
        if self.classes.task == "binary":
            threshold = self.thresholds[0]
        elif self.classes.task == "multilabel":
            threshold = dict(zip(self.classes.names, self.thresholds, strict=True))
        return {
            "classes": [
                {
                    "name": info.name,
                    "value": info.value,
                    "iou": row.iou,
                    "dice": row.dice,
                    "precision": row.precision,
                    "recall": row.recall,
                    "support": row.support,
                }
                for info, row in zip(self.classes, found.classes, strict=True)
            ],
            "mean_iou": found.mean_iou,
            "mean_iou_images": mean_over_images(list(self.by_image.values())),
            "pixel_accuracy": found.pixel_accuracy,
            "threshold": threshold,
            "images": len(self.by_image),
        }


def answers(predictor: Predictor, pairs: Sequence[Pair]) -> Iterator[Answer]:
    """Segment each pair's image and read its truth.

    Images go through the net one by one, so that scores depend on no batch.

    Raises:
        DataError: A file cannot be read, or a mask holds what the class table does not know.
    """
    classes = predictor.card.classes
    for pair in pairs:
        if isinstance(pair, Block):
            probabilities, valid = _see(predictor, pair)
        else:
            probabilities, valid = predictor.read(pair.image, trust=pair.trust)
        truth, counted = read_labels(pair, classes, valid)
        if truth.shape[-2:] != valid.shape:
            raise DataError(f"{pair.masks[0]}: the mask is not of its image's size.")
        yield Answer(pair, probabilities, truth, valid & counted)


_AROUND = 64  # what a block's edge sees of the scene around it [px]


def _see(predictor: Predictor, block: Block) -> tuple[Image, Valid]:
    """Segment a block with what lies around it, as a map of the whole scene would."""
    whole, window = block.scene.raster.size, block.window
    top, left = max(window.row - _AROUND, 0), max(window.column - _AROUND, 0)
    bottom = min(window.row + window.height + _AROUND, whole[0])
    right = min(window.column + window.width + _AROUND, whole[1])
    pixels, valid = block.scene.read(Window(top, left, bottom - top, right - left))
    names = predictor.card.bands.names
    taken = Bands(names, tuple(range(1, len(names) + 1)))  # the scene has picked them
    card = predictor.card.replace(bands=taken)
    predictor.settle(*pixels.shape[-2:])
    own = Predictor(card, predictor.backend, predictor.tile, tta=predictor.tta)
    found = own.probabilities(pixels, valid)
    inner = Window(window.row - top, window.column - left, window.height, window.width).slices
    return found[(slice(None), *inner)], valid[inner]


def evaluate(found: Iterator[Answer], classes: Classes, thresholds: Sequence[float]) -> Evaluation:
    """Score answers as they come; none of them is kept."""
    by_image: dict[str, Counts] = {}
    areas: list[dict[str, Any]] = []
    histograms: list[ThresholdHistogram] = []
    for answer in found:
        predicted = decide(answer.probabilities, classes, thresholds)
        by_image[answer.pair.key] = _confusion(answer, predicted, classes)
        areas += _areas(answer, predicted, classes)
        if classes.task != "multiclass":
            truth = truth_of_labels(answer.truth, classes.task)
            histograms.append(
                ThresholdHistogram.of_image(answer.probabilities, truth, answer.valid)
            )
    if not by_image:
        raise DataError("there is no pair to score.")
    return Evaluation(
        classes=classes,
        counts=np.sum(list(by_image.values()), axis=0),
        by_image=by_image,
        thresholds=tuple(thresholds),
        histogram=ThresholdHistogram.join(histograms) if histograms else None,
        areas=areas,
    )


@dataclass(frozen=True)
class Tuning:
    """Thresholds chosen on a set.

    Attributes:
        metric: What was made as high as possible.
        thresholds: The best of each label.
        values: The metric there, by label.
        at_half: The metric at 0.5, by label.
    """

    metric: Metric
    thresholds: tuple[float, ...]
    values: tuple[float | None, ...]
    at_half: tuple[float | None, ...]


def tune(histogram: ThresholdHistogram, metric: Metric) -> Tuning:
    """Choose each label's threshold from exact counts at 0, 0.001 … 1.

    A label that is on no pixel tells nothing, and has 0.5.

    Raises:
        DataError: No pixel of this set counts.
    """
    curves = [threshold_curve(histogram, i, metric) for i in range(histogram.there.shape[1])]
    there = histogram.there.sum(axis=(0, 2)) > 0
    best = tuple(best_threshold(c) if t else 0.5 for c, t in zip(curves, there, strict=True))
    steps = len(curves[0]) - 1
    values = [_number(c[round(t * steps)]) for c, t in zip(curves, best, strict=True)]
    halves = [_number(curve[steps // 2]) for curve in curves]
    if not (histogram.there.any() or histogram.absent.any()):
        raise DataError("no pixel of these pairs counts: there is nothing to tune on.")
    return Tuning(metric, best, tuple(values), tuple(halves))


def _confusion(answer: Answer, predicted: Labels, classes: Classes) -> Counts:
    if classes.task != "multilabel":
        return count(answer.truth, predicted, answer.valid, len(classes))
    planes = zip(answer.truth, predicted, strict=True)
    return np.stack([count(truth, said, answer.valid, 2) for truth, said in planes])


def _areas(answer: Answer, predicted: Labels, classes: Classes) -> list[dict[str, Any]]:
    rows = []
    total = int(answer.valid.sum())
    for i, info in enumerate(classes):
        if info.role == "background":
            continue
        if classes.task == "multilabel":
            truth, said = answer.truth[i] == 1, predicted[i] == 1
        else:
            truth, said = answer.truth == i, predicted == i
        true_pixels = int((truth & answer.valid).sum())
        pixels = int((said & answer.valid).sum())
        rows.append(
            {
                "image": answer.pair.key,
                "class": info.name,
                "valid_pixels": total,
                "true_pixels": true_pixels,
                "predicted_pixels": pixels,
                "true_share": true_pixels / total if total else 0.0,
                "predicted_share": pixels / total if total else 0.0,
                "true_objects": count_objects(truth & answer.valid),
                "predicted_objects": count_objects(said & answer.valid),
            }
        )
    return rows


def count_objects(mask: Valid) -> int:
    """Return how many connected pieces a mask `(H, W)` has; corners touch."""
    from scipy import ndimage  # takes half a second, and a prediction does without

    return int(ndimage.label(mask, structure=np.ones((3, 3)))[1])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def parse_metric(name: str) -> Metric:
    """Return the metric of this name; raises `UsageError` where there is none."""
    for metric in METRICS:
        if metric == name:
            return metric
    raise UsageError(f"--metric must be one of {', '.join(METRICS)}, not {name!r}.")
