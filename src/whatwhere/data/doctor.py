"""One look at everything: what a data set holds, and all that is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.classes import (
    FILE,
    exported_classes,
    find_classes,
    find_labels,
    kept_spec,
    written,
)
from whatwhere.data.esri_facts import export_notes, facts_of
from whatwhere.data.facts import Facts
from whatwhere.data.oddities import jpeg_masks, oddities, twins
from whatwhere.data.scenes import SceneSource
from whatwhere.data.sources import SPLITS, Pair, Source, Split
from whatwhere.data.words import single_table, table_of
from whatwhere.errors import DataError, Problem, UsageError
from whatwhere.io.image import read_head, read_image, read_mask, state_of
from whatwhere.io.kinds import kind_of
from whatwhere.talk import Talk
from whatwhere.types import COLOR_FLAG, Classes, same_everywhere

_MOST_ALIKE = 10  # errors of one kind that are listed one by one


@dataclass(frozen=True)
class Survey:
    """What a data set holds.

    Attributes:
        source: Where it lies.
        facts: By the pair's key, for the pairs that can be read.
        problems: Everything that was noticed, errors first.
    """

    source: Source
    facts: Mapping[str, Facts]
    problems: tuple[Problem, ...]

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that can be used."""
        return [pair for pair in self.source.pairs if pair.key in self.facts]

    @property
    def digests(self) -> dict[str, str]:
        return {key: facts.digest for key, facts in self.facts.items()}

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def require_sound(self) -> None:
        """Raise `DataError` with all errors, if there is one."""
        if not self.errors:
            return
        shown = [f"  {problem}" for problem in self.errors[:20]]
        if len(self.errors) > 20:
            shown.append(f"  … and {len(self.errors) - 20} more: `whatwhere inspect` lists them.")
        count = len(self.errors)
        head = f"{self.source.root}: {count} error{'s' * (count > 1)} in the data:"
        raise DataError("\n".join([head, *shown]), self.errors)


def survey(source: Source, talk: Talk) -> Survey:
    """Read every image and mask once, in full, and note what is in them and what is wrong."""
    problems = list(source.problems)
    facts: dict[str, Facts] = {}
    for pair in talk.track(source.pairs, "looking at the data", len(source.pairs)):
        found = _look(pair, problems)
        if found:
            facts[pair.key] = found
    pairs = [pair for pair in source.pairs if pair.key in facts]
    problems += twins(pairs, facts)
    problems += oddities(source, facts)
    order = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda problem: order[problem.severity])
    return Survey(source, facts, tuple(problems))


def classes_of(survey: Survey, spec: str) -> Classes:
    """Make the class table of a surveyed set; raises `DataError` where it cannot be known."""
    numbers = [survey.facts[pair.key].numbers for pair in survey.pairs]
    if isinstance(survey.source, SceneSource):
        return _scene_classes(survey.source, [one[0] for one in numbers], spec)
    if survey.source.labels:
        by_label = [[one[i] for one in numbers] for i in range(len(survey.source.labels))]
        return find_labels(survey.source.labels, by_label, spec)
    try:
        classes = _folder_classes(survey.source, [one[0] for one in numbers], spec)
    except DataError as error:
        jpegs = jpeg_masks(survey.source, survey.facts)
        if not jpegs:
            raise
        raise DataError(f"{error} Masks saved as JPEG ({jpegs[0].name}) blur numbers.") from error
    return classes


def _folder_classes(source: Source, numbers: Sequence[Counter[int]], spec: str) -> Classes:
    """Take the table of the user, else the folder's own, else what the numbers tell.

    An export of Esri's names its classes: what the user and the folder say goes before.
    """
    named = source.definition.classes if source.definition is not None else ()
    kept = "" if spec and not named else kept_spec(source.root)
    try:
        if not named:
            return find_classes(numbers, spec or kept)
        found = exported_classes(named, numbers, kept, "")
    except UsageError as error:
        if not kept:
            raise
        raise DataError(f"{source.root / FILE}: {error}") from error
    return exported_classes(named, numbers, kept, spec) if spec else found


def _scene_classes(source: SceneSource, numbers: Sequence[Counter[int]], spec: str) -> Classes:
    total = sum(numbers, Counter[int]())
    if source.numbering is not None:
        return table_of(source.numbering, total, spec)
    if source.class_name:
        return single_table(source.class_name, total, spec)
    try:
        return find_classes(numbers, spec)
    except DataError as error:
        if not source.label_nodata or len(total) > 1:
            raise
        raise DataError(
            f"{error} Their nodata is {', '.join(f'{mark:g}' for mark in source.label_nodata)}: "
            "such pixels are not labelled. If it is a class, name it: --classes "
            f'"{_numbered([*total, *source.label_nodata])}".'
        ) from error


def _numbered(numbers: Sequence[float]) -> str:
    """A class table to complete."""
    whole = sorted({int(number) for number in numbers if float(number).is_integer()})
    return ",".join(f"{number}=NAME" for number in whole)


def check_classes(survey: Survey, classes: Classes) -> list[Problem]:
    """Return an error for each mask that holds a number the class table does not know.

    Many masks with the same unknown numbers share one error. Of an Esri export there are notes too.
    """
    known = {number for info in classes for number in info.raw} | set(classes.ignored)
    if classes.task == "multilabel":
        known.add(0)
    groups: dict[tuple[int, ...], list[tuple[Path, str]]] = {}
    problems = _two_meanings(survey, classes)
    for pair in survey.pairs:
        for path, numbers in zip(pair.masks, survey.facts[pair.key].numbers, strict=True):
            unknown = {n: k for n, k in numbers.items() if n not in known}
            if unknown:
                shown = ", ".join(
                    f"{written(n)} ({k:,} px{_nearest(n, classes)})"
                    for n, k in sorted(unknown.items())[:8]
                )
                groups.setdefault(tuple(sorted(unknown)), []).append((path, shown))
    for files in groups.values():
        listed = files if len(files) <= _MOST_ALIKE else files[:1]
        for path, shown in listed:
            cause = f"the class table does not know {shown}."
            if len(files) > len(listed):
                cause = f"{cause[:-1]}, nor those of {len(files) - 1} other masks like it."
            remedy = "Correct the mask, or name these numbers with --classes."
            problems.append(Problem("error", str(path), cause, remedy))
    if survey.source.definition is not None:
        total = sum((one.numbers[0] for one in survey.facts.values()), Counter[int]())
        bands = Counter(one.bands for one in survey.facts.values())
        where = str(survey.source.root)
        problems += export_notes(survey.source.definition, where, classes, total, bands)
    return problems


def _nearest(number: int, classes: Classes) -> str:
    """Name the colour of the table that is nearest to one it does not know, if it has any."""
    known = [raw for info in classes for raw in info.raw if raw >= COLOR_FLAG]
    if number < COLOR_FLAG or not known:
        return ""

    def distance(other: int) -> int:
        return sum(((number >> shift & 255) - (other >> shift & 255)) ** 2 for shift in (0, 8, 16))

    return f", like {written(min(known, key=distance))}"


def given_splits(survey: Survey) -> dict[Split, list[Pair]]:
    """Return the pairs of each split that the folders or a list give; all train if none do."""
    splits: dict[Split, list[Pair]] = {}
    for pair in survey.pairs:
        splits.setdefault(pair.split or "train", []).append(pair)
    return splits


def check_training(
    survey: Survey, splits: Mapping[Split, Sequence[Pair]], classes: Classes
) -> list[Problem]:
    """Warn of what would spoil a training, and is fine to be scored.

    Args:
        survey: The set.
        splits: The pairs of each split, as far as they are known.
        classes: The class table.
    """
    root, problems = str(survey.source.root), []
    pixels = {side: class_pixels(survey, pairs, classes) for side, pairs in splits.items()}
    for i, info in enumerate(classes):
        there = [side for side in ("val", "test") if side in pixels and pixels[side][i]]
        if there and splits.get("train") and not pixels["train"][i]:
            cause = f"{info.name} is in {' and '.join(there)} and not in train: nobody learns it."
            remedy = "Add training images with it, or take another --seed for the split."
            problems.append(Problem("warning", root, cause, remedy))
    total = [sum(counts) for counts in zip(*pixels.values(), strict=True)]
    if classes.task != "multilabel" and sum(count > 0 for count in total) == 1:
        (only,) = (info.name for info, count in zip(classes, total, strict=True) if count)
        cause = f"all masks hold nothing but {only}: nothing can be learned from them."
        problems.append(Problem("warning", root, cause, "To train, add images of other classes."))
    if not isinstance(survey.source, SceneSource) and classes.task != "multilabel":
        known = {number for info in classes for number in info.raw}
        numbers = {pair.masks[0]: survey.facts[pair.key].numbers[0] for pair in survey.pairs}
        blank = [mask.name for mask, found in numbers.items() if known.isdisjoint(found)]
        if blank:
            cause = f"{len(blank)} of {len(numbers)} masks hold no pixel that counts: {blank[0]}."
            problems.append(Problem("note", root, cause, "Nothing is learned from them."))
    return problems


def _two_meanings(survey: Survey, classes: Classes) -> list[Problem]:
    """Return an error where 1 and white both stand for one class: is 255 then "not labelled"?"""
    problems = []
    for i, info in enumerate(classes):
        masks = [
            one.numbers[i if classes.task == "multilabel" else 0] for one in survey.facts.values()
        ]
        found = set(info.raw) & set().union(*masks)
        if 1 in found and found & {255, 65535}:
            cause = f"the masks hold 1 and {max(found)}: do both mean {info.name}?"
            remedy = "Store it one way, or say it: --classes 0=background,1=NAME,255=ignore."
            problems.append(Problem("error", str(survey.source.root), cause, remedy))
    return problems


def class_pixels(survey: Survey, pairs: Sequence[Pair], classes: Classes) -> list[int]:
    """Return how many pixels of some pairs each class has."""
    if classes.task == "multilabel":
        return [
            sum(survey.facts[p.key].numbers[i][n] for p in pairs for n in info.raw)
            for i, info in enumerate(classes)
        ]
    total = sum((survey.facts[p.key].numbers[0] for p in pairs), Counter[int]())
    return [sum(total[number] for number in info.raw) for info in classes]


def _look(pair: Pair, problems: list[Problem]) -> Facts | None:
    """Read one pair; note its errors and return None where it has any."""
    before, files = len(problems), (pair.image, *pair.masks)
    states = tuple(map(state_of, files))
    image: NDArray[Any] | None = None
    valid = None
    try:
        image, valid = read_image(pair.image, trust=pair.trust)
    except DataError as error:
        problems += error.problems
    numbers: list[Counter[int]] = []
    for path in pair.masks:
        try:
            mask, counts = read_mask(path, trust=pair.trust)
        except DataError as error:
            problems += error.problems
            continue
        if image is not None and valid is not None:
            if mask.shape == image.shape[1:]:
                found, pixels = np.unique(mask[valid & counts], return_counts=True)
                numbers.append(Counter(dict(zip(found.tolist(), pixels.tolist(), strict=True))))
            else:
                problems.append(_sizes_differ(pair.image, image.shape[1:], path, mask.shape))
    if image is None or valid is None or len(problems) > before:
        return None
    if not valid.any():
        cause, remedy = "no pixel of it has data.", "Take it out."
        problems.append(Problem("warning", str(pair.image), cause, remedy))
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    grey = len(pixels) == 3 and same_everywhere(pixels, valid)
    digest.update(pixels.data)
    return Facts(
        size=(pixels.shape[1], pixels.shape[2]),
        dtype=str(pixels.dtype),
        bands=len(pixels),
        grey=grey,
        digest=digest.hexdigest(),
        numbers=tuple(numbers),
        kinds=tuple(kind_of(read_head(path)) for path in files),
        states=states,
        absent=int(valid.size - valid.sum()),
    )


def _sizes_differ(
    image: Path, size: tuple[int, ...], mask: Path, other: tuple[int, ...]
) -> Problem:
    cause = f"the mask has {other[0]}×{other[1]} px, its image {image.name} {size[0]}×{size[1]}."
    remedy = "Make both of one size."
    if tuple(other) == tuple(reversed(size)):
        remedy = "It looks turned by 90 degrees: turn it back."
    return Problem("error", str(mask), cause, remedy)


def summary(survey: Survey, classes: Classes | None) -> dict[str, Any]:
    """Return what `inspect` tells, as JSON can hold it."""
    sizes = Counter(one.size for one in survey.facts.values())
    splits = Counter(pair.split for pair in survey.pairs)
    found: dict[str, Any] = {
        "root": str(survey.source.root),
        "pairs": len(survey.source.pairs),
        "readable": len(survey.facts),
        "splits": {split: splits[split] for split in SPLITS if splits[split]},
        "sizes": [
            {"height": height, "width": width, "images": count}
            for (height, width), count in sizes.most_common()
        ],
        "types": dict(Counter(one.dtype for one in survey.facts.values())),
        "bands": {str(k): n for k, n in Counter(o.bands for o in survey.facts.values()).items()},
        "classes": [],
    }
    if isinstance(survey.source, SceneSource):
        found["scenes"] = survey.source.to_json()
    if survey.source.exports:
        found["exports"] = [facts_of(export) for export in survey.source.exports]
    if classes is not None:
        pixels = class_pixels(survey, survey.pairs, classes)
        total = sum(sum(one.numbers[0].values()) for one in survey.facts.values())
        found["task"] = classes.task
        found["classes"] = [
            {
                "name": info.name,
                "value": info.value,
                "raw": list(info.raw),
                "pixels": count,
                "share": count / total if total else 0.0,
            }
            for info, count in zip(classes, pixels, strict=True)
        ]
    found["problems"] = [
        {"severity": p.severity, "file": p.file, "cause": p.cause, "remedy": p.remedy}
        for p in survey.problems
    ]
    return found
