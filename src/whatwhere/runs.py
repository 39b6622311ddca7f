"""The run folder: what lies where, and how its report is kept up to date.

RUN/bundle/        the weights and the card: all that prediction needs
RUN/report.html    the run in pictures and words, made from what is in
RUN/report/        scores, areas and pictures
RUN/log.csv        a line for each epoch
RUN/recipe.toml    how it was trained
RUN/splits.json    which pairs trained, validated and test
RUN/splits.geojson where they lie, for scenes
RUN/checkpoints/   what it takes to go on with a training that is not finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatwhere import bundle, files, pictures, report
from whatwhere import evaluate as scoring
from whatwhere.bundle import CARD, Card
from whatwhere.config import Recipe, make_recipe, to_dict
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.evaluate import Evaluation
from whatwhere.metrics import Metric
from whatwhere.talk import difference

RECIPE = "recipe.toml"
SPLITS = "splits.json"
SPLIT_AREAS = "splits.geojson"
_COLORS = (("right", pictures.RIGHT), ("false", pictures.FALSE), ("missed", pictures.MISSED))


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        path: The run folder.
        card: What its bundle says.
        scores: Of the validation split, as `evaluate` gives them.
    """

    path: Path
    card: Card
    scores: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)


def run_folder(path: Path) -> Path:
    """Return the run folder that a bundle or its card lies in; the path itself if there is none.

    So that a run's bundle, given in the run's place, is not scored on what it was trained on.
    """
    place = path.resolve()
    bundle = place.parent if place.name == CARD else place
    if bundle.name == "bundle" and (bundle / CARD).is_file() and (bundle.parent / SPLITS).is_file():
        return bundle.parent
    return path


def kept_recipe(run: Path, said: Recipe | None) -> Recipe:
    """Return the recipe of a training that goes on.

    Args:
        run: The run folder.
        said: What the user says now; None where that is nothing.

    Raises:
        UsageError: There is no training, or another one is said.
    """
    path = run / RECIPE
    if not path.is_file():
        raise UsageError(
            f"{run}: there is no training to go on with (no {RECIPE}). Leave --resume out."
        )
    kept = make_recipe(path)
    then, now = to_dict(kept), to_dict(said or kept)
    rows = [(name, str(then[name]), str(now[name])) for name in then if then[name] != now[name]]
    if rows:
        raise UsageError(
            f"{run}: this is not the training that was begun there:\n"
            f"{difference(rows, ('begun with', 'now'))}\n"
            "Leave these settings out, or begin anew in another folder."
        )
    return kept


def has_report(run: Path) -> bool:
    """Whether this is a run folder with a report, and not a bundle alone."""
    return (run / report.FOLDER).is_dir()


def keep_scores(run: Path, name: str, found: Evaluation, scores: Mapping[str, Any]) -> None:
    """Put the scores of a split and the areas of its images into the report's folder."""
    folder = run / report.FOLDER
    files.write_json(folder / f"{name}.json", scores)
    files.write_text(folder / f"areas_{name}.csv", report.areas_csv(found.areas))
    files.write_bytes(folder / f"areas_{name}.png", pictures.draw_areas(found.areas, found.classes))


def drop_scores(run: Path, name: str) -> None:
    """Take the scores of a split out of the report's folder."""
    for file in (f"{name}.json", f"areas_{name}.csv", f"areas_{name}.png"):
        files.remove(run / report.FOLDER / file)


def keep_thresholds(run: Path, found: Evaluation, thresholds: tuple[float, ...]) -> None:
    """Draw the threshold curve of a split into the report's folder; a softmax has none."""
    if found.histogram is not None:
        picture = pictures.draw_thresholds(found.histogram, found.classes, thresholds)
        files.write_bytes(run / report.FOLDER / "thresholds.png", picture)


def keep_tuning(
    run: Path, card: Card, found: Evaluation, metric: Metric, on: str
) -> tuple[Card, dict[str, Any]]:
    """Choose the threshold of each label, and keep it in the bundle.

    Args:
        run: A run folder or a bundle.
        card: Of the bundle.
        found: Of the pairs to choose on.
        metric: What is to be as high as possible.
        on: Which pairs they are, in words.

    Returns:
        The new card; and `metric`, `on`, `images` and `labels`: for each one `threshold`, `value`
        of the metric there, and `at_half`, its value at 0.5.

    Raises:
        DataError: There is nothing to choose on.
    """
    if found.histogram is None:
        raise DataError("no probability was counted.")
    tuning = scoring.tune(found.histogram, metric)
    rows = zip(card.classes.labels, tuning.thresholds, tuning.values, tuning.at_half, strict=True)
    by_label = {
        info.name: {"threshold": threshold, "value": value, "at_half": half}
        for info, threshold, value, half in rows
    }
    told = {"metric": metric, "on": on, "images": len(found.by_image), "labels": by_label}
    card = card.replace(thresholds=tuning.thresholds, tuning=told)
    bundle.save_card(bundle.bundle_folder(run), card)
    return card, told


def rewrite_report(run: Path, card: Card) -> None:
    """Make `report.html` anew from what lies in the report's folder."""
    report.write(run, card, _COLORS)


def seen_images(run: Path) -> dict[str, list[str]]:
    """Return the digests of the run's images by split; empty for a bundle without its run.

    Raises:
        BundleError: The list is damaged.
    """
    lists = _splits(run)
    return {split: [row["digest"] for row in rows] for split, rows in lists.items()}


def split_keys(run: Path, split: str) -> list[str]:
    """Return the keys of the run's pairs in a split; raises `BundleError`."""
    return [row["key"] for row in _splits(run)[split]]


def _splits(run: Path) -> dict[str, list[dict[str, str]]]:
    path = run / SPLITS
    if not path.is_file():
        return {"train": [], "val": [], "test": []}
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        return {
            split: [{"key": row["key"], "digest": row["digest"]} for row in lists[split]]
            for split in ("train", "val", "test")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: the run's splits cannot be read ({error!r}); without them images seen in "
            "training could be scored. Copy the run again, or score its bundle/ folder."
        ) from error
