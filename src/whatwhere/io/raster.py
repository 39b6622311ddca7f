"""Rasters of any size, read window by window through GDAL.

What a file is, its content decides, and GDAL is told. Files that lie beside it (`.aux.xml`, `.msk`,
world files), files made of other files (VRT, MRF) and anything on a network are read only where the
user trusts them: they may stand for something else tomorrow, or open what they should not.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.env
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as _Window

from whatwhere.errors import DataError, Problem
from whatwhere.grid import Grid
from whatwhere.io.crs import FARTHEST, check_alone, to_wkt
from whatwhere.io.image import State, fault, read_head, state_of
from whatwhere.io.imagine import keeps_elsewhere
from whatwhere.tiling import reflect
from whatwhere.types import Valid, Window

SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".img", ".vrt", ".mrf")
"""Endings of files that may be rasters with coordinates."""

CACHE_MB = 256
"""The most that GDAL keeps of decoded blocks while rasters are read [MB]."""

_DRIVERS = (
    ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "GTiff"),
    ((b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"), "JP2OpenJPEG"),
    ((b"\x89PNG",), "PNG"),
    ((b"\xff\xd8\xff",), "JPEG"),
    ((b"EHFA_HEADER_TAG",), "HFA"),
)
_ALONE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_PAM_ENABLED": "NO",
}
_BESIDE = (".aux.xml", ".msk", ".ovr")
_WORLD = (".tfw", ".tifw", ".wld", ".prj", ".jgw", ".pgw")
_BAND_COLORS = {
    **{ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"},
    ColorInterp.alpha: "alpha",
}
_MOST_SIDE, _MOST_BANDS = 2**31 - 1, 2048
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclass(frozen=True)
class Raster:
    """A raster file, opened where it is read: one handle for each process and thread.

    Attributes:
        path: The file, or what the user trusts to stand for one.
        grid: Where its pixels lie.
        names: Of its bands without alpha, in their order: the descriptions in the file, else its
            colours, else `band 1` and so on.
        numbers: The positions of these bands in the file, from 1.
        dtype: The widest number type of its bands.
        nodata: What stands for "no data" in each band; None where nothing does.
        alpha: The position of the alpha band; None where there is none.
        block: (height, width) of the pieces it is stored in [px].
        driver: GDAL's name of the format.
        trust: Whether what lies beside the file is read.
        notes: What is worth knowing before it is read.
        described: Whether the names are the file's own descriptions.
        state: What changes when the file is written.
        files: All files that it is read from, as far as GDAL tells; of a file that is not trusted
            itself alone, for GDAL would look into others to tell.
    """

    path: Path
    grid: Grid
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    dtype: str
    nodata: tuple[float | None, ...]
    alpha: int | None
    block: tuple[int, int]
    driver: str
    trust: bool
    notes: tuple[Problem, ...]
    described: bool = False
    state: State | None = None
    files: tuple[Path, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px]."""
        return self.grid.height, self.grid.width

    def read(
        self, window: Window, numbers: Sequence[int] | None = None
    ) -> tuple[NDArray[Any], Valid]:
        """Read a window within the raster.

        A pixel is valid where the file's mask and alpha say so (alpha that is read as a band is
        none), where every band is finite, and where it is not "no data": in a raster of bytes that
        is where all bands read hold it, since 0 is also a dark colour; in any other where one of
        them does.

        Args:
            window: What to read.
            numbers: Positions of bands from 1; None for all but alpha.

        Returns:
            `(C, H, W)` of the file's number type, and `(H, W)` valid.

        Raises:
            DataError: The file is damaged there.
        """
        wanted = list(self.numbers if numbers is None else numbers)
        place = _Window(window.column, window.row, window.width, window.height)
        with _told(self.path), _settings(self.trust):
            file = _handle(self)
            kinds = file.dtypes  # what is asked of GDAL each time, for all bands
            if len({kinds[number - 1] for number in wanted}) == 1:
                pixels = file.read(wanted, window=place)
            else:  # rasterio reads bands of different types only one by one
                bands = [file.read(number, window=place) for number in wanted]
                pixels = np.stack(bands).astype(self.dtype)
            valid = self._masked(file, wanted, place)
        if np.issubdtype(pixels.dtype, np.floating):
            valid &= np.isfinite(pixels).all(axis=0)
        marks = [self.nodata[number - 1] for number in wanted]
        absent = [
            _holds(band, mark)
            for band, mark in zip(pixels, marks, strict=True)
            if mark is not None and not np.isnan(mark)
        ]
        if absent and pixels.dtype.itemsize == 1:
            if len(absent) == len(wanted):
                valid &= ~np.logical_and.reduce(absent)
        elif absent:
            valid &= ~np.logical_or.reduce(absent)
        return pixels, valid

    def read_around(
        self, window: Window, numbers: Sequence[int] | None = None
    ) -> tuple[NDArray[Any], Valid]:
        """Read a window that may go beyond the edges, where the raster goes on as its mirror image.

        Arguments, results and errors are those of `read`.
        """
        return read_mirrored(self.read, self.size, window, numbers)

    def is_empty(self, window: Window, numbers: Sequence[int] | None = None) -> bool:
        """Whether a window has no data, as far as that is known without reading it.

        A sparse GeoTIFF leaves out the pieces that hold nothing: they are read as what the file
        itself says that stands for "no data".
        """
        wanted = list(self.numbers if numbers is None else numbers)
        if self.driver != "GTiff" or any(self.nodata[number - 1] is None for number in wanted):
            return False
        height, width = self.block
        rows = range(window.row // height, (window.row + window.height - 1) // height + 1)
        columns = range(window.column // width, (window.column + window.width - 1) // width + 1)
        with _told(self.path), _settings(self.trust):
            file = _handle(self)
            if not all(_filled(file, self.nodata[number - 1], number) for number in wanted):
                return False
            return not any(
                file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=number)
                for number in wanted
                for row in rows
                for column in columns
            )

    def number_of(self, name: str) -> int | None:
        """Return the position of a band by its name, whatever the case; None where it has none."""
        lower = [one.casefold() for one in self.names]
        at = name.casefold()
        return self.numbers[lower.index(at)] if lower.count(at) == 1 else None

    def find(self, names: Sequence[str], numbers: Sequence[int]) -> tuple[int, ...] | None:
        """Return the positions of a net's bands; None where they cannot be known.

        By name, if the raster has them all. Else by position, but only where names say nothing: the
        net's are numbers themselves, or the raster has no descriptions of its own.
        """
        named = [self.number_of(name) for name in names]
        if all(number is not None for number in named):
            return tuple(number for number in named if number is not None)
        nameless = all(name == f"band {n}" for n, name in zip(numbers, names, strict=False))
        if self.described and not (numbers and nameless):
            return None
        if numbers:
            there = {*self.numbers, self.alpha}
            return tuple(numbers) if set(numbers) <= there else None
        return self.numbers if len(self.numbers) == len(names) else None

    def _masked(self, file: Any, wanted: Sequence[int], place: _Window) -> Valid:
        """Where the file's own mask and alpha let a pixel count."""
        valid = np.ones((place.height, place.width), dtype=np.bool_)
        if self.alpha is not None and self.alpha not in wanted:
            valid &= file.read(self.alpha, window=place) > 0
        if self.driver == "HFA" and not self.trust:
            return valid  # it has no mask but one beside it, which GDAL looks for all the same
        kinds = file.mask_flag_enums
        for number in wanted:
            flags = kinds[number - 1]
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                valid &= file.read_masks(number, window=place) > 0
                break  # it is one for all bands
        return valid


def _filled(file: Any, mark: float | None, number: int) -> bool:
    """Whether what a file leaves out of a band is read as something that is not valid."""
    own, kind = file.nodatavals[number - 1], np.dtype(file.dtypes[number - 1])
    if own is None or mark is None:
        return False
    if np.isnan(own):
        return bool(kind.kind == "f")
    fits = kind.kind == "f" or np.iinfo(kind).min <= own <= np.iinfo(kind).max
    return bool(own == mark and fits)


def read_mirrored(
    read: Callable[..., tuple[NDArray[Any], Valid]],
    size: tuple[int, int],
    window: Window,
    numbers: Sequence[int] | None,
) -> tuple[NDArray[Any], Valid]:
    """Read a window that may go beyond the edges of what `read` reads, of this size [px]."""
    rows = reflect(np.arange(window.row, window.row + window.height), size[0])
    columns = reflect(np.arange(window.column, window.column + window.width), size[1])
    top, left = int(rows.min()), int(columns.min())
    inner = Window(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)
    pixels, valid = read(inner, numbers)
    if inner == window:
        return pixels, valid
    for axis, places in ((-2, rows - top), (-1, columns - left)):
        pixels, valid = (np.take(values, places, axis=axis) for values in (pixels, valid))
    return pixels, valid


def open_raster(path: Path, *, trust: bool = False, nodata: float | None = None) -> Raster:
    """Look at a raster; nothing but its header is read.

    Args:
        path: A GeoTIFF, JPEG 2000, HFA, PNG or JPEG file; with `trust` whatever GDAL opens.
        trust: Read what lies beside the file, files made of other files, and remote paths.
        nodata: Stands for "no data" in all bands, whatever the file says.

    Raises:
        DataError: The file is missing, of another kind, damaged, or holds numbers that are none.
    """
    driver = None if trust else _driver(path)
    with _told(path), _settings(trust), _open(path, driver) as file:
        return _look(path, file, trust, nodata)


def _look(path: Path, file: Any, trust: bool, nodata: float | None) -> Raster:
    odd = sorted({kind for kind in file.dtypes if kind not in _TYPES})
    if odd:
        raise fault(path, f"its numbers are {', '.join(odd)}.", "Save it as float32 or integers.")
    if max(file.shape) > _MOST_SIDE or not file.count:
        raise fault(path, f"it has {file.count:,} bands of {file.height}×{file.width} px.", "")
    if file.count > _MOST_BANDS:
        cause = f"it has {file.count:,} bands, and at most {_MOST_BANDS:,} are read."
        raise fault(path, cause, "Take those that matter: gdal_translate -b.")
    colors = file.colorinterp
    alpha = next((i for i, c in enumerate(colors, 1) if c == ColorInterp.alpha), None)
    if alpha and (file.descriptions[alpha - 1] or "alpha").strip().casefold() != "alpha":
        alpha = None  # writers call the fourth of four bytes alpha unless they are told
    numbers = tuple(n for n in range(1, file.count + 1) if n != alpha)
    if not numbers:
        raise fault(path, "it has no band but alpha.", "Give one with pixels.")
    notes = [] if trust else _beside(path)
    transform = file.transform
    if transform.is_degenerate:
        raise fault(path, "its pixels have no area on the ground.", "Correct its transform.")
    corners = [transform @ (x, y) for x in (0, file.width) for y in (0, file.height)]
    if not (np.abs(corners) <= FARTHEST).all():
        raise fault(
            path, "its corners lie nowhere: they are too far off.", "Correct its transform."
        )
    points = "ground control points" if file.gcps[0] else "rational polynomials"
    if (file.gcps[0] or file.rpcs) and transform == rasterio.Affine.identity():
        cause = f"it is placed by {points}, which are not read."
        notes.append(Problem("warning", str(path), cause, "Warp it to a grid first: gdalwarp."))
    height, width = map(int, file.block_shapes[0])
    if height * width > 2**24 or (width >= file.width > 4096 and height < 64):
        cause = f"it is stored in pieces of {height}×{width} px: every window reads whole ones."
        remedy = "A tiled file is read faster: gdal_translate -co TILED=YES."
        notes.append(Problem("note", str(path), cause, remedy))
    kinds = file.dtypes
    kind = np.dtype(str(np.result_type(*{kinds[number - 1] for number in numbers})))
    if nodata is not None and kind.kind in "iu":
        ends = np.iinfo(kind)
        if not (ends.min <= nodata <= ends.max and float(nodata).is_integer()):
            cause = f"{nodata:g} cannot stand for no data: its numbers are {kind}."
            raise fault(path, cause, f"Say --nodata from {ends.min} to {ends.max}.")
    names, described = _names(file, numbers)
    system = to_wkt(file.crs)
    if not trust:
        check_alone(path, system)
    return Raster(
        path=path,
        grid=Grid(system, transform, file.height, file.width),
        names=names,
        numbers=numbers,
        dtype=str(kind),
        nodata=tuple(
            (None if mark is None else float(mark)) if nodata is None else nodata
            for mark in file.nodatavals
        ),
        alpha=alpha,
        block=(height, width),
        driver=file.driver,
        trust=trust,
        notes=tuple(notes),
        described=described,
        state=state_of(path),
        files=tuple(Path(one) for one in file.files) if trust else (path,),
    )


def _holds(band: NDArray[Any], mark: float) -> NDArray[np.bool_]:
    """Where a band holds a value that stands for "no data".

    Floats are compared within two of their last digits, as GDAL does; a mark beyond their range is
    their largest number, as programs write it.
    """
    if not np.issubdtype(band.dtype, np.floating):
        return np.asarray(band == mark)
    limits = np.finfo(band.dtype)
    exact = np.array(np.clip(mark, float(limits.min), float(limits.max)), dtype=band.dtype)
    low, high = exact, exact
    for _ in range(2):
        low, high = np.nextafter(low, limits.min), np.nextafter(high, limits.max)
    return np.asarray((band >= low) & (band <= high))


def _names(file: Any, numbers: Sequence[int]) -> tuple[tuple[str, ...], bool]:
    """Return the bands' names, and whether they are the file's own descriptions."""
    descriptions, kinds = file.descriptions, file.colorinterp  # asked of GDAL each time
    told = [(descriptions[number - 1] or "").strip() for number in numbers]
    colors = [_BAND_COLORS.get(kinds[number - 1], "") for number in numbers]
    for names, own in ((told, True), (colors, False)):
        if all(names) and len({name.casefold() for name in names}) == len(names):
            return tuple(names), own
    often = Counter(told)
    some = tuple(
        name if name and often[name] == 1 else f"band {number}"
        for name, number in zip(told, numbers, strict=True)
    )
    return some, any(told)


def _driver(path: Path) -> str:
    """Return GDAL's name of what a file holds; refuse what is not a file of its own."""
    text = str(path)
    if "://" in text or text.startswith("/vsi") or ":/" in text.replace("\\", "/")[2:]:
        raise fault(path, "this is on a network, or inside another file.", _TRUST)
    head = read_head(path, 64)
    for beginnings, driver in _DRIVERS:
        if head.startswith(beginnings):
            if driver == "HFA" and keeps_elsewhere(path):
                raise fault(path, "it keeps its pixels in another file (.ige).", _TRUST)
            return driver
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise fault(path, "this is made of other files (VRT, MRF or the like).", _TRUST)
    raise fault(
        path,
        "this is no GeoTIFF, JPEG 2000, HFA, PNG or JPEG, whatever its name says.",
        "Convert it to a GeoTIFF.",
    )


_TRUST = "If you know what it opens, say --trust (in Python trust=True)."


def _beside(path: Path) -> list[Problem]:
    """Note the files beside a raster that are not read."""
    there = [f"{path.name}{end}" for end in _BESIDE if Path(f"{path}{end}").is_file()]
    there += [path.with_suffix(end).name for end in _WORLD if path.with_suffix(end).is_file()]
    if not there:
        return []
    cause = f"{', '.join(there)} beside it {'is' if len(there) == 1 else 'are'} not read."
    return [Problem("note", str(path), cause, _TRUST)]


_handles = threading.local()


def _handle(raster: Raster) -> Any:
    """Return this thread's handle of the file; a forked process opens its own.

    Raises:
        DataError: The file is not the one that was looked at.
    """
    if state_of(raster.path) != raster.state:
        raise fault(raster.path, "the file has changed since work on it began.", "Begin anew.")
    if getattr(_handles, "process", None) != os.getpid():
        _handles.process, _handles.open = os.getpid(), {}
    key = (raster.path, raster.trust, raster.state)
    if key not in _handles.open:
        if len(_handles.open) >= 32:
            _handles.open.pop(next(iter(_handles.open))).close()
        driver = None if raster.trust else raster.driver
        _handles.open[key] = _open(raster.path, driver)
    return _handles.open[key]


def close_handles() -> None:
    """Close this thread's files, so that they may be replaced or removed."""
    if getattr(_handles, "process", None) == os.getpid():
        while _handles.open:
            _handles.open.popitem()[1].close()


def _open(path: Path, driver: str | None) -> Any:
    """Open a file; with a driver it is nothing but the file of this name."""
    place: Path | str = path.absolute()  # a path is not looked through for an address
    if driver is None:
        place = re.sub(r"^((?:/vsi\w+/)?(?:https?|ftp|s3|gs|az|oss)):/+", r"\1://", str(path))
    with unplaced():
        return rasterio.open(place, driver=driver, sharing=False)


class _Shared:
    """What all threads of a process have in common: the limit of GDAL's cache."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew: a forked process must not wait for threads it does not have."""
        self.lock, self.apart = threading.Lock(), threading.Lock()
        self.readers, self.before = 0, 0

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Keep the cache small while anyone reads; the last one restores the host's limit."""
        with self.lock:
            if not self.readers:
                self.before = int(rasterio.env.get_gdal_config(_LIMIT))
                rasterio.env.set_gdal_config(_LIMIT, min(self.before, CACHE_MB << 20))
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if not self.readers:
                    rasterio.env.set_gdal_config(_LIMIT, self.before)


@contextlib.contextmanager
def unplaced() -> Iterator[None]:
    """Let files without coordinates be opened without a word, by one thread at a time.

    Python has one list of warnings to ignore for all threads.
    """
    with _shared.lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


_LIMIT = "GDAL_CACHEMAX"  # rasterio takes and gives bytes
_shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.begin)


@contextlib.contextmanager
def _settings(trust: bool) -> Iterator[None]:
    """GDAL's settings while one of our files is read; a host program's come back afterwards.

    What the main thread sets holds for all threads that set nothing: so files that are trusted are
    read in no other thread while it reads one that is not.
    """
    main = threading.current_thread() is threading.main_thread()
    meets = main != trust
    alone = _shared.apart if meets else contextlib.nullcontext()
    with alone, rasterio.env.Env(**({} if trust else _ALONE)), _shared.limited():
        yield


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what GDAL says of a bad file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise fault(path, "the memory is too small for it.", "Take a smaller --tile.") from error
    except (RasterioError, OSError, ValueError, OverflowError) as error:
        told = " ".join(str(error.__cause__ or error).split())
        raise fault(
            path, f"the file is damaged or cannot be read ({told[:200]}).", "Copy it again."
        ) from error
