"""What `prepare_data` returns: a data set that was looked at."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whatwhere.config import make_recipe
from whatwhere.data.doctor import class_pixels
from whatwhere.data.inputs import Inputs
from whatwhere.data.plan import DataPlan
from whatwhere.data.sources import Pair, Split
from whatwhere.errors import UsageError
from whatwhere.face.drawing import Panel, bands_shown, draw_panels
from whatwhere.face.inline import show
from whatwhere.face.words import check_words
from whatwhere.talk import Talk
from whatwhere.types import Bands, Classes, Normalization

SPLITS: Mapping[str, Split] = {
    **{"training": "train", "validation": "val", "testing": "test"},
    **{"train": "train", "valid": "val", "val": "val", "test": "test"},
}
"""What the splits are called there, and here."""


class SegmentationData:
    """A data set that was looked at, and how a net will see it.

    Attributes:
        inputs: Where it lies.
        plan: What was found and decided.
        settings: What was said of a recipe.
        working_dir: Where `models/` is made.
        workers: Processes that read ahead.
        alpha: How much the colours of classes cover in pictures.
        talk: What speaks to the user.
    """

    def __init__(
        self,
        inputs: Inputs,
        plan: DataPlan,
        settings: Mapping[str, Any],
        *,
        working_dir: Path,
        workers: int,
        alpha: float,
        rgb: Sequence[int],
        talk: Talk,
    ) -> None:
        """Join what `prepare_data` found; use that."""
        self.inputs, self.plan, self.settings = inputs, plan, dict(settings)
        self.working_dir, self.workers, self.alpha = working_dir, workers, alpha
        self.talk, self._rgb = talk, tuple(rgb)

    @property
    def path(self) -> Path:
        """Where the data lies."""
        return self.inputs.root

    @property
    def table(self) -> Classes:
        """The class table, as the other rooms of this package take it."""
        return self.plan.classes

    @property
    def classes(self) -> list[str]:
        """The names of the classes, the background first."""
        return self.table.names

    @property
    def class_mapping(self) -> dict[int, str]:
        """The name of each class by the value that a written mask holds.

        Labels that overlap have a mask each: they are numbered from 1.
        """
        return dict(zip(values_of(self.table), self.classes, strict=True))

    @property
    def color_mapping(self) -> dict[int, list[int]]:
        """Red, green and blue of each class in [0, 255], by its value."""
        colours = [list(info.color) for info in self.table]
        return dict(zip(values_of(self.table), colours, strict=True))

    @property
    def c(self) -> int:
        """How many classes there are, the background among them."""
        return len(self.table)

    @property
    def chip_size(self) -> int:
        """The longer side of a chip [px]."""
        return max(self.plan.shape)

    @property
    def batch_size(self) -> int:
        """Chips a step."""
        return self.plan.recipe.batch_size

    @property
    def bands(self) -> Bands:
        """Which bands the net sees."""
        return self.plan.reader.bands

    @property
    def normalization(self) -> Normalization:
        """Mean and deviation of each band, of the training split."""
        return self.plan.reader.normalization

    @property
    def num_pixels_per_class(self) -> dict[int, int]:
        """How many pixels of the whole set each class has, by its value."""
        plan = self.plan
        pixels = class_pixels(plan.survey, plan.survey.pairs, plan.classes)
        return dict(zip(self.class_mapping, pixels, strict=True))

    @property
    def class_weight(self) -> dict[int, float]:
        """What `class_balancing` makes a pixel of each class weigh in the loss, by its value."""
        from whatwhere.training.course import class_weights

        recipe = make_recipe(self.plan.recipe, class_weights="balanced")
        weights = class_weights(dataclasses.replace(self.plan, recipe=recipe))
        return dict(zip(self.class_mapping, weights, strict=True))

    @property
    def train_ds(self) -> list[Pair]:
        """The images that train, with their masks: blocks of scenes are such pairs too."""
        return self.plan.splits["train"]

    @property
    def valid_ds(self) -> list[Pair]:
        """The images that validate, with their masks."""
        return self.plan.splits["val"]

    @property
    def test_ds(self) -> list[Pair]:
        """The images that nothing is fitted to or chosen on; empty unless there is such a split."""
        return self.plan.splits["test"]

    @property
    def train_dl(self) -> Any:
        """The batches of an epoch, as training sees them."""
        return self.plan.loader("train", self.workers)

    @property
    def valid_dl(self) -> Any:
        """The batches that validate."""
        return self.plan.loader("val", self.workers)

    @property
    def test_dl(self) -> Any:
        """The batches of the test split."""
        return self.plan.loader("test", self.workers)

    def show_batch(
        self,
        rows: int = 3,
        alpha: float | None = None,
        ncols: int = 3,
        n_items: int | None = None,
        imsize: float = 5,
        data_loader: str = "training",
        rgb_bands: Sequence[int | str] | None = None,
        statistics_type: str | None = None,
        top: float | None = None,
    ) -> Any:
        """Show chips with their classes, as a net sees them: cut, and changed for training.

        Args:
            rows: Of chips.
            alpha: How much the colours cover, in [0, 1]; None for that of `prepare_data`.
            ncols: Chips in a row.
            n_items: Chips in all; None fills the rows.
            imsize: Side of a picture [inches].
            data_loader: `training`, `validation` or `testing`.
            rgb_bands: Three names, or places from 0, of the bands shown as red, green and blue.
            statistics_type: Has no effect: each chip is stretched by its own values.
            top: Has no effect.

        Returns:
            A figure of matplotlib; a notebook shows it.

        Raises:
            UsageError: There is no such split or band, or the split is empty.
        """
        own = statistics_type if statistics_type != "DRA" else None
        check_words({"statistics_type": own, "top": top}, (), "show_batch", self.talk)
        split = split_called(data_loader)
        count = n_items or max(rows, 1) * max(ncols, 1)
        recipe = make_recipe(self.plan.recipe, batch_size=count)
        loader = dataclasses.replace(self.plan, recipe=recipe).loader(split)
        if not len(loader):
            raise UsageError(f"there is no image in the {data_loader} split.")
        batch = next(iter(loader))
        keys = [loader.dataset.key(int(i)) for i in batch["index"]]  # type: ignore[attr-defined]
        fields = (batch[name].numpy() for name in ("image", "labels", "valid"))
        panels = [Panel(*one) for one in zip(keys, *fields, strict=True)]
        figure = draw_panels(
            panels,
            self.table,
            columns=min(ncols, len(panels)),
            side=imsize,
            alpha=self.alpha if alpha is None else alpha,
            rgb=bands_shown(rgb_bands, self.bands.names) if rgb_bands else self._rgb,
        )
        return show(figure)

    def facts(self) -> dict[str, str]:
        """Return what there is, in words, for people to read."""
        plan = self.plan
        height, width = plan.shape
        sizes = {one.size for one in plan.survey.facts.values()}
        low, high = min(sizes), max(sizes)
        kind = "blocks of scenes" if plan.scenes else "images"
        counts = [f"{len(pairs)} {name}" for name, pairs in self._splits().items()]
        told = f"{low[0]}×{low[1]}" if low == high else f"{low[0]}×{low[1]} to {high[0]}×{high[1]}"
        return {
            "path": str(self.path),
            kind: f"{len(plan.survey.pairs)} of {told} px: {', '.join(counts)}",
            "bands": ", ".join(self.bands.names),
            "chips": f"{height}×{width} px, {self.batch_size} a step",
            "training chips": f"changed a little, {plan.orientation}"
            if plan.recipe.augment
            else "as they are",
        }

    def _splits(self) -> dict[str, list[Pair]]:
        named = {"train": self.train_ds, "validate": self.valid_ds, "test": self.test_ds}
        return {name: pairs for name, pairs in named.items() if pairs}

    def _shares(self) -> dict[str, float]:
        pixels = list(self.num_pixels_per_class.values())
        total = math.fsum(pixels) or 1.0
        return {name: n / total for name, n in zip(self.classes, pixels, strict=True)}

    def __repr__(self) -> str:
        facts = self.facts()
        facts["classes"] = ", ".join(
            f"{name} {share:.1%}" for name, share in self._shares().items()
        )
        width = max(map(len, facts))
        lines = [f"  {name.ljust(width)}  {told}" for name, told in facts.items()]
        return "\n".join(["SegmentationData", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(told)}</td></tr>"
            for name, told in self.facts().items()
        )
        shares = self._shares()
        classes = "".join(
            f"<tr><td style='text-align:left'><span style='display:inline-block;width:1em;"
            f"height:1em;border:1px solid #999;background:rgb{info.color}'></span> "
            f"{html.escape(info.name)}</td><td>{info.value}</td>"
            f"<td>{shares[info.name]:.1%}</td></tr>"
            for info in self.table
        )
        heads = "<tr><th style='text-align:left'>class</th><th>value</th><th>pixels</th></tr>"
        return f"<table>{rows}</table><table>{heads}{classes}</table>"


def values_of(classes: Classes) -> list[int]:
    """Return the value of each class in written masks; labels that overlap count from 1."""
    if classes.task == "multilabel":
        return list(range(1, len(classes) + 1))
    return [info.value for info in classes]


def split_called(name: str) -> Split:
    """Return a split by what it is called there; raises `UsageError` where there is none."""
    if name not in SPLITS:
        raise UsageError(f"there is no split {name!r}. Take one of {', '.join(SPLITS)}.")
    return SPLITS[name]
