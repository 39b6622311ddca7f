"""A U-Net on any backbone: the decoder is planned from what the encoder gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from whatwhere.errors import ShapeError, UsageError
from whatwhere.nn.blocks import Dropout, ShuffleUp, cut_back, he_normal_, mirror_up
from whatwhere.nn.encoder import Encoder, Level
from whatwhere.nn.pretrained import make_encoder

StepMode: TypeAlias = Literal["nearest", "bilinear", "transposed", "shuffle"]
STEP_MODES: tuple[StepMode, ...] = ("nearest", "bilinear", "transposed", "shuffle")

WIDTHS = (1024, 512, 256, 128, 64, 32, 16)
"""Channels of the decoder's steps, counted from the last one."""

NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(_groups(channels), channels),
    "none": lambda channels: nn.Identity(),
}
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}


class Step(nn.Module):
    """One step of the expanding path: twice the size, the skip of that size, two convolutions.

    Shapes:
        `(N, in_channels, H, W)` and a skip `(N, skip_channels, 2H, 2W)`, or None where the backbone
        has no such level → `(N, out_channels, 2H, 2W)`.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        upsample: StepMode,
        norm: str,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mode: StepMode = upsample
        self.up: nn.Module | None = None
        inner = in_channels
        if upsample == "transposed":
            self.up, inner = nn.ConvTranspose2d(in_channels, out_channels, 2, 2), out_channels
        elif upsample == "shuffle":
            self.up, inner = ShuffleUp(in_channels, out_channels), out_channels
        self.drop = Dropout(dropout)
        layers: list[nn.Module] = []
        for channels in (inner + skip_channels, out_channels):
            conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=norm == "none")
            he_normal_(conv.weight, fan_in=channels * 9)
            layers += [conv, NORMS[norm](out_channels), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor | None = None, *, fit: bool = False) -> Tensor:
        if self.up is not None:
            x = self.up(x)
        else:
            x = functional.interpolate(x, scale_factor=2.0, mode=self.mode)
        if skip is not None:
            if fit:
                x = functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = torch.cat([x, skip], dim=1)
        out: Tensor = self.layers(self.drop(x))
        return out


class DynamicUNet(nn.Module):
    """A U-Net whose contracting path is a backbone, for images of any size.

    The deepest feature maps go up by two, step by step; at each size where the backbone has
    feature maps, these are joined. A size that it lacks becomes a step without a skip. What is left
    at the end (patches of 14 px, say) is enlarged bilinearly. Sides that are no multiple of what
    the backbone needs are mirrored up, and the logits cut back.

    Shapes:
        `(N, in_channels, H, W)` float → logits `(N, n_classes, H, W)`, for any H, W ≥ 1.

    Source: Ronneberger, Fischer and Brox, "U-Net", 2015, for the form; Iglovikov and Shvets,
    "TernausNet", 2018, for the pretrained encoder.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet34",
        in_channels: int = 3,
        n_classes: int = 1,
        *,
        pretrained: bool | str | Path = False,
        band_names: Sequence[str] = (),
        upsample: StepMode = "nearest",
        decoder_channels: Sequence[int] = (),
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        anything: bool = False,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the net.

        Args:
            backbone: Any of timm's with feature maps, by name; or a module that returns a list of
                feature maps.
            in_channels: Bands of the image.
            n_classes: Logits of a pixel: 1 for two classes with a sigmoid.
            pretrained: Whether the backbone starts from ImageNet's weights; or their file.
            band_names: What the bands are called, for pretrained filters (`adapt_filters`).
            upsample: How the decoder doubles the size.
            decoder_channels: Of each step, the deepest first; empty for 16 at the end and twice as
                many at each step before.
            norm: Of the decoder: `batch`, `group` or `none`.
            activation: Of the decoder: `relu`, `leaky_relu`, `gelu` or `silu`.
            dropout: Share of values dropped before the convolutions of each step [0, 1).
            anything: Whether a second head says, from the deepest maps, if a label is in the image
                at all; its probability multiplies those of the pixels. Such a net sees the whole
                tile.
            backbone_args: timm's own, such as `drop_path_rate` or `output_stride`.

        Raises:
            UsageError: The backbone or an argument cannot be taken.
        """
        super().__init__()
        _check_arguments(in_channels, n_classes, upsample, norm, activation, dropout)
        if isinstance(backbone, nn.Module):
            name = type(backbone).__name__
            if backbone_args or pretrained:
                raise UsageError(f"{name} is a module: set its own arguments and weights there.")
            self.encoder = Encoder(backbone, in_channels, name)
        else:
            self.encoder = make_encoder(
                backbone,
                in_channels,
                pretrained=pretrained,
                band_names=band_names,
                arguments=backbone_args,
            )
        self.in_channels, self.n_classes = in_channels, n_classes
        plan, self.rest = plan_decoder(self.encoder.levels)
        widths = tuple(decoder_channels) or WIDTHS[len(WIDTHS) - len(plan) :]
        if len(widths) != len(plan):
            raise UsageError(
                f"decoder_channels: this backbone needs {len(plan)} numbers, from the deepest step "
                f"to the last, not {len(widths)}."
            )
        bottom = self.encoder.levels[-1].channels
        inputs = (bottom, *widths)
        self.decoder = nn.ModuleList(
            Step(
                inner,
                skip.channels if skip else 0,
                outer,
                upsample=upsample,
                norm=norm,
                activation=activation,
                dropout=dropout,
            )
            for inner, outer, skip in zip(inputs, widths, plan, strict=False)
        )
        self._skips = [self.encoder.levels.index(skip) if skip else -1 for skip in plan]
        self.head = nn.Conv2d(inputs[-1], n_classes, 1)
        nn.init.xavier_uniform_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        self.presence = nn.Linear(bottom, n_classes) if anything else None
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        pixels, presence = self.parts(image)
        return pixels if presence is None else join_presence(pixels, presence)

    def parts(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the pixels' logits, and those of whether a label is there at all, `(N, K)`."""
        if image.ndim != 4 or image.shape[1] != self.in_channels or 0 in image.shape[-2:]:
            raise ShapeError(
                f"the net takes (N, {self.in_channels}, H, W), and was given {tuple(image.shape)}."
            )
        height, width = image.shape[-2:]
        x = mirror_up(image, *self._padded(image))
        if not torch.compiler.is_exporting():  # a graph has no layout, and asks too much for one
            x = x.contiguous(memory_format=torch.channels_last)
        levels = self.encoder(x)
        x = levels[-1]
        presence = self.presence(x.mean(dim=(2, 3))) if self.presence is not None else None
        for step, at in zip(self.decoder, self._skips, strict=True):
            x = step(x, levels[at] if at >= 0 else None, fit=not self.encoder.exact)
        logits: Tensor = self.head(x)
        if self.rest > 1:
            logits = functional.interpolate(logits, scale_factor=self.rest, mode="bilinear")
        if not self.encoder.exact:
            logits = functional.interpolate(logits, size=self._padded(image), mode="bilinear")
        return cut_back(logits, height, width), presence

    @property
    def stages(self) -> tuple[str, ...]:
        """The named parts, in the order of the data."""
        return ("encoder", *(f"decoder.{i}" for i in range(len(self.decoder))), "head")

    def _padded(self, image: Tensor) -> tuple[int, int]:
        """The size the backbone works at."""
        stride, least = self.encoder.stride, self.encoder.least
        larger: Any = torch.sym_max if torch.compiler.is_exporting() else max
        height, width = (
            larger((side + stride - 1) // stride, least // stride) * stride
            for side in image.shape[-2:]
        )
        return height, width


def plan_decoder(levels: Sequence[Level]) -> tuple[list[Level | None], int]:
    """Plan the way up from the deepest level.

    Args:
        levels: What the encoder gives, the finest first.

    Returns:
        The skip of each step, None where there is none of its size; and by how much the result must
        be enlarged at the end.
    """
    there = {level.reduction: level for level in levels[:-1]}
    plan: list[Level | None] = []
    reduction = levels[-1].reduction
    while reduction > 1 and reduction % 2 == 0:
        reduction //= 2
        plan.append(there.get(reduction))
    return plan, reduction


def join_presence(pixels: Tensor, presence: Tensor) -> Tensor:
    """Return the logit of the product of two probabilities.

    `σ(a) σ(b)` has the logit `-log(e⁻ᵃ + e⁻ᵇ + e⁻ᵃ⁻ᵇ)`.

    Args:
        pixels: `(N, K, H, W)` logits `a`.
        presence: `(N, K)` logits `b`.
    """
    b = presence[:, :, None, None].expand_as(pixels)
    return -torch.logsumexp(torch.stack([-pixels, -b, -pixels - b]), dim=0)


def _groups(channels: int) -> int:
    """The most groups of group norm, up to 32, that divide the channels with at least 4 in each."""
    fitting = (g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels >= 4 * g)
    return next(fitting, 1)


def _check_arguments(
    in_channels: int, n_classes: int, upsample: str, norm: str, activation: str, dropout: float
) -> None:
    wrong = [
        f"{name} must be at least 1, not {value}"
        for name, value in (("in_channels", in_channels), ("n_classes", n_classes))
        if value < 1
    ]
    if not 0 <= dropout < 1:
        wrong.append(f"dropout must be in [0, 1), not {dropout}")
    for name, value, known in (
        ("upsample", upsample, STEP_MODES),
        ("norm", norm, tuple(NORMS)),
        ("activation", activation, tuple(ACTIVATIONS)),
    ):
        if value not in known:
            wrong.append(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if wrong:
        raise UsageError(f"the U-Net cannot be built: {'; '.join(wrong)}.")
