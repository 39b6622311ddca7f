"""Whether there is anything in a chip at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made import salt_folder
from whatwhere import jobs
from whatwhere.errors import UsageError
from whatwhere.predict.engine import load
from whatwhere.talk import QUIET
from whatwhere.train.module import presence_loss

SMALL = {"decoder_channels": "8,8,8,8,8", "pretrained": False, "batch_size": 4, "talk": QUIET}


def test_the_loss_is_that_of_numpy() -> None:
    presence = torch.tensor([[2.0, -1.0], [0.5, 3.0], [9.0, 9.0]], dtype=torch.float64)
    labels = torch.zeros(3, 2, 4, 4, dtype=torch.long)
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    labels[0, 1, 2, 2] = 1
    labels[1, 0, 0, 0] = 1
    valid[1, 0, 0] = False  # what does not count is not there
    valid[2] = False
    p = 1 / (1 + np.exp(-presence.numpy()[:2]))
    there = np.array([[0, 1], [0, 0]])
    wanted = -np.where(there, np.log(p), np.log(1 - p)).mean()
    assert float(presence_loss(presence, labels, valid)) == pytest.approx(wanted, rel=1e-12)


def test_a_batch_in_which_nothing_counts_has_no_gradient() -> None:
    presence = torch.ones(2, 1, requires_grad=True)
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    loss = presence_loss(presence, torch.ones(2, 4, 4, dtype=torch.long), nothing)
    loss.backward()
    assert float(loss.detach()) == 0 and presence.grad is not None and not presence.grad.any()


def test_a_net_that_says_whether_anything_is_there_is_trained_and_loaded(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 12)
    jobs.train(data, tmp_path / "run", model="test_resnet", anything=True, epochs=1, **SMALL)
    found = load(tmp_path / "run")
    assert found.card.geometry.margin is None
    start, end = (tmp_path / "run" / "log.csv").read_text().splitlines()[:2]
    assert "train_loss" in start and float(end.split(",")[3]) > 0
    found.net.presence.bias.data.fill_(-100)  # nothing is there: then no pixel has it
    assert found.probabilities(np.zeros((1, 40, 50), np.float32)).max() < 1e-30


def test_of_classes_that_exclude_each_other_one_is_always_there(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 12)
    for path in (data / "masks").glob("*.png"):
        mask = np.asarray(Image.open(path))
        three = (mask > 0).astype(np.uint8) + (np.arange(mask.shape[1]) > 40)
        Image.fromarray(three.astype(np.uint8)).save(path)
    with pytest.raises(UsageError, match="--anything says whether a label is in the chip"):
        jobs.train(data, tmp_path / "run", model="test_resnet", anything=True, **SMALL)
    assert not (tmp_path / "run").exists()
