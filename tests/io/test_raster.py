"""Rasters read by windows: what rasterio reads, where it is valid, and what is refused."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.env
import rasterio.shutil
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio._env import del_gdal_config  # it has no public name
from rasterio.enums import ColorInterp
from rasterio.windows import Window as Place

from made_maps import NORTH_UP, UTM, make_pixels, write_scene
from whatwhere.errors import DataError
from whatwhere.io.raster import CACHE_MB, Raster, close_handles, open_raster
from whatwhere.types import Valid, Window

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"blockxsize": 16, "blockysize": 32, "interleave": "pixel"},
    "tiled bands": {"blockxsize": 16, "blockysize": 16, "interleave": "band"},
    "striped": {"tiled": False, "blockxsize": None, "blockysize": 7, "interleave": "pixel"},
    "striped bands": {"tiled": False, "blockxsize": None, "interleave": "band", "compress": "lzw"},
}
SIZE = (75, 90)
WINDOWS = [Window(0, 0, *SIZE), Window(10, 20, 33, 50), Window(74, 89, 1, 1), Window(0, 31, 75, 2)]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_handles()


def numbers(dtype: str, bands: int = 3, seed: int = 0) -> NDArray[Any]:
    """Any numbers of a type, never 0."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1e3, (bands, *SIZE)).astype(kind)
    found = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (bands, *SIZE), kind, True)
    found[found == 0] = 1
    return found


def saved(path: Path, pixels: NDArray[Any], layout: str = "tiled", **profile: Any) -> Path:
    settings = {**LAYOUTS[layout], **profile}
    return write_scene(path, pixels, **{k: v for k, v in settings.items() if v is not None})


def whole(raster: Raster) -> Window:
    return Window(0, 0, *raster.size)


def valid_of(path: Path, nodata: float | None = None, **options: Any) -> Valid:
    raster = open_raster(path, nodata=nodata)
    return raster.read(whole(raster), **options)[1]


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_are_what_rasterio_reads(tmp_path: Path, dtype: str, layout: str) -> None:
    path = saved(tmp_path / "a.tif", numbers(dtype), layout)
    raster = open_raster(path)
    assert raster.size == SIZE and raster.dtype == dtype and raster.driver == "GTiff"
    assert raster.grid.transform == NORTH_UP and raster.grid.crs == UTM.to_wkt()
    with rasterio.open(path) as file:
        assert raster.block == file.block_shapes[0]
        for window in WINDOWS:
            place = Place(window.column, window.row, window.width, window.height)
            for wanted in (None, [1, 2, 3], [3, 1], [2]):
                pixels, valid = raster.read(window, wanted)
                assert pixels.dtype == dtype and valid.all()
                assert valid.shape == (window.height, window.width)
                assert np.array_equal(pixels, file.read(wanted, window=place))


@pytest.mark.parametrize("ending", ["png", "img", "jp2"])
def test_other_formats_are_read(tmp_path: Path, ending: str) -> None:
    driver = {"png": "PNG", "img": "HFA", "jp2": "JP2OpenJPEG"}[ending]
    pixels = make_pixels(64, 70)
    lossless = {"quality": 100, "reversible": True} if ending == "jp2" else {}
    source = saved(tmp_path / "a.tif", pixels)
    path = tmp_path / f"a.{ending}"
    rasterio.shutil.copy(source, path, driver=driver, **lossless)
    raster = open_raster(path)
    assert raster.driver == driver and np.array_equal(raster.read(whole(raster))[0], pixels)


def test_what_a_file_is_its_content_decides(tmp_path: Path) -> None:
    saved(tmp_path / "a.tif", make_pixels(20, 30)).rename(tmp_path / "a.png")
    assert open_raster(tmp_path / "a.png").driver == "GTiff"


def test_bands_of_several_types_are_read_as_the_widest(tmp_path: Path) -> None:
    saved(tmp_path / "a.tif", numbers("uint8", 1))
    saved(tmp_path / "b.tif", numbers("int16", 1))
    kinds = (("Byte", "a"), ("Int16", "b"))
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i}"><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for i, (kind, name) in enumerate(kinds, 1)
    )
    path = tmp_path / "a.vrt"
    path.write_text(f'<VRTDataset rasterXSize="90" rasterYSize="75">{bands}</VRTDataset>')
    raster = open_raster(path, trust=True)
    assert raster.dtype == "int16"
    pixels, _ = raster.read(whole(raster))
    assert pixels.dtype == "int16" and np.array_equal(pixels[0], numbers("uint8", 1)[0])
    assert np.array_equal(pixels[1], numbers("int16", 1)[0])
    assert raster.read(whole(raster), [1])[0].dtype == "uint8"


@given(
    st.tuples(st.integers(-200, 200), st.integers(-200, 200)),
    st.tuples(st.integers(1, 250), st.integers(1, 250)),
    st.sampled_from([(1, 1), (1, 40), (33, 2), (37, 41)]),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_beyond_the_edges_it_goes_on_as_its_mirror_image(
    tmp_path_factory: pytest.TempPathFactory,
    start: tuple[int, int],
    shape: tuple[int, int],
    size: tuple[int, int],
) -> None:
    path = tmp_path_factory.getbasetemp() / f"mirror-{size[0]}-{size[1]}.tif"
    stored = make_pixels(*size, seed=4)
    stored[:, 0, 0] = 0
    if not path.exists():
        write_scene(path, stored, nodata=0, blockxsize=16, blockysize=16)
    pixels, valid = open_raster(path).read_around(Window(*start, *shape))
    wide = 500
    wanted = np.pad(stored, ((0, 0), (wide, wide), (wide, wide)), mode="reflect")
    inside = Window(start[0] + wide, start[1] + wide, *shape).slices
    assert np.array_equal(pixels, wanted[:, *inside])
    assert np.array_equal(valid, (wanted != 0).all(axis=0)[inside])


# ---------------------------------------------------------------- where it is valid


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_mask_within_the_file_counts(tmp_path: Path, dtype: str) -> None:
    mask = np.random.default_rng(1).random(SIZE) < 0.5
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        saved(path, numbers(dtype))
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    assert not Path(f"{path}.msk").exists()
    raster = open_raster(path)
    for wanted in (None, [2]):
        for window in WINDOWS:
            assert np.array_equal(raster.read(window, wanted)[1], mask[window.slices])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("uint8", "int8")])
def test_one_band_without_data_spoils_a_pixel(tmp_path: Path, dtype: str) -> None:
    pixels = numbers(dtype)
    pixels[1, 3, 4] = pixels[:, 5, 6] = 7
    pixels[0, pixels[0] == 7] = 8
    pixels[:, 5, 6] = 7
    wanted = (pixels != 7).all(axis=0)
    assert not wanted[3, 4] and not wanted[5, 6]
    assert np.array_equal(valid_of(saved(tmp_path / "a.tif", pixels, nodata=7)), wanted)
    assert np.array_equal(valid_of(saved(tmp_path / "b.tif", pixels), nodata=7), wanted)
    assert valid_of(tmp_path / "a.tif", numbers=[1])[3, 4]
    assert not valid_of(tmp_path / "a.tif", numbers=[2])[3, 4]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_are_without_data_where_all_bands_are(tmp_path: Path, dtype: str) -> None:
    pixels = numbers(dtype)
    pixels[:, 5, 6] = pixels[1, 3, 4] = 0
    wanted = (pixels != 0).any(axis=0)
    assert wanted.sum() == wanted.size - 1
    assert np.array_equal(valid_of(saved(tmp_path / "a.tif", pixels, nodata=0)), wanted)
    assert np.array_equal(valid_of(saved(tmp_path / "b.tif", pixels), nodata=0), wanted)
    assert not valid_of(tmp_path / "a.tif", numbers=[2])[3, 4]


def test_what_the_user_says_replaces_what_the_file_says(tmp_path: Path) -> None:
    pixels = numbers("int16")
    pixels[:, 0, 0], pixels[:, 1, 1] = -9999, 5
    path = saved(tmp_path / "a.tif", pixels, nodata=-9999)
    assert not valid_of(path)[0, 0]
    valid = valid_of(path, nodata=5)
    assert valid[0, 0] and not valid[1, 1]
    assert open_raster(path, nodata=5).nodata == (5, 5, 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [None, np.nan, -3.4028234663852886e38])
def test_what_is_not_finite_does_not_count(
    tmp_path: Path, dtype: str, nodata: float | None
) -> None:
    pixels = numbers(dtype)
    pixels[0, 0, 0], pixels[1, 1, 1], pixels[2, 2, 2] = np.nan, np.inf, -np.inf
    if nodata is not None:
        pixels[1, 3, 3] = nodata
    wanted = np.ones(SIZE, dtype=bool)
    for i in range(3 if nodata is None else 4):
        wanted[i, i] = False
    assert np.array_equal(valid_of(saved(tmp_path / "a.tif", pixels, nodata=nodata)), wanted)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_is_validity_and_no_band(tmp_path: Path, dtype: str) -> None:
    pixels = numbers(dtype, 4)
    pixels[3, :20] = 0
    path = saved(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    raster = open_raster(path)
    found, valid = raster.read(whole(raster))
    assert (raster.alpha, raster.numbers) == (4, (1, 2, 3))
    assert raster.names == ("red", "green", "blue")
    assert np.array_equal(found, pixels[:3]) and np.array_equal(valid, pixels[3] > 0)


def test_a_mask_of_real_imagery_counts(real_data: Callable[[str], Path]) -> None:
    path = real_data("oam_banepa") / "scene_predict.tif"
    raster = open_raster(path)
    window = Window(0, 0, min(1500, raster.size[0]), min(1500, raster.size[1]))
    with rasterio.open(path) as file:
        place = Place(0, 0, window.width, window.height)
        pixels, valid = raster.read(window)
        assert np.array_equal(pixels, file.read(raster.numbers, window=place))
        assert np.array_equal(valid, file.dataset_mask(window=place) > 0)


def test_real_imagery_of_fractions_has_holes(real_data: Callable[[str], Path]) -> None:
    path = real_data("nc_landsat7") / "scene_6band.tif"
    raster = open_raster(path)
    pixels, valid = raster.read(whole(raster))
    with rasterio.open(path) as file:
        wanted = file.read()
    assert np.array_equal(pixels, wanted, equal_nan=True)
    assert np.array_equal(valid, np.isfinite(wanted).all(axis=0))


# ---------------------------------------------------------------- empty windows


def sparse(path: Path, dtype: str, nodata: float | None, layout: str = "tiled") -> Path:
    """Two bands of 4×4 pieces of 32 px; only one piece of the second band is there."""
    profile = {**LAYOUTS[layout], "blockxsize": 32, "blockysize": 32, "nodata": nodata}
    shape: dict[str, Any] = {"height": 128, "width": 128, "count": 2, "dtype": dtype}
    kept = {name: value for name, value in profile.items() if value is not None}
    with rasterio.open(
        path, "w", "GTiff", crs=UTM, transform=NORTH_UP, tiled=True, SPARSE_OK=True, **shape, **kept
    ) as file:
        file.write(np.full((32, 32), 7, dtype), 2, window=Place(64, 32, 32, 32))
    return path


@pytest.mark.parametrize("layout", ["tiled", "tiled bands"])
@pytest.mark.parametrize(
    ("dtype", "nodata", "asked"),
    [
        ("uint8", 255, None),
        ("uint8", 255, 255),
        ("int16", -9999, None),
        ("float32", -9999, None),
        ("float32", np.nan, None),
        ("float32", np.nan, -9999),
    ],
)
def test_what_a_sparse_file_leaves_out_is_empty(
    tmp_path: Path, layout: str, dtype: str, nodata: float, asked: float | None
) -> None:
    raster = open_raster(sparse(tmp_path / "a.tif", dtype, nodata, layout), nodata=asked)
    assert raster.is_empty(Window(0, 0, 128, 64))
    assert raster.is_empty(Window(0, 96, 128, 32)) and raster.is_empty(Window(64, 0, 1, 128))
    assert not raster.is_empty(Window(0, 0, 128, 65)) and not raster.is_empty(Window(63, 64, 1, 1))
    if layout == "tiled bands":
        assert raster.is_empty(whole(raster), [1]) and not raster.is_empty(whole(raster), [2])


@pytest.mark.parametrize(
    ("dtype", "nodata", "asked"),
    [("uint8", None, None), ("uint8", None, 5), ("uint8", 0, 9), ("int16", -9999, 7)],
)
def test_what_is_left_out_and_valid_is_not_empty(
    tmp_path: Path, dtype: str, nodata: float | None, asked: float | None
) -> None:
    """Where the file says 0 or nothing and the user says something else, what is read counts."""
    raster = open_raster(sparse(tmp_path / "a.tif", dtype, nodata), nodata=asked)
    assert raster.read(Window(0, 0, 64, 64))[1].all()
    assert not raster.is_empty(Window(0, 0, 64, 64))


@given(st.tuples(*[st.integers(0, 127)] * 2), st.tuples(*[st.integers(1, 128)] * 2))
@settings(deadline=None, max_examples=50)
def test_a_window_said_to_be_empty_has_no_data(
    tmp_path_factory: pytest.TempPathFactory, start: tuple[int, int], shape: tuple[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "sparse.tif"
    if not path.exists():
        sparse(path, "int16", -1, "tiled bands")
    height, width = (min(side, 128 - at) for side, at in zip(shape, start, strict=True))
    window = Window(*start, height, width)
    raster = open_raster(path)
    valid = raster.read(window, [2])[1]
    reaches = Window(0, 0, 128, 128)
    assert not (raster.is_empty(window, [2]) and valid.any())
    assert raster.is_empty(window, [2]) == (not valid.any())
    assert not raster.is_empty(reaches, [2])


# ---------------------------------------------------------------- names


def described(path: Path, names: list[str | None], colors: list[ColorInterp] | None) -> Raster:
    saved(path, numbers("uint8", len(names)))
    with rasterio.open(path, "r+") as file:
        for i, name in enumerate(names, 1):
            if name is not None:
                file.set_band_description(i, name)
        if colors:
            file.colorinterp = colors
    return open_raster(path)


RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
GREYS = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined]


@pytest.mark.parametrize(
    ("told", "colors", "names"),
    [
        (["B2", " B3 ", "B4"], RGB, ("B2", "B3", "B4")),
        (["B2", None, "B4"], RGB, ("red", "green", "blue")),
        (["B2", "b2", "B4"], RGB, ("red", "green", "blue")),
        ([None] * 3, [*RGB[::-1]], ("blue", "green", "red")),
        ([None] * 3, GREYS, ("band 1", "band 2", "band 3")),
        (["B2", None, "B4"], GREYS, ("B2", "band 2", "B4")),
        (["x", "x", "y"], GREYS, ("band 1", "band 2", "y")),
    ],
)
def test_bands_have_names(
    tmp_path: Path, told: list[str | None], colors: list[ColorInterp], names: tuple[str, ...]
) -> None:
    raster = described(tmp_path / "a.tif", told, colors)
    assert raster.names == names
    assert [raster.number_of(name.upper()) for name in names] == [1, 2, 3]
    assert raster.number_of("nir") is None


# ---------------------------------------------------------------- processes and threads


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    pixels = make_pixels(400, 300)
    raster = open_raster(saved(tmp_path / "a.tif", pixels, compress="deflate"))
    rng = np.random.default_rng(0)
    windows = [Window(*rng.integers(0, 200, 2).tolist(), 90, 80) for _ in range(120)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for window, (found, valid) in zip(windows, pool.map(raster.read, windows), strict=True):
            assert valid.all() and np.array_equal(found, pixels[:, *window.slices])


def read_sum(raster: Raster) -> int:
    return int(raster.read(whole(raster))[0].sum())


def test_a_raster_travels_to_another_process(tmp_path: Path) -> None:
    pixels = make_pixels(60, 50)
    raster = open_raster(saved(tmp_path / "a.tif", pixels))
    assert pickle.loads(pickle.dumps(raster)) == raster
    assert read_sum(raster) == pixels.sum()
    code = (
        "import pickle, sys; raster = pickle.load(sys.stdin.buffer)\n"
        "from whatwhere.types import Window\n"
        "print(raster.read(Window(0, 0, *raster.size))[0].sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(raster), capture_output=True, check=True
    )
    assert int(done.stdout) == pixels.sum() and not done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_reads_with_a_handle_of_its_own(tmp_path: Path) -> None:
    pixels = make_pixels(60, 50)
    raster = open_raster(saved(tmp_path / "a.tif", pixels))
    assert read_sum(raster) == pixels.sum()
    child = os.fork()
    if child == 0:
        os._exit(0 if read_sum(raster) == pixels.sum() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_more_files_than_handles_are_read(tmp_path: Path) -> None:
    rasters = []
    for i in range(40):
        pixels = np.full((1, 8, 8), i + 1, np.uint8)
        rasters.append(open_raster(write_scene(tmp_path / f"{i}.tif", pixels, tiled=False)))
    for _ in range(2):
        assert [read_sum(raster) for raster in rasters] == [64 * (i + 1) for i in range(40)]


@pytest.mark.parametrize("way", ["replaced", "written over"])
def test_a_file_that_became_another_is_read_anew(tmp_path: Path, way: str) -> None:
    path = saved(tmp_path / "a.tif", numbers("uint8"))
    assert read_sum(open_raster(path)) == numbers("uint8").sum()
    other = tmp_path / "b.tif" if way == "replaced" else path
    if way == "written over":
        close_handles()
    saved(other, numbers("uint8", 2, seed=5))
    if way == "replaced":
        try:
            os.replace(other, path)
        except PermissionError:
            pytest.skip("this system does not replace files that are open")
    assert read_sum(open_raster(path)) == numbers("uint8", 2, seed=5).sum()


# ---------------------------------------------------------------- a host program's settings

HOSTS = {"GDAL_PAM_ENABLED": "YES", "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "OTHER": "1"}


def configured() -> dict[str, Any]:
    names = [*HOSTS, "GDAL_GEOREF_SOURCES", "GDAL_CACHEMAX"]
    return {name: rasterio.env.get_gdal_config(name) for name in names}


def use(path: Path) -> None:
    raster = open_raster(path)
    raster.read_around(Window(-5, -5, 20, 20))
    raster.is_empty(Window(0, 0, 5, 5))
    with pytest.raises(DataError):
        open_raster(path.with_name("missing.tif"))


def test_a_hosts_settings_are_what_they_were(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", numbers("uint8"), nodata=0)
    before = configured()
    use(path)
    assert configured() == before and not rasterio.env.hasenv()
    with rasterio.Env(GDAL_CACHEMAX=50_000_000, **HOSTS):
        inside, options = configured(), rasterio.env.getenv()
        use(path)
        assert configured() == inside and rasterio.env.getenv() == options
        assert inside["GDAL_CACHEMAX"] == 50_000_000
    for name in HOSTS:
        rasterio.env.set_gdal_config(name, HOSTS[name])
    try:
        direct = configured()
        use(path)
        assert configured() == direct
    finally:
        for name in HOSTS:
            del_gdal_config(name)


def test_the_cache_is_small_while_threads_read_and_as_it_was_afterwards(tmp_path: Path) -> None:
    from whatwhere.io import raster as module

    before = rasterio.env.get_gdal_config("GDAL_CACHEMAX")
    filters = list(warnings.filters)
    together = threading.Barrier(2)
    seen = []

    def first() -> None:
        with module._settings(False):
            together.wait()
            together.wait()

    def second() -> None:
        together.wait()
        with module._settings(False):
            together.wait()
            time.sleep(0.05)  # the first one leaves
            seen.append(rasterio.env.get_gdal_config("GDAL_CACHEMAX"))

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [min(before, CACHE_MB * 2**20)]
    assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == before
    assert warnings.filters == filters


def test_a_hosts_smaller_cache_stays_small(tmp_path: Path) -> None:
    from whatwhere.io import raster as module

    with rasterio.Env(GDAL_CACHEMAX=1_000_000), module._settings(False):
        assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 1_000_000


# ---------------------------------------------------------------- what lies beside a file

AUX = (
    "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform> 9, 2, 0, 8, 0, -2</GeoTransform>"
    '<PAMRasterBand band="1"><Description>evil</Description></PAMRasterBand></PAMDataset>'
)


def bare(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_scene(path, numbers("uint8"), crs=None, transform=Affine.identity())


def test_an_aux_file_is_read_with_trust_only(tmp_path: Path) -> None:
    path = bare(tmp_path / "a.tif")
    Path(f"{path}.aux.xml").write_text(AUX)
    alone, trusted = open_raster(path), open_raster(path, trust=True)
    assert alone.grid.transform == Affine.identity() and not alone.grid.crs
    assert alone.names[0] == "red" and "evil" not in alone.names
    assert trusted.grid.transform == Affine(2, 0, 9, 0, -2, 8) and "3857" in trusted.grid.crs
    assert not trusted.notes
    assert [str(note).split(": ", 1)[1] for note in alone.notes] == [
        "a.tif.aux.xml beside it is not read. If you know what it opens, say --trust "
        "(in Python trust=True)."
    ]


def test_a_mask_beside_a_file_is_read_with_trust_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", numbers("uint8"))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros(SIZE, bool))
    assert Path(f"{path}.msk").exists()
    window = Window(0, 0, 9, 9)
    alone, trusted = open_raster(path), open_raster(path, trust=True)
    assert alone.read(window)[1].all() and not trusted.read(window)[1].any()
    assert alone.read(window)[1].all()  # the handles are told apart
    assert "a.tif.msk beside it is not read" in str(alone.notes[0])


def test_a_world_file_is_read_with_trust_only(tmp_path: Path) -> None:
    path = bare(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n10\n20\n")
    (tmp_path / "a.prj").write_text("")
    assert open_raster(path).grid.transform == Affine.identity()
    assert open_raster(path, trust=True).grid.transform == Affine(2, 0, 9, 0, -2, 21)
    assert "a.tfw, a.prj beside it are not read" in str(open_raster(path).notes[0])


def test_real_tiles_with_files_beside_them(real_data: Callable[[str], Path]) -> None:
    beside = sorted((real_data("oam_banepa") / "tiles").glob("*.tif.aux.xml"))
    assert beside
    for path in beside[:5]:
        tile = path.with_name(path.name.removesuffix(".aux.xml"))
        raster = open_raster(tile)
        assert any("is not read" in note.cause for note in raster.notes)
        assert not raster.grid.is_placed and open_raster(tile, trust=True).grid.is_placed
        with rasterio.open(tile) as file:
            assert np.array_equal(raster.read(whole(raster))[0], file.read(raster.numbers))


# ---------------------------------------------------------------- what is refused


def test_what_is_made_of_other_files_needs_trust(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.tif", numbers("uint8"))
    path = tmp_path / "sneaky.tif"
    rasterio.shutil.copy(source, path, driver="VRT")
    with pytest.raises(DataError, match=r"sneaky\.tif: this is made of other files .*say --trust"):
        open_raster(path)
    assert read_sum(open_raster(path, trust=True)) == numbers("uint8").sum()


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/a.tif",
        "/vsicurl/https://example.org/a.tif",
        "s3://bucket/a.tif",
        "/vsizip/a.zip/a.tif",
        "/vsimem/a.tif",
        "zip:///a.zip!a.tif",
    ],
)
def test_what_is_on_a_network_needs_trust(name: str) -> None:
    with pytest.raises(DataError, match="this is on a network, or inside another file.*--trust"):
        open_raster(Path(name))


def test_a_file_within_another_is_read_with_trust(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(saved(tmp_path / "a.tif", numbers("uint8")), "a.tif")
    path = Path(f"zip://{(tmp_path / 'a.zip').as_posix()}!a.tif")
    assert read_sum(open_raster(path, trust=True)) == numbers("uint8").sum()


def test_a_file_on_a_server_is_read_with_trust(tmp_path: Path) -> None:
    """A path has one slash where an address has two."""
    saved(tmp_path / "a.tif", numbers("uint8"))
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        address = f"http://127.0.0.1:{port}/a.tif"
        with rasterio.Env(GDAL_HTTP_PROXY=""):
            for text in (address, f"/vsicurl/{address}"):
                raster = open_raster(Path(text), trust=True)
                assert read_sum(raster) == numbers("uint8").sum()
    finally:
        close_handles()
        server.terminate()
        server.communicate()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.tif: the file is empty\. Copy it again"),
        (b"some text", r"a\.tif: this is no GeoTIFF, JPEG 2000, HFA, PNG or JPEG, whatever its na"),
        (b"\n <GDAL_MRF>", r"a\.tif: this is made of other files \(VRT, MRF or the like\)"),
        (b"\xef\xbb\xbf<VRTDataset/>", r"a\.tif: this is made of other files"),
        (b"II*\0", r"a\.tif: the file is damaged or cannot be read \(.*Copy it again"),
        (b"\x89PNG\r\n\x1a\n", r"a\.tif: the file is damaged or cannot be read"),
    ],
)
def test_what_is_no_raster_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_raster(tmp_path / "a.tif")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tif: there is no such file\. Check the name"):
        open_raster(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"this is not a plain file\. Check the name"):
        open_raster(tmp_path)
    with pytest.raises(DataError, match=r"b\.tif: the file is damaged or cannot be read"):
        open_raster(tmp_path / "b.tif", trust=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", numbers("uint8"))
    path.chmod(0)
    with pytest.raises(DataError, match="the file may not be read. Give yourself the right"):
        open_raster(path)


def test_a_file_cut_short_is_told_where_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", numbers("uint8"), compress="deflate")
    path.write_bytes(path.read_bytes()[:-3000])
    raster = open_raster(path)
    with pytest.raises(DataError, match=r"a\.tif: the file is damaged or cannot be read"):
        raster.read(whole(raster))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "int64", "uint64"])
def test_numbers_of_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path / "a.tif", np.ones((1, 20, 20), dtype))
    with pytest.raises(DataError, match=rf"its numbers are {dtype}\. Save it as float32 or int"):
        open_raster(path)


def test_nothing_but_alpha_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.tif", numbers("uint8", 1))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.colorinterp = [ColorInterp.alpha]
    with pytest.raises(DataError, match=r"it has no band but alpha\. Give one with pixels"):
        open_raster(tmp_path / "a.tif")


def test_pixels_without_area_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    saved(path, numbers("uint8"), transform=Affine(1, 2, 0, 2, 4, 0))
    with pytest.raises(DataError, match=r"its pixels have no area on the ground"):
        open_raster(path)


def test_control_points_are_told(tmp_path: Path) -> None:
    from rasterio.control import GroundControlPoint

    points = [GroundControlPoint(*at) for at in ((0, 0, 5, 6), (0, 9, 7, 6), (9, 0, 5, 8))]
    path = bare(tmp_path / "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "r+") as file:
            file.gcps = points, UTM
    (note,) = open_raster(path).notes
    assert note.severity == "warning" and "ground control points, which are not read" in note.cause


def test_badly_stored_files_are_told(tmp_path: Path) -> None:
    wide = np.zeros((1, 100, 5000), np.uint8)
    saved(tmp_path / "a.tif", wide, "striped", blockysize=1)
    saved(tmp_path / "b.tif", wide)
    (note,) = open_raster(tmp_path / "a.tif").notes
    assert note.severity == "note" and "in pieces of 1×5000 px: every window reads" in note.cause
    assert "gdal_translate -co TILED=YES" in note.remedy
    assert not open_raster(tmp_path / "b.tif").notes


def test_too_little_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster = open_raster(saved(tmp_path / "a.tif", numbers("uint8")))

    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Raster, "_masked", full)
    with pytest.raises(DataError, match=r"a\.tif: the memory is too small for it\. Take a smaller"):
        raster.read(whole(raster))


@pytest.mark.parametrize(
    ("tag", "value"),
    [(-3.402823e38, -3.4028234663852886e38), (-1.7976931348623157e308, -3.4028234663852886e38)],
)
def test_the_least_float_is_no_data_however_it_is_written(
    tmp_path: Path, tag: float, value: float
) -> None:
    pixels = np.ones((2, 20, 30), dtype=np.float32)
    pixels[0, :5] = value
    path = write_scene(tmp_path / "a.tif", pixels)
    raster = dataclasses.replace(open_raster(path), nodata=(tag, tag))
    _, valid = raster.read(Window(0, 0, 20, 30))
    assert not valid[:5].any() and valid[5:].all()


def test_a_nodata_that_the_numbers_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", make_pixels(20, 20))
    with pytest.raises(DataError, match=r"300 cannot stand for no data.*from 0 to 255"):
        open_raster(path, nodata=300)
    with pytest.raises(DataError, match=r"0\.5 cannot stand for no data"):
        open_raster(path, nodata=0.5)
