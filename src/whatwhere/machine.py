"""The machine the program runs on: processors, memory, and what Python cannot ask for by itself."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_STAT = "/sys/fs/cgroup/memory.stat"
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def processors() -> int:
    """How many processors this process may use: affinity and the container's quota count."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, -(-int(quota[0]) // int(quota[1])))
    return max(1, count)


def threads() -> int:
    """How many threads to compute with: `OMP_NUM_THREADS` if it is set, else all processors."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else processors()


def memory_mb() -> int | None:
    """How much memory could still be used [MB]; None where the system does not tell."""
    free = None
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) // 1024
    limit = _first_line("/sys/fs/cgroup/memory.max")
    used = _first_line("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        cache = next((line for line in _lines(_STAT) if line.startswith("inactive_file ")), "x 0")
        left = (int(limit) - int(used) + int(cache.split()[1])) // 2**20
        free = left if free is None else min(free, left)
    return free


def peak_memory_mb() -> int | None:
    """The most memory this process has had [MB]; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 1024


def keep_pages() -> bool:
    """Tell glibc to keep the memory it was given back; nothing happens where there is no glibc.

    By default each step of a training gives its arrays back to the system and asks for them again,
    page by page: on two cores that took 44 % of the time.

    Returns:
        Whether the library took the setting.
    """
    return _set_malloc((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1))


def large_pages() -> bool:
    """Let torch take its arrays in pages of 2 MB; call it before torch makes its first array.

    An array of a picture is then given and cleared in a few steps in the place of thousands, and
    goes back to the system when it is done with. Only Linux has such pages.

    Returns:
        Whether torch will be asked for them.
    """
    if not sys.platform.startswith("linux"):
        return False
    return os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1") == "1"


def share_pages() -> bool:
    """Tell glibc to give all threads one heap; nothing happens where there is no glibc.

    Else each thread keeps the pages that it was given, also while others want more: where one
    reads, one computes and one writes, that was half a gigabyte.

    Returns:
        Whether the library took the setting.
    """
    return _set_malloc((_M_ARENA_MAX, 1))


def _set_malloc(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(name, value) for name, value in settings)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _first_line(path: str) -> str:
    return next(iter(_lines(path)), "")
