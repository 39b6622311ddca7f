"""Models by name: building them, listing them, and what is known of their geometry."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whatwhere.errors import UsageError
from whatwhere.nn.unet import STRIDE, TutorialUNet

ARCHITECTURES: Mapping[str, type[TutorialUNet]] = {"tutorial": TutorialUNet}


@dataclass(frozen=True)
class Geometry:
    """What tiling has to know of a net.

    Attributes:
        stride: Windows must start at multiples of it [px].
        margin: How far a pixel sees [px].
    """

    stride: int
    margin: int


def build_model(name: str, in_channels: int = 1, n_classes: int = 1, **arguments: Any) -> nn.Module:
    """Build a net.

    Args:
        name: `tutorial`.
        in_channels: Bands of the image.
        n_classes: Logits of a pixel: 1 for two classes with a sigmoid, one for each class else.
        **arguments: The architecture's own, such as `n_filters` or `upsample`.

    Returns:
        A module that turns `(N, in_channels, H, W)` float32 into logits `(N, n_classes, H, W)`.

    Raises:
        UsageError: The name or an argument is not known; the nearest ones are named.

    Example:
        >>> net = build_model("tutorial", in_channels=3, n_classes=4)
        >>> net(torch.zeros(1, 3, 101, 75)).shape
        torch.Size([1, 4, 101, 75])
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"there is no model {name!r}. {_nearest(name, list(ARCHITECTURES))}")
    architecture = ARCHITECTURES[name]
    known = list(inspect.signature(architecture).parameters)
    for key in arguments:
        if key not in known:
            raise UsageError(f"{name} has no argument {key!r}. {_nearest(key, known)}")
    return architecture(in_channels, n_classes, **arguments)


def geometry(model: nn.Module) -> Geometry:
    """Return the stride and margin of a net that `build_model` made."""
    if not isinstance(model, TutorialUNet):
        raise UsageError(f"the geometry of a {type(model).__name__} is not known.")
    return Geometry(STRIDE, model.margin())


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern."""
    return sorted(fnmatch.filter(ARCHITECTURES, pattern))


@dataclass(frozen=True)
class Parameters:
    """How many numbers a net has.

    Attributes:
        total: Weights and batch norm's running statistics, as Keras counts them.
        trainable: Those that training changes by gradients.
    """

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> Parameters:
    """Count as Keras does: running means and variances belong to the total."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    running = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return Parameters(trainable + frozen + running, trainable)


def stage_shapes(
    model: nn.Module, shape: tuple[int, int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each named stage of a net with the shape of what leaves it.

    Args:
        model: A net of `build_model`; it is not changed, and nothing is computed.
        shape: `(C, H, W)` of an image.

    Returns:
        `(name, (C, H, W))` from the image on, in the order of the data.
    """
    rows: list[tuple[str, tuple[int, ...]]] = [("image", shape)]

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows.append((name, tuple(output.shape[1:])))

        return hook

    names: tuple[str, ...] = getattr(model, "stages", ())
    ghost = copy.deepcopy(model).eval().to("meta")  # sizes without numbers
    for name in names:
        ghost.get_submodule(name).register_forward_hook(note(name))
    logits = ghost(torch.zeros(1, *shape, device="meta"))
    return [*rows, ("logits", tuple(logits.shape[1:]))]


def model_facts(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return what is known of an architecture, as JSON can hold it.

    Args:
        name: As `build_model` takes it.
        shape: `(C, H, W)` of the image that the stages are told for.
    """
    model = build_model(name, in_channels=shape[0])
    parameters, known = count_parameters(model), geometry(model)
    return {
        "name": name,
        "parameters": parameters.total,
        "trainable": parameters.trainable,
        "stride": known.stride,
        "margin": known.margin,
        "stages": [[stage, list(size)] for stage, size in stage_shapes(model, shape)],
    }


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known)}."
