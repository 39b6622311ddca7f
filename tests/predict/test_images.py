"""Names of masks, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whatwhere.errors import DataError, UsageError
from whatwhere.predict.images import folder_of, plan_outputs, to_display


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("salt", "salt"),
        ("../../etc", "_.._etc"),
        ("a/b\\c", "a_b_c"),
        ("C:evil", "C_evil"),
        ("..", "_"),
        ("\x00", "_"),
    ],
)
def test_a_classes_folder_stays_inside(name: str, folder: str, tmp_path: Path) -> None:
    assert folder_of(name) == folder
    assert (tmp_path / folder_of(name)).resolve().parent == tmp_path.resolve()


def test_one_image_may_become_one_file(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    targets, file = plan_outputs([image], tmp_path / "out.png")
    assert file == tmp_path / "out.png"
    assert [target.image for target in targets] == [image]
    with pytest.raises(UsageError, match="masks are written as PNG"):
        plan_outputs([image], tmp_path / "out.jpg")


def test_several_images_need_a_folder(tmp_path: Path) -> None:
    images = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="this is a file; a folder is needed"):
        plan_outputs(images, tmp_path / "taken")


def test_an_image_named_twice_is_done_once(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a.png")
    targets, _ = plan_outputs([image, tmp_path / "in"], tmp_path / "out")
    assert [target.stem for target in targets] == ["a"]


def test_files_that_differ_in_the_ending_alone_cannot_both_be_named(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.bmp")
    with pytest.raises(UsageError, match="several images would get the name a"):
        plan_outputs([tmp_path / "in"], tmp_path / "out")


def test_all_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*x.png, .*y.png"):
        plan_outputs([tmp_path / "x.png", tmp_path / "y.png"], tmp_path / "out")


def test_what_is_looked_at_is_stretched_between_its_percentiles() -> None:
    ramp = np.linspace(1000, 3000, 10_000).reshape(1, 100, 100)
    shown = to_display(ramp)
    assert shown.shape == (100, 100, 3)
    assert shown.min() == 0
    assert shown.max() == 255
    assert np.isclose(shown[50, 0, 0], 127.5, atol=2)
    assert to_display(np.full((1, 4, 4), 7.0)).max() <= 255
