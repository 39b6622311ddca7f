"""What a net takes over from another one, against NumPy written plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from own_nets import Chain
from whatwhere.errors import UsageError
from whatwhere.nn.build import build_model
from whatwhere.nn.transfer import fit_bands, take_over

GREY = (("grey",), ("grey",))


def net_of(seed: int, bands: int = 1, classes: int = 1, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("tutorial", bands, classes, n_filters=1, **more)


def weights_of(net: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


# ---------------------------------------------------------------- filters


def test_bands_of_one_name_take_their_own_filters_in_any_order() -> None:
    filters = torch.randn(4, 3, 3, 3)
    found = fit_bands(filters, ("nir", "red", "green"), ("green", "nir", "red")).numpy()
    np.testing.assert_allclose(found, filters.numpy()[:, [2, 0, 1]], rtol=1e-6)


def test_bands_of_a_new_name_take_the_mean_and_all_are_rescaled() -> None:
    filters = torch.randn(4, 2, 3, 3)
    old = filters.numpy()
    found = fit_bands(filters, ("a", "b"), ("c", "b", "d")).numpy()
    mean = (old[:, 0] + old[:, 1]) / 2
    wanted = np.stack([mean, old[:, 1], mean], axis=1) * 2 / 3
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_from_three_bands_to_one_is_their_sum() -> None:
    filters = torch.randn(4, 3, 3, 3)
    found = fit_bands(filters, ("red", "green", "blue"), ("grey",)).numpy()
    np.testing.assert_allclose(found, filters.numpy().sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("new", [("x",), ("x", "y"), tuple("stuvwxyz")])
def test_equal_bands_are_answered_as_before(new: tuple[str, ...]) -> None:
    filters = torch.randn(4, 3, 3, 3)
    found = fit_bands(filters, ("red", "green", "blue"), new).numpy()
    assert found.shape == (4, len(new), 3, 3)
    np.testing.assert_allclose(found.sum(axis=1), filters.numpy().sum(axis=1), atol=1e-5)


# ---------------------------------------------------------------- nets


def test_the_same_net_is_taken_over_whole() -> None:
    old, new = net_of(1), net_of(2)
    given = weights_of(old)
    taken = take_over(new, given, bands=GREY, same_classes=True)
    assert set(taken.kept) == set(given) and taken.fitted == taken.fresh == ()
    for name, tensor in weights_of(new).items():
        assert np.array_equal(tensor, given[name]), name


def test_other_classes_start_with_a_head_of_their_own() -> None:
    old, new = net_of(1, classes=1), net_of(2, classes=3)
    given, before = weights_of(old), weights_of(new)
    taken = take_over(new, given, bands=GREY, same_classes=False)
    assert taken.fresh == ("head.weight", "head.bias")
    assert set(taken.kept) == set(given) - set(taken.fresh)
    for name, tensor in weights_of(new).items():
        wanted = before if name in taken.fresh else given
        assert np.array_equal(tensor, wanted[name]), name


def test_as_many_but_other_classes_start_anew_too() -> None:
    old, new = net_of(1), net_of(2)
    taken = take_over(new, weights_of(old), bands=GREY, same_classes=False)
    assert taken.fresh == ("head.weight", "head.bias")


def test_the_first_filters_alone_are_fitted_to_other_bands() -> None:
    old, new = net_of(1, bands=1), net_of(2, bands=3)
    given = weights_of(old)
    taken = take_over(new, given, bands=(("grey",), ("red", "green", "blue")), same_classes=True)
    assert taken.fitted == ("c1.layers.0.weight",) and taken.fresh == ()
    after = weights_of(new)
    wanted = np.repeat(given["c1.layers.0.weight"], 3, axis=1) / 3
    np.testing.assert_allclose(after["c1.layers.0.weight"], wanted, rtol=1e-6)
    assert all(np.array_equal(after[name], given[name]) for name in taken.kept)


def test_as_many_bands_of_other_names_are_fitted() -> None:
    old, new = net_of(1, bands=2), net_of(2, bands=2)
    given = weights_of(old)
    taken = take_over(new, given, bands=(("a", "b"), ("b", "a")), same_classes=True)
    assert taken.fitted == ("c1.layers.0.weight",)
    found = weights_of(new)["c1.layers.0.weight"]
    np.testing.assert_allclose(found, given["c1.layers.0.weight"][:, ::-1], rtol=1e-6)


def test_the_head_that_says_if_anything_is_there_is_a_head() -> None:
    torch.manual_seed(0)
    old = build_model(Chain(1, (2, 3)), 1, 1)
    new = build_model(Chain(1, (2, 3)), 1, 1, anything=True)
    taken = take_over(new, weights_of(old), bands=GREY, same_classes=True)
    assert taken.fresh == ("presence.weight", "presence.bias")


def test_a_net_of_another_architecture_is_refused_and_stays_as_it_was() -> None:
    for given, message in (
        (weights_of(net_of(1, batchnorm=False)), r"against nothing.* and \d+ more\. Take its own"),
        (weights_of(build_model("tutorial", n_filters=2)), r"c1.layers.0.weight \(1, 1, 3, 3\) ag"),
        ({**weights_of(net_of(1)), "more": np.zeros(2)}, "architecture: more is left over. Take"),
    ):
        new = net_of(2)
        before = weights_of(new)
        with pytest.raises(UsageError, match=message):
            take_over(new, given, bands=GREY, same_classes=True)
        assert all(np.array_equal(before[name], t) for name, t in weights_of(new).items())
