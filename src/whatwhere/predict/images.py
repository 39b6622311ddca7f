"""Masks for files and folders of images."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.bundle import Card
from whatwhere.data.sources import images_of
from whatwhere.errors import DataError, UsageError
from whatwhere.io.image import SUFFIXES, encode_png, read_image
from whatwhere.predict.decide import decide, to_values
from whatwhere.predict.engine import Predictor
from whatwhere.types import Labels, Valid


@dataclass(frozen=True)
class Target:
    """An image and the name its mask gets, without folder and ending."""

    image: Path
    stem: str


@dataclass(frozen=True)
class Written:
    """What one image became: the files, and how many pixels each class has, by its name."""

    image: Path
    files: tuple[Path, ...]
    pixels: dict[str, int]
    valid: int


def plan_outputs(inputs: Sequence[Path], out: Path) -> tuple[list[Target], Path | None]:
    """Decide what is read and how it will be called.

    Masks take their image's stem. Equal stems keep the folders that tell them apart.

    Args:
        inputs: Files and folders.
        out: A folder; or a file, if there is one input image and the name ends like an image.

    Returns:
        The targets, and the file to write if `out` is one.

    Raises:
        DataError: An input is not there, or there is no image; all such are named.
        UsageError: Two images would get one name, or an input would be overwritten.
    """
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"there is no {', '.join(map(str, missing))}. Check the names.")
    images = list(dict.fromkeys(image for path in inputs for image in images_of(path)))
    if not images:
        raise DataError(
            f"there is no image in {', '.join(map(str, inputs))} ({', '.join(SUFFIXES)})."
        )
    if len(images) == 1 and not inputs[0].is_dir() and out.suffix.lower() in SUFFIXES:
        if out.suffix.lower() != ".png":
            raise UsageError(f"{out}: masks are written as PNG, whose numbers stay exact.")
        _keep_inputs(images, [out])
        return [Target(images[0], out.stem)], out
    if out.is_file():
        raise UsageError(f"{out}: this is a file; a folder is needed for the masks.")
    targets = [Target(image, stem) for image, stem in zip(images, _stems(images), strict=True)]
    _keep_inputs(images, [out / f"{target.stem}.png" for target in targets])
    return targets, None


def predict_image(
    predictor: Predictor,
    target: Target,
    out: Path,
    *,
    thresholds: Sequence[float],
    probabilities: bool = False,
    overlay: bool = False,
    file: Path | None = None,
) -> Written:
    """Segment one image and write what is asked for.

    The mask is `OUT/STEM.png`, a palette PNG whose numbers are the class values; a multi-label net
    writes `OUT/LABEL/STEM.png`. Probabilities go to `OUT/probabilities/` as 16-bit PNG (65535
    stands for 1), in a folder for each class where there are several; overlays to `OUT/overlays/`.

    Raises:
        DataError: The image cannot be read or has other bands.
        OutputError: A file cannot be written.
    """
    card = predictor.card
    found, valid = predictor.read(target.image)
    labels = decide(found, card.classes, thresholds)
    written: list[Path] = []

    def put(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], colors: bool) -> None:
        palette = card.classes.palette() if colors else None
        written.append(files.write_bytes(path, encode_png(pixels, palette)))

    several = card.classes.task == "multilabel"
    planes = labels if several else to_values(labels, card.classes, valid)[None]
    names = [folder_of(name) for name in card.classes.names] if several else [""]
    for name, plane in zip(names, planes, strict=True):
        place = file or out / name / f"{target.stem}.png"
        put(place, (plane * valid if several else plane).astype(np.uint8), colors=True)
    if probabilities:
        for name, plane in zip(_planes(card), found, strict=True):
            exact = np.round(plane.astype(np.float64) * 65535).astype(np.uint16)
            put(out / "probabilities" / name / f"{target.stem}.png", exact, colors=False)
    if overlay:
        picture = draw_overlay(read_image(target.image)[0], labels, card)
        put(out / "overlays" / f"{target.stem}.png", picture, colors=False)
    return Written(
        target.image, tuple(written), count_pixels(labels, valid, card), int(valid.sum())
    )


def count_pixels(labels: Labels, valid: Valid, card: Card) -> dict[str, int]:
    """Return how many valid pixels each class has."""
    if card.classes.task == "multilabel":
        counts = (labels.astype(bool) & valid).sum(axis=(1, 2))
    else:
        counts = np.bincount(labels[valid], minlength=len(card.classes))
    return dict(zip(card.classes.names, counts.tolist(), strict=True))


def table_of(written: Sequence[Written]) -> str:
    """Return CSV: image, class, pixels, and their share of the valid pixels."""
    lines = ["image,class,pixels,share"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for one in written:
        for name, pixels in one.pixels.items():
            share = pixels / one.valid if one.valid else 0.0
            writer.writerow([one.image, name, pixels, f"{share:.6f}"])
    return "\n".join([*lines, stream.getvalue()])


def draw_overlay(pixels: NDArray[np.generic], labels: Labels, card: Card) -> NDArray[np.uint8]:
    """Return the image `(H, W, 3)` uint8 with the classes' colours over it, edges drawn strong."""
    picture = to_display(pixels)
    planes = labels.astype(bool)
    if card.classes.task != "multilabel":
        planes = np.stack([labels == i for i in range(len(card.classes))])
    for info, there in zip(card.classes, planes, strict=True):
        if info.role == "background":
            continue
        color = np.array(info.color, dtype=np.float64)
        edge = there & ~_eroded(there)
        weight = np.where(edge, 0.9, np.where(there, 0.35, 0.0))[..., None]
        picture = picture * (1 - weight) + color * weight
    return np.clip(picture, 0, 255).astype(np.uint8)


def to_display(pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Stretch `(C, H, W)` between its 1st and 99th percentile; `(H, W, 3)` in [0, 255]."""
    bands = pixels[:3] if len(pixels) >= 3 else pixels[:1].repeat(3, axis=0)
    values = np.nan_to_num(bands.astype(np.float64), posinf=0, neginf=0)
    low, high = np.percentile(values, [1, 99])
    stretched = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    return np.moveaxis(stretched, 0, -1)


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = np.pad(mask, 1, mode="edge")
    core: NDArray[np.bool_] = (
        inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    )
    return core


def _planes(card: Card) -> list[str]:
    """The folders of the probabilities: none where there is one plane alone."""
    names = [folder_of(info.name) for info in card.classes.labels]
    return [""] if len(names) == 1 else names


def folder_of(name: str) -> str:
    """Return a class's name as one plain folder name, on any system, whatever is in it."""
    plain = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip(" .")
    return plain or "_"


def _stems(images: Sequence[Path]) -> list[str]:
    """The names of the masks: bare stems, behind as many folders as it takes to differ."""
    counts = Counter(image.stem.casefold() for image in images)
    if max(counts.values()) == 1:
        return [image.stem for image in images]
    alike = [image.parent.absolute() for image in images if counts[image.stem.casefold()] > 1]
    top = Path(os.path.commonpath(alike))
    stems = [
        (image.absolute().relative_to(top).with_suffix("")).as_posix()
        if counts[image.stem.casefold()] > 1
        else image.stem
        for image in images
    ]
    twice = [name for name, count in Counter(s.casefold() for s in stems).items() if count > 1]
    if twice:
        raise UsageError(
            f"several images would get the name {', '.join(twice[:5])}. "
            "Segment them into different folders."
        )
    return stems


def _keep_inputs(images: Sequence[Path], outputs: Sequence[Path]) -> None:
    inputs = {image.resolve() for image in images}
    lost = [path for path in outputs if path.resolve() in inputs]
    if lost:
        raise UsageError(f"{lost[0]}: the mask would overwrite an image. Choose another folder.")
