"""All that is decided about a data set before a net sees it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import DataLoader

from whatwhere.config import Recipe, make_recipe
from whatwhere.data.areas import deal_blocks, keep_apart, with_labels
from whatwhere.data.augment import Augmentation
from whatwhere.data.bands import bands_of
from whatwhere.data.census import BlockFacts, check_present, look
from whatwhere.data.classes import describe
from whatwhere.data.doctor import (
    Survey,
    check_classes,
    check_training,
    class_pixels,
    classes_of,
)
from whatwhere.data.draws import Draws
from whatwhere.data.inputs import Inputs
from whatwhere.data.loader import Chips, Reader, chip_shape, make_loader
from whatwhere.data.scenes import SceneSource, Wish
from whatwhere.data.sources import Pair, Split
from whatwhere.data.splits import fingerprint, split_pairs
from whatwhere.data.stats import measure, measure_sample
from whatwhere.errors import DataError, Problem, UsageError
from whatwhere.io.image import read_image
from whatwhere.machine import memory_mb
from whatwhere.notation import parse_size, parse_split
from whatwhere.talk import Talk
from whatwhere.types import Bands, Classes, Geometry, Normalization, Orientation, Valid

_SHOWN = 16  # digits of a digest, for people to compare


@dataclass(frozen=True)
class DataPlan:
    """What a training does with its data.

    Attributes:
        survey: What is there.
        classes: What the masks' numbers mean.
        splits: The pairs of each split.
        reader: Reads pairs as the net sees them.
        shape: (height, width) of a chip [px].
        recipe: The recipe it follows.
    """

    survey: Survey
    classes: Classes
    splits: dict[Split, list[Pair]]
    reader: Reader
    shape: tuple[int, int]
    recipe: Recipe

    @property
    def scenes(self) -> SceneSource | None:
        """The scenes that the pairs are blocks of; None for images."""
        source = self.survey.source
        return source if isinstance(source, SceneSource) else None

    @property
    def orientation(self) -> Orientation:
        """Whether gravity matters: not where scenes, or the chips of a map, are looked at."""
        asked, definition = self.recipe.orientation, self.survey.source.definition
        mapped = definition is not None and definition.space != "PIXEL_SPACE"
        free = self.scenes is not None or mapped if asked == "auto" else asked == "free"
        return "free" if free else "upright"

    @property
    def pixel_size(self) -> float | None:
        """Side of the pixels that the net sees [m]; None where that is not known."""
        return None if self.reader.resize else self.survey.source.pixel_size

    def loader(
        self, split: Split, workers: int = 0, geometry: Geometry | None = None
    ) -> DataLoader[Any]:
        """Return the batches of a split; those of `train` are shuffled and augmented.

        Args:
            split: Which one.
            workers: Processes that read ahead; 0 reads in this one.
            geometry: Of the net; None for one that takes any size.
        """
        recipe, training = self.recipe, split == "train"
        pairs, facts = self.splits[split], self.survey.facts
        draws = Draws.of(pairs, facts, self.classes, recipe.class_sampling) if training else None
        chips = Chips(
            pairs,
            {key: one.size for key, one in facts.items()},
            self.reader,
            self.shape,
            seed=recipe.seed,
            training=training,
            geometry=geometry or Geometry(stride=1, margin=0),
            cache_mb=(memory_mb() or 4096) // 4 // max(workers, 1),
            draws=draws,
            states={key: one.states for key, one in facts.items()},
        )
        augmentation = Augmentation(
            self.orientation,
            flip=recipe.flip,
            rotate=recipe.rotate,
            scale=recipe.scale,
            shift=recipe.shift,
            brightness=recipe.brightness,
            contrast=recipe.contrast,
        )
        return make_loader(
            chips,
            recipe.batch_size,
            augmentation=augmentation if training and recipe.augment else None,
            workers=workers,
            epoch_chips=recipe.epoch_chips if training else recipe.val_chips,
        )

    def stretched(self, size: tuple[int, int]) -> DataPlan:
        """Return the same plan with all images stretched to a size first, and seen whole."""
        recipe = make_recipe(self.recipe, resize=size)
        reader = dataclasses.replace(self.reader, resize=size)
        return dataclasses.replace(self, recipe=recipe, reader=reader, shape=size)

    @property
    def _gap(self) -> int:
        """What training blocks lose on a side that touches another split [px]."""
        gaps = [one.gap for one in self.survey.facts.values() if isinstance(one, BlockFacts)]
        return max(gaps, default=0)

    def split_lists(self) -> dict[str, list[dict[str, str]]]:
        """Return each split's pairs by key and digest: what a run keeps of its splits."""
        return {
            split: [{"key": p.key, "digest": self.survey.facts[p.key].digest} for p in pairs]
            for split, pairs in self.splits.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of pairs in each split, a digest of all images, and of which size.

        Blocks cut otherwise would not be known again.
        """
        counts: dict[str, Any] = {split: len(pairs) for split, pairs in self.splits.items()}
        blocks = {"block_px": self.scenes.side} if self.scenes else {}
        return {**counts, "sha256": fingerprint(self.survey), **blocks}

    def contents(self) -> dict[str, Any]:
        """Return what of the data bears on the weights: images, masks, splits, values.

        Of masks it is how many pixels hold each number.
        """
        masks, splits = hashlib.sha256(), hashlib.sha256()
        for pair in sorted(self.survey.pairs, key=lambda pair: pair.key):
            numbers = [sorted(one.items()) for one in self.survey.facts[pair.key].numbers]
            masks.update(f"{pair.key}\0{numbers}\n".encode())
        splits.update(
            repr([(split, [p.key for p in ps]) for split, ps in self.splits.items()]).encode()
        )
        return {
            "images": fingerprint(self.survey)[:_SHOWN],
            "masks": masks.hexdigest()[:_SHOWN],
            "splits": splits.hexdigest()[:_SHOWN],
            "classes": describe(self.classes),
            "bands": ", ".join(self.reader.bands.names),
            "mean": ", ".join(map(repr, self.reader.normalization.mean)),
            "deviation": ", ".join(map(repr, self.reader.normalization.std)),
            "chips": f"{self.shape[0]}×{self.shape[1]} px",
        }

    def tell(self, talk: Talk) -> None:
        """Say what was found and decided."""
        counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in self.splits.items())
        number = sum(map(len, self.splits.values()))
        kind = "pairs" if self.scenes is None else f"blocks of {self.scenes.side} px"
        talk.say(f"data     {self.survey.source.root}: {number} {kind} ({counts})")
        if self.scenes is not None:
            size = self.scenes.pixel_size
            told = "of unknown size" if size is None else f"of {size:.3g} m"
            talk.say(
                f"scenes   {len(self.scenes.scenes)}, pixels {told}; {self._gap} px between "
                "training blocks and others"
            )
        talk.say(f"classes  {describe(self.classes)}")
        bands = ", ".join(self.reader.bands.names)
        resize = self.reader.resize
        stretched = f"stretched to {resize[0]}×{resize[1]} px, " if resize else ""
        talk.say(
            f"images   bands: {bands}; {stretched}chips of {self.shape[0]}×{self.shape[1]} px; "
            f"orientation {self.orientation}"
        )


def plan_data(data: Inputs | Path, recipe: Recipe, talk: Talk) -> DataPlan:
    """Look at a data set and decide everything.

    Args:
        data: Where it lies.
        recipe: How it is to be trained.
        talk: Where the progress goes.

    Raises:
        DataError: There is an error in the data; all that were found are named.
        UsageError: The recipe does not fit the data.
    """
    inputs = data if isinstance(data, Inputs) else Inputs(data)
    root = inputs.root
    found, classes = survey_data(inputs, recipe, talk)
    found = with_labels(found, classes)
    bands = bands_of(found, recipe.bands)
    shares = parse_split(recipe.split)
    if isinstance(found.source, SceneSource):
        splits = deal_blocks(found, classes, shares, recipe.seed)
        found, splits = keep_apart(found, splits, classes)
    else:
        splits = split_pairs(found.pairs, found.digests, shares, recipe.seed)
    _require_both_sides(found, splits["train"], classes)
    if not sum(class_pixels(found, splits["val"], classes)) and classes.task != "multilabel":
        raise DataError(
            f"{root}: no pixel of the validation masks counts. Take another --seed or --split."
        )
    for problem in (*found.problems, *check_training(found, splits, classes)):
        if problem.severity == "warning" or found.source.exports:
            talk.say(f"{problem.severity:8} {problem}")
    resize = parse_size(recipe.resize)
    normalization = _normalization(found, splits["train"], bands, recipe, talk)
    if isinstance(found.source, SceneSource):
        shape = (found.source.chip, found.source.chip)
    else:
        sizes = [resize or found.facts[pair.key].size for pair in found.pairs]
        shape = chip_shape(sizes, recipe.chip_size)
    reader = Reader(bands, classes, normalization, resize)
    return DataPlan(found, classes, splits, reader, shape, recipe)


def survey_data(inputs: Inputs, recipe: Recipe, talk: Talk) -> tuple[Survey, Classes]:
    """Look at a data set once, and find its class table.

    Raises:
        DataError: There is an error in the data; all that were found are named.
        UsageError: The recipe does not fit the data.
    """
    _check_recipe(inputs, recipe)
    found = look(inputs, wish_of(recipe), recipe.split_gap, talk)
    found.require_sound()
    classes = classes_of(found, recipe.classes)
    noticed = [*check_classes(found, classes), *check_present(found, classes)]
    Survey(found.source, found.facts, tuple(noticed)).require_sound()
    return dataclasses.replace(found, problems=(*found.problems, *noticed)), classes


def wish_of(recipe: Recipe) -> Wish:
    """Return how a recipe wants scenes to be read."""
    return Wish(recipe.bands, recipe.chip_size, recipe.resolution_m, spec=recipe.classes)


def _check_recipe(inputs: Inputs, recipe: Recipe) -> None:
    """Refuse settings that mean nothing for this data."""
    if inputs.has_scenes and recipe.resize:
        raise UsageError(
            "--resize stretches images; scenes are read at another pixel size: --resolution-m."
        )
    if not inputs.has_scenes and recipe.resolution_m:
        raise UsageError("--resolution-m is for scenes, whose place on the ground is known.")


def _normalization(
    found: Survey, train: list[Pair], bands: Bands, recipe: Recipe, talk: Talk
) -> Normalization:
    """Measure what training shows, if that is wanted."""
    if not recipe.normalize:
        return Normalization((0.0,) * len(bands), (1.0,) * len(bands))
    if isinstance(found.source, SceneSource):
        return measure_sample(_values(found, train))
    images = talk.track(_pixels(train, bands), "measuring the images", len(train))
    return measure(images)


def _values(found: Survey, pairs: list[Pair]) -> list[NDArray[Any]]:
    facts = [found.facts[pair.key] for pair in pairs]
    return [one.values for one in facts if isinstance(one, BlockFacts)]


def _pixels(pairs: list[Pair], bands: Bands) -> Iterator[tuple[NDArray[Any], Valid]]:
    for pair in pairs:
        pixels, valid = read_image(pair.image, trust=pair.trust)
        yield bands.select(pixels, valid), valid


def _require_both_sides(found: Survey, train: list[Pair], classes: Classes) -> None:
    """Refuse to train where the training split shows fewer than two classes."""
    pixels = class_pixels(found, train, classes)
    there = [info.name for info, count in zip(classes, pixels, strict=True) if count]
    if classes.task == "multilabel" and there:
        return
    if len(there) < 2:
        cause = f"the training masks hold nothing but {', '.join(there) or 'ignored pixels'}."
        remedy = "Add images of the other classes, or another --seed for the split."
        problem = Problem("error", str(found.source.root), cause, remedy)
        raise DataError(str(problem), [problem])
