"""Made-up salt sections: pure, varied, and not to be told by brightness alone."""

from __future__ import annotations

import numpy as np
import pytest

from whatwhere.data.salt import (
    Section,
    best_threshold_iou,
    make_section,
    make_sections,
    ricker,
)
from whatwhere.errors import ShapeError, UsageError


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    return list(make_sections(60, seed=7))


def _same(one: Section, other: Section) -> bool:
    return (
        one.name == other.name
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.mask, other.mask)
    )


def test_a_section_depends_on_its_arguments_alone(sections: list[Section]) -> None:
    for index in (41, 3, 17, 3):
        assert _same(make_section(7, index), sections[index])


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    first = make_section(0, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    np.random.seed(2)
    assert _same(first, make_section(0, 0))


def test_other_indexes_and_seeds_give_other_sections(sections: list[Section]) -> None:
    assert len({section.image.tobytes() for section in sections}) == len(sections)
    assert not np.array_equal(make_section(8, 0).image, sections[0].image)
    assert not np.array_equal(make_section(0, 7).image, make_section(7, 0).image)


def test_names_are_ten_hex_digits_and_unique(sections: list[Section]) -> None:
    names = [s.name for s in sections] + [s.name for s in make_sections(60, 8, (32, 32))]
    assert len(set(names)) == 120
    assert all(len(name) == 10 and set(name) <= set("0123456789abcdef") for name in names)


@pytest.mark.parametrize("size", [(101, 101), (32, 32), (64, 200), (150, 33)])
def test_shapes_and_types(size: tuple[int, int]) -> None:
    for section in make_sections(6, 1, size):
        assert section.image.shape == section.mask.shape == size
        assert section.image.dtype == np.uint8
        assert section.mask.dtype == np.bool_
        assert section.image.std() > 3


def test_a_large_section() -> None:
    section = make_section(2, 0, (400, 600))
    assert section.image.shape == section.mask.shape == (400, 600)


def test_the_share_of_salt(sections: list[Section]) -> None:
    shares = np.array([section.mask.mean() for section in sections])
    assert 0.25 <= np.mean(shares == 0) <= 0.5
    assert shares.max() > 0.8
    assert 0.15 < shares.mean() < 0.5


def test_salt_is_quieter_than_sediment(sections: list[Section]) -> None:
    mixed = [s for s in sections if 0.1 < s.mask.mean() < 0.9]
    quieter = [s.image[s.mask].std() < s.image[~s.mask].std() for s in mixed]
    assert np.mean(quieter) > 0.9


def test_the_top_of_salt_is_a_bright_reflection(sections: list[Section]) -> None:
    excess = []
    for section in sections:
        rows, columns = np.nonzero(section.mask[1:] & ~section.mask[:-1])
        if rows.size > 20:
            excess.append(section.image[rows + 1, columns].mean() - section.image.mean())
    assert len(excess) > 10
    assert np.mean(np.array(excess) > 0) > 0.9


def test_brightness_alone_does_not_find_the_salt(sections: list[Section]) -> None:
    iou, threshold, _ = best_threshold_iou([s.image for s in sections], [s.mask for s in sections])
    assert iou < 0.5
    assert 0 <= threshold <= 256


@pytest.mark.parametrize("shift", [-60, 0, 60])
def test_best_threshold_is_the_best_of_a_search(shift: int) -> None:
    rng = np.random.default_rng(5)
    masks = rng.random((4, 9, 7)) < 0.3
    grey = rng.normal(120, 40, masks.shape) + shift * masks
    images = np.clip(grey, 0, 255).astype(np.uint8)

    def score(threshold: int, bright: bool) -> float:
        found = images >= threshold if bright else images < threshold
        return float((found & masks).sum() / (found | masks).sum())

    iou, threshold, bright = best_threshold_iou(images, masks)
    assert iou == pytest.approx(max(score(t, b) for t in range(257) for b in (True, False)))
    assert iou == pytest.approx(score(threshold, bright))
    assert shift == 0 or bright == (shift > 0)


def test_best_threshold_at_its_limits() -> None:
    white, all_salt = np.full((1, 4, 4), 255, np.uint8), np.ones((1, 4, 4), bool)
    assert best_threshold_iou(white, all_salt)[0] == 1.0
    assert best_threshold_iou(white, ~all_salt)[0] == 1.0
    assert best_threshold_iou([], [])[0] == 1.0


def test_the_wavelet_is_odd_symmetric_and_peaks_at_its_frequency() -> None:
    wavelet = ricker(0.1)
    assert wavelet.size % 2 == 1
    assert wavelet[wavelet.size // 2] == wavelet.max() == 1.0
    assert np.array_equal(wavelet, wavelet[::-1])
    spectrum = np.abs(np.fft.rfft(wavelet, 1000))
    assert abs(int(spectrum.argmax()) - 100) <= 2
    assert spectrum[0] < 0.01 * spectrum.max()


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ShapeError, match="31x101"):
        make_section(0, 0, (31, 101))
    with pytest.raises(UsageError, match="seed is -1"):
        make_section(-1, 0)
    with pytest.raises(UsageError, match="index is"):
        make_section(0, 2**64)
    with pytest.raises(UsageError, match="-2 sections"):
        make_sections(-2)


def test_what_cannot_be_compared_is_refused() -> None:
    image, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), bool)
    with pytest.raises(ShapeError, match="1 images"):
        best_threshold_iou([image], [])
    with pytest.raises(ShapeError, match="mask of"):
        best_threshold_iou([image], [mask[1:]])
    with pytest.raises(UsageError, match="float32"):
        best_threshold_iou([image.astype(np.float32)], [mask])
