"""The catalogue of faults, A1 to A23: images."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from cases import At, Case, Catalogue, Words, check
from made import write_pair
from made_files import chunk, noise, png

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_images(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


def clean(at: At, count: int = 4, bands: int = 1, size: tuple[int, int] = (24, 24)) -> Path:
    """Write pairs that nothing is wrong with: `images/p0.png` and so on."""
    for i in range(count):
        shape = size if bands == 1 else (*size, bands)
        write_pair(at.data, f"p{i}", noise(*shape, seed=i), noise(*size, seed=9) >> 7)
    return at.data


def replaced(at: At, name: str, data: bytes | NDArray[Any], bands: int = 1, **how: Any) -> Path:
    """Put another image in the place of the first one."""
    path = clean(at, bands=bands) / "images" / name
    path.with_name("p0.png").unlink()
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, data, **how)
    else:
        Image.fromarray(data).save(path, **how)
    return at.data


def encoded(kind: str, pixels: NDArray[Any] | None = None, **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(24, 24) if pixels is None else pixels).save(stream, kind, **how)
    return stream.getvalue()


# ---------------------------------------------------------------- 1 to 7: damaged files

DAMAGED = r"p0\.\w+: the image is damaged or .*\. Copy it again, or take it out\."


@case("A01-truncated-jpeg", 3, DAMAGED)
def _(at: At) -> Path:
    return replaced(at, "p0.jpg", encoded("JPEG", quality=95)[:-200])


@case("A01-truncated-tiff", 3, DAMAGED)
def _(at: At) -> Path:
    return replaced(at, "p0.tif", encoded("TIFF")[:300])


@case("A02-truncated-png", 3, DAMAGED)
def _(at: At) -> Path:
    return replaced(at, "p0.png", encoded("PNG")[:-100])


@case("A03-empty-file", 3, r"p0\.png: the file is empty\. Copy it again")
def _(at: At) -> Path:
    return replaced(at, "p0.png", b"")


@case("A04-html-named-png", 3, r"p0\.png: this is no PNG, JPEG.* whatever its name says\. Convert")
def _(at: At) -> Path:
    return replaced(at, "p0.png", b"<!doctype html><title>404</title>")


@case(
    "A05-jpeg-named-png",
    0,
    r"! warning.*p0\.png: this is a JPEG, not what the ending says.*Rename it",
)
def _(at: At) -> Path:
    return replaced(at, "p0.png", encoded("JPEG"))


@case("A06-flipped-bit-in-png", 3, DAMAGED)
def _(at: At) -> Path:
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 4
    return replaced(at, "p0.png", bytes(data))


@case("A07-flipped-bit-in-jpeg-cannot-be-seen", 0, "0 errors")
def _(at: At) -> Path:
    data = bytearray(encoded("JPEG", quality=95))
    data[len(data) // 2] ^= 4
    return replaced(at, "p0.jpg", bytes(data))


# ---------------------------------------------------------------- 8 to 13: numbers and bands


@case("A08-sixteen-bits-are-kept", 0, r"uint16 \(4\)", "0 errors")
def _(at: At) -> Path:
    clean(at)
    for i in range(4):
        deep = noise(24, 24, seed=i).astype(np.uint16) * 257
        (at.data / "images" / f"p{i}.png").write_bytes(png(deep))
    return at.data


@case("A09-negative-floats", 0, r"float32 \(4\)", "0 errors, 0 warnings")
def _(at: At) -> Path:
    clean(at)
    for i in range(4):
        (at.data / "images" / f"p{i}.png").unlink()
        tifffile.imwrite(at.data / "images" / f"p{i}.tif", noise(24, 24, seed=i) / -9.5)
    return at.data


@case("A10-not-a-number-is-counted", 0, r"note.*1 of 4 images.*p0\.tif.*\(3 px.*do not count")
def _(at: At) -> Path:
    pixels = noise(24, 24).astype(np.float32)
    pixels[0, :2], pixels[1, 1] = np.nan, np.inf
    return replaced(at, "p0.tif", pixels)


@case("A11-int32-and-uint32", 0, r"int32 \(1\)", r"float32 \(1\)")
def _(at: At) -> Path:
    replaced(at, "p0.tif", noise(24, 24).astype(np.int32) - 70000)
    (at.data / "images" / "p1.png").unlink()
    tifffile.imwrite(at.data / "images" / "p1.tif", noise(24, 24).astype(np.uint32) * 1000)
    return at.data


@case("A11-one-bit", 0, "uint8", "0 errors")
def _(at: At) -> Path:
    return replaced(at, "p0.png", noise(24, 24) > 128)


@case("A11-complex", 3, r"p0\.tif: numbers of the type complex64 are not read\. Save it as")
def _(at: At) -> Path:
    return replaced(at, "p0.tif", noise(24, 24).astype(np.complex64))


@case("A11-int64", 3, r"p0\.tif: numbers of the type int64 are not read\. Save it as 16-bit")
def _(at: At) -> Path:
    return replaced(at, "p0.tif", noise(24, 24).astype(np.int64))


@case("A12-alpha-is-no-band", 0, r"bands +3 \(4 images\)", r"note.*1 of 4 images.*transparent")
def _(at: At) -> Path:
    pixels = noise(24, 24, 4)
    pixels[..., 3] = 255
    pixels[:3, :, 3] = 0
    return replaced(at, "p0.png", pixels, bands=3)


@case("A13-grey-among-colours", 3, r"1 band: 1 files such as p0\.png; 3 bands: 3 files", "--bands")
def _(at: At) -> Path:
    return replaced(at, "p0.png", noise(24, 24), bands=3)


@case("A13-colours-among-four-bands", 3, "3 bands: 3 files.*4 bands: 1 files such as p0.tif")
def _(at: At) -> Path:
    how = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    return replaced(at, "p0.tif", noise(24, 24, 4), bands=3, **how)


# ---------------------------------------------------------------- 14 to 19: kinds of files


@case("A14-print-colours", 3, r"p0\.jpg: images of the mode CMYK are not read\. Save it as RGB")
def _(at: At) -> Path:
    replaced(at, "p0.jpg", b"-", bands=3)
    picture = Image.fromarray(noise(24, 24, 3)).convert("CMYK")
    picture.save(at.data / "images" / "p0.jpg")
    return at.data


@case("A14-lab-colours", 3, r"p0\.tif: .*Lab.*\. Save it as a PNG")
def _(at: At) -> Path:
    return replaced(at, "p0.tif", noise(24, 24, 3), bands=3, photometric="cielab")


@case("A14-ycbcr-is-what-a-jpeg-is", 0, r"bands +3 \(4 images\)", "0 errors")
def _(at: At) -> Path:
    return replaced(at, "p0.jpg", noise(24, 24, 3), bands=3)


def turned(at: At, orientation: int, *, both: bool) -> Path:
    """A set of 24×40 px, of which an image, and perhaps its mask, is stored turned."""
    tag = Image.Exif()
    tag[0x0112] = orientation
    for folder in ("images", "masks"):
        for i in range(4):
            upright = noise(24, 40, seed=i) >> (0 if folder == "images" else 7)
            stored = upright
            if i == 0 and (both or folder == "images"):
                stored = STORED[orientation](upright)
            path = at.data / folder / f"p{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keep = {"exif": tag} if i == 0 and stored is not upright else {}
            Image.fromarray(np.ascontiguousarray(stored)).save(path, **keep)
    twin = noise(24, 40, seed=0)
    write_pair(at.data, "twin", twin, twin >> 7)
    return at.data


STORED: dict[int, Any] = {
    1: lambda a: a.copy(),
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, -1),
}
"""How a picture is stored that EXIF's orientation turns upright."""

for number in STORED:

    @case(
        f"A15-orientation-{number}-turns-both",
        0,
        "24×40 .5.",
        "identical.*p0.png and twin",
        "0 errors",
    )
    def _(at: At, number: int = number) -> Path:
        return turned(at, number, both=True)


@case(
    "A15-a-mask-that-was-not-turned",
    3,
    r"the mask has 40×24 px, its image p0\.png 24×40\. It looks turned by 90 degrees: turn it back",
)
def _(at: At) -> Path:
    turned(at, 6, both=False)
    path = at.data / "masks" / "p0.png"
    Image.fromarray(np.rot90(noise(24, 40, seed=0) >> 7).copy()).save(path)
    return at.data


@case("A16-animated-gif", 3, r"p0\.png: there is no image for it", r"1 file with \.gif were passed")
def _(at: At) -> Path:
    return replaced(
        at, "p0.gif", noise(24, 24), save_all=True, append_images=[Image.new("L", (24, 24))]
    )


@case("A16-animated-png", 3, r"p0\.png: the file holds 2 pictures\. Save each one")
def _(at: At) -> Path:
    return replaced(
        at, "p0.png", noise(24, 24), save_all=True, append_images=[Image.new("L", (24, 24))]
    )


@case("A16-tiff-of-two-pages", 3, r"p0\.tif: the file holds 2 pictures\. Save each one")
def _(at: At) -> Path:
    return replaced(at, "p0.tif", noise(2, 24, 24), photometric="minisblack")


@case("A16-overviews-are-no-pages", 0, "uint8 .4.", "0 errors")
def _(at: At) -> Path:
    clean(at, size=(64, 64))
    (at.data / "images" / "p0.png").unlink()
    scene(at.data / "images" / "p0.tif", noise(1, 64, 64), overviews=[2, 4])
    return at.data


@case("A16-a-mask-within-is-no-page", 0, r"1 of 4 images.*p0\.tif \(192 px.*do not count", "0 err")
def _(at: At) -> Path:
    clean(at, size=(64, 64))
    (at.data / "images" / "p0.png").unlink()
    mask = np.full((64, 64), 255, dtype=np.uint8)
    mask[:3] = 0
    scene(at.data / "images" / "p0.tif", noise(1, 64, 64), mask=mask, overviews=[2])
    return at.data


def scene(
    path: Path,
    pixels: NDArray[Any],
    mask: NDArray[np.uint8] | None = None,
    overviews: Sequence[int] = (),
    **profile: Any,
) -> None:
    """Write a picture without coordinates as GDAL does."""
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **profile
            ) as file,
        ):
            file.write(pixels)
            if mask is not None:
                file.write_mask(mask)
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews(overviews)


@case("A17-progressive-jpeg", 0, "0 errors")
def _(at: At) -> Path:
    return replaced(at, "p0.jpg", encoded("JPEG", progressive=True))


@case("A17-arithmetic-jpeg", 0, "0 errors")
def _(at: At) -> Path:
    replaced(at, "p0.jpg", b"-")
    scene(at.data / "images" / "p0.jpg", noise(1, 24, 24), driver="JPEG", ARITHMETIC="YES")
    assert b"\xff\xc9" in (at.data / "images" / "p0.jpg").read_bytes()
    return at.data


@case("A18-interlaced-png", 0, "2 images are identical.*p0.png and twin.png", "0 errors")
def _(at: At) -> Path:
    return twins(at, png(noise(24, 24), interlaced=True))


@case("A19-profiles-and-gamma-change-nothing", 0, "2 images are identical.*p0.png and twin.png")
def _(at: At) -> Path:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extra = chunk(b"gAMA", (100000).to_bytes(4, "big"))
    extra += chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(profile))
    return twins(at, png(noise(24, 24), extra))


def twins(at: At, data: bytes) -> Path:
    """A set with a file that is to be read as the plain one beside it."""
    replaced(at, "p0.png", data)
    write_pair(at.data, "twin", noise(24, 24), noise(24, 24, seed=9) >> 7)
    return at.data


# ---------------------------------------------------------------- 20 to 23: sizes


@case("A20-smaller-than-a-tile", 0, "3 images segmented")
def _(at: At) -> Words:
    at.data.mkdir()
    for height, width in ((1, 1), (3, 700), (500, 2)):
        Image.fromarray(noise(height, width)).save(at.data / f"{height}x{width}.png")
    return "predict", at.net("grey"), at.data, "-o", at.out


def test_a_mask_has_the_exact_size_of_its_small_image(tmp_path: Path, nets: Path) -> None:
    check(next(one for one in CASES if one.name.startswith("A20")), tmp_path, nets)
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as mask:
            assert f"{mask.height}x{mask.width}" == path.stem


@case("A21-no-width", 3, DAMAGED)
def _(at: At) -> Path:
    return replaced(at, "p0.png", png(noise(24, 24), size=(24, 0)))


@case(
    "A22-bomb-of-a-png", 3, r"p0\.png: the image claims to be larger than 178,956,970 pixels\. Cut"
)
def _(at: At) -> Path:
    return replaced(at, "p0.png", png(noise(24, 24), size=(60000, 60000)))


@case(
    "A22-bomb-of-a-tiff",
    3,
    r"p0\.tif: 300000×300000 pixels with 1 bands need .* MB, .* are free\. Cut",
)
def _(at: At) -> Path:
    replaced(at, "p0.tif", b"-")
    how = {"tiled": True, "SPARSE_OK": True, "BIGTIFF": "YES", "compress": "deflate"}
    path = at.data / "images" / "p0.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rasterio.open(
            path, "w", count=1, height=300000, width=300000, dtype="uint16", **how
        ).close()
    return at.data


@case(
    "A23-bomb-of-text",
    3,
    r"p0\.png: the image is damaged or truncated \(.*[Dd]ecompressed.*\)\. Copy",
)
def _(at: At) -> Path:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 2**26))
    return replaced(at, "p0.png", png(noise(24, 24), bomb))


@case("A23-bomb-of-a-profile", 3, r"p0\.png: the image is damaged or truncated \(.*[Dd]ecompressed")
def _(at: At) -> Path:
    bomb = chunk(b"iCCP", b"bomb\0\0" + zlib.compress(b"\0" * 2**26))
    return replaced(at, "p0.png", png(noise(24, 24), bomb))
