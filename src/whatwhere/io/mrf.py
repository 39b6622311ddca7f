"""Images in Esri's Meta Raster Format: a text that names the files with the pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.io.image import check_size, fault
from whatwhere.io.raster import open_raster
from whatwhere.types import Window

BESIDE = (".idx", ".ppg", ".pjg", ".pjp", ".ptf", ".pzp", ".lrc", ".til", ".pq3")
"""Endings of the files that may hold its pixels."""

TRUST = "If you know what it opens, say --trust (in Python trust=True)."


def read_mrf(path: Path, trust: bool) -> tuple[NDArray[Any], str]:
    """Read all bands as they are stored, whatever the file says that stands for "no data".

    Args:
        path: The file; it may name any other one, and any place on a network.
        trust: Whether the user trusts it.

    Returns:
        `(H, W, samples)`, and a letter for each sample: `A` for alpha, which is the last, `?` else.

    Raises:
        DataError: It is not trusted or damaged, or the files it names are missing.
    """
    if not trust:
        raise fault(path, "this is an MRF, which is made of other files.", TRUST)
    raster = open_raster(path, trust=True)
    raster = dataclasses.replace(raster, nodata=(None,) * len(raster.nodata))
    alpha = () if raster.alpha is None else (raster.alpha,)
    numbers = (*raster.numbers, *alpha)
    check_size(path, *raster.size, len(numbers), np.dtype(raster.dtype).itemsize)
    pixels, _ = raster.read(Window(0, 0, *raster.size), numbers)
    return np.moveaxis(pixels, 0, -1), "?" * len(raster.numbers) + "A" * len(alpha)
