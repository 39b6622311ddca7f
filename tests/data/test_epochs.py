"""Short epochs take turns: each chip once before any comes again, none twice in an epoch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whatwhere.data.epochs import order_of
from whatwhere.data.loader import EpochSampler


@given(st.integers(1, 40), st.data(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_epochs_take_turns(length: int, data: st.DataObject, seed: int) -> None:
    most = data.draw(st.integers(1, length))
    epochs = [order_of(length, most, seed, epoch).tolist() for epoch in range(12)]
    for one in epochs:
        assert len(one) == most and len(set(one)) == most
        assert set(one) <= set(range(length))
    row = [index for one in epochs for index in one]
    for start in range(0, len(row) - length + 1, length):
        assert sorted(row[start : start + length]) == list(range(length))
    counts = np.bincount(row, minlength=length)
    assert counts.max() - counts.min() <= 1


def test_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(20, seed, shuffle=True, most=7)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 5) == order(1, 5)
    assert len({tuple(i for _, i in order(s, e)) for s in range(3) for e in range(4)}) == 12
    assert {epoch for epoch, _ in order(1, 5)} == {5}


def test_an_epoch_of_all_chips_is_what_it_was_without_the_setting() -> None:
    for most in (0, 20, 21, 1000):
        sampler = EpochSampler(20, 3, shuffle=True, most=most)
        sampler.set_epoch(2)
        assert len(sampler) == 20
        assert [i for _, i in sampler] == order_of(20, 20, 3, 2).tolist()
    kept = EpochSampler(20, 3, shuffle=False)
    assert len(kept) == 20 and [i for _, i in kept] == list(range(20))


def test_some_of_those_in_order_are_evenly_spread() -> None:
    kept = EpochSampler(20, 3, shuffle=False, most=7)
    found = [i for _, i in kept]
    assert len(kept) == len(found) == 7 and found == sorted(set(found))
    assert found[0] == 0 and {b - a for a, b in itertools.pairwise(found)} <= {2, 3}


@pytest.mark.parametrize("length", [300_000])
def test_an_epoch_of_a_large_scene_is_found_quickly(length: int) -> None:
    assert len(order_of(length, 4000, 0, 500)) == 4000
