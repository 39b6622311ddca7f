"""The label files of scenes: read once each, their words numbered, moved to where scenes lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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

_FEW = 32  # values that a field of classes has at the most


class _Key(NamedTuple):
    """What is read of a vector file.

    Attributes:
        path: The file.
        field: The field that is read; None for none.
        buffer_m: How far lines and points reach [m].
        layer: Where the file has several.
    """

    path: Path
    field: str | None
    buffer_m: float
    layer: str | None

    @classmethod
    def labels(cls, one: SceneFiles) -> _Key:
        """What is read of a scene's labels."""
        return cls(one.labels, one.class_field, one.buffer_m, one.layer)

    @classmethod
    def aoi(cls, one: SceneFiles) -> _Key | None:
        """What is read of a scene's area of interest, if it has one.

        Where that is the labels' own file, it is their layer.
        """
        layer = one.layer if one.aoi == one.labels else None
        return None if one.aoi is None else cls(one.aoi, None, 0.0, layer)


class _Nothing(DataError):
    """A file of shapes holds none where a scene is."""


class LabelFiles:
    """What the labels of all scenes hold.

    Attributes:
        numbering: Of vector labels with a class field; None without.
        class_name: What shapes without a class field are called; empty for other labels.
    """

    def __init__(
        self,
        inputs: Inputs,
        files: Sequence[SceneFiles],
        classes: Classes | None,
        named: frozenset[int] = frozenset(),
    ) -> None:
        """Read the vector files.

        Args:
            inputs: What the user said.
            files: Of the scenes.
            classes: A trained net's, whose numbers the labels get; None to number them anew.
            named: Numbers that the user calls classes, even if label rasters say "no data" by them.

        Raises:
            UsageError: Something was said that means nothing for these labels.
        """
        self._problems: list[Problem] = []
        self._bare: list[tuple[Problem, str]] = []
        self._some = False
        self._said = named
        self._features: dict[_Key, vector.Features | None] = {}
        self._moved: dict[tuple[_Key, str], vector.Features] = {}
        vectors = [one for one in files if one.is_vector]
        _check_kinds(files, vectors)
        if classes is not None and classes.task == "multilabel":
            raise UsageError("a net of several labels at once cannot be scored on scenes.")
        for one in files:
            if one.is_vector:
                self._load(one, _Key.labels(one), empty=True)
            aoi = _Key.aoi(one)
            if aoi is not None:
                self._load(one, aoi)
        self.numbering: Numbering | None = None
        self.class_name = ""
        if vectors and vectors[0].class_field is not None:
            self.numbering = self._number(vectors, classes)
        elif vectors:
            stems = {one.layer or one.labels.stem for one in vectors}
            folder = inputs.labels if inputs.labels and inputs.labels.is_dir() else None
            self.class_name = folder.name if folder and not inputs.layer else stems.pop()
            if stems and not folder:
                self.class_name = "foreground"
            self._one, self._none = _single(classes)
            self._hint(vectors[0])
        paths = [one.labels for one in files]
        self._own = {path for path in paths if len(paths) > 1 and paths.count(path) == 1}

    @property
    def problems(self) -> list[Problem]:
        """What was noticed up to now.

        A scene whose own file holds nothing that is there has no more than background, if others
        have shapes.
        """
        bare = [
            dataclasses.replace(
                problem,
                severity="warning",
                remedy=f"{scene} is taken for background throughout; take it out if it is not.",
            )
            if self._some
            else problem
            for problem, scene in self._bare
        ]
        return [*self._problems, *bare]

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
        limit = _Key.aoi(one)
        keys = [*([_Key.labels(one)] if one.is_vector else []), *([limit] if limit else [])]
        if any(self._features[key] is None for key in keys):
            return None
        aoi = None
        if limit is not None:
            cause = "an area of interest is polygons; this holds lines or points."
            aoi = self._near(limit, grid, (cause, "Give polygons."))[0]
        if not one.is_vector:
            return _open_labels(one, raster, grid, self._said), aoi
        cause = "it holds lines or points, which cover no pixel."
        remedy = "Say how far they reach on each side: --buffer-m METRES."
        try:
            ground, values = self._near(keys[0], grid, (cause, remedy))
            self._some = True
        except _Nothing as error:
            if one.labels not in self._own:
                raise
            self._bare += [(problem, one.image.name) for problem in error.problems]
            ground, values = ShapesOnGround.of(np.empty(0, dtype=object)), []
        if self.numbering is None:
            numbers = np.full(len(values), self._one, dtype=np.int64)
            return VectorTruth.of(ground, numbers, self._none), aoi
        background = self.numbering.background
        return VectorTruth.of(ground, self.numbering.of(values), background), aoi

    def _near(
        self, key: _Key, grid: Grid, complaint: tuple[str, str]
    ) -> tuple[ShapesOnGround, list[str]]:
        """Return the shapes near a scene, in its coordinate system, and their values."""
        features = self._features[key]
        if features is None:
            raise DataError(f"{key.path}: it could not be read.")
        if not len(features.shapes):
            problem = Problem("error", str(key.path), "it holds no features.", "Give shapes.")
            raise _Nothing(str(problem), [problem])
        if (key, grid.crs) not in self._moved:
            self._moved[key, grid.crs] = vector.move_features(features, grid.crs)
        moved = self._moved[key, grid.crs]
        apart = vector.overlap_problem(moved, features, grid)
        if apart is not None:
            problem = Problem("error", str(key.path), apart, "Give labels of this place.")
            raise _Nothing(str(problem), [problem])
        if not are_areas(moved.shapes).all():
            problem = Problem("error", str(key.path), *complaint)
            raise DataError(str(problem), [problem])
        ground = ShapesOnGround.of(moved.shapes)
        near = ground.near(grid)
        values = [moved.values[i] for i in near] if key.field is not None else [""] * len(near)
        return ShapesOnGround(ground.shapes[near], ground.bounds[near]), values

    def _load(self, one: SceneFiles, key: _Key, empty: bool = False) -> None:
        if key in self._features:
            return
        path, column = key.path, key.field
        self._features[key] = None
        try:
            found = vector.read_features(
                path, field=column, layer=key.layer, trust=one.trust, empty=empty
            )
            if key.buffer_m and len(found.shapes):
                found = vector.buffered(found, key.buffer_m)
        except DataError as error:
            self._problems += error.problems or [Problem("error", str(path), str(error), "")]
            return
        self._features[key] = found
        self._problems += found.dropped
        nameless = sum(not value.strip() for value in found.values)
        if nameless:
            cause = f"{nameless} of {len(found.values)} shapes have no {column}."
            self._problems.append(Problem("warning", str(path), cause, "They are not labelled."))

    def _hint(self, one: SceneFiles) -> None:
        """Note the fields that could tell classes apart, where none was named."""
        if self._features.get(_Key.labels(one)) is None:
            return
        fields = vector.field_names(one.labels, layer=one.layer, trust=one.trust)
        likely = [f"{name} ({n} values)" for name, n in fields.items() if 1 < n <= _FEW]
        if likely:
            more = f" and {len(likely) - 4} more" if len(likely) > 4 else ""
            cause = f"all shapes are one class; they have the fields {', '.join(likely[:4])}{more}."
            remedy = "If one of them tells classes apart, name it: --class-field."
            self._problems.append(Problem("note", str(one.labels), cause, remedy))

    def _number(self, vectors: Sequence[SceneFiles], classes: Classes | None) -> Numbering:
        keys = dict.fromkeys(map(_Key.labels, vectors))
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
            self._problems.append(Problem("warning", path, cause, "They are not counted."))
        return Numbering(numbers, _background(classes))


def _check_kinds(files: Sequence[SceneFiles], vectors: Sequence[SceneFiles]) -> None:
    """Refuse labels of several kinds, and settings that mean nothing for theirs."""
    for one in files:
        shapes = {
            "--class-field": one.class_field is not None,
            "--layer": one.layer is not None,
            "--buffer-m": bool(one.buffer_m),
        }
        said = [flag for flag, is_said in shapes.items() if is_said and not one.is_vector]
        if said:
            raise UsageError(
                f"{one.labels}: {said[0]} is for shapes; this is a raster. Leave it out."
            )
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


def _open_labels(one: SceneFiles, raster: Raster, grid: Grid, named: frozenset[int]) -> RasterTruth:
    """Open a raster of classes, whose pixels are found by their coordinates.

    A number that the user calls a class is one, even if the file says "no data" by it.
    """
    labels = open_raster(one.labels, trust=one.trust)
    marks = tuple(None if mark in named else mark for mark in labels.nodata)
    labels = dataclasses.replace(labels, nodata=marks)
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
