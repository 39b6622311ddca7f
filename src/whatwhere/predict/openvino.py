"""Nets that were exported for OpenVINO, and graphs of ONNX run by it: without PyTorch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.errors import BundleError, NumericsError
from whatwhere.predict.exported import (
    INPUT,
    End,
    Exported,
    ExportedBackend,
    library,
    of_lines,
)

SUFFIX, WEIGHTS = ".xml", ".bin"
_WEIGHTS_KEY = "whatwhere_weights"  # the digest of the file beside
_OURS, _PREFIX = "whatwhere", "whatwhere_"
_MOST_BYTES = 2**28  # of the graph; weights are in the other file
_MOST_VALUE = 1e18
_OPERATORS = re.compile(r"opset\d+")


class OpenvinoBackend(ExportedBackend):
    """Runs an exported net, or the bytes of an ONNX graph, with OpenVINO."""

    engine = "openvino"

    def __init__(self, exported: Exported) -> None:
        """Read the graph and compile it; raises as `ExportedBackend` does."""
        self._core = library("openvino", "openvino").Core()
        try:
            self._model = self._core.read_model(exported.data, exported.weights)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO does not take this file: {_brief(error)}.") from error
        super().__init__(exported)

    def _ask(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Its layers make 0 of what is not a number; min and max are NaN where any value is.
        if not (images.max() < _MOST_VALUE and images.min() > -_MOST_VALUE):
            raise NumericsError(
                f"the image has values that are not finite, or beyond {_MOST_VALUE:g}. Check them."
            )
        try:
            (found,) = self._session.infer({INPUT: images}, share_inputs=True).values()
        except RuntimeError as error:
            if "alloc" in str(error):
                raise MemoryError(f"cannot allocate memory: {_brief(error)}") from error
            raise BundleError(
                f"OpenVINO cannot run this net on {images.shape}: {_brief(error)}."
            ) from error
        result: NDArray[np.float32] = found
        return result

    def _open(self, threads: int) -> Any:
        wishes = {
            "INFERENCE_PRECISION_HINT": "f32",  # else it takes bf16 where the processor has it
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # others work beside it
        }
        try:
            return self._core.compile_model(self._model, "CPU", wishes).create_infer_request()
        except RuntimeError as error:
            raise BundleError(f"OpenVINO does not take this file: {_brief(error)}.") from error

    def _ends(self) -> tuple[list[End], list[End]]:
        def known(ports: Sequence[Any]) -> list[End]:
            return [
                (
                    min(port.get_names(), default=""),
                    port.get_element_type().get_type_name() == "f32",
                    [
                        side.get_length() if side.is_static else None
                        for side in port.get_partial_shape()
                    ],
                )
                for port in ports
            ]

        return known(self._model.inputs), known(self._model.outputs)


def read_exported(path: Path) -> Exported:
    """Read a file that `whatwhere export` made, and the weights beside it.

    Nothing of it is run, and no other file is opened.

    Raises:
        BundleError: One of the two is missing or damaged, they do not belong together; it is of a
            newer version, not ours, or wants operators than are not OpenVINO's own.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BundleError(f"{path}: a graph of more than 256 MB is not read.")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
    beside = path.with_suffix(WEIGHTS)
    try:
        lines = parse(data)
        try:
            weights = beside.read_bytes()
        except OSError as error:
            raise BundleError(
                f"its weights, {beside.name} beside it, cannot be read: {error.strerror}. Copy "
                "both files."
            ) from error
        if hashlib.sha256(weights).hexdigest() != lines.get(_WEIGHTS_KEY):
            raise BundleError(
                f"{beside.name} beside it holds other weights, or is damaged: its hash is not the "
                "one it should have. Copy both files again."
            )
        return of_lines(lines, data, weights)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def parse(data: bytes) -> dict[str, str]:
    """Return the texts in a graph's metadata.

    Raises:
        BundleError: It is damaged, or wants operators that are not OpenVINO's own.
    """
    try:
        text = data.decode("utf-8")
        if "<!DOCTYPE" in text:
            raise ValueError("it declares words of its own")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BundleError(
            f"this is no graph of OpenVINO, or a damaged one ({error}). Copy it again."
        ) from error
    for layer in root.iter("layer"):
        kind = layer.get("version", "")
        if not _OPERATORS.fullmatch(kind):
            raise BundleError(
                f"it wants operators that are not OpenVINO's ({layer.get('type')} of "
                f"{kind or 'nowhere'}), which is refused."
            )
    ours = root.iterfind(f"rt_info/{_OURS}/*")
    return {f"{_PREFIX}{line.tag}": line.get("value", "") for line in ours}


def to_files(model: Any, folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a model's graph and of its weights.

    Args:
        model: OpenVINO's.
        folder: A folder that may be written, for a moment.
    """
    with files.scratch(folder) as place:
        graph, weights = place / f"model{SUFFIX}", place / f"model{WEIGHTS}"
        library("openvino", "openvino").serialize(model, graph, weights)
        return graph.read_bytes(), weights.read_bytes()


def with_lines(graph: bytes, weights: bytes, lines: Mapping[str, str]) -> bytes:
    """Return a graph that holds these texts in its metadata, and the digest of its weights."""
    root = ElementTree.fromstring(graph.decode("utf-8"))
    info = root.find("rt_info")
    if info is None:
        info = ElementTree.SubElement(root, "rt_info")
    ours = ElementTree.SubElement(info, _OURS)
    digest = hashlib.sha256(weights).hexdigest()
    for key, text in {**lines, _WEIGHTS_KEY: digest}.items():
        ElementTree.SubElement(ours, key.removeprefix(_PREFIX), value=text)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data


def _brief(error: Exception) -> str:
    """The last line of what OpenVINO says, which is the cause; those before tell where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).strip(" .")[:300]
