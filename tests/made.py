"""Made-up data sets for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from whatwhere.data.salt import make_section


def write_pair(
    folder: Path, name: str, image: NDArray[np.generic], mask: NDArray[np.generic]
) -> None:
    """Write an image and a mask as PNG."""
    for place, pixels in (("images", image), ("masks", mask)):
        path = folder / place / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def salt_folder(
    folder: Path, count: int = 20, size: tuple[int, int] = (48, 48), seed: int = 5
) -> Path:
    """Write seismic sections with 0/255 masks."""
    for index in range(count):
        section = make_section(seed, index, size)
        write_pair(folder, f"s{index:02d}", section.image, section.mask.astype(np.uint8) * 255)
    return folder


def blocks_folder(
    folder: Path, sizes: Sequence[tuple[int, int]], n_classes: int = 3, seed: int = 3
) -> Path:
    """Write pictures of which each class has a brightness of its own, in blocks of 8 px."""
    rng = np.random.default_rng(seed)
    for index, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, n_classes, (-(-height // 8), -(-width // 8)))
        mask = np.kron(coarse, np.ones((8, 8), dtype=np.int64))[:height, :width]
        noise = rng.normal(0, 8, mask.shape)
        image = np.clip(40 + 170 * mask / (n_classes - 1) + noise, 0, 255).astype(np.uint8)
        write_pair(folder, f"b{index:02d}", image, mask.astype(np.uint8))
    return folder


def labels_folder(folder: Path, count: int = 10, size: int = 32, seed: int = 4) -> Path:
    """Write a multi-label set: `bright` and `left` overlap."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 2, (size // 8, size // 8))
        bright = np.kron(coarse, np.ones((8, 8), dtype=np.int64)).astype(bool)
        left = np.zeros((size, size), dtype=bool)
        left[:, : size // 2] = True
        image = (60 + 120 * bright + 40 * left + rng.normal(0, 5, (size, size))).astype(np.uint8)
        for name, plane in (("bright", bright), ("left", left)):
            path = folder / "masks" / name / f"m{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane.astype(np.uint8) * 255).save(path)
        path = folder / "images" / f"m{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, to see whether anything has changed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
