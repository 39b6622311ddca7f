"""The course of a training: look, rehearse or choose, fit, conclude."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whatwhere import bundle, files, nets, report, runs
from whatwhere.config import Recipe, to_toml
from whatwhere.data.areas import write_splits
from whatwhere.data.inputs import Inputs
from whatwhere.data.plan import plan_data
from whatwhere.data.sources import MASK_FOLDERS
from whatwhere.errors import Interrupted, UsageError
from whatwhere.machine import memory_mb, peak_memory_mb, threads
from whatwhere.predict.backends import choose_device
from whatwhere.runs import Run
from whatwhere.talk import Talk, difference
from whatwhere.train.clock import Clock
from whatwhere.train.fit import check_compiler, check_precision, finished
from whatwhere.train.keeper import tell_resumed
from whatwhere.train.lr_find import LrCurve, find_lr
from whatwhere.train.state import FOLDER as STATES
from whatwhere.train.state import KEPT, States
from whatwhere.training.conclude import conclude
from whatwhere.training.course import Course, class_weights
from whatwhere.training.timed import forget, is_choice_alone, settle

_MUCH_WAITING = 0.1  # share of the time of the steps
_REHEARSED = 3  # batches: the first one warms up


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
    said: frozenset[str] = frozenset(),
    begun: float = 0.0,
) -> Run | None:
    """Train, as `jobs.train` describes it.

    `said` are the settings that the user asked for: where the time is given, what was not asked for
    is chosen. The time began at `begun`, as `time.monotonic` counts [s]; 0 for now.
    """
    begun = begun or time.monotonic()
    device = choose_device(device)
    check_precision(recipe, device)
    check_compiler(recipe, device)
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}.")
    if not 0 <= save_minutes < math.inf:
        raise UsageError(f"--save-minutes must be at least 0, not {save_minutes}.")
    if not resume:
        _check_output(output, data.root)
    fresh = not output.exists()
    if not recipe.minutes or "model" in said:
        nets.check_model(recipe, encoder)
    files.check_writable(output)
    try:
        with files.locked(output):
            if not resume:
                _check_output(output, data.root)  # another run may have come first
            files.sweep(output)
            plan = plan_data(data, recipe, talk)
            plan.tell(talk)
            clock = None
            if recipe.minutes and not resume:
                try:
                    settled = settle(plan, said, device, workers, encoder, output, begun, talk)
                except BaseException:
                    forget(output)
                    raise
                plan, clock = settled.plan, settled.clock
            course = Course.of(plan, device, workers, encoder)
            course.tell(talk)
            if resume:
                return _go_on(course, output, save_minutes, talk)
            if clock is None:
                _rehearse(course, output, talk)
            else:
                _require_space(course, output, 0, settled.weights)
            if dry_run:
                forget(output)
                return None
            _write_start(course, output)
            return _whole_run(course, output, None, save_minutes, talk, clock)
    finally:
        _leave_no_trace(output, fresh)


def _write_start(course: Course, output: Path) -> None:
    """Write what a run is of; the recipe comes first: where it is, a training can go on."""
    plan = course.plan
    files.write_text(output / runs.RECIPE, to_toml(plan.recipe))
    files.write_json(output / runs.SPLITS, plan.split_lists())
    write_splits(output / runs.SPLIT_AREAS, plan.splits)


def _go_on(course: Course, output: Path, save_minutes: float, talk: Talk) -> Run:
    """Go on from the newest state that is whole, or begin again where there is none."""
    states = States(output / STATES)
    if not states.paths() and (output / "report.html").exists():
        raise UsageError(f"{output}: this training is finished: there is nothing to go on with.")
    state = states.newest(talk.say)
    if state is None:
        talk.say("resume   no state was kept yet: the training begins again")
        _write_start(course, output)
    else:
        _check_same(state["of"], course.describe(), output)
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
    course: Course,
    output: Path,
    state: Mapping[str, Any] | None,
    save_minutes: float,
    talk: Talk,
    clock: Clock | None = None,
) -> Run:
    """Train to the end, and conclude."""
    states = States(output / STATES)
    history = None if state is None else finished(state, course.plan.recipe)
    if history is None:
        history = course.fit(
            output,
            talk,
            log=output / "log.csv",
            states=states,
            state=state,
            save_minutes=save_minutes,
            clock=clock,
        )
    if history.interrupted:
        kept = any(row.best for row in history.epochs)
        talk.say(
            f"stopped  --resume goes on from here{_kept(states)}"
            + (f"; tune, evaluate and predict take {output} as it is" if kept else "")
        )
        raise Interrupted(history.signal)
    talk.say(f"done: {history.stopped}; the weights of epoch {history.best.epoch} were kept.")
    if history.waiting > _MUCH_WAITING:
        talk.say(
            f"note     {history.waiting:.0%} of the time of the steps went by waiting for data; "
            "more --workers read ahead"
        )
    scores = conclude(course, history, output, talk)
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
    if is_choice_alone(output):
        there.remove(report.FOLDER)  # of one that was killed while it chose
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
    check_compiler(recipe, device)
    nets.check_model(recipe, encoder)
    plan = plan_data(data, recipe, talk)
    plan.tell(talk)
    course = Course.of(plan, device, encoder=encoder)
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


def _rehearse(course: Course, output: Path, talk: Talk) -> None:
    """Load, step, validate, save, load again, predict and report on a few chips; tell the cost."""
    talk.say("rehearsal: the whole chain on a few chips …")
    with files.scratch(output) as folder:
        history = course.fit(folder, Talk(quiet=True), most_batches=_REHEARSED)
        if history.interrupted:
            raise KeyboardInterrupt
        conclude(course, history, folder, Talk(quiet=True), most=1)
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


def _require_space(course: Course, output: Path, size: int, weights: int) -> None:
    """Refuse a training whose states would fill the disk.

    A state holds the weights, two numbers of the optimiser for each, and their average if there is
    one; a new one is written before the oldest goes, and so is a new bundle.
    """
    state = (4 if course.plan.recipe.ema else 3) * weights
    need = (KEPT + 1) * state + size + weights
    files.require_space(output, need, "the states and the bundle of this training")


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
