"""TIFF files that Pillow would cut, drop, refuse or misread, and the pages that are no pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere.io.image import ORIENTATION, check_single, check_size, fault, upright, usual

_ALPHA = (1, 2)  # extra samples: associated and unassociated alpha
_MOST_PAGES = 64  # smaller copies and their masks are not more


def look_at(path: Path) -> tuple[bool, NDArray[Any] | None]:
    """Return whether tifffile is to read a TIFF, and the mask that a page of it is, if one is.

    Smaller copies of the picture, as GDAL puts behind it, are no pictures of their own.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        _check_whole(page)
        rich = _is_rich(page, tiff.byteorder)
        if len(tiff.pages) == 1:
            return rich, None
        if len(tiff.pages) > _MOST_PAGES or page.is_reduced:
            check_single(path, len(tiff.pages))
        pages: list[Any] = tiff.pages[1:]
        whole = [one for one in pages if not one.is_reduced]
        masks = [one for one in whole if one.is_mask and _size(one) == _size(page)]
        check_single(path, 1 + len(whole) - min(len(masks), 1))
        if not masks:
            return rich, None
        check_size(path, page.imagelength, page.imagewidth, 1, 1)
        _check_whole(masks[0])
        tag = page.tags.get(ORIENTATION)
        mask = upright(masks[0].asarray()[..., None], tag.value if tag else 1)
        return rich, mask[..., 0]


def _size(page: Any) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _is_rich(page: Any, byteorder: str) -> bool:
    """Whether a TIFF's page has what Pillow would cut, drop, refuse or misread.

    That is samples that are not 8-bit, signed bytes, bands beside red, green and blue that are no
    alpha, such as infrared, and compressed big-endian numbers, whose bytes it leaves swapped.
    One band of more than 8 bits is left to it where tifffile alone could not decompress it.
    """
    tag = page.tags.get(ORIENTATION)
    if tag and tag.value in (5, 6, 7, 8) and page.compression == 1:
        return True  # Pillow 13 swaps the sides before it decodes
    if page.samplesperpixel == 1:
        if str(page.dtype) in ("bool", "uint8"):
            return False
        pillow_can = ("uint16",) if byteorder == ">" else ("uint16", "int32", "float32")
        alone = page.compression in (1, 8, 32946) and page.predictor != 3  # none, deflate
        return alone or str(page.dtype) not in pillow_can
    if page.photometric not in (2, 6) or (page.bitspersample, str(page.dtype)) != (8, "uint8"):
        return True
    return len(page.extrasamples) != page.samplesperpixel - 3 or any(
        kind not in _ALPHA for kind in page.extrasamples
    )


def read_rich(path: Path) -> tuple[NDArray[Any], str]:
    """Return what `look_at` leaves to tifffile: `(H, W, samples)` and the samples' letters."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        samples, item = page.samplesperpixel, page.dtype.itemsize if page.dtype else 8
        check_size(path, page.imagelength, page.imagewidth, samples, max(item, 4))
        odd = (5, 8, 9, 10) if page.bitspersample > 8 else (0, 3, 5, 8, 9, 10)
        if page.photometric in odd or page.imagedepth > 1:
            raise fault(
                path,
                "CMYK, Lab, volumes, and turned TIFFs with a palette or inverted are not read.",
                "Save it as a PNG.",
            )
        try:
            pixels = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise fault(
                path,
                f"its compression (number {int(page.compression)}) needs the library imagecodecs.",
                "Install whatwhere[tiff], or save the file with deflate or none.",
            ) from error
        alpha = samples > 1 and bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA
        tag = page.tags.get(ORIENTATION)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif page.axes.startswith("S"):
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = upright(usual(path, pixels), tag.value if tag else 1)
    return pixels, "?" * (samples - alpha) + "A" * alpha


def _check_whole(page: Any) -> None:
    """Refuse a TIFF's page that lacks pieces: in their place both libraries would leave zeros."""
    pieces, there = math.prod(page.chunked), min(len(page.dataoffsets), len(page.databytecounts))
    if page.compression == 6:  # the old JPEG keeps its pieces elsewhere
        return
    if there < pieces:
        raise ValueError(f"{there} of {pieces} strips or tiles")
    plain = page.compression == 1 and page.photometric != 6 and page.dtype is not None
    if plain and page.bitspersample % 8 == 0 and all(page.databytecounts):
        expected = page.imagelength * page.imagewidth * page.samplesperpixel * page.dtype.itemsize
        if sum(page.databytecounts) < expected:
            raise ValueError(f"{sum(page.databytecounts):,} of {expected:,} bytes")


def masked(
    samples: NDArray[Any], bands: str, mask: NDArray[Any] | None
) -> tuple[NDArray[Any], str]:
    """Put a mask in the place of alpha, or where both let a pixel count."""
    if mask is None:
        return samples, bands
    plane = (mask > 0)[..., None]
    if bands.endswith("A"):
        return np.concatenate([samples[..., :-1], samples[..., -1:] * plane], axis=-1), bands
    return np.concatenate([samples, plane.astype(samples.dtype)], axis=-1), f"{bands}A"
