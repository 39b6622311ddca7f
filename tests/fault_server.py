"""A program that imports everything once and then forks: each job runs on a disk that fails.

Requests come as lines of JSON, answers go back so; `Server` starts it and talks to it. A request
says `verb`, `out`, `message` (a file for what is told) and, if a call is to fail, `call`, `number`
and `code`: strace lets the kernel give this error in the place of the call.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "openat", "mkdir", "ftruncate")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")


@dataclass(frozen=True)
class Call:
    """A call of the system that a trace shows.

    Attributes:
        name: Which one.
        number: How many calls of this name its thread had made with it.
        text: The line.
    """

    name: str
    number: int
    text: str


class Server:
    """The program, started; close it at the end."""

    def __init__(self, shelf: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(shelf)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, **request: Any) -> int:
        """Do a job; return its exit code, or minus the signal that ended it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def calls_below(trace: Path, folder: Path) -> list[Call]:
    """Return the calls of a trace that change what is below a folder, each kind of place once."""
    counts: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, int], Call] = {}
    for line in trace.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or match[2] not in CALLS:
            continue
        key = match[1], match[2]
        counts[key] = counts.get(key, 0) + 1
        makes = match[2] != "openat" or "O_CREAT" in line or "O_WRONLY" in line
        if str(folder) in line and makes and "EEXIST" not in line:
            found.setdefault((match[2], counts[key]), Call(match[2], counts[key], line))
    return list(found.values())


def serve(shelf: Path) -> None:
    """Fork for each request, and tell how it ended."""
    import forks

    forks.load()
    import test_faults

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(work(request, test_faults.VERBS, shelf))
        os.waitpid(pid, os.WUNTRACED)
        tracer = trace(pid, request) if "trace" in request else None
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        if tracer is not None:
            tracer.wait(60)
        print(os.waitstatus_to_exitcode(status), flush=True)


def trace(pid: int, request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Attach to a process that waits."""
    words = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", request["trace"], "-p", str(pid)]
    words += ["-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
    if "call" in request:
        what = f"{request['call']}:error={request['code']}:when={request['number']}"
        words += ["-e", f"inject={what}"]
    tracer = subprocess.Popen(words)
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.005)
    return tracer


def work(request: dict[str, Any], verbs: dict[str, Any], shelf: Path) -> int:
    """Do a job in a process of its own."""
    from whatwhere.errors import WhatwhereError

    out = Path(request["out"])
    _, act = verbs[request["verb"]][0](shelf)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        act(out)
    except WhatwhereError as error:
        Path(request["message"]).write_text(f"{type(error).__name__}: {error}")
        return error.exit_code
    except BaseException as error:  # noqa: BLE001  # told, and the process ends
        Path(request["message"]).write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


def spread(calls: Sequence[Call], most: int) -> list[Call]:
    """Choose evenly."""
    if len(calls) <= most:
        return list(calls)
    return [calls[round(i * (len(calls) - 1) / (most - 1))] for i in range(most)]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
