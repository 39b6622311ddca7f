"""Adam as Keras computes it, and the optimiser of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from whatwhere.config import Recipe
from whatwhere.nn.build import depth_groups


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
        fused: bool | None = None,
    ) -> None:
        """Take the parameters and Keras' defaults.

        Args:
            params: As torch's optimisers take them.
            lr: Learning rate.
            betas: How much of the averages of gradients and of their squares a step keeps.
            epsilon: What is added to the root of the average square.
            fused: Whether a step is one pass over each weight, as torch's optimisers take it.
        """
        self.epsilon = epsilon
        self._taken: list[int] | None = None  # steps of each group
        super().__init__(params, lr=lr, betas=betas, eps=epsilon, fused=fused)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the steps that this state has taken."""
        super().load_state_dict(state_dict)
        self._taken = None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch declares overloads
        """Take one step.

        Gradients are what the closure leaves, or what is there; the epsilon of this step is put in
        torch's place for it beforehand.
        """
        if self._taken is None:  # once: on a GPU each look would wait for it
            self._taken = [max(map(self._age, group["params"])) for group in self.param_groups]
        for i, group in enumerate(self.param_groups):
            self._taken[i] += any(p.requires_grad for p in group["params"])
            kept = 1.0 - group["betas"][1] ** max(self._taken[i], 1)
            group["eps"] = self.epsilon / math.sqrt(kept)
        with torch.enable_grad():
            loss: float | None = super().step(closure)
        return loss

    def _age(self, parameter: torch.Tensor) -> int:
        """How many steps it has taken."""
        return int(self.state[parameter]["step"]) if parameter in self.state else 0


def make_optimizer(net: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimiser of a net, with a rate for each depth.

    The parameter groups go from a backbone's first level to its last, the decoder and the head
    last. Each has a key `share`, and its rate is `share · lr`: 1 for the last group, `encoder_lr`
    for the first, and each one between is as many times the one before as all others are (all 0
    but the last where `encoder_lr` is 0). AdamW has two groups for each depth: its decay is for
    weights of two and more dimensions; norms and biases do not decay. Its epsilon is where torch
    has it, inside the bias correction.

    Source: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", 2019; Howard and Ruder, "ULMFiT", 2018, section 3.2, for rates by depth.

    Args:
        net: All of its parameters are taken, also those that rest for now.
        recipe: Its optimiser, betas, epsilon, decay and rates count.
    """
    depths = [group for group in depth_groups(net) if group]
    groups: list[dict[str, Any]] = []
    for parameters, share in zip(depths, _shares(len(depths), recipe.encoder_lr), strict=True):
        common = {"share": share, "lr": recipe.lr * share}
        if recipe.optimizer == "adam":
            groups.append({"params": parameters, **common})
            continue
        for decays, decay in ((False, 0.0), (True, recipe.weight_decay)):
            some = [p for p in parameters if (p.ndim > 1) == decays]
            if some:
                groups.append({"params": some, "weight_decay": decay, **common})
    betas, fused = (recipe.beta_1, recipe.beta_2), _can_fuse(net, recipe)
    if recipe.optimizer == "adam":
        return KerasAdam(groups, lr=recipe.lr, betas=betas, epsilon=recipe.epsilon, fused=fused)
    return AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.epsilon, fused=fused)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group of `make_optimizer` its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def _can_fuse(net: nn.Module, recipe: Recipe) -> bool:
    """Whether torch has a step in one pass for it.

    That step looks for the gradients' scale in 16 bits by itself: too late to clip them, and a step
    that is left out counts. It takes weights as they lie in memory, and so their averages, which
    `state` brings back in two ways alone.
    """
    if recipe.precision == "16" or (recipe.precision != "32" and recipe.clip):
        return False
    return all(p.device.type in ("cpu", "cuda") and _lies_plain(p) for p in net.parameters())


def _lies_plain(values: torch.Tensor) -> bool:
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return last or values.is_contiguous()


def _shares(count: int, first: float) -> list[float]:
    """Return numbers that go geometrically from the first one to 1."""
    return [first ** (1 - i / (count - 1)) for i in range(count - 1)] + [1.0]
