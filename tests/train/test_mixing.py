"""Training images that are laid over each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from made import salt_folder
from whatwhere import jobs
from whatwhere.config import make_recipe
from whatwhere.data.loader import Batch
from whatwhere.errors import UsageError
from whatwhere.talk import QUIET
from whatwhere.train.mixing import mix
from whatwhere.train.module import Segmentation


def batch(count: int = 4, first: int = 0) -> Batch:
    rng = np.random.default_rng(first)
    return Batch(
        image=torch.from_numpy(rng.normal(size=(count, 2, 6, 5)).astype(np.float32)),
        labels=torch.from_numpy(rng.integers(0, 2, (count, 6, 5))),
        valid=torch.from_numpy(rng.random((count, 6, 5)) < 0.8),
        index=torch.arange(first, first + count),
    )


def test_images_are_laid_over_each_other_by_their_share() -> None:
    whole = batch()
    mixed = mix(whole, 0.4, 1, 0)
    assert 0.5 <= mixed.share <= 1
    order = [int(i) for i in mixed.other["index"]]
    assert sorted(order) == [0, 1, 2, 3]
    for i, other in enumerate(order):
        image = mixed.share * whole["image"][i] + (1 - mixed.share) * whole["image"][other]
        torch.testing.assert_close(mixed.batch["image"][i], image)
        torch.testing.assert_close(mixed.other["image"][i], image)
        assert torch.equal(mixed.batch["labels"][i], whole["labels"][i])
        assert torch.equal(mixed.other["labels"][i], whole["labels"][other])
        assert torch.equal(mixed.other["valid"][i], whole["valid"][other])


def test_chance_is_of_the_seed_the_epoch_and_the_chip() -> None:
    shares = {
        (seed, epoch, first): mix(batch(first=first), 0.4, seed, epoch).share
        for seed in (1, 2)
        for epoch in (0, 1)
        for first in (0, 8)
    }
    assert len(set(shares.values())) == len(shares)
    again = mix(batch(first=8), 0.4, 2, 1)
    assert again.share == shares[2, 1, 8]
    drawn = [mix(batch(first=i), 1.0, 3, 0).share for i in range(300)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)  # of an even draw the larger part


def test_the_loss_is_of_both_labels_by_their_share() -> None:
    recipe = make_recipe(mixup=0.4, seed=3)
    module = Segmentation(nn.Conv2d(2, 1, 1), recipe, "binary", 2)
    whole = batch()
    loss, count, logits = module._measure_mixed(whole)
    mixed = mix(whole, 0.4, 3, 0)

    def cross_entropy(labels: torch.Tensor, valid: torch.Tensor) -> float:
        p = torch.sigmoid(logits[:, 0].double()).detach().numpy()
        right = np.where(labels.numpy() == 1, p, 1 - p)
        return float(-np.log(right[valid.numpy()]).mean())

    one = cross_entropy(whole["labels"], whole["valid"])
    other = cross_entropy(mixed.other["labels"], mixed.other["valid"])
    wanted = mixed.share * one + (1 - mixed.share) * other
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)
    assert count == int(whole["valid"].sum())


def test_a_training_with_mixed_images_learns_and_repeats(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 16)
    small: dict[str, Any] = {"n_filters": 2, "epochs": 1, "batch_size": 4, "talk": QUIET}
    for name, mixup in (("a", 0.4), ("b", 0.4), ("c", 0.0)):
        jobs.train(data, tmp_path / name, mixup=mixup, **small)
    logs = [
        [row.split(",")[3:5] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
        for name in "abc"
    ]
    assert logs[0] == logs[1] != logs[2]
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "laid over another" in page
    assert "laid over another" not in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")


def test_alpha_is_not_negative() -> None:
    with pytest.raises(UsageError, match=r"mixup must be at least 0\.0"):
        make_recipe(mixup=-1.0)
