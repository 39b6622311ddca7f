"""Files of Erdas Imagine (HFA): a tree of named entries, and pixels that may lie elsewhere.

Source: the public description of the format (Erdas, 1999), as GDAL reads it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_ELSEWHERE = "externalrasterdms"
"""The entry below a band whose pixels another file holds (`.ige`)."""

_ENTRY = struct.Struct("<6I64s")
_MOST_ENTRIES = 100_000


def keeps_elsewhere(path: Path) -> bool:
    """Whether a file names another one that its pixels are in.

    A tree that cannot be followed holds no such name: GDAL does not follow it either.
    """
    with open(path, "rb") as stream:
        return any(name == _ELSEWHERE for name in _names(stream))


def _names(stream: BinaryIO) -> set[str]:
    """The names of all entries, in small letters, as GDAL compares them."""
    found: set[str] = set()
    try:
        (head,) = struct.unpack("<I", _at(stream, 16, 4))
        _, _, root = struct.unpack("<3I", _at(stream, head, 12))
        waiting, seen = [root], {0}
        while waiting and len(seen) < _MOST_ENTRIES:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            data = _at(stream, place, _ENTRY.size)
            if len(data) < _ENTRY.size:
                continue
            following, _, _, child, _, _, name = _ENTRY.unpack(data)
            found.add(name.split(b"\0")[0].decode("latin-1").lower())
            waiting += [following, child]
    except struct.error:
        return found
    return found


def _at(stream: BinaryIO, place: int, size: int) -> bytes:
    stream.seek(place)
    return stream.read(size)
