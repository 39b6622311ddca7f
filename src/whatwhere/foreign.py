"""A user's own model of arcgis.learn: what its definition tells, and what of its weights fits."""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whatwhere.data.classes import NODATA
from whatwhere.errors import BundleError, DataError
from whatwhere.io.esri import Definition, EsriClass, read_definition
from whatwhere.types import (
    Bands,
    Classes,
    ClassInfo,
    Normalization,
    Orientation,
    Role,
    default_color,
)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of red, green, blue in [0, 1]
_MOST_BYTES = 4 << 30  # of a file of weights, and of what is packed in it
_NAMED = 3  # tensors that a message shows
_STATES = ("model", "state_dict")  # where a file of weights may keep them
# What the children of a torchvision ResNet are called, by their places in fastai's encoder.
_RESNET = {
    **{"0": "conv1", "1": "bn1"},
    **{"4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
}
_THEIRS, _OURS = "layers.0.", "encoder.body."
_UNREADABLE = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, OSError),
    *(ArithmeticError, AssertionError, MemoryError, ImportError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Foreign:
    """What the definition of a model of arcgis.learn tells.

    Attributes:
        path: The `.emd` file.
        classes: In the order of the net's outputs.
        bands: What the net sees; None where that is not told.
        normalization: In the units of the file; None where it is not told.
        backbone: As arcgis.learn calls it; empty where it is not told.
        chip_size: (height, width) of the training chips [px]; None where it is not told.
        orientation: `free` where chips were turned in training; empty where it is not told.
        weights: The file of its weights; None where there is none beside the definition.
        told: What the definition says of that file.
    """

    path: Path
    classes: Classes
    bands: Bands | None
    normalization: Normalization | None
    backbone: str
    chip_size: tuple[int, int] | None
    orientation: Orientation | Literal[""]
    weights: Path | None
    told: str


@dataclass(frozen=True)
class Fitting:
    """What of a file of weights goes into a net of ours.

    Attributes:
        tensors: By our names: all of the net's, or all of its backbone's; empty where they do not
            fit.
        whole: Whether they are all of the net's.
        wrong: Why they do not fit, in words; empty where they do.
    """

    tensors: Mapping[str, NDArray[Any]]
    whole: bool
    wrong: str


def read_foreign(path: Path) -> Foreign:
    """Read the definition of a model of arcgis.learn.

    Args:
        path: The `.emd` file.

    Raises:
        BundleError: It is missing or damaged, of an export, or of a model that does not give each
            pixel a class.
    """
    try:
        found = read_definition(path)
    except DataError as error:
        raise BundleError(str(error)) from error
    lines = found.lines
    kind = lines.get("ModelType")
    if isinstance(kind, str) and kind.strip().lower() != "imageclassification":
        raise BundleError(
            f"{path}: it describes a model of the type {kind}; here each pixel is given a class "
            "(ImageClassification), and nothing else."
        )
    if "ModelFile" not in lines and "ModelParameters" not in lines:
        raise BundleError(
            f"{path}: it describes training data and no trained model. prepare_data takes its "
            "folder."
        )
    if not found.classes:
        raise BundleError(f"{path}: it names no classes. Save the model again.")
    parameters = lines.get("ModelParameters")
    backbone = parameters.get("backbone") if isinstance(parameters, Mapping) else None
    bands = _bands(found)
    weights, told = _weights(found)
    free: Orientation = "free" if found.space == "MAP_SPACE" else "upright"
    return Foreign(
        path=path,
        classes=class_table(found.classes),
        bands=bands,
        normalization=_normalization(found, bands),
        backbone=backbone.strip() if isinstance(backbone, str) else "",
        chip_size=found.size,
        orientation=free if found.space else "",
        weights=weights,
        told=told,
    )


def class_table(rows: Sequence[EsriClass]) -> Classes:
    """Return the class table of a net of arcgis.learn: 0 first, named or not, the others by value.

    Args:
        rows: The classes of its definition.
    """
    first = next((row for row in rows if row.value == 0), EsriClass(0, NODATA, None))
    others = sorted((row for row in rows if row.value != 0), key=lambda row: row.value)
    ordered = [first, *others]
    plain = all(0 <= row.value <= 255 for row in ordered)
    infos = []
    for index, row in enumerate(ordered):
        role: Role = "background" if index == 0 else "class"
        value = row.value if plain else index
        color = row.color or default_color(index)
        infos.append(ClassInfo(row.name, value, color, role, (row.value,)))
    return Classes(tuple(infos), "multiclass" if len(infos) > 2 else "binary")


def _bands(found: Definition) -> Bands | None:
    """The bands that the net sees, where numbers or the sensor's usual three tell them."""
    lines = found.lines
    told, names = lines.get("ExtractBands"), lines.get("Bands")
    named = [str(name).strip().lower() for name in names] if isinstance(names, list) else []
    places: list[int] = []
    if isinstance(told, list) and told:
        for one in told:
            if isinstance(one, str) and one.strip().lower() in named:
                places.append(named.index(one.strip().lower()))
            elif isinstance(one, int) and not isinstance(one, bool) and one >= 0:
                places.append(one)
            else:
                return None
    elif lines.get("IsMultispectral") is True:
        return None
    else:
        places = [0, 1, 2]
    called = [named[place] if place < len(named) else "" for place in places]
    if not all(called) or len(set(called)) < len(called):
        plain = len(places) == 3 and lines.get("IsMultispectral") is not True
        rgb = ("red", "green", "blue")
        called = list(rgb) if plain else [f"band {place + 1}" for place in places]
    return Bands(tuple(called), tuple(place + 1 for place in places))


def _normalization(found: Definition, bands: Bands | None) -> Normalization | None:
    """Their normalisation in the units of the file.

    8 bits and three bands: ImageNet's mean and deviation. Else values are first brought between 0
    and 1 by the lowest and highest of each band, `(x - low) / (high - low)`, then shifted and
    scaled by the mean and deviation of the result.
    """
    lines = found.lines
    stats = lines.get("NormalizationStats")
    if lines.get("DoNormalize") is False or bands is None:
        return None
    imagenet = lines.get("IsImageNetNormalization")
    if imagenet is True or (imagenet is None and lines.get("IsMultispectral") is not True):
        if len(bands) != 3:
            return None
        mean, std = (tuple(255 * value for value in part) for part in _IMAGENET)
        return Normalization(mean, std)
    names = ("band_min_values", "band_max_values", "scaled_mean_values", "scaled_std_values")
    told = [stats.get(name) for name in names] if isinstance(stats, Mapping) else []
    lists = [one for one in told if isinstance(one, list)]
    if len(lists) < len(names) or len({len(one) for one in lists}) > 1:
        return None
    rows = [row for row in (_numbers(one, bands) for one in lists) if row is not None]
    if len(rows) < len(names):
        return None
    low, high, mean_of, std_of = (np.array(row, dtype=np.float64) for row in rows)
    means = low + mean_of * (high - low)
    stds = std_of * (high - low)
    if not (np.isfinite(means).all() and np.isfinite(stds).all() and (stds >= 0).all()):
        return None
    return Normalization(
        tuple(means.tolist()), tuple(np.where(stds > 0, stds, 1.0).tolist())
    )  # a band that never changes has a deviation of 1


def _numbers(told: Sequence[Any], bands: Bands) -> list[float] | None:
    """A number for each band that the net sees: such lists may hold those of all bands."""
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in told):
        return None
    if len(told) >= max(bands.numbers):
        return [float(told[number - 1]) for number in bands.numbers]
    return [float(one) for one in told] if len(told) == len(bands) else None


def _weights(found: Definition) -> tuple[Path | None, str]:
    """The file of weights, and what is told of it; a name that leads out is not followed."""
    told = found.lines.get("ModelFile")
    if not isinstance(told, str) or not told.strip():
        return None, "it names no file of weights"
    name = told.strip().replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or PureWindowsPath(told).drive or ".." in parts or "\0" in name:
        return None, f"it names its weights as {told!r}, which is not beside it: bring them there"
    path = found.path.parent.joinpath(*parts)
    if not parts or not path.is_file():
        return None, f"its weights, {told!r}, are not beside it"
    return path, ""


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of torch's without running any code that is in it.

    Returns:
        Torch's tensors by their names.

    Raises:
        BundleError: It is too large, damaged, wants code to be run, or holds no tensors by name.
    """
    import torch

    _check_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the file was written, years ago
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"{path}: its weights are not taken: it holds more than tensors, which may run code "
            "when it is opened, or it is damaged. Nothing of it was run. Where you trust it, save "
            "its tensors alone: torch.save(torch.load(PATH, weights_only=False)['model'], NEW)."
        ) from error
    except _UNREADABLE as error:
        told = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BundleError(f"{path}: its weights cannot be read: {told[0][:200]}") from error
    state = loaded
    for name in _STATES:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    tensors = {
        name: one
        for name, one in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(name, str) and isinstance(one, torch.Tensor) and _is_plain(one)
    }
    if not tensors:
        raise BundleError(f"{path}: its weights are not taken: it holds no tensors by name.")
    if all(name.startswith("module.") for name in tensors):  # of several GPUs
        tensors = {name.removeprefix("module."): one for name, one in tensors.items()}
    return tensors


def _check_size(path: Path) -> None:
    """Refuse a file that takes more memory than a net does, packed or not."""
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(info.file_size for info in archive.infolist()))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise BundleError(f"{path}: its weights cannot be read: {error}.") from error
    if size > _MOST_BYTES:
        raise BundleError(
            f"{path}: its weights are not taken: {size / 2**30:.3g} GB, at most "
            f"{_MOST_BYTES / 2**30:g} GB are read."
        )


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor lies in memory number by number."""
    import torch

    return bool(
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )


def fit_tensors(tensors: Mapping[str, Any], net: Any) -> Fitting:
    """Find out what of foreign weights goes into a net.

    They are taken if all names and shapes are the net's own; else those of the backbone, if all of
    it is there: fastai keeps a ResNet as a sequence, `layers.0.0` its first convolution and
    `layers.0.4` to `layers.0.7` its four stages, within which names are the same.

    Args:
        tensors: Torch's, by their names.
        net: Of ours, with or without numbers.
    """
    own = dict(net.state_dict())
    whole = _differences(own, tensors)
    if not whole:
        return _taken(own, tensors, whole=True)
    encoder = {name: one for name, one in own.items() if name.startswith(_OURS)}
    theirs = {_renamed(name): one for name, one in tensors.items() if name.startswith(_THEIRS)}
    if not encoder or not theirs:
        return Fitting({}, False, _listed(whole))
    inner = _differences(encoder, theirs)
    return Fitting({}, False, _listed(inner)) if inner else _taken(encoder, theirs, whole=False)


def _renamed(name: str) -> str:
    """What a tensor of fastai's encoder is called here."""
    place, _, rest = name.removeprefix(_THEIRS).partition(".")
    return f"{_OURS}{_RESNET.get(place, place)}.{rest}"


def _differences(own: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    wrong = []
    for name, tensor in own.items():
        other = given.get(name)
        if other is None:
            wrong.append(f"{name} {tuple(tensor.shape)} against nothing")
        elif other.shape != tensor.shape:
            wrong.append(f"{name} {tuple(tensor.shape)} against {tuple(other.shape)}")
        elif other.is_floating_point() != tensor.is_floating_point():
            wrong.append(f"{name} {tensor.dtype} against {other.dtype}")
    return [*wrong, *(f"{name} is left over" for name in given if name not in own)]


def _listed(wrong: Sequence[str]) -> str:
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return f"{'; '.join(wrong[:_NAMED])}{more}"


def _taken(own: Mapping[str, Any], given: Mapping[str, Any], whole: bool) -> Fitting:
    """Bring tensors that fit into NumPy's arrays of the net's own number types."""
    arrays = {
        name: given[name].detach().to(tensor.dtype).contiguous().numpy()
        for name, tensor in own.items()
    }
    wild = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if wild:
        return Fitting({}, False, f"{', '.join(wild[:_NAMED])} holds numbers that are not finite")
    return Fitting(arrays, whole, "")
