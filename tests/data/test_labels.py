"""Masks as class indexes, whether they are files or parts of scenes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from whatwhere.data.labels import read_labels, read_pixels
from whatwhere.data.scenes import Block
from whatwhere.data.sources import Pair
from whatwhere.errors import DataError, ShapeError
from whatwhere.types import COLOR_FLAG, Bands, Classes, ClassInfo, Window

TABLE = Classes(
    (
        ClassInfo("ground", 0, (0, 0, 0), "background", (0, 4)),
        ClassInfo("roof", 1, (9, 9, 9), "class", (1, COLOR_FLAG + 0xFF0000)),
    ),
    "binary",
    (7,),
)
LABELS = Classes(
    tuple(ClassInfo(name, 1, (1, 1, 1), raw=raw) for name, raw in (("a", (1, 255)), ("b", (2,)))),
    "multilabel",
)


def pair_of(folder: Path, *planes: Any) -> Pair:
    """A picture and masks of these numbers; a plane of `(H, W, 2)` has alpha."""
    names = ("image.png", *(f"mask{i}.png" for i in range(len(planes) - 1)))
    for name, plane in zip(names, planes, strict=True):
        Image.fromarray(np.array(plane, np.uint8)).save(folder / name)
    return Pair("k", folder / names[0], tuple(folder / name for name in names[1:]), None)


def block_of(numbers: NDArray[Any], counted: NDArray[np.bool_]) -> Block:
    pixels = np.arange(numbers.size).reshape(1, *numbers.shape)
    scene: Any = SimpleNamespace(
        labels=lambda window: (numbers[window.slices], counted[window.slices]),
        read=lambda window: (pixels[(slice(None), *window.slices)], ~counted[window.slices]),
    )
    return Block("k", Path("s"), (Path("l"),), None, scene=scene, window=WINDOW, at=(0, 0))


WINDOW = Window(0, 1, 1, 3)
NUMBERS = np.array([[0, 1, 9, 4]])
COUNTED = np.array([[False, True, True, False]])


def test_numbers_become_indexes_and_some_do_not_count(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, [[0] * 4], [[0, 1, 7, 4]])
    labels, valid = read_labels(pair, TABLE)
    assert labels.tolist() == [[0, 1, 0, 0]] and valid.tolist() == [[True, True, False, True]]


def test_a_part_of_a_scene_counts_where_its_number_is_known_and_labelled() -> None:
    block = block_of(NUMBERS, COUNTED)
    labels, valid = read_labels(block, TABLE)
    assert labels.tolist() == [[1, 0, 0]] and valid.tolist() == [[True, False, False]]
    pixels, data = read_pixels(block, Bands(("grey",)))
    assert pixels.tolist() == [[[1, 2, 3]]] and data.tolist() == [[False, False, True]]


def test_the_bands_that_the_net_sees_are_read(tmp_path: Path) -> None:
    image = np.arange(8, dtype=np.uint8).reshape(1, 2, 4)
    image[0, 1, 3] = 0  # alpha
    pair = pair_of(tmp_path, image, [[0, 1]])
    pixels, data = read_pixels(pair, Bands(("blue", "red"), (3, 1)))
    assert pixels.tolist() == [[[2, 6]], [[0, 4]]] and data.tolist() == [[True, False]]
    with pytest.raises(ShapeError, match="the bands grey are wanted, the image has 3 that differ"):
        read_pixels(pair, Bands(("grey",)))


def test_unknown_numbers_are_told_in_their_order(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, [[0] * 4], [[9, 1, 7, 3]])
    told = r"mask0\.png: the class table does not know 3, 9; it knows 0, 4, 1, #ff0000\. Correct th"
    for data in (
        None,
        np.ones((1, 4), bool),
        np.zeros((2, 2), bool),
    ):  # the last is of another size
        with pytest.raises(DataError, match=told):
            read_labels(pair, TABLE, data)
    with pytest.raises(DataError, match=r"does not know 9; it knows"):
        read_labels(pair, TABLE, np.array([[True, True, True, False]]))


def test_without_data_or_alpha_a_mask_may_hold_anything(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, [[0] * 4], [[9, 1, 7, 3]])
    data = np.array([[False, True, True, False]])
    labels, valid = read_labels(pair, TABLE, data)
    assert labels.tolist() == [[0, 1, 0, 0]] and valid.tolist() == [[False, True, False, False]]
    plane = [[[9, 0], [1, 255], [0, 255], [1, 0]]]
    labels, valid = read_labels(pair_of(tmp_path, [[0] * 4], plane), TABLE)
    assert labels.tolist() == [[0, 1, 0, 1]] and valid.tolist() == [[False, True, True, False]]


def test_each_label_has_its_own_numbers_and_counts_where_all_count(tmp_path: Path) -> None:
    alpha = [[[2, 255], [1, 255], [2, 0], [0, 255]]]
    pair = pair_of(tmp_path, [[0] * 4], [[1, 2, 255, 9]], alpha)
    labels, valid = read_labels(pair, LABELS, np.zeros((1, 4), bool))
    assert labels.tolist() == [[[1, 0, 1, 0]], [[1, 0, 1, 0]]]
    assert valid.tolist() == [[True, True, False, True]] and labels.dtype == np.int64
