"""Masks and maps through the command line: what is given decides what is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from made import snapshot
from made_maps import make_pixels, make_predictor, save_bundle, write_scene
from told import assert_told, call
from whatwhere import jobs
from whatwhere.io.vector import read_features
from whatwhere.predict import plan
from whatwhere.talk import QUIET


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("net") / "bundle", make_predictor())


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene of several blocks."""
    monkeypatch.setattr(plan, "BLOCK", 512)
    return write_scene(tmp_path / "scene.tif", make_pixels(540, 1030))


def test_a_map_its_polygons_and_its_table(run: Path, scene: Path, tmp_path: Path) -> None:
    out, shapes, table = (tmp_path / name for name in ("map.tif", "map.geojson", "t.csv"))
    words = ("--polygons", shapes, "--min-area-m2", 3, "--square", "--table", table)
    done = call("predict", run, scene, "-o", out, *words, "--threshold", 0.4, "--probabilities")
    assert_told(done, 0, r"plan .*540×1,030 px; tiles of \d+ px without a seam", "about 2 MB")
    assert_told(done, 0, "1 image segmented, 3 files written", r"map\.geojson: \d+ polygons")
    found = read_features(shapes, field="class")
    assert set(found.values) == {"class 1"}
    assert json.loads(shapes.read_text())["features"][0]["properties"]["area_m2"] >= 3
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert sum(int(row[2]) for row in rows[1:]) == 540 * 1030
    with rasterio.open(out) as mask:
        assert int((mask.read(1) == 1).sum()) == int(rows[2][2])
    assert (tmp_path / "map_probabilities.tif").is_file()
    assert not list(tmp_path.glob("*.parts"))


def test_scenes_and_images_in_one_folder(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_scene(folder / "a.tif", make_pixels(60, 70))
    write_scene(folder / "b.tif", make_pixels(50, 40, seed=1))
    plain = make_pixels(33, 44)
    Image.fromarray(np.moveaxis(plain, 0, -1)).save(folder / "c.png")
    done = call("predict", run, folder, "-o", tmp_path / "out", "--json")
    assert_told(done, 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.tif", "a.tif.aux.xml", "b.tif", "b.tif.aux.xml", "c.png"}
    found = json.loads(done.stdout)["images"]
    assert [Path(one["image"]).name for one in found] == ["a.tif", "b.tif", "c.png"]
    both = call("predict", run, folder / "a.tif", folder / "b.tif", "-o", tmp_path / "p", *POLYGONS)
    assert_told(both, 0, r"b\.gpkg: \d+ polygon")
    assert {"a.gpkg", "b.gpkg"} < {path.name for path in (tmp_path / "p").iterdir()}


POLYGONS = ("--polygons", ".gpkg")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_picture_is_a_scene_if_a_tiff_is_wanted(run: Path, tmp_path: Path) -> None:
    pixels = make_pixels(70, 90)
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / "p.png")
    assert_told(call("predict", run, tmp_path / "p.png", "-o", tmp_path / "m.tif"), 0)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.shape == (70, 90) and mask.crs is None
        assert mask.transform == Affine.identity()


def test_shards_and_their_assembly(run: Path, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    first = call("predict", run, scene, "-o", out, "--shard", "1/3", *POLYGONS, "--keep-parts")
    assert_told(first, 0, r"blocks of 512 px \(shard 1 of 3\)", "1 waits for other shards")
    early = call("assemble", out)
    assert_told(early, 3, "4 of 6 parts are missing", "Run the shards that have not finished again")
    for shard in ("2/3", "3/3"):
        call("predict", run, scene, "-o", out, "--shard", shard, *POLYGONS, "--keep-parts")
    whole = out.read_bytes()
    out.unlink()
    assert_told(call("assemble", out, "--vrt"), 0, "1 image segmented")
    with rasterio.open(tmp_path / "map.vrt") as virtual:
        assert virtual.shape == (540, 1030)
    again = call("assemble", out, "--polygons", tmp_path / "other.fgb", "--simplify-px", 0)
    assert_told(again, 0, r"other\.fgb: [\d,]+ polygons")
    assert out.read_bytes() == whole
    assert_told(call("assemble", out), 3, "there are no parts of a prediction")


def test_an_array_of_jobs_finds_its_share(
    run: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    done = call("predict", run, scene, "-o", tmp_path / "map.tif", "--shard", "auto")
    assert_told(done, 0, "shard 2 of 3", "waits for other shards")


def test_two_nets_and_all_symmetries(run: Path, tmp_path: Path) -> None:
    other = save_bundle(tmp_path / "bundle", make_predictor(seed=5))
    scene = write_scene(tmp_path / "s.tif", make_pixels(100, 90))
    made = jobs.predict(
        run, scene, tmp_path / "m.tif", others=[other], tta=True, uncertainty="spread", talk=QUIET
    )
    assert [path.name for path in made[0].files] == ["m.tif", "m_spread.tif"]
    with rasterio.open(tmp_path / "m_spread.tif") as file:
        spread = file.read(1)
    assert spread.max() > 20 and spread.min() < spread.max()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--polygons", "a.shp"], 2, r"a\.shp: write to one of"),
        (["--polygons", "a.txt"], 2, r"a\.txt: write to one of"),
        (["--square"], 2, "--square wants --polygons FILE"),
        (["--overlay"], 2, "--overlay is for images"),
        (["--shard", "4/3"], 2, "part 4 of 3 is none"),
        (["--shard", "auto"], 2, "no index of an array is given"),
        (["--tile", "64"], 2, "no room for a core between two halos of 128 px"),
        (["--memory-limit", "400"], 2, r"--memory-limit 400: a tile of \d+ px takes about"),
        (["--uncertainty", "spread"], 2, "needs several answers"),
        (["--min-area-m2", "inf", "--polygons", "a.gpkg"], 2, "numbers from 0 up"),
        (["--table", "t.csv", "--shard", "1/2"], 2, "--table counts a whole map"),
        (["--polygons", "a!b.gpkg"], 2, "would be taken for an address"),
        (["--nodata", "300"], 3, "300 cannot stand for no data"),
        (["--threshold", "2"], 2, "numbers from 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(40, 40))
    before = snapshot(tmp_path)
    done = call("predict", run, scene, "-o", tmp_path / "map.tif", *words)
    assert_told(done, code, message)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "map.tif.parts").exists()


def test_flags_of_scenes_are_refused_for_images(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    done = call(
        "predict", run, tmp_path / "p.png", "-o", tmp_path / "out", "--keep-parts", *POLYGONS
    )
    assert_told(done, 2, r"--polygons, --keep-parts: for scenes, which have coordinates; .*p\.png")
    scenes = [write_scene(tmp_path / f"{n}.tif", make_pixels(20, 20)) for n in "ab"]
    both = call("predict", run, *scenes, "-o", tmp_path / "one.tif")
    assert_told(both, 2, "one file for 2 scenes. Give a folder")
    named = call("predict", run, *scenes, "-o", tmp_path / "x", "--polygons", "all.gpkg")
    assert_told(named, 2, r"one file for 2 scenes\. Give an ending")


def test_no_input_is_overwritten(run: Path, tmp_path: Path) -> None:
    one = write_scene(tmp_path / "m.tif", make_pixels(40, 40))
    out = tmp_path / "out"
    out.mkdir()
    other = write_scene(out / "m_probabilities.tif", make_pixels(40, 40))
    before = snapshot(tmp_path)
    clash = call("predict", run, one, other, "-o", out, "--probabilities")
    assert_told(clash, 2, r"m_probabilities\.tif: this would overwrite a scene")
    table = call("predict", run, one, "-o", tmp_path / "map.tif", "--table", one)
    assert_told(table, 2, "would overwrite a scene")
    same = call("predict", run, one, "-o", tmp_path / "a.tif", "--table", tmp_path / "a.tif")
    assert_told(same, 2, "two files would get this name")
    assert snapshot(tmp_path) == before


def test_names_without_a_folder(
    run: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_told(call("predict", run, scene.name, "-o", "m.tif", "--keep-parts"), 0)
    assert_told(call("assemble", "m.tif", "--vrt", "--keep-parts"), 0)
    assert_told(call("assemble", "m.tif", "--vrt", *POLYGONS), 2, "--vrt leaves the parts")
    with rasterio.open("m.vrt") as virtual, rasterio.open("m.tif") as whole:
        np.testing.assert_array_equal(virtual.read(), whole.read())


def test_a_damaged_scene_among_good_ones_is_named(run: Path, tmp_path: Path) -> None:
    good = write_scene(tmp_path / "good.tif", make_pixels(300, 300), compress="deflate")
    data = good.read_bytes()
    bad = tmp_path / "bad.tif"
    bad.write_bytes(data[: len(data) - 3000])
    done = call("predict", run, bad, good, "-o", tmp_path / "out")
    assert_told(done, 3, "1 of 2 images could not be segmented", r"bad\.tif: the file is damaged")
    assert (tmp_path / "out" / "good.tif").is_file() and not (tmp_path / "out" / "bad.tif").exists()


def test_a_real_scene_with_white_edges(
    run: Path, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    scene = real_data("oam_banepa") / "scene_predict.tif"
    hinted = call("predict", run, scene, "-o", tmp_path / "a.tif", "--shard", "1/9")
    assert_told(hinted, 0, r"warning .*is 255 in all bands.*--nodata 255")
    made = jobs.predict(run, scene, tmp_path / "b.tif", nodata=255, talk=QUIET)
    assert 0.9 < made[0].valid / 2048**2 < 0.93
