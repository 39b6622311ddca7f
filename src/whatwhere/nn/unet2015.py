"""The U-Net of 2015, with unpadded convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from whatwhere.errors import ShapeError, UsageError
from whatwhere.nn.blocks import Dropout
from whatwhere.types import Geometry

GEOMETRY = Geometry(stride=16, margin=92, border=92, remainder=12)


class UNet2015(nn.Module):
    """Ronneberger's U-Net: 572×572 pixels go in, the logits of the inner 388×388 come out.

    Every convolution eats its border, so that each logit is made from pixels that were really
    there. Both sides must be 12 more than a multiple of 16, and at least 188. Images of any size
    are segmented by overlapping tiles, with mirrored borders (`predict`, `Predictor`).

    Shapes:
        `(N, in_channels, H, W)` float → logits `(N, n_classes, H - 184, W - 184)`.

    Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", 2015, figure 1.
    """

    stages = (
        *("c1", "p1", "c2", "p2", "c3", "p3", "c4", "p4", "c5"),
        *("u6", "c6", "u7", "c7", "u8", "c8", "u9", "c9", "head"),
    )

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 1,
        *,
        n_filters: int = 64,
        dropout: float = 0.5,
    ) -> None:
        """Build the net with He's normal start.

        Args:
            in_channels: Bands of the image.
            n_classes: Logits of a pixel: 1 for two classes with a sigmoid.
            n_filters: Filters of the first block; each level down doubles them.
            dropout: Share of values dropped in training at the end of the contracting path [0, 1).

        Raises:
            UsageError: An argument is out of its range; all such arguments are named.
        """
        super().__init__()
        _check_arguments(in_channels, n_classes, n_filters, dropout)
        self.in_channels, self.n_classes = in_channels, n_classes
        filters = [n_filters * 2**level for level in range(5)]
        for level in range(5):
            inner = in_channels if level == 0 else filters[level - 1]
            self.add_module(f"c{level + 1}", _block(inner, filters[level], dropout * (level > 2)))
            if level < 4:
                self.add_module(f"p{level + 1}", nn.MaxPool2d(2))
        for step, level in enumerate((3, 2, 1, 0), start=6):
            up = nn.ConvTranspose2d(filters[level + 1], filters[level], 2, stride=2)
            _he_normal(up, filters[level + 1])
            self.add_module(f"u{step}", up)
            self.add_module(f"c{step}", _block(2 * filters[level], filters[level], 0.0))
        self.head = nn.Conv2d(n_filters, n_classes, 1)
        _he_normal(self.head, n_filters)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ShapeError(
                f"the net takes (N, {self.in_channels}, H, W), and was given {tuple(image.shape)}."
            )
        for side in image.shape[-2:]:
            _check_side(side, image.shape)
        x = image
        skips: list[Tensor] = []
        for level in range(1, 5):  # what
            x = self.get_submodule(f"c{level}")(x)
            skips.append(x)
            x = self.get_submodule(f"p{level}")(x)
        x = self.get_submodule("c5")(x)
        for step in range(6, 10):  # where
            x = self.get_submodule(f"u{step}")(x)
            x = torch.cat([_crop(skips.pop(), x), x], dim=1)
            x = self.get_submodule(f"c{step}")(x)
        logits: Tensor = self.head(x)
        return logits


def _block(inner: int, outer: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        conv = nn.Conv2d(channels, outer, 3)
        _he_normal(conv, 9 * channels)
        layers += [conv, nn.ReLU(inplace=True)]
    if dropout:
        layers.append(Dropout(dropout))
    return nn.Sequential(*layers)


def _he_normal(conv: nn.Conv2d | nn.ConvTranspose2d, fan_in: int) -> None:
    """A normal start of deviation √(2 / fan_in), as the paper's section 3 asks."""
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_in))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    """The middle of a skip, as large as what it is joined with."""
    row = (skip.shape[-2] - like.shape[-2]) // 2
    column = (skip.shape[-1] - like.shape[-1]) // 2
    return skip[..., row : row + like.shape[-2], column : column + like.shape[-1]]


def _check_side(side: int, shape: torch.Size) -> None:
    least = GEOMETRY.window(1)
    if side >= least and side % GEOMETRY.stride == GEOMETRY.remainder:
        return
    below = (side - GEOMETRY.remainder) // GEOMETRY.stride * GEOMETRY.stride + GEOMETRY.remainder
    nearest = [n for n in (below, below + GEOMETRY.stride) if n >= least] or [least]
    raise ShapeError(
        f"unet2015 cannot take {shape[-2]}×{shape[-1]}: a side must be {GEOMETRY.remainder} "
        f"(mod {GEOMETRY.stride}) and at least {least}. Nearest to {side}: "
        f"{' or '.join(map(str, nearest))}."
    )


def _check_arguments(in_channels: int, n_classes: int, n_filters: int, dropout: float) -> None:
    wrong = [
        f"{name} must be at least 1, not {value}"
        for name, value in (
            ("in_channels", in_channels),
            ("n_classes", n_classes),
            ("n_filters", n_filters),
        )
        if value < 1
    ]
    if not 0 <= dropout < 1:
        wrong.append(f"dropout must be in [0, 1), not {dropout}")
    if wrong:
        raise UsageError(f"the U-Net of 2015 cannot be built: {'; '.join(wrong)}.")
