"""A trained net as one file for other programs, compared with the original before it is kept."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import bundle, files
from whatwhere._version import __version__
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, UsageError
from whatwhere.predict import onnx
from whatwhere.predict.backends import TorchBackend, note_answers, open_backend
from whatwhere.predict.onnx import Exported, OnnxBackend
from whatwhere.talk import Talk
from whatwhere.tiling import mirror

PT2 = ".pt2"
KINDS = (onnx.SUFFIX, PT2)
MOST_DIFFERENCE = 1e-4
"""The largest difference of a probability from the original's that is accepted."""

_OPSET, _IR = 18, 8  # ONNX Runtime from 1.14 on; QGIS Deepness asks for one of at most 1.17
_CONTEXT = 64  # what programs around QGIS are told to cut off each side of a tile [px]
_MOST_TILE = 4096

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
    tile: int

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
            windows = [(2 * step + 5, step + 9), (5, 7), (step, 2 * step)]
        return [(count, *window) for count, window in zip((1, 1, 2), windows, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Made:
    """An export in memory.

    Attributes:
        ask: Runs it: images in the units of files to probabilities.
        finish: Returns the bytes of the file, given the texts that its metadata hold.
        self_test: What it answers to seeded noise (`Card.self_test`).
    """

    ask: Ask
    finish: Callable[[Mapping[str, str]], bytes]
    self_test: Mapping[str, Any]


def export(
    run: Path, output: Path, *, tile: int = 0, encoder: Any = None, talk: Talk | None = None
) -> dict[str, Any]:
    """Write a trained net as one file, as `jobs.export` describes it."""
    kind, talk = output.suffix.lower(), talk or Talk()
    if kind not in KINDS:
        raise UsageError(
            f"{output}: a net is exported as .onnx, .pt2, .dlpk or .emd. Let the name end in one "
            "of them."
        )
    if run.suffix.lower() in KINDS:
        raise UsageError(f"{run}: this is an export. Give the run that it was made from.")
    if output.is_dir():
        raise UsageError(f"{output}: this is a folder. Give a file's name.")
    if kind == onnx.SUFFIX:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            onnx.library(name)
    found = bundle.load(run)
    _check_tile(tile, found.card)
    backend = open_backend(found, "cpu", encoder)
    original = Original(card=found.card, backend=backend, digest=found.digest, tile=tile)
    files.check_writable(output.absolute().parent)
    made, largest = _make(original, kind, talk)
    card = found.card.replace(self_test=dict(made.self_test))
    about = {
        "tile": tile,
        "memory_mb": max(1, backend.memory_mb(len(card.bands), 512)),
        "largest_difference": largest,
        "compared": original.sizes,
        "versions": {name: version(name) for name in _libraries(kind)},
    }
    lines = {
        onnx.FORMAT_KEY: str(onnx.FORMAT),
        onnx.CARD_KEY: json.dumps(card.to_json(), allow_nan=False),
        onnx.SOURCE_KEY: original.digest,
        onnx.EXPORT_KEY: json.dumps(about),
    }
    if kind == onnx.SUFFIX and tile and not card.resize:
        lines |= for_maps(card, tile)
    data = made.finish(lines)
    files.write_bytes(output, data)
    for note in notes(card, kind, tile):
        talk.say(f"note     {note}")
    return {
        "file": str(output),
        "bytes": len(data),
        "tile": tile,
        "largest_difference": largest,
        "compared": [list(size) for size in original.sizes],
    }


def for_maps(card: Card, tile: int) -> dict[str, str]:
    """Return what QGIS Deepness and geodeep read in a file's metadata.

    Both divide bytes by 255, and Deepness then subtracts a mean and divides by a deviation if they
    are noted; geodeep does not. So none are, and the graph does it.
    """
    names = card.classes.names
    if card.classes.task == "multilabel":
        names = [next(name for name in ("none", "none of them") if name not in names), *names]
    shape = card.geometry
    context = shape.border or min(_CONTEXT if shape.margin is None else shape.margin, _CONTEXT)
    words: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(number): name for number, name in enumerate(names)},
        "tile_size": tile,
        "tiles_size": tile,
        "tiles_overlap": min(50, math.ceil(200 * context / tile)),
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "seg_thresh": 0.0 if card.classes.task == "multiclass" else 0.5,
        "seg_small_segment": 0,
    }
    if card.pixel_size is not None:
        words["resolution"] = round(100 * card.pixel_size, 4)
    return {key: json.dumps(word) for key, word in words.items()}


def _check_tile(tile: int, card: Card) -> None:
    least = onnx.of_one_tile(card.geometry, _MOST_TILE).window(32)
    if tile and not least <= tile <= _MOST_TILE:
        raise UsageError(f"--tile {tile}: of this net it may be {least} to {_MOST_TILE} px.")


def _libraries(kind: str) -> tuple[str, ...]:
    return ("torch", "onnx", "onnxscript", "onnxruntime") if kind == onnx.SUFFIX else ("torch",)


def notes(card: Card, kind: str, tile: int) -> list[str]:
    """What a user should know of the file, and would not guess."""
    notes = []
    if card.resize:
        notes.append(
            f"the net was trained on images stretched to {card.resize[0]}×{card.resize[1]} px: "
            "other programs have to stretch theirs, and those around QGIS cannot."
        )
    elif kind == onnx.SUFFIX and tile:
        if card.pixel_size is None:
            notes.append("the size of its pixels is not known: say it in QGIS yourself.")
        if card.classes.task == "multilabel":
            notes.append("its labels may overlap: in QGIS a pixel has the likeliest alone.")
        if len(card.bands) != 3:
            notes.append(f"it has {len(card.bands)} bands: geodeep takes nets of 3 alone.")
    return notes


def _make(original: Original, kind: str, talk: Talk) -> tuple[Made, float]:
    """Make an export, and compare it; the largest difference.

    Raises:
        UsageError: The net cannot be exported in this form.
        Differs: The export does not answer as the original does.
    """
    from whatwhere.nn.trace import FAULTS, brief

    make = _make_onnx if kind == onnx.SUFFIX else _make_pt2
    reason = ""
    for oblivious in (False, True) if kind == PT2 and not original.tile else (False,):
        talk.say("export   looking for the net's graph")
        try:
            made = make(original, oblivious)
            return made, _compare(made, original, talk)
        except UsageError as error:
            reason = reason or str(error)
        except FAULTS as error:
            if isinstance(error, Differs):
                raise
            reason = reason or brief(error)
    model = original.card.model
    if original.tile:
        raise UsageError(f"{model} cannot be exported as {kind}: {reason}.")
    raise UsageError(
        f"{model} cannot be exported as {kind} for images of any size: {reason}. --tile 512 "
        "exports it for images of 512×512 px."
    )


def _compare(made: Made, original: Original, talk: Talk) -> float:
    """Return the largest difference of a probability, on noise as the data are distributed."""
    card, largest = original.card, 0.0
    noise = np.random.Generator(np.random.Philox(key=[0, 6]))
    for count, height, width in original.sizes:
        shape = (count, len(card.bands), height, width)
        images = card.normalization.undo(noise.standard_normal(shape, dtype=np.float32))
        wanted, found = original.ask(images), made.ask(images)
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
    talk.say(f"export   compared at {len(original.sizes)} sizes: off by {largest:.1e} at the most")
    return largest


def _module(original: Original) -> tuple[Any, Any]:
    """The net as a module of the export's form; and the same, as programs around QGIS want it."""
    from whatwhere.nn.whole import ForMaps, OneTile, Whole

    card = original.card
    whole = Whole(original.backend.net, card.normalization, card.classes.task).eval()
    if not original.tile:
        return whole, whole
    tile = OneTile(whole, original.tile, card.geometry).eval()
    return tile, ForMaps(tile, card.thresholds).eval()


def _trace(module: Any, original: Original, oblivious: bool) -> Any:
    from whatwhere.nn.trace import trace

    shape, bands, tile = original.card.geometry, len(original.card.bands), original.tile
    example: Sequence[int] = (2, bands, 2 * shape.stride + 5, 3 * shape.stride + 9)
    if tile:
        example = (1, bands, tile, tile)
    elif shape.border:
        example = (2, bands, shape.window(20), shape.window(40))
    return trace(module, example, shape, free=not tile, oblivious=oblivious)


def _make_pt2(original: Original, oblivious: bool) -> Made:
    import torch

    module, _ = _module(original)
    program = _trace(module, original, oblivious)
    kept = _saved_pt2(program, {})
    loaded = torch.export.load(io.BytesIO(kept)).module()
    tile = original.tile

    def run(images: Images) -> Images:
        with torch.inference_mode():
            found: Images = loaded(torch.from_numpy(images)).numpy()
        return found

    def ask(images: Images) -> Images:
        if not tile:
            return run(images)
        height, width = images.shape[-2:]
        ready = mirror(images, (tile, tile), (0, 0))
        return np.concatenate([run(one[None]) for one in ready])[..., :height, :width]

    return Made(
        ask=ask,
        finish=lambda lines: _saved_pt2(program, lines),
        self_test=original.card.self_test,
    )


def _saved_pt2(program: Any, lines: Mapping[str, str]) -> bytes:
    import torch

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, stream, extra_files=dict(lines))
    return stream.getvalue()


def _make_onnx(original: Original, oblivious: bool) -> Made:
    _, module = _module(original)
    program = _trace(module, original, oblivious)
    model = _converted(program, original)
    if model.ByteSize() > onnx.MOST_BYTES:
        raise UsageError("its weights have more than the 2 GB that an ONNX file can hold")
    exported = Exported(
        card=original.card,
        data=model.SerializeToString(),
        source=original.digest,
        tile=original.tile,
        memory_mb=0,
        difference=0.0,
    )
    backend = OnnxBackend(exported)

    def finish(lines: Mapping[str, str]) -> bytes:
        onnx.library("onnx").helper.set_model_props(model, dict(lines))
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    test = note_answers(backend, exported.usable)
    return Made(ask=backend.run, finish=finish, self_test=test)


def _converted(program: Any, original: Original) -> Any:
    """The graph as ONNX has it, without a word of where it was made."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # as it was traced
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            input_names=[onnx.INPUT],
            output_names=[onnx.OUTPUT],
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
    onnx.library("onnx").checker.check_model(model)
    onnx.require_harmless(model)
    return model


def _name_sides(value: Any, names: tuple[str, str, str]) -> None:
    sides = value.type.tensor_type.shape.dim
    for place, name in zip((0, 2, 3), names, strict=True):
        sides[place].dim_param = name
