"""The bundle: the only thing that crosses from training to prediction.

A folder with the weights as safetensors, named by their hash, and one JSON card that says
everything else. The card is replaced last, so a reader finds the old pair or the new one, never a
mixture. There is no pickle and no code in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.errors import BundleError, OutputError
from whatwhere.types import Bands, Classes, Geometry, Normalization, Orientation

FORMAT = 1
CARD = "bundle.json"
_MOST_CARD_BYTES = 16 * 2**20
_MOST_HEAD_BYTES, _MOST_TENSORS = 2**24, 20_000
_MEMBERS = {"format", "weights", "card"}
_SEAL = re.compile(rb'\{\n "card_sha256": "([0-9a-f]{64})",\n')
_PICKLES = (
    *(".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".bin", ".npy", ".npz"),
    *(".h5", ".hdf5", ".keras"),
)

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything of a trained net but its weights.

    Attributes:
        model: Name of the architecture.
        arguments: Its own arguments.
        parameters: How many numbers the weights hold, running statistics included.
        classes: The class table.
        bands: What the net sees of a file.
        normalization: What is subtracted from and divided out of each band.
        resize: (height, width) that images are stretched to first [px]; None keeps their own.
        chip_size: (height, width) of the training chips [px].
        orientation: Whether gravity matters.
        geometry: What cutting images into tiles has to know of the net.
        pixel_size: Side of a pixel on the ground or the object [m]; None where it is not known.
        thresholds: One for each label with a probability of its own; empty for softmax.
        scores: Named figures, such as the validation loss of these weights.
        tuning: How the thresholds were found; empty where they were not tuned.
        objects: How touching objects are told apart; empty where they are not.
        self_test: What the net answers to an image of seeded noise, compared when it is loaded;
            empty where that was not noted.
        recipe: How the net was trained.
        data: What it was trained on: counts and a fingerprint.
        versions: Of the libraries that made it.
        created: When, ISO 8601 in UTC.
    """

    model: str
    arguments: Mapping[str, Any]
    parameters: int
    classes: Classes
    bands: Bands
    normalization: Normalization
    resize: tuple[int, int] | None
    chip_size: tuple[int, int]
    orientation: Orientation
    geometry: Geometry
    pixel_size: float | None
    thresholds: tuple[float, ...]
    scores: Mapping[str, float]
    tuning: Mapping[str, Any]
    objects: Mapping[str, Any]
    self_test: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str

    def replace(self, **changes: Any) -> Card:
        """Return the card with some of its lines changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        lines = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        lines["classes"] = self.classes.to_json()
        lines["bands"] = self.bands.to_json()
        lines["normalization"] = dataclasses.asdict(self.normalization)
        lines["geometry"] = dataclasses.asdict(self.geometry)
        return lines

    @classmethod
    def from_json(cls, lines: Mapping[str, Any]) -> Card:
        """Read the card back.

        Raises:
            BundleError: A line is missing, unknown, or holds what it cannot.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if set(lines) != known:
            raise BundleError(
                f"the card lacks {sorted(known - set(lines))} and has the unknown "
                f"{sorted(set(lines) - known)}. Take the version of whatwhere that wrote it."
            )
        try:
            values = dict(lines)
            values["classes"] = Classes.from_json(lines["classes"])
            values["bands"] = Bands.from_json(lines["bands"])
            mean, std = lines["normalization"]["mean"], lines["normalization"]["std"]
            values["normalization"] = Normalization(
                tuple(float(m) for m in mean), tuple(float(s) for s in std)
            )
            for name in ("resize", "chip_size"):
                if lines[name] is not None:
                    height, width = lines[name]
                    values[name] = (int(height), int(width))
            values["thresholds"] = tuple(float(t) for t in lines["thresholds"])
            values["geometry"] = Geometry.from_json(lines["geometry"])
            for name in ("objects", "self_test", "tuning", "arguments"):
                values[name] = dict(lines[name])
            if lines["pixel_size"] is not None:
                values["pixel_size"] = float(lines["pixel_size"])
            card = cls(**values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the card cannot be read: {error!r}.") from error
        card._check()
        return card

    def _check(self) -> None:
        numbers = [*self.normalization.mean, *self.normalization.std, *self.thresholds]
        numbers += [] if self.pixel_size is None else [self.pixel_size]
        labels = 0 if self.classes.task == "multiclass" else len(self.classes.labels)
        if not all(math.isfinite(number) for number in numbers):
            raise BundleError("the card holds numbers that are not finite.")
        if min(self.normalization.std, default=0) <= 0 or (self.pixel_size or 1) <= 0:
            raise BundleError("the card holds a deviation or pixel size out of its range.")
        sides = (*(self.resize or (1,)), *(self.chip_size or (0,)))
        if min(sides) < 1 or self.orientation not in ("upright", "free"):
            raise BundleError("the card holds a size or orientation that there is not.")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise BundleError("the card holds a threshold that is not from 0 to 1.")
        lengths = {len(self.normalization.mean), len(self.normalization.std), len(self.bands)}
        if len(lengths) > 1 or len(self.thresholds) != labels:
            raise BundleError("the card's bands, normalisation and thresholds do not agree.")


@dataclass(frozen=True)
class Bundle:
    """A card and the weights that belong to it.

    Attributes:
        card: Everything but the weights.
        weights: By the names of the net's arrays.
        digest: Of both, in hexadecimal; empty where they were not read from files.
    """

    card: Card
    weights: Tensors
    digest: str = ""


def bundle_folder(path: Path) -> Path:
    """Return the bundle that a run folder, a bundle, or its card stands for.

    Raises:
        BundleError: There is none.
    """
    if path.suffix.lower() in _PICKLES:
        raise BundleError(
            f"{path}: files of this kind can run code when they are opened, and are not loaded. "
            "Give a run folder that `whatwhere train` made."
        )
    for folder in (path, path / "bundle", path.parent):
        if (folder / CARD).is_file() and (folder != path.parent or path.name == CARD):
            return folder
    what = "there is no bundle in it" if path.exists() else "there is no such folder"
    raise BundleError(f"{path}: {what}. Give a run folder that `whatwhere train` made.")


def save(folder: Path, card: Card, weights: Tensors) -> None:
    """Write a bundle; one that is there is replaced in one step, or stays whole.

    Raises:
        OutputError: It cannot be written.
        BundleError: A weight is not finite.
    """
    from safetensors.numpy import save as serialize

    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise BundleError(f"the weights {name} are not finite: they are not saved.")
    data = serialize({name: np.asarray(tensor, order="C") for name, tensor in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"weights-{digest[:16]}.safetensors"
    files.write_bytes(folder / name, data)  # even if the name is there: the file may be damaged
    head = {"format": FORMAT, "weights": {"file": name, "sha256": digest, "bytes": len(data)}}
    files.write_bytes(folder / CARD, _sealed({**head, "card": card.to_json()}))
    for stale in folder.glob("weights-*.safetensors"):
        if stale.name != name:
            with contextlib.suppress(OutputError):  # a reader may hold it open, on Windows
                files.remove(stale)


def save_card(folder: Path, card: Card) -> None:
    """Replace the card of a bundle and keep its weights; raises as `save` and `load` do."""
    head, _ = _checked_head(folder)
    files.write_bytes(folder / CARD, _sealed({**head, "card": card.to_json()}))


def weights_bytes(path: Path) -> int:
    """Return how large the weights of a bundle are [bytes]; raises `BundleError`."""
    folder = bundle_folder(path)
    file = folder / str(_read_head(folder)[0]["weights"]["file"])
    try:
        return file.stat().st_size
    except OSError as error:
        raise BundleError(f"{file}: the weights cannot be read: {error}.") from error


def load_card(path: Path) -> Card:
    """Read the card alone; raises `BundleError`."""
    return _checked_head(bundle_folder(path))[1]


def load(path: Path) -> Bundle:
    """Read a bundle and check it: format, hash, finite weights.

    Args:
        path: A run folder, a bundle folder, or its card.

    Raises:
        BundleError: It is missing, damaged, or of a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    folder = bundle_folder(path)
    head, sound = _read_head(folder)
    name = str(head["weights"]["file"])
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise BundleError(f"{folder / CARD}: {name!r} is no name of a weights file.")
    if (folder / name).exists() and not (folder / name).is_file():
        raise BundleError(f"{folder / name}: this is not a plain file. Copy the bundle again.")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder / name}: the weights cannot be read: {error.strerror}. Copy the bundle again."
        ) from error
    if hashlib.sha256(data).hexdigest() != head["weights"]["sha256"]:
        raise BundleError(
            f"{folder / name}: the weights are damaged: their hash is not the one in {CARD}. "
            "Copy the bundle again."
        )
    _check_tensors(folder / name, data)
    try:
        weights = deserialize(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a number type NumPy has not
        raise BundleError(
            f"{folder / name}: these are no safetensors: {error}. Copy the bundle again."
        ) from error
    for key, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise BundleError(
                f"{folder / name}: the weights {key} are not finite. Take an older copy."
            )
    whole = json.dumps([head["weights"]["sha256"], head.get("card")], sort_keys=True)
    card = _card(folder, head, sound)
    return Bundle(card, weights, hashlib.sha256(whole.encode()).hexdigest())


def _check_tensors(path: Path, data: bytes) -> None:
    """Refuse a head so long, or of so many tensors, that reading it takes more than the weights."""
    length = int.from_bytes(data[:8], "little")
    if length > min(_MOST_HEAD_BYTES, len(data)):
        raise BundleError(
            f"{path}: these are no safetensors: the head would be {length:,} bytes long. Copy the "
            "bundle again."
        )
    try:
        count = len(json.loads(data[8 : 8 + length]))
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{path}: these are no safetensors: {error}. Copy it again.") from error
    if count > _MOST_TENSORS:
        raise BundleError(
            f"{path}: it holds {count:,} tensors, and no net has so many. Copy the bundle again."
        )


def _sealed(head: Mapping[str, Any]) -> bytes:
    """Return what the card's file holds: JSON whose first line has the hash of all that follows."""
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False)
    body = text.removeprefix("{\n").encode() + b"\n"
    return b'{\n "card_sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body


def _is_sound(data: bytes, head: Mapping[str, Any]) -> bool:
    """Whether a card's file is what was written; those of old versions have no hash."""
    match = _SEAL.match(data)
    if match is None:
        return set(head) == _MEMBERS
    return hashlib.sha256(data[match.end() :]).hexdigest().encode() == match[1]


def _checked_head(folder: Path) -> tuple[dict[str, Any], Card]:
    """Read all that the card's file says, without its hash; and the card."""
    head, sound = _read_head(folder)
    card = _card(folder, head, sound)
    return {name: head[name] for name in ("format", "weights")}, card


def _read_head(folder: Path) -> tuple[dict[str, Any], bool]:
    """Read what the card's file says, and whether it is what was written."""
    path = folder / CARD
    try:
        if path.stat().st_size > _MOST_CARD_BYTES:
            raise BundleError(f"{path}: a card of more than 16 MB is not read.")
        data = path.read_bytes()
        head = json.loads(data, object_pairs_hook=_once)
    except OSError as error:
        raise BundleError(f"{path}: the card cannot be read: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: this is not JSON: {error}. Copy the bundle again.") from error
    if not isinstance(head, dict) or "format" not in head:
        raise BundleError(f"{path}: this is no card of a bundle.")
    if head["format"] != FORMAT:
        raise BundleError(
            f"{path}: the bundle has format {head['format']!r}, this version reads {FORMAT}. "
            "Take the version of whatwhere that wrote it."
        )
    weights = head.get("weights")
    if not isinstance(weights, dict) or not {"file", "sha256"} <= set(weights):
        raise BundleError(f"{path}: the card does not name its weights.")
    return head, _is_sound(data, head)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; a name that is there twice could mean either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _card(folder: Path, head: Mapping[str, Any], sound: bool) -> Card:
    try:
        card = Card.from_json(head["card"])
    except (BundleError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / CARD}: {error}") from error
    if not sound:
        raise BundleError(
            f"{folder / CARD}: the card is damaged, or was changed by hand: its hash is not the "
            "one it should have. Copy the bundle again."
        )
    return card
