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
from whatwhere.data.sources import MASK_FOLDERS, images_of
from whatwhere.errors import DataError, UsageError
from whatwhere.io.image import SUFFIXES, encode_png, read_image
from whatwhere.predict.decide import decide, to_values
from whatwhere.predict.engine import Predictor
from whatwhere.types import Classes, Labels, Valid


@dataclass(frozen=True)
class Target:
    """An image and the files that are made of it.

    Attributes:
        image: What is read.
        masks: The mask; of a multi-label net one for each label.
        probabilities: One for each label, or for each class of a softmax; empty if not asked for.
        overlay: None if not asked for.
    """

    image: Path
    masks: tuple[Path, ...]
    probabilities: tuple[Path, ...]
    overlay: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is written."""
        return (*self.masks, *self.probabilities, *([self.overlay] if self.overlay else []))


@dataclass(frozen=True)
class Written:
    """What one image or scene became.

    Attributes:
        image: What was read.
        files: What was written; empty for a scene whose other shards have not finished.
        pixels: Of each class, by its name.
        valid: Pixels with data.
        objects: How many polygons were written; None where none were wanted.
    """

    image: Path
    files: tuple[Path, ...]
    pixels: dict[str, int]
    valid: int
    objects: int | None = None


def plan_outputs(
    inputs: Sequence[Path],
    out: Path,
    classes: Classes,
    *,
    probabilities: bool = False,
    overlay: bool = False,
    table: Path | None = None,
) -> list[Target]:
    """Decide what is read and how everything that is written will be called.

    A mask takes its image's stem: `OUT/STEM.png`, or `OUT/LABEL/STEM.png` of a multi-label net.
    Probabilities go to `OUT/probabilities/`, in a folder for each class where there are several,
    overlays to `OUT/overlays/`. Equal stems keep the folders that tell them apart.

    Args:
        inputs: Files and folders.
        out: A folder; or a PNG file, for one input image and one mask.
        classes: The class table.
        probabilities: Whether probabilities are written too.
        overlay: Whether overlays are written too.
        table: A CSV file that is written beside.

    Raises:
        DataError: An input is not there, or there is no image; all such are named.
        UsageError: Two files would get one name, or a file that is read, or the masks of a data
            set, would be overwritten.
    """
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"there is no {', '.join(map(str, missing))}. Check the names.")
    images = list(dict.fromkeys(image for path in inputs for image in images_of(path)))
    if not images:
        raise DataError(
            f"there is no image in {', '.join(map(str, inputs))} ({', '.join(SUFFIXES)})."
        )
    folders = [folder_of(info.name) for info in classes.labels]
    masks = folders if classes.task == "multilabel" else [""]
    planes = folders if len(folders) > 1 else [""]
    single = not inputs[0].is_dir() and len(images) == 1 and out.suffix.lower() in SUFFIXES
    if single and (out.suffix.lower() != ".png" or len(masks) > 1):
        raise UsageError(
            f"{out}: masks are written as PNG, whose numbers stay exact, and of several labels "
            "each into a folder of its own. Give a folder."
        )
    if not single and out.is_file():
        raise UsageError(f"{out}: this is a file; a folder is needed for the masks.")
    root, stems = (out.parent, [out.stem]) if single else (out, stems_of(images))
    targets = [
        Target(
            image,
            masks=(out,) if single else tuple(root / name / f"{stem}.png" for name in masks),
            probabilities=tuple(
                root / "probabilities" / name / f"{stem}.png" for name in planes if probabilities
            ),
            overlay=root / "overlays" / f"{stem}.png" if overlay else None,
        )
        for image, stem in zip(images, stems, strict=True)
    ]
    _check_outputs(targets, [table] if table else [])
    return targets


def predict_image(predictor: Predictor, target: Target, thresholds: Sequence[float]) -> Written:
    """Segment one image and write what is asked for.

    Masks are palette PNGs whose numbers are the class values; probabilities are 16-bit, 65535
    stands for 1.

    Raises:
        DataError: The image cannot be read or has other bands.
        NumericsError: The net's output is not finite.
        OutputError: A file cannot be written.
    """
    card = predictor.card
    found, valid = predictor.read(target.image)
    labels = decide(found, card.classes, thresholds)
    several = card.classes.task == "multilabel"
    planes = labels * valid if several else to_values(labels, card.classes, valid)[None]
    for path, plane in zip(target.masks, planes, strict=True):
        files.write_bytes(path, encode_png(plane.astype(np.uint8), card.classes.palette()))
    for path, plane in zip(target.probabilities, found, strict=False):
        exact = np.round(plane.astype(np.float64) * 65535).astype(np.uint16)
        files.write_bytes(path, encode_png(exact))
    if target.overlay:
        picture = draw_overlay(read_image(target.image)[0], labels, card)
        files.write_bytes(target.overlay, encode_png(picture))
    pixels = count_pixels(labels, valid, card)
    return Written(target.image, target.files, pixels, int(valid.sum()))


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


def folder_of(name: str) -> str:
    """Return a class's name as one plain folder name, on any system, whatever is in it."""
    plain = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip(" .") or "_"
    taken = {"probabilities", "overlays", "con", "nul", "aux", "prn"}
    return f"{plain}_" if plain.casefold() in taken else plain


def stems_of(images: Sequence[Path]) -> list[str]:
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


def _check_outputs(targets: Sequence[Target], others: Sequence[Path]) -> None:
    """Refuse to write a file twice, over what is read, or among the masks of a data set."""
    inputs = {target.image.resolve() for target in targets}
    seen: set[str] = set()
    for path in [*(file for target in targets for file in target.files), *others]:
        place = path.resolve()
        if place in inputs:
            raise UsageError(f"{path}: this would overwrite an image. Choose another folder.")
        if any(_holds_truth(folder) for folder in place.parents):
            raise UsageError(
                f"{path}: this lies among the masks of a data set. Choose another folder."
            )
        if str(place).casefold() in seen:
            raise UsageError(f"{path}: two files would get this name. Choose other names.")
        seen.add(str(place).casefold())


def _holds_truth(folder: Path) -> bool:
    """Whether this is the folder of masks beside a folder of images."""
    return folder.name.lower() in MASK_FOLDERS and any(
        (folder.parent / name).is_dir() for name in ("images", "Images")
    )
