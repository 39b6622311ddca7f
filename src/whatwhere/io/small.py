"""Small GeoTIFFs, made in memory: a few bands that lie somewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from whatwhere.grid import Grid
from whatwhere.io.raster import unplaced
from whatwhere.types import Valid

_COLORS = ("red", "green", "blue")


def encode_geotiff(
    pixels: NDArray[Any],
    grid: Grid,
    names: Sequence[str],
    *,
    nodata: float | None = None,
    valid: Valid | None = None,
) -> bytes:
    """Return a GeoTIFF file.

    Args:
        pixels: `(C, H, W)` of any number type that rasters have.
        grid: Where they lie.
        names: Of the bands.
        nodata: What the file says that stands for "no data", where its number type has it.
        valid: `(H, W)` where there is data, to be kept in the file: elsewhere floats are NaN, and
            integers get a band of alpha. None keeps nothing.
    """
    kind, count = pixels.dtype, len(pixels)
    if valid is not None and kind.kind == "f":
        pixels, nodata = np.where(valid, pixels, kind.type(np.nan)), math.nan
    alpha = None
    if valid is not None and kind.kind != "f":
        alpha = np.where(valid, np.iinfo(kind).max, 0).astype(kind)
    colored = kind.itemsize <= 2 and [name.casefold() for name in names[:3]] == [*_COLORS]
    placed = {"crs": grid.crs or None, "transform": grid.transform} if grid.is_placed else {}
    with rasterio.Env(), unplaced(), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=count + (alpha is not None),
            dtype=kind.name,
            nodata=nodata if _has(kind, nodata) else None,
            compress="deflate",
            predictor=1 if kind.kind == "f" else 2,
            photometric="rgb" if colored else "minisblack",
            alpha="no",  # else the fourth of four bytes would be taken for it
            blockysize=grid.height,
            **placed,
        ) as file:
            if alpha is not None:
                file.colorinterp = [*file.colorinterp[:-1], ColorInterp.alpha]
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
            file.write(pixels, list(range(1, count + 1)))
            if alpha is not None:
                file.write(alpha, count + 1)
        return bytes(memory.read())


def _has(kind: np.dtype[Any], number: float | None) -> bool:
    """Whether a number type has a number."""
    if number is None or kind.kind == "f":
        return number is not None
    limits = np.iinfo(kind)
    return float(number).is_integer() and limits.min <= number <= limits.max
