"""The end of a training: the validation split is scored from the bundle, and the report written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whatwhere import bundle, files, pictures, report, runs
from whatwhere import evaluate as scoring
from whatwhere.data import doctor
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Pair
from whatwhere.data.splits import own
from whatwhere.io.image import read_image
from whatwhere.metrics import scores as score
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.images import to_display
from whatwhere.predict.seams import MOST, seam_error
from whatwhere.talk import Talk
from whatwhere.train.fit import History
from whatwhere.training.course import Course

_EXAMPLES = 6


def conclude(
    course: Course, history: History, run: Path, talk: Talk, most: int | None = None
) -> dict[str, Any]:
    """Score the validation split from the saved bundle, and write the report.

    Args:
        course: Of the training.
        history: Of the training.
        run: The run folder.
        talk: Where the progress goes.
        most: For a rehearsal: this many pairs at the most.
    """
    plan = course.plan
    predictor = load(run, device=course.device, encoder=copy.deepcopy(course.encoder))
    card = predictor.card
    pairs = plan.splits["val"][:most]
    answers = talk.track(scoring.answers(predictor, pairs), "validating", len(pairs))
    found = scoring.evaluate(answers, card.classes, card.thresholds)
    scores = {**found.to_json(), "on": own("val")}
    runs.keep_scores(run, "validation", found, scores)
    folder = run / report.FOLDER
    files.write_json(folder / "data.json", doctor.summary(plan.survey, plan.classes))
    curves = pictures.draw_curves([vars(row) for row in history.epochs])
    files.write_bytes(folder / "curves.png", curves)
    if plan.recipe.minutes and most is None and found.histogram is not None:
        predictor.card, told = runs.keep_tuning(run, card, found, "mean_iou", own("val"))
        for name, row in told["labels"].items():
            if row["value"] is not None:
                talk.say(
                    f"tuned    {name}: threshold {row['threshold']:g}, mean IoU {row['value']:.4f} "
                    f"on {told['on']} ({row['at_half'] or 0:.4f} at 0.5)"
                )
    runs.keep_thresholds(run, found, predictor.card.thresholds)
    examples = examples_of(predictor, pairs, found)
    files.write_bytes(folder / "examples.png", pictures.draw_examples(examples, card.classes))
    runs.rewrite_report(run, predictor.card)
    if most is None:
        _measure_seams(predictor, pairs, run, talk)
    return scores


def _measure_seams(predictor: Predictor, pairs: Sequence[Pair], run: Path, talk: Talk) -> None:
    """Say how much the seams of maps will show, of a net that looks at whole tiles, on a scene."""
    block = next((pair for pair in pairs if isinstance(pair, Block)), None)
    if block is None or predictor.card.geometry.margin is not None:
        return
    middle = block.window.row + block.window.height // 2, block.window.column
    error = seam_error(predictor, block.scene.raster, block.scene.numbers, middle)
    if error is not None:
        card = predictor.card.replace(scores={**predictor.card.scores, "seam_error": error})
        bundle.save_card(bundle.bundle_folder(run), card)
        talk.say(
            f"seams    this net looks at whole tiles, which maps blend: on {block.scene.name} a "
            f"probability differed by up to {error:.3f} from one piece of up to {MOST} px"
        )


def examples_of(
    predictor: Predictor, pairs: Sequence[Pair], found: scoring.Evaluation
) -> list[pictures.Example]:
    """Take pairs from the worst score to the best, evenly spread, those with something in them."""
    card = predictor.card
    several = card.classes.task == "multilabel"
    filled = {row["image"] for row in found.areas if row["true_pixels"]}
    ranked = sorted(
        (pair for pair in pairs if pair.key in filled or not filled),
        key=lambda pair: score(found.by_image[pair.key]).mean_iou or 0.0,
    )
    places = np.linspace(0, len(ranked) - 1, min(_EXAMPLES, len(ranked))).round().astype(int)
    examples = []
    for answer in scoring.answers(predictor, [ranked[i] for i in places]):
        labels = decide(answer.probabilities, card.classes, card.thresholds)
        softmax = card.classes.task == "multiclass"
        iou = score(found.by_image[answer.pair.key]).mean_iou
        examples.append(
            pictures.Example(
                title=f"{answer.pair.key}\nmean IoU {iou:.3f}" if iou is not None else "",
                image=_picture(answer.pair),
                truth=answer.truth[0] if several else answer.truth,
                probability=answer.probabilities.max(0) if softmax else answer.probabilities[0],
                mask=labels[0] if several else labels,
                valid=answer.valid,
            )
        )
    return examples


def _picture(pair: Pair) -> Any:
    """The image of a pair, to be looked at; without data it is as dark as can be."""
    if not isinstance(pair, Block):
        return to_display(read_image(pair.image, trust=pair.trust)[0])
    pixels, valid = pair.read()
    return to_display(np.where(valid, pixels, pixels[:, valid].min()))
