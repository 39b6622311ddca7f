"""What can be told while there is still time: signs that a training goes nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.types import Task

_ALL_BACKGROUND = 3  # epochs
_NEVER_PREDICTED = 5  # epochs
_STANDSTILL = 5  # epochs
_MOVED = 0.01  # share of the loss


@dataclass(frozen=True)
class Signs:
    """What an epoch shows.

    Attributes:
        epoch: From 1.
        train_loss: The mean loss of its steps.
        counts: The confusion matrix of the validation split, as `metrics.scores` takes it.
        shown: How many pixels of each class the training chips of the first epoch had; empty
            where nobody counted.
        at_floor: Whether the learning rate is as low as it gets.
    """

    epoch: int
    train_loss: float
    counts: NDArray[Any]
    shown: Sequence[int] = ()
    at_floor: bool = False


@dataclass
class Advice:
    """Looks at one epoch after the other and warns, of each thing once.

    It warns when

    * in 3 epochs in a row nothing but background was predicted although validation has more;
    * a class of the validation split was not predicted in any of the first 5 epochs or more;
    * no chip of the first epoch showed a class of the table;
    * the training loss moved by less than 1 % over 5 epochs while the rate could still fall.
    """

    task: Task
    names: Sequence[str]
    _losses: list[float] = field(default_factory=list, init=False)
    _blank: int = field(default=0, init=False)
    _predicted: NDArray[Any] | None = field(default=None, init=False)
    _told: set[str] = field(default_factory=set, init=False)

    def to_keep(self) -> dict[str, Any]:
        """Return what it takes to go on from here."""
        kept = {"losses": list(self._losses), "blank": self._blank, "told": set(self._told)}
        return {**kept, "predicted": self._predicted}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what `to_keep` gave."""
        self._losses, self._blank = list(kept["losses"]), int(kept["blank"])
        self._told, self._predicted = set(kept["told"]), kept["predicted"]

    def see(self, signs: Signs) -> list[str]:
        """Take an epoch; return what is new to say, a sentence of the cause and one of the remedy.

        Epochs come in their order, each once.
        """
        true, said = _marginals(signs.counts, self.task)
        self._predicted = said if self._predicted is None else self._predicted + said
        self._losses.append(signs.train_loss)
        found = {
            "shown": self._not_shown(signs),
            "blank": self._nothing_but_background(true, said),
            "predicted": self._never_predicted(signs.epoch, true, self._predicted),
            "loss": self._standstill(signs),
        }
        new = {kind: text for kind, text in found.items() if text and kind not in self._told}
        self._told |= set(new)
        return list(new.values())

    def _not_shown(self, signs: Signs) -> str:
        missing = self._listed(i for i, count in enumerate(signs.shown) if not count)
        if signs.epoch != 1 or not missing:
            return ""
        return (
            f"no chip of the first epoch showed {missing}. Add images with it to the training, "
            "take another --seed or --split, or leave it out of --classes."
        )

    def _nothing_but_background(self, true: NDArray[Any], said: NDArray[Any]) -> str:
        first = 0 if self.task == "multilabel" else 1
        blank = not said[first:].any() and true[first:].any()
        self._blank = self._blank + 1 if blank else 0
        if self._blank < _ALL_BACKGROUND:
            return ""
        return (
            f"for {self._blank} epochs nothing but background was predicted on the validation "
            "split, which has more. Try --loss cross_entropy+dice or --class-weights balanced, and "
            "another --lr; `whatwhere lr-find` proposes one."
        )

    def _never_predicted(self, epoch: int, true: NDArray[Any], ever: NDArray[Any]) -> str:
        first = 0 if self.task == "multilabel" else 1
        if epoch < _NEVER_PREDICTED or not ever[first:].any():  # the other warning tells the latter
            return ""
        missing = self._listed(i for i in range(len(ever)) if true[i] and not ever[i])
        if not missing:
            return ""
        return (
            f"in {epoch} epochs {missing} was never predicted, though the validation split has "
            "it. Try --class-weights balanced or --loss cross_entropy+dice, or add images with it."
        )

    def _standstill(self, signs: Signs) -> str:
        last = self._losses[-_STANDSTILL - 1 :]
        if len(last) <= _STANDSTILL or signs.at_floor:
            return ""
        if max(last) - min(last) >= _MOVED * max(abs(loss) for loss in last):
            return ""
        return (
            f"the training loss moved by less than 1 % over {_STANDSTILL} epochs. It may be all "
            "that can be learned; else try another --lr (`whatwhere lr-find` proposes one), and "
            "look at the masks with `whatwhere inspect`."
        )

    def _listed(self, indexes: Iterable[int]) -> str:
        return ", ".join(self.names[i] if i < len(self.names) else f"class {i}" for i in indexes)


def _marginals(counts: NDArray[Any], task: Task) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how many pixels of each class are true, and how many were predicted."""
    counts = np.asarray(counts)
    if task == "multilabel":
        return counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)
    return counts.sum(1), counts.sum(0)
