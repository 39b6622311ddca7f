"""A trained net in 8 bits: fitted to its training images, kept only where it scores as well."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whatwhere import evaluate as scoring
from whatwhere.data.labels import read_pixels
from whatwhere.data.sources import Pair
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.export import made_xml, notes, open_original, versions, write
from whatwhere.io.image import resize_image
from whatwhere.predict import openvino
from whatwhere.predict.engine import Predictor
from whatwhere.predict.exported import library
from whatwhere.predict.graphs import Original, compare, onnx_model
from whatwhere.predict.openvino import OpenvinoBackend
from whatwhere.talk import Talk
from whatwhere.tiling import mirror
from whatwhere.types import Image

MOST_LOSS = 0.005
"""By how much the mean IoU on the validation split may fall."""

_CHIPS = 200
_TOLERANCE = 0.05  # processors round whole numbers differently, more than float32
_SILENCE = "NNCF_CI"  # set, NNCF tells its makers nothing


def export_int8(
    run: Path,
    output: Path,
    train: Sequence[Pair],
    val: Sequence[Pair],
    tile: int,
    encoder: Any,
    talk: Talk,
) -> dict[str, Any]:
    """Write a trained net in 8 bits, as `jobs.export` describes it.

    Args:
        run: A run folder.
        output: A file that ends in `.xml`.
        train: The run's training images, by which the ranges of numbers are found.
        val: Its validation images, on which both nets are scored.
        tile: Side of the only image that the file is to take [px]; 0 for any.
        encoder: The module that gives the feature maps, if the net was trained on one of the user's
            own.
        talk: Where the progress goes.

    Raises:
        BundleError: In 8 bits the net does not score as well; or as `export` raises it.
        DataError: An image cannot be read, or no pixel of the validation masks counts.
        OutputError: A file cannot be written.
        UsageError: The output is no `.xml`, the net cannot be exported, or NNCF is not installed.
    """
    if output.suffix.lower() != openvino.SUFFIX:
        raise UsageError(f"{output}: --int8 is for OpenVINO. Let the name end in .xml.")
    nncf = _nncf()
    original = open_original(run, output, tile, encoder)
    folder, card = output.absolute().parent, original.card
    talk.say("export   looking for the net's graph")
    plain = (
        library("openvino", "openvino")
        .Core()
        .read_model(onnx_model(original, for_maps=False).SerializeToString())
    )
    exact = made_xml(original, *openvino.to_files(plain, folder))
    largest = compare(exact.ask, original, talk)
    chips = [*talk.track(_chips(original, train), "fitting to 8 bits", min(len(train), _CHIPS))]
    talk.say(f"export   fitting to 8 bits on {len(chips)} training images")
    small = quantized(nncf, plain, chips)
    made = made_xml(original, *openvino.to_files(small, folder))
    scores = {
        "mean_iou": _mean_iou(original, exact.engine, val, talk),
        "mean_iou_int8": _mean_iou(original, made.engine, val, talk),
    }
    told = f"{scores['mean_iou_int8']:.4f} in 8 bits, {scores['mean_iou']:.4f} as it was"
    if not scores["mean_iou"] - scores["mean_iou_int8"] <= MOST_LOSS:
        raise BundleError(
            f"the net does not score as well in 8 bits: its mean IoU on the {len(val)} validation "
            f"images is {told}, and may fall by {MOST_LOSS:g}. Nothing was written. Export it "
            "without --int8."
        )
    talk.say(f"export   mean IoU on the {len(val)} validation images: {told}")
    about = {
        "largest_difference": largest,
        "versions": {**versions(openvino.SUFFIX), "nncf": nncf.__version__},
        "int8": scores,
    }
    ready = Original(
        card=card.replace(scores={**card.scores, **scores}),
        backend=original.backend,
        digest=original.digest,
        tile=tile,
    )
    size = write(output, made, ready.lines({**made.self_test, "tolerance": _TOLERANCE}, about))
    for note in notes(card, openvino.SUFFIX, tile):
        talk.say(f"note     {note}")
    return {
        "file": str(output),
        "bytes": size,
        "tile": tile,
        "largest_difference": largest,
        "compared": [list(size) for size in original.sizes],
        **scores,
    }


def _nncf() -> Any:
    """Import NNCF, and keep it from telling its makers what it does."""
    with contextlib.ExitStack() as stack:
        if _SILENCE not in os.environ:
            os.environ[_SILENCE] = "1"
            stack.callback(os.environ.pop, _SILENCE)
        return library("nncf", "int8")


def quantized(nncf: Any, model: Any, chips: Sequence[Image]) -> Any:
    """Return a model in 8 bits; what NNCF would say of it on standard output is kept back."""
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(chips),
            preset=nncf.QuantizationPreset.MIXED,  # zero may lie anywhere in a range
            subset_size=len(chips),
        )


def _chips(original: Original, pairs: Sequence[Pair]) -> Iterator[Image]:
    """Yield what the net is shown of training images, one of each: `(1, C, H, W)`.

    An image that is larger than the chips of the training is cut at a place drawn from its number.
    """
    card, tile = original.card, original.tile
    shape = card.geometry
    predictor = Predictor(card, original.backend)
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), _CHIPS)).round().astype(int)
    for number in chosen.tolist():
        pixels, valid = read_pixels(pairs[number], card.bands)
        image = card.normalization.undo(predictor.prepare(pixels, valid))
        if card.resize:
            image = resize_image(image, *card.resize)
        rng = np.random.Generator(np.random.Philox(key=[number, 9]))
        for axis, side in enumerate(card.resize or card.chip_size, 1):
            start = int(rng.integers(max(image.shape[axis] - side, 0) + 1))
            image = image.take(range(start, min(start + side, image.shape[axis])), axis)
        if tile:
            image = mirror(image[:, :tile, :tile], (tile, tile), (0, 0))
        elif shape.border:
            sides = shape.window(image.shape[1]), shape.window(image.shape[2])
            image = mirror(image, sides, (shape.border, shape.border))
        yield np.ascontiguousarray(image[None], dtype=np.float32)


def _mean_iou(
    original: Original, backend: OpenvinoBackend, pairs: Sequence[Pair], talk: Talk
) -> float:
    """Return what an export scores on the validation images."""
    predictor = Predictor(backend.exported.usable, backend, original.tile)
    found = scoring.evaluate(
        talk.track(scoring.answers(predictor, pairs), "scoring", len(pairs)),
        original.card.classes,
        original.card.thresholds,
    )
    mean = found.to_json()["mean_iou"]
    if mean is None:
        raise DataError("no pixel of the validation masks counts: there is nothing to score on.")
    return float(mean)
