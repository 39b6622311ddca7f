"""Sets that lie on a device: the batches are those that are read one chip at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from made import salt_folder
from made_chips import READER, cut, save
from whatwhere.config import make_recipe
from whatwhere.data import resident as module
from whatwhere.data.augment import Augmentation
from whatwhere.data.loader import Chips, make_loader
from whatwhere.data.plan import plan_data
from whatwhere.data.resident import Resident, placed, resident, weight_mb
from whatwhere.errors import DataError
from whatwhere.nn.unet import TutorialUNet
from whatwhere.talk import QUIET, Talk
from whatwhere.train.fit import fit
from whatwhere.types import Classes, ClassInfo, Geometry

SIZES = ((20, 12), (9, 9), (8, 30), (7, 5))
TURNED = Augmentation("free", rotate=0, scale=0, shift=0, brightness=0, contrast=0)


def epochs(loader: DataLoader[Any]) -> list[Any]:
    """Three epochs, the last of which goes on after five chips."""
    found, sampler = [], loader.batch_sampler.sampler  # type: ignore[union-attr]
    for epoch in range(3):
        sampler.set_epoch(epoch)
        sampler.skip(5 if epoch == 2 else 0)
        found += list(loader)
    return found


def assert_same(
    chips: Chips, augmentation: Augmentation | None, device: str = "cpu", atol: float = 0.0
) -> None:
    read = make_loader(chips, 3, augmentation=augmentation)
    laid = resident(read, device, QUIET)
    some, others = epochs(read), epochs(laid)
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert list(one) == list(other)
        for name, values in one.items():
            exact = atol if name == "image" else 0.0
            torch.testing.assert_close(other[name].cpu(), values, rtol=0, atol=exact)
        assert other["image"].is_contiguous() and other["image"].device.type == device
    dataset: Any = laid.dataset
    assert all(dataset.key(i) == chips.key(i) for i in range(len(chips)))


@pytest.mark.parametrize(
    "augmentation",
    [None, TURNED, Augmentation("upright"), Augmentation("free")],
    ids=["plain", "turned", "upright", "free"],
)
@pytest.mark.parametrize(
    ("shape", "stride"), [((8, 8), 1), ((8, 8), 16), ((6, 10), 4)], ids=["", "mirrored", "oblong"]
)
def test_batches_are_those_that_are_read(
    shape: tuple[int, int], stride: int, augmentation: Augmentation | None, tmp_path: Path
) -> None:
    chips = cut(tmp_path, *SIZES, shape=shape, geometry=Geometry(stride, 1))
    holes = np.zeros((20, 12), np.uint8)
    holes[3:11, 5:] = 7  # does not count
    save(tmp_path / "masks/0.png", holes)
    assert_same(chips, augmentation)


def test_validation_chips_too(tmp_path: Path) -> None:
    assert_same(cut(tmp_path, *SIZES, training=False), None)


def labelled(root: Path) -> Chips:
    """Chips with two labels, of images that are stretched."""
    infos = tuple(ClassInfo(name, 1, (1, 1, 1), raw=(1, 255)) for name in "ab")
    reader = replace(READER, classes=Classes(infos, "multilabel"), resize=(12, 10))
    chips = cut(root, *SIZES, reader=reader)
    for i, pair in enumerate(chips.pairs):
        other = np.zeros((*SIZES[i], 2), np.uint8)
        other[2:, :, 1] = 255
        other[3:, 4:, 0] = 1
        masks = (pair.masks[0], save(root / f"others/{i}.png", other))
        chips.pairs[i] = replace(pair, masks=masks)
    return chips


def test_several_labels_of_stretched_images(tmp_path: Path) -> None:
    assert_same(labelled(tmp_path), Augmentation("free"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    assert_same(labelled(tmp_path), TURNED, "cuda")
    assert_same(labelled(tmp_path), replace(TURNED, brightness=0.2), "cuda", atol=1e-6)


@pytest.mark.parametrize("make", [lambda root: cut(root, *SIZES), labelled], ids=["one", "several"])
def test_what_a_set_weighs(make: Callable[[Path], Chips], tmp_path: Path) -> None:
    chips = make(tmp_path)
    held = Resident.read(chips, "cpu", QUIET)
    parts = (held.pixels, held.labels, held.valid)
    weighs = sum(part.nbytes for part in parts) / 2**20
    assert weight_mb(make_loader(chips, 3)) == pytest.approx(weighs)


def test_a_tenth_of_what_is_free_is_for_the_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * 2**30, 80 * 2**30))
    assert module.room_mb("cuda") == 2048 and module.room_mb("cpu") == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 80 * 2**30))
    whole = make_loader(cut(tmp_path, *SIZES), 3)
    assert placed((whole,), "cuda", QUIET) == [whole] and whole.pin_memory


def test_blocks_and_nets_with_a_border_are_read(tmp_path: Path) -> None:
    bordered = cut(tmp_path, *SIZES, shape=(4, 4), geometry=Geometry(16, 92, border=92))
    assert weight_mb(make_loader(bordered, 3)) == math.inf
    drawn: Any = cut(tmp_path, *SIZES)
    drawn.draws = object()
    assert weight_mb(make_loader(drawn, 3)) == math.inf
    whole = make_loader(cut(tmp_path, *SIZES), 3)
    assert placed((whole,), "cpu", QUIET) == [whole] and not whole.pin_memory


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    chips = cut(tmp_path, *SIZES)
    chips.pairs[2].image.unlink()
    with pytest.raises(DataError, match=r"2\.png: there is no such file"):
        resident(make_loader(chips, 3), "cpu", QUIET)


def test_a_training_from_a_set_on_its_device_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = salt_folder(tmp_path / "data", 12)
    recipe = make_recipe(epochs=3, batch_size=4, model="tutorial")
    plan = plan_data(data, recipe, QUIET)

    def trained(**options: Any) -> list[float]:
        torch.manual_seed(0)
        net, train, val = TutorialUNet(n_filters=4), plan.loader("train"), plan.loader("val")
        keep = {"on_best": lambda *_: None, "talk": Talk(), **options}
        history = fit(net, train, val, recipe, "binary", 2, **keep)
        losses = [(row.train_loss, row.val_loss) for row in history.epochs]
        return [
            *itertools.chain(*losses),
            *(float(part.detach().sum()) for part in net.parameters()),
        ]

    plain = trained()
    monkeypatch.setattr(module, "room_mb", lambda _device: 1)
    trained(most_batches=1)  # a rehearsal
    trained(trial=True)
    assert "data     lies" not in capsys.readouterr().err
    laid = trained()
    assert "data     lies on the GPU, 1 MB" in capsys.readouterr().err
    assert plain == laid and len(set(plain[:6])) == 6
