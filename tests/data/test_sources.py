"""Folders of images and masks into pairs, and all that does not fit."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from whatwhere.data.sources import images_of, list_images, open_source
from whatwhere.errors import DataError


def make(root: Path, *names: str) -> Path:
    """Empty files: pairing opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs(root: Path) -> dict[str, list[str]]:
    return {
        pair.key: [path.relative_to(root).as_posix() for path in (pair.image, *pair.masks)]
        for pair in open_source(root).pairs
    }


def causes(root: Path, severity: str = "error") -> list[str]:
    found = [p for p in open_source(root).problems if p.severity == severity]
    return [f"{Path(p.file).name}: {p.cause} {p.remedy}" for p in found]


@pytest.mark.parametrize("masks", ["masks", "labels", "Masks", "LABELS"])
def test_images_find_their_masks_whatever_the_endings(tmp_path: Path, masks: str) -> None:
    root = make(tmp_path, "images/b.jpg", "images/a.png", f"{masks}/a.tif", f"{masks}/b.PNG")
    assert pairs(root) == {
        "a": ["images/a.png", f"{masks}/a.tif"],
        "b": ["images/b.jpg", f"{masks}/b.PNG"],
    }
    assert open_source(root).problems == () and open_source(root).pairs[0].split is None


def test_split_folders_are_kept(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *(
            "test/images/a.png",
            "test/masks/a.png",
            "Training/images/a.png",
            "Training/labels/a.png",
        ),
        *("valid/images/a.png", "valid/masks/a.png"),
    )
    found = open_source(root).pairs
    assert [(pair.split, pair.key) for pair in found] == [
        ("train", "train/a"),
        ("val", "val/a"),
        ("test", "test/a"),
    ]


def test_subfolders_are_part_of_the_name(tmp_path: Path) -> None:
    root = make(
        tmp_path, *(f"{kind}/{place}/a.png" for kind in ("images", "masks") for place in "xy")
    )
    assert pairs(root) == {p + "/a": [f"images/{p}/a.png", f"masks/{p}/a.png"] for p in "xy"}
    assert open_source(root).labels == ()


def test_folders_below_masks_are_labels(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/core/a.png", "masks/cell/a.png", "masks/.x/a.png")
    assert open_source(root).labels == ("cell", "core")
    assert pairs(root) == {"a": ["images/a.png", "masks/cell/a.png", "masks/core/a.png"]}


def test_a_label_that_lacks_a_mask_is_an_error(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "images/b.png", "masks/cell/a.png", "masks/cell/b.png")
    make(root, "masks/core/a.png")
    assert list(pairs(root)) == ["a"]
    (cause,) = causes(root)
    assert cause.startswith("b.png: there is no mask for it in ") and "core" in cause


def test_splits_must_have_the_same_labels(tmp_path: Path) -> None:
    root = make(tmp_path, "train/images/a.png", "train/masks/x/a.png")
    make(root, "val/images/a.png", "val/masks/y/a.png")
    with pytest.raises(DataError, match="do not have the same labels below masks/"):
        open_source(root)


@pytest.mark.parametrize("ending", ["_mask", "_label", "-mask", "-label", "_masks", "_labels"])
def test_a_mask_may_say_that_it_is_one(tmp_path: Path, ending: str) -> None:
    root = make(tmp_path, "images/a.png", f"masks/a{ending}.png")
    assert pairs(root) == {"a": ["images/a.png", f"masks/a{ending}.png"]}


def test_the_exact_name_goes_before_the_suffix(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a_mask.png", "masks/a.png")
    assert pairs(root)["a"][1] == "masks/a.png"
    assert "a_mask.png: there is no image for it" in causes(root)[0]


def test_names_may_differ_by_case_where_that_is_clear(tmp_path: Path) -> None:
    root = make(tmp_path, "images/A.png", "masks/a.png")
    assert pairs(root) == {"A": ["images/A.png", "masks/a.png"]}


@pytest.mark.skipif(os.path.normcase("A") == "a", reason="this system's names have no case")
def test_a_mask_is_not_taken_from_the_image_of_its_very_name(tmp_path: Path) -> None:
    root = make(tmp_path, "images/A.png", "images/a.png", "masks/a.png")
    assert pairs(root) == {"a": ["images/a.png", "masks/a.png"]}
    assert causes(root)[0].startswith("A.png: there is no mask")
    make(root, "images/b.png", "masks/B.png", "masks/b.PNG").joinpath("masks/b.PNG").unlink()
    assert pairs(root)["b"][1] == "masks/B.png"


def test_names_may_differ_by_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "größe é") for form in ("NFC", "NFD"))
    root = make(tmp_path, f"images/{decomposed}.png", f"masks/{composed}.png")
    assert list(pairs(root)) == [composed] and causes(root) == []


def test_odd_names_are_names(tmp_path: Path) -> None:
    names = ["with space", "quote'\"", "-dash", "line\nbreak", "🧂", "a.b.c"]
    root = make(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in names))
    assert sorted(pairs(root)) == sorted(names)


def test_everything_without_a_partner_is_listed(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    make(root, "masks/a.png", "masks/d.png", "masks/e.png")
    assert list(pairs(root)) == ["a"]
    told = causes(root)
    assert [one.split(" for it")[0] for one in told] == [
        "b.png: there is no mask",
        "c.png: there is no mask",
        "d.png: there is no image",
        "e.png: there is no image",
    ]
    assert told[0].endswith("Add the mask, or take the image out.")
    assert told[-1].endswith("Add the image, or take the mask out.")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "images/a.tif", "masks/a.png", "masks/a.bmp")
    assert causes(root) == [
        "a.tif: a.png has the same name but for the ending. Keep one of the two.",
        "a.png: a.bmp has the same name but for the ending. Keep one of the two.",
    ]


def test_hidden_files_and_what_file_managers_leave_are_not_seen(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a.png", "images/.b.png", "images/Thumbs.db")
    make(root, "images/__MACOSX/a.png", "images/.cache/c.png", "masks/desktop.ini")
    assert list(pairs(root)) == ["a"] and open_source(root).problems == ()


def test_other_files_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a.png", "images/a.txt", "images/b.txt", "masks/x")
    assert causes(root, "error") == []
    notes = causes(root, "note")
    assert notes[0].startswith("images: 2 files with .txt were passed over. Read are .png")
    assert notes[1].startswith("masks: 1 file with no ending were passed over.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_and_dead_links_are_passed_over_with_a_warning(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a.png")
    os.mkfifo(root / "images" / "p.png")
    (root / "images" / "l.png").symlink_to(root / "images" / "l.png")
    assert list(pairs(root)) == ["a"]
    wanted = "this is no plain file, and was passed over. Take it out."
    assert causes(root, "warning") == [f"l.png: {wanted}", f"p.png: {wanted}"]


def test_an_unreadable_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(top: Path, onerror: object) -> list[object]:
        onerror(PermissionError(13, "denied", str(top)))  # type: ignore[operator]
        return []

    monkeypatch.setattr(os, "walk", walk)
    _, (problem,) = list_images(tmp_path)
    assert str(problem) == f"{tmp_path}: the folder may not be read. Give yourself the right to."
    assert problem.severity == "error"


def test_both_mask_folders_are_warned_of(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a.png", "labels/a.png")
    assert pairs(root)["a"][1] == "masks/a.png"
    assert "there are labels/ and masks/; masks/ was taken." in causes(root, "warning")[0]


def test_a_missing_folder_a_file_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no: there is no such folder\. A folder with images/ and"):
        open_source(tmp_path / "no")
    make(tmp_path, "file.png")
    with pytest.raises(DataError, match=r"file\.png: this is a file\. A folder with images/"):
        open_source(tmp_path / "file.png")
    with pytest.raises(DataError, match=r"there is no images/ in it\. A folder with images/"):
        open_source(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="there is no masks/ or labels/ in it"):
        open_source(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"there is no image in it \(\.png, .*\)\. A folder with"):
        open_source(tmp_path)


def test_a_folder_of_other_files_alone_has_no_image_in_it(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.txt", "masks/a.txt")
    with pytest.raises(DataError, match="there is no image in it") as told:
        open_source(root)
    assert any(".txt were passed over" in problem.cause for problem in told.value.problems)


def test_images_are_found_for_prediction_without_masks(tmp_path: Path) -> None:
    make(tmp_path, "one/b.png", "one/a.jpg", "one/sub/c.png", "one/.d.png")
    assert [path.name for path in images_of(tmp_path / "one")] == ["a.jpg", "b.png", "c.png"]
    assert images_of(tmp_path / "one" / "a.jpg") == [tmp_path / "one" / "a.jpg"]
    make(tmp_path, "two/images/a.png", "two/masks/a.png", "three/test/images/x.png")
    assert [path.name for path in images_of(tmp_path / "two")] == ["a.png"]
    assert [path.name for path in images_of(tmp_path / "three")] == ["x.png"]


def test_test_images_without_masks_are_passed_over_with_a_note(tmp_path: Path) -> None:
    for place in ("train/images/a.png", "train/masks/a.png", "test/images/b.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    source = open_source(tmp_path)
    assert [pair.key for pair in source.pairs] == ["train/a"]
    assert [problem.severity for problem in source.problems] == ["note"]
    assert "its images have no masks" in source.problems[0].cause


def test_splits_below_images_are_splits(tmp_path: Path) -> None:
    root = make(
        tmp_path, *(f"{k}/{s}/a.png" for k in ("images", "masks") for s in ("train", "val"))
    )
    assert {pair.key: pair.split for pair in open_source(root).pairs} == {
        "train/a": "train",
        "val/a": "val",
    }


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = make(
        tmp_path, *(f"{s}/{k}/a.png" for k in ("images", "masks") for s in ("val", "valid"))
    )
    with pytest.raises(DataError, match="two folders hold the val split. Put them into one"):
        open_source(root)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_folders_are_told(tmp_path: Path) -> None:
    root = make(tmp_path / "data", "images/a.png", "masks/a.png")
    (tmp_path / "far").mkdir()
    (root / "images" / "link").symlink_to(tmp_path / "far")
    (problem,) = open_source(root).problems
    assert problem.severity == "warning" and "link to a folder" in problem.cause


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_names_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    root = make(tmp_path, "images/a.png", "masks/a.png")
    with open(os.fsencode(root) + b"/images/\xff.png", "wb") as stream:
        stream.write(b"x")
    (problem,) = [p for p in open_source(root).problems if p.severity == "error"]
    assert "not UTF-8" in problem.cause
    assert problem.file.isascii()
