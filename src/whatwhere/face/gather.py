"""Images and masks from several places, as one folder with the splits above them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whatwhere import files
from whatwhere.data.classes import FILE, kept_spec
from whatwhere.data.doctor import Survey
from whatwhere.data.esri_merge import merge, merged_lines
from whatwhere.data.sources import Pair, Source, Split, open_source
from whatwhere.data.splits import split_pairs
from whatwhere.errors import DataError, OutputError, Problem, UsageError
from whatwhere.io.esri import DEFINITION
from whatwhere.io.mrf import BESIDE
from whatwhere.talk import Talk

Link = tuple[Path, Path]
"""A file, and where it goes below the folder."""


def gather(
    parts: Mapping[Split | None, Sequence[Path]], place: Path, talk: Talk, *, trust: bool = False
) -> Path:
    """Put folders of images and masks together into one.

    Of Esri's exports what their definitions say goes with them, and of all the class table that
    they keep.

    Args:
        parts: The folders of each split; those of None have splits of their own, or none.
        place: Where the folder is made.
        talk: Where it is said what was noticed about exports.
        trust: Take chips that are made of other files (MRF).

    Returns:
        A folder with `images/` and `masks/`, behind `train/`, `val/` and `test/` where there are
        splits.

    Raises:
        DataError: A folder does not hold images and masks, or they do not go together.
        OutputError: It cannot be written.
    """
    links: list[Link] = []
    sources: list[Source] = []
    several = sum(map(len, parts.values())) > 1
    for split, folders in parts.items():
        for number, folder in enumerate(folders):
            source = open_source(folder, trust=trust)
            errors = [one for one in source.problems if one.severity == "error"]
            if errors:
                raise DataError("\n".join(map(str, errors)), errors)
            if source.exports:
                _tell(source.problems, talk)
            sources.append(source)
            prefix = f"{number}_{folder.name}" if several else ""
            for pair in source.pairs:
                given = split or pair.split or ("train" if _has_splits(parts) else None)
                links += _links(pair, given, prefix, source.labels)
    if len({source.labels for source in sources}) > 1:
        raise DataError("some of the folders have a folder of masks for each label, others not.")
    return _write(links, place, _texts(sources, talk))


def gather_table(table: Any, place: Path) -> Path:
    """Put the pairs of a table together: its first two columns are images and their masks.

    Raises:
        UsageError: It has no two columns, or a file is not there.
    """
    columns = list(getattr(table, "columns", ()))
    if len(columns) < 2:
        raise UsageError("images_df must have two columns: the path of the image, and of its mask.")
    rows = [(Path(i), Path(m)) for i, m in zip(table[columns[0]], table[columns[1]], strict=True)]
    missing = [str(path) for row in rows for path in row if not path.is_file()]
    if missing or not rows:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        told = f"there is no {', '.join(missing[:5])}{more}" if missing else "there is no row"
        raise UsageError(f"images_df: {told}.")
    pairs = [
        Pair(f"{number:06d}_{image.stem}", image, (mask,), None)
        for number, (image, mask) in enumerate(rows)
    ]
    return _write([link for pair in pairs for link in _links(pair, None, "", ())], place)


def gather_stratified(
    found: Survey, shares: tuple[float, float, float], seed: int, place: Path, talk: Talk
) -> Path:
    """Deal the pairs of a set so that each split has all sets of classes in their shares.

    Pairs whose masks hold the same numbers are dealt among themselves; those too few for a share
    of their own train.
    """
    if found.source.exports:
        _tell(found.source.problems, talk)
    kinds: dict[tuple[frozenset[int], ...], list[Pair]] = {}
    for pair in found.pairs:
        held = tuple(frozenset(one) for one in found.facts[pair.key].numbers)
        kinds.setdefault(held, []).append(pair)
    dealt: dict[Split, list[Pair]] = {"train": [], "val": [], "test": []}
    for kind in sorted(kinds, key=lambda held: [sorted(one) for one in held]):
        pairs = kinds[kind]
        different = {found.digests[pair.key] for pair in pairs}
        if len(different) < 2 or shares[1] * len(pairs) < 0.5:
            dealt["train"] += pairs
            continue
        for split, some in split_pairs(pairs, found.digests, shares, seed).items():
            dealt[split] += some
    if not dealt["val"]:
        raise DataError(
            f"{found.source.root}: no set of classes is in enough images for a share of its own. "
            "Leave stratify out, or take a larger val_split_pct."
        )
    labels = found.source.labels
    return _write(
        [
            link
            for split, some in dealt.items()
            for p in some
            for link in _links(p, split, "", labels)
        ],
        place,
        _texts([found.source], talk),
    )


def _tell(problems: Sequence[Problem], talk: Talk) -> None:
    for problem in problems:
        talk.say(f"{problem.severity:8} {problem}")


def _texts(sources: Sequence[Source], talk: Talk) -> dict[str, str]:
    """What is written beside the images: the exports' definition, and the class table.

    Raises:
        DataError: Exports contradict each other, or the tables do.
    """
    import tomli_w

    texts = {}
    exports = [export for source in sources for export in source.exports]
    definition, noticed = merge(exports)
    _tell(noticed, talk)
    if definition is not None:
        lines = merged_lines(definition, [export.folder for export in exports])
        texts[DEFINITION] = json.dumps(lines, indent=1, ensure_ascii=False)
    tables = {source.root: kept_spec(source.root) for source in sources}
    bare = [root for root, table in tables.items() if not table]
    own = {table: root for root, table in tables.items() if table}
    plain = [source.root for source in sources if not source.exports and source.root in bare]
    if len(own) > 1 or (own and plain):
        told = "; ".join([*(f"{root}: {table}" for table, root in own.items())])
        told += f"; {plain[0]}: none" if plain else ""
        raise DataError(f"the folders do not keep one {FILE} ({told}). Put the same into all.")
    for table in own:
        texts[FILE] = tomli_w.dumps({"classes": table})
    return texts


def _has_splits(parts: Mapping[Split | None, Sequence[Path]]) -> bool:
    return any(parts.get(split) for split in ("train", "val", "test"))


def _links(pair: Pair, split: Split | None, prefix: str, labels: Sequence[str]) -> Iterator[Link]:
    """Where the files of a pair go, and those that an MRF is made of."""
    key = pair.key.removeprefix(f"{pair.split}/") if pair.split else pair.key
    top = Path(split or "")
    folders = [top / "images" / prefix]
    folders += [top / "masks" / label / prefix for label in labels or ("",)]
    for file, folder in zip((pair.image, *pair.masks), folders, strict=True):
        yield file, folder / f"{key}{file.suffix}"
        if file.suffix.lower() == ".mrf":
            for ending in BESIDE:
                if file.with_suffix(ending).is_file():
                    yield file.with_suffix(ending), folder / f"{key}{ending}"


def _write(links: Sequence[Link], place: Path, texts: Mapping[str, str] | None = None) -> Path:
    """Link the files into a folder named after them all; one that is there is taken.

    Args:
        links: The files.
        place: Where the folder is made.
        texts: What else is written into it, by the files' names.
    """
    digest = hashlib.sha256()
    for name, text in (texts or {}).items():
        digest.update(f"{name}\0{text}\0".encode())
    for source, target in links:
        state = source.stat()
        told = f"{source.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{target.as_posix()}\n"
        digest.update(told.encode("utf-8", "surrogateescape"))
    folder = place / f"set_{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    building = place / f"{files.TEMPORARY}{folder.name}_{os.getpid()}"
    try:
        for source, target in links:
            files.make_folder((building / target).parent)
            _link(source, building / target)
        for name, text in (texts or {}).items():
            files.write_text(building / name, text)
        with contextlib.suppress(FileExistsError):
            building.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: the images cannot be put together: {error}.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be done."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
