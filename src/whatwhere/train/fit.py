"""Training, run by Lightning."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from whatwhere.config import Recipe
from whatwhere.errors import NumericsError
from whatwhere.machine import keep_pages, threads
from whatwhere.metrics import scores
from whatwhere.talk import Talk
from whatwhere.train.module import Segmentation
from whatwhere.train.schedule import Plateau, Stopper
from whatwhere.types import Task

Weights = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Losses are means over valid pixels; scores are of the chips."""

    epoch: int
    seconds: float
    lr: float
    train_loss: float
    val_loss: float
    val_mean_iou: float | None
    val_pixel_accuracy: float | None
    best: bool


@dataclass(frozen=True)
class History:
    """What happened in a training.

    Attributes:
        epochs: In order.
        stopped: Why it ended, in words.
        step_seconds: The median time of a training step, loading included.
        interrupted: Whether the user stopped it.
    """

    epochs: tuple[Epoch, ...]
    stopped: str
    step_seconds: float
    interrupted: bool = False

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return [epoch for epoch in self.epochs if epoch.best][-1]


class _Watch(pl.Callback):
    """Follows the epochs: keeps the best weights, lowers the rate, stops, logs, tells."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        talk: Talk,
        log: Path | None,
        on_best: Callable[[Weights, Epoch], None],
    ) -> None:
        self.recipe, self.talk, self.log_file, self.on_best = recipe, talk, log, on_best
        self.plateau = Plateau(
            recipe.lr_factor, recipe.lr_patience, recipe.lr_min_delta, recipe.min_lr
        )
        self.stopper = Stopper(recipe.stop_patience, recipe.stop_min_delta)
        self.steps, self.best = steps, float("inf")
        self.epochs: list[Epoch] = []
        self.stopped = f"all epochs were done ({recipe.epochs})"
        self.started = self.stepped = 0.0
        self.durations: list[float] = []
        self._bar: Any = None
        self._step: Callable[..., None] = lambda **_changes: None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.stepped = time.monotonic()
        title = f"epoch {trainer.current_epoch + 1}/{self.recipe.epochs}"
        self._bar = self.talk.bar(title, self.steps)
        self._step = self._bar.__enter__()

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
        """Runs after the validation and after the module's own hook."""
        self.close_bar()
        if not isinstance(pl_module, Segmentation):
            raise TypeError(f"{type(pl_module).__name__} was not made here.")
        loss, counts = pl_module.validation["loss"], pl_module.validation["counts"]
        found = scores(counts)
        groups = trainer.optimizers[0].param_groups
        row = Epoch(
            epoch=trainer.current_epoch + 1,
            seconds=round(time.monotonic() - self.started, 2),
            lr=groups[0]["lr"],
            train_loss=pl_module.train_loss,
            val_loss=loss,
            val_mean_iou=found.mean_iou,
            val_pixel_accuracy=found.pixel_accuracy,
            best=loss < self.best,
        )
        self.epochs.append(row)
        if row.best:
            self.best = loss
            self.on_best(weights_of(pl_module.net), row)
        self._tell(row)
        rate = self.plateau.next_lr(loss, row.lr)
        if rate != row.lr:
            self.talk.say(f"  no better for {self.recipe.lr_patience} epochs: lr {rate:.3g} now")
        for group in groups:
            group["lr"] = rate
        if self.stopper.should_stop(loss):
            self.stopped = f"the validation loss was no better for {self.stopper.bad} epochs"
            trainer.should_stop = True

    def _tell(self, row: Epoch) -> None:
        if self.log_file is not None:
            files.write_text(self.log_file, to_csv(self.epochs))
        iou = "–" if row.val_mean_iou is None else f"{row.val_mean_iou:.4f}"
        self.talk.say(
            f"epoch {row.epoch:3d}/{self.recipe.epochs}  loss {row.train_loss:.4f}  "
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
) -> History:
    """Train a net; its weights are those of the last epoch afterwards, the best went to `on_best`.

    Two calls with one net, recipe and data give the same weights, bit for bit, on one processor
    with one torch and one number of threads.

    Args:
        net: Gives logits.
        train: Batches of an epoch.
        val: Batches of the validation split.
        recipe: Rates, patience, epochs, seed.
        task: What the logits mean.
        n_classes: Classes of the table, the background included.
        on_best: Gets a copy of the weights and the epoch each time the validation loss is lower
            than ever.
        talk: Where lines and bars go.
        log: A CSV file, one line for each epoch; None keeps none.
        device: `cpu`, `cuda` or `mps`.
        most_batches: For a rehearsal: this many batches at the most, and one epoch.

    Raises:
        NumericsError: A loss is not finite.
        OutputError: The log or what `on_best` writes cannot be written.
    """
    keep_pages()
    torch.set_num_threads(threads())
    torch.manual_seed(recipe.seed)
    steps = min(len(train), most_batches or len(train))
    watch = _Watch(recipe, steps, talk, log, on_best)
    module = Segmentation(net, recipe, task, n_classes)
    with _quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=1 if most_batches else recipe.epochs,
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            limit_train_batches=most_batches or 1.0,
            limit_val_batches=most_batches or 1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=[watch],
        )
        interrupted = False
        try:
            trainer.fit(module, train, val)
        except (KeyboardInterrupt, SystemExit):
            interrupted = True  # Lightning turns Ctrl-C into an exit
        finally:
            watch.close_bar()
    net.cpu()
    if not watch.epochs and interrupted:
        raise KeyboardInterrupt
    if not any(epoch.best for epoch in watch.epochs):
        raise NumericsError("no epoch had a finite validation loss. Try a smaller --lr.")
    stopped = "it was interrupted" if interrupted else watch.stopped
    usual = float(np.median(watch.durations[1:] or watch.durations))  # the first one warms up
    return History(tuple(watch.epochs), stopped, usual, interrupted)


def weights_of(net: nn.Module) -> Weights:
    """Return a copy of all weights and running statistics."""
    return {name: np.array(t.detach().cpu().numpy()) for name, t in net.state_dict().items()}


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
            # Lightning 2.6 still builds LeafSpec in a way that torch 2.15 calls old.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # "GPU available but not used": the user chose the device.
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
