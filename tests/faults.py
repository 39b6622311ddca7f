"""Disks that fail: one call of a verb fails once, and what it leaves is looked at."""

from __future__ import annotations

import builtins
import csv
import errno
import io
import json
import os
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from whatwhere import bundle, files
from whatwhere.io.raster import close_handles, open_raster
from whatwhere.io.vector import read_features
from whatwhere.train.state import read_state
from whatwhere.types import Window

KINDS = ("open", "write", "fsync", "replace", "mkdir")
"""Calls that must succeed. Forcing a folder to the disk, `fsync of a folder`, need not."""

CODES = (errno.ENOSPC, errno.EIO)


class Disk:
    """Counts the calls that change what is below a folder, and lets one of them fail.

    Attributes:
        calls: How many of each kind there were.
        hit: What the call was about that failed; empty if none has.
    """

    def __init__(self, root: Path, kind: str = "", number: int = 0, code: int = 0) -> None:
        self.root, self.kind, self.number, self.code = str(root), kind, number, code
        self.calls: Counter[str] = Counter()
        self.hit = ""

    def call(self, kind: str, path: str) -> None:
        """Note a call, or fail in its place."""
        if not path.startswith(self.root):
            return
        self.calls[kind] += 1
        if kind == self.kind and self.calls[kind] == self.number:
            self.hit = path
            raise OSError(self.code, os.strerror(self.code), path)

    @contextmanager
    def spinning(self) -> Iterator[None]:
        """Let it be the only disk."""
        with pytest.MonkeyPatch.context() as patch:
            for place in (builtins, io):
                patch.setattr(place, "open", self._open(io.open))
            for name in ("replace", "mkdir"):
                patch.setattr(os, name, self._named(name, getattr(os, name)))
            patch.setattr(os, "fsync", self._fsync(os.fsync))
            yield

    def _open(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            if not set(mode) & set("wxa+") or not isinstance(file, str | os.PathLike):
                return plain(file, mode, *args, **named)
            path = os.path.abspath(file)
            if not set(mode) & {"+"}:
                self.call("open", path)
            stream = plain(file, mode, *args, **named)
            write = stream.write

            def count(data: Any) -> Any:
                try:
                    self.call("write", path)
                except OSError:
                    write(data[: len(data) // 2])
                    raise
                return write(data)

            stream.write = count
            return stream

        return call

    def _named(self, kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **named: Any) -> Any:
            if kind != "mkdir" or not os.path.exists(path):
                self.call(kind, os.path.abspath(path))
            return plain(path, *args, **named)

        return call

    def _fsync(self, plain: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.call("fsync of a folder" if os.path.isdir(path) else "fsync", path)
            plain(descriptor)

        return call


def points(calls: Counter[str], most: int) -> list[tuple[str, int, int]]:
    """Choose so many calls, of every kind, evenly: the kind, its number, and how it fails."""
    kinds = [kind for kind in (*KINDS, "fsync of a folder") if calls[kind]]
    share = dict.fromkeys(kinds, 0)
    while sum(share.values()) < min(most, sum(calls[kind] for kind in kinds)):
        for kind in sorted(kinds, key=lambda one: share[one]):
            if share[kind] < calls[kind]:
                share[kind] += 1
                break
    chosen = []
    for place, kind in enumerate(kinds):
        numbers = [1 + i * calls[kind] // share[kind] for i in range(share[kind])]
        if share[kind] > 1:
            numbers[-1] = calls[kind]
        chosen += [(kind, number, CODES[(i + place) % 2]) for i, number in enumerate(numbers)]
    return chosen


def left_over(root: Path) -> list[str]:
    """Temporary files and locks."""
    return [
        str(path)
        for path in root.rglob("*")
        if path.name.startswith(files.TEMPORARY) or path.name == files.LOCK
    ]


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def lost(old: Mapping[str, bytes], there: Mapping[str, bytes]) -> set[str]:
    """Files that are gone, though what they belong to is still the old one."""
    return {
        name
        for name in set(old) - set(there)
        if "/weights-" not in name  # of an old bundle
        and not (name.endswith(".tif.aux.xml") and there.get(name[:-8]) != old.get(name[:-8]))
    }


def read_whole(path: Path) -> None:
    """Read a file by what reads it; raises where it is not whole."""
    ending = path.suffix.lower()
    if path.name == bundle.CARD:
        bundle.load(path.parent)
    elif path.parent.name == "checkpoints":
        read_state(path)
    elif ending in (".json", ".emd"):
        json.loads(path.read_text(encoding="utf-8"))
    elif ending == ".toml":
        tomllib.loads(path.read_text(encoding="utf-8"))
    elif ending == ".csv":
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and [*csv.reader(text.splitlines())]
    elif ending == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    elif ending in (".png", ".jpg"):
        with Image.open(path) as picture:
            picture.load()
    elif ending == ".tif":
        raster = open_raster(path)
        raster.read(Window(0, 0, *raster.size))
        close_handles()
    elif ending in (".gpkg", ".geojson"):
        read_features(path, empty=True)
    elif ending in (".dlpk", ".zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    else:
        assert path.stat().st_size
