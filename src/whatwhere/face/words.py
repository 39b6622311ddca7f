"""The keywords of arcgis.learn, and what becomes of each of them here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whatwhere.config import Recipe
from whatwhere.data.inputs import Inputs
from whatwhere.errors import UsageError
from whatwhere.talk import Talk

PLACES = frozenset(item.name for item in dataclasses.fields(Inputs)) - {"root"}
"""What is said about where the data lies; jobs know the same words."""

SETTINGS = frozenset(item.name for item in dataclasses.fields(Recipe))
"""All settings of a recipe."""

DATA_SETTINGS = frozenset(
    {
        *("classes", "bands", "orientation", "resolution_m", "normalize", "resize", "chip_size"),
        *("split", "split_gap", "class_sampling", "batch_size", "seed"),
        *("augment", "flip", "rotate", "scale", "shift", "brightness", "contrast"),
    }
)
"""Those of them that say how the data is taken."""

DATA_WORDS = frozenset(
    {
        *("valid_path", "test_path", "stratify", "num_workers", "rgb_bands", "extract_bands"),
        *("do_normalize", "train_tail", "alpha", "lighting_transforms", "emd", "images_df", "talk"),
    }
)
"""Keywords of `prepare_data` that are followed."""

MODEL_WORDS = frozenset(
    {
        *("class_balancing", "focal_loss", "dice_loss_fraction", "dice_loss_average"),
        *("weighted_dice", "ignore_classes", "pretrained_backbone", "band_names"),
        *("device", "talk"),
    }
)
"""Keywords of `UnetClassifier` that are followed."""

METRICS: Mapping[str, str] = {
    **{"valid_loss": "loss", "accuracy": "pixel_accuracy", "valid_miou": "mean_iou"},
    "dice": "mean_dice",
}
"""What may be monitored, and what a recipe calls it."""

NOTES: Mapping[str, str] = {
    "eas": "classes and pixel values are counted in the files themselves.",
    "collate_fn": "batches are made by the loader of this package, there as here.",
    "imagery_type": "bands and number types are read from the files, whatever the sensor.",
    "norm_pct": "all pixels of the training split are measured (of scenes an even share, drawn "
    "from the seed).",
    "tail_weights_type": "bands called red, green and blue take their own filters, others the "
    "mean of these: say bands= in prepare_data.",
    "wavelengths": "no net that there is here takes wavelengths; bands= in prepare_data names the "
    "bands.",
    "tensorboard": "a line for each epoch is in log.csv of the run folder; plot_losses() and "
    "`report` draw it.",
    "save_optimizer": "the optimiser's state is not kept: the next fit starts one anew.",
    "top": "pictures find room for their titles by themselves.",
    "nodata": "pixels without data are known from the files (prepare_data(nodata=…) for scenes) "
    "and stay without colour.",
    "statistics_type": "each picture is stretched by its own values.",
    "stretch_type": "pictures are stretched from the 1st to the 99th percentile of their values.",
    **dict.fromkeys(
        ("save_format", "post_processed", "quantized", "gradcam"),
        "this has no effect on a U-Net.",
    ),
}
"""Keywords that have nothing to do here: what is done is said in one line."""

REFUSALS: Mapping[str, str] = {
    "callbacks": "fastai does not run here. fit() takes every setting of a recipe that has to do "
    "with the course, such as clip=1.0, ema=0.05 or accumulate=4.",
    "save_callback_params": "the best epoch is always kept; see checkpoint.",
    "publish": "there is no portal here: save() returns the folder to copy.",
    "gis": "there is no portal here: save() returns the folder to copy.",
}
"""Keywords that ask for what there is not, and what there is instead."""

_HARMLESS: tuple[Any, ...] = (None, False, (), [], {}, "")


def check_words(given: Mapping[str, Any], known: Iterable[str], where: str, talk: Talk) -> None:
    """Say what becomes of keywords that have nothing to do here.

    Args:
        given: The keywords.
        known: Names that are followed.
        where: The function that was called.
        talk: Where a line is said for each of the keywords in `NOTES`.

    Raises:
        UsageError: A keyword is unknown, or asks for what there is not.
    """
    known = set(known)
    for name, value in given.items():
        if name in known:
            continue
        if name in REFUSALS or name in NOTES:
            if any(value is one or (value == one and one != 0) for one in _HARMLESS):
                continue
            if name in REFUSALS:
                raise UsageError(f"{where}: {name} is not here: {REFUSALS[name]}")
            talk.say(f"note     {name}: {NOTES[name]}")
            continue
        every = sorted({*known, *NOTES, *REFUSALS})
        close = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else "The guide lists all that there are."
        raise UsageError(f"{where} has no keyword {name!r}. {hint}")


def named_in(emd: Any) -> dict[Any, str]:
    """Return the classes that a model definition names, as a `class_mapping`.

    Raises:
        UsageError: It is no such definition.
    """
    rows = emd.get("Classes") if isinstance(emd, Mapping) else None
    try:
        return {
            row["Value"] if "Value" in row else row["ClassValue"]: str(
                row["Name"] if "Name" in row else row["ClassName"]
            )
            for row in rows or ()
        }
    except (KeyError, TypeError):
        raise UsageError(
            "emd must be a dictionary whose Classes are a list of Value and Name."
        ) from None


def class_words(mapping: Mapping[Any, str], *, background: bool = True) -> str:
    """Write `{1: "building"}` as a class table.

    Args:
        mapping: The name of each value.
        background: Call 0 the background if neither has a name.

    Raises:
        UsageError: A value is no whole number, or a name holds a sign of the notation.
    """
    table: dict[int, str] = {}
    for value, name in mapping.items():
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"class_mapping: {value!r} is no whole number. Labels that hold words need no "
                "mapping: class_field= names their field, classes= picks and orders them."
            ) from None
        if not str(name).strip() or any(sign in str(name) for sign in ",="):
            raise UsageError(f"class_mapping: {name!r} is no name: it is empty or holds , or =.")
        table[number] = str(name).strip()
    if (
        background
        and 0 not in table
        and "background" not in {name.lower() for name in table.values()}
    ):
        table = {0: "background", **table}
    return ",".join(f"{number}={name}" for number, name in table.items())


def band_words(names: Any, extract: Sequence[int] | None) -> str | None:
    """Write names of a file's bands, and which of them the net is to see, as `Recipe.bands`.

    Args:
        names: A list of names in the order of the file; a text is taken as it is.
        extract: Places of the bands that the net is to see, from 0; None for all.

    Raises:
        UsageError: A place is none, or both are text.
    """
    if extract is None and (names is None or isinstance(names, str)):
        return names
    if isinstance(names, str):
        raise UsageError("extract_bands goes with a list of all bands, or leave bands out.")
    listed = [str(name).strip().lower() for name in names or ()]
    if listed and all(name.isdecimal() for name in listed):
        return ",".join(listed)
    places = list(range(len(listed))) if extract is None else list(extract)
    for place in places:
        if isinstance(place, bool) or not isinstance(place, int) or place < 0:
            raise UsageError(f"extract_bands: {place!r} is no place; they count from 0.")
        if listed and place >= len(listed):
            raise UsageError(f"extract_bands: there are {len(listed)} bands, from 0 on: {place}.")
    return ",".join(
        f"{listed[place]}={place + 1}" if listed else str(place + 1) for place in places
    )


def loss_words(
    loss: str | None, focal: bool, fraction: float, weighted: bool, average: str, talk: Talk
) -> str | None:
    """Write a loss the way recipes do; None where nothing was said.

    Args:
        loss: As in a recipe.
        focal: Whether focal loss takes the place of cross-entropy.
        fraction: Share of dice, in [0, 1].
        weighted: Whether dice is to weigh rare classes more.
        average: `micro` or `macro`.
        talk: Where it is said how dice averages.

    Raises:
        UsageError: A value is out of its range, or two of them contradict each other.
    """
    if average not in ("micro", "macro"):
        raise UsageError(f"dice_loss_average must be micro or macro, not {average!r}.")
    if isinstance(fraction, bool) or not 0 <= fraction <= 1:
        raise UsageError(f"dice_loss_fraction must be from 0 to 1, not {fraction!r}.")
    if loss is not None and (focal or fraction):
        raise UsageError("loss= says it all: leave out focal_loss and dice_loss_fraction.")
    if not focal and not fraction:
        return loss
    if fraction and (weighted or average == "micro"):
        talk.say("note     dice: each class counts alike, the rare as much as the common (macro).")
    pixels = "focal" if focal else "cross_entropy"
    if not fraction:
        return pixels
    return "dice" if fraction == 1 else f"{1 - fraction:.9g}*{pixels}+{fraction:.9g}*dice"
