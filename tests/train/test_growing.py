"""Chips of half the side at the start of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from made import salt_folder
from told import assert_told, call
from whatwhere import jobs
from whatwhere.bundle import load
from whatwhere.config import make_recipe
from whatwhere.data.inputs import Inputs
from whatwhere.data.loader import Batch
from whatwhere.data.plan import plan_data
from whatwhere.errors import UsageError
from whatwhere.nn.build import build_model
from whatwhere.talk import QUIET
from whatwhere.train import module
from whatwhere.train.fit import fit
from whatwhere.train.growing import half_size, shrunk
from whatwhere.train.state import States, read_state


def batch(side: int, several: bool = False) -> Batch:
    """Two halves: left dark, without the label; right light, with it; below unknown."""
    light = torch.zeros(2, 1, side, side)
    light[..., side // 2 :] = 1.0
    valid = torch.ones(2, side, side, dtype=torch.bool)
    valid[:, -side // 4 :] = False
    labels = light.long() if several else light[:, 0].long()
    return Batch(image=light, labels=labels, valid=valid, index=torch.arange(2))


@pytest.mark.parametrize(
    ("height", "width", "stride", "half"),
    [
        *[(128, 128, 32, (64, 64)), (112, 112, 16, (48, 48)), (64, 96, 16, (32, 48))],
        *[(63, 63, 16, None), (127, 127, 32, None), (128, 48, 16, None), (7, 9, 1, (3, 4))],
    ],
)
def test_half_a_side_is_whole_strides(
    height: int, width: int, stride: int, half: tuple[int, int] | None
) -> None:
    assert half_size(height, width, stride) == half


@pytest.mark.parametrize("several", [False, True])
def test_images_labels_and_what_counts_shrink_alike(several: bool) -> None:
    found = shrunk(batch(64, several), 16)
    assert found["image"].shape == (2, 1, 32, 32) and found["image"].dtype == torch.float32
    assert found["labels"].shape == ((2, 1, 32, 32) if several else (2, 32, 32))
    labels = found["labels"] if not several else found["labels"][:, 0]
    assert labels.dtype == torch.int64 and found["valid"].dtype == torch.bool
    away = torch.tensor([i for i in range(32) if i not in (15, 16)])  # of the edge, which blurs
    assert torch.equal(labels[..., away], found["image"][:, 0][..., away].round().long())
    assert torch.equal(labels, batch(32)["labels"])
    assert torch.equal(found["valid"], batch(32)["valid"])
    assert torch.equal(found["index"], torch.arange(2))


def test_images_are_averaged() -> None:
    """A chequerboard of single pixels becomes grey; every second pixel alone would stay white."""
    given = batch(64)
    given["image"] = (torch.arange(64) % 2).float().expand(2, 1, 64, 64)
    assert torch.allclose(shrunk(given, 16)["image"][..., 2:-2], torch.tensor(0.5), atol=1e-3)


def test_small_chips_stay() -> None:
    given = batch(48)
    assert shrunk(given, 16) is given


def test_an_edge_between_two_pixels_falls_to_the_lower_right_one() -> None:
    given = batch(64)
    for first, half in ((33, 16), (32, 16), (31, 15)):
        light = (torch.arange(64) >= first).long()
        given["labels"] = light.expand(2, 64, 64)
        found = shrunk(given, 16)["labels"][0, 0]
        assert torch.equal(found, (torch.arange(32) >= half).long())


def test_the_first_steps_are_small_and_a_training_repeats(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 8 steps the first 4: their chips are smaller, the others and all validations are not."""
    seen: list[tuple[bool, int]] = []
    answers = module.Segmentation._answers

    def watched(self: Any, image: Any) -> Any:
        seen.append((self.training, image.shape[-1]))
        return answers(self, image)

    monkeypatch.setattr(module.Segmentation, "_answers", watched)
    data = salt_folder(tmp_path / "d", count=12, size=(64, 64))
    settings: dict[str, Any] = {"n_filters": 2, "batch_size": 4, "epochs": 4, "half_size": 0.5}
    settings |= {"schedule": "cosine", "dropout": 0.0, "stop_patience": 0, "split": "70/30/0"}
    weights = []
    for name in ("a", "b"):
        seen.clear()
        jobs.train(data, tmp_path / name, talk=QUIET, **settings)
        weights.append(load(tmp_path / name / "bundle").weights)
    steps = [side for training, side in seen if training]
    assert steps[-8:] == [32] * 4 + [64] * 4
    assert {side for training, side in seen if not training} == {64}
    assert set(steps[:-8]) == {64}  # the rehearsal's
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


class Died(Exception):
    """Stands for a fault."""


@pytest.mark.parametrize("after", [2, 5])
def test_one_that_goes_on_takes_the_size_of_its_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    """Of 8 steps 4 are small, whenever it died."""
    data = salt_folder(tmp_path / "d", count=12, size=(64, 64))
    recipe = make_recipe(schedule="cosine", epochs=4, half_size=0.5, stop_patience=0, batch_size=4)
    plan = plan_data(Inputs(data), make_recipe(recipe, split="70/30/0"), QUIET)
    sides: list[int] = []
    step = module.Segmentation.training_step

    def watched(self: Any, chips: Batch, number: int) -> Any:
        if len(sides) == after and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise Died
        sides.append(32 if self.halved else 64)
        return step(self, chips, number)

    monkeypatch.setattr(module.Segmentation, "training_step", watched)

    def trained(**more: Any) -> Any:
        torch.manual_seed(0)
        net = build_model("tutorial", 1, 1, n_filters=2)
        fit(
            net, plan.loader("train"), plan.loader("val"), plan.recipe, "binary", 2,
            on_best=lambda *_: None, talk=QUIET, states=States(tmp_path / "states"),
            save_minutes=0, stride=16, **more,
        )  # fmt: skip
        return net.state_dict()

    with pytest.raises(Died):
        trained()
    newest = max(States(tmp_path / "states").paths(), key=lambda path: path.name)
    ended = trained(state=read_state(newest))
    assert sides == [32] * 4 + [64] * 4
    sides.clear()
    calm = trained()
    assert sides == [32] * 4 + [64] * 4
    assert all(torch.equal(ended[name], calm[name]) for name in calm)


def test_what_is_halved_is_said(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "d", count=8, size=(64, 64))
    words = ("--n-filters", 2, "--epochs", 1, "--schedule", "cosine", "--stop-patience", 0)
    done = call("train", data, "-o", tmp_path / "run", *words, "--half-size", 0.5)
    assert_told(done, 0, "chips have half the side, 32×32 px, in the first 50%")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Their sides were halved in the first 50% of the steps" in page
    other = tmp_path / "other"
    done = call("train", data, "-o", other, *words, "--half-size", 0.5, "--chip-size", 32)
    assert_told(done, 2, "chips of 32×32 px cannot be halved", "multiples of 16 px")
    assert not other.exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "half_size wants a training that ends when it should"),
        ({"schedule": "cosine"}, "half_size wants .* stop_patience 0"),
        ({"schedule": "plateau", "stop_patience": 0}, "half_size wants .* the schedule cosine"),
        (
            {"model": "unet2015", "schedule": "cosine", "stop_patience": 0},
            "half_size is not for unet2015",
        ),
    ],
)
def test_where_it_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_recipe("tutorial", half_size=0.5, **settings)
