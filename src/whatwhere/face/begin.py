"""How a classifier begins with a user's own model of arcgis.learn."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatwhere import bundle, nets
from whatwhere.bundle import Card
from whatwhere.config import MODELS, Recipe, make_recipe, to_dict
from whatwhere.errors import BundleError, UsageError
from whatwhere.face.packed import Place
from whatwhere.foreign import Foreign, fit_tensors, read_tensors
from whatwhere.nn.build import build_light, build_model, count_parameters, geometry
from whatwhere.notation import parse_bands
from whatwhere.talk import Talk
from whatwhere.types import Bands, Geometry, Normalization


@dataclass(frozen=True)
class Begun:
    """What was taken of a foreign model.

    Attributes:
        run: A bundle with all of its weights; None where they are not all of them.
        seed: A bundle with its backbone and a decoder that nobody has trained; None else.
    """

    run: Path | None
    seed: Path | None


def begin(foreign: Foreign, recipe: Recipe, place: Place, talk: Talk) -> Begun:
    """Take what fits of a foreign model's weights, and say it.

    Args:
        foreign: Its description.
        recipe: Names the net.
        place: Where a bundle is put.
        talk: Where it is said.

    Raises:
        BundleError: Nothing of them can be taken; why is said.
    """
    if foreign.weights is None:
        raise BundleError(f"{foreign.path}: {foreign.told}: no weights are taken.")
    bands = foreign.bands
    if bands is None:
        raise BundleError(f"{foreign.path}: it does not tell its bands: no weights are taken.")
    if recipe.model in MODELS or recipe.model.startswith(nets.OWN):
        raise BundleError(f"{foreign.weights}: its weights are not those of {recipe.model}.")
    tensors = read_tensors(foreign.weights)
    sizes = (len(bands), foreign.classes.n_outputs)
    light = build_light(recipe.model, *sizes, **recipe.model_arguments)
    found = fit_tensors(tensors, light)
    if found.wrong:
        raise BundleError(
            f"{foreign.weights}: its weights are not taken, they do not fit {recipe.model}: "
            f"{found.wrong}."
        )
    net = _seeded(recipe, sizes)
    if found.whole and foreign.normalization is None:
        raise BundleError(
            f"{foreign.path}: its weights fit, but it does not tell how values are normalised: "
            "they are not taken."
        )
    weights = {name: one.numpy() for name, one in net.state_dict().items()} | {**found.tensors}
    folder = (
        place.path / f"{foreign.path.stem}_{'taken' if found.whole else 'backbone_new_decoder'}"
    )
    shape = geometry(net) if found.whole else Geometry(net.encoder.stride, None)
    card = _card(foreign, bands, recipe, count_parameters(net).total, shape)
    if found.whole:
        card = nets.tested(card, net, weights)
    bundle.save(folder, card, weights)
    count = len(found.tensors)
    if found.whole:
        talk.say(f"start    {foreign.weights}: all of its {count} arrays fit and are taken")
        return Begun(folder, None)
    talk.say(
        f"start    {foreign.weights}: its backbone is taken ({count} arrays). The decoder starts "
        "anew, because it is built otherwise here"
    )
    return Begun(None, folder)


def settings_of(foreign: Foreign) -> dict[str, Any]:
    """Return what a recipe can say of a foreign model where there is no data to ask."""
    found: dict[str, Any] = {}
    if foreign.chip_size is not None:
        found["chip_size"] = max(foreign.chip_size)
    if foreign.orientation:
        found["orientation"] = foreign.orientation
    rows = [(info.raw[0], info.name) for info in foreign.classes]
    if not any(re.search("[,=]", name) for _, name in rows):
        found["classes"] = ",".join(f"{value}={name}" for value, name in rows)
    if foreign.bands is not None:
        words = _written(foreign.bands)
        if words:
            found["bands"] = words
    return found


def unlike(foreign: Foreign, classes: list[str], bands: list[str]) -> list[tuple[str, str, str]]:
    """Return what of classes and bands differs: name, the model's, the data's."""
    named = list(foreign.bands.names) if foreign.bands is not None else bands
    rows = [("classes", foreign.classes.names, classes), ("bands", named, bands)]
    return [(name, ", ".join(a), ", ".join(b)) for name, a, b in rows if a != b]


def _written(bands: Bands) -> str:
    """Bands as a recipe writes them; empty where their names cannot stand in one."""
    text = ",".join(f"{name}={n}" for name, n in zip(bands.names, bands.numbers, strict=True))
    try:
        parse_bands(text)
    except UsageError:
        return ",".join(str(number) for number in bands.numbers)
    return text


def _seeded(recipe: Recipe, sizes: tuple[int, int]) -> Any:
    """Build the net; what nobody has trained is drawn from the recipe's seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build_model(recipe.model, *sizes, **recipe.model_arguments)


def _card(foreign: Foreign, bands: Bands, recipe: Recipe, parameters: int, shape: Geometry) -> Card:
    blank = Normalization((0.0,) * len(bands), (1.0,) * len(bands))
    softmax = foreign.classes.task == "multiclass"
    return Card(
        model=recipe.model,
        arguments=recipe.model_arguments,
        parameters=parameters,
        classes=foreign.classes,
        bands=bands,
        normalization=foreign.normalization or blank,  # a training measures its own
        resize=None,
        chip_size=foreign.chip_size or (256, 256),
        orientation=foreign.orientation or "upright",
        geometry=shape,
        pixel_size=None,
        thresholds=() if softmax else (0.5,) * len(foreign.classes.labels),
        scores={},
        tuning={},
        objects={},
        self_test={},
        recipe=to_dict(make_recipe(recipe, pretrained_path="")),
        data={"from": foreign.path.name},
        versions=nets.versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
