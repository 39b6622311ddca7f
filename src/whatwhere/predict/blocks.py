"""The probabilities of any window of a raster: a pure function of the window."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.bundle import Card
from whatwhere.errors import DataError
from whatwhere.io.raster import Raster
from whatwhere.io.scaled import Scaled, positions, reach, scaled, stretch
from whatwhere.predict.engine import Predictor
from whatwhere.symmetries import Symmetry, turn, turn_back
from whatwhere.talk import difference
from whatwhere.tiling import Lattice, Span, lattice_spans
from whatwhere.types import Bands, Image, Valid, Window

_REMEMBERED = 2**28
"""Bytes of answers that are kept where tiles reach into several blocks."""


@dataclass(frozen=True)
class Answer:
    """What the nets say of a window.

    Attributes:
        probabilities: `(K, H, W)` float32 in [0, 1], the mean over nets and symmetries.
        spread: `(H, W)` in [0, 1]: twice the largest standard deviation of a class' probability
            over nets and symmetries; None where there is only one answer.
        valid: `(H, W)`: where the raster has data.
    """

    probabilities: Image
    spread: NDArray[np.float32] | None
    valid: Valid


@dataclass(frozen=True)
class Back:
    """How answers at the nets' pixel size are brought back to the raster's own.

    Attributes:
        rows: `(H,)` places of the raster's pixels among those that were seen.
        columns: `(W,)` the same.
        radius: Over which answers are weighted [px].
        valid: `(H, W)`: where the raster has data.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    radius: float
    valid: Valid


@dataclass(frozen=True)
class Seen:
    """What was read for a window.

    Attributes:
        window: Of the raster, or of the scaled one.
        around: The window with what tiles need around it.
        rows: One side of the tiles.
        columns: The other side.
        pixels: `(C, h, w)` of `around`; None where it is known that nothing is there.
        there: `(h, w)`: where they are valid.
        valid: `(H, W)`: the same of the window.
        back: How answers are brought back to the raster's own pixels; None where they are.
        origin: Tells the raster from others.
    """

    window: Window
    around: Window
    rows: Sequence[Span]
    columns: Sequence[Span]
    pixels: NDArray[np.generic] | None
    there: Valid
    valid: Valid
    back: Back | None
    origin: Hashable


@dataclass
class Segmenter:
    """One net or several, and how they go over a raster.

    `read` may run in another thread than `answer`.

    Attributes:
        members: The nets, of the same classes and bands.
        lattice: How tiles lie.
        symmetries: In which each tile is looked at.
        batch: Tiles that go through a net together.
        numbers: The positions of the bands in the raster.
        factor: How many pixels the nets see in the place of one of the raster's, along a side.
        disagreement: The most that blending moved a probability from what the tile said that sees
            the pixel nearer its middle: an estimate of what a seam shows; 0 where halos are
            discarded.
    """

    members: Sequence[Predictor]
    lattice: Lattice
    symmetries: Sequence[Symmetry]
    batch: int
    numbers: tuple[int, ...]
    factor: float = 1.0
    disagreement: float = field(default=0.0, init=False)
    _known: OrderedDict[Any, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    @property
    def outputs(self) -> int:
        """How many probabilities a pixel has."""
        return self.members[0].card.classes.n_outputs

    def read(self, raster: Raster | Scaled, window: Window) -> Seen:
        """Read a window of a raster and what the nets need around it.

        Raises:
            DataError: The raster is damaged there.
        """
        if self.factor == 1 or isinstance(raster, Scaled):
            return self._read(raster, window, None)
        source = scaled(raster, self.factor)
        rows = positions(window.row, window.height, 1 / self.factor)
        columns = positions(window.column, window.width, 1 / self.factor)
        radius = max(1.0, self.factor)
        (first, last), (left, right) = reach(rows, radius), reach(columns, radius)
        first, left = max(first, 0), max(left, 0)
        last, right = min(last, source.size[0]), min(right, source.size[1])
        _, valid = raster.read(window, self.numbers)
        back = Back(rows - first, columns - left, radius, valid)
        return self._read(source, Window(first, left, last - first, right - left), back)

    def _read(self, source: Raster | Scaled, window: Window, back: Back | None) -> Seen:
        height, width = source.size
        rows = lattice_spans(self.lattice, window.row, window.row + window.height, height)
        columns = lattice_spans(self.lattice, window.column, window.column + window.width, width)
        top, left = rows[0].start, columns[0].start
        bottom = max(span.start + span.length for span in rows)
        right = max(span.start + span.length for span in columns)
        around = Window(top, left, bottom - top, right - left)
        if source.is_empty(window, self.numbers):
            nothing = np.zeros((window.height, window.width), dtype=np.bool_)
            return Seen(window, around, rows, columns, None, nothing, nothing, back, None)
        pixels, there = source.read_around(around, self.numbers)
        inside = Window(window.row - top, window.column - left, window.height, window.width)
        raster = source.raster if isinstance(source, Scaled) else source
        origin = (raster.path, raster.state, source.size)
        valid = there[inside.slices]
        return Seen(window, around, rows, columns, pixels, there, valid, back, origin)

    def answer(self, seen: Seen) -> Answer:
        """Segment what was read.

        Raises:
            NumericsError: A net's output is not finite.
        """
        found = self._answer(seen)
        back = seen.back
        if back is None:
            return found
        spread = None
        if found.spread is not None:
            spread = stretch(found.spread[None], back.rows, back.columns, back.radius)[0]
        stretched = stretch(found.probabilities, back.rows, back.columns, back.radius)
        return Answer(np.clip(stretched, 0, 1), spread, back.valid)

    def _answer(self, seen: Seen) -> Answer:
        window, valid = seen.window, seen.valid
        top, left = seen.around.row, seen.around.column
        total = np.zeros((self.outputs, window.height, window.width), dtype=np.float32)
        many = len(self.members) * len(self.symmetries) > 1
        spread = np.zeros((window.height, window.width), dtype=np.float32) if many else None
        # A pixel of the raster may have data where the larger one that covers it has none.
        whole = seen.back is not None and seen.pixels is not None and bool(seen.back.valid.any())
        tiles = [
            tile
            for tile in itertools.product(seen.rows, seen.columns)
            if whole or valid[_within(tile, window).slices].any()
        ]
        parts: list[tuple[Window, NDArray[np.float32], NDArray[np.float32]]] = []
        for group in _batches(tiles, 1 if self.lattice.blend else self.batch):
            means, spreads = self._answers(seen, group, (top, left))
            for tile, mean, apart in zip(group, means, spreads, strict=True):
                place, used = _within(tile, window).slices, _used(tile).slices
                weights = tile[0].weights[:, None] * tile[1].weights[None]
                if not self.lattice.blend:
                    total[:, *place] = mean[:, *used]
                else:
                    total[:, *place] += weights * mean[:, *used]
                    parts.append((_within(tile, window), weights, mean[:, *used]))
                if spread is not None:
                    spread[place] += weights * apart[used]
        for place_of, weights, mean in parts:
            apart = np.abs(mean - total[:, *place_of.slices]).max(axis=0)
            shared = (weights < 1) & valid[place_of.slices]
            # Of two tiles the one that sees a pixel nearer its middle is taken to be right.
            w = weights[shared]
            seams = apart[shared] * np.minimum(w, 1 - w) / (1 - w)
            self.disagreement = max(self.disagreement, float(seams.max(initial=0)))
        return Answer(total, spread, valid)

    def _answers(
        self, seen: Seen, group: Sequence[tuple[Span, Span]], corner: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run tiles, or remember them: a tile that is blended reaches into several blocks."""
        if not self.lattice.blend:
            return self._run(seen, group, corner)
        ((down, across),) = group
        key = (seen.origin, down.start, across.start)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._run(seen, group, corner)
        self._known[key] = found
        while sum(part.nbytes for one in self._known.values() for part in one) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _run(
        self,
        seen: Seen,
        group: Sequence[tuple[Span, Span]],
        corner: tuple[int, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run tiles of one size; means `(N, K, h, w)` and spreads `(N, h, w)`."""
        cuts = [
            Window(
                down.start - corner[0], across.start - corner[1], down.length, across.length
            ).slices
            for down, across in group
        ]
        pixels = seen.pixels
        if pixels is None or not self.members:
            raise DataError("there is nothing to segment, or no net to do it.")
        total: NDArray[np.float32] | None = None
        squares: NDArray[np.float32] | None = None
        for member in self.members:
            images = []
            for cut in cuts:
                images.append(member.prepare(pixels[:, *cut], seen.there[cut]))
            stack = images[0][None] if len(images) == 1 else np.stack(images)
            for symmetry in self.symmetries:
                found = turn_back(
                    member.backend.run(np.ascontiguousarray(turn(stack, symmetry))), symmetry
                )
                if len(self.members) * len(self.symmetries) == 1:
                    return found, np.zeros((len(found), *found.shape[-2:]), dtype=np.float32)
                total = found if total is None else total + found
                squares = found**2 if squares is None else squares + found**2
        if total is None or squares is None:
            raise DataError("a tile is looked at in no symmetry.")
        count = len(self.members) * len(self.symmetries)
        mean: NDArray[np.float32] = total / np.float32(count)
        variance = np.maximum(squares / np.float32(count) - mean**2, 0).max(axis=1)
        spreads: NDArray[np.float32] = np.minimum(2 * np.sqrt(variance), np.float32(1))
        return mean, spreads


def bands_in(card: Card, raster: Raster) -> tuple[int, ...]:
    """Return the positions of a net's bands in a raster: by name where names are known.

    Raises:
        DataError: The raster does not have them; the message shows both.
    """
    bands: Bands = card.bands
    found = raster.find(bands.names, bands.numbers)
    if found is not None:
        return found
    here = ", ".join(f"{n} {name}" for n, name in zip(raster.numbers, raster.names, strict=True))
    want = ", ".join(
        f"{bands.numbers[i]} {name}" if bands.numbers else name
        for i, name in enumerate(bands.names)
    )
    table = difference([("bands", here, want)], ("in the raster", "of the net"))
    raise DataError(
        f"{raster.path}: it does not have the bands the net was trained on:\n{table}\n"
        "Name the raster's bands, or bring them into the net's order."
    )


def _within(tile: tuple[Span, Span], window: Window) -> Window:
    """What of a tile is used, in the window's own pixels."""
    down, across = tile
    return Window(down.first - window.row, across.first - window.column, down.count, across.count)


def _used(tile: tuple[Span, Span]) -> Window:
    """What of a tile's result is used."""
    down, across = tile
    return Window(down.skip, across.skip, down.count, across.count)


def _batches(tiles: Sequence[tuple[Span, Span]], size: int) -> Iterator[list[tuple[Span, Span]]]:
    """Yield groups of at most `size` tiles that are equally large."""
    groups: dict[tuple[int, int], list[tuple[Span, Span]]] = {}
    for tile in tiles:
        groups.setdefault((tile[0].length, tile[1].length), []).append(tile)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
