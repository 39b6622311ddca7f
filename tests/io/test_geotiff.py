"""Cloud-optimised GeoTIFFs: what is written is what GDAL reads, and a part knows if it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from whatwhere.errors import DataError, OutputError
from whatwhere.grid import Grid
from whatwhere.io import geotiff
from whatwhere.io.geotiff import (
    TILE,
    Level,
    Pixels,
    Style,
    decode_part,
    encode_level,
    encode_part,
    halve,
    level_sizes,
    pyramid,
    tiles_across,
    write_geotiff,
)

ENGINEERING = (
    'LOCAL_CS["mine",LOCAL_DATUM["shaft",0],UNIT["metre",1],AXIS["East",EAST],AXIS["North",NORTH]]'
)
SYSTEMS = [*(CRS.from_epsg(n).to_wkt() for n in (32645, 4326, 3857, 2154)), ENGINEERING, ""]
PLACE = Grid(SYSTEMS[0], Affine(0.5, 0, 500000, 0, -0.5, 3000000), 700, 600)


def patches(rng: np.random.Generator, shape: tuple[int, int, int], nodata: int) -> Pixels:
    """Patches of few numbers, with a third of them and sometimes everything missing."""
    bands, height, width = shape
    side = int(rng.integers(1, 700))
    coarse = rng.integers(0, 256, (bands, -(-height // side), -(-width // side)))
    coarse[rng.random(coarse.shape) < 0.3] = nodata
    fine = np.repeat(np.repeat(coarse, side, axis=1), side, axis=2)[:, :height, :width]
    noise = rng.random(fine.shape) < 0.02
    fine[noise] = rng.integers(0, 256, int(noise.sum()))
    if rng.random() < 0.05:
        fine[:] = nodata
    return fine.astype(np.uint8)


def some_transform(rng: np.random.Generator) -> Affine:
    corner = rng.uniform(-1e6, 1e6, 2)
    x, y = rng.uniform(0.01, 30, 2)
    kinds = [
        Affine(x, 0, corner[0], 0, -y, corner[1]),
        Affine(x, 0, corner[0], 0, y, corner[1]),  # south-up
        Affine.translation(*corner) @ Affine.rotation(rng.uniform(0, 360)) @ Affine.scale(x, -y),
        Affine.translation(*corner) @ Affine.shear(*rng.uniform(-60, 60, 2)) @ Affine.scale(x, -y),
        Affine(1 / 3, 0, 1 / 7, 0, -1 / 3, 1e-9),
        Affine.identity(),
    ]
    return kinds[rng.integers(len(kinds))]


def some_style(rng: np.random.Generator) -> Style:
    bands = int(rng.integers(1, 5))
    colored = bands == 1 and rng.random() < 0.5
    numbers = rng.integers(0, 256, 5).tolist()
    return Style(
        bands=bands,
        nodata=int(rng.integers(0, 256)),
        colors={n: tuple(rng.integers(0, 256, 3).tolist()) for n in numbers} if colored else {},
        names=tuple(f"Ebene {i} <ä&>" for i in range(bands)) if rng.random() < 0.5 else (),
        scale=None if colored or rng.random() < 0.5 else float(rng.choice([1 / 254, 1.0])),
        tags={"CLASS_1": 'Dächer & "Wände" <x>'} if rng.random() < 0.5 else {},
        stamp="0123abcd" if rng.random() < 0.5 else "",
    )


def some_file(rng: np.random.Generator) -> tuple[Grid, Style, list[Pixels]]:
    height, width = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int).tolist()
    grid = Grid(SYSTEMS[rng.integers(len(SYSTEMS))], some_transform(rng), height, width)
    style = some_style(rng)
    sizes = level_sizes(height, width, int(rng.integers(1, 4)))
    levels = len(set(sizes))  # what has one pixel has no overview
    pixels = patches(rng, (style.bands, height, width), style.nodata)
    return grid, style, pyramid(pixels, style, levels)


def write(path: Path, grid: Grid, style: Style, images: list[Pixels]) -> bytes:
    stream = io.BytesIO()
    count = write_geotiff(stream, grid, style, [encode_level(image, style) for image in images])
    data = stream.getvalue()
    assert count == len(data)
    path.write_bytes(data)
    return data


@contextlib.contextmanager
def unplaced() -> Iterator[None]:
    """Files without coordinates are meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def gdals_own(path: Path, grid: Grid) -> CRS | None:
    """The system as GDAL reads it from a file that it wrote itself."""
    profile: dict[str, Any] = {"crs": grid.crs, "transform": grid.transform}
    if not grid.is_placed:
        return None
    with rasterio.open(path, "w", "GTiff", 1, 1, 1, dtype="uint8", **profile) as file:
        file.write(np.zeros((1, 1, 1), np.uint8))
    with rasterio.open(path) as file:
        return file.crs


def check_file(folder: Path, grid: Grid, style: Style, images: list[Pixels]) -> None:
    path = folder / "a.tif"
    with unplaced():
        with rasterio.open(path) as file:
            assert file.driver == "GTiff" and file.dtypes == ("uint8",) * style.bands
            assert (file.height, file.width, file.count) == (grid.height, grid.width, style.bands)
            assert file.block_shapes == [(TILE, TILE)] * style.bands
            assert tuple(file.transform) == tuple(grid.transform)
            assert file.crs == gdals_own(folder / "own.tif", grid)
            assert bool(file.crs) == bool(grid.crs)
            assert file.nodatavals == (style.nodata,) * style.bands
            assert np.array_equal(file.read(), images[0])
            assert file.scales == (style.scale or 1.0,) * style.bands
            assert file.descriptions == (style.names or (None,) * style.bands)
            stamped = {"WHATWHERE_PLAN": style.stamp} if style.stamp else {}
            wanted = {**style.tags, **stamped}
            assert wanted.items() <= file.tags().items()
            assert "WHATWHERE_TILES" not in file.tags()
            if style.colors:
                assert file.colorinterp == (ColorInterp.palette,)
                found = file.colormap(1)
                assert {n: found[n][:3] for n in style.colors} == style.colors
            else:
                assert ColorInterp.palette not in file.colorinterp
            assert ColorInterp.alpha not in file.colorinterp
            assert len(file.overviews(1)) == len(images) - 1
        for i, image in enumerate(images[1:]):
            with rasterio.open(path, OVERVIEW_LEVEL=i) as file:
                assert np.array_equal(file.read(), image)
        valid, errors, remarks = cog_validate(path)
    narrow = any(one.shape[2] == next_.shape[2] for one, next_ in itertools.pairwise(images))
    if not narrow:  # it takes the factors of overviews from widths alone
        assert valid and not errors and not remarks


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("seeds", [15, pytest.param(250, marks=pytest.mark.slow)])
def test_what_is_written_is_read_by_gdal(
    tmp_path: Path, seeds: int, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(geotiff, "_CLASSIC_LIMIT", 0)
    for seed in range(seeds):
        grid, style, images = some_file(np.random.default_rng((seed, big)))
        data = write(tmp_path / "a.tif", grid, style, images)
        assert data[2] == (43 if big else 42)
        try:
            check_file(tmp_path, grid, style, images)
        except AssertionError as error:
            error.add_note(f"seed {seed}: {grid}, {style}")
            raise


def test_a_file_of_classic_size_is_classic_and_a_larger_one_is_not() -> None:
    image = np.full((1, 600, 600), 3, np.uint8)
    level = encode_level(image, Style())

    class Stream(io.BytesIO):
        """Keeps the head, since the rest is large."""

        def write(self, data: Any) -> int:
            return super().write(data) if self.tell() < 10000 else len(data)

    for size, version in ((2**30 - 2**16, 42), (2**30, 43)):
        counts = np.full(4, size)
        chunk = bytes(size)
        stream = Stream()
        grid = dataclasses.replace(PLACE, height=600, width=600)
        large = Level(600, 600, counts, level.order, lambda chunk=chunk: iter([chunk] * 4))
        assert write_geotiff(stream, grid, Style(), [large]) >= 4 * size
        assert stream.getvalue()[2] == version


@pytest.mark.parametrize("bands", [40, 90, 300])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_many_bands_have_room(
    tmp_path: Path, bands: int, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(geotiff, "_CLASSIC_LIMIT", 0)
    pixels = np.arange(bands * 12, dtype=np.int64).reshape(bands, 3, 4).astype(np.uint8)
    style = Style(bands=bands, scale=1 / 254, names=tuple(f"class {i}" for i in range(bands)))
    grid = dataclasses.replace(PLACE, height=3, width=4)
    images = pyramid(pixels, style, 2)
    write(tmp_path / "a.tif", grid, style, images)
    check_file(tmp_path, grid, style, images)


def test_tiles_without_data_are_left_out_and_read_as_no_data(tmp_path: Path) -> None:
    pixels = np.full((2, 1100, 1100), 9, np.uint8)
    pixels[0, 600, 3] = pixels[1, 1099, 1099] = 4
    style = Style(bands=2, nodata=9)
    grid = dataclasses.replace(PLACE, height=1100, width=1100)
    data = write(tmp_path / "a.tif", grid, style, [pixels])
    assert len(data) < 5000
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), pixels)
        there = [
            (band, row, column)
            for band in (1, 2)
            for row in range(3)
            for column in range(3)
            if file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band)
        ]
    assert there == [(1, 1, 0), (2, 2, 2)]


def test_an_image_without_any_data_is_a_file(tmp_path: Path) -> None:
    images = [np.full((1, 700, 600), 255, np.uint8), np.full((1, 350, 300), 255, np.uint8)]
    write(tmp_path / "a.tif", PLACE, Style(), images)
    check_file(tmp_path, PLACE, Style(), images)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    grid, style, images = some_file(np.random.default_rng(3))
    assert write(tmp_path / "a.tif", grid, style, images) == write(
        tmp_path / "b.tif", grid, style, images
    )
    code = (
        "import sys, numpy as np; sys.path[:0] = sys.argv[1:]; import test_geotiff as t;"
        "from whatwhere.io.geotiff import encode_part;"
        "g, s, i = t.some_file(np.random.default_rng(3));"
        "sys.stdout.buffer.write(encode_part(g, s, i[0], len(i)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, check=True
    )
    assert other.stdout == encode_part(grid, style, images[0], len(images))


def test_a_tile_of_another_length_than_announced_is_refused() -> None:
    level = encode_level(np.full((1, 700, 600), 3, np.uint8), Style())
    chunks = list(level.chunks())
    for wrong in (chunks[1][:-1], chunks[1] + b"x", b""):
        parts = [chunks[0], wrong, *chunks[2:]]
        false = dataclasses.replace(level, chunks=lambda parts=parts: iter(parts))
        with pytest.raises(OutputError, match=rf"tile 1 has {len(wrong)} bytes, {len(chunks[1])} "):
            write_geotiff(io.BytesIO(), PLACE, Style(), [false])


# ---------------------------------------------------------------- sizes and overviews


def test_sizes_end_where_one_tile_holds_it_all() -> None:
    assert level_sizes(512, 512) == [(512, 512)]
    assert level_sizes(513, 1) == [(513, 1), (257, 1)]
    assert level_sizes(3, 2049) == [(3, 2049), (2, 1025), (1, 513), (1, 257)]
    assert level_sizes(5, 4, 4) == [(5, 4), (3, 2), (2, 1), (1, 1)]
    assert tiles_across(513, 512) == (2, 1)


def plain_half(pixels: Pixels, style: Style) -> Pixels:
    """Pixel by pixel."""
    bands, height, width = pixels.shape
    found = np.zeros((bands, -(-height // 2), -(-width // 2)), dtype=np.uint8)
    for band, row, column in np.ndindex(*found.shape):
        rows = [min(2 * row + i, height - 1) for i in (0, 1)]
        columns = [min(2 * column + j, width - 1) for j in (0, 1)]
        four = [int(pixels[band, y, x]) for y in rows for x in columns]
        there = [value for value in four if value != style.nodata]
        if not there:
            value = style.nodata
        elif style.smooth:
            value = int(np.floor(sum(there) / len(there) + 0.5))
        else:
            counts = Counter(there)
            value = next(v for v in there if counts[v] == max(counts.values()))
        found[band, row, column] = value
    return found


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)),
        elements=st.sampled_from([0, 1, 2, 3, 100, 254, 255]),
    ),
    st.sampled_from([0, 3, 255]),
    st.sampled_from([None, 1 / 254]),
)
@example(np.array([[[1, 2], [2, 1]]], np.uint8), 255, None)
@example(np.array([[[255, 2], [1, 255]]], np.uint8), 255, None)
@example(np.array([[[255, 254], [254, 254]]], np.uint8), 0, 1.0)
@settings(deadline=None, max_examples=200)
def test_half_is_the_majority_or_the_mean(pixels: Pixels, nodata: int, scale: float | None) -> None:
    style = Style(bands=len(pixels), nodata=nodata, scale=scale)
    found = halve(pixels, style)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, plain_half(pixels, style))


def test_ties_are_won_by_the_first() -> None:
    four = np.array([[[1, 2], [2, 1]]], np.uint8)
    assert halve(four, Style()).item() == 1
    assert halve(four[:, ::-1], Style()).item() == 2
    assert halve(np.array([[[255, 7], [3, 255]]], np.uint8), Style()).item() == 7


def test_a_mean_may_not_become_no_data_by_itself() -> None:
    """Numbers on both sides of the number for "no data" have it as their mean."""
    four = np.array([[[99, 101], [99, 101]]], np.uint8)
    assert halve(four, Style(nodata=255, scale=1.0)).item() == 100


# ---------------------------------------------------------------- parts


def part_of(seed: int, smooth: bool) -> tuple[bytes, Style, list[Pixels]]:
    rng = np.random.default_rng(seed)
    style = Style(
        bands=2, nodata=200, names=("a", "b"), scale=1 / 254 if smooth else None, stamp="plan"
    )
    pixels = patches(rng, (2, 700, 600), style.nodata)
    pixels[:, :5, :5] = 7
    return encode_part(PLACE, style, pixels, 3), style, pyramid(pixels, style, 3)


PARTS = [part_of(seed, smooth) for seed, smooth in ((1, False), (2, True))]


@pytest.mark.parametrize("seed", range(6))
def test_a_part_is_read_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid, style, images = some_file(rng)
    part = decode_part(encode_part(grid, style, images[0], len(images)))
    assert part.stamp == style.stamp and len(part.levels) == len(images)
    for i, image in enumerate(images):
        found = part.decode(i, style)
        assert found.dtype == np.uint8 and np.array_equal(found, image)


def test_a_part_is_a_file_that_gdal_reads(tmp_path: Path) -> None:
    data, _, images = PARTS[1]
    (tmp_path / "a.tif").write_bytes(data)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), images[0])
    assert cog_validate(tmp_path / "a.tif")[0]


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_a_flipped_byte_in_a_tile_is_found(number: int) -> None:
    data, _, _ = PARTS[number]
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        first = min(offset for page in tiff.pages for offset in page.dataoffsets if offset)

    @given(st.integers(first, len(data) - 1), st.integers(1, 255))
    @settings(deadline=None, max_examples=60)
    def flipped(at: int, bits: int) -> None:
        broken = bytearray(data)
        broken[at] ^= bits
        with pytest.raises(DataError, match="the part is damaged: its digest is not the one"):
            decode_part(bytes(broken))

    flipped()


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_a_part_cut_short_is_found(number: int) -> None:
    data, _, _ = PARTS[number]

    @given(st.integers(0, len(data) - 1))
    @example(0)
    @example(8)
    @example(len(data) - 1)
    @settings(deadline=None, max_examples=60)
    def cut(at: int) -> None:
        with pytest.raises(DataError, match=r"the part (cannot be read|is damaged)"):
            decode_part(data[:at])

    cut()


@given(st.sampled_from(PARTS), st.integers(0, 3600), st.integers(1, 255))
@example(PARTS[0], 24, 1)  # the type of a tag: a number became a fraction
@example(PARTS[0], 183, 128)  # the number of bits became infinite
@settings(deadline=None, max_examples=150)
def test_altered_directories_give_the_same_tiles_or_a_data_error(
    part: tuple[bytes, Style, list[Pixels]], at: int, bits: int
) -> None:
    data, style, images = part
    broken = bytearray(data)
    broken[at] ^= bits
    with contextlib.suppress(DataError):
        found = decode_part(bytes(broken))
        assert np.array_equal(found.decode(0, style), images[0])


def test_a_damaged_part_does_not_speak_to_the_terminal() -> None:
    code = (
        "import sys; from whatwhere.io.geotiff import decode_part\n"
        "try: decode_part(sys.stdin.buffer.read())\n"
        "except ValueError as error: print(error)"
    )
    data = bytearray(PARTS[0][0])
    data[8:600] = bytes(592)
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes(data), capture_output=True, check=True
    )
    assert done.stderr == b"" and b"the part cannot be read" in done.stdout
    assert logging.getLogger("tifffile").handlers


def test_a_part_that_is_no_tiff_is_told() -> None:
    for data in (b"", b"text", bytes(1000)):
        with pytest.raises(DataError, match="the part cannot be read"):
            decode_part(data)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="the part cannot be read: KeyError"):
        decode_part(stream.getvalue())


def test_a_tile_that_does_not_fit_its_place_is_told() -> None:
    data, style, _ = PARTS[0]
    part = decode_part(data)
    false = dataclasses.replace(
        part.levels[0], chunks=lambda: iter([b"none"] * len(part.levels[0].order))
    )
    with pytest.raises(DataError, match="a tile of a part is damaged"):
        dataclasses.replace(part, levels=(false,)).decode(0, style)
