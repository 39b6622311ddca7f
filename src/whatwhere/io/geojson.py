"""GeoJSON that says where its coordinate system is to be fetched from.

The format of 2008 let a file name its coordinate system by an address (`"crs": {"type": "link"}`),
and GDAL goes and asks for it.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whatwhere.io.crs import check_alone
from whatwhere.io.image import fault

_LONGEST = 1 << 16  # of what is said of a coordinate system [bytes]
_STEP = 1 << 24
# The name in any case, with any of its letters as an escape.
_NAME = re.compile(rb"[\"'](?:c|\\u00[46]3)(?:r|\\u00[57]2)(?:s|\\u00[57]3)[\"']", re.IGNORECASE)
_NAME_BYTES = 20
_ADDRESSES = ("link", "url")


def check_system(path: Path, trust: str) -> None:
    """Refuse a file whose coordinate system is to be fetched from an address or another file.

    Args:
        path: The file.
        trust: What to say to those who trust it.

    Raises:
        DataError: It is such a file, or says its system in words that are not JSON.
    """
    with (
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        told = [found for place in _names(data) for found in _words(path, data, place)]
    for name, value in told:
        if name in ("href", "url") or (name == "type" and value.casefold() in _ADDRESSES):
            cause = "it says that its coordinate system is to be fetched from an address."
            raise fault(path, cause, f"Take out its member crs. {trust}")
    check_alone(path, *(value for _, value in told))


def _names(data: mmap.mmap) -> Iterator[int]:
    """Yield where each word `crs` ends."""
    for start in range(0, len(data), _STEP):
        piece = data[start : start + _STEP + _NAME_BYTES]
        if b"crs" in piece.lower() or b"\\u00" in piece:
            yield from (start + m.end() for m in _NAME.finditer(piece) if m.start() < _STEP)


def _words(path: Path, data: mmap.mmap, place: int) -> list[tuple[str, str]]:
    """Return the members and values of what follows a word, where that is a colon and some."""
    text = data[place : place + _LONGEST].decode("utf-8", "replace").lstrip()
    if text[:1] not in (":", "/"):
        return []
    text = text[1:].lstrip()
    if text[:1] not in ("{", "[", '"', "/", "*"):
        return []
    try:
        told, _ = json.JSONDecoder().raw_decode(text)
        return list(_members(told))
    except (ValueError, RecursionError) as error:
        raise fault(
            path, f"its coordinate system is no JSON ({error}).", "Take out its member crs."
        ) from error


def _members(told: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield all members of an object and what is in it."""
    if isinstance(told, dict):
        for key, value in told.items():
            yield from _members(value, key.casefold())
    elif isinstance(told, list):
        for value in told:
            yield from _members(value, name)
    else:
        yield name, str(told)
