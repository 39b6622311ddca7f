"""Which learning rate to take: a range test on a copy of the net."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from whatwhere.config import Recipe
from whatwhere.data.loader import Batch
from whatwhere.errors import NumericsError, UsageError
from whatwhere.machine import keep_pages, threads
from whatwhere.talk import QUIET, Talk
from whatwhere.train.fit import check_precision
from whatwhere.train.module import Segmentation
from whatwhere.train.optim import make_optimizer, set_rate
from whatwhere.types import Task

_KEPT = 0.8  # of the smoothed loss at a step
_TOO_BAD = 4.0  # times the best loss: the test ends
_LEAST_FALL = 0.02  # of the loss at the start
_BELOW = 1 / 3  # of the rate where the loss is lowest: the most that is suggested
_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class LrCurve:
    """What a range test found.

    Attributes:
        lrs: The rates that were tried, from the lowest on.
        losses: The smoothed training loss at each of them.
        suggestion: The rate to take.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_lr(
    net: nn.Module,
    batches: DataLoader[Batch],
    recipe: Recipe,
    task: Task,
    n_classes: int,
    *,
    class_weights: Sequence[float] = (),
    steps: int = 100,
    low: float = 1e-7,
    high: float = 1.0,
    device: str = "cpu",
    talk: Talk = QUIET,
) -> LrCurve:
    """Train a copy of a net with a rate that grows from step to step, and see when the loss falls.

    The rate grows exponentially; the loss is smoothed over some 5 steps, without a bias towards
    its start. The test ends early when the loss is 4 times its lowest. The suggestion is the rate
    at which the loss falls steepest over the logarithm of the rate, at most a third of the rate
    where it is lowest: there it is about to rise. A backbone does not rest in the test.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3; the
    exponential growth, the smoothing and the end at 4 times the best are Gugger's, "How Do You
    Find A Good Learning Rate", 2018.

    Args:
        net: It is not changed.
        batches: Of the training split; they begin anew when they are used up.
        recipe: Its loss, optimiser, accumulation, clipping, precision and seed count.
        task: What the logits mean.
        n_classes: Classes of the table, the background included.
        class_weights: Of the loss.
        steps: How many rates are tried, at least 20.
        low: The first rate, above 0.
        high: The last rate, above `low`.
        device: `cpu`, `cuda` or `mps`.
        talk: Where the bar goes.

    Raises:
        UsageError: Steps or rates out of their range; the loss or the precision cannot be had.
        NumericsError: The loss is not finite from the start, or never falls.
    """
    if steps < 20 or not 0 < low < high < math.inf:
        raise UsageError(
            f"the range test needs at least 20 steps and rates 0 < low < high, not {steps} from "
            f"{low} to {high}."
        )
    check_precision(recipe, device)
    keep_pages()
    torch.set_num_threads(threads())
    torch.manual_seed(recipe.seed)
    module = Segmentation(copy.deepcopy(net), recipe, task, n_classes, class_weights)
    module.to(device).train()
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    mean = best = 0.0
    with talk.bar("trying learning rates", steps) as step:
        for count, loss in enumerate(_losses(module, batches, rates, device), start=1):
            mean = _KEPT * mean + (1 - _KEPT) * loss
            smooth = mean / (1 - _KEPT**count)
            if not math.isfinite(smooth):
                break
            losses.append(smooth)
            best = min(best, smooth) if count > 1 else smooth
            step()
            if smooth > _TOO_BAD * best:
                break
    tried = rates[: len(losses)]
    rate = suggest(tried, np.array(losses), steps)
    return LrCurve(tuple(tried.tolist()), tuple(losses), rate)


def suggest(lrs: NDArray[np.float64], losses: NDArray[np.float64], steps: int) -> float:
    """Return the rate at which the loss falls steepest, well below where it is lowest.

    The slope at a rate is that of a line through it and some 5 rates on either side.

    Args:
        lrs: The rates tried, rising by the same factor.
        losses: The smoothed loss of each.
        steps: How many rates there would have been.

    Raises:
        NumericsError: The loss did not fall by 2 % from its mean over the first tenth of the steps.
    """
    early, reach = steps // 10, max(steps // 20, 1)
    if len(losses) <= early:
        raise NumericsError(
            "the loss is not finite, or explodes, at the lowest learning rates. Look at the images "
            "with `whatwhere inspect`, and at the --loss."
        )
    lowest = int(losses.argmin())
    good = [i for i in range(early, lowest) if lrs[i] <= _BELOW * lrs[lowest]]
    if losses[lowest] > (1 - _LEAST_FALL) * losses[:early].mean() or not good:
        raise NumericsError(
            f"the loss never fell at learning rates from {lrs[0]:.1e} to {lrs[-1]:.1e}, so none "
            "can be suggested. Look at the masks with `whatwhere inspect`; try a larger "
            "--batch-size, another --loss, or --precision 32."
        )
    slopes = []
    for i in good:
        near = slice(max(i - reach, 0), i + reach + 1)
        slopes.append(np.polyfit(np.log(lrs[near]), losses[near], 1)[0])
    return float(lrs[good[int(np.argmin(slopes))]])


def _losses(
    module: Segmentation, batches: DataLoader[Batch], rates: NDArray[np.float64], device: str
) -> Iterator[float]:
    """Take a step at each rate; yield the mean loss of its batches, before the step is taken."""
    recipe = module.recipe
    optimizer = make_optimizer(module.net, recipe)
    scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "16")
    kind = _AUTOCAST.get(recipe.precision)
    source = _endless(batches)
    for rate in rates:
        set_rate(optimizer, float(rate))
        optimizer.zero_grad()
        total = 0.0
        for _ in range(recipe.accumulate):
            batch = module.transfer_batch_to_device(next(source), torch.device(device), 0)
            with torch.autocast(device, dtype=kind, enabled=kind is not None):
                loss, _count, _logits = module.measure(batch)
            torch.autograd.backward(scaler.scale(loss / recipe.accumulate))
            total += float(loss.detach()) / recipe.accumulate
        yield total
        if recipe.clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.net.parameters(), recipe.clip)
        scaler.step(optimizer)
        scaler.update()


def _endless(batches: DataLoader[Batch]) -> Iterator[Batch]:
    """Go through the batches again and again, each time as another epoch."""
    sampler: Any = getattr(batches.batch_sampler, "sampler", None)
    for epoch in itertools.count():
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        yield from batches
