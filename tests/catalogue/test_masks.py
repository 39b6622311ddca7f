"""The catalogue of faults, A24 to A37: masks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cases import At, Case, Catalogue, Words, check
from made import write_pair
from made_files import noise
from told import call
from whatwhere.io.image import read_mask

CASES = Catalogue()
case = CASES.case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


def blocks(seed: int, *numbers: int, size: int = 24) -> NDArray[np.uint8]:
    """A mask in blocks of 8 px that each hold one of the numbers; all of them occur."""
    places = np.arange((size // 8) ** 2) % len(numbers)
    rng = np.random.default_rng(seed)
    coarse = np.array(numbers)[rng.permutation(places)].reshape(size // 8, -1)
    return np.kron(coarse, np.ones((8, 8), dtype=np.int64)).astype(np.uint8)


def masks(at: At, *found: NDArray[Any], ending: str = ".png", **how: Any) -> Path:
    """Write images with these masks: `images/p0.png` and so on."""
    for i, mask in enumerate(found):
        size = mask.shape[0], mask.shape[1]
        write_pair(at.data, f"p{i}", noise(*size, seed=i), np.zeros(size, dtype=np.uint8))
        path = at.data / "masks" / f"p{i}.png"
        path.unlink()
        if ending == ".tif":
            tifffile.imwrite(path.with_suffix(ending), mask, **how)
        else:
            Image.fromarray(mask).save(path.with_suffix(ending), **how)
    return at.data


def colours(mask: NDArray[Any], *table: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.array(table, dtype=np.uint8)[mask]


BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 128, 0)


@case("A24-palette", 0, r"class 1 +1 +1 +768 +33", r"class 2 +2 +2 +768", "0 errors")
def _(at: At) -> Path:
    masks(at, *(blocks(i, 0, 1, 2) for i in range(4)))
    for path in (at.data / "masks").iterdir():
        with Image.open(path) as picture:
            picture.putpalette([*BLACK, *RED, *GREEN])
            assert picture.mode == "P"
            picture.save(path)
    return at.data


@case("A25-colours-need-a-table", 3, r'colours.*#000000.*#ff0000 \(.*%\).*--classes "#00.*=NAME')
def _(at: At) -> Path:
    return masks(at, *(colours(blocks(i, 0, 1, 2), BLACK, RED, GREEN) for i in range(4)))


@case(
    "A25-colours-that-no-one-knows",
    3,
    r"p0\.png: the class table does not know #fe0101 \(64 px, like #ff0000\)\. Correct the mask",
)
def _(at: At) -> Words:
    masks(at, *(colours(blocks(i, 0, 1), BLACK, RED) for i in range(4)))
    odd = colours(blocks(0, 0, 1), BLACK, RED)
    odd[np.kron(np.arange(9).reshape(3, 3) == 4, np.ones((8, 8))) > 0] = (254, 1, 1)
    Image.fromarray(odd).save(at.data / "masks" / "p0.png")
    return "inspect", at.data, "--classes", "#000000=background,#ff0000=roof"


@case("A26-black-and-white", 0, r"foreground +1, 255, 65535 +1 ", "0 errors")
def _(at: At) -> Path:
    return masks(at, *(blocks(i, 0, 255) for i in range(4)))


@case("A26-white-beside-numbers-is-asked", 3, "255 beside other numbers may be a class or 'not lab")
def _(at: At) -> Path:
    return masks(at, *(blocks(i, 0, 1, 2, 255) for i in range(4)))


@case(
    "A27-numbers-that-no-one-knows",
    3,
    r"p0\.png: the class table does not know 7 \(192 px\)\. Correct the mask, or name",
    r"p2\.png: the class table does not know 9 \(64 px\)",
    "2 errors",
)
def _(at: At) -> Words:
    masks(at, blocks(0, 0, 1, 7), blocks(1, 0, 1), blocks(2, 0, 0, 0, 0, 0, 0, 0, 1, 9))
    return "inspect", at.data, "--classes", "0=background,1=roof"


@case(
    "A28-jpeg",
    3,
    r"Masks saved as JPEG \(p0\.jpg\) blur numbers",
    "4 masks are JPEG",
)
def _(at: At) -> Path:
    found = (np.roll(blocks(i, 0, 255), 3, axis=1) for i in range(4))
    return masks(at, *found, ending=".jpg", quality=80)


@case("A28-jpeg-named-png", 3, r"\(p0\.png\) blur numbers", r"this is a JPEG, and 3 more files")
def _(at: At) -> Path:
    found = (np.roll(blocks(i, 0, 255), 3, axis=1) for i in range(4))
    return masks(at, *found, format="JPEG", quality=80)


@case("A29-smoothed-edges", 3, r"black, white and \d+ greys.*smoothed.*Save the masks as PNG witho")
def _(at: At) -> Path:
    found = []
    for i in range(4):
        large = Image.fromarray(blocks(i, 0, 255, size=48).repeat(2, 0).repeat(2, 1))
        found.append(np.asarray(large.resize((90, 90), Image.Resampling.BILINEAR)))
    return masks(at, *found)


@case(
    "A30-another-size", 3, r"masks/p0\.png: the mask has 16×24 px, its image p0\.png 24×24\. Make"
)
def _(at: At) -> Path:
    masks(at, *(blocks(i, 0, 1) for i in range(4)))
    Image.fromarray(blocks(0, 0, 1)[:16]).save(at.data / "masks" / "p0.png")
    return at.data


@case(
    "A30-turned", 3, r"24×32 px, its image p0\.png 32×24\. It looks turned by 90 degrees: turn it"
)
def _(at: At) -> Path:
    masks(at, *(np.vstack([blocks(i, 0, 1), blocks(0, 0)[:8]]) for i in range(4)))
    Image.fromarray(np.rot90(np.array(Image.open(at.data / "masks" / "p0.png"))).copy()).save(
        at.data / "masks" / "p0.png"
    )
    return at.data


@case("A31-whole-floats", 0, r"foreground +1, 255, 65535", "0 errors")
def _(at: At) -> Path:
    return masks(at, *(blocks(i, 0, 1).astype(np.float32) for i in range(4)), ending=".tif")


@case("A31-fractions", 3, r"p0\.tif: the mask holds fractions or huge numbers.*\. Save it with one")
def _(at: At) -> Path:
    halves = (blocks(i, 0, 1) / np.float32(2) for i in range(4))
    return masks(at, *halves, ending=".tif")


@case(
    "A32-ids-above-255-are-asked", 3, r'3 different numbers from 0 to 1000.*"0=NAME,300=NAME,1000'
)
def _(at: At) -> Path:
    table = np.array([0, 300, 1000], dtype=np.uint16)
    return masks(at, *(table[blocks(i, 0, 1, 2)] for i in range(4)), ending=".tif")


@case("A32-ids-above-255-are-named", 0, r"wood +300 +1 ", r"lake +1000 +2 ", "0 errors")
def _(at: At) -> Words:
    table = np.array([0, 300, 1000], dtype=np.uint16)
    masks(at, *(table[blocks(i, 0, 1, 2)] for i in range(4)), ending=".tif")
    return "inspect", at.data, "--classes", "0=background,300=wood,1000=lake"


@case(
    "A33-all-background", 0, r"note.*1 of 4 masks hold nothing but 0\. That is fine if it is true"
)
def _(at: At) -> Path:
    return masks(at, blocks(0, 0), *(blocks(i, 0, 1) for i in range(3)))


IGNORED = "0=background,1=roof,255=ignore"


@case(
    "A34-only-ignored", 0, r"note.*1 of 4 masks hold no pixel that counts: p0\.png\. Nothing is l"
)
def _(at: At) -> Words:
    masks(at, blocks(0, 255), *(blocks(i, 0, 1, 255) for i in range(3)))
    return "inspect", at.data, "--classes", IGNORED


def split(at: At, name: str, *found: NDArray[Any]) -> None:
    masks(At(at.folder / "data" / name, at.nets), *found)
    (at.data / name / "data").rename(at.data / "moved")
    (at.data / name).rmdir()
    (at.data / "moved").rename(at.data / name)
    for i in range(len(found)):  # no image is in two splits
        picture = noise(24, 24, seed=sum(name.encode()) + i)
        Image.fromarray(picture).save(at.data / name / "images" / f"p{i}.png")


def train(at: At, *words: object) -> Words:
    return "train", at.data, "-o", at.out, "--n-filters", 2, *words


def test_no_loss_of_ignored_masks_is_nan(tmp_path: Path, nets: Path) -> None:
    """A34-only-ignored-is-trained: a batch in which nothing counts counts as nothing."""

    def make(at: At) -> Words:
        split(at, "train", blocks(0, 255), *(blocks(i, 0, 1, 255) for i in (1, 2, 3)))
        split(at, "val", blocks(4, 255), blocks(5, 0, 1))
        return train(at, "--classes", IGNORED, "--batch-size", 1, "--epochs", 2)

    check(Case("A34", 0, ("done: all epochs were done",), make), tmp_path, nets)
    rows = (tmp_path / "out" / "log.csv").read_text().splitlines()
    names = rows[0].split(",")
    assert len(rows) == 3
    for row in rows[1:]:
        found = dict(zip(names, row.split(","), strict=True))
        assert math.isfinite(float(found["train_loss"])) and math.isfinite(float(found["val_loss"]))


@case("A35-one-class", 3, "all masks hold nothing but 0: there is nothing to tell apart. Check")
def _(at: At) -> Path:
    return masks(at, *(blocks(i, 0) for i in range(4)))


@case("A35-one-class-of-two-that-are-named", 0, "warning.*nothing but background: nothing can be l")
def _(at: At) -> Words:
    masks(at, *(blocks(i, 0) for i in range(4)))
    return "inspect", at.data, "--classes", "0=background,1=roof"


@case("A35-one-class-is-not-trained", 3, "the training masks hold nothing but background. Add imag")
def _(at: At) -> Words:
    masks(at, *(blocks(i, 0) for i in range(4)))
    return train(at, "--classes", "0=background,1=roof")


@case("A36-a-class-that-never-trains", 0, "warning.*class 2 is in val and not in train: nobody le")
def _(at: At) -> Path:
    split(at, "train", *(blocks(i, 0, 1) for i in range(3)))
    split(at, "val", blocks(4, 0, 1, 2))
    return at.data


@case(
    "A36-its-training-says-so",
    0,
    "warning.*class 2 is in val and not in train",
    "class 2 .* 0.0000",
)
def _(at: At) -> Words:
    split(at, "train", *(blocks(i, 0, 1) for i in range(3)))
    split(at, "val", blocks(4, 0, 1, 2))
    return train(at, "--epochs", 1)


@case(
    "A37-more-names-than-numbers", 2, r"--classes names a, b, c: 2 different names are needed, for"
)
def _(at: At) -> Words:
    masks(at, *(blocks(i, 0, 1) for i in range(4)))
    return "inspect", at.data, "--classes", "a,b,c"


@case("A37-a-class-that-no-mask-has", 0, r"wood +2 +2 +0 +0\.00%", "0 errors")
def _(at: At) -> Words:
    masks(at, *(blocks(i, 0, 1) for i in range(4)))
    return "inspect", at.data, "--classes", "0=background,1=roof,2=wood"


@case("A37-fewer-classes-than-numbers", 3, "does not know 2 .*--classes", "1 error,")
def _(at: At) -> Words:
    masks(at, *(blocks(i, 0, 1, 2) for i in range(12)))
    return "inspect", at.data, "--classes", "0=background,1=roof"


def test_a_mask_is_read_by_its_index_whatever_its_colours(tmp_path: Path) -> None:
    palette = next(one for one in CASES if one.name == "A24-palette")
    palette.make(At(tmp_path, tmp_path))
    for i in range(4):
        numbers, valid = read_mask(tmp_path / "data" / "masks" / f"p{i}.png")
        assert np.array_equal(numbers, blocks(i, 0, 1, 2)) and valid.all()
    found = json.loads(call("inspect", tmp_path / "data", "--json").stdout)
    assert [row["pixels"] for row in found["classes"]] == [768, 768, 768]
