"""The machine, also where its files and calls are missing."""

from __future__ import annotations

import ctypes
import os

import pytest

from whatwhere import machine


def test_a_container_with_a_quota_has_fewer_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_lines", lambda path: ["150000 100000"] if "cpu" in path else [])
    assert machine.processors() == 2
    monkeypatch.setattr(machine, "_lines", lambda path: ["max 100000"] if "cpu" in path else [])
    assert machine.processors() == 8


def test_a_system_without_affinity_counts_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(machine, "_lines", lambda _path: [])
    assert machine.processors() == 6
    assert machine.memory_mb() is None


def test_the_smaller_of_machine_and_container_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "/proc/meminfo": ["MemTotal: 9 kB", "MemAvailable: 8388608 kB"],
        "/sys/fs/cgroup/memory.max": [str(2**32)],
        "/sys/fs/cgroup/memory.current": [str(2**30)],
    }
    monkeypatch.setattr(machine, "_lines", lambda path: told.get(path, []))
    assert machine.memory_mb() == 3072


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert machine.threads() == 5


def test_keeping_pages_does_nothing_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert machine.keep_pages() is False and machine.share_pages() is False


def test_torch_takes_large_pages_where_the_user_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert machine.large_pages() and os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert not machine.large_pages() and os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.setattr(machine.sys, "platform", "win32")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert not machine.large_pages() and "THP_MEM_ALLOC_ENABLE" not in os.environ
