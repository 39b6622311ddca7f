"""Classes, bands, normalisation and windows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatwhere.errors import BundleError, ShapeError
from whatwhere.types import (
    COLOR_FLAG,
    Bands,
    Classes,
    ClassInfo,
    Normalization,
    Window,
    default_color,
)

TABLE = Classes(
    (
        ClassInfo("ground", 10, (1, 2, 3), "background", (0, COLOR_FLAG)),
        ClassInfo("roof", 20, (4, 5, 6), "class", (1, 255, COLOR_FLAG + 0xFF0000)),
        ClassInfo("tree", 30, (7, 8, 9), "class", (-3,)),
    ),
    "multiclass",
    (7, 9),
)
KNOWN = {number: i for i, info in enumerate(TABLE) for number in info.raw}


@given(st.lists(st.sampled_from([*KNOWN, 7, 9, 2, 500]), min_size=1, max_size=30))
def test_masks_are_encoded_as_a_plain_loop_would(numbers: list[int]) -> None:
    raw = np.array([numbers])
    labels, valid, unknown = TABLE.encode(raw)
    assert labels[0].tolist() == [KNOWN.get(number, 0) for number in numbers]
    assert valid[0].tolist() == [number in KNOWN for number in numbers]
    assert unknown == {n: numbers.count(n) for n in (2, 500) if n in numbers}


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_encoding_gives_back_what_was_decoded(indexes: list[int]) -> None:
    raw = np.array([[info.raw[0] for info in TABLE]])[0][np.array([indexes])]
    labels, valid, unknown = TABLE.encode(raw)
    assert labels[0].tolist() == indexes and valid.all() and unknown == {}


def test_a_palette_shows_each_value_in_its_colour_and_the_rest_in_grey() -> None:
    colors = np.frombuffer(TABLE.palette(), np.uint8).reshape(256, 3)
    assert [tuple(colors[v]) for v in (10, 20, 30, 40)] == [
        (1, 2, 3),
        (4, 5, 6),
        (7, 8, 9),
        (40,) * 3,
    ]


def test_outputs_and_labels_follow_the_task() -> None:
    two = TABLE.infos[:2]
    assert Classes(two, "binary").n_outputs == 1 and Classes(two, "binary").labels == two[1:]
    assert TABLE.n_outputs == 3 and Classes(two, "multilabel").labels == two
    assert len(TABLE) == 3 and TABLE.names == ["ground", "roof", "tree"]


def test_default_colours_differ() -> None:
    colors = [default_color(i) for i in range(64)]
    assert len(set(colors)) == 64 and colors[0] == (0, 0, 0)
    assert all(0 <= channel <= 255 for color in colors for channel in color)


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        Classes(TABLE.infos[:2], "binary"),
        Classes(TABLE.infos[2:], "multilabel"),
        Classes((ClassInfo("a", 0, (0, 255, 0)), ClassInfo("b", 255, (255, 0, 255))), "multiclass"),
    ],
)
def test_classes_survive_json(table: Classes) -> None:
    assert Classes.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_class_is_no_background_unless_it_says_so() -> None:
    info = ClassInfo("roof", 1, (0, 0, 0))
    assert info == ClassInfo("roof", 1, (0, 0, 0), "class", ())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("task",), "both", "names the task 'both' with 3 classes"),
        (("task",), "binary", "names the task 'binary' with 3 classes"),
        (("table",), [], "with 0 classes"),
        (("table",), 5, "the class table cannot be read: TypeError"),
        (("table", 0, "value"), 256, "gives 'ground' the role 'background' and the value 256"),
        (("table", 0, "value"), -1, "gives 'ground' the role 'background' and the value -1"),
        (("table", 0, "role"), "sky", "gives 'ground' the role 'sky'"),
        (("table", 0, "color"), [1, 2], "the class table cannot be read: IndexError"),
        (("table", 0, "color"), [1, 2, 256], "gives 'ground' no color of 3 bytes"),
        (("table", 0, "color"), [-1, 2, 3], "gives 'ground' no color of 3 bytes"),
        (("table", 0, "raw"), ["x"], "the class table cannot be read: ValueError"),
        (("ignored",), None, "the class table cannot be read: TypeError"),
    ],
)
def test_a_table_that_cannot_be_is_told(place: tuple[Any, ...], value: Any, message: str) -> None:
    card = json.loads(json.dumps(TABLE.to_json()))
    inner = card
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(BundleError, match=message):
        Classes.from_json(card)


# ---------------------------------------------------------------- bands

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 4, 5)).astype(np.float32)
GREY, RGB = ("grey",), ("red", "green", "blue")


def test_numbered_bands_are_taken_in_their_order() -> None:
    assert np.array_equal(Bands(("b", "a"), (3, 1)).select(PIXELS), PIXELS[[2, 0]])


def test_grey_takes_one_band_and_three_equal_ones() -> None:
    assert np.array_equal(Bands(GREY).select(PIXELS[:1]), PIXELS[:1])
    assert np.array_equal(Bands(GREY).select(PIXELS[[1, 1, 1]]), PIXELS[1:2])


def test_colours_become_grey_only_where_that_was_asked_for() -> None:
    red, green, blue = PIXELS
    wanted = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.allclose(Bands(GREY, convert=True).select(PIXELS)[0], wanted)
    with pytest.raises(ShapeError, match="the bands grey are wanted, the image has 3 that differ"):
        Bands(GREY).select(PIXELS)


def test_grey_becomes_colours_only_where_that_was_asked_for() -> None:
    assert np.array_equal(Bands(RGB).select(PIXELS), PIXELS)
    assert np.array_equal(Bands(RGB, convert=True).select(PIXELS[:1]), PIXELS[[0, 0, 0]])
    with pytest.raises(
        ShapeError, match=r"the bands red, green, blue are wanted, the image has 1\."
    ):
        Bands(RGB).select(PIXELS[:1])


def test_bands_that_are_not_there_are_told() -> None:
    with pytest.raises(ShapeError, match="band 4 is wanted, the image has 3"):
        Bands(("a", "b"), (1, 4)).select(PIXELS)


@pytest.mark.parametrize("bands", [Bands(GREY, convert=True), Bands(("b", "a"), (3, 1))])
def test_bands_survive_json(bands: Bands) -> None:
    assert Bands.from_json(json.loads(json.dumps(bands.to_json()))) == bands


@pytest.mark.parametrize(
    "change", [{"names": []}, {"numbers": [0]}, {"numbers": [1, 2]}, {"numbers": "x"}, {"names": 3}]
)
def test_bands_that_cannot_be_are_told(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="the bands cannot be read: "):
        Bands.from_json({**Bands(GREY).to_json(), **change})
    with pytest.raises(BundleError, match="the bands cannot be read: KeyError"):
        Bands.from_json({"names": ["grey"]})


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_normalisation_takes_the_mean_off_and_divides(dtype: str) -> None:
    image = PIXELS[:2].astype(dtype)
    found = Normalization((10.0, 200.0), (2.0, 0.5)).apply(image)
    wanted = np.stack([(image[0] - 10.0) / 2.0, (image[1] - 200.0) / 0.5])
    assert found.dtype == np.float32 and np.allclose(found, wanted)


def test_normalisation_keeps_small_differences_of_large_numbers() -> None:
    image = np.array([[[16_777_216, 16_777_217]]], dtype=np.int32)
    assert Normalization((16_777_216.0,), (1.0,)).apply(image).tolist() == [[[0, 1]]]


def test_another_number_of_bands_is_told() -> None:
    with pytest.raises(ShapeError, match="the normalisation knows 2 bands, the image has 3"):
        Normalization((0, 0), (1, 1)).apply(PIXELS)


def test_a_window_cuts_its_rectangle() -> None:
    window = Window(row=1, column=2, height=3, width=2)
    assert np.array_equal(PIXELS[0][window.slices], PIXELS[0, 1:4, 2:4])
