"""Keeping the state of a training while it runs, and putting it back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO

from whatwhere.talk import Talk
from whatwhere.train.state import States, encode
from whatwhere.train.stop import Halt, Stop

_SHARE = 50  # a state is written when so many times what it takes has passed


class StateIO(CheckpointIO):
    """Lightning's way to the states: no pickle, one writer.

    Attributes:
        data: The last state that was made, encoded.
        state: What is handed back when a training goes on.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Take the state to go on from, if there is one."""
        self.state, self.data = state, b""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Encode a state and hold it."""
        self.data = encode(checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the state to go on from."""
        return dict(self.state or {})

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing: `States` removes what is old."""


class Keeper(pl.Callback):
    """Writes the state now and then, and when somebody asks to stop.

    A state is that after a whole step. During a validation it is the one before the epoch's last
    step, which is held in memory: so one step is lost at the most.
    """

    def __init__(
        self, states: States, stop: Stop, source: StateIO, every_s: float, of: Mapping[str, Any]
    ) -> None:
        """Take where states go.

        Args:
            states: The run's.
            stop: Whether somebody asked to stop.
            source: Encodes, and knows the state to go on from.
            every_s: From one state to the next [s]; 0 keeps one after each step.
            of: What is trained, to be kept with each state.
        """
        self.states, self.stop, self.source, self.every, self.of = (
            *(states, stop, source, every_s),
            dict(of),
        )
        self._at = {"epoch": 0, "batch": 0}
        self._held: tuple[int, bytes] | None = None
        self._last, self._took = time.monotonic(), 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the generators back: nothing draws from them between here and the first step."""
        self.stop.take()
        self._last = time.monotonic()
        if self.source.state:
            chance = self.source.state["chance"]
            torch.set_rng_state(chance["cpu"])
            if chance["cuda"]:
                torch.cuda.set_rng_state_all(list(chance["cuda"]))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not know of."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["chance"] = {"cpu": torch.get_rng_state(), "cuda": cuda}
        checkpoint["at"], checkpoint["of"] = dict(self._at), self.of

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state after a step; the epoch's last one is followed by the validation."""
        size, total = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        done, before_last = batch_idx + 1, (total - 1) // size * size
        if done == total:
            self._halt_if_asked(self._held)
            return
        if done % size:
            return  # in the middle of a step
        self._at = {"epoch": trainer.current_epoch, "batch": done}
        if self.stop.signal is not None:
            self._halt_if_asked(self._make(trainer))
        made = None
        if self._is_due():
            made = self._write(self._make(trainer))
        if done == before_last:
            self._held = made or self._make(trainer)

    def on_validation_batch_end(self, *_args: Any, **_named: Any) -> None:
        """Stop in the middle of a validation, if asked; it is done again."""
        self._halt_if_asked(self._held)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the state after an epoch; runs after what else happens there."""
        self._at = {"epoch": trainer.current_epoch + 1, "batch": 0}
        over = trainer.should_stop or self._at["epoch"] == trainer.max_epochs
        if over:
            self._write(self._make(trainer))
            return
        if self.stop.signal is not None:
            self._halt_if_asked(self._make(trainer))
        made = self._write(self._make(trainer)) if self._is_due() else None
        if trainer.num_training_batches <= trainer.accumulate_grad_batches:  # one step an epoch
            self._held = made or self._make(trainer)

    def _is_due(self) -> bool:
        waited = time.monotonic() - self._last
        return not self.every or waited > max(self.every, _SHARE * self._took)

    def _make(self, trainer: pl.Trainer) -> tuple[int, bytes]:
        trainer.save_checkpoint(self.states.folder / "held")
        return trainer.global_step, self.source.data

    def _write(self, made: tuple[int, bytes]) -> tuple[int, bytes]:
        begun = time.monotonic()
        self.states.write(*made)
        self._last = time.monotonic()
        self._took = self._last - begun
        return made

    def _halt_if_asked(self, made: tuple[int, bytes] | None) -> None:
        if self.stop.signal is None:
            return
        if made is not None:
            self._write(made)
        raise Halt


def tell_resumed(state: Mapping[str, Any], batches: int, talk: Talk) -> None:
    """Say where a training goes on."""
    at = state["at"]
    talk.say(
        f"resume   at epoch {at['epoch'] + 1}, after {at['batch']} of {batches} batches "
        f"(step {state['global_step']:,})"
    )
