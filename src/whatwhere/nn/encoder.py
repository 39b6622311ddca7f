"""Backbones as encoders: what their feature maps are, and what sizes they take, found by asking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whatwhere.errors import UsageError

_LARGEST = 512  # no backbone is asked for a larger multiple [px]
_SHAPES: Sequence[tuple[int, int]] = ((1, 1), (1, 2), (3, 2))  # in multiples of a candidate
_SQUARE: Sequence[tuple[int, int]] = ((1, 1),)
# What a module that takes one size alone may want, the usual first [px].
_SQUARES = (224, 256, 384, 240, 192, 288, 320, 336, 448, 512, 128, 160, 96, 64)
_REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, ZeroDivisionError)


@dataclass(frozen=True)
class Level:
    """One size of feature maps.

    Attributes:
        channels: How many maps; those of several outputs of one size are counted together.
        reduction: How many pixels of the image a pixel of them stands for, along a side.
    """

    channels: int
    reduction: int


class Encoder(nn.Module):
    """Any module that returns feature maps, as the contracting path of a U-Net.

    What it gives is measured by a few passes of small dummy images: the levels, whether maps come
    as `(N, H, W, C)`, and the multiple of which both sides of an image must be. A module that takes
    images of one size alone is given the image in squares of that size, and its maps are put
    together.

    Attributes:
        levels: The finest first; one for each reduction.
        stride: Sides must be multiples of it [px].
        least: Sides should not be smaller [px]: batch norm cannot learn from one value, and an
            export cannot tell a side of 1 from others.
        square: Side of the squares that the module takes [px]; 0 where it takes other sizes too.
        exact: Whether all maps have exactly `side / reduction` pixels; else the decoder fits sizes.

    Shapes:
        `(N, in_channels, H, W)` with H and W multiples of `stride` → a list of
        `(N, level.channels, H / level.reduction, W / level.reduction)`.
    """

    def __init__(self, body: nn.Module, in_channels: int, name: str) -> None:
        """Measure a module.

        Args:
            body: Turns `(N, in_channels, H, W)` into a list or tuple of feature maps.
            in_channels: Bands of the image.
            name: What errors call it.

        Raises:
            UsageError: It takes none of the sizes tried, or gives no feature maps.
        """
        super().__init__()
        self.body, self.in_channels, self.name = body, in_channels, name
        self.frozen = False
        self._rested: set[str] = set()  # what did not learn before it was frozen
        self.square = 0
        self.stride, self.exact, found = self._measure()
        self._last = [channels_last for _, _, channels_last in found]
        groups: dict[int, list[int]] = {}
        for number, (_, reduction, _) in enumerate(found):
            groups.setdefault(reduction, []).append(number)
        self._groups = [groups[reduction] for reduction in sorted(groups)]
        self.levels = tuple(
            Level(sum(found[number][0] for number in groups[reduction]), reduction)
            for reduction in sorted(groups)
        )
        self.least = -(-2 * self.levels[-1].reduction // self.stride) * self.stride
        self._alone = self._norms_of_one()

    def forward(self, image: Tensor) -> list[Tensor]:
        count, height = image.shape[0], image.shape[2]
        if self.square:
            image = _apart(image, self.square)
        # A norm cannot learn from the one value that a pooled map of one image has.
        alone = self._alone and self.body.training and image.shape[0] == 1
        maps = [
            one.permute(0, 3, 1, 2) if last else one
            for one, last in zip(
                self.body(torch.cat([image, image]) if alone else image), self._last, strict=True
            )
        ]
        if alone:
            maps = [one[:1] for one in maps]
        if self.square:
            maps = [_together(one, count, height // self.square) for one in maps]
        return [
            maps[group[0]] if len(group) == 1 else torch.cat([maps[i] for i in group], dim=1)
            for group in self._groups
        ]

    def train(self, mode: bool = True) -> Encoder:
        """Follow the net's mode; a frozen backbone stays as in evaluation, statistics and all."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def freeze(self, frozen: bool, but_first: bool = False) -> None:
        """Let the backbone rest, or learn again: its weights and its norms' statistics.

        Args:
            frozen: Whether it rests.
            but_first: Its first filters learn all the same.
        """
        if frozen and not self.frozen:
            self._rested = {n for n, p in self.body.named_parameters() if not p.requires_grad}
        self.frozen = frozen
        free = {id(parameter) for parameter in self.first_filters()} if but_first else set()
        for name, parameter in self.body.named_parameters():
            learns = not frozen or id(parameter) in free
            parameter.requires_grad_(learns and name not in self._rested)
        self.body.train(self.training and not frozen)

    def first_filters(self) -> list[nn.Parameter]:
        """Return the weights that see the image itself: those of the first layer that has some."""
        found: list[nn.Module] = []

        def note(layer: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
            found.append(layer)

        layers = [
            layer
            for layer in self.body.modules()
            if not any(True for _ in layer.children()) and any(True for _ in layer.parameters())
        ]
        self._pass_blank(layers, note)
        return [*found[0].parameters()] if found else []

    def depth_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters that each level needs beyond the finer ones, the finest first."""
        mode, asked = self.body.training, [p.requires_grad for p in self.body.parameters()]
        parameters = list(self.body.parameters())
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.body.eval()
        with torch.enable_grad():
            maps = self(self._blank(self.stride, self.stride))
        left, groups = dict(enumerate(parameters)), []
        for one in maps:
            numbers, group = list(left), []
            if numbers and one.requires_grad:
                used = torch.autograd.grad(
                    one.sum(), [left[i] for i in numbers], retain_graph=True, allow_unused=True
                )
                group = [i for i, slope in zip(numbers, used, strict=True) if slope is not None]
            groups.append([left.pop(i) for i in group])
        groups[-1] += left.values()
        for parameter, on in zip(parameters, asked, strict=True):
            parameter.requires_grad_(on)
        self.body.train(mode)
        return groups

    def _measure(self) -> tuple[int, bool, list[tuple[int, int, bool]]]:
        """Find the smallest multiple that works, else the one size."""
        mode = self.body.training
        self.body.eval()
        fault: BaseException | None = None
        try:
            multiples = self._multiples()
        except _REFUSALS as error:
            multiples, fault = [], error
        tries = [(multiple, _SHAPES) for multiple in multiples]
        tries += [(side, _SQUARE) for side in _SQUARES]
        try:
            for multiple, shapes in tries:
                try:
                    exact, found = self._ask(multiple, shapes)
                except _REFUSALS as error:
                    fault = fault or error
                    continue
                self.square = multiple if shapes is _SQUARE else 0
                return multiple, exact, found if exact else self._rounded(found)
        finally:
            self.body.train(mode)
        raise UsageError(
            f"{self.name} takes no image of up to {_LARGEST} px that was tried, or gives no "
            f"feature maps ({fault}). Take resnet34, or another of `whatwhere models`."
        )

    def _norms_of_one(self) -> bool:
        """Whether a batch norm has one value of each channel where the least image comes alone."""
        single: list[bool] = []

        def note(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            single.append(inputs[0].shape[2:].numel() == 1)

        norms = [
            module
            for module in self.body.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self._pass_blank(norms, note)
        return any(single)

    def _pass_blank(
        self,
        layers: Sequence[nn.Module],
        note: Callable[[nn.Module, tuple[Tensor, ...]], None],
    ) -> None:
        """Show the body the least image there is, and note which layers are called, in order."""
        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        mode = self.body.training
        self.body.eval()
        try:
            with torch.no_grad():
                self.body(self._blank(*2 * (self.square or self.least,)))
        finally:
            self.body.train(mode)
            for hook in hooks:
                hook.remove()

    def _blank(self, height: int, width: int) -> Tensor:
        """An image of zeros, where the module's weights are."""
        device = next((p.device for p in self.body.parameters()), torch.device("cpu"))
        return torch.zeros(1, self.in_channels, height, width, device=device)

    def _multiples(self) -> list[int]:
        """Candidates: what the backbone says of itself comes first, its own image size last."""
        info: Any = getattr(self.body, "feature_info", None)
        if hasattr(info, "reduction"):
            deepest = max(info.reduction())
        else:  # a large image tells what a small one cannot
            _, found = self._ask(256, ((1, 2),))
            measured = max(reduction for _, reduction, _ in found)
            deepest = 2 ** round(math.log2(measured))
            if measured != deepest and self._fits(measured):  # patches of 14 px
                return [measured]
        steps = [k * deepest for k in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)]
        return [step for step in steps if step <= max(_LARGEST, deepest)]

    def _fits(self, multiple: int) -> bool:
        """Whether a multiple works and gives maps of exact sizes."""
        try:
            return self._ask(multiple, _SHAPES)[0]
        except _REFUSALS:
            return False

    def _rounded(self, found: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
        """Take reductions from what the backbone says, or the powers of two nearest to measured."""
        info: Any = getattr(self.body, "feature_info", None)
        if hasattr(info, "reduction"):
            told = list(info.reduction())
        else:
            told = [2 ** round(math.log2(reduction)) for _, reduction, _ in found]
        return [(c, r, last) for (c, _, last), r in zip(found, told, strict=True)]

    def _ask(
        self, multiple: int, sizes: Sequence[tuple[int, int]]
    ) -> tuple[bool, list[tuple[int, int, bool]]]:
        """Try a multiple; (whether sizes are exact, (channels, reduction, channels last) of each).

        Raises one of `_REFUSALS` where it does not work.
        """
        exact = True
        found: list[tuple[int, int, bool]] = []
        for rows, columns in sizes:
            height, width = rows * multiple, columns * multiple
            with torch.no_grad():
                maps = self.body(self._blank(height, width))
            if not isinstance(maps, (list, tuple)) or not maps:
                raise ValueError("it returns no list of feature maps")
            described = [_describe(one, height, width) for one in maps]
            if found and [c for c, *_ in found] != [c for c, *_ in described]:
                raise ValueError("its feature maps depend on the image's size")
            measured = [(c, r, last) for c, r, last, _ in described]
            exact = exact and found in ([], measured) and all(same for *_, same in described)
            found = measured  # the largest image tells reductions best
        return exact, found


def _apart(image: Tensor, side: int) -> Tensor:
    """Deal `(N, C, a·side, b·side)` out into squares `(N·a·b, C, side, side)`."""
    channels, rows, columns = image.shape[1], image.shape[2] // side, image.shape[3] // side
    squares = image.reshape(-1, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(-1, channels, side, side)


def _together(maps: Tensor, count: int, rows: int) -> Tensor:
    """Put the maps `(N·a·b, C, h, w)` of squares together: `(N, C, a·h, b·w)`."""
    channels, height, width = maps.shape[1:]
    dealt = maps.reshape(count, rows, -1, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return dealt.reshape(count, channels, rows * height, -1)


def _describe(features: Tensor, height: int, width: int) -> tuple[int, int, bool, bool]:
    """Channels, reduction, whether the channels come last, and whether the size is exact."""
    if features.ndim != 4:
        raise ValueError(f"it gives features of {features.ndim} dimensions, not 4")
    options = []
    for last in (False, True):
        rows, columns = features.shape[1:3] if last else features.shape[2:4]
        if not rows or not columns:
            continue
        reduction = round(math.sqrt(height / rows * width / columns))
        off = abs(math.log(height / rows / max(reduction, 1)))
        off += abs(math.log(width / columns / max(reduction, 1)))
        options.append((off, last, max(reduction, 1), int(rows), int(columns)))
    if not options:
        raise ValueError("it gives empty features")
    _, last, reduction, rows, columns = min(options)
    exact = rows * reduction == height and columns * reduction == width
    return int(features.shape[3 if last else 1]), reduction, last, exact
