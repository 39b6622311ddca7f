"""Small changes to training chips, the same to image and mask, drawn anew in each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whatwhere.types import Orientation


@dataclass(frozen=True)
class Augmentation:
    """How far chips may be changed.

    Attributes:
        orientation: `upright` allows left-right flips, `free` all eight symmetries of a square.
        flip: Share of chips flipped in each allowed way.
        rotate: Largest rotation to either side [degrees].
        scale: Largest change of scale [share].
        shift: Largest shift [share of the side].
        brightness: Largest change of brightness [standard deviations of the training images].
        contrast: Largest change of contrast [share].
    """

    orientation: Orientation
    flip: float = 0.5
    rotate: float = 5.0
    scale: float = 0.1
    shift: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.1

    @property
    def warps(self) -> bool:
        """Whether pixels move other than by symmetries."""
        return self.rotate > 0 or self.scale > 0 or self.shift > 0


@dataclass(frozen=True)
class Change:
    """What happens to one chip.

    Attributes:
        flip_rows: Turn it upside down.
        flip_columns: Mirror it left to right.
        transpose: Swap rows and columns afterwards.
        matrix: 2×3, from the result's to the source's coordinates (x, y) in [-1, 1].
        gain: Contrast is multiplied by it.
        offset: Is added to the brightness.
    """

    flip_rows: bool
    flip_columns: bool
    transpose: bool
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    gain: float
    offset: float


def draw(
    settings: Augmentation, seed: int, epoch: int, index: int, size: tuple[int, int]
) -> Change:
    """Draw the change of one chip: a function of its arguments and nothing else.

    Args:
        settings: The bounds.
        seed: The run's.
        epoch: From 0.
        index: The chip's, from 0.
        size: (height, width) of the chip [px]; rows and columns of a rectangle are not swapped.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1], counter=[0, 0, epoch, index]))
    columns, rows, swap, angle, zoom, right, down, gain, offset = rng.random(9).tolist()
    free = settings.orientation == "free"

    def within(bound: float, chance: float) -> float:
        return bound * (2 * chance - 1)

    turn = math.radians(within(settings.rotate, angle))
    size_factor = math.exp(within(math.log1p(settings.scale), zoom))
    height, width = size
    # Rotation acts on pixels, so that a rectangle is not sheared.
    cos, sin = math.cos(turn) / size_factor, math.sin(turn) / size_factor
    return Change(
        flip_rows=free and rows < settings.flip,
        flip_columns=columns < settings.flip,
        transpose=free and height == width and swap < settings.flip,
        matrix=(
            (cos, -sin * height / width, within(2 * settings.shift, right)),
            (sin * width / height, cos, within(2 * settings.shift, down)),
        ),
        gain=1 + within(settings.contrast, gain),
        offset=within(settings.brightness, offset),
    )


def apply(
    settings: Augmentation,
    image: Tensor,
    labels: Tensor,
    valid: Tensor,
    changes: Sequence[Change],
) -> tuple[Tensor, Tensor, Tensor]:
    """Change a batch, image and mask alike.

    What a warp brings in from outside is mirrored, in all three.

    Args:
        settings: The bounds; without warps no pixel is interpolated.
        image: `(N, C, H, W)` float32, normalised.
        labels: `(N, H, W)` or `(N, K, H, W)` int64.
        valid: `(N, H, W)` bool.
        changes: One for each chip.

    Returns:
        The three, of the same shapes and types.
    """
    several = labels.ndim == 4
    planes = labels if several else labels.unsqueeze(1)
    pictures, maps = [], []
    for i, change in enumerate(changes):
        pictures.append(_turn(image[i], change) * change.gain + change.offset)
        maps.append(_turn(torch.cat([planes[i], valid[i][None].long()]), change))
    picture, both = torch.stack(pictures), torch.stack(maps)
    if settings.warps:
        matrices = torch.tensor([change.matrix for change in changes], dtype=image.dtype)
        grid = functional.affine_grid(matrices, list(picture.shape), align_corners=False)
        picture = _sample(picture, grid, "bilinear")
        both = _sample(both.to(image.dtype), grid, "nearest").round().long()
    planes, counted = both[:, :-1], both[:, -1].bool()
    return picture, (planes if several else planes[:, 0]), counted


def _turn(chip: Tensor, change: Change) -> Tensor:
    dims = [d for d, on in ((-2, change.flip_rows), (-1, change.flip_columns)) if on]
    chip = chip.flip(dims) if dims else chip
    return chip.transpose(-2, -1) if change.transpose else chip


def _sample(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(
        values, grid, mode=mode, padding_mode="reflection", align_corners=False
    )
