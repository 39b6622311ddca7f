"""What is worth knowing of a data set as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from whatwhere.data.facts import Facts
from whatwhere.data.sources import Pair, Source
from whatwhere.errors import Problem
from whatwhere.io.kinds import kind_named


def twins(pairs: Sequence[Pair], facts: Mapping[str, Facts]) -> list[Problem]:
    """Note identical images, and warn of those on two sides of a split that was given."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(facts[pair.key].digest, []).append(pair)
    alike = [group for group in groups.values() if len(group) > 1]
    problems = [
        Problem(
            "warning",
            str(group[0].image),
            f"the same image is in {' and '.join(sorted({str(p.split) for p in group}))}: "
            f"{', '.join(str(pair.image) for pair in group[1:4])}.",
            "Keep one of them, or the scores will be too good.",
        )
        for group in alike
        if len({pair.split for pair in group}) > 1
    ]
    same_side = [group for group in alike if len({pair.split for pair in group}) == 1]
    if same_side:
        count = sum(len(group) for group in same_side)
        first = " and ".join(pair.image.name for pair in same_side[0][:2])
        cause = f"{count} images are identical to another one, such as {first}."
        remedy = "They are kept on one side of a split."
        problems.append(Problem("note", str(same_side[0][0].image.parent), cause, remedy))
    return problems


def oddities(source: Source, facts: Mapping[str, Facts]) -> list[Problem]:
    """Note what is worth knowing of the set as a whole."""
    problems = []
    types = Counter(one.dtype for one in facts.values())
    if len(types) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in types.most_common())
        cause = f"the images have different number types ({listed})."
        remedy = "They share one normalisation: check that their values mean the same."
        problems.append(Problem("warning", str(source.root), cause, remedy))
    empty = sum(all(set(one) <= {0} for one in f.numbers) for f in facts.values())
    if empty and empty < len(facts):
        cause = f"{empty} of {len(facts)} masks hold nothing but 0."
        problems.append(Problem("note", str(source.root), cause, "That is fine if it is true."))
    kinds = _kinds(source, facts)
    odd = [(path, kind) for path, kind in kinds if kind and kind != kind_named(path.suffix)]
    if odd:
        more = f", and {len(odd) - 1} more files are not" if len(odd) > 1 else ", not"
        cause = f"this is a {odd[0][1]}{more} what the ending says."
        remedy = "It is read as what it is. Rename it, so that others do so too."
        problems.append(Problem("warning", str(odd[0][0]), cause, remedy))
    partial = [pair for pair in source.pairs if pair.key in facts and facts[pair.key].absent]
    if partial:
        pixels = sum(facts[pair.key].absent for pair in partial)
        cause = (
            f"{len(partial)} of {len(facts)} images have pixels without data, transparent or not "
            f"finite, such as {partial[0].image.name} ({pixels:,} px in all)."
        )
        problems.append(Problem("note", str(source.root), cause, "They do not count."))
    jpegs = jpeg_masks(source, facts)
    if jpegs:
        cause = f"{len(jpegs)} masks are JPEG, which blurs numbers, such as {jpegs[0].name}."
        problems.append(Problem("warning", str(source.root), cause, "Save masks as PNG."))
    collapsed = sum(one.grey for one in facts.values())
    if collapsed and collapsed == len(facts):
        cause = "all images are grey, stored as three equal bands."
        problems.append(Problem("note", str(source.root), cause, "They are read as one band."))
    return problems


def _kinds(source: Source, facts: Mapping[str, Facts]) -> list[tuple[Path, str]]:
    """Return each file that can be read, and what it is."""
    there = [pair for pair in source.pairs if pair.key in facts]
    return [
        one
        for pair in there
        for one in zip((pair.image, *pair.masks), facts[pair.key].kinds, strict=False)
    ]


def jpeg_masks(source: Source, facts: Mapping[str, Facts]) -> list[Path]:
    """Return the masks that are JPEG, whatever they are called."""
    masks = {path for pair in source.pairs for path in pair.masks}
    return [path for path, kind in _kinds(source, facts) if kind == "JPEG" and path in masks]
