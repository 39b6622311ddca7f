"""Pixels read askew: as between their neighbours, and never of what has no data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.testing import assert_allclose

from whatwhere.io.turned import read_turned
from whatwhere.types import Window


def reader(pixels: Any, valid: Any = None) -> Any:
    there = np.ones(pixels.shape[1:], bool) if valid is None else valid

    def read(window: Window) -> Any:
        assert min(window.row, window.column) >= 0
        part = pixels[(slice(None), *window.slices)]
        assert part.shape[1:] == (window.height, window.width), "never beyond the edges"
        return part, there[window.slices]

    return read


def plane(height: int, width: int) -> Any:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([3 * rows - columns, 10 + columns / 2]).astype(np.float64)


@pytest.mark.parametrize("angle", [17.5, 45, 200])
def test_a_plane_is_read_as_it_is(angle: float) -> None:
    step = Affine.translation(30, 25) @ Affine.rotation(angle) @ Affine.translation(-10, -8)
    found, valid = read_turned(reader(plane(50, 60)), (50, 60), step, (16, 20))
    down, across = np.mgrid[:16, :20] + 0.5
    columns, rows = step @ (across, down)
    assert valid.all() and found.dtype == np.float64
    assert_allclose(found, [3 * rows - columns, 10 + columns / 2], atol=1e-9)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_right_angles_take_the_pixels_themselves(turns: int, kind: str) -> None:
    pixels = np.random.default_rng(turns).integers(0, 200, (3, 12, 12)).astype(kind)
    step = Affine.translation(6, 6) @ Affine.rotation(90 * turns) @ Affine.translation(-6, -6)
    found, valid = read_turned(reader(pixels), (12, 12), step, (12, 12))
    assert found.dtype == kind and valid.all()
    assert np.array_equal(found, np.rot90(pixels, turns, axes=(1, 2)))


def test_edges_are_not_left() -> None:
    step = Affine.translation(-0.4, -0.4)  # the first middle lies a tenth inside
    found, _ = read_turned(reader(plane(6, 6)), (6, 6), step, (4, 4))
    assert found[0, 0, 0] == plane(6, 6)[0, 0, 0]


def test_pixels_without_data_take_no_part() -> None:
    pixels = plane(9, 9)
    pixels[:, 4, 4] = np.nan
    valid = np.isfinite(pixels[0])
    for shift, there in ((0.4, False), (0.6, True)):
        step = Affine.translation(4 + shift, 4)
        found, known = read_turned(reader(pixels, valid), (9, 9), step, (1, 1))
        assert known[0, 0] == there
        assert np.isfinite(found).all()
        if there:
            assert found[1, 0, 0] == pixels[1, 4, 5], "of its neighbour alone"


def test_whole_numbers_are_rounded() -> None:
    pixels = np.array([[[0, 3], [0, 3]]], dtype=np.int32)
    found, _ = read_turned(reader(pixels), (2, 2), Affine.translation(0.2, 0), (2, 1))
    assert found.ravel().tolist() == [1, 1]  # 0.6
