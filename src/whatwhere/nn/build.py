"""Models by name: building them, listing them, and what is known of their geometry."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whatwhere.errors import UsageError
from whatwhere.nn import unet2015
from whatwhere.nn.dynamic import DynamicUNet
from whatwhere.nn.encoder import Encoder
from whatwhere.nn.memory import training_memory_mb
from whatwhere.nn.pretrained import has_weights
from whatwhere.nn.unet import STRIDE, TutorialUNet
from whatwhere.nn.unet2015 import UNet2015
from whatwhere.types import Geometry

ARCHITECTURES: Mapping[str, type[TutorialUNet] | type[UNet2015]] = {
    "tutorial": TutorialUNet,
    "unet2015": UNet2015,
}
SUGGESTED = (
    *("resnet18", "resnet34", "resnet50", "tf_efficientnet_lite0", "efficientnet_b0"),
    *("mobilenetv3_large_100", "convnext_tiny", "regnety_008", "swin_tiny_patch4_window7_224"),
)
"""Backbones to begin with, small and large, of several families."""

_DYNAMIC = tuple(
    name
    for name in inspect.signature(DynamicUNet).parameters
    if name not in ("backbone", "in_channels", "n_classes", "pretrained", "band_names")
)


def build_model(
    name: str | nn.Module,
    in_channels: int | None = None,
    n_classes: int = 1,
    *,
    pretrained: bool | str | Path = False,
    band_names: Sequence[str] = (),
    **arguments: Any,
) -> nn.Module:
    """Build a net.

    Args:
        name: `tutorial`, `unet2015`, or any of timm's backbones with feature maps, such as
            `resnet34`; or a module of your own that returns a list of feature maps.
        in_channels: Bands of the image; None for 1, and for 3 with a backbone.
        n_classes: Logits of a pixel: 1 for two classes with a sigmoid, one for each class else.
        pretrained: Whether a backbone starts from timm's weights; a path reads them from a file of
            safetensors. Filters are fitted to the bands (`adapt_filters`).
        band_names: What the bands are called, where red, green and blue are not the first three.
        **arguments: The architecture's own, such as `n_filters` or `upsample`; with a backbone,
            others are timm's, such as `drop_path_rate` or `output_stride`.

    Returns:
        A module that turns `(N, in_channels, H, W)` float32 into logits `(N, n_classes, H, W)`;
        those of `unet2015` are 184 px smaller.

    Raises:
        UsageError: The name or an argument is not known (the nearest ones are named), or weights
            that were asked for cannot be had.

    Example:
        >>> net = build_model("tutorial", in_channels=3, n_classes=4)
        >>> net(torch.zeros(1, 3, 101, 75)).shape
        torch.Size([1, 4, 101, 75])
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        architecture = ARCHITECTURES[name]
        if pretrained is not False:
            raise UsageError(f"there are no pretrained weights for {name}. Take a backbone.")
        known = list(inspect.signature(architecture).parameters)
        for key in arguments:
            if key not in known:
                raise UsageError(f"{name} has no argument {key!r}. {_nearest(key, known)}")
        return architecture(1 if in_channels is None else in_channels, n_classes, **arguments)
    if isinstance(name, str):
        require_backbone(name)
    own = {key: value for key, value in arguments.items() if key in _DYNAMIC}
    theirs = {key: value for key, value in arguments.items() if key not in _DYNAMIC}
    if theirs:
        own["backbone_args"] = {**(own.get("backbone_args") or {}), **theirs}
    bands = 3 if in_channels is None else in_channels
    return DynamicUNet(name, bands, n_classes, pretrained=pretrained, band_names=band_names, **own)


def require_backbone(name: str) -> None:
    """Raise `UsageError` if timm has no such backbone or tag; the nearest names are told."""
    import timm

    base, _, tag = name.partition(".")
    if timm.is_model(base):
        tags = timm.list_models(f"{base}.*", pretrained=True)
        if tag and name not in tags:
            known = f"There are: {', '.join(tags[:5])}." if tags else "It has none."
            raise UsageError(f"{base} has no weights of the name {tag!r}. {known}")
        return
    close = difflib.get_close_matches(base, [*ARCHITECTURES, *timm.list_models()], n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "`whatwhere models` lists some."
    raise UsageError(f"there is no model {name!r}. {hint}")


def geometry(model: nn.Module) -> Geometry:
    """Return the stride, margin and border of a net that `build_model` made.

    A backbone's margin is measured (`seen_margin`), which takes a second or so.
    """
    if isinstance(model, TutorialUNet):
        return Geometry(STRIDE, model.margin())
    if isinstance(model, UNet2015):
        return unet2015.GEOMETRY
    if isinstance(model, DynamicUNet):
        return Geometry(model.encoder.stride, seen_margin(model))
    raise UsageError(f"the geometry of a {type(model).__name__} is not known.")


def seen_margin(model: DynamicUNet) -> int | None:
    """Measure how far a pixel sees, by looking how far "not a number" spreads.

    A strip of the image one stride wide is made NaN; whatever depends on it becomes NaN too. The
    margin is counted from the strip's edges, which is what matters where windows start at
    multiples of the stride: a pixel may see up to a stride farther, into the same strip. Then a
    random image is cut at a multiple of the stride, and the two answers are compared: layers that
    deal the image out from its corner (windowed attention) give others.

    Args:
        model: It is not changed.

    Returns:
        The margin [px]; None where all of a window of up to 4,096 px is seen, or where the answer
        depends on the place of the window, wherever its edges are.
    """
    stride = model.encoder.stride
    ghost = copy.deepcopy(model).cpu().float().eval()
    margins = []
    for across in (False, True):
        reached = None
        for length in (1024, 4096):
            reached = _spread(ghost, stride, length // stride, across)
            if reached is not None:
                break
        if reached is None:
            return None
        margins.append(reached)
    margin = max(margins)
    return margin if all(_agrees(ghost, stride, margin, across) for across in (0, 1)) else None


def _agrees(model: DynamicUNet, stride: int, margin: int, across: int) -> bool:
    """Whether a window gives the whole image's answer farther than the margin from its edge."""
    count = margin // stride + 6
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(1, model.in_channels, stride, count * stride, generator=noise)
    with torch.inference_mode():
        answers = [
            model(part.mT.contiguous()).mT if across else model(part)
            for part in (image, image[..., stride:], image[..., 3 * stride :])
        ]
    whole = answers[0]
    scale = float(whole.abs().max()) or 1.0
    for start, part in ((stride, answers[1]), (3 * stride, answers[2])):
        off = (whole[..., start + margin :] - part[..., margin:]).abs().max()
        if not float(off) <= 1e-4 * scale:
            return False
    return True


def _spread(model: DynamicUNet, stride: int, count: int, across: bool) -> int | None:
    """How far NaN in the middle of so many strides spreads; None if to an end, or nowhere."""
    first = count // 2 * stride
    image = torch.zeros(1, model.in_channels, stride, count * stride)
    image[..., first : first + stride] = torch.nan
    with torch.inference_mode():
        logits = model(image.mT.contiguous() if across else image)
    seen = (logits.mT if across else logits).isnan().any(dim=2).flatten(0, 1).any(dim=0)
    places = seen.nonzero().flatten()
    if not len(places) or bool(seen[0]) or bool(seen[-1]):
        return None
    return max(first - int(places[0]), int(places[-1]) - (first + stride - 1))


def freeze(model: nn.Module, *, but_first: bool = False) -> None:
    """Let the backbone rest: its weights and its norms' statistics stand still.

    Args:
        model: The net.
        but_first: Its first filters learn all the same, as is good for bands that they have never
            seen.

    Raises:
        UsageError: The net has no backbone.
    """
    _encoder(model).freeze(True, but_first)


def unfreeze(model: nn.Module) -> None:
    """Let the backbone learn again; raises `UsageError` if the net has none."""
    _encoder(model).freeze(False)


def _encoder(model: nn.Module) -> Encoder:
    if not isinstance(model, DynamicUNet):
        raise UsageError(f"a {type(model).__name__} has no backbone to freeze.")
    return model.encoder


def depth_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters by depth: the backbone's levels, the finest first, and the decoder.

    A net without a backbone has one group.
    """
    if not isinstance(model, DynamicUNet):
        return [list(model.parameters())]
    groups = [group for group in model.encoder.depth_groups() if group]
    taken = {id(parameter) for group in groups for parameter in group}
    return [*groups, [p for p in model.parameters() if id(p) not in taken]]


def list_models(pattern: str = "") -> list[str]:
    """Return the names that match a shell pattern.

    Args:
        pattern: Empty for this package's architectures and some backbones to begin with; any other
            is held against these and all of timm's names.
    """
    if not pattern:
        return [*ARCHITECTURES, *SUGGESTED]
    own = sorted(fnmatch.filter(ARCHITECTURES, pattern))
    if pattern in own:
        return own
    import timm

    return [*own, *timm.list_models(pattern)]


def count_backbones() -> int:
    """Return how many backbones timm knows."""
    import timm

    return len(timm.list_models())


@dataclass(frozen=True)
class Parameters:
    """How many numbers a net has.

    Attributes:
        total: Weights and batch norm's running statistics, as Keras counts them.
        trainable: Those that training changes by gradients.
    """

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> Parameters:
    """Count as Keras does: running means and variances belong to the total."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    running = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return Parameters(trainable + frozen + running, trainable)


def stage_shapes(
    model: nn.Module, shape: tuple[int, int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each named stage of a net with the shape of what leaves it.

    Args:
        model: A net of `build_model`; it is not changed, and nothing is computed.
        shape: `(C, H, W)` of an image.

    Returns:
        `(name, (C, H, W))` from the image on, in the order of the data.
    """
    rows: list[tuple[str, tuple[int, ...]]] = [("image", shape)]

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor | list[Tensor]) -> None:
            maps = output if isinstance(output, list) else [output]
            called = [f"{name}.{i}" for i in range(len(maps))] if maps is output else [name]
            rows.extend((at, tuple(one.shape[1:])) for at, one in zip(called, maps, strict=True))

        return hook

    names: tuple[str, ...] = getattr(model, "stages", ())
    ghost = copy.deepcopy(model).eval().to("meta")  # sizes without numbers
    for name in names:
        ghost.get_submodule(name).register_forward_hook(note(name))
    logits = ghost(torch.zeros(1, *shape, device="meta"))
    return [*rows, ("logits", tuple(logits.shape[1:]))]


def model_facts(name: str, in_channels: int | None = None) -> dict[str, Any]:
    """Return what is known of an architecture or a backbone, as JSON can hold it.

    Args:
        name: As `build_model` takes it.
        in_channels: Bands of the image.

    Raises:
        UsageError: Nothing can be built by this name.
    """
    model = build_light(name, in_channels)
    parameters = count_parameters(model)
    facts = {
        **{"name": name, "in_channels": model.in_channels},
        **{"parameters": parameters.total, "trainable": parameters.trainable},
    }
    if isinstance(model, DynamicUNet):
        reductions = [level.reduction for level in model.encoder.levels]
        stride, pretrained = model.encoder.stride, has_weights(name)
    else:
        reductions, stride, pretrained = [1, 2, 4, 8, 16], geometry(model).stride, False
    memory = training_memory_mb(model)
    return {
        **facts,
        **{"reductions": reductions, "stride": stride, "pretrained": pretrained},
        "training_memory_mb_512": memory,
    }


def stage_facts(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the margin and the shapes of all stages: what `model_facts` leaves out.

    Args:
        name: As `build_model` takes it.
        shape: `(C, H, W)` of the image that the stages are told for; the next that the net takes.
    """
    model = build_model(name, in_channels=shape[0])
    if isinstance(model, UNet2015):  # the next size that it takes
        height, width = (
            unet2015.GEOMETRY.window(max(side - 2 * unet2015.GEOMETRY.border, 1))
            for side in shape[1:]
        )
        shape = (shape[0], height, width)
    stages = [[stage, list(size)] for stage, size in stage_shapes(model, shape)]
    return {"margin": geometry(model).margin, "stages": stages}


def build_light(
    name: str, in_channels: int | None = None, n_classes: int = 1, **arguments: Any
) -> Any:
    """Build a net without numbers where that can be done: to count and to measure.

    Raises as `build_model` does.
    """
    try:
        with torch.device("meta"):
            return build_model(name, in_channels, n_classes, **arguments)
    except (RuntimeError, NotImplementedError) as error:  # it wants numbers while it is built
        if "overflow" in str(error):
            raise UsageError(f"{name} of this size is larger than any memory.") from error
        return build_model(name, in_channels, n_classes, **arguments)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known)}."
