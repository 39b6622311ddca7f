"""What mask numbers mean: found where it can be known, asked for where it cannot."""

from __future__ import annotations

from collections import Counter

import pytest

from whatwhere.data.classes import describe, find_classes, find_labels
from whatwhere.errors import DataError, UsageError
from whatwhere.types import COLOR_FLAG, Classes

RED, GREEN, BLACK = (COLOR_FLAG + rgb for rgb in (0xFF0000, 0x00FF00, 0x000000))


def infer(*masks: list[int], spec: str = "") -> Classes:
    return find_classes([Counter(mask) for mask in masks], spec)


def test_zero_and_one_are_two_classes() -> None:
    found = infer([0, 1], [0])
    assert found.task == "binary" and found.names == ["background", "foreground"]
    assert [info.value for info in found] == [0, 1]


@pytest.mark.parametrize(
    "masks", [([0, 255],), ([0, 65535],), ([0, 255], [0, 65535], [0]), ([255], [0])]
)
def test_black_and_white_are_two_classes_in_8_and_16_bits(masks: tuple[list[int], ...]) -> None:
    found = infer(*masks)
    assert found.task == "binary"
    assert {1, 255, 65535} <= set(found.infos[1].raw) and found.infos[0].raw == (0,)


def test_one_other_number_is_the_foreground_and_is_written_back() -> None:
    assert [(info.raw, info.value) for info in infer([0, 7])] == [((0,), 0), ((7,), 7)]
    assert infer([0, 1000]).infos[1].value == 1  # a mask file holds 8 bits


def test_two_numbers_without_zero_are_two_classes_that_a_file_can_hold() -> None:
    found = infer([5, 9])
    assert found.names == ["class 5", "class 9"] and found.task == "binary"
    assert [info.value for info in infer([5, 1000])] == [0, 1]
    assert infer([5, 1000]).palette()


def test_several_numbers_are_classes_of_their_own() -> None:
    found = infer([0, 1], [2, 4])
    assert found.task == "multiclass"
    assert found.names == ["background", "class 1", "class 2", "class 4"]
    assert [info.value for info in found] == [0, 1, 2, 4]
    assert [info.role for info in found] == ["background", "class", "class", "class"]
    assert len({info.color for info in found}) == 4


def test_255_beside_others_is_asked_for() -> None:
    with pytest.raises(DataError, match="255 beside other numbers may be a class or 'not lab") as e:
        infer([0, 0, 1, 255])
    assert '--classes "0=NAME,1=NAME,255=NAME"' in str(e.value)
    assert "0 (50.0%)" in str(e.value) and 'the name "ignore"' in str(e.value)


def test_the_line_to_complete_names_every_number() -> None:
    with pytest.raises(DataError, match="and 12 more") as told:
        infer([*range(19), 255])
    assert all(f"{number}=NAME" in str(told.value) for number in [*range(19), 255])


def test_colours_are_asked_for_with_a_line_that_is_then_understood() -> None:
    with pytest.raises(DataError, match="colours, whose meaning cannot be known") as told:
        infer([RED] * 3 + [BLACK], [0, 0])
    line = str(told.value).split('--classes "')[1].split('"')[0]
    assert line == "0=NAME,#000000=NAME,#ff0000=NAME"
    spec = line.replace("=NAME", "=ground", 2).replace("=NAME", "=roof")
    found = infer([RED, BLACK], [0], spec=spec)
    assert [(info.name, set(info.raw)) for info in found] == [
        ("ground", {0, BLACK}),
        ("roof", {RED}),
    ]
    assert len(found.infos[0].raw) == 2  # each number once: pixels are counted by number


def test_one_number_alone_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="all masks hold nothing but 0: there is nothing to tell"):
        infer([0], [0])
    with pytest.raises(DataError, match="nothing but no pixel that counts"):
        infer([])


def test_masks_like_photographs_are_asked_about() -> None:
    with pytest.raises(DataError, match=r"100 different numbers from 0 to 99 \(a photograph, or m"):
        infer(list(range(100)))


@pytest.mark.parametrize("mask", [[-1, 0], [-1, 0, 1], [0, 1, 300]])
def test_negative_and_large_numbers_are_asked_for(mask: list[int]) -> None:
    with pytest.raises(DataError, match=f"different numbers from {mask[0]} to {mask[-1]}"):
        infer(mask)


# ---------------------------------------------------------------- --classes


def test_names_go_to_the_numbers_in_their_order() -> None:
    found = infer([0, 255], spec="rock, salt")
    assert found.names == ["rock", "salt"] and found.infos[1].raw[-1] == 65535


@pytest.mark.parametrize("spec", ["salt", "a,b,c", "a,a", "a,"])
def test_another_number_of_names_is_refused(spec: str) -> None:
    with pytest.raises(
        UsageError, match=r"--classes names .*: 2 different names are needed, for 0"
    ):
        infer([0, 255], spec=spec)


def test_the_refusal_names_the_numbers_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"for 0, 1\.$"):
        infer([0, 1], spec="salt")
    with pytest.raises(UsageError, match=r"for 0, 255/65535\.$"):
        infer([0, 255], [0, 65535], spec="salt")


def test_numbers_are_named_one_by_one_and_may_share_a_name() -> None:
    found = infer([0, 1, 2, 3], spec="1=tree, 2=tree, 0=background, 3=ignore")
    assert found.names == ["background", "tree"] and found.task == "binary"
    assert found.infos[1].raw == (1, 2) and found.ignored == (3,)
    assert [info.value for info in found] == [0, 1]


def test_classes_without_a_background_have_colours_of_their_own() -> None:
    found = infer([0, 1, 2, 3], spec="0=ignore,1=built,2=green,3=water")
    assert found.ignored == (0,) and found.task == "multiclass"
    assert len({info.color for info in found}) == 3
    assert (0, 0, 0) not in {info.color for info in found}


def test_background_is_first_wherever_it_is_named() -> None:
    found = infer([0, 5, 9], spec="5=a,9=Background,0=void")
    assert found.names == ["Background", "a", "void"]
    assert [info.role for info in found] == ["background", "class", "class"]
    assert [info.value for info in found] == [9, 5, 0]


def test_colours_are_kept_as_the_classes_colours() -> None:
    found = infer([RED, GREEN], spec="#ff0000=roof,#00ff00=tree,#000000=ground")
    assert found.names == ["ground", "roof", "tree"]
    assert [info.value for info in found] == [0, 1, 2]
    assert found.infos[1].color == (255, 0, 0) and found.infos[1].raw == (RED,)
    assert set(found.infos[0].raw) == {BLACK, 0}  # an all-black file is read as grey


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0=a,1", "'1' must be like 255=salt or #ff0000=roof"),
        ("0=a,=b", "'=b' must be like"),
        ("0=a,x=b", "'x' is neither a number nor a colour like #ff0000"),
        ("0=a,#ff00=b", "'#ff00' is neither a number"),
        ("0=a,#gggggg=b", "'#gggggg' is neither a number"),
        ("0=a,0=b", "--classes names 0 twice"),
        ("0=a,#000000=b", "--classes names #000000 twice"),
        ("0=a,255=ignore", "must name at least two classes that count"),
    ],
)
def test_what_cannot_be_read_is_told(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        infer([0, 1], spec=spec)


def test_describe_says_read_called_written_and_ignored() -> None:
    text = describe(infer([0, RED], spec="0=ground,#ff0000=roof,7=ignore"))
    assert text == ("0 → ground (written as 0), #ff0000 → roof (written as 1), 7 → not counted")


# ---------------------------------------------------------------- a folder for each label


def test_label_folders_are_labels_that_may_overlap() -> None:
    found = find_labels(["cell", "core"], [[Counter([0, 255])], [Counter([0]), Counter([0, 1])]])
    assert found.task == "multilabel" and found.names == ["cell", "core"]
    assert found.n_outputs == 2 and [info.role for info in found] == ["class", "class"]


def test_a_labels_masks_hold_two_numbers() -> None:
    with pytest.raises(
        DataError, match=r"masks/core: the masks of a label hold 0 and 1.*hold 0, 2"
    ):
        find_labels(["core"], [[Counter([0, 2])]])


def test_label_folders_are_not_named_by_classes() -> None:
    with pytest.raises(UsageError, match="--classes is not for masks in a folder for each label"):
        find_labels(["core"], [[Counter([0, 1])]], "a,b")
