"""Training, run by Lightning."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from whatwhere import files
from whatwhere.config import Recipe, make_recipe
from whatwhere.data.resident import ahead, placed
from whatwhere.errors import (
    Interrupted,
    NumericsError,
    UsageError,
    WhatwhereError,
    first_line,
)
from whatwhere.machine import keep_pages, threads
from whatwhere.metrics import scores
from whatwhere.talk import Talk
from whatwhere.train.callbacks import Averaging, Overflows, Rates, Resting, Waiting
from whatwhere.train.clock import Clock, Timed
from whatwhere.train.growing import Growing
from whatwhere.train.keeper import Keeper, StateIO
from whatwhere.train.module import Segmentation
from whatwhere.train.optim import set_rate
from whatwhere.train.readers import told_here
from whatwhere.train.schedule import Plateau, Stopper, standing, steps_of
from whatwhere.train.state import States
from whatwhere.train.stop import Halt, Stop
from whatwhere.train.warnings import Advice, Signs
from whatwhere.types import Task

Weights = dict[str, NDArray[Any]]

_PRECISIONS: Mapping[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_LOW = 0.01


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Losses are means over valid pixels; scores are of the chips.

    `lr` is the highest group's at the epoch's last step. Where weights are averaged, `val_loss` and
    the scores are the average's. `waiting` is the share of the steps' time that went by until their
    batches were there.
    """

    epoch: int
    seconds: float
    lr: float
    train_loss: float
    val_loss: float
    val_mean_iou: float | None
    val_mean_dice: float | None
    val_pixel_accuracy: float | None
    best: bool
    waiting: float = 0.0


@dataclass(frozen=True)
class History:
    """What happened in a training.

    Attributes:
        epochs: In order.
        stopped: Why it ended, in words.
        step_seconds: The median time of a training step, loading included.
        val_seconds: The median time of a validation.
        steps: How many there were.
        interrupted: Whether the user stopped it.
        signal: Which signal did; None where none did.
    """

    epochs: tuple[Epoch, ...]
    stopped: str
    step_seconds: float
    val_seconds: float = 0.0
    steps: int = 0
    interrupted: bool = False
    signal: int | None = None

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return [epoch for epoch in self.epochs if epoch.best][-1]

    @property
    def waiting(self) -> float:
        """The median share of an epoch's steps that went by waiting for data.

        The first epoch, which reads what later ones find in memory, counts where it is alone.
        """
        return float(np.median([epoch.waiting for epoch in self.epochs[1:] or self.epochs]))


class _Watch(pl.Callback):
    """Follows the epochs: keeps the best weights, lowers the rate, stops, logs, tells, warns."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        talk: Talk,
        log: Path | None,
        on_best: Callable[[Weights, Epoch], None],
        averaging: Averaging,
        advice: Advice,
        timed: Timed | None,
        waiting: Waiting,
    ) -> None:
        self.recipe, self.talk, self.log_file, self.on_best = recipe, talk, log, on_best
        self.averaging, self.advice, self.rate = averaging, advice, recipe.lr
        self.timed, self.waiting = timed, waiting
        self.plateau = Plateau(
            recipe.lr_factor, recipe.lr_patience, recipe.lr_min_delta, recipe.min_lr
        )
        self.stopper = Stopper(recipe.stop_patience, recipe.stop_min_delta)
        self.steps, self.best = steps, float("inf")
        self.epochs: list[Epoch] = []
        self.stopped = _all_done(recipe)
        self.started = self.stepped = 0.0
        self.durations: list[float] = []
        self.validations: list[float] = []
        self._bar: Any = None
        self._step: Callable[..., None] = lambda **_changes: None

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on; Lightning keeps it."""
        return {
            **{"best": self.best, "rate": self.rate, "stopped": self.stopped},
            "plateau": (self.plateau.best, self.plateau.bad),
            "stopper": (self.stopper.best, self.stopper.bad),
            "epochs": [asdict(row) for row in self.epochs],
            "advice": self.advice.to_keep(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.best, self.rate = state_dict["best"], state_dict["rate"]
        self.stopped = state_dict["stopped"]
        self.plateau.best, self.plateau.bad = state_dict["plateau"]
        self.stopper.best, self.stopper.bad = state_dict["stopper"]
        self.epochs = [Epoch(**row) for row in state_dict["epochs"]]
        self.advice.restore(state_dict["advice"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer.current_epoch)

    def _begin(self, epoch: int) -> None:
        self.started = self.stepped = time.monotonic()
        self._bar = self.talk.bar(f"epoch {self._number(epoch + 1).strip()}", self.steps)
        self._step = self._bar.__enter__()

    def on_train_batch_start(self, trainer: pl.Trainer, *_args: Any) -> None:
        if self._bar is None:  # a training that goes on in the middle of an epoch
            self._begin(trainer.current_epoch)

    def on_train_batch_end(self, *_args: Any, **_named: Any) -> None:
        now = time.monotonic()
        self.durations.append(now - self.stepped)
        self.stepped = now
        self._step()

    def close_bar(self) -> None:
        """Take the bar away, if one is drawn."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the validation."""
        self.close_bar()
        self.validations.append(time.monotonic() - self.stepped)
        if not isinstance(pl_module, Segmentation):
            raise TypeError(f"{type(pl_module).__name__} was not made here.")
        loss, counts = pl_module.validation["loss"], pl_module.validation["counts"]
        found = scores(counts)
        stands = standing(self.recipe.monitor, loss, found)
        optimizer = trainer.optimizers[0]
        row = Epoch(
            epoch=trainer.current_epoch + 1,
            seconds=round(time.monotonic() - self.started, 2),
            lr=max(group["lr"] for group in optimizer.param_groups),
            train_loss=pl_module.train_loss,
            val_loss=loss,
            val_mean_iou=found.mean_iou,
            val_mean_dice=found.mean_dice,
            val_pixel_accuracy=found.pixel_accuracy,
            best=stands < self.best,
            waiting=round(self.waiting.share, 4),
        )
        self.epochs.append(row)
        if row.best:
            self.best = stands
            state = self.averaging.state() or pl_module.net.state_dict()
            self.on_best(weights_of(state), row)
        self._tell(row)
        signs = Signs(row.epoch, row.train_loss, counts, pl_module.shown, self._at_floor(row.lr))
        for warning in self.advice.see(signs):
            self.talk.say(f"warning  {warning}")
        if self.recipe.schedule == "plateau":
            self._lower_rate(optimizer, stands)
        if self.stopper.should_stop(stands):
            what = self.recipe.monitor.replace("_", " ")
            self.stopped = f"the validation {what} was no better for {self.stopper.bad} epochs"
            trainer.should_stop = True
        elif self.timed is not None and self.timed.over:
            self.stopped = f"the {self.recipe.minutes:g} minutes were over"

    def _number(self, epoch: int) -> str:
        return f"{epoch:3d}" if self.timed else f"{epoch:3d}/{self.recipe.epochs}"

    def _lower_rate(self, optimizer: torch.optim.Optimizer, stands: float) -> None:
        rate = self.plateau.next_lr(stands, self.rate)
        if rate != self.rate:
            self.talk.say(f"  no better for {self.recipe.lr_patience} epochs: lr {rate:.3g} now")
        self.rate = rate
        set_rate(optimizer, rate)

    def _at_floor(self, rate: float) -> bool:
        """Whether the rate is as low as it gets; a cycle's end counts, from a hundredth on."""
        if self.recipe.schedule == "plateau":
            return self.rate <= self.recipe.min_lr
        return rate <= _LOW * self.recipe.lr

    def _tell(self, row: Epoch) -> None:
        if self.log_file is not None:
            files.write_text(self.log_file, to_csv(self.epochs))
        iou = "–" if row.val_mean_iou is None else f"{row.val_mean_iou:.4f}"
        self.talk.say(
            f"epoch {self._number(row.epoch)}  loss {row.train_loss:.4f}  "
            f"validation loss {row.val_loss:.4f}  mean IoU {iou}  lr {row.lr:.1e}  "
            f"{row.seconds:.0f} s{'  best' if row.best else ''}"
        )


def fit(
    net: nn.Module,
    train: DataLoader[Any],
    val: DataLoader[Any],
    recipe: Recipe,
    task: Task,
    n_classes: int,
    *,
    on_best: Callable[[Weights, Epoch], None],
    talk: Talk,
    log: Path | None = None,
    device: str = "cpu",
    most_batches: int | None = None,
    class_weights: Sequence[float] = (),
    class_names: Sequence[str] = (),
    states: States | None = None,
    state: Mapping[str, Any] | None = None,
    of: Mapping[str, Any] | None = None,
    save_minutes: float = 5.0,
    clock: Clock | None = None,
    trial: bool = False,
    stride: int = 1,
) -> History:
    """Train a net; its weights are those of the last epoch afterwards, the best went to `on_best`.

    Two calls with one net, recipe and data give the same weights, bit for bit, on one processor
    with one torch and one number of threads. Where the recipe averages weights, validation is the
    average's, and `on_best` gets the average; the net keeps its own.

    Args:
        net: Gives logits.
        train: Batches of an epoch.
        val: Batches of the validation split.
        recipe: Rates, patience, epochs, seed.
        task: What the logits mean.
        n_classes: Classes of the table, the background included.
        on_best: Gets a copy of the weights and the epoch each time the validation loss, or what
            else the recipe monitors, is better than ever.
        talk: Where lines, warnings and bars go.
        log: A CSV file, one line for each epoch; None keeps none.
        device: `cpu`, `cuda` or `mps`.
        most_batches: For a rehearsal: this many batches at the most, and one epoch, in which a
            backbone does not rest: that is what takes the most time and memory.
        class_weights: One for each class, for the loss; empty for none.
        class_names: What warnings call the classes.
        states: Where the state is kept, now and then and when a signal asks to stop; None keeps
            none, and Ctrl-C stops at once.
        state: What to go on from: then the weights at the end are those of a training that was
            never interrupted.
        of: What is trained, to be kept with each state.
        save_minutes: From one state to the next [min]; 0 keeps one after each step.
        clock: How long it may take, where the recipe's `minutes` count; a training that goes on
            has what was left. Then two calls do not give the same weights.
        trial: One of a few seconds: no set is laid on a GPU as a whole, and no chip is halved. A
            rehearsal does neither.
        stride: Of which the sides of chips should be multiples, where the recipe halves them [px].

    Raises:
        UsageError: The loss cannot be built, or the device does not have the precision, or a
            compiler.
        NumericsError: A loss or a weight is not finite.
        OutputError: The log or what `on_best` writes cannot be written.
    """
    check_precision(recipe, device)
    if most_batches:
        recipe = make_recipe(recipe, compile=False)
    check_compiler(recipe, device)
    keep_pages()
    torch.set_num_threads(threads())
    torch.manual_seed(recipe.seed)
    module = Segmentation(net, recipe, task, n_classes, class_weights)
    batches = min(len(train), most_batches or len(train))
    timed = None
    if recipe.minutes and not most_batches:
        clock = clock or Clock(60 * recipe.minutes, 1)
        timed = Timed(recipe, clock)
    steps = steps_of(batches, recipe) if clock is None else clock.steps
    averaging = Averaging(net, recipe.ema * steps)
    advice = Advice(task, class_names)
    waiting = Waiting()
    watch = _Watch(recipe, batches, talk, log, on_best, averaging, advice, timed, waiting)
    rest = 0 if most_batches else recipe.freeze_epochs
    resting = Resting(net, rest, talk, recipe.train_first)
    callbacks: list[pl.Callback] = [resting, timed or Rates(recipe, steps), averaging, watch]
    short = trial or bool(most_batches)  # and sees what takes the most time and memory
    if recipe.half_size and not short:
        callbacks.append(Growing(recipe.half_size, stride, _passed(timed, steps)))
    if recipe.precision == "16":
        callbacks.append(Overflows())
    interrupted, stop, source = False, Stop(), StateIO(state)
    if states is not None:
        callbacks.append(Keeper(states, stop, source, 60 * save_minutes, of or {}))
    callbacks.append(waiting)
    if state is not None:
        _skip(train, state["at"])
    listening = stop.listening() if states is not None else nullcontext()
    with _quiet_lightning(), listening:
        trainer = _trainer(recipe, device, most_batches, callbacks, source)
        try:
            if timed is not None:
                timed.begin()
            if not short:
                train, val = placed((train, val), device, talk)
            else:
                train, val = ahead((train, val), device)
            trainer.fit(module, train, val, ckpt_path="state" if state is not None else None)
        except (KeyboardInterrupt, SystemExit, Halt):
            interrupted = True  # Lightning turns Ctrl-C into an exit
        except (WhatwhereError, RuntimeError, ConnectionError, EOFError) as error:
            told = told_here(error) if train.num_workers or val.num_workers else error
            if told is error:
                raise
            raise told from error
        finally:
            watch.close_bar()
            averaging.leave()
            resting.end()
    net.cpu()
    if not watch.epochs and interrupted:
        raise Interrupted(stop.signal)
    if not any(epoch.best for epoch in watch.epochs):
        what = recipe.monitor.replace("_", " ")
        raise NumericsError(f"no epoch had a finite validation {what}. Try a smaller --lr.")
    stopped = "it was interrupted" if interrupted else watch.stopped
    # The first one warms up.
    usual = float(np.median(watch.durations[1:] or watch.durations or [0.0]))
    return History(
        epochs=tuple(watch.epochs),
        stopped=stopped,
        step_seconds=usual,
        val_seconds=float(np.median(watch.validations or [0.0])),
        steps=len(watch.durations),
        interrupted=interrupted,
        signal=stop.signal,
    )


def _passed(timed: Timed | None, steps: int) -> Callable[[pl.Trainer], float]:
    """Return what tells which share of a training is over: by the clock, or by its steps."""
    if timed is not None:
        return lambda _trainer: timed.share
    return lambda trainer: trainer.global_step / steps


def finished(state: Mapping[str, Any], recipe: Recipe) -> History | None:
    """Return the history of a state after the last epoch; None where there is more to train."""
    kept = next(iter(one for name, one in state["callbacks"].items() if "Watch" in name))
    epochs = tuple(Epoch(**row) for row in kept["epochs"])
    early = kept["stopped"] != _all_done(recipe)
    if state["at"]["batch"] or not (early or state["at"]["epoch"] >= recipe.epochs):
        return None
    return History(epochs, kept["stopped"], 0.0)


def _all_done(recipe: Recipe) -> str:
    return f"all epochs were done ({recipe.epochs})"


def _skip(train: DataLoader[Any], at: Mapping[str, int]) -> None:
    """Let the batches of the first epoch begin after those that were seen before."""
    batches: Any = train.batch_sampler
    batches.sampler.set_epoch(at["epoch"])
    batches.sampler.skip(at["batch"] * batches.batch_size)


def check_precision(recipe: Recipe, device: str) -> None:
    """Raise `UsageError` where a device cannot train in the recipe's precision."""
    if recipe.precision == "16" and device == "cpu":
        raise UsageError(
            "--precision 16 is not for the processor, which would be slow and inexact. Take bf16 "
            "or 32, or --device cuda."
        )


def check_compiler(recipe: Recipe, device: str) -> None:
    """Raise `UsageError` where the recipe wants PyTorch's compiler, and it does not work."""
    if not recipe.compile:
        return
    small = torch.zeros(2, device=device)
    try:
        torch.compile(torch.sin)(small)
    except RuntimeError as error:  # all that it raises
        raise UsageError(
            f"--compile: PyTorch's compiler does not work here ({first_line(error)}). "
            "It wants a C++ compiler, on a GPU Triton. Leave it out."
        ) from error


def _trainer(
    recipe: Recipe,
    device: str,
    most_batches: int | None,
    callbacks: list[pl.Callback],
    source: StateIO,
) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1 if most_batches else recipe.epochs,
        accelerator="gpu" if device == "cuda" else device,
        devices=[torch.cuda.current_device()] if device == "cuda" else 1,
        precision=_PRECISIONS[recipe.precision],
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip or None,
        gradient_clip_algorithm="norm",
        limit_train_batches=most_batches or 1.0,
        limit_val_batches=most_batches or 1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=[source],
    )


def weights_of(state: Mapping[str, torch.Tensor]) -> Weights:
    """Return a copy of a `state_dict`: all weights and running statistics."""
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in state.items()}


def to_csv(epochs: list[Epoch]) -> str:
    """Return the log as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(Epoch.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in epochs)
    return stream.getvalue()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice to itself: what matters is said by `_Watch`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # "The dataloader does not have many workers": the images are kept in memory.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # "Your dataloader is not resumable": `_skip` makes it so.
            warnings.filterwarnings("ignore", message=".*checkpoint that ended before the epoch.*")
            # Lightning 2.6 still builds LeafSpec in a way that torch 2.15 calls old.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # "GPU available but not used": the user chose the device.
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
