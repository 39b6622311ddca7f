"""Exports of ArcGIS Pro through `prepare_data`, training and the command line."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from typer.testing import CliRunner

from made import blocks_folder
from made_esri import made_export, write_map
from whatwhere import bundle, jobs
from whatwhere.cli import app
from whatwhere.errors import DataError
from whatwhere.grid import Grid
from whatwhere.io.esri import DEFINITION, MAP
from whatwhere.io.image import read_image
from whatwhere.io.small import encode_geotiff
from whatwhere.learn import UnetClassifier, prepare_data
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)
WEB = rasterio.crs.CRS.from_epsg(3857).to_wkt()
NAMED = [{"Value": 1, "Name": "roof, flat", "Color": [9, 8, 7]}, {"Value": 2, "Name": "road"}]


class Told(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)

    def notes(self, *kinds: str) -> list[str]:
        return [line for line in self.lines if line.startswith(kinds or ("note", "warning"))]


# Real chips under a real definition


def tile_transform(name: str) -> Affine:
    """Where a tile of a web map lies in degrees, of 512 px: OAM-X-Y-ZOOM."""
    x, y, zoom = (int(part) for part in name.split("-")[1:])
    count = 2**zoom
    west, east = (column / count * 360 - 180 for column in (x, x + 1))
    north, south = (
        math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / count)))) for row in (y, y + 1)
    )
    return Affine((east - west) / 512, 0, west, 0, (south - north) / 512, north)


def banepa(real_data: Callable[[str], Path], folder: Path) -> Path:
    """Make an export of the Banepa tiles under the definition and list of a drone map."""
    real, tiles = real_data("esri_exports") / "drone_classified_tiles", real_data("oam_banepa")
    buildings = json.loads((tiles / "buildings.geojson").read_text(encoding="utf-8"))
    shapes = [(one["geometry"], 2) for one in buildings["features"]]
    (folder / "labels").mkdir(parents=True)
    shutil.copytree(tiles / "tiles", folder / "images")
    stems = sorted(path.stem for path in (folder / "images").glob("*.tif"))
    for stem in stems:
        label = rasterize(
            shapes,
            (512, 512),
            fill=1,
            transform=tile_transform(stem),
            dtype="uint8",
        )
        Image.fromarray(label).save(folder / "labels" / f"{stem}.tif")
    shutil.copy(real / DEFINITION, folder / DEFINITION)
    lines = (real / MAP).read_bytes().decode().splitlines(keepends=True)[: len(stems) + 1]
    numbers = dict.fromkeys(re.findall(r"\d+", "".join(lines)))  # 19 is there twice
    names = dict(zip(numbers, stems, strict=True))
    text = "".join(re.sub(r"\d+", lambda found: names[found[0]], line) for line in lines)
    (folder / MAP).write_bytes(text.encode())
    return folder


@pytest.mark.slow
def test_real_tiles_under_a_real_definition_train(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = banepa(real_data, tmp_path / "export")
    talk = Told()
    data = prepare_data(folder, chip_size=128, batch_size=4, epoch_chips=8, talk=talk)
    assert data.class_mapping == {1: "1", 2: "2"} and data.c == 2
    assert len(data.train_ds) + len(data.valid_ds) == 36
    assert data.bands.names == ("red", "green", "blue") and data.chip_size == 128
    assert sorted(line.split(": ", 1)[1] for line in talk.notes()) == [
        "map.txt lists 1 chip again; each counts once.",
        "there is no esri_accumulated_stats.json. Nothing of it is needed: all is counted in the "
        "chips.",
        "this is a JPEG, and 35 more files are not what the ending says. It is read as what it is. "
        "Rename it, so that others do so too.",
    ]
    share = data.num_pixels_per_class[2] / sum(data.num_pixels_per_class.values())
    assert 0.2 < share < 0.7
    unet = UnetClassifier(data, backbone="tutorial", n_filters=4, talk=QUIET)
    unet.fit(1, lr=0.001)
    card = bundle.load_card(unet.save("banepa"))
    assert [info.raw for info in card.classes] == [(1,), (2,)]
    assert card.orientation == "free" and card.pixel_size is None
    answers = unet.predict(folder / "images" / f"{data.valid_ds[0].key}.tif")
    assert answers.shape == (512, 512) and set(np.unique(answers)) <= {1, 2}


def test_what_lies_beside_real_tiles_says_their_pixel_size_if_trusted(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = banepa(real_data, tmp_path / "export")
    data = prepare_data(folder, trust=True, talk=QUIET)
    degree = math.pi / 180 * 6378137.0
    assert data.plan.pixel_size is not None
    assert data.plan.pixel_size == pytest.approx(1.341e-6 * degree * math.cos(0.4823), rel=0.01)


@pytest.mark.parametrize(
    ("name", "shown", "told"),
    [
        ("drone_classified_tiles", "3,382 chips of 400×400 px", "images/ and labels/ are not in"),
        ("palm_pascal_voc", "Palm", "of the kind PASCAL_VOC_rectangles"),
        ("rgb_export_tiles", "4000×4000 px", "of the kind Export_Tiles"),
    ],
)
def test_inspect_shows_what_a_real_export_says(
    real_data: Callable[[str], Path], name: str, shown: str, told: str
) -> None:
    folder = real_data("esri_exports") / name
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 3 and shown in done.output and told in done.output
    assert "1 error, 0 warnings, 0 notes" in done.output and "Traceback" not in done.output
    as_json = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    found = json.loads(as_json.output)
    assert as_json.exit_code == 3 and len(found["problems"]) == 1 and found["exports"]
    with pytest.raises(DataError, match=re.escape(told)):
        prepare_data(folder, talk=QUIET)


# Made ones


def test_a_small_export_from_folder_to_bundle(tmp_path: Path) -> None:
    root = made_export(tmp_path / "data", count=10, values=(0, 1, 2), named=NAMED)
    for i in range(10):
        path = root / "images" / f"{i:09d}.tif"
        pixels = read_image(path)[0]
        grid = Grid(WEB, Affine(0.5, 0, 100.0 * i, 0, -0.5, 0), *pixels.shape[1:])
        path.write_bytes(encode_geotiff(pixels, grid, ["a", "b", "c"]))
    talk = Told()
    data = prepare_data(root, batch_size=4, val_split_pct=0.3, talk=talk)
    assert data.classes == ["NoData", "roof, flat", "road"]
    assert data.color_mapping[1] == [9, 8, 7]
    assert "note     chip_size: 16 px" in talk.notes()[-1]
    assert any("0 in its labels" in line for line in talk.notes())
    unet = UnetClassifier(data, "tutorial", n_filters=2, talk=QUIET)
    unet.fit(1, lr=0.01)
    saved = unet.save("small")
    card = bundle.load_card(saved)
    assert card.pixel_size == pytest.approx(0.5, rel=0.01)
    assert card.classes.names == ["NoData", "roof, flat", "road"]
    scores = jobs.evaluate(saved, root, part="all", talk=QUIET)
    assert scores["images"] == 10 and [row["value"] for row in scores["classes"]] == [0, 1, 2]
    without = UnetClassifier(data, "tutorial", n_filters=2, ignore_classes=[0], talk=QUIET)
    without.fit(1, lr=0.01)
    assert bundle.load_card(without.save("without")).classes.names == ["roof, flat", "road"]


def test_no_pixel_size_is_kept_of_chips_that_are_stretched(tmp_path: Path) -> None:
    root = made_export(tmp_path, count=4)
    for i in range(4):
        path = root / "images" / f"{i:09d}.tif"
        pixels = read_image(path)[0]
        grid = Grid(WEB, Affine(0.5, 0, 100.0 * i, 0, -0.5, 0), *pixels.shape[1:])
        path.write_bytes(encode_geotiff(pixels, grid, ["a", "b", "c"]))
    assert prepare_data(root, talk=QUIET).plan.pixel_size is not None
    assert prepare_data(root, resize_to=32, talk=QUIET).plan.pixel_size is None


def test_a_class_mapping_goes_before_the_definition(tmp_path: Path) -> None:
    root = made_export(tmp_path, values=(0, 1, 2), named=NAMED)
    data = prepare_data(root, {2: "street", 9: "nothing"}, talk=QUIET)
    assert data.class_mapping == {0: "NoData", 1: "roof, flat", 2: "street"}
    data = prepare_data(root, classes="0=ignore", talk=QUIET)
    assert data.class_mapping == {1: "roof, flat", 2: "road"}


@pytest.mark.parametrize(
    ("space", "orientation"), [("MAP_SPACE", "free"), ("", "free"), ("PIXEL_SPACE", "upright")]
)
def test_maps_have_no_upside(tmp_path: Path, space: str, orientation: str) -> None:
    root = made_export(tmp_path, lines={"ImageSpaceUsed": space})
    assert prepare_data(root, talk=QUIET).plan.orientation == orientation
    assert prepare_data(root, orientation="upright", talk=QUIET).plan.orientation == "upright"


def test_several_exports_as_one(tmp_path: Path) -> None:
    bands = ("Blue", "Red", "NIR", "SWIR")
    more = [*NAMED[1:], {"Value": 5, "Name": "water = lake", "Color": [1, 1, 200]}]
    one = made_export(tmp_path / "one", named=NAMED, bands=bands, count=4)
    two = made_export(tmp_path / "two", values=(2, 5), named=more, bands=bands, seed=1, count=4)
    names = [f"{i:09d}.tif" for i in range(3)]
    write_map(two, zip(names, names, strict=True))
    three = made_export(tmp_path / "three", named=NAMED, bands=bands, seed=2, count=2)
    talk = Told()
    work = tmp_path / "work"
    data = prepare_data([one, two], valid_path=three, bands="nir,red", working_dir=work, talk=talk)
    assert data.class_mapping == {1: "roof, flat", 2: "road", 5: "water = lake"}
    assert data.color_mapping[5] == [1, 1, 200]
    assert (data.bands.names, data.bands.numbers) == (("nir", "red"), (3, 2))
    assert (len(data.train_ds), len(data.valid_ds)) == (7, 2)
    assert [line.split(": ", 1)[1] for line in talk.notes("note", "warning")][:1] == [
        "1 of its files are not in map.txt and are left out (000000003.tif). That is fine if it "
        "is meant."
    ]
    assert not any("there is no" in line for line in talk.lines)
    told = json.loads((data.path / DEFINITION).read_text(encoding="utf-8"))
    assert told["MergedFrom"] == [str(one), str(two), str(three)]
    again = prepare_data([one, two], valid_path=three, working_dir=work, talk=QUIET)
    assert again.path == data.path and again.bands.names == ("blue", "red", "nir", "swir")


def test_exports_that_contradict_each_other(tmp_path: Path) -> None:
    other = [{"Value": 1, "Name": "road"}, {"Value": 2, "Name": "roof, flat"}]
    one = made_export(tmp_path / "one", named=NAMED, count=2)
    two = made_export(tmp_path / "two", named=other, count=2)
    work = tmp_path / "work"
    with pytest.raises(DataError, match=r"contradict each other: 1 is 'roof, flat' in .*'road' in"):
        prepare_data([one, two], working_dir=work, talk=QUIET)
    three = made_export(tmp_path / "three", mode="RCNN_Masks", count=2)
    with pytest.raises(DataError, match=r"three: this export is of the kind RCNN_Masks"):
        prepare_data(one, valid_path=three, working_dir=work, talk=QUIET)
    four = made_export(tmp_path / "four", named=NAMED, bands=("",) * 4, count=2)
    with pytest.raises(DataError, match="do not have the same number of bands"):
        prepare_data([one, four], working_dir=work, talk=QUIET)
    assert not work.exists()


def test_a_class_table_that_folders_keep_goes_with_them(tmp_path: Path) -> None:
    folders = [
        blocks_folder(tmp_path / name, [(16, 16)] * 3, seed=s) for s, name in enumerate("ab")
    ]
    table = 'classes = "0=rest,1=roof,2=ignore"\n'
    (folders[0] / "classes.toml").write_text(table, encoding="utf-8")
    work = tmp_path / "work"
    with pytest.raises(DataError, match=r"do not keep one classes\.toml \(.*0=rest.*b: none\)"):
        prepare_data(folders, working_dir=work, talk=QUIET)
    (folders[1] / "classes.toml").write_text(table, encoding="utf-8")
    data = prepare_data(folders, working_dir=work, talk=QUIET)
    assert data.class_mapping == {0: "rest", 1: "roof"}
    (folders[1] / "classes.toml").write_text(table.replace("roof", "road"), encoding="utf-8")
    with pytest.raises(DataError, match="1=roof.*1=road"):
        prepare_data(folders, working_dir=work, talk=QUIET)
    export = made_export(tmp_path / "export", values=(1, 2), bands=("",), count=2)
    shutil.rmtree(folders[1])
    data = prepare_data([folders[0], export], working_dir=work, talk=QUIET)
    assert data.class_mapping == {0: "rest", 1: "roof"}


def test_stratified_exports_keep_their_names(tmp_path: Path) -> None:
    root = made_export(tmp_path / "data", count=12, values=(0, 1, 2), named=NAMED)
    (root / "labels" / "000000011.tif").unlink()
    talk = Told()
    data = prepare_data(
        root, stratify=True, val_split_pct=0.3, working_dir=tmp_path / "work", talk=talk
    )
    assert data.classes == ["NoData", "roof, flat", "road"] and data.path != root
    assert any("1 of its files have no label" in line for line in talk.notes())
    assert len(data.train_ds) + len(data.valid_ds) == 11


def test_mrf_chips_train_where_they_are_trusted(tmp_path: Path) -> None:
    with rasterio.Env() as env:
        if "MRF" not in env.drivers():
            pytest.skip("this GDAL has no MRF")
    root = made_export(tmp_path / "data", count=6)
    for path in [*(root / "images").iterdir()]:
        pixels = read_image(path)[0]
        size: dict[str, Any] = {"count": 3, "height": 16, "width": 16, "dtype": "uint8"}
        place = {"crs": WEB, "transform": Affine(0.5, 0, 0, 0, -0.5, 0)}
        with rasterio.open(path.with_suffix(".mrf"), "w", driver="MRF", **size, **place) as file:
            file.write(pixels)
        path.unlink()
    write_map(root, [(f"{i:09d}.mrf", f"{i:09d}.tif") for i in range(6)])
    work = tmp_path / "work"
    for path in (root, [root, root]):
        with pytest.raises(DataError, match=r"6 of its files are MRF.* say --trust"):
            prepare_data(path, working_dir=work, talk=QUIET)
    both = prepare_data([root, root], trust=True, working_dir=work, talk=QUIET)
    assert len(both.train_ds) + len(both.valid_ds) == 12
    run = jobs.train(
        root,
        tmp_path / "run",
        trust=True,
        split="50/50/0",
        epochs=1,
        n_filters=2,
        device="cpu",
        talk=QUIET,
    )
    assert run is not None and run.card.pixel_size == pytest.approx(0.5, rel=0.01)
    assert jobs.evaluate(run.path, root, trust=True, part="val", talk=QUIET)["images"] == 3
    done = CliRunner().invoke(app, ["inspect", str(root), "--trust"])
    assert done.exit_code == 0 and "6 pairs, 6 of them in order" in done.output
