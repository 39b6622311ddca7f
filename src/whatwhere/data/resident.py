"""Small sets as a whole on the device that trains, where batches are cut at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whatwhere.data.augment import Change, draw, finish
from whatwhere.data.loader import Batch, Chips, Collate, Place
from whatwhere.talk import Talk
from whatwhere.tiling import reflect

_SHARE = 10
"""What is free on a GPU is divided by it: so much may a set take."""


def room_mb(device: str) -> int:
    """How much of a device's memory a set may take [MB]: a tenth of what is free; 0 for no GPU.

    What torch holds since a rehearsal is not free: so what was rehearsed has its room still.
    """
    if device != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info()
    return free // _SHARE // 2**20


def placed(loaders: Sequence[DataLoader[Any]], device: str, talk: Talk) -> list[DataLoader[Any]]:
    """Lay sets on a GPU, where they all have room there; else let batches be copied ahead.

    Args:
        loaders: Of the splits that a training reads.
        device: Where it runs.
        talk: Where the progress of the reading goes, and what was done.

    Returns:
        Loaders of the same batches; what is warped is rounded as the GPU does.

    Raises:
        DataError: A file cannot be read, or is not what it was when the set was looked at.
    """
    total = sum(weight_mb(loader) for loader in loaders)
    if total > room_mb(device):
        return ahead(loaders, device)
    laid = [resident(loader, device, talk) for loader in loaders]
    talk.say(f"data     lies on the GPU, {math.ceil(total):,} MB")
    return laid


def ahead(loaders: Sequence[DataLoader[Any]], device: str) -> list[DataLoader[Any]]:
    """Let a GPU copy the next batch while it computes."""
    for loader in loaders:
        loader.pin_memory = device == "cuda"
    return list(loaders)


def weight_mb(loader: DataLoader[Any]) -> float:
    """How much memory the set of a loader takes on a device [MB].

    Infinitely much where its batches cannot be cut there: of blocks of scenes, whose chips are
    drawn by what the masks show, and for nets whose result is smaller than what they are given.
    """
    chips = loader.dataset
    if not isinstance(chips, Chips) or chips.draws is not None or chips.border:
        return math.inf
    return sum(map(chips.weight, range(len(chips.pairs)))) / 2**20


def resident(loader: DataLoader[Any], device: str, talk: Talk) -> DataLoader[Any]:
    """Return the batches of a loader whose set has a finite weight, cut on a device."""
    chips: Any = loader.dataset
    collate: Any = loader.collate_fn
    return DataLoader(
        Cuts(chips),
        batch_sampler=loader.batch_sampler,
        collate_fn=Gather(Resident.read(chips, device, talk), collate, chips.padded),
        generator=loader.generator,
    )


class Cuts(Dataset[Place]):
    """Where the chips of an epoch are cut, without what they show."""

    def __init__(self, chips: Chips) -> None:
        """Take the chips."""
        self.chips = chips
        self.key = chips.key

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, at: tuple[int, int]) -> Place:
        """Say where a chip is cut; `at` is (epoch, index)."""
        return self.chips.place(at)


@dataclass(frozen=True)
class Resident:
    """All images of a set, one after the other.

    Attributes:
        pixels: `(C, P)` float32, normalised.
        labels: `(K, P)` uint8; K is 1 but for a multi-label set.
        valid: `(P,)` bool.
        starts: Where each image begins.
        widths: Of each image [px].
        several: Whether a pixel has several labels.
    """

    pixels: Tensor
    labels: Tensor
    valid: Tensor
    starts: NDArray[np.int64]
    widths: NDArray[np.int64]
    several: bool

    @classmethod
    def read(cls, chips: Chips, device: str, talk: Talk) -> Resident:
        """Read all images of some chips onto a device.

        Raises:
            DataError: A file cannot be read, or is not what it was when the set was looked at.
        """
        sizes = np.array(chips.sizes, np.int64).reshape(-1, 2)
        ends = np.cumsum(sizes.prod(axis=1))
        starts, total = ends - sizes.prod(axis=1), int(ends[-1])
        held: dict[str, Tensor] = {}
        several = False
        for i in talk.track(range(len(sizes)), "reading the set", len(sizes)):
            parts = chips.whole(i)
            several = parts[1].ndim == 3
            for name, part in zip(("pixels", "labels", "valid"), parts, strict=True):
                flat = torch.from_numpy(np.ascontiguousarray(part).reshape(-1, sizes[i].prod()))
                if name not in held:
                    shape = (len(flat), total)
                    held[name] = torch.empty(shape, dtype=flat.dtype, device=device)
                held[name][:, starts[i] : ends[i]] = flat
        return cls(held["pixels"], held["labels"], held["valid"][0], starts, sizes[:, 1], several)


@dataclass(frozen=True)
class Gather:
    """Cuts a batch out of a set on its device, and augments it there.

    Attributes:
        held: The set.
        collate: What joins and augments the same chips where they are read one by one.
        size: (height, width) of a chip as the net sees it [px].
    """

    held: Resident
    collate: Collate
    size: tuple[int, int]

    def __call__(self, places: Sequence[Place]) -> Batch:
        """Cut the chips of some places."""
        settings = self.collate.augmentation
        changes = [
            draw(settings, self.collate.seed, place.epoch, place.index, self.size)
            if settings
            else None
            for place in places
        ]
        lines = [self._lines(*one) for one in zip(places, changes, strict=True)]
        down, across, rows, columns = (
            torch.from_numpy(np.stack(part)).to(self.held.pixels.device, non_blocking=True)
            for part in zip(*lines, strict=True)
        )
        where = down[:, :, None] + across[:, None, :]
        image = self.held.pixels[:, where].transpose(0, 1).contiguous()
        planes = self.held.labels[:, where].transpose(0, 1)
        valid = self.held.valid[where] & rows[:, :, None] & columns[:, None, :]
        several = self.held.several
        if settings:
            maps = torch.cat([planes, valid.unsqueeze(1)], dim=1).to(image.dtype)
            known = [one for one in changes if one]
            image, labels, valid = finish(settings, image, maps, known, several)
        else:
            labels = planes.long() if several else planes[:, 0].long()
        index = torch.tensor([place.index for place in places])
        return Batch(image=image, labels=labels, valid=valid, index=index)

    def _lines(self, place: Place, change: Change | None) -> tuple[NDArray[Any], ...]:
        """Say which pixels a chip shows: what each of its rows, then columns, adds to an index.

        And which of both lie within what is cut, and not in its mirror image.
        """
        window, lines, inside = place.window, [], []
        sides = (window.height, window.width)
        for size, side, before in zip(self.size, sides, place.before, strict=True):
            at = np.arange(size) - before
            lines.append(reflect(at, side))
            inside.append((at >= 0) & (at < side))
        width = self.held.widths[place.which]
        lines[0] = self.held.starts[place.which] + (window.row + lines[0]) * width
        lines[1] += window.column
        if change:
            for axis, flipped in enumerate((change.flip_rows, change.flip_columns)):
                if flipped:
                    lines[axis], inside[axis] = lines[axis][::-1], inside[axis][::-1]
            if change.transpose:
                lines.reverse()
                inside.reverse()
        return (*lines, *inside)
