"""Image files that no library writes: by the book, byte by byte."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1))  # first row and column, steps  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: NDArray[Any],
    extra: bytes = b"",
    *,
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG (W3C).

    Args:
        samples: `(H, W)` or `(H, W, C)`, uint8 or uint16.
        extra: Chunks before the pixels.
        interlaced: In seven passes (Adam7).
        size: (height, width) that its head claims [px].
    """
    height, width = size or samples.shape[:2]
    depth = 8 * samples.dtype.itemsize
    color = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    passes = [samples[r::down, c::across] for r, c, down, across in _ADAM7]
    lines = b"".join(map(rows, passes)) if interlaced else rows(samples)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(lines)),
         chunk(b"IEND", b"")]
    )  # fmt: skip


def rows(samples: NDArray[Any]) -> bytes:
    """The lines of a PNG, none of them filtered."""
    if not samples.size:
        return b""
    lines = samples.astype(samples.dtype.newbyteorder(">")).reshape(len(samples), -1)
    return b"".join(b"\0" + line.tobytes() for line in lines)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes that nothing makes smaller."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
