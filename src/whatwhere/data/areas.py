"""Which blocks of scenes train, which validate, which test: dealt by area, apart on the ground."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.census import BlockFacts
from whatwhere.data.doctor import Survey
from whatwhere.data.facts import Facts
from whatwhere.data.scenes import Block, SceneSource
from whatwhere.data.sources import SPLITS, Pair, Split
from whatwhere.errors import DataError, Problem
from whatwhere.io.crs import LONGITUDE_LATITUDE, move_shapes
from whatwhere.io.footprints import Ground, outline
from whatwhere.io.vector import read_features, write_features
from whatwhere.types import Classes, Window

Sides = tuple[bool, bool, bool, bool]
"""Top, left, bottom, right."""

_NONE: Sides = (False, False, False, False)
_FEW = 4


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
        _require_apart(blocks)
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
    if len(groups) < 2 and len(blocks) > 1:
        raise DataError(
            f"the {len(blocks)} blocks with labels are alike, or of one ground, as scenes overlap: "
            "they cannot be dealt out. Cut off what is there twice, or give the splits in a "
            "data.toml."
        )
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
    for i, j in _same_ground(blocks):
        top[root(i)] = root(j)
    groups: dict[int, list[Block]] = {}
    for i, block in enumerate(blocks):
        groups.setdefault(root(i), []).append(block)
    return list(groups.values())


def _finder(blocks: Sequence[Block], reach: float) -> Callable[[Block], list[int]]:
    """Return what tells which of some blocks come nearer to one than so many of its pixels.

    Scenes without coordinates lie each in a world of its own.
    """

    def world(block: Block) -> int:
        return 0 if block.scene.raster.grid.is_placed else id(block.scene)

    members: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        members.setdefault(world(block), []).append(i)
    grounds = {}
    for where, numbers in members.items():
        grids = [blocks[i].scene.raster.grid.part(blocks[i].window) for i in numbers]
        shapes = np.array([outline(grid) for grid in grids], dtype=object)
        grounds[where] = Ground([grid.crs for grid in grids], shapes, reach)

    def near(block: Block) -> list[int]:
        where = world(block)
        if where not in grounds:
            return []
        found = grounds[where].near(block.scene.raster.grid, block.window)
        return [members[where][i] for i in sorted(found)]

    return near


def _same_ground(blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """Yield which blocks of different scenes show the same ground."""
    if len({id(block.scene) for block in blocks}) < 2:
        return
    near = _finder(blocks, 0)
    for i, block in enumerate(blocks):
        for j in near(block):
            if blocks[j].scene is not block.scene:
                yield i, j


def _require_apart(blocks: Sequence[Block]) -> None:
    """Refuse scenes of different splits that show the same ground."""
    told = {}
    for i, j in _same_ground(blocks):
        one, other = sorted((blocks[i], blocks[j]), key=lambda block: block.scene.name)
        split, its = one.split or "train", other.split or "train"
        if split != its:
            told[one.scene.name, other.scene.name] = Problem(
                "error",
                str(one.image),
                f"it shows ground that {other.image} shows too, and one is in the split {split}, "
                f"the other in {its}.",
                "Put both into one split, or cut one off.",
            )
    problems = [told[names] for names in sorted(told)]
    if problems:
        raise DataError("\n".join(str(problem) for problem in problems), problems)


def with_labels(survey: Survey, classes: Classes) -> Survey:
    """Return a survey without the blocks in which no pixel is of a class."""
    if not isinstance(survey.source, SceneSource):
        return survey
    facts = {key: one for key, one in survey.facts.items() if _counts(one, classes)}
    return dataclasses.replace(survey, facts=facts)


def _counts(facts: Facts, classes: Classes) -> bool:
    return any(facts.numbers[0][number] for info in classes for number in info.raw)


def keep_apart(
    survey: Survey, splits: Mapping[Split, Sequence[Pair]], classes: Classes
) -> tuple[Survey, dict[Split, list[Pair]]]:
    """Move the sides of training blocks back where a block of another split is near.

    Returns:
        The survey with the facts of what is left, and the splits; training blocks of which nothing
        that counts is left are gone.
    """
    held = [
        pair
        for split, pairs in splits.items()
        for pair in pairs
        if isinstance(pair, Block) and split != "train"
    ]
    gap = max((one.gap for one in survey.facts.values() if isinstance(one, BlockFacts)), default=0)
    if not held or not gap:
        return survey, {split: list(pairs) for split, pairs in splits.items()}
    near = _finder(held, gap)
    facts = dict(survey.facts)
    train: list[Pair] = []
    lost = []
    for pair in splits["train"]:
        mine = facts[pair.key]
        if isinstance(pair, Block) and isinstance(mine, BlockFacts):
            sides = _sides(pair, gap, near)
            window, left = mine.trimmed(sides or _NONE)
            if sides is None or not _counts(left, classes):
                del facts[pair.key]
                lost.append(pair)
                continue
            facts[pair.key], pair = left, pair.part(window)
        train.append(pair)
    problems = survey.problems
    if lost:
        cause = f"{len(lost)} training blocks are too near others, such as {lost[0].key}."
        problem = Problem("warning", str(lost[0].image), cause, "They are left out.")
        problems = (*problems, problem)
    left_over = dataclasses.replace(survey, facts=facts, problems=problems)
    return left_over, {**{split: list(pairs) for split, pairs in splits.items()}, "train": train}


def _sides(block: Block, gap: int, near: Callable[[Block], list[int]]) -> Sides | None:
    """Choose the sides of a block that are moved back by a gap, so that most of it is left.

    None where nothing is left that is near no other.
    """
    best, most = None, 0
    for top, left, bottom, right in itertools.product((False, True), repeat=4):
        height = block.window.height - gap * (top + bottom)
        width = block.window.width - gap * (left + right)
        part = Window(gap * top, gap * left, height, width)
        if min(height, width) > 0 and height * width > most and not near(block.part(part)):
            best, most = (top, left, bottom, right), height * width
    return best


def write_splits(path: Path, splits: Mapping[Split, Sequence[Pair]]) -> None:
    """Write where the blocks of all splits lie, as GeoJSON; nothing for images without a place.

    Raises:
        OutputError: It cannot be written.
    """
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
        place = np.array([outline(grid)], dtype=object)
        shapes.append(move_shapes(place, grid.crs, LONGITUDE_LATITUDE)[0])
    columns: dict[str, NDArray[Any]] = {
        "scene": np.array([block.scene.name for _, block in rows]),
        "split": np.array([split for split, _ in rows]),
        "key": np.array([block.key for _, block in rows]),
    }
    for name in ("row", "column", "height", "width"):
        columns[name] = np.array([getattr(block.window, name) for _, block in rows])
    write_features(path, LONGITUDE_LATITUDE, np.array(shapes), columns)


def same_ground(path: Path, pairs: Sequence[Pair]) -> dict[str, set[str]]:
    """Return the keys of blocks that show ground of a run's blocks, by these blocks' split.

    Args:
        path: As `write_splits` wrote it; where there is none, nothing is known.
        pairs: Of any data; images lie nowhere.

    Raises:
        DataError: The file is damaged.
    """
    blocks = [pair for pair in pairs if isinstance(pair, Block) and pair.scene.raster.grid.crs]
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    if not blocks or not path.is_file():
        return found
    seen = read_features(path, field="split")
    ground = Ground([seen.crs] * len(seen.shapes), seen.shapes, 0)
    for block in blocks:
        for i in ground.near(block.scene.raster.grid, block.window):
            found.setdefault(seen.values[i], set()).add(block.key)
    return found
