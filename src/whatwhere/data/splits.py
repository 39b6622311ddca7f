"""Which pairs train, which validate, which test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set

import numpy as np

from whatwhere.data.doctor import Survey
from whatwhere.data.sources import Pair, Split
from whatwhere.errors import DataError, UsageError


def fingerprint(survey: Survey) -> str:
    """Return a digest of the keys and images of a data set, in hexadecimal."""
    digest = hashlib.sha256()
    for pair in sorted(survey.pairs, key=lambda pair: pair.key):
        digest.update(f"{pair.key}\0{survey.facts[pair.key].digest}\n".encode())
    return digest.hexdigest()


_WORDS = {"train": "training", "val": "validation", "test": "test"}


def split_pairs(
    pairs: Sequence[Pair],
    digests: Mapping[str, str],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[Split, list[Pair]]:
    """Return the pairs of each split.

    Splits that the folders give are kept; a validation split that they lack is taken from the
    training pairs. Else the pairs are shuffled by the seed and dealt out, identical images always
    to one side.

    Args:
        pairs: All pairs.
        digests: The digest of each pair's image, by key.
        shares: Of training, validation and test, summing to 1.
        seed: What the shuffle is drawn from.

    Raises:
        DataError: There are not enough different images to train and to validate.
    """
    given: dict[Split, list[Pair]] = {"train": [], "val": [], "test": []}
    if any(pair.split for pair in pairs):
        for pair in pairs:
            given[pair.split or "train"].append(pair)
        if not given["train"]:
            raise DataError("the folder has no training pairs in train/.")
        if given["val"]:
            return given
        train, val = shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1])
        dealt = _deal(given["train"], digests, (train, val, 0.0), seed)
        return {"train": dealt["train"], "val": dealt["val"], "test": given["test"]}
    return _deal(pairs, digests, shares, seed)


def _deal(
    pairs: Sequence[Pair],
    digests: Mapping[str, str],
    shares: tuple[float, float, float],
    seed: int,
) -> dict[Split, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.key):
        groups.setdefault(digests[pair.key], []).append(pair)
    needed = 2 if shares[2] == 0 else 3
    if len(groups) < 2:
        raise DataError(
            f"there {'is' if len(groups) == 1 else 'are'} {len(groups)} different image"
            f"{'s' * (len(groups) != 1)}: at least 2 are needed, one to train on and one to "
            "validate on. Add images, or cut this one into several."
        )
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(groups))
    shuffled = [list(groups.values())[i] for i in order]
    total = len(pairs)
    wanted = {"val": max(1, round(shares[1] * total)), "test": round(shares[2] * total)}
    if needed == 3 and len(groups) >= 3:
        wanted["test"] = max(1, wanted["test"])
    dealt: dict[Split, list[Pair]] = {"train": [], "val": [], "test": []}
    for i, group in enumerate(shuffled):
        left = len(shuffled) - i
        side: Split = "train"
        if left > 1 or dealt["train"]:  # the last group trains if none does yet
            if len(dealt["val"]) < wanted["val"]:
                side = "val"
            elif len(dealt["test"]) < wanted["test"]:
                side = "test"
        dealt[side] += group
    for name in dealt:
        dealt[name].sort(key=lambda pair: pair.key)
    return dealt


def own(split: str) -> str:
    """Return what a run's split is called."""
    return f"the run's own {_WORDS[split]} split"


def choose(
    pairs: Sequence[Pair],
    digests: Mapping[str, str],
    seen: Mapping[str, Sequence[str]],
    wanted: str,
    ground: Mapping[str, Set[str]] | None = None,
) -> tuple[list[Pair], str]:
    """Return the pairs of a data set that a run should be scored on, or tuned on.

    A data set is the run's own if it holds at least half of the images that training and validation
    saw; then the test split is scored, and the validation split tunes. Of any other data set every
    pair is taken but those that the run has seen, or whose ground it has seen. Where the run's
    images are not known, the folders of the data count, if they are split.

    Args:
        pairs: The pairs of the data set.
        digests: The digests of their images, by key.
        seen: The digests of the run's images by split; empty lists where they are not known.
        wanted: `score`, `tune`, or `train`, `val`, `test`, `all` for just these.
        ground: The keys of pairs that show ground of the run's blocks, by these blocks' split.

    Returns:
        The pairs, and what they are, in words.

    Raises:
        UsageError: `wanted` is no such word.
        DataError: No pair is left.
    """
    if wanted == "all":
        return list(pairs), "all pairs, seen in training or not"
    if wanted not in ("score", "tune", "train", "val", "test"):
        raise UsageError(f"--part must be auto, train, val, test or all, not {wanted!r}.")
    split = {"score": "test", "tune": "val"}.get(wanted, wanted)
    if not any(seen.values()):
        return _by_folder(pairs, wanted, split)
    fitted = set(seen["train"]) | set(seen["val"])
    own_data = 2 * len(fitted & set(digests.values())) >= len(fitted)
    if wanted in ("score", "tune") and not own_data:
        sides = ("train", "val") if wanted == "score" else ("train", "test")
        barred = {digest for split in sides for digest in seen[split]}
        near = {key for split in sides for key in (ground or {}).get(split, ())}
        new = [pair for pair in pairs if digests[pair.key] not in barred]
        left = [pair for pair in new if pair.key not in near]
        if not left:
            raise DataError(
                "the run has seen every pair of this data, or is tested on it: that says nothing. "
                "Take other data, or the whole set that the run was trained from."
            )
        out = len(pairs) - len(left)
        told = "that the run has seen" + ", or whose ground it has" * (len(left) < len(new))
        return left, f"all pairs but {out} {told}" if out else "all pairs"
    chosen = [pair for pair in pairs if digests[pair.key] in set(seen[split])]
    if not chosen:
        raise DataError(
            f"no pair of {own(split)} is in this data. `evaluate --part all` scores every pair, "
            "seen in training or not."
        )
    return chosen, own(split)


def _by_folder(pairs: Sequence[Pair], wanted: str, split: str) -> tuple[list[Pair], str]:
    """Choose by the folders of the data, for a net that does not say what it has seen."""
    chosen = [pair for pair in pairs if pair.split == split]
    if chosen:
        return chosen, f"the folder {split}/; whether the net has seen it is not known"
    if wanted != split and not any(pair.split for pair in pairs):
        return list(pairs), "all pairs; whether the net has seen them is not known"
    raise DataError(
        f"a bundle or an export does not say which images its {_WORDS[split]} split had, and the "
        f"data has no folder {split}/. Name the run in its place, or a --part of the data: "
        "`all` is every pair, seen in training or not."
    )
