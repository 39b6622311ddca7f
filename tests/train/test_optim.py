"""KerasAdam against Keras' Adam and against the formula."""

from __future__ import annotations

import keras_unet  # first: it chooses Keras' backend

# isort: split
import copy

import keras
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from whatwhere.train.optim import KerasAdam

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
