"""The range test, on losses that are known and on nets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from whatwhere.config import make_recipe
from whatwhere.errors import NumericsError, UsageError
from whatwhere.nn.build import build_model
from whatwhere.train.lr_find import find_lr, suggest


class Line(nn.Module):
    """Logits are the image's values times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


def batch(image: Tensor, labels: Tensor) -> dict[str, Tensor]:
    valid = torch.ones_like(labels, dtype=torch.bool)
    return {"image": image, "labels": labels, "valid": valid, "index": torch.zeros(1)}


def noisy(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 1, 16, 16, generator=generator)
    noise = torch.randn(2, 16, 16, generator=generator)
    return batch(image, (image[:, 0] + 0.5 * noise > 0).long())


def loader(*batches: dict[str, Tensor]) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]  # a list is a data set


RATES = np.geomspace(1e-7, 1, 100)


@pytest.mark.parametrize("middle", [1e-5, 1e-4, 1e-3, 1e-2])
def test_the_steepest_fall_of_a_known_curve_is_found(middle: float) -> None:
    """A sigmoid over the logarithm of the rate falls steepest in its middle."""
    fall = 1 / (1 + np.exp(-2 * np.log(RATES / middle)))
    losses = 1 - 0.8 * fall + 3 * RATES
    found = suggest(RATES, losses, 100)
    assert middle / 1.3 < found < middle * 1.3


def test_the_suggestion_is_well_below_where_the_loss_is_lowest() -> None:
    """The fall grows steeper up to the end, as it does before a net explodes."""
    losses = np.where(RATES < 0.1, 1 - np.sqrt(RATES), 5.0)
    lowest = RATES[int(losses.argmin())]
    assert lowest / 10 < suggest(RATES, losses, 100) <= lowest / 3


@pytest.mark.parametrize(
    "losses", [np.full(100, 0.7), 0.7 + RATES, 0.7 - 0.01 * RATES], ids=["flat", "rises", "hardly"]
)
def test_a_loss_that_never_fell_is_an_error_that_says_what_to_do(losses: Any) -> None:
    with pytest.raises(NumericsError, match="never fell at learning rates from 1.0e-07 to 1.0e.00"):
        suggest(RATES, losses, 100)
    with pytest.raises(NumericsError, match="whatwhere inspect.*--batch-size"):
        suggest(RATES, losses, 100)


def test_the_net_is_left_as_it_was_and_the_answer_is_the_same_again() -> None:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    before = copy.deepcopy(net.state_dict())
    feed, recipe = loader(noisy(0), noisy(1)), make_recipe(lr=7.0)
    first = find_lr(net, feed, recipe, "binary", 2, steps=60)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in net.parameters())
    again = find_lr(net, feed, recipe, "binary", 2, steps=60)
    assert first == again
    assert first.lrs == pytest.approx(np.geomspace(1e-7, 1, 60)[: len(first.lrs)])
    assert 1e-7 < first.suggestion < first.lrs[int(np.argmin(first.losses))]


def test_losses_are_smoothed_without_a_bias_to_the_start() -> None:
    """As long as the rates change nothing, the losses are those of the batches in turn."""
    bright, dark = noisy(0), noisy(1)
    net = Line()
    nn.init.ones_(net.weight)
    with torch.no_grad():
        raw = [
            float(nn.functional.binary_cross_entropy_with_logits(
                one["image"][:, 0], one["labels"].float()
            ))
            for one in (bright, dark)
        ]  # fmt: skip
    mean, expected = 0.0, []
    for i in range(20):
        mean = 0.8 * mean + 0.2 * raw[i % 2]
        expected.append(mean / (1 - 0.8 ** (i + 1)))
    feed = loader(bright, dark)
    curve = find_lr(net, feed, make_recipe(), "binary", 2, steps=70, low=1e-12, high=10)
    assert curve.losses[:20] == pytest.approx(expected, rel=1e-5)


def test_the_test_ends_when_the_loss_is_four_times_the_best() -> None:
    curve = find_lr(Line(), loader(noisy()), make_recipe(), "binary", 2, low=1e-4, high=1e4)
    assert len(curve.lrs) == len(curve.losses) < 100
    assert curve.losses[-1] > 4 * min(curve.losses)
    assert max(curve.losses[:-1]) <= 4 * min(curve.losses)


def test_a_loss_that_is_no_number_is_told() -> None:
    bad = noisy()
    bad["image"][:] = torch.nan
    with pytest.raises(NumericsError, match="loss is not finite, or explodes"):
        find_lr(Line(), loader(bad), make_recipe(), "binary", 2)


class Counting(Sampler[int]):
    """Says which epochs were asked for."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.taken = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        for i in range(3):
            self.taken += 1
            yield i


def test_batches_begin_anew_as_other_epochs_and_accumulate_as_in_training() -> None:
    sampler = Counting()
    chips = [noisy(seed) for seed in range(3)]
    feed: DataLoader[Any] = DataLoader(
        chips,  # type: ignore[arg-type]  # a list is a data set
        batch_sampler=torch.utils.data.BatchSampler(sampler, 1, drop_last=False),
        collate_fn=lambda some: some[0],
    )
    recipe = make_recipe(accumulate=2, clip=1.0)
    curve = find_lr(Line(), feed, recipe, "binary", 2, steps=30, low=1e-3, high=1.0)
    assert len(curve.lrs) == 30
    assert sampler.taken == 60
    assert sampler.epochs == list(range(20))


def test_the_average_of_a_step_is_that_of_its_batches() -> None:
    net = Line()
    nn.init.ones_(net.weight)
    pair = [noisy(0), noisy(1)]
    with torch.no_grad():
        raw = [
            float(nn.functional.binary_cross_entropy_with_logits(
                one["image"][:, 0], one["labels"].float()
            ))
            for one in pair
        ]  # fmt: skip
    recipe = make_recipe(accumulate=2)
    curve = find_lr(net, loader(*pair), recipe, "binary", 2, low=1e-6, high=10)
    assert curve.losses[0] == pytest.approx(sum(raw) / 2, rel=1e-6)


def test_twice_the_same_batch_is_the_step_of_one() -> None:
    """With an epsilon of 1 the length of a gradient matters."""
    named: dict[str, Any] = {"low": 1e-3, "high": 100.0, "steps": 40}
    once = find_lr(Line(), loader(noisy()), make_recipe(epsilon=1.0), "binary", 2, **named)
    recipe = make_recipe(epsilon=1.0, accumulate=2)
    twice = find_lr(Line(), loader(noisy()), recipe, "binary", 2, **named)
    assert twice.losses == pytest.approx(once.losses, rel=1e-5)


def test_bf16_is_tried_in_bf16() -> None:
    torch.manual_seed(0)
    net = build_model("tutorial", 1, 1, n_filters=2)
    feed = loader(noisy())
    exact = find_lr(net, feed, make_recipe(), "binary", 2, steps=40)
    rough = find_lr(net, feed, make_recipe(precision="bf16"), "binary", 2, steps=40)
    assert exact.losses[0] != rough.losses[0] == pytest.approx(exact.losses[0], rel=0.05)


@pytest.mark.parametrize("named", [{"steps": 19}, {"low": 0.0}, {"low": 1.0, "high": 0.1}])
def test_ranges_that_are_none_are_refused(named: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 20 steps and rates 0 < low < high, not"):
        find_lr(Line(), loader(noisy()), make_recipe(), "binary", 2, **named)


def test_16_bits_need_a_card() -> None:
    with pytest.raises(UsageError, match="--precision 16 is not for the processor"):
        find_lr(Line(), loader(noisy()), make_recipe(precision="16"), "binary", 2)
