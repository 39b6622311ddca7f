"""The pieces U-Nets are made of."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

UpsampleMode: TypeAlias = Literal["transposed", "nearest", "bilinear"]
UPSAMPLE_MODES: tuple[UpsampleMode, ...] = ("transposed", "nearest", "bilinear")

# A normal distribution cut off at two standard deviations has this much of its former one left;
# Keras divides by it (keras.initializers.VarianceScaling).
_TRUNCATED_STD = 0.87962566103423978


def he_normal_(weight: Tensor, fan_in: int) -> None:
    """Fill with He's normal start, cut off at two standard deviations.

    Source: He et al., "Delving Deep into Rectifiers", 2015, equation 10.
    """
    std = math.sqrt(2.0 / fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class ConvBlock(nn.Module):
    """Two consecutive convolutions of "same" size, each with batch norm and ReLU.

    Shapes:
        `(N, in_channels, H, W)` → `(N, out_channels, H, W)`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        batchnorm: bool = True,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            conv = nn.Conv2d(channels, out_channels, kernel_size, padding="same")
            he_normal_(conv.weight, fan_in=channels * kernel_size**2)
            nn.init.zeros_(_bias(conv))
            layers.append(conv)
            if batchnorm:
                # Keras' momentum is the share kept, torch's the share replaced.
                layers.append(nn.BatchNorm2d(out_channels, eps=1e-3, momentum=1.0 - momentum))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Dropout(nn.Dropout):
    """Sets a share of the values to 0 in training, and makes up for it by the size of the others.

    As torch's, but on the processor 64 bits that are drawn decide about four values, and not about
    one: drawing took a fifth of a step of the tutorial's net. torch's generator gives the seed of
    each call's draws. The share is the nearest of 65,536.

    Shapes:
        Any → the same; in the same memory with `inplace`.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    2014.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if x.device.type not in ("cpu", "meta"):
            return functional.dropout(x, self.p, training=True)  # a graphics card fuses this one
        share = min(round(self.p * _CHANCES), _CHANCES - 1)
        grows = _CHANCES / (_CHANCES - share)
        exact = x.dtype in (torch.float32, torch.float64)  # a shorter type would round the factor
        draw = _drawn if torch.compiler.is_compiling() else _draw
        kept = draw(x.detach(), share, grows if exact else 1.0)
        out = x.mul_(kept) if self.inplace else x.mul(kept)
        return out if exact else out.mul_(grows)


def _draw(like: Tensor, share: int, value: float) -> Tensor:
    """Draw what values are multiplied by: 0 for so many of 65,536, `value` for the others."""
    kept = torch.empty_like(like)
    if like.device.type == "cpu":
        flat = kept.as_strided((like.numel(),), (1,))  # in the order of the memory
        torch.ge(_draws(like.numel()), share - _CHANCES // 2, out=flat)
        if value != 1:
            kept.mul_(value)
    return kept


# For the compiler, whose own draws are one by one: it neither looks inside nor repeats it.
_drawn = torch.library.custom_op(
    "whatwhere::draw", _draw, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
_drawn.register_fake(lambda like, share, value: torch.empty_like(like))

_CHANCES = 2**16


def _draws(count: int) -> Tensor:
    """Return `count` even chances, int16; NumPy draws them in half of torch's time."""
    chance = np.random.SFC64(int(torch.randint(2**63 - 1, (), device="cpu")))
    return torch.from_numpy(chance.random_raw(-(-count // 4)).view(np.int16)[:count])


class TransposedSame(nn.Module):
    """A transposed 3×3 convolution of stride 2, padded as Keras pads "same".

    Keras' lies one pixel off `ConvTranspose2d(3, 2, padding=1, output_padding=1)`: the full result
    has 2n + 1 rows and columns, and the last ones are not wanted. torch leaves out as much on
    either side: so the image gets a row and a column of zeros before it, whose results are left
    out too. Cutting the result would cost more, on the way back above all.

    Shapes:
        `(N, in_channels, H, W)` → `(N, out_channels, 2H, 2W)`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride=2, padding=2, output_padding=1
        )
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(_bias(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (1, 0, 1, 0)))
        return out


class ResizeConv(nn.Module):
    """Nearest or bilinear enlargement by two, then a 3×3 convolution of "same" size.

    Shapes:
        `(N, in_channels, H, W)` → `(N, out_channels, 2H, 2W)`.
    """

    def __init__(self, in_channels: int, out_channels: int, mode: UpsampleMode) -> None:
        super().__init__()
        corners = False if mode == "bilinear" else None
        self.enlarge = nn.Upsample(scale_factor=2, mode=mode, align_corners=corners)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding="same")
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(_bias(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.enlarge(x))
        return out


class ShuffleUp(nn.Module):
    """A 1×1 convolution to four times the channels, dealt out to 2×2 pixels.

    The four start alike (ICNR), so that no checkerboard shows before anything is learned.

    Shapes:
        `(N, in_channels, H, W)` → `(N, out_channels, 2H, 2W)`.

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
    Sub-Pixel CNN", 2016; Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.shuffle = nn.PixelShuffle(2)
        seed = torch.empty(out_channels, in_channels, 1, 1)
        he_normal_(seed, fan_in=in_channels)
        with torch.no_grad():
            self.conv.weight.copy_(seed.repeat_interleave(4, dim=0))
        nn.init.zeros_(_bias(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(self.conv(x))
        return out


def make_upsample(in_channels: int, out_channels: int, mode: UpsampleMode) -> nn.Module:
    """Return the layer that doubles height and width and changes the number of channels."""
    if mode == "transposed":
        return TransposedSame(in_channels, out_channels)
    return ResizeConv(in_channels, out_channels, mode)


def mirror_up(x: Tensor, height: int, width: int) -> Tensor:
    """Mirror an image at its last row and column until it has the size asked for.

    The edge pixels are not repeated, and mirroring goes back and forth where the image is smaller
    than what is missing; an image of one row or column repeats it.

    Shapes:
        `(N, C, H, W)` → `(N, C, height, width)`.
    """
    exporting = torch.compiler.is_exporting()
    for dim, size in ((-2, height), (-1, width)):
        old = x.shape[dim]
        if not exporting and old == size:  # in an export sizes are free: the question has no answer
            continue
        index = torch.arange(size, device=x.device)
        period: Any = torch.sym_max(2 * (old - 1), 1) if exporting else max(2 * (old - 1), 1)
        period = torch.full_like(index, period)  # ONNX has no remainder by a free number
        index = torch.remainder(index, period)
        x = x.index_select(dim, torch.where(index < old, index, period - index))
    return x


def cut_back(x: Tensor, height: int, width: int) -> Tensor:
    """Take away what `mirror_up` added.

    Shapes:
        `(N, C, H, W)` → `(N, C, height, width)`.
    """
    if not torch.compiler.is_exporting():
        return x[..., :height, :width]
    # A view would be asked whether it is the whole, and the graph then refuse where it is.
    for dim, size in ((-2, height), (-1, width)):
        x = x.index_select(dim, torch.arange(size, device=x.device))
    return x


def _bias(conv: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    if conv.bias is None:
        raise TypeError("the convolution has no bias.")
    return conv.bias
