"""Tiles of a plane: the same wherever one begins to look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from whatwhere.errors import UsageError
from whatwhere.tiling import BLIND_MARGIN, Lattice, Span, lattice_spans, make_lattice
from whatwhere.types import Geometry


@dataclass(frozen=True)
class Look:
    """A lattice, and a range of a side of the plane."""

    lattice: Lattice
    first: int
    last: int
    side: int

    @property
    def spans(self) -> list[Span]:
        return lattice_spans(self.lattice, self.first, self.last, self.side)


@st.composite
def ranges(draw: st.DrawFn, lattice: Lattice) -> Look:
    side = draw(st.integers(1, 900))
    first = draw(st.integers(0, side - 1))
    return Look(lattice, first, draw(st.integers(first + 1, side)), side)


@st.composite
def discarding(draw: st.DrawFn) -> Look:
    """Nets with a margin or a border, whose halos are discarded."""
    stride = draw(st.integers(1, 32))
    reach = draw(st.integers(0, 60))
    if draw(st.booleans()):
        border = reach + 1
        geometry = Geometry(stride, border, border, draw(st.integers(0, stride - 1)))
        tile = geometry.window(stride) + draw(st.integers(0, 200))
        return draw(ranges(make_lattice(geometry, tile)))
    halo = -(-reach // stride) * stride
    overlap = draw(st.none() | st.integers(reach, reach + 60))
    if overlap is not None:
        halo = -(-overlap // stride) * stride
    tile = 2 * halo + stride + draw(st.integers(0, 200))
    return draw(ranges(make_lattice(Geometry(stride, reach), tile, overlap)))


@st.composite
def blending(draw: st.DrawFn) -> Look:
    """Nets that see farther than their halos, or the whole tile."""
    stride = draw(st.integers(1, 32))
    overlap = draw(st.integers(0, 50))
    halo = -(-overlap // stride) * stride
    margin = draw(st.none() | st.integers(halo + 1, halo + 300))
    tile = 2 * halo + max(stride, 2 * halo) + draw(st.integers(0, 200))
    return draw(ranges(make_lattice(Geometry(stride, margin), tile, overlap)))


# ---------------------------------------------------------------- halos that are discarded


@given(discarding())
@settings(deadline=None)
def test_each_pixel_is_taken_once(look: Look) -> None:
    assert not look.lattice.blend
    counted = np.zeros(look.side, dtype=int)
    for span in look.spans:
        counted[span.first : span.first + span.count] += 1
        assert span.count >= 1 and (span.weights == np.ones(span.count)).all()
    inside = np.arange(look.side)
    assert np.array_equal(counted, (inside >= look.first) & (inside < look.last))


@given(discarding())
@settings(deadline=None)
def test_windows_lie_on_the_strides(look: Look) -> None:
    geometry = look.lattice.geometry
    for span in look.spans:
        assert (span.start + geometry.border) % geometry.stride == 0
        assert span.first - span.start - geometry.border == span.skip >= 0


@given(discarding())
@settings(deadline=None)
def test_the_net_takes_the_windows_and_they_fit_into_a_tile(look: Look) -> None:
    geometry = look.lattice.geometry
    for span in look.spans:
        result = span.length - 2 * geometry.border
        assert span.length % geometry.stride == geometry.remainder
        assert span.length == geometry.window(result)
        assert span.length <= look.lattice.tile
        assert span.skip + span.count <= result


@given(discarding())
@settings(deadline=None)
def test_used_pixels_have_the_margin_as_context_or_the_end_of_the_plane(look: Look) -> None:
    lattice, margin = look.lattice, look.lattice.geometry.margin
    assert margin is not None
    for span in look.spans:
        end = span.start + span.length
        assert span.first - span.start >= margin or (lattice.whole and span.start == 0)
        left = end - (span.first + span.count)
        assert left >= margin or (lattice.whole and end >= look.side)


@given(discarding() | blending())
@settings(deadline=None)
def test_windows_end_with_the_plane_unless_the_net_wants_more(look: Look) -> None:
    lattice, stride = look.lattice, look.lattice.geometry.stride
    for span in look.spans:
        if lattice.geometry.margin is not None and not lattice.geometry.border:
            assert span.start >= 0 and span.start + span.length < look.side + stride
        elif lattice.blend:
            assert span.length == lattice.tile


@given(discarding() | blending())
@settings(deadline=None)
def test_a_plane_that_fits_into_a_tile_is_one_window(look: Look) -> None:
    lattice = look.lattice
    side = min(look.side, lattice.tile)
    found = lattice_spans(lattice, 0, side, side)
    if lattice.whole:
        length = -(-side // lattice.geometry.stride) * lattice.geometry.stride
        assert [(one.start, one.length) for one in found] == [(0, length)]
        assert [(one.first, one.count, one.skip) for one in found] == [(0, side, 0)]
        assert (found[0].weights == 1).all()
    assert lattice.lengths(side, side) == [one.length for one in found]


@given(blending(), st.integers(1, 400))
@settings(deadline=None)
def test_lengths_are_those_of_all_blocks_each_once(look: Look, block: int) -> None:
    lattice, side = look.lattice, look.side
    firsts = range(0, side, block)
    parts = [lattice_spans(lattice, n, min(n + block, side), side) for n in firsts]
    once = {span.start: span.length for part in parts for span in part}
    assert sorted(once.values()) == sorted(lattice.lengths(side, block))


def test_lengths_of_tiles_that_are_not_blended_begin_anew_with_each_block() -> None:
    lattice = make_lattice(Geometry(16, 122), 1024 + 2 * 128)
    assert lattice.lengths(3000, 2048) == [1152, 1280, 128 + 952 + 8]
    assert lattice.lengths(1500, 1024) == [1152, 128 + 476 + 4]
    assert lattice.lengths(1200, 2048) == [1200]


@given(discarding())
@settings(deadline=None)
def test_nothing_is_computed_in_vain(look: Look) -> None:
    """A window may be longer than it must by less than a stride on each side."""
    lattice, stride = look.lattice, look.lattice.geometry.stride
    for span in look.spans:
        assert span.length < span.count + 2 * lattice.halo + 2 * stride
    assert len(look.spans) <= (look.last - look.first - 1) // lattice.core + 2


def test_the_lattice_of_the_2015_net_is_its_tile_of_572() -> None:
    lattice = make_lattice(Geometry(16, 92, 92, 12), 572)
    assert (lattice.core, lattice.halo, lattice.tile, lattice.blend) == (384, 92, 572, False)
    first, second = lattice_spans(lattice, 0, 400, 1000)
    assert (first.start, first.length, first.first, first.count, first.skip) == (
        -92,
        572,
        0,
        384,
        0,
    )
    assert (second.start, second.length, second.first) == (292, 204, 384)
    assert (second.count, second.skip) == (16, 0)


# ---------------------------------------------------------------- halos that are blended


@given(blending())
@settings(deadline=None)
def test_weights_sum_to_one(look: Look) -> None:
    assert look.lattice.blend
    total = np.zeros(look.side)
    for span in look.spans:
        total[span.first : span.first + span.count] += span.weights
    np.testing.assert_allclose(total[look.first : look.last], 1, atol=1e-6)
    assert not total[: look.first].any() and not total[look.last :].any()


@given(blending())
@settings(deadline=None)
def test_weights_do_not_depend_on_the_range(look: Look) -> None:
    whole = {span.start: span for span in lattice_spans(look.lattice, 0, look.side, look.side)}
    for span in look.spans:
        same = whole[span.start]
        at = span.first - same.first
        assert span.length == same.length
        assert look.lattice.whole or span.length == look.lattice.tile
        assert np.array_equal(span.weights, same.weights[at : at + span.count])
        assert span.skip == span.first - span.start and (span.weights > 0).all()


@given(blending())
@settings(deadline=None)
def test_blended_tiles_lie_on_the_lattice_and_hold_what_is_used(look: Look) -> None:
    lattice = look.lattice
    for span in look.spans:
        last = lattice.whole and span.start + span.length >= look.side
        at_the_end = lattice.whole and (span.start == 0 or last)
        assert (span.start + lattice.halo) % lattice.core == 0 or at_the_end
        assert span.length % lattice.geometry.stride == span.start % lattice.geometry.stride == 0
        assert span.skip >= 0 and span.skip + span.count <= span.length
        assert look.first <= span.first and span.first + span.count <= look.last


@given(blending())
@settings(deadline=None)
def test_at_most_two_tiles_are_blended(look: Look) -> None:
    counted = np.zeros(look.side, dtype=int)
    for span in look.spans:
        counted[span.first : span.first + span.count] += 1
    assert counted.max() <= 2


def test_tiles_fade_into_each_other_as_a_sine_squared() -> None:
    lattice = make_lattice(Geometry(4, None), 16, 3)
    assert (lattice.core, lattice.halo) == (8, 4)
    rise = [math.sin(math.pi / 2 * (k + 0.5) / 8) ** 2 for k in range(8)]
    fall = rise[::-1]
    found = lattice_spans(lattice, 0, 22, 22)
    places = [(one.start, one.length, one.first, one.count, one.skip) for one in found]
    assert places == [(-4, 16, 0, 12, 4), (4, 16, 4, 16, 0), (12, 16, 12, 10, 0)]
    for span, wanted in zip(found, ([1] * 4 + fall, rise + fall, [*rise, 1, 1]), strict=True):
        np.testing.assert_allclose(span.weights, wanted, rtol=1e-6)
        assert span.weights.dtype == np.float32
    (only,) = lattice_spans(lattice, 0, 8, 8)
    assert (only.count, only.weights.min()) == (8, 1)
    part = lattice_spans(lattice, 5, 12, 20)
    assert [(one.first, one.count, one.skip) for one in part] == [(5, 7, 9), (5, 7, 1)]
    alone = lattice_spans(make_lattice(Geometry(4, 90), 16, 0), 0, 20, 20)
    assert [(one.start, one.length, one.count) for one in alone] == [(0, 16, 16), (4, 16, 4)]
    assert all((one.weights == 1).all() for one in alone)


def test_the_last_tile_is_left_out_where_the_one_before_reaches_the_end() -> None:
    margin, blind = (make_lattice(Geometry(32, n), 1024, 64) for n in (543, None))
    for side in (1793, 1856, 1857):  # cores of 896 px
        ends = [(lattice_spans(one, 0, side, side)[-1].first) for one in (margin, blind)]
        assert ends == [832 if side <= 1856 else 1728, 1728]
    assert [one.length for one in lattice_spans(margin, 0, 1900, 1900)] == [960, 1024, 256]


def test_tiles_of_a_net_with_a_margin_are_cut_at_the_ends_and_fade_alike() -> None:
    found = lattice_spans(make_lattice(Geometry(4, 90), 16, 3), 0, 22, 22)
    blind = lattice_spans(make_lattice(Geometry(4, None), 16, 3), 0, 22, 22)
    assert [(one.start, one.length) for one in found] == [(0, 12), (4, 16), (8, 16)]
    for one, other in zip(found, blind, strict=True):
        assert (one.first, one.count) == (other.first, other.count)
        assert np.array_equal(one.weights, other.weights)


# ---------------------------------------------------------------- choosing a lattice


def test_a_net_that_looks_at_the_whole_tile_is_blended_over_the_usual_halo() -> None:
    lattice = make_lattice(Geometry(32, None), 1024)
    assert lattice == Lattice(768, BLIND_MARGIN, Geometry(32, None), blend=True)
    assert lattice.tile == 1024 and lattice.lengths(1536, 2048) == [1024, 1024]


def test_an_overlap_below_the_margin_blends_and_one_above_does_not() -> None:
    geometry = Geometry(16, 90)
    assert [make_lattice(geometry, 512, overlap).blend for overlap in (80, 81, 96, 97)] == [
        True,
        False,
        False,
        False,
    ]
    assert [make_lattice(geometry, 512, overlap).halo for overlap in (80, 81, 96, 97)] == [
        80,
        96,
        96,
        112,
    ]


def test_an_overlap_for_a_net_with_a_border_is_refused() -> None:
    with pytest.raises(UsageError, match=r"this net's overlap is its border: leave --overlap out"):
        make_lattice(Geometry(16, 92, 92, 12), 572, 0)


@given(st.integers(1, 32), st.integers(0, 60), st.integers(0, 60), st.integers(-5, 400))
@settings(deadline=None)
def test_the_tile_that_a_refusal_asks_for_is_the_least(
    stride: int, reach: int, overlap: int, tile: int
) -> None:
    cases = [
        (Geometry(stride, reach + 1, reach + 1, reach % stride), None),
        (Geometry(stride, reach), None),
        (Geometry(stride, reach), overlap),
        (Geometry(stride, None), overlap),
    ]
    for geometry, asked in cases:
        try:
            lattice = make_lattice(geometry, tile, asked)
        except UsageError as error:
            least = int(str(error).split("least ")[1].split(" px")[0])
            assert tile < least <= make_lattice(geometry, least, asked).tile
            with pytest.raises(UsageError):
                make_lattice(geometry, least - 1, asked)
        else:
            assert lattice.core >= stride and lattice.core % stride == 0
            assert lattice.tile <= tile < lattice.tile + stride


@pytest.mark.parametrize(
    ("geometry", "overlap", "message"),
    [
        (Geometry(16, 92, 92, 12), None, r"is too small for this net\. Take at least 204 px"),
        (
            Geometry(16, 90),
            None,
            r"between two halos of 96 px\. Take at least 208 px, or a smaller",
        ),
        (Geometry(16, None), None, r"two halos of 128 px\. Take at least 512 px\.$"),
        (Geometry(16, 200), 33, r"between two halos of 48 px\. Take at least 192 px\.$"),
    ],
)
def test_a_tile_without_room_for_a_core_is_refused(
    geometry: Geometry, overlap: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"a tile of 100 px.*{message}"):
        make_lattice(geometry, 100, overlap)


@given(discarding())
@settings(deadline=None)
def test_ranges_side_by_side_take_what_one_takes(look: Look) -> None:
    assume(look.last - look.first > 1)
    middle = (look.first + look.last) // 2
    halves = [
        Look(look.lattice, look.first, middle, look.side),
        Look(look.lattice, middle, look.last, look.side),
    ]
    taken = [
        np.arange(span.first, span.first + span.count) for half in halves for span in half.spans
    ]
    assert np.array_equal(np.concatenate(taken), np.arange(look.first, look.last))
