"""From classes to polygons, block by block."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from whatwhere.errors import DataError, ShapeError
from whatwhere.predict.polygons import Joiner, Objects, Pieces, decode, encode, find_pieces
from whatwhere.types import Window

Found = tuple[int, int, int, int, float, list[list[tuple[float, float]]]]


def corners(ring: Any) -> list[tuple[float, float]]:
    """A ring's points, less those on a straight line."""
    points = list(ring.coords)[:-1]
    around = zip(points[-1:] + points[:-1], points, [*points[1:], points[0]], strict=True)
    return [b for a, b, c in around if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])]


def canonical(polygon: Any) -> list[list[tuple[float, float]]]:
    """The rings of a polygon: the same for the same vertices, wherever they start."""
    rings = [corners(ring) for ring in (polygon.exterior, *polygon.interiors)]
    even = shapely.normalize(shapely.Polygon(rings[0], rings[1:]))
    return [list(ring.coords) for ring in (even.exterior, *even.interiors)]


def whole(labels: NDArray[Any], wanted: list[int], confidence: NDArray[Any]) -> list[Found]:
    """What is in a raster, from unions of single pixels."""
    found = []
    for index in wanted:
        numbers, count = ndimage.label(labels == index)
        for number in range(1, count + 1):
            rows, columns = np.nonzero(numbers == number)
            shape = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
            mean = confidence[rows, columns].astype(np.float64).mean()
            found.append((rows[0], columns[0], index, len(rows), mean, canonical(shape)))
    return sorted(found)


def listed(objects: list[Objects]) -> list[Found]:
    rows = []
    for each in objects:
        for i, shape in enumerate(each.shapes):
            assert shape.is_valid
            assert [len(r.coords) - 1 for r in (shape.exterior, *shape.interiors)] == [
                len(corners(r)) for r in (shape.exterior, *shape.interiors)
            ]
            numbers = (int(each.classes[i]), int(each.pixels[i]), float(each.probability[i]))
            rows.append((int(each.keys[i, 0]), int(each.keys[i, 1]), *numbers, canonical(shape)))
    return sorted(rows)


def cut(height: int, width: int, tall: int, wide: int) -> Iterator[Window]:
    for row in range(0, height, tall):
        for column in range(0, width, wide):
            yield Window(row, column, min(tall, height - row), min(wide, width - column))


def in_blocks(
    labels: NDArray[Any], wanted: list[int], confidence: NDArray[Any], tall: int, wide: int
) -> list[Objects]:
    joiner = Joiner(*labels.shape)
    done = []
    for window in cut(labels.shape[0], labels.shape[1], tall, wide):
        part = find_pieces(labels[window.slices], wanted, confidence[window.slices], window)
        done.append(joiner.add(decode(encode(part))))
    return [*done, joiner.finish()]


@st.composite
def rasters(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    likely = draw(st.sampled_from([(0.1, 0.3, 0.6), (0.05, 0.6, 0.35), (0, 0.5, 0.5)]))
    labels = rng.choice([-1, 0, 1], size=(height, width), p=likely)
    return labels, rng.random((height, width), dtype=np.float32)


@settings(max_examples=150, deadline=None)
@given(rasters(), st.integers(1, 9), st.integers(1, 9), st.sampled_from([[0], [1], [0, 1]]))
def test_blocks_of_any_size_give_the_polygons_of_the_whole_raster(
    raster: tuple[NDArray[np.int64], NDArray[np.float32]], tall: int, wide: int, wanted: list[int]
) -> None:
    labels, confidence = raster
    found = listed(in_blocks(labels, wanted, confidence, tall, wide))
    truth = whole(labels, wanted, confidence)
    assert [row[:4] + row[5:] for row in found] == [row[:4] + row[5:] for row in truth]
    assert [row[4] for row in found] == pytest.approx([row[4] for row in truth], abs=1e-12)


def test_pixels_that_meet_at_a_point_are_not_connected_and_rings_touch_there() -> None:
    labels = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])
    ones = np.ones((4, 4), dtype=np.float32)
    pieces = find_pieces(labels, [0, 1], ones, Window(10, 20, 4, 4))
    assert pieces.pixels.tolist() == [14, 1, 1]
    assert pieces.classes.tolist() == [1, 0, 0]
    assert [len(shape.interiors) for shape in pieces.shapes] == [2, 0, 0]
    assert [shape.bounds for shape in pieces.shapes[1:]] == [(21, 11, 22, 12), (22, 12, 23, 13)]
    assert shapely.is_valid(pieces.shapes).all()
    pocket = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1]])  # outer and inner ring touch
    (shape,) = find_pieces(pocket, [1], ones[:3, :3], Window(0, 0, 3, 3)).shapes
    assert shape.is_valid and len(shape.interiors) == 1 and shape.area == 7


def test_a_block_without_a_wanted_class_has_no_pieces() -> None:
    pieces = find_pieces(
        np.full((2, 3), -1), [-1, 0], np.full((2, 3), np.nan, dtype=np.float32), Window(0, 0, 2, 3)
    )
    assert len(pieces.shapes) == len(pieces.classes) == len(pieces.sums) == 0
    assert decode(encode(pieces)).top.tolist() == [-1, -1, -1]
    joiner = Joiner(2, 3)
    assert len(joiner.add(pieces).shapes) == len(joiner.finish().shapes) == 0


def test_an_array_of_another_size_is_refused() -> None:
    small = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ShapeError, match=r"a block of 2×3 pixels came with labels of the shape"):
        find_pieces(np.zeros((2, 3), dtype=np.int64), [0], small, Window(0, 0, 2, 3))


def test_objects_come_as_soon_as_no_block_can_add_to_them() -> None:
    labels = np.zeros((6, 6), dtype=np.int64)
    labels[0:2, 0] = 1  # inside the first block
    labels[1, 1:5] = 1  # joins it to the second one
    labels[2, 4] = 1  # at the lower edge: waits for the row below
    labels[0, 5] = 2
    labels[5, 0] = labels[5, 5] = 1
    done = in_blocks(labels, [1, 2], np.ones((6, 6), dtype=np.float32), 3, 3)
    assert [each.pixels.tolist() for each in done] == [[], [1], [1], [7, 1], []]


def test_a_ring_through_all_blocks_is_one_object_with_one_hole() -> None:
    labels = np.ones((40, 40), dtype=np.int64)
    labels[1:-1, 1:-1] = 0
    done = in_blocks(labels, [1], np.full((40, 40), 0.5, dtype=np.float32), 7, 3)
    assert [len(each.shapes) for each in done[:-2]] == [0] * (len(done) - 2)
    (shape,) = done[-2].shapes
    assert len(shape.exterior.coords) == 5 and len(shape.interiors) == 1
    assert (done[-2].pixels[0], done[-2].probability[0]) == (156, 0.5)


def test_classes_that_face_each_other_across_a_seam_stay_apart() -> None:
    labels = np.array([[1, 2], [1, 2]])
    done = in_blocks(labels, [1, 2], np.ones((2, 2), dtype=np.float32), 2, 1)
    assert sorted(n for each in done for n in each.classes.tolist()) == [1, 2]


def block(row: int, column: int, height: int, width: int) -> Pieces:
    ones = np.ones((height, width))
    window = Window(row, column, height, width)
    return find_pieces(ones.astype(np.int64), [1], ones.astype(np.float32), window)


@pytest.mark.parametrize(
    "wrong", [(0, 4, 4, 4), (4, 0, 4, 4), (0, 0, 5, 4), (0, 0, 4, 7), (0, 0, 0, 4)]
)
def test_a_block_out_of_turn_is_refused(wrong: tuple[int, int, int, int]) -> None:
    empty = np.empty(0, dtype=np.int64)
    pieces = Pieces(
        Window(*wrong),
        np.empty(0, dtype=np.object_),
        *(empty, empty, np.empty(0)),
        *(np.full(wrong[i], -1) for i in (3, 3, 2, 2)),
    )
    with pytest.raises(DataError, match=r"one at row 0, column 0 of a scene of 4×6 pixels is next"):
        Joiner(4, 6).add(pieces)


def test_blocks_of_one_row_have_one_height() -> None:
    joiner = Joiner(4, 6)
    joiner.add(block(0, 0, 4, 4))
    with pytest.raises(DataError, match="2×2 pixels at row 0, column 4 came"):
        joiner.add(block(0, 4, 2, 2))


def test_missing_blocks_are_told() -> None:
    joiner = Joiner(4, 6)
    joiner.add(block(0, 0, 4, 4))
    with pytest.raises(DataError, match=r"the block at row 0, column 4 of a scene of 4×6 pixels"):
        joiner.finish()


def sample() -> Pieces:
    labels = np.random.default_rng(3).integers(-1, 3, size=(9, 7))
    return find_pieces(labels, [0, 2], np.ones((9, 7), dtype=np.float32), Window(90, 70, 9, 7))


def test_equal_pieces_give_equal_bytes_that_say_it_all() -> None:
    pieces = sample()
    data = encode(pieces)
    members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert encode(decode(data)) == encode(sample()) == data
    again = decode(data)
    assert again.window == pieces.window
    assert shapely.equals_exact(again.shapes, pieces.shapes).all()
    for name in ("classes", "pixels", "sums", "top", "bottom", "left", "right"):
        assert np.array_equal(getattr(again, name), getattr(pieces, name))
        assert getattr(again, name).dtype == getattr(pieces, name).dtype


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_damaged_bytes_are_told_or_do_no_harm(place: int, change: int, short: bool) -> None:
    data = bytearray(encode(sample()))
    place %= len(data)
    data[place] ^= change
    given_back = None
    with contextlib.suppress(DataError):
        given_back = decode(bytes(data[:place] if short else data))
    assert given_back is None or (not short and encode(given_back) == encode(sample()))


def altered(**changes: Any) -> bytes:
    with np.load(io.BytesIO(encode(sample()))) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("top", lambda a: a[:-1], "top has the shape"),
        ("pixels", lambda a: a[:-1], "pixels has the shape"),
        ("left", lambda a: a + 1000, "a border names a piece that is not there"),
        ("sums", lambda a: a[:-1], "sums of the shape"),
        ("rings", lambda a: a[1:], "do not fit what they are made of"),
        ("polygons", lambda a: a[1:], "the polygons do not fit what they are made of"),
        ("rings", lambda a: np.sort(np.append(a[:-1], a[-1])[[0, 0, *range(2, len(a))]]), "short"),
        ("points", lambda a: np.roll(a, 1, axis=0), "one of the rings is not closed"),
        ("points", lambda a: a * [1, 2], "does not have the area of its pixels"),
        ("pixels", lambda a: a + 1, "does not have the area of its pixels"),
        ("window", lambda a: a[:2], "damaged"),
        ("classes", lambda a: np.array([{}]), "allow_pickle=False"),
    ],
)
def test_arrays_that_do_not_fit_are_told(name: str, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(altered(**{name: change}))
