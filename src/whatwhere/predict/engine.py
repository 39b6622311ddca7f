"""From the pixels of a file to probabilities of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import bundle
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, DataError, NumericsError, ShapeError, UsageError
from whatwhere.io.image import read_image, resize_image
from whatwhere.predict.backends import BF16, COMPILED, Backend, open_backend
from whatwhere.predict.choice import (
    AUTO,
    EXPORTS,
    Choice,
    check_backend,
    open_exported,
    open_graph,
    open_rivals,
)
from whatwhere.predict.decide import decide
from whatwhere.predict.graphs import BACKENDS
from whatwhere.symmetries import FREE, Symmetry, symmetries_of, turn, turn_back
from whatwhere.talk import Talk
from whatwhere.tiling import BLIND_MARGIN, frames, mirror, tiles
from whatwhere.types import Geometry, Image, Labels, Valid

CORE = 1024
"""The longest side of what the net sees at once [px], where it does not see far."""


class Predictor:
    """A trained net, ready for images of any size."""

    def __init__(
        self,
        card: Card,
        backend: Backend,
        tile: int = 0,
        digest: str = "",
        choice: Choice | None = None,
        *,
        tta: bool = False,
    ) -> None:
        """Join a card and an engine.

        Args:
            card: The bundle's.
            backend: Runs the bundle's net.
            tile: The longest side of what the net sees at once [px]; longer images are cut so that
                no seam shows. 0 takes 1,024 px, or what a net that sees far needs.
            digest: The bundle's.
            choice: Engines of which one takes the place of `backend` when the size of what the net
                will see is known; None where there is no choice.
            tta: Look at each image in all symmetries that the net saw in training, and take the
                mean.
        """
        self.card, self.backend, self.tile, self.digest = card, backend, tile, digest
        self.choice, self.tta = choice, tta
        self.approximate = False  # whether an image was cut for a net that looks at whole tiles

    @classmethod
    def open(cls, path: str | Path, device: str = "auto", tile: int = 0) -> Predictor:
        """Load a run.

        Raises:
            BundleError: It is missing or damaged.
            UsageError: There is no such device.
        """
        return load(path, device=device, tile=tile)

    @property
    def net(self) -> Any:
        """The torch module, in evaluation mode; None with an engine that has none."""
        return getattr(self.backend, "net", None)

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of the engines that it may be run by; one, unless there is a choice left."""
        return (self.backend.engine,) if self.choice is None else (*self.choice.backends,)

    def quickest(self, height: int, width: int) -> str:
        """Return the name of the quickest engine for images of this size; of one, its name."""
        if self.choice is None:
            return self.backend.engine
        most = self.tile or usual_tile(self.card.geometry)
        return self.choice.quickest(min(height, most), min(width, most))

    def settle(self, height: int, width: int) -> None:
        """Take the quickest engine for images of this size, where there is a choice."""
        if self.choice is not None:
            self.take(self.quickest(*(self.card.resize or (height, width))))

    def take(self, engine: str) -> None:
        """Take an engine of those that there are.

        Raises:
            UsageError: It is not among them.
        """
        if engine not in self.engines:
            raise UsageError(
                f"the work was begun with {engine}, and there is only {', '.join(self.engines)} "
                "here. Install it, or begin anew."
            )
        if self.choice is not None:
            self.backend, self.choice = self.choice.backends[engine], None

    def probabilities(self, pixels: NDArray[Any], valid: Valid | None = None) -> Image:
        """Return the probabilities of an image, at its own size.

        Args:
            pixels: `(C, H, W)` as stored in the file, any H and W from 1.
            valid: `(H, W)`: False where the image has no data; None where it has everywhere.

        Returns:
            `(K, H, W)` float32 in [0, 1]: one for each label of a binary or multi-label net, one
            for each class of a softmax.

        Raises:
            ShapeError: The image does not have the bands the net was trained on.
        """
        bands = self.card.bands.select(pixels, valid)
        self.settle(*bands.shape[-2:])
        looks = looks_of([self.card]) if self.tta else FREE[:1]
        if len(looks) == 1:
            return self._seen(bands, valid, looks[0])
        mean = np.zeros((), dtype=np.float32)
        for look in looks:
            mean = mean + self._seen(bands, valid, look) / np.float32(len(looks))
        return mean

    def _seen(self, bands: NDArray[Any], valid: Valid | None, look: Symmetry) -> Image:
        """Return the probabilities of an image that is shown in a symmetry, turned back."""
        there = None if valid is None else turn(valid, look)
        image = self.prepare(np.ascontiguousarray(turn(bands, look)), there)
        height, width = image.shape[1:]
        if self.card.resize:
            image = resize_image(image, *self.card.resize)
        result = self._tiled(image)
        if self.card.resize:
            result = np.clip(resize_image(result, height, width), 0, 1)
        return turn_back(result, look)

    def prepare(self, bands: NDArray[Any], valid: Valid | None = None) -> Image:
        """Return what the engine is given for an image.

        Args:
            bands: `(C, H, W)` as stored in files: those that the net sees.
            valid: `(H, W)`: where they have data; elsewhere the mean stands for them.

        Returns:
            `(C, H, W)` float32, normalised; or as it is, for an engine that normalises by itself.

        Raises:
            ShapeError: There are more or fewer bands.
        """
        normalization = self.card.normalization
        empty = ~valid if valid is not None and not valid.all() else None
        if not self.backend.normalizes:
            image = normalization.apply(bands)
            if empty is not None:
                image[:, empty] = 0
            return image
        normalization.check(bands)
        with np.errstate(over="ignore"):  # pixels without data may hold anything
            image = bands.astype(np.float32)
        if empty is not None:
            for band, mean in zip(image, normalization.mean, strict=True):
                band[empty] = mean
        return image

    def predict(self, pixels: NDArray[Any], valid: Valid | None = None) -> Labels:
        """Return class indexes `(H, W)`, or zeros and ones `(K, H, W)` for a multi-label net."""
        return decide(self.probabilities(pixels, valid), self.card.classes, self.card.thresholds)

    def read(self, path: Path, *, trust: bool = False) -> tuple[Image, Valid]:
        """Read an image file and return its probabilities and valid pixels.

        Args:
            path: The file.
            trust: Read an MRF too, which is made of other files.

        Raises:
            DataError: The file cannot be read, or has other bands; the message names it.
        """
        pixels, valid = read_image(path, trust=trust)
        try:
            return self.probabilities(pixels, valid), valid
        except ShapeError as error:
            raise DataError(
                f"{path}: {error} Convert it, or train with --bands grey or --bands rgb."
            ) from error
        except NumericsError as error:
            raise NumericsError(f"{path}: {error}") from error

    def _tiled(self, image: Image) -> Image:
        _, height, width = image.shape
        shape = self.card.geometry
        tile = self.tile or usual_tile(shape)
        if shape.border:
            return self._framed(image, tile)
        if max(height, width) <= tile:
            whole: Image = self.backend.run(image[None])[0]
            return whole
        margin = shape.margin
        if margin is None:
            self.approximate, margin = True, min(BLIND_MARGIN, tile // 4)
        result: Image | None = None
        for one in tiles(height, width, tile, shape.stride, margin):
            rows, columns = one.window.slices
            part = self.backend.run(np.ascontiguousarray(image[None, :, rows, columns]))[0]
            if result is None:
                result = np.empty((len(part), height, width), dtype=part.dtype)
            result[(slice(None), *one.core.slices)] = part[(slice(None), *one.inner.slices)]
        return _require(result, height, width)

    def _framed(self, image: Image, tile: int) -> Image:
        """The overlap-tile strategy: mirrored borders around the image, and windows that overlap.

        Source: Ronneberger, Fischer and Brox, "U-Net", 2015, figure 2.
        """
        _, height, width = image.shape
        shape, border = self.card.geometry, self.card.geometry.border
        size = (shape.window(height), shape.window(width))
        extended = mirror(image, size, (border, border))
        result: Image | None = None
        for row, rows, kept_rows in frames(height, tile, shape):
            for column, columns, kept_columns in frames(width, tile, shape):
                window = extended[None, :, row : row + rows, column : column + columns]
                part = self.backend.run(np.ascontiguousarray(window))[0]
                if result is None:
                    result = np.empty((len(part), height, width), dtype=part.dtype)
                core = (slice(row, row + kept_rows), slice(column, column + kept_columns))
                result[(slice(None), *core)] = part[:, :kept_rows, :kept_columns]
        return _require(result, height, width)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    tile: int = 0,
    backend: str = "",
    encoder: Any = None,
    tta: bool = False,
    talk: Talk | None = None,
) -> Predictor:
    """Load a trained net: a run folder, its bundle, or the bundle's card; or an export of it.

    Nothing is fetched and no code of the file is run.

    Args:
        path: What `whatwhere train` made, or `whatwhere export` (`.onnx`, `.xml`), for which
            PyTorch is not loaded.
        device: `auto`, `cpu`, `cuda` or `mps`; all engines but PyTorch run on the processor.
        tile: The longest side of what the net sees at once [px]; 0 takes what fits the net.
        backend: The engine: `torch`, `onnx`, `openvino`, or `auto` for the quickest one here, which
            is measured with the first image; `torch-bf16` for convolutions in bfloat16, of which
            two decimals are left, and `torch-compiled`, which takes a minute to begin. Empty for
            `torch`, and for that of an export.
        encoder: The module that gives the feature maps, if the net was trained on one of your own.
        tta: Look at each image in all symmetries that the net saw in training, and take the mean:
            left-right flips, or all eight of the square for images seen from above.
        talk: Where it is said that a graph is made for another engine, and which one was taken.

    Returns:
        A predictor: `predict(pixels)`, `probabilities(pixels)`, `net` (the torch module; None with
        another engine), `card`.

    Raises:
        BundleError: It is missing, damaged, of a newer version, or answers otherwise than it did.
        UsageError: There is no such device or engine, or the net cannot be run by it.
    """
    path, talk = Path(path), talk or Talk()
    check_backend(backend)
    if path.suffix.lower() in EXPORTS:
        return _exported(path, device, tile, backend, encoder, tta)
    if path.suffix.lower() == ".pt2":
        raise BundleError(
            f"{path}: this is for PyTorch alone (torch.export.load). Give the run, or export it as "
            ".onnx."
        )
    found, folder = bundle.load(path), bundle.bundle_folder(path)
    try:
        if backend in BACKENDS:
            graph = open_graph(found, folder, backend, device, encoder, talk)
            return Predictor(found.card, graph, tile, found.digest, tta=tta)
        usual = open_backend(found, device, encoder)
        if backend in (BF16, COMPILED):
            usual.become(backend, found.card)
        choice = None
        if backend == AUTO:
            choice = open_rivals(found, folder, usual, encoder, talk)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    return Predictor(found.card, usual, tile, found.digest, choice, tta=tta)


def _exported(
    path: Path, device: str, tile: int, backend: str, encoder: Any, tta: bool
) -> Predictor:
    if encoder is not None:
        raise UsageError(f"{path}: the whole net is in this file, and takes no encoder=.")
    opened = open_exported(path, device, backend)
    found = opened.exported
    if found.tile and tile not in (0, found.tile):
        raise UsageError(
            f"--tile {tile}: {path} was exported for tiles of {found.tile} px. Export it without "
            "--tile for any."
        )
    return Predictor(found.usable, opened, found.tile or tile, found.digest, tta=tta)


def looks_of(cards: Sequence[Card]) -> tuple[Symmetry, ...]:
    """Return the symmetries that all nets saw in training; chips with two sides keep them apart."""
    free = all(card.orientation == "free" for card in cards)
    sides = ({*(card.chip_size or ())} for card in cards)
    return symmetries_of("free" if free else "upright", square=all(len(one) < 2 for one in sides))


def usual_tile(geometry: Geometry) -> int:
    """Return the side of tiles when none is asked for [px]: room for a core of at least 1,024."""
    if geometry.border:
        return geometry.largest(CORE)
    margin = BLIND_MARGIN if geometry.margin is None else geometry.margin
    halo = -(-margin // geometry.stride) * geometry.stride
    return 2 * halo + CORE if 2 * halo + geometry.stride > CORE // 2 else CORE


def _require(result: Image | None, height: int, width: int) -> Image:
    if result is None:
        raise ShapeError(f"an image of {height}×{width} px has nothing to predict.")
    return result
