"""What mask numbers mean: found where it can be known, asked for where it cannot."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from whatwhere.data.classes import (
    describe,
    exported_classes,
    find_classes,
    find_labels,
    kept_spec,
    named_numbers,
    spec_of,
    written,
)
from whatwhere.errors import DataError, UsageError
from whatwhere.io.esri import EsriClass
from whatwhere.types import COLOR_FLAG, Classes, ClassInfo, default_color

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


def test_what_is_in_the_table_is_what_is_known_of_each_class() -> None:
    assert infer([0, 1]) == infer([0, 255]) == infer([0], [1])
    white = (1, 255, 65535)
    assert infer([0, 1]) == Classes(
        (
            ClassInfo("background", 0, (0, 0, 0), "background", (0,)),
            ClassInfo("foreground", 1, (230, 159, 0), "class", white),
        ),
        "binary",
    )
    assert infer([0, 7]).infos[1] == ClassInfo("foreground", 7, (230, 159, 0), "class", (7,))
    assert [infer([0, n]).infos[1].value for n in (254, 256)] == [254, 1]
    named = infer([0, 7], spec="rock, salt")
    assert named.infos[0] == ClassInfo("rock", 0, (0, 0, 0), "background", (0,))
    assert named.infos[1] == ClassInfo("salt", 7, (230, 159, 0), "class", (7,))
    assert infer([2, 3, 4]) == Classes(
        tuple(
            ClassInfo(f"class {n}", n, default_color(i), "class", (n,))
            for i, n in ((1, 2), (2, 3), (3, 4))
        ),
        "multiclass",
    )
    assert [info.color for info in infer([0, 1, 2])] == [default_color(i) for i in range(3)]


@pytest.mark.parametrize(
    "masks",
    [([0, 255, 65535],), ([1, 255],), ([0, 1, 255],), ([0, 65535, 1],), ([255, 65535], [0])],
)
def test_two_whites_in_one_mask_are_not_one_class(masks: tuple[list[int], ...]) -> None:
    with pytest.raises(DataError, match="may be a class|different numbers from 0 to 65535"):
        infer(*masks)


def test_255_is_a_number_as_others_without_others() -> None:
    assert infer([0, 254, 1]).names == ["background", "class 1", "class 254"]
    assert find_classes([Counter([0, 255])]).names == ["background", "foreground"]
    assert [info.value for info in infer([5, 256])] == [0, 1]


def test_64_numbers_are_classes_and_65_are_not() -> None:
    assert len(infer(list(range(64)))) == 64
    with pytest.raises(
        DataError, match=r"65 different numbers from 0 to 64 \(a photograph"
    ) as told:
        infer([*range(65), 3])
    assert told.match(r"3 \(3.0%\), 0 \(1.5%\), .* and 57 more\. Say")
    assert told.match('--classes "0=NAME,1=NAME,2=NAME,3=NAME,4=NAME,5=NAME,6=NAME,7=NAME"')
    colours = [COLOR_FLAG + i for i in range(64)]
    with pytest.raises(DataError, match="#00003f=NAME"):
        infer(colours)
    with pytest.raises(DataError, match="64 different numbers from -1 to 62") as told:
        infer(list(range(-1, 63)))
    assert "photograph" not in str(told.value)


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ({0: 998, 1: 1, 255: 1}, "0 (99.8%), 1 (0.1%), 255 (0.1%). Say"),
        ({0: 1997, 255: 2, 1: 1}, "0 (99.9%), 255 (0.1%), 1 (<0.1%). Say"),
        (dict.fromkeys((*range(7), 255), 1), "6 (12.5%), 255 (12.5%). Say"),
        (dict.fromkeys((*range(8), 255), 1), "7 (11.1%) and 1 more. Say"),
    ],
)
def test_shares_of_what_is_asked_about(counts: dict[int, int], shares: str) -> None:
    with pytest.raises(DataError) as told:
        find_classes([Counter(counts)])
    assert shares in str(told.value)


@pytest.mark.parametrize(
    ("greys", "soft"),
    [([50, 100, 101], True), ([50, 99, 100], False), ([50, 101], False), ([1, 2, 254], True)],
)
def test_smoothed_edges_are_told(greys: list[int], soft: bool) -> None:
    told = "255 beside other"
    if soft:
        told = r"hold black, white and 3 greys between them \(0\.6% of the pixels\): edges were smo"
    with pytest.raises(DataError, match=told):
        find_classes([Counter({0: 505}), Counter({255: 489, **dict.fromkeys(greys, 2)})])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({255: 1}, "255 beside other"),  # white is not among the most
        ({256: 1}, "different numbers from 0 to 256"),
        ({-1: 1}, "different numbers from -1 to 255"),
    ],
)
def test_what_is_not_black_and_white_has_no_smoothed_edges(more: dict[int, int], told: str) -> None:
    edges = {0: 505, 255: 489, **dict.fromkeys([50, 100, 101], 2)}
    with pytest.raises(DataError, match=told):
        find_classes([Counter({**edges, **more})])


def test_what_is_there_is_listed_up_to_a_dozen() -> None:
    for count, listed in ((12, "10, 11."), (13, "10, 11 and 1 more.")):
        with pytest.raises(DataError) as told:
            find_labels(["a"], [[Counter(range(count))]])
        assert str(told.value).endswith(f"these hold {', '.join(map(str, range(10)))}, {listed}")


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


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("255=a,0=b", [("b", 0, "background"), ("a", 255, "class")]),
        ("256=a,0=b", [("b", 0, "background"), ("a", 1, "class")]),
        ("-1=a,1=b", [("a", 0, "class"), ("b", 1, "class")]),
        ("7=a,300=a,0=b", [("b", 0, "background"), ("a", 7, "class")]),
        (
            "2=x,1=BACKGROUND,0=y",
            [("BACKGROUND", 1, "background"), ("x", 2, "class"), ("y", 0, "class")],
        ),
    ],
)
def test_what_a_mask_file_holds_is_written_back(
    spec: str, values: list[tuple[str, int, str]]
) -> None:
    found = infer(spec=spec)
    assert [(info.name, info.value, info.role) for info in found] == values
    first = values[0][2] != "background"
    assert [info.color for info in found] == [default_color(i + first) for i in range(len(found))]
    assert found.task == ("binary" if len(values) == 2 else "multiclass")


@pytest.mark.parametrize("word", ["ignore", "Ignored", "unlabelled", "UNLABELED"])
def test_some_words_stand_for_pixels_that_do_not_count(word: str) -> None:
    found = infer(spec=f" 7 = {word},0=a,1=b, 9={word}")
    assert found.ignored == (7, 9) and found.names == ["a", "b"]


def test_the_first_colour_of_a_class_is_shown_and_greys_are_numbers_too() -> None:
    found = infer(spec="#00ff00=a,#ff0000=a,#ffffff=b,0=c")
    assert [info.color for info in found] == [(0, 0, 0), (0, 255, 0), (255, 255, 255)]
    assert found.infos[2].raw == (COLOR_FLAG + 0xFFFFFF, 255)
    assert infer(spec="#102030=a,0=b").infos[1].color == (16, 32, 48)
    with pytest.raises(UsageError, match="--classes names 255 twice"):
        infer(spec="#ffffff=a,255=b")
    with pytest.raises(UsageError, match="'#1234567' is neither"):
        infer(spec="#1234567=a,0=b")


# ---------------------------------------------------------------- tables as texts


def test_a_table_is_read_as_it_was_written() -> None:
    table = infer(spec="3=a; b,0=ground,1=x=y")
    text = spec_of(table, 255)
    assert text == "0=ground,3=a; b,1=x=y,255=ignore"
    assert infer(spec=text) == Classes(table.infos, "multiclass", (255,))
    odd = tuple(ClassInfo(name, i, (0, 0, 0)) for i, name in enumerate([" a,b ", "Ignore", "c"]))
    assert spec_of(Classes(odd, "multiclass"), 9) == "0=a;b,1=Ignore.,2=c,9=ignore"
    for names in (["a,b", "a;b"], ["a", " "]):
        same = tuple(ClassInfo(name, i, (0, 0, 0)) for i, name in enumerate(names))
        told = f"the classes {', '.join(names)} cannot be told apart in a table"
        with pytest.raises(UsageError, match=told):
            spec_of(Classes(same, "binary"), 255)


def test_the_numbers_that_a_text_names() -> None:
    assert named_numbers("0=a,1=b,2=b,7=ignore") == {0, 1, 2}
    for nothing in ("", "a,b", "0=a", "x=a,1=b"):
        assert named_numbers(nothing) == frozenset()


def test_a_folder_may_hold_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_spec(tmp_path) == ""
    path = tmp_path / "classes.toml"
    path.write_text('classes = "0=rock,255=größe"\n', encoding="utf-8")
    assert kept_spec(tmp_path) == "0=rock,255=größe"
    for text in ("classes = 3", "classes = ['=']", 'classes = "a,b"', 'more = "0=a"', "",
                 'classes = "0=a,1=b"\nmore = 1'):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"classes\.toml: it must hold one line such as class"):
            kept_spec(tmp_path)
    for data in (b"= 3", b'classes = "\xff=a"'):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"classes\.toml: this is not TOML: "):
            kept_spec(tmp_path)

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.EIO, "odd")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(DataError, match=r"classes\.toml: the class table cannot be read: odd\."):
        kept_spec(tmp_path)


def test_a_mapping_is_told_with_all_its_numbers() -> None:
    told = describe(infer(spec="0=a,#000000=a,1=b,9=b,7=ignore,#0000ff=ignore"))
    assert told == (
        "0/#000000 → a (written as 0), 1/9 → b (written as 1), 7 → not counted, "
        "#0000ff → not counted"
    )
    assert written(COLOR_FLAG - 1) == "16777215"


def test_label_folders_may_hold_black_and_white() -> None:
    found = find_labels(["a", "b", "c"], [[Counter([0, 255, 65535])], [Counter([1])], []])
    assert [info.raw for info in found] == [(1, 255, 65535)] * 3
    assert [(info.value, info.color) for info in found] == [
        (1, default_color(i)) for i in (1, 2, 3)
    ]
    with pytest.raises(DataError, match=r"masks/a: .*; these hold 1, 255\."):
        find_labels(["a"], [[Counter([1]), Counter([255])]])


# ---------------------------------------------------------------- exports


@pytest.mark.parametrize(
    ("numbers", "spec", "values"),
    [
        ((1, 255), "", [1, 255]),
        ((1, 256), "", [0, 1]),
        ((-1, 3), "", [0, 1]),
        ((0, 254), "", [0, 254]),
        ((1, 7, 300), "7=a,300=a", [1, 7]),
    ],
)
def test_what_an_exports_masks_hold_is_written_back(
    numbers: tuple[int, ...], spec: str, values: list[int]
) -> None:
    named = [EsriClass(number, f"kind {number}", None) for number in numbers]
    found = exported_classes(named, [Counter(numbers)], spec)
    assert [info.value for info in found] == values and found.task == "binary"
    assert sorted(number for info in found for number in info.raw) == sorted(numbers)
