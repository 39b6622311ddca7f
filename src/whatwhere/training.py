"""The course of a training: look, rehearse, fit, validate, report."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whatwhere import bundle, files, pictures, report, runs
from whatwhere import evaluate as scoring
from whatwhere.bundle import Card
from whatwhere.config import Recipe, to_dict, to_toml
from whatwhere.data import doctor
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.sources import MASK_FOLDERS, Pair
from whatwhere.data.splits import own
from whatwhere.errors import UsageError
from whatwhere.io.image import read_image
from whatwhere.machine import memory_mb, peak_memory_mb
from whatwhere.metrics import scores as score
from whatwhere.nn.build import build_model, count_parameters, geometry
from whatwhere.predict.backends import choose_device
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor
from whatwhere.predict.images import to_display
from whatwhere.runs import Run
from whatwhere.talk import Talk
from whatwhere.train.fit import Epoch, History, Weights, fit

_EXAMPLES = 6
_REHEARSED = 3  # batches: the first one warms up
_SETTLED = 50  # steps in which batch norm's statistics can follow Keras' momentum of 0.99


def train_run(
    data: Path, output: Path, recipe: Recipe, device: str, workers: int, dry_run: bool, talk: Talk
) -> Run | None:
    """Train, as `jobs.train` describes it."""
    device = choose_device(device)
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}.")
    _check_output(output, data)
    fresh = not output.exists()
    make_net(
        recipe, recipe.model_arguments, 1, 1
    )  # a wrong model is told before the data is looked at
    files.check_writable(output)
    try:
        plan = plan_data(data, recipe, talk)
        plan.tell(talk)
        _tell_momentum(plan, talk)
        _rehearse(plan, output, device, workers, talk)
    except BaseException:
        _leave_no_trace(output, fresh)
        raise
    if dry_run:
        _leave_no_trace(output, fresh)
        return None
    files.write_json(output / runs.SPLITS, plan.split_lists())
    files.write_text(output / "recipe.toml", to_toml(recipe))
    history = _fit(plan, output, device, workers, talk, log=output / "log.csv")
    talk.say(f"done: {history.stopped}; the weights of epoch {history.best.epoch} were kept.")
    if history.interrupted:
        talk.say(
            f"tune, evaluate and predict take {output} as it is; a new training needs a folder of "
            "its own."
        )
        raise KeyboardInterrupt
    scores = _conclude(plan, history, output, device, talk)
    talk.say(f"report   {output / 'report.html'}")
    return Run(output, bundle.load_card(output), scores)


def _check_output(output: Path, data: Path) -> None:
    """Refuse a folder in which something would be overwritten, or that is part of the data."""
    ours = ("bundle", "log.csv", "recipe.toml", runs.SPLITS, report.FOLDER, "report.html")
    there = [name for name in ours if (output / name).exists()]
    if "bundle" in there:
        raise UsageError(f"{output}: a run is in this folder. Take another one for the new run.")
    if there:
        raise UsageError(f"{output}: {', '.join(there)} would be overwritten. Take another folder.")
    inside = output.resolve()
    if inside.is_relative_to(data.resolve()):
        names = {part.lower() for part in inside.relative_to(data.resolve()).parts}
        if names & {"images", *MASK_FOLDERS}:
            raise UsageError(f"{output}: this lies among the data. Take another folder.")


def make_net(recipe: Recipe, arguments: dict[str, Any], bands: int, outputs: int) -> Any:
    """Build the recipe's net with weights drawn from its seed."""
    torch.manual_seed(recipe.seed)
    return build_model(recipe.model, bands, outputs, **arguments)


def net_arguments(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return the net's arguments for epochs of so many steps.

    Batch norm's running statistics follow a momentum of 0.99 only after hundreds of steps; until
    then a validation loss says nothing, and would stop a training on few images. In epochs of fewer
    than 50 steps they keep so little that an epoch replaces 95 % of them.
    """
    arguments = recipe.model_arguments
    if recipe.bn_adapt and recipe.batchnorm and steps < _SETTLED:
        fast = round(0.05 ** (1 / steps), 4)
        arguments["bn_momentum"] = min(arguments["bn_momentum"], fast)
    return arguments


def _tell_momentum(plan: DataPlan, talk: Talk) -> None:
    steps = len(plan.loader("train"))
    momentum = net_arguments(plan.recipe, steps)["bn_momentum"]
    if momentum != plan.recipe.bn_momentum:
        talk.say(
            f"training an epoch has {steps} steps: batch norm keeps {momentum:g} of its statistics "
            f"at a step, not {plan.recipe.bn_momentum:g} (--no-bn-adapt to insist)"
        )


def versions() -> dict[str, str]:
    """Return the versions of what a training depends on."""
    names = ("whatwhere", "torch", "lightning", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "python": platform.python_version()}


def _fit(
    plan: DataPlan,
    output: Path,
    device: str,
    workers: int,
    talk: Talk,
    *,
    log: Path | None = None,
    most_batches: int | None = None,
) -> History:
    """Train; the bundle in `output` always holds the best weights so far."""
    recipe, classes = plan.recipe, plan.classes
    arguments = net_arguments(recipe, len(plan.loader("train")))
    net = make_net(recipe, arguments, len(plan.reader.bands), classes.n_outputs)
    blank = _card(plan, net, arguments)

    def keep(weights: Weights, row: Epoch) -> None:
        scores = {"epoch": row.epoch, "val_loss": row.val_loss}
        bundle.save(output / "bundle", blank.replace(scores=scores), weights)

    return fit(
        net,
        plan.loader("train", workers, geometry(net).stride),
        plan.loader("val", workers),
        recipe,
        classes.task,
        len(classes),
        on_best=keep,
        talk=talk,
        log=log,
        device=device,
        most_batches=most_batches,
    )


def _card(plan: DataPlan, net: Any, arguments: dict[str, Any]) -> Card:
    shape = geometry(net)
    softmax = plan.classes.task == "multiclass"
    return Card(
        model=plan.recipe.model,
        arguments=arguments,
        parameters=count_parameters(net).total,
        classes=plan.classes,
        bands=plan.reader.bands,
        normalization=plan.reader.normalization,
        resize=plan.reader.resize,
        chip_size=plan.shape,
        orientation=plan.orientation,
        stride=shape.stride,
        margin=shape.margin,
        thresholds=() if softmax else (0.5,) * len(plan.classes.labels),
        scores={},
        tuning={},
        recipe=to_dict(plan.recipe),
        data=plan.fingerprint(),
        versions=versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _rehearse(plan: DataPlan, output: Path, device: str, workers: int, talk: Talk) -> None:
    """Load, step, validate, save, load again, predict and report on a few chips; tell the cost."""
    talk.say("rehearsal: the whole chain on a few chips …")
    with tempfile.TemporaryDirectory(prefix=f"{files.TEMPORARY}rehearsal-", dir=output) as place:
        folder = Path(place)
        history = _fit(plan, folder, device, workers, Talk(quiet=True), most_batches=_REHEARSED)
        if history.interrupted:
            raise KeyboardInterrupt
        _conclude(plan, history, folder, device, Talk(quiet=True), most=1)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    train, val = len(plan.loader("train")), len(plan.loader("val"))
    # A validation batch takes about a third of a training one: it has no way back.
    epoch = history.step_seconds * (train + val / 3)
    peak, free = peak_memory_mb(), memory_mb()
    talk.say(
        f"rehearsal passed: about {_duration(epoch)} an epoch, at most "
        f"{_duration(epoch * plan.recipe.epochs)} in all (epochs: {plan.recipe.epochs}); "
        + (f"memory up to now {peak:,} MB" if peak is not None else "memory unknown")
        + (f" ({free:,} MB free)" if free is not None else "")
        + f"; disk {max(size // 2**20, 1)} MB"
    )


def _conclude(
    plan: DataPlan, history: History, run: Path, device: str, talk: Talk, most: int | None = None
) -> dict[str, Any]:
    """Score the validation split from the saved bundle, and write the report.

    Args:
        plan: Of the data.
        history: Of the training.
        run: The run folder.
        device: Where the net runs.
        talk: Where the progress goes.
        most: For a rehearsal: this many pairs at the most.
    """
    predictor = Predictor.open(run, device)
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
    runs.keep_thresholds(run, found, card.thresholds)
    examples = _examples(predictor, pairs, found)
    files.write_bytes(folder / "examples.png", pictures.draw_examples(examples, card.classes))
    runs.rewrite_report(run, predictor.card)
    return scores


def _examples(
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
                image=to_display(read_image(answer.pair.image)[0]),
                truth=answer.truth[0] if several else answer.truth,
                probability=answer.probabilities.max(0) if softmax else answer.probabilities[0],
                mask=labels[0] if several else labels,
                valid=answer.valid,
            )
        )
    return examples


def _leave_no_trace(output: Path, fresh: bool) -> None:
    """Take away the run folder if this run made it and nothing is in it."""
    if fresh and output.is_dir() and not any(output.iterdir()):
        output.rmdir()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
