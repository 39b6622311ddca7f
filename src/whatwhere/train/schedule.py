"""When the learning rate falls and when training stops, counted as Keras counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


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
    """Stop when a loss has not fallen for `patience` epochs.

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
        return self.bad >= self.patience
