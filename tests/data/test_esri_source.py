"""Exports of ArcGIS Pro as a data set: their chips, classes, bands and pixel sizes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from made_esri import made_export, write_chip, write_map
from whatwhere.data.bands import bands_of
from whatwhere.data.classes import exported_classes
from whatwhere.data.doctor import Survey, check_classes, classes_of, summary, survey
from whatwhere.data.esri_merge import merge
from whatwhere.data.inputs import Inputs
from whatwhere.data.sources import Source, open_source
from whatwhere.errors import DataError, UsageError
from whatwhere.grid import Grid
from whatwhere.io.esri import DEFINITION, MAP, SUMS, EsriClass, read_export
from whatwhere.io.image import read_image, read_mask
from whatwhere.io.small import encode_geotiff
from whatwhere.show import inspection
from whatwhere.talk import QUIET
from whatwhere.types import Bands

WEB = rasterio.crs.CRS.from_epsg(3857).to_wkt()


def look(root: Path, **said: Any) -> Survey:
    return survey(open_source(root, **said), QUIET)


def causes(source: Source, severity: str) -> list[str]:
    found = [one for one in source.problems if one.severity == severity]
    return [f"{one.cause} {one.remedy}".strip() for one in found]


def pairs(root: Path) -> dict[str, list[str]]:
    return {
        pair.key: [path.relative_to(root).as_posix() for path in (pair.image, *pair.masks)]
        for pair in open_source(root).pairs
    }


def rename(folder: Path, name: str, **lines: Any) -> None:
    """Change lines of a definition or of sums; None takes a line out."""
    told = json.loads((folder / name).read_text(encoding="utf-8")) | lines
    kept = {key: value for key, value in told.items() if value is not None}
    (folder / name).write_text(json.dumps(kept), encoding="utf-8")


# Chips


def test_an_export_is_read_without_a_word(tmp_path: Path) -> None:
    source = open_source(made_export(tmp_path, count=3))
    assert source.problems == () and len(source.pairs) == 3
    assert source.definition is not None and len(source.exports) == 1
    first = source.pairs[0]
    assert (first.key, first.split, first.trust) == ("000000000", None, False)
    assert first.image == tmp_path / "images" / "000000000.tif"
    assert first.masks == (tmp_path / "labels" / "000000000.tif",)


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_labels_have_the_ending_that_the_list_says(tmp_path: Path, ending: str) -> None:
    source = open_source(made_export(tmp_path, count=2, ending=ending))
    assert source.problems == ()
    assert [pair.masks[0].name for pair in source.pairs] == ["000000000.png", "000000001.png"]
    assert [pair.image.suffix for pair in source.pairs] == [ending] * 2


def test_what_lies_beside_chips_is_passed_over_without_a_word(tmp_path: Path) -> None:
    made_export(tmp_path, count=2)
    for ending in (".tfw", ".tif.aux.xml", ".tif.ovr", ".prj", ".tif.vat.dbf", ".TFW"):
        (tmp_path / "images" / f"000000000{ending}").touch()
        (tmp_path / "labels" / f"000000000{ending}").touch()
    assert open_source(tmp_path).problems == ()
    (tmp_path / "images" / "notes.docx").touch()
    (note,) = causes(open_source(tmp_path), "note")
    assert note.startswith("1 file with .docx were passed over.")


def test_names_are_found_whatever_their_case(tmp_path: Path) -> None:
    made_export(tmp_path, count=2)
    for place in ("images", "labels"):
        (tmp_path / place).rename(tmp_path / place.upper())
        path = tmp_path / place.upper() / "000000001.tif"
        path.rename(path.with_name("000000001.TIF"))
    (tmp_path / MAP).rename(tmp_path / "MAP.TXT")
    assert pairs(tmp_path) == {
        "000000000": ["IMAGES/000000000.tif", "LABELS/000000000.tif"],
        "000000001": ["IMAGES/000000001.TIF", "LABELS/000000001.TIF"],
    }


def test_a_chip_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    made_export(tmp_path, count=2)
    names = ["000000001.tif", "000000000.tif", "000000001.tif"]
    write_map(tmp_path, zip(names, names, strict=True))
    source = open_source(tmp_path)
    assert [pair.key for pair in source.pairs] == ["000000000", "000000001"]
    assert causes(source, "note") == ["map.txt lists 1 chip again; each counts once."]


def test_a_chip_with_two_labels_is_an_error(tmp_path: Path) -> None:
    made_export(tmp_path, count=2)
    write_map(tmp_path, [("000000000.tif", "000000000.tif"), ("000000000.tif", "000000001.tif")])
    (cause,) = causes(open_source(tmp_path), "error")
    assert cause == (
        "map.txt lists 000000000 with 000000000.tif and with 000000001.tif. "
        "Keep one of the two lines."
    )


def test_chips_without_a_label_or_not_listed_are_left_out(tmp_path: Path) -> None:
    made_export(tmp_path, count=6)
    names = [f"{i:09d}.tif" for i in range(5)]
    write_map(tmp_path, zip(names, names, strict=True))
    (tmp_path / "labels" / names[0]).unlink()
    (tmp_path / "labels" / names[1]).unlink()
    (tmp_path / "labels" / names[2]).rename(tmp_path / "labels" / "000000002.tiff")
    source = open_source(tmp_path)
    assert [pair.key for pair in source.pairs] == ["000000002", "000000003", "000000004"]
    assert causes(source, "note") == [
        f"2 of its files have no label and are left out ({names[0]}, {names[1]}). "
        "That is fine if it is meant.",
        "1 of its files are not in map.txt and are left out (000000005.tif). "
        "That is fine if it is meant.",
    ]


def test_listed_chips_that_are_not_there_are_one_error(tmp_path: Path) -> None:
    made_export(tmp_path, count=6)
    for i in range(1, 6):
        (tmp_path / "images" / f"{i:09d}.tif").unlink()
    (cause,) = causes(open_source(tmp_path), "error")
    assert cause == (
        "5 of 6 chips that map.txt lists are not there (images/000000001.tif, "
        "images/000000002.tif, images/000000003.tif, …). Copy them here; or take map.txt out, and "
        "those that are there are taken."
    )
    (tmp_path / MAP).unlink()
    source = open_source(tmp_path)
    assert [pair.key for pair in source.pairs] == ["000000000"]
    assert "5 of its files are labels of no image and are left out" in causes(source, "note")[1]


def test_what_is_missing_is_derived_and_said(tmp_path: Path) -> None:
    made_export(tmp_path, count=3)
    rename(tmp_path, SUMS, Classes=[{"ClassValue": 2, "ClassName": "water"}])
    (tmp_path / MAP).unlink()
    (tmp_path / DEFINITION).unlink()
    found = look(tmp_path)
    assert len(found.pairs) == 3
    assert causes(found.source, "note") == [
        "there is no esri_model_definition.emd. The classes are named by the sums.",
        "there is no map.txt. Images and labels of the same name go together.",
    ]
    assert found.source.definition is not None
    assert found.source.definition.classes == (EsriClass(2, "water", None),)
    rename(tmp_path, SUMS, Classes=None)
    found = look(tmp_path)
    assert "The classes are those that the labels hold." in causes(found.source, "note")[0]
    assert classes_of(found, "").names == ["class 1", "class 2"]
    (tmp_path / SUMS).unlink()
    write_map(tmp_path, [(f"{i:09d}.tif", f"{i:09d}.tif") for i in range(3)])
    notes = causes(open_source(tmp_path), "note")
    assert [note.split(". ")[0] for note in notes] == [
        "there is no esri_model_definition.emd",
        "there is no esri_accumulated_stats.json",
    ]


def test_an_export_of_which_nothing_is_left(tmp_path: Path) -> None:
    made_export(tmp_path, count=1)
    (tmp_path / "labels" / "000000000.tif").unlink()
    assert "no chip has both an image and a label" in causes(open_source(tmp_path), "error")[0]
    with pytest.raises(DataError, match="no chip has both an image and a label"):
        look(tmp_path).require_sound()


@pytest.mark.parametrize("gone", ["images", "labels"])
def test_a_missing_folder_is_named(tmp_path: Path, gone: str) -> None:
    made_export(tmp_path, count=2)
    shutil.rmtree(tmp_path / gone)
    (cause,) = causes(open_source(tmp_path), "error")
    assert cause.startswith(f"{gone}/ is not in it: this is an export without the 2 chips (images/")


# Other kinds


def test_an_export_of_another_kind_is_one_error(tmp_path: Path) -> None:
    made_export(tmp_path, count=2, mode="RCNN_Masks")
    source = open_source(tmp_path)
    assert source.pairs == ()
    assert causes(source, "error") == [
        "this export is of the kind RCNN_Masks (a mask of each object). Export it with the "
        "metadata format Classified_Tiles: images/, and in labels/ a raster with a class for "
        "every pixel of each."
    ]
    made_export(tmp_path, count=2, mode="Novel_Tiles")
    assert "Novel_Tiles (not known here)" in causes(open_source(tmp_path), "error")[0]


def test_a_kind_that_is_not_said_shows(tmp_path: Path) -> None:
    boxes = made_export(tmp_path / "a", count=2, mode="")
    write_map(boxes, [("000000000.tif", "000000000.xml")])
    assert "its labels are .xml" in causes(open_source(boxes), "error")[0]
    (boxes / MAP).unlink()
    assert open_source(boxes).pairs
    for label in (boxes / "labels").iterdir():
        label.rename(label.with_suffix(".xml"))
    assert "its labels are .xml" in causes(open_source(boxes), "error")[0]
    change = made_export(tmp_path / "b", count=2)
    (change / "images2").mkdir()
    assert (
        "change detection or the like (it has images2/)" in causes(open_source(change), "error")[0]
    )


@pytest.mark.parametrize(
    ("name", "shown", "told"),
    [
        (
            "drone_classified_tiles",
            ["Classified_Tiles: 3,382 chips of 400×400 px", "531,590,974", "3,382 lines"],
            "images/ and labels/ are not in it: this is an export without the 3,382 chips (images/",
        ),
        (
            "palm_pascal_voc",
            ["PASCAL_VOC_rectangles: 482 chips", "Palm       1  #ff0000     482   1,658"],
            "of the kind PASCAL_VOC_rectangles (boxes around objects). Export it with",
        ),
        (
            "rgb_export_tiles",
            ["12 chips of 4000×4000", "pixels of 0.5 units of EPSG:3857", "band 1: 0 to 255, mean"],
            "of the kind Export_Tiles (images without classes). Export it with",
        ),
    ],
)
def test_real_exports_are_shown_and_told(
    real_data: Callable[[str], Path], name: str, shown: Sequence[str], told: str
) -> None:
    found = look(real_data("esri_exports") / name)
    with pytest.raises(DataError) as raised:
        found.require_sound()
    assert told in str(raised.value) and len(raised.value.problems) == 1
    text = inspection(summary(found, None))
    for words in shown:
        assert words in text
    json.dumps(summary(found, None))


# Classes


def table(
    named: Sequence[tuple[int, str]], numbers: Sequence[int], *specs: str
) -> list[tuple[int, str, tuple[int, ...], str]]:
    rows = [EsriClass(value, name, None) for value, name in named]
    found = exported_classes(rows, [Counter(dict.fromkeys(numbers, 5))], *specs)
    return [(info.value, info.name, info.raw, info.role) for info in found]


ROOF = [(1, "roof"), (2, "road")]


def test_classes_keep_their_names_values_and_colours(tmp_path: Path) -> None:
    named = [
        {"Value": 9, "Name": "a, b=c", "Color": [9, 8, 7]},
        {"ClassValue": 2, "ClassName": "road", "Color": [-1, -1, -1]},
    ]
    found = look(made_export(tmp_path, values=(2, 9), named=named))
    classes = classes_of(found, "")
    assert [(info.value, info.name, info.raw) for info in classes] == [
        (2, "road", (2,)),
        (9, "a, b=c", (9,)),
    ]
    assert classes.infos[1].color == (9, 8, 7) and classes.infos[0].color == (230, 159, 0)
    assert classes.task == "binary" and check_classes(found, classes) == []


def test_0_is_a_class_where_labels_hold_it() -> None:
    assert table(ROOF, [1, 2]) == [(1, "roof", (1,), "class"), (2, "road", (2,), "class")]
    zero = (0, "NoData", (0,), "background")
    assert table(ROOF, [0, 1, 2])[0] == zero and len(table(ROOF, [0, 1])) == 3
    assert table([(1, "roof")], [1]) == [zero, (1, "roof", (1,), "class")]
    assert table([(0, "rest"), (1, "roof")], [1])[0] == (0, "rest", (0,), "background")


def test_0_is_noted_unless_it_has_a_name(tmp_path: Path) -> None:
    root = made_export(tmp_path, values=(0, 1, 2))
    found = look(root)
    (note,) = check_classes(found, classes_of(found, ""))
    total = found.facts["000000000"].numbers[0].total() * 6
    zeros = sum(one.numbers[0][0] for one in found.facts.values())
    assert note.severity == "note" and f"({zeros / total:.1%})" in note.cause
    assert '--classes "0=ignore" (in Python ignore_classes=[0])' in note.remedy
    for spec in ("0=ignore", "0=rest"):
        assert check_classes(found, classes_of(found, spec)) == []
    assert classes_of(found, "0=ignore").names == ["kind 1", "kind 2"]
    assert classes_of(found, "0=ignore").ignored == (0,)


def test_what_the_user_says_goes_before_and_the_rest_stays() -> None:
    assert [row[1] for row in table(ROOF, [0, 1, 2], "1=house")] == ["NoData", "house", "road"]
    assert [row[1] for row in table(ROOF, [1, 2], "a,b")] == ["a", "b"]
    assert [row[1] for row in table(ROOF, [0, 1, 2], "x,y,z")] == ["x", "y", "z"]
    assert table(ROOF, [0, 1, 2], "1=built,2=built")[1] == (1, "built", (1, 2), "class")
    assert table(ROOF, [1, 2], "0=background,1=a,7=b")[0] == (1, "a", (1,), "class")
    assert table(ROOF, [1, 2, 7], "7=b")[2] == (7, "b", (7,), "class")
    assert table([(1, "a"), (2, "background")], [1, 2])[0][1:] == ("background", (2,), "background")
    assert [row[1] for row in table([(1, "a, b"), (2, "c")], [1, 2], "1=a; b")] == ["a, b", "c"]


def test_values_that_no_byte_holds_are_written_as_indexes() -> None:
    assert table([(300, "a"), (7, "b")], [0, 7, 300]) == [
        (0, "NoData", (0,), "background"),
        (1, "b", (7,), "class"),
        (2, "a", (300,), "class"),
    ]


def test_classes_of_one_name_are_kept_apart() -> None:
    found = table([(1, "roof"), (2, "roof"), (3, "road")], [1, 2, 3])
    assert [row[1] for row in found] == ["roof (1)", "roof (2)", "road"]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("a", "--classes names a: 2 different names are needed, for 1, 2"),
        ("a,a", "names a, a: 2 different names"),
        ("1=a,b", "'b' must be like 255=salt"),
        ("1=a,1=b", "names 1 twice"),
        ("1=ignore", "road is all that counts of the export's classes"),
    ],
)
def test_what_the_user_says_may_be_wrong(spec: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        table(ROOF, [1, 2], spec)


def test_an_export_of_one_class_has_nothing_to_tell_apart() -> None:
    with pytest.raises(DataError, match="rest is all that counts of the export's classes"):
        table([(0, "rest")], [0])


def test_labels_with_an_unknown_value_are_an_error(tmp_path: Path) -> None:
    named = [{"Value": 1, "Name": "roof"}, {"Value": 2, "Name": "road"}]
    found = look(made_export(tmp_path, values=(1, 2, 5), named=named, count=1))
    (problem,) = check_classes(found, classes_of(found, ""))
    assert "the class table does not know 5" in problem.cause and problem.severity == "error"


def test_a_table_that_the_folder_keeps_goes_before_the_definition(tmp_path: Path) -> None:
    root = made_export(tmp_path, values=(0, 1, 2))
    kept = root / "classes.toml"
    kept.write_text('classes = "0=rest,2=kind; 2"\n', encoding="utf-8")
    found = look(root)
    assert classes_of(found, "").names == ["rest", "kind 1", "kind; 2"]
    assert classes_of(found, "2=road,0=ignore").names == ["kind 1", "road"]
    kept.write_text('classes = "1=ignore,2=ignore"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.toml: NoData is all that counts"):
        classes_of(found, "")
    kept.unlink()
    with pytest.raises(UsageError, match="NoData is all that counts"):
        classes_of(found, "1=ignore,2=ignore")


# Bands

FOUR = ("Blue", "Green", "Red", "NIR")


def test_bands_are_named_by_the_export(tmp_path: Path) -> None:
    found = look(made_export(tmp_path, bands=FOUR))
    assert bands_of(found, "auto") == Bands(("blue", "green", "red", "nir"), (1, 2, 3, 4))
    assert bands_of(found, "NIR,red") == Bands(("nir", "red"), (4, 3))
    assert bands_of(found, "nir=2,red") == Bands(("nir", "red"), (2, 3))
    assert bands_of(found, "rgb") == Bands(("red", "green", "blue"), (3, 2, 1))
    assert bands_of(found, "2,4") == Bands(("band 2", "band 4"), (2, 4))
    with pytest.raises(UsageError, match=r"no band is called 'swir'. The export names blue, green"):
        bands_of(found, "red,swir")


def test_names_that_say_nothing_are_none(tmp_path: Path) -> None:
    found = look(made_export(tmp_path / "a", bands=("Band_1", "Band_2", "Band_3")))
    assert bands_of(found, "auto") == Bands(("red", "green", "blue"))
    assert bands_of(found, "band_3,band_1") == Bands(("band_3", "band_1"), (3, 1))
    found = look(made_export(tmp_path / "b", bands=("Red", "Green", "Blue")))
    assert bands_of(found, "auto") == Bands(("red", "green", "blue"))
    found = look(made_export(tmp_path / "c", bands=("height",)))
    assert bands_of(found, "auto") == Bands(("height",), (1,))
    found = look(made_export(tmp_path / "d", bands=("", "", "", "")))
    assert bands_of(found, "auto").names == ("band 1", "band 2", "band 3", "band 4")
    with pytest.raises(UsageError, match="bands of images have no names"):
        bands_of(found, "red,nir")


def test_names_for_other_bands_than_there_are(tmp_path: Path) -> None:
    root = made_export(tmp_path)
    rename(root, DEFINITION, InputRastersProps={"BandNames": list(FOUR)})
    found = look(root)
    assert bands_of(found, "auto") == Bands(("red", "green", "blue"))
    (note,) = check_classes(found, classes_of(found, ""))
    assert "it names 4 bands, and its chips have 3" in note.cause
    with pytest.raises(DataError, match="names blue, green, red, nir, and its chips have 3 bands"):
        bands_of(found, "nir,red")


# MRF


def write_mrf(path: Path, pixels: Any, **more: Any) -> None:
    with rasterio.Env() as env:
        if "MRF" not in env.drivers():
            pytest.skip("this GDAL has no MRF")
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    options = {"dtype": pixels.dtype.name, "crs": WEB, "transform": Affine(2, 0, 0, 0, -2, 0)}
    with rasterio.open(path, "w", driver="MRF", **shape, **{**options, **more}) as file:
        file.write(pixels)


@pytest.fixture
def mrf(tmp_path: Path) -> Path:
    """An export whose first chip and label are MRF."""
    root = made_export(tmp_path / "mrf", count=4, values=(0, 1, 2))
    for place in ("images", "labels"):
        path = root / place / "000000000.tif"
        pixels = read_image(path)[0]
        write_mrf(path.with_suffix(".mrf"), pixels, nodata=0)
        path.rename(tmp_path / f"{place}.tif")
    names = [("000000000.mrf", "000000000.mrf")]
    write_map(root, [*names, *((f"{i:09d}.tif", f"{i:09d}.tif") for i in range(1, 4))])
    return root


def test_mrf_is_read_where_it_is_trusted(mrf: Path) -> None:
    (problem,) = [one for one in open_source(mrf).problems if one.severity == "error"]
    assert problem.cause == (
        "2 of its files are MRF, made of other files (000000000.mrf, 000000000.mrf)."
    )
    assert "say --trust (in Python trust=True)" in problem.remedy
    found = look(mrf, trust=True)
    assert found.errors == [] and len(found.pairs) == 4
    image, label = (mrf.parent / f"{place}.tif" for place in ("images", "labels"))
    pixels, valid = read_image(mrf / "images" / "000000000.mrf", trust=True)
    np.testing.assert_array_equal(pixels, read_image(image)[0])
    numbers, counted = read_mask(mrf / "labels" / "000000000.mrf", trust=True)
    np.testing.assert_array_equal(numbers, read_mask(label)[0])
    assert valid.all() and counted.all()  # 0 is a class, whatever the file says
    with pytest.raises(DataError, match="this is an MRF, which is made of other files"):
        read_image(mrf / "images" / "000000000.mrf")


def test_trust_may_be_said_of_an_export(mrf: Path, tmp_path: Path) -> None:
    assert not Inputs(mrf, trust=True).has_scenes
    with pytest.raises(UsageError, match="--trust, --buffer-m|--buffer-m, --trust"):
        _ = Inputs(mrf, trust=True, buffer_m=3).has_scenes
    plain = tmp_path / "plain"
    write_chip(plain, "a.png", np.zeros((3, 8, 8), "uint8"), np.zeros((8, 8), "uint8"))
    with pytest.raises(UsageError, match="--trust is for rasters with labels"):
        _ = Inputs(plain, trust=True).has_scenes


def test_an_mrf_without_its_pixels_is_an_error(mrf: Path) -> None:
    for data in (mrf / "images").glob("000000000.*"):
        if data.suffix != ".mrf":
            data.unlink()
    found = look(mrf, trust=True)
    (problem,) = found.errors
    assert problem.file.endswith("000000000.mrf") and "damaged or cannot be read" in problem.cause
    assert len(found.pairs) == 3


def test_alpha_of_an_mrf_is_no_band(tmp_path: Path) -> None:
    pixels = np.full((4, 8, 8), 200, dtype=np.uint8)
    pixels[3, :2] = 0
    write_mrf(tmp_path / "a.mrf", pixels, photometric="RGB")
    with rasterio.open(tmp_path / "a.mrf") as file:
        alpha = file.colorinterp[3] == rasterio.enums.ColorInterp.alpha
    seen, valid = read_image(tmp_path / "a.mrf", trust=True)
    assert (len(seen), int(valid.sum())) == ((3, 48) if alpha else (4, 64))


# Where they lie


def place(root: Path, sizes: Sequence[float], crs: str = WEB) -> None:
    """Make the first chips GeoTIFFs of these pixel sizes [map units]."""
    for i, size in enumerate(sizes):
        path = root / "images" / f"{i:09d}.tif"
        pixels = read_image(path)[0]
        transform = Affine(size, 0, 1000.0 * i, 0, -size, 0)
        grid = Grid(crs, transform, *pixels.shape[1:])
        path.write_bytes(encode_geotiff(pixels, grid, ["a", "b", "c"]))


def test_the_pixel_size_is_that_of_placed_chips(tmp_path: Path) -> None:
    root = made_export(tmp_path, count=4)
    assert open_source(root).pixel_size is None
    place(root, [0.5, 0.502])  # on the equator, where map units are metres
    source = open_source(root)
    assert source.pixel_size == pytest.approx(0.5, rel=0.01) and source.problems == ()
    place(root, [0.5, 0.51])
    source = open_source(root)
    assert source.pixel_size is None
    assert causes(source, "note") == [
        "the pixels of its chips are from 0.498 to 0.508 m. "
        "The net keeps no pixel size: scenes will be read at their own."
    ]
    place(root, [0.5, 0.5], crs="")
    assert open_source(root).pixel_size is None


def test_heads_of_a_few_chips_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def count(path: Path, **said: Any) -> Any:
        opened.append(path.name)
        raise DataError("no head")

    monkeypatch.setattr("whatwhere.data.esri.open_raster", count)
    root = tmp_path
    for i in range(50):
        write_chip(root, f"{i}.png", np.zeros((3, 8, 8), "uint8"), np.zeros((8, 8), "uint8"))
    (root / DEFINITION).write_text("{}", encoding="utf-8")
    assert open_source(root).pixel_size is None
    assert 10 < len(opened) <= 20


# Several


def test_an_export_for_each_split(tmp_path: Path) -> None:
    for seed, name in enumerate(("Training", "valid", "test")):
        made_export(tmp_path / name, count=2, seed=seed)
    found = look(tmp_path)
    assert found.errors == []
    assert [(pair.split, pair.key) for pair in found.pairs] == [
        *(("train", f"train/{i:09d}") for i in range(2)),
        *(("val", f"val/{i:09d}") for i in range(2)),
        *(("test", f"test/{i:09d}") for i in range(2)),
    ]
    assert classes_of(found, "").names == ["kind 1", "kind 2"]
    told = summary(found, classes_of(found, ""))
    assert [Path(one["folder"]).name for one in told["exports"]] == ["Training", "test", "valid"]
    assert "in " + str(tmp_path / "valid") in inspection(told)
    shutil.rmtree(tmp_path / "test" / "labels")
    source = open_source(tmp_path)
    assert len(source.pairs) == 4
    assert "its images have no labels, and were passed over" in causes(source, "note")[0]


def test_a_definition_above_the_splits_holds_for_all(tmp_path: Path) -> None:
    for name in ("train", "val"):
        made_export(tmp_path / name, count=2)
        for file in (DEFINITION, SUMS, MAP):
            (tmp_path / name / file).rename(tmp_path / file)
    source = open_source(tmp_path)
    assert source.definition is not None
    assert [one.name for one in source.definition.classes] == ["kind 1", "kind 2"]
    assert all(DEFINITION not in note for note in causes(source, "note"))


def two(tmp_path: Path, *named: Sequence[tuple[int, str]], **lines: Any) -> list[Any]:
    exports = []
    for i, rows in enumerate(named):
        classes = [{"Value": v, "Name": n, "Color": [i * 9, 0, 0]} for v, n in rows]
        folder = made_export(tmp_path / "ab"[i], count=1, named=classes, lines=lines)
        exports.append(read_export(folder))
    return exports


def test_classes_of_several_exports_are_joined(tmp_path: Path) -> None:
    exports = two(tmp_path, [(1, "roof"), (2, "road")], [(2, "road"), (5, "water")])
    found, noticed = merge(exports)
    assert found is not None and noticed == []
    assert [(one.value, one.name) for one in found.classes] == [
        *((1, "roof"), (2, "road"), (5, "water")),
    ]
    assert found.classes[1].color == (0, 0, 0) and found.tiles == 2
    assert merge([]) == (None, [])


def test_classes_that_contradict_each_other_are_one_error(tmp_path: Path) -> None:
    exports = two(tmp_path, [(1, "roof"), (2, "road"), (4, "x")], [(1, "road"), (3, "y")])
    with pytest.raises(DataError, match="contradict each other") as raised:
        merge(exports)
    a, b = tmp_path / "a", tmp_path / "b"
    assert f"1 is 'roof' in {a}, 'road' in {b}" in str(raised.value)
    assert f"'road' is 2 in {a}, 1 in {b}" in str(raised.value)


def test_numbers_and_names_of_bands_must_agree(tmp_path: Path) -> None:
    for i, bands in enumerate((FOUR, FOUR[:3], ("Red", "Green", "Blue"))):
        made_export(tmp_path / str(i), count=1, bands=bands)
    exports = [read_export(tmp_path / str(i)) for i in range(3)]
    with pytest.raises(DataError, match=r"not have the same number of bands \(.*0: 4, .*1: 3\)"):
        merge(exports[:2])
    found, (problem,) = merge(exports[1:])
    assert found is not None and found.bands == () and problem.severity == "warning"
    assert "bands have different names" in problem.cause
    assert "Blue, Green, Red" in problem.cause and "Red, Green, Blue" in problem.cause


def test_a_jpeg_that_calls_itself_a_tiff(tmp_path: Path) -> None:
    root = made_export(tmp_path, count=2)
    path = root / "images" / "000000001.tif"
    Image.fromarray(np.full((16, 16, 3), 90, "uint8")).save(path, format="JPEG")
    found = look(root)
    assert found.errors == [] and len(found.facts) == 2
