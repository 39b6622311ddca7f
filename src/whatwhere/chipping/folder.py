"""Chips as a folder of images and masks, which a training reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.chipping.layout import Cut, Place, new_folder, nodata_mark
from whatwhere.config import Recipe
from whatwhere.data.census import BlockFacts
from whatwhere.data.classes import FILE, spec_of
from whatwhere.data.inputs import Inputs
from whatwhere.data.labels import read_labels
from whatwhere.data.lattice import chip_starts
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Split
from whatwhere.io.image import encode_png
from whatwhere.io.small import encode_geotiff
from whatwhere.predict.images import stems_of
from whatwhere.predict.plan import nodata_of
from whatwhere.talk import Talk
from whatwhere.types import Classes, Valid, Window


def cut_folder(data: Inputs, output: Path, recipe: Recipe, cut: Cut, talk: Talk) -> dict[str, Any]:
    """Cut scenes into chips, as `jobs.chip` describes it."""
    import tomli_w

    with new_folder(output, keep=not cut.dry_run):
        plan = plan_data(data, recipe, talk)
        plan.tell(talk)
        overlap = cut.shared(plan.shape[0])
        ignored = nodata_of(plan.classes)
        table = spec_of(plan.classes, ignored)
    told = {
        "output": str(output),
        "chips": _counted(plan, overlap),
        "left_out": 0,
        "chip_px": list(plan.shape),
        "classes": table,
    }
    if cut.dry_run:
        return told
    kept = tomli_w.dumps({"classes": table})
    with files.building(output) as place:
        counts, left_out = _write_all(plan, place, overlap, ignored, talk)
        text = f"# What the masks hold; `whatwhere train` reads it.\n{kept}"
        files.write_text(place / FILE, text)
    return {
        **told,
        "chips": counts,
        "left_out": left_out,
        "next": f"whatwhere train {shlex.quote(str(output))} -o RUN "
        f"--orientation {plan.orientation}",
    }


def _counted(plan: DataPlan, overlap: int) -> dict[str, int]:
    """How many chips each split has, those without a labelled pixel among them."""
    counts: dict[str, int] = {}
    for split, pairs in plan.splits.items():
        sizes = [(b.window.height, b.window.width) for b in pairs if isinstance(b, Block)]
        shared = overlap if split == "train" else 0
        counts[split] = sum(len([*_windows(one, plan.shape[0], shared)]) for one in sizes)
    return counts


def _write_all(
    plan: DataPlan, output: Path, overlap: int, ignored: int, talk: Talk
) -> tuple[dict[Split, int], int]:
    """Write the chips of all blocks: how many in each split, and how many were left out."""
    scenes = plan.scenes.scenes if plan.scenes is not None else ()
    stems = stems_of([Path(scene.raster.path) for scene in scenes])
    names = {id(scene): stem for scene, stem in zip(scenes, stems, strict=True)}
    facts = [one for one in plan.survey.facts.values() if isinstance(one, BlockFacts)]
    gaps = not all(one.whole for one in facts)  # so that all chips have as many bands
    counts: dict[Split, int] = dict.fromkeys(plan.splits, 0)
    left_out = 0
    blocks = [
        (split, pair)
        for split, pairs in plan.splits.items()
        for pair in pairs
        if isinstance(pair, Block)
    ]
    for split, block in talk.track(blocks, "cutting chips", len(blocks)):
        pixels, valid = block.read()
        mask = _mask(block, valid, plan.classes, ignored)
        training = split == "train"
        for window, seen in _windows(mask.shape, plan.shape[0], overlap if training else 0):
            part = mask[window.slices].copy()
            if not training:  # each pixel is scored once
                part[: seen[0]] = ignored
                part[:, : seen[1]] = ignored
            if (part == ignored).all():
                left_out += 1
                continue
            place = block.part(window).window
            name = f"{names[id(block.scene)]}_r{place.row:06d}_c{place.column:06d}"
            image = encode_geotiff(
                pixels[(slice(None), *window.slices)],
                Place.straight(block.scene, place).grid,
                plan.reader.bands.names,
                nodata=nodata_mark(block.scene),
                valid=valid[window.slices] if gaps else None,
            )
            files.write_bytes(output / split / "images" / f"{name}.tif", image)
            picture = encode_png(part, plan.classes.palette())
            files.write_bytes(output / split / "masks" / f"{name}.png", picture)
            counts[split] += 1
    return counts, left_out


def _mask(block: Block, valid: Valid, classes: Classes, ignored: int) -> NDArray[np.uint8]:
    """What the mask of a block holds `(H, W)`."""
    labels, counted = read_labels(block, classes)
    values = np.array([info.value for info in classes], dtype=np.uint8)
    mask: NDArray[np.uint8] = np.where(counted & valid, values[labels], np.uint8(ignored))
    return mask


def _windows(
    size: tuple[int, ...], side: int, overlap: int
) -> Iterator[tuple[Window, tuple[int, int]]]:
    """Yield the chips of a block, and how many first rows and columns others have already."""
    for row, above in chip_starts(size[0], side, overlap):
        for column, left in chip_starts(size[1], side, overlap):
            height, width = min(side, size[0] - row), min(side, size[1] - column)
            yield Window(row, column, height, width), (above, left)
