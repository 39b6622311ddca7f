"""The one writer: every file this package makes is written here.

A file appears under its name whole or not at all: the bytes go to a temporary file in the same
folder, are forced to the disk, and take the name in one step. What was there before stays there,
whole, until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whatwhere.errors import OutputError

TEMPORARY = ".whatwhere-"
"""Temporary files start with this and have `.tmp` in their names."""


@contextlib.contextmanager
def _told(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot {action}: {reason}. Nothing that was there before has been changed."
        ) from error


def make_folder(path: Path) -> Path:
    """Make a folder and its parents; raises `OutputError` where that cannot be done."""
    with _told(path, "make this folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file in one step, making its folder where needed.

    Raises:
        OutputError: The disk is full, the place is read-only, the name is a folder's.
    """
    make_folder(path.parent)
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with _told(path, "write this file"):
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let a library write a file, which takes its name when the block ends well.

    What was there before stays whole until then; after an error nothing is left.

    Yields:
        A path in the same folder, with the same ending, at which there is no file yet.

    Raises:
        OutputError: The disk is full, the place is read-only, the name is a folder's.
    """
    make_folder(path.parent)
    name = f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}"
    temporary = path.parent / name
    with _told(path, "write this file"):
        try:
            yield temporary
            with open(temporary, "r+b") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            for left in path.parent.glob(f"{name}*"):  # a database's journal too
                left.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text in one step; raises `OutputError`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> Path:
    """Write JSON in one step; NaN and infinity are refused, since JSON has no word for them."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def remove(path: Path) -> None:
    """Remove a file if it is there; raises `OutputError`."""
    with _told(path, "remove this file"):
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and try it with a small file, before hours of work; raises `OutputError`."""
    make_folder(folder)
    probe = folder / f"{TEMPORARY}{secrets.token_hex(4)}.tmp"
    write_bytes(probe, b"whatwhere")
    remove(probe)


def _sync_folder(folder: Path) -> None:
    """Force the folder's entry to the disk where the system can (Windows and some shares cannot).

    The file has its name already: a folder that cannot be forced is no failure to write it.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
