"""Tiles: their cores cover the image, their windows hold the context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whatwhere.errors import UsageError
from whatwhere.tiling import Tile, frames, mirror, tiles
from whatwhere.types import Geometry, Window


@dataclass(frozen=True)
class Plan:
    height: int
    width: int
    tile: int
    stride: int
    margin: int

    @property
    def parts(self) -> list[Tile]:
        return list(tiles(self.height, self.width, self.tile, self.stride, self.margin))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Images of any size, and tiles with room for at least one stride of core."""
    stride = draw(st.sampled_from([1, 2, 3, 8, 16]))
    margin = draw(st.integers(0, 40))
    halo = -(-margin // stride) * stride
    tile = 2 * halo + stride * draw(st.integers(1, 12)) + draw(st.integers(0, stride - 1))
    return Plan(draw(st.integers(1, 90)), draw(st.integers(1, 90)), tile, stride, margin)


@given(plans())
@settings(deadline=None)
def test_cores_cover_every_pixel_once(plan: Plan) -> None:
    covered = np.zeros((plan.height, plan.width), dtype=int)
    for part in plan.parts:
        covered[part.core.slices] += 1
        assert covered[part.core.slices].shape == (part.core.height, part.core.width)
    assert (covered == 1).all()


@given(plans())
@settings(deadline=None)
def test_windows_start_at_strides_and_stay_inside(plan: Plan) -> None:
    for part in plan.parts:
        window = part.window
        assert window.row % plan.stride == window.column % plan.stride == 0
        assert 0 <= window.row < window.row + window.height <= plan.height
        assert 0 <= window.column < window.column + window.width <= plan.width
        assert max(window.height, window.width) <= plan.tile


@given(plans())
@settings(deadline=None)
def test_windows_hold_the_margin_or_reach_the_edge(plan: Plan) -> None:
    for part in plan.parts:
        core, window = part.core, part.window
        assert window.row <= max(0, core.row - plan.margin)
        assert window.column <= max(0, core.column - plan.margin)
        bottom, right = core.row + core.height, core.column + core.width
        assert window.row + window.height >= min(plan.height, bottom + plan.margin)
        assert window.column + window.width >= min(plan.width, right + plan.margin)


@given(plans())
@settings(deadline=None)
def test_the_inner_core_is_the_core(plan: Plan) -> None:
    image = np.arange(plan.height * plan.width).reshape(plan.height, plan.width)
    for part in plan.parts:
        inside = image[part.window.slices][part.inner.slices]
        np.testing.assert_array_equal(inside, image[part.core.slices])


def test_an_image_no_larger_than_a_tile_is_one_tile() -> None:
    whole = Window(0, 0, 100, 128)
    assert list(tiles(100, 128, 128, 16, 30)) == [Tile(whole, whole)]
    assert list(tiles(100, 128, 128, 16, 122)) == [Tile(whole, whole)]  # needs no halo


def test_tiles_are_as_long_as_they_may_be() -> None:
    assert max(part.window.width for part in tiles(10, 600, 127, 16, 30)) == 112


@pytest.mark.parametrize("tile", [0, 1, 244, 256])
@pytest.mark.parametrize("size", [(400, 600), (1, 600), (400, 1)])
def test_a_tile_without_room_for_a_core_is_refused(tile: int, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"no room for a core .* halos of 128 px.*at least 272"):
        list(tiles(*size, tile, 16, 122))


def test_the_tile_that_a_refusal_asks_for_is_taken() -> None:
    with pytest.raises(UsageError, match="Take at least") as caught:
        list(tiles(400, 600, 200, 16, 122))
    least = int(str(caught.value).split("Take at least ")[1].split(" px")[0])
    assert list(tiles(400, 600, least, 16, 122))


# ---------------------------------------------------------------- frames and mirrored borders


@st.composite
def borders(draw: st.DrawFn) -> tuple[int, int, Geometry]:
    """An image's side, a tile with room for at least one stride of core, and a geometry."""
    stride = draw(st.sampled_from([1, 2, 3, 8, 16]))
    border = draw(st.integers(1, 40))
    shape = Geometry(stride, border, border, draw(st.integers(0, stride - 1)))
    tile = shape.window(stride) + draw(st.integers(0, 100))
    return draw(st.integers(1, 300)), tile, shape


@given(borders())
@settings(deadline=None)
def test_frames_cover_each_pixel_once_with_windows_that_the_net_takes(
    plan: tuple[int, int, Geometry],
) -> None:
    length, tile, shape = plan
    covered = np.zeros(length, dtype=int)
    for start, window, kept in frames(length, tile, shape):
        assert start % shape.stride == 0 and kept >= 1
        assert window % shape.stride == shape.remainder and window <= tile
        assert window - 2 * shape.border >= kept  # the result has room for the core
        assert window - shape.stride - 2 * shape.border < kept  # and nothing is computed in vain
        covered[start : start + kept] += 1
    assert (covered == 1).all()


@given(borders())
@settings(deadline=None)
def test_frames_lie_within_the_extended_image(plan: tuple[int, int, Geometry]) -> None:
    length, tile, shape = plan
    extended = shape.window(length)
    assert all(start + window <= extended for start, window, _ in frames(length, tile, shape))


def test_what_fits_into_a_tile_is_one_frame() -> None:
    shape = Geometry(16, 92, 92, 12)
    assert list(frames(388, 572, shape)) == [(0, 572, 388)]
    assert list(frames(389, 572, shape)) == [(0, 572, 384), (384, 204, 5)]
    assert list(frames(1, 250, shape)) == [(0, 188, 1)]


@pytest.mark.parametrize("tile", [0, 100, 187, 203])
def test_a_frame_without_room_for_a_core_is_refused(tile: int) -> None:
    with pytest.raises(UsageError, match=f"tile of {tile} px is too small.*at least 204 px"):
        list(frames(300, tile, Geometry(16, 92, 92, 12)))
    assert list(frames(300, 204, Geometry(16, 92, 92, 12)))


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    st.sampled_from(["int64", "float32", "bool"]),
)
@settings(deadline=None)
def test_mirroring_is_numpys_reflection(
    size: tuple[int, int], before: tuple[int, int], after: tuple[int, int], dtype: str
) -> None:
    values = (np.arange(2 * size[0] * size[1]).reshape(2, *size) % 7).astype(dtype)
    pads = ((0, 0), (before[0], after[0]), (before[1], after[1]))
    wanted = np.pad(values, pads, mode="reflect")
    found = mirror(values, wanted.shape[1:], before)
    assert found.dtype == values.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(mirror(values[0], wanted.shape[1:], before), wanted[0])


@given(st.integers(1, 9), st.integers(-20, 20), st.integers(1, 30))
@settings(deadline=None)
def test_a_rectangle_may_start_inside_the_image(side: int, before: int, length: int) -> None:
    values = np.arange(side)[None]
    whole = np.pad(values, ((0, 0), (60, 60)), mode="reflect")
    wanted = whole[:, 60 - before : 60 - before + length]
    np.testing.assert_array_equal(mirror(values, (1, length), (0, before)), wanted)


def test_mirroring_nothing_gives_the_image_itself() -> None:
    values = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(mirror(values, (3, 4), (0, 0)), values)
