"""Plateau and Stopper against Keras' callbacks, the rates of steps against torch's schedulers."""

from __future__ import annotations

import keras_unet  # noqa: F401  first: it chooses Keras' backend

# isort: split
from itertools import accumulate
from types import SimpleNamespace

import keras
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whatwhere.config import make_recipe
from whatwhere.train.schedule import Plateau, Stopper, rate_at, steps_of

# Losses are multiples of 2⁻¹⁶, which Keras' float32 holds exactly; 1e-4 lies between the sixth and
# the seventh of them.
UNIT = 2.0**-16
START = 1 / 2

CURVES = st.lists(
    st.sampled_from([0, 0, 0, 1, -1, -6, -7, 6, -64, 64, -200, 900]), min_size=1, max_size=60
).map(lambda steps: [START + UNIT * s for s in accumulate(steps)])

FLAT = [START] * 40
FALLING = [START - 0.01 * i for i in range(30)]
TOO_LITTLE = [START - 6 * UNIT * i for i in range(30)]
ENOUGH = [START - 7 * UNIT * i for i in range(30)]


def rates_of_keras(losses: list[float], lr: float, **arguments: float) -> list[float]:
    model = SimpleNamespace(optimizer=keras.optimizers.SGD(lr))
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **arguments)
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        rates.append(float(model.optimizer.learning_rate.value))
    return rates


def rates_of_ours(losses: list[float], lr: float, **arguments: float) -> list[float]:
    plateau = Plateau(**arguments)  # type: ignore[arg-type]
    rates = []
    for loss in losses:
        lr = plateau.next_lr(loss, lr)
        rates.append(lr)
    return rates


def last_of_keras(losses: list[float], patience: int, min_delta: float) -> int | None:
    model = SimpleNamespace(stop_training=False)
    callback = keras.callbacks.EarlyStopping(
        monitor="val_loss", patience=patience, min_delta=min_delta
    )
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            return epoch
    return None


def last_of_ours(losses: list[float], patience: int, min_delta: float) -> int | None:
    stopper = Stopper(patience=patience, min_delta=min_delta)
    return next((epoch for epoch, loss in enumerate(losses) if stopper.should_stop(loss)), None)


# Keras turns its variables into NumPy arrays in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@given(CURVES, st.sampled_from([1, 2, 5]), st.sampled_from([0.1, 0.5]), st.sampled_from([0, 1e-5]))
@example(FLAT, 5, 0.1, 1e-5)
@example(FALLING, 5, 0.1, 1e-5)
@example(TOO_LITTLE, 5, 0.1, 1e-5)
@example(ENOUGH, 5, 0.1, 1e-5)
@example([*FALLING[:4], *[FALLING[3]] * 5, *FALLING[4:]], 5, 0.1, 1e-5)
@example([*FALLING[:4], *[FALLING[3]] * 4, *FALLING[4:]], 5, 0.1, 1e-5)
@settings(max_examples=60, deadline=None)
def test_rates_fall_as_in_keras(
    losses: list[float], patience: int, factor: float, min_lr: float
) -> None:
    arguments = {"patience": patience, "factor": factor, "min_lr": min_lr}
    expected = rates_of_keras(losses, 1e-3, **arguments)
    assert rates_of_ours(losses, 1e-3, **arguments) == pytest.approx(expected, rel=1e-5, abs=0)


@given(CURVES, st.sampled_from([1, 3, 10]), st.sampled_from([0.0, 1e-4, 64 * UNIT]))
@example(FLAT, 10, 0.0)
@example(FALLING, 10, 0.0)
@example(TOO_LITTLE, 10, 1e-4)
@example(ENOUGH, 10, 1e-4)
@example([START - 64 * UNIT * i for i in range(30)], 10, 64 * UNIT)
@example([START, *[START] * 9, START - UNIT, *[START] * 10], 10, 0.0)
@settings(max_examples=60, deadline=None)
def test_training_stops_when_keras_stops(
    losses: list[float], patience: int, min_delta: float
) -> None:
    expected = last_of_keras(losses, patience, min_delta)
    assert last_of_ours(losses, patience, min_delta) == expected


def test_the_rate_falls_with_the_last_epoch_of_patience() -> None:
    rates = rates_of_ours([0.5] * 12, 1e-3)  # the first is the best, the next five are bad
    assert rates == pytest.approx([1e-3] * 5 + [1e-4] * 5 + [1e-5] * 2)


def test_the_rate_never_falls_below_its_floor() -> None:
    assert rates_of_ours(FLAT, 1e-3, min_lr=3e-5)[-1] == 3e-5


def test_training_stops_with_the_last_epoch_of_patience() -> None:
    assert last_of_ours([0.5] * 10, 10, 0.0) is None
    assert last_of_ours([0.5] * 11, 10, 0.0) == 10


def test_defaults_are_those_of_the_tutorial() -> None:
    plateau, stopper = Plateau(), Stopper()
    assert (plateau.factor, plateau.patience, stopper.patience) == (0.1, 5, 10)
    keras_plateau = keras.callbacks.ReduceLROnPlateau()
    assert plateau.min_delta == keras_plateau.min_delta
    assert stopper.min_delta == keras.callbacks.EarlyStopping().min_delta


def test_a_patience_of_zero_never_stops() -> None:
    assert last_of_ours([0.5 + 0.1 * i for i in range(100)], 0, 0.0) is None


def rates_of_torch(scheduler: str, lr: float, count: int, **arguments: float) -> list[float]:
    """The rates of a scheduler's first steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    follower = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **arguments)
    rates = []
    for _ in range(count):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        follower.step()
    return rates


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.1), (101, 0.3), (33, 0.5), (1000, 0.25)])
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    recipe = make_recipe(schedule="one_cycle", lr=0.02, warmup=warmup)
    expected = rates_of_torch(
        "OneCycleLR", 0.1, steps - 1, max_lr=0.02, total_steps=steps, pct_start=warmup,
        div_factor=25, final_div_factor=1e4 / 25, cycle_momentum=False,
    )  # fmt: skip
    found = [rate_at(step, steps, recipe) for step in range(steps)]
    assert found == pytest.approx([*expected, 0.02 / 1e4], rel=1e-9)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.1), (101, 0.3), (40, 0.0)])
def test_cosine_rises_along_a_line_and_falls_as_torchs(steps: int, warmup: float) -> None:
    recipe = make_recipe(schedule="cosine", lr=0.02, warmup=warmup)
    rise = int(warmup * steps)
    up = rates_of_torch(
        "LinearLR", 0.02, rise, start_factor=1 / (rise + 1), end_factor=1.0, total_iters=rise
    )
    down = rates_of_torch("CosineAnnealingLR", 0.02, steps - rise, T_max=steps - rise)
    found = [rate_at(step, steps, recipe) for step in range(steps)]
    assert found == pytest.approx([*up, *down], rel=1e-9)


@given(
    st.sampled_from(["cosine", "one_cycle"]),
    st.integers(1, 300),
    st.floats(0, 0.9),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_every_step_has_a_rate_and_no_rate_passes_lr(
    schedule: str, steps: int, warmup: float, lr: float
) -> None:
    recipe = make_recipe(schedule=schedule, warmup=warmup, lr=lr)
    rates = [rate_at(step, steps, recipe) for step in range(steps)]
    assert all(0 <= rate <= lr for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rate_at(steps + 5, steps, recipe) == rates[-1]


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_each_size_of_chips_has_a_course_of_its_own(schedule: str) -> None:
    recipe = make_recipe(schedule=schedule, stop_patience=0)
    grown = make_recipe(recipe, half_size=0.6)
    found = [rate_at(step, 50, grown) for step in range(50)]
    assert found == [rate_at(step, 30, recipe) for step in range(30)] + [
        rate_at(step, 20, recipe) for step in range(20)
    ]
    whole = make_recipe(recipe, half_size=1.0)
    assert rate_at(49, 50, whole) == rate_at(49, 50, recipe)


def test_the_plateau_begins_at_lr() -> None:
    assert rate_at(7, 10, make_recipe(lr=0.3)) == 0.3


def test_what_is_left_at_an_epochs_end_makes_a_step() -> None:
    assert steps_of(7, make_recipe(epochs=3)) == 21
    assert steps_of(7, make_recipe(epochs=3, accumulate=3)) == 9
    assert steps_of(2, make_recipe(epochs=3, accumulate=8)) == 3
