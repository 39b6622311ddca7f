"""How much a seam shows, for nets that look at whole tiles and are therefore blended."""

from __future__ import annotations

import numpy as np

from whatwhere.io.raster import Raster
from whatwhere.io.scaled import Scaled
from whatwhere.predict.blocks import Segmenter
from whatwhere.predict.engine import Predictor, usual_tile
from whatwhere.symmetries import FREE
from whatwhere.tiling import make_lattice
from whatwhere.types import Window

MOST = 2048
"""The longest side of what is looked at in one piece [px]."""


def seam_error(
    predictor: Predictor,
    source: Raster | Scaled,
    numbers: tuple[int, ...],
    middle: tuple[int, int],
    tile: int = 0,
) -> float | None:
    """Return the largest difference of a probability between tiles and the whole.

    A window of the scene of at most 2,048 px squared is segmented in one piece and by tiles. Its
    edges, where the one sees other surroundings than the other, are left out.

    Args:
        predictor: The net.
        source: A scene, at the pixel size that the net was trained on.
        numbers: The positions of its bands.
        middle: (row, column) about which the window lies [px].
        tile: The side of tiles [px]; 0 takes the usual one.

    Returns:
        In [0, 1]; None where halos are discarded, so that there is no seam, or where the scene is
        no larger than a tile.
    """
    geometry = predictor.card.geometry
    lattice = make_lattice(geometry, tile or usual_tile(geometry))
    height, width = (min(MOST, side) for side in source.size)
    if not lattice.blend or max(height, width) <= lattice.core:
        return None
    row, column = (
        min(max(at - side // 2, 0), whole - side) // geometry.stride * geometry.stride
        for at, side, whole in zip(middle, (height, width), source.size, strict=True)
    )
    segmenter = Segmenter([predictor], lattice, FREE[:1], 1, numbers)
    tiled = segmenter.answer(segmenter.read(source, Window(row, column, height, width)))
    halo = lattice.halo
    rows, columns = (
        -(-side // geometry.stride) * geometry.stride + 2 * halo for side in (height, width)
    )
    pixels, there = source.read_around(Window(row - halo, column - halo, rows, columns), numbers)
    image = predictor.prepare(pixels, there)
    whole = predictor.backend.run(image[None])[0]
    apart = np.abs(tiled.probabilities - whole[:, halo : halo + height, halo : halo + width])
    edge = min(halo, height // 4, width // 4)
    inner = (slice(edge, height - edge), slice(edge, width - edge))
    return float(apart.max(axis=0)[inner][tiled.valid[inner]].max(initial=0))
