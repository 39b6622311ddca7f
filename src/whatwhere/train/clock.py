"""Training by the clock: the rate falls as time passes, and the end comes on time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from whatwhere.config import Recipe
from whatwhere.train.optim import set_rate
from whatwhere.train.schedule import rate_at

_FINE = 1_000_000  # of so many parts is the time of a training


@dataclass(frozen=True)
class Clock:
    """How long a training may take.

    Attributes:
        seconds: For all steps and validations [s].
        steps: About how many steps there will be; what is averaged over a share of them needs it.
        val_seconds: About how long a validation takes [s]; it is measured as soon as there was one.
    """

    seconds: float
    steps: int
    val_seconds: float = 0.0


class Timed(pl.Callback):
    """Sets the rate by the share of the time that has passed, and ends the training with it.

    Time is that of this training: one that goes on has what was left when its state was kept. The
    last validation falls within it.
    """

    def __init__(self, recipe: Recipe, clock: Clock) -> None:
        """Take the recipe, whose schedule counts, and the time."""
        self.recipe, self.seconds, self.validation = recipe, clock.seconds, clock.val_seconds
        self.over = False
        self._begun, self._before, self._asked = 0.0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on; Lightning keeps it."""
        return {"seconds": self.seconds, "spent": self.spent, "validation": self.validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the time that was left."""
        self.seconds, self._before = float(state_dict["seconds"]), float(state_dict["spent"])
        self.validation = float(state_dict["validation"])

    @property
    def spent(self) -> float:
        """How much of the time has passed [s]."""
        return self._before + (time.monotonic() - self._begun if self._begun else 0.0)

    @property
    def share(self) -> float:
        """How much of the time for steps has passed, from 0 to 1."""
        return min(self.spent / max(self.seconds - self.validation, 1e-3), 1.0)

    def begin(self) -> None:
        """Let the time run, before Lightning does, if it does not yet."""
        self._begun = self._begun or time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin()

    def on_train_batch_start(self, trainer: pl.Trainer, *_args: Any) -> None:
        rate = rate_at(int(self.share * _FINE), _FINE, self.recipe)
        set_rate(trainer.optimizers[0], rate)

    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any, **_named: Any) -> None:
        if self.share >= 1:
            self.over = trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the validation: there may be no time for another one."""
        if self.share >= 1:
            self.over = trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._asked = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation = time.monotonic() - self._asked
