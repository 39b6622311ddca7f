"""Pairs of noise, and the chips that are cut from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from whatwhere.data.loader import Chips, Reader
from whatwhere.data.sources import Pair
from whatwhere.types import Bands, Classes, ClassInfo, Normalization

CLASSES = Classes(
    (
        ClassInfo("background", 0, (0, 0, 0), "background", (0,)),
        ClassInfo("salt", 1, (9, 9, 9), "class", (1, 255)),
    ),
    "binary",
    (7,),
)
READER = Reader(Bands(("grey",)), CLASSES, Normalization((100.0,), (50.0,)))
Sizes = dict[str, tuple[int, int]]


def save(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def made(root: Path, *sizes: tuple[int, int]) -> tuple[list[Pair], Sizes]:
    """Pairs whose mask is a threshold of the image."""
    rng, pairs = np.random.default_rng(1), []
    for i, size in enumerate(sizes):
        image = rng.integers(1, 256, size, dtype=np.uint8)
        mask = (image > 128).astype(np.uint8) * 255
        paths = save(root / f"images/{i}.png", image), save(root / f"masks/{i}.png", mask)
        pairs.append(Pair(str(i), paths[0], (paths[1],), None))
    return pairs, {str(i): size for i, size in enumerate(sizes)}


def cut(root: Path, *sizes: tuple[int, int], **options: Any) -> Chips:
    settings: dict[str, Any] = {"shape": (8, 8), "seed": 5, "training": True, **options}
    return Chips(*made(root, *sizes), settings.pop("reader", READER), **settings)


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("image", "labels", "valid"))
