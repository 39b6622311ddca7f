"""A folder of chips as ArcGIS exports them: images, labels, and what is told of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.chipping.layout import Place, nodata_mark
from whatwhere.data.classes import FILE, spec_of
from whatwhere.data.scenes import Scene
from whatwhere.data.truth import ShapesOnGround, VectorTruth
from whatwhere.errors import DataError
from whatwhere.grid import Grid
from whatwhere.io.esri import DEFINITION, MAP, SUMS
from whatwhere.io.esri_sums import BandSums, ClassSums, Export, as_text, map_text, world_text
from whatwhere.io.small import encode_geotiff
from whatwhere.io.turned import read_turned
from whatwhere.talk import Talk
from whatwhere.types import Classes, Labels, Valid

STATS = "stats.txt"
UNLABELLED = 0
"""What labels hold where there is no class of a value of its own."""

_IGNORED = f",{UNLABELLED}=ignore"


@dataclass
class Written:
    """What was written of a folder.

    Attributes:
        pixels: `(K,)` labelled pixels of each class.
        chips: How many.
        left_out: How many had no labelled pixel, or nothing but background.
        missing: How many pixels have no data.
        fills: What these hold in the images.
    """

    pixels: NDArray[np.int64]
    chips: int = 0
    left_out: int = 0
    missing: int = 0
    fills: set[float] = field(default_factory=set)


@dataclass(frozen=True)
class Tiles:
    """What all chips have in common.

    Attributes:
        bands: The names of the bands.
        read: What the numbers in the scenes' labels mean.
        table: The same classes with the values that are written.
        min_overlap: See `Cut`.
        first: See `Cut`.
    """

    bands: tuple[str, ...]
    read: Classes
    table: Classes
    min_overlap: float
    first: int

    def write(
        self,
        folder: Path,
        places: Sequence[Place],
        size: tuple[int, int],
        talk: Talk,
        *,
        skip_empty: bool = False,
    ) -> Written:
        """Write a folder of chips; what makes it an export comes last.

        Args:
            folder: Where it goes.
            places: Where the chips lie.
            size: What is told of the chips' (height, width) [px].
            talk: Where the progress goes.
            skip_empty: Leave out chips that show nothing but background.

        Raises:
            DataError: No chip has a labelled pixel; or a scene is damaged.
            OutputError: A file cannot be written.
        """
        written = Written(np.zeros(len(self.table), dtype=np.int64))
        values = np.array([info.value for info in self.table])
        kind = np.uint8 if values.max() <= 255 else np.uint16
        listed = values != UNLABELLED
        shown = np.array([info.role != "background" for info in self.table])
        bands: list[BandSums] = []
        classes: list[ClassSums] = []
        for place in talk.track(places, "cutting chips", len(places)):
            pixels, valid = _pixels(place)
            labels, counted = self._labels(place)
            counted = counted & valid
            counts = np.bincount(labels[counted], minlength=len(values))
            if not counts.any() or (skip_empty and not counts[shown].any()):
                written.left_out += 1
                continue
            bands.append(BandSums.of(pixels, valid))
            classes.append(ClassSums.of(counts[listed]))
            written.pixels += counts
            mask = np.where(counted, values[labels], UNLABELLED).astype(kind)
            self._write_chip(folder, written, place, (pixels, valid, mask))
            written.chips += 1
        if not written.chips:
            what = "a class but background" if skip_empty else "a labelled pixel"
            raise DataError(f"{folder}: no chip of it has {what}. Take another --seed.")
        infos = tuple(info for info in self.table if info.value != UNLABELLED)
        scenes = {id(place.scene): place.scene for place in places}
        export = Export(
            size,
            dataclasses.replace(self.table, infos=infos),
            self.bands,
            tuple(scene.raster.grid for scene in scenes.values()),
            reduce(BandSums.merged, bands),
            reduce(ClassSums.merged, classes),
            self.first,
        )
        self.write_table(folder)
        numbers = range(self.first, self.first + written.chips)
        files.write_text(folder / MAP, map_text([_name(number) for number in numbers]))
        files.write_text(folder / STATS, export.summary())
        files.write_text(folder / SUMS, as_text(export.sums()))
        files.write_text(folder / DEFINITION, as_text(export.definition()))
        return written

    @property
    def spec(self) -> str:
        """The class table of the labels, as `whatwhere train` reads it.

        Raises:
            UsageError: Two classes would get one name, or one would get none.
        """
        spec = spec_of(self.table, UNLABELLED)
        used = any(info.value == UNLABELLED for info in self.table)
        return spec.removesuffix(_IGNORED) if used else spec

    def write_table(self, folder: Path) -> None:
        """Write the class table beside the chips."""
        import tomli_w

        kept = tomli_w.dumps({"classes": self.spec})
        files.write_text(
            folder / FILE, f"# What the labels hold; `whatwhere train` reads it.\n{kept}"
        )

    def _write_chip(
        self,
        folder: Path,
        written: Written,
        place: Place,
        chip: tuple[NDArray[Any], Valid, NDArray[Any]],
    ) -> None:
        """Write an image and its labels, each with a world file where they lie somewhere."""
        pixels, valid, mask = chip
        mark = _mark(place.scene, pixels.dtype)
        if not valid.all():
            pixels = np.where(valid, pixels, pixels.dtype.type(mark or 0))
            written.missing += int(valid.size - valid.sum())
            written.fills.add(mark or 0.0)
        grid = place.grid
        pair = {
            "images": encode_geotiff(pixels, grid, self.bands, nodata=mark),
            "labels": encode_geotiff(mask[None], grid, ()),
        }
        for name, data in pair.items():
            path = folder / name / _name(self.first + written.chips)
            files.write_bytes(path, data)
            if grid.is_placed:
                files.write_text(path.with_suffix(".tfw"), world_text(grid.transform))

    def _labels(self, place: Place) -> tuple[Labels, Valid]:
        """Read the class of each pixel `(H, W)`, and where there is one."""
        scene, grid = place.scene, place.ground
        truth = scene.truth
        if self.min_overlap and isinstance(truth, VectorTruth):
            truth = _whole_enough(truth, grid, self.min_overlap, self.read)
        numbers, counted = truth.read(grid)
        if scene.aoi is not None:
            counted = counted & scene.aoi.within(grid)
        labels, known, _ = self.read.encode(numbers)
        return labels, known & counted


def _pixels(place: Place) -> tuple[NDArray[Any], Valid]:
    """Read the bands of a chip `(C, H, W)`, and where it has data."""
    scene = place.scene
    if place.window is not None:
        return scene.read(place.window)
    return read_turned(scene.read, scene.raster.size, place.step, place.shape)


def _whole_enough(truth: VectorTruth, grid: Grid, share: float, classes: Classes) -> VectorTruth:
    """Return the shapes of which a share of the area lies on a grid; those of no class stay."""
    import shapely

    near = truth.ground.near(grid)
    shapes = truth.ground.shapes[near]
    there = shapely.area(shapely.intersection(shapes, shapely.Polygon(grid.corners)))
    enough = there >= share * (1 - 1e-9) * shapely.area(shapes)
    numbers = [number for info in classes for number in info.raw]
    kept = near[enough | ~np.isin(truth.table[truth.places[near]], numbers)]
    ground = ShapesOnGround(truth.ground.shapes[kept], truth.ground.bounds[kept])
    return dataclasses.replace(truth, ground=ground, places=truth.places[kept])


def _mark(scene: Scene, kind: np.dtype[Any]) -> float | None:
    """What a scene says that stands for "no data", where its numbers have it."""
    mark = nodata_mark(scene)
    if mark is None or not math.isfinite(mark):
        return None
    if kind.kind == "f":
        ends = np.finfo(kind)
        return min(max(mark, float(ends.min)), float(ends.max))
    limits = np.iinfo(kind)
    return mark if mark.is_integer() and limits.min <= mark <= limits.max else None


def _name(number: int) -> str:
    return f"{number:09d}.tif"
