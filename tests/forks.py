"""A program that imports everything once and then forks: each job is a process that may be killed.

Requests come as lines of JSON, answers go back so. `Forks` starts it and talks to it.

A request says `job` (`fit`, `train`), `data`, `run`, `settings`, and how the process dies, if it
does: `after_s` with `signal`, counted from the start or from when the file `once` is there; or at
the `number`-th time that it calls `call` (`open`, `write`, `fsync`, `replace`, `unlink`), `when` it
has done so or before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Forks:
    """The program, started; close it at the end."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def run(self, **request: Any) -> dict[str, Any]:
        """Do a job: its `code`, or the number of the `signal` that ended it; `seconds`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve() -> None:
    """Fork for each request, and tell how it ended."""
    load()
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(work(request))
        sent = None
        if "after_s" in request:
            if "once" in request:
                wait(pid, Path(request["once"]))
            sent = send(pid, request["after_s"], request.get("signal", signal.SIGKILL))
        _, status = os.waitpid(pid, 0)
        ended = time.monotonic()
        answer = {
            "code": os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "seconds": ended - begun,
            "since_signal": None if sent is None else ended - sent,
        }
        print(json.dumps(answer), flush=True)


def wait(pid: int, path: Path) -> None:
    """Wait until a process has written a file, or has ended."""
    while not path.exists() and not has_ended(pid):
        time.sleep(0.002)


def has_ended(pid: int) -> bool:
    """Whether a process is at its end; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def send(pid: int, after_s: float, number: int) -> float | None:
    """Send a signal to a process after a while, unless it has ended."""
    end = time.monotonic() + after_s
    while time.monotonic() < end:
        if has_ended(pid):
            return None
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return time.monotonic()


def load() -> None:
    """Import what every job needs."""
    import torch

    torch.set_num_threads(1)
    import matplotlib.figure  # noqa: F401

    import whatwhere.training.run  # noqa: F401


def work(request: dict[str, Any]) -> int:
    """Do a job in a process of its own."""
    from whatwhere.errors import Interrupted, WhatwhereError

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "call" in request:
        die_at(request["call"], request["number"], request["when"])
    try:
        JOBS[request["job"]](request)
    except Interrupted as error:
        return error.exit_code
    except WhatwhereError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:  # noqa: BLE001  # told, and the process ends
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def die_at(name: str, number: int, when: str) -> None:
    """Let this process be killed at some call."""
    import builtins

    place: Any = builtins if name == "open" else os
    plain, calls = getattr(place, name), 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        if name == "open" and "x" not in str([*args[1:], *named.values()]):
            return plain(*args, **named)
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return plain(*args, **named)
        finally:
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, call)


def fit_small(request: dict[str, Any]) -> None:
    """Train without rehearsal or report; the weights at the end go to `end.bin`."""
    import torch

    from whatwhere import files
    from whatwhere.config import make_recipe
    from whatwhere.data.inputs import Inputs
    from whatwhere.data.plan import plan_data
    from whatwhere.nn.build import build_model
    from whatwhere.talk import QUIET
    from whatwhere.train.fit import fit, weights_of
    from whatwhere.train.state import States

    run = Path(request["run"])
    settings = dict(request["settings"])
    save_minutes = settings.pop("save_minutes", 0.0)
    recipe = make_recipe(**settings)
    plan = plan_data(Inputs(Path(request["data"])), recipe, QUIET)
    torch.manual_seed(1)
    net = build_model("tutorial", 1, 1, n_filters=2)
    with files.locked(run):
        files.sweep(run)
        states = States(run / "checkpoints")
        history = fit(
            net, plan.loader("train", request.get("workers", 0)), plan.loader("val"), recipe,
            "binary", 2, on_best=lambda weights, _: keep(run / "best.bin", weights), talk=QUIET,
            states=states, state=states.newest(lambda _: None), save_minutes=save_minutes,
        )  # fmt: skip
        if history.interrupted:
            from whatwhere.errors import Interrupted

            raise Interrupted(history.signal)
        keep(run / "end.bin", weights_of(net.state_dict()))
        states.clear()


def keep(path: Path, weights: Any) -> None:
    """Write arrays as bytes, in the order of their names."""
    from whatwhere import files

    files.write_bytes(path, b"".join(weights[name].tobytes() for name in sorted(weights)))


def train_whole(request: dict[str, Any]) -> None:
    """What `whatwhere train` does."""
    from whatwhere import jobs
    from whatwhere.talk import QUIET

    run = Path(request["run"])
    jobs.train(
        request["data"],
        run,
        resume=(run / "recipe.toml").exists(),
        workers=request.get("workers", 0),
        talk=QUIET,
        **request["settings"],
    )


JOBS: dict[str, Callable[[dict[str, Any]], None]] = {"fit": fit_small, "train": train_whole}

if __name__ == "__main__":
    serve()
