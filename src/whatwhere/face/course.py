"""What a classifier begins with, and how its next training goes, as recipes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatwhere import bundle, nets
from whatwhere.config import MODELS, Recipe, make_recipe
from whatwhere.data.classes import written
from whatwhere.errors import UsageError
from whatwhere.face.data import SegmentationData, values_of
from whatwhere.face.words import MODEL_WORDS, SETTINGS, band_words, check_words, loss_words
from whatwhere.talk import Talk
from whatwhere.types import Classes

_USUAL: Mapping[str, Any] = {
    **{"optimizer": "adamw", "weight_decay": 0.01, "schedule": "one_cycle", "stop_patience": 0},
}
_TENTH = 0.1  # of the rate, for the first level of a pretrained backbone


@dataclass(frozen=True)
class Start:
    """What a classifier begins with.

    Attributes:
        recipe: Of its trainings.
        encoder: A backbone of the user's own, or None.
        run: A run or bundle whose weights it has, or None.
        frozen: Whether the backbone rests.
        said: The keywords of the loss, as they were given.
    """

    recipe: Recipe
    encoder: Any
    run: Path | None
    frozen: bool
    said: Mapping[str, Any]


def start_of(
    data: SegmentationData | None,
    backbone: Any,
    pretrained_path: str | Path | None,
    backend: str,
    given: Mapping[str, Any],
    talk: Talk,
) -> Start:
    """Turn the arguments of `UnetClassifier` into a recipe; raises `UsageError`."""
    if backend != "pytorch":
        raise UsageError(f"backend must be pytorch, not {backend!r}.")
    check_words(given, {*MODEL_WORDS, *SETTINGS}, "UnetClassifier", talk)
    model, encoder = _backbone(backbone)
    settings = {name: value for name, value in given.items() if name in SETTINGS}
    if "pretrained_path" in settings or "model" in settings:
        raise UsageError("UnetClassifier: say backbone= and pretrained_path=, in this order.")
    weights = given.get("pretrained_backbone", settings.get("pretrained", True))
    file = weights if isinstance(weights, (str, Path)) else None
    if file is not None and pretrained_path is not None:
        raise UsageError(
            f"pretrained_backbone={str(file)!r} is for a net that starts anew, and pretrained_path "
            "brings all weights. Leave one out."
        )
    fetched = model not in MODELS and encoder is None and pretrained_path is None and bool(weights)
    said = {
        "class_balancing": bool(given.get("class_balancing", False)),
        "focal_loss": bool(given.get("focal_loss", False)),
        "dice_loss_fraction": given.get("dice_loss_fraction", 0),
        "dice_loss_average": given.get("dice_loss_average", "macro"),
        "weighted_dice": bool(given.get("weighted_dice", False)),
    }
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
    recipe = make_recipe(**{**_USUAL, **prepared, "model": model, **own, **settings})
    run = None
    if pretrained_path is not None:
        run = Path(pretrained_path)
        bundle.load_card(run)
    return Start(recipe, encoder, run, fetched and not recipe.freeze_epochs, said)


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
        f"{written(raw)}={'ignore' if value in wanted else info.name}"
        for value, info in zip(values, classes, strict=True)
        for raw in info.raw
    ]
    return ",".join([*words, *(f"{written(raw)}=ignore" for raw in classes.ignored)])


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
