"""Places to cut training chips of scenes at, so that rare classes are seen too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.census import BlockFacts
from whatwhere.data.facts import Facts
from whatwhere.data.sources import Pair
from whatwhere.types import Classes

Places = NDArray[np.int32]


@dataclass(frozen=True)
class Draws:
    """Where pixels of each class lie in some blocks.

    Attributes:
        share: Of the chips that are drawn around a pixel of a class drawn evenly.
        classes: For each class that is there: the blocks that have it, the share of its pixels
            that each of them has, and `(N, 2)` rows and columns in each.
        blocks: For each block the places of all its classes.
    """

    share: float
    classes: tuple[tuple[NDArray[np.int64], NDArray[np.float64], tuple[Places, ...]], ...]
    blocks: tuple[tuple[Places, ...], ...]

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], facts: Mapping[str, Facts], classes: Classes, share: float
    ) -> Draws | None:
        """Make it of what the survey found; None where the pairs are not blocks of scenes."""
        mine = [facts[pair.key] for pair in pairs]
        there = [one for one in mine if isinstance(one, BlockFacts)]
        if len(there) < len(mine):
            return None
        by_class, by_block = [], [list[Places]() for _ in there]
        for info in classes:
            found = []
            for i, one in enumerate(there):
                places = [one.places[number] for number in info.raw if number in one.places]
                if places:
                    pixels = sum(one.numbers[0][number] for number in info.raw)
                    found.append((i, pixels, np.concatenate(places)))
                    by_block[i].append(found[-1][2])
            if found:
                which, weights, where = zip(*found, strict=True)
                total = np.array(weights, dtype=np.float64)
                by_class.append((np.array(which), total / total.sum(), tuple(where)))
        return cls(share, tuple(by_class), tuple(tuple(places) for places in by_block))

    def anywhere(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draw a class evenly, and one of its pixels: the block, and row and column."""
        which, weights, places = self.classes[int(rng.integers(len(self.classes)))]
        at = int(rng.choice(len(which), p=weights))
        return int(which[at]), self._one(places[at], rng)

    def within(self, block: int, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draw a class of a block evenly, and one of its pixels; of another one if it has none."""
        places = self.blocks[block]
        if not places:
            return self.anywhere(rng)
        return block, self._one(places[int(rng.integers(len(places)))], rng)

    def _one(self, places: Places, rng: np.random.Generator) -> tuple[int, int]:
        row, column = places[int(rng.integers(len(places)))].tolist()
        return row, column
