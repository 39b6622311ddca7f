"""Chips of half the side at the start of a training, where many steps teach more than fine ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.nn import functional

from whatwhere.data.loader import Batch

_LEAST = 2  # strides that a chip is long, at the least


class Growing(pl.Callback):
    """Says which steps see their chips at half the side: the first ones, up to a share of all.

    Source: progressive resizing, Howard, "Training Imagenet in 3 hours for $25", 2018; in two
    sizes.
    """

    def __init__(self, share: float, stride: int, passed: Callable[[pl.Trainer], float]) -> None:
        """Take when chips grow.

        Args:
            share: Of the training, in [0, 1]; 0 never has chips of half the side.
            stride: Sides should be multiples of it [px].
            passed: Tells which share of the training is over.
        """
        self.share, self.stride, self.passed = share, stride, passed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any
    ) -> None:
        module: Any = pl_module
        module.halved = self.stride if self.passed(trainer) < self.share else 0


def half_size(height: int, width: int, stride: int) -> tuple[int, int] | None:
    """Return half of each side [px], or somewhat less: whole strides; None if they are too few."""
    down, along = (side // 2 // stride * stride for side in (height, width))
    return (down, along) if min(down, along) >= _LEAST * stride else None


def shrunk(batch: Batch, stride: int) -> Batch:
    """Return a batch whose chips have the size that `half_size` says, or the batch itself.

    Images are averaged; labels, and what counts, are those of the nearest pixel, of equally near
    ones the lower right one.

    Args:
        batch: Images `(N, C, H, W)`, labels `(N, H, W)` or `(N, K, H, W)`, valid `(N, H, W)`.
        stride: Sides become multiples of it [px].
    """
    height, width = batch["image"].shape[-2:]
    size = half_size(height, width, stride)
    if size is None:
        return batch

    def nearest(planes: Tensor) -> Tensor:
        four = planes if planes.ndim == 4 else planes.unsqueeze(1)
        found = functional.interpolate(four.float(), size, mode="nearest-exact").to(planes.dtype)
        return found if planes.ndim == 4 else found[:, 0]

    image = functional.interpolate(batch["image"], size, mode="bilinear", antialias=True)
    labels, valid = nearest(batch["labels"]), nearest(batch["valid"])
    return Batch(image=image, labels=labels, valid=valid, index=batch["index"])
