"""Nets that were exported as ONNX, run by ONNX Runtime: without PyTorch, and without the bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import machine
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, NumericsError, ShapeError, UsageError
from whatwhere.predict.backends import check_answers
from whatwhere.tiling import mirror
from whatwhere.types import Geometry, upwards

SUFFIX = ".onnx"
FORMAT = 1
FORMAT_KEY, CARD_KEY = "whatwhere_format", "whatwhere_card"
SOURCE_KEY, EXPORT_KEY = "whatwhere_source", "whatwhere_export"
"""What the file's metadata hold: JSON, but for the digest of the bundle it was made from."""

INPUT, OUTPUT = "image", "probabilities"
MOST_BYTES = 2**31 - 1  # protobuf has no more
_MOST_CARD_CHARACTERS = 16 * 2**20
_MOST_TILE = 2**14
_DOMAINS = ("", "ai.onnx")
_EXTRA = 'pip install "whatwhere[onnx]"'


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A net as an ONNX file holds it.

    Attributes:
        card: The bundle's.
        data: The whole file.
        source: The digest of the bundle that it was made from.
        tile: Side of the only image that it takes, in the form for QGIS [px]; 0 where it takes any.
        memory_mb: What an image of 512×512 px takes on its way through it [MB].
        difference: The largest difference of a probability from the original's, as it was measured.
    """

    card: Card
    data: bytes
    source: str
    tile: int
    memory_mb: int
    difference: float

    @property
    def digest(self) -> str:
        """Of the file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def usable(self) -> Card:
        """The card for those who ask this file: its geometry is that of the tile."""
        if not self.tile:
            return self.card
        return self.card.replace(geometry=of_one_tile(self.card.geometry, self.tile))


class OnnxBackend:
    """Runs an exported net with ONNX Runtime, on the processor.

    Normalisation is inside the graph: it is given the numbers of files.
    """

    normalizes = True
    device = "cpu"

    def __init__(self, exported: Exported) -> None:
        """Make a session of as many threads as the machine has processors (`machine.threads`).

        Raises:
            BundleError: ONNX Runtime does not take the file.
            UsageError: It is not installed.
        """
        self.exported = exported
        card = exported.card
        self._limits = upwards(card.thresholds)[:, None, None]
        self._faults = faults()
        self._session = self._open(machine.threads())
        self._check(len(card.bands), card.classes.n_outputs)

    def memory_mb(self, bands: int, side: int) -> int:
        """Return what one image `(bands, side, side)` takes on its way through the net [MB]."""
        del bands  # the graph has its own
        return math.ceil(self.exported.memory_mb * (side / 512) ** 2)

    @contextlib.contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """Compute with so many threads while the block runs."""
        usual = self._session
        if usual.get_session_options().intra_op_num_threads != threads:
            self._session = self._open(threads)
        try:
            yield
        finally:
            self._session = usual

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn `(N, C, H, W)`, in the units of files, into probabilities `(N, K, H, W)`.

        Raises:
            NumericsError: A probability is not a number.
            ShapeError: The file takes tiles of one size alone, and an image is larger.
        """
        if self.exported.tile:
            found = np.stack([self._run_tile(image) for image in images])
        else:
            found = self._ask(np.ascontiguousarray(images, dtype=np.float32))
        if not np.isfinite(found).all():
            raise NumericsError("the net's output is not finite. Check the image's values.")
        return found

    def _run_tile(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Show an image as QGIS would, mirrored up to the tile, and unbend what comes back."""
        tile = self.exported.tile
        height, width = image.shape[-2:]
        if max(height, width) > tile:
            raise ShapeError(f"the net takes at most {tile}×{tile} px, not {height}×{width}.")
        shown = mirror(image[None], (tile, tile), (0, 0)).astype(np.float32) / np.float32(255)
        found = self._ask(shown)[0, :, :height, :width]
        if not len(self._limits):
            return found
        bent = found[1:]
        above = self._limits + (2 * bent - 1) * (1 - self._limits)
        back: NDArray[np.float32] = np.where(bent >= 0.5, above, 2 * bent * self._limits)
        return back.astype(np.float32)

    def _ask(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (found,) = self._session.run([OUTPUT], {INPUT: images})
        except self._faults as error:
            if "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise BundleError(
                f"ONNX Runtime cannot run this net on {images.shape}: {_brief(error)}."
            ) from error
        result: NDArray[np.float32] = found
        return result

    def _open(self, threads: int) -> Any:
        ort = library("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_mem_pattern = False  # it took twice the memory, and 3 % less time at best
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            return ort.InferenceSession(
                self.exported.data, options, providers=["CPUExecutionProvider"]
            )
        except self._faults as error:
            raise BundleError(f"ONNX Runtime does not take this file: {_brief(error)}.") from error

    def _check(self, bands: int, outputs: int) -> None:
        """Compare what goes in and comes out with the card."""
        tile, bent = self.exported.tile, len(self._limits) > 0
        sides = [tile, tile] if tile else []
        wanted = [
            (INPUT, [1, bands, *sides] if tile else [bands]),
            (OUTPUT, [1, outputs + bent, *sides] if tile else [outputs]),
        ]
        for values, (name, shape) in zip(
            (self._session.get_inputs(), self._session.get_outputs()), wanted, strict=True
        ):
            (one,) = values if len(values) == 1 else (None,)
            found = [] if one is None else one.shape if tile else one.shape[1:2]
            if one is None or (one.name, one.type, found) != (name, "tensor(float)", shape):
                raise BundleError(f"its {name} does not go with its card.")


def open_exported(path: Path, device: str = "auto") -> OnnxBackend:
    """Open a file that `whatwhere export` made, and ask it what it answered when it was made.

    Args:
        path: The file.
        device: `auto` or `cpu`.

    Raises:
        BundleError: As `read_exported`; or the net does not answer as it did.
        UsageError: ONNX Runtime is not installed, or another device is asked for.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {device}: {path} runs on the processor. Give the run itself for a GPU."
        )
    exported = read_exported(path)
    try:
        backend = OnnxBackend(exported)
        if exported.card.self_test:
            check_answers(backend, exported.usable)
    except (BundleError, NumericsError, ShapeError) as error:
        raise BundleError(f"{path}: {error}") from error
    return backend


def read_exported(path: Path) -> Exported:
    """Read a file that `whatwhere export` made.

    Nothing of it is run, and no other file is opened.

    Raises:
        BundleError: It is missing, damaged, of a newer version, not ours, or wants other files or
            operators than ONNX's own.
        UsageError: ONNX is not installed.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BundleError(f"{path}: more than 2 GB are not read: ONNX files have no more.")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
    try:
        return parse(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def parse(data: bytes) -> Exported:
    """Read the bytes of a file, as `read_exported` does."""
    onnx = library("onnx")
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise BundleError("this is no ONNX file, or a damaged one. Copy it again.") from error
    lines = {entry.key: entry.value for entry in model.metadata_props}
    if CARD_KEY not in lines:
        raise BundleError(
            "this ONNX file has no card in it: classes, bands and thresholds are not known. Only "
            "those that `whatwhere export` made are read."
        )
    if lines.get(FORMAT_KEY) != str(FORMAT):
        raise BundleError(
            f"the file has format {lines.get(FORMAT_KEY)!r}, this version reads {FORMAT}. Take the "
            "version of whatwhere that wrote it."
        )
    require_harmless(model)
    return _of_lines(lines, data)


def _of_lines(lines: dict[str, str], data: bytes) -> Exported:
    try:
        if max(map(len, lines.values())) > _MOST_CARD_CHARACTERS:
            raise ValueError("more than 16 MB are not read")
        about, card = json.loads(lines[EXPORT_KEY]), json.loads(lines[CARD_KEY])
        exported = Exported(
            card=Card.from_json(card),
            data=data,
            source=lines[SOURCE_KEY],
            tile=int(about["tile"]),
            memory_mb=int(about["memory_mb"]),
            difference=float(about["largest_difference"]),
        )
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BundleError(f"what is said in the file cannot be read: {error}.") from error
    if not 0 <= exported.tile <= _MOST_TILE or not 0 <= exported.memory_mb <= 2**30:
        raise BundleError("the file names a tile or a memory out of its range.")
    return exported


def require_harmless(model: Any) -> None:
    """Raise `BundleError` if a model wants other files, or operators that are not ONNX's own."""
    foreign = {opset.domain for opset in model.opset_import} - {*_DOMAINS}
    if model.functions or foreign:
        named = ", ".join(sorted(foreign)) or "of its own"
        raise BundleError(f"it wants operators that are not ONNX's ({named}), which is refused.")
    for graph in _graphs(model.graph):
        tensors = [*graph.initializer]
        for sparse in graph.sparse_initializer:
            tensors += [sparse.values, sparse.indices]
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise BundleError(
                    f"it wants operators that are not ONNX's ({node.domain}), which is refused."
                )
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    tensors += [sparse.values, sparse.indices]
        if any(one.data_location or len(one.external_data) for one in tensors):
            raise BundleError("its weights lie in another file, which is not opened.")


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, and all that are inside its nodes."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs]
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def of_one_tile(geometry: Geometry, tile: int) -> Geometry:
    """Return the geometry of a net that takes one size alone: without a border.

    Where a tile has no room for what the net sees, tiles are blended.
    """
    margin = geometry.margin
    if margin is not None:
        margin = max(margin, geometry.border)
        if tile < 2 * -(-margin // geometry.stride) * geometry.stride + geometry.stride:
            margin = None
    return dataclasses.replace(geometry, margin=margin, border=0, remainder=0)


def library(name: str) -> Any:
    """Import a library of the extra `onnx`; raises `UsageError` where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is needed for ONNX files: {_EXTRA} ({error}).") from error


def faults() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises, which has no common name."""
    state = library("onnxruntime.capi.onnxruntime_pybind11_state")
    found = [thing for thing in vars(state).values() if isinstance(thing, type)]
    return tuple(thing for thing in found if issubclass(thing, Exception))


def _brief(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without the marks around it."""
    lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
    return lines[0].rpartition("[ONNXRuntimeError] : ")[2].strip(" .")[:300]
