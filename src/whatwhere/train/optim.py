"""Adam as Keras computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam


class KerasAdam(Adam):
    """Adam with epsilon outside the bias correction.

    Keras divides by `√v + ε`, torch by `√(v / (1 - β₂ᵗ)) + ε`: at the first step, where
    `1 - β₂ᵗ` is 0.001, Keras' epsilon weighs 32 times as much. Everything else is torch's.

    Source: Kingma and Ba, "Adam", 2015, the efficient form before section 2.1 ("ε hat").
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-7,
    ) -> None:
        """Take the parameters and Keras' defaults.

        Args:
            params: As torch's optimisers take them.
            lr: Learning rate.
            betas: How much of the averages of gradients and of their squares a step keeps.
            epsilon: What is added to the root of the average square.
        """
        self.epsilon = epsilon
        super().__init__(params, lr=lr, betas=betas, eps=epsilon)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch declares overloads
        """Take one step.

        Gradients are what the closure leaves, or what is there; the epsilon of this step is put in
        torch's place for it beforehand.
        """
        for group in self.param_groups:
            taken = max(
                (int(self.state[p]["step"]) for p in group["params"] if p in self.state), default=0
            )
            kept = 1.0 - group["betas"][1] ** (taken + 1)
            group["eps"] = self.epsilon / math.sqrt(kept)
        with torch.enable_grad():
            loss: float | None = super().step(closure)
        return loss
