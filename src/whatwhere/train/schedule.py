"""When the learning rate changes and when training stops.

What follows the validation split is counted as Keras counts; what follows the steps is set before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from whatwhere.config import Recipe
from whatwhere.metrics import Scores

_START, _END = 1 / 25, 1e-4  # of one cycle, as shares of the highest rate


def steps_of(batches: int, recipe: Recipe) -> int:
    """Return how many steps a whole training has, for epochs of so many batches.

    Each `accumulate` batches make one step; what is left at an epoch's end makes one too.
    """
    return math.ceil(batches / recipe.accumulate) * recipe.epochs


def standing(monitor: str, loss: float, found: Scores) -> float:
    """Return how an epoch stands by what is monitored: lower is better.

    A score that nothing can be said of is as bad as can be.
    """
    if monitor == "loss":
        return loss
    score: float | None = getattr(found, monitor)
    return math.inf if score is None else -score


def rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate of a step.

    `cosine`: over `warmup · steps` steps the rate rises along a line, of which the step before the
    first would be 0, to `lr`; then it falls along half a cosine, of which the step after the last
    would be 0. `one_cycle`: over `warmup · steps` steps the rate rises along half a cosine from
    `lr / 25` to `lr`; then it falls along another one to `lr / 10000` at the last step. `plateau`:
    `lr`; what happens on a plateau is not known before. `min_lr` is the plateau's alone. Where
    chips have half the side at first, those steps have such a course, and the others one more.

    Source: Loshchilov and Hutter, "SGDR", 2017, equation 5 without restarts; Smith and Topin,
    "Super-Convergence", 2018, with the two cosines of torch's OneCycleLR.

    Args:
        step: Of the optimiser, from 0; what lies past the last step has the last one's rate.
        steps: Of the whole training, at least 1.
        recipe: Its `schedule`, `lr`, `warmup` and `half_size` count.
    """
    step, halved = min(step, steps - 1), math.ceil(recipe.half_size * steps)
    if step < halved:
        steps = halved
    else:
        step, steps = step - halved, steps - halved
    if recipe.schedule == "cosine":
        rise = int(recipe.warmup * steps)
        if step < rise:
            return recipe.lr * (step + 1) / (rise + 1)
        return recipe.lr * _between(1.0, 0.0, (step - rise) / (steps - rise))
    if recipe.schedule == "one_cycle":
        peak = max(recipe.warmup * steps - 1, 0.0)  # need not be a whole number, as with torch
        if step < peak:
            return recipe.lr * _between(_START, 1.0, step / peak)
        return recipe.lr * _between(1.0, _END, (step - peak) / max(steps - 1 - peak, 1e-9))
    return recipe.lr


def _between(first: float, last: float, share: float) -> float:
    """Go from one value to another along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class Plateau:
    """Lower the learning rate when a loss no longer falls.

    An epoch is bad when its loss is not below the best by more than `min_delta`. As soon as
    `patience` bad epochs have followed one another, the rate is multiplied by `factor` (torch's
    scheduler waits for one more) and the counting starts again.

    Source: the behaviour of keras.callbacks.ReduceLROnPlateau.
    """

    factor: float = 0.1
    patience: int = 5
    min_delta: float = 1e-4
    min_lr: float = 0.0
    best: float = field(default=math.inf, init=False)
    bad: int = field(default=0, init=False)

    def next_lr(self, loss: float, lr: float) -> float:
        """Take an epoch's loss and learning rate; return the rate of the next epoch."""
        if loss < self.best - self.min_delta:
            self.best, self.bad = loss, 0
            return lr
        self.bad += 1
        if self.bad < self.patience:
            return lr
        if lr <= self.min_lr:
            return lr
        self.bad = 0
        return max(lr * self.factor, self.min_lr)


@dataclass
class Stopper:
    """Stop when a loss has not fallen for `patience` epochs; with a patience of 0 never.

    Source: the behaviour of keras.callbacks.EarlyStopping.
    """

    patience: int = 10
    min_delta: float = 0.0
    best: float = field(default=math.inf, init=False)
    bad: int = field(default=0, init=False)

    def should_stop(self, loss: float) -> bool:
        """Take an epoch's loss; say whether it is the last one."""
        if loss < self.best - self.min_delta:
            self.best, self.bad = loss, 0
            return False
        self.bad += 1
        return 0 < self.patience <= self.bad
