"""Small modules that return feature maps, as a user may bring them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Chain(nn.Module):
    """A 3×3 convolution of stride 2 for each level."""

    def __init__(
        self, bands: int, widths: Sequence[int], *, padding: int = 1, last: bool = False
    ) -> None:
        super().__init__()
        self.last = last
        inputs = (bands, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, 2, padding)
            for inner, outer in zip(inputs, widths, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, x = [], image
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x.permute(0, 2, 3, 1) if self.last else x)
        return maps


class Patches(nn.Module):
    """One convolution over patches, as a plain transformer begins."""

    def __init__(self, side: int, bands: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, 12, side, side)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image)]


class Squares(nn.Module):
    """Takes images of one size alone."""

    def __init__(self, side: int, bands: int = 2) -> None:
        super().__init__()
        self.side = side
        self.first, self.second = nn.Conv2d(bands, 4, 4, 4), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        if tuple(image.shape[-2:]) != (self.side, self.side):
            raise ValueError(f"{tuple(image.shape[-2:])} is not my size")
        first = self.first(image)
        return [first, self.second(first)]
