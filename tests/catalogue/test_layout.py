"""The catalogue of faults, B38 to B50: how a data set lies on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from cases import At, Case, Catalogue, Words, check
from made import write_pair
from made_files import noise
from told import assert_told, call
from whatwhere.data.sources import list_images

CASES = Catalogue()
case = CASES.case

POSIX = pytest.mark.skipif(os.name != "posix", reason="names and files as POSIX has them")


@POSIX
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layout(case: Case, tmp_path: Path, nets: Path) -> None:
    check(case, tmp_path, nets)


def clean(folder: Path, *names: str) -> Path:
    """Write a pair for each name; without any four: p0 to p3."""
    for name in names or ("p0", "p1", "p2", "p3"):
        pair(folder, name)
    return folder


def pair(folder: Path, name: str, seed: int | None = None) -> None:
    chance = sum(os.fsencode(name)) if seed is None else seed
    write_pair(folder, name, noise(16, 16, seed=chance), noise(16, 16, seed=chance + 1) >> 7)


# ---------------------------------------------------------------- 38 to 43: pairs


@case(
    "B38-missing-partners",
    3,
    r"images/p1\.png: there is no mask for it in .*masks\. Add the mask, or take the image out\.",
    r"masks/p2\.png: there is no image for it in .*images\. Add the image, or take the mask out\.",
    "2 errors",
)
def _(at: At) -> Path:
    clean(at.data)
    (at.data / "masks" / "p1.png").unlink()
    (at.data / "images" / "p2.png").unlink()
    return at.data


@case(
    "B39-two-files-of-one-name", 3, r"p0\.tif: p0\.png has the same name but for the ending\. Keep"
)
def _(at: At) -> Path:
    clean(at.data)
    Image.fromarray(noise(16, 16)).save(at.data / "images" / "p0.tif")
    return at.data


@case("B40-case-composition-and-endings", 0, "4 pairs, 4 of them", "0 errors, 0 warnings, 0 notes")
def _(at: At) -> Path:
    clean(at.data, "Größe", "Tile A", "roof", "wall")
    masks = at.data / "masks"
    composed = masks / "Größe.png"
    composed.rename(masks / unicodedata.normalize("NFD", "Größe.png"))
    (masks / "Tile A.png").rename(masks / "tile a.png")
    (masks / "roof.png").rename(masks / "roof_mask.png")
    (masks / "wall.png").rename(masks / "wall-label.png")
    return at.data


@case(
    "B40-two-masks-that-could-be-meant",
    3,
    r"images/px\.png: there is no mask for it",
    r"masks/PX\.png: there is no image",
    r"masks/pX\.png: there is no image",
)
def _(at: At) -> Path:
    clean(at.data, "pX", "p1", "p2")
    (at.data / "images" / "pX.png").rename(at.data / "images" / "px.png")
    if (at.data / "masks" / "PX.png").exists():
        pytest.skip("names that differ by case are one here")
    shutil.copy(at.data / "masks" / "pX.png", at.data / "masks" / "PX.png")
    return at.data


@case("B41-no-folder", 3, r"data: there is no such folder\. A folder with images/ and masks/")
def _(at: At) -> Path:
    return at.data


@case("B41-empty-folder", 3, r"data: there is no images/ in it\. A folder with images/ and masks/")
def _(at: At) -> Path:
    at.data.mkdir()
    return at.data


@case(
    "B41-empty-folders", 3, r"data: there is no image in it \(\.png, .*\)\. A folder with images/"
)
def _(at: At) -> Path:
    (at.data / "images").mkdir(parents=True)
    (at.data / "masks").mkdir()
    return at.data


@case("B41-a-file", 2, r"data: a raster needs labels: .* \(A folder with images/ and masks/ needs")
def _(at: At) -> Path:
    at.data.write_bytes(b"hello")
    return at.data


@case("B42-one-image-can-be-looked-at", 0, "1 pairs", "0 errors")
def _(at: At) -> Path:
    return clean(at.data, "alone")


@case(
    "B42-one-image-cannot-be-split",
    3,
    "there is 1 different image: at least 2 .*Add images, or cut",
)
def _(at: At) -> Words:
    return "train", clean(at.data, "alone"), "-o", at.out


@case(
    "B43-an-image-on-both-sides", 0, r"warning.*p0\.png: the same image is in train and val.*Keep"
)
def _(at: At) -> Path:
    clean(at.data / "train")
    pair(at.data / "val", "v0")
    pair(at.data / "val", "v1", seed=sum(b"p0"))
    return at.data


# ---------------------------------------------------------------- 44 to 46: names and links

ODD = {
    "spaces": " a  b ",
    "quotes": "a'b\"c`d",
    "a-line-break": "a\nb",
    "an-escape": "a\x1b[31mb",
    "emoji": "🏠🌊",
    "a-dash": "-o",
    "a-percent": "%s%n {0}",
    "a-star": "a*[b]?",
    "255-bytes": "x" * 251,
}

for what, odd in ODD.items():

    @case(f"B44-{what}", 0, "4 pairs, 4 of them in order", "0 errors, 0 warnings, 0 notes")
    def _(at: At, odd: str = odd) -> Path:
        return clean(at.data, "p0", "p1", "p2", odd)

    @case(f"B44-{what}-damaged", 3, r"the image is damaged", "1 error, 0 warnings, 0 notes")
    def _(at: At, odd: str = odd) -> Path:
        path = clean(at.data, "p0", "p1", "p2", odd) / "images" / f"{odd}.png"
        path.write_bytes(path.read_bytes()[:-30])
        return at.data

    @case(f"B44-{what}-is-segmented", 0, "1 image segmented")
    def _(at: At, odd: str = odd) -> Words:
        path = clean(at.data, odd) / "images" / f"{odd}.png"
        return "predict", at.net("grey"), "-o", at.out, "--", path


@case("B44-a-line-break-stays-in-its-line", 3, r"images/a\\nb\.png: the image is damaged")
def _(at: At) -> Path:
    path = clean(at.data, "p0", "p1", "p2", "a\nb") / "images" / "a\nb.png"
    path.write_bytes(path.read_bytes()[:-30])
    return at.data


@case("B44-no-utf-8", 3, r"b\\udcff\.png'?: the file's name is not UTF-8\. Rename it")
def _(at: At) -> Path:
    clean(at.data)
    name = os.fsencode(at.data / "images") + b"/b\xff.png"
    with contextlib.suppress(OSError):
        Image.fromarray(noise(16, 16)).save(os.fsdecode(name))
    if not os.path.exists(name):
        pytest.skip("this file system takes no such name")
    return at.data


@case(
    "B45-a-loop-of-folders", 0, "warning.*images/loop: this is a link to a folder, and was passed"
)
def _(at: At) -> Path:
    clean(at.data)
    (at.data / "images" / "loop").symlink_to(at.data / "images", target_is_directory=True)
    return at.data


@case(
    "B45-a-link-to-itself", 0, r"warning.*images/self\.png: this is no plain file, and was passed"
)
def _(at: At) -> Path:
    clean(at.data)
    (at.data / "images" / "self.png").symlink_to("self.png")
    return at.data


@case(
    "B45-a-data-set-that-is-a-loop", 3, "data: (there is no such folder|no file can have this name)"
)
def _(at: At) -> Path:
    at.data.symlink_to(at.data)
    return at.data


@case("B45-a-file-from-elsewhere-and-a-hard-link", 0, "2 images are identical", "0 errors")
def _(at: At) -> Path:
    clean(at.data)
    elsewhere = clean(at.folder / "elsewhere", "far")
    for folder in ("images", "masks"):
        (at.data / folder / "far.png").symlink_to(elsewhere / folder / "far.png")
        os.link(at.data / folder / "p0.png", at.data / folder / "twin.png")
    return at.data


@case("B46-what-file-managers-leave", 0, "4 pairs, 4 of them", "0 errors, 0 warnings, 0 notes")
def _(at: At) -> Path:
    clean(at.data)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._p0.png", ".hidden.png"):
        (at.data / "images" / name).write_bytes(b"\0\0\0\1Bud1")
    (at.data / "images" / "__MACOSX").mkdir()
    (at.data / "images" / "__MACOSX" / "._p0.png").write_bytes(b"\0\5\x16\7")
    return at.data


# ---------------------------------------------------------------- 47: rights


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be somebody who is not allowed everything."""
    if os.name != "posix":
        pytest.skip("rights as POSIX has them")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_data() -> Iterator[Path]:
    """A data set in a place that everybody may look at."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield clean(Path(place) / "data")


LOCKED = {
    "B47-a-file": ("images/p0.png", r"p0\.png: the file may not be read\. Give yourself the right"),
    "B47-a-folder-in-images": ("images/deep", "images/deep: the folder may not be read. Give your"),
    "B47-images": ("images", "images: the folder may not be read. Give your"),
    "B47-the-data-set": ("", "data: the folder may not be read. Give your"),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_may_not_be_read(name: str, open_data: Path) -> None:
    inside, told = LOCKED[name]
    call("inspect", open_data)  # everything is imported while that is allowed
    (open_data / "images" / "deep").mkdir()
    locked = open_data / inside
    locked.chmod(0)
    try:
        with nobody():
            result = call("inspect", open_data)
    finally:
        locked.chmod(0o755)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_told(result, 3, told)


# ---------------------------------------------------------------- 48: what changes meanwhile

TRAIN = ("--n-filters", 2, "--epochs", 2, "--batch-size", 2)


def spoilt(path: Path) -> None:
    Image.fromarray(noise(16, 16, seed=77)).save(path)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "B48-vanishes": (Path.unlink, r"{}\.png: there is no such file"),
    "B48-changes": (spoilt, r"{}\.png: the file has changed since work on it began\. Begin anew"),
    "B48-is-emptied": (lambda p: p.write_bytes(b"") and None, r"{}\.png: the file .*\. "),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_after_it_was_looked_at(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images are looked at first; then the rehearsal reads what it needs."""
    from whatwhere.data import plan

    change, told = CHANGES[name]
    data = clean(tmp_path / "data", *(f"p{i}" for i in range(8)))
    measure = plan.measure

    def then(*args: object, **named: object) -> object:
        result = measure(*args, **named)  # type: ignore[arg-type]
        for path in (data / "images").iterdir():
            change(path)
        return result

    monkeypatch.setattr(plan, "measure", then)
    result = call("train", data, "-o", tmp_path / "run", *TRAIN)
    assert_told(result, 3, told.format(r"p\d"))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- 49, 50: many files, odd files


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    """B49-many-files: 20,000 in the place of 200,000, in a tenth of the ten seconds."""
    (tmp_path / "images").mkdir()
    for i in range(20_000):
        os.close(os.open(tmp_path / "images" / f"{i:06d}.png", os.O_CREAT | os.O_WRONLY))
    begun = time.process_time()
    found, problems = list_images(tmp_path / "images")
    assert time.process_time() - begun < 1
    assert len(found) == 20_000 and not problems


@case(
    "B50-a-pipe", 0, r"warning.*pipe\.png: this is no plain file, and was passed over\. Take it ou"
)
def _(at: At) -> Path:
    os.mkfifo(clean(at.data) / "images" / "pipe.png")
    return at.data


@case("B50-a-socket", 0, r"warning.*s\.png: this is no plain file, and was passed over")
def _(at: At) -> Path:
    clean(at.data)
    here = os.getcwd()
    os.chdir(at.data / "images")  # the path of a socket may be no longer than some 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("s.png")
    finally:
        os.chdir(here)
    return at.data


@case("B50-a-device", 0, r"warning.*zero\.png: this is no plain file, and was passed over")
def _(at: At) -> Path:
    clean(at.data)
    (at.data / "images" / "zero.png").symlink_to("/dev/zero")
    return at.data


@case("B50-a-device-is-not-segmented", 3, "zero.png: this is not a plain file")
def _(at: At) -> Words:
    at.data.mkdir()
    (at.data / "zero.png").symlink_to("/dev/zero")
    return "predict", at.net("grey"), at.data / "zero.png", "-o", at.out
