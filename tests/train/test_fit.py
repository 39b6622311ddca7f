"""Training by Lightning, on nets small enough for a test."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from made import salt_folder
from whatwhere.config import Recipe, make_recipe
from whatwhere.data.plan import plan_data
from whatwhere.errors import NumericsError
from whatwhere.talk import Talk
from whatwhere.train.callbacks import Waiting
from whatwhere.train.fit import Epoch, History, Weights, fit
from whatwhere.train.schedule import Plateau, Stopper, rate_at

QUIET = Talk(quiet=True)


class OneWeight(nn.Module):
    """Logits are the image times a weight; notes what it sees in training."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.seen.append(image.detach().clone())
        return image * self.weight


def batch(image: Tensor, labels: Tensor) -> dict[str, Tensor]:
    valid = torch.ones_like(labels, dtype=torch.bool)
    return {"image": image, "labels": labels, "valid": valid, "index": torch.zeros(1)}


def loader(*batches: dict[str, Tensor]) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]  # a list is a data set


def train(
    net: nn.Module, batches: list[Any], recipe: Recipe, keep: Callable[[Weights, Epoch], None]
) -> History:
    feed = loader(*batches)
    return fit(net, feed, feed, recipe, "binary", 2, on_best=keep, talk=QUIET)


def test_the_kept_weights_are_those_of_the_best_epoch_and_the_rates_follow_the_schedule(
    tmp_path: Path,
) -> None:
    """A rate that is far too high: the loss soon rises, the rate falls, the training stops."""
    torch.manual_seed(0)
    image = torch.randn(4, 1, 8, 8)
    labels = (image[:, 0] + 0.8 * torch.randn(4, 8, 8) > 0).long()
    recipe = make_recipe(lr=3.0, epochs=60, lr_patience=2, stop_patience=7, min_lr=1e-3)
    kept: list[tuple[float, Epoch]] = []
    net = OneWeight(5.0)
    log = tmp_path / "log.csv"
    history = fit(
        net, loader(batch(image, labels)), loader(batch(image, labels)), recipe, "binary", 2,
        on_best=lambda weights, row: kept.append((float(weights["weight"]), row)),
        talk=QUIET, log=log,
    )  # fmt: skip
    losses = [row.val_loss for row in history.epochs]
    best = int(np.argmin(losses))
    assert history.best.epoch == kept[-1][1].epoch == best + 1
    logits = image[:, 0] * kept[-1][0]
    again = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert float(again) == pytest.approx(losses[best], rel=1e-6)

    plateau, stopper, rate = Plateau(0.1, 2, 1e-4, 1e-3), Stopper(7), 3.0
    for i, row in enumerate(history.epochs):
        assert row.lr == pytest.approx(rate)
        rate = plateau.next_lr(row.val_loss, rate)
        assert stopper.should_stop(row.val_loss) == (i == len(history.epochs) - 1)
    assert history.epochs[-1].lr < 3.0
    assert "no better for 7 epochs" in history.stopped
    with open(log, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["val_loss"]) for row in rows] == losses


def test_the_validation_loss_is_the_mean_over_pixels_not_over_batches() -> None:
    first = batch(torch.full((3, 1, 4, 4), 2.0), torch.ones(3, 4, 4, dtype=torch.long))
    second = batch(torch.full((1, 1, 4, 4), -1.0), torch.ones(1, 4, 4, dtype=torch.long))
    second["valid"][:, :2] = False
    recipe = make_recipe(lr=0.0, epochs=1)
    history = fit(
        OneWeight(1.0), loader(first), loader(first, second), recipe, "binary", 2,
        on_best=lambda _weights, _row: None, talk=QUIET,
    )  # fmt: skip
    one, other = math.log1p(math.exp(-2)), math.log1p(math.exp(1))
    assert history.epochs[0].val_loss == pytest.approx((48 * one + 8 * other) / 56)
    assert history.epochs[0].val_pixel_accuracy == pytest.approx(48 / 56)


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_best() -> None:
    good = batch(torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4, dtype=torch.long))
    bad = batch(torch.full((1, 1, 4, 4), torch.nan), torch.ones(1, 4, 4, dtype=torch.long))
    kept: list[Epoch] = []
    with pytest.raises(NumericsError, match=r"training loss is nan at step 0.*smaller --lr"):
        train(OneWeight(1.0), [bad], make_recipe(epochs=2), lambda _w, row: kept.append(row))
    assert kept == []
    with pytest.raises(NumericsError, match="validation loss is not a number"):
        fit(
            OneWeight(1.0), loader(good), loader(bad), make_recipe(epochs=1), "binary", 2,
            on_best=lambda _w, row: kept.append(row), talk=QUIET,
        )  # fmt: skip
    assert kept == []


def test_epochs_see_other_changes_and_runs_see_the_same(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 8, (32, 32))
    recipe = make_recipe(epochs=3, batch_size=2)
    plan = plan_data(data, recipe, QUIET)

    def seen(workers: int) -> list[Tensor]:
        net = OneWeight(0.1)
        loader, val = plan.loader("train", workers), plan.loader("val")
        fit(net, loader, val, recipe, "binary", 2, on_best=lambda _w, _r: None, talk=QUIET)
        return net.seen

    first, again = seen(0), seen(0)
    assert len(first) == 9
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    epochs = [torch.cat(first[i : i + 3]) for i in (0, 3, 6)]
    for i in range(3):
        for j in range(i):
            rows = {tuple(chip.flatten().tolist()) for chip in epochs[i]}
            assert not rows & {tuple(chip.flatten().tolist()) for chip in epochs[j]}


def test_short_epochs_go_through_all_chips_and_the_rate_ends_at_its_end(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 20, (32, 32))
    short = {"epoch_chips": 5, "batch_size": 2, "augment": False, "seed": 1}
    recipe = make_recipe(epochs=3, schedule="cosine", stop_patience=0, **short)
    plan = plan_data(data, recipe, QUIET)
    chips = len(plan.splits["train"])
    assert chips == 14 and len(plan.loader("train")) == 3
    assert len(plan.loader("val")) == 2, "validation is as it was"

    def seen(workers: int) -> list[Tensor]:
        net = OneWeight(0.1)
        feed = plan.loader("train", workers), plan.loader("val")
        history = fit(net, *feed, recipe, "binary", 2, on_best=lambda _w, _r: None, talk=QUIET)
        assert history.epochs[-1].lr == pytest.approx(rate_at(8, 9, recipe))
        return net.seen

    first = seen(0)
    assert [len(one) for one in first] == [2, 2, 1] * 3
    shown = [chip.numpy().tobytes() for one in first for chip in one]
    assert len(set(shown)) == chips and len(set(shown[:14])) == chips
    assert all(torch.equal(a, b) for a, b in zip(first, seen(1), strict=True))


def test_few_steps_make_batch_norm_forget_faster_and_many_do_not() -> None:
    from whatwhere.nets import net_arguments

    assert net_arguments(Recipe(), 69)["bn_momentum"] == 0.99
    few = net_arguments(Recipe(), 9)["bn_momentum"]
    assert few**9 == pytest.approx(0.05, rel=1e-2)
    assert net_arguments(make_recipe(bn_adapt=False), 9)["bn_momentum"] == 0.99
    assert net_arguments(make_recipe(bn_momentum=0.3), 9)["bn_momentum"] == 0.3


def test_the_share_of_waiting_is_that_between_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 13.5, 14.0])  # waits 1 s, steps 2 s, waits 0.5 s, steps 0.5 s
    monkeypatch.setattr("whatwhere.train.callbacks.time.monotonic", lambda: next(clock))
    waiting, trainer = Waiting(), cast(Any, None)
    waiting.on_train_epoch_start(trainer, trainer)
    for _ in range(2):
        waiting.on_train_batch_start(trainer)
        waiting.on_train_batch_end(trainer)
    assert waiting.share == pytest.approx(1.5 / 4)


class Slow(Dataset[dict[str, Tensor]]):
    """Takes longer to read than a net of one weight takes to learn."""

    def __init__(self, chips: dict[str, Tensor]) -> None:
        self.chips = chips

    def __len__(self) -> int:
        return len(self.chips["image"])

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        time.sleep(0.05)
        return {name: value[at] for name, value in self.chips.items()}


def test_a_training_that_waits_for_its_data_says_so(tmp_path: Path) -> None:
    image = torch.randn(4, 1, 8, 8)
    read = {**batch(image, (image[:, 0] > 0).long()), "index": torch.arange(4)}
    chips: Any = DataLoader(Slow(read), batch_size=2)
    history = fit(
        OneWeight(1.0), chips, chips, make_recipe(epochs=3), "binary", 2,
        on_best=lambda *_: None, talk=QUIET, log=tmp_path / "log.csv",
    )  # fmt: skip
    assert 0.5 < history.waiting < 1
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as stream:
        assert all(0.5 < float(row["waiting"]) < 1 for row in csv.DictReader(stream))
