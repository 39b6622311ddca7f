"""Scenes and their labels: each pixel gets what lies at its place on the ground."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from made_maps import NORTH_UP, make_pixels, write_scene
from made_scenes import PLACES, add_layer, bright_scene, town, truth_of, write_places
from whatwhere.data.census import check_present, look
from whatwhere.data.doctor import Survey, check_classes, classes_of, summary
from whatwhere.data.inputs import Inputs
from whatwhere.data.scenes import Block, SceneSource, Wish, open_scenes
from whatwhere.errors import DataError, UsageError
from whatwhere.talk import QUIET
from whatwhere.types import Bands

SIZE = (640, 640)


def survey(root: Path, wish: Wish | None = None, **said: Any) -> Survey:
    return look(Inputs.of(root, **said), wish or Wish(), 0.25, QUIET)


def whole(found: Survey, name: str | None = None) -> tuple[Any, Any]:
    """All blocks' labels put together, -1 where a pixel is not labelled; and the image."""
    source = found.source
    assert isinstance(source, SceneSource)
    scene = next(one for one in source.scenes if name in (None, one.name))
    numbers = np.full(scene.raster.size, -9)
    pixels: Any = None
    for block in source.blocks:
        if block.scene is scene:
            mine, counted = block.labels()
            image, _ = block.read()
            if pixels is None:
                pixels = np.zeros((len(image), *numbers.shape))
            assert (numbers[block.window.slices] == -9).all()
            numbers[block.window.slices] = np.where(counted, mine, -1)
            pixels[(slice(None), *block.window.slices)] = image
    return numbers, pixels


def errors(found: Survey) -> list[str]:
    return [str(problem) for problem in found.errors]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_shapes_are_burnt_where_they_lie_whatever_their_system(tmp_path: Path, suffix: str) -> None:
    scene, _, truth = town(tmp_path)
    labels = write_places(tmp_path / f"l{suffix}", PLACES)
    found = survey(scene, labels=labels)
    numbers, pixels = whole(found)
    assert np.array_equal(numbers, truth)
    assert np.array_equal(pixels[0] > 90, truth > 0)
    classes = classes_of(found, "")
    assert classes.names == ["background", "l"] and classes.task == "binary"
    assert classes_of(found, "ground, roof").names == ["ground", "roof"]


def test_words_are_numbered_in_their_order_after_a_background(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    kinds = ["water", "roof", "roof", "tree"]
    places = [(0, 0, 60, 60), (30, 30, 60, 60), (300, 300, 50, 50), (500, 0, 40, 640)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": kinds})
    found = survey(scene, labels=labels, class_field="kind")
    numbers = [1 + sorted(set(kinds)).index(kind) for kind in kinds]
    assert np.array_equal(whole(found)[0], truth_of(SIZE, places, numbers))
    classes = classes_of(found, "")
    assert classes.names == ["background", "roof", "tree", "water"]
    assert [info.value for info in classes] == [0, 1, 2, 3] and classes.task == "multiclass"
    picked = classes_of(found, "water,background")
    assert picked.names == ["background", "water"] and check_classes(found, picked) == []
    labels_of_all, valid, _ = picked.encode(whole(found)[0])
    assert valid.sum() == np.isin(whole(found)[0], (0, 3)).sum() and labels_of_all.max() == 1
    with pytest.raises(UsageError, match=r"no label is called 'wather'; did you mean 'water'\?"):
        classes_of(found, "background,wather")
    with pytest.raises(UsageError, match="the labels hold words, not numbers"):
        classes_of(found, "1=water,2=roof")


def test_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(0, 0, 60, 60), (100, 30, 60, 60), (300, 300, 50, 50)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"code": [12.0, 3.0, 12.0]})
    found = survey(scene, labels=labels, class_field="code")
    assert np.array_equal(whole(found)[0], truth_of(SIZE, places, [12, 3, 12]))
    assert classes_of(found, "").names == ["background", "class 3", "class 12"]
    assert [info.value for info in classes_of(found, "")] == [0, 3, 12]
    assert classes_of(found, "ground,roof,lawn").names == ["ground", "roof", "lawn"]
    named = classes_of(found, "0=ignore,3=roof,12=lawn")
    assert named.names == ["roof", "lawn"] and named.ignored == (0,)
    with pytest.raises(UsageError, match="3 names are needed, for background, 3, 12"):
        classes_of(found, "roof,lawn")


def test_a_zero_among_the_numbers_is_not_the_background(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(0, 0, 60, 60), (100, 30, 60, 60)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"code": [0, 1]})
    classes = classes_of(survey(scene, labels=labels, class_field="code"), "")
    assert classes.names == ["background", "class 0", "class 1"]
    assert [info.raw for info in classes] == [(-1,), (0,), (1,)]


def test_shapes_without_a_class_are_not_labelled(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(0, 0, 200, 640), (300, 0, 60, 60), (400, 0, 60, 60)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": ["a", "b", ""]})
    found = survey(scene, labels=labels, class_field="kind")
    wanted = truth_of(SIZE, places[:2], [1, 2])
    wanted[400:460, :60] = -1
    assert np.array_equal(whole(found)[0], wanted)
    assert any("1 of 3 shapes have no kind" in str(problem) for problem in found.problems)


def test_beyond_the_area_of_interest_nothing_is_labelled(tmp_path: Path) -> None:
    scene, labels, truth = town(tmp_path)
    aoi = write_places(tmp_path / "aoi.gpkg", [(0, 0, 300, 640)])
    found = survey(scene, labels=labels, aoi=aoi)
    wanted = truth.copy()
    wanted[300:] = -1
    assert np.array_equal(whole(found)[0], wanted)
    assert all(int(pair.key[-14:-8]) < 300 for pair in found.pairs)


def test_sparse_labels_have_no_background(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(0, 0, 60, 60), (100, 30, 60, 60)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": ["a", "b"]})
    found = survey(scene, labels=labels, class_field="kind", aoi=labels)
    classes = classes_of(found, "")
    assert classes.names == ["a", "b"] and [info.value for info in classes] == [1, 2]
    assert not [problem for problem in found.problems if problem.severity == "warning"]
    thin = survey(scene, labels=labels, class_field="kind")
    assert any("only 1.8% of the pixels lie in a shape" in str(p) for p in thin.problems)


def test_layers_of_one_file(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = {"roofs": [(0, 0, 60, 60)], "trees": [(300, 300, 90, 90)]}
    for name, found in places.items():
        add_layer(tmp_path / "l.gpkg", name, found)
    for name, found in places.items():
        mine = survey(scene, labels=tmp_path / "l.gpkg", layer=name)
        assert np.array_equal(whole(mine)[0], truth_of(SIZE, found, [1]))
        assert classes_of(mine, "").names == ["background", name]
    text = f'layer = "trees"\n[[scene]]\nimage = "{scene.name}"\nlabels = "l.gpkg"\n'
    listed = survey(write_list(tmp_path / "data.toml", text))
    assert np.array_equal(whole(listed)[0], truth_of(SIZE, places["trees"], [1]))
    told = errors(survey(scene, labels=tmp_path / "l.gpkg"))
    assert told and "it has 2 layers: roofs, trees" in told[0]
    told = errors(survey(scene, labels=tmp_path / "l.gpkg", layer="roof"))
    assert told and "no layer 'roof'; it has roofs, trees" in told[0]
    sparse = survey(scene, labels=tmp_path / "l.gpkg", layer="roofs", aoi=tmp_path / "l.gpkg")
    assert (whole(sparse)[0] == 1).sum() == (whole(sparse)[0] >= 0).sum() == 60 * 60
    labels = write_scene(tmp_path / "l.tif", np.ones((1, 640, 640), np.uint8))
    with pytest.raises(UsageError, match="--layer is for shapes; this is a raster"):
        survey(scene, labels=labels, layer="roofs")


def test_lines_need_a_width(tmp_path: Path) -> None:
    import shapely

    from whatwhere.io.crs import to_wkt
    from whatwhere.io.vector import write_features

    scene, _, _ = town(tmp_path)
    x, y = NORTH_UP @ (0, 320)
    line = np.array([shapely.LineString([(x, y), (x + 320, y)])])
    wkt = to_wkt(CRS.from_epsg(32645))
    labels = write_features(tmp_path / "roads.gpkg", wkt, line, {"a": np.array([1])})
    (told,) = errors(survey(scene, labels=labels))
    assert "it holds lines or points, which cover no pixel" in told and "--buffer-m METRES" in told
    numbers, _ = whole(survey(scene, labels=labels, buffer_m=5))
    rows = np.flatnonzero(numbers[:, 320])
    assert (rows.min(), rows.max()) == (310, 329) and numbers[320].all()


def test_labels_elsewhere_and_too_small_are_told(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    away = write_places(tmp_path / "away.gpkg", [(9000, 9000, 60, 60)])
    (told,) = errors(survey(scene, labels=away))
    assert "away.gpkg" in told and "they do not meet" in told
    places = [(0, 0, 60, 60), (-300, 0, 60, 60)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": ["a", "gone"]})
    found = survey(scene, labels=labels, class_field="kind")
    (problem,) = check_present(found, classes_of(found, ""))
    assert "no pixel that counts is gone: the shapes are too small, or outside" in problem.cause
    assert check_present(found, classes_of(found, "background,a")) == []


# ---------------------------------------------------------------- rasters of classes


def test_a_raster_of_classes_is_found_by_its_coordinates(tmp_path: Path) -> None:
    truth = truth_of(SIZE, [(0, 0, 320, 320), (400, 100, 80, 240)], [1, 2])
    scene = bright_scene(tmp_path / "s.tif", truth)
    shifted = NORTH_UP @ Affine.translation(-40, 24)  # 24 rows later, 40 columns earlier
    other = np.full((1, 640, 640), 3, np.uint8)
    other[0, :616, 40:] = truth[24:, :600]
    labels = write_scene(tmp_path / "l.tif", other, transform=shifted)
    wanted = truth.copy()
    wanted[:24] = -1
    wanted[:, 600:] = -1
    numbers, _ = whole(survey(scene, labels=labels))
    assert np.array_equal(numbers, wanted)


def test_coarser_classes_in_another_system_are_the_nearest(tmp_path: Path) -> None:
    coarse = np.random.default_rng(3).integers(1, 4, (1, 40, 40)).astype(np.uint8)
    truth = np.kron(coarse[0], np.ones((16, 16), np.int64))
    scene = bright_scene(tmp_path / "s.tif", truth)
    grid = NORTH_UP @ Affine.scale(16)
    same = write_scene(tmp_path / "same.tif", coarse, transform=grid)
    assert np.array_equal(whole(survey(scene, labels=same))[0], truth)
    from whatwhere.io.crs import move_points, to_wkt

    rows, columns = np.mgrid[:640, :640] + 0.5
    xs, ys = NORTH_UP @ (columns.ravel(), rows.ravel())
    xs, ys = move_points(xs, ys, to_wkt(CRS.from_epsg(32645)), to_wkt(CRS.from_epsg(3857)))
    place = Affine(8.0, 0, xs.min() - 1, 0, -8.0, ys.max() + 1)
    values = np.random.default_rng(4).integers(1, 200, (1, 60, 60)).astype(np.int32)
    other = write_scene(
        tmp_path / "o.tif", values, transform=place, crs=CRS.from_epsg(3857), nodata=7
    )
    across, down = ~place @ (xs, ys)
    wanted = values[0][down.astype(int), across.astype(int)].reshape(640, 640).astype(int)
    wanted[wanted == 7] = -1
    assert np.array_equal(whole(survey(scene, labels=other))[0], wanted)


def test_classes_that_are_all_but_nodata_are_told(tmp_path: Path) -> None:
    truth = truth_of(SIZE, [(0, 0, 320, 320)], [1])
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_scene(tmp_path / "l.tif", truth[None].astype(np.uint8), nodata=0)
    found = survey(scene, labels=labels)
    assert np.array_equal(whole(found)[0] == 1, truth == 1)
    with pytest.raises(DataError, match=r"nothing but 1: .* Their nodata is 0: such pixels are"):
        classes_of(found, "")
    with pytest.raises(DataError, match=r'name it: --classes "0=NAME,1=NAME"\.'):
        classes_of(found, "")


def test_a_number_that_is_named_is_a_class_whatever_the_file_says(tmp_path: Path) -> None:
    truth = truth_of(SIZE, [(0, 0, 320, 320), (400, 0, 50, 50)], [1, 2])
    scene = bright_scene(tmp_path / "s.tif", truth)
    labels = write_scene(tmp_path / "l.tif", truth[None].astype(np.uint8), nodata=0)
    for spec, named in (
        ("0=ground,1=roof,2=tree", True),
        ("1=roof,2=tree", False),
        ("0=ignore,1=roof,2=tree", False),
        ("roof,tree", False),
    ):
        found = survey(scene, Wish(spec=spec), labels=labels)
        wanted = truth if named else np.where(truth == 0, -1, truth)
        assert np.array_equal(whole(found)[0], wanted)
        names = ["ground", "roof", "tree"] if named else ["roof", "tree"]
        assert (
            classes_of(found, spec).names == names
            and check_classes(found, classes_of(found, spec)) == []
        )


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.ones((3, 64, 64), np.uint8), {}, "labels are one band of numbers; this has 3"),
        (np.full((1, 640, 640), 0.5, np.float32), {}, "labels are whole numbers; this holds 0.5"),
        (
            np.ones((1, 64, 64), np.uint8),
            {"crs": None, "transform": Affine.identity()},
            "have no coordinates",
        ),
        (
            np.ones((1, 64, 64), np.uint8),
            {"transform": NORTH_UP @ Affine.translation(5000, 0)},
            "no pixel of it that has data is labelled",
        ),
    ],
)
def test_rasters_that_are_no_labels(
    tmp_path: Path, pixels: Any, options: dict[str, Any], message: str
) -> None:
    scene, _, _ = town(tmp_path)
    labels = write_scene(tmp_path / "l.tif", pixels, **options)
    told = errors(survey(scene, labels=labels))
    assert told and all(message in one for one in told)


# ---------------------------------------------------------------- several scenes


def test_bands_are_matched_by_name(tmp_path: Path) -> None:
    pixels = make_pixels(128, 128, 3)
    for name, order, names in (("a", (0, 1, 2), "rgn"), ("b", (2, 0, 1), "nrg")):
        place = NORTH_UP @ Affine.translation(1000 * (name == "b"), 0)
        path = write_scene(tmp_path / f"{name}.tif", pixels[list(order)], transform=place)
        write_places(tmp_path / "labels" / f"{name}.gpkg", [(0, 0, 64, 64)], transform=place)
        import rasterio

        with rasterio.open(path, "r+") as file:
            file.descriptions = tuple(
                {"r": "Red", "g": "Green", "n": "NIR"}[letter] for letter in names
            )
    for bands in ("auto", "red,green,nir"):
        found = survey(tmp_path, Wish(bands), labels=tmp_path / "labels")
        assert np.array_equal(whole(found, "a")[1], whole(found, "b")[1])
        assert isinstance(found.source, SceneSource)
        assert found.source.bands == Bands(("red", "green", "nir"), (1, 2, 3))
    found = survey(tmp_path, Wish("nir,red"), labels=tmp_path / "labels")
    assert np.array_equal(whole(found, "b")[1], pixels[[2, 0]])
    found = survey(tmp_path, Wish(Bands(("nir",), (3,))), labels=tmp_path / "labels")
    assert np.array_equal(whole(found, "b")[1], pixels[[2]])
    with pytest.raises(DataError, match=r"(?s)of --bands swir; they have\n  a: Red, Green, NIR\n"):
        survey(tmp_path, Wish("swir"), labels=tmp_path / "labels")
    assert classes_of(found, "").names == ["background", "labels"]


def test_scenes_of_other_pixels_are_resampled(tmp_path: Path) -> None:
    truth = truth_of((256, 256), [(64, 64, 128, 64)], [1])
    for name, size, factor in (("a", 256, 1), ("b", 256, 1), ("c", 128, 2)):
        scene = truth[::factor, ::factor]
        grid = NORTH_UP @ Affine.translation(1000 * "abc".index(name), 0) @ Affine.scale(factor)
        bright_scene(tmp_path / f"{name}.tif", scene, transform=grid)
        places = [(64 // factor, 64 // factor, 128 // factor, 64 // factor)]
        write_places(tmp_path / "labels" / f"{name}.gpkg", places, transform=grid)
        assert scene.shape == (size, size)
    found = survey(tmp_path, labels=tmp_path / "labels")
    assert isinstance(found.source, SceneSource)
    assert found.source.pixel_size == pytest.approx(0.5, rel=0.01)
    assert np.array_equal(whole(found, "c")[0], truth)
    (warned,) = [p for p in found.problems if p.severity == "warning"]
    assert "its pixels are 1 m and are resampled to 0.5 m" in warned.cause
    assert "c.tif" in warned.file
    coarse = survey(tmp_path, Wish(resolution_m=2.5), labels=tmp_path / "labels")
    assert [scene.raster.size for scene in coarse.source.scenes] == [(51, 51)] * 3  # type: ignore[attr-defined]
    odd = NORTH_UP @ Affine.translation(4000, 0) @ Affine.scale(9)
    bright_scene(tmp_path / "d.tif", truth, transform=odd)
    write_places(tmp_path / "labels" / "d.gpkg", [(0, 0, 9, 9)], transform=odd)
    (told,) = errors(survey(tmp_path, labels=tmp_path / "labels"))
    assert "d.tif: its pixels are 4.5 m" in told and "--resolution-m" in told


def test_one_file_may_label_all_scenes_and_all_errors_come_at_once(tmp_path: Path) -> None:
    _, labels, _ = town(tmp_path / "in")
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\x00" + b"\x00" * 40)
    (tmp_path / "in" / "text.tif").write_text("no raster")
    (tmp_path / "in" / "labels").mkdir()
    told = errors(survey(tmp_path / "in", labels=labels))
    assert len(told) == 2 and "bad.tif" in told[0] and "text.tif" in told[1]
    for name in ("bad", "text"):
        (tmp_path / "in" / f"{name}.tif").unlink()
    assert len(survey(tmp_path / "in", labels=labels).pairs) == 25


# ---------------------------------------------------------------- what is said


def write_list(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_of_scenes(tmp_path: Path) -> None:
    _, _, truth = town(tmp_path)
    far = NORTH_UP @ Affine.translation(2000, 0)
    bright_scene(tmp_path / "far.tif", truth, transform=far)
    write_places(tmp_path / "far.gpkg", PLACES, transform=far)
    path = write_list(
        tmp_path / "data.toml",
        'labels = "town_houses.geojson"\n[[scene]]\nimage = "town.tif"\nsplit = "train"\n'
        '[[scene]]\nimage = "far.tif"\nlabels = "far.gpkg"\nsplit = "val"\n',
    )
    found = survey(path)
    assert {pair.split for pair in found.pairs} == {"train", "val"}
    assert np.array_equal(whole(found, "far")[0], truth)
    assert [one["name"] for one in summary(found, None)["scenes"]] == ["town", "far"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('labls = "a"\n[[scene]]\nimage = "a"', "unknown key 'labls', did you mean 'labels'"),
        ('[[scene]]\nimage = "a"', "scene 1 has no labels"),
        ('labels = "a"\n[[scene]]\nsplit = "dev"', "scene 1 has no image; scene 1: split must be"),
        ('labels = "a"\nnodata = "b"\n[[scene]]\nimage = "a"', "nodata must be of type float"),
        ("class_field = 'a'", "it lists no scene"),
        ("= 3", "this is not TOML"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        survey(write_list(tmp_path / "data.toml", text))


def test_what_means_nothing_is_refused(tmp_path: Path) -> None:
    scene, labels, truth = town(tmp_path / "in")
    with pytest.raises(UsageError, match=r"town\.tif: a raster needs labels: --labels FILE"):
        survey(scene)
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="--labels is for rasters with labels, and .* has images/"):
        survey(tmp_path / "set", labels=labels)
    with pytest.raises(UsageError, match="--class-field is for rasters with labels"):
        survey(tmp_path / "set", class_field="a")
    raster = write_scene(tmp_path / "l.tif", truth[None].astype(np.uint8))
    with pytest.raises(UsageError, match=r"l\.tif: --class-field is for shapes; this is a raster"):
        survey(scene, labels=raster, class_field="a")
    with pytest.raises(UsageError, match="--buffer-m must be a distance of at least 0 m"):
        survey(scene, labels=labels, buffer_m=-1)
    with pytest.raises(DataError, match=r"there are no labels of the same stem for town\.tif"):
        survey(tmp_path / "in", labels=tmp_path / "set")
    with pytest.raises(DataError, match="there is no raster in it"):
        survey(tmp_path / "set" / "images", labels=labels)


def test_what_was_typed_can_be_typed_again(tmp_path: Path) -> None:
    inputs = Inputs.of("a b.tif", labels="c.gpkg", buffer_m=2.5, trust=True)
    assert inputs.words == "'a b.tif' --labels c.gpkg --buffer-m 2.5 --trust"


# ---------------------------------------------------------------- blocks


def test_blocks_travel_to_other_processes(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    source = open_scenes(Inputs.of(scene, labels=labels), Wish())
    for one in source.blocks[:2]:
        other = pickle.loads(pickle.dumps(one))
        assert isinstance(other, Block)
        for mine, its in zip(
            (*one.read(), *one.labels()), (*other.read(), *other.labels()), strict=True
        ):
            assert np.array_equal(mine, its)


def test_nodata_counts_nowhere(tmp_path: Path) -> None:
    scene, labels, truth = town(tmp_path)
    import rasterio

    with rasterio.open(scene, "r+") as file:
        pixels = file.read()
        pixels[:, :200] = 0
        file.write(pixels)
    found = survey(scene, labels=labels, nodata=0)
    assert sum(one.numbers[0].total() for one in found.facts.values()) == (640 - 200) * 640
    assert sum(one.numbers[0][1] for one in found.facts.values()) == truth[200:].sum()


def test_the_real_town(real_data: Any) -> None:
    root = real_data("oam_banepa")
    found = survey(root / "scene_train.tif", labels=root / "buildings.geojson")
    assert len(found.pairs) == 36 and not found.errors
    pixels = sum(one.numbers[0][1] for one in found.facts.values())
    assert pixels == 4_505_192


def test_real_labels_that_are_sparse(real_data: Any) -> None:
    root = real_data("nc_landsat7")
    shapes = root / "landsat96_polygons.shp"
    found = survey(root / "scene_6band.tif", labels=shapes, class_field="label", aoi=shapes)
    picked = classes_of(found, "developed,forest,herbaceous,sediment,shrubland,water")
    total = sum((one.numbers[0] for one in found.facts.values()), Counter[int]())
    assert [total[info.raw[0]] for info in picked] == [343, 749, 411, 57, 202, 149]


def test_an_empty_file_among_several_is_background(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        place = NORTH_UP @ Affine.translation(1000 * i, 0)
        bright_scene(tmp_path / f"{name}.tif", truth_of((256, 256), [], []), transform=place)
    write_places(tmp_path / "l" / "a.gpkg", [(9, 9, 60, 60)])
    write_places(tmp_path / "l" / "b.gpkg", [(-900, 0, 9, 9)])
    found = survey(tmp_path, labels=tmp_path / "l")
    (warned,) = [p for p in found.problems if p.severity == "warning" and "b.gpkg" in p.file]
    assert "they do not meet" in warned.cause and "b.tif is taken for background" in warned.remedy
    assert not found.errors and not whole(found, "b")[0].any()
    write_places(tmp_path / "l" / "a.gpkg", [(-900, 0, 9, 9)])
    assert len(errors(survey(tmp_path, labels=tmp_path / "l"))) == 2


def test_words_with_underscores_are_no_numbers() -> None:
    from whatwhere.data.words import plain

    texts = ("1_1", " 11 ", "+3.0", "1e2", "nan", "٣")
    assert [plain(one) for one in texts] == ["1_1", "11", "3", "100", "nan", "٣"]
