"""The losses against plain formulas, and what does not count."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from whatwhere.borders import border_weights
from whatwhere.errors import ShapeError, UsageError
from whatwhere.losses import (
    SegmentationLoss,
    balanced_weights,
    build_loss,
    masked_mean,
    match,
    pixel_losses,
)
from whatwhere.notation import LOSSES
from whatwhere.types import Task

TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")
N, K, H, W = 2, 3, 4, 5


def example(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, and which pixels count (about two thirds)."""
    generator = torch.Generator().manual_seed(6)
    outputs = 1 if task == "binary" else K
    logits = 3 * torch.randn(N, outputs, H, W, generator=generator, dtype=torch.float64)
    shape = (N, K, H, W) if task == "multilabel" else (N, H, W)
    top = K if task == "multiclass" else 2
    labels = torch.randint(0, top, shape, generator=generator)
    valid = torch.rand(N, H, W, generator=generator) < 0.7
    return logits.requires_grad_(), labels, valid


def by_formula(logits: Tensor, labels: Tensor, task: Task) -> NDArray[np.float64]:
    z, y = logits.detach().numpy(), labels.numpy()
    if task == "multiclass":
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return -np.log(np.take_along_axis(p, y[:, None], axis=1)[:, 0])
    p = 1 / (1 + np.exp(-z))
    y = y[:, None] if task == "binary" else y
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)


@pytest.mark.parametrize("task", TASKS)
def test_losses_follow_their_formulas(task: Task) -> None:
    logits, labels, _ = example(task)
    found = pixel_losses(logits, labels, task).detach().numpy()
    np.testing.assert_allclose(found, by_formula(logits, labels, task), rtol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_the_mean_is_over_the_pixels_that_count(task: Task) -> None:
    logits, labels, valid = example(task)
    mean, count = masked_mean(pixel_losses(logits, labels, task), valid)
    kept = by_formula(logits, labels, task)[valid.numpy()]
    assert 0 < count < N * H * W
    assert count == len(kept)
    assert mean.item() == pytest.approx(kept.mean(), rel=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_pixels_that_do_not_count_have_no_gradient(task: Task) -> None:
    logits, labels, valid = example(task)
    masked_mean(pixel_losses(logits, labels, task), valid)[0].backward()
    assert logits.grad is not None
    by_pixel = logits.grad.abs().sum(dim=1)
    assert (by_pixel[~valid] == 0).all()
    assert (by_pixel[valid] > 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_nothing_that_counts_gives_zero_and_no_gradient(task: Task) -> None:
    logits, labels, valid = example(task)
    mean, count = masked_mean(pixel_losses(logits, labels, task), torch.zeros_like(valid))
    mean.backward()
    assert mean.item() == count.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("task", TASKS)
def test_large_logits_stay_finite(task: Task, size: float) -> None:
    _, labels, valid = example(task)
    channels = 1 if task == "binary" else K
    logits = torch.zeros(N, channels, H, W, dtype=torch.float32)
    logits[:, 0] = size
    logits.requires_grad_()
    losses = pixel_losses(logits, labels, task)
    masked_mean(losses, valid)[0].backward()
    assert logits.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()
    assert losses.max() >= size / K * 0.999  # being sure of what is wrong costs


def test_an_infinite_loss_where_nothing_counts_does_not_spoil_the_mean() -> None:
    losses = torch.tensor([[[1.0, 3.0, torch.inf, torch.nan]]], requires_grad=True)
    valid = torch.tensor([[[True, True, False, False]]])
    mean, count = masked_mean(losses, valid)
    mean.backward()
    assert (mean.item(), count.item()) == (2.0, 2)
    assert losses.grad is not None
    assert losses.grad.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]


# Sums of losses. The oracles see flat arrays: `(K, P)` logits and truth of the pixels that count.

ALL = [(name, task) for name in LOSSES for task in TASKS]
WEIGHTS = {"binary": (0.5, 3.0), "multiclass": (0.2, 1.0, 4.0), "multilabel": (0.5, 1.0, 6.0)}


def flat(
    logits: Tensor, labels: Tensor, valid: Tensor, task: Task
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z = np.moveaxis(logits.detach().double().numpy(), 1, 0)[:, valid.numpy()]
    y = labels.numpy()
    if task == "multilabel":
        truth = np.moveaxis(y, 1, 0)[:, valid.numpy()]
    elif task == "binary":
        truth = y[valid.numpy()][None]
    else:
        truth = y[valid.numpy()] == np.arange(len(z))[:, None]
    return z, truth.astype(float)


def chances(z: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    return np.exp(z) / np.exp(z).sum(axis=0) if task == "multiclass" else 1 / (1 + np.exp(-z))


def costs_and_chances_of_truth(
    z: NDArray[np.float64], truth: NDArray[np.float64], task: Task
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p = chances(z, task)
    if task == "multiclass":
        p_t = (p * truth).sum(axis=0, keepdims=True)
    else:
        p_t = np.where(truth > 0, p, 1 - p)
    return -np.log(p_t), p_t


def class_weights_of(truth: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    weights = np.array(WEIGHTS[task])
    if task == "multiclass":
        return weights[truth.argmax(axis=0)][None]
    if task == "binary":
        return weights[truth.astype(int)]
    return np.where(truth > 0, weights[:, None], 1.0)


@pytest.mark.parametrize("task", TASKS)
def test_plain_cross_entropy_is_the_mean_of_the_pixel_losses_bit_for_bit(task: Task) -> None:
    logits, labels, valid = example(task)
    single = logits.detach().float()
    for laid_out in (single, single.to(memory_format=torch.channels_last)):
        ours, theirs = laid_out.clone().requires_grad_(), laid_out.clone().requires_grad_()
        loss, count = build_loss("cross_entropy", task)(ours, labels, valid)
        wanted, wanted_count = masked_mean(pixel_losses(theirs, labels, task), valid)
        loss.backward()
        wanted.backward()
        assert loss.dtype == torch.float32
        assert torch.equal(loss, wanted) and torch.equal(count, wanted_count)
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("task", TASKS)
def test_weighted_cross_entropy_is_torchs(task: Task) -> None:
    logits, labels, valid = example(task)
    weights = torch.tensor(WEIGHTS[task], dtype=torch.float64)
    loss, _ = build_loss("cross_entropy", task, WEIGHTS[task])(logits, labels, valid)
    marked = torch.where(valid, labels, -100) if task != "multilabel" else labels
    if task == "multilabel":
        raw = functional.binary_cross_entropy_with_logits(
            logits, labels.double(), pos_weight=weights.view(-1, 1, 1), reduction="none"
        )
        kept = valid.unsqueeze(1).expand_as(raw)
        total = torch.where(labels > 0, weights.view(-1, 1, 1), 1.0)[kept].sum()
        wanted = raw[kept].sum() / total
    else:
        two = torch.cat([torch.zeros_like(logits), logits], dim=1)
        both = two if task == "binary" else logits
        wanted = functional.cross_entropy(both, marked, weight=weights, ignore_index=-100)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "unet2015"])
@pytest.mark.parametrize("task", TASKS)
def test_class_weights_of_one_change_nothing_and_others_do(task: Task, name: str) -> None:
    logits, labels, valid = example(task)
    plain, even, uneven = (
        build_loss(name, task, weights)(logits, labels, valid)[0].item()
        for weights in ((), (1.0,) * len(WEIGHTS[task]), WEIGHTS[task])
    )
    assert even == pytest.approx(plain, rel=1e-12)
    assert uneven != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_focal_follows_its_formula(task: Task, weighted: bool) -> None:
    logits, labels, valid = example(task)
    z, truth = flat(logits, labels, valid, task)
    cost, p_t = costs_and_chances_of_truth(z, truth, task)
    alpha = class_weights_of(truth, task) if weighted else np.ones_like(cost)
    wanted = (alpha * (1 - p_t) ** 2 * cost).mean()
    loss, _ = build_loss("focal", task, WEIGHTS[task] if weighted else ())(logits, labels, valid)
    assert loss.item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("task", TASKS)
def test_dice_follows_its_formula(task: Task) -> None:
    logits, labels, valid = example(task)
    z, truth = flat(logits, labels, valid, task)
    p = chances(z, task)
    by_class = [
        1 - (2 * (p[k] * truth[k]).sum() + 1) / (p[k].sum() + truth[k].sum() + 1)
        for k in range(len(p))
    ]
    loss, _ = build_loss("dice", task)(logits, labels, valid)
    assert loss.item() == pytest.approx(np.mean(by_class), rel=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_tversky_follows_its_formula(task: Task) -> None:
    logits, labels, valid = example(task)
    z, truth = flat(logits, labels, valid, task)
    p = chances(z, task)
    hits = (p * truth).sum(axis=1)
    false, missed = (p * (1 - truth)).sum(axis=1), ((1 - p) * truth).sum(axis=1)
    wanted = (1 - (hits + 1) / (hits + 0.3 * false + 0.7 * missed + 1)).mean()
    loss, _ = build_loss("tversky", task)(logits, labels, valid)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


def jaccard_loss(truth: NDArray[np.bool_], wrong: set[int]) -> float:
    """1 - IoU of a mask whose pixels in `wrong` are the other way round."""
    there = set(np.flatnonzero(truth).tolist())
    said = there ^ wrong
    return 1 - len(there & said) / len(there | said) if there | said else 0.0


def lovasz_extension(truth: NDArray[np.bool_], errors: NDArray[np.float64]) -> float:
    """The sum of equation 8: each error times what its pixel adds to the loss of the set."""
    total, wrong = 0.0, set[int]()
    for pixel in np.argsort(-errors).tolist():
        before = jaccard_loss(truth, wrong)
        wrong.add(pixel)
        total += errors[pixel] * (jaccard_loss(truth, wrong) - before)
    return total


def lovasz_by_formula(z: NDArray[np.float64], truth: NDArray[np.float64], task: Task) -> float:
    if task == "multiclass":
        errors = np.abs(truth - chances(z, task))
        there = [k for k in range(len(z)) if truth[k].any()]
    else:
        errors = np.maximum(0, 1 - z * (2 * truth - 1))
        there = list(range(len(z)))
    return float(np.mean([lovasz_extension(truth[k] > 0, errors[k]) for k in there]))


@pytest.mark.parametrize("task", TASKS)
def test_lovasz_is_the_extension_of_the_jaccard_loss(task: Task) -> None:
    logits, labels, valid = example(task)
    z, truth = flat(logits, labels, valid, task)
    assert truth.any(axis=1).all()
    loss, _ = build_loss("lovasz", task)(logits, labels, valid)
    assert loss.item() == pytest.approx(lovasz_by_formula(z, truth, task), rel=1e-10)


def test_lovasz_of_a_softmax_skips_classes_that_are_not_there() -> None:
    logits, labels, valid = example("multiclass")
    labels = labels.clamp(max=1)
    z, truth = flat(logits, labels, valid, "multiclass")
    assert not truth[2].any()
    loss, _ = build_loss("lovasz", "multiclass")(logits, labels, valid)
    assert loss.item() == pytest.approx(lovasz_by_formula(z, truth, "multiclass"), rel=1e-10)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_lovasz_of_an_empty_mask_is_the_mean_hinge(task: Task) -> None:
    logits, labels, valid = example(task)
    z, _ = flat(logits, labels, valid, task)
    loss, _ = build_loss("lovasz", task)(logits, torch.zeros_like(labels), valid)
    assert loss.item() == pytest.approx(np.maximum(0, 1 + z).mean(), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_unet2015_follows_its_formula(task: Task, weighted: bool) -> None:
    logits, labels, valid = example(task)
    z, truth = flat(logits, labels, valid, task)
    cost, _ = costs_and_chances_of_truth(z, truth, task)
    masks = (labels if task == "multilabel" else labels.unsqueeze(1)).numpy()
    masks = np.where(valid.unsqueeze(1).numpy(), masks, 0)
    borders = np.array([[slow_border_weights(mask) for mask in image] for image in masks])
    between = np.moveaxis(borders, 1, 0)[:, valid.numpy()]
    assert (between > 1).any()
    weights = between + (class_weights_of(truth, task) if weighted else 1)
    chosen = WEIGHTS[task] if weighted else ()
    loss, _ = build_loss("unet2015", task, chosen)(logits, labels, valid)
    assert loss.item() == pytest.approx((weights * cost).mean(), rel=1e-6)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_gradients_are_those_of_the_loss(name: str, task: Task) -> None:
    logits, labels, valid = example(task)
    loss = build_loss(name, task, WEIGHTS[task] if name == "cross_entropy" else ())
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, valid)[0], logits)


@pytest.mark.parametrize("spoiled", [1e30, -1e30, math.inf, math.nan])
@pytest.mark.parametrize(("name", "task"), ALL)
def test_pixels_that_do_not_count_change_nothing(name: str, task: Task, spoiled: float) -> None:
    logits, labels, valid = example(task)
    single = logits.detach().float()
    loss = build_loss(name, task, WEIGHTS[task] if name in ("cross_entropy", "focal") else ())
    keep = valid.unsqueeze(1)
    bad = torch.where(keep, single, spoiled)
    top = K if task == "multiclass" else 2
    garbage = torch.where(keep if task == "multilabel" else valid, labels, top - 1 - labels)
    assert not torch.equal(garbage, labels)
    clean, dirty = single.clone().requires_grad_(), bad.clone().requires_grad_()
    value = loss(clean, labels, valid)[0]
    spoiled_value = loss(dirty, garbage, valid)[0]
    value.backward()
    spoiled_value.backward()
    assert clean.grad is not None and dirty.grad is not None
    assert torch.equal(value, spoiled_value) and torch.equal(clean.grad, dirty.grad)
    assert (dirty.grad[~keep.expand_as(bad)] == 0).all()
    assert (dirty.grad[keep.expand_as(bad)] != 0).any()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_no_pixel_that_counts_gives_zero_and_no_gradient(name: str, task: Task) -> None:
    logits, labels, valid = example(task)
    logits = logits.detach().float().requires_grad_()
    weights = WEIGHTS[task] if name in ("cross_entropy", "focal", "unet2015") else ()
    loss, count = build_loss(name, task, weights)(logits, labels, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == count.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_an_empty_mask_teaches_that_nothing_is_there(name: str, task: Task) -> None:
    logits, labels, valid = example(task)
    logits = logits.detach().float().requires_grad_()
    loss, _ = build_loss(name, task)(logits, torch.zeros_like(labels), valid)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert logits.grad is not None
    claims = -logits.grad[:, 0] if task == "multiclass" else logits.grad
    assert (claims >= 0).all() and claims.sum() > 0


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize(("name", "task"), ALL)
def test_large_logits_stay_finite_in_every_loss(name: str, task: Task, size: float) -> None:
    logits, labels, valid = example(task)
    logits = (size * logits.detach().float()).requires_grad_()
    loss, _ = build_loss(name, task)(logits, labels, valid)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("name", "task"), ALL)
def test_right_logits_cost_less_than_wrong_ones(name: str, task: Task) -> None:
    _, labels, valid = example(task)
    truth = functional.one_hot(labels, K).movedim(-1, 1) if task == "multiclass" else labels
    truth = truth.unsqueeze(1) if task == "binary" else truth
    loss = build_loss(name, task)
    right, wrong = (
        loss(10.0 * sign * (2 * truth - 1), labels, valid)[0].item() for sign in (1, -1)
    )
    assert 0 <= right < 0.01 < 0.4 < wrong


@pytest.mark.parametrize(("name", "task"), ALL)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_first(name: str, task: Task, kind: torch.dtype) -> None:
    logits, labels, valid = example(task)
    half = logits.detach().to(kind)
    loss = build_loss(name, task)
    low, _ = loss(half.requires_grad_(), labels, valid)
    assert low.dtype == torch.float32
    assert torch.equal(low, loss(half.detach().float(), labels, valid)[0])
    low.backward()
    assert half.grad is not None and half.grad.dtype == kind


@pytest.mark.parametrize("task", TASKS)
def test_a_sum_is_the_sum_of_its_terms(task: Task) -> None:
    logits, labels, valid = example(task)
    parts = {name: build_loss(name, task)(logits, labels, valid)[0].item() for name in LOSSES}
    loss = build_loss("dice+0.5*focal + 2*unet2015", task)
    mixed, count = pickle.loads(pickle.dumps(loss))(logits, labels, valid)
    wanted = parts["dice"] + 0.5 * parts["focal"] + 2 * parts["unet2015"]
    assert mixed.item() == pytest.approx(wanted, rel=1e-12)
    assert count == valid.sum()


# Nets without padding.


def test_match_keeps_the_middle() -> None:
    labels = torch.arange(2 * 8 * 9).view(2, 8, 9)
    valid = labels % 2 == 0
    cut, kept = match(torch.zeros(2, 1, 4, 7), labels, valid)
    np.testing.assert_array_equal(cut, labels.numpy()[:, 2:6, 1:8])
    np.testing.assert_array_equal(kept, valid.numpy()[:, 2:6, 1:8])
    many = torch.stack([labels, labels + 1], dim=1)
    np.testing.assert_array_equal(
        match(torch.zeros(2, 2, 4, 7), many, valid)[0], many.numpy()[:, :, 2:6, 1:8]
    )


def test_match_leaves_what_fits() -> None:
    logits, labels, valid = example("binary")
    same, kept = match(logits, labels, valid)
    assert torch.equal(same, labels) and torch.equal(kept, valid)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (10, 9), (8, 11)])
def test_what_has_no_middle(size: tuple[int, int]) -> None:
    labels = torch.zeros(1, 8, 9, dtype=torch.int64)
    with pytest.raises(ShapeError, match=f"gives {size[0]} x {size[1]} pixels for masks of 8 x 9"):
        match(torch.zeros(1, 1, *size), labels, labels == 0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "unet2015"])
@pytest.mark.parametrize("task", TASKS)
def test_a_loss_of_the_middle_sees_the_middle_only(task: Task, name: str) -> None:
    logits, labels, valid = example(task)
    middle = logits[..., 1:-1, 1:-1]
    loss = build_loss(name, task)
    found, count = loss(middle, labels, valid)
    wanted, wanted_count = loss(middle, labels[..., 1:-1, 1:-1], valid[:, 1:-1, 1:-1])
    assert torch.equal(found, wanted) and torch.equal(count, wanted_count)


def test_border_weights_come_from_the_whole_mask() -> None:
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[0, :, [0, 8]] = 1  # both outside the middle
    valid = torch.ones(1, 9, 9, dtype=torch.bool)
    loss, count = build_loss("unet2015", "binary")(torch.zeros(1, 1, 5, 5), labels, valid)
    wanted = math.log(2) * (1 + 10 * math.exp(-(8**2) / 50))
    assert count == 25
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


# Weights between objects.


def hanging_together(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """The parts of a mask, over corners too, by walking."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            part.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        parts.append(part)
    return parts


def slow_border_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Equation 2 as it stands: the distance of each pixel to each pixel of each object."""
    objects = [part for k in range(1, labels.max() + 1) for part in hanging_together(labels == k)]
    weights = np.zeros(labels.shape)
    if len(objects) < 2:
        return weights
    for row, column in np.argwhere(labels == 0):
        to_each = sorted(
            np.hypot(*(np.array(part) - (row, column)).T).min().item() for part in objects
        )
        weights[row, column] = 10 * np.exp(-((to_each[0] + to_each[1]) ** 2) / (2 * 5**2))
    return weights


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("shape", "share"), [((24, 30), 0.03), ((12, 90), 0.005), ((9, 9), 0.3)])
def test_border_weights_follow_their_formula(
    shape: tuple[int, int], share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.int64)
    for row, column in np.argwhere(rng.random(shape) < share):
        labels[row : row + rng.integers(1, 4), column : column + rng.integers(1, 5)] = rng.integers(
            1, 4
        )
    found = border_weights(labels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_border_weights(labels), atol=1e-4)


def test_objects_that_touch_at_a_corner_are_one_unless_their_classes_differ() -> None:
    labels = np.zeros((6, 6), dtype=np.int64)
    labels[1, 1] = labels[2, 2] = 1
    assert (border_weights(labels) == 0).all()
    labels[2, 2] = 2
    assert border_weights(labels)[1, 2] == pytest.approx(10 * math.exp(-4 / 50))
    assert border_weights(labels)[1, 1] == 0


def test_one_object_or_none_has_no_border_weights() -> None:
    labels = np.zeros((5, 7), dtype=np.int64)
    assert (border_weights(labels) == 0).all()
    labels[2:4, 3:6] = 1
    assert (border_weights(labels) == 0).all()


def test_labels_that_overlap_have_border_weights_of_their_own() -> None:
    labels = torch.zeros(1, 2, 1, 7, dtype=torch.int64)
    labels[0, 0, 0, [0, 2]] = 1  # a gap of one pixel
    labels[0, 1, 0, 1] = 1  # which another label fills
    loss, _ = build_loss("unet2015", "multilabel")(
        torch.zeros(1, 2, 1, 7), labels, torch.ones(1, 1, 7, dtype=torch.bool)
    )
    distances = {1: 1 + 1, 3: 1 + 3, 4: 2 + 4, 5: 3 + 5, 6: 4 + 6}
    extra = sum(10 * math.exp(-(d**2) / 50) for d in distances.values())
    assert loss.item() == pytest.approx(math.log(2) * (1 + extra / 14), rel=1e-6)


# Class weights by themselves.


def test_balanced_weights_go_with_the_square_root() -> None:
    weights = balanced_weights([900, 100, 36])
    assert np.mean(weights) == pytest.approx(1)
    np.testing.assert_allclose(np.array(weights) / weights[0], [1, 3, 5])


def test_few_pixels_do_not_rule() -> None:
    rare = balanced_weights([3_000_000, 3])
    assert rare[1] / rare[0] == pytest.approx(10)
    assert np.mean(rare) == pytest.approx(1)


def test_even_classes_weigh_one_and_so_does_what_is_not_there() -> None:
    assert balanced_weights([7, 7, 7]) == (1, 1, 1)
    assert balanced_weights([0, 0]) == (1, 1)
    there = balanced_weights([900, 0, 100])
    assert there == pytest.approx((0.5, 1, 1.5))


def test_labels_that_overlap_are_weighed_against_the_rest() -> None:
    weights = balanced_weights([500, 100, 1, 0, 1000], total=1000)
    assert weights == pytest.approx((1, 3, 10, 1, 0.1))


@pytest.mark.parametrize(
    ("pixels", "total"), [([], None), ([5, -1], None), ([], 9), ([5, 11], 10), ([-1], 10)]
)
def test_pixels_that_cannot_be_balanced(pixels: list[int], total: int | None) -> None:
    with pytest.raises(UsageError, match=r"class weights need pixels in \[0, (inf|9|10)\], not"):
        balanced_weights(pixels, total)


# What cannot be taken.


@pytest.mark.parametrize(
    "terms", [{}, {"mse": 1.0}, {"dice": 0.0}, {"dice": -1.0}, {"dice": math.nan}]
)
def test_terms_that_cannot_be_summed(terms: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a loss must have some of cross_entropy, dice, focal"):
        SegmentationLoss(terms, "binary")


def test_a_text_that_is_no_loss() -> None:
    with pytest.raises(UsageError, match="loss must be a sum of"):
        build_loss("dice+mse", "binary")


def test_a_task_that_is_none() -> None:
    with pytest.raises(UsageError, match="task must be one of binary, multiclass, multilabel, not"):
        SegmentationLoss({"dice": 1.0}, "regression")  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_class_weights_that_are_none(weight: float) -> None:
    with pytest.raises(UsageError, match="class weights must be above 0, not"):
        build_loss("cross_entropy", "binary", (1.0, weight))


def test_class_weights_that_would_do_nothing() -> None:
    with pytest.raises(UsageError, match=r"act in cross_entropy, .* and the loss is dice\+lovasz"):
        build_loss("dice+lovasz", "binary", (1.0, 2.0))


@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 3), ("multilabel", 3)])
def test_too_many_class_weights(task: Task, classes: int) -> None:
    with pytest.raises(ShapeError, match=f"there are 4 class weights for {classes} classes"):
        build_loss("cross_entropy", task, (1.0, 2.0, 3.0, 4.0))(*example(task))


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        ("binary", (2, 2, 4, 5), (2, 4, 5)),
        ("binary", (2, 1, 4, 5), (2, 1, 4, 5)),
        ("multiclass", (2, 3, 4, 5), (2, 3, 4, 5)),
        ("multiclass", (1, 3, 4, 5), (2, 4, 5)),
        ("multilabel", (2, 3, 4, 5), (2, 4, 5)),
        ("multilabel", (2, 3, 4, 5), (2, 2, 4, 5)),
        ("binary", (2, 1, 4, 5), (2, 4, 7)),
    ],
)
def test_shapes_that_do_not_fit(
    task: Task, logits: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeError, match=f"do not fit each other for the task {task}"):
        build_loss("dice", task)(
            torch.zeros(logits),
            torch.zeros(labels, dtype=torch.int64),
            torch.ones(2, 4, 5, dtype=torch.bool),
        )
