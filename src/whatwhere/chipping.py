"""Training chips of scenes on disk, in the folder layout that a training reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.config import Recipe
from whatwhere.data.census import BlockFacts
from whatwhere.data.classes import FILE, spec_of
from whatwhere.data.inputs import Inputs
from whatwhere.data.labels import read_labels
from whatwhere.data.lattice import chip_starts
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.scenes import Block, Scene
from whatwhere.data.sources import Split
from whatwhere.errors import UsageError
from whatwhere.grid import Grid
from whatwhere.io.image import encode_png
from whatwhere.io.scaled import Scaled
from whatwhere.io.small import encode_geotiff
from whatwhere.predict.images import stems_of
from whatwhere.predict.plan import nodata_of
from whatwhere.talk import Talk
from whatwhere.types import Classes, Valid, Window

FORMATS = ("folder",)


def cut_chips(
    data: Inputs, output: Path, recipe: Recipe, overlap: int, layout: str, talk: Talk
) -> dict[str, Any]:
    """Cut scenes into chips, as `jobs.chip` describes it."""
    import tomli_w

    _check(data, output, overlap, layout)
    fresh = not output.exists()
    files.check_writable(output)
    try:
        plan = plan_data(data, recipe, talk)
        plan.tell(talk)
        if overlap >= plan.shape[0]:
            raise UsageError(
                f"--overlap {overlap}: chips of {plan.shape[0]} px overlap by less than their side."
            )
        ignored = nodata_of(plan.classes)
        table = spec_of(plan.classes, ignored)
    except BaseException:
        if fresh:
            output.rmdir()
        raise
    counts, left_out = _write_all(plan, output, overlap, ignored, talk)
    kept = tomli_w.dumps({"classes": table})
    files.write_text(output / FILE, f"# What the masks hold; `whatwhere train` reads it.\n{kept}")
    return {
        "output": str(output),
        "chips": counts,
        "left_out": left_out,
        "chip_px": list(plan.shape),
        "classes": table,
        "next": f"whatwhere train {shlex.quote(str(output))} -o RUN "
        f"--orientation {plan.orientation}",
    }


def _check(data: Inputs, output: Path, overlap: int, layout: str) -> None:
    """Refuse what cannot be done before anything is read."""
    if layout not in FORMATS:
        raise UsageError(
            f"--format {layout}: chips are written as a folder of images and masks "
            f"({', '.join(FORMATS)}); other formats are not written yet."
        )
    if overlap < 0:
        raise UsageError(f"--overlap must be at least 0 px, not {overlap}.")
    if not data.has_scenes:
        raise UsageError(
            f"{data.root}: chips are cut from scenes; this is a folder of images and masks, of "
            "which train cuts its chips itself. Give a raster and --labels, or a data.toml."
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        what = "this is a file" if output.is_file() else "there is something in this folder"
        raise UsageError(f"{output}: {what}. Take a new folder for the chips.")


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
                _grid(block.scene, place),
                plan.reader.bands.names,
                nodata=_mark(block.scene),
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


def _grid(scene: Scene, window: Window) -> Grid:
    """Where a part of a scene lies; nowhere where the scene does."""
    if scene.raster.grid.is_placed:
        return scene.raster.grid.part(window)
    return Grid("", Affine.identity(), window.height, window.width)


def _mark(scene: Scene) -> float | None:
    """What a scene says that stands for "no data" in all bands that are taken.

    What is resampled was averaged over pixels that have data: there the number means itself.
    """
    if isinstance(scene.raster, Scaled):
        return None
    marks = {scene.raster.nodata[number - 1] for number in scene.numbers}
    return marks.pop() if len(marks) == 1 else None
