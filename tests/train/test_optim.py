"""KerasAdam against Keras' Adam and against the formula; a recipe's optimiser."""

from __future__ import annotations

import keras_unet  # first: it chooses Keras' backend

# isort: split
import copy
from typing import Any

import keras
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whatwhere.config import make_recipe
from whatwhere.nn.build import build_model
from whatwhere.nn.dynamic import DynamicUNet
from whatwhere.train.optim import KerasAdam, make_optimizer, set_rate

Array = NDArray[np.float64]

STEPS = 3
RATE = 1e-3


def gradients() -> list[Array]:
    """Three steps of gradients from 1e-10 to 1, of both signs; epsilon is 1e-7."""
    rng = np.random.default_rng(4)
    sizes = np.logspace(-10, 0, 101)
    return [sizes * rng.uniform(0.5, 1.5, 101) * rng.choice([-1, 1], 101) for _ in range(STEPS)]


def walk(optimizer: type[torch.optim.Adam], **arguments: float) -> list[Array]:
    """The steps that an optimiser takes from zero."""
    parameter = torch.nn.Parameter(torch.zeros(101, dtype=torch.float64))
    adam = optimizer([parameter], lr=RATE, **arguments)
    places = []
    for gradient in gradients():
        parameter.grad = torch.from_numpy(gradient)
        adam.step()
        places.append(parameter.detach().numpy().copy())
    return places


def walk_of_keras() -> list[Array]:
    places = []
    with keras_unet.float64():
        variable = keras.Variable(np.zeros(101))
        adam = keras.optimizers.Adam(RATE, epsilon=1e-7)
        for gradient in gradients():
            adam.apply([torch.from_numpy(gradient)], [variable])
            places.append(variable.value.detach().numpy().copy())
    return places


def walk_of_the_formula() -> list[Array]:
    place, mean, square = np.zeros(101), np.zeros(101), np.zeros(101)
    places = []
    for t, gradient in enumerate(gradients(), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        place = place - rate * mean / (np.sqrt(square) + 1e-7)
        places.append(place)
    return places


def largest_relative(found: list[Array], expected: list[Array]) -> list[float]:
    """The largest difference after each step, as a share of what it should be."""
    pairs = zip(found, expected, strict=True)
    return [float((np.abs(a - b) / np.abs(b)).max()) for a, b in pairs]


def test_steps_are_those_of_keras() -> None:
    assert max(largest_relative(walk(KerasAdam), walk_of_keras())) < 1e-9


def test_steps_are_those_of_the_formula() -> None:
    assert max(largest_relative(walk(KerasAdam), walk_of_the_formula())) < 1e-9


def test_steps_of_torchs_own_adam_are_others() -> None:
    torchs = walk(torch.optim.Adam, eps=1e-7)
    apart = [float(np.abs(a - b).max()) for a, b in zip(torchs, walk_of_the_formula(), strict=True)]
    assert min(apart) > 1e-5  # in weights, not in shares: a hundredth of a whole step


def test_tiny_gradients_take_tiny_first_steps() -> None:
    # By hand for g = 1e-8: 1e-3 · √0.001 · g / (√0.001 · g + 1e-7), a 300th of a whole step.
    parameter = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    parameter.grad = torch.tensor(1e-8, dtype=torch.float64)
    KerasAdam([parameter]).step()
    root = 0.001**0.5
    assert parameter.item() == pytest.approx(-1e-3 * root * 1e-8 / (root * 1e-8 + 1e-7), rel=1e-9)


def test_a_loaded_optimizer_goes_on_as_if_not_interrupted() -> None:
    parameter = torch.nn.Parameter(torch.zeros(101, dtype=torch.float64))
    adam = KerasAdam([parameter], lr=RATE)
    for gradient in gradients():
        state = copy.deepcopy(adam.state_dict())
        adam = KerasAdam([parameter], lr=RATE)
        adam.load_state_dict(state)
        parameter.grad = torch.from_numpy(gradient)
        adam.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), walk(KerasAdam)[-1])


def test_a_step_in_one_pass_is_the_same_step() -> None:
    apart, fused = walk(KerasAdam), walk(KerasAdam, fused=True)
    np.testing.assert_allclose(fused, apart, rtol=1e-9)


def test_weights_that_rested_take_their_first_step_as_all_do() -> None:
    rested, other = (torch.nn.Parameter(torch.zeros(101, dtype=torch.float64)) for _ in range(2))
    adam = KerasAdam([{"params": [rested]}, {"params": [other]}], lr=RATE, fused=True)
    rested.requires_grad = False
    for gradient in gradients():
        other.grad = torch.from_numpy(gradient)
        adam.step()
    rested.requires_grad = True
    for gradient in gradients():
        rested.grad = torch.from_numpy(gradient)
        adam.step()
    np.testing.assert_allclose(rested.detach().numpy(), walk_of_the_formula()[-1], rtol=1e-9)


def test_no_step_in_one_pass_where_gradients_are_clipped_in_16_bits() -> None:
    def fused(**settings: Any) -> bool:
        return bool(make_optimizer(nn.Conv2d(1, 1, 1), make_recipe(**settings)).defaults["fused"])

    assert fused() and fused(clip=1.0) and fused(precision="bf16")
    assert not fused(clip=1.0, precision="bf16") and not fused(clip=1.0, precision="16")


def test_every_group_has_its_own_rate_and_the_epsilon_of_keras() -> None:
    slow, fast = (torch.nn.Parameter(torch.zeros(101, dtype=torch.float64)) for _ in range(2))
    adam = KerasAdam([{"params": [slow], "lr": RATE}, {"params": [fast], "lr": 10 * RATE}])
    for gradient in gradients():
        slow.grad = fast.grad = torch.from_numpy(gradient)
        adam.step()
    expected = walk_of_the_formula()[-1]
    np.testing.assert_allclose(slow.detach().numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(fast.detach().numpy(), 10 * expected, rtol=1e-9)


def test_a_closure_gives_the_gradients_and_its_loss_comes_back() -> None:
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    adam = KerasAdam([parameter])

    def closure() -> float:
        adam.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert adam.step(closure) == 9.0
    assert parameter.item() == pytest.approx(3.0 - 1e-3, abs=1e-6)


class Body(nn.Module):
    """A backbone of three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 2, 2), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in ((1, 4), (4, 6), (6, 8))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            image = level(image)
            maps.append(image)
        return maps


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step for random images; dropout draws what it drew the last time."""
    torch.manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randn(2, 1, 32, 32)).square().mean().backward()
    optimizer.step()


def test_adam_with_one_group_steps_as_before_bit_for_bit() -> None:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    twin = copy.deepcopy(net)
    recipe = make_recipe(lr=0.01, beta_1=0.8)
    plain = KerasAdam(twin.parameters(), lr=0.01, betas=(0.8, 0.999), fused=True)
    ours = make_optimizer(net, recipe)
    for seed in range(3):
        step(net, ours, seed)
        step(twin, plain, seed)
    pairs = zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_adamw_is_torchs_and_decays_weights_alone() -> None:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    recipe = make_recipe(optimizer="adamw", weight_decay=0.1, lr=0.01, epsilon=1e-6)
    modules = [m for m in twin.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = [module.weight for module in modules]
    others = [p for p in twin.parameters() if not any(p is w for w in weights)]
    plain = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.01, eps=1e-6, fused=True,
    )  # fmt: skip
    ours = make_optimizer(net, recipe)
    for seed in range(3):
        step(net, ours, seed)
        step(twin, plain, seed)
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name

    still = make_optimizer(start, recipe)
    before = copy.deepcopy(start.state_dict())
    for parameter in start.parameters():
        parameter.grad = torch.zeros_like(parameter)
    still.step()
    for name, parameter in start.named_parameters():
        share = 1 - 0.01 * 0.1 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * share)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_deeper_levels_learn_faster_and_the_decoder_fastest(optimizer: str) -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""
    torch.manual_seed(0)
    net = DynamicUNet(Body(), 1, 1)
    recipe = make_recipe(
        model="resnet18", optimizer=optimizer, encoder_lr=0.001, lr=0.02, epsilon=1e-30
    )
    ours = make_optimizer(net, recipe)
    set_rate(ours, 0.01)
    before = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    ours.step()

    def moved(name: str) -> float:
        change = net.get_parameter(name) - before.get_parameter(name)
        return -float(change.detach().mean())

    for level, share in enumerate((0.001, 0.01, 0.1)):
        for part in ("0.weight", "0.bias", "1.weight"):
            found = moved(f"encoder.body.levels.{level}.{part}")
            assert found == pytest.approx(0.01 * share, rel=0.05)
    assert moved("head.weight") == pytest.approx(0.01, rel=1e-3)
    assert moved("decoder.0.layers.0.weight") == pytest.approx(0.01, rel=1e-3)


def test_a_backbone_with_a_share_of_zero_stands_still() -> None:
    net = DynamicUNet(Body(), 1, 1)
    start = copy.deepcopy(net)
    step(net, make_optimizer(net, make_recipe(model="resnet18", encoder_lr=0.0)), 1)
    for name, parameter in net.named_parameters():
        still = torch.equal(parameter, start.get_parameter(name))
        assert still == name.startswith("encoder."), name
