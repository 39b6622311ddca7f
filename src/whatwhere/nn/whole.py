"""A net with what stands before and behind it: from the numbers of a file to probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from whatwhere.tiling import reflect
from whatwhere.types import Geometry, Normalization, Task, upwards


class Whole(nn.Module):
    """Normalises, asks a net, and turns logits into probabilities.

    Shapes:
        `(N, C, H, W)` float32 in the units of the files → `(N, K, H, W)` in [0, 1]; a net with a
        border gives back less, as it does alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, normalization: Normalization, task: Task) -> None:
        super().__init__()
        self.net, self.softmax = net, task == "multiclass"
        for name, values in (("mean", normalization.mean), ("std", normalization.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net((image - self.mean) / self.std)
        return torch.softmax(logits, 1) if self.softmax else torch.sigmoid(logits)


class OneTile(nn.Module):
    """The same for images of one size, which comes out as it went in.

    A net with a border sees the mirror image of what it is given around it.

    Shapes:
        `(1, C, tile, tile)` → `(1, K, tile, tile)`.
    """

    places: Tensor | None

    def __init__(self, whole: Whole, tile: int, geometry: Geometry) -> None:
        super().__init__()
        self.whole, self.tile = whole, tile
        around = None
        if geometry.border:
            beyond = np.arange(geometry.window(tile)) - geometry.border
            around = torch.from_numpy(reflect(beyond, tile))
        self.register_buffer("places", around)

    def forward(self, image: Tensor) -> Tensor:
        if self.places is not None:
            image = image.index_select(2, self.places).index_select(3, self.places)
        found: Tensor = self.whole(image)
        return found[..., : self.tile, : self.tile]


class ForMaps(nn.Module):
    """A tile in the form that QGIS Deepness and geodeep share.

    They give bytes divided by 255 and take, of several channels, the one with the highest value. So
    a label's probability is bent until its threshold lies at 0.5, and a first channel stands for
    none of the labels; it is 0 where there is one. Of a softmax nothing is changed.

    Shapes:
        `(1, C, H, W)` in [0, 1] → `(1, K, H, W)` of a softmax, else `(1, 1 + K, H, W)`.
    """

    limits: Tensor

    def __init__(self, tile: OneTile, thresholds: Sequence[float]) -> None:
        """Take the thresholds of the labels; none for a softmax."""
        super().__init__()
        self.inner, self.bends = tile, bool(thresholds)
        self.register_buffer("limits", torch.from_numpy(upwards(thresholds))[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.inner(image * 255)
        if not self.bends:
            return found
        there = found >= self.limits
        above = 0.5 + 0.5 * (found - self.limits) / (1 - self.limits).clamp(min=1e-6)
        below = 0.5 * found / self.limits.clamp(min=1e-6)
        bent = torch.where(there, above, below)
        none = 1 - bent.amax(dim=1, keepdim=True)
        none = torch.where(there.any(dim=1, keepdim=True), torch.zeros_like(none), none)
        return torch.cat([none, bent], dim=1)
