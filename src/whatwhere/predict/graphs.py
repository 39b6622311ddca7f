"""The graph of a net, made for engines other than PyTorch and compared with the original."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere._version import __version__
from whatwhere.bundle import Bundle, Card
from whatwhere.errors import BundleError, OutputError, UsageError
from whatwhere.predict import onnx
from whatwhere.predict.backends import TorchBackend, note_answers, open_backend
from whatwhere.predict.exported import (
    CARD_KEY,
    EXPORT_KEY,
    FORMAT,
    FORMAT_KEY,
    INPUT,
    OUTPUT,
    SOURCE_KEY,
    Exported,
    ExportedBackend,
    library,
)
from whatwhere.predict.onnx import OnnxBackend
from whatwhere.predict.openvino import OpenvinoBackend
from whatwhere.talk import Talk
from whatwhere.tiling import mirror

MOST_DIFFERENCE = 1e-4
"""The largest difference of a probability from the original's that is accepted."""

BACKENDS: Mapping[str, type[ExportedBackend]] = {"onnx": OnnxBackend, "openvino": OpenvinoBackend}
"""The engines that run a graph."""

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The library of each engine."""

MAKERS = ("onnx", "onnxscript")
"""What it takes to make a graph, beside torch."""

_OPSET, _IR = 18, 8  # ONNX Runtime from 1.14 on; QGIS Deepness asks for one of at most 1.17
_KEPT = "graph-"

Images = NDArray[np.float32]
Ask = Callable[[Images], Images]


class Differs(BundleError):
    """An export that does not answer as the net does."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """What is exported.

    Attributes:
        card: Its card.
        backend: Runs it.
        digest: Of its bundle.
        tile: Side of the only image that the export is to take [px]; 0 for any.
    """

    card: Card
    backend: TorchBackend
    digest: str
    tile: int = 0

    def ask(self, images: Images) -> Images:
        """Turn `(N, C, H, W)` in the units of files into probabilities, as the export should."""
        shape, (height, width) = self.card.geometry, images.shape[-2:]
        ready = np.stack([self.card.normalization.apply(image) for image in images])
        if not self.tile:
            return self.backend.run(ready)
        ready = mirror(ready, (self.tile, self.tile), (0, 0))
        if shape.border:
            side = shape.window(self.tile)
            ready = mirror(ready, (side, side), (shape.border, shape.border))
        return self.backend.run(ready)[..., :height, :width]

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """`(N, H, W)` at which the export is compared: one is odd, one small, one of two images."""
        shape, tile = self.card.geometry, self.tile
        if tile:
            return [(1, tile, tile), (1, tile // 2 + 1, tile // 3 + 1), (2, tile, tile)]
        if shape.border:
            sides = [(1, 40), (1, 1), (60, 20)]
            windows = [(shape.window(rows), shape.window(columns)) for rows, columns in sides]
        else:
            step = shape.stride
            windows = [(2 * step + 5, 3 * step + 9), (5, 7), (step, 3 * step)]
        return [(count, *window) for count, window in zip((1, 1, 2), windows, strict=True)]

    def lines(self, self_test: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
        """Return the texts that an export's metadata hold.

        Args:
            self_test: What the export answers to seeded noise (`Card.self_test`).
            about: How it was made, beside its tile, memory and sizes.
        """
        card = self.card.replace(self_test=dict(self_test))
        known = {
            "tile": self.tile,
            "memory_mb": max(1, self.backend.memory_mb(len(card.bands), 512)),
            "compared": self.sizes,
        }
        return {
            FORMAT_KEY: str(FORMAT),
            CARD_KEY: json.dumps(card.to_json(), allow_nan=False),
            SOURCE_KEY: self.digest,
            EXPORT_KEY: json.dumps({**known, **about}),
        }

    def exported(self, data: bytes, weights: bytes = b"") -> Exported:
        """Return an export that is being made."""
        return Exported(
            card=self.card,
            data=data,
            weights=weights,
            source=self.digest,
            tile=self.tile,
            memory_mb=0,
            difference=0.0,
        )


def compare(ask: Ask, original: Original, talk: Talk, what: str = "export  ") -> float:
    """Return the largest difference of a probability, on noise as the data are distributed.

    Args:
        ask: Runs the export.
        original: What it should answer as.
        talk: Where the difference is said.
        what: What is compared, the first word of the line.

    Raises:
        Differs: It is more than is accepted.
    """
    card, largest = original.card, 0.0
    noise = np.random.Generator(np.random.Philox(key=[0, 6]))
    for count, height, width in original.sizes:
        shape = (count, len(card.bands), height, width)
        images = card.normalization.undo(noise.standard_normal(shape, dtype=np.float32))
        wanted, found = original.ask(images), ask(images)
        off = math.inf
        if found.shape == wanted.shape:
            off = float(np.abs(found.astype(np.float64) - wanted).max())
        if not off <= MOST_DIFFERENCE:
            raise Differs(
                f"the export does not answer as the net does: at {count}×{height}×{width} px a "
                f"probability is off by {off:.2g}, {MOST_DIFFERENCE:g} is allowed. Nothing was "
                "written."
            )
        largest = max(largest, off)
    talk.say(f"{what} compared at {len(original.sizes)} sizes: off by {largest:.1e} at the most")
    return largest


def modules(original: Original) -> tuple[Any, Any]:
    """The net as a module of the export's form; and the same, as programs around QGIS want it."""
    from whatwhere.nn.whole import ForMaps, OneTile, Whole

    card = original.card
    whole = Whole(original.backend.net, card.normalization, card.classes.task).eval()
    if not original.tile:
        return whole, whole
    tile = OneTile(whole, original.tile, card.geometry).eval()
    return tile, ForMaps(tile, card.thresholds).eval()


def traced(module: Any, original: Original, oblivious: bool = False) -> Any:
    """Return a module's graph as `torch.export` finds it; raises as `trace` does."""
    from whatwhere.nn.trace import trace

    shape, bands, tile = original.card.geometry, len(original.card.bands), original.tile
    example: Sequence[int] = (2, bands, 2 * shape.stride + 5, 3 * shape.stride + 9)
    if tile:
        example = (1, bands, tile, tile)
    elif shape.border:
        example = (2, bands, shape.window(20), shape.window(40))
    return trace(module, example, shape, free=not tile, oblivious=oblivious)


def onnx_model(original: Original, *, for_maps: bool) -> Any:
    """Return the net as an ONNX model, without a word of where it was made.

    Args:
        original: The net.
        for_maps: Whether a graph of one size has the form for programs around QGIS.

    Raises:
        UsageError: The net has no such graph, or one that is too large.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    program = traced(modules(original)[for_maps], original)
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # as it was traced
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=_OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    if made is None:
        raise UsageError("torch gave no ONNX model")
    model = made.model_proto
    model.ir_version = _IR
    model.producer_name, model.producer_version = "whatwhere", __version__
    graph = model.graph
    for things in (model.metadata_props, graph.metadata_props, graph.value_info):
        del things[:]
    for thing in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        thing.ClearField("doc_string")
        thing.ClearField("metadata_props")
    if not original.tile:
        border = 2 * original.card.geometry.border
        left = f" - {border}" if border else ""
        _name_sides(graph.input[0], ("batch", "height", "width"))
        _name_sides(graph.output[0], ("batch", f"height{left}", f"width{left}"))
    if model.ByteSize() > onnx.MOST_BYTES:
        raise UsageError("its weights have more than the 2 GB that an ONNX file can hold")
    library("onnx").checker.check_model(model)
    onnx.require_harmless(model)
    return model


def _name_sides(value: Any, names: tuple[str, str, str]) -> None:
    sides = value.type.tensor_type.shape.dim
    for place, name in zip((0, 2, 3), names, strict=True):
        sides[place].dim_param = name


def with_lines(model: Any, lines: Mapping[str, str]) -> bytes:
    """Return an ONNX model's bytes, with these texts in its metadata."""
    library("onnx").helper.set_model_props(model, dict(lines))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


# --- graphs of bundles, for engines that are chosen when a net is loaded -------------------------


def installed(name: str) -> bool:
    """Whether the library of an engine is there."""
    return importlib.util.find_spec(RUNTIMES[name]) is not None


def graph_of(found: Bundle, folder: Path, encoder: Any, talk: Talk) -> Exported:
    """Return the graph of a bundle: what was kept beside it, else made now and compared.

    It is kept for the next time, unless the folder cannot be written or the net is on an encoder of
    the user's own.

    Args:
        found: The bundle.
        folder: Where it lies.
        encoder: The module that gives the feature maps, if the net was trained on one of the user's
            own.
        talk: Where it is said that this takes a while.

    Raises:
        UsageError: The net has no such graph, or a library is not installed.
        Differs: No engine that is installed answers as the original does.
    """
    key = _key(found.digest)
    if encoder is None:
        for path in folder.glob(f"{_KEPT}{key}-*{onnx.SUFFIX}"):
            if (kept := _sound(path)) is not None and kept.source == found.digest:
                return kept
    for name in MAKERS:
        library(name)
    data = _made(found, encoder, talk)
    if encoder is None:
        _keep(folder, key, data, talk)
    return onnx.parse(data)


def _made(found: Bundle, encoder: Any, talk: Talk) -> bytes:
    """Make a graph and compare it in each engine that is installed."""
    from whatwhere.nn.trace import FAULTS, brief

    talk.say("engine   looking for the net's graph; it is kept for the next time")
    backend = open_backend(found, "cpu", encoder)
    original = Original(card=found.card, backend=backend, digest=found.digest)
    try:
        model = onnx_model(original, for_maps=False)
    except FAULTS as error:
        raise UsageError(
            f"{found.card.model} runs on PyTorch alone: it has no graph for images of any size: "
            f"{brief(error)}."
        ) from error
    data = with_lines(model, {})
    engines: dict[str, float] = {}
    test: Mapping[str, Any] = {}
    fault: BundleError | None = None
    for name in filter(installed, RUNTIMES):
        try:
            runs = BACKENDS[name](original.exported(data))
            engines[name] = compare(runs.run, original, talk, f"engine   {name}")
            test = test or note_answers(runs, found.card)
        except BundleError as error:
            fault = BundleError(f"{name}: {error}")
    if not engines:
        raise fault or UsageError(f"{RUNTIMES['onnx']} is not installed")
    about = {"largest_difference": max(engines.values()), "engines": engines}
    return with_lines(model, original.lines(test, about))


def _key(digest: str) -> str:
    """Tells a graph of this bundle, made and compared with these versions, from others."""
    names = ("torch", *MAKERS, *RUNTIMES.values())
    words = [digest, __version__, FORMAT, *[_version(name) for name in names]]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _sound(path: Path) -> Exported | None:
    """Read a graph that was kept; None where it is not whole."""
    try:
        data = path.read_bytes()
        if path.stem.rpartition("-")[2] != _sum(data):
            return None
        return onnx.parse(data)
    except (OSError, BundleError):
        return None


def _keep(folder: Path, key: str, data: bytes, talk: Talk) -> None:
    """Put a graph beside its bundle, in the place of older ones."""
    path = folder / f"{_KEPT}{key}-{_sum(data)}{onnx.SUFFIX}"
    try:
        files.write_bytes(path, data)
        for stale in folder.glob(f"{_KEPT}*{onnx.SUFFIX}"):
            if stale != path:
                files.remove(stale)
    except OutputError:
        talk.say(f"note     {folder} cannot be written: the graph is made anew each time")


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
