"""Scores and thresholds from answers, without a net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whatwhere.data.classes import find_classes, find_labels
from whatwhere.data.sources import Pair
from whatwhere.errors import DataError, UsageError
from whatwhere.evaluate import Answer, count_objects, evaluate, parse_metric, tune
from whatwhere.metrics import METRICS, Metric, ThresholdHistogram

BINARY = find_classes([], "0=background,1=salt")


def answer(key: str, p: list[list[float]], truth: list[list[int]], valid: bool = True) -> Answer:
    pair = Pair(key, Path(key), (Path(key),), None)
    probability = np.array([p], dtype=np.float32)
    labels = np.array(truth, dtype=np.int64)
    return Answer(pair, probability, labels, np.full(labels.shape, valid))


ANSWERS = [
    answer("a", [[0.9, 0.7], [0.2, 0.1]], [[1, 1], [0, 0]]),
    answer("b", [[0.6, 0.4], [0.3, 0.1]], [[1, 0], [1, 0]]),
    answer("c", [[0.1, 0.2]], [[0, 0]]),
]


def test_one_matrix_over_the_whole_set_and_a_mean_over_images() -> None:
    found = evaluate(iter(ANSWERS), BINARY, (0.5,))
    assert found.counts.tolist() == [[6, 0], [1, 3]]
    told = found.to_json()
    assert told["classes"][1]["iou"] == pytest.approx(3 / 4)
    assert told["mean_iou"] == pytest.approx((6 / 7 + 3 / 4) / 2)
    by_image = [1.0, (2 / 3 + 1 / 2) / 2, 1.0]  # nothing there and nothing said: background alone
    assert told["mean_iou_images"] == pytest.approx(np.mean(by_image))
    assert told["pixel_accuracy"] == pytest.approx(9 / 10)


def test_the_order_of_images_does_not_matter() -> None:
    first = evaluate(iter(ANSWERS), BINARY, (0.5,)).to_json()
    second = evaluate(iter(ANSWERS[::-1]), BINARY, (0.5,)).to_json()
    assert first == second


def test_pixels_that_do_not_count_change_nothing() -> None:
    more = [*ANSWERS, answer("d", [[0.9]], [[0]], valid=False)]
    assert (evaluate(iter(more), BINARY, (0.5,)).counts == [[6, 0], [1, 3]]).all()


@pytest.mark.parametrize("metric", ["iou", "dice", "mean_iou", "mean_iou_images", "pixel_accuracy"])
def test_tuning_finds_what_trying_every_threshold_finds(metric: str) -> None:
    found = evaluate(iter(ANSWERS), BINARY, (0.5,))
    assert found.histogram is not None
    tuning = tune(found.histogram, parse_metric(metric))

    def at(threshold: float) -> float:
        told = evaluate(iter(ANSWERS), BINARY, (threshold,)).to_json()
        value = told["classes"][1][metric] if metric in ("iou", "dice") else told[metric]
        return 0.0 if value is None else float(value)

    tried = [at(k / 1000) for k in range(0, 1001, 10)]
    assert tuning.values[0] == pytest.approx(max(tried))
    assert tuning.at_half[0] == pytest.approx(at(0.5))
    assert at(tuning.thresholds[0]) == pytest.approx(max(tried))


def test_each_label_has_a_threshold_of_its_own() -> None:
    there, absent = np.zeros((2, 1, 4, 1001), dtype=np.int64)
    there[0, 1, 400], absent[0, 1, 300] = 5, 7
    there[0, 2, [600, 800]] = 3, 9
    absent[0, 2, 550] = 1
    there[0, 3, 900], absent[0, 3, 899] = 1, 1
    tuning = tune(ThresholdHistogram(there, absent), "iou")
    assert tuning.metric == "iou" and tuning.thresholds == (0.5, 0.4, 0.551, 0.9)
    assert tuning.values == (None, 1.0, 1.0, 1.0)
    assert tuning.at_half == (None, 0.0, pytest.approx(12 / 13), 0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_label_that_is_nowhere_keeps_its_threshold(metric: Metric) -> None:
    """The best one would be above all that was claimed, and would find nothing ever after."""
    there, absent = np.zeros((2, 1, 1, 1001), dtype=np.int64)
    absent[0, 0, [100, 930]] = 50, 5
    assert tune(ThresholdHistogram(there, absent), metric).thresholds == (0.5,)


def test_a_softmax_has_no_thresholds() -> None:
    classes = find_classes([], "0=background,1=a,2=b")
    pair = Pair("x", Path("x"), (Path("x"),), None)
    p = np.array([[[0.2, 0.3]], [[0.5, 0.3]], [[0.3, 0.4]]], dtype=np.float32)
    found = evaluate(
        iter([Answer(pair, p, np.array([[1, 0]]), np.ones((1, 2), bool))]), classes, ()
    )
    assert found.histogram is None and found.thresholds == ()
    assert found.counts.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert found.to_json()["threshold"] is None


def test_labels_are_scored_one_by_one() -> None:
    classes = find_labels(["a", "b"], [[], []])
    pair = Pair("x", Path("x"), (Path("x"), Path("y")), None)
    p = np.array([[[0.9, 0.1]], [[0.6, 0.7]]], dtype=np.float32)
    truth = np.array([[[1, 0]], [[1, 0]]])
    found = evaluate(iter([Answer(pair, p, truth, np.ones((1, 2), bool))]), classes, (0.5, 0.65))
    told = found.to_json()
    assert found.counts.tolist() == [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    assert [row["iou"] for row in told["classes"]] == [1.0, 0.0]
    assert told["threshold"] == {"a": 0.5, "b": 0.65}
    assert told["pixel_accuracy"] == 0.5


def test_areas_count_pixels_and_objects() -> None:
    found = evaluate(iter(ANSWERS), BINARY, (0.5,))
    row = next(row for row in found.areas if row["image"] == "b")
    assert (row["true_pixels"], row["predicted_pixels"], row["valid_pixels"]) == (2, 1, 4)
    assert (row["true_objects"], row["predicted_objects"]) == (1, 1)
    assert row["true_share"] == 0.5


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=bool)
    assert count_objects(mask) == 2
    assert count_objects(np.zeros((3, 3), bool)) == 0


def test_nothing_to_score_is_told() -> None:
    with pytest.raises(DataError, match="no pair to score"):
        evaluate(iter([]), BINARY, (0.5,))
    empty = evaluate(iter([answer("d", [[0.9]], [[0]], valid=False)]), BINARY, (0.5,))
    assert empty.histogram is not None
    with pytest.raises(DataError, match="nothing to tune on"):
        tune(empty.histogram, "iou")
    with pytest.raises(UsageError, match="--metric must be one of iou, dice.*not 'f1'"):
        parse_metric("f1")
