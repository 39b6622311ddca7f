"""What a classifier begins with, and how its next training goes, as recipes."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatwhere import nets
from whatwhere.config import MODELS, Recipe, make_recipe
from whatwhere.data.classes import name_in_spec, written
from whatwhere.errors import BundleError, UsageError
from whatwhere.face.begin import begin, settings_of, unlike
from whatwhere.face.data import SegmentationData, values_of
from whatwhere.face.packed import Opened, open_trained
from whatwhere.face.words import MODEL_WORDS, SETTINGS, band_words, check_words, loss_words
from whatwhere.notation import parse_loss
from whatwhere.packages import dice_share
from whatwhere.talk import Talk, difference
from whatwhere.types import Classes

_USUAL: Mapping[str, Any] = {
    **{"optimizer": "adamw", "weight_decay": 0.01, "schedule": "one_cycle", "stop_patience": 0},
}
_TENTH = 0.1  # of the rate, for the first level of a pretrained backbone
_MIXUP = 0.4  # alpha, as fastai has it


@dataclass(frozen=True)
class Start:
    """What a classifier begins with.

    Attributes:
        recipe: Of its trainings.
        encoder: A backbone of the user's own, or None.
        run: A run or bundle whose weights it has, or None.
        frozen: Whether the backbone rests.
        said: The keywords of the loss, as they were given or as the recipe has them.
        opened: What the weights came from, or None.
        missing: Why there are no weights, where a model came without; else empty.
    """

    recipe: Recipe
    encoder: Any
    run: Path | None
    frozen: bool
    said: Mapping[str, Any]
    opened: Opened | None = None
    missing: str = ""


def start_of(
    data: SegmentationData | None,
    backbone: Any,
    pretrained_path: str | os.PathLike[str] | None,
    backend: str,
    given: Mapping[str, Any],
    talk: Talk,
) -> Start:
    """Turn the arguments of `UnetClassifier` into a recipe; raises as it does."""
    if backend != "pytorch":
        raise UsageError(f"backend must be pytorch, not {backend!r}.")
    check_words(given, {*MODEL_WORDS, *SETTINGS}, "UnetClassifier", talk)
    model, encoder = _backbone(backbone)
    settings = {name: value for name, value in given.items() if name in SETTINGS}
    if isinstance(settings.get("mixup"), bool):
        settings["mixup"] = _MIXUP * settings["mixup"]
    if "pretrained_path" in settings or "model" in settings:
        raise UsageError("UnetClassifier: say backbone= and pretrained_path=, in this order.")
    weights = given.get("pretrained_backbone", settings.get("pretrained", True))
    file = weights if isinstance(weights, (str, Path)) else None
    if file is not None and pretrained_path is not None:
        raise UsageError(
            f"pretrained_backbone={str(file)!r} is for a net that starts anew, and pretrained_path "
            "brings all weights. Leave one out."
        )
    opened = open_trained(pretrained_path) if pretrained_path is not None else None
    foreign = opened.foreign if opened is not None else None
    instead = foreign is not None and bool(given.get("pretrained_backbone"))
    alone = opened is None or instead
    fetched = model not in MODELS and encoder is None and alone and bool(weights)
    said = _said(given)
    loss = loss_words(
        settings.get("loss"),
        said["focal_loss"],
        said["dice_loss_fraction"],
        said["weighted_dice"],
        said["dice_loss_average"],
        talk,
    )
    own: dict[str, Any] = {"loss": loss} if loss else {}
    if said["class_balancing"]:
        own["class_weights"] = "balanced"
    if model not in MODELS:
        own |= {"pretrained": bool(fetched), "pretrained_path": str(file or "")}
    if fetched:
        own["encoder_lr"] = _TENTH
    bands = band_words(given.get("band_names"), None)
    if bands is not None:
        own["bands"] = bands
    ignored = given.get("ignore_classes")
    if ignored and data is not None:
        own["classes"] = without(data.table, ignored)
    prepared = data.settings if data is not None else {}
    if "monitor" in {**prepared, **settings}:
        raise UsageError("monitor is said to fit(), for each training anew.")
    if data is None and foreign is not None:
        prepared = settings_of(foreign)
    recipe = make_recipe(**{**_USUAL, **prepared, "model": model, **own, **settings})
    said |= _said_by(recipe)
    if foreign is not None and data is not None:
        rows = unlike(foreign, data.classes, list(data.bands.names))
        if rows:
            talk.say(difference(rows, ("in the model", "in the data")))
    if opened is None or instead:
        return Start(recipe, encoder, None, fetched and not recipe.freeze_epochs, said)
    start = _begun(opened, recipe, said, talk, "encoder_lr" not in settings)
    return dataclasses.replace(start, encoder=encoder)


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the loss, as they are given."""
    return {
        "class_balancing": bool(given.get("class_balancing", False)),
        "focal_loss": bool(given.get("focal_loss", False)),
        "dice_loss_fraction": given.get("dice_loss_fraction", 0),
        "dice_loss_average": given.get("dice_loss_average", "macro"),
        "weighted_dice": bool(given.get("weighted_dice", False)),
    }


def _said_by(recipe: Recipe) -> dict[str, Any]:
    """The keywords of the loss, as far as a recipe's loss can be said in them."""
    share = dice_share(recipe.loss)
    found: dict[str, Any] = {} if share is None else {"dice_loss_fraction": share}
    found["focal_loss"] = "focal" in parse_loss(recipe.loss)
    found["class_balancing"] = recipe.class_weights == "balanced"
    return found


def _begun(
    opened: Opened, recipe: Recipe, said: Mapping[str, Any], talk: Talk, slower: bool
) -> Start:
    """Begin with the weights of a trained net; `slower` lets a taken backbone learn so."""
    if opened.foreign is None or opened.place is None:
        return Start(recipe, None, opened.run, False, said, opened)
    try:
        begun = begin(opened.foreign, recipe, opened.place, talk)
    except BundleError as error:
        if not opened.lenient:
            raise
        talk.say(
            f"warning  {error} fit() begins without them; pretrained_backbone=True takes ImageNet's"
        )
        return Start(recipe, None, None, False, said, opened, str(error))
    if begun.seed is None:
        return Start(recipe, None, begun.run, False, said, opened)
    changes: dict[str, Any] = {"encoder_lr": _TENTH} if slower else {}
    recipe = make_recipe(recipe, pretrained_path=str(begun.seed), **changes)
    missing = f"{opened.path}: its backbone was taken, and the decoder starts anew."
    return Start(recipe, None, None, not recipe.freeze_epochs, said, opened, missing)


def _backbone(backbone: Any) -> tuple[str, Any]:
    """Return the name of the model, and the user's own module if it is one."""
    if backbone is None:
        return "resnet34", None
    if isinstance(backbone, str):
        kind, colon, name = backbone.partition(":")
        if colon and kind != "timm":
            raise UsageError(
                f"backbone {backbone!r}: only timm's names are known. Weights from elsewhere, as "
                "safetensors of timm's names, go into pretrained_backbone=FILE."
            )
        return (name if colon else backbone), None
    if hasattr(backbone, "parameters"):  # a torch module
        return f"{nets.OWN}{type(backbone).__name__}", backbone
    name = getattr(backbone, "__name__", "")
    if callable(backbone) and name:  # torchvision's functions are called as timm's nets are
        return name, None
    raise UsageError(f"backbone must be a name or a torch module, not {backbone!r}.")


def without(classes: Classes, ignored: Any) -> str:
    """Write a class table in which some classes, by their values, do not count.

    Raises:
        UsageError: A value is not in the table, or fewer than two classes are left.
    """
    values = values_of(classes)
    wanted = {ignored} if isinstance(ignored, int) else set(ignored)
    unknown = sorted(wanted - set(values))
    if unknown or classes.task == "multilabel":
        known = ", ".join(f"{v} {info.name}" for v, info in zip(values, classes, strict=True))
        raise UsageError(
            f"ignore_classes={sorted(wanted)}: the classes are {known}"
            f"{', each with masks of its own' if classes.task == 'multilabel' else ''}."
        )
    if len(classes) - len(wanted) < 2:
        raise UsageError(
            f"ignore_classes={sorted(wanted)} leaves {len(classes) - len(wanted)} of "
            f"{len(classes)} classes: at least two must be left to tell apart."
        )
    words = [
        f"{written(raw)}={'ignore' if value in wanted else name_in_spec(info.name)}"
        for value, info in zip(values, classes, strict=True)
        for raw in info.raw
    ]
    return ",".join([*words, *(f"{written(raw)}=ignore" for raw in classes.ignored)])


def still_ignored(trained: Classes, here: Classes) -> list[int]:
    """Return the values of the data's classes that a net was trained without.

    Args:
        trained: The net's class table.
        here: The data's; where its other classes are not the net's, nothing is known of it.
    """
    gone = {info.name for info in here if info.raw and set(info.raw) <= set(trained.ignored)}
    if [name for name in here.names if name not in gone] != trained.names:
        return []
    return [v for v, info in zip(values_of(here), here, strict=True) if info.name in gone]


def course_of(
    recipe: Recipe,
    run: Path | None,
    frozen: bool,
    *,
    epochs: int | None = None,
    lr: float | slice | tuple[float, float] | None = None,
    one_cycle: bool = True,
    early_stopping: bool = False,
    mixed_precision: bool = False,
    **settings: Any,
) -> Recipe:
    """Return the recipe of one training, as `UnetClassifier.fit` describes it.

    Raises:
        UsageError: A setting is unknown or out of its range.
    """
    course: dict[str, Any] = {"schedule": "one_cycle" if one_cycle else "plateau"}
    course["epochs"] = recipe.epochs if epochs is None else epochs
    if not one_cycle and "warmup" not in settings:
        course["warmup"] = Recipe().warmup
    if early_stopping:
        course |= {"stop_patience": 5, "stop_min_delta": 0.001}
    if mixed_precision:
        course["precision"] = "bf16"
    if isinstance(lr, (slice, tuple)):
        low, high = (lr.start, lr.stop) if isinstance(lr, slice) else lr
        if not high or low is None or not 0 <= low <= high:
            raise UsageError(f"lr must be a rate, or a low and a high one, not {lr!r}.")
        course["lr"] = float(high)
        if recipe.model not in MODELS:
            course["encoder_lr"] = low / high
    elif lr is not None:
        course["lr"] = float(lr)
    if recipe.model not in MODELS:
        course["freeze_epochs"] = course["epochs"] if frozen else recipe.freeze_epochs
    if run is not None:
        course["pretrained_path"] = str(run)
    return make_recipe(recipe, **{**course, **settings})


def log_of(run: Path) -> list[dict[str, float]]:
    """Return the losses of a run's epochs; none where it has no log."""
    path = run / "log.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(row[name]) for name in ("train_loss", "val_loss")} for row in rows]
