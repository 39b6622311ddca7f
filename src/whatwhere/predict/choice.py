"""Which engine runs a net: the one that is asked for, that of a file, or the quickest here."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.bundle import Bundle, Card
from whatwhere.errors import BundleError, NumericsError, ShapeError, UsageError
from whatwhere.machine import threads
from whatwhere.predict import onnx, openvino
from whatwhere.predict.backends import BF16, COMPILED, TORCH, Backend, check_answers
from whatwhere.predict.exported import Exported, ExportedBackend, library
from whatwhere.predict.graphs import BACKENDS, RUNTIMES, graph_of, installed
from whatwhere.talk import Talk

AUTO = "auto"
NAMES = (AUTO, TORCH, BF16, COMPILED, *BACKENDS)
"""What `--backend` takes."""

EXPORTS: Mapping[str, tuple[str, Callable[[Path], Exported]]] = {
    onnx.SUFFIX: ("onnx", onnx.read_exported),
    openvino.SUFFIX: ("openvino", openvino.read_exported),
}
"""The engine of each kind of file, and what reads it."""

_MOST_SIDE = 1024  # of what is measured [px]: ratios hardly change beyond
_ROUNDS, _BUDGET_S = 5, 3.0


@dataclass(frozen=True)
class Choice:
    """Engines that run one net, of which the quickest is to be taken.

    Attributes:
        backends: By name, PyTorch first.
        card: The net's.
        talk: Where it is said which one was taken.
    """

    backends: Mapping[str, Backend]
    card: Card
    talk: Talk

    def quickest(self, height: int, width: int) -> str:
        """Measure, in turn, and return the name of the quickest.

        Args:
            height: Of the images that will be shown to the net [px].
            width: The same.
        """
        shape = self.card.geometry
        sides = [min(side, _MOST_SIDE) for side in (height, width)]
        if shape.border:
            sides = [shape.window(max(1, side - 2 * shape.border)) for side in sides]
        noise = np.random.Generator(np.random.Philox(key=[0, 8]))
        size = (1, len(self.card.bands), *sides)
        ready = noise.standard_normal(size, dtype=np.float32)
        raw = self.card.normalization.undo(ready)
        times = self._measure({n: raw if b.normalizes else ready for n, b in self.backends.items()})
        ratios = {
            name: statistics.median(a / b for a, b in zip(times[TORCH], taken, strict=True))
            for name, taken in times.items()
        }
        best = max(ratios, key=lambda name: ratios[name])
        told = ", ".join(f"{name} {ratios[name]:.2f} times" for name in ratios if name != TORCH)
        self.talk.say(
            f"engine   {best} is taken for {sides[0]}×{sides[1]} px; as quick as torch: {told}"
        )
        return best

    def _measure(self, images: Mapping[str, NDArray[np.float32]]) -> dict[str, list[float]]:
        """Return the seconds of each engine in each round; the first, which warms up, left out."""
        times: dict[str, list[float]] = {name: [] for name in self.backends}
        with contextlib.ExitStack() as stack:
            for backend in self.backends.values():
                stack.enter_context(backend.computing(threads()))
            for name, backend in self.backends.items():
                seconds(backend, images[name])
            for _ in range(_ROUNDS):
                for name, backend in self.backends.items():
                    times[name].append(seconds(backend, images[name]))
                if sum(map(sum, times.values())) > _BUDGET_S:
                    break
        return times


def seconds(backend: Backend, images: NDArray[np.float32]) -> float:
    """Return how long an engine takes for some images [s]."""
    started = time.perf_counter()
    backend.run(images)
    return time.perf_counter() - started


def check_backend(name: str) -> None:
    """Raise `UsageError` if there is no such engine; an empty name stands for the usual one."""
    if name and name not in NAMES:
        raise UsageError(f"--backend must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, not {name!r}.")


def open_exported(path: Path, device: str = "auto", backend: str = "") -> ExportedBackend:
    """Open a file that `whatwhere export` made, and ask it what it answered when it was made.

    Args:
        path: The file.
        device: `auto` or `cpu`.
        backend: The file's own engine, `auto` or empty.

    Raises:
        BundleError: As `read_exported` of its kind; or the net does not answer as it did.
        UsageError: The engine is not installed, or another engine or device is asked for.
    """
    engine, read = EXPORTS[path.suffix.lower()]
    if backend not in ("", AUTO, engine):
        raise UsageError(
            f"--backend {backend}: {path} is run by {engine} alone. Leave --backend out, or give "
            "the run itself."
        )
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {device}: {path} runs on the processor. Give the run itself for a GPU."
        )
    exported = read(path)
    try:
        found = BACKENDS[engine](exported)
        if exported.card.self_test:
            check_answers(found, exported.usable)
    except (BundleError, NumericsError, ShapeError) as error:
        raise BundleError(f"{path}: {error}") from error
    return found


def open_graph(
    found: Bundle, folder: Path, name: str, device: str, encoder: Any, talk: Talk
) -> ExportedBackend:
    """Run a bundle with an engine other than PyTorch, which is loaded only to make its graph.

    Args:
        found: The bundle.
        folder: Where it lies; its graph is kept there.
        name: The engine.
        device: `auto` or `cpu`.
        encoder: The module that gives the feature maps, if the net was trained on one of the user's
            own.
        talk: Where it is said that a graph is made.

    Raises:
        BundleError: The engine does not answer as the net does.
        UsageError: It is not installed, or does not run on that device; the net has no graph.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {device}: {name} runs on the processor. Leave --backend out for a GPU."
        )
    library(RUNTIMES[name], name)
    return _run_by(name, graph_of(found, folder, encoder, talk))


def _run_by(name: str, graph: Exported) -> ExportedBackend:
    if name not in graph.engines:
        raise BundleError(f"{name} does not answer as the net does: take another --backend.")
    backend = BACKENDS[name](graph)
    check_answers(backend, graph.card)
    return backend


def open_rivals(
    found: Bundle, folder: Path, usual: Backend, encoder: Any, talk: Talk
) -> Choice | None:
    """Open all engines that are installed; None where PyTorch is the only one.

    Args:
        found: The bundle.
        folder: Where it lies; its graph is kept there.
        usual: PyTorch, with the net; on a GPU there is no other.
        encoder: As in `open_graph`.
        talk: Where it is said why an engine is left out.
    """
    names = [name for name in BACKENDS if installed(name)]
    if usual.device != "cpu" or not names:
        why = "no other is installed" if not names else f"no other runs on {usual.device}"
        talk.say(f"engine   {TORCH} is taken: {why}")
        return None
    rivals: dict[str, Backend] = {}
    try:
        graph = graph_of(found, folder, encoder, talk)
    except (BundleError, UsageError) as error:
        talk.say(f"engine   {TORCH} is taken: {error}")
        return None
    for name in names:
        try:
            rivals[name] = _run_by(name, graph)
        except BundleError as error:
            talk.say(f"note     {name} is left out: {error}")
    return Choice({TORCH: usual, **rivals}, found.card, talk) if rivals else None
