"""Where images and masks lie: folders in, pairs out."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from whatwhere.errors import DataError, Problem
from whatwhere.io.esri import Definition, Export, is_export
from whatwhere.io.image import SUFFIXES, fault

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SPLIT_FOLDERS: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
MASK_FOLDERS = ("masks", "labels")
_MASK_ENDINGS = ("_mask", "_label", "-mask", "-label", "_labels", "_masks")
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}

LAYOUT = (
    "A folder with images/ and masks/ (or labels/) is needed, with or without train/, val/ and "
    "test/ above them."
)


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        key: The image's path below `images/` without its ending, behind the split folder if any.
        image: The image file.
        masks: The mask file; for a multi-label set one file for each label.
        split: The split whose folder it lies in; None where there are no such folders.
        trust: Whether files that are made of other files may be read.
    """

    key: str
    image: Path
    masks: tuple[Path, ...]
    split: Split | None
    trust: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Source:
    """What a folder holds.

    Attributes:
        root: The folder.
        pairs: In the order of their keys.
        labels: The names of a multi-label set's labels, its folders below `masks/`; else empty.
        problems: What was noticed while pairing.
        exports: What Esri's files in it say, one for each split folder; empty where there are none.
        definition: What they say together; None where there are none.
        pixel_size: Of a pixel on the ground [m], where the images say it and agree; else None.
    """

    root: Path
    pairs: tuple[Pair, ...]
    labels: tuple[str, ...]
    problems: tuple[Problem, ...]
    exports: tuple[Export, ...] = field(default=(), kw_only=True)
    definition: Definition | None = field(default=None, kw_only=True)
    pixel_size: float | None = field(default=None, kw_only=True)


def open_source(root: Path, *, trust: bool = False) -> Source:
    """Find the pairs of images and masks in a folder, or those of an export of Esri's.

    What is wrong with an export is among its problems, so that what it says can be shown.

    Args:
        root: The folder.
        trust: Take chips that are made of other files (MRF).

    Raises:
        DataError: There is no such folder, or it has no `images/` and `masks/`.
    """
    if not root.exists():
        raise DataError(f"{root}: there is no such folder. {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"{root}: this is a file. {LAYOUT}")
    parts: list[tuple[Split | None, Path]] = [
        (_SPLIT_FOLDERS[folder.name.lower()], folder)
        for folder in _folders(root)
        if folder.name.lower() in _SPLIT_FOLDERS and find_folder(folder, ("images",))
    ]
    if not parts:
        parts = [(None, root)]
    twice = [split for split, count in Counter(split for split, _ in parts).items() if count > 1]
    if twice:
        raise DataError(f"{root}: two folders hold the {twice[0]} split. Put them into one.")
    if holds_export(root):
        from whatwhere.data.esri import open_exports  # which leans on this module

        return open_exports(root, parts, trust)
    problems: list[Problem] = []
    pairs: list[Pair] = []
    labels: set[tuple[str, ...]] = set()
    for split, folder in parts:
        images, masks = find_folder(folder, ("images",)), find_folder(folder, MASK_FOLDERS)
        if split == "test" and masks is None and len(parts) > 1:
            cause = "its images have no masks, and were passed over."
            problems.append(Problem("note", str(folder), cause, "`whatwhere predict` takes them."))
            continue
        if images is None or masks is None:
            missing = "images/" if images is None else "masks/ or labels/"
            raise DataError(f"{folder}: there is no {missing} in it. {LAYOUT}")
        found, names = _pair_folder(folder, images, masks, split, problems)
        pairs += found
        labels.add(names)
    if all(pair.split is None and _folder_split(pair) for pair in pairs):  # images/train/a.png
        pairs = [dataclasses.replace(pair, split=_folder_split(pair)) for pair in pairs]
    if len(labels) > 1:
        raise DataError(f"{root}: the split folders do not have the same labels below masks/.")
    if not pairs and not any(problem.severity == "error" for problem in problems):
        cause = f"there is no image in it ({', '.join(SUFFIXES)})."
        problem = Problem("error", str(root), cause, LAYOUT)
        raise DataError(str(problem), [problem, *problems])
    pairs.sort(key=lambda pair: (SPLITS.index(pair.split or "train"), pair.key))
    return Source(root, tuple(pairs), labels.pop(), tuple(problems))


def holds_export(root: Path) -> bool:
    """Whether a folder, or a split's folder in it, is an export of Esri's."""
    if not root.is_dir():
        return False
    tops = [f for f in _folders(root) if f.name.lower() in _SPLIT_FOLDERS]
    return any(is_export(folder) for folder in (root, *tops))


def list_images(
    folder: Path, *, also: Sequence[str] = (), silent: Collection[str] = ()
) -> tuple[list[Path], list[Problem]]:
    """Return the images below a folder in the order of their names, and what was passed over.

    Hidden files, what file managers leave behind and what is no plain file are never opened.

    Args:
        folder: Where to look.
        also: Endings of other files that are listed as images.
        silent: Endings of files that are passed over without a word.
    """
    found: list[Path] = []
    problems: list[Problem] = []
    others: Counter[str] = Counter()

    def unreadable(error: OSError) -> None:
        cause, remedy = "the folder may not be read.", "Give yourself the right to."
        problems.append(Problem("error", str(error.filename), cause, remedy))

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for name in folders:
            if Path(place, name).is_symlink():
                cause = "this is a link to a folder, and was passed over."
                problems.append(
                    Problem("warning", str(Path(place, name)), cause, "Put the folder there.")
                )
        for name in sorted(names):
            path = Path(place, name)
            if _is_junk(name):
                continue
            if name != name.encode("utf-8", "replace").decode():
                cause = "the file's name is not UTF-8."
                problems.append(Problem("error", ascii(str(path)), cause, "Rename it."))
                continue
            if path.suffix.lower() not in (*SUFFIXES, *also):
                others[path.suffix.lower() or "no ending"] += path.suffix.lower() not in silent
            elif not path.is_file():
                cause = "this is no plain file, and was passed over."
                problems.append(Problem("warning", str(path), cause, "Take it out."))
            else:
                found.append(path)
    for ending, number in sorted((+others).items()):
        cause = f"{number} file{'s' * (number > 1)} with {ending} were passed over."
        problems.append(Problem("note", str(folder), cause, f"Read are {', '.join(SUFFIXES)}."))
    return found, problems


def images_of(path: Path) -> list[Path]:
    """Return the images that a path stands for: a file, a data set's images, or a folder's."""
    if not path.is_dir():
        return [path]
    tops = [f for f in _folders(path) if f.name.lower() in _SPLIT_FOLDERS]
    insides = [find_folder(top, ("images",)) for top in (path, *tops)]
    places = [inside for inside in insides if inside is not None]
    return [image for place in places or [path] for image in list_images(place)[0]]


def _folder_split(pair: Pair) -> Split | None:
    """The split that the first folder below `images/` names, if there is one."""
    first, _, rest = pair.key.partition("/")
    return _SPLIT_FOLDERS.get(first.lower()) if rest else None


def _pair_folder(
    folder: Path, images: Path, masks: Path, split: Split | None, problems: list[Problem]
) -> tuple[list[Pair], tuple[str, ...]]:
    both = [f for f in _folders(folder) if f.name.lower() in MASK_FOLDERS]
    if len(both) > 1:
        cause = f"there are {both[0].name}/ and {both[1].name}/; {masks.name}/ was taken."
        problems.append(Problem("warning", str(folder), cause, "Take the other one out."))
    image_files = by_key(images, problems, list_images(images))
    labels = _label_folders(masks, image_files)
    places = [masks / label for label in labels] or [masks]
    mask_files = [by_key(place, problems, list_images(place)) for place in places]

    pairs = []
    for key, image in image_files.items():
        partners = [partner_of(key, files, image_files) for files in mask_files]
        for place, partner in zip(places, partners, strict=True):
            if partner is None:
                cause = f"there is no mask for it in {place}."
                remedy = "Add the mask, or take the image out."
                problems.append(Problem("error", str(image), cause, remedy))
        taken = [files.pop(name) for files, name in zip(mask_files, partners, strict=True) if name]
        if len(taken) == len(places):
            pairs.append(Pair(f"{split}/{key}" if split else key, image, tuple(taken), split))
    for files in mask_files:
        for mask in files.values():
            cause = f"there is no image for it in {images}."
            remedy = "Add the image, or take the mask out."
            problems.append(Problem("error", str(mask), cause, remedy))
    return pairs, labels


def by_key(
    folder: Path, problems: list[Problem], listed: tuple[list[Path], list[Problem]]
) -> dict[str, Path]:
    """Return listed images by their paths without endings; note those that have the same one."""
    files, noticed = listed
    problems += noticed
    keyed: dict[str, Path] = {}
    for path in files:
        key = key_of(path.relative_to(folder))
        if key in keyed:
            cause = f"{keyed[key].name} has the same name but for the ending."
            problems.append(Problem("error", str(path), cause, "Keep one of the two."))
            continue
        keyed[key] = path
    return keyed


def key_of(path: Path) -> str:
    """Return a path without its ending, its letters composed as far as that goes."""
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def _label_folders(masks: Path, images: dict[str, Path]) -> tuple[str, ...]:
    """The labels of a multi-label set: folders below `masks/` that each repeat the images' keys."""
    inside = [f for f in _folders(masks) if not _is_junk(f.name)]
    tops = {key.split("/")[0] for key in images if "/" in key}
    if not inside or any(folder.name in tops for folder in inside):
        return ()
    if any(path.is_file() and path.suffix.lower() in SUFFIXES for path in entries(masks)):
        return ()
    return tuple(folder.name for folder in inside)


def partner_of(key: str, masks: dict[str, Path], images: dict[str, Path]) -> str | None:
    """Return the mask with the image's key, or the only one that differs by `_mask` or by case."""
    if key in masks:
        return key
    for ending in _MASK_ENDINGS:
        if key + ending in masks:
            return key + ending
    alike = [name for name in masks if name.casefold() == key.casefold() and name not in images]
    return alike[0] if len(alike) == 1 else None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in entries(folder) if path.is_dir())


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder; raises `DataError` where it may not be read."""
    try:
        return list(folder.iterdir())
    except PermissionError as error:
        raise fault(folder, "the folder may not be read.", "Give yourself the right to.") from error


def find_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders that is there, whatever the case of its name."""
    there: dict[str, Path] = {path.name.lower(): path for path in _folders(folder)}
    return next((there[name] for name in names if name in there), None)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK
