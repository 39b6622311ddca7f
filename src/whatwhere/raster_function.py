"""The raster function that a package gives to ArcGIS Pro; experimental.

Pro makes an object of the class in the package's script, asks it for its parameters, tells it their
values, and then hands it one block of pixels after the other. The methods have the names and the
arguments of Esri's published interface of Python raster functions
(https://github.com/Esri/raster-functions/wiki). Pro itself was not at hand when this was written:
the tests call it as the interface is described.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import bundle
from whatwhere.bundle import CARD
from whatwhere.errors import BundleError, DataError, ShapeError, UsageError
from whatwhere.io.esri import Definition, parse_definition, read_definition
from whatwhere.packages import extract_bands, why_not
from whatwhere.predict.backends import choose_device
from whatwhere.predict.decide import decide
from whatwhere.predict.engine import Predictor, load, usual_tile
from whatwhere.tiling import BLIND_MARGIN
from whatwhere.types import Bands, Geometry, Image, Labels, Valid

_ALL = 2 | 4 | 8  # inherited: all but the pixel type; made void: statistics, histogram, properties
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")
_PARAMETERS = (
    ("raster", "raster", "Raster", "What is to be classified."),
    ("model", "string", "Model Definition", "The .emd file of the model."),
    (
        *("padding", "numeric", "Padding"),
        "Pixels on each side of a block that the net sees and whose classes are not kept. With as "
        "many as the net looks far, which is the default, no seam shows.",
    ),
    (
        *("batch_size", "numeric", "Batch Size"),
        "Tiles that are handed over at once, rounded down to a square.",
    ),
    (
        *("predict_background", "string", "Predict Background"),
        "If False, each pixel gets the most likely of the other classes.",
    ),
    (
        *("test_time_augmentation", "string", "Test Time Augmentation"),
        "If True, the mean over the symmetries that the net was trained on is taken.",
    ),
    (
        *("tile_size", "numeric", "Tile Size"),
        "The side of what the net sees at once, padding included.",
    ),
    (
        *("device", "string", "Device"),
        "auto, cpu, cuda, mps, or the number of a GPU; -1 is the processor.",
    ),
)
"""Name, type, title and text of each parameter; the first two must be given."""


class RasterFunction:
    """Gives each pixel of a block the value of its class.

    Attributes:
        name: What Pro calls it.
        description: What Pro says of it.
        folder: Where the package lies, for a definition that is given as text.
        padding: Context on each side of a block [px].
        tile_size: The longest side of what the net sees at once [px].
        batch_size: How many tiles a block is made of, rounded down to a square.
        predict_background: Whether a pixel may be background.
        test_time_augmentation: Whether the mean of several symmetries is taken.
        device: Where the net runs: `auto`, `cpu`, `cuda` or `mps`.
    """

    folder: str = ""

    def __init__(self) -> None:
        self.name = "Whatwhere Classifier"
        self.description = "Gives each pixel its class, by a U-Net of the package whatwhere."
        self.padding, self.tile_size, self.batch_size = 0, 0, 4
        self.predict_background, self.test_time_augmentation = True, False
        self.device = "auto"
        self._predictor: Predictor | None = None

    def initialize(self, **kwargs: Any) -> None:
        """Load the net.

        Args:
            **kwargs: `model`, the path of a `.emd` file, or what is in one as text; without it
                nothing is loaded. `model_as_file` says which of the two, if that is not to be
                guessed. `device`: a number of a GPU from 0, -1 for the processor, less for
                whatever there is; or `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            BundleError: The definition or the bundle is missing or damaged.
            UsageError: The net cannot be run so, or there is no such device.
        """
        if kwargs.get("model") is None:
            return
        run = _bundle_of(str(kwargs["model"]), kwargs.get("model_as_file"), self.folder)
        card = bundle.load_card(run)
        refusal = why_not(card)
        if refusal:
            raise UsageError(f"{run}: {refusal}.")
        self.device = device_of(kwargs.get("device", self.device))
        predictor = load(run, device=self.device)
        if extract_bands(card) is not None:  # blocks hold these bands alone, in their order
            numbers = tuple(range(1, len(card.bands) + 1))
            predictor.card = card.replace(bands=Bands(card.bands.names, numbers))
        self._predictor, self._extracted = predictor, extract_bands(card)
        self.padding = usual_padding(card.geometry)
        self.tile_size = usual_tile(card.geometry)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Return what Pro asks the user for, one dictionary for each parameter."""
        usual = {
            "padding": self.padding,
            "batch_size": self.batch_size,
            "predict_background": str(self.predict_background),
            "test_time_augmentation": str(self.test_time_augmentation),
            "tile_size": self.tile_size,
            "device": self.device,
        }
        return [
            {
                "name": name,
                "dataType": kind,
                "value": usual.get(name),
                "required": name not in usual,
                "displayName": title,
                "description": description,
                **({"domain": ("True", "False")} if usual.get(name) in ("True", "False") else {}),
            }
            for name, kind, title, description in _PARAMETERS
        ]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """Take what the user chose, and say what blocks are wanted.

        Args:
            **scalars: The parameters' values; numbers and truths may come as text.

        Returns:
            `padding`, `tx` and `ty`, the sides of a block without it [px], `extractBands`, places
            of bands from 0, and that the mask is wanted.

        Raises:
            UsageError: A value cannot be, or the tile has no room beside the padding.
        """
        geometry = self._loaded().card.geometry
        self.padding = _whole(scalars, "padding", self.padding, 0)
        self.batch_size = _whole(scalars, "batch_size", self.batch_size, 1)
        self.tile_size = _whole(scalars, "tile_size", self.tile_size, 1)
        self.predict_background = _truth(scalars, "predict_background", self.predict_background)
        self.test_time_augmentation = _truth(
            scalars, "test_time_augmentation", self.test_time_augmentation
        )
        if scalars.get("device") is not None:
            self._move(device_of(scalars["device"]))
        stride = geometry.stride
        core = (self.tile_size - 2 * self.padding) // stride * stride
        if core < 1:
            raise UsageError(
                f"tile_size {self.tile_size} has no room between two paddings of {self.padding} "
                f"px. Take at least {2 * self.padding + stride}."
            )
        self._loaded().tile = 0 if geometry.border else max(self.tile_size, _least(geometry))
        side = core * math.isqrt(self.batch_size)
        configuration: dict[str, Any] = {
            "padding": self.padding,
            "tx": side,
            "ty": side,
            "fixedTileSize": 1,
            "inputMask": True,
            "inheritProperties": _ALL,
            "invalidateProperties": _ALL,
        }
        if self._extracted is not None:
            configuration["extractBands"] = self._extracted
        return configuration

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """Say what the classes' raster is: one band of whole numbers, with a table of the classes.

        Args:
            **kwargs: What is known of the rasters; `output_info` is filled in.
        """
        rows = [
            {
                "OID": number,
                "Value": info.value,
                "Class": info.name,
                **dict(zip(("Red", "Green", "Blue"), info.color, strict=True)),
            }
            for number, info in enumerate(self._loaded().card.classes, 1)
        ]
        kinds = {"OID": "OID", "Class": "String"}
        fields = [
            {"name": name, "type": f"esriFieldType{kinds.get(name, 'Integer')}", "alias": name}
            for name in ("OID", "Value", "Class", "Red", "Green", "Blue")
        ]
        table = {
            "displayFieldName": "",
            "fieldAliases": {str(field["name"]): field["alias"] for field in fields},
            "fields": fields,
            "features": [{"attributes": row} for row in rows],
        }
        kwargs["output_info"] |= {
            "bandCount": 1,
            "pixelType": "i4",
            "statistics": (),
            "histogram": (),
            "rasterAttributeTable": json.dumps(table, ensure_ascii=False),
        }
        return kwargs

    def updatePixels(
        self, tlc: Any, shape: Sequence[int], props: Mapping[str, Any], **pixelBlocks: Any
    ) -> dict[str, Any]:
        """Give the pixels of a block their classes.

        Args:
            tlc: Where the block begins.
            shape: Of what is returned, `(h, w)` or `(1, h, w)`.
            props: Of the raster that is made.
            **pixelBlocks: `raster_pixels`, `(C, H, W)` or `(H, W)` with the padding around it, and
                `raster_mask`, the same: 0 where there are no data. They count as nothing, and are
                not taken for dark pixels.

        Returns:
            The blocks, with `output_pixels`, int32 class values without the padding, and
            `output_mask`, uint8: 0 where the middle of the block has no data.

        Raises:
            ShapeError: The block does not have the net's bands, or is nothing but padding.
        """
        pixels, valid = _block(pixelBlocks)
        height, width = valid.shape
        pad = self.padding
        if min(height, width) <= 2 * pad:
            raise ShapeError(
                f"a block of {height}×{width} px is nothing but its padding of {pad} px."
            )
        inner = (slice(pad, height - pad), slice(pad, width - pad))
        predictor = self._loaded()
        predictor.tta, card = self.test_time_augmentation, predictor.card
        probabilities = predictor.probabilities(pixels, valid)[(slice(None), *inner)]
        values = np.array([info.value for info in card.classes], dtype=np.int32)
        classes = values[self._decided(probabilities)]
        mask = valid[inner].astype(np.uint8)
        background = [info.value for info in card.classes if info.role == "background"]
        classes = np.where(mask > 0, classes, np.int32(background[0] if background else 0))
        if len(shape) == 3:
            classes, mask = classes[None], mask[None]
        return {**pixelBlocks, "output_pixels": classes, "output_mask": mask}

    def _decided(self, probabilities: Image) -> Labels:
        """Class indexes `(H, W)`; without the background where it is not wanted."""
        card = self._loaded().card
        others = [i for i, info in enumerate(card.classes) if info.role != "background"]
        if self.predict_background or len(others) == len(card.classes) or not others:
            return decide(probabilities, card.classes, card.thresholds)
        if card.classes.task == "binary":
            return np.full(probabilities.shape[1:], others[0], dtype=np.int64)
        likeliest = np.argmax(probabilities[others], axis=0)
        found: Labels = np.array(others, dtype=np.int64)[likeliest]
        return found

    def _move(self, device: str) -> None:
        """Bring the net to another device, if it is not there."""
        move = getattr(self._loaded().backend, "to", None)
        if device != self.device and move is not None:
            move(choose_device(device))
            self.device = device

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            raise UsageError("no model is loaded: initialize(model=…) comes first.")
        return self._predictor


def usual_padding(geometry: Geometry) -> int:
    """Return the context that leaves no seam [px]; a multiple of the net's stride.

    A net that looks at whole tiles gets 128 px, which make seams small.
    """
    margin = BLIND_MARGIN if geometry.margin is None else geometry.margin
    return -(-max(margin, geometry.border) // geometry.stride) * geometry.stride


def _least(geometry: Geometry) -> int:
    """The smallest tile that the engine can cut a block into [px]."""
    margin = 0 if geometry.margin is None else geometry.margin
    return 2 * (-(-margin // geometry.stride) * geometry.stride) + geometry.stride


def _bundle_of(model: str, as_file: Any, folder: str) -> Path:
    """Return the bundle that a definition names: a file, or what is in one as text."""
    as_text = model.lstrip().startswith("{") if as_file is None else not _is_true(as_file)
    try:
        if as_text:
            found = parse_definition(model.encode("utf-8"), Path(folder) / "model.emd")
        else:
            found = read_definition(Path(model))
    except DataError as error:
        raise BundleError(str(error)) from error
    return _place_of(found)


def _place_of(found: Definition) -> Path:
    told = found.lines.get("ModelFile")
    name = PureWindowsPath(told).name if isinstance(told, str) else ""
    if name != CARD:
        raise BundleError(
            f"{found.path}: it names {told!r} as the model, and not {CARD}: this function runs "
            "bundles of whatwhere alone."
        )
    place = found.path.parent / str(told).replace("\\", "/")  # or the other, where it is absolute
    if not place.is_file():
        raise BundleError(
            f"{place}: the bundle is not beside its definition: copy the whole folder, and give "
            "the path of the .emd file."
        )
    return place


def _block(blocks: Mapping[str, Any]) -> tuple[NDArray[Any], Valid]:
    """Return `(C, H, W)` and where all of it is valid, `(H, W)`."""
    if "raster_pixels" not in blocks:
        raise UsageError("there are no raster_pixels: the parameter raster names the input.")
    pixels = np.asarray(blocks["raster_pixels"])
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3:
        raise ShapeError(f"raster_pixels are (bands, rows, columns), not {pixels.shape}.")
    valid: Valid = np.ones(pixels.shape[1:], dtype=np.bool_)
    mask = blocks.get("raster_mask")
    if mask is not None:
        told = np.asarray(mask)
        if told.shape[-2:] != valid.shape or told.ndim not in (2, 3):
            raise ShapeError(f"raster_mask is {told.shape}, and raster_pixels {pixels.shape}.")
        valid &= (told != 0).reshape(-1, *valid.shape).all(axis=0)
    if np.issubdtype(pixels.dtype, np.floating):
        valid &= np.isfinite(pixels).all(axis=0)
    return pixels, valid


def device_of(told: Any) -> str:
    """Return `auto`, `cpu`, `cuda` or `mps`; a GPU that is named by its number is chosen here.

    Args:
        told: One of these words; or a number of a GPU from 0, -1 for the processor, less for
            whatever there is.

    Raises:
        UsageError: There is no such device.
    """
    text = str(told).strip().lower()
    try:
        number = int(text)
    except ValueError:
        choose_device(text)
        return text
    if number < 0:
        return "cpu" if number == -1 else "auto"
    choose_device("cuda")
    import torch

    if number >= torch.cuda.device_count():
        raise UsageError(f"device: there are {torch.cuda.device_count()} GPUs, from 0 on: {told}.")
    torch.cuda.set_device(number)
    return "cuda"


def _whole(scalars: Mapping[str, Any], name: str, usual: int, least: int) -> int:
    """A whole number among the parameters, which may come as text or with a point."""
    told = scalars.get(name)
    if told is None or told == "":
        return usual
    try:
        number = float(told)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number == int(number) and number >= least):
        raise UsageError(f"{name} must be a whole number from {least} up, not {told!r}.")
    return int(number)


def _truth(scalars: Mapping[str, Any], name: str, usual: bool) -> bool:
    told = scalars.get(name)
    if told is None:
        return usual
    if str(told).strip().lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"{name} must be True or False, not {told!r}.")
    return _is_true(told)


def _is_true(told: Any) -> bool:
    return str(told).strip().lower() in _TRUE
