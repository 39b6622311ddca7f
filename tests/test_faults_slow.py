"""Faults that the kernel gives, at every call that writes, and disks that are too small."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import test_faults
from fault_server import Server, calls_below, spread
from faults import left_over, lost, read_whole, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here"),
]

shelf = test_faults.shelf
MOST = 160  # calls that fail of one verb
DISKS = 20  # for each verb


@pytest.fixture(scope="module")
def server(shelf: Path) -> Iterator[Server]:
    found = Server(shelf)
    yield found
    found.close()


def check_left(out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """What is there is whole, and what was there is."""
    there = snapshot(out)
    for name, data in there.items():
        if data not in (old.get(name), new.get(name)):
            read_whole(out / name)
    assert not lost(old, there)


def again(server: Server, verb: str, out: Path, new: dict[str, bytes], message: Path) -> None:
    """It works now, and leaves what it would have left."""
    assert server.run(verb=verb, out=out, message=message) == 0, message.read_text()
    found = snapshot(out)
    assert set(found) == set(new) and not left_over(out)
    for name, data in found.items():
        if data != new[name]:
            read_whole(out / name)


@pytest.mark.parametrize("verb", ["train", "scene", "images", "tune", "chip", "package"])
def test_every_call_that_fails(server: Server, shelf: Path, tmp_path: Path, verb: str) -> None:
    out, trace, message = (tmp_path / name for name in ("out", "trace", "message"))
    before, _ = test_faults.VERBS[verb][0](shelf)

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        before(out)

    begin()
    old = snapshot(out)
    assert server.run(verb=verb, out=out, message=message, trace=trace) == 0, message.read_text()
    new = snapshot(out)
    calls = calls_below(trace, out)
    chosen = spread(calls, MOST)
    ends: Counter[str] = Counter()
    for i, call in enumerate(chosen):
        begin()
        ended = server.run(
            verb=verb, out=out, message=message, trace=trace,
            call=call.name, number=call.number, code=("ENOSPC", "EIO")[i % 2],
        )  # fmt: skip
        lines = trace.read_text(errors="replace").splitlines()
        hits = [line for line in lines if "(INJECTED)" in line]
        elsewhere = not all(str(out) in line for line in hits)  # another thread's: it reads
        told = message.read_text() if ended else ""
        assert ended in ((0, 3, 5) if elsewhere else (0, 5)), f"{call}: {ended}, {told}"
        assert ended == 0 or str(shelf if ended == 3 else out) in told, told
        ends[f"{'elsewhere' if elsewhere else 'hit' if hits else 'missed'}, {ended}"] += 1
        assert not left_over(out), f"{call}: {told}"
        check_left(out, old, new)
        if ended or verb not in ("chip", "train"):
            again(server, verb, out, new, message)
    print(f"{verb}: {len(chosen)} of {len(calls)} calls failed once: {dict(ends)}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("verb", ["train", "scene", "images", "tune"])
def test_disks_that_are_too_small(
    server: Server, shelf: Path, small: Path, tmp_path: Path, verb: str
) -> None:
    message, out = tmp_path / "message", small / "out"
    before, _ = test_faults.VERBS[verb][0](shelf)

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        before(out)

    begin()
    old, full = snapshot(out), shutil.disk_usage(small).used
    assert server.run(verb=verb, out=out, message=message) == 0, message.read_text()
    new = snapshot(out)
    most = 4 * sum(-(-len(data) // 4096) * 4096 for data in new.values())
    ends: Counter[int] = Counter()
    for i in range(DISKS):
        begin()
        size = full + 4096 * (round((most / 4096) ** (i / (DISKS - 4))) - 1)
        resize(small, size)
        ended = server.run(verb=verb, out=out, message=message)
        resize(small, 2**26)
        told = message.read_text() if ended else ""
        assert ended in (0, 5), f"{size}: {ended}, {told}"
        assert ended == 0 or str(small) in told, told
        assert not left_over(out), told
        check_left(out, old, new)
        ends[ended] += 1
        if ended or verb != "train":
            again(server, verb, out, new, message)
    print(f"{verb}: {DISKS} disks with 0 to {size - full:,} bytes free: {dict(ends)}")
    assert ends[0] and ends[5]


def resize(place: Path, size: int) -> None:
    """Give a disk so many bytes, but one block at the least: none would mean no limit."""
    size = max(size, 4096)
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
