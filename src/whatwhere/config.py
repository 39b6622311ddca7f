"""The recipe: every number of a training, as argument, flag and TOML key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whatwhere.errors import UsageError
from whatwhere.notation import (
    parse_arguments,
    parse_bands,
    parse_channels,
    parse_class_weights,
    parse_loss,
    parse_size,
    parse_split,
)


def _setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None
) -> Any:
    """A field with its help text and the range of its value, ends included."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is trained; the defaults are the tutorial's.

    `make_recipe` gives each net its own usual values (`unet2015` 64 filters, a backbone nearest
    upsampling without dropout). Values are checked when the recipe is made. `resize`, `split`,
    `bands` and `classes` are written as on the command line.

    Raises:
        UsageError: Values out of their range; all of them are named.
    """

    model: str = _setting(
        "tutorial", "tutorial, unet2015, or a backbone such as resnet34 (see `whatwhere models`)"
    )
    pretrained: bool = _setting(True, "a backbone starts from filters learned on ImageNet")
    pretrained_path: str = _setting(
        "", "start from this run or bundle, or a backbone from this safetensors file"
    )
    backbone_args: str = _setting(
        "", "timm's own arguments of the backbone, as `drop_path_rate=0.1,output_stride=16`"
    )
    n_filters: int = _setting(16, "filters of the first block; each level doubles them", low=1)
    decoder_channels: str = _setting(
        "", "channels of a backbone's decoder, deepest first, as `256,128,64,32,16`"
    )
    norm: str = _setting("batch", "normalisation in a backbone's decoder: batch, group or none")
    activation: str = _setting("relu", "in a backbone's decoder: relu, leaky_relu, gelu or silu")
    anything: bool = _setting(
        False, "a backbone's net also says whether there is anything in the chip at all"
    )
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
    upsample: str = _setting("transposed", "transposed, nearest, bilinear or shuffle")

    classes: str = _setting("", "class table, as `background,salt` or `0=background,255=salt`")
    bands: str = _setting(
        "auto",
        "auto, grey, rgb, band numbers from 1 such as 4,3,2 or red=1,green=2,nir=4, or a scene's "
        "own names",
    )
    orientation: str = _setting(
        "auto",
        "upright: left-right flips only; free: seen from above, all eight symmetries; auto: "
        "upright for images, free for scenes",
    )
    resolution_m: float = _setting(
        0.0, "side of a pixel on the ground [m]; 0: the scenes' own", low=0.0
    )
    normalize: bool = _setting(
        True, "bring the values of each band to mean 0 and deviation 1, as measured in training"
    )
    resize: str = _setting("", "stretch images to this size first [px]: 128 or HEIGHTxWIDTH")
    chip_size: int = _setting(
        0, "side of the chips cut for training [px]; 0: whole images up to 256", low=0
    )
    split: str = _setting(
        "70/15/15", "shares of training, validation and test, where none is given"
    )
    split_gap: float = _setting(
        0.25,
        "strip that training blocks of a scene lose beside those of other splits [share of a chip]",
        low=0.0,
        high=4.0,
    )
    class_sampling: float = _setting(
        0.5,
        "share of a scene's chips drawn around a pixel of a class drawn evenly",
        low=0.0,
        high=1.0,
    )

    minutes: float = _setting(
        0.0,
        "train for so many minutes of wall time, start-up included; what was not asked for is "
        "chosen; 0: epochs decide",
        low=0.0,
    )
    epochs: int = _setting(50, "most passes through the training chips", low=1)
    epoch_chips: int = _setting(
        0,
        "training chips in an epoch, which take turns; 0: as many as cover the training images",
        low=0,
    )
    val_chips: int = _setting(
        0, "validation chips that an epoch is judged by, evenly spread; 0: all", low=0
    )
    half_size: float = _setting(
        0.0,
        "share of the training, at its start, in which chips have half the side, and a step takes "
        "about a quarter of the time: for nets from scratch",
        low=0.0,
        high=1.0,
    )
    batch_size: int = _setting(32, "chips a step", low=1)
    accumulate: int = _setting(1, "batches whose gradients make one step", low=1)
    loss: str = _setting(
        "cross_entropy",
        "sum of cross_entropy, dice, focal, tversky, lovasz and unet2015, as `dice+0.5*focal`",
    )
    class_weights: str = _setting(
        "", "weights of the classes in the loss: `balanced`, or numbers as `1,5,2`"
    )
    optimizer: str = _setting("adam", "adam (as Keras has it) or adamw")
    weight_decay: float = _setting(0.0, "adamw's decay of weights", low=0.0)
    lr: float = _setting(1e-3, "learning rate: at the start, or the highest", low=0.0)
    encoder_lr: float = _setting(
        1.0, "rate of a backbone's first level, as a share of lr; deeper ones lie between", low=0.0
    )
    schedule: str = _setting(
        "plateau", "plateau (falls when validation stands still), cosine or one_cycle"
    )
    warmup: float = _setting(
        0.1, "share of the steps in which cosine and one_cycle rise to lr", low=0.0, high=0.9
    )
    freeze_epochs: int = _setting(0, "epochs at the start in which the backbone rests", low=0)
    train_first: bool = _setting(False, "a backbone's first filters learn although it rests")
    clip: float = _setting(0.0, "longest gradient, others are shortened to it; 0: any", low=0.0)
    ema: float = _setting(
        0.0,
        "half-life of the average of weights that is kept, as a share of all steps; 0: none",
        low=0.0,
        high=1.0,
    )
    precision: str = _setting("32", "32, bf16 or 16: of the net; losses are always in 32 bits")
    compile: bool = _setting(
        False, "let PyTorch's compiler make the steps: it takes a minute, and pays on a GPU"
    )
    beta_1: float = _setting(0.9, "Adam's memory of gradients", low=0.0, high=0.9999999)
    beta_2: float = _setting(0.999, "Adam's memory of squared gradients", low=0.0, high=0.9999999)
    epsilon: float = _setting(1e-7, "Adam's epsilon, outside the bias correction", low=0.0)
    monitor: str = _setting(
        "loss",
        "what of the validation split decides which epoch is kept and when to stop: the lowest "
        "loss, or the highest mean_iou, mean_dice or pixel_accuracy",
    )
    lr_factor: float = _setting(
        0.1, "what the rate is multiplied by on a plateau", low=0.0, high=1.0
    )
    lr_patience: int = _setting(5, "bad epochs before the rate falls", low=1)
    lr_min_delta: float = _setting(
        1e-4, "gain on the validation split below which an epoch is bad for the rate", low=0.0
    )
    min_lr: float = _setting(1e-5, "the rate never falls below this", low=0.0)
    stop_patience: int = _setting(10, "bad epochs before training stops; 0: it never does", low=0)
    stop_min_delta: float = _setting(
        0.0, "gain on the validation split below which an epoch is bad for stopping", low=0.0
    )
    seed: int = _setting(42, "what all chance is drawn from", low=0, high=2**32 - 1)

    augment: bool = _setting(True, "change the training chips a little, anew in each epoch")
    flip: float = _setting(0.5, "share of chips flipped", low=0.0, high=1.0)
    rotate: float = _setting(5.0, "largest rotation [degrees]", low=0.0, high=180.0)
    scale: float = _setting(0.1, "largest change of scale [share]", low=0.0, high=0.9)
    shift: float = _setting(0.05, "largest shift [share of the side]", low=0.0, high=1.0)
    brightness: float = _setting(0.1, "largest change of brightness [standard deviations]", low=0.0)
    contrast: float = _setting(0.1, "largest change of contrast [share]", low=0.0, high=1.0)
    mixup: float = _setting(
        0.0,
        "lay training images over each other; alpha of the shares, such as 0.4; 0: never",
        low=0.0,
    )

    def __post_init__(self) -> None:
        wrong = [*_out_of_range(self)]
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                wrong.append(f"{name} must be one of {', '.join(allowed)}, not {given!r}")
        for name, parse in _PARSERS.items():
            try:
                parse(getattr(self, name))
            except UsageError as error:
                wrong.append(str(error))
        if self.kernel_size % 2 == 0:
            wrong.append(f"kernel_size must be odd, not {self.kernel_size}")
        wrong += self._without_effect()
        if wrong:
            raise UsageError(f"the recipe cannot be followed: {'; '.join(wrong)}.")

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The architecture's own arguments."""
        parsed: dict[str, Any] = {
            "decoder_channels": parse_channels(self.decoder_channels),
            "backbone_args": parse_arguments(self.backbone_args),
        }
        arguments = {
            name: parsed.get(name, getattr(self, name)) for name in settings_of(self.model)
        }
        return {name: value for name, value in arguments.items() if value not in ((), {})}

    def _without_effect(self) -> list[str]:
        """Settings that differ from their default, and that this net or course does not have."""
        own = {*settings_of(self.model), "pretrained", "pretrained_path"}
        if self.model not in MODELS:
            own |= {*_START}
        names = {name for group in (*MODELS.values(), BACKBONE) for name in group} | {*_START}
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        wrong = sorted(name for name in names - own if getattr(self, name) != defaults[name])
        told = [f"{name} is not for {self.model}" for name in wrong]
        plateau = self.schedule == "plateau"
        idle = {
            "weight_decay": ("the optimizer adam", self.optimizer == "adam"),
            "warmup": ("the schedule plateau", plateau),
            **dict.fromkeys(_PLATEAU, (f"the schedule {self.schedule}", not plateau)),
        }
        for name, (what, is_idle) in idle.items():
            if is_idle and getattr(self, name) != defaults[name]:
                told.append(f"{name} is not for {what}")
        if self.half_size and self.model == "unet2015":
            told.append("half_size is not for unet2015, whose results are smaller than its chips")
        if self.half_size and (plateau or self.stop_patience):
            told.append(
                "half_size wants a training that ends when it should: the schedule cosine or "
                "one_cycle, and stop_patience 0"
            )
        if self.minutes and plateau:
            told.append("minutes wants a schedule that ends: cosine or one_cycle")
        return told


MODELS: Mapping[str, tuple[str, ...]] = {
    "tutorial": ("n_filters", "dropout", "batchnorm", "bn_momentum", "kernel_size", "upsample"),
    "unet2015": ("n_filters", "dropout"),
}
"""The architectures of this package and the settings that each of them has."""

BACKBONE = (
    *("upsample", "decoder_channels", "norm", "activation", "dropout", "anything"),
    "backbone_args",
)
"""The settings of a U-Net on a backbone."""

_PLATEAU = ("lr_factor", "lr_patience", "lr_min_delta", "min_lr")
_COURSE = ("encoder_lr", "freeze_epochs", "train_first")
_START = ("pretrained", "pretrained_path", *_COURSE)


def settings_of(model: str) -> tuple[str, ...]:
    """Return the names of the settings that a net has."""
    return MODELS.get(model, BACKBONE)


_OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {},
    "unet2015": {"n_filters": 64, "dropout": 0.5},
}
_BACKBONE_DEFAULTS: Mapping[str, Any] = {"upsample": "nearest", "dropout": 0.0}

CHANGES = ("rotate", "scale", "shift", "brightness", "contrast")
"""The settings by which chips are changed other than by symmetries."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {},
    "modern": {
        **{"model": "resnet34", "loss": "cross_entropy+dice", "epochs": 30, "stop_patience": 0},
        **{"schedule": "cosine", "ema": 0.05},
    },
    "timed": {
        **{"loss": "cross_entropy+dice", "optimizer": "adamw", "weight_decay": 0.01},
        **{"schedule": "cosine", "ema": 0.05, "epochs": 100_000, "stop_patience": 0},
        **dict.fromkeys(CHANGES, 0.0),
        "minutes": 10.0,
    },
}
"""Recipes that go by a name, and how they differ from the tutorial's."""

_CHOICES = {
    "upsample": ("transposed", "nearest", "bilinear", "shuffle"),
    "orientation": ("auto", "upright", "free"),
    "norm": ("batch", "group", "none"),
    "activation": ("relu", "leaky_relu", "gelu", "silu"),
    "optimizer": ("adam", "adamw"),
    "schedule": ("plateau", "cosine", "one_cycle"),
    "precision": ("32", "bf16", "16"),
    "monitor": ("loss", "mean_iou", "mean_dice", "pixel_accuracy"),
}


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "resize": parse_size,
    "split": parse_split,
    "bands": parse_bands,
    "decoder_channels": parse_channels,
    "backbone_args": parse_arguments,
    "loss": parse_loss,
    "class_weights": parse_class_weights,
}


def make_recipe(base: str | Path | Recipe = "tutorial", **settings: Any) -> Recipe:
    """Take a recipe by name or from a TOML file and change some of its settings.

    Args:
        base: A name (`tutorial`), a TOML file, or a recipe.
        **settings: Values that go before the base's; None leaves the base's. Sizes may be numbers
            or pairs, shares and bands lists.

    Raises:
        UsageError: An unknown name or key (the nearest is named), or a value out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(base, Recipe):
        model = given.get("model", base.model)
        if model == base.model:
            return _replace(base, given, "the settings: ")
        kept = _of_another(to_dict(base), base.model, str(model))
        return _replace(Recipe(), {**_own_defaults(str(model)), **kept, **given}, "the settings: ")
    if base in RECIPES:
        named = dict(RECIPES[str(base)])
        model = str(given.get("model", named.get("model", "tutorial")))
        return _replace(Recipe(), {**_own_defaults(model), **named, **given}, "the settings: ")
    return _from_file(Path(base), given)


def _from_file(path: Path, given: Mapping[str, Any]) -> Recipe:
    """Take a recipe from a TOML file; what is given goes before it."""
    told = _read_toml(path)
    written = str(told.get("model", "tutorial"))
    model = str(given.get("model", written))
    kept = told if model == written else _of_another(told, written, model)
    try:
        return _replace(Recipe(), {**_own_defaults(model), **kept, **given}, "the settings: ")
    except UsageError:
        try:  # whose fault is it?
            _replace(Recipe(), {**_own_defaults(written), **told}, "")
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        raise


def _own_defaults(model: str) -> Mapping[str, Any]:
    """The settings whose usual value depends on the net, the net among them."""
    return {"model": model, **_OWN_DEFAULTS.get(model, _BACKBONE_DEFAULTS)}


def _of_another(settings: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The settings of a recipe that still mean something for another net."""
    nets = {name for group in (*MODELS.values(), BACKBONE) for name in group}
    alike = old not in MODELS and new not in MODELS  # one backbone for another
    gone = {"model"} if alike else {*nets, *_COURSE, "model"}
    return {name: value for name, value in settings.items() if name not in gone}


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
    separators = {
        **{"resize": "x", "split": "/", "bands": ",", "classes": ","},
        **{"decoder_channels": ",", "class_weights": ","},
    }
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
