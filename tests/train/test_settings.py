"""Each setting of a training against what it should do, worked out beside it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from whatwhere.config import Recipe, make_recipe
from whatwhere.errors import UsageError
from whatwhere.nn.build import build_model
from whatwhere.nn.dynamic import DynamicUNet
from whatwhere.talk import Talk
from whatwhere.train.fit import History, fit
from whatwhere.train.optim import KerasAdam

QUIET = Talk(quiet=True)
PLAIN: dict[str, Any] = {"stop_patience": 0, "bn_adapt": False}


def batch(seed: int, size: int = 8, count: int = 2) -> dict[str, Tensor]:
    """Images of which the bright pixels are class 1, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, size, size, generator=generator)
    noise = torch.randn(count, size, size, generator=generator)
    labels = (image[:, 0] + 0.5 * noise > 0).long()
    valid = torch.rand(count, size, size, generator=generator) < 0.8
    return {"image": image, "labels": labels, "valid": valid, "index": torch.arange(count)}


def loader(batches: Sequence[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]  # a list is a data set


def train(
    net: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    recipe: Recipe,
    val: Sequence[dict[str, Tensor]] | None = None,
    talk: Talk = QUIET,
    **named: Any,
) -> tuple[History, list[dict[str, Any]]]:
    """Train, and return all weights that were kept too."""
    kept: list[dict[str, Any]] = []
    history = fit(
        net, loader(batches), loader(val or batches), recipe, "binary", 2,
        on_best=lambda weights, _row: kept.append(weights), talk=talk, **named,
    )  # fmt: skip
    return history, kept


class Line(nn.Module):
    """Logits are a line through the image's values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.bias = nn.Parameter(torch.tensor(-0.2))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight + self.bias


def cross_entropy(net: nn.Module, one: dict[str, Tensor]) -> Tensor:
    logits = net(one["image"])[:, 0][one["valid"]]
    return functional.binary_cross_entropy_with_logits(logits, one["labels"][one["valid"]].float())


def small_net() -> nn.Module:
    """Batch norm and dropout are in it."""
    torch.manual_seed(0)
    return build_model("tutorial", 1, 1, n_filters=2, bn_momentum=0.5)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


# Steps


def test_several_batches_make_one_step_with_the_mean_of_their_gradients() -> None:
    """Five batches, two a step: the third step has one. With an epsilon of 1 lengths matter."""
    batches = [batch(seed) for seed in range(5)]
    recipe = make_recipe(accumulate=2, epochs=2, lr=0.5, epsilon=1.0, **PLAIN)
    ours, net = Line(), Line()
    train(ours, batches, recipe)
    adam = KerasAdam(net.parameters(), lr=0.5, epsilon=1.0)
    for _ in range(2):
        for some in (batches[:2], batches[2:4], batches[4:]):
            adam.zero_grad()
            torch.stack([cross_entropy(net, one) for one in some]).mean().backward()
            adam.step()
    for a, b in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_long_gradients_are_shortened() -> None:
    recipe = make_recipe(clip=0.01, epochs=4, lr=0.5, epsilon=1.0, **PLAIN)
    ours, net = Line(), Line()
    train(ours, [batch(0)], recipe)
    adam = KerasAdam(net.parameters(), lr=0.5, epsilon=1.0)
    for _ in range(4):
        adam.zero_grad()
        cross_entropy(net, batch(0)).backward()
        gradients = [parameter.grad for parameter in net.parameters()]
        length = float(np.linalg.norm([float(g) for g in gradients if g is not None]))
        assert length > 0.01
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient * 0.01 / length
        adam.step()
    for a, b in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_schedule_counts_steps_not_batches() -> None:
    """Three batches, two a step, four epochs: eight steps, and the log has the second of each."""
    recipe = make_recipe(
        schedule="one_cycle", warmup=0.5, accumulate=2, epochs=4, lr=0.1, optimizer="adamw", **PLAIN
    )
    ours, net = Line(), Line()
    batches = [batch(seed) for seed in range(3)]
    history, _ = train(ours, batches, recipe)
    adam = torch.optim.AdamW(net.parameters(), lr=0.1, eps=1e-7, weight_decay=0.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        adam, 0.1, total_steps=8, pct_start=0.5, final_div_factor=400, cycle_momentum=False
    )
    for row in history.epochs:
        for some in (batches[:2], batches[2:]):
            rate = adam.param_groups[0]["lr"]
            adam.zero_grad()
            torch.stack([cross_entropy(net, one) for one in some]).mean().backward()
            adam.step()
            cycle.step()
        assert row.lr == pytest.approx(rate)
    for a, b in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_patience_of_zero_goes_through_all_epochs() -> None:
    recipe = make_recipe(epochs=15, lr=0.0, stop_patience=0)
    history, _ = train(Line(), [batch(0)], recipe)
    assert len(history.epochs) == 15
    assert history.stopped == "all epochs were done (15)"


def test_two_trainings_with_everything_are_equal_bit_for_bit() -> None:
    batches = [batch(seed, 16) for seed in range(3)]
    recipe = make_recipe(
        schedule="one_cycle", ema=0.2, clip=0.1, accumulate=2, optimizer="adamw",
        weight_decay=0.1, epochs=3, loss="dice+cross_entropy", **PLAIN,
    )  # fmt: skip
    first, second = small_net(), small_net()
    history, kept = train(first, batches, recipe)
    again, kept_again = train(second, batches, recipe)
    assert [row.val_loss for row in history.epochs] == [row.val_loss for row in again.epochs]
    assert len(kept) == len(kept_again) > 0
    assert all(same(a, b) for a, b in zip(kept, kept_again, strict=True))
    assert same(first.state_dict(), second.state_dict())


# The average of weights


def test_validation_and_what_is_kept_are_the_averages_and_the_net_keeps_its_own() -> None:
    batches = [batch(seed, 16) for seed in range(3)]
    plain, averaged = small_net(), small_net()
    train(plain, batches, make_recipe(epochs=4, lr=0.01, **PLAIN))
    history, kept = train(averaged, batches, make_recipe(epochs=4, lr=0.01, ema=0.3, **PLAIN))
    assert same(plain.state_dict(), averaged.state_dict())
    assert not same(plain.state_dict(), kept[-1])
    net = small_net().eval()
    net.load_state_dict({name: torch.from_numpy(values) for name, values in kept[-1].items()})
    with torch.no_grad():
        losses = [cross_entropy(net, one) * one["valid"].sum() for one in batches]
    pixels = sum(int(one["valid"].sum()) for one in batches)
    assert history.best.val_loss == pytest.approx(float(sum(losses)) / pixels, rel=1e-5)


def test_the_average_is_that_of_the_weights_after_each_step() -> None:
    seen: list[float] = []

    class Noting(Line):
        def forward(self, image: Tensor) -> Tensor:
            if self.training:
                seen.append(float(self.weight.detach()))
            return super().forward(image)

    net = Noting()
    recipe = make_recipe(epochs=5, lr=0.1, accumulate=2, ema=0.4, **PLAIN)
    history, kept = train(net, [batch(seed) for seed in range(4)], recipe)
    assert history.best.epoch == 5
    after = [*seen[2::2], float(net.weight.detach())]  # two batches a step, ten steps
    mean, decay = 0.0, 0.5 ** (1 / (0.4 * 10))
    for t, weight in enumerate(after, start=1):
        kept_share = min(decay, (t - 1) / (t + 8))
        mean = kept_share * mean + (1 - kept_share) * weight
    assert len(after) == 10
    assert float(kept[-1]["weight"]) == pytest.approx(mean, rel=1e-5)


# Losses


def test_the_loss_is_the_recipes_with_the_weights_of_the_classes() -> None:
    recipe = make_recipe(epochs=1, lr=0.0, loss="cross_entropy")
    net, one = Line(), batch(3)
    history, _ = train(net, [one], recipe, class_weights=(1.0, 5.0))
    with torch.no_grad():
        logits = net(one["image"])[:, 0][one["valid"]]
    truth = one["labels"][one["valid"]]
    expected = functional.cross_entropy(
        torch.stack([torch.zeros_like(logits), logits], 1), truth, weight=torch.tensor([1.0, 5.0])
    )
    assert history.epochs[0].val_loss == pytest.approx(float(expected), rel=1e-5)
    assert history.epochs[0].train_loss == pytest.approx(float(expected), rel=1e-5)


def test_a_net_that_gives_less_is_measured_in_the_middle() -> None:
    class Middle(Line):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)[..., 2:-2, 2:-2]

    one = batch(5)
    one["labels"][:, :2] = 7  # no class: an edge that was looked at would fail
    history, _ = train(Middle(), [one], make_recipe(epochs=1, lr=0.0))
    middle = {name: values[..., 2:-2, 2:-2] for name, values in one.items() if name != "index"}
    net = Line()
    with torch.no_grad():
        expected = float(cross_entropy(net, middle))
        said = net(middle["image"])[:, 0] >= 0
    right = (said.long() == middle["labels"])[middle["valid"]].float().mean()
    assert history.epochs[0].val_loss == pytest.approx(expected, rel=1e-5)
    assert history.epochs[0].val_pixel_accuracy == pytest.approx(float(right))


# Precision


def test_the_net_runs_in_16_bits_and_the_loss_in_32() -> None:
    net = nn.Conv2d(1, 1, 3, padding=1)
    one = batch(0)
    history, _ = train(net, [one], make_recipe(epochs=1, lr=0.0, precision="bf16"))
    exact, _ = train(net, [one], make_recipe(epochs=1, lr=0.0))
    with torch.no_grad():
        logits = net.bfloat16()(one["image"].bfloat16()).float()
    expected = cross_entropy(nn.Identity(), {**one, "image": logits})
    assert history.epochs[0].val_loss == pytest.approx(float(expected), rel=1e-6)
    assert history.epochs[0].val_loss != exact.epochs[0].val_loss


def test_weights_stay_in_32_bits() -> None:
    net = small_net()
    _, kept = train(net, [batch(0, 16)], make_recipe(epochs=1, precision="bf16", clip=1.0))
    assert {values.dtype.name for values in kept[0].values()} == {"float32", "int64"}


def test_16_bits_of_the_other_kind_are_not_for_the_processor() -> None:
    with pytest.raises(UsageError, match="--precision 16 is not for the processor.*bf16 or 32"):
        train(Line(), [batch(0)], make_recipe(precision="16"))


def test_a_compiler_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_values: Tensor) -> Tensor:
        raise RuntimeError("there is no g++\nand much more")

    monkeypatch.setattr(torch, "compile", lambda _function: broken)
    train(Line(), [batch(0)], make_recipe(epochs=1, compile=True), most_batches=1)  # a rehearsal
    told = r"--compile: PyTorch's compiler does not work here \(there is no g\+\+\)"
    with pytest.raises(UsageError, match=told):
        train(Line(), [batch(0)], make_recipe(epochs=1, compile=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_compiled_steps_are_the_steps() -> None:
    """Dropout draws the same there."""
    from torch._dynamo.utils import counters

    def net() -> nn.Module:
        torch.manual_seed(0)
        return build_model("tutorial", 1, 1, n_filters=2, bn_momentum=0.5, dropout=0.3)

    usual, _ = train(net(), [batch(0, 16)], make_recipe(epochs=3))
    counters.clear()
    found, kept = train(net(), [batch(0, 16)], make_recipe(epochs=3, compile=True))
    assert counters["stats"]["unique_graphs"] > 2  # of a trial, training and validation
    assert [epoch.train_loss for epoch in found.epochs] == pytest.approx(
        [epoch.train_loss for epoch in usual.epochs], rel=1e-4
    )
    assert {*kept[-1]} == {*small_net().state_dict()}


# The backbone


class Body(nn.Module):
    """A backbone of two levels that notes its weights and statistics at each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 2, 2), nn.BatchNorm2d(4))
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        if torch.is_grad_enabled():
            self.seen.append(copy.deepcopy(self.state_dict()))
        first = self.first(image)
        return [first, self.second(first)]


def test_the_backbone_rests_and_then_learns(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    body = Body()
    net = DynamicUNet(body, 1, 1)
    start = copy.deepcopy(body.state_dict())
    head = net.head.weight.detach().clone()
    recipe = make_recipe(model="resnet18", epochs=3, freeze_epochs=2, lr=0.01)
    train(net, [batch(seed, 16) for seed in range(2)], recipe, talk=Talk())
    steps = body.seen[-6:]  # what was before measured the depths
    assert [same(start, weights) for weights in steps] == [True] * 5 + [False]
    assert not torch.equal(net.head.weight, head)
    assert all(parameter.requires_grad for parameter in net.parameters())
    told = capsys.readouterr().err
    assert "the backbone rests for the first 2 epochs" in told
    assert told.index("epoch   2/3") < told.index("the backbone learns from here on")


def test_the_first_filters_learn_where_they_are_let(capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    net = DynamicUNet(body, 1, 1)
    start = copy.deepcopy(body.state_dict())
    recipe = make_recipe(model="resnet18", epochs=2, freeze_epochs=2, train_first=True, lr=0.01)
    train(net, [batch(seed, 16) for seed in range(2)], recipe, talk=Talk())
    moved = {name for name, one in body.state_dict().items() if not torch.equal(one, start[name])}
    assert moved == {"first.0.weight", "first.0.bias"}
    assert "rests for the first 2 epochs, but for its first filters" in capsys.readouterr().err


def test_a_rehearsal_takes_the_dear_way_of_a_backbone_that_learns() -> None:
    body = Body()
    net = DynamicUNet(body, 1, 1)
    start = copy.deepcopy(body.state_dict())
    recipe = make_recipe(model="resnet18", freeze_epochs=2, lr=0.01)
    train(net, [batch(seed, 16) for seed in range(2)], recipe, most_batches=2)
    assert not same(start, body.state_dict())


# What is monitored


@pytest.mark.parametrize(
    ("monitor", "column", "better"),
    [
        ("loss", "val_loss", -1),
        ("mean_iou", "val_mean_iou", 1),
        ("mean_dice", "val_mean_dice", 1),
        ("pixel_accuracy", "val_pixel_accuracy", 1),
    ],
)
def test_the_epoch_is_kept_that_is_best_by_what_is_monitored(
    monitor: str, column: str, better: int
) -> None:
    recipe = make_recipe(epochs=6, lr=0.4, schedule="cosine", monitor=monitor, **PLAIN)
    val = [batch(9)]
    history, kept = train(Line(), [batch(seed) for seed in range(3)], recipe, val=val)
    values = [better * getattr(epoch, column) for epoch in history.epochs]
    assert values[history.best.epoch - 1] == max(values)
    assert [e.best for e in history.epochs] == [
        value > max(values[:i], default=-np.inf) for i, value in enumerate(values)
    ]
    assert len(kept) == sum(epoch.best for epoch in history.epochs)


def test_a_score_may_be_best_where_the_loss_is_not() -> None:
    """Logits that grow are dearer where they are wrong, and decide nothing else."""

    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(12.0))

        def forward(self, image: Tensor) -> Tensor:
            return image * self.scale

    best = {}
    for monitor in ("loss", "mean_iou"):
        recipe = make_recipe(epochs=3, lr=1.0, schedule="cosine", monitor=monitor, **PLAIN)
        best[monitor] = train(Grows(), [batch(1)], recipe)[0].best.epoch
    assert best == {"loss": 3, "mean_iou": 1}  # the scale falls, and no class changes


def test_a_training_stops_by_what_is_monitored() -> None:
    recipe = make_recipe(
        epochs=9, lr=0.0, stop_patience=2, schedule="cosine", monitor="mean_iou", bn_adapt=False
    )
    history, _ = train(Line(), [batch(1)], recipe)
    assert history.stopped == "the validation mean iou was no better for 2 epochs"
    assert len(history.epochs) == 3


# Warnings


def test_warnings_are_said_once_with_the_names_of_the_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = batch(0), batch(1)
    one["labels"][:] = 0
    recipe = make_recipe(epochs=8, lr=1e-9, min_lr=0.0, stop_patience=0, lr_patience=99)

    class Blank(Line):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) - 10

    train(Blank(), [one], recipe, val=[other], talk=Talk(), class_names=["rock", "salt"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning  ")]
    assert len(told) == 3
    assert "no chip of the first epoch showed salt. Add" in told[0]
    assert "for 3 epochs nothing but background was predicted" in told[1]
    assert "the training loss moved by less than 1 % over 5 epochs" in told[2]


def test_a_rate_at_its_floor_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(epochs=8, lr=1e-9, min_lr=1e-5, stop_patience=0)
    train(Line(), [batch(0)], recipe, talk=Talk(), class_names=["rock", "salt"])
    assert "warning" not in capsys.readouterr().err
