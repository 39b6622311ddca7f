"""Exports of Esri's training data: which chips they hold, and which of them have labels."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from whatwhere.data.esri_merge import MERGED, merge
from whatwhere.data.sources import (
    MASK_FOLDERS,
    SPLITS,
    Pair,
    Source,
    Split,
    by_key,
    find_folder,
    key_of,
    list_images,
    partner_of,
)
from whatwhere.errors import DataError, Problem
from whatwhere.io.crs import pixel_size_m
from whatwhere.io.esri import (
    CLASSIFIED,
    DEFINITION,
    MAP,
    SUMS,
    Export,
    find_file,
    read_definition,
    read_export,
)
from whatwhere.io.image import SUFFIXES
from whatwhere.io.mrf import BESIDE, TRUST
from whatwhere.io.raster import open_raster

_MRF = ".mrf"
_LABELS = tuple(reversed(MASK_FOLDERS))
_SILENT = frozenset(
    {
        *(".tfw", ".tifw", ".wld", ".jgw", ".jpgw", ".pgw", ".pngw", ".bpw", ".prj"),
        *(".xml", ".ovr", ".msk", ".rrd", ".aux", ".dbf", ".cpg", ".lock", *BESIDE),
    }
)  # world files, statistics, overviews, and the pixels of MRF
_KINDS = {
    **dict.fromkeys(("PASCAL_VOC_rectangles", "KITTI_rectangles"), "boxes around objects"),
    "RCNN_Masks": "a mask of each object",
    "Labeled_Tiles": "one class for a whole chip",
    "MultiLabeled_Tiles": "classes for a whole chip",
    "Export_Tiles": "images without classes",
    "CycleGAN": "two sets of images",
    "Imagenet": "pictures of objects",
    "Panoptic_Segmentation": "classes and objects",
}
_SAMPLE = 20  # chips of which the head is read
_SAME_SIZE = 1.01


def open_exports(root: Path, parts: Sequence[tuple[Split | None, Path]], trust: bool) -> Source:
    """Find the chips of an export, or of one for each split.

    Args:
        root: The folder.
        parts: The folders with `images/`, and the split each is for.
        trust: Take chips that are made of other files (MRF).

    Raises:
        DataError: A file is damaged, or exports contradict each other.
    """
    top = find_file(root, DEFINITION)
    above = read_definition(top) if top else None
    problems: list[Problem] = []
    pairs: list[Pair] = []
    exports = []
    for split, folder in parts:
        export = read_export(folder, above)
        exports.append(export)
        if split == "test" and len(parts) > 1 and not find_folder(folder, _LABELS):
            cause = "its images have no labels, and were passed over."
            problems.append(Problem("note", str(folder), cause, "`whatwhere predict` takes them."))
            continue
        fault = _fault(export)
        if fault is not None:
            problems.append(fault)
            continue
        problems += _absent(export)
        pairs += _pairs(export, split, trust, problems)
    if not pairs and not any(problem.severity == "error" for problem in problems):
        cause = "no chip has both an image and a label."
        problems.append(Problem("error", str(root), cause, "Copy the whole export here."))
    pairs.sort(key=lambda pair: (SPLITS.index(pair.split or "train"), pair.key))
    definition, noticed = merge(exports)
    size, told = _pixel_size(root, pairs)
    return Source(
        root=root,
        pairs=tuple(pairs),
        labels=(),
        problems=(*problems, *noticed, *told),
        exports=tuple(exports),
        definition=definition,
        pixel_size=size,
    )


def _fault(export: Export) -> Problem | None:
    """Say what makes an export as a whole useless: it is of another kind, or has no chips."""
    folder, definition = export.folder, export.definition
    kind, what = definition.mode, _KINDS.get(definition.mode, "not known here")
    listed = export.listed or ()
    labels = find_folder(folder, _LABELS)
    if not kind or kind == CLASSIFIED:
        if any(label.lower().endswith(".xml") for _, label in listed) or _are_boxes(labels):
            kind, what = "PASCAL_VOC_rectangles or the like", "its labels are .xml"
        elif find_folder(folder, ("images2",)) or any(
            label.lower().startswith("images2/") for _, label in listed
        ):
            kind, what = "change detection or the like", "it has images2/"
    if kind not in ("", CLASSIFIED):
        cause = f"this export is of the kind {kind} ({what})."
        remedy = (
            f"Export it with the metadata format {CLASSIFIED}: images/, and in labels/ a raster "
            "with a class for every pixel of each."
        )
        return Problem("error", str(folder), cause, remedy)
    missing = [] if find_folder(folder, ("images",)) else ["images/"]
    missing += [] if labels else ["labels/"]
    if not missing:
        return None
    told = definition.tiles
    count = f"the {told:,} chips" if told else "the chips"
    where = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in it"
    such = f" ({', '.join(image for image, _ in listed[:2])}, …)" if listed else ""
    cause = f"{where}: this is an export without {count}{such}."
    return Problem("error", str(folder), cause, "Copy the whole export here, not its texts alone.")


def _are_boxes(labels: Path | None) -> bool:
    """Whether labels are descriptions of boxes, and none a raster."""
    if labels is None:
        return False
    names = [path.name.lower() for path in labels.iterdir()]
    rasters = any(name.endswith((*SUFFIXES, _MRF)) for name in names)
    return not rasters and any(n.endswith(".xml") and ".aux." not in n for n in names)


def _absent(export: Export) -> Iterator[Problem]:
    """Note the files that an export lacks, and what takes their place."""
    if MERGED in export.definition.lines:
        return
    named = "named by the sums" if export.definition.classes else "those that the labels hold"
    instead = {
        DEFINITION: f"The classes are {named}." if not export.definition.lines else "",
        SUMS: "Nothing of it is needed: all is counted in the chips.",
        MAP: "Images and labels of the same name go together.",
    }
    for name in export.missing:
        if instead[name]:
            cause = f"there is no {name}."
            yield Problem("note", str(export.folder), cause, instead[name])


def _pairs(export: Export, split: Split | None, trust: bool, problems: list[Problem]) -> list[Pair]:
    """Find the images and labels of an export, by its list or by their names."""
    folder = export.folder
    places = [find_folder(folder, names) or folder for names in (("images",), _LABELS)]
    images, labels = (list_images(place, also=(_MRF,), silent=_SILENT) for place in places)
    found: list[tuple[str, Path, Path]]
    if export.listed is None:
        keyed = by_key(places[0], problems, images)
        partners = by_key(places[1], problems, labels)
        found, without = [], []
        for key, image in keyed.items():
            partner = partner_of(key, partners, keyed)
            if partner is None:
                without.append(image.name)
            else:
                found.append((key, image, partners.pop(partner)))
        left = [("have no label", without), ("are labels of no image", sorted(partners))]
    else:
        problems += [*images[1], *labels[1]]
        files = _Index(places[0], images[0]), _Index(places[1], labels[0])
        found, left = _listed(export, *files, problems)
    for told, names in left:
        if names:
            cause = f"{len(names)} of its files {told} and are left out{_such(names)}."
            problems.append(Problem("note", str(folder), cause, "That is fine if it is meant."))
    doubtful = [i.name for _, *both in found for i in both if i.suffix.lower() == _MRF]
    if doubtful and not trust:
        cause = f"{len(doubtful)} of its files are MRF, made of other files{_such(doubtful)}."
        problems.append(Problem("error", str(folder), cause, TRUST))
        return []
    return [
        Pair(f"{split}/{key}" if split else key, image, (label,), split, trust=trust)
        for key, image, label in found
    ]


class _Index:
    """The files below a folder, by their paths below it whatever the case."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self.exact = {_plain(path.relative_to(folder).as_posix()): path for path in files}
        self.folded = {name.casefold(): path for name, path in self.exact.items()}
        self.stems: dict[str, list[Path]] = {}
        for path in files:
            stem = key_of(path.relative_to(folder)).casefold()
            self.stems.setdefault(stem, []).append(path)

    def find(self, listed: str) -> Path | None:
        """Return the file that is listed as `folder/name`."""
        name = _plain(listed.partition("/")[2])
        return self.exact.get(name) or self.folded.get(name.casefold())

    def alike(self, listed: str) -> Path | None:
        """Return the file that is listed, or the only one that has another ending."""
        stem = key_of(Path(listed.partition("/")[2])).casefold() if listed else ""
        others = self.stems.get(stem, [])
        return self.find(listed) or (others[0] if len(others) == 1 else None)


def _listed(
    export: Export, images: _Index, labels: _Index, problems: list[Problem]
) -> tuple[list[tuple[str, Path, Path]], list[tuple[str, list[str]]]]:
    """Return what the list names and what is there, and what is left out for which reason."""
    folder, pairs = export.folder, list(dict.fromkeys(export.listed or ()))
    twice = len(export.listed or ()) - len(pairs)
    if twice:
        cause = f"{MAP} lists {twice} chip{'s' * (twice > 1)} again; each counts once."
        problems.append(Problem("note", str(folder), cause, ""))
    found: dict[str, tuple[Path, Path]] = {}
    missing, without = [], []
    seen: set[Path] = set()
    for listed, label in pairs:
        image, partner = images.find(listed), labels.alike(label or listed)
        if image is None:
            missing.append(listed)
            continue
        seen.add(image)
        key = key_of(image.relative_to(images.folder))
        if partner is None:
            without.append(image.name)
        elif found.setdefault(key, (image, partner)) != (image, partner):
            cause = f"{MAP} lists {key} with {found[key][1].name} and with {partner.name}."
            problems.append(Problem("error", str(folder), cause, "Keep one of the two lines."))
    if missing:
        cause = f"{len(missing)} of {len(pairs)} chips that {MAP} lists are not there"
        remedy = f"Copy them here; or take {MAP} out, and those that are there are taken."
        problems.append(Problem("error", str(folder), f"{cause}{_such(missing)}.", remedy))
    unlisted = [path.name for path in images.exact.values() if path not in seen]
    left = [("have no label", without), (f"are not in {MAP}", unlisted)]
    return [(key, *both) for key, both in found.items()], left


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _such(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _pixel_size(root: Path, pairs: Sequence[Pair]) -> tuple[float | None, list[Problem]]:
    """Measure pixels on the ground where the chips' own heads say where they lie [m]."""
    step = max(1, math.ceil(len(pairs) / _SAMPLE))
    sizes = []
    for pair in pairs[::step]:
        try:
            raster = open_raster(pair.image, trust=pair.trust)
        except DataError:
            continue  # looking at the pixels will say what is the matter
        size = pixel_size_m(raster.grid)
        if size is not None:
            sizes.append(size)
    if not sizes:
        return None, []
    low, high = min(sizes), max(sizes)
    if high > low * _SAME_SIZE:
        cause = f"the pixels of its chips are from {low:.3g} to {high:.3g} m."
        remedy = "The net keeps no pixel size: scenes will be read at their own."
        return None, [Problem("note", str(root), cause, remedy)]
    return sorted(sizes)[len(sizes) // 2], []
