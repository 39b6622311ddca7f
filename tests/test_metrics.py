"""Scores against scikit-learn and plain loops; threshold curves against thresholding."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example as such_as
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn import metrics as oracle

from whatwhere.metrics import (
    METRICS,
    STEPS,
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

RNG = np.random.default_rng(1)
TRUTH = RNG.integers(0, 4, (20, 30))
PREDICTED = np.where(RNG.random((20, 30)) < 0.6, TRUTH, RNG.integers(0, 4, (20, 30)))
VALID = RNG.random((20, 30)) < 0.8


def test_counts_are_those_of_a_plain_loop() -> None:
    wanted = np.zeros((5, 5), int)
    for truth, predicted, valid in zip(TRUTH.flat, PREDICTED.flat, VALID.flat, strict=True):
        wanted[truth, predicted] += valid
    assert np.array_equal(count(TRUTH, PREDICTED, VALID, 5), wanted)


def test_scores_are_scikit_learns() -> None:
    found = scores(count(TRUTH, PREDICTED, VALID, 4))
    args: Any = (TRUTH[VALID], PREDICTED[VALID])
    for name, function in (
        ("iou", oracle.jaccard_score),
        ("dice", oracle.f1_score),
        ("precision", oracle.precision_score),
        ("recall", oracle.recall_score),
    ):
        mine = [getattr(row, name) for row in found.classes]
        assert mine == pytest.approx(function(*args, average=None).tolist())
    assert found.mean_iou == pytest.approx(oracle.jaccard_score(*args, average="macro"))
    assert found.pixel_accuracy == pytest.approx(oracle.accuracy_score(*args))
    assert [row.support for row in found.classes] == np.bincount(args[0]).tolist()


def test_an_absent_class_has_no_score_and_does_not_count() -> None:
    found = scores(count(TRUTH, PREDICTED, VALID, 5))
    absent = found.classes[4]
    assert (absent.iou, absent.dice, absent.precision, absent.recall) == (None,) * 4
    assert absent.support == 0
    assert found.mean_iou == scores(count(TRUTH, PREDICTED, VALID, 4)).mean_iou


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    row = scores(np.array([[5, 2], [0, 0]])).classes[1]
    assert (row.iou, row.dice, row.precision, row.recall) == (0, 0, 0, None)


def test_nothing_that_counts_has_no_score() -> None:
    found = scores(count(TRUTH, PREDICTED, VALID & False, 4))
    assert found.mean_iou is None and found.pixel_accuracy is None


def test_labels_that_overlap_are_scored_each_by_itself() -> None:
    truth, predicted = (RNG.random((3, 20, 30)) < 0.4 for _ in range(2))
    counts = np.stack(
        [
            count(t.astype(int), p.astype(int), VALID, 2)
            for t, p in zip(truth, predicted, strict=True)
        ]
    )
    found = scores(counts)
    y, z = truth[:, VALID].T, predicted[:, VALID].T
    assert [r.iou for r in found.classes] == pytest.approx(
        oracle.jaccard_score(y, z, average=None).tolist()
    )
    assert found.pixel_accuracy == pytest.approx((y == z).mean())


def test_the_mean_over_images_leaves_out_images_without_pixels() -> None:
    one, other = (count(TRUTH[rows], PREDICTED[rows], VALID[rows], 4) for rows in ([0, 1], [2, 3]))
    means = [scores(counts).mean_iou for counts in (one, other)]
    assert mean_over_images([one, one * 0, other]) == pytest.approx(np.mean(means))  # type: ignore[arg-type]
    assert mean_over_images([one * 0]) is None and mean_over_images([]) is None


def test_truth_of_labels() -> None:
    truth = np.array([[0, 1], [1, 0]])
    assert np.array_equal(truth_of_labels(truth, "binary"), (truth == 1)[None])
    assert np.array_equal(truth_of_labels(np.stack([truth, truth]), "multilabel"), [truth == 1] * 2)


# ---------------------------------------------------------------- any maps

Maps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], int]


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    """Truth, prediction, the pixels that count, and how many classes there are; few may be used."""
    n = draw(st.integers(2, 6))
    size = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    planes = []
    for _ in range(2):
        used = draw(st.sets(st.integers(0, n - 1), min_size=1))
        planes.append(draw(arrays(np.int64, size, elements=st.sampled_from(sorted(used)))))
    return planes[0], planes[1], draw(arrays(np.bool_, size)), n


def share(part: int, whole: int) -> float | None:
    return float(Fraction(part, whole)) if whole else None


def near(found: float | None, wanted: float | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return abs(found - wanted) <= 1e-12


@pytest.mark.parametrize("cases", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_scores_are_those_of_counting_by_hand_and_of_scikit_learn(cases: int) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=cases, deadline=None)
    @given(maps())
    @such_as((np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64), np.ones((0, 3), bool), 2))
    @such_as((np.array([[1]]), np.array([[0]]), np.array([[True]]), 3))
    @such_as((np.array([[1, 1]]), np.array([[1, 0]]), np.array([[False, False]]), 2))
    def check(case: Maps) -> None:
        truth, predicted, valid, n = case
        pairs = [
            (int(y), int(z))
            for y, z, v in zip(truth.flat, predicted.flat, valid.flat, strict=True)
            if v
        ]
        counts = count(truth, predicted, valid, n)
        assert counts.tolist() == [[pairs.count((i, j)) for j in range(n)] for i in range(n)]
        found, ious, dices = scores(counts), [], []
        for i, row in enumerate(found.classes):
            hits = pairs.count((i, i))
            there, said = sum(y == i for y, _ in pairs), sum(z == i for _, z in pairs)
            ious.append(share(hits, there + said - hits))
            dices.append(share(2 * hits, there + said))
            assert row.support == there
            assert near(row.iou, ious[-1]) and near(row.dice, dices[-1])
            assert near(row.precision, share(hits, said)) and near(row.recall, share(hits, there))
        for mean, values in ((found.mean_iou, ious), (found.mean_dice, dices)):
            known = [value for value in values if value is not None]
            assert near(mean, sum(known) / len(known) if known else None)
        assert near(found.pixel_accuracy, share(sum(y == z for y, z in pairs), len(pairs)))
        seen["all"] += 1
        seen["empty"] += not truth.size
        seen["one pixel"] += truth.size == 1
        seen["ignored pixels"] += not valid.all()
        seen["an absent class"] += None in ious
        if pairs:
            like_scikit_learn(pairs, n, found)
            seen["scikit-learn"] += 1

    check()
    assert seen["all"] >= cases and min(seen.values()) > 0


def like_scikit_learn(pairs: list[tuple[int, int]], n: int, found: Scores) -> None:
    """Compare with its scores, which are 0 where there is nothing to score."""
    y, z = ([one[k] for one in pairs] for k in (0, 1))
    more: Any = {"labels": range(n), "average": None, "zero_division": 0}
    for name, function in (
        ("iou", oracle.jaccard_score),
        ("dice", oracle.f1_score),
        ("precision", oracle.precision_score),
        ("recall", oracle.recall_score),
    ):
        for row, wanted in zip(found.classes, function(y, z, **more).tolist(), strict=True):
            assert near(getattr(row, name) or 0.0, wanted)
    assert near(found.pixel_accuracy, float(oracle.accuracy_score(y, z)))


# ---------------------------------------------------------------- thresholds


def example(dtype: type, labels: int = 2) -> tuple[list[NDArray[Any]], ...]:
    """Three images whose probabilities hold every k/1000, 0 and 1; one has no valid pixel."""
    rng = np.random.default_rng(2)
    exact = np.arange(STEPS + 1) / STEPS
    shapes = [(labels, 7, 143), (labels, 9, 11), (labels, 2, 2)]
    probabilities = [np.resize(rng.permutation(exact), shapes[0]), rng.random(shapes[1])]
    probabilities.append(np.ones(shapes[2]))
    truth = [rng.random(shape) < 0.4 for shape in shapes]
    valid = [rng.random(shape[1:]) < 0.9 for shape in shapes[:2]] + [np.zeros((2, 2), bool)]
    valid[0][:] = True
    return [p.astype(dtype) for p in probabilities], truth, valid


def joined(dtype: type = np.float32) -> ThresholdHistogram:
    parts = zip(*example(dtype), strict=True)
    return ThresholdHistogram.join([ThresholdHistogram.of_image(*part) for part in parts])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_are_those_of_thresholding_at_every_threshold(dtype: type) -> None:
    found = joined(dtype).confusion()
    assert found.shape == (3, 2, STEPS + 1, 2, 2)
    for i, (probabilities, truth, valid) in enumerate(zip(*example(dtype), strict=True)):
        for label in range(2):
            p, y = probabilities[label][valid], truth[label][valid]
            said = p[None] >= (np.arange(STEPS + 1) / STEPS)[:, None]
            for there, claimed in np.ndindex(2, 2):
                wanted = ((said == claimed) & (y == there)).sum(axis=1)
                assert np.array_equal(found[i, label, :, there, claimed], wanted)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.integers(0, STEPS))
def test_a_pixel_is_the_labels_from_its_probability_up(values: list[float], step: int) -> None:
    p = np.array(values, np.float32)[None, None]
    histogram = ThresholdHistogram.of_image(p, np.ones(p.shape, bool), np.ones(p.shape[1:], bool))
    assert histogram.confusion()[0, 0, step, 1, 1] == (p >= np.float64(step / STEPS)).sum()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", [0, 1])
def test_a_curve_is_the_score_at_each_threshold(metric: Metric, label: int) -> None:
    curve = threshold_curve(joined(), label, metric)
    assert curve.shape == (STEPS + 1,)
    for step in (0, 1, 250, 499, 500, 873, 1000):
        by_image = [
            count(t[label].astype(int), (p[label] >= np.float64(step / STEPS)).astype(int), v, 2)
            for p, t, v in zip(*example(np.float32), strict=True)
        ]
        whole = scores(np.sum(by_image, axis=0))
        wanted = {
            "iou": whole.classes[1].iou,
            "dice": whole.classes[1].dice,
            "mean_iou": whole.mean_iou,
            "mean_iou_images": mean_over_images(by_image),
            "pixel_accuracy": whole.pixel_accuracy,
        }[metric]
        assert curve[step] == pytest.approx(wanted)


@pytest.mark.parametrize("metric", METRICS)
def test_a_curve_of_nothing_is_not_a_number(metric: Metric) -> None:
    nothing = ThresholdHistogram(np.zeros((1, 1, STEPS + 1), int), np.zeros((1, 1, STEPS + 1), int))
    curve = threshold_curve(nothing, 0, metric)
    assert np.isnan(curve).all() and best_threshold(curve) == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_one_pixel_is_enough_for_a_curve(metric: Metric) -> None:
    here = np.ones((1, 1, 1), bool)
    curve = threshold_curve(ThresholdHistogram.of_image(here * 0.25, here, here[0]), 0, metric)
    assert curve.tolist() == [1.0] * 251 + [0.0] * 750


def test_each_label_has_probabilities_and_a_truth() -> None:
    p, truth = np.zeros((2, 1, 1)), np.zeros((1, 1, 1), bool)
    with pytest.raises(ValueError, match="zip"):
        ThresholdHistogram.of_image(p, truth, truth[0])


@pytest.mark.parametrize(
    ("best", "wanted"),
    [([300], 0.3), ([100, 620, 900], 0.62), ([0, 1000], 0.0), ([480, 510], 0.51)],
)
def test_of_equals_the_threshold_nearest_a_half_is_best(best: list[int], wanted: float) -> None:
    curve = np.full(STEPS + 1, 0.25)
    curve[5] = np.nan
    curve[best] = 0.75
    assert best_threshold(curve) == wanted
