"""The average of weights against plain NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from whatwhere.train.average import Average


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))


def move(net: nn.Module, seed: int) -> None:
    """Change all weights and, by a forward pass, batch norm's statistics."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
        net(torch.randn(2, 1, 8, 8))


def test_weights_and_statistics_are_averaged_as_in_numpy() -> None:
    net = small_net()
    average = Average(net, half_life=4)
    names = [name for name in net.state_dict() if "tracked" not in name]
    expected = {name: np.zeros(1) for name in names}
    for t in range(1, 31):
        move(net, t)
        average.update()
        kept = min(0.5 ** (1 / 4), (t - 1) / (t + 8))
        for name in names:
            now = net.state_dict()[name].numpy().astype(np.float64)
            expected[name] = kept * expected[name] + (1 - kept) * now
    state = average.state()
    assert list(state) == list(net.state_dict())
    assert int(state["1.num_batches_tracked"]) == 30
    for name in names:
        np.testing.assert_allclose(state[name].numpy(), expected[name], rtol=1e-4, atol=1e-5)
    assert not np.allclose(state["1.running_mean"], net.state_dict()["1.running_mean"])


def test_the_start_weighs_nothing() -> None:
    net = small_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)
    average = Average(net, half_life=1000)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(3.0)
    for _ in range(2):
        average.update()
        assert all(bool((average.state()[n] == 3.0).all()) for n, _ in net.named_parameters())


def test_a_step_weighs_half_after_the_half_life() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, half_life=8)
    nn.init.zeros_(net.weight)
    for _ in range(500):  # long enough for the cap to be past
        average.update()
    nn.init.ones_(net.weight)
    for _ in range(8):
        average.update()
    assert float(average.state()["weight"]) == pytest.approx(0.5, abs=1e-5)


def test_the_average_goes_in_and_the_own_weights_come_back_bit_for_bit() -> None:
    net = small_net()
    average = Average(net, half_life=3)
    for seed in range(5):
        move(net, seed)
        average.update()
    own = copy.deepcopy(net.state_dict())
    mean = {name: tensor.clone() for name, tensor in average.state().items()}
    for _ in range(2):
        average.enter()
        average.enter()
        assert all(torch.equal(net.state_dict()[name], mean[name]) for name in mean)
        assert not torch.equal(net.state_dict()["0.weight"], own["0.weight"])
        average.leave()
        average.leave()
        assert all(torch.equal(net.state_dict()[name], own[name]) for name in own)
    assert all(torch.equal(average.state()[name], mean[name]) for name in mean)
