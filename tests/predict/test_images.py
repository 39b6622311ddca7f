"""Names of masks, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whatwhere.data.classes import find_classes, find_labels
from whatwhere.errors import DataError, UsageError
from whatwhere.predict.images import folder_of, plan_outputs, to_display

BINARY = find_classes([], "0=background,1=salt")
LABELS = find_labels(["one", "overlays"], [[], []])


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
    (target,) = plan_outputs([image], tmp_path / "out.png", BINARY, overlay=True)
    assert target.image == image
    assert target.masks == (tmp_path / "out.png",)
    assert target.overlay == tmp_path / "overlays" / "out.png"
    with pytest.raises(UsageError, match="masks are written as PNG"):
        plan_outputs([image], tmp_path / "out.jpg", BINARY)
    with pytest.raises(UsageError, match="each into a folder of its own"):
        plan_outputs([image], tmp_path / "out.png", LABELS)


def test_several_images_need_a_folder(tmp_path: Path) -> None:
    images = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="this is a file; a folder is needed"):
        plan_outputs(images, tmp_path / "taken", BINARY)


def test_an_image_named_twice_is_done_once(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a.png")
    (target,) = plan_outputs([image, tmp_path / "in"], tmp_path / "out", BINARY)
    assert target.files == (tmp_path / "out" / "a.png",)


def test_everything_of_several_labels_has_a_place_of_its_own(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    (target,) = plan_outputs([image], out, LABELS, probabilities=True, overlay=True)
    names = [path.relative_to(out).as_posix() for path in target.files]
    assert names == [
        *("one/a.png", "overlays_/a.png"),
        *("probabilities/one/a.png", "probabilities/overlays_/a.png"),
        "overlays/a.png",
    ]


def test_two_labels_whose_folders_are_alike_are_refused(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a.png")
    alike = find_labels(["a/b", "a_b"], [[], []])
    with pytest.raises(UsageError, match="two files would get this name"):
        plan_outputs([image], tmp_path / "out", alike)


def test_what_is_read_is_never_written(tmp_path: Path) -> None:
    image = picture(tmp_path / "overlays" / "a.png")
    with pytest.raises(UsageError, match="this would overwrite an image"):
        plan_outputs([image], tmp_path, BINARY, overlay=True)
    label = picture(tmp_path / "one" / "a.png")
    with pytest.raises(UsageError, match="this would overwrite an image"):
        plan_outputs([label], tmp_path, LABELS)


def test_files_that_differ_in_the_ending_alone_cannot_both_be_named(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.bmp")
    with pytest.raises(UsageError, match="several images would get the name a"):
        plan_outputs([tmp_path / "in"], tmp_path / "out", BINARY)


def test_all_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*x.png, .*y.png"):
        plan_outputs([tmp_path / "x.png", tmp_path / "y.png"], tmp_path / "out", BINARY)


def test_what_is_looked_at_is_stretched_between_its_percentiles() -> None:
    ramp = np.linspace(1000, 3000, 10_000).reshape(1, 100, 100)
    shown = to_display(ramp)
    assert shown.shape == (100, 100, 3)
    assert shown.min() == 0
    assert shown.max() == 255
    assert np.isclose(shown[50, 0, 0], 127.5, atol=2)
    assert to_display(np.full((1, 4, 4), 7.0)).max() <= 255
