"""Mean and deviation of the pixels that count, whatever the order of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from whatwhere.data.stats import Moments, measure
from whatwhere.errors import DataError

Sample = tuple[NDArray[Any], NDArray[np.bool_]]


def samples(dtype: str = "float32", offset: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(1)
    sizes = [(4, 6), (1, 1), (9, 3)]
    return [
        ((rng.random((2, *size)) * 200 + offset).astype(dtype), rng.random(size) < 0.6)
        for size in sizes
    ]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_the_whole_set_is_measured_as_numpy_does_at_once(dtype: str) -> None:
    made = samples(dtype)
    values = np.concatenate([pixels[:, valid] for pixels, valid in made], axis=1).astype(float)
    found = measure(made)
    assert np.allclose(found.mean, values.mean(axis=1), rtol=1e-12)
    assert np.allclose(found.std, values.std(axis=1), rtol=1e-12)


@given(st.permutations(range(3)))
def test_moments_merge_in_any_order(order: list[int]) -> None:
    made = [Moments.of(*sample) for sample in samples(offset=1e6)]
    first, second, third = (made[i] for i in order)
    one, other = first.merge(second).merge(third), first.merge(second.merge(third))
    assert one.count == other.count
    assert np.allclose(one.mean, other.mean, rtol=1e-14)
    assert np.allclose(one.squares, other.squares, rtol=1e-9)


def test_what_does_not_count_changes_nothing() -> None:
    made = samples()
    spoiled = [(np.where(valid, pixels, np.nan), valid) for pixels, valid in made]
    nothing = (np.full((2, 3, 3), 99.0), np.zeros((3, 3), bool))
    assert measure([nothing, *spoiled, nothing]) == measure(made)


def test_a_large_offset_costs_no_digits() -> None:
    values = np.array([1e8, 1e8 + 1, 1e8 + 2])[None, None]
    found = measure([(values, np.ones((1, 3), bool)), (values, np.ones((1, 3), bool))])
    assert found.std[0] == pytest.approx(np.sqrt(2 / 3), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e-30, 123456.7])
def test_a_band_that_never_changes_has_a_deviation_of_one(value: float) -> None:
    image = np.full((1, 7, 11), value, dtype=np.float32)
    many = [(image, np.ones((7, 11), bool))] * 5
    assert measure(many).std == (1.0,)


def test_nothing_to_measure_is_told() -> None:
    with pytest.raises(DataError, match="no pixel of the training images counts: all are without"):
        measure([(np.ones((1, 2, 2)), np.zeros((2, 2), bool))])
    with pytest.raises(DataError, match="there is no training image"):
        measure([])
