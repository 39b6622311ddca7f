"""The graph of a net, as `torch.export` finds it: for images of any size, or of one."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental import _config
from torch.nn.attention import SDPBackend, sdpa_kernel

from whatwhere.errors import UsageError
from whatwhere.types import Geometry

FAULTS = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, ArithmeticError)
"""What `torch.export`, and a graph that was found, raise where a net does not let them."""

# Windows of attention that are shifted or padded: sizes that are left free are sought for hours.
_ENDLESS = (
    "swin_transformer",
    "swin_transformer_v2",
    "swin_transformer_v2_cr",
    "davit",
    "twins",
    "tiny_vit",
)


def trace(
    module: nn.Module,
    shape: Sequence[int],
    geometry: Geometry,
    *,
    free: bool,
    oblivious: bool = False,
) -> ExportedProgram:
    """Find a module's graph.

    Args:
        module: In evaluation mode; it takes one image and gives one tensor.
        shape: `(N, C, H, W)` of an example; with free sizes N is 2, and H and W differ.
        geometry: Which sides the net takes, where they are free.
        free: Leave N, H and W free.
        oblivious: Look at no size whether it is 1, so that a graph is found for such too. Some nets
            then ask for more than one image.

    Raises:
        UsageError: The net does not let its sizes be free, or does something that no graph has.
    """
    if free and (found := endless(module)):
        raise UsageError(f"timm's {found} has no graph for sizes that are left free")
    sides: list[Any] = [Dim.DYNAMIC, Dim.DYNAMIC]
    if geometry.border:
        least = (geometry.window(1) - geometry.remainder) // geometry.stride
        down, along = Dim("down", min=least), Dim("along", min=least)
        sides = [geometry.stride * side + geometry.remainder for side in (down, along)]
    shapes = ({0: Dim.DYNAMIC, 2: sides[0], 3: sides[1]},) if free else None
    example = torch.zeros(*shape)
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    part: Any
    for part in module.modules():
        if hasattr(part, "fused_attn"):  # timm's; ONNX knows the steps of attention better
            part.fused_attn = False
    try:
        with (
            torch.no_grad(),
            _even_strides(),
            warnings.catch_warnings(),
            sdpa_kernel(SDPBackend.MATH),  # fused attention lays its result out otherwise
            _config.patch(backed_size_oblivious=oblivious),  # type: ignore[attr-defined]
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except FAULTS as error:
        raise UsageError(brief(error)) from error
    forget_places(program.graph_module)
    return program


@contextmanager
def _even_strides() -> Iterator[None]:
    """Let timm's "same" padding be a number where a map's side divides by the stride.

    It is computed from the side else, layer by layer, and what grows out of that is simplified for
    minutes. An encoder is given multiples of what it needs, so what divides in the example divides
    in every image; exports are compared with the net at other sizes.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # the net is none of timm's
        yield
        return
    asked = padding.get_same_padding

    def told(side: Any, kernel_size: int, stride: int, dilation: int) -> Any:
        hint = side.node.hint if isinstance(side, torch.SymInt) else None
        if isinstance(hint, int) and hint % stride == 0:
            return max((kernel_size - 1) * dilation + 1 - stride, 0)
        return asked(side, kernel_size, stride, dilation)

    padding.get_same_padding = told
    try:
        yield
    finally:
        padding.get_same_padding = asked


def endless(module: nn.Module) -> str:
    """Return the family of a net whose free sizes would be sought for hours; else nothing."""
    names = {type(part).__module__.removeprefix("timm.models.") for part in module.modules()}
    return next((name for name in _ENDLESS if name in names), "")


def forget_places(module: GraphModule) -> None:
    """Take out of a graph where in whose files its code stands."""
    for part in module.modules():
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                node.stack_trace = None
                node.meta.pop("nn_module_stack", None)
                node.meta.pop("source_fn_stack", None)


def brief(error: BaseException) -> str:
    """Return the first line that says something, of what was at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__).rstrip(".")[:300]
