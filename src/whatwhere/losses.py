"""Losses over the pixels that count, and sums of them.

`SegmentationLoss` is what training calls. A pixel that does not count changes neither the loss nor
any gradient, whatever its logits and labels are: both are replaced before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whatwhere.borders import border_weights
from whatwhere.errors import ShapeError, UsageError
from whatwhere.notation import LOSSES, parse_loss
from whatwhere.types import Task

FOCUS = 2.0
"""Gamma of the focal loss."""
WEIGHTED = ("cross_entropy", "focal", "unet2015")
"""The losses that class weights act in."""
MOST = 10.0
"""How much more than another a balanced weight may be."""


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
    return _costs(logits, labels, task).mean(dim=1)


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


def match(logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cut labels to the middle that a net without padding speaks of.

    Args:
        logits: `(N, K, h, w)`.
        labels: `(N, H, W)` or `(N, K, H, W)`.
        valid: `(N, H, W)`.

    Returns:
        Labels and valid, their last two sides `(h, w)`; as they came where the sides are equal.

    Raises:
        ShapeError: The logits are larger, or their middle is not that of the labels.
    """
    size, given = logits.shape[-2:], valid.shape[-2:]
    rests = [old - new for new, old in zip(size, given, strict=True)]
    if any(rest < 0 or rest % 2 for rest in rests):
        raise ShapeError(
            f"the net gives {size[0]} x {size[1]} pixels for masks of {given[0]} x {given[1]}: "
            "each side must be as long, or shorter by an even number of pixels."
        )
    return _middle(labels, size), _middle(valid, size)


class SegmentationLoss:
    """A sum of losses, each with its weight.

    * `cross_entropy`: of the softmax, or of the sigmoids (their mean over the labels). With class
      weights it is divided by the sum of the weights of the pixels, as torch's is.
    * `focal`: cross-entropy times (1 - p)^2, p the probability of the truth; the mean over the
      pixels (Lin et al. 2017, equation 5). Class weights are its alpha.
    * `dice`: 1 - (2 hits + 1) / (said + true + 1), from sums of probabilities over the batch
      (Milletari et al. 2016, without the squares), for each class; their mean.
    * `tversky`: 1 - (hits + 1) / (hits + 0.3 false + 0.7 missed + 1), likewise (Salehi et al.
      2017): what is missed costs more than what is wrongly claimed.
    * `lovasz`: the Lovász extension of 1 - IoU over the batch (Berman et al. 2018): of the softmax
      for each class that is there, or of the hinge for each sigmoid; their mean.
    * `unet2015`: cross-entropy times the class weight (1 without) plus `border_weights`; the mean
      over the pixels (Ronneberger et al. 2015, equations 1 and 2). For a softmax, class 0 is what
      lies between objects. The weights come from the whole mask, also where it is cut by `match`.

    Dice and Tversky take all classes of a softmax, the background too: nnU-Net leaves it out,
    others do not, and a table need not have one. A class that is not there costs nothing if the net
    does not claim it. The Lovász extension for a sigmoid whose label is nowhere would be the worst
    pixel's error alone; here it is the mean error, so that all pixels learn.

    Attributes:
        terms: The weight of each named loss.
        task: What the outputs mean.
        class_weights: One for each class, the background included; for `multilabel` one for each
            label, acting on the pixels where it is (others weigh 1). They act in `cross_entropy`,
            `focal` and `unet2015`. Empty: all weigh 1.
    """

    def __init__(
        self, terms: Mapping[str, float], task: Task, class_weights: Sequence[float] = ()
    ) -> None:
        """Check what is summed.

        Raises:
            UsageError: A loss, its weight, the task or a class weight cannot be taken; or class
                weights are given and none of the losses has them.
        """
        if not terms or any(
            name not in LOSSES or not 0 < weight < math.inf for name, weight in terms.items()
        ):
            raise UsageError(
                f"a loss must have some of {', '.join(LOSSES)}, with weights above 0, "
                f"not {dict(terms)}."
            )
        if task not in get_args(Task):
            raise UsageError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}.")
        if not all(0 < weight < math.inf for weight in class_weights):
            raise UsageError(f"class weights must be above 0, not {tuple(class_weights)}.")
        if class_weights and not any(name in WEIGHTED for name in terms):
            raise UsageError(
                f"class weights act in {', '.join(WEIGHTED)} only, and the loss is "
                f"{'+'.join(terms)}: leave them out, or add one of these."
            )
        self.terms = dict(terms)
        self.task: Task = task
        self.class_weights = tuple(float(weight) for weight in class_weights)

    def __call__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch.

        Args:
            logits: `(N, K, h, w)`, of any float type; K is 1 for `binary`. Shorter sides than the
                labels' are of their middle, see `match`.
            labels: `(N, H, W)` class indexes, or `(N, K, H, W)` zeros and ones for `multilabel`.
            valid: `(N, H, W)` bool: the pixels that count.

        Returns:
            The loss, float32 (float64 for logits of float64), 0 where nothing counts; and the
            number of pixels that counted.

        Raises:
            ShapeError: The shapes do not fit each other, the task or the class weights.
        """
        self._check(logits, labels, valid)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        labels = torch.where(valid.unsqueeze(1) if labels.ndim == 4 else valid, labels, 0)
        borders = _borders(labels) if "unet2015" in self.terms else None
        labels, valid = match(logits, labels, valid)
        batch = _Batch(
            logits=torch.where(valid.unsqueeze(1), logits, 0),
            labels=labels,
            valid=valid,
            task=self.task,
            weights=self._weights(labels, logits) if self.class_weights else None,
            borders=None if borders is None else _middle(borders, logits.shape[-2:]).to(logits),
        )
        total = logits.new_zeros(())
        for name, weight in self.terms.items():
            total = total + weight * _TERMS[name](batch)
        return total, valid.sum()

    def _check(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        outputs = logits.shape[1]
        n, height, width = valid.shape
        wanted = (n, outputs, height, width) if self.task == "multilabel" else (n, height, width)
        if len(logits) != n or labels.shape != wanted or (self.task == "binary" and outputs != 1):
            raise ShapeError(
                f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)} and valid "
                f"{tuple(valid.shape)} do not fit each other for the task {self.task}."
            )
        classes = 2 if self.task == "binary" else outputs
        if self.class_weights and len(self.class_weights) != classes:
            raise ShapeError(
                f"there are {len(self.class_weights)} class weights for {classes} classes: give "
                "one for each, in the order of the class table, or `balanced`."
            )

    def _weights(self, labels: Tensor, like: Tensor) -> Tensor:
        """Return the class weight of each pixel, `(N, 1 or K, H, W)`."""
        weights = like.new_tensor(self.class_weights)
        if self.task == "multilabel":
            return torch.where(labels > 0, weights.view(1, -1, 1, 1), 1.0)
        return weights[labels].unsqueeze(1)


def build_loss(text: str, task: Task, class_weights: Sequence[float] = ()) -> SegmentationLoss:
    """Build a loss from words such as `dice+0.5*cross_entropy`.

    Args:
        text: As `notation.parse_loss` reads it.
        task: What the outputs mean.
        class_weights: As `SegmentationLoss` has them.

    Raises:
        UsageError: The text or the weights cannot be followed.
    """
    return SegmentationLoss(parse_loss(text), task, class_weights)


def balanced_weights(pixels: Sequence[int], total: int | None = None) -> tuple[float, ...]:
    """Return class weights that are larger where there are fewer pixels.

    A class weighs the square root of the largest class's pixels over its own, at most 10 times as
    much as the largest: full inverse frequency lets a handful of pixels rule the gradient. The
    weights of the classes that are there have the mean 1. A class without pixels weighs 1.

    With `total` the pixels are those of labels that may overlap. A label's weight stands against
    the 1 of the pixels without it: the square root of their number over its own, in [0.1, 10].

    Args:
        pixels: How many pixels each class has, the background included; or each label.
        total: How many pixels count at all, for labels that may overlap.

    Raises:
        UsageError: There is no class, or a number of pixels is below 0 or above `total`.
    """
    most = math.inf if total is None else total
    if not pixels or not all(0 <= count <= most for count in pixels):
        raise UsageError(f"class weights need pixels in [0, {most}], not {tuple(pixels)}.")
    if total is not None:
        return tuple(_ratio(total - count, count) for count in pixels)
    weights = [_ratio(max(pixels), count) for count in pixels]
    there = [weight for weight, count in zip(weights, pixels, strict=True) if count]
    mean = sum(there) / max(len(there), 1)
    return tuple(
        weight / mean if count else 1.0 for weight, count in zip(weights, pixels, strict=True)
    )


@dataclass(frozen=True)
class _Batch:
    """What the losses are made of; logits and labels are 0 where a pixel does not count."""

    logits: Tensor
    labels: Tensor
    valid: Tensor
    task: Task
    weights: Tensor | None
    borders: Tensor | None


def _costs(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the cross-entropies, `(N, 1, H, W)` for a softmax or `(N, K, H, W)` for sigmoids."""
    if task == "multiclass":
        return functional.cross_entropy(logits, labels, reduction="none").unsqueeze(1)
    targets = labels.unsqueeze(1) if task == "binary" else labels
    return functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    )


def _cross_entropy(batch: _Batch) -> Tensor:
    costs = _costs(batch.logits, batch.labels, batch.task)
    if batch.weights is None:
        return masked_mean(costs.mean(dim=1), batch.valid)[0]
    weights = torch.where(batch.valid.unsqueeze(1), batch.weights, 0)
    total = weights.sum()
    return (weights * costs).sum() / torch.where(total > 0, total, 1)


def _focal(batch: _Batch) -> Tensor:
    costs = _costs(batch.logits, batch.labels, batch.task)
    losses = (-torch.expm1(-costs)) ** FOCUS * costs
    if batch.weights is not None:
        losses = batch.weights * losses
    return masked_mean(losses.mean(dim=1), batch.valid)[0]


def _unet2015(batch: _Batch) -> Tensor:
    weights = 1 if batch.weights is None else batch.weights
    if batch.borders is not None:
        weights = weights + batch.borders
    losses = weights * _costs(batch.logits, batch.labels, batch.task)
    return masked_mean(losses.mean(dim=1), batch.valid)[0]


def _overlap(batch: _Batch, alpha: float, beta: float, smooth: float) -> Tensor:
    """Return 1 - (hits + smooth) / (hits + alpha false + beta missed + smooth), over one line."""
    logits, truth, valid = _by_class(batch)
    chances = logits.softmax(dim=0) if batch.task == "multiclass" else logits.sigmoid()
    chances = chances * valid
    hits = (chances * truth).sum(dim=1)
    wrong = alpha * (chances.sum(dim=1) - hits) + beta * (truth.sum(dim=1) - hits)
    return (wrong / (hits + wrong + smooth)).mean()


def _lovasz(batch: _Batch) -> Tensor:
    logits, truth, valid = _by_class(batch)
    there = truth.any(dim=1)
    if batch.task == "multiclass":
        errors = (truth.to(logits.dtype) - logits.softmax(dim=0)).abs()
        steps = _jaccard_steps(errors.detach(), truth, valid)
        return ((errors * steps).sum(dim=1) * there).sum() / there.sum().clamp(min=1)
    errors = 1 - torch.where(truth, logits, -logits)
    steps = _jaccard_steps(errors.detach(), truth, valid)
    steps = torch.where(
        there.unsqueeze(1), steps, valid.to(errors.dtype) / valid.sum().clamp(min=1)
    )
    return (errors.relu() * steps).sum(dim=1).mean()


def _jaccard_steps(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return what each pixel adds to 1 - IoU when pixels turn wrong, the largest error first.

    That is the gradient of the Lovász extension (Berman et al. 2018, equations 8 and 9). A missed
    pixel takes 1 / union; a false one takes hits / (union (union - 1)), the union that with it.

    Args:
        errors: `(K, P)`.
        truth: `(K, P)` bool, False where a pixel does not count.
        valid: `(P,)` bool.

    Returns:
        `(K, P)`, 0 where a pixel does not count. Without meaning for a class that is not there.
    """
    order = errors.argsort(dim=1, descending=True)
    true = truth.gather(1, order)
    false = valid.expand_as(truth).gather(1, order) & ~true
    count = true.sum(dim=1, keepdim=True)
    hits = (count - true.cumsum(dim=1)).to(errors.dtype)
    union = (count + false.cumsum(dim=1)).to(errors.dtype)
    steps = torch.where(true, 1 / union, hits / (union * (union - 1)).clamp(min=1))
    steps = torch.where(true | false, steps, 0)
    return torch.zeros_like(errors).scatter(1, order, steps)


def _by_class(batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits `(K, P)`, where each class is `(K, P)` bool, and valid `(P,)`."""
    logits, labels = batch.logits, batch.labels
    if batch.task == "multiclass":
        truth = torch.stack([labels == index for index in range(logits.shape[1])])
    else:
        truth = labels.unsqueeze(0) > 0 if batch.task == "binary" else labels.transpose(0, 1) > 0
    truth = truth & batch.valid
    return logits.transpose(0, 1).flatten(1), truth.flatten(1), batch.valid.flatten()


def _borders(labels: Tensor) -> Tensor:
    """Return the border weights of each mask, `(N, 1 or K, H, W)`, on the processor."""
    masks = labels.unsqueeze(1) if labels.ndim == 3 else labels
    flat = masks.flatten(0, 1).cpu().numpy()
    return torch.from_numpy(np.stack([border_weights(mask) for mask in flat])).view(masks.shape)


def _middle(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the last two sides to a size, as much on either end."""
    top, left = ((old - new) // 2 for old, new in zip(pixels.shape[-2:], size, strict=True))
    return pixels[..., top : top + size[0], left : left + size[1]]


def _ratio(others: int, count: int) -> float:
    """Return the square root of a ratio of pixels, in [1 / MOST, MOST]; 1 where there are none."""
    return min(max(math.sqrt(others / count), 1 / MOST), MOST) if count else 1.0


_TERMS: dict[str, Callable[[_Batch], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "dice": partial(_overlap, alpha=0.5, beta=0.5, smooth=0.5),
    "focal": _focal,
    "lovasz": _lovasz,
    "tversky": partial(_overlap, alpha=0.3, beta=0.7, smooth=1.0),
    "unet2015": _unet2015,
}
