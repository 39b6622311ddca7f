"""The seams of nets that look at whole tiles."""

from __future__ import annotations

from pathlib import Path

from made_maps import make_pixels, make_predictor, write_scene
from whatwhere.io.raster import open_raster
from whatwhere.predict.seams import seam_error
from whatwhere.types import Geometry

BANDS = (1, 2, 3)


def test_a_net_that_sees_farther_than_said_shows_its_seams(tmp_path: Path) -> None:
    raster = open_raster(write_scene(tmp_path / "s.tif", make_pixels(700, 640)))
    short = make_predictor(shape=Geometry(16, None))
    found = seam_error(short, raster, BANDS, (350, 320), tile=544)
    assert found is not None and 0 < found < 0.05  # what is near a tile's edge weighs little
    gaze = make_predictor("mobilenetv3_small_050", pretrained=False)
    assert gaze.card.geometry.margin is None
    seen = seam_error(gaze, raster, BANDS, (350, 320), tile=544)
    assert seen is not None and found < seen < 1


def test_no_seam_no_error(tmp_path: Path) -> None:
    raster = open_raster(write_scene(tmp_path / "s.tif", make_pixels(300, 300)))
    assert seam_error(make_predictor(), raster, BANDS, (0, 0)) is None
    assert seam_error(make_predictor(shape=Geometry(16, None)), raster, BANDS, (9, 9)) is None
