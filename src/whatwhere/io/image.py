"""PNG, JPEG, TIFF, BMP and WebP: pixels in as they are stored, pictures out."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from whatwhere.errors import DataError, Problem
from whatwhere.io.kinds import kind_of
from whatwhere.io.names import require_name
from whatwhere.machine import memory_mb
from whatwhere.types import COLOR_FLAG, Valid

State: TypeAlias = tuple[int, int, int]
"""A file's number, its size [bytes] and when it was written."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
ORIENTATION = 0x0112
"""The EXIF tag."""

# What Pillow and tifffile have been seen to raise for files that are cut short or altered;
# imagecodecs' errors are RuntimeErrors.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, ArithmeticError),
    *(AttributeError, RuntimeError, struct.error, zlib.error),
)
_PLAIN = {"1": "u1", "L": "u1", "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}


def fault(path: Path, cause: str, remedy: str) -> DataError:
    """Return the error of one file, ready to be raised or listed."""
    problem = Problem("error", str(path), cause, remedy)
    return DataError(str(problem), [problem])


def read_image(path: Path, *, trust: bool = False) -> tuple[NDArray[Any], Valid]:
    """Read an image as it is stored, turned upright as its EXIF orientation says.

    Palettes are turned into colours. Alpha is no band: where it is 0, and where a float is not
    finite, the pixel is not valid.

    Args:
        path: The file.
        trust: Read an MRF too, which is made of other files.

    Returns:
        `(C, H, W)` of the file's own number type (uint8, uint16, int32 or float32), and `(H, W)`
        valid.

    Raises:
        DataError: The file is missing, damaged, of an unknown kind, too large for the memory, or
            holds several pictures.
    """
    samples, bands = _read(path, palette_to_colors=True, trust=trust)
    return _split_alpha(samples, bands)


def read_mask(path: Path, *, trust: bool = False) -> tuple[NDArray[np.int64], Valid]:
    """Read the numbers of a mask; palette masks give their indexes.

    Colours become one number, 0xRRGGBB + `COLOR_FLAG`; a mask whose red, green and blue are equal
    everywhere is a grey one.

    Args:
        path: The file.
        trust: Read an MRF too, which is made of other files.

    Returns:
        `(H, W)` integers, and `(H, W)` valid: False where a mask has alpha 0.

    Raises:
        DataError: As `read_image`; and a float that is no whole number, or a mask of two bands.
    """
    samples, bands = _read(path, palette_to_colors=False, trust=trust)
    pixels, valid = _split_alpha(samples, bands)
    if len(pixels) not in (1, 3):
        raise fault(
            path,
            f"a mask has one band of class numbers or three of colours, this one {len(pixels)}.",
            "Save it with one band.",
        )
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = np.where(valid, pixels, 0)
        if (pixels != np.round(pixels)).any() or np.abs(pixels).max() >= 2**31:
            raise fault(
                path,
                "the mask holds fractions or huge numbers, not class numbers.",
                "Save it with one whole number for each class.",
            )
    numbers = pixels.astype(np.int64)
    if len(numbers) == 1 and numbers.max() >= COLOR_FLAG:
        raise fault(path, f"the mask holds {numbers.max()}.", "Save it with smaller numbers.")
    if len(numbers) == 1:
        return numbers[0], valid
    if (numbers == numbers[:1]).all():
        return numbers[0], valid
    if numbers.max() > 255:
        raise fault(
            path, "colours of more than 8 bits cannot be classes.", "Save it with one band."
        )
    red, green, blue = numbers
    return COLOR_FLAG + (red << 16) + (green << 8) + blue, valid


def _read(path: Path, *, palette_to_colors: bool, trust: bool) -> tuple[NDArray[Any], str]:
    """Return `(H, W, samples)` and the samples' letters, such as `L`, `RGB` or `RGBA`."""
    with _told(path):
        head = read_head(path)
        if head.startswith(b"<MRF_META"):
            from whatwhere.io.mrf import read_mrf  # which leans on this module

            samples, bands = read_mrf(path, trust)
            return usual(path, samples), bands
        if kind_of(head) == "TIFF":
            from whatwhere.io import tiff  # which leans on this module

            rich, mask = tiff.look_at(path)
            read = tiff.read_rich(path) if rich else _read_with_pillow(path, palette_to_colors)
            return tiff.masked(*read, mask)
        if kind_of(head) == "PNG":
            with Image.open(path, formats=["PNG"]) as picture:
                picture.verify()  # each chunk's checksum
        return _read_with_pillow(path, palette_to_colors)


def _read_with_pillow(path: Path, palette_to_colors: bool) -> tuple[NDArray[Any], str]:
    with Image.open(path, formats=_FORMATS) as picture:
        if picture.format != "TIFF":  # of which some pages are no pictures
            check_single(path, getattr(picture, "n_frames", 1))
        check_size(path, picture.height, picture.width, len(picture.getbands()), 4)
        if picture.format == "PNG" and _is_deep_color(picture):
            samples, bands = _read_deep_png(path, picture), picture.mode
        else:
            step = 1 if palette_to_colors else _stretched(picture)
            picture.load()
            samples, bands = _samples(path, picture, palette_to_colors)
            samples = samples // step if step > 1 else samples
        return upright(samples, picture.getexif().get(ORIENTATION, 1)), bands


def read_head(path: Path, size: int = 16) -> bytes:
    """Return the first bytes of a file, which say what it is.

    Raises:
        DataError: There is no such file, it is no plain one, is empty, or may not be read.
    """
    require_name(path)
    if not path.is_file():
        what = "this is not a plain file." if path.exists() else "there is no such file."
        raise fault(path, what, "Check the name.")
    try:
        with open(path, "rb") as stream:
            head = stream.read(size)
    except PermissionError as error:
        raise fault(path, "the file may not be read.", "Give yourself the right to.") from error
    if not head:
        raise fault(path, "the file is empty.", "Copy it again, or take it out.")
    return head


def state_of(path: Path) -> State | None:
    """Return what changes when a file is written; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_state(path: Path, state: State | None) -> None:
    """Refuse a file that is not the one that was looked at; raises `DataError`.

    One that is not there any more is left to who reads it.
    """
    now = state_of(path)
    if now is not None and now != state:
        raise fault(path, "the file has changed since work on it began.", "Begin anew.")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what a library raises for a bad file into one sentence."""
    try:
        with warnings.catch_warnings():
            # Sizes are checked against the memory below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Pillow warns of truncated or odd TIFF and EXIF entries; the pixels decide.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            yield
    except DataError:
        raise
    except PermissionError as error:
        raise fault(path, "the file may not be read.", "Give yourself the right to.") from error
    except UnidentifiedImageError as error:
        kind = kind_of(read_head(path))
        if kind:
            cause = f"the image is damaged or has no size, though it begins as a {kind}."
            raise fault(path, cause, "Copy it again, or take it out.") from error
        cause = "this is no PNG, JPEG, TIFF, BMP or WebP image, whatever its name says."
        raise fault(path, cause, "Convert it, or take it out.") from error
    except Image.DecompressionBombError as error:
        raise fault(
            path,
            f"the image claims to be larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels.",
            "Cut it into smaller ones.",
        ) from error
    except MemoryError as error:
        raise fault(path, "the memory is too small for it.", "Cut it into smaller ones.") from error
    except _DAMAGED as error:
        raise fault(
            path,
            f"the image is damaged or truncated ({str(error) or type(error).__name__}).",
            "Copy it again, or take it out.",
        ) from error


def check_single(path: Path, frames: int) -> None:
    """Refuse a file with several pictures; raises `DataError`."""
    if frames > 1:
        raise fault(
            path, f"the file holds {frames} pictures.", "Save each one as a file of its own."
        )


def check_size(path: Path, height: int, width: int, samples: int, item: int) -> None:
    """Refuse, from the header alone, what would not fit into half of the free memory.

    Args:
        path: The file.
        height: Of the image [px].
        width: Of the image [px].
        samples: For each pixel.
        item: Of a sample [bytes].

    Raises:
        DataError: It would not fit.
    """
    need = height * width * samples * item * 3 // 2**20
    free = memory_mb() if need else None
    if free is not None and need > free // 2:
        raise fault(
            path,
            f"{height}×{width} pixels with {samples} bands need {need:,} MB, {free:,} MB are free.",
            "Cut it into smaller ones.",
        )


def _samples(path: Path, picture: Image.Image, palette_to_colors: bool) -> tuple[NDArray[Any], str]:
    mode = picture.mode
    if mode in ("P", "PA"):
        if not palette_to_colors:
            indexes = np.asarray(picture.convert("P") if mode == "PA" else picture)
            return indexes[..., None], "L"
        has_alpha = mode == "PA" or "transparency" in picture.info
        picture = picture.convert("RGBA" if has_alpha else "RGB")
        mode = picture.mode
    if mode in _PLAIN:
        native = np.dtype(_PLAIN[mode]).newbyteorder("=")
        return np.asarray(picture).astype(native)[..., None], "L"
    if mode in ("LA", "RGB", "RGBA"):
        return np.asarray(picture), mode
    raise fault(path, f"images of the mode {mode} are not read.", "Save it as RGB or grey.")


def _is_deep_color(picture: ImageFile.ImageFile) -> bool:
    """Whether a PNG has 16 bits a sample and several samples, which Pillow cuts to 8 bits."""
    return bool(picture.tile) and ";16B" in str(picture.tile[0][3]) and picture.mode != "I;16"


def _stretched(picture: ImageFile.ImageFile) -> int:
    """What Pillow multiplies the numbers of a grey PNG of 2 or 4 bits by; 1 for all others."""
    rawmode = str(picture.tile[0][3]) if picture.format == "PNG" and picture.tile else ""
    return {"L;2": 85, "L;4": 17}.get(rawmode, 1)


def _read_deep_png(path: Path, picture: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """Read 16-bit colours exactly: Pillow decodes the high bytes, then the low ones.

    Its unpackers take one byte of each sample: the first for big-endian data, which PNG is, and the
    second for little-endian data.
    """
    if str(picture.tile[0][3]) not in ("RGB;16B", "RGBA;16B"):
        raise fault(path, "16-bit grey with alpha is not read.", "Save it without alpha.")
    high = np.asarray(picture).astype(np.uint16)
    with Image.open(path, formats=["PNG"]) as again:
        codec, extents, offset, rawmode = again.tile[0][:4]
        again.tile = [type(again.tile[0])(codec, extents, offset, str(rawmode)[:-1] + "L")]
        low = np.asarray(again).astype(np.uint16)
    return high * np.uint16(256) + low


def usual(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return uint8, uint16, int32 or float32, whichever holds the numbers."""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    elif pixels.dtype in (np.int8, np.int16, np.uint32):
        pixels = pixels.astype(np.int32 if pixels.dtype != np.uint32 else np.float32)
    if pixels.dtype not in (np.uint8, np.uint16, np.int32, np.float32):
        raise fault(
            path, f"numbers of the type {pixels.dtype} are not read.", "Save it as 16-bit or float."
        )
    return pixels


def upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn `(H, W, samples)` as the EXIF orientation 1 … 8 says (Exif 2.3, 4.6.4 A)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _split_alpha(samples: NDArray[Any], bands: str) -> tuple[NDArray[Any], Valid]:
    """`(H, W, samples)` → `(C, H, W)` and `(H, W)` valid."""
    pixels = np.ascontiguousarray(np.moveaxis(samples, -1, 0))
    valid = np.ones(pixels.shape[1:], dtype=np.bool_)
    if bands.endswith("A"):
        valid &= pixels[-1] > 0
        pixels = pixels[:-1]
    if np.issubdtype(pixels.dtype, np.floating):
        valid &= np.isfinite(pixels).all(axis=0)
    return pixels, valid


def resize_image(image: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Stretch `(C, H, W)` bilinearly to another size; smoothed where it shrinks. float32."""
    if image.shape[1:] == (height, width):
        return image.astype(np.float32)
    bands = [Image.fromarray(np.ascontiguousarray(band, dtype=np.float32)) for band in image]
    size = (width, height)
    stretched = [np.asarray(b.resize(size, Image.Resampling.BILINEAR)) for b in bands]
    return np.stack(stretched)


def resize_nearest(labels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Stretch the last two axes to another size, each pixel taking its nearest one's value."""
    rows = ((np.arange(height) + 0.5) * labels.shape[-2] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * labels.shape[-1] / width).astype(np.int64)
    nearest: NDArray[Any] = labels.take(rows, axis=-2).take(columns, axis=-1)
    return nearest


def encode_png(pixels: NDArray[Any], palette: bytes | None = None) -> bytes:
    """Return a PNG file.

    Args:
        pixels: `(H, W)` uint8 or uint16, or `(H, W, 3)` uint8.
        palette: 256 RGB triples for `(H, W)` uint8: the file then stores the numbers as indexes.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        _refuse_type(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        picture.putpalette(palette)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _refuse_type(pixels: NDArray[Any]) -> NoReturn:
    raise TypeError(f"a PNG holds uint8 or uint16, not {pixels.dtype}.")
