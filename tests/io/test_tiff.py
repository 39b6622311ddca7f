"""Pages of a TIFF that are no pictures: smaller copies and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from whatwhere.errors import DataError, Problem, plain
from whatwhere.io.image import check_state, read_image, read_mask, state_of
from whatwhere.io.kinds import kind_named, kind_of

H, W = 12, 20
RGB = np.random.default_rng(1).integers(1, 256, (H, W, 3), dtype=np.uint8)
HOLE = np.ones((H, W), dtype=np.bool_)
HOLE[:3, 5:] = False


def pages(path: Path, pixels: NDArray[Any], *more: tuple[NDArray[Any], int], **how: Any) -> Path:
    """Write a picture, and pages behind it that say what they are (NewSubfileType)."""
    with tifffile.TiffWriter(path) as writer:
        kind = "rgb" if pixels.ndim == 3 else "minisblack"
        writer.write(pixels, photometric=kind, metadata=None, **how)
        for page, number in more:
            writer.write(page, subfiletype=number, photometric="minisblack", metadata=None)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_mask_behind_a_picture_says_where_it_has_data(dtype: str, tmp_path: Path) -> None:
    stored = RGB.astype(dtype)
    path = pages(tmp_path / "a.tif", stored, (HOLE, 4), (HOLE[::2, ::2], 5))
    pixels, valid = read_image(path)
    assert pixels.dtype == dtype and np.array_equal(pixels, stored.transpose(2, 0, 1))
    assert np.array_equal(valid, HOLE)


def test_a_mask_behind_a_mask_and_beside_alpha(tmp_path: Path) -> None:
    numbers, counts = read_mask(pages(tmp_path / "a.tif", RGB[..., 0], (HOLE, 4)))
    assert np.array_equal(numbers, RGB[..., 0]) and np.array_equal(counts, HOLE)
    alpha = np.full((H, W, 1), 255, dtype=np.uint8)
    alpha[-1] = 0
    stored = np.concatenate([RGB, alpha], axis=2)
    path = pages(tmp_path / "b.tif", stored, (HOLE, 4), extrasamples=["unassalpha"])
    pixels, valid = read_image(path)
    assert np.array_equal(pixels, RGB.transpose(2, 0, 1))
    assert np.array_equal(valid, HOLE & (alpha[..., 0] > 0))


def test_a_turned_picture_has_a_turned_mask(tmp_path: Path) -> None:
    path = pages(
        tmp_path / "a.tif", RGB, (HOLE, 4), extratags=[(274, 3, 1, 6, True)], compression="zlib"
    )
    pixels, valid = read_image(path)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rot90(RGB, -1))
    assert np.array_equal(valid, np.rot90(HOLE, -1))


def test_smaller_copies_are_passed_over(tmp_path: Path) -> None:
    path = pages(tmp_path / "a.tif", RGB[..., 0], (RGB[::2, ::2, 0], 1), (RGB[::4, ::4, 0], 1))
    pixels, valid = read_image(path)
    assert np.array_equal(pixels[0], RGB[..., 0]) and valid.all()


@pytest.mark.parametrize(
    "more",
    [
        [(RGB[..., 0], 0)],
        [(RGB[..., 0], 2)],
        [(HOLE, 4), (HOLE, 4)],
        [(HOLE[:-1], 4)],
        [(RGB[::2, ::2, 0], 1)] * 64,
    ],
    ids=["a picture", "a page of many", "two masks", "a mask of another size", "too many"],
)
def test_other_pages_are_pictures(more: list[tuple[NDArray[Any], int]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif: the file holds \d+ pictures\. Save each one as"):
        read_image(pages(tmp_path / "a.tif", RGB[..., 0], *more))


def test_a_smaller_copy_before_the_picture_is_not_taken_for_it(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB[::2, ::2, 0], subfiletype=1, metadata=None)
        writer.write(RGB[..., 0], metadata=None)
    with pytest.raises(DataError, match="the file holds 2 pictures"):
        read_image(tmp_path / "a.tif")


# ---------------------------------------------------------------- what a file is, and its state


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "PNG"),
        (b"\xff\xd8\xff\xe0\0\0\0\0\0\0\0\0", "JPEG"),
        (b"II*\0........", "TIFF"),
        (b"MM\0+........", "TIFF"),
        (b"BM..........", "BMP"),
        (b"RIFF....WEBPVP8 ", "WebP"),
        (b"RIFF....WAVEfmt ", ""),
        (b"<html>......", ""),
    ],
)
def test_the_first_bytes_say_what_a_file_is(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


def test_an_ending_says_what_a_file_should_be() -> None:
    assert (kind_named(".JPG"), kind_named(".tiff"), kind_named(".gif")) == ("JPEG", "TIFF", "")


def test_a_file_that_was_written_meanwhile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert state_of(path) is None
    path.write_bytes(b"12")
    state = state_of(path)
    check_state(path, state)
    path.write_bytes(b"123")
    with pytest.raises(DataError, match=r"a\.png: the file has changed since work on it began\. B"):
        check_state(path, state)
    path.unlink()
    check_state(path, state)  # who reads it says that it is gone


def test_a_name_cannot_write_on_the_terminal() -> None:
    assert plain("a\nb\x1b[31m\u202ec") == r"a\nb\x1b[31m\u202ec"
    assert plain("Größe 🏠\n", kept="\n") == "Größe 🏠\n"
    assert str(Problem("error", "a\nb.png", "it is bad.", "Mend it.")) == (
        r"a\nb.png: it is bad. Mend it."
    )
