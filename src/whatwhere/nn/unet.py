"""The tutorial's U-Net."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from whatwhere.errors import ShapeError, UsageError
from whatwhere.nn.blocks import (
    UPSAMPLE_MODES,
    ConvBlock,
    Dropout,
    UpsampleMode,
    cut_back,
    make_upsample,
    mirror_up,
)

STRIDE = 16


class TutorialUNet(nn.Module):
    """A U-Net of four levels down and four up that takes images of any size.

    The contracting path `c1 p1 … c4 p4 c5` finds out what is in the picture, the expanding path
    `u6 c6 … u9 c9` where it is. Each `c` is two convolutions, each `p` a 2×2 max pooling, each `u`
    an upsampling joined with the `c` of its level; dropout follows each pooling and each join. The
    sigmoid or softmax is left to the loss and to the decision.

    Sides that are no multiple of 16 are mirrored up, and the logits cut back.

    Shapes:
        `(N, in_channels, H, W)` float → logits `(N, n_classes, H, W)`, for any H, W ≥ 1.

    Source: the U-Net of Ronneberger, Fischer and Brox (2015) in the form of a widely read Keras
    tutorial on the TGS salt images: 16 filters, batch norm, dropout 0.1, "same" padding.
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
        n_filters: int = 16,
        dropout: float = 0.1,
        batchnorm: bool = True,
        kernel_size: int = 3,
        upsample: UpsampleMode = "transposed",
        bn_momentum: float = 0.99,
    ) -> None:
        """Build the net with He's normal start.

        Args:
            in_channels: Bands of the image.
            n_classes: Logits of a pixel: 1 for two classes with a sigmoid.
            n_filters: Filters of the first block; each level down doubles them.
            dropout: Share of values dropped in training [0, 1).
            batchnorm: Normalise each convolution's output over the batch.
            kernel_size: Side of the blocks' convolutions [px], odd.
            upsample: How the expanding path doubles the size.
            bn_momentum: Share of the running statistics that a step keeps, as Keras counts it.

        Raises:
            UsageError: An argument is out of its range; all such arguments are named.
        """
        super().__init__()
        _check_arguments(
            in_channels, n_classes, n_filters, dropout, kernel_size, upsample, bn_momentum
        )
        self.in_channels, self.n_classes = in_channels, n_classes
        self.upsample: UpsampleMode = upsample
        self.kernel_size = kernel_size
        filters = [n_filters * 2**level for level in range(5)]

        def block(inner: int, outer: int) -> ConvBlock:
            return ConvBlock(
                inner,
                outer,
                kernel_size=kernel_size,
                batchnorm=batchnorm,
                momentum=bn_momentum,
            )

        for level in range(5):
            inner = in_channels if level == 0 else filters[level - 1]
            self.add_module(f"c{level + 1}", block(inner, filters[level]))
            if level < 4:
                pool = nn.Sequential(nn.MaxPool2d(2), Dropout(dropout, inplace=True))
                self.add_module(f"p{level + 1}", pool)
        for step, level in enumerate((3, 2, 1, 0), start=6):
            self.add_module(f"u{step}", make_upsample(filters[level + 1], filters[level], upsample))
            self.add_module(f"c{step}", block(2 * filters[level], filters[level]))
        self.drop = Dropout(dropout, inplace=True)
        self.head = nn.Conv2d(n_filters, n_classes, 1)
        nn.init.xavier_uniform_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != self.in_channels or 0 in image.shape[-2:]:
            raise ShapeError(
                f"the net takes (N, {self.in_channels}, H, W), and was given {tuple(image.shape)}."
            )
        height, width = image.shape[-2:]
        x = mirror_up(image, *self._padded(image))
        if not torch.compiler.is_exporting():  # a graph has no layout
            x = x.contiguous(memory_format=torch.channels_last)

        skips: list[Tensor] = []
        for level in range(1, 5):  # what: (N, F·2^level, H/2^level, W/2^level)
            x = self.get_submodule(f"c{level}")(x)
            skips.append(x)
            x = self.get_submodule(f"p{level}")(x)
        x = self.get_submodule("c5")(x)
        for step in range(6, 10):  # where
            x = self.get_submodule(f"u{step}")(x)
            x = self.drop(torch.cat([x, skips.pop()], dim=1))
            x = self.get_submodule(f"c{step}")(x)
        logits: Tensor = self.head(x)
        return cut_back(logits, height, width)

    def _padded(self, image: Tensor) -> tuple[int, int]:
        """The size the blocks work at: multiples of 16.

        Batch norm cannot learn from one value: in training a single image that would be 1×1 at the
        bottom is mirrored up to 2×2 there.
        """
        height, width = ((side + STRIDE - 1) // STRIDE * STRIDE for side in image.shape[-2:])
        if self.training and image.shape[0] * height * width == STRIDE**2:
            return 2 * STRIDE, 2 * STRIDE
        return height, width

    def margin(self) -> int:
        """How far a pixel sees [px]: nothing farther away can change its logits.

        Walks back from each position within a stride through every layer, as an interval.
        """
        reach = 2 * (self.kernel_size // 2)

        def encoder(level: int, first: int, last: int) -> tuple[int, int]:
            first, last = first - reach, last + reach
            if level == 0:
                return first, last
            return encoder(level - 1, 2 * first, 2 * last + 1)

        def decoder(level: int, first: int, last: int) -> tuple[int, int]:
            if level == 4:
                return encoder(4, first, last)
            first, last = first - reach, last + reach
            skip = encoder(level, first, last)
            below = decoder(level + 1, *self._below(first, last))
            return min(skip[0], below[0]), max(skip[1], below[1])

        ends = [(at, decoder(0, at, at)) for at in range(STRIDE)]
        return max(max(at - first, last - at) for at, (first, last) in ends)

    def _below(self, first: int, last: int) -> tuple[int, int]:
        """The rows of the coarser level that an interval of the finer one is made from."""
        if self.upsample == "transposed":  # fine row o comes from coarse i with 0 ≤ o - 2i ≤ 2
            return -((2 - first) // 2), last // 2
        first, last = first - 1, last + 1  # the 3×3 convolution after the enlargement
        if self.upsample == "nearest":
            return first // 2, last // 2
        return (first - 1) // 2, (last + 1) // 2


def _check_arguments(
    in_channels: int,
    n_classes: int,
    n_filters: int,
    dropout: float,
    kernel_size: int,
    upsample: str,
    bn_momentum: float,
) -> None:
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
    if not 0 <= bn_momentum <= 1:
        wrong.append(f"bn_momentum must be in [0, 1], not {bn_momentum}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        wrong.append(f"kernel_size must be odd, not {kernel_size}")
    if upsample not in get_args(UpsampleMode):
        wrong.append(f"upsample must be one of {', '.join(UPSAMPLE_MODES)}, not {upsample!r}")
    if wrong:
        raise UsageError(f"the tutorial's U-Net cannot be built: {'; '.join(wrong)}.")
