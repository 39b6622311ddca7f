"""Nets that were exported: what is said in their files, and what the engines of them share."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import machine
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, NumericsError, ShapeError, UsageError
from whatwhere.tiling import mirror
from whatwhere.types import Geometry

FORMAT = 1
FORMAT_KEY, CARD_KEY = "whatwhere_format", "whatwhere_card"
SOURCE_KEY, EXPORT_KEY = "whatwhere_source", "whatwhere_export"
"""What the file's metadata hold: JSON, but for the digest of the bundle it was made from."""

INPUT, OUTPUT = "image", "probabilities"
_MOST_CARD_CHARACTERS = 16 * 2**20
_MOST_TILE = 2**14
_UNREADABLE = ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError

End = tuple[str, bool, Sequence[int | None]]
"""Of what goes in or comes out: its name, whether it is float32, its sides; None for a free one."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A net as its file holds it.

    Attributes:
        card: The bundle's.
        data: The whole file.
        weights: The file beside it, of OpenVINO; else empty.
        source: The digest of the bundle that it was made from.
        tile: Side of the only image that it takes [px]; 0 where it takes any.
        memory_mb: What an image of 512×512 px takes on its way through it [MB].
        difference: The largest difference of a probability from the original's, as it was measured.
        engines: The same for each engine, of a graph that is kept beside its bundle.
    """

    card: Card
    data: bytes
    weights: bytes = b""
    source: str
    tile: int
    memory_mb: int
    difference: float
    engines: Mapping[str, float] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the file, in hexadecimal; that of OpenVINO holds the digest of its weights."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def usable(self) -> Card:
        """The card for those who ask this file: its geometry is that of the tile."""
        if not self.tile:
            return self.card
        return self.card.replace(geometry=of_one_tile(self.card.geometry, self.tile))


class ExportedBackend(ABC):
    """Runs an exported net on the processor.

    Normalisation is inside the graph: it is given the numbers of files.
    """

    normalizes = True
    device = "cpu"
    engine = ""

    def __init__(self, exported: Exported) -> None:
        """Make a session of as many threads as the machine has processors (`machine.threads`).

        Raises:
            BundleError: The engine does not take the file.
            UsageError: It is not installed.
        """
        self.exported = exported
        self._threads = machine.threads()
        self._session = self._open(self._threads)
        self._check()

    def memory_mb(self, bands: int, side: int) -> int:
        """Return what one image `(bands, side, side)` takes on its way through the net [MB]."""
        del bands  # the graph has its own
        return math.ceil(self.exported.memory_mb * (side / 512) ** 2)

    @contextlib.contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """Compute with so many threads while the block runs."""
        usual = self._session
        if threads != self._threads:
            self._session = self._open(threads)
        try:
            yield
        finally:
            self._session = usual

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)`, in the units of files, into probabilities `(N, K, H, W)`.

        Raises:
            NumericsError: A probability is not a number.
            ShapeError: The file takes tiles of one size alone, and an image is larger.
        """
        if self.exported.tile:
            found = np.stack([self._run_tile(image) for image in images])
        else:
            found = self._ask(np.ascontiguousarray(images, dtype=np.float32))
        if not np.isfinite(found).all():
            raise NumericsError("the net's output is not finite. Check the image's values.")
        return found

    def _run_tile(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mirror an image up to the tile, and cut what comes back."""
        height, width = image.shape[-2:]
        return self._ask(self._on_tile(image))[0, :, :height, :width]

    def _on_tile(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        tile, (height, width) = self.exported.tile, image.shape[-2:]
        if max(height, width) > tile:
            raise ShapeError(f"the net takes at most {tile}×{tile} px, not {height}×{width}.")
        return mirror(image[None], (tile, tile), (0, 0)).astype(np.float32)

    @property
    def _planes(self) -> int:
        """How many channels come out."""
        return self.exported.card.classes.n_outputs

    def _check(self) -> None:
        """Compare what goes in and comes out with the card."""
        tile, bands = self.exported.tile, len(self.exported.card.bands)
        sides = [tile, tile] if tile else []
        wanted = [
            (INPUT, [1, bands, *sides] if tile else [bands]),
            (OUTPUT, [1, self._planes, *sides] if tile else [self._planes]),
        ]
        for values, (name, shape) in zip(self._ends(), wanted, strict=True):
            if len(values) != 1:
                raise BundleError(f"its {name} does not go with its card.")
            ((known, is_float, found),) = values
            shown = [*found] if tile else [*found][1:2]
            if (known, is_float, shown) != (name, True, shape):
                raise BundleError(f"its {name} does not go with its card.")

    @abstractmethod
    def _open(self, threads: int) -> Any:
        """Return what runs the file with so many threads."""

    @abstractmethod
    def _ask(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run it."""

    @abstractmethod
    def _ends(self) -> tuple[list[End], list[End]]:
        """Return what goes in, and what comes out."""


def of_lines(lines: Mapping[str, str], data: bytes, weights: bytes = b"") -> Exported:
    """Make an export of the texts that its metadata hold.

    Raises:
        BundleError: A text is missing, damaged, or of a newer version; or the file is not ours.
    """
    if CARD_KEY not in lines:
        raise BundleError(
            "there is no card in it: classes, bands and thresholds are not known. Only files that "
            "`whatwhere export` made are read."
        )
    if lines.get(FORMAT_KEY) != str(FORMAT):
        raise BundleError(
            f"the file has format {lines.get(FORMAT_KEY)!r}, this version reads {FORMAT}. Take the "
            "version of whatwhere that wrote it."
        )
    try:
        if max(map(len, lines.values())) > _MOST_CARD_CHARACTERS:
            raise ValueError("more than 16 MB are not read")
        about, card = json.loads(lines[EXPORT_KEY]), json.loads(lines[CARD_KEY])
        exported = Exported(
            card=Card.from_json(card),
            data=data,
            weights=weights,
            source=lines[SOURCE_KEY],
            tile=int(about["tile"]),
            memory_mb=int(about["memory_mb"]),
            difference=float(about["largest_difference"]),
            engines={str(name): float(off) for name, off in about.get("engines", {}).items()},
        )
    except _UNREADABLE as error:
        raise BundleError(f"what is said in the file cannot be read: {error}.") from error
    if not 0 <= exported.tile <= _MOST_TILE or not 0 <= exported.memory_mb <= 2**30:
        raise BundleError("the file names a tile or a memory out of its range.")
    return exported


def of_one_tile(geometry: Geometry, tile: int) -> Geometry:
    """Return the geometry of a net that takes one size alone: without a border.

    Where a tile has no room for what the net sees, tiles are blended.
    """
    margin = geometry.margin
    if margin is not None:
        margin = max(margin, geometry.border)
        if tile < 2 * -(-margin // geometry.stride) * geometry.stride + geometry.stride:
            margin = None
    return dataclasses.replace(geometry, margin=margin, border=0, remainder=0)


def library(name: str, extra: str = "onnx") -> Any:
    """Import a library of an extra; raises `UsageError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f'{name} is needed for this: pip install "whatwhere[{extra}]" ({error}).'
        ) from error
