"""How scenes are cut into blocks, and blocks into chips: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whatwhere.tiling import reflect
from whatwhere.types import Window

_USUAL_CHIP = 256


def block_side(sizes: Sequence[tuple[int, int]], chip: int) -> int:
    """Choose the side of blocks [px]: enough blocks to deal out, and room for chips in each.

    Args:
        sizes: (height, width) of the scenes [px].
        chip: Side of a chip [px]; 0 for the usual one.
    """
    longest = max((max(size) for size in sizes), default=0)
    sides = range(128, max(129, min(2048, longest + 63) + 1), 64)
    roomy = [side for side in sides if 2 * side >= 3 * (chip or _USUAL_CHIP)]
    counts = {
        side: sum(len(edges(h, side)) * len(edges(w, side)) for h, w in sizes) for side in sides
    }
    steps: list[tuple[int, list[int]]] = [
        (30, roomy),
        (20, roomy),
        *([] if chip == 0 else [(9, roomy)]),
        (20, [*sides]),
    ]
    for least, among in steps:
        fitting = [side for side in among if counts[side] >= least]
        if fitting:
            return max(fitting)
    return sides[0]


def usual_chip(side: int) -> int:
    """Return the side of chips for blocks of a side [px]: up to 256, two thirds of a block."""
    fitting = side * 2 // 96 * 32
    return min(_USUAL_CHIP, max(32, fitting))


def edges(length: int, side: int) -> list[tuple[int, int]]:
    """First pixel and length of each block along a side; a rest below one half joins the last."""
    count = max(1, (length + side // 2) // side)
    starts = [i * side for i in range(count)]
    return [
        (start, (length if i == count - 1 else start + side) - start)
        for i, start in enumerate(starts)
    ]


def chip_starts(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """First pixel of each chip along a side, and how many of its pixels the one before it has.

    The last chip is moved back to end where the side does.

    Args:
        length: Of the side [px].
        side: Of a chip [px].
        overlap: What neighbours share at the least [px], below `side`.
    """
    found, end = [], 0
    for wanted in range(0, max(1, length - overlap), side - overlap):
        start = max(0, min(wanted, length - side))
        found.append((start, max(0, end - start)))
        end = start + side
    return found


def draw_start(length: int, side: int, around: int | None, rng: np.random.Generator) -> int:
    """Draw the first pixel of a side of a chip, so that it holds one place."""
    low, high = 0, length - side
    if around is not None:
        low, high = max(low, around - side + 1), min(high, around)
    return int(rng.integers(low, high + 1))


def shown(
    window: Window, whole: tuple[int, int], size: tuple[int, int], first: tuple[int, int]
) -> Window:
    """Return what a chip with its border shows of an image, mirrored parts included."""
    spans = []
    for start, before, side, length in zip(
        (window.row, window.column), first, size, whole, strict=True
    ):
        seen = reflect(np.arange(side) + start - before, length)
        spans.append((int(seen.min()), int(seen.max()) + 1))
    (top, bottom), (left, right) = spans
    return Window(top, left, bottom - top, right - left)
