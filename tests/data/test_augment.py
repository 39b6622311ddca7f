"""Augmentation: pure, paired, and within what the orientation allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from whatwhere.data.augment import Augmentation, Change, apply, draw

STILL = Augmentation("upright", flip=0, rotate=0, scale=0, shift=0, brightness=0, contrast=0)
TURNS = Augmentation("free", flip=0.5, rotate=0, scale=0, shift=0, brightness=0, contrast=0)
IDENTITY = Change(False, False, False, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), 1.0, 0.0)


def chips(size: tuple[int, int] = (12, 12), count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth pictures, the masks that a threshold cuts from them, and which pixels count."""
    rng = np.random.default_rng(3)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    waves = rng.normal(size=(count, 1, 1, 5))
    image = waves[..., 0] * rows + waves[..., 1] * columns + waves[..., 2] * rows * columns
    image = torch.from_numpy(image + waves[..., 3] * rows**2).float().unsqueeze(1)
    return image, (image[:, 0] > 0).long(), torch.from_numpy(rng.random((count, *size)) < 0.8)


def drawn(settings: Augmentation, count: int = 4, size: tuple[int, int] = (12, 12)) -> list[Change]:
    return [draw(settings, 7, 2, index, size) for index in range(count)]


@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.integers(0, 10**6))
def test_a_change_is_a_function_of_seed_epoch_and_index(seed: int, epoch: int, index: int) -> None:
    settings = Augmentation("free")
    change = draw(settings, seed, epoch, index, (8, 8))
    np.random.seed(0)
    torch.manual_seed(0)
    assert draw(settings, seed, epoch, index, (8, 8)) == change


def test_changes_differ_between_seeds_epochs_and_indexes() -> None:
    settings = Augmentation("upright")
    drawn = [draw(settings, *at, (8, 8)) for at in np.ndindex(4, 5, 6)]
    assert len({change.matrix for change in drawn}) == len(drawn)
    assert len({change.offset for change in drawn}) == len(drawn)


def test_a_chip_is_changed_alike_in_any_batch() -> None:
    settings, whole = Augmentation("free"), chips()
    changes = drawn(settings)
    together = apply(settings, *whole, changes)
    for i in (2, 0):
        alone = apply(settings, *(part[i : i + 1] for part in whole), [changes[i]])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[i])


def test_nothing_asked_for_changes_nothing() -> None:
    for one, other in zip(apply(STILL, *chips(), drawn(STILL)), chips(), strict=True):
        assert torch.equal(one, other)


def test_types_and_shapes_stay() -> None:
    image, labels, valid = apply(Augmentation("free"), *chips(), drawn(Augmentation("free")))
    assert (image.dtype, labels.dtype, valid.dtype) == (torch.float32, torch.int64, torch.bool)
    assert image.shape == (4, 1, 12, 12) and labels.shape == valid.shape == (4, 12, 12)


@pytest.mark.parametrize("orientation", ["upright", "free"])
def test_flips_and_turns_move_image_and_mask_together(orientation: str) -> None:
    settings = replace(TURNS, orientation=orientation)
    image, labels, valid = chips(count=40)
    numbered = torch.where(valid, image[:, 0], torch.inf)
    turned = apply(settings, image, labels, valid, drawn(settings, 40))
    assert torch.equal(turned[1], (turned[0][:, 0] > 0).long())
    again = apply(settings, numbered[:, None], labels, valid, drawn(settings, 40))
    assert torch.equal(turned[2], again[0][:, 0].isfinite())
    assert not torch.equal(turned[0], image)


def test_warps_move_image_and_mask_together() -> None:
    settings = Augmentation("upright", rotate=20, scale=0.3, shift=0.2, brightness=0, contrast=0)
    image, labels, valid = chips((64, 48), 30)
    warped, moved, _ = apply(settings, image, labels, valid, drawn(settings, 30, (64, 48)))
    assert (moved == (warped[:, 0] > 0).long()).float().mean() > 0.98
    assert (labels == (warped[:, 0] > 0).long()).float().mean() < 0.95


def test_a_shift_moves_by_its_share_and_mirrors_what_comes_in() -> None:
    image = torch.arange(8.0).expand(1, 1, 8, 8).contiguous()
    labels, valid = image[:, 0].long(), image[:, 0] > 2
    change = replace(IDENTITY, matrix=((1.0, 0.0, 0.5), (0.0, 1.0, 0.0)))  # two of eight columns
    settings = replace(STILL, shift=0.25)
    moved, numbers, counted = apply(settings, image, labels, valid, [change])
    wanted = [2, 3, 4, 5, 6, 7, 7, 6]
    assert torch.allclose(moved[0, 0, 3], torch.tensor(wanted).float(), atol=1e-5)
    assert numbers[0, 3].tolist() == wanted
    assert counted[0, 3].tolist() == [number > 2 for number in wanted]


def test_rotation_of_a_rectangle_turns_pixels_and_shears_nothing() -> None:
    settings = replace(STILL, rotate=180.0)
    matrix = np.array(draw(settings, 1, 1, 1, (30, 90)).matrix)[:, :2]
    pixels = np.diag([90, 30]) @ matrix @ np.diag([1 / 90, 1 / 30])
    assert np.allclose(pixels @ pixels.T, np.eye(2))


def test_upright_never_turns_the_sky_down() -> None:
    settings = Augmentation("upright", flip=1.0)
    changes = drawn(settings, 200)
    assert not any(change.flip_rows or change.transpose for change in changes)
    assert all(change.flip_columns for change in changes)
    rows = torch.arange(12.0)[None, None, :, None].expand(4, 1, 12, 12)
    still = replace(TURNS, orientation="upright")
    flipped, *_ = apply(still, rows, *chips()[1:], drawn(still))
    assert torch.equal(flipped, rows)


def test_free_reaches_all_eight_symmetries() -> None:
    image, labels, valid = (part[:1].expand(200, *part.shape[1:]) for part in chips())
    turned, *_ = apply(TURNS, image, labels, valid, drawn(TURNS, 200))
    square = image[0, 0].numpy()
    wanted = {np.rot90(s, k).tobytes() for s in (square, square.T) for k in range(4)}
    assert {one[0].numpy().tobytes() for one in turned} == wanted


def test_a_rectangle_is_not_transposed() -> None:
    assert not any(change.transpose for change in drawn(TURNS, 50, (12, 16)))
    image, *_ = apply(TURNS, *chips((12, 16)), drawn(TURNS, 4, (12, 16)))
    assert image.shape == (4, 1, 12, 16)


def test_flips_come_as_often_as_asked() -> None:
    settings = replace(TURNS, flip=0.25)
    changes = drawn(settings, 2000)
    for way in ("flip_rows", "flip_columns", "transpose"):
        assert np.mean([getattr(change, way) for change in changes]) == pytest.approx(
            0.25, abs=0.04
        )


def test_bounds_are_kept_and_used() -> None:
    settings = Augmentation(
        "upright", rotate=10, scale=0.2, shift=0.1, brightness=0.3, contrast=0.2
    )
    changes = drawn(settings, 1000)
    matrices = np.array([change.matrix for change in changes])
    zoom = np.sqrt(np.abs(np.linalg.det(matrices[:, :, :2])))
    turn = np.degrees(np.arctan2(-matrices[:, 0, 1], matrices[:, 0, 0]))
    gains = np.array([change.gain for change in changes])
    offsets = np.array([change.offset for change in changes])
    for values, low, high in (
        (zoom, 1 / 1.2, 1.2),
        (turn, -10, 10),
        (matrices[:, 0, 2], -0.2, 0.2),  # coordinates run over two units
        (gains, 0.8, 1.2),
        (offsets, -0.3, 0.3),
    ):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_brightness_and_contrast_change_the_image_alone() -> None:
    image, labels, valid = chips()
    settings = replace(STILL, brightness=0.5, contrast=0.5)
    changes = drawn(settings)
    changed, same, counted = apply(settings, image, labels, valid, changes)
    assert torch.equal(same, labels) and torch.equal(counted, valid)
    for i, change in enumerate(changes):
        assert torch.allclose(changed[i], image[i] * change.gain + change.offset)


def test_every_label_of_a_multilabel_chip_moves_alike() -> None:
    settings = Augmentation("free")
    image, labels, valid = chips()
    planes = torch.stack([labels, 1 - labels, labels], dim=1)
    *_, single_valid = single = apply(settings, image, labels, valid, drawn(settings))
    _, several, counted = apply(settings, image, planes, valid, drawn(settings))
    assert torch.equal(several[:, 0], single[1]) and torch.equal(several[:, 2], single[1])
    assert torch.equal(several[:, 1], 1 - single[1]) and torch.equal(counted, single_valid)
