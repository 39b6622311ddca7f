"""The net that a recipe asks for: built, started from what is known, and described by a card."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from whatwhere import bundle
from whatwhere.bundle import Card
from whatwhere.config import MODELS, Recipe, settings_of, to_dict
from whatwhere.data.plan import DataPlan
from whatwhere.errors import UsageError
from whatwhere.nn.build import build_light, build_model, count_parameters
from whatwhere.nn.pretrained import check_weights_file, fetch_weights
from whatwhere.nn.transfer import Taken, take_over
from whatwhere.predict.backends import OWN as OWN
from whatwhere.predict.backends import TorchBackend, load_weights, note_answers
from whatwhere.talk import Talk, difference
from whatwhere.types import Bands, Classes, Geometry, Task

_SETTLED = 50  # steps in which batch norm's statistics can follow Keras' momentum of 0.99


def check_model(recipe: Recipe, encoder: Any = None) -> None:
    """Refuse a net that cannot be built, before the data is looked at.

    Pretrained weights are fetched here, if the hub's client does not have them yet.

    Raises:
        UsageError: The model, an argument or the file of weights cannot be taken.
    """
    if recipe.model.startswith(OWN) and encoder is None:
        raise UsageError(f"{recipe.model}: an encoder of your own is passed in Python: encoder=…")
    file = weights_file(recipe)
    if file:
        check_weights_file(file)
        if encoder is not None:
            raise UsageError(f"{file}: an encoder of your own brings its weights itself.")
        if recipe.model in MODELS:
            raise UsageError(
                f"{file}: a file of weights is for a backbone, and {recipe.model} has none. Give a "
                "run or a bundle."
            )
    elif recipe.pretrained_path:
        bundle.load_card(Path(recipe.pretrained_path))
    if encoder is None:
        build_light(recipe.model, **recipe.model_arguments)
        if recipe.model not in MODELS and recipe.pretrained and not recipe.pretrained_path:
            fetch_weights(recipe.model)


def check_task(recipe: Recipe, task: Task) -> None:
    """Raise `UsageError` if the recipe's net does not go with the task of the data."""
    if recipe.anything and task == "multiclass":
        raise UsageError(
            "--anything says whether a label is in the chip; of several classes that exclude each "
            "other one always is. Leave it out."
        )


def weights_file(recipe: Recipe) -> Path | None:
    """The file of a backbone's weights that the recipe names; None where it names a run or none."""
    path = Path(recipe.pretrained_path)
    is_run = not recipe.pretrained_path or path.is_dir() or path.name == bundle.CARD
    return None if is_run else path


def inherited(path: str | Path) -> dict[str, Any]:
    """Return the net's settings of a run that another one is to start from; empty for a file."""
    if not Path(path).is_dir() and Path(path).name != bundle.CARD:
        return {}
    card = bundle.load_card(Path(path))
    names = ("model", *settings_of(card.model))
    return {name: card.recipe[name] for name in names if name in card.recipe}


def net_arguments(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return the net's arguments for epochs of so many steps.

    Batch norm's running statistics follow a momentum of 0.99 only after hundreds of steps; until
    then a validation loss says nothing, and would stop a training on few images. In epochs of fewer
    than 50 steps they keep so little that an epoch replaces 95 % of them.
    """
    arguments = recipe.model_arguments
    if "bn_momentum" in arguments and recipe.bn_adapt and recipe.batchnorm and steps < _SETTLED:
        fast = round(0.05 ** (1 / steps), 4)
        arguments["bn_momentum"] = min(arguments["bn_momentum"], fast)
    return arguments


def first_net(
    recipe: Recipe,
    arguments: dict[str, Any],
    bands: Bands,
    classes: Classes,
    talk: Talk,
    encoder: Any = None,
) -> Any:
    """Build the net that a training begins with; what is random is drawn from the recipe's seed.

    Args:
        recipe: Names the model and what it starts from.
        arguments: The model's own.
        bands: What it will see.
        classes: What it will tell apart.
        talk: Where what was kept of another net is said.
        encoder: A module of the user's own, in the place of a named backbone.

    Raises:
        UsageError: Weights that were asked for cannot be had, or do not fit.
        BundleError: The run it is to start from is damaged.
    """
    torch.manual_seed(recipe.seed)
    sizes = (len(bands), classes.n_outputs)
    if recipe.model in MODELS:
        net = build_model(recipe.model, *sizes, **arguments)
    elif encoder is not None:
        net = build_model(copy.deepcopy(encoder), *sizes, **arguments)
    else:
        from_run = bool(recipe.pretrained_path) and weights_file(recipe) is None
        wanted = weights_file(recipe) or (recipe.pretrained and not from_run)
        net = build_model(
            recipe.model, *sizes, pretrained=wanted, band_names=bands.names, **arguments
        )
    if recipe.pretrained_path and weights_file(recipe) is None:
        path = Path(recipe.pretrained_path)
        _continue(net, path, (recipe.model, arguments), bands, classes, talk)
    return net


def _continue(
    net: Any,
    path: Path,
    wanted: tuple[str, dict[str, Any]],
    bands: Bands,
    classes: Classes,
    talk: Talk,
) -> None:
    """Start from a trained net, and say what was kept of it; `wanted` is model and arguments."""
    old = bundle.load(path)
    was = {"model": old.card.model, **_meaning(old.card.arguments)}
    now = {"model": wanted[0], **_meaning(wanted[1])}
    unlike = [
        (name, str(was.get(name, "–")), str(now.get(name, "–")))
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    ]
    if unlike:
        raise UsageError(f"{path} does not go with this recipe:\n{difference(unlike)}")
    same = old.card.classes.task == classes.task and old.card.classes.names == classes.names
    try:
        taken = take_over(
            net, old.weights, bands=(old.card.bands.names, bands.names), same_classes=same
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    talk.say(f"start    from {path}: {_told(taken)}")
    rows = [
        ("classes", ", ".join(old.card.classes.names), ", ".join(classes.names)),
        ("bands", ", ".join(old.card.bands.names), ", ".join(bands.names)),
    ]
    if any(was != now for _, was, now in rows):
        talk.say(difference([row for row in rows if row[1] != row[2]]))


def _meaning(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without which the same weights are another net."""
    free = ("dropout", "bn_momentum")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if name not in free
    }


def _told(taken: Taken) -> str:
    words = [f"{len(taken.kept)} arrays were kept"]
    if taken.fitted:
        words.append(f"{', '.join(taken.fitted)} was fitted to the bands")
    if taken.fresh:
        words.append(f"{', '.join(taken.fresh)} start anew")
    return "; ".join(words)


def blank_card(plan: DataPlan, net: Any, arguments: dict[str, Any], shape: Geometry) -> Card:
    """Return the card of a net before it is trained."""
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
        geometry=shape,
        pixel_size=plan.pixel_size,
        thresholds=() if softmax else (0.5,) * len(plan.classes.labels),
        scores={},
        tuning={},
        objects={},
        self_test={},
        recipe=to_dict(plan.recipe),
        data=plan.fingerprint(),
        versions=versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def tested(card: Card, net: Any, weights: bundle.Tensors) -> Card:
    """Return the card with what the net answers to noise when it has these weights.

    Args:
        card: Of the net.
        net: A copy that nobody trains: its weights are replaced.
        weights: What is saved.
    """
    load_weights(net, weights)
    return card.replace(self_test=note_answers(TorchBackend(net, card.classes.task), card))


def versions() -> dict[str, str]:
    """Return the versions of what a training depends on."""
    names = ("whatwhere", "torch", "timm", "lightning", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "python": platform.python_version()}
