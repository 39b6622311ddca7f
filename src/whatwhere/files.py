"""The one writer: every file this package makes is written here.

A file appears under its name whole or not at all: the bytes go to a temporary file in the same
folder, are forced to the disk, and take the name in one step. What was there before stays there,
whole, until then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whatwhere.errors import BusyError, OutputError, WhatwhereError

TEMPORARY = ".whatwhere-"
"""Temporary files start with this and have `.tmp` in their names."""

LOCK = ".lock"
"""The file that says who is at work in a folder."""

_RASTERS, _MADE_OF_IT = (".tif", ".tiff"), (".ovr", ".msk", ".aux.xml")
_PATIENCE_S = 5.0  # for another process between two system calls


@contextlib.contextmanager
def told(path: Path, action: str) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into one sentence."""
    try:
        yield
    except (OutputError, BusyError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot {action}: {reason}. Nothing that was there before has been changed."
        ) from error


def make_folder(path: Path) -> Path:
    """Make a folder and its parents; raises `OutputError` where that cannot be done."""
    with told(path, "make this folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file in one step, making its folder where needed.

    Raises:
        OutputError: The disk is full, the place is read-only, the name is a folder's.
    """
    with _written_beside(path, data) as temporary, _forgetting(path):
        os.replace(temporary, path)
    return path


def write_together(data: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before the first one takes its name.

    Args:
        data: What each file is to hold; they take their names in this order.

    Raises:
        OutputError: As `write_bytes`; before a name is taken, nothing has been changed.
    """
    with contextlib.ExitStack() as stack:
        written = {path: stack.enter_context(_written_beside(path, data[path])) for path in data}
        for path in data:
            with told(path, "write this file"):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for path, temporary in written.items():
            with told(path, "write this file"):
                os.replace(temporary, path)


def create_bytes(path: Path, data: bytes) -> bool:
    """Write a file in one step unless it is there; of several that try at once, one does.

    Returns:
        Whether this call wrote it. If not, what is there is whole.

    Raises:
        OutputError: The disk is full, the place is read-only, the name is a folder's.
    """
    with _written_beside(path, data) as temporary:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        except (AttributeError, NotImplementedError, OSError):  # not every disk has links
            return _claim(temporary, path)


def _claim(temporary: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; a file beside it says that somebody does so."""
    claim = path.parent / f"{TEMPORARY}{path.name}.tmp"
    end = time.monotonic() + _PATIENCE_S
    while not path.exists():
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if time.monotonic() > end:
                raise OutputError(
                    f"{path}: cannot write this file: {claim.name} beside it says that another "
                    "process does, which seems to have died. Remove that file."
                ) from None
            time.sleep(0.01)
            continue
        try:
            if not path.exists():
                os.replace(temporary, path)
                return True
        finally:
            claim.unlink(missing_ok=True)
    return False


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a file in the same folder that holds these bytes; it is gone when the block ends."""
    make_folder(path.parent)
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with told(path, "write this file"):
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


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
    with told(path, "write this file"):
        try:
            yield temporary
            with open(temporary, "r+b") as stream:
                os.fsync(stream.fileno())
            with _forgetting(path):
                os.replace(temporary, path)
        finally:
            for left in path.parent.glob(f"{name}*"):  # a database's journal too
                left.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _forgetting(path: Path) -> Iterator[None]:
    """Take away what others made of the old raster: it would be taken for the new one's.

    It comes back if the new one does not take its name, as where a program holds the old one open.
    """
    aside: list[tuple[Path, Path]] = []
    try:
        for ending in _MADE_OF_IT if path.suffix.lower() in _RASTERS else ():
            beside = path.with_name(f"{path.name}{ending}")
            if beside.is_file():
                hidden = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp")
                os.replace(beside, hidden)
                aside.append((hidden, beside))
        yield
    except BaseException:
        for hidden, beside in aside:
            os.replace(hidden, beside)
        raise
    for hidden, _ in aside:
        hidden.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text in one step; raises `OutputError`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> Path:
    """Write JSON in one step; NaN and infinity are refused, since JSON has no word for them."""
    return write_bytes(path, _as_json(value))


def create_json(path: Path, value: Mapping[str, Any] | list[Any]) -> bool:
    """Write JSON unless the file is there, as `create_bytes`."""
    return create_bytes(path, _as_json(value))


def _as_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder while the block runs.

    The system gives the lock back when its holder dies, however that comes.

    Raises:
        BusyError: Somebody else holds it; the message names the process.
        OutputError: The folder cannot be written.
    """
    make_folder(folder)
    path = folder / LOCK
    with told(path, "lock this folder"):
        descriptor = _locked_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows a file that is open stays
            path.unlink()
        os.close(descriptor)


def _locked_file(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 100).decode("ascii", "replace").strip() or "another one"
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            raise BusyError(
                f"{path.parent}: process {holder} is at work in this folder. Wait for it, or take "
                "another folder."
            ) from None
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            try:
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(descriptor)
                raise
            return descriptor
        os.close(descriptor)  # its holder removed it before we had it


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1000, os.SEEK_SET)  # beyond the number, which others read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders that a process left which was killed.

    Only for a folder that is locked: they may be somebody's.
    """
    for place, names, found in os.walk(folder):
        for name in [one for one in names if one.startswith(TEMPORARY)]:
            shutil.rmtree(Path(place, name), ignore_errors=True)
            names.remove(name)
        for name in found:
            if name.startswith(TEMPORARY):
                remove(Path(place, name))


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Let a folder be filled whose files show when the block ends well, all at once.

    Nobody else works in it meanwhile, and what a process left in it that was killed is removed.

    Args:
        folder: Holds nothing yet.

    Yields:
        A folder in it, to be filled.

    Raises:
        BusyError: Somebody else is at work there.
        OutputError: It cannot be written; nothing is left in it.
    """
    with locked(folder):
        sweep(folder)
        place = folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp"
        moved: list[Path] = []
        try:
            with told(folder, "make a folder in it"):
                place.mkdir()
            yield place
            with told(folder, "put the files in their place"):
                for made in sorted(place.iterdir(), key=lambda path: (path.is_file(), path.name)):
                    os.replace(made, folder / made.name)
                    moved.append(folder / made.name)
        except BaseException as error:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if isinstance(error, WhatwhereError) and error.args:
                told_of = str(error.args[0]).replace(str(place), str(folder))
                error.args = (told_of, *error.args[1:])
            raise
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _sync_folder(folder)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new folder in this one, which is gone with all that is in it when the block ends.

    Raises:
        OutputError: It cannot be made.
    """
    make_folder(folder)
    with told(folder, "make a folder in it"):
        place = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}scratch-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def free_bytes(folder: Path) -> int | None:
    """Return how much may still be written in a folder [bytes]; None where the system is silent."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def require_space(folder: Path, need: int, what: str) -> None:
    """Refuse, before hours of work, what will not fit on the disk.

    Args:
        folder: Where it will be written.
        need: How much it takes [bytes].
        what: What it is, as the subject of a sentence.

    Raises:
        OutputError: Less is free.
    """
    free = free_bytes(folder)
    if free is not None and free < need:
        raise OutputError(
            f"{folder}: {what} take about {need:,} bytes there, and {free:,} are free. Free some, "
            "or choose another disk."
        )


def holds_nothing(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a process left that was killed."""
    return all(path.name == LOCK or path.name.startswith(TEMPORARY) for path in folder.iterdir())


def remove(path: Path) -> None:
    """Remove a file if it is there; raises `OutputError`."""
    with told(path, "remove this file"):
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
