"""One pass over the blocks of scenes: what they hold, and what a training draws from."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.doctor import Survey, class_pixels
from whatwhere.data.doctor import survey as survey_pairs
from whatwhere.data.facts import Facts
from whatwhere.data.inputs import Inputs
from whatwhere.data.scenes import Block, SceneSource, Wish, open_scenes
from whatwhere.data.sources import open_source
from whatwhere.errors import DataError, Problem
from whatwhere.talk import Talk
from whatwhere.types import Classes, Valid, Window

MOST_PLACES = 1000
"""Places that are kept of each class in each block."""

_MOST_VALUES = 1_000_000  # pixels that are kept of all scenes, to measure their values
_LEAST_VALUES = 100  # of them that are kept of a block, if it has so many
_THIN = 0.2  # share of the valid pixels in shapes below which their outside is doubtful


@dataclass(frozen=True)
class BlockFacts(Facts):
    """What one block holds.

    Attributes:
        zones: How many pixels that count hold each number, in nine zones: the strips along its
            sides that a gap may take, and the middle; row by row.
        gap: Width of these strips [px].
        whole: Whether every pixel has data.
        places: `(N, 2)` rows and columns of some pixels of each number.
        values: `(C, N)` the values of some valid pixels: an even share of all, and more of blocks
            that have few.
    """

    zones: tuple[Counter[int], ...] = field(repr=False)
    gap: int
    whole: bool
    places: Mapping[int, NDArray[np.int32]] = field(repr=False)
    values: NDArray[Any] = field(repr=False)

    def trimmed(self, sides: tuple[bool, bool, bool, bool]) -> tuple[Window, BlockFacts]:
        """Return what is left, and its facts, without the strips at some sides.

        Args:
            sides: Whether the strip is taken at the top, left, bottom and right.
        """
        top, left, bottom, right = (self.gap * side for side in sides)
        height, width = self.size[0] - top - bottom, self.size[1] - left - right
        kept = [
            zone
            for i, zone in enumerate(self.zones)
            if not (
                (sides[0] and i // 3 == 0)
                or (sides[2] and i // 3 == 2)
                or (sides[1] and i % 3 == 0)
                or (sides[3] and i % 3 == 2)
            )
        ]
        places = {}
        for number, found in self.places.items():
            moved = found - np.array([top, left], dtype=np.int32)
            inside = ((moved >= 0) & (moved < [height, width])).all(axis=1)
            if inside.any():
                places[number] = moved[inside]
        numbers = (sum(kept, Counter[int]()),)
        facts = dataclasses.replace(self, size=(height, width), numbers=numbers, places=places)
        return Window(top, left, height, width), facts


def look(inputs: Inputs, wish: Wish, gap: float, talk: Talk) -> Survey:
    """Look at a data set once, in full: a folder of images and masks, or scenes.

    Args:
        inputs: Where it lies.
        wish: How scenes are to be read.
        gap: Between blocks of different splits, as a share of a chip's side.
        talk: Where the progress goes.

    Raises:
        DataError: There is no such data.
        UsageError: Something was said that means nothing here.
    """
    if not inputs.has_scenes:
        return survey_pairs(open_source(inputs.root, trust=inputs.trust), talk)
    return survey_scenes(open_scenes(inputs, wish), gap, talk)


def survey_scenes(source: SceneSource, gap: float, talk: Talk) -> Survey:
    """Read every block and its labels once, and note what is in them and what is wrong."""
    problems = list(source.problems)
    facts: dict[str, Facts] = {}
    strip = min(round(gap * source.chip), source.side // 4)
    total = sum(scene.raster.size[0] * scene.raster.size[1] for scene in source.scenes)
    share = min(1.0, _MOST_VALUES / max(total, 1))
    least = max(_LEAST_VALUES, _MOST_VALUES // (4 * max(len(source.blocks), 1)))
    data: Counter[str] = Counter()
    broken: set[str] = set()
    if not any(problem.severity == "error" for problem in problems):
        for block in talk.track(source.blocks, "looking at the scenes", len(source.blocks)):
            try:
                found, pixels = _look(block, strip, (share, least))
            except DataError as error:
                problems += error.problems or [Problem("error", str(block.image), str(error), "")]
                broken.add(block.scene.name)
                continue
            data[block.scene.name] += pixels
            if found is not None:
                facts[block.key] = found
        problems += _oddities(source, facts, data, broken)
    order = {"error": 0, "warning": 1, "note": 2}
    problems = list(dict.fromkeys(problems))
    problems.sort(key=lambda problem: order[problem.severity])
    return Survey(source, facts, tuple(problems))


def _look(block: Block, strip: int, sample: tuple[float, int]) -> tuple[BlockFacts | None, int]:
    """Read one block; None where no pixel counts. Also how many pixels have data.

    Args:
        block: What is read.
        strip: Width of the strips along its sides [px].
        sample: Which share of the values is kept, and about how many at the least.
    """
    pixels, valid = block.read()
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    rng = np.random.Generator(np.random.Philox(key=int(digest.hexdigest()[:16], 16)))
    there = int(valid.sum())
    if not there:
        return None, 0
    numbers, counted = block.labels()
    counted = counted & valid
    if not counted.any():
        return None, there
    zones = _zones(numbers, counted, strip)
    share = max(sample[0], sample[1] / there)
    taken = valid & (rng.random(valid.shape, dtype=np.float32) < share)
    return BlockFacts(
        size=valid.shape,
        dtype=str(pixels.dtype),
        bands=len(pixels),
        grey=False,
        digest=digest.hexdigest(),
        numbers=(sum(zones, Counter[int]()),),
        zones=zones,
        gap=strip,
        whole=bool(valid.all()),
        places=_places(numbers, counted, rng),
        values=pixels[:, taken],
    ), there


def _zones(numbers: NDArray[np.int64], counted: Valid, strip: int) -> tuple[Counter[int], ...]:
    height, width = numbers.shape
    rows = (0, min(strip, height), max(height - strip, min(strip, height)), height)
    columns = (0, min(strip, width), max(width - strip, min(strip, width)), width)
    zones = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            part = numbers[top:bottom, left:right][counted[top:bottom, left:right]]
            found, pixels = np.unique(part, return_counts=True)
            zones.append(Counter(dict(zip(found.tolist(), pixels.tolist(), strict=True))))
    return tuple(zones)


def _places(
    numbers: NDArray[np.int64], counted: Valid, rng: np.random.Generator
) -> dict[int, NDArray[np.int32]]:
    """Rows and columns of up to 1,000 pixels of each number."""
    found = {}
    for number in np.unique(numbers[counted]).tolist():
        flat = np.flatnonzero((numbers == number) & counted)
        if len(flat) > MOST_PLACES:
            flat = np.sort(flat[rng.integers(len(flat), size=MOST_PLACES)])
        found[number] = np.column_stack(np.unravel_index(flat, numbers.shape)).astype(np.int32)
    return found


def _oddities(
    source: SceneSource, facts: Mapping[str, Facts], data: Mapping[str, int], broken: set[str]
) -> list[Problem]:
    """What is worth knowing of the scenes as a whole."""
    problems = []
    for scene in source.scenes:
        mine = [b for b in source.blocks if b.scene is scene and b.key in facts]
        path = str(scene.raster.path)
        if scene.name in broken:
            continue
        if not data[scene.name]:
            remedy = "Check --nodata, or take it out."
            problems.append(Problem("error", path, "no pixel of it has data.", remedy))
        elif not mine:
            cause = "no pixel of it that has data is labelled."
            remedy = "Check that labels and area of interest are of this place, and their nodata."
            problems.append(Problem("error", path, cause, remedy))
    total = sum((one.numbers[0] for one in facts.values()), Counter[int]())
    if source.numbering is not None and not source.limited and total:
        share = 1 - total[source.numbering.background] / total.total()
        if share < _THIN:
            cause = (
                f"only {share:.1%} of the pixels lie in a shape; all others count as background."
            )
            remedy = "If they are just not labelled, give --aoi: the labels' own file, or an area."
            problems.append(Problem("warning", str(source.blocks[0].masks[0]), cause, remedy))
    return problems


def check_present(survey: Survey, classes: Classes) -> list[Problem]:
    """Return an error for each class that shapes are of, and that no pixel has."""
    source = survey.source
    if not isinstance(source, SceneSource) or not (source.numbering or source.class_name):
        return []
    pixels = class_pixels(survey, survey.pairs, classes)
    absent = [
        info.name
        for info, count in zip(classes, pixels, strict=True)
        if not count and info.role == "class"
    ]
    if not absent:
        return []
    cause = f"no pixel that counts is {' or '.join(absent)}: the shapes are too small, or outside."
    remedy = "Check them, or list the other classes with --classes."
    return [
        Problem(
            "error", str(survey.pairs[0].masks[0] if survey.pairs else source.root), cause, remedy
        )
    ]
