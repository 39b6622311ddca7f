"""Splits: every pair once, identical images together, and nothing but the seed decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere.data.sources import Pair, Split
from whatwhere.data.splits import choose, split_pairs
from whatwhere.errors import DataError, UsageError

SHARES = (0.7, 0.15, 0.15)


def pair(key: str, split: Split | None = None) -> Pair:
    return Pair(key, Path("images", key), (Path("masks", key),), split)


def keys(split: dict[Split, list[Pair]]) -> dict[str, list[str]]:
    return {name: [one.key for one in pairs] for name, pairs in split.items()}


@st.composite
def sets(draw: Any) -> tuple[list[Pair], dict[str, str]]:
    """Some pairs, of which some have the same image; at least two images differ."""
    digests = draw(st.lists(st.integers(0, 12), min_size=2, max_size=40))
    if len(set(digests)) == 1:
        digests[0] += 1
    named = {f"k{i:02d}": f"d{digest}" for i, digest in enumerate(digests)}
    return [pair(key) for key in named], named


three = st.tuples(*[st.floats(0.05, 1)] * 3).map(lambda s: (s[0], s[1], s[2]))
shares = three.map(lambda s: (s[0] / sum(s), s[1] / sum(s), s[2] / sum(s)))


@given(sets(), shares, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_every_pair_is_dealt_once_and_by_the_seed_alone(
    made: tuple[list[Pair], dict[str, str]],
    wanted: tuple[float, float, float],
    seed: int,
    random: Any,
) -> None:
    pairs, digests = made
    dealt = keys(split_pairs(pairs, digests, wanted, seed))
    assert sorted(key for side in dealt.values() for key in side) == sorted(digests)
    assert dealt["train"] and dealt["val"]
    random.shuffle(pairs)
    assert keys(split_pairs(pairs, digests, wanted, seed)) == dealt


@given(sets(), shares, st.integers(0, 100))
def test_identical_images_are_on_one_side(
    made: tuple[list[Pair], dict[str, str]], wanted: tuple[float, float, float], seed: int
) -> None:
    pairs, digests = made
    sides: dict[str, set[str]] = {}
    for name, side in split_pairs(pairs, digests, wanted, seed).items():
        for one in side:
            sides.setdefault(digests[one.key], set()).add(name)
    assert all(len(where) == 1 for where in sides.values())


@given(sets(), shares, st.integers(0, 100))
def test_shares_are_right_within_one_group_of_identical_images(
    made: tuple[list[Pair], dict[str, str]], wanted: tuple[float, float, float], seed: int
) -> None:
    pairs, digests = made
    dealt = split_pairs(pairs, digests, wanted, seed)
    largest = max(list(digests.values()).count(digest) for digest in digests.values())
    for name, share in zip(("val", "test"), wanted[1:], strict=True):
        size = len(dealt["val" if name == "val" else "test"])
        assert size <= max(1, round(share * len(pairs))) + largest - 1


def test_a_hundred_different_images_are_split_to_the_number() -> None:
    digests = {f"k{i}": f"d{i}" for i in range(100)}
    dealt = split_pairs([pair(key) for key in digests], digests, SHARES, 42)
    assert {name: len(side) for name, side in dealt.items()} == {"train": 70, "val": 15, "test": 15}


def test_another_seed_deals_otherwise() -> None:
    digests = {f"k{i}": f"d{i}" for i in range(30)}
    pairs = [pair(key) for key in digests]
    assert len({str(keys(split_pairs(pairs, digests, SHARES, seed))) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("count", "word"), [(0, "are 0 different images"), (1, "is 1 different i")]
)
def test_one_image_cannot_be_split(count: int, word: str) -> None:
    digests = {f"k{i}": "same" for i in range(count)}
    message = f"there {word}.*at least 2 are needed.*Add images, or cut this one"
    with pytest.raises(DataError, match=message):
        split_pairs([pair(key) for key in digests], digests, SHARES, 1)


def test_copies_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="there is 1 different image:"):
        split_pairs([pair("a"), pair("b")], {"a": "same", "b": "same"}, SHARES, 1)


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1, 0]), (3, [1, 1, 1])])
def test_few_images_train_and_validate_first(count: int, sizes: list[int]) -> None:
    digests = {f"k{i}": f"d{i}" for i in range(count)}
    for seed in range(10):
        dealt = split_pairs([pair(key) for key in digests], digests, SHARES, seed)
        assert [len(dealt[name]) for name in ("train", "val", "test")] == sizes


def test_no_test_share_leaves_no_test_pairs() -> None:
    digests = {f"k{i}": f"d{i}" for i in range(20)}
    dealt = split_pairs([pair(key) for key in digests], digests, (0.8, 0.2, 0.0), 1)
    assert [len(dealt[name]) for name in ("train", "val", "test")] == [16, 4, 0]


def given_split(**sizes: int) -> tuple[list[Pair], dict[str, str]]:
    pairs = [
        pair(f"{name}/{i}", name)  # type: ignore[arg-type]
        for name, size in sizes.items()
        for i in range(size)
    ]
    return pairs, {one.key: one.key for one in pairs}


def test_splits_that_the_folders_give_are_kept() -> None:
    pairs, digests = given_split(train=3, val=2, test=1)
    dealt = split_pairs(pairs, digests, SHARES, 1)
    assert dealt == {
        name: [p for p in pairs if p.split == name] for name in ("train", "val", "test")
    }


def test_a_validation_split_that_lacks_is_taken_from_training() -> None:
    pairs, digests = given_split(train=17, test=5)
    dealt = split_pairs(pairs, digests, SHARES, 1)
    assert [one.split for one in dealt["test"]] == ["test"] * 5
    assert len(dealt["val"]) == 3 and len(dealt["train"]) == 14  # 15 of 85
    assert {one.split for one in dealt["val"]} == {"train"}


def test_folders_without_training_pairs_are_refused() -> None:
    pairs, digests = given_split(val=2, test=1)
    with pytest.raises(DataError, match="the folder has no training pairs in train/"):
        split_pairs(pairs, digests, SHARES, 1)


# ---------------------------------------------------------------- what a run is scored on

SEEN = {"train": ["d0", "d1"], "val": ["d2"], "test": ["d3"]}
KNOWN = {f"k{i}": f"d{i}" for i in range(4)}
PAIRS = [pair(key) for key in KNOWN]


@pytest.mark.parametrize(
    ("wanted", "chosen", "word"),
    [
        ("score", ["k3"], "test"),
        ("tune", ["k2"], "validation"),
        ("test", ["k3"], "test"),
        ("val", ["k2"], "validation"),
        ("train", ["k0", "k1"], "training"),
    ],
)
def test_of_the_runs_own_data_one_split_is_chosen(
    wanted: str, chosen: list[str], word: str
) -> None:
    found, words = choose(PAIRS, KNOWN, SEEN, wanted)
    assert [one.key for one in found] == chosen and f"own {word} split" in words


def test_all_means_all() -> None:
    assert choose(PAIRS, KNOWN, SEEN, "all") == (PAIRS, "all pairs, seen in training or not")


def test_of_other_data_every_pair_is_chosen() -> None:
    other = {key: "new" + digest for key, digest in KNOWN.items()}
    assert choose(PAIRS, other, SEEN, "score") == (PAIRS, "all pairs")
    assert choose(PAIRS, other, SEEN, "tune") == (PAIRS, "all pairs")


def test_other_data_that_shares_a_few_images_is_scored_without_them() -> None:
    shared = {key: digest if key == "k0" else "new" + digest for key, digest in KNOWN.items()}
    found, words = choose(PAIRS, shared, SEEN, "score")
    assert found == PAIRS[1:] and words == "all pairs but 1 that the run has seen"
    tested = {key: digest if key == "k3" else "new" + digest for key, digest in KNOWN.items()}
    assert choose(PAIRS, tested, SEEN, "tune")[0] == PAIRS[:3]  # else the test would be tuned on
    assert choose(PAIRS, tested, SEEN, "score")[0] == PAIRS


def test_a_bundle_that_does_not_know_its_images_says_so() -> None:
    nothing: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    found, words = choose(PAIRS, KNOWN, nothing, "score")
    assert found == PAIRS and "not known" in words


def test_where_nothing_is_known_folders_count() -> None:
    nothing: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    sides: list[Split] = ["train", "train", "val", "test"]
    dealt = [replace(p, split=side) for p, side in zip(PAIRS, sides, strict=True)]
    for wanted, some in (("score", dealt[3:]), ("tune", dealt[2:3]), ("train", dealt[:2])):
        found, words = choose(dealt, KNOWN, nothing, wanted)
        assert found == some and "not known" in words
    told = "does not say which images its test split had, and the data has no folder test/"
    for some, wanted in ((PAIRS, "test"), (dealt[:3], "test"), (dealt[:3], "score")):
        with pytest.raises(DataError, match=told):
            choose(some, KNOWN, nothing, wanted)


def test_the_test_images_alone_are_data_not_seen() -> None:
    only = {"k3": "d3"}
    assert choose(PAIRS[3:], only, SEEN, "score") == (PAIRS[3:], "all pairs")
    with pytest.raises(DataError, match="the run has seen every pair of this data, or is tested"):
        choose(PAIRS[3:], only, SEEN, "tune")


@pytest.mark.parametrize("wanted", ["score", "test"])
def test_training_images_alone_are_not_scored_as_if_they_were_new(wanted: str) -> None:
    with pytest.raises(DataError, match=r"no pair of the run's own test split is.*--part all"):
        choose(PAIRS[:3], KNOWN, SEEN, wanted)


def test_a_part_that_is_asked_for_by_name_is_never_another_one() -> None:
    other = {key: "new" + digest for key, digest in KNOWN.items()}
    with pytest.raises(DataError, match="no pair of the run's own validation split is"):
        choose(PAIRS, other, SEEN, "val")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UsageError, match="--part must be auto, train, val, test or all, not 'x'"):
        choose(PAIRS, KNOWN, SEEN, "x")
