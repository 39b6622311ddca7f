"""A moving average of a net's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of weights and of floating-point buffers.

    Buffers are batch norm's running means and variances: an average of weights needs those of
    about the same steps. Whole numbers are not averaged; they are the net's own.

    After step t, counted from 1, the average keeps `min(d, (t - 1) / (t + 8))` of itself, where
    `d` to the power of the half-life is a half. So the first step is taken whole, and the random
    start weighs nothing at all, however short the run is; while the average is young, it spans
    about the last tenth of the steps. The correction of Adam would rid it of the start too, but it
    weighs the first bad steps like the latest ones for a whole half-life.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the
    cap is TensorFlow's, `(1 + t) / (10 + t)`, two steps later.
    """

    def __init__(self, net: nn.Module, half_life: float) -> None:
        """Take the net on the device where it is trained.

        Args:
            net: Whose weights are averaged.
            half_life: After so many steps a step weighs half as much as the latest one [steps].
        """
        self.decay = 0.5 ** (1.0 / half_life)
        self.taken = 0
        self._net, self._swapped = net, False
        self._mean = {name: tensor.clone() for name, tensor in _numbers(net).items()}
        self._raw = {name: tensor.clone() for name, tensor in _numbers(net).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the net's weights after a step."""
        self.taken += 1
        kept = min(self.decay, (self.taken - 1) / (self.taken + 8))
        for name, tensor in _numbers(self._net).items():
            if self.taken == 1:  # not by arithmetic: the start may hold anything
                self._mean[name].copy_(tensor)
            else:
                self._mean[name].lerp_(tensor, 1 - kept)

    def enter(self) -> None:
        """Put the average into the net; its own weights are kept aside."""
        if not self._swapped:
            _copy(_numbers(self._net), self._raw)
            _copy(self._mean, _numbers(self._net))
            self._swapped = True

    def leave(self) -> None:
        """Put the net's own weights back, bit for bit; nothing happens where they are there."""
        if self._swapped:
            _copy(self._raw, _numbers(self._net))
            self._swapped = False

    def to_keep(self) -> dict[str, Any]:
        """Return what it takes to go on from here."""
        return {"taken": self.taken, "mean": dict(self._mean)}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what `to_keep` gave."""
        self.taken = int(kept["taken"])
        _copy(kept["mean"], self._mean)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged net's `state_dict`; the tensors are the average's own."""
        return {**self._net.state_dict(), **self._mean}


def _numbers(net: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that can be averaged, by name; they share the net's memory."""
    return {name: t for name, t in net.state_dict().items() if t.is_floating_point()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
