"""Losses over the pixels that count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whatwhere.types import Task


def pixel_losses(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the loss of each pixel.

    Binary cross-entropy of the sigmoid for `binary` and `multilabel` (its mean over the labels),
    cross-entropy of the softmax for `multiclass`. The sigmoid is part of the loss, so that large
    logits do not overflow.

    Args:
        logits: `(N, K, H, W)`.
        labels: `(N, H, W)` class indexes, or `(N, K, H, W)` zeros and ones for `multilabel`.
        task: What the outputs mean.

    Returns:
        `(N, H, W)`.
    """
    if task == "multiclass":
        return functional.cross_entropy(logits, labels, reduction="none")
    targets = labels.unsqueeze(1) if task == "binary" else labels
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )
    return losses.mean(dim=1)


def masked_mean(losses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Average over the valid pixels; pixels that do not count give exactly no gradient.

    Args:
        losses: `(N, H, W)`.
        valid: `(N, H, W)` bool.

    Returns:
        The mean (0 where nothing counts) and the number of pixels that counted.
    """
    count = valid.sum()
    total = torch.where(valid, losses, torch.zeros_like(losses)).sum()
    return total / count.clamp(min=1), count
