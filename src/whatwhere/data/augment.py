"""Small changes to training chips, the same to image and mask, drawn anew in each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whatwhere.symmetries import turn
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
        labels: `(N, H, W)` or `(N, K, H, W)`, whole numbers from 0 to 255.
        valid: `(N, H, W)` bool.
        changes: One for each chip.

    Returns:
        The three, of the same shapes; the labels int64.
    """
    several, bands = labels.ndim == 4, image.shape[1]
    planes = labels if several else labels.unsqueeze(1)
    parts = [part.numpy() for part in (image, planes, valid.unsqueeze(1))]
    # One array for what moves together: each chip is copied once, labels are exact in float32.
    depth = sum(part.shape[1] for part in parts)
    whole = torch.empty((len(image), depth, *image.shape[2:]), dtype=image.dtype)
    target = whole.numpy()
    for i, change in enumerate(changes):
        symmetry = (change.flip_rows, change.flip_columns, change.transpose)
        start = 0
        for part in parts:
            target[i, start : start + part.shape[1]] = turn(part[i], symmetry)
            start += part.shape[1]
    return finish(settings, whole[:, :bands], whole[:, bands:], changes, several)


def finish(
    settings: Augmentation,
    picture: Tensor,
    maps: Tensor,
    changes: Sequence[Change],
    several: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Change what is turned already in light, rotation, scale and place.

    Args:
        settings: The bounds; without warps no pixel is interpolated.
        picture: `(N, C, H, W)` float32, normalised, on any device; is overwritten.
        maps: `(N, K + 1, H, W)` float32: labels, and last which pixels count.
        changes: One for each chip.
        several: Whether a pixel has several labels.

    Returns:
        The picture; labels `(N, H, W)`, or `(N, K, H, W)` for several, int64; what counts
        `(N, H, W)`.
    """
    where = picture.device
    if settings.brightness or settings.contrast:
        pairs = [(change.gain, change.offset) for change in changes]
        light = torch.tensor(pairs, dtype=picture.dtype).to(where)
        picture *= light[:, 0].view(-1, 1, 1, 1)
        picture += light[:, 1].view(-1, 1, 1, 1)
    if settings.warps:
        matrices = torch.tensor([change.matrix for change in changes], dtype=picture.dtype)
        shape = list(picture.shape)
        grid = functional.affine_grid(matrices.to(where), shape, align_corners=False)
        picture, maps = _sample(picture, grid, "bilinear"), _sample(maps, grid, "nearest")
    planes = maps[:, :-1].long()
    return picture.contiguous(), (planes if several else planes[:, 0]), maps[:, -1].bool()


def _sample(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(
        values, grid, mode=mode, padding_mode="reflection", align_corners=False
    )
