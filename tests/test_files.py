"""The one writer: a file is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from whatwhere import files
from whatwhere.errors import OutputError


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
    assert not files.create_json(path, {"who": 2})
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
