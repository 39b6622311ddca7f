"""The losses against plain formulas, and what does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from whatwhere.losses import masked_mean, pixel_losses
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
