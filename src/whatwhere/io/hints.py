"""What a raster does not say of itself, and a look at a little of it shows."""

from __future__ import annotations

import numpy as np

from whatwhere.errors import Problem
from whatwhere.io.raster import Raster
from whatwhere.types import Window

_PLACES, _SIDE = 8, 64
_MUCH = 0.01


def undeclared_nodata(raster: Raster) -> Problem | None:
    """Warn where much of a raster is exactly black or white, and nothing stands for "no data".

    64 windows of 64 px, spread evenly, are looked at.
    """
    declared = raster.alpha is not None or any(mark is not None for mark in raster.nodata)
    if declared or raster.dtype not in ("uint8", "uint16"):
        return None
    height, width = raster.size
    ends = {0: 0, int(np.iinfo(raster.dtype).max): 0}
    total = 0
    for row in np.linspace(0, max(height - _SIDE, 0), _PLACES).astype(int):
        for column in np.linspace(0, max(width - _SIDE, 0), _PLACES).astype(int):
            window = Window(int(row), int(column), min(_SIDE, height), min(_SIDE, width))
            pixels, valid = raster.read(window)
            total += int(valid.sum())
            for value in ends:
                ends[value] += int(((pixels == value).all(axis=0) & valid).sum())
    value, count = max(ends.items(), key=lambda item: item[1])
    if not total or count < _MUCH * total:
        return None
    cause = f"about {count / total:.0%} of it is {value} in all bands, and counts as data."
    remedy = f"If nothing is there, say --nodata {value}."
    return Problem("warning", str(raster.path), cause, remedy)
