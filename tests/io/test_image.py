"""Images and masks as they are stored, and what is refused."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, features

from whatwhere.errors import DataError
from whatwhere.io import image as module
from whatwhere.io.image import encode_png, read_image, read_mask, resize_image, resize_nearest
from whatwhere.types import COLOR_FLAG

H, W = 5, 7
RGB = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RGB[..., 0]
BANDS: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
READERS = (read_image, read_mask)


def png(samples: NDArray[Any], extra: bytes = b"") -> bytes:
    """A PNG by the book (W3C), for what Pillow cannot write; `extra` goes before the pixels."""
    height, width = samples.shape[:2]
    depth = 8 * samples.dtype.itemsize
    color = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(path: Path, pixels: NDArray[Any], mode: str | None = None, **options: Any) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def turns() -> dict[int, Callable[[NDArray[Any]], NDArray[Any]]]:
    """What brings a picture stored with this EXIF orientation upright (Exif 2.32, 4.6.5 A)."""
    return {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# ---------------------------------------------------------------- pixels as stored


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp", "webp"])
def test_lossless_colours_are_exact(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    pixels, valid = read_image(saved(tmp_path / f"a.{ending}", RGB, **options))
    assert pixels.dtype == np.uint8 and valid.all() and valid.shape == (H, W)
    assert np.array_equal(pixels, RGB.transpose(2, 0, 1))


def test_a_jpeg_is_what_its_decoder_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB)
    assert np.array_equal(read_image(path)[0], np.asarray(Image.open(path)).transpose(2, 0, 1))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}])
def test_jpeg_variants_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    assert read_image(saved(tmp_path / "a.jpeg", RGB, **options))[0].shape == (3, H, W)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int32, np.float32], ids=lambda t: t.__name__
)
@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_one_band_keeps_its_numbers_and_type(
    tmp_path: Path, dtype: type, byteorder: str, compression: str | None
) -> None:
    low = 0 if np.issubdtype(dtype, np.unsignedinteger) else -100
    stored = np.linspace(low, 250, H * W).reshape(H, W).astype(dtype)
    if dtype is np.uint16:
        stored = stored * 250
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, byteorder=byteorder, compression=compression)
    pixels, valid = read_image(path)
    assert pixels.dtype == dtype and valid.all()
    assert np.array_equal(pixels, stored[None])


@pytest.mark.parametrize(
    ("stored", "read"), [("int8", "int32"), ("int16", "int32"), ("float64", "float32")]
)
def test_other_numbers_become_the_next_wider_type(tmp_path: Path, stored: str, read: str) -> None:
    numbers = np.array([[-7, 100], [0, 5]], dtype=stored)
    tifffile.imwrite(tmp_path / "a.tif", numbers)
    pixels, _ = read_image(tmp_path / "a.tif")
    assert pixels.dtype == read and pixels.tolist() == [numbers.tolist()]


def test_sixteen_bit_grey_png_is_exact(tmp_path: Path) -> None:
    stored = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 1871
    pixels, _ = read_image(written(tmp_path / "a.png", png(stored)))
    assert pixels.dtype == np.uint16 and np.array_equal(pixels[0], stored)


def test_sixteen_bit_colours_of_a_png_are_exact(tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(0, 65536, (H, W, 3), dtype=np.uint16)
    pixels, valid = read_image(written(tmp_path / "a.png", png(stored)))
    assert pixels.dtype == np.uint16 and valid.all()
    assert np.array_equal(pixels, stored.transpose(2, 0, 1))


def test_sixteen_bit_alpha_of_a_png_counts_only_where_it_is_zero(tmp_path: Path) -> None:
    stored = np.random.default_rng(3).integers(1, 65536, (H, W, 4), dtype=np.uint16)
    stored[0, 0, 3], stored[1, 1, 3] = 0, 1
    pixels, valid = read_image(written(tmp_path / "a.png", png(stored)))
    assert np.array_equal(pixels, stored[..., :3].transpose(2, 0, 1))
    assert not valid[0, 0] and valid.sum() == H * W - 1


def test_sixteen_bit_grey_with_alpha_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png(np.ones((H, W, 2), dtype=np.uint16)))
    with pytest.raises(DataError, match=r"a\.png: 16-bit grey with alpha is not read\. Save it"):
        read_image(path)


@pytest.mark.parametrize("layers", [2, 4])
def test_alpha_is_validity_and_no_band(tmp_path: Path, layers: int) -> None:
    stored = np.random.default_rng(4).integers(1, 256, (H, W, layers), dtype=np.uint8)
    stored[2, 3, -1] = 0
    pixels, valid = read_image(saved(tmp_path / "a.png", stored))
    assert np.array_equal(pixels, stored[..., :-1].transpose(2, 0, 1))
    assert not valid[2, 3] and valid.sum() == H * W - 1


def test_a_palette_gives_an_image_colours_and_a_mask_indexes(tmp_path: Path) -> None:
    indexes = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 3
    colors = np.array([[10, 20, 30], [200, 0, 0], [0, 90, 255]], dtype=np.uint8)
    picture = Image.fromarray(indexes)
    picture.putpalette(colors.tobytes())
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[0], colors[indexes].transpose(2, 0, 1))
    assert np.array_equal(read_mask(tmp_path / "a.png")[0], indexes)


def test_a_transparent_palette_entry_is_not_valid_in_an_image(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8))
    picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.save(tmp_path / "a.png", transparency=0)
    pixels, valid = read_image(tmp_path / "a.png")
    assert len(pixels) == 3 and valid.tolist() == [[False, True, True]]


def test_one_bit_is_zero_and_one(tmp_path: Path) -> None:
    bits = GREY > 128
    for ending in ("png", "tif", "bmp"):
        path = saved(tmp_path / f"a.{ending}", bits)
        assert np.array_equal(read_mask(path)[0], bits.astype(int))
        assert read_image(path)[0].dtype == np.uint8


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_five_bands_are_exact(
    tmp_path: Path, dtype: str, planar: str, compression: str | None
) -> None:
    bands = (np.random.default_rng(5).random((5, H, W)) * 250).astype(dtype)
    stored = bands if planar == "separate" else bands.transpose(1, 2, 0)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="minisblack",
        planarconfig=planar,
        compression=compression,
    )
    pixels, valid = read_image(tmp_path / "a.tif")
    assert pixels.dtype == dtype and np.array_equal(pixels, bands) and valid.all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha"])
def test_a_fourth_band_is_a_band_unless_it_says_that_it_is_alpha(
    tmp_path: Path, dtype: str, kind: str
) -> None:
    stored = np.random.default_rng(6).integers(1, 256, (H, W, 4)).astype(dtype)
    stored[0, 0, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[kind])
    pixels, valid = read_image(tmp_path / "a.tif")
    count = 4 if kind == "unspecified" else 3
    assert np.array_equal(pixels, stored[..., :count].transpose(2, 0, 1))
    assert valid[0, 0] == (kind == "unspecified") and valid.sum() >= H * W - 1


def test_what_is_not_finite_is_not_valid(tmp_path: Path) -> None:
    stored = np.ones((2, H, W), dtype=np.float32)
    stored[0, 0, 0], stored[1, 1, 1], stored[1, 2, 2] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="separate")
    _, valid = read_image(tmp_path / "a.tif")
    assert [tuple(at) for at in np.argwhere(~valid)] == [(0, 0), (1, 1), (2, 2)]


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
def test_images_and_masks_are_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    stored = np.repeat(np.repeat(GREY[:3, :4], 8, axis=0), 8, axis=1)
    if ending == "jpg":  # one grey for each 8×8 block passes a JPEG of full quality
        options = {"quality": 100}
    path = saved(tmp_path / f"a.{ending}", stored, exif=exif(orientation), **options)
    wanted = turns()[orientation](stored).astype(int)
    for found in (read_image(path)[0][0], read_mask(path)[0]):
        assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiffs_are_turned_upright(
    tmp_path: Path, orientation: int, dtype: str, compression: str | None
) -> None:
    stored = RGB.astype(dtype)
    for pixels in (stored, stored[..., 0]):
        tifffile.imwrite(
            tmp_path / "a.tif",
            pixels,
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
            compression=compression,
            extratags=[(274, 3, 1, orientation, True)],
        )
        wanted = turns()[orientation](pixels)
        found = read_image(tmp_path / "a.tif")[0]
        assert np.array_equal(np.squeeze(found.transpose(1, 2, 0)), wanted)


def test_deep_pngs_are_turned_upright(tmp_path: Path) -> None:
    stored = RGB.astype(np.uint16) * 257
    extra = chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    pixels, _ = read_image(written(tmp_path / "a.png", png(stored, extra)))
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rot90(stored, -1))


# ---------------------------------------------------------------- what is refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.png: there is no such file\. Check the name") as told:
        read_image(tmp_path / "no.png")
    (problem,) = told.value.problems
    assert problem.severity == "error" and problem.file == str(tmp_path / "no.png")


@pytest.mark.parametrize("read", READERS)
def test_folders_and_pipes_are_never_opened(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"a\.png: this is not a plain file"):
        read(tmp_path / "a.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b.png")
        with pytest.raises(DataError, match=r"b\.png: this is not a plain file"):
            read(tmp_path / "b.png")


def test_a_name_that_no_disk_takes_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too long"):
        read_image(tmp_path / ("a" * 300 + ".png"))


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", RGB)
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        path.chmod(0)
    else:  # root may read everything

        def denied(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(DataError, match=r"a\.png: the file may not be read\. Give yourself"):
        read_image(path)


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: the file is empty\. Copy it again"):
        read_image(written(tmp_path / "a.png", b""))


def test_text_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", b"<html>404 not found</html>")
    with pytest.raises(DataError, match=r"a\.png: this is no PNG, JPEG.*Convert it"):
        read_image(path)


def test_a_format_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is no PNG"):
        read_image(saved(tmp_path / "a.png", RGB, format="GIF"))


def test_a_jpeg_named_png_is_read(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path / "a.png", RGB, format="JPEG"))[0].shape == (3, H, W)


def files() -> dict[str, bytes]:
    big = np.random.default_rng(7).integers(0, 256, (40, 30, 3), dtype=np.uint8)

    def encoded(form: str, pixels: NDArray[Any] = big, **options: Any) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form, **options)
        return stream.getvalue()

    def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, **options)
        return stream.getvalue()

    deep = big.astype(np.uint16) * 255
    return {
        "png": encoded("PNG"),
        "deep.png": png(deep),
        "jpg": encoded("JPEG"),
        "bmp": encoded("BMP"),
        "webp": encoded("WEBP"),
        "tif": encoded("TIFF"),
        "deflate.tif": encoded("TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
        "deep.tif": tiff(deep, photometric="rgb"),
        "deep-deflate.tif": tiff(deep, photometric="rgb", compression="zlib"),
        "float.tif": tiff(big[..., 0].astype(np.float32)),
        "bands.tif": tiff(deep.repeat(2, 2), **BANDS, tile=(16, 16)),
    }


@pytest.mark.parametrize("name", files())
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, name: str) -> None:
    whole = files()[name]
    read_image(written(tmp_path / name, whole))
    for part in (0.3, 0.6, 0.9):
        path = written(tmp_path / name, whole[: int(part * len(whole))])
        for read in READERS:
            with pytest.raises(DataError, match=rf"{name}: .* Copy it again|{name}: this is no"):
                read(path)


@pytest.mark.parametrize("name", files())
def test_altered_bytes_raise_nothing_but_data_errors(tmp_path: Path, name: str) -> None:
    whole, rng = files()[name], np.random.default_rng(8)
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(8, rng.choice([40, 300, len(data)]), 2):
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(4))
        path = written(tmp_path / "a.png", bytes(data))
        for read in READERS:
            with contextlib.suppress(DataError):
                read(path)


@pytest.mark.parametrize("name", ["png", "deep.png"])
def test_one_flipped_bit_in_a_png_is_found(tmp_path: Path, name: str) -> None:
    whole = files()[name]
    start = whole.index(b"IDAT")
    # The last one lies in the pixels' checksum, which decoding alone does not look at.
    for at in [*np.linspace(start, len(whole) - 20, 25).astype(int), len(whole) - 14]:
        data = bytearray(whole)
        data[at] ^= 1
        with pytest.raises(DataError, match=r"a\.png: (the image is damaged|this is no PNG)"):
            read_image(written(tmp_path / "a.png", bytes(data)))


def test_a_tiff_that_lacks_strips_is_refused(tmp_path: Path) -> None:
    for compression in (None, "zlib"):
        stream = io.BytesIO()
        tifffile.imwrite(stream, GREY, rowsperstrip=2, compression=compression)
        with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as tiff:
            where = tiff.pages.first.tags["ImageLength"].valueoffset
        data = bytearray(stream.getvalue())
        data[where : where + 2] = struct.pack("<H", 4000)
        with pytest.raises(DataError, match=r"truncated \(3 of 2000 strips or tiles\)"):
            read_image(written(tmp_path / "a.tif", bytes(data)))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_two_pages_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, H, W), dtype), photometric="minisblack")
    with pytest.raises(DataError, match=r"a\.tif: the file holds 2 pictures\. Save each one"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animations_are_refused(tmp_path: Path, ending: str) -> None:
    if ending == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"a\.{ending}: the file holds 2 pictures"):
        read_image(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_print_colours_are_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match=r"images of the mode CMYK are not read|CMYK, Lab"):
        read_image(saved(tmp_path / f"a.{ending}", RGB, "CMYK"))


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((H, W), dtype=np.complex64))
    with pytest.raises(
        DataError, match=r"a\.tif: numbers of the type complex64 are not read\. Sav"
    ):
        read_image(tmp_path / "a.tif")


BOMB = """
import resource, sys
from pathlib import Path
from whatwhere.io.image import read_image
from whatwhere.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(Path(sys.argv[1]))
except DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MB")
"""


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="Windows does not tell the memory used")
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2**20)))
    path = written(tmp_path / "a.png", data + chunk(b"IEND", b""))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True
    )
    message, grown, _ = done.stdout.rsplit(maxsplit=2)
    assert "a.png: the image claims to be larger than" in message
    assert "Cut it into smaller ones." in message
    assert int(grown) < 64


def test_what_does_not_fit_the_free_memory_is_refused_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, rich = saved(tmp_path / "a.png", np.zeros((500, 500, 3), np.uint8)), tmp_path / "b.tif"
    tifffile.imwrite(rich, np.zeros((500, 500, 5), np.float32), **BANDS)
    monkeypatch.setattr(module, "memory_mb", lambda: 8)
    for path in (small, rich):
        with pytest.raises(
            DataError, match=r"500×500 pixels with \d bands need \d+ MB, 8 MB are f"
        ):
            read_image(path)
    monkeypatch.setattr(module, "memory_mb", lambda: None)  # a system that does not tell
    assert read_image(small)[0].shape == (3, 500, 500)


def test_too_little_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(module, "_samples", full)
    with pytest.raises(DataError, match=r"a\.png: the memory is too small for it\. Cut it"):
        read_image(saved(tmp_path / "a.png", RGB))


def test_a_compression_that_needs_a_library_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may be there or not: its absence is played by what tifffile says then."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((H, W, 5), np.uint16), **BANDS)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages.first.tags["Compression"].valueoffset
    data[where : where + 2] = struct.pack("<H", 5)  # LZW
    path.write_bytes(data)

    def absent(*_: Any, **__: Any) -> Any:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", absent)
    with pytest.raises(
        DataError, match=r"a\.tif: its compression \(number 5\) needs the library im"
    ):
        read_image(path)


def test_one_band_of_lzw_needs_no_library(tmp_path: Path) -> None:
    for pixels in (GREY, GREY.astype(np.uint16) * 257):
        path = saved(tmp_path / "a.tif", pixels, compression="tiff_lzw")
        assert np.array_equal(read_image(path)[0][0], pixels)


# ---------------------------------------------------------------- masks


def masks() -> dict[str, tuple[NDArray[Any], str]]:
    bits = (GREY > 128).astype(np.uint8)
    return {
        "0 and 1": (bits, "png"),
        "0 and 255": (bits * 255, "png"),
        "0 and 65535": (bits.astype(np.uint16) * 65535, "png"),
        "0.0 and 1.0": (bits.astype(np.float32), "tif"),
        "numbers past 255": (bits.astype(np.uint16) * 300, "png"),
        "negative": (bits.astype(np.int32) * -5, "tif"),
    }


@pytest.mark.parametrize("name", masks())
def test_the_numbers_of_a_mask_are_kept(tmp_path: Path, name: str) -> None:
    stored, ending = masks()[name]
    numbers, valid = read_mask(saved(tmp_path / f"a.{ending}", stored))
    assert numbers.dtype == np.int64 and np.array_equal(numbers, stored) and valid.all()


@pytest.mark.parametrize("number", [0.5, 1e12])
def test_fractions_and_huge_numbers_are_no_classes(tmp_path: Path, number: float) -> None:
    path = saved(tmp_path / "a.tif", np.array([[0, number]], dtype=np.float32))
    with pytest.raises(DataError, match=r"a\.tif: the mask holds fractions.*whole number for each"):
        read_mask(path)


def test_not_a_number_in_a_mask_does_not_count(tmp_path: Path) -> None:
    numbers, valid = read_mask(saved(tmp_path / "a.tif", np.float32([[2, np.nan]])))
    assert numbers[0, 0] == 2 and valid.tolist() == [[True, False]]


def test_colours_become_their_number(tmp_path: Path) -> None:
    stored = np.array([[[255, 0, 0], [0, 0, 0], [1, 2, 3]]], dtype=np.uint8)
    numbers, _ = read_mask(saved(tmp_path / "a.png", stored))
    assert (numbers - COLOR_FLAG).tolist() == [[0xFF0000, 0x000000, 0x010203]]


def test_grey_stored_as_colours_is_grey(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.repeat(GREY[..., None], 3, axis=2))
    assert np.array_equal(read_mask(path)[0], GREY)


def test_alpha_of_a_mask_is_validity(tmp_path: Path) -> None:
    stored = np.array([[[7, 7, 7, 255], [9, 9, 9, 0]]], dtype=np.uint8)
    numbers, valid = read_mask(saved(tmp_path / "a.png", stored))
    assert numbers[0, 0] == 7 and valid.tolist() == [[True, False]]


def test_deep_colours_are_no_classes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png(RGB.astype(np.uint16) * 257))
    with pytest.raises(DataError, match=r"a\.png: colours of more than 8 bits cannot be classes"):
        read_mask(path)


def test_two_bands_are_no_mask(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((H, W, 2), np.uint8), **BANDS)
    with pytest.raises(
        DataError, match=r"one band of class numbers or three of colours, this one 2"
    ):
        read_mask(tmp_path / "a.tif")


# ---------------------------------------------------------------- writing and stretching


@pytest.mark.parametrize("pixels", [GREY, GREY.astype(np.uint16) * 257, RGB, RGB[:, ::-1]])
def test_what_is_encoded_is_read_back(tmp_path: Path, pixels: NDArray[Any]) -> None:
    found, _ = read_image(written(tmp_path / "a.png", encode_png(pixels)))
    assert found.dtype == pixels.dtype
    assert np.array_equal(np.squeeze(found.transpose(1, 2, 0)), pixels)


def test_an_encoded_palette_keeps_numbers_and_shows_colours(tmp_path: Path) -> None:
    colors = np.random.default_rng(9).integers(0, 256, (256, 3), dtype=np.uint8)
    path = written(tmp_path / "a.png", encode_png(GREY, colors.tobytes()))
    assert np.array_equal(read_mask(path)[0], GREY)
    assert np.array_equal(read_image(path)[0], colors[GREY].transpose(2, 0, 1))


def test_other_types_are_not_encoded() -> None:
    with pytest.raises(TypeError, match="a PNG holds uint8 or uint16, not float32"):
        encode_png(np.zeros((2, 2), np.float32))


def test_the_own_size_changes_nothing() -> None:
    image = RGB.transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(resize_image(image, H, W), image)
    assert np.array_equal(resize_nearest(GREY, H, W), GREY)


@pytest.mark.parametrize("size", [(3, 2), (11, 19), (5, 30)])
def test_a_constant_stays_constant(size: tuple[int, int]) -> None:
    assert np.allclose(resize_image(np.full((2, H, W), 3.25), *size), 3.25)
    assert (resize_nearest(np.full((2, H, W), 3), *size) == 3).all()


def test_doubling_repeats_labels_and_interpolates_images() -> None:
    doubled = resize_nearest(GREY, 2 * H, 2 * W)
    assert np.array_equal(doubled, GREY.repeat(2, axis=0).repeat(2, axis=1))
    ramp = np.arange(4, dtype=np.float32)[None, None].repeat(2, axis=1)
    # Half-pixel centres: new pixel i lies at (i + 0.5) / 2 - 0.5 of the old ones.
    wanted = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    assert np.allclose(resize_image(ramp, 2, 8)[0, 0], wanted)


def test_shrinking_labels_takes_the_middle() -> None:
    assert resize_nearest(np.arange(9).reshape(3, 3), 1, 1).tolist() == [[4]]


def test_shrinking_an_image_averages() -> None:
    checker = np.indices((1, 8, 8)).sum(axis=0).astype(np.float32) % 2
    assert np.abs(resize_image(checker, 2, 2) - 0.5).max() < 0.1


def test_stretching_keeps_the_size_asked_for() -> None:
    assert resize_image(np.zeros((3, H, W)), 4, 9).shape == (3, 4, 9)
    assert resize_nearest(np.zeros((2, H, W)), 4, 9).shape == (2, 4, 9)


@pytest.mark.parametrize("bits", [2, 4])
def test_class_numbers_of_few_bits_are_not_stretched(bits: int, tmp_path: Path) -> None:
    numbers = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits  # rows of whole bytes
    packed = b"".join(
        b"\0" + int("".join(f"{n:0{bits}b}" for n in row), 2).to_bytes(len(row) * bits // 8, "big")
        for row in numbers.tolist()
    )
    width = numbers.shape[1]

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, 2, bits, 0, 0, 0, 0)
    path = tmp_path / "grey.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(packed))
        + chunk(b"IEND", b"")
    )
    assert np.array_equal(read_mask(path)[0], numbers)


def test_numbers_that_would_look_like_colours_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", np.full((3, 3), 1 << 24, dtype=np.int32))
    with pytest.raises(DataError, match=r"m.tif: the mask holds 16777216. Save it with smaller"):
        read_mask(tmp_path / "m.tif")
