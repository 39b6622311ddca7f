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
from whatwhere.data.loader import Batch
from whatwhere.errors import UsageError
from whatwhere.talk import QUIET
from whatwhere.train import module
from whatwhere.train.growing import half_side, shrunk


def batch(side: int, several: bool = False) -> Batch:
    """Two halves: left dark, without the label; right light, with it; the last row unknown."""
    light = torch.zeros(2, 1, side, side)
    light[..., side // 2 :] = 1.0
    valid = torch.ones(2, side, side, dtype=torch.bool)
    valid[:, -side // 4 :] = False
    labels = light.long() if several else light[:, 0].long()
    return Batch(image=light, labels=labels, valid=valid, index=torch.arange(2))


@pytest.mark.parametrize(
    ("side", "stride", "half"),
    [(128, 32, 64), (112, 16, 48), (64, 16, 32), (63, 16, 63), (127, 32, 127), (7, 1, 3)],
)
def test_half_a_side_is_whole_strides(side: int, stride: int, half: int) -> None:
    assert half_side(side, stride) == half


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


def test_what_is_halved_is_said(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "d", count=8, size=(64, 64))
    words = ("--n-filters", 2, "--epochs", 1, "--schedule", "cosine", "--half-size", 0.5)
    done = call("train", data, "-o", tmp_path / "run", *words)
    assert_told(done, 0, "chips have half the side, 32×32 px, in the first 50%")
    assert "their sides were halved" in (tmp_path / "run" / "report.html").read_text()
    done = call("train", data, "-o", tmp_path / "other", *words, "--chip-size", 32)
    assert_told(done, 0, "chips of 32×32 px are too small to be halved")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "plateau"}, "half_size wants a schedule that ends"),
        ({"model": "unet2015", "schedule": "cosine"}, "half_size is not for unet2015"),
    ],
)
def test_where_it_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_recipe("tutorial", half_size=0.5, **settings)
