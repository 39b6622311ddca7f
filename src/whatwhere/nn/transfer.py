"""What one net can take over from another of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whatwhere.errors import UsageError

_HEADS = ("head.", "presence.")


@dataclass(frozen=True)
class Taken:
    """What was taken over.

    Attributes:
        kept: Names of the arrays that are the other net's.
        fitted: Names of first filters that were fitted to other bands.
        fresh: Names of the arrays that start anew: the head, for other classes.
    """

    kept: tuple[str, ...]
    fitted: tuple[str, ...]
    fresh: tuple[str, ...]


def take_over(
    net: nn.Module,
    weights: Mapping[str, NDArray[Any]],
    *,
    bands: tuple[Sequence[str], Sequence[str]],
    same_classes: bool,
) -> Taken:
    """Put the weights of a trained net into another one, as far as they fit.

    Args:
        net: Is changed.
        weights: Of the trained one, by name.
        bands: What its bands are called, and what those of `net` are.
        same_classes: Whether both tell the same classes apart: else the head starts anew.

    Raises:
        UsageError: The nets are of different architecture; the arrays that differ are named.
    """
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept: list[str] = []
    fitted: list[str] = []
    fresh: list[str] = []
    wrong: list[str] = []
    for name, own in state.items():
        given = weights.get(name)
        head = name.startswith(_HEADS)
        if head and (not same_classes or given is None or given.shape != tuple(own.shape)):
            fresh.append(name)
        elif given is None:
            wrong.append(f"{name} {tuple(own.shape)} against nothing")
        elif _first_filters(given, own, bands) and not fitted:
            state[name] = fit_bands(torch.from_numpy(np.array(given)), *bands)
            fitted.append(name)
        elif given.shape == tuple(own.shape):
            state[name] = torch.from_numpy(np.array(given))
            kept.append(name)
        else:
            wrong.append(f"{name} {tuple(own.shape)} against {given.shape}")
    wrong += [f"{name} is left over" for name in weights if name not in state]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(
            f"the trained net is of another architecture: {'; '.join(wrong[:3])}{more}. Take its "
            "own model and arguments, or train without it."
        )
    net.load_state_dict(state)
    return Taken(tuple(kept), tuple(fitted), tuple(fresh))


def fit_bands(filters: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Fit trained first filters to other bands.

    Bands of the same name take their own, the others the mean of all; rescaled, so that the
    response to an image whose bands are alike keeps its size.

    Args:
        filters: `(O, len(old), kH, kW)`.
        old: What the bands were called.
        new: What they are called now.

    Returns:
        `(O, len(new), kH, kW)`.
    """
    mean = filters.mean(dim=1)
    planes = [filters[:, old.index(name)] if name in old else mean for name in new]
    return torch.stack(planes, dim=1) * (len(old) / len(new))


def _first_filters(
    given: NDArray[Any], own: Tensor, bands: tuple[Sequence[str], Sequence[str]]
) -> bool:
    """Whether these are the filters over the image's bands, and the bands differ."""
    old, new = bands
    return (
        tuple(old) != tuple(new)
        and given.ndim == 4
        and given.shape[1] == len(old)
        and own.shape[1] == len(new)
        and given.shape[::2] == tuple(own.shape)[::2]
    )
