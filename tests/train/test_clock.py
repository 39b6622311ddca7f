"""Training by the clock, with a clock that goes on by a second each time it is asked."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from train.test_fit import OneWeight, batch, loader
from whatwhere.config import make_recipe
from whatwhere.talk import Talk
from whatwhere.train import clock as clocks
from whatwhere.train.callbacks import Averaging
from whatwhere.train.clock import Clock, Timed
from whatwhere.train.fit import History, fit


class Ticking:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = itertools.count(1.0)

    def monotonic(self) -> float:
        return next(self.now)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    found = Ticking()
    monkeypatch.setattr(clocks, "time", found)
    return found


def some(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    image = torch.randn(count, 2, 1, 8, 8)
    return [batch(one, (one[:, 0] > 0).long()) for one in image]


def timed(seconds: float, batches: int, **settings: Any) -> tuple[History, OneWeight]:
    recipe = make_recipe("timed", model="tutorial", minutes=1.0, ema=0.0, **settings)
    net = OneWeight()
    history = fit(
        net, loader(*some(batches)), loader(*some(2)), recipe, "binary", 2,
        on_best=lambda *_: None, talk=Talk(quiet=True), clock=Clock(seconds, 10),
    )  # fmt: skip
    return history, net


def test_what_lies_before_the_first_step_counts(ticking: Ticking) -> None:
    clock: Any = Timed(make_recipe("timed", minutes=1.0), Clock(60, 10))
    clock.begin()  # at 1
    clock.on_train_start(None, None)
    assert clock.spent == 1.0


@pytest.mark.parametrize(("seconds", "batches"), [(60, 4), (60, 1000), (7, 1000)])
def test_a_training_ends_with_its_time(ticking: Ticking, seconds: float, batches: int) -> None:
    """Between two looks at the clock a second passes: the end is not late by more than a step."""
    history, net = timed(seconds, batches)
    spent = ticking.monotonic()
    assert "minute" in history.stopped and not history.interrupted
    assert history.steps == len(net.seen) > 0
    # A step is looked at three times; the end comes within one, and a last validation.
    assert seconds - 12 <= spent <= seconds + 12
    assert len(history.epochs) == -(-history.steps // batches)


def test_the_rate_falls_to_nothing_by_the_clock(ticking: Ticking) -> None:
    history, _ = timed(400, 5, lr=0.1, warmup=0.1)
    rates = [row.lr for row in history.epochs]
    peak = rates.index(max(rates))
    assert peak < len(rates) / 3 and max(rates) <= 0.1
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01 * max(rates)


def test_chips_are_halved_by_the_clock(ticking: Ticking) -> None:
    """And not by the steps, of which nobody knows how many there will be: 10 were guessed."""
    history, net = timed(400, 5, half_size=0.5)
    sides = [image.shape[-1] for image in net.seen]
    assert sides == sorted(sides) and history.steps > 40
    assert sides.count(4) == pytest.approx(history.steps / 2, rel=0.1)


def test_one_that_goes_on_has_what_was_left(ticking: Ticking) -> None:
    recipe = make_recipe("timed", model="tutorial")
    first = Timed(recipe, Clock(100.0, 10, 5.0))
    first.on_train_start(None, None)  # type: ignore[arg-type]
    for _ in range(30):
        first.share  # noqa: B018  # a second passes
    kept = first.state_dict()
    assert 30 <= kept["spent"] <= 34
    again = Timed(recipe, Clock(1.0, 1))
    again.load_state_dict(kept)
    assert again.spent == kept["spent"]
    assert again.share == pytest.approx(kept["spent"] / 95)


def test_a_schedule_without_an_end_has_no_clock() -> None:
    from whatwhere.errors import UsageError

    with pytest.raises(UsageError, match="minutes wants a schedule that ends: cosine or one_cycle"):
        make_recipe("tutorial", minutes=5.0)


def test_the_average_goes_on_with_its_own_half_life() -> None:
    """How many steps there would be is not known any more when a training by the clock goes on."""
    net = OneWeight(3.0)
    first = Averaging(net, 40.0)
    first.on_train_start(None, None)  # type: ignore[arg-type]
    again = Averaging(net, 0.05)
    again.load_state_dict(first.state_dict())
    assert again.half_life == 40.0
