"""Rasters at another pixel size: the same ground gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.windows import Window as Place

from made_maps import NORTH_UP, UTM, make_pixels, write_scene
from whatwhere.io.raster import close_handles, open_raster
from whatwhere.io.scaled import Scaled, positions, reach, scaled, stretch, weigh
from whatwhere.types import Valid, Window

FACTORS = [0.2, 0.37, 0.5, 0.75, 0.9, 1.25, 2.0, 3.3]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_handles()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sides, and a hole."""
    pixels = make_pixels(83, 61).astype(np.int16)
    pixels[:, 30:45, 20:33] = -9999
    path = tmp_path_factory.mktemp("scaled") / "scene.tif"
    return write_scene(path, pixels, nodata=-9999, blockxsize=32, blockysize=32)


def whole(raster: Any) -> Window:
    return Window(0, 0, *raster.size)


def triangle(apart: float, radius: float) -> float:
    return max(0.0, 1 - abs(apart) / radius)


def plain(
    pixels: NDArray[Any], valid: Valid, factor: float, size: tuple[int, int]
) -> tuple[NDArray[np.float64], Valid]:
    """Pixel by pixel: a triangle as wide as a pixel of the coarser side, over a mirror image."""
    wide = 12
    values = np.pad(pixels.astype(float), ((0, 0), (wide, wide), (wide, wide)), mode="reflect")
    there = np.pad(valid, wide, mode="reflect")
    radius = max(1.0, 1 / factor)
    found = np.zeros((len(pixels), *size))
    counts = np.zeros(size, dtype=bool)
    for row, column in np.ndindex(size):
        total, known, seen = 0.0, 0.0, np.zeros(len(pixels))
        y, x = ((i + 0.5) / factor - 0.5 + wide for i in (row, column))
        for i in range(int(y - radius), int(y + radius) + 2):
            for j in range(int(x - radius), int(x + radius) + 2):
                weight = triangle(i - y, radius) * triangle(j - x, radius)
                total += weight
                if weight and there[i, j]:
                    known += weight
                    seen += weight * values[:, i, j]
        counts[row, column] = known / total > 0.5
        found[:, row, column] = seen / max(known, 1e-9)
    return found, counts


# ---------------------------------------------------------------- reading


def test_a_factor_of_one_gives_the_raster_itself(scene: Path) -> None:
    raster = open_raster(scene)
    assert scaled(raster, 1.0) is raster and scaled(raster, 1) is raster


def test_a_factor_of_one_would_change_nothing(scene: Path) -> None:
    raster = open_raster(scene)
    pixels, valid = raster.read(whole(raster))
    same, there = Scaled(raster, 1.0).read(whole(raster))
    assert np.array_equal(there, valid) and np.allclose(same[:, valid], pixels[:, valid])


@pytest.mark.parametrize("factor", FACTORS)
def test_numbers_are_the_weighted_means(scene: Path, factor: float) -> None:
    raster = open_raster(scene)
    small = scaled(raster, factor)
    found, valid = small.read(Window(0, 0, *(min(side, 120) for side in small.size)))
    wanted, there = plain(*raster.read(whole(raster)), factor, found.shape[1:])
    assert found.dtype == np.float32 and not there.all()
    assert (valid != there).sum() <= 2  # a share of a half, give or take the last digit
    both = valid & there
    np.testing.assert_allclose(found[:, both], wanted[:, both], rtol=1e-5)


def test_half_the_size_weighs_four_pixels_on_a_side(tmp_path: Path) -> None:
    pixels = make_pixels(20, 30)
    raster = open_raster(write_scene(tmp_path / "a.tif", pixels, tiled=False))
    found, valid = scaled(raster, 0.5).read(Window(1, 1, 8, 13))
    weights = np.array([1, 3, 3, 1]) / 8
    wanted = np.empty((3, 8, 13))
    for row, column in np.ndindex(8, 13):
        part = pixels[:, 2 * row + 1 : 2 * row + 5, 2 * column + 1 : 2 * column + 5]
        wanted[:, row, column] = np.einsum("cij,i,j->c", part, weights, weights)
    assert valid.all()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_constant_stays_constant_and_holes_do_not_leak(tmp_path: Path, factor: float) -> None:
    pixels = np.full((2, 50, 41), 1000, np.int32)
    pixels[:, 10:30, 5:20] = -(10**6)
    raster = open_raster(write_scene(tmp_path / "a.tif", pixels, tiled=False, nodata=-(10**6)))
    small = scaled(raster, factor)
    for window in (whole(small), Window(-5, -7, small.size[0] + 9, small.size[1] + 12)):
        found, valid = small.read_around(window)
        assert 0 < valid.sum() < valid.size
        np.testing.assert_allclose(found[:, valid], 1000, rtol=1e-6)


def test_fractions_that_are_no_numbers_do_not_leak(tmp_path: Path) -> None:
    pixels = np.full((1, 40, 40), 2, np.float32)
    pixels[0, 11, 13], pixels[0, 20, 5] = np.nan, np.inf
    raster = open_raster(write_scene(tmp_path / "a.tif", pixels, tiled=False))
    found, valid = scaled(raster, 0.5).read(Window(0, 0, 20, 20))
    assert valid.all() and np.allclose(found, 2)


@given(st.sampled_from(FACTORS), st.data())
@settings(deadline=None, max_examples=60)
def test_windows_agree_with_the_whole(scene: Path, factor: float, data: st.DataObject) -> None:
    small = scaled(open_raster(scene), factor)
    height, width = small.size
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(
        row,
        column,
        data.draw(st.integers(1, height - row)),
        data.draw(st.integers(1, width - column)),
    )
    wanted, there = small.read(whole(small))
    found, valid = small.read(window)
    assert np.array_equal(valid, there[window.slices])
    np.testing.assert_allclose(found, wanted[:, *window.slices], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_beyond_the_edges_it_goes_on_as_its_mirror_image(scene: Path, factor: float) -> None:
    small = scaled(open_raster(scene), factor)
    pixels, valid = small.read(whole(small))
    height, width = small.size
    found, there = small.read_around(Window(-9, -20, height + 15, width + 90), [2, 1])
    wanted = np.pad(pixels[[1, 0]], ((0, 0), (9, 6), (20, 70)), mode="reflect")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.array_equal(there, np.pad(valid, ((9, 6), (20, 70)), mode="reflect"))


def test_bands_are_chosen_and_named_as_in_the_raster(scene: Path) -> None:
    raster = open_raster(scene)
    small = scaled(raster, 0.5)
    assert isinstance(small, Scaled)
    assert (small.path, small.names, small.numbers) == (scene, raster.names, raster.numbers)
    assert small.number_of(raster.names[1].upper()) == 2 and small.notes == raster.notes
    pixels, _ = small.read(Window(3, 4, 5, 6))
    assert np.array_equal(small.read(Window(3, 4, 5, 6), [3, 1])[0], pixels[[2, 0]])


@pytest.mark.parametrize("factor", FACTORS)
def test_the_ground_stays_where_it_is(scene: Path, factor: float) -> None:
    raster = open_raster(scene)
    small = scaled(raster, factor)
    height, width = small.size
    assert abs(height - 83 * factor) <= 0.5 and abs(width - 61 * factor) <= 0.5
    assert small.grid.crs == UTM.to_wkt()
    for row, column in ((0, 0), (7, 3)):
        inside = column / factor, row / factor
        assert np.allclose(small.grid.transform @ (column, row), NORTH_UP @ inside)


def test_a_very_small_raster_keeps_a_pixel(tmp_path: Path) -> None:
    raster = open_raster(write_scene(tmp_path / "a.tif", make_pixels(3, 2), tiled=False))
    small = scaled(raster, 0.1)
    found, valid = small.read(Window(0, 0, 1, 1))
    assert small.size == (1, 1) and valid.all() and np.isfinite(found).all()


@given(st.sampled_from(FACTORS), st.tuples(*[st.integers(0, 10**6)] * 4))
@settings(deadline=None, max_examples=80)
def test_a_window_said_to_be_empty_has_no_data(
    tmp_path_factory: pytest.TempPathFactory, factor: float, draws: tuple[int, int, int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "sparse-scaled.tif"
    if not path.exists():
        with rasterio.open(
            path, "w", "GTiff", 160, 160, 1, crs=UTM, transform=NORTH_UP, dtype="uint8",
            nodata=0, tiled=True, blockxsize=16, blockysize=16, SPARSE_OK=True,
        ) as file:  # fmt: skip
            file.write(np.full((16, 16), 7, np.uint8), 1, window=Place(80, 48, 16, 16))
    small = scaled(open_raster(path), factor)
    height, width = small.size
    row, column = draws[0] % height, draws[1] % width
    window = Window(row, column, 1 + draws[2] % (height - row), 1 + draws[3] % (width - column))
    assert not (small.is_empty(window) and small.read(window)[1].any())
    assert small.is_empty(Window(0, 0, max(1, height // 8), width))
    assert not small.is_empty(whole(small))


def test_real_imagery_keeps_its_mean(real_data: Callable[[str], Path]) -> None:
    raster = open_raster(real_data("nc_landsat7") / "scene_6band.tif")
    pixels, valid = raster.read(whole(raster))
    small = scaled(raster, 0.4)
    found, there = small.read(whole(small))
    assert abs(there.mean() - valid.mean()) < 0.01
    means = [part.mean(axis=1, dtype=float) for part in (found[:, there], pixels[:, valid])]
    np.testing.assert_allclose(means[0], means[1], rtol=0.01)


# ---------------------------------------------------------------- weights and places


@given(st.floats(0.05, 20), st.integers(0, 5000), st.integers(1, 60))
@example(0.12, 0, 1)  # the pixel after the last one is as far away as the radius, but for rounding
@settings(deadline=None)
def test_weights_sum_to_one_and_need_no_more_than_is_read(
    factor: float, first: int, count: int
) -> None:
    places = positions(first, count, factor)
    radius = max(1.0, 1 / factor)
    start, stop = reach(places, radius)
    weights = weigh(places - start, stop - start, radius)
    assert weights.shape == (count, stop - start) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    wider = weigh(places - start + 7, stop - start + 14, radius)
    np.testing.assert_allclose(wider[:, 7:-7], weights, atol=1e-5)
    assert not wider[:, :7].any() and not wider[:, -7:].any()


@pytest.mark.parametrize("factor", [*FACTORS, 1.0])
def test_a_ramp_comes_back_where_it_was(factor: float) -> None:
    """What a raster's ramp looks like scaled, stretched to the raster's own pixels."""
    height, width = 60, 50
    rows = positions(0, round(height * factor), factor)
    columns = positions(0, round(width * factor), factor)
    ramps = np.stack(
        [
            rows[:, None] + 0 * columns,
            0 * rows[:, None] + columns,
            2 + 0 * (rows[:, None] + columns),
        ]
    )
    back = positions(0, height, 1 / factor), positions(0, width, 1 / factor)
    found = stretch(ramps.astype(np.float32), *back, max(1.0, factor))
    assert found.shape == (3, height, width) and found.dtype == np.float32
    wanted = np.indices((height, width)).astype(float)
    edge = int(np.ceil(2 / factor)) + 2
    inside = (slice(edge, -edge), slice(edge, -edge))
    exact = 1e-4 if factor <= 1 or float(factor).is_integer() else 0.05  # [px]
    np.testing.assert_allclose(found[:2, *inside], wanted[:, *inside], atol=exact)
    np.testing.assert_allclose(found[2], 2, rtol=1e-6)


def test_places_beyond_the_ends_take_the_ends() -> None:
    weights = weigh(np.array([-3.0, -0.25, 0.25, 3.5]), 3, 1.0)
    np.testing.assert_allclose(weights, [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0, 1]])
