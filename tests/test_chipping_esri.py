"""Chips as ArcGIS exports them: what is in the folder is what is on the ground."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from typer.testing import CliRunner

from made_maps import NORTH_UP, UTM, write_scene
from made_scenes import PLACES, Place, bright_scene, rectangle, town, truth_of, write_places
from whatwhere import jobs
from whatwhere.chipping.layout import Cut, whole_windows
from whatwhere.cli import app
from whatwhere.config import make_recipe
from whatwhere.data.doctor import class_pixels
from whatwhere.data.plan import plan_data
from whatwhere.errors import DataError, UsageError
from whatwhere.io.crs import to_wkt
from whatwhere.io.esri import read_definition, read_map, read_sums
from whatwhere.io.raster import Raster, open_raster
from whatwhere.talk import QUIET, Talk
from whatwhere.types import Window

WORDS: dict[str, Any] = {"format": "esri", "talk": QUIET}
SIZE = (256, 300)
HOUSES: list[Place] = [place for place in PLACES if place[0] < 230 and place[1] < 270]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of chips need not be forced to the disk here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


class Heard(Talk):
    """Keeps what is said."""

    text = ""

    def say(self, text: str = "") -> None:
        self.text += f"{text}\n"


def village(folder: Path, **profile: Any) -> tuple[Path, Path, NDArray[np.int64]]:
    """A scene of 256×300 px, its houses, and their truth."""
    truth = truth_of(SIZE, HOUSES, [1] * len(HOUSES))
    scene = bright_scene(folder / "v.tif", truth, **profile)
    transform = profile.get("transform", NORTH_UP)
    return scene, write_places(folder / "houses.gpkg", HOUSES, transform=transform), truth


def read(raster: Raster) -> NDArray[Any]:
    pixels, _ = raster.read(Window(0, 0, *raster.size))
    return pixels


def chips(folder: Path) -> list[tuple[Raster, NDArray[Any]]]:
    """Each image, and its labels; they lie on one grid."""
    found = []
    for image, label in read_map(folder / "map.txt"):
        one, other = open_raster(folder / image), open_raster(folder / label)
        assert one.grid == other.grid
        (labels,) = read(other)
        found.append((one, labels))
    return found


def at(whole: Raster, chip: Raster) -> Affine:
    """From pixels of the chip to pixels of the scene."""
    return ~whole.grid.transform @ chip.grid.transform


def check_sums(folder: Path, mark: float | None = None) -> None:
    """All that is told of the chips is what NumPy finds in them."""
    sums = read_sums(folder / "esri_accumulated_stats.json")
    told = read_definition(folder / "esri_model_definition.emd")
    pairs = chips(folder)
    assert len(pairs) == sums["NumTiles"] == sums["NextTileIndex"]
    values = [np.moveaxis(read(image), 0, -1).reshape(-1, len(told.bands)) for image, _ in pairs]
    whole = np.concatenate(values).astype(np.float64)
    if mark is not None:
        whole = whole[~(whole == mark).all(axis=1)]
    for band, state, line in zip(
        whole.T, sums["BandStatsState"], told.lines["AllTilesStats"], strict=True
    ):
        assert (
            (state["Min"], state["Max"]) == (line["Min"], line["Max"]) == (band.min(), band.max())
        )
        assert_allclose([state["M1"], line["Mean"]], band.mean(), rtol=1e-9)
        assert_allclose(state["M2"] / state["Num"], band.var(), rtol=1e-9)
        assert_allclose([state["StdDev"], line["StdDev"]], band.std(ddof=1), rtol=1e-9)
        assert state["Num"] == len(band)
    stats = sums["ClassPixelStats"]
    there = np.array([[(labels == c.value).sum() for c in told.classes] for _, labels in pairs])
    assert stats["NumPixelsPerClass"] == there.sum(axis=0).tolist()
    assert stats["NumImagesPerClass"] == (there > 0).sum(axis=0).tolist()
    for column, spread in zip(there.T, stats["PixelsPerClass"], strict=True):
        assert (spread["Min"], spread["Max"]) == (column.min(), column.max())
        assert spread["Mean"] == pytest.approx(column.mean())
        assert (spread["Sum"], spread["Count"]) == (column.sum(), len(pairs))
    kinds = (there > 0).sum(axis=1)
    each = stats["NumClassesPerImage"]
    assert (each["Min"], each["Max"], each["Sum"]) == (kinds.min(), kinds.max(), kinds.sum())


# ---------------------------------------------------------------- which chips


def test_chips_may_be_numbered_from_any_number_on(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)
    out = tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, chip_size=100, first=41, **WORDS)
    count = told["chips"]["all"]
    names = [f"{number:09d}.tif" for number in range(41, 41 + count)]
    assert sorted(path.name for path in (out / "images").glob("*.tif")) == names
    assert [image for image, _ in read_map(out / "map.txt")] == [f"images/{n}" for n in names]
    sums = read_sums(out / "esri_accumulated_stats.json")
    assert (sums["NumTiles"], sums["NextTileIndex"]) == (count, 41 + count)


@pytest.mark.parametrize("split", [None, "50/50/0"])
def test_chips_with_nothing_but_background_can_be_left_out(
    tmp_path: Path, split: str | None
) -> None:
    scene, labels, _ = village(tmp_path)
    said: dict[str, Any] = {"labels": labels, "chip_size": 16, "split": split, **WORDS}
    everything = jobs.chip(scene, tmp_path / "all", **said)
    some = jobs.chip(scene, tmp_path / "some", skip_empty=True, **said)
    part = "all" if split is None else "train"
    folder = "" if split is None else "train"
    shown = [bool(one.any()) for _, one in chips(tmp_path / "all" / folder)]
    assert 0 < sum(shown) < len(shown)
    assert some["chips"] == {**everything["chips"], part: sum(shown)}
    assert some["left_out"] == len(shown) - sum(shown)
    kept = chips(tmp_path / "some" / folder)
    assert len(kept) == sum(shown) and all(one.any() for _, one in kept)


def test_chips_that_show_nothing_at_all_are_an_error(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)  # no house fits into a chip of 8 px
    said: dict[str, Any] = {"labels": labels, "chip_size": 8, "min_overlap": 1.0, **WORDS}
    with pytest.raises(DataError, match="no chip of it has a class but background"):
        jobs.chip(scene, tmp_path / "out", skip_empty=True, **said)


@pytest.mark.parametrize("layout", ["esri", "folder"])
@pytest.mark.parametrize("split", [None, "60/40/0"])
def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, layout: str, split: str | None
) -> None:
    scene, labels, _ = village(tmp_path / "in")
    said: dict[str, Any] = {"labels": labels, "chip_size": 64, "overlap": 16, "split": split}
    said |= {"format": layout, "talk": QUIET}
    dry = jobs.chip(scene, tmp_path / "out", dry_run=True, **said)
    assert not (tmp_path / "out").exists()
    told = jobs.chip(scene, tmp_path / "out", **said)
    assert told["left_out"] == 0
    assert dry == {name: told[name] for name in dry} and "next" not in dry
    words = ["chip", str(scene), "--labels", str(labels), "--chip-size", "64", "--overlap", "16"]
    words += ["--format", layout, "-o", str(tmp_path / "new"), "--dry-run"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and re.search(r"at the most \d+ chips of 64×64 px", done.stdout)
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- one folder


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(0.5, 0.1, 5e5, 0.2, -0.5, 3e6)])
def test_an_export_shows_the_whole_scene(tmp_path: Path, transform: Affine) -> None:
    scene, labels, truth = village(tmp_path, transform=transform)
    out = tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, chip_size=100, **WORDS)
    assert {path.name for path in out.iterdir()} == {
        *("images", "labels", "map.txt", "stats.txt", "classes.toml"),
        *("esri_model_definition.emd", "esri_accumulated_stats.json"),
    }
    whole, pairs = open_raster(scene), chips(out)
    assert told["chips"] == {"all": len(pairs)} and len(pairs) == 9 and told["left_out"] == 0
    pixels, seen = read(whole), np.zeros(SIZE, dtype=int)
    for image, mask in pairs:
        assert image.size == (100, 100) and image.grid.crs == whole.grid.crs
        assert image.dtype == "uint8" and image.names == ("red", "green", "blue")
        assert mask.dtype == np.uint8
        step = at(whole, image)
        row, column = round(step.f), round(step.c)
        assert_allclose(step[:6], [1, 0, column, 0, 1, row], atol=1e-6)
        place = Window(row, column, 100, 100)
        assert np.array_equal(read(image), pixels[(slice(None), *place.slices)])
        assert np.array_equal(mask, truth[place.slices])
        seen[place.slices] += 1
    assert (seen > 0).all()
    assert told["pixels"]["houses"] == sum((mask == 1).sum() for _, mask in pairs)
    assert told["pixels"]["background"] == sum((mask == 0).sum() for _, mask in pairs)
    check_sums(out)
    definition = read_definition(out / "esri_model_definition.emd")
    assert definition.mode == "Classified_Tiles" and definition.size == (100, 100)
    assert [(one.value, one.name) for one in definition.classes] == [(1, "houses")]
    assert definition.bands == ("red", "green", "blue") and definition.space == "MAP_SPACE"
    assert (out / "classes.toml").read_text().endswith('classes = "0=background,1=houses"\n')
    assert "e.g." not in (out / "esri_model_definition.emd").read_text()


@pytest.mark.parametrize("rotation", [0, 30])
def test_world_files_agree_with_the_chips(tmp_path: Path, rotation: float) -> None:
    scene, labels, _ = village(tmp_path)
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=labels, chip_size=96, rotation=rotation, **WORDS)
    names = sorted(path.relative_to(out) for path in out.rglob("*.tif"))
    assert [path.with_suffix(".tfw") for path in names] == sorted(
        path.relative_to(out) for path in out.rglob("*.tfw")
    )
    for name in names:
        transform = open_raster(out / name).grid.transform
        numbers = [float(line) for line in (out / name).with_suffix(".tfw").read_text().split()]
        middle = transform @ (0.5, 0.5)
        wanted = [transform.a, transform.d, transform.b, transform.e, *middle]
        assert_allclose(numbers, wanted, rtol=1e-15)


def test_plain_readers_see_the_same(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=labels, chip_size=96, **WORDS)
    for image, label in read_map(out / "map.txt"):
        with Image.open(out / image) as picture, Image.open(out / label) as mask:
            assert picture.mode == "RGB" and mask.mode == "L"
            assert np.array_equal(
                np.asarray(picture), np.moveaxis(read(open_raster(out / image)), 0, 2)
            )
            assert np.array_equal(np.asarray(mask), read(open_raster(out / label))[0])


def test_a_real_scene(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    banepa = real_data("oam_banepa")
    scene, labels, out = banepa / "scene_train.tif", banepa / "buildings.geojson", tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, chip_size=1024, **WORDS)
    assert told["chips"] == {"all": 9}
    check_sums(out)
    whole = open_raster(scene)
    for image, _ in chips(out):
        step = at(whole, image)
        assert_allclose([step.a, step.b, step.d, step.e], [1, 0, 0, 1], atol=1e-9)
        window = Window(round(step.f), round(step.c), *image.size)
        assert np.array_equal(read(image), whole.read(window)[0])


def test_a_scene_that_is_smaller_than_a_chip_is_one(tmp_path: Path) -> None:
    truth = truth_of((60, 90), HOUSES[:1], [1])
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_places(tmp_path / "l.gpkg", HOUSES[:1])
    jobs.chip(scene, tmp_path / "out", labels=labels, chip_size=128, **WORDS)
    ((image, mask),) = chips(tmp_path / "out")
    assert image.size == (60, 90) and np.array_equal(mask, truth)
    sums = read_sums(tmp_path / "out" / "esri_accumulated_stats.json")
    assert (sums["TileSizeX"], sums["TileSizeY"]) == (90, 60)


def test_a_scene_without_a_place_has_chips_without(tmp_path: Path) -> None:
    truth = truth_of(SIZE, HOUSES, [1] * len(HOUSES))
    nowhere: dict[str, Any] = {"crs": None, "transform": Affine.identity()}
    scene = bright_scene(tmp_path / "s.tif", truth, **nowhere)
    write_scene(tmp_path / "l.tif", truth[None].astype(np.uint8), **nowhere)
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=tmp_path / "l.tif", chip_size=96, rotation=90, **WORDS)
    assert not list(out.rglob("*.tfw"))
    told = read_definition(out / "esri_model_definition.emd")
    assert told.space == "PIXEL_SPACE" and told.cell_size is None
    assert not any(image.grid.is_placed for image, _ in chips(out))
    check_sums(out)


def test_several_scenes_are_numbered_on(tmp_path: Path) -> None:
    rows = []
    for i, size in enumerate((SIZE, (70, 80))):
        place = NORTH_UP @ Affine.translation(2000 * i, 0)
        houses = [one for one in HOUSES if one[0] < size[0] - 40 and one[1] < size[1] - 40]
        bright_scene(
            tmp_path / f"{i}.tif", truth_of(size, houses, [1] * len(houses)), transform=place
        )
        write_places(tmp_path / f"{i}.gpkg", houses, transform=place)
        rows.append(f'[[scene]]\nimage = "{i}.tif"\nlabels = "{i}.gpkg"\n')
    (tmp_path / "data.toml").write_text("\n".join(rows))
    talk, out = Heard(), tmp_path / "out"
    told = jobs.chip(tmp_path / "data.toml", out, chip_size=96, format="esri", talk=talk)
    names = [image for image, _ in read_map(out / "map.txt")]
    assert names == [f"images/{i:09d}.tif" for i in range(told["chips"]["all"])]
    assert {image.size for image, _ in chips(out)} == {(96, 96), (70, 80)}
    assert re.search(r"smaller than a chip, so that chips differ \(96×96, 70×80 px\)", talk.text)
    lines = read_definition(out / "esri_model_definition.emd").lines
    assert lines["InputRastersProps"]["RasterCount"] == 2 and lines["ImageWidth"] == 96
    check_sums(out)


# ---------------------------------------------------------------- stride


def test_a_stride_is_an_overlap(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)
    said: dict[str, Any] = {"labels": labels, "chip_size": 96, **WORDS}
    by_stride = jobs.chip(scene, tmp_path / "a", stride=64, **said)
    jobs.chip(scene, tmp_path / "b", overlap=32, **said)
    plain = jobs.chip(scene, tmp_path / "c", **said)
    files = [sorted((tmp_path / name).rglob("*.*")) for name in "ab"]
    assert len(files[0]) == len(files[1])
    for one, other in zip(*files, strict=True):
        assert one.is_dir() or one.read_bytes() == other.read_bytes()
    assert by_stride["chips"]["all"] > plain["chips"]["all"]
    starts = sorted({round(at(open_raster(scene), image).c) for image, _ in chips(tmp_path / "a")})
    assert starts == [0, 64, 128, 192, 204]
    folder: dict[str, Any] = {"labels": labels, "chip_size": 64, "talk": QUIET}
    one = jobs.chip(scene, tmp_path / "d", stride=48, **folder)
    assert one["chips"] == jobs.chip(scene, tmp_path / "e", overlap=16, **folder)["chips"]


# ---------------------------------------------------------------- rotation


def ramp(folder: Path) -> tuple[Path, Path]:
    """A scene that rises evenly, and its houses."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    pixels = np.stack([100 + 2 * rows + columns, 900 - rows, 3 * columns]).astype(np.float32)
    return write_scene(folder / "r.tif", pixels), write_places(folder / "h.gpkg", HOUSES)


def inside(grid: Any, shapes: Any) -> NDArray[np.bool_]:
    """Where the middles of pixels lie in shapes, one by one."""
    down, across = np.mgrid[: grid.height, : grid.width] + 0.5
    xs, ys = grid.transform @ (across, down)
    found = np.zeros(xs.shape, dtype=bool)
    for shape in shapes:
        if shape.intersects(shapely.Polygon(grid.corners)):
            shapely.prepare(shape)
            found |= shapely.contains_xy(shape, xs, ys)
    return found


@pytest.mark.parametrize("angle", [75.0, 130.0])
def test_turned_chips_show_what_lies_under_them(tmp_path: Path, angle: float) -> None:
    scene, labels = ramp(tmp_path)
    out = tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, chip_size=64, rotation=angle, **WORDS)
    whole, pairs = open_raster(scene), chips(out)
    houses = [rectangle(place) for place in HOUSES]
    angles = []
    for image, mask in pairs:
        assert image.size == (64, 64) and image.dtype == "float32"
        step = at(whole, image)
        turn = np.degrees(np.arctan2(step.d, step.a)) % 360
        angles.append(round(turn) % 360)
        assert_allclose(np.hypot(step.a, step.d), 1, rtol=1e-9)
        assert_allclose(turn - angles[-1], 0, atol=1e-4)
        down, across = np.mgrid[:64, :64] + 0.5
        columns, rows = step @ (across, down)
        assert rows.min() >= 0 and rows.max() <= SIZE[0]
        assert columns.min() >= 0 and columns.max() <= SIZE[1]
        edge = (
            (np.minimum(rows, columns) < 0.5) | (rows > SIZE[0] - 0.5) | (columns > SIZE[1] - 0.5)
        )
        wanted = np.stack([100 + 2 * rows + columns, 900 - rows, 3 * columns])
        assert np.abs(read(image) - wanted)[:, ~edge].max() < 1e-3
        assert np.array_equal(mask == 1, inside(image.grid, houses))
    wanted_angles = [0, *range(round(angle), 360, round(angle))]
    assert sorted(set(angles)) == sorted(wanted_angles)
    assert told["chips"]["all"] == len(pairs)
    check_sums(out)


def test_right_angles_turn_the_pixels_themselves(tmp_path: Path) -> None:
    scene, labels, truth = village(tmp_path)
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=labels, chip_size=64, rotation=90, **WORDS)
    whole, pairs = open_raster(scene), chips(out)
    pixels, seen = read(whole), np.zeros((4, *SIZE), dtype=int)
    for image, mask in pairs:
        step = at(whole, image)
        down, across = np.mgrid[:64, :64] + 0.5
        columns, rows = (np.floor(part).astype(int) for part in step @ (across, down))
        assert np.array_equal(read(image), pixels[:, rows, columns])
        assert np.array_equal(mask, truth[rows, columns])
        seen[round(np.degrees(np.arctan2(step.d, step.a)) / 90) % 4, rows, columns] += 1
    assert (seen > 0).all(), "every pixel is there four times"


def test_turned_labels_may_be_a_raster(tmp_path: Path) -> None:
    scene, _, truth = village(tmp_path)
    labels = write_scene(tmp_path / "t.tif", truth[None].astype(np.uint8))
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=labels, chip_size=64, rotation=77, **WORDS)
    whole = open_raster(scene)
    for image, mask in chips(out):
        down, across = np.mgrid[:64, :64] + 0.5
        columns, rows = at(whole, image) @ (across, down)
        near = truth[
            np.clip(rows.astype(int), 0, SIZE[0] - 1), np.clip(columns.astype(int), 0, SIZE[1] - 1)
        ]
        assert (mask != near).mean() < 1e-3, "but for pixels that lie between two"


@pytest.mark.parametrize(
    ("rotation", "turns"),
    [
        (0, []),
        (200, [200]),
        (120, [120, 240]),
        (90, [90, 180, 270]),
        (0.1 * 3600 / 4, [90, 180, 270]),
    ],
)
def test_turns_are_the_multiples_below_a_circle(rotation: float, turns: list[float]) -> None:
    assert Cut(rotation=rotation).turns == turns


# ---------------------------------------------------------------- polygons that are cut off


@pytest.mark.parametrize("rotation", [0, 140])
def test_cut_off_polygons_are_not_burnt(tmp_path: Path, rotation: float) -> None:
    scene, labels, _ = village(tmp_path)
    said: dict[str, Any] = {"labels": labels, "chip_size": 80, "rotation": rotation, **WORDS}
    shapes = np.array([rectangle(place) for place in HOUSES])
    counts = {}
    for share in (0.0, 0.5, 1.0):
        out = tmp_path / f"{share}"
        told = jobs.chip(scene, out, min_overlap=share, **said)
        counts[share] = told["pixels"]["houses"]
        some = 0
        for image, mask in chips(out):
            ground = shapely.Polygon(image.grid.corners)
            there = shapely.area(shapely.intersection(shapes, ground)) / shapely.area(shapes)
            burnt = shapes[there >= max(share - 1e-9, 1e-9)]
            some += len(burnt)
            assert np.array_equal(mask == 1, inside(image.grid, burnt))
        assert some, "the test shows something"
        check_sums(out)
    assert counts[0.0] > counts[0.5] > counts[1.0] > 0


# ---------------------------------------------------------------- splits


def test_splits_have_folders_of_their_own(tmp_path: Path) -> None:
    scene, labels, truth = town(tmp_path)
    out = tmp_path / "out"
    said: dict[str, Any] = {"labels": labels, "chip_size": 64, "split": "60/20/20", **WORDS}
    told = jobs.chip(scene, out, rotation=180, **said)
    assert set(told["chips"]) == {"train", "val", "test"} and min(told["chips"].values()) > 0
    whole = open_raster(scene)
    seen = {split: np.zeros(truth.shape, dtype=int) for split in told["chips"]}
    turned = {}
    for split, ground in seen.items():
        pairs = chips(out / split)
        assert len(pairs) == told["chips"][split]
        check_sums(out / split)
        for image, mask in pairs:
            assert image.size == (64, 64)
            down, across = np.mgrid[:64, :64] + 0.5
            columns, rows = (np.floor(p).astype(int) for p in at(whole, image) @ (across, down))
            assert np.array_equal(mask, truth[rows, columns])
            ground[rows, columns] += 1
        turned[split] = sum(at(whole, image).a < 0 for image, _ in pairs)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not ((seen[one] > 0) & (seen[other] > 0)).any(), "no ground is in two splits"
    gap = distance_transform_edt(seen["val"] == 0)[seen["train"] > 0].min()
    assert gap >= 16
    assert turned == {"train": told["chips"]["train"] // 2, "val": 0, "test": 0}
    assert told["next_python"] == (
        f'prepare_data("{out}/train", valid_path="{out}/val", test_path="{out}/test")'
    )
    assert (out / "classes.toml").read_text() == (out / "val" / "classes.toml").read_text()


def test_a_list_says_the_splits(tmp_path: Path) -> None:
    rows = []
    for i, split in enumerate(("train", "val")):
        place = NORTH_UP @ Affine.translation(2000 * i, 0)
        village(tmp_path / split, transform=place)
        rows.append(
            f'[[scene]]\nimage = "{split}/v.tif"\nlabels = "{split}/houses.gpkg"\n'
            f'split = "{split}"\n'
        )
    (tmp_path / "data.toml").write_text("\n".join(rows))
    told = jobs.chip(tmp_path / "data.toml", tmp_path / "out", chip_size=64, **WORDS)
    assert set(told["chips"]) == {"train", "val"}
    for split, first in (("train", 500000), ("val", 501000)):
        xs = [image.grid.transform.c for image, _ in chips(tmp_path / "out" / split)]
        assert min(xs) == first and max(xs) < first + 150


def test_blocks_that_are_too_narrow_are_told(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    talk = Heard()
    said: dict[str, Any] = {"labels": labels, "format": "esri", "split": "60/20/20"}
    jobs.chip(scene, tmp_path / "a", chip_size=120, split_gap=0.1, talk=talk, **said)
    assert re.search(r"note +\d+ of \d+ \w+ blocks are too narrow for a chip of 120 px", talk.text)
    with pytest.raises(DataError, match=r"no chip of 500 px fits into the \w+ blocks of \d+ px"):
        jobs.chip(scene, tmp_path / "b", chip_size=500, talk=QUIET, **said)
    assert not (tmp_path / "b").exists()


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_windows_cover_a_region_and_stay_on_the_ground(seed: int, side: int, overlap: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (np.cumsum([0, *rng.integers(5, 60, 4)]) for _ in range(2))
    ground = [
        Window(
            int(rows[i]),
            int(columns[j]),
            int(rows[i + 1] - rows[i]),
            int(columns[j + 1] - columns[j]),
        )
        for i in range(4)
        for j in range(4)
        if rng.random() < 0.7
    ]
    mine = np.zeros((rows[-1], columns[-1]), dtype=bool)
    for one in ground:
        mine[one.slices] = True
    for region in ground:
        found = whole_windows(region, (side, side), overlap, ground)
        seen = np.zeros_like(mine)
        for window in found:
            assert (window.height, window.width) == (side, side)
            assert mine[window.slices].all() and mine[window.slices].size == side * side
            seen[window.slices] = True
        if min(region.height, region.width) >= side:
            assert seen[region.slices].all()


# ---------------------------------------------------------------- values


def test_what_is_not_labelled_is_not_background(tmp_path: Path) -> None:
    scene, labels, truth = village(tmp_path)
    aoi = write_places(tmp_path / "aoi.gpkg", [(0, 0, 256, 200)])
    talk, out = Heard(), tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, aoi=aoi, chip_size=64, format="esri", talk=talk)
    assert "note     background is 2 in the labels: some pixels are not labelled" in talk.text
    assert told["classes"] == "2=background,1=houses,0=ignore"
    assert told["left_out"] == 4, "a column of chips lies beyond"
    wanted = np.where(truth == 1, 1, 2)
    wanted[:, 200:] = 0
    whole = open_raster(scene)
    for image, mask in chips(out):
        step = at(whole, image)
        assert np.array_equal(mask, wanted[Window(round(step.f), round(step.c), 64, 64).slices])
    listed = read_definition(out / "esri_model_definition.emd").classes
    assert {(one.value, one.name) for one in listed} == {(1, "houses"), (2, "background")}
    check_sums(out)


def test_sparse_labels_have_no_background(tmp_path: Path) -> None:
    kinds = [("roof", "tree")[i % 2] for i in range(len(HOUSES))]
    scene, _, _ = village(tmp_path)
    labels = write_places(tmp_path / "k.gpkg", HOUSES, columns={"kind": kinds})
    out = tmp_path / "out"
    said: dict[str, Any] = {"labels": labels, "class_field": "kind", "aoi": labels}
    told = jobs.chip(scene, out, **said, chip_size=64, **WORDS)
    assert told["classes"] == "1=roof,2=tree,0=ignore"
    truth = truth_of(SIZE, HOUSES, [1 + i % 2 for i in range(len(HOUSES))])
    whole = open_raster(scene)
    for image, mask in chips(out):
        step = at(whole, image)
        assert np.array_equal(mask, truth[Window(round(step.f), round(step.c), 64, 64).slices])
    check_sums(out)


@pytest.mark.parametrize(("kind", "mark"), [("uint8", 0), ("int16", -99), ("float32", np.nan)])
def test_pixels_without_data_are_no_class(tmp_path: Path, kind: str, mark: float) -> None:
    _, labels, truth = village(tmp_path)
    pixels = np.clip(60 + 60 * truth + np.arange(3)[:, None, None], 1, 255).astype(kind)
    pixels[:, 30:150, 20:200] = mark
    scene = write_scene(tmp_path / "gap.tif", pixels, nodata=mark)
    talk, out = Heard(), tmp_path / "out"
    told = jobs.chip(scene, out, labels=labels, chip_size=64, format="esri", talk=talk)
    fill = 0 if np.isnan(mark) else mark
    assert re.search(
        rf"pixels without data hold {fill} in the images, and 0 in the labels, as background does",
        talk.text,
    )
    assert told["classes"] == "0=background,1=houses" and told["left_out"] > 0
    whole, missing = open_raster(scene), 0
    for image, mask in chips(out):
        step = at(whole, image)
        place = Window(round(step.f), round(step.c), 64, 64)
        gone = (pixels[0] == mark)[place.slices] | np.isnan(pixels[0].astype(float))[place.slices]
        missing += int(gone.sum())
        assert np.array_equal(mask, np.where(gone, 0, truth[place.slices]))
        wanted = pixels[(slice(None), *place.slices)]
        assert np.array_equal(read(image), np.where(gone, np.array(fill, kind), wanted))
        assert image.nodata[0] == (None if np.isnan(mark) else mark)
    assert f"{missing:,} pixels without data" in talk.text
    check_sums(out, mark=fill)


def test_a_band_of_alpha_is_no_band_of_chips(tmp_path: Path) -> None:
    _, labels, truth = village(tmp_path)
    pixels = np.clip(60 + 60 * truth + np.arange(4)[:, None, None], 1, 255).astype(np.uint8)
    pixels[3] = 255
    pixels[:, :80] = 7
    pixels[3, :80] = 0
    scene = write_scene(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    out = tmp_path / "out"
    jobs.chip(scene, out, labels=labels, chip_size=64, **WORDS)
    assert all(image.alpha is None and len(image.names) == 3 for image, _ in chips(out))
    assert not any((read(image) == 7).any() for image, _ in chips(out)), "nothing that is hidden"
    check_sums(out, mark=0)


@pytest.mark.parametrize(
    ("spec", "values", "kind"),
    [
        ("0=background,7=roof,200=tree", {"roof": 7, "tree": 200, "background": 201}, "uint8"),
        ("0=background,7=roof,255=tree", {"roof": 7, "tree": 255, "background": 256}, "uint16"),
        ("5=background,7=roof,255=tree", {"roof": 7, "tree": 255, "background": 5}, "uint8"),
    ],
)
def test_values_of_the_table_are_kept(
    tmp_path: Path, spec: str, values: dict[str, int], kind: str
) -> None:
    none, roof, tree = (int(one.split("=")[0]) for one in spec.split(","))
    truth = truth_of(SIZE, HOUSES, [1 + i % 2 for i in range(len(HOUSES))])
    numbers = np.array([none, roof, tree])[truth]
    numbers[:20, :20] = 99  # of no class
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_scene(tmp_path / "l.tif", numbers[None].astype(np.uint8))
    out = tmp_path / "out"
    spec += ",99=ignore"
    told = jobs.chip(scene, out, labels=labels, classes=spec, chip_size=64, **WORDS)
    order = ("background", "roof", "tree")
    assert told["classes"] == ",".join(f"{values[name]}={name}" for name in order) + ",0=ignore"
    wanted = np.array([values[name] for name in order])[truth]
    wanted[:20, :20] = 0
    whole = open_raster(scene)
    for image, mask in chips(out):
        step = at(whole, image)
        assert mask.dtype == kind
        assert np.array_equal(mask, wanted[Window(round(step.f), round(step.c), 64, 64).slices])
    listed = read_definition(out / "esri_model_definition.emd").classes
    assert {one.name: one.value for one in listed} == values
    check_sums(out)


def test_a_class_is_never_0(tmp_path: Path) -> None:
    scene, _, _ = village(tmp_path)
    codes = [i % 3 for i in range(len(HOUSES))]
    labels = write_places(tmp_path / "c.gpkg", HOUSES, columns={"code": codes})
    talk, out = Heard(), tmp_path / "out"
    said: dict[str, Any] = {"labels": labels, "class_field": "code", "aoi": labels}
    told = jobs.chip(scene, out, **said, chip_size=64, format="esri", talk=talk)
    assert "note     class 0 is 3 in the labels: 0 is no class there" in talk.text
    assert told["classes"] == "3=class 0,1=class 1,2=class 2,0=ignore"
    truth = truth_of(SIZE, HOUSES, [code or 3 for code in codes])
    whole, threes = open_raster(scene), 0
    for image, mask in chips(out):
        step = at(whole, image)
        assert np.array_equal(mask, truth[Window(round(step.f), round(step.c), 64, 64).slices])
        threes += int((mask == 3).sum())
    assert threes == told["pixels"]["class 0"] > 0
    check_sums(out)


# ---------------------------------------------------------------- read by ourselves


@pytest.mark.parametrize("split", [None, "60/20/20"])
def test_a_training_reads_the_export(tmp_path: Path, split: str | None) -> None:
    scene, labels, _ = town(tmp_path)
    aoi = write_places(tmp_path / "aoi.gpkg", [(0, 0, 640, 600)])
    out = tmp_path / "out"
    said: dict[str, Any] = {"labels": labels, "aoi": aoi, "chip_size": 80, "split": split}
    told = jobs.chip(scene, out, **said, **WORDS)
    plan = plan_data(out, make_recipe(split="60/20/20"), QUIET)
    assert set(plan.classes.names) == {"background", "town_houses"}
    assert plan.classes.ignored == (0,) and plan.classes.task == "binary"
    counts = {part: len(pairs) for part, pairs in plan.splits.items()}
    assert counts == told["chips"] if split else sum(counts.values()) == told["chips"]["all"]
    pairs = [pair for some in plan.splits.values() for pair in some]
    pixels = dict(
        zip(plan.classes.names, class_pixels(plan.survey, pairs, plan.classes), strict=True)
    )
    assert pixels == told["pixels"]


# ---------------------------------------------------------------- what is said


def test_the_command_tells_how_to_go_on(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)
    out = tmp_path / "out"
    words = ["chip", str(scene), "--labels", str(labels), "--format", "esri", "-o", str(out)]
    words += ["--chip-size", "64", "--stride", "48", "--rotation", "180", "--min-overlap", "0.25"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"chips of 64×64 px in {out}\n" in done.stdout
    assert re.search(r"pixels: background [\d,]+, houses [\d,]+\n", done.stdout)
    assert f"next: whatwhere train {out} -o RUN --orientation free\n" in done.stdout
    assert f'or in Python: prepare_data("{out}")\n' in done.stdout
    shutil.rmtree(out)
    done = CliRunner().invoke(app, [*words, "--split", "60/40/0", "--json"])
    told = json.loads(done.stdout)
    assert set(told["chips"]) == {"train", "val"} and told["chip_px"] == [64, 64]


def test_what_cannot_be_done_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    scene, labels, truth = village(tmp_path / "in")
    raster = write_scene(tmp_path / "l.tif", truth[None].astype(np.uint8))
    out = tmp_path / "out"
    for said, message in (
        ({"format": "coco"}, "--format coco: chips are written as folder .* or as esri"),
        ({"overlap": 64}, "--overlap 64: chips of 64 px overlap by less than their side"),
        ({"stride": 65}, "--stride 65: chips of 64 px would leave gaps; take 64 at the most"),
        ({"stride": -1}, "--stride must be at least 1 px, not -1"),
        ({"stride": 32, "overlap": 32}, "--stride 32 and --overlap 32 say the same in two ways"),
        ({"rotation": 360}, "--rotation must be from 0 to below 360 degrees, not 360"),
        ({"rotation": -5}, "--rotation must be from 0 to below 360 degrees, not -5"),
        ({"rotation": float("nan")}, "--rotation must be from 0 to below 360 degrees, not nan"),
        ({"min_overlap": 1.5}, "--min-overlap must be from 0 to 1, not 1.5"),
        ({"min_overlap": 0.5, "labels": raster}, r"l\.tif: --min-overlap is for polygons"),
        ({"format": "folder", "rotation": 30}, "--rotation is for --format esri"),
        ({"format": "folder", "min_overlap": 0.5}, "--min-overlap is for --format esri"),
        ({"format": "folder", "first": 5}, "--first is for --format esri"),
        ({"format": "folder", "skip_empty": True}, "--skip-empty is for --format esri"),
        ({"first": -1}, "--first must be from 0 to below 1,000,000,000, not -1"),
        ({"split": "70"}, "split must be like 70/15/15"),
    ):
        words: dict[str, Any] = {"labels": labels, "chip_size": 64, **WORDS, **said}
        with pytest.raises(UsageError, match=message):
            jobs.chip(scene, out, **words)
        assert not out.exists()
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(UsageError, match="there is something in this folder"):
        jobs.chip(scene, out, labels=labels, **WORDS)


def test_names_that_cannot_be_told_apart_are_refused_early(tmp_path: Path) -> None:
    scene, _, _ = village(tmp_path)
    kinds = [("a,b", "a;b")[i % 2] for i in range(len(HOUSES))]
    labels = write_places(tmp_path / "k.gpkg", HOUSES, columns={"kind": kinds})
    with pytest.raises(UsageError, match="cannot be told apart in a table"):
        jobs.chip(scene, tmp_path / "out", labels=labels, class_field="kind", **WORDS)
    assert not (tmp_path / "out").exists()


def test_the_system_is_kept(tmp_path: Path) -> None:
    scene, labels, _ = village(tmp_path)
    jobs.chip(scene, tmp_path / "out", labels=labels, chip_size=128, **WORDS)
    lines = read_definition(tmp_path / "out" / "esri_model_definition.emd").lines
    assert lines["MinCellSize"] == {
        **{"x": 0.5, "y": 0.5},
        "spatialReference": {"wkid": 32645, "latestWkid": 32645},
    }
    assert all(image.grid.crs == to_wkt(UTM) for image, _ in chips(tmp_path / "out"))
