"""Maps of rasters: the same whatever the tiles, the shards and the faults on the way."""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from made_maps import make_classes, make_pixels, make_predictor, write_scene
from whatwhere.errors import DataError, UsageError
from whatwhere.io.raster import open_raster
from whatwhere.io.vector import covered, read_features
from whatwhere.predict import maps, plan
from whatwhere.predict.assemble import Polygons, write_vrt
from whatwhere.predict.blocks import Segmenter, bands_in
from whatwhere.predict.engine import Predictor
from whatwhere.predict.maps import MapOptions, map_scene
from whatwhere.predict.parts import STEPS, Parts
from whatwhere.predict.plan import load_plan
from whatwhere.symmetries import FREE, UPRIGHT
from whatwhere.talk import QUIET, Talk
from whatwhere.tiling import make_lattice
from whatwhere.types import Bands, Geometry, Window

HALF = MapOptions(thresholds=(0.5,))


@pytest.fixture(scope="module")
def net() -> Predictor:
    return make_predictor(tile=320)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 512 px, so that a small scene has several."""
    monkeypatch.setattr(plan, "BLOCK", 512)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path, band: int = 1) -> NDArray[Any]:
    with rasterio.open(path) as file:
        return np.asarray(file.read(band))


def segmenter(predictor: Predictor, tile: int, **changes: Any) -> Segmenter:
    lattice = make_lattice(predictor.card.geometry, tile, changes.pop("overlap", None))
    bands = tuple(range(1, len(predictor.card.bands) + 1))
    return Segmenter([predictor], lattice, FREE[:1], 1, bands, **changes)


def answer(seg: Segmenter, scene: Path, window: Window) -> NDArray[np.float32]:
    return seg.answer(seg.read(open_raster(scene), window)).probabilities


# --- one result, whatever the lattice -----------------------------------------------------------


def test_tiled_and_whole_agree(tmp_path: Path, net: Predictor) -> None:
    pixels = make_pixels(500, 620)
    scene = write_scene(tmp_path / "s.tif", pixels)
    tiled = answer(segmenter(net, 320), scene, Window(0, 0, 500, 620))
    whole = make_predictor(tile=4096).probabilities(pixels)
    assert np.abs(tiled - whole).max() < 1e-5  # the scene's edges are those of a picture


def test_symmetries_leave_no_seam_either(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(404, 412))  # no multiples of the stride
    found = []
    for tile in (400, 1024):
        seg = segmenter(net, tile)
        seg.symmetries = FREE
        found.append(answer(seg, scene, Window(0, 0, 404, 412)))
    assert np.abs(found[0] - found[1]).max() < 1e-5


@settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    tile=st.integers(272, 700),
    batch=st.integers(1, 3),
    row=st.integers(0, 300),
    column=st.integers(0, 300),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
)
def test_no_pixel_depends_on_tile_batch_or_window(
    tmp_path_factory: pytest.TempPathFactory,
    net: Predictor,
    tile: int,
    batch: int,
    row: int,
    column: int,
    height: int,
    width: int,
) -> None:
    scene = tmp_path_factory.getbasetemp() / "any.tif"
    if not scene.exists():
        write_scene(scene, make_pixels(500, 500))
    window = Window(row, column, height, width)
    one = segmenter(net, tile)
    one.batch = batch
    found = answer(one, scene, window)
    whole = answer(segmenter(net, 1024), scene, Window(0, 0, 500, 500))
    assert np.abs(found - whole[:, *window.slices]).max() < 1e-5


def test_a_net_with_a_border_goes_over_a_raster_too(tmp_path: Path) -> None:
    net = make_predictor("unet2015", n_filters=2, dropout=0.0)
    scene = write_scene(tmp_path / "s.tif", make_pixels(300, 260))
    tiled = answer(segmenter(net, 252), scene, Window(0, 0, 300, 260))
    whole = answer(segmenter(net, 572), scene, Window(0, 0, 300, 260))
    assert np.abs(tiled - whole).max() < 1e-5
    assert np.abs(whole - net.probabilities(make_pixels(300, 260))).max() < 1e-5


def note_windows(net: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list to which the sides of all that the net is shown from now on are added."""
    seen: list[tuple[int, ...]] = []
    original = net.backend.run

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.extend([images.shape[2:]] * len(images))
        return original(images)

    monkeypatch.setattr(net.backend, "run", run)
    return seen


@pytest.mark.parametrize(
    ("size", "limit", "core", "windows"),
    [
        ((1000, 700), 0, 256, (1024, 704)),  # one window, with room for its halos
        ((2048, 2048), 0, 1024, (2048, 2048)),  # fits into a tile of 1,024 and two halos
        ((3072, 3072), 0, 1536, (2 * 2080, 2 * 2080)),
        ((10_000, 9_000), 0, 1024, None),
        ((10_000, 9_000), 6000, 2048, None),
        ((10_000, 9_000), 1900, 512, None),
    ],
)
def test_cores_are_those_that_let_the_least_be_computed_in_the_memory(
    size: tuple[int, int], limit: int, core: int, windows: tuple[int, int] | None
) -> None:
    """As for resnet34: it sees 543 px far, and takes half a kilobyte of memory for a pixel."""
    net = make_predictor(shape=Geometry(32, 543))
    net.backend.memory_mb = lambda bands, side: math.ceil(134 * (side / 512) ** 2)  # type: ignore[method-assign]
    options = MapOptions(thresholds=(0.5,), memory_limit_mb=limit)
    lattice, block = maps._lattice(net, SimpleNamespace(size=size), 1.0, options)  # type: ignore[arg-type]
    assert (lattice.core, lattice.halo) == (core, 544)
    assert block == (4096 if size == (3072, 3072) else 2048)
    seen = [lattice.lengths(side, block) for side in size]
    assert 134.5 / 512**2 * max(seen[0]) * max(seen[1]) <= (limit or 3072) - 400
    if windows:
        assert tuple(map(sum, seen)) == windows


@pytest.mark.parametrize(
    ("overlap", "labels", "factor", "core", "block"),
    [
        (64, 1, 1.0, 1024, 2048),  # larger ones would not be remembered by the blocks they share
        (300, 1, 1.0, 1024, 2048),
        (300, 70, 1.0, 1024, 512),  # the least that can be blended is larger than a block
        (None, 1, 4.0, 1024, 512),
        (None, 1, 0.5, 1024, 2048),
    ],
)
def test_cores_of_blended_many_and_scaled(
    overlap: int | None, labels: int, factor: float, core: int, block: int
) -> None:
    classes = make_classes(labels + 1, "multilabel" if labels > 1 else "binary")
    net = make_predictor(shape=Geometry(32, 543), classes=classes)
    net.backend.memory_mb = lambda bands, side: math.ceil(134 * (side / 512) ** 2)  # type: ignore[method-assign]
    options = MapOptions(thresholds=(0.5,), overlap=overlap)
    found = maps._lattice(net, SimpleNamespace(size=(8192, 8192)), factor, options)  # type: ignore[arg-type]
    assert (found[0].core, found[1], found[0].blend) == (core, block, overlap is not None)


@pytest.mark.usefixtures("small_blocks")
def test_blended_tiles_of_a_net_with_a_margin_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, net = write_scene(tmp_path / "s.tif", make_pixels(1100, 1300)), make_predictor()
    seen = note_windows(net, monkeypatch)
    options = MapOptions(thresholds=(0.5,), overlap=32, keep_parts=True)
    map_scene([net], scene, tmp_path / "a.tif", options, QUIET)
    made = load_plan(tmp_path / "a.tif.parts")
    lattice = make_lattice(net.card.geometry, made.core + 2 * made.halo, 32)
    lengths = [lattice.lengths(side, made.block) for side in (1100, 1300)]
    assert sorted(seen) == sorted((down, across) for down in lengths[0] for across in lengths[1])


def test_small_scenes_need_no_more_than_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, pixels = make_predictor(), make_pixels(700, 900)
    scene = write_scene(tmp_path / "s.tif", pixels)
    seen = note_windows(net, monkeypatch)
    map_scene([net], scene, tmp_path / "m.tif", MapOptions(thresholds=(0.5,)), QUIET)
    assert seen == [(704, 912)]
    mask = net.probabilities(pixels)[0] >= 0.5
    assert np.mean(read(tmp_path / "m.tif") != mask) < 1e-5


def test_a_scene_of_one_large_block_is_the_map_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(1000, 900))
    found = {}
    for name, twice in (("one", True), ("many", False)):
        monkeypatch.setattr(plan, "BLOCK", 512)
        if not twice:
            monkeypatch.setattr(maps, "blocks_of", lambda *_: [512])
        options = MapOptions(thresholds=(0.5,), probabilities=True, keep_parts=True)
        map_scene([make_predictor()], scene, tmp_path / f"{name}.tif", options, QUIET)
        found[name] = load_plan(tmp_path / f"{name}.tif.parts").block
    assert found == {"one": 1024, "many": 512}
    for kind in ("", "_probabilities"):
        with (
            rasterio.open(tmp_path / f"one{kind}.tif") as one,
            rasterio.open(tmp_path / f"many{kind}.tif") as many,
        ):
            assert one.overviews(1) == many.overviews(1) == [2]
            for factor in (1, 2):
                shape = (-(-1000 // factor), -(-900 // factor))
                a, b = (file.read(1, out_shape=shape).astype(int) for file in (one, many))
                assert np.mean(a != b) < 1e-3 and np.abs(a - b).max() <= 1


def blind(seed: int = 0, **changes: Any) -> Predictor:
    """A net of which it is said that it looks at whole tiles."""
    return make_predictor(seed=seed, shape=Geometry(16, None), **changes)


def test_blended_blocks_agree_with_each_other(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 500))
    seg = segmenter(blind(), 256, overlap=32)
    assert seg.lattice.blend
    whole = answer(seg, scene, Window(0, 0, 600, 500))
    part = answer(seg, scene, Window(130, 201, 333, 111))
    assert np.abs(part - whole[:, 130 : 130 + 333, 201 : 201 + 111]).max() < 1e-6
    assert 0 < seg.disagreement < 1


@pytest.mark.usefixtures("small_blocks")
def test_a_tile_that_reaches_into_several_blocks_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(1100, 1300))
    net = blind(tile=320)
    seen = note_windows(net, monkeypatch)
    options = MapOptions(thresholds=(0.5,), overlap=32)
    map_scene([net], scene, tmp_path / "a.tif", options, QUIET)
    assert len(seen) == 5 * 6  # cores of 256 px
    monkeypatch.setattr("whatwhere.predict.blocks._REMEMBERED", 0)
    map_scene([net], scene, tmp_path / "b.tif", options, QUIET)
    assert len(seen) > 2 * 5 * 6
    assert digest(tmp_path / "a.tif") == digest(tmp_path / "b.tif")


@pytest.mark.parametrize("overlap", [None, 32])
def test_a_constant_scene_stays_constant_where_its_edge_is_not_seen(
    tmp_path: Path, overlap: int | None
) -> None:
    net = make_predictor(upsample="nearest")  # transposed ones have a pattern of their own
    scene = write_scene(tmp_path / "s.tif", np.full((3, 430, 390), 77, dtype=np.uint8))
    found = answer(segmenter(net, 320, overlap=overlap), scene, Window(0, 0, 430, 390))
    spread = float(np.ptp(found[:, 122:-122, 122:-122]))
    # Zeros around a tile reach into it by the margin; with less overlap some are blended in.
    assert spread < (1e-6 if overlap is None else 0.2)


def test_symmetries_are_undone(tmp_path: Path, net: Predictor) -> None:
    pixels = make_pixels(176, 144)  # multiples of the stride: turned, they lie on the same lattice
    scene = write_scene(tmp_path / "s.tif", pixels)
    seg = segmenter(net, 512)
    seg.symmetries = FREE
    found = answer(seg, scene, Window(0, 0, 176, 144))
    for name, turn in (
        ("transposed.tif", lambda p: p.swapaxes(1, 2)),
        ("flipped.tif", lambda p: p[:, ::-1]),
        ("mirrored.tif", lambda p: p[:, :, ::-1]),
    ):
        turned = np.ascontiguousarray(turn(pixels))
        other = write_scene(tmp_path / name, turned)
        again = answer(seg, other, Window(0, 0, *turned.shape[1:]))
        # The mean over all symmetries of a turned scene is the turned mean.
        assert np.abs(turn(found) - again).max() < 1e-4, name
    seg.symmetries = FREE[:1]
    assert np.abs(answer(seg, scene, Window(0, 0, 176, 144)) - found).max() > 0.01
    assert len(UPRIGHT) == 2 and len(set(FREE)) == 8


def test_the_mean_of_two_nets_is_taken(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(90, 90))
    one, two = make_predictor(seed=1), make_predictor(seed=2)
    window = Window(0, 0, 90, 90)
    both = segmenter(one, 1024)
    both.members = [one, two]
    found = both.answer(both.read(open_raster(scene), window))
    apart = [answer(segmenter(net, 1024), scene, window) for net in (one, two)]
    np.testing.assert_allclose(found.probabilities, np.mean(apart, axis=0), atol=1e-6)
    assert found.spread is not None
    np.testing.assert_allclose(found.spread, np.abs(apart[0] - apart[1])[0], atol=1e-3)


# --- the map ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_a_map_lies_on_the_grid_of_its_scene(tmp_path: Path, net: Predictor) -> None:
    pixels = make_pixels(700, 1100)
    pixels[:, 100:250, 300:900] = 0
    turned = Affine(0.4, 0.1, 400000, 0.1, -0.4, 3100000)
    scene = write_scene(tmp_path / "s.tif", pixels, transform=turned, nodata=0)
    out = tmp_path / "map.tif"
    options = MapOptions(thresholds=(0.4,), probabilities=True, uncertainty="entropy")
    made = map_scene([net], scene, out, options, QUIET)
    assert [path.name for path in made.files] == [
        *("map.tif", "map_probabilities.tif", "map_entropy.tif")
    ]
    assert not Path(f"{out}.parts").exists()
    for path in made.files:
        assert cog_validate(str(path), strict=True, quiet=True)[0]
        with rasterio.open(path) as file:
            assert (file.height, file.width) == (700, 1100)
            assert file.transform == turned and file.crs == CRS.from_epsg(32645)
            assert file.nodata == 255
            assert (file.read_masks(1) > 0).sum() == made.valid == 700 * 1100 - 150 * 600
    mask, probability = read(out), read(tmp_path / "map_probabilities.tif")
    there = probability != 255
    certain = there & (np.abs(probability / STEPS - 0.4) > 1 / STEPS)
    np.testing.assert_array_equal(mask[certain], (probability[certain] / STEPS >= 0.4))
    assert made.pixels == {"class 0": int((mask == 0).sum()), "class 1": int((mask == 1).sum())}
    with rasterio.open(out) as file:
        assert file.colormap(1)[1] == (230, 159, 0, 255)
        assert file.tags()["CLASS_1"] == "class 1"
    entropy = read(tmp_path / "map_entropy.tif")[there]
    p = np.clip(probability[there] / STEPS, 1e-6, 1 - 1e-6)
    expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert np.abs(entropy / STEPS - expected).max() < 0.03


@pytest.mark.usefixtures("small_blocks")
def test_shards_make_the_same_bytes(tmp_path: Path, net: Predictor) -> None:
    pixels = make_pixels(700, 640)
    pixels[:, :520, :520] = 0
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    digests = set()
    for count in (1, 3, 7):
        out = tmp_path / f"map{count}.tif"
        shapes = Polygons(path=tmp_path / str(count) / "map.gpkg")
        made = [
            map_scene(
                [net],
                scene,
                out,
                MapOptions(thresholds=(0.5,), shard=(i, count), polygons=shapes),
                QUIET,
            )
            for i in reversed(range(1, count + 1))
        ]
        assert [bool(one.files) for one in made] == [False] * (count - 1) + [True]
        digests.add((digest(out), digest(shapes.path)))
    assert len(digests) == 1


@pytest.mark.usefixtures("small_blocks")
def test_what_is_done_is_not_done_again(
    tmp_path: Path, net: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 1100))
    whole = tmp_path / "whole.tif"
    map_scene([net], scene, whole, HALF, QUIET)
    calls: list[Window] = []
    original = Segmenter.answer

    def counted(self: Segmenter, seen: Any) -> Any:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(seen.window)
        return original(self, seen)

    monkeypatch.setattr(Segmenter, "answer", counted)
    out = tmp_path / "map.tif"
    with pytest.raises(KeyboardInterrupt):
        map_scene([net], scene, out, HALF, QUIET)
    assert not out.exists()
    folder = Path(f"{out}.parts")
    there = sorted(path.name for path in folder.glob("*.tif"))
    assert len(there) == 4
    damaged = folder / there[1]
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(bytes(data))
    monkeypatch.setattr(Segmenter, "answer", original)
    again: list[Window] = []
    monkeypatch.setattr(
        Segmenter, "answer", lambda s, seen: (again.append(seen.window), original(s, seen))[1]
    )
    map_scene([net], scene, out, HALF, QUIET)
    assert len(again) == 6 - 4 + 1  # what was missing, and what was damaged
    assert digest(out) == digest(whole)
    assert not folder.exists()


@pytest.mark.usefixtures("small_blocks")
def test_parts_of_another_plan_are_refused(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 500))
    out = tmp_path / "map.tif"
    map_scene([net], scene, out, MapOptions(thresholds=(0.5,), shard=(1, 2)), QUIET)
    with pytest.raises(UsageError, match=r"another plan(.|\n)*thresholds +0\.5.* +0\.7"):
        map_scene([net], scene, out, MapOptions(thresholds=(0.7,), shard=(2, 2)), QUIET)
    write_scene(tmp_path / "s.tif", make_pixels(600, 500, seed=3))
    with pytest.raises(UsageError, match=r"scene .*s\.tif"):
        map_scene([net], scene, out, MapOptions(thresholds=(0.5,), shard=(2, 2)), QUIET)


@pytest.mark.usefixtures("small_blocks")
def test_a_failed_assembly_leaves_the_old_map(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 700))
    out = tmp_path / "map.tif"
    out.write_bytes(b"what was there before")
    map_scene([net], scene, out, MapOptions(thresholds=(0.5,), shard=(1, 2)), QUIET)
    parts = Parts(Path(f"{out}.parts"), load_plan(Path(f"{out}.parts")))
    with pytest.raises(DataError, match=r"2 of 4 parts are missing \(00000-00001-mask\.tif"):
        maps.assemble(parts, out, None, QUIET)
    assert out.read_bytes() == b"what was there before"
    again = MapOptions(thresholds=(0.5,), shard=(2, 2), keep_parts=True)
    map_scene([net], scene, out, again, QUIET)
    with pytest.raises(UsageError, match="made without polygons"):
        maps.assemble(parts, out, Polygons(path=tmp_path / "m.gpkg"), QUIET)


@pytest.mark.usefixtures("small_blocks")
def test_a_virtual_raster_shows_the_parts(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 700))
    out = tmp_path / "map.tif"
    options = MapOptions(thresholds=(0.5,), keep_parts=True)
    map_scene([net], scene, out, options, QUIET)
    folder = Path(f"{out}.parts")
    write_vrt(Parts(folder, load_plan(folder)), "mask", tmp_path / "map.vrt")
    with rasterio.open(tmp_path / "map.vrt") as virtual, rasterio.open(out) as file:
        np.testing.assert_array_equal(virtual.read(), file.read())
        assert virtual.transform == file.transform and virtual.crs == file.crs
        assert virtual.colormap(1)[1] == file.colormap(1)[1]


@pytest.mark.usefixtures("small_blocks")
def test_several_classes_and_labels(tmp_path: Path) -> None:
    pixels = make_pixels(520, 540)
    pixels[:, :30] = 0
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    for task, count in (("multiclass", 4), ("multilabel", 2)):
        net = make_predictor(classes=make_classes(count, task), tile=320)
        out = tmp_path / f"{task}.tif"
        options = MapOptions(thresholds=net.card.thresholds, probabilities=True)
        made = map_scene([net], scene, out, options, QUIET)
        with rasterio.open(out) as mask, rasterio.open(made.files[1]) as probabilities:
            several = task == "multilabel"
            assert mask.count == (count if several else 1)
            assert probabilities.count == count
            assert probabilities.descriptions == tuple(net.card.classes.names)
            found = probabilities.read().astype(int)
            valid = found[0] != 255
            assert valid.sum() == made.valid == 490 * 540
            if several:
                clear = valid & (np.abs(found - 127) > 2).all(axis=0)
                np.testing.assert_array_equal(mask.read()[:, clear], found[:, clear] > 127)
            else:
                top = np.sort(found, axis=0)
                clear = valid & (top[-1] - top[-2] > 2)
                np.testing.assert_array_equal(mask.read(1)[clear], found.argmax(axis=0)[clear])
            assert (mask.read(1)[~valid] == 255).all()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("task", "count"), [("binary", 2), ("multiclass", 3), ("multilabel", 2)])
def test_polygons_cover_what_the_mask_shows(tmp_path: Path, task: str, count: int) -> None:
    net = make_predictor(classes=make_classes(count, task), tile=512)
    pixels = ndimage.gaussian_filter(make_pixels(560, 600), (0, 5, 5))
    pixels[:, 480:540, 300:400] = 0
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    shapes = Polygons(path=tmp_path / "map.gpkg", simplify_px=0)
    options = MapOptions(thresholds=net.card.thresholds, polygons=shapes)
    made = map_scene([net], scene, tmp_path / "map.tif", options, QUIET)
    found = read_features(tmp_path / "map.gpkg", field="class")
    assert made.objects == len(found.shapes) > 5
    with rasterio.open(tmp_path / "map.tif") as file:
        for i, info in enumerate(net.card.classes):
            several = task == "multilabel"
            if not several and info.role == "background":
                assert info.name not in found.values
                continue
            mine = found.shapes[np.array(found.values) == info.name]
            there = file.read(i + 1) == 1 if several else file.read(1) == info.value
            np.testing.assert_array_equal(covered(mine, open_raster(scene).grid), there)


@pytest.mark.usefixtures("small_blocks")
def test_a_scene_of_other_pixels_is_seen_at_the_size_of_training(tmp_path: Path) -> None:
    pixels = ndimage.gaussian_filter(make_pixels(400, 400), (0, 6, 6))
    scene = write_scene(tmp_path / "s.tif", pixels)  # pixels of 0.5 m
    fine = np.kron(pixels, np.ones((1, 2, 2), dtype=np.uint8))
    other = write_scene(
        tmp_path / "fine.tif", fine, transform=Affine(0.25, 0, 500000, 0, -0.25, 3000000)
    )
    net = make_predictor(tile=320, pixel_size=0.5)
    options = MapOptions(thresholds=(0.5,), probabilities=True)
    map_scene([net], scene, tmp_path / "a.tif", options, QUIET)
    lines: list[str] = []

    class Heard(Talk):
        def say(self, text: str = "") -> None:
            lines.append(text)

    map_scene([net], other, tmp_path / "b.tif", options, Heard(quiet=True))
    assert any("pixels are 0.25 m, the net was trained on 0.5 m" in line for line in lines)
    assert any(line.startswith("warning") for line in lines)
    one, two = read(tmp_path / "a_probabilities.tif"), read(tmp_path / "b_probabilities.tif")
    assert two.shape == (800, 800)
    apart = np.abs(two[::2, ::2].astype(int) - one)[32:-32, 32:-32]
    assert apart.mean() < 0.03 * STEPS
    assert np.ptp(one[one != 255]) > 0.3 * STEPS
    far = make_predictor(pixel_size=2.0)
    with pytest.raises(DataError, match=r"0\.25 m.*trained on 2 m.*--resolution-m 2 does it"):
        map_scene([far], other, tmp_path / "c.tif", options, QUIET)
    plain = write_scene(tmp_path / "plain.tif", pixels, crs=None, transform=Affine.identity())
    asked = MapOptions(thresholds=(0.5,), resolution_m=1.0)
    with pytest.raises(DataError, match="no known size"):
        map_scene([net], plain, tmp_path / "d.tif", asked, QUIET)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_without_data_is_not_computed(
    tmp_path: Path, net: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((3, 1536, 1536), dtype=np.uint8)
    pixels[:, 600:700, 600:700] = 90
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0, SPARSE_OK=True)
    runs: list[int] = []
    original = net.backend.run
    monkeypatch.setattr(
        net.backend, "run", lambda images: (runs.append(len(images)), original(images))[1]
    )
    made = map_scene([net], scene, tmp_path / "map.tif", HALF, QUIET)
    assert made.valid == 100 * 100
    assert sum(runs) <= 4
    assert (read(tmp_path / "map.tif") != 255).sum() == 100 * 100
    assert (tmp_path / "map.tif").stat().st_size < 20000


def test_a_valid_pixel_in_coarse_ones_without_data_has_its_answer(tmp_path: Path) -> None:
    pixels = np.zeros((3, 400, 400), dtype=np.uint8)
    pixels[:, ::4, ::4] = 90  # a sixteenth of every pixel of 2 m has data
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    seg = segmenter(make_predictor(classes=make_classes(3, "multiclass")), 512, factor=0.25)
    found = seg.answer(seg.read(open_raster(scene), Window(0, 0, 400, 400)))
    assert found.valid.sum() == 100 * 100
    np.testing.assert_allclose(found.probabilities[:, found.valid].sum(axis=0), 1, atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_a_scene_that_changes_meanwhile_is_refused(
    tmp_path: Path, net: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 1100))
    original, calls = Segmenter.answer, []

    def change(self: Segmenter, seen: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            write_scene(scene, make_pixels(600, 1100, seed=9))
        return original(self, seen)

    monkeypatch.setattr(Segmenter, "answer", change)
    with pytest.raises(DataError, match="the file has changed since work on it began"):
        map_scene([net], scene, tmp_path / "map.tif", HALF, QUIET)
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.usefixtures("small_blocks")
def test_a_shard_that_comes_late_finds_the_map(
    tmp_path: Path, net: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 1100))
    out = tmp_path / "map.tif"
    shards = [MapOptions(thresholds=(0.5,), shard=(i, 2)) for i in (1, 2)]
    for options in shards:
        map_scene([net], scene, out, options, QUIET)
    before = digest(out)
    monkeypatch.setattr(Segmenter, "answer", lambda *_: pytest.fail("computed again"))
    again = map_scene([net], scene, out, shards[0], QUIET)
    assert again.files == (out,) and digest(out) == before
    assert not Path(f"{out}.parts").exists()


@pytest.mark.usefixtures("small_blocks")
def test_of_two_that_finish_together_one_puts_the_map_together(
    tmp_path: Path, net: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 600))
    out = tmp_path / "map.tif"
    original = maps.assemble

    def late(parts: Parts, *rest: Any) -> Any:
        monkeypatch.setattr(maps, "assemble", original)
        original(parts, *rest)  # the other one was quicker
        maps.remove_parts(parts.folder)
        return original(parts, *rest)

    monkeypatch.setattr(maps, "assemble", late)
    made = map_scene([net], scene, out, HALF, QUIET)
    assert made.files == (out,) and out.is_file()


@pytest.mark.usefixtures("small_blocks")
def test_parts_without_their_plan_are_nobodys(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(600, 600))
    out = tmp_path / "map.tif"
    map_scene([net], scene, out, MapOptions(thresholds=(0.2,), shard=(1, 2)), QUIET)
    (Path(f"{out}.parts") / "plan.json").unlink()
    map_scene([net], scene, out, MapOptions(thresholds=(0.8,)), QUIET)
    fresh = tmp_path / "fresh.tif"
    map_scene([net], scene, fresh, MapOptions(thresholds=(0.8,)), QUIET)
    assert digest(out) == digest(fresh)


# --- what is refused ----------------------------------------------------------------------------


def test_what_cannot_be_mapped_is_told(tmp_path: Path, net: Predictor) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(64, 64))
    out = tmp_path / "map.tif"
    for change, message in (
        ({"uncertainty": "doubt"}, "entropy or spread, not 'doubt'"),
        ({"uncertainty": "spread"}, "needs several answers"),
    ):
        with pytest.raises(UsageError, match=message):
            map_scene([net], scene, out, MapOptions(thresholds=(0.5,), **change), QUIET)
    with pytest.raises(UsageError, match="overwrite the scene"):
        map_scene([net], scene, scene, HALF, QUIET)
    with pytest.raises(UsageError, match="same classes and bands"):
        map_scene([net, make_predictor(bands=("grey",))], scene, out, HALF, QUIET)
    with pytest.raises(UsageError, match="same pixel size"):
        map_scene([net, make_predictor(pixel_size=2.0)], scene, out, HALF, QUIET)
    stretched = make_predictor()
    stretched.card = stretched.card.replace(resize=(128, 128))
    with pytest.raises(UsageError, match=r"128×128 px, which is not for scenes"):
        map_scene([stretched], scene, out, HALF, QUIET)
    assert not out.exists() and not Path(f"{out}.parts").exists()


def test_bands_are_found_by_name_then_by_number(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", make_pixels(20, 20, bands=4))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("nir", "Red", "green", "blue")
    raster = open_raster(path)
    assert bands_in(make_predictor().card, raster) == (2, 3, 4)
    false_colour = make_predictor(bands=("swir", "red", "green")).card
    numbered = false_colour.replace(bands=Bands(false_colour.bands.names, (1, 2, 3)))
    with pytest.raises(DataError, match=r"(?s)1 nir, 2 Red, .*1 swir, 2 red, 3 green"):
        bands_in(numbered, raster)
    plain = write_scene(tmp_path / "plain.tif", make_pixels(20, 20))
    assert bands_in(numbered, open_raster(plain)) == (1, 2, 3)  # nobody named these
    other = make_predictor(bands=("vv", "vh", "dem")).card
    with pytest.raises(DataError, match=r"(?s)1 nir, 2 Red, .*vv, vh, dem"):
        bands_in(other, raster)


# --- a fault at any time ------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from made_maps import make_predictor
from whatwhere.predict import plan
from whatwhere.predict.maps import MapOptions, map_scene
from whatwhere.talk import QUIET
plan.BLOCK = 512
map_scene(
    [make_predictor(tile=320)], Path({scene!r}), Path({out!r}), MapOptions(thresholds=(0.5,)), QUIET
)
"""


def _killed(command: Sequence[str], seconds: float) -> bool:
    """Start a program and kill it after a while; whether it had ended by itself."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, told = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        running.communicate()
        return False
    assert running.returncode == 0, told.decode()
    return True


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX does")
def test_a_hundred_kills_change_no_byte(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(2600, 2600))
    tests = str(Path(__file__).parent.parent)
    calm, out = tmp_path / "calm.tif", tmp_path / "map.tif"

    def command(target: Path) -> list[str]:
        script = WORKER.format(tests=tests, scene=str(scene), out=str(target))
        return [sys.executable, "-c", script]

    assert _killed(command(calm), 600)
    kills, start = 0, 8.0
    while kills < 100:
        if _killed(command(out), start + 0.23 * (kills % 11)):
            assert digest(out) == digest(calm)
            out.unlink()
            start = max(2.0, start - 1)  # it was too late: earlier the next time
            continue
        kills += 1
        left = [path.name for path in tmp_path.rglob("*") if ".tmp" in path.name]
        assert len(left) <= 2 * kills
    while not _killed(command(out), 600):
        time.sleep(0.1)
    assert digest(out) == digest(calm)
    assert not re.search("part", " ".join(path.name for path in tmp_path.iterdir()))
