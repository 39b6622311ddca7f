"""What a net needs of memory, counted without computing anything."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whatwhere.nn import unet2015
from whatwhere.nn.unet2015 import UNet2015


def training_memory_mb(model: nn.Module, side: int = 512) -> int:
    """Return what one image of about `side` px squared keeps in memory for the way back [MB].

    Nothing is computed: the arrays that the backward pass would need are counted, each once.
    """
    ghost: Any = copy.deepcopy(model).to("meta").train()
    side = _legal(model, side)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    image = torch.zeros(1, ghost.in_channels, side, side, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ghost(image)
    weights = {_storage(parameter) for parameter in ghost.parameters()}
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights) >> 20


def inference_memory_mb(model: nn.Module, bands: int, side: int) -> int:
    """Return the most that one image of this side holds at once on its way through the net [MB].

    Nothing is computed: arrays are counted as they come and go. What libraries take for their own
    work is not among them.
    """
    ghost: Any = copy.deepcopy(model).to("meta").eval()
    side = _legal(model, side)
    image = torch.zeros(1, bands, side, side, device="meta")
    with torch.inference_mode(), _Living() as living:
        ghost(image)
    return int(living.most) >> 20


def _legal(model: nn.Module, side: int) -> int:
    """The next side that the net takes [px]."""
    if not isinstance(model, UNet2015):
        return side
    return unet2015.GEOMETRY.window(max(side - 2 * unet2015.GEOMETRY.border, 1))


class _Living(TorchDispatchMode):
    """Counts the bytes of the arrays that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._known: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                ref = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._known[ref] = storage.nbytes()
        gone = [ref for ref in self._known if ref.expired()]  # type: ignore[no-untyped-call]
        for ref in gone:
            del self._known[ref]
        self.most = max(self.most, sum(self._known.values()))
        return result


def _storage(tensor: Tensor) -> int:
    """The number of the memory that a tensor looks at, which others may share."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)  # type: ignore[no-untyped-call]
