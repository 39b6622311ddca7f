"""One step of training and of validation, for Lightning to run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from whatwhere.config import Recipe
from whatwhere.data.loader import Batch
from whatwhere.errors import NumericsError
from whatwhere.losses import masked_mean, pixel_losses
from whatwhere.train.optim import KerasAdam
from whatwhere.types import Task


class Segmentation(pl.LightningModule):
    """A net, its loss and its optimiser.

    After each validation `validation` holds `loss` (the mean over all valid pixels of the split)
    and `counts`, the confusion matrix at a threshold of 0.5, as `metrics.scores` takes it.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, task: Task, n_classes: int) -> None:
        """Take what is trained.

        Args:
            net: Gives logits `(N, K, H, W)`.
            recipe: Whose learning rate and betas are used.
            task: What the logits mean.
            n_classes: Classes of the table, the background included.
        """
        super().__init__()
        self.net, self.recipe, self.task, self.n_classes = net, recipe, task, n_classes
        self.validation: dict[str, Any] = {}
        self._sums = [0.0, 0.0]
        self._counts: Tensor | None = None

    def on_train_epoch_start(self) -> None:
        self._sums = [0.0, 0.0]

    def training_step(self, batch: Batch, _number: int) -> Tensor:
        losses = pixel_losses(self.net(batch["image"]), batch["labels"], self.task)
        loss, count = masked_mean(losses, batch["valid"])
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise NumericsError(
                f"the training loss is {value} at step {self.global_step}. The last good weights "
                "are kept; try a smaller --lr, and look at the images with `whatwhere inspect`."
            )
        self._sums[0] += value * int(count)
        self._sums[1] += int(count)
        return loss

    @property
    def train_loss(self) -> float:
        """The mean loss over the pixels that this epoch's steps saw."""
        return self._sums[0] / max(self._sums[1], 1)

    def on_validation_epoch_start(self) -> None:
        self._val_sums = [0.0, 0.0]
        self._counts = None

    def validation_step(self, batch: Batch, _number: int) -> None:
        logits = self.net(batch["image"])
        losses = pixel_losses(logits, batch["labels"], self.task)
        loss, count = masked_mean(losses, batch["valid"])
        self._val_sums[0] += float(loss) * int(count)
        self._val_sums[1] += int(count)
        counts = _confusion(logits, batch["labels"], batch["valid"], self.task, self.n_classes)
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
        recipe = self.recipe
        return KerasAdam(
            self.net.parameters(),
            lr=recipe.lr,
            betas=(recipe.beta_1, recipe.beta_2),
            epsilon=recipe.epsilon,
        )


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
