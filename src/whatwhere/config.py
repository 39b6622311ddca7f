"""The recipe: every number of a training, as argument, flag and TOML key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whatwhere.errors import UsageError


def _setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None
) -> Any:
    """A field with its help text and the range of its value, ends included."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is trained; the defaults are the tutorial's.

    Values are checked when the recipe is made. `resize`, `split`, `bands` and `classes` are written
    as on the command line.

    Raises:
        UsageError: Values out of their range; all of them are named.
    """

    model: str = _setting("tutorial", "architecture (see `whatwhere models`)")
    n_filters: int = _setting(16, "filters of the first block; each level doubles them", low=1)
    dropout: float = _setting(0.1, "share of values dropped in training", low=0.0, high=0.99)
    batchnorm: bool = _setting(True, "normalise each convolution's output over the batch")
    bn_momentum: float = _setting(
        0.99, "share of batch norm's running statistics kept at a step", low=0.0, high=1.0
    )
    bn_adapt: bool = _setting(
        True,
        "where an epoch has fewer than 50 steps, keep less, so that validation means something",
    )
    kernel_size: int = _setting(3, "side of the blocks' convolutions [px], odd", low=1)
    upsample: str = _setting("transposed", "transposed, nearest or bilinear")

    classes: str = _setting("", "class table, as `background,salt` or `0=background,255=salt`")
    bands: str = _setting("auto", "auto, grey, rgb, or band numbers from 1 such as 4,3,2")
    orientation: str = _setting(
        "upright", "upright: left-right flips only; free: seen from above, all eight symmetries"
    )
    resize: str = _setting("", "stretch images to this size first [px]: 128 or HEIGHTxWIDTH")
    chip_size: int = _setting(
        0, "side of the chips cut for training [px]; 0: whole images up to 256", low=0
    )
    split: str = _setting(
        "70/15/15", "shares of training, validation and test, where none is given"
    )

    epochs: int = _setting(50, "most passes through the training chips", low=1)
    batch_size: int = _setting(32, "chips a step", low=1)
    lr: float = _setting(1e-3, "Adam's learning rate at the start", low=0.0)
    beta_1: float = _setting(0.9, "Adam's memory of gradients", low=0.0, high=0.9999999)
    beta_2: float = _setting(0.999, "Adam's memory of squared gradients", low=0.0, high=0.9999999)
    epsilon: float = _setting(1e-7, "Adam's epsilon, outside the bias correction", low=0.0)
    lr_factor: float = _setting(
        0.1, "what the rate is multiplied by on a plateau", low=0.0, high=1.0
    )
    lr_patience: int = _setting(5, "bad epochs before the rate falls", low=1)
    lr_min_delta: float = _setting(
        1e-4, "fall of the validation loss below which an epoch is bad for the rate", low=0.0
    )
    min_lr: float = _setting(1e-5, "the rate never falls below this", low=0.0)
    stop_patience: int = _setting(10, "bad epochs before training stops", low=1)
    stop_min_delta: float = _setting(
        0.0, "fall of the validation loss below which an epoch is bad for stopping", low=0.0
    )
    seed: int = _setting(42, "what all chance is drawn from", low=0, high=2**32 - 1)

    augment: bool = _setting(True, "change the training chips a little, anew in each epoch")
    flip: float = _setting(0.5, "share of chips flipped", low=0.0, high=1.0)
    rotate: float = _setting(5.0, "largest rotation [degrees]", low=0.0, high=180.0)
    scale: float = _setting(0.1, "largest change of scale [share]", low=0.0, high=0.9)
    shift: float = _setting(0.05, "largest shift [share of the side]", low=0.0, high=1.0)
    brightness: float = _setting(0.1, "largest change of brightness [standard deviations]", low=0.0)
    contrast: float = _setting(0.1, "largest change of contrast [share]", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        wrong = [*_out_of_range(self)]
        for name, allowed in (
            ("upsample", ("transposed", "nearest", "bilinear")),
            ("orientation", ("upright", "free")),
        ):
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                wrong.append(f"{name} must be one of {', '.join(allowed)}, not {given!r}")
        for name, parse in (("resize", parse_size), ("split", parse_split), ("bands", parse_bands)):
            try:
                parse(getattr(self, name))
            except UsageError as error:
                wrong.append(str(error))
        if self.kernel_size % 2 == 0:
            wrong.append(f"kernel_size must be odd, not {self.kernel_size}")
        if wrong:
            raise UsageError(f"the recipe cannot be followed: {'; '.join(wrong)}.")

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The architecture's own arguments."""
        names = ("n_filters", "dropout", "batchnorm", "bn_momentum", "kernel_size", "upsample")
        return {name: getattr(self, name) for name in names}


RECIPES: tuple[str, ...] = ("tutorial",)
"""Recipes that go by a name; `tutorial` is `Recipe()`."""


def parse_size(text: str) -> tuple[int, int] | None:
    """Read `128` or `128x96` as (height, width); None for an empty text."""
    if not text:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"resize must be like 128 or 128x96 (height x width), not {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_split(text: str) -> tuple[float, float, float]:
    """Read `70/15/15` as shares of training, validation and test that sum to 1."""
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise UsageError(f"split must be like 70/15/15, not {text!r}")
    train, val, test = (part / sum(parts) for part in parts)
    if train == 0 or val == 0:
        raise UsageError(f"split needs pairs to train on and to validate on, not {text!r}")
    return train, val, test


def parse_bands(text: str) -> tuple[int, ...] | str:
    """Read `auto`, `grey`, `rgb` or band numbers from 1, such as `4,3,2`."""
    if text in ("auto", "grey", "rgb"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"bands must be auto, grey, rgb or numbers from 1 like 4,3,2, not {text!r}"
        )
    return tuple(int(part) for part in parts)


def make_recipe(base: str | Path | Recipe = "tutorial", **settings: Any) -> Recipe:
    """Take a recipe by name or from a TOML file and change some of its settings.

    Args:
        base: A name (`tutorial`), a TOML file, or a recipe.
        **settings: Values that go before the base's; None leaves the base's. Sizes may be numbers
            or pairs, shares and bands lists.

    Raises:
        UsageError: An unknown name or key (the nearest is named), or a value out of its range.
    """
    if isinstance(base, Recipe):
        recipe = base
    elif base == "tutorial":
        recipe = Recipe()
    else:
        settings_of_file = _read_toml(Path(base))
        try:
            recipe = _replace(Recipe(), settings_of_file, "")
        except UsageError as error:
            raise UsageError(f"{base}: {error}") from error
    return _replace(recipe, {k: v for k, v in settings.items() if v is not None}, "the settings: ")


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as what TOML and JSON can hold."""
    return dataclasses.asdict(recipe)


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as a TOML file that `make_recipe` reads, a comment on each line."""
    import tomli_w

    lines = ["# How this run was trained; `whatwhere train DATA --recipe THIS_FILE` repeats it."]
    for item in dataclasses.fields(recipe):
        line = tomli_w.dumps({item.name: getattr(recipe, item.name)}).strip()
        lines.append(f"{line}  # {item.metadata['help']}")
    return "\n".join(lines) + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    if path.suffix != ".toml" and not path.exists():
        raise UsageError(
            f"there is no recipe {str(path)!r}. Take {' or '.join(RECIPES)}, or a TOML file."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the recipe cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: this is not TOML: {error}.") from error


def _replace(recipe: Recipe, settings: Mapping[str, Any], origin: str) -> Recipe:
    known = {item.name: item for item in dataclasses.fields(Recipe)}
    wrong: list[str] = []
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            wrong.append(f"there is no setting {name!r}{hint}")
            continue
        kind = type(known[name].default)
        value = _as_text(name, value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            wrong.append(f"{name} must be of type {kind.__name__}, not {value!r}")
            continue
        values[name] = value
    if wrong:
        raise UsageError(f"{origin}{'; '.join(wrong)}.")
    return dataclasses.replace(recipe, **values)


def _as_text(name: str, value: Any) -> Any:
    """Write sizes, shares and bands given as numbers or lists the way the command line does."""
    separators = {"resize": "x", "split": "/", "bands": ",", "classes": ","}
    if name not in separators or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return separators[name].join(str(part) for part in value)
    return value


def _out_of_range(recipe: Recipe) -> list[str]:
    wrong = []
    for item in dataclasses.fields(recipe):
        low, high = item.metadata["low"], item.metadata["high"]
        value = getattr(recipe, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{item.name} must be a finite number, not {value}")
        elif low is not None and not value >= low:
            wrong.append(f"{item.name} must be at least {low}, not {value}")
        elif high is not None and not value <= high:
            wrong.append(f"{item.name} must be at most {high}, not {value}")
    return wrong
