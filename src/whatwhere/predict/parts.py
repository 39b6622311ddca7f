"""Parts: what is made of one block, as small files that know whether they are whole."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.errors import DataError
from whatwhere.grid import Grid
from whatwhere.io.geotiff import (
    TILE,
    Part,
    Pixels,
    Style,
    decode_part,
    empty_part,
    encode_part,
)
from whatwhere.predict.blocks import Answer
from whatwhere.predict.decide import decide
from whatwhere.predict.plan import Plan, grid_of, nodata_of
from whatwhere.predict.polygons import Pieces, decode, encode, find_pieces
from whatwhere.types import Classes, Image, Labels, Window

STEPS = 254
"""A probability of 1 in a raster of bytes; 255 stands for "no data"."""

PIECES = "pieces"
EMPTY = "empty"
"""What stands in the place of all parts of a block without data."""

_STAMP_BYTES = 32


@dataclass(frozen=True)
class Parts:
    """The parts of a prediction, and what they are of.

    Attributes:
        folder: Where they lie.
        plan: What they follow.
    """

    folder: Path
    plan: Plan

    @functools.cached_property
    def classes(self) -> Classes:
        """The class table."""
        return Classes.from_json(self.plan.table)

    @functools.cached_property
    def grid(self) -> Grid:
        """The raster's."""
        return grid_of(self.plan)

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return self.plan.rows * self.plan.columns

    def missing(self) -> list[int]:
        """Return the blocks that are not there."""
        there = (self.path(n, "mask").exists() or self.is_empty(n) for n in range(self.total))
        return [number for number, found in enumerate(there) if not found]

    def is_empty(self, number: int) -> bool:
        """Whether it was noted that a block has no data."""
        path = self.path(number, EMPTY)
        return path.exists() and _bytes(path) == self.plan.stamp.encode("ascii")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The outputs that are rasters."""
        return tuple(kind for kind in self.plan.outputs if kind != PIECES)

    @property
    def levels(self) -> int:
        """How many sizes of the image a part holds: as many as fill whole tiles."""
        return (self.plan.block // TILE).bit_length()

    def path(self, number: int, kind: str) -> Path:
        """Return the file of a block."""
        row, column = divmod(number, self.plan.columns)
        ending = {PIECES: ".npz", EMPTY: ""}.get(kind, ".tif")
        return self.folder / f"{row:05d}-{column:05d}-{kind}{ending}"

    def style(self, kind: str) -> Style:
        """Return what an output's file says of its pixels."""
        classes, stamp = self.classes, self.plan.stamp
        if kind == "mask":
            several = classes.task == "multilabel"
            tags = {f"CLASS_{info.value}": info.name for info in classes} if not several else {}
            return Style(
                bands=len(classes) if several else 1,
                nodata=nodata_of(classes),
                colors={} if several else {info.value: info.color for info in classes},
                names=tuple(classes.names) if several else (),
                tags=tags,
                stamp=stamp,
            )
        names = tuple(info.name for info in classes.labels) if kind == "probabilities" else (kind,)
        return Style(bands=len(names), names=names, scale=1 / STEPS, stamp=stamp)

    def make(self, number: int, answer: Answer) -> None:
        """Decide, and write all parts of a block; the mask, which is looked for, comes last."""
        if not answer.valid.any():
            files.write_text(self.path(number, EMPTY), self.plan.stamp)
            return
        window = self.plan.window(number)
        labels = decide(answer.probabilities, self.classes, self.plan.thresholds)
        place = self.grid.part(window)
        for kind in reversed(self.plan.outputs):
            if kind == PIECES:
                data = self._pieces(labels, answer, window)
            else:
                pixels = self._pixels(kind, labels, answer)
                style = dataclasses.replace(self.style(kind), colors={})
                data = encode_part(place, style, pixels, self.levels)
            files.write_bytes(self.path(number, kind), data)

    def is_done(self, number: int) -> bool:
        """Whether all parts of a block are there, whole, and of this plan."""
        if self.is_empty(number):
            return True
        try:
            for kind in self.plan.outputs:
                if kind == PIECES:
                    self.read_pieces(number)
                else:
                    self.read(number, kind)
        except DataError:
            return False
        return True

    def read(self, number: int, kind: str) -> Part:
        """Read a part.

        Raises:
            DataError: It is missing, damaged, or of another plan.
        """
        path, window = self.path(number, kind), self.plan.window(number)
        if self.is_empty(number):
            return empty_part(window.height, window.width, self.style(kind), self.levels)
        try:
            part = decode_part(_bytes(path))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        size = part.levels[0].height, part.levels[0].width
        if part.stamp != self.plan.stamp or size != (window.height, window.width):
            raise DataError(f"{path}: this part is of another plan. Remove it.")
        return part

    @property
    def layers(self) -> int:
        """How many layers of polygons there are: those of labels may overlap each other."""
        return len(self.classes) if self.classes.task == "multilabel" else 1

    def read_pieces(self, number: int) -> list[Pieces]:
        """Read the pieces of a block, layer by layer; raises as `read` does."""
        path = self.path(number, PIECES)
        if self.is_empty(number):
            window = self.plan.window(number)
            nothing = np.full((window.height, window.width), -1)
            return [find_pieces(nothing, [], nothing.astype(np.float32), window)] * self.layers
        data = _bytes(path)
        head, lengths = data[:_STAMP_BYTES], data[_STAMP_BYTES:][: 8 * self.layers]
        if head.decode("ascii", "replace") != self.plan.stamp or len(lengths) < 8 * self.layers:
            raise DataError(f"{path}: this part is damaged or of another plan. Remove it.")
        found, at = [], _STAMP_BYTES + len(lengths)
        try:
            for (length,) in struct.iter_unpack("<Q", lengths):
                found.append(decode(data[at : at + length]))
                at += length
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return found

    def _pixels(self, kind: str, labels: Labels, answer: Answer) -> Pixels:
        nodata = self.style(kind).nodata
        if kind == "mask":
            if self.classes.task == "multilabel":
                values = labels.astype(np.uint8)
            else:
                table = np.array([info.value for info in self.classes], dtype=np.uint8)
                values = table[labels][None]
        elif kind == "probabilities":
            values = _to_bytes(answer.probabilities)
        elif kind == "entropy":
            values = _to_bytes(entropy(answer.probabilities, self.classes)[None])
        else:
            spread = np.zeros(answer.valid.shape) if answer.spread is None else answer.spread
            values = _to_bytes(spread[None])
        return np.where(answer.valid, values, np.uint8(nodata))

    def _pieces(self, labels: Labels, answer: Answer, window: Window) -> bytes:
        if self.classes.task == "multilabel":
            layers = [
                find_pieces(
                    np.where(plane & answer.valid, i, -1), [i], answer.probabilities[i], window
                )
                for i, plane in enumerate(labels.astype(np.bool_))
            ]
        else:
            wanted = [i for i, info in enumerate(self.classes) if info.role != "background"]
            confidence = confidence_of(answer.probabilities, labels, self.classes)
            shown = np.where(answer.valid, labels, -1)
            layers = [find_pieces(shown, wanted, confidence, window)]
        encoded = [encode(layer) for layer in layers]
        lengths = b"".join(struct.pack("<Q", len(one)) for one in encoded)
        return self.plan.stamp.encode("ascii") + lengths + b"".join(encoded)


def entropy(probabilities: Image, classes: Classes) -> NDArray[np.float32]:
    """Return how undecided each pixel is, `(H, W)` in [0, 1]: Shannon's entropy over its largest.

    Of several labels that do not exclude each other the mean of theirs is taken.
    """
    p = np.clip(probabilities.astype(np.float64), 1e-9, 1)
    if classes.task == "multiclass":
        found = -(p * np.log(p)).sum(axis=0) / np.log(len(classes))
    else:
        q = np.clip(1 - p, 1e-9, 1)
        found = (-(p * np.log(p) + q * np.log(q)) / np.log(2)).mean(axis=0)
    return np.asarray(np.clip(found, 0, 1), dtype=np.float32)


def confidence_of(probabilities: Image, labels: Labels, classes: Classes) -> NDArray[np.float32]:
    """Return the probability of the class that each pixel was given, `(H, W)` in [0, 1]."""
    if classes.task == "binary":
        there, first = labels == 1, probabilities[0]
        return np.asarray(np.where(there, first, 1 - first), dtype=np.float32)
    chosen: NDArray[np.float32] = np.take_along_axis(probabilities, labels[None], axis=0)[0]
    return chosen


def _to_bytes(values: NDArray[np.floating]) -> Pixels:
    rounded: Pixels = np.round(values * STEPS).astype(np.uint8)
    return rounded


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: this part is missing.") from error
    except OSError as error:
        raise DataError(f"{path}: the part cannot be read: {error.strerror}.") from error


def outputs_of(path: Path, kinds: Sequence[str]) -> Mapping[str, Path]:
    """Return the file of each output: `map.tif`, `map_probabilities.tif` and so on."""
    return {
        kind: path if kind == "mask" else path.with_name(f"{path.stem}_{kind}{path.suffix}")
        for kind in kinds
    }
