"""A training of so many minutes: which net it takes, how long its epochs are, and when it ends."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from whatwhere import bundle, files, nets, pictures, report
from whatwhere import evaluate as scoring
from whatwhere.config import CHANGES, MODELS, Recipe, make_recipe
from whatwhere.data import doctor
from whatwhere.data.loader import AUTO_CHIP, Chips
from whatwhere.data.plan import DataPlan
from whatwhere.data.sources import Pair
from whatwhere.errors import UsageError
from whatwhere.nn.build import count_parameters
from whatwhere.predict.engine import load
from whatwhere.talk import QUIET, Talk
from whatwhere.train.clock import Clock
from whatwhere.training.conclude import examples_of
from whatwhere.training.course import Course

CANDIDATES = ("tf_efficientnet_lite0", "tutorial", "resnet34")
"""A small net that was trained before, a small one that was not, and a larger one."""

DECODER = "128,64,32,16,16"
"""Channels of the backbones' decoders: half the usual ones, for more steps in the same time."""

CHOICE = "choice.json"
FIRST = "first.png"
"""In the report's folder: why this net was taken, and the first picture."""

_RACE, _MOST_RACE, _LEAST_RACE = 0.03, 30.0, 2.0  # share of the time of each candidate; [s]
_AHEAD = 0.1  # by so much of mean IoU a net from scratch must win against one trained before
_LATER = 100  # steps, in fewer of which it need not
_JUDGED = 64  # chips by which candidates are judged
_SHOWN = 3  # pairs in the first picture
_STRIDE = 32  # of the candidates' backbones [px]
_STEP_PIXELS = 2**18  # of a batch on the processor, of 8 to 32 chips
_EPOCH = 45.0  # about how long an epoch is to be [s]; there are 4 to 20
_VALIDATION = 0.07  # share of an epoch that its validation may take
_HALVED = 0.6  # share of the time in which a net from scratch sees chips of half the side
_PASSES = 30  # through all chips, which a net from scratch wants
_LEAST_SCALE = 0.45  # by which whole images are shrunk for it, at the least
_REPORT = 6.0  # for pictures and the report [s]


@dataclass(frozen=True)
class Trial:
    """How a candidate did.

    Attributes:
        name: What it is, in words.
        recipe: How it was trained, and would be.
        parameters: Of the net.
        seconds: What it took in all [s].
        steps: How many it made.
        step_seconds: What one takes [s].
        chip_seconds: What the validation of a chip takes [s].
        score: Mean IoU of the chips that all candidates are judged by.
        weights: Size of its weights [bytes].
        large: Whether its chips can be halved.
        stride: Of which the sides of what it sees should be multiples [px].
        error: Why it could not be tried; empty where it was.
    """

    name: str
    recipe: Recipe
    parameters: int = 0
    seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    chip_seconds: float = 0.0
    score: float = -math.inf
    weights: int = 0
    large: bool = False
    stride: int = 1
    error: str = ""


@dataclass(frozen=True)
class Settled:
    """What was decided.

    Attributes:
        plan: Of the data, with the recipe that was chosen.
        clock: Of the training.
        weights: Size of the net's weights [bytes].
    """

    plan: DataPlan
    clock: Clock
    weights: int


def settle(
    plan: DataPlan,
    said: frozenset[str],
    device: str,
    workers: int,
    encoder: Any,
    output: Path,
    begun: float,
    talk: Talk,
) -> Settled:
    """Try candidates for a few per cent of the time, and give the rest to the best one.

    Where a net is asked for, it is the only candidate; it is tried to know its pace.

    Args:
        plan: Of the data; its recipe names the minutes.
        said: The settings that were asked for, and stay.
        device: Where nets run.
        workers: Processes that read ahead.
        encoder: A backbone of the user's own, or None.
        output: The run folder; the choice and the first picture go into its report.
        begun: When the work began, as `time.monotonic` counts [s].
        talk: Where it is told.

    Raises:
        UsageError: The time is too short for a training; or no candidate could be trained.
    """
    budget = 60 * plan.recipe.minutes
    whole = _size_of_all(plan, said)
    plan = _fitted(plan, said, whole, talk)
    plan = dataclasses.replace(plan, recipe=_paced(plan, said, device))
    wanted = candidates(plan.recipe, said, encoder, talk)
    each = max(min(_RACE * budget, _MOST_RACE), _LEAST_RACE)
    if time.monotonic() - begun + len(wanted) * each > budget / 2:
        wanted = wanted[:1]
    trials: list[Trial] = []
    for name, recipe in wanted:
        talk.say(f"trying   {name} for {each:.0f} s …")
        first = all(one.error for one in trials)
        course = (dataclasses.replace(plan, recipe=recipe), device, workers, encoder)
        trial = _try(name, course, output, each, talk, first=first)
        talk.say(f"         {_told(trial)}")
        trials.append(trial)
    left = budget - (time.monotonic() - begun)
    best = max(trials, key=lambda trial: _standing(trial, left))
    if best.error or not best.steps:
        told = "; ".join(f"{trial.name}: {trial.error or 'no step fitted'}" for trial in trials)
        raise UsageError(
            f"--minutes {plan.recipe.minutes:g}: nothing could be trained in this time ({told}). "
            "Allow more."
        )
    if len(trials) > 1:
        talk.say(f"chosen   {best.name}: {_because(best, trials)}")
    plan, pace = dataclasses.replace(plan, recipe=best.recipe), best
    if encoder is None and "half_size" not in said and not _is_learned(best.recipe):
        plan, pace = _eased(plan, best, whole is not None, left, talk)
    settled = _settled(plan, pace, left)
    choice = _choice(trials, best, settled)
    files.write_json(files.make_folder(output / report.FOLDER) / CHOICE, choice)
    return settled


def forget(output: Path) -> None:
    """Take away what `settle` wrote, where there is nothing else."""
    if is_choice_alone(output):
        for name in (CHOICE, FIRST):
            files.remove(output / report.FOLDER / name)
        (output / report.FOLDER).rmdir()


def is_choice_alone(output: Path) -> bool:
    """Whether a report's folder holds nothing but what `settle` wrote."""
    folder = output / report.FOLDER
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {CHOICE, FIRST}


def candidates(
    recipe: Recipe, said: frozenset[str], encoder: Any, talk: Talk
) -> list[tuple[str, Recipe]]:
    """Return the nets that are tried, in words and as recipes."""
    if encoder is not None or "model" in said:
        nets.check_model(recipe, encoder)
        return [(recipe.model, recipe)]
    found = []
    decoder = recipe.decoder_channels if "decoder_channels" in said else DECODER
    for model in CANDIDATES:
        if model in MODELS:
            own = make_recipe(recipe, model=model, pretrained_path="", decoder_channels="")
            found.append((f"{model}, from scratch", own))
            continue
        wanted = make_recipe(recipe, model=model, decoder_channels=decoder)
        try:
            nets.check_model(wanted)
        except UsageError as error:
            talk.say(f"note     {model} has no pretrained weights here: {error}")
            wanted = make_recipe(wanted, pretrained=False, pretrained_path="")
        if wanted.pretrained:
            found.append((f"{model}, pretrained", wanted))
        elif model == CANDIDATES[-1]:
            found.append((f"{model}, from scratch", wanted))
    return found


def _eased(
    plan: DataPlan, best: Trial, whole: bool, left: float, talk: Talk
) -> tuple[DataPlan, Trial]:
    """Let a net from scratch see more chips with fewer pixels, where the time is short for it.

    Images that it sees whole are shrunk, by so much that it sees each some 30 times; chips that are
    cut out of larger ones have half the side in the first part of the training.

    Args:
        plan: Of the data, with the recipe that was chosen.
        best: The trial of the net.
        whole: Whether the images are seen whole.
        left: The time [s].
        talk: Where it is told.

    Returns:
        The plan; and the trial, with what a step and a validation take now.
    """
    recipe, stride = plan.recipe, best.stride
    if recipe.model == "unet2015":  # whose result is smaller than what it sees
        return plan, best
    if not whole:  # and a training that may stop early could end before its chips have grown
        share = _HALVED if best.large and not recipe.stop_patience else 0.0
        return dataclasses.replace(plan, recipe=make_recipe(recipe, half_size=share)), best
    chips = len(cast(Chips, plan.loader("train").dataset))
    passes = max(left, 0.0) / best.step_seconds * recipe.batch_size / chips
    scale = max(math.sqrt(passes / _PASSES), _LEAST_SCALE)
    height, width = (max(round(side * scale / stride), 2) * stride for side in plan.shape)
    computed = math.prod(-(-side // stride) * stride for side in plan.shape)
    pixels = height * width / computed
    if scale >= 1 or pixels >= 1:
        return plan, best
    talk.say(
        f"images   shrunk to {height}×{width} px: a net from scratch sees each some "
        f"{passes / pixels:.2g} times so, {passes:.2g} times else (--half-size 0 to insist)"
    )
    pace = dataclasses.replace(
        best,
        step_seconds=pixels * best.step_seconds,
        chip_seconds=pixels * best.chip_seconds,
    )
    return plan.stretched((height, width)), pace


def _is_learned(recipe: Recipe) -> bool:
    """Whether a net was trained before."""
    return recipe.pretrained_path != "" or (recipe.model not in MODELS and recipe.pretrained)


def _size_of_all(plan: DataPlan, said: frozenset[str]) -> tuple[int, int] | None:
    """The size of images [px] that have one size, are seen whole, and may be stretched."""
    sizes = {plan.survey.facts[pair.key].size for pairs in plan.splits.values() for pair in pairs}
    mapped = plan.scenes is not None or plan.pixel_size is not None
    if mapped or len(sizes) > 1 or plan.recipe.resize or {"resize", "chip_size"} & said:
        return None
    (size,) = sizes
    return size if max(size) <= AUTO_CHIP else None


def _fitted(
    plan: DataPlan, said: frozenset[str], size: tuple[int, int] | None, talk: Talk
) -> DataPlan:
    """Stretch small images to the size that a net computes for them anyway.

    A backbone that ends at a 32nd of a side is given images mirrored up to a multiple of it: what
    is mirrored tells it nothing, and small images stretched by as much cost the same.
    """
    own = "model" in said and plan.recipe.model in MODELS  # of other strides
    if own or size is None:
        return plan
    height, width = (-(-side // _STRIDE) * _STRIDE for side in size)
    if (height, width) == size:
        return plan
    talk.say(
        f"images   stretched to {height}×{width} px, which backbones compute for them anyway "
        "(--chip-size or --resize to insist)"
    )
    return plan.stretched((height, width))


def _paced(plan: DataPlan, said: frozenset[str], device: str) -> Recipe:
    """Take batches of fewer chips on a processor: more steps in the same time."""
    recipe = plan.recipe
    if device != "cpu" or "batch_size" in said:
        return recipe
    fitting = _STEP_PIXELS // math.prod(plan.shape)
    return make_recipe(recipe, batch_size=min(max(fitting, 8), recipe.batch_size))


def _try(
    name: str,
    of: tuple[DataPlan, str, int, Any],
    output: Path,
    seconds: float,
    talk: Talk,
    *,
    first: bool,
) -> Trial:
    """Train a candidate for a few seconds, with a schedule of its own that ends with them."""
    began = time.monotonic()
    plan, *where = of
    recipe = plan.recipe
    short = make_recipe(recipe, ema=0.0, val_chips=_JUDGED, epoch_chips=0, compile=False)
    try:
        course = Course.of(dataclasses.replace(plan, recipe=short), *where)
        with files.scratch(output) as folder:
            history = course.fit(folder, QUIET, clock=Clock(seconds, 1), trial=True)
            if history.interrupted:
                raise KeyboardInterrupt
            weights = bundle.weights_bytes(folder)
            if first:
                _show_first(course, folder, output, talk)
    except (UsageError, MemoryError) as error:
        return Trial(name, recipe, error=str(error) or "the memory is too small")
    judged = min(_JUDGED, len(cast(Chips, course.loader("val").dataset)))
    iou = history.best.val_mean_iou
    return Trial(
        name,
        recipe,
        parameters=count_parameters(course.net(QUIET)).total,
        seconds=time.monotonic() - began,
        steps=history.steps,
        step_seconds=history.step_seconds,
        chip_seconds=history.val_seconds / judged,
        score=-history.best.val_loss if iou is None else iou,
        weights=weights,
        large=course.half is not None,
        stride=course.shape.stride,
    )


def _show_first(course: Course, folder: Path, output: Path, talk: Talk) -> None:
    """Draw what the first net says after its few seconds."""
    predictor = load(folder, device=course.device, encoder=course.encoder)
    plan = course.plan
    pairs = [pair for pair in plan.splits["val"] if not _is_plain(plan, pair)]
    pairs = pairs or plan.splits["val"]
    count = 1 if plan.scenes is not None else min(_SHOWN, len(pairs))
    places = np.linspace(0, len(pairs) - 1, count).round().astype(int)
    some = [pairs[i] for i in places]
    card = predictor.card
    found = scoring.evaluate(scoring.answers(predictor, some), card.classes, card.thresholds)
    picture = pictures.draw_examples(examples_of(predictor, some, found), card.classes)
    path = files.make_folder(output / report.FOLDER) / FIRST
    files.write_bytes(path, picture)
    talk.say(f"picture  {path}: what is known so far")


def _settled(plan: DataPlan, best: Trial, left: float) -> Settled:
    """Divide what is left of the time among steps, validations and the report."""
    recipe = plan.recipe
    training, val = (len(cast(Chips, plan.loader(split).dataset)) for split in ("train", "val"))
    reserve = _REPORT + 2.0 * val * best.chip_seconds
    seconds = left - reserve
    if seconds < 2 * best.step_seconds:
        raise UsageError(
            f"--minutes {recipe.minutes:g}: {max(left, 0):.0f} s are left for the training, and "
            f"scoring {val:,} validation chips takes {reserve:.0f} s of them. Allow more."
        )
    epochs = min(max(round(seconds / _EPOCH), 4), 20)
    epoch = seconds / epochs
    judged = max(int(_VALIDATION * epoch / max(best.chip_seconds, 1e-6)), min(16, val))
    validation = min(judged, val) * best.chip_seconds
    steps = max(round((epoch - validation) / best.step_seconds), 1)
    # At half the side they take about a quarter of the time: some more of them between validations.
    chips = round(steps * (1 + 2 * recipe.half_size)) * recipe.batch_size
    recipe = make_recipe(
        recipe,
        epoch_chips=0 if chips >= training else chips,
        val_chips=0 if judged >= val else judged,
    )
    clock = Clock(seconds, max(int(seconds * (1 - _VALIDATION) / best.step_seconds), 1), validation)
    return Settled(dataclasses.replace(plan, recipe=recipe), clock, best.weights)


def _told(trial: Trial) -> str:
    if trial.error:
        return f"not to be had: {trial.error}"
    return (
        f"{trial.steps} steps of {trial.step_seconds:.2f} s, mean IoU {trial.score:.3f} on "
        f"{_JUDGED} chips at the most"
    )


def _standing(trial: Trial, seconds: float) -> float:
    """What a candidate counts for: filters that were learned before pay off later than a trial."""
    pays = _is_learned(trial.recipe) and seconds >= _LATER * trial.step_seconds
    return trial.score + (_AHEAD if pays else 0.0)


def _because(best: Trial, trials: Sequence[Trial]) -> str:
    told = f"{best.score:.3f}) after {best.seconds:.0f} s"
    if best.score >= max(trial.score for trial in trials):
        return f"the highest mean IoU ({told}"
    return (
        f"it was trained before, and no other is ahead by more than {_AHEAD:g} of mean IoU ({told}"
    )


def _choice(trials: Sequence[Trial], best: Trial, settled: Settled) -> dict[str, Any]:
    """What the report says of it."""
    plan, clock = settled.plan, settled.clock
    recipe = plan.recipe
    decoder = recipe.decoder_channels.replace(",", ", ")
    halved = f"chips of half the side, in {recipe.half_size:.0%} of the time"
    steps = round(clock.steps * (1 + 3 * recipe.half_size))  # a quarter of the time for each
    facts = plan.survey.facts
    numbers = [facts[pair.key] for split in plan.splits.values() for pair in split]
    sizes = sorted({one.size for one in numbers})
    pixels = doctor.class_pixels(plan.survey, plan.splits["train"], plan.classes)
    total = max(sum(pixels), 1)
    plain = sum(_is_plain(plan, pair) for pair in plan.splits["train"])
    shares = [
        f"{info.name} {count / total:.1%}"
        for info, count in zip(plan.classes, pixels, strict=False)
    ]
    found = {
        "sizes": f"{sizes[0][0]}×{sizes[0][1]}"
        + (f" to {sizes[-1][0]}×{sizes[-1][1]}" if len(sizes) > 1 else "")
        + " px",
        "chips": f"{plan.shape[0]}×{plan.shape[1]} px"
        + (", to which the images are stretched" if plan.reader.resize else ""),
        "bands": ", ".join(plan.reader.bands.names),
        "training pixels": ", ".join(shares),
        "orientation": plan.orientation,
        "one class alone": f"in {plain / len(plan.splits['train']):.0%} of the training masks",
    }
    rows = [
        {
            "name": trial.name,
            "parameters": trial.parameters,
            "steps": trial.steps,
            "step_seconds": round(trial.step_seconds, 3),
            "score": None if trial.error else round(trial.score, 4),
            "error": trial.error,
            "chosen": trial is best,
        }
        for trial in trials
    ]
    return {
        "minutes": recipe.minutes,
        "found": found,
        "candidates": rows,
        "because": _because(best, trials) if len(trials) > 1 else "it was asked for",
        "plan": {
            "training": f"{clock.seconds:.0f} s, about {steps} steps of {recipe.batch_size}",
            "validation": f"{recipe.val_chips or 'all'} chips after each epoch of "
            f"{recipe.epoch_chips or 'all'}",
            **({"decoder": f"{decoder} channels"} if decoder else {}),
            **({"at first": halved} if recipe.half_size else {}),
            "changes": _changes(plan),
            "rate": f"{recipe.schedule} to {recipe.lr:.2g}, by the clock",
        },
    }


def _changes(plan: DataPlan) -> str:
    recipe, square = plan.recipe, plan.shape[0] == plan.shape[1]
    found = []
    if recipe.augment and recipe.flip:
        free = "all eight symmetries" if square else "flips in both directions"
        found.append(free if plan.orientation == "free" else "left-right flips")
    for name in (*(CHANGES if recipe.augment else ()), "mixup"):
        if getattr(recipe, name):
            found.append(f"{name} {getattr(recipe, name):g}")
    return ", ".join(found) or "none"


def _is_plain(plan: DataPlan, pair: Pair) -> bool:
    """Whether a mask shows one class alone, or none."""
    return sum(count > 0 for count in doctor.class_pixels(plan.survey, [pair], plan.classes)) < 2
