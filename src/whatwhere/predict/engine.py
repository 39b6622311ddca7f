"""From the pixels of a file to probabilities of the same size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.bundle import Card, load
from whatwhere.errors import DataError, NumericsError, ShapeError
from whatwhere.io.image import read_image, resize_image
from whatwhere.predict.backends import Backend, open_backend
from whatwhere.predict.decide import decide
from whatwhere.tiling import tiles
from whatwhere.types import Image, Labels, Valid

TILE = 1024
"""The longest side of what the net sees at once [px]."""


class Predictor:
    """A trained net, ready for images of any size."""

    def __init__(self, card: Card, backend: Backend, tile: int = TILE) -> None:
        """Join a card and an engine.

        Args:
            card: The bundle's.
            backend: Runs the bundle's net.
            tile: The longest side of what the net sees at once [px]; longer images are cut so that
                no seam shows.
        """
        self.card, self.backend, self.tile = card, backend, tile

    @classmethod
    def open(cls, path: str | Path, device: str = "auto", tile: int = TILE) -> Predictor:
        """Load a run.

        Raises:
            BundleError: It is missing or damaged.
            UsageError: There is no such device.
        """
        bundle = load(Path(path))
        return cls(bundle.card, open_backend(bundle, device), tile)

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
        image = self.card.normalization.apply(self.card.bands.select(pixels, valid))
        if valid is not None:
            image[:, ~valid] = 0
        height, width = image.shape[1:]
        if self.card.resize:
            image = resize_image(image, *self.card.resize)
        result = self._tiled(image)
        if self.card.resize:
            result = np.clip(resize_image(result, height, width), 0, 1)
        return result

    def predict(self, pixels: NDArray[Any], valid: Valid | None = None) -> Labels:
        """Return class indexes `(H, W)`, or zeros and ones `(K, H, W)` for a multi-label net."""
        return decide(self.probabilities(pixels, valid), self.card.classes, self.card.thresholds)

    def read(self, path: Path) -> tuple[Image, Valid]:
        """Read an image file and return its probabilities and valid pixels.

        Raises:
            DataError: The file cannot be read, or has other bands; the message names it.
        """
        pixels, valid = read_image(path)
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
        if max(height, width) <= self.tile:
            whole: Image = self.backend.run(image[None])[0]
            return whole
        result: Image | None = None
        for tile in tiles(height, width, self.tile, self.card.stride, self.card.margin):
            rows, columns = tile.window.slices
            part = self.backend.run(np.ascontiguousarray(image[None, :, rows, columns]))[0]
            if result is None:
                result = np.empty((len(part), height, width), dtype=np.float32)
            result[(slice(None), *tile.core.slices)] = part[(slice(None), *tile.inner.slices)]
        if result is None:
            raise ShapeError(f"an image of {height}×{width} px has nothing to predict.")
        return result
