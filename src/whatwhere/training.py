"""The course of a training: look, rehearse, fit, validate, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader

from whatwhere import bundle, files, nets, pictures, report, runs
from whatwhere import evaluate as scoring
from whatwhere.config import MODELS, Recipe, to_dict, to_toml
from whatwhere.data import doctor
from whatwhere.data.areas import write_splits
from whatwhere.data.inputs import Inputs
from whatwhere.data.loader import Chips
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.data.scenes import Block
from whatwhere.data.sources import MASK_FOLDERS, Pair, Split
from whatwhere.data.splits import own
from whatwhere.errors import Interrupted, UsageError
from whatwhere.io.image import read_image
from whatwhere.losses import balanced_weights
from whatwhere.machine import memory_mb, peak_memory_mb, threads
from whatwhere.metrics import scores as score
from whatwhere.nn.build import build_model, geometry
from whatwhere.notation import parse_class_weights
from whatwhere.predict.backends import choose_device
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.images import to_display
from whatwhere.predict.seams import MOST, seam_error
from whatwhere.runs import Run
from whatwhere.talk import Talk, difference
from whatwhere.train.fit import Epoch, History, Weights, check_precision, finished, fit
from whatwhere.train.keeper import tell_resumed
from whatwhere.train.lr_find import LrCurve, find_lr
from whatwhere.train.state import FOLDER as STATES
from whatwhere.train.state import KEPT, States
from whatwhere.types import Geometry

_EXAMPLES = 6
_REHEARSED = 3  # batches: the first one warms up
_LONG_EPOCH = 4000  # chips: from so many on, that epochs may be shorter is worth a line


def train_run(
    data: Inputs,
    output: Path,
    recipe: Recipe,
    device: str,
    workers: int,
    dry_run: bool,
    talk: Talk,
    encoder: Any = None,
    *,
    resume: bool = False,
    save_minutes: float = 5.0,
) -> Run | None:
    """Train, as `jobs.train` describes it."""
    device = choose_device(device)
    check_precision(recipe, device)
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}.")
    if not 0 <= save_minutes < math.inf:
        raise UsageError(f"--save-minutes must be at least 0, not {save_minutes}.")
    if not resume:
        _check_output(output, data.root)
    fresh = not output.exists()
    nets.check_model(recipe, encoder)
    files.check_writable(output)
    try:
        with files.locked(output):
            if not resume:
                _check_output(output, data.root)  # another run may have come first
            files.sweep(output)
            plan = plan_data(data, recipe, talk)
            plan.tell(talk)
            course = _course(plan, device, workers, encoder)
            _tell_course(course, talk)
            if resume:
                return _go_on(course, output, save_minutes, talk)
            _rehearse(course, output, talk)
            if dry_run:
                return None
            _write_start(course, output)
            return _whole_run(course, output, None, save_minutes, talk)
    finally:
        _leave_no_trace(output, fresh)


def _write_start(course: _Course, output: Path) -> None:
    """Write what a run is of; the recipe comes first: where it is, a training can go on."""
    plan = course.plan
    files.write_text(output / runs.RECIPE, to_toml(plan.recipe))
    files.write_json(output / runs.SPLITS, plan.split_lists())
    write_splits(output / runs.SPLIT_AREAS, plan.splits)


def _go_on(course: _Course, output: Path, save_minutes: float, talk: Talk) -> Run:
    """Go on from the newest state that is whole, or begin again where there is none."""
    states = States(output / STATES)
    if not states.paths() and (output / "report.html").exists():
        raise UsageError(f"{output}: this training is finished: there is nothing to go on with.")
    state = states.newest(talk.say)
    if state is None:
        talk.say("resume   no state was kept yet: the training begins again")
        _write_start(course, output)
    else:
        _check_same(state["of"], _what(course), output)
        size = states.paths()[-1].stat().st_size
        files.require_space(output, 2 * size, "the next state and the bundle of this training")
        tell_resumed(state, len(course.loader("train")), talk)
        threads_then = state["of"]["threads"]
        if threads_then != threads():
            talk.say(
                f"note     {threads_then} threads computed before, {threads()} do now: the last "
                "digits of the weights will be others."
            )
    return _whole_run(course, output, state, save_minutes, talk)


def _what(course: _Course) -> dict[str, Any]:
    """What is trained: what a training that goes on must find again, and the threads."""
    plan = course.plan
    return {
        "recipe": to_dict(plan.recipe),
        "data": plan.contents(),
        "versions": nets.versions(),
        "device": course.device,
        "threads": threads(),
    }


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Raise `UsageError` with a table where something else would be trained."""
    rows = []
    for part in ("recipe", "data", "versions"):
        for name in {**then[part], **now[part]}:
            pair = str(then[part].get(name, "–")), str(now[part].get(name, "–"))
            if pair[0] != pair[1]:
                rows.append((name, *pair))
    if then["device"] != now["device"]:
        rows.append(("device", then["device"], now["device"]))
    if rows:
        raise UsageError(
            f"{output}: this is not the training that was begun there:\n"
            f"{difference(rows, ('begun with', 'now'))}\n"
            "Make them the same again, or begin anew in another folder."
        )


def _whole_run(
    course: _Course,
    output: Path,
    state: Mapping[str, Any] | None,
    save_minutes: float,
    talk: Talk,
) -> Run:
    """Train to the end, and conclude."""
    states = States(output / STATES)
    history = None if state is None else finished(state, course.plan.recipe)
    if history is None:
        history = _fit(
            course,
            output,
            talk,
            log=output / "log.csv",
            states=states,
            state=state,
            save_minutes=save_minutes,
        )
    if history.interrupted:
        kept = any(row.best for row in history.epochs)
        talk.say(
            f"stopped  --resume goes on from here{_kept(states)}"
            + (f"; tune, evaluate and predict take {output} as it is" if kept else "")
        )
        raise Interrupted(history.signal)
    talk.say(f"done: {history.stopped}; the weights of epoch {history.best.epoch} were kept.")
    scores = _conclude(course, history, output, talk)
    states.clear()
    talk.say(f"report   {output / 'report.html'}")
    return Run(output, bundle.load_card(output), scores)


def _kept(states: States) -> str:
    return "" if states.paths() else ", which is the beginning: no step was kept"


def _check_output(output: Path, data: Path) -> None:
    """Refuse a folder in which something would be overwritten, or that is part of the data."""
    ours = (
        *("bundle", "log.csv", runs.RECIPE, runs.SPLITS, runs.SPLIT_AREAS),
        *(report.FOLDER, "report.html", STATES),
    )
    there = [name for name in ours if (output / name).exists()]
    if {runs.RECIPE, runs.SPLITS} <= {*there} and "report.html" not in there:
        raise UsageError(
            f"{output}: a training that was not finished is in this folder. --resume goes on with "
            "it; take another folder for a new one."
        )
    if "bundle" in there:
        raise UsageError(f"{output}: a run is in this folder. Take another one for the new run.")
    if there:
        begun = " If a training was begun in it, --resume goes on." if runs.RECIPE in there else ""
        raise UsageError(
            f"{output}: {', '.join(there)} would be overwritten. Take another folder.{begun}"
        )
    inside = output.resolve()
    if inside.is_relative_to(data.resolve()):
        names = {part.lower() for part in inside.relative_to(data.resolve()).parts}
        if names & {"images", *MASK_FOLDERS}:
            raise UsageError(f"{output}: this lies among the data. Take another folder.")


@dataclass(frozen=True)
class _Course:
    """What a training needs beside its data: the net, and where it runs.

    Attributes:
        plan: Of the data.
        device: Where the net runs.
        workers: Processes that read ahead.
        encoder: A backbone of the user's own, or None.
        arguments: The net's own.
        shape: Its geometry, measured once.
    """

    plan: DataPlan
    device: str
    workers: int
    encoder: Any
    arguments: dict[str, Any]
    shape: Geometry

    def net(self, talk: Talk) -> Any:
        """Build the net that the training begins with."""
        plan = self.plan
        return nets.first_net(
            plan.recipe, self.arguments, plan.reader.bands, plan.classes, talk, self.encoder
        )

    def loader(self, split: Split) -> DataLoader[Any]:
        return self.plan.loader(split, self.workers, self.shape)


def _course(plan: DataPlan, device: str, workers: int = 0, encoder: Any = None) -> _Course:
    """Decide about the net, and measure it."""
    nets.check_task(plan.recipe, plan.classes.task)
    arguments = nets.net_arguments(plan.recipe, len(plan.loader("train")))
    model = plan.recipe.model if encoder is None else copy.deepcopy(encoder)
    net = build_model(model, len(plan.reader.bands), plan.classes.n_outputs, **arguments)
    return _Course(plan, device, workers, encoder, arguments, geometry(net))


def _tell_course(course: _Course, talk: Talk) -> None:
    recipe, shape = course.plan.recipe, course.shape
    if recipe.model not in MODELS:
        sees = "the whole tile" if shape.margin is None else f"{shape.margin} px far"
        talk.say(f"net      {recipe.model}: sides of {shape.stride} px; a pixel sees {sees}")
    loader = course.plan.loader("train")
    chips = len(cast(Chips, loader.dataset))
    if 0 < recipe.epoch_chips < chips:
        talk.say(f"training an epoch has {recipe.epoch_chips:,} of {chips:,} chips, by turns")
    elif course.plan.scenes is not None and chips > _LONG_EPOCH:
        talk.say(
            f"training an epoch has {chips:,} chips; --epoch-chips 2000 makes epochs of 2,000, "
            "which take turns"
        )
    steps, usual = len(loader), recipe.bn_momentum
    momentum = course.arguments.get("bn_momentum", usual)
    if momentum != usual:
        talk.say(
            f"training an epoch has {steps} steps: batch norm keeps {momentum:g} of its statistics "
            f"at a step, not {usual:g} (--no-bn-adapt to insist)"
        )


def _fit(
    course: _Course,
    output: Path,
    talk: Talk,
    *,
    log: Path | None = None,
    most_batches: int | None = None,
    states: States | None = None,
    state: Mapping[str, Any] | None = None,
    save_minutes: float = 5.0,
) -> History:
    """Train; the bundle in `output` always holds the best weights so far."""
    plan, classes = course.plan, course.plan.classes
    net = course.net(talk)
    blank = nets.blank_card(plan, net, course.arguments, course.shape)
    asked = copy.deepcopy(net).eval()  # answers the self-test with the weights that are saved

    def keep(weights: Weights, row: Epoch) -> None:
        scores = {"epoch": row.epoch, "val_loss": row.val_loss}
        monitor = plan.recipe.monitor
        if monitor != "loss":
            scores[monitor] = getattr(row, f"val_{monitor}")
        card = blank.replace(scores=scores)
        bundle.save(output / "bundle", nets.tested(card, asked, weights), weights)

    return fit(
        net,
        course.loader("train"),
        course.loader("val"),
        plan.recipe,
        classes.task,
        len(classes),
        on_best=keep,
        talk=talk,
        log=log,
        device=course.device,
        most_batches=most_batches,
        class_weights=class_weights(plan),
        class_names=classes.names,
        states=states,
        state=state,
        of=_what(course) if states is not None else None,
        save_minutes=save_minutes,
    )


def find_rate(
    data: Inputs,
    recipe: Recipe,
    device: str,
    talk: Talk,
    encoder: Any = None,
    low: float = 1e-7,
    high: float = 1.0,
) -> LrCurve:
    """Try learning rates on the net that a training would begin with, as `jobs.lr_find` says."""
    device = choose_device(device)
    check_precision(recipe, device)
    nets.check_model(recipe, encoder)
    plan = plan_data(data, recipe, talk)
    plan.tell(talk)
    course = _course(plan, device, encoder=encoder)
    return find_lr(
        course.net(talk),
        course.loader("train"),
        recipe,
        plan.classes.task,
        len(plan.classes),
        class_weights=class_weights(plan),
        low=low,
        high=high,
        device=device,
        talk=talk,
    )


def class_weights(plan: DataPlan) -> tuple[float, ...]:
    """Return the weight of each class in the loss; empty where the recipe wants none.

    Raises:
        UsageError: There are not as many numbers as classes.
    """
    asked, classes = parse_class_weights(plan.recipe.class_weights), plan.classes
    train = plan.splits["train"]
    if asked == "balanced":
        total = None
        if classes.task == "multilabel":
            total = sum(plan.survey.facts[pair.key].numbers[0].total() for pair in train)
        return balanced_weights(doctor.class_pixels(plan.survey, train, classes), total)
    weights = tuple(weight for weight in asked if isinstance(weight, float))
    if weights and len(weights) != len(classes):
        raise UsageError(
            f"class_weights has {len(weights)} numbers for {len(classes)} classes: give one for "
            f"each of {', '.join(classes.names)}, in this order, or `balanced`."
        )
    return weights


def _rehearse(course: _Course, output: Path, talk: Talk) -> None:
    """Load, step, validate, save, load again, predict and report on a few chips; tell the cost."""
    talk.say("rehearsal: the whole chain on a few chips …")
    with files.scratch(output) as folder:
        history = _fit(course, folder, Talk(quiet=True), most_batches=_REHEARSED)
        if history.interrupted:
            raise KeyboardInterrupt
        _conclude(course, history, folder, Talk(quiet=True), most=1)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _require_space(course, output, size, bundle.weights_bytes(folder))
    plan = course.plan
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


def _require_space(course: _Course, output: Path, size: int, weights: int) -> None:
    """Refuse a training whose states would fill the disk.

    A state holds the weights, two numbers of the optimiser for each, and their average if there is
    one; a new one is written before the oldest goes, and so is a new bundle.
    """
    state = (4 if course.plan.recipe.ema else 3) * weights
    need = (KEPT + 1) * state + size + weights
    files.require_space(output, need, "the states and the bundle of this training")


def _conclude(
    course: _Course, history: History, run: Path, talk: Talk, most: int | None = None
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
    runs.keep_thresholds(run, found, card.thresholds)
    examples = _examples(predictor, pairs, found)
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
