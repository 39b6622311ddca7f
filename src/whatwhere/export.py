"""A trained net as one file for other programs, compared with the original before it is kept."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from whatwhere import bundle, files
from whatwhere.bundle import Card
from whatwhere.errors import UsageError
from whatwhere.predict import onnx, openvino
from whatwhere.predict.backends import note_answers, open_backend
from whatwhere.predict.exported import library, of_one_tile
from whatwhere.predict.graphs import (
    MAKERS,
    RUNTIMES,
    Ask,
    Differs,
    Images,
    Original,
    compare,
    modules,
    onnx_model,
    traced,
    with_lines,
)
from whatwhere.predict.onnx import OnnxBackend
from whatwhere.predict.openvino import OpenvinoBackend
from whatwhere.talk import Talk
from whatwhere.tiling import mirror

PT2 = ".pt2"
KINDS = (onnx.SUFFIX, openvino.SUFFIX, PT2)
ENGINES = {onnx.SUFFIX: "onnx", openvino.SUFFIX: "openvino"}
"""The engine of each kind of file that `predict` takes."""

_CONTEXT = 64  # what programs around QGIS are told to cut off each side of a tile [px]
_MOST_TILE = 4096


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


@dataclass(frozen=True, kw_only=True)
class MadeXml(Made):
    """An export for OpenVINO.

    Attributes:
        weights: The bytes of the file beside the graph.
        engine: What runs it.
    """

    weights: bytes
    engine: OpenvinoBackend


def export(
    run: Path, output: Path, *, tile: int = 0, encoder: Any = None, talk: Talk | None = None
) -> dict[str, Any]:
    """Write a trained net as one file, as `jobs.export` describes it."""
    kind, talk = output.suffix.lower(), talk or Talk()
    original = open_original(run, output, tile, encoder)
    made, largest = make(original, output, talk)
    about = {"largest_difference": largest, "versions": versions(kind)}
    lines = original.lines(made.self_test, about)
    if kind == onnx.SUFFIX and tile and not original.card.resize:
        lines |= for_maps(original.card, tile)
    size = write(output, made, lines)
    for note in notes(original.card, kind, tile):
        talk.say(f"note     {note}")
    return {
        "file": str(output),
        "bytes": size,
        "tile": tile,
        "largest_difference": largest,
        "compared": [list(size) for size in original.sizes],
    }


def open_original(run: Path, output: Path, tile: int, encoder: Any) -> Original:
    """Open what is to be exported; what cannot be is refused before anything is computed.

    Raises:
        BundleError: The run is missing or damaged.
        UsageError: There is no such ending, the tile is out of its range, or a library is not
            installed.
        OutputError: The folder cannot be written.
    """
    kind = output.suffix.lower()
    if kind not in KINDS:
        raise UsageError(
            f"{output}: a net is exported as .onnx, .xml, .pt2, .dlpk or .emd. Let the name end in "
            "one of them."
        )
    if run.suffix.lower() in KINDS:
        raise UsageError(f"{run}: this is an export. Give the run that it was made from.")
    if output.is_dir():
        raise UsageError(f"{output}: this is a folder. Give a file's name.")
    if kind in ENGINES:
        for name in (*MAKERS, RUNTIMES[ENGINES[kind]]):
            library(name, ENGINES[kind])
    found = bundle.load(run)
    _check_tile(tile, found.card)
    backend = open_backend(found, "cpu", encoder)
    files.check_writable(output.absolute().parent)
    return Original(card=found.card, backend=backend, digest=found.digest, tile=tile)


def write(output: Path, made: Made, lines: Mapping[str, str]) -> int:
    """Write an export with these texts in its metadata; the bytes of its files.

    Raises:
        OutputError: A file cannot be written; none is then.
    """
    data = {output: made.finish(lines)}
    if isinstance(made, MadeXml):
        data = {output.with_suffix(openvino.WEIGHTS): made.weights, **data}
    files.write_together(data)
    return sum(map(len, data.values()))


def versions(kind: str) -> dict[str, str]:
    """Return the versions of what an export is made and run with."""
    names = ["torch", *((*MAKERS, RUNTIMES[ENGINES[kind]]) if kind in ENGINES else ())]
    return {name: version(name) for name in names}


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
    least = of_one_tile(card.geometry, _MOST_TILE).window(32)
    if tile and not least <= tile <= _MOST_TILE:
        raise UsageError(f"--tile {tile}: of this net it may be {least} to {_MOST_TILE} px.")


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


def make(original: Original, output: Path, talk: Talk) -> tuple[Made, float]:
    """Make an export, and compare it; the largest difference.

    Raises:
        UsageError: The net cannot be exported in this form.
        Differs: The export does not answer as the original does.
    """
    from whatwhere.nn.trace import FAULTS, brief

    kind, reason = output.suffix.lower(), ""
    for oblivious in (False, True) if kind == PT2 and not original.tile else (False,):
        talk.say("export   looking for the net's graph")
        try:
            made: Made
            if kind == onnx.SUFFIX:
                made = _make_onnx(original)
            elif kind == openvino.SUFFIX:
                made = _make_xml(original, output.absolute().parent)
            else:
                made = _make_pt2(original, oblivious)
            return made, compare(made.ask, original, talk)
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


def _make_pt2(original: Original, oblivious: bool) -> Made:
    import torch

    program = traced(modules(original)[0], original, oblivious)
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


def _make_onnx(original: Original) -> Made:
    model = onnx_model(original, for_maps=True)
    exported = original.exported(model.SerializeToString())
    backend = OnnxBackend(exported)
    return Made(
        ask=backend.run,
        finish=lambda lines: with_lines(model, lines),
        self_test=note_answers(backend, exported.usable),
    )


def _make_xml(original: Original, folder: Path) -> MadeXml:
    model = onnx_model(original, for_maps=False)
    read = library("openvino", "openvino").Core().read_model(model.SerializeToString())
    return made_xml(original, *openvino.to_files(read, folder))


def made_xml(original: Original, graph: bytes, weights: bytes) -> MadeXml:
    """Return an export of OpenVINO, given the bytes of its two files."""
    exported = original.exported(graph, weights)
    backend = OpenvinoBackend(exported)
    return MadeXml(
        ask=backend.run,
        finish=lambda lines: openvino.with_lines(graph, weights, lines),
        self_test=note_answers(backend, exported.usable),
        weights=weights,
        engine=backend,
    )
