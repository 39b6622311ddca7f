"""Scenes: rasters of any size with their labels, cut into blocks that are read as images are."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.classes import named_numbers
from whatwhere.data.inputs import Inputs, SceneFiles, list_scenes
from whatwhere.data.labelling import LabelFiles
from whatwhere.data.lattice import block_side, edges, usual_chip
from whatwhere.data.sources import Pair, Source, Split
from whatwhere.data.truth import RasterTruth, ShapesOnGround, Truth
from whatwhere.data.words import Numbering
from whatwhere.errors import DataError, Problem
from whatwhere.io.crs import crs_name, pixel_size_m
from whatwhere.io.hints import undeclared_nodata
from whatwhere.io.raster import Raster, open_raster
from whatwhere.io.scaled import Scaled, scaled
from whatwhere.notation import parse_bands
from whatwhere.types import Bands, Classes, Valid, Window

_SAME_SIZE = 1.02  # pixel sizes that differ by less are taken for one
_ODD_SIZE, _OTHER_SIZE = 1.5, 4.0


@dataclass(frozen=True, eq=False)
class Scene:
    """A raster and its labels.

    Attributes:
        name: What it is called.
        raster: What is read, at the pixel size of the net.
        numbers: The bands that the net sees, from 1.
        truth: The labels.
        aoi: Beyond it nothing is labelled; None where there is no such limit.
        split: The split it is to be in; None to be dealt out.
        pixel_size: Its own, on the ground [m]; None where it is not known.
    """

    name: str
    raster: Raster | Scaled
    numbers: tuple[int, ...]
    truth: Truth
    aoi: ShapesOnGround | None
    split: Split | None
    pixel_size: float | None

    def read(self, window: Window) -> tuple[NDArray[Any], Valid]:
        """Read the bands that the net sees `(C, H, W)`, and where there is data."""
        return self.raster.read(window, self.numbers)

    def labels(self, window: Window) -> tuple[NDArray[np.int64], Valid]:
        """Read the labels' numbers `(H, W)`, and where something is labelled."""
        grid = self.raster.grid.part(window)
        numbers, counted = self.truth.read(grid)
        if self.aoi is not None:
            counted = counted & self.aoi.within(grid)
        return numbers, counted


@dataclass(frozen=True)
class Block(Pair):
    """A rectangle of a scene, in the place of an image and its mask.

    Attributes:
        scene: Where it lies.
        window: What of it.
        at: (row, column) among the scene's blocks.
    """

    scene: Scene = field(repr=False)
    window: Window
    at: tuple[int, int]

    def part(self, window: Window) -> Block:
        """Return a part of it; the window is in its own pixels."""
        row, column = self.window.row + window.row, self.window.column + window.column
        moved = Window(row, column, window.height, window.width)
        return dataclasses.replace(self, window=moved)

    def read(self) -> tuple[NDArray[Any], Valid]:
        """Read the bands that the net sees `(C, H, W)`, and where there is data."""
        return self.scene.read(self.window)

    def labels(self) -> tuple[NDArray[np.int64], Valid]:
        """Read the labels' numbers `(H, W)`, and where something is labelled."""
        return self.scene.labels(self.window)


@dataclass(frozen=True)
class SceneSource(Source):
    """What rasters with labels hold; its pairs are blocks.

    Its pixel size is the one at which the scenes are read.

    Attributes:
        scenes: In the order given.
        bands: Which bands the net sees.
        numbering: Of vector labels with a class field; None without.
        class_name: What shapes without a class field are called; empty for other labels.
        side: Of a block [px].
        chip: Of a chip [px].
        limited: Whether an area of interest says where nothing is labelled.
    """

    scenes: tuple[Scene, ...]
    bands: Bands
    numbering: Numbering | None
    class_name: str
    side: int
    chip: int
    limited: bool

    @property
    def blocks(self) -> list[Block]:
        return [pair for pair in self.pairs if isinstance(pair, Block)]

    @property
    def label_nodata(self) -> list[float]:
        """What stands for "not labelled" in label rasters."""
        truths = [scene.truth for scene in self.scenes]
        found = {one.raster.nodata[0] for one in truths if isinstance(one, RasterTruth)}
        return sorted(mark for mark in found if mark is not None)

    def to_json(self) -> list[dict[str, Any]]:
        """Return what `inspect` tells of each scene."""
        return [
            {
                "name": scene.name,
                "height": scene.raster.size[0],
                "width": scene.raster.size[1],
                "crs": crs_name(scene.raster.grid.crs),
                "pixel_size_m": scene.pixel_size,
                "read_at_m": self.pixel_size,
                "bands": list(scene.raster.names),
                "split": scene.split,
                "block_px": self.side,
            }
            for scene in self.scenes
        ]


@dataclass(frozen=True)
class Wish:
    """How scenes are to be read.

    Attributes:
        bands: As on the command line, or a trained net's.
        chip_size: Side of a chip [px]; 0 to choose.
        resolution_m: Side of a pixel on the ground [m]; 0 for the scenes' own.
        side: Of a block [px]; 0 to choose.
        classes: A trained net's, whose numbers the labels' words get; None to number them anew.
        insists: Whether the pixel size goes before what scenes hold, whatever that is.
        spec: The class table as the user says it: numbers in it are classes, even if label rasters
            say "no data" by them.
    """

    bands: str | Bands = "auto"
    chip_size: int = 0
    resolution_m: float = 0.0
    side: int = 0
    classes: Classes | None = None
    insists: bool = True
    spec: str = ""


def open_scenes(inputs: Inputs, wish: Wish) -> SceneSource:
    """Look at the headers of all scenes and cut them into blocks; no pixel is read.

    Raises:
        DataError: There is no scene, or the scenes do not have the same bands.
        UsageError: Something was said that means nothing here.
    """
    files = list_scenes(inputs)
    problems: list[Problem] = []
    opened: list[tuple[SceneFiles, Raster]] = []
    for one in files:
        try:
            raster = open_raster(one.image, trust=one.trust, nodata=one.nodata)
        except DataError as error:
            problems += error.problems or [Problem("error", str(one.image), str(error), "")]
            continue
        hint = undeclared_nodata(raster)
        problems += [*raster.notes, *([hint] if hint else [])]
        opened.append((one, raster))
    bands, numbers = choose_bands([(f.name, r) for f, r in opened], wish.bands)
    labels = LabelFiles(inputs, files, wish.classes, named_numbers(wish.spec))
    pixel_size, factors, noticed = _pixel_sizes(opened, wish)
    problems += noticed
    scenes = []
    for (one, raster), taken, factor in zip(opened, numbers, factors, strict=True):
        seen = scaled(raster, factor)
        try:
            found = labels.open(one, raster, seen.grid)
        except DataError as error:
            problems += error.problems or [Problem("error", str(one.labels), str(error), "")]
            continue
        if found is None:
            continue
        truth, aoi = found
        own = pixel_size_m(raster.grid)
        scenes.append(Scene(one.name, seen, taken, truth, aoi, one.split, own))
    problems += labels.problems
    sizes = [scene.raster.size for scene in scenes]
    side = wish.side or block_side(sizes, wish.chip_size)
    return SceneSource(
        root=inputs.root,
        pairs=tuple(block for scene in scenes for block in cut(scene, side, inputs)),
        labels=(),
        problems=tuple(problems),
        scenes=tuple(scenes),
        bands=bands,
        numbering=labels.numbering,
        class_name=labels.class_name,
        pixel_size=pixel_size,
        side=side,
        chip=wish.chip_size or usual_chip(side),
        limited=all(one.aoi is not None for one in files),
    )


def cut(scene: Scene, side: int, inputs: Inputs) -> list[Block]:
    """Cut a scene into blocks that cover it exactly once."""
    height, width = scene.raster.size
    labels = inputs.labels or inputs.root
    return [
        Block(
            key=f"{scene.name}/r{row:06d}_c{column:06d}",
            image=Path(scene.raster.path),
            masks=(labels,),
            split=scene.split,
            scene=scene,
            window=Window(row, column, rows, columns),
            at=(i, j),
        )
        for i, (row, rows) in enumerate(edges(height, side))
        for j, (column, columns) in enumerate(edges(width, side))
    ]


def choose_bands(
    rasters: Sequence[tuple[str, Raster]], wanted: str | Bands
) -> tuple[Bands, list[tuple[int, ...]]]:
    """Decide which bands the net sees: by name where they have names, else by number.

    Args:
        rasters: With what they are called.
        wanted: `auto` for all, `rgb`, `grey`, names, numbers; or a trained net's bands.

    Returns:
        The bands, numbered as in the first raster, and their numbers in each one.

    Raises:
        DataError: Not all have these bands; the message shows who has what.
    """
    if not rasters:
        return Bands(("band 1",), (1,)), []
    if isinstance(wanted, Bands):
        names = wanted.names
        fallback = dict(zip(names, wanted.numbers or range(1, len(names) + 1), strict=True))
        found = [_trained(raster, fallback, bool(wanted.numbers)) for _, raster in rasters]
    else:
        asked = parse_bands(wanted)
        first = rasters[0][1]
        if asked == "auto":
            names = tuple(name.lower() for name in first.names)
            asked = dict.fromkeys(names, 0)
            alike = all(len(raster.numbers) == len(names) for _, raster in rasters)
        else:
            if asked == "grey" and all(len(raster.numbers) == 1 for _, raster in rasters):
                asked = {"grey": first.numbers[0]}
            elif isinstance(asked, str):
                asked = dict.fromkeys(("red", "green", "blue") if asked == "rgb" else ("grey",), 0)
            names, alike = tuple(asked), True
        found = [_of(raster, asked) if alike else None for _, raster in rasters]
    there = [numbers for numbers in found if numbers is not None]
    if len(there) < len(rasters):
        told = wanted if isinstance(wanted, str) else ",".join(wanted.names)
        rows = "\n".join(f"  {name}: {', '.join(raster.names)}" for name, raster in rasters[:20])
        raise DataError(
            f"the scenes do not all have the bands of --bands {told}; they have\n{rows}\n"
            "Take --bands with names or numbers that all of them have."
        )
    return Bands(names, there[0]), there


def _of(raster: Raster, asked: Mapping[str, int]) -> tuple[int, ...] | None:
    """The numbers of the bands asked for; None where one is not there."""
    numbers = [number or raster.number_of(name) for name, number in asked.items()]
    there = [number for number in numbers if number in raster.numbers]
    return tuple(number for number in there if number) if len(there) == len(numbers) else None


def _trained(raster: Raster, bands: Mapping[str, int], numbered: bool) -> tuple[int, ...] | None:
    """The numbers of a trained net's bands: by name, else by number."""
    return raster.find(tuple(bands), tuple(bands.values()) if numbered else ())


def _pixel_sizes(
    opened: Sequence[tuple[SceneFiles, Raster]], wish: Wish
) -> tuple[float | None, list[float], list[Problem]]:
    """Decide at which pixel size scenes are read [m], and how much each is resampled for it."""
    own = [pixel_size_m(raster.grid) for _, raster in opened]
    known = [size for size in own if size is not None]
    wanted = wish.resolution_m or (statistics.median(known) if known else None)
    factors, problems = [], []
    for (one, _), size in zip(opened, own, strict=True):
        factor = 1.0 if size is None or wanted is None else size / wanted
        change = max(factor, 1 / factor)
        if size is None and wanted is not None:
            cause = "its pixel size is not known, that of others is."
            problems.append(Problem("warning", str(one.image), cause, "It is read as it is."))
        elif change > _OTHER_SIZE and not (wish.resolution_m and wish.insists):
            cause = f"its pixels are {size:.3g} m, those of the others {wanted:.3g} m."
            remedy = "Take it out, or say --resolution-m if that is meant."
            problems.append(Problem("error", str(one.image), cause, remedy))
        elif change > _ODD_SIZE:
            cause = f"its pixels are {size:.3g} m and are resampled to {wanted:.3g} m."
            problems.append(Problem("warning", str(one.image), cause, "Details will differ."))
        factors.append(factor if change > _SAME_SIZE else 1.0)
    return wanted, factors, problems
