"""Packages for ArcGIS: what their definition says, what is written, and what is not unpacked."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_bundle import make_card, make_weights
from whatwhere import bundle
from whatwhere.config import Recipe, to_dict
from whatwhere.errors import BundleError, OutputError, UsageError
from whatwhere.io.esri import read_definition
from whatwhere.packages import (
    SCRIPT,
    definition_of,
    dice_share,
    extract_bands,
    open_package,
    why_not,
    write_package,
)
from whatwhere.types import Bands, Classes, ClassInfo, Normalization

SCORES = {
    "pixel_accuracy": 0.875,
    "classes": [
        {"name": "background", "precision": 0.5, "recall": 1.0, "dice": 2 / 3},
        {"name": "salt", "precision": None, "recall": 0.25, "dice": None},
    ],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A bundle."""
    bundle.save(tmp_path / "source", make_card(resize=None), make_weights())
    return tmp_path / "source"


# The definition


def test_a_definition_says_what_the_card_says() -> None:
    recipe = to_dict(
        Recipe(loss="0.75*focal+0.25*dice", class_weights="balanced", model="resnet18",
               upsample="nearest", dropout=0.0, lr=1e-3, encoder_lr=0.1)
    )  # fmt: skip
    card = make_card(
        model="resnet18", resize=None, orientation="free", pixel_size=0.3, recipe=recipe,
        bands=Bands(("nir", "red"), (4, 1)), normalization=Normalization((9.5, 3.0), (2.0, 1.5)),
        versions={"whatwhere": "0.0.7"}, scores={"val_loss": 0.125}, chip_size=(64, 96),
    )  # fmt: skip
    told = json.loads(json.dumps(definition_of(card, "roads", scores=SCORES)))
    parameters = told.pop("ModelParameters")
    description = told.pop("Description")
    metrics = json.loads(told.pop("per_class_metrics"))
    assert told == {
        "Framework": "PyTorch",
        "ModelConfiguration": "whatwhere",
        "ModelType": "ImageClassification",
        "ModelName": "UnetClassifier",
        "ModelFile": "bundle.json",
        "ModelFormat": "NCHW",
        "InferenceFunction": SCRIPT,
        "WhatwhereVersion": "0.0.7",
        "ImageHeight": 64,
        "ImageWidth": 96,
        "ImageSpaceUsed": "MAP_SPACE",
        "SupportsVariableTileSize": True,
        "Classes": [
            {"Value": 0, "Name": "background", "Color": [0, 0, 0]},
            {"Value": 255, "Name": "salt", "Color": [230, 159, 0]},
        ],
        "ignore_mapped_class": [],
        "ExtractBands": [3, 0],
        "MinCellSize": {"x": 0.3, "y": 0.3},
        "MaxCellSize": {"x": 0.3, "y": 0.3},
        "IsMultispectral": True,
        "ImageryType": "multispectral",
        "IsImageNetNormalization": False,
        "Bands": ["nir", "red"],
        "NormalizationStats": {"band_mean_values": [9.5, 3.0], "band_std_values": [2.0, 1.5]},
        "DoNormalize": True,
        "backend": "pytorch",
        "LearningRate": "slice('1.0000e-04', '1.0000e-03', None)",
        "monitored_valid_loss": 0.125,
        "accuracy": "8.7500e-01",
    }
    assert parameters == {
        "backbone": "resnet18",
        "backend": "pytorch",
        "mixup": False,
        "ignore_classes": [7],
        "loss": "0.75*focal+0.25*dice",
        "focal_loss": True,
        "dice_loss_fraction": 0.25,
        "class_balancing": True,
        "class_weights": "balanced",
    }
    assert "Experimental" in description and "0.3 m" in description
    assert metrics["salt"] == {"precision": None, "recall": 0.25, "f1": None}


def test_what_is_not_known_is_not_in_a_definition() -> None:
    told = definition_of(make_card(scores={}), "roads", script=False)
    absent = {
        *("ExtractBands", "MinCellSize", "MaxCellSize", "accuracy", "per_class_metrics"),
        *("LearningRate", "monitored_valid_loss", "ArcGISLearnVersion", "monitored_dice"),
    }
    assert not absent & set(told)
    assert told["InferenceFunction"] == "" and "Experimental" not in told["Description"]
    assert told["ImageSpaceUsed"] == "PIXEL_SPACE" and told["resize_to"] == [128, 96]
    assert "loss" not in told["ModelParameters"]
    assert set(told["NormalizationStats"]) == {"band_mean_values", "band_std_values"}


def test_colours_are_rgb() -> None:
    told = definition_of(make_card(bands=Bands(("red", "green", "blue"))), "roads")
    assert (told["ImageryType"], told["IsMultispectral"]) == ("RGB", False)


def test_values_that_were_taken_as_they_are() -> None:
    card = make_card(recipe=to_dict(Recipe(normalize=False)))
    assert definition_of(card, "roads")["DoNormalize"] is False


@pytest.mark.parametrize(
    ("score", "name"),
    [("mean_iou", "valid_miou"), ("mean_dice", "dice"), ("pixel_accuracy", "accuracy")],
)
def test_what_was_monitored_is_told(score: str, name: str) -> None:
    told = definition_of(make_card(scores={"val_loss": 0.5, score: 0.75}), "roads")
    assert (told["monitored_valid_loss"], told[f"monitored_{name}"]) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("bands", "places"),
    [
        (Bands(("red", "green", "blue")), (0, 1, 2)),
        (Bands(("grey",)), (0,)),
        (Bands(("a", "b"), (4, 2)), (3, 1)),
        (Bands(("grey",), convert=True), None),
        (Bands(("red", "green", "blue"), convert=True), None),
    ],
)
def test_bands_are_counted_from_0(bands: Bands, places: tuple[int, ...] | None) -> None:
    assert extract_bands(make_card(bands=bands)) == places


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        *(("cross_entropy", 0.0), ("focal", 0.0), ("dice", 1.0)),
        *(("0.75*cross_entropy+0.25*dice", 0.25), ("0.4*focal+0.6*dice", 0.6)),
        *(("dice+0.5*focal", None), ("lovasz", None), ("cross_entropy+focal+dice", None)),
    ],
)
def test_losses_that_arcgis_learn_has_words_for(loss: str, share: float | None) -> None:
    assert dice_share(loss) == share


def test_labels_that_overlap_have_numbers_of_their_own() -> None:
    infos = tuple(ClassInfo(name, 1, (1, 2, 3), "class", (1,)) for name in ("a", "b"))
    card = make_card(classes=Classes(infos, "multilabel"), thresholds=(0.5, 0.5))
    assert [row["Value"] for row in definition_of(card, "x")["Classes"]] == [1, 2]
    assert "overlap" in why_not(card)
    assert "stretches every image to 128×96" in why_not(make_card())
    assert "encoder of your own" in why_not(make_card(resize=None, model="own:Chain"))
    assert why_not(make_card(resize=None)) == ""


# Writing


def test_a_package_holds_all_and_once_more_in_one_file(source: Path, tmp_path: Path) -> None:
    (source / "report.html").write_text("a report")
    folder = tmp_path / "out" / "roads"
    made = write_package(source, folder, "roads", scores=SCORES)
    names = {path.name for path in made}
    assert {path.name for path in folder.iterdir()} == names and len(made) == len(names) == 6
    assert made[-1] == folder / "roads.dlpk"
    with zipfile.ZipFile(made[-1]) as archive:
        assert {one: archive.read(one) for one in archive.namelist()} == {
            path.name: path.read_bytes() for path in made[:-1]
        }
    before, after = bundle.load(source), bundle.load(folder)
    assert after.card == before.card and after.digest == before.digest
    definition = read_definition(folder / "roads.emd")
    assert [one.name for one in definition.classes] == ["background", "salt"]
    assert definition.lines["InferenceFunction"] == SCRIPT
    compile((folder / SCRIPT).read_text(), SCRIPT, "exec")


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    one, two = (write_package(source, tmp_path / name, "roads")[-1] for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_package_that_is_replaced_keeps_nothing_of_the_other(
    source: Path, tmp_path: Path
) -> None:
    (source / "report.html").write_text("a report")
    folder = tmp_path / "roads"
    write_package(source, folder, "roads")
    (folder / "notes.txt").write_text("the user's")
    other = tmp_path / "other"
    bundle.save(other, make_card(resize=None), make_weights(2))
    made = write_package(other, folder, "roads", script=False, report=False)
    names = {path.name for path in made}
    assert {path.name for path in folder.iterdir()} == {*names, "notes.txt"}
    assert not names & {SCRIPT, "report.html"}
    np.testing.assert_array_equal(
        bundle.load(folder).weights["a.weight"], make_weights(2)["a.weight"]
    )
    (folder / "report.html").write_text("another report")
    for itself in (folder, folder / bundle.CARD):
        again = write_package(itself, folder, "roads")
        assert bundle.load(folder).digest == bundle.load(other).digest
        assert {SCRIPT, "report.html"} < {path.name for path in again}
        assert (folder / "report.html").read_text() == "another report"


def test_a_net_that_pro_cannot_run_has_no_script(tmp_path: Path) -> None:
    bundle.save(tmp_path / "source", make_card(), make_weights())
    made = write_package(tmp_path / "source", tmp_path / "out", "roads")
    assert SCRIPT not in {path.name for path in made}
    assert read_definition(tmp_path / "out" / "roads.emd").lines["InferenceFunction"] == ""


@pytest.mark.parametrize("name", ["", ".", "a/b", "a\\b", "c:d", "..", 'q"'])
def test_a_name_is_a_files(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a package"):
        write_package(source, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "roads.dlpk").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"roads\.dlpk: cannot write this file"):
        write_package(source, tmp_path / "out", "roads")
    assert not list((tmp_path / "out").glob(".whatwhere*"))


# Opening


def test_a_package_is_unpacked_as_it_was(source: Path, tmp_path: Path) -> None:
    made = write_package(source, tmp_path / "roads", "roads")
    emd = open_package(made[-1], tmp_path / "into")
    assert emd == tmp_path / "into" / "roads.emd"
    assert {path.name: path.read_bytes() for path in (tmp_path / "into").iterdir()} == {
        path.name: path.read_bytes() for path in made[:-1]
    }


def test_folders_and_backslashes_in_a_package(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"m\\x.emd": b"{}", "m/inner/": b"", "m/inner/a.pth": b"1"})
    assert open_package(path, tmp_path / "into") == tmp_path / "into" / "m" / "x.emd"
    assert (tmp_path / "into" / "m" / "inner" / "a.pth").read_bytes() == b"1"


def zipped(folder: Path, members: dict[str, bytes], **about: Any) -> Path:
    path = folder / "x.dlpk"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name  # as other programs may write it
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in about.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"../x.emd": b"{}"}, r"'\.\./x\.emd' in it leads out of the package"),
        ({"a/../../x.emd": b"{}"}, "leads out of the package"),
        ({"/tmp/x.emd": b"{}"}, "leads out of the package"),
        ({"\\x.emd": b"{}"}, "leads out of the package"),
        ({"C:\\x.emd": b"{}"}, "leads out of the package"),
        ({"C:x.emd": b"{}"}, "leads out of the package"),
        ({"x.emd:stream": b"{}"}, "leads out of the package"),
        ({"x.emd": b"{}", "..\\y": b"1"}, "leads out of the package"),
        ({"x.emd": b"{}", "A.pth": b"1", "a.pth": b"2"}, "names that differ in case alone"),
        ({"x.emd": b"{}", "a/./b": b"1", "a//b": b"2"}, "two of its files have the name"),
        ({"x.emd": b"{}", "a. ": b"1", "a": b"2"}, "two of its files have the name"),
        ({"x.emd": b"{}", "a": b"1", "A/b": b"2"}, "two of its files have the name"),
        ({"a.txt": b"", "b.txt": b""}, r"there are 0; found were a\.txt, b\.txt"),
        ({"a.emd": b"{}", "b.EMD": b"{}"}, r"there are 2; found were a\.emd, b\.EMD"),
        ({}, "found were nothing"),
    ],
)
def test_what_is_not_unpacked(tmp_path: Path, members: dict[str, bytes], match: str) -> None:
    path = zipped(tmp_path, members)
    with pytest.raises(BundleError, match=match):
        open_package(path, tmp_path / "into")
    assert [one.name for one in tmp_path.iterdir()] == ["x.dlpk"]


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dlpk"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.emd", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.emd", '{"other": 1}')
    with pytest.raises(BundleError, match=r"two of its files have the name 'x\.emd'"):
        open_package(path, tmp_path / "into")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    path = zipped(tmp_path, {"x.emd": b"/etc/passwd"}, external_attr=(kind | 0o777) << 16)
    with pytest.raises(BundleError, match=r"'x\.emd' in it is a link, a device, or encrypted"):
        open_package(path, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_too_many_or_too_large_files_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"x.emd": b"{}", **{f"{i}": b"" for i in range(1000)}})
    with pytest.raises(BundleError, match="1,001 files are in it, at most 1,000"):
        open_package(path, tmp_path / "into")
    path = zipped(tmp_path, {"x.emd": b"{}", "zeros": bytes(5 << 20)})
    assert path.stat().st_size < 1 << 16  # a bomb
    with pytest.raises(BundleError, match="says that it holds 0.00488 GB, at most 0.000977 GB"):
        open_package(path, tmp_path / "into", most_bytes=1 << 20)
    assert not (tmp_path / "into").exists()


def test_a_file_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"x.emd": b"{}", "zeros": bytes(5 << 20)})
    data = bytearray(path.read_bytes())
    told = (5 << 20).to_bytes(4, "little")
    assert data.count(told) == 2  # of the file's head, and of the list at the end
    path.write_bytes(bytes(data).replace(told, (1000).to_bytes(4, "little")))
    with pytest.raises(BundleError, match="damaged one"):
        open_package(path, tmp_path / "into", most_bytes=1 << 20)
    assert not (tmp_path / "into").exists()


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


@pytest.mark.parametrize(
    "spoil",
    [
        damage(lambda _: b""),
        damage(lambda _: b"no zip at all"),
        damage(lambda data: data[: len(data) // 2]),
        damage(lambda data: data.replace(b"safetensors", b"safetens0rs", 1)),
        damage(lambda data: data[:300] + bytes([data[300] ^ 255]) + data[301:]),
    ],
)
def test_a_damaged_package_is_refused(
    source: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = write_package(source, tmp_path / "roads", "roads")[-1]
    spoil(path)
    with pytest.raises(BundleError, match=r"roads\.dlpk: this is no package, or a damaged one"):
        open_package(path, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_where_a_package_is_not(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        open_package(tmp_path / "none.dlpk", tmp_path / "into")
    path = write_package(source, tmp_path / "roads", "roads")[-1]
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="something is in this folder"):
        open_package(path, tmp_path / "into")
    assert [one.name for one in (tmp_path / "into").iterdir()] == ["mine.txt"]
