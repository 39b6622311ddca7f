"""What is wrong with a data set: every kind of problem, all of them in one report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from made import blocks_folder, salt_folder
from whatwhere.data.bands import bands_of
from whatwhere.data.classes import find_classes
from whatwhere.data.doctor import (
    Survey,
    check_classes,
    class_pixels,
    classes_of,
    summary,
    survey,
)
from whatwhere.data.sources import open_source
from whatwhere.errors import DataError
from whatwhere.talk import QUIET

GREY = np.random.default_rng(1).integers(1, 255, (6, 8), dtype=np.uint8)
MASK = (GREY > 128).astype(np.uint8) * 255


def put(root: Path, name: str, pixels: NDArray[Any]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pair(root: Path, name: str, image: NDArray[Any], mask: NDArray[Any] = MASK) -> None:
    put(root, f"images/{name}.png", image)
    put(root, f"masks/{name}.png", mask)


def look(root: Path) -> Survey:
    return survey(open_source(root), QUIET)


def told(found: Survey, severity: str) -> list[str]:
    return [str(problem) for problem in found.problems if problem.severity == severity]


def test_made_up_sets_are_sound(tmp_path: Path) -> None:
    for root in (
        salt_folder(tmp_path / "salt", 6),
        blocks_folder(tmp_path / "blocks", [(16, 24), (40, 16)]),
    ):
        found = look(root)
        found.require_sound()
        assert len(found.pairs) == len(found.source.pairs) and told(found, "warning") == []
        assert check_classes(found, classes_of(found, "")) == []


def test_all_that_is_wrong_is_in_one_report(tmp_path: Path) -> None:
    for name in "abcdefg":
        pair(tmp_path, name, GREY)
    (tmp_path / "images/a.png").write_bytes(b"")
    (tmp_path / "masks/b.png").write_bytes(b"text")
    put(tmp_path, "masks/c.png", MASK[:, :5])
    put(tmp_path, "masks/d.png", MASK.T)
    (tmp_path / "masks/e.png").unlink()
    (tmp_path / "images/f.png").unlink()
    found = look(tmp_path)
    assert [one.key for one in found.pairs] == ["g"]
    with pytest.raises(DataError, match="6 errors in the data:") as error:
        found.require_sound()
    message = str(error.value)
    for part in (
        "a.png: the file is empty. Copy it again",
        "b.png: this is no PNG",
        "c.png: the mask has 6×5 px, its image c.png 6×8. Make both of one size.",
        "d.png: the mask has 8×6 px, its image d.png 6×8. It looks turned by 90 degrees: turn it",
        "e.png: there is no mask for it",
        "f.png: there is no image for it",
    ):
        assert part in message
    assert len(error.value.problems) == 6


def test_a_report_of_many_errors_is_cut_but_loses_none(tmp_path: Path) -> None:
    for number in range(25):
        put(tmp_path, f"images/{number:02d}.png", GREY)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="… and 5 more: `whatwhere inspect` lists them") as error:
        look(tmp_path).require_sound()
    assert len(error.value.problems) == 25


def test_identical_images_are_noted(tmp_path: Path) -> None:
    for name, image in (("a", GREY), ("b", GREY), ("c", 255 - GREY)):
        pair(tmp_path, name, image)
    found = look(tmp_path)
    assert any(
        "2 images are identical to another one, such as a.png and b" in t
        for t in told(found, "note")
    )
    assert found.digests["a"] == found.digests["b"] != found.digests["c"]


def test_one_image_on_two_sides_is_warned_of(tmp_path: Path) -> None:
    pair(tmp_path / "train", "a", GREY)
    pair(tmp_path / "test", "b", GREY)
    pair(tmp_path / "test", "c", 255 - GREY)
    (warning,) = told(look(tmp_path), "warning")
    assert "the same image is in test and train" in warning and "b.png" in warning
    assert "Keep one of them, or the scores will be too good." in warning


def test_the_digest_is_of_the_pixels_and_not_of_the_file(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY)
    put(tmp_path, "images/b.bmp", GREY)
    put(tmp_path, "masks/b.png", MASK)
    pair(tmp_path, "c", GREY.reshape(8, 6), MASK.reshape(8, 6))
    digests = look(tmp_path).digests
    assert digests["a"] == digests["b"] != digests["c"]


def test_different_number_types_are_warned_of(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY)
    pair(tmp_path, "b", GREY.astype(np.uint16) * 200)
    (warning,) = told(look(tmp_path), "warning")
    assert "different number types (uint8: 1, uint16: 1). They share one normalisation" in warning


def test_images_without_data_and_empty_masks_are_told(tmp_path: Path) -> None:
    pair(tmp_path, "a", np.zeros((6, 8, 4), np.uint8))
    pair(tmp_path, "b", np.full((6, 8, 4), 9, np.uint8), MASK * 0)
    pair(tmp_path, "c", np.full((6, 8, 4), 10, np.uint8))
    found = look(tmp_path)
    assert "a.png: no pixel of it has data. Take it out." in told(found, "warning")[0]
    assert any("2 of 3 masks hold nothing but 0" in note for note in told(found, "note"))


def test_only_pixels_with_data_are_counted(tmp_path: Path) -> None:
    image = np.full((6, 8, 4), 200, np.uint8)
    image[:2, :, 3] = 0
    mask = np.zeros((6, 8), np.uint8)
    mask[0], mask[3] = 77, 1  # 77 lies where the image has no data
    pair(tmp_path, "a", image, mask)
    assert look(tmp_path).facts["a"].numbers == ({0: 24, 1: 8},)


def test_grey_stored_as_colours_is_read_as_grey(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY[..., None].repeat(3, 2))
    pair(tmp_path, "b", GREY[::-1, :, None].repeat(3, 2))
    found = look(tmp_path)
    assert any("all images are grey, stored as three equal bands" in n for n in told(found, "note"))
    assert bands_of(found, "auto").names == ("grey",)


COLOUR = np.random.default_rng(2).integers(0, 255, (6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "mode", "names", "numbers"),
    [
        ([GREY], "auto", ("grey",), ()),
        ([COLOUR], "auto", ("red", "green", "blue"), ()),
        ([GREY, COLOUR], "grey", ("grey",), ()),
        ([GREY, COLOUR], "rgb", ("red", "green", "blue"), ()),
        ([COLOUR], "3,1", ("band 3", "band 1"), (3, 1)),
        ([GREY, COLOUR], "1", ("band 1",), (1,)),
    ],
)
def test_bands_are_found_or_taken_as_asked(
    tmp_path: Path,
    images: list[NDArray[Any]],
    mode: str,
    names: tuple[str, ...],
    numbers: tuple[int, ...],
) -> None:
    for number, image in enumerate(images):
        pair(tmp_path, str(number), image)
    found = bands_of(look(tmp_path), mode)
    assert found.names == names and found.numbers == numbers
    assert found.convert == (mode in ("grey", "rgb"))


@pytest.mark.parametrize("mode", ["auto", "2", "1,4"])
def test_bands_that_not_all_have_are_refused_with_a_table(tmp_path: Path, mode: str) -> None:
    pair(tmp_path, "grey", GREY)
    pair(tmp_path, "one", COLOUR)
    pair(tmp_path, "two", COLOUR[::-1])
    message = r"1 band: 1 files such as grey\.png; 3 bands: 2 files such as one\.png.*--bands grey"
    with pytest.raises(DataError, match=message):
        bands_of(look(tmp_path), mode)


def test_unknown_numbers_are_listed_by_file_with_their_counts(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY, np.uint8([[0, 1, 2, 2, 9, 0, 0, 0]] * 6))
    pair(tmp_path, "b", GREY, np.uint8([[0, 1, 2, 2, 2, 0, 0, 0]] * 6))
    red = np.zeros((6, 8, 3), np.uint8)
    red[0, 0] = 255, 0, 0
    pair(tmp_path, "c", GREY, red)
    found = look(tmp_path)
    table = classes_of(found, "0=ground,1=tree,2=ignore")
    problems = [str(problem) for problem in check_classes(found, table)]
    assert len(problems) == 2
    assert "a.png: the class table does not know 9 (6 px). Correct the mask, or" in problems[0]
    assert "c.png: the class table does not know #000000 (47 px), #ff0000 (1 px)." in problems[1]


def test_masks_of_labels_may_hold_zero(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", GREY)
    put(tmp_path, "masks/cell/a.png", MASK)
    put(tmp_path, "masks/core/a.png", MASK[::-1] // 255)
    found = look(tmp_path)
    table = classes_of(found, "")
    assert table.names == ["cell", "core"] and check_classes(found, table) == []
    count = int((MASK > 0).sum())
    assert class_pixels(found, found.pairs, table) == [count, count]
    assert summary(found, table)["classes"][0]["share"] == count / MASK.size


def test_jpeg_masks_are_named_as_the_cause(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64), dtype=np.uint8)
    put(tmp_path, "images/a.png", noise)
    put(tmp_path, "masks/a.jpg", noise)
    with pytest.raises(DataError, match=r"Masks saved as JPEG \(a\.jpg\) blur numbers"):
        classes_of(look(tmp_path), "")


def test_the_summary_is_json_and_counts_what_is_there(tmp_path: Path) -> None:
    pair(tmp_path / "train", "a", GREY)
    pair(tmp_path / "val", "b", COLOUR)
    (tmp_path / "val/masks/c.png").write_bytes(b"")
    found = look(tmp_path)
    told = json.loads(json.dumps(summary(found, classes_of(found, "rock,salt")), allow_nan=False))
    assert told["splits"] == {"train": 1, "val": 1} and told["pairs"] == told["readable"] == 2
    assert told["sizes"] == [{"height": 6, "width": 8, "images": 2}]
    assert told["bands"] == {"1": 1, "3": 1} and told["types"] == {"uint8": 2}
    salt = told["classes"][1]
    assert salt["name"] == "salt" and salt["pixels"] == 2 * int((MASK > 0).sum())
    assert salt["share"] == pytest.approx((MASK > 0).mean())
    assert [problem["severity"] for problem in told["problems"]] == ["error"]
    assert summary(found, None)["classes"] == []


@pytest.mark.parametrize(
    ("name", "spec", "classes"),
    [
        pytest.param("tgs_salt", "", ["background", "foreground"], marks=pytest.mark.slow),
        ("isbi2012", "", ["background", "foreground"]),
        (
            "s2_india",
            "0=ignore,1=built-up,2=vegetation,3=water",
            ["built-up", "vegetation", "water"],
        ),
    ],
)
def test_real_sets_are_sound(
    real_data: Callable[[str], Path], name: str, spec: str, classes: list[str]
) -> None:
    found = look(real_data(name))
    found.require_sound()
    table = classes_of(found, spec)
    assert table.names == classes and check_classes(found, table) == []
    if name == "tgs_salt":  # 61 images are identical to another one; all are grey in three bands
        assert bands_of(found, "auto").names == ("grey",)
        assert any("identical to another one" in note for note in told(found, "note"))


def test_many_masks_with_one_unknown_number_share_an_error(tmp_path: Path) -> None:
    for i in range(15):
        pair(tmp_path, f"p{i:02d}", np.full((6, 8), i, dtype=np.uint8), MASK // 255 * 7)
    found = look(tmp_path)
    table = classes_of(found, "0=background,1=salt")
    (problem,) = check_classes(found, table)
    assert "7 (" in problem.cause and "14 other masks like it" in problem.cause


def test_one_and_white_in_one_set_are_asked_about(tmp_path: Path) -> None:
    pair(tmp_path, "a", np.zeros((6, 8), dtype=np.uint8), MASK // 255)
    pair(tmp_path, "b", np.ones((6, 8), dtype=np.uint8), MASK)
    found = look(tmp_path)
    table = find_classes([Counter({0: 1, 1: 1})])
    (problem,) = check_classes(found, table)
    assert "the masks hold 1 and 255: do both mean foreground?" in problem.cause


def test_colours_hidden_under_alpha_do_not_make_an_image_coloured(tmp_path: Path) -> None:
    picture = np.full((6, 8, 4), 80, dtype=np.uint8)
    picture[..., 3] = 255
    picture[0, 0] = (255, 0, 9, 0)
    pair(tmp_path, "a", picture, MASK)
    found = look(tmp_path)
    assert found.facts["a"].bands == 3
    assert bands_of(found, "auto").names == ("grey",)
