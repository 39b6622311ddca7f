"""The label files of scenes: read once each, their words numbered, moved to where scenes lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whatwhere.data.inputs import Inputs, SceneFiles
from whatwhere.data.truth import NOWHERE, RasterTruth, ShapesOnGround, Truth, VectorTruth
from whatwhere.data.words import Numbering, number_values
from whatwhere.errors import DataError, Problem, UsageError
from whatwhere.grid import Grid
from whatwhere.io import vector
from whatwhere.io.mend import are_areas
from whatwhere.io.raster import Raster, open_raster
from whatwhere.types import Classes

_Key = tuple[Path, str | None, float]


class LabelFiles:
    """What the labels of all scenes hold.

    Attributes:
        problems: What was noticed while reading.
        numbering: Of vector labels with a class field; None without.
        class_name: What shapes without a class field are called; empty for other labels.
    """

    def __init__(
        self, inputs: Inputs, files: Sequence[SceneFiles], classes: Classes | None
    ) -> None:
        """Read the vector files.

        Args:
            inputs: What the user said.
            files: Of the scenes.
            classes: A trained net's, whose numbers the labels get; None to number them anew.

        Raises:
            UsageError: Something was said that means nothing for these labels.
        """
        self.problems: list[Problem] = []
        self._features: dict[_Key, vector.Features | None] = {}
        self._moved: dict[tuple[_Key, str], vector.Features] = {}
        vectors = [one for one in files if one.is_vector]
        _check_kinds(files, vectors)
        if classes is not None and classes.task == "multilabel":
            raise UsageError("a net of several labels at once cannot be scored on scenes.")
        for one in files:
            if one.is_vector:
                self._load(one, (one.labels, one.class_field, one.buffer_m))
            if one.aoi is not None:
                self._load(one, (one.aoi, None, 0.0))
        self.numbering: Numbering | None = None
        self.class_name = ""
        if vectors and vectors[0].class_field is not None:
            self.numbering = self._number(vectors, classes)
        elif vectors:
            stems = {one.labels.stem for one in vectors}
            folder = inputs.labels if inputs.labels and inputs.labels.is_dir() else None
            self.class_name = folder.name if folder else stems.pop()
            if stems and not folder:
                self.class_name = "foreground"
            self._one, self._none = _single(classes)

    def open(
        self, one: SceneFiles, raster: Raster, grid: Grid
    ) -> tuple[Truth, ShapesOnGround | None] | None:
        """Return the labels and the area of interest of a scene; None if a file was not readable.

        Args:
            one: The scene's files.
            raster: The scene's.
            grid: On which it is read.

        Raises:
            DataError: They cannot be used for this scene.
        """
        keys: list[_Key] = []
        if one.is_vector:
            keys.append((one.labels, one.class_field, one.buffer_m))
        keys += [(one.aoi, None, 0.0)] if one.aoi is not None else []
        if any(self._features[key] is None for key in keys):
            return None
        aoi = None
        if one.aoi is not None:
            cause = "an area of interest is polygons; this holds lines or points."
            aoi = self._near((one.aoi, None, 0.0), grid, (cause, "Give polygons."))[0]
        if not one.is_vector:
            return _open_labels(one, raster, grid), aoi
        cause = "it holds lines or points, which cover no pixel."
        remedy = "Say how far they reach on each side: --buffer-m METRES."
        ground, values = self._near(keys[0], grid, (cause, remedy))
        if self.numbering is None:
            numbers = np.full(len(values), self._one, dtype=np.int64)
            return VectorTruth.of(ground, numbers, self._none), aoi
        background = self.numbering.background
        return VectorTruth.of(ground, self.numbering.of(values), background), aoi

    def _near(
        self, key: _Key, grid: Grid, complaint: tuple[str, str]
    ) -> tuple[ShapesOnGround, list[str]]:
        """Return the shapes near a scene, in its coordinate system, and their values."""
        path, column, _ = key
        features = self._features[key]
        if features is None:
            raise DataError(f"{path}: it could not be read.")
        if (key, grid.crs) not in self._moved:
            self._moved[key, grid.crs] = vector.move_features(features, grid.crs)
        moved = self._moved[key, grid.crs]
        apart = vector.overlap_problem(moved, features, grid)
        told = complaint if not are_areas(moved.shapes).all() else None
        told = (apart, "Give labels of this place.") if apart is not None else told
        if told is not None:
            problem = Problem("error", str(path), *told)
            raise DataError(str(problem), [problem])
        ground = ShapesOnGround.of(moved.shapes)
        near = ground.near(grid)
        values = [moved.values[i] for i in near] if column is not None else [""] * len(near)
        return ShapesOnGround(ground.shapes[near], ground.bounds[near]), values

    def _load(self, one: SceneFiles, key: _Key) -> None:
        if key in self._features:
            return
        path, column, buffer_m = key
        self._features[key] = None
        try:
            found = vector.read_features(path, field=column, trust=one.trust)
            found = vector.buffered(found, buffer_m) if buffer_m else found
        except DataError as error:
            self.problems += error.problems or [Problem("error", str(path), str(error), "")]
            return
        self._features[key] = found
        self.problems += found.dropped
        empty = sum(not value.strip() for value in found.values)
        if empty:
            cause = f"{empty} of {len(found.values)} shapes have no {column}."
            self.problems.append(Problem("warning", str(path), cause, "They are not labelled."))

    def _number(self, vectors: Sequence[SceneFiles], classes: Classes | None) -> Numbering:
        keys = dict.fromkeys((one.labels, one.class_field, one.buffer_m) for one in vectors)
        read = [self._features[key] for key in keys]
        found = number_values([value for one in read if one is not None for value in one.values])
        if classes is None:
            return found
        numbers, unknown = {}, []
        names = {info.name.casefold(): info.raw[0] for info in classes}
        known = {number for info in classes for number in info.raw}
        for value, number in found.numbers.items():
            if value.casefold() in names:
                numbers[value] = names[value.casefold()]
            elif not found.are_words and number in known:
                numbers[value] = number
            elif found.are_words or number not in classes.ignored:
                unknown.append(value)
        if unknown:
            cause = f"the run does not know {', '.join(unknown[:8])}; it knows {', '.join(names)}."
            path = str(vectors[0].labels)
            self.problems.append(Problem("warning", path, cause, "They are not counted."))
        return Numbering(numbers, _background(classes))


def _check_kinds(files: Sequence[SceneFiles], vectors: Sequence[SceneFiles]) -> None:
    """Refuse labels of several kinds, and settings that mean nothing for theirs."""
    for one in files:
        if not one.is_vector and (one.class_field is not None or one.buffer_m):
            said = "--buffer-m" if one.class_field is None else "--class-field"
            raise UsageError(f"{one.labels}: {said} is for shapes; this is a raster. Leave it out.")
    if 0 < len(vectors) < len(files) or len({one.class_field is None for one in vectors}) > 1:
        raise UsageError(
            "the labels of all scenes must be of one kind: rasters, shapes with a class field, or "
            "shapes without."
        )


def _single(classes: Classes | None) -> tuple[int, int]:
    """The numbers of shapes without a class field, and of what is in none of them."""
    if classes is None:
        return 1, 0
    named = [info for info in classes if info.role == "class"]
    if len(named) != 1:
        raise UsageError(
            f"the run tells {', '.join(classes.names)} apart: say with --class-field which field "
            "of the labels holds them."
        )
    return named[0].raw[0], _background(classes)


def _background(classes: Classes) -> int:
    return next((info.raw[0] for info in classes if info.role == "background"), NOWHERE)


def _open_labels(one: SceneFiles, raster: Raster, grid: Grid) -> RasterTruth:
    """Open a raster of classes, whose pixels are found by their coordinates."""
    labels = open_raster(one.labels, trust=one.trust)
    same = labels.size == raster.size and not labels.grid.is_placed
    if labels.grid.is_placed != raster.grid.is_placed or bool(labels.grid.crs) != bool(grid.crs):
        which = "the labels" if not labels.grid.crs else "the scene"
        cause = f"{which} have no coordinates, so that it is not known where both meet."
        problem = Problem("error", str(one.labels), cause, "Give both a coordinate system.")
        raise DataError(str(problem), [problem])
    if not raster.grid.is_placed and not same:
        cause = (
            f"neither they nor {one.image.name} have coordinates, and their sizes differ "
            f"({labels.size[0]}×{labels.size[1]}, {raster.size[0]}×{raster.size[1]} px)."
        )
        problem = Problem("error", str(one.labels), cause, "Give both a coordinate system.")
        raise DataError(str(problem), [problem])
    if len(labels.numbers) > 1:
        cause = f"labels are one band of numbers; this has {len(labels.numbers)}."
        problem = Problem("error", str(one.labels), cause, "Save the classes as one band.")
        raise DataError(str(problem), [problem])
    return RasterTruth(labels)
