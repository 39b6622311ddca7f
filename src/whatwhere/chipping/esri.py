"""Chips as ArcGIS exports them: one folder of Classified Tiles, or one for each split."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whatwhere import files
from whatwhere.chipping.layout import Cut, Place, new_folder, turned_places, whole_windows
from whatwhere.chipping.tiles import UNLABELLED, Tiles, Written
from whatwhere.config import Recipe
from whatwhere.data.census import BlockFacts
from whatwhere.data.doctor import Survey
from whatwhere.data.inputs import Inputs, list_scenes
from whatwhere.data.labels import read_labels
from whatwhere.data.plan import plan_data, survey_data
from whatwhere.data.scenes import Block, SceneSource
from whatwhere.data.sources import Split
from whatwhere.errors import DataError
from whatwhere.talk import Talk
from whatwhere.types import Classes, Window

_Part = Split | None
"""A folder of chips: of a split, or of all."""


def cut_esri(data: Inputs, output: Path, recipe: Recipe, cut: Cut, talk: Talk) -> dict[str, Any]:
    """Cut scenes into chips, as `jobs.chip` describes it."""
    with new_folder(output, keep=not cut.dry_run):
        apart = cut.apart or any(one.split for one in list_scenes(data))
        survey, classes, blocks = _look(data, recipe, apart, talk)
        source = survey.source
        if not isinstance(source, SceneSource):
            raise DataError(f"{data.root}: there is no scene in it.")
        table = _table(classes, survey, [one for some in blocks.values() for one in some], talk)
        tiles = Tiles(source.bands.names, classes, table, cut.min_overlap, cut.first)
        spec = tiles.spec
        overlap = cut.shared(source.chip)
        places = {
            part: _places(part, some, source, cut.turns, overlap, talk)
            for part, some in blocks.items()
            if some
        }
        size = _size(places, talk)
    told = {
        "output": str(output),
        "chips": {part or "all": len(some) for part, some in places.items()},
        "left_out": 0,
        "chip_px": list(size),
        "classes": spec,
    }
    if cut.dry_run:
        return told
    with files.building(output) as place:
        written = {
            part: tiles.write(
                place / (part or ""),
                some,
                size,
                talk,
                skip_empty=cut.skip_empty and part in (None, "train"),
            )
            for part, some in places.items()
        }
        if apart:
            tiles.write_table(place)
    _tell_missing(written.values(), table, talk)
    pixels = np.sum([one.pixels for one in written.values()], axis=0)
    return {
        **told,
        "chips": {part or "all": one.chips for part, one in written.items()},
        "left_out": sum(one.left_out for one in written.values()),
        "pixels": {info.name: int(n) for info, n in zip(table, pixels, strict=True)},
        "next": f"whatwhere train {shlex.quote(str(output))} -o RUN --orientation free",
        "next_python": _call(output, list(written)),
    }


def _look(
    data: Inputs, recipe: Recipe, apart: bool, talk: Talk
) -> tuple[Survey, Classes, dict[_Part, list[Block]]]:
    """Look at the scenes: what is there, what it means, and the blocks of each folder."""
    if apart:
        plan = plan_data(data, recipe, talk)
        plan.tell(talk)
        dealt: dict[_Part, list[Block]] = {
            split: [pair for pair in pairs if isinstance(pair, Block)]
            for split, pairs in plan.splits.items()
        }
        return plan.survey, plan.classes, dealt
    survey, classes = survey_data(data, recipe, talk)
    for problem in survey.problems:
        if problem.severity == "warning":
            talk.say(f"warning  {problem}")
    pairs = survey.source.pairs
    return survey, classes, {None: [pair for pair in pairs if isinstance(pair, Block)]}


def _table(classes: Classes, survey: Survey, blocks: Sequence[Block], talk: Talk) -> Classes:
    """Return the classes with the values that are written.

    0 is the background, unless something is not labelled: then it means that. No class is 0.
    """
    zero = next((info for info in classes if info.value == UNLABELLED), None)
    if zero is None or (zero.role == "background" and not _has_gaps(classes, survey, blocks)):
        return classes
    value = max(info.value for info in classes) + 1
    reason = "some pixels are not labelled" if zero.role == "background" else "0 is no class there"
    talk.say(f"note     {zero.name} is {value} in the labels: {reason}, and 0 says so.")
    infos = [dataclasses.replace(info, value=value) if info is zero else info for info in classes]
    return dataclasses.replace(classes, infos=tuple(infos))


def _has_gaps(classes: Classes, survey: Survey, blocks: Sequence[Block]) -> bool:
    """Whether pixels that have data are not labelled."""
    numbers = [number for info in classes for number in info.raw]
    unknown = []
    for block in blocks:
        facts = survey.facts.get(block.key)
        if not isinstance(facts, BlockFacts) or not facts.whole:
            unknown.append(block)
        elif sum(facts.numbers[0][number] for number in numbers) < math.prod(facts.size):
            return True
    for block in unknown:  # nobody has counted its pixels with data
        _, valid = block.read()
        _, counted = read_labels(block, classes)
        if (valid & ~counted).any():
            return True
    return False


def _places(
    part: _Part,
    blocks: Sequence[Block],
    source: SceneSource,
    turns: Sequence[float],
    overlap: int,
    talk: Talk,
) -> list[Place]:
    """Decide where the chips of a folder lie: in the blocks of a split, or anywhere in the scenes.

    Chips overlap and are turned in training alone.

    Raises:
        DataError: There is no room for any.
    """
    places: list[Place] = []
    narrow = 0
    if part not in (None, "train"):
        turns, overlap = (), 0
    for scene in source.scenes:
        height, width = scene.raster.size
        shape = (min(source.chip, height), min(source.chip, width))
        regions = [block.window for block in blocks if block.scene is scene]
        if part is None:
            regions = [Window(0, 0, height, width)]
        windows: dict[Window, None] = {}
        for region in regions:
            found = whole_windows(region, shape, overlap, regions)
            narrow += not found
            windows.update(dict.fromkeys(found))
        places += [Place.straight(scene, window) for window in windows]
        for angle in turns:
            for region in regions:
                places += turned_places(scene, region, shape, overlap, angle)
    if not places:
        raise DataError(
            f"no chip of {source.chip} px fits into the {part} blocks of {source.side} px. Take a "
            "smaller --chip-size, or leave --split out."
        )
    if narrow:
        talk.say(
            f"note     {narrow} of {len(blocks)} {part} blocks are too narrow for a chip of "
            f"{source.chip} px, and are left out."
        )
    return places


def _size(places: Mapping[_Part, Sequence[Place]], talk: Talk) -> tuple[int, int]:
    """Return the (height, width) of the chips, that of most if they differ."""
    sizes = Counter(place.shape for some in places.values() for place in some)
    if len(sizes) > 1:
        told = ", ".join(f"{height}×{width}" for height, width in sizes)
        talk.say(
            f"warning  some scenes are smaller than a chip, so that chips differ ({told} px): "
            "arcgis.learn wants them alike. Take a smaller --chip-size, or leave these scenes out."
        )
    return sizes.most_common(1)[0][0]


def _tell_missing(written: Iterable[Written], table: Classes, talk: Talk) -> None:
    """Say what pixels without data hold."""
    missing, fills = 0, set[float]()
    for one in written:
        missing += one.missing
        fills |= one.fills
    if missing:
        zero = next((f", as {info.name} does" for info in table if info.value == UNLABELLED), "")
        talk.say(
            f"note     {missing:,} pixels without data hold "
            f"{' or '.join(f'{fill:g}' for fill in sorted(fills))} in the images, and 0 in the "
            f"labels{zero}."
        )


def _call(output: Path, parts: Sequence[_Part]) -> str:
    """What reads the export in Python."""
    words = {"train": "", "val": "valid_path=", "test": "test_path="}
    paths = [
        (words[part] if part else "") + json.dumps(str(output / (part or ""))) for part in parts
    ]
    return f"prepare_data({', '.join(paths)})"
