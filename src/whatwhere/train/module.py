"""One step of training and of validation, for Lightning to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from whatwhere.config import Recipe
from whatwhere.data.loader import Batch
from whatwhere.errors import NumericsError
from whatwhere.losses import build_loss, match
from whatwhere.nn.dynamic import join_presence
from whatwhere.train.growing import shrunk
from whatwhere.train.mixing import mix
from whatwhere.train.optim import make_optimizer
from whatwhere.types import Task

PRESENCE_WEIGHT = 0.2
"""Of the loss of whether there is anything in the chip."""


class Segmentation(pl.LightningModule):
    """A net, its loss and its optimiser.

    After each validation `validation` holds `loss` and `counts`, the confusion matrix at a
    threshold of 0.5, as `metrics.scores` takes it. The losses of an epoch and of a split are means
    over their valid pixels: each batch weighs as its valid pixels. For losses that are means over
    pixels that is the mean over all of them; Dice, Tversky and Lovász are of one batch each, and
    depend on how the split is cut into batches.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        task: Task,
        n_classes: int,
        class_weights: Sequence[float] = (),
    ) -> None:
        """Take what is trained.

        Args:
            net: Gives logits `(N, K, H, W)`, or smaller ones of the middle.
            recipe: Whose loss and optimiser are used.
            task: What the logits mean.
            n_classes: Classes of the table, the background included.
            class_weights: Of the loss, as `losses.build_loss` takes them.

        Raises:
            UsageError: The loss cannot be built.
        """
        super().__init__()
        self.net, self.recipe, self.task, self.n_classes = net, recipe, task, n_classes
        self.loss = build_loss(recipe.loss, task, class_weights)
        whole: Any = net
        answers = whole.parts if recipe.anything else whole.__call__
        self._run = torch.compile(answers) if recipe.compile else answers
        self.validation: dict[str, Any] = {}
        self.halved = 0  # the stride [px] of steps whose chips have half the side
        self._sums = [0.0, 0.0]
        self._counts: Tensor | None = None
        self._shown: Tensor | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sums"], checkpoint["shown"] = list(self._sums), self._shown

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums, self._shown = list(checkpoint["sums"]), checkpoint["shown"]
        if self._shown is not None:
            self._shown = self._shown.to(next(self.net.parameters()).device)

    def on_train_epoch_start(self) -> None:
        self._sums = [0.0, 0.0]

    def measure(self, batch: Batch) -> tuple[Tensor, int, Tensor]:
        """Return a batch's loss, how many pixels counted, and the logits.

        The loss is computed in 32 bits, whatever the precision of the net. A net that also says
        whether there is anything in the chip answers for that too.
        """
        logits, presence = self._answers(batch["image"])
        loss, count = self._loss(logits, presence, batch)
        return loss, count, logits

    def _answers(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and those of whether there is anything, if the net tells."""
        if not self.recipe.anything:
            return self._run(image).float(), None
        pixels, presence = self._run(image)
        presence = presence.float()
        return join_presence(pixels.float(), presence).float(), presence

    def _loss(self, logits: Tensor, presence: Tensor | None, batch: Batch) -> tuple[Tensor, int]:
        with torch.autocast(logits.device.type, enabled=False):
            loss, count = self.loss(logits, batch["labels"], batch["valid"])
            if presence is not None:
                there = presence_loss(presence, batch["labels"], batch["valid"])
                loss = loss + PRESENCE_WEIGHT * there
        return loss, int(count)

    def _measure_mixed(self, batch: Batch) -> tuple[Tensor, int, Tensor]:
        """As `measure`, of images that are laid over each other: both labels count, by share."""
        mixed = mix(batch, self.recipe.mixup, self.recipe.seed, self.current_epoch)
        logits, presence = self._answers(mixed.batch["image"])
        loss, count = self._loss(logits, presence, mixed.batch)
        other, _ = self._loss(logits, presence, mixed.other)
        return mixed.share * loss + (1 - mixed.share) * other, count, logits

    def training_step(self, batch: Batch, number: int) -> Tensor:
        if self.halved:
            batch = shrunk(batch, self.halved)
        measure = self._measure_mixed if self.recipe.mixup else self.measure
        loss, count, logits = measure(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericsError(
                f"the training loss is {value} at step {self.global_step}, of "
                f"{self._names(batch)}. The last good weights are kept; try a smaller --lr, and "
                "look at the images with `whatwhere inspect`."
            )
        self._sums[0] += value * count
        self._sums[1] += count
        if self.current_epoch == 0:
            shown = _shown(*match(logits, batch["labels"], batch["valid"]), self.n_classes)
            self._shown = shown if self._shown is None else self._shown + shown
        if self.recipe.accumulate == 1:
            return loss
        return loss * self._of_last_step(number)

    def _names(self, batch: Batch) -> str:
        """The pairs that a batch was cut from, the first of them by name."""
        loader: Any = self.trainer.train_dataloader
        key = getattr(loader.dataset, "key", str)
        keys = list(dict.fromkeys(key(int(i)) for i in batch["index"]))
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        return f"{', '.join(keys[:5])}{more}"

    def _of_last_step(self, number: int) -> float:
        """What makes up for an epoch's last step, which may have fewer batches.

        Lightning divides each loss by `accumulate`, so that a step's gradient is the mean over its
        batches; for that step too the sum has to be divided by the number of its own.
        """
        size, total = self.recipe.accumulate, int(self.trainer.num_training_batches)
        return size / (total % size) if number >= total - total % size else 1.0

    @property
    def shown(self) -> list[int]:
        """How many pixels of each class the first epoch's chips had."""
        return [] if self._shown is None else [int(count) for count in self._shown]

    @property
    def train_loss(self) -> float:
        """The mean loss over the pixels that this epoch's steps saw."""
        return self._sums[0] / max(self._sums[1], 1)

    def on_validation_epoch_start(self) -> None:
        self._val_sums = [0.0, 0.0]
        self._counts = None

    def validation_step(self, batch: Batch, _number: int) -> None:
        loss, count, logits = self.measure(batch)
        self._val_sums[0] += float(loss) * count
        self._val_sums[1] += count
        labels, valid = match(logits, batch["labels"], batch["valid"])
        counts = _confusion(logits, labels, valid, self.task, self.n_classes)
        self._counts = counts if self._counts is None else self._counts + counts

    def on_validation_epoch_end(self) -> None:
        loss = self._val_sums[0] / max(self._val_sums[1], 1)
        if loss != loss:
            raise NumericsError(
                "the validation loss is not a number. The last good weights are kept; try a "
                "smaller --lr."
            )
        counts = self._counts.cpu().numpy() if self._counts is not None else None
        self.validation = {"loss": loss, "counts": counts}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.net, self.recipe)


def presence_loss(presence: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return the binary cross-entropy of whether a label is in a chip at all.

    Args:
        presence: `(N, K)` logits.
        labels: `(N, H, W)` zeros and ones, or `(N, K, H, W)`.
        valid: `(N, H, W)`; a chip without a valid pixel does not count.

    Returns:
        The mean over the chips that count and the labels; 0 where no chip counts.
    """
    planes = labels if labels.ndim == 4 else labels.unsqueeze(1)
    there = ((planes == 1) & valid.unsqueeze(1)).flatten(2).any(dim=2)
    counts = valid.flatten(1).any(dim=1)
    losses = functional.binary_cross_entropy_with_logits(
        presence, there.to(presence.dtype), reduction="none"
    ).mean(dim=1)
    total = torch.where(counts, losses, torch.zeros_like(losses)).sum()
    return total / counts.sum().clamp(min=1)


def _shown(labels: Tensor, valid: Tensor, n_classes: int) -> Tensor:
    """Count the valid pixels of each class, or of each label of a multi-label task."""
    if labels.ndim == 4:
        return (labels.bool() & valid.unsqueeze(1)).sum(dim=(0, 2, 3))
    return torch.bincount(labels[valid], minlength=n_classes)


def _confusion(logits: Tensor, labels: Tensor, valid: Tensor, task: Task, n_classes: int) -> Tensor:
    """Count a batch into `(n, n)`, or `(K, 2, 2)` for a multi-label task."""
    if task == "multilabel":
        said = (logits >= 0).long()
        cells = [
            torch.bincount((labels[:, k] * 2 + said[:, k])[valid], minlength=4).reshape(2, 2)
            for k in range(labels.shape[1])
        ]
        return torch.stack(cells)
    said = (logits[:, 0] >= 0).long() if task == "binary" else logits.argmax(1)
    pairs = (labels * n_classes + said)[valid]
    return torch.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
