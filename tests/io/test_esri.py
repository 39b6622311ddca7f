"""Esri's files: definitions, sums and lists of chips, real ones and damaged ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_esri import EXAMPLES
from whatwhere.errors import DataError
from whatwhere.io.esri import (
    CLASSIFIED,
    DEFINITION,
    MAP,
    SUMS,
    Definition,
    EsriClass,
    class_rows,
    completed,
    definition_of,
    is_export,
    parse_definition,
    read_definition,
    read_export,
    read_map,
    read_sums,
)
from whatwhere.types import Classes, ClassInfo


def told(tmp_path: Path, lines: Any) -> Definition:
    path = tmp_path / DEFINITION
    path.write_text(lines if isinstance(lines, str) else json.dumps(lines), encoding="utf-8")
    return read_definition(path)


def listed(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    (tmp_path / MAP).write_bytes(text.encode())
    return read_map(tmp_path / MAP)


# The real ones


def test_a_real_export_of_a_drone_map(real_data: Callable[[str], Path]) -> None:
    export = read_export(real_data("esri_exports") / "drone_classified_tiles")
    found = export.definition
    assert found.classes == (EsriClass(1, "1", None), EsriClass(2, "2", None))
    assert (found.mode, found.size, found.tiles) == (CLASSIFIED, (400, 400), 3382)
    assert (found.space, found.bands, found.cell_size) == ("", (), None)
    assert set(found.lines) == {
        "Classes",
        "WellKnownBandNames (FYI, these band names can be used in ExtractBands)",
    }
    assert export.listed is not None and len(export.listed) == 3382 and export.missing == ()
    assert export.listed[0] == ("images/000000019.tif", "labels/000000019.tif")
    assert export.sums["ClassPixelStats"]["NumPixelsPerClass"] == [531590974, 9529026]


def test_real_exports_of_other_kinds(real_data: Callable[[str], Path]) -> None:
    palms = read_export(real_data("esri_exports") / "palm_pascal_voc")
    assert palms.definition.classes == (EsriClass(1, "Palm", (255, 0, 0)),)
    assert (palms.definition.mode, palms.definition.size) == ("PASCAL_VOC_rectangles", (448, 448))
    assert palms.listed and palms.listed[-1][1].endswith(".xml")
    tiles = read_export(real_data("esri_exports") / "rgb_export_tiles").definition
    assert (tiles.mode, tiles.size, tiles.space) == ("Export_Tiles", (4000, 4000), "MAP_SPACE")
    assert (tiles.cell_size, tiles.tiles, tiles.classes) == ((0.5, 0.5), 12, ())
    assert tiles.bands == ()  # three empty names


def test_the_definition_of_a_real_model(real_data: Callable[[str], Path]) -> None:
    path = real_data("esri_exports") / "drone_classified_tiles" / "trained_model_30e.emd"
    found = read_definition(path)
    assert found.classes[1] == EsriClass(2, "2", (171, 175, 202))
    assert found.lines["ModelParameters"]["backbone"] == "resnet34"
    assert found.size == (400, 400) and found.space == "MAP_SPACE"


# Definitions


def test_examples_to_be_filled_in_are_left_out(tmp_path: Path) -> None:
    props = {"SensorName": "E.g. Landsat", "BandNames": ["red", "nir"]}
    found = told(tmp_path, {**EXAMPLES, "InputRastersProps": props, "Classes": []})
    assert found.size is None and found.bands == ("red", "nir")
    assert found.lines == {"InputRastersProps": {"BandNames": ["red", "nir"]}, "Classes": []}


def test_old_and_new_spellings(tmp_path: Path) -> None:
    rows = [
        {"Value": 7, "Name": "a, b=c", "Color": [1, 2, 3]},
        {"ClassValue": 300, "ClassName": " water ", "Color": [-1, 4, 5]},
        {"Value": "12", "Name": 12, "Color": [1.0, 2.0, 3.0, 255]},
        {"Value": 0.0, "Name": "", "Color": "red"},
        {"Value": -3, "Name": "x", "Color": [1, 2]},
        {"Value": 7, "Name": "a, b=c"},
    ]
    assert told(tmp_path, {"Classes": rows}).classes == (
        EsriClass(7, "a, b=c", (1, 2, 3)),
        EsriClass(300, "water", None),
        EsriClass(12, "12", (1, 2, 3)),
        EsriClass(0, "0", None),
        EsriClass(-3, "x", None),
    )


def test_sizes_cells_and_chips(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        {
            **{"ImageHeight": "128", "ImageWidth": 96.0, "NumTilesAsDouble": 3.0, "NumTiles": 2},
            **{"MinCellSize": {"x": 0.5, "y": 0.25}, "MaxCellSize": {"x": 2, "y": True}},
        },
    )
    assert (found.size, found.tiles, found.cell_size) == ((128, 96), 3, (0.25, 2.0))
    odd = told(tmp_path, '{"ImageHeight": -1, "ImageWidth": 1e400, "MinCellSize": [1]}')
    assert (odd.size, odd.tiles, odd.cell_size) == (None, None, None)


@pytest.mark.parametrize("names", [["a", ""], ["a", None], ["a", "A"], "ab", 3, None, []])
def test_bands_without_a_name_of_their_own_have_none(tmp_path: Path, names: Any) -> None:
    assert told(tmp_path, {"InputRastersProps": {"BandNames": names}}).bands == ()
    assert told(tmp_path, {"InputRastersProps": names}).bands == ()


def test_a_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / DEFINITION).write_bytes(b'\xef\xbb\xbf{"MetaDataMode": "Classified_Tiles"}')
    assert read_definition(tmp_path / DEFINITION).mode == CLASSIFIED


def test_the_sums_say_what_the_definition_does_not() -> None:
    path = Path("x.emd")
    classes = [{"ClassValue": 1, "ClassName": "roof"}]
    sums = {"TileSizeX": 20, "TileSizeY": 10, "NumTiles": 5, "MetaDataMode": "m"}
    bare = completed(definition_of({}, path), {**sums, "Classes": classes})
    assert (bare.size, bare.tiles, bare.mode) == ((10, 20), 5, "m")
    assert bare.classes == (EsriClass(1, "roof", None),) and bare.lines == {}
    own = definition_of({"Classes": [{"Value": 2, "Name": "road"}], "MetaDataMode": "o"}, path)
    both = completed(own, {**sums, "Classes": classes})
    assert (both.classes, both.mode, both.tiles) == (own.classes, "o", 5)


def test_a_class_table_is_written_as_it_is_read() -> None:
    infos = (
        ClassInfo("background", 0, (0, 0, 0), "background", (0,)),
        ClassInfo("a, b", 9, (1, 2, 3), "class", (9,)),
    )
    rows = class_rows(Classes(infos, "binary"))
    found = definition_of({"Classes": rows}, Path("x.emd")).classes
    assert [(one.value, one.name, one.color) for one in found] == [
        (info.value, info.name, info.color) for info in infos
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "this is not JSON"),
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[1]", "this is no JSON object"),
        ('{"Classes": "roof"}', "its Classes are no list"),
        ('{"Classes": {"Value": 1}}', "its Classes are no list"),
        ('{"Classes": [3]}', "has no whole Value or no Name: 3"),
        ('{"Classes": [{"Value": 1}]}', 'has no whole Value or no Name: {"Value": 1}'),
        ('{"Classes": [{"Value": 1.5, "Name": "a"}]}', "has no whole Value"),
        ('{"Classes": [{"Value": true, "Name": "a"}]}', "has no whole Value"),
        ('{"Classes": [{"Value": NaN, "Name": "a"}]}', "has no whole Value"),
        ('{"Classes": [{"Value": 16777216, "Name": "a"}]}', "has the Value 16777216"),
        (
            '{"Classes": [{"Value": 1, "Name": "a"}, {"Value": 1, "Name": "b"}]}',
            "1 is called 'a' and 'b'. Give each value one name",
        ),
    ],
)
def test_a_damaged_definition_is_told(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as raised:
        told(tmp_path, text)
    assert str(tmp_path) in str(raised.value) and raised.value.problems


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (read_definition, read_sums, read_map):
        with pytest.raises(DataError, match="there is no such file"):
            read(tmp_path / "none")
        with pytest.raises(DataError, match=r"the file cannot be read|is a directory"):
            read(tmp_path)
    (tmp_path / DEFINITION).write_bytes(b'{"MetaDataMode": "\xff"}')
    with pytest.raises(DataError, match="it is not UTF-8"):
        read_definition(tmp_path / DEFINITION)
    monkeypatch.setattr("whatwhere.io.esri._LARGEST", 1 << 20)
    (tmp_path / SUMS).write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(DataError, match="it is larger than 1 MB"):
        read_sums(tmp_path / SUMS)


_KEYS = st.sampled_from(
    [
        *("Classes", "Value", "Name", "ClassValue", "Color", "ImageHeight", "ImageWidth", "x", "y"),
        *("InputRastersProps", "BandNames", "MinCellSize", "MetaDataMode", "NumTiles"),
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(lines=st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_whatever_it_holds_is_read_or_told(lines: dict[str, Any]) -> None:
    try:
        found = parse_definition(json.dumps(lines).encode(), Path("x.emd"))
    except DataError:
        return
    assert all(isinstance(one.value, int) and one.name for one in found.classes)
    for one in found.classes:
        one.name.encode()


# Lists of chips


def test_a_list_of_chips(tmp_path: Path) -> None:
    text = "images\\a.tif  labels\\a.tif \r\n\r\n  images/sub/0_b.png\tlabels/sub/0_b.tif\n"
    text += "images\\c.tif\n"
    assert listed(tmp_path, text) == [
        ("images/a.tif", "labels/a.tif"),
        ("images/sub/0_b.png", "labels/sub/0_b.tif"),
        ("images/c.tif", ""),
    ]
    assert listed(tmp_path, "") == []


def test_names_may_hold_blanks(tmp_path: Path) -> None:
    text = "images\\my old map.tif  labels\\my old map.tif \nimages\\a b.tif Labels\\a b.tif\n"
    assert listed(tmp_path, text) == [
        ("images/my old map.tif", "labels/my old map.tif"),
        ("images/a b.tif", "Labels/a b.tif"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "..\\..\\secret.tif",
        "images/../../x.tif",
        "/etc/x.tif",
        "\\\\server\\share\\x.tif",
        "C:\\x.tif",
        "c:x.tif",
        "images/a\0.tif",
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, name: str, first: bool) -> None:
    columns = (name, "labels/a.tif") if first else ("images/a.tif", name)
    with pytest.raises(DataError, match=r"line 2 leads out of the folder"):
        listed(tmp_path, "images/0.tif labels/0.tif\n" + "  ".join(columns))


def test_a_line_of_three_columns_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"map\.txt: line 1 has 3 columns: 'a\.tif  b\.tif  c"):
        listed(tmp_path, "a.tif  b.tif  c.tif")


_NAMES = st.from_regex(r"[a-z0-9_.äß-]{1,12}", fullmatch=True).filter(lambda name: name[0] != ".")


@settings(max_examples=60, deadline=None)
@given(names=st.lists(_NAMES, max_size=5), end=st.sampled_from(["\n", "\r\n", " \r\n"]))
def test_what_is_listed_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], end: str
) -> None:
    folder = tmp_path_factory.mktemp("list")
    text = "".join(f"images\\{name}.tif  labels\\{name}.tif{end}" for name in names)
    assert listed(folder, text) == [(f"images/{n}.tif", f"labels/{n}.tif") for n in names]


# Folders


@pytest.mark.parametrize(
    "name", [DEFINITION, SUMS, DEFINITION.upper(), "Esri_Accumulated_Stats.json"]
)
def test_one_of_the_files_makes_an_export_whatever_its_case(tmp_path: Path, name: str) -> None:
    assert not is_export(tmp_path)
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert is_export(tmp_path)
    assert name.lower() not in read_export(tmp_path).missing


def test_a_list_makes_an_export_if_it_lists_chips(tmp_path: Path) -> None:
    (tmp_path / "Map.TXT").write_text("a plan of the town\n", encoding="utf-8")
    assert not is_export(tmp_path)
    (tmp_path / "Map.TXT").write_text("Images\\a.tif labels\\a.tif\n", encoding="utf-8")
    assert is_export(tmp_path)
    found = read_export(tmp_path)
    assert found.missing == (DEFINITION, SUMS) and found.definition.classes == ()
    assert found.listed == (("Images/a.tif", "labels/a.tif"),)


@pytest.mark.skipif(sys.platform == "win32", reason="rights are others there")
def test_a_list_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MAP).write_text("images\\a.tif labels\\a.tif\n", encoding="utf-8")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert is_export(tmp_path)
    with pytest.raises(DataError, match=r"map\.txt: the file cannot be read: Permission denied"):
        read_export(tmp_path)
