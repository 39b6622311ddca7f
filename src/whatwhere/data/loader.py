"""Chips and batches: what a net sees in training and validation."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from whatwhere.data.augment import Augmentation, apply, draw
from whatwhere.data.draws import Draws
from whatwhere.data.epochs import order_of
from whatwhere.data.labels import read_labels, read_pixels
from whatwhere.data.lattice import draw_start, shown
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Pair
from whatwhere.errors import DataError, ShapeError
from whatwhere.io.image import State, check_state, resize_image, resize_nearest
from whatwhere.machine import memory_mb
from whatwhere.tiling import mirror
from whatwhere.types import Bands, Classes, Geometry, Image, Labels, Normalization, Valid, Window

_PLAIN = Geometry(stride=1, margin=0)

PATIENCE_S = 900
"""How long a batch of a process that reads ahead is waited for [s]."""

_LOOK_S = 5.0  # how often a process that reads ahead looks whether anybody still wants it [s]

AUTO_CHIP = 256
"""The longest side of a chip when none is asked for [px]."""


@dataclass(frozen=True)
class Reader:
    """Reads pairs the way the net sees them.

    Attributes:
        bands: Which bands are taken.
        classes: What the masks' numbers mean.
        normalization: What is subtracted and divided by.
        resize: (height, width) that images are stretched to first [px]; None keeps their own.
    """

    bands: Bands
    classes: Classes
    normalization: Normalization
    resize: tuple[int, int] | None = None

    def __call__(self, pair: Pair) -> tuple[Image, Labels, Valid]:
        """Read one pair.

        Returns:
            The image `(C, H, W)`, normalised, 0 where it is not valid; the labels `(H, W)`, or
            `(K, H, W)` for a multi-label set; and which pixels count `(H, W)`.

        Raises:
            DataError: A file cannot be read, or is not what the survey found.
        """
        try:
            pixels, valid = read_pixels(pair, self.bands)
            image = self.normalization.apply(pixels)
        except ShapeError as error:
            raise DataError(f"{pair.image}: {error}") from error
        labels, counted = read_labels(pair, self.classes, valid)
        if labels.shape[-2:] != valid.shape:
            raise DataError(f"{pair.masks[0]}: the mask is not of its image's size.")
        image[:, ~valid] = 0
        counted = counted & valid
        if self.resize:
            image = resize_image(image, *self.resize)
            labels = resize_nearest(labels, *self.resize)
            counted = resize_nearest(counted, *self.resize)
        return image, labels, counted


def chip_shape(sizes: Sequence[tuple[int, int]], asked: int) -> tuple[int, int]:
    """Decide how large chips are.

    Args:
        sizes: (height, width) of the images as the net sees them [px].
        asked: A side [px]; 0 takes images that are all of one size up to 256 px whole, and cuts
            256 px or the longest side else.
    """
    if asked:
        return asked, asked
    longest = max(max(size) for size in sizes)
    if len(set(sizes)) == 1 and longest <= AUTO_CHIP:
        return sizes[0]
    side = min(AUTO_CHIP, longest)
    return side, side


class Chip(TypedDict):
    """One chip: arrays of the chip's size, its own number, and the epoch it was cut for."""

    image: Image
    labels: NDArray[np.uint8]
    valid: Valid
    index: int
    epoch: int


@dataclass(frozen=True)
class Place:
    """Where a chip is cut.

    Attributes:
        which: The number of the pair.
        window: What is cut of it.
        before: How many rows and columns, mirrored, the chip has before the window's first ones.
        epoch: From 0.
        index: The chip's own number.
    """

    which: int
    window: Window
    before: tuple[int, int]
    epoch: int
    index: int


class Batch(TypedDict):
    """A batch.

    Attributes:
        image: `(N, C, H, W)` float32.
        labels: `(N, H, W)` or `(N, K, H, W)` int64.
        valid: `(N, H, W)` bool.
        index: `(N,)` int64, the chips' numbers.
    """

    image: Tensor
    labels: Tensor
    valid: Tensor
    index: Tensor


class Chips(Dataset[Chip]):
    """The chips of some pairs.

    For training an epoch has as many chips of an image as would cover it, at places drawn anew from
    (seed, epoch, index). For validation they cover each image exactly once. What an image lacks to
    a chip, and a chip to a multiple of the net's stride, is mirrored and does not count; in
    training it lies on all sides by turns, so that the net learns edges at any distance from its
    own.

    A net whose result is smaller than what it is given gets chips with that border around them: the
    image's own pixels, mirrored beyond its edges; the result is cut by that border.

    Of a scene's blocks a share of the training chips is drawn around a pixel of a class drawn
    evenly, and none is without a pixel that counts. Of a block that the cache has no room for, only
    what a chip shows is read.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        sizes: Mapping[str, tuple[int, int]],
        reader: Reader,
        shape: tuple[int, int],
        *,
        seed: int,
        training: bool,
        geometry: Geometry = _PLAIN,
        cache_mb: int | None = None,
        draws: Draws | None = None,
        states: Mapping[str, tuple[State | None, ...]] | None = None,
    ) -> None:
        """Plan the chips; nothing is read yet.

        Args:
            pairs: Where they are cut from.
            sizes: (height, width) of the image files, by the pair's key [px].
            reader: Reads the pairs.
            shape: (height, width) of a chip [px].
            seed: What the places are drawn from.
            training: Whether places are drawn, or a lattice is cut.
            geometry: Of the net: training chips come as arrays of a size that it takes.
            cache_mb: Memory for images kept after the first reading, in each process that reads;
                None takes a quarter of what is free.
            draws: Where the classes lie, for training chips of scenes.
            states: Of the files of each pair when they were looked at, by its key; a pair that is
                not in it may have changed.
        """
        self.pairs, self.reader, self.shape = list(pairs), reader, shape
        self.sizes, self.draws = [reader.resize or sizes[pair.key] for pair in pairs], draws
        self.states = states or {}
        self.border = geometry.border
        fitted = training or self.border  # the others are mirrored up by the net itself
        self.padded = tuple(
            geometry.window(side) - 2 * self.border if fitted else side for side in shape
        )
        self.seed, self.training = seed, training
        self.plan = [
            (i, window) for i, size in enumerate(self.sizes) for window in lattice(size, shape)
        ]
        self._cache: dict[int, tuple[Image, NDArray[np.uint8], Valid]] = {}
        self._room = 2**20 * ((memory_mb() or 4096) // 4 if cache_mb is None else cache_mb)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, at: tuple[int, int]) -> Chip:
        """Cut a chip; `at` is (epoch, index)."""
        if not self.training or self.draws is None:
            return self._cut(self.place(at))
        epoch, index = at
        which, rng = self.plan[index][0], self._chance(epoch, index)
        if rng.random() >= self.draws.share:
            place = Place(which, *self._window(self.sizes[which], rng), epoch, index)
            chip = self._cut(place)
            if self._inner(chip["valid"]).any():
                return chip
            which, around = self.draws.within(which, rng)
        else:
            which, around = self.draws.anywhere(rng)
        placed = self._window(self.sizes[which], rng, around)
        return self._cut(Place(which, *placed, epoch, index))

    def place(self, at: tuple[int, int]) -> Place:
        """Say where a chip is cut that does not depend on what the masks show."""
        epoch, index = at
        which, window = self.plan[index]
        if not self.training:
            return Place(which, window, (0, 0), epoch, index)
        rng = self._chance(epoch, index)
        return Place(which, *self._window(self.sizes[which], rng), epoch, index)

    def _chance(self, epoch: int, index: int) -> np.random.Generator:
        key = [self.seed, 2]
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, epoch, index]))

    def _inner(self, valid: Valid) -> Valid:
        """Cut off the border that the net's result does not speak of."""
        height, width = valid.shape
        return valid[self.border : height - self.border, self.border : width - self.border]

    def _cut(self, place: Place) -> Chip:
        """Cut a window of a pair, with so much of what it lacks before its first pixel."""
        size = (self.padded[0] + 2 * self.border, self.padded[1] + 2 * self.border)
        first = (place.before[0] + self.border, place.before[1] + self.border)
        image, labels, valid, window = self._read(place.which, place.window, size, first)
        rows, columns = window.slices
        counts = _surround(valid[rows, columns], size, first)
        if self.border:  # what lies around the chip is there to be seen, by net and loss
            first = (first[0] - window.row, first[1] - window.column)
            counts |= _frame(valid, size, first, self.border)
        else:
            image, labels = image[:, rows, columns], labels[..., rows, columns]
        return Chip(
            image=mirror(image, size, first),
            labels=mirror(labels, size, first),
            valid=counts,
            index=place.index,
            epoch=place.epoch,
        )

    def key(self, index: int) -> str:
        """The key of the pair that a chip is cut from."""
        return self.pairs[self.plan[index][0]].key

    def _window(
        self,
        size: Sequence[int],
        rng: np.random.Generator,
        around: tuple[int, int] | None = None,
    ) -> tuple[Window, tuple[int, int]]:
        """Draw where a chip is cut, and how much of what it lacks goes before its first pixel.

        Args:
            size: (height, width) of the image [px].
            rng: What is drawn from.
            around: A row and column that the chip is to hold; None for any place.
        """
        height, width = min(self.shape[0], size[0]), min(self.shape[1], size[1])
        row = draw_start(size[0], height, None if around is None else around[0], rng)
        column = draw_start(size[1], width, None if around is None else around[1], rng)
        above = int(rng.integers(self.padded[0] - height + 1))
        left = int(rng.integers(self.padded[1] - width + 1))
        return Window(row, column, height, width), (above, left)

    def _read(
        self, which: int, window: Window, size: tuple[int, int], first: tuple[int, int]
    ) -> tuple[Image, NDArray[np.uint8], Valid, Window]:
        """Read a pair, or what a chip shows of a block too large to keep; and where it is in it."""
        if which in self._cache:
            return (*self._cache[which], window)
        pair, start = self.pairs[which], (0, 0)
        if isinstance(pair, Block) and self.weight(which) > self._room:
            part = window
            if self.border:
                part = shown(window, self.sizes[which], size, first)
            pair, start = pair.part(part), (part.row, part.column)
        kept = self._load(pair)
        weight = sum(part.nbytes for part in kept)
        if pair is self.pairs[which] and weight <= self._room:
            self._room -= weight
            self._cache[which] = kept
        row, column = window.row - start[0], window.column - start[1]
        return (*kept, Window(row, column, window.height, window.width))

    def whole(self, which: int) -> tuple[Image, NDArray[np.uint8], Valid]:
        """Read a pair as a whole, and do not keep it.

        Returns:
            The image `(C, H, W)`, normalised; labels `(H, W)` or `(K, H, W)`; what counts `(H, W)`.

        Raises:
            DataError: A file cannot be read, or is not what it was when the set was looked at.
        """
        return self._load(self.pairs[which])

    def _load(self, pair: Pair) -> tuple[Image, NDArray[np.uint8], Valid]:
        for path, state in zip(
            (pair.image, *pair.masks), self.states.get(pair.key, ()), strict=False
        ):
            check_state(path, state)
        image, labels, valid = self.reader(pair)
        return image, labels.astype(np.uint8), valid

    def weight(self, which: int) -> int:
        """How much memory a pair takes [bytes]: float32 bands, labels and validity."""
        (height, width), classes = self.sizes[which], self.reader.classes
        planes = classes.n_outputs if classes.task == "multilabel" else 1
        return height * width * (4 * len(self.reader.bands) + planes + 1)


def lattice(size: tuple[int, int], shape: tuple[int, int]) -> Iterator[Window]:
    """Yield the windows of at most `shape` that cover an image exactly once."""
    for row in range(0, size[0], shape[0]):
        for column in range(0, size[1], shape[1]):
            height, width = min(shape[0], size[0] - row), min(shape[1], size[1] - column)
            yield Window(row, column, height, width)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) for every chip of an epoch: drawn by (seed, epoch), or in order.

    Lightning calls `set_epoch` at the start of each epoch, as torch's distributed sampler wants it.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, most: int = 0) -> None:
        """Take the number of chips, the run's seed, and whether to shuffle.

        Args:
            length: How many chips there are.
            seed: The run's.
            shuffle: Whether they are drawn; else they come in order.
            most: How many an epoch has; 0 for all. Those in order are evenly spread.
        """
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0
        self.most = min(most or length, length)
        self._skipped = 0

    def __len__(self) -> int:
        return self.most

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.most) * self.length // max(self.most, 1)
        if self.shuffle:
            order = order_of(self.length, self.most, self.seed, self.epoch)
        skipped, self._skipped = self._skipped, 0
        return iter([(self.epoch, int(index)) for index in order[skipped:]])

    def skip(self, chips: int) -> None:
        """Leave the first chips of the next pass out: they were seen before."""
        self._skipped = chips

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, from 0."""
        self.epoch = epoch


@dataclass(frozen=True)
class Collate:
    """Joins chips into a batch and augments it."""

    augmentation: Augmentation | None
    seed: int

    def __call__(self, chips: list[Chip]) -> Batch:
        image = torch.from_numpy(np.stack([chip["image"] for chip in chips]))
        labels = torch.from_numpy(np.stack([chip["labels"] for chip in chips]))
        valid = torch.from_numpy(np.stack([chip["valid"] for chip in chips]))
        if self.augmentation:
            size = (image.shape[-2], image.shape[-1])
            changes = [
                draw(self.augmentation, self.seed, chip["epoch"], chip["index"], size)
                for chip in chips
            ]
            image, labels, valid = apply(self.augmentation, image, labels, valid, changes)
        else:
            labels = labels.long()
        index = torch.tensor([chip["index"] for chip in chips])
        return Batch(image=image, labels=labels, valid=valid, index=index)


@dataclass(frozen=True)
class EndsWith:
    """Ends a process that reads ahead when the one that it reads for is gone.

    torch does so, too, but not where that one is killed while the others still start: they would
    stay, with all their memory.

    Attributes:
        parent: The number of the process that is read for.
    """

    parent: int

    def __call__(self, _worker: int) -> None:
        """Begin to watch, in a thread of its own."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(_LOOK_S)
        os._exit(1)


def make_loader(
    chips: Chips,
    batch_size: int,
    *,
    augmentation: Augmentation | None = None,
    workers: int = 0,
    epoch_chips: int = 0,
) -> DataLoader[Any]:
    """Return the batches of an epoch; they are the same whatever the number of workers.

    Args:
        chips: Training chips are shuffled, others stay in order.
        batch_size: Chips in a batch; the last one may be smaller.
        augmentation: How chips are changed.
        workers: Processes that read ahead; 0 reads in this one.
        epoch_chips: Chips in an epoch; 0 for all.
    """
    sampler = EpochSampler(len(chips), chips.seed, chips.training, epoch_chips)
    return DataLoader(
        chips,
        # torch's stubs know whole numbers only; what a sampler yields goes to `Chips` as it is.
        batch_sampler=BatchSampler(cast(Any, sampler), batch_size, drop_last=False),
        collate_fn=Collate(augmentation, chips.seed),
        num_workers=workers,
        worker_init_fn=EndsWith(os.getpid()) if workers and os.name == "posix" else None,
        # Where no signal says that a process died, torch looks for it only without a limit.
        timeout=PATIENCE_S if workers and os.name == "posix" else 0,
        persistent_workers=workers > 0,
        # Else workers would take their seed from the generator that dropout draws from.
        generator=torch.Generator().manual_seed(chips.seed),
        # A forked process would inherit torch's threads half-way through; spawn works everywhere.
        multiprocessing_context="spawn" if workers else None,
    )


def _surround(valid: Valid, shape: tuple[int, int], before: tuple[int, int]) -> Valid:
    """Put a mask into a larger one that is False elsewhere."""
    whole = np.zeros(shape, dtype=np.bool_)
    height, width = valid.shape
    whole[before[0] : before[0] + height, before[1] : before[1] + width] = valid
    return whole


def _frame(valid: Valid, shape: tuple[int, int], first: tuple[int, int], border: int) -> Valid:
    """Where a border of this width holds pixels of the image that count; False within it.

    The net's result is cut by the border, so these pixels weigh nothing; but what lies between
    objects is known by those beyond the chip too.
    """
    rows, columns = np.arange(shape[0]) - first[0], np.arange(shape[1]) - first[1]
    inside = np.outer(
        (rows >= 0) & (rows < valid.shape[0]), (columns >= 0) & (columns < valid.shape[1])
    )
    whole: Valid = inside & mirror(valid, shape, first)
    whole[border : shape[0] - border, border : shape[1] - border] = False
    return whole
