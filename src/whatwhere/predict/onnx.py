"""Nets that were exported as ONNX, run by ONNX Runtime: without PyTorch, and without the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.errors import BundleError
from whatwhere.predict.exported import (
    INPUT,
    OUTPUT,
    End,
    Exported,
    ExportedBackend,
    library,
    of_lines,
)
from whatwhere.types import upwards

SUFFIX = ".onnx"
MOST_BYTES = 2**31 - 1  # protobuf has no more
_DOMAINS = ("", "ai.onnx")


class OnnxBackend(ExportedBackend):
    """Runs an exported net with ONNX Runtime.

    A file for tiles of one size has the form for QGIS: bytes divided by 255 go in, and
    probabilities are bent until their thresholds lie at 0.5.
    """

    engine = "onnx"

    def __init__(self, exported: Exported) -> None:
        """Make a session; raises as `ExportedBackend` does."""
        self._limits = upwards(exported.card.thresholds)[:, None, None]
        self._faults = faults()
        super().__init__(exported)

    def _run_tile(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Show an image as QGIS would, mirrored up to the tile, and unbend what comes back."""
        height, width = image.shape[-2:]
        found = self._ask(self._on_tile(image) / np.float32(255))[0, :, :height, :width]
        if not len(self._limits):
            return found
        bent = found[1:]
        above = self._limits + (2 * bent - 1) * (1 - self._limits)
        back: NDArray[np.float32] = np.where(bent >= 0.5, above, 2 * bent * self._limits)
        return back.astype(np.float32)

    @property
    def _planes(self) -> int:
        none_of_them = self.exported.tile > 0 and len(self._limits) > 0
        return super()._planes + none_of_them

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

    def _ends(self) -> tuple[list[End], list[End]]:
        def known(values: Sequence[Any]) -> list[End]:
            return [
                (
                    str(one.name),
                    one.type == "tensor(float)",
                    [side if isinstance(side, int) else None for side in one.shape],
                )
                for one in values
            ]

        return known(self._session.get_inputs()), known(self._session.get_outputs())


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
    exported = of_lines({entry.key: entry.value for entry in model.metadata_props}, data)
    require_harmless(model)
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


def faults() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises, which has no common name."""
    state = library("onnxruntime.capi.onnxruntime_pybind11_state")
    found = [thing for thing in vars(state).values() if isinstance(thing, type)]
    return tuple(thing for thing in found if issubclass(thing, Exception))


def _brief(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without the marks around it."""
    lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
    return lines[0].rpartition("[ONNXRuntimeError] : ")[2].strip(" .")[:300]
