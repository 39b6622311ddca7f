"""The one writer: a file is there whole or not at all."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from whatwhere import files
from whatwhere.errors import BundleError, BusyError, OutputError


def broken(code: int = errno.ENOSPC) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_json_are_read_back(tmp_path: Path) -> None:
    assert files.write_bytes(tmp_path / "a", b"\0\r\n").read_bytes() == b"\0\r\n"
    assert files.write_text(tmp_path / "b", "größe\n").read_bytes() == "größe\n".encode()
    value = {"é": [1, 2.5, None]}
    assert json.loads(files.write_json(tmp_path / "c", value).read_text("utf-8")) == value
    assert names(tmp_path) == ["a", "b", "c"]
    assert files.make_folder(tmp_path / "d" / "e").is_dir()


def test_a_file_is_replaced_and_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "a"
    for text in ("old and longer", "new"):
        files.write_text(path, text)
    assert path.read_text() == "new" and names(path.parent) == ["a"]


class HalfStream:
    """A disk that is full after the first byte."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> HalfStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        self.stream.write(data[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(path: Path, mode: str) -> HalfStream:
    return HalfStream(path.open(mode))


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, old: bool
) -> None:
    path = tmp_path / "a.json"
    if old:
        path.write_text("old")
    if step == "write":
        monkeypatch.setattr(files, "open", half, raising=False)
    else:
        monkeypatch.setattr(os, step, broken())
    message = r"a\.json: cannot write this file: No space left.*Nothing that was there before has b"
    with pytest.raises(OutputError, match=message) as told:
        files.write_bytes(path, b"new")
    assert isinstance(told.value, OSError)
    assert names(tmp_path) == (["a.json"] if old else [])
    assert not old or path.read_text() == "old"


def test_the_bytes_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (steps.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("replace"), replace(*a)))
    files.write_bytes(tmp_path / "a", b"x")
    assert steps[:2] == ["fsync", "replace"]


def test_an_interruption_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_nothing_is_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a: cannot write this file: "):
        files.write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for call in (files.make_folder, files.check_writable):
        with pytest.raises(OutputError, match=r"b: cannot make this folder: "):
            call(tmp_path / "a" / "b")
    with pytest.raises(OutputError, match="cannot make this folder"):
        files.make_folder(tmp_path / "a")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write this file: Permission denied"):
        files.check_writable(tmp_path)
    tmp_path.chmod(0o700)


def test_a_folder_is_tried_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.check_writable(tmp_path / "new")
    assert names(tmp_path / "new") == []
    monkeypatch.setattr(os, "fsync", broken(errno.EROFS))
    with pytest.raises(OutputError, match="cannot write this file: Read-only file system"):
        files.check_writable(tmp_path)


def test_temporary_files_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).name), replace(a, b)))
    files.write_bytes(tmp_path / "a", b"x")
    assert seen[0].startswith(files.TEMPORARY) and seen[0].startswith(".")


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.write_json(tmp_path / "a", {"x": number})
    assert names(tmp_path) == []


def test_a_file_is_removed_if_it_is_there(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"x")
    for _ in range(2):
        files.remove(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="b: cannot remove this file: "):
        files.remove(tmp_path / "b")


def test_a_system_that_cannot_force_folders_writes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "open", broken(errno.EACCES))  # what Windows says for a folder
    assert files.write_bytes(tmp_path / "a", b"x").read_bytes() == b"x"


def test_a_share_that_refuses_to_force_a_folder_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, iter([True, False])
    monkeypatch.setattr(os, "fsync", lambda f: fsync(f) if next(calls) else broken(errno.EINVAL)())
    assert files.write_bytes(tmp_path / "a", b"x").read_bytes() == b"x"


# ---------------------------------------------------------------- the first one wins


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["links", "none", "refused"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A disk with hard links, a system without them, a disk that refuses them."""
    if request.param == "none":
        monkeypatch.delattr(os, "link")
    elif request.param == "refused":
        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def test_a_file_is_created_once(tmp_path: Path, disk: str) -> None:
    path = tmp_path / "x" / "a.json"
    assert files.create_json(path, {"who": 1})
    assert files.create_json(path, {"who": 2}) is False
    assert json.loads(path.read_text()) == {"who": 1} and names(path.parent) == ["a.json"]
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="b: cannot write this file: Is a directory"):
        files.create_bytes(tmp_path / "b", b"x")


def test_of_many_threads_one_creates_the_file_and_all_find_it_whole(
    tmp_path: Path, disk: str
) -> None:
    ready = threading.Barrier(8)

    def create(who: int, path: Path) -> tuple[bool, bytes]:
        ready.wait(10)
        won = files.create_bytes(path, bytes([who]) * 50_000)
        return won, path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        for i in range(20):
            path = tmp_path / str(i)
            found = list(pool.map(create, range(8), [path] * 8))
            won = [who for who, (mine, _) in enumerate(found) if mine]
            assert len(won) == 1
            assert {data for _, data in found} == {bytes(won) * 50_000}
    assert names(tmp_path) == sorted(map(str, range(20)))


ELSEWHERE = """
import sys, time
from pathlib import Path
from whatwhere import files
folder, who = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"ready{who}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.001)
won = files.create_bytes(folder / "a", bytes([who]) * 50_000)
print(int(won), *set((folder / "a").read_bytes()))
"""


def test_of_two_processes_one_creates_the_file(tmp_path: Path) -> None:
    words = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    workers = [
        subprocess.Popen([*words, str(who)], stdout=subprocess.PIPE, text=True) for who in (1, 2)
    ]
    told = [worker.communicate(timeout=60)[0].split() for worker in workers]
    (winner,) = [who for who, (won, _) in zip("12", told, strict=True) if won == "1"]
    assert [there for _, there in told] == [winner] * 2


@pytest.mark.parametrize("disk", ["refused"], indirect=True)
def test_a_claim_that_nobody_holds_any_more_is_told(
    tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    claim = tmp_path / f"{files.TEMPORARY}a.tmp"
    claim.touch()
    with pytest.raises(OutputError, match=r"another process does, which seems to have died\. Rem"):
        files.create_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == [claim.name]
    monkeypatch.setattr(os, "replace", broken())
    claim.unlink()
    with pytest.raises(OutputError, match="cannot write this file: No space left"):
        files.create_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_a_claim_is_waited_for_and_for_no_more_than_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    now, goes_s = 100.0, 4.9
    claim = tmp_path / f"{files.TEMPORARY}a.tmp"

    def sleep(seconds: float) -> None:
        nonlocal now
        assert 0 < seconds < 0.1
        now += seconds
        if now > 100 + goes_s:
            claim.unlink()

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(files, "time", clock)
    claim.touch()
    assert files.create_bytes(tmp_path / "a", b"x") and names(tmp_path) == ["a"]
    (tmp_path / "a").unlink()
    with monkeypatch.context() as patch:  # somebody has read the message below
        replace = os.replace
        patch.setattr(os, "replace", lambda *a: (replace(*a), claim.unlink()))
        assert files.create_bytes(tmp_path / "a", b"x") and names(tmp_path) == ["a"]
    (tmp_path / "a").unlink()
    claim.touch()
    now, goes_s = 100.0, 9.0
    with pytest.raises(OutputError, match=r"a: cannot write this file: \.whatwhere-a\.tmp beside"):
        files.create_bytes(tmp_path / "a", b"x")
    assert 105 < now < 105.1


@pytest.mark.parametrize("held", [True, False])
def test_a_file_that_comes_while_its_name_is_claimed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """The other one is done when this one has waited, or before it has its own claim."""
    monkeypatch.setattr(os, "link", no_links)
    claim, plain = tmp_path / f"{files.TEMPORARY}a.tmp", os.open

    def late(path: Any, *args: Any, **named: Any) -> int:
        if Path(path) == claim:
            (tmp_path / "a").write_bytes(b"theirs")
        return plain(path, *args, **named)

    monkeypatch.setattr(os, "open", late)
    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: 0, sleep=lambda _: None))
    if held:
        claim.touch()
    assert files.create_bytes(tmp_path / "a", b"mine") is False
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ([claim.name] if held else []) + ["a"]


# ---------------------------------------------------------------- as it is on the disk


def test_json_is_short_lines_of_plain_letters(tmp_path: Path) -> None:
    wanted = '{\n "größe": [\n  1\n ]\n}\n'.encode()
    assert files.write_json(tmp_path / "a", {"größe": [1]}).read_bytes() == wanted
    assert files.create_json(tmp_path / "b", {"größe": [1]})
    assert (tmp_path / "b").read_bytes() == wanted


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of what `os.open` has opened and nobody has closed."""
    found: set[int] = set()
    plain_open, plain_close = os.open, os.close

    def note(*args: Any, **named: Any) -> int:
        number = plain_open(*args, **named)
        found.add(number)
        return number

    def forget(number: int) -> None:
        found.discard(number)
        plain_close(number)

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "close", forget)
    return found


def replaced(path: Path, data: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


def built(path: Path, data: bytes) -> None:
    with files.building(path.parent) as place:
        (place / path.name).write_bytes(data)


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders are forced as POSIX does")
@pytest.mark.parametrize("write", [files.write_bytes, files.create_bytes, replaced, built])
def test_all_of_it_and_then_the_folder_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: set[int], write: Callable[..., Any]
) -> None:
    steps: list[str | int] = []
    fsync, name = os.fsync, "link" if write is files.create_bytes else "replace"
    give = getattr(os, name)

    def force(number: int) -> None:
        found = os.fstat(number)
        steps.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        fsync(number)

    monkeypatch.setattr(os, "fsync", force)
    monkeypatch.setattr(os, name, lambda *a: (steps.append("name"), give(*a)))
    write(tmp_path / "a", b"123")
    assert steps == (["name", "folder"] if write is built else [3, "name", "folder"])
    assert names(tmp_path) == ["a"] and not opened


def test_what_the_system_says_is_told_once(tmp_path: Path) -> None:
    told = r"a: cannot read it: odd\. Nothing that was there before has been changed\."
    with pytest.raises(OutputError, match=told), files.told(Path("a"), "read it"):
        raise OSError("odd")
    for kind in (OutputError, BusyError):
        with pytest.raises(kind, match="^said$"), files.told(Path("a"), "read it"):
            raise kind("said")


# ---------------------------------------------------------------- what belongs together


def test_files_that_belong_together_are_whole_before_the_first_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (steps.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append(a[1].name), replace(*a)))
    files.write_together({tmp_path / "b": b"1", tmp_path / "x" / "a": b"2"})
    assert steps[:4] == ["fsync", "fsync", "b", "a"]
    assert contents(tmp_path) == {"b": "1", "x/a": "2"}


def test_files_that_belong_together_stay_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {tmp_path / "a": b"new", tmp_path / "b": b"new"}
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="b: cannot write this file: Is a directory"):
        files.write_together(both)
    assert contents(tmp_path) == {"a": "old"} and names(tmp_path) == ["a", "b"]
    (tmp_path / "b").rmdir()
    fail_once(monkeypatch, "replace", 1)
    with pytest.raises(OutputError, match="a: cannot write this file: Input/output error"):
        files.write_together(both)
    assert contents(tmp_path) == {"a": "old"}


# ---------------------------------------------------------------- what libraries write


def fail_once(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: int = errno.EIO
) -> None:
    """Let the `number`-th call of this function of the system fail."""
    plain, calls = getattr(os, name), itertools.count(1)

    def call(*args: Any, **named: Any) -> Any:
        return (broken(code) if next(calls) == number else plain)(*args, **named)

    monkeypatch.setattr(os, name, call)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(found)}


def test_a_library_is_given_a_hidden_place_with_the_same_ending(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "x" / "a.gpkg") as path:
        assert path.parent == tmp_path / "x" and path.suffix == ".gpkg" and not path.exists()
        assert path.name.startswith(files.TEMPORARY) and path.name.endswith(".tmp.gpkg")
        path.write_text("new")
        Path(f"{path}-journal").write_text("the library's own")
    assert contents(tmp_path) == {"x/a.gpkg": "new"}


@pytest.mark.parametrize("old", [True, False])
def test_a_library_that_fails_leaves_what_was_there(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "a.tif"
    if old:
        path.write_text("old")

    def fail(error: BaseException | None) -> None:
        with files.replacing(path) as temporary:
            if error is None:
                return  # and writes nothing
            temporary.write_text("half")
            Path(f"{temporary}.ovr").write_text("half")
            raise error

    with pytest.raises(ValueError, match="^odd$"):
        fail(ValueError("odd"))
    with pytest.raises(OutputError, match=r"a\.tif: cannot write this file: No space"):
        fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OutputError, match=r"a\.tif: cannot write this file: No such file"):
        fail(None)
    assert contents(tmp_path) == ({"a.tif": "old"} if old else {})


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF"])
@pytest.mark.parametrize("write", [files.write_bytes, replaced])
def test_what_others_made_of_a_raster_goes_with_it(
    tmp_path: Path, name: str, write: Callable[..., Any]
) -> None:
    for ending in ("", ".ovr", ".msk", ".aux.xml", ".txt"):
        (tmp_path / f"{name}{ending}").write_text("old")
    write(tmp_path / name, b"new")
    assert contents(tmp_path) == {name: "new", f"{name}.txt": "old"}


def test_what_lies_beside_other_files_stays(tmp_path: Path) -> None:
    (tmp_path / "b.tif.ovr").mkdir()  # no overviews
    for name in ("a.png", "a.png.aux.xml"):
        (tmp_path / name).write_text("old")
    for name in ("a.png", "b.tif"):
        files.write_text(tmp_path / name, "new")
    assert contents(tmp_path) == {"a.png": "new", "a.png.aux.xml": "old", "b.tif": "new"}
    assert (tmp_path / "b.tif.ovr").is_dir()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_what_others_made_of_a_raster_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Three files are moved aside, then the new one takes its name."""
    for ending in ("", ".ovr", ".msk", ".aux.xml"):
        (tmp_path / f"a.tif{ending}").write_text("old")
    before = contents(tmp_path)
    fail_once(monkeypatch, "replace", number)
    with pytest.raises(OutputError, match=r"a\.tif: cannot write this file: Input/output error"):
        files.write_bytes(tmp_path / "a.tif", b"new")
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- one at work in a folder

POSIX = pytest.mark.skipif(os.name != "posix", reason="a lock that is open stays on Windows")


@POSIX
def test_a_folder_is_one_workers(tmp_path: Path, opened: set[int]) -> None:
    folder = tmp_path / "x" / "y"
    for _ in range(2):
        with files.locked(folder):
            lock = folder / files.LOCK
            assert lock.read_text() == str(os.getpid()) and lock.name.startswith(".")
            assert not lock.stat().st_mode & 0o111
            told = rf"y: process {os.getpid()} is at work in this folder\. Wait for it, or take"
            with pytest.raises(BusyError, match=told), files.locked(folder):
                pass
            assert names(folder) == [files.LOCK] and len(opened) == 1
        assert names(folder) == [] and not opened


@POSIX
def test_a_lock_ends_with_an_error_and_may_be_gone(tmp_path: Path, opened: set[int]) -> None:
    with pytest.raises(ValueError, match="^odd$"), files.locked(tmp_path):
        raise ValueError("odd")
    assert names(tmp_path) == [] and not opened
    with files.locked(tmp_path):
        (tmp_path / files.LOCK).unlink()
    assert not opened


def test_the_lock_of_one_who_died_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / files.LOCK).write_text("9" * 50)
    with files.locked(tmp_path):
        assert (tmp_path / files.LOCK).read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("said", "told"),
    [(b"", "another one"), (b" 12\n", "12"), (b"\xff7", "\ufffd7"), (b"9" * 300, "9" * 100)],
)
def test_whatever_a_lock_holds_is_told(tmp_path: Path, said: bytes, told: str) -> None:
    with files.locked(tmp_path):
        (tmp_path / files.LOCK).write_bytes(said)
        busy = pytest.raises(BusyError, match=f": process {told} is at work")
        with busy, files.locked(tmp_path):
            pass


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (errno.EACCES, BusyError, "is at work in this folder"),
        (errno.EDEADLK, BusyError, "is at work in this folder"),
        (errno.ENOLCK, OutputError, r"\.lock: cannot lock this folder: No locks available"),
    ],
)
def test_a_lock_that_is_refused_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: set[int],
    code: int,
    kind: type[OSError],
    told: str,
) -> None:
    monkeypatch.setattr(files, "_lock", broken(code))
    with pytest.raises(kind, match=told), files.locked(tmp_path):
        pass
    assert not opened


@POSIX
@pytest.mark.parametrize("another", [True, False])
def test_a_lock_that_was_taken_away_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: set[int], another: bool
) -> None:
    """Its holder ends between the opening and the locking; perhaps somebody else begins."""
    plain, late, lock = files._lock, iter([True, False]), tmp_path / files.LOCK

    def locking(number: int) -> None:
        if next(late):
            lock.unlink()
            if another:
                lock.touch()
        plain(number)

    monkeypatch.setattr(files, "_lock", locking)
    with files.locked(tmp_path):
        assert lock.read_text() == str(os.getpid()) and len(opened) == 1
    assert names(tmp_path) == [] and not opened


@POSIX
@pytest.mark.parametrize("name", ["truncate", "write"])
@pytest.mark.parametrize("stays", [True, False])
def test_a_full_disk_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: set[int], name: str, stays: bool
) -> None:
    told = pytest.raises(OutputError, match="cannot lock this folder: No space left")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, broken())
        if stays:
            patch.setattr(os, "unlink", broken(errno.EROFS))
        with told, files.locked(tmp_path):
            pass
    assert names(tmp_path) == ([files.LOCK] if stays else []) and not opened


# ---------------------------------------------------------------- folders that are filled


def fill(folder: Path) -> None:
    with files.building(folder) as place:
        for name in ("b", "z/b", "a", "y/a"):
            files.write_text(place / name, name)


FILLED = {name: name for name in ("a", "b", "y/a", "z/b")}


@POSIX
def test_a_folder_is_filled_at_once_folders_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    fill(tmp_path / "x")
    assert moved[4:] == ["y", "z", "a", "b"] and contents(tmp_path / "x") == FILLED
    with files.building(tmp_path / "other") as place:
        assert place.parent == tmp_path / "other" and place.name.startswith(files.TEMPORARY)
        assert files.holds_nothing(tmp_path / "other")
        with pytest.raises(BusyError, match="is at work"):
            fill(tmp_path / "other")
    assert names(tmp_path / "other") == []


@POSIX
@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_a_folder_that_cannot_be_filled_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Four files are written, then two folders and two files take their place."""
    fail_once(monkeypatch, "replace", number)
    with pytest.raises(OutputError, match="cannot put the files in their place: Input/output"):
        fill(tmp_path)
    assert names(tmp_path) == []


@POSIX
def test_what_fails_in_a_folder_is_told_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Callable[[Path], BaseException]) -> None:
        with files.building(tmp_path) as place:
            files.write_text(place / "a", "half")
            raise error(place)

    with pytest.raises(BundleError) as told:
        fail(lambda place: BundleError(f"{place}/a: odd", "more"))
    assert told.value.args == (f"{tmp_path}/a: odd", "more")
    with pytest.raises(BundleError) as told:
        fail(lambda _: BundleError())
    assert told.value.args == ()
    with pytest.raises(ValueError, match=files.TEMPORARY):
        fail(lambda place: ValueError(f"{place}/a"))  # not one of ours: left as it is
    with pytest.raises(KeyboardInterrupt):
        fail(lambda _: KeyboardInterrupt())
    assert names(tmp_path) == []
    fail_once(monkeypatch, "mkdir", 2)
    with pytest.raises(OutputError, match="cannot make a folder in it: Input/output error"):
        fill(tmp_path)
    assert names(tmp_path) == []


@POSIX
def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    left = f"{files.TEMPORARY}1-a.tmp"
    for name in (left, f"x/{left}", f"x/{left}.d/y", f"{left}.d/b", "x/a", f"x/a{left}"):
        files.write_text(tmp_path / name, "1")
    assert not files.holds_nothing(tmp_path)
    with files.locked(tmp_path):
        files.sweep(tmp_path)
    assert contents(tmp_path) == {"x/a": "1", f"x/a{left}": "1"} and names(tmp_path) == ["x"]
    files.write_text(tmp_path / "z" / left, "1")
    fill(tmp_path / "z")
    assert contents(tmp_path / "z") == FILLED
    files.write_text(tmp_path / "y" / left, "1")
    (tmp_path / "y" / files.LOCK).touch()
    assert files.holds_nothing(tmp_path / "y")
    (tmp_path / "y" / "a").touch()
    assert not files.holds_nothing(tmp_path / "y")


def test_a_folder_for_a_while_is_gone_with_all_that_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(error: bool = False) -> None:
        with files.scratch(tmp_path / "x") as place:
            assert place.parent == tmp_path / "x" and place.name.startswith(files.TEMPORARY)
            files.write_text(place / "y" / "a", "1")
            if error:
                raise ValueError("odd")

    work()
    with pytest.raises(ValueError, match="^odd$"):
        work(error=True)
    assert names(tmp_path / "x") == []
    monkeypatch.setattr(tempfile, "mkdtemp", broken())
    with pytest.raises(OutputError, match="x: cannot make a folder in it: No space left"):
        work()


def test_a_folder_that_cannot_be_taken_away_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{files.TEMPORARY}1-a.tmp" / "x").mkdir(parents=True)
    monkeypatch.setattr(os, "rmdir", broken(errno.EACCES))
    fill(tmp_path / "y")
    with files.locked(tmp_path), files.scratch(tmp_path):
        files.sweep(tmp_path)
    assert {name: (tmp_path / "y" / name).read_text() for name in FILLED} == FILLED


# ---------------------------------------------------------------- what is free


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    usage = shutil.disk_usage(tmp_path)._replace(free=1_234_567)

    def look(place: Path) -> Any:
        seen.append(place)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", look)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "a" / "b", tmp_path / "file", Path("a")):
        files.require_space(path, 1_234_567, "some maps")
    assert seen == [tmp_path] * 3
    told = (
        r"b: some maps take about 1,234,568 bytes there, and 1,234,567 are free\. Free some, or "
        r"choose another disk\."
    )
    with pytest.raises(OutputError, match=told):
        files.require_space(tmp_path / "b", 1_234_568, "some maps")
    monkeypatch.setattr(shutil, "disk_usage", broken())
    assert files.free_bytes(tmp_path) is None
    files.require_space(tmp_path, 10**18, "some maps")
