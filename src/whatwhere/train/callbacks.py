"""What happens around the steps of a training, for Lightning to call."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from whatwhere.config import Recipe
from whatwhere.errors import NumericsError
from whatwhere.nn.build import freeze, unfreeze
from whatwhere.talk import Talk
from whatwhere.train.average import Average
from whatwhere.train.optim import set_rate
from whatwhere.train.schedule import rate_at

_MOST_LOST = 24  # steps: 2**16, the scale at the start, is halved to less than 1 before


class Rates(pl.Callback):
    """Sets the learning rate before each step, unless it follows the plateaus."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """Take the recipe and how many steps the whole training has."""
        self.recipe, self.steps = recipe, steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_args: Any) -> None:
        if self.recipe.schedule != "plateau":
            rate = rate_at(trainer.global_step, self.steps, self.recipe)
            set_rate(trainer.optimizers[0], rate)


class Waiting(pl.Callback):
    """Counts the time that the steps of an epoch wait for their batches.

    It comes last: what other callbacks do after a step, such as keeping its state, is no waiting.
    """

    def __init__(self) -> None:
        self._begun = self._ended = self._waited = 0.0

    @property
    def share(self) -> float:
        """Of the time of the epoch's steps, from 0 to 1."""
        return self._waited / max(self._ended - self._begun, 1e-9)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self._begun = self._ended = time.monotonic()
        self._waited = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_args: Any) -> None:
        if not self._begun:  # a training that goes on in the middle of an epoch
            self._begin()
        self._waited += time.monotonic() - self._ended

    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any, **_named: Any) -> None:
        self._ended = time.monotonic()


class Overflows(pl.Callback):
    """Ends a training in 16 bits whose steps are all left out because their gradients overflow.

    A few are: so the scale that keeps gradients within 16 bits is found.
    """

    def __init__(self) -> None:
        self._scale, self._lost, self._step = 0.0, 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any, **_named: Any) -> None:
        if trainer.global_step == self._step:  # a step may have several batches
            return
        plugin: Any = trainer.precision_plugin
        scale = float(plugin.scaler.get_scale())
        self._step = trainer.global_step
        self._lost = self._lost + 1 if scale < self._scale else 0
        self._scale = scale
        if self._lost > _MOST_LOST:
            raise NumericsError(
                f"{self._lost} steps in a row were left out, because their gradients are too large "
                "for 16 bits. The last good weights are kept; take --precision bf16 or 32, or a "
                "smaller --lr."
            )


class Averaging(pl.Callback):
    """Averages the weights after each step, and puts the average in their place to validate."""

    def __init__(self, net: nn.Module, half_life: float) -> None:
        """Take the net and the average's half-life [steps]; 0 averages nothing."""
        self.net, self.half_life = net, half_life
        self._average: Average | None = None
        self._step = 0
        self._kept: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs when the net is on its device."""
        if self.half_life:
            self._average = Average(self.net, self.half_life)
            if self._kept:
                self._average.restore(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on; Lightning keeps it."""
        if self._average is None:
            return {}
        return {**self._average.to_keep(), "step": self._step, "half_life": self.half_life}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back; the average is made later."""
        self._kept, self._step = state_dict, int(state_dict["step"])
        self.half_life = float(state_dict.get("half_life", self.half_life))

    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any, **_named: Any) -> None:
        if self._average is not None and trainer.global_step > self._step:
            self._step = trainer.global_step
            self._average.update()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average is not None:
            self._average.enter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.leave()

    def leave(self) -> None:
        """Put the net's own weights back, if they are not there."""
        if self._average is not None:
            self._average.leave()

    def state(self) -> dict[str, Tensor] | None:
        """Return the averaged net's `state_dict`; None where nothing is averaged."""
        return None if self._average is None else self._average.state()


class Resting(pl.Callback):
    """Lets the backbone rest in the first epochs."""

    def __init__(self, net: nn.Module, epochs: int, talk: Talk, but_first: bool = False) -> None:
        """Take the net, for how many epochs its backbone rests, and where that is told.

        With `but_first` its first filters learn all the same.
        """
        self.net, self.epochs, self.talk, self.but_first = net, epochs, talk, but_first
        self._rests = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins here, not before: Lightning would warn of modules in evaluation mode."""
        if trainer.current_epoch == 0 and self.epochs:
            self._rest()
            some = "the first epoch" if self.epochs == 1 else f"the first {self.epochs} epochs"
            but = ", but for its first filters" if self.but_first else ""
            self.talk.say(f"training the backbone rests for {some}{but}")
        elif trainer.current_epoch == self.epochs and self._rests:
            self.end()
            self.talk.say("  the backbone learns from here on")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rest again where a training goes on."""
        if trainer.global_step and trainer.current_epoch < self.epochs:
            self._rest()

    def _rest(self) -> None:
        freeze(self.net, but_first=self.but_first)
        self._rests = True

    def end(self) -> None:
        """Let the backbone learn again, if it rests."""
        if self._rests:
            unfreeze(self.net)
            self._rests = False
