"""Which blocks of scenes train, which validate, which test: dealt by area, apart on the ground."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.census import BlockFacts
from whatwhere.data.doctor import Survey
from whatwhere.data.scenes import Block, Scene
from whatwhere.data.sources import SPLITS, Pair, Split
from whatwhere.errors import DataError, Problem
from whatwhere.grid import Grid
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_points, move_shapes
from whatwhere.io.vector import write_features
from whatwhere.types import Classes

Box = tuple[float, float, float, float]
_FEW = 4
_TOUCH = 1e-3  # share of a rectangle's side that two may overlap by rounding


def deal_blocks(
    survey: Survey, classes: Classes, shares: tuple[float, float, float], seed: int
) -> dict[Split, list[Pair]]:
    """Return the blocks of each split.

    Splits that a list gives are kept; a validation split that it lacks is taken from the training
    blocks. Else all are dealt by the seed: for each class, the rarest first, to the side that lacks
    it most, so that every class trains. Blocks that show the same ground, or are identical, go to
    one side.

    Raises:
        DataError: There are not enough blocks, or scenes of different splits overlap.
    """
    blocks = [pair for pair in survey.pairs if isinstance(pair, Block)]
    if any(block.split for block in blocks):
        _require_apart([block.scene for block in blocks])
        given: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
        for block in blocks:
            given[block.split or "train"].append(block)
        if given["val"] or not given["train"]:
            if not given["train"]:
                raise DataError("no scene that has labels is in the training split.")
            return given
        trained = [block for block in blocks if (block.split or "train") == "train"]
        rest = (shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1]), 0.0)
        dealt = _deal(survey, trained, classes, rest, seed)
        return {**dealt, "test": given["test"]}
    return _deal(survey, blocks, classes, shares, seed)


def _deal(
    survey: Survey,
    blocks: Sequence[Block],
    classes: Classes,
    shares: tuple[float, float, float],
    seed: int,
) -> dict[Split, list[Pair]]:
    groups = _groups(survey, blocks)
    if len(groups) < 2:
        raise DataError(
            f"there {'is' if len(groups) == 1 else 'are'} {len(groups)} block"
            f"{'s' * (len(groups) != 1)} with labels: at least 2 are needed, one to train on and "
            "one to validate on. Give a larger scene, a smaller --chip-size, or the splits in a "
            "data.toml."
        )
    counts = np.array([_pixels(survey, group, classes) for group in groups], dtype=np.float64)
    order = np.random.Generator(np.random.Philox(key=[seed, 4])).permutation(len(groups))
    sides = _assign(counts[order], np.array(shares))
    dealt: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for which, side in zip(order, sides, strict=True):
        dealt[SPLITS[side]] += groups[which]
    for split in SPLITS:
        dealt[split].sort(key=lambda pair: pair.key)
    return dealt


def _assign(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> list[int]:
    """Deal groups `(N, K)` of pixels of each class out: the place in `shares` of each.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", 2011,
    with pixels in the place of examples.
    """
    wanted = shares[:, None] * counts.sum(axis=0)
    had = np.zeros_like(wanted)
    side = np.full(len(counts), -1)
    spread = (counts > 0).sum(axis=0)
    for kind in sorted(range(counts.shape[1]), key=lambda k: (spread[k], counts[:, k].sum())):
        have = np.flatnonzero(counts[:, kind] > 0)
        if len(have) <= _FEW:  # of a class in few places the largest trains
            have = have[np.argsort(-counts[have, kind], kind="stable")]
        for i in have:
            if side[i] >= 0:
                continue
            lack = np.where(
                wanted[:, kind] > 0,
                1 - had[:, kind] / np.maximum(wanted[:, kind], 1e-12),
                -np.inf,
            )
            side[i] = int(np.argmax(lack))
            had[side[i]] += counts[i]
    side[side < 0] = 0
    needed = [1] if shares[2] == 0 or len(counts) < 3 else [1, 2]
    for split in needed:  # a side that is still empty takes the group that train misses least
        if not (side == split).any():
            mine = np.flatnonzero(side == 0)
            loss = [(counts[mine].sum(axis=0) - counts[i] <= 0).sum() for i in mine]
            side[mine[int(np.argmin(loss))]] = split
    return [int(one) for one in side]


def _pixels(survey: Survey, group: Sequence[Block], classes: Classes) -> list[int]:
    found = [survey.facts[block.key].numbers[0] for block in group]
    return [sum(one[number] for one in found for number in info.raw) for info in classes]


def _groups(survey: Survey, blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that must stay on one side: identical ones, and those of one ground."""
    top = list(range(len(blocks)))

    def root(i: int) -> int:
        while top[i] != i:
            i = top[i]
        return i

    first: dict[str, int] = {}
    for i, block in enumerate(blocks):
        digest = survey.facts[block.key].digest
        top[root(i)] = root(first.setdefault(digest, i))
    if len({id(block.scene) for block in blocks}) > 1:
        boxes = [ground_box(block.scene.raster.grid.part(block.window)) for block in blocks]
        for i, j in itertools.combinations(range(len(blocks)), 2):
            if blocks[i].scene is not blocks[j].scene and overlap(boxes[i], boxes[j]):
                top[root(i)] = root(j)
    groups: dict[int, list[Block]] = {}
    for i, block in enumerate(blocks):
        groups.setdefault(root(i), []).append(block)
    return list(groups.values())


def ground_box(grid: Grid) -> Box | None:
    """West, south, east and north of a grid in degrees; None where it has no place."""
    if not grid.crs:
        return None
    xs, ys = (np.array(one, dtype=np.float64) for one in zip(*grid.corners, strict=True))
    xs, ys = move_points(xs, ys, grid.crs, LONGITUDE_LATITUDE)
    box = float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
    return box if np.isfinite(box).all() else None


def overlap(one: Box | None, other: Box | None) -> bool:
    """Whether two rectangles share more than an edge."""
    if one is None or other is None:
        return False
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    wide = min(one[2] - one[0], other[2] - other[0])
    high = min(one[3] - one[1], other[3] - other[1])
    return across > _TOUCH * wide and down > _TOUCH * high


def _require_apart(scenes: Sequence[Scene]) -> None:
    """Refuse scenes of different splits that show the same ground."""
    unique = list({id(scene): scene for scene in scenes}.values())
    boxes = [ground_box(scene.raster.grid) for scene in unique]
    problems = [
        Problem(
            "error",
            str(unique[i].raster.path),
            f"it shows ground that {unique[j].raster.path} shows too, and one is in the split "
            f"{unique[i].split or 'train'}, the other in {unique[j].split or 'train'}.",
            "Put both into one split, or cut one off.",
        )
        for i, j in itertools.combinations(range(len(unique)), 2)
        if (unique[i].split or "train") != (unique[j].split or "train")
        and overlap(boxes[i], boxes[j])
    ]
    if problems:
        raise DataError("\n".join(str(problem) for problem in problems), problems)


def keep_apart(
    survey: Survey, splits: Mapping[Split, Sequence[Pair]]
) -> tuple[Survey, dict[Split, list[Pair]]]:
    """Move the sides of training blocks back where a block of another split touches them.

    Returns:
        The survey with the facts of what is left, and the splits; training blocks of which nothing
        that counts is left are gone.
    """
    where = {
        (id(pair.scene), *pair.at): split
        for split, pairs in splits.items()
        for pair in pairs
        if isinstance(pair, Block)
    }
    facts = dict(survey.facts)
    train: list[Pair] = []
    for pair in splits["train"]:
        mine = facts[pair.key]
        if isinstance(pair, Block) and isinstance(mine, BlockFacts):
            row, column = pair.at
            beside = ((row - 1, column), (row, column - 1), (row + 1, column), (row, column + 1))
            sides = [where.get((id(pair.scene), *at), "train") != "train" for at in beside]
            if any(sides) and mine.gap:
                window, left = mine.trimmed((sides[0], sides[1], sides[2], sides[3]))
                facts[pair.key] = left
                pair = pair.part(window)
                if not left.numbers[0].total():
                    del facts[pair.key]
                    continue
        train.append(pair)
    return dataclasses.replace(survey, facts=facts), {**splits, "train": train}  # type: ignore[dict-item]


def write_splits(path: Path, splits: Mapping[Split, Sequence[Pair]]) -> None:
    """Write where the blocks of all splits lie, as GeoJSON; nothing for images without a place.

    Raises:
        OutputError: It cannot be written.
    """
    import shapely

    rows = [
        (split, pair)
        for split, pairs in splits.items()
        for pair in pairs
        if isinstance(pair, Block) and pair.scene.raster.grid.crs
    ]
    if not rows:
        return
    shapes = []
    for _, block in rows:
        grid = block.scene.raster.grid.part(block.window)
        square = np.array([shapely.Polygon(grid.corners)])
        shapes.append(move_shapes(square, grid.crs, LONGITUDE_LATITUDE)[0])
    columns: dict[str, NDArray[Any]] = {
        "scene": np.array([block.scene.name for _, block in rows]),
        "split": np.array([split for split, _ in rows]),
        "key": np.array([block.key for _, block in rows]),
    }
    for name in ("row", "column", "height", "width"):
        columns[name] = np.array([getattr(block.window, name) for _, block in rows])
    write_features(path, LONGITUDE_LATITUDE, np.array(shapes), columns)
