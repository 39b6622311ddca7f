"""Hints about rasters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from made_maps import make_pixels, write_scene
from whatwhere.io.hints import undeclared_nodata
from whatwhere.io.raster import open_raster


@pytest.mark.parametrize(("value", "kind"), [(0, "uint8"), (255, "uint8"), (65535, "uint16")])
def test_much_black_or_white_is_told(tmp_path: Path, value: int, kind: str) -> None:
    pixels = make_pixels(300, 400).astype(kind)
    pixels[:, 100:, 200:] = value
    hint = undeclared_nodata(open_raster(write_scene(tmp_path / "a.tif", pixels)))
    assert hint is not None and hint.severity == "warning"
    assert f"is {value} in all bands" in hint.cause and f"--nodata {value}" in hint.remedy
    declared = write_scene(tmp_path / "b.tif", pixels, nodata=value)
    assert undeclared_nodata(open_raster(declared)) is None
    assert undeclared_nodata(open_raster(tmp_path / "a.tif", nodata=value)) is None


def test_a_dark_band_or_a_white_roof_is_none(tmp_path: Path) -> None:
    pixels = make_pixels(300, 400)
    pixels[0] = 0
    pixels[:, :9, :9] = 255
    assert undeclared_nodata(open_raster(write_scene(tmp_path / "a.tif", pixels))) is None
    floats = np.zeros((1, 80, 80), dtype=np.float32)
    assert undeclared_nodata(open_raster(write_scene(tmp_path / "f.tif", floats))) is None


def test_the_white_of_a_real_scene_is_seen(real_data: Callable[[str], Path]) -> None:
    hint = undeclared_nodata(open_raster(real_data("oam_banepa") / "scene_predict.tif"))
    assert hint is not None and "--nodata 255" in hint.remedy
