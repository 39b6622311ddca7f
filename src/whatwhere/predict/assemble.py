"""From parts to one cloud-optimised GeoTIFF for each output, and to polygons."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from whatwhere import files
from whatwhere.io.crs import Shapes
from whatwhere.io.geotiff import (
    TILE,
    Level,
    Pixels,
    Style,
    encode_level,
    halve,
    level_sizes,
    tiles_across,
    write_geotiff,
)
from whatwhere.io.vector import write_features
from whatwhere.predict.outlines import SIMPLIFY_PX, outline
from whatwhere.predict.parts import Parts
from whatwhere.predict.polygons import Joiner, Objects
from whatwhere.talk import Talk
from whatwhere.types import Classes

_KEPT_BYTES = 2**25  # of small overviews in memory; more go to a file beside the output


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """What the polygons are to be like.

    Attributes:
        path: GeoPackage, GeoJSON or FlatGeobuf.
        simplify_px: How far an outline may move [px]; 0 keeps the pixels' sides.
        square: Whether outlines get right angles, as buildings have.
        min_area_m2: Smaller ones, and smaller holes, are left out [m²].
    """

    path: Path
    simplify_px: float = SIMPLIFY_PX
    square: bool = False
    min_area_m2: float = 0.0


class Tally:
    """Counts the pixels of a mask.

    Attributes:
        pixels: Of each class, by its name.
        valid: With data.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes, self.valid = classes, 0
        self.pixels = dict.fromkeys(classes.names, 0)

    def add(self, values: Pixels, nodata: int) -> None:
        """Count `(bands, H, W)`."""
        self.valid += int((values[0] != nodata).sum())
        for i, info in enumerate(self.classes):
            several = self.classes.task == "multilabel"
            plane, value = (values[i], 1) if several else (values[0], info.value)
            self.pixels[info.name] += int((plane == value).sum())


def assemble_raster(parts: Parts, kind: str, path: Path, talk: Talk) -> Tally:
    """Put the parts of an output together.

    Tiles are copied as they are; only overviews so small that a block does not fill a tile of them
    are made here. The same parts give the same bytes.

    Returns:
        How many pixels of a mask each class has, and how many are valid; of others nothing.

    Raises:
        DataError: A part is missing or damaged.
        OutputError: The file cannot be written.
    """
    style, plan, total = parts.style(kind), parts.plan, parts.total
    tally = Tally(parts.classes)
    sizes = level_sizes(*plan.size)
    shared = min(parts.levels, len(sizes))
    counts = [
        np.zeros(style.bands * int(np.prod(tiles_across(*size))), dtype=np.int64)
        for size in sizes[:shared]
    ]
    order: list[list[NDArray[np.int64]]] = [[] for _ in range(shared)]
    with (
        files.told(path, "put it together"),
        tempfile.SpooledTemporaryFile(_KEPT_BYTES, dir=str(path.parent)) as spool,
    ):
        small = _Pyramid(sizes[shared - 1 :], style, spool)
        for number in talk.track(range(total), f"reading the {kind}", total):
            part = parts.read(number, kind)
            for i in range(shared):
                places = _places(parts, number, i, style)
                counts[i][places] = part.levels[i].counts
                order[i].append(places[part.levels[i].order])
            if kind == "mask":
                tally.add(part.decode(0, style), style.nodata)
            if len(sizes) > shared:
                small.add(part.decode(shared - 1, style), number % plan.columns == 0)
        levels = [
            Level(*sizes[i], counts[i], np.concatenate(order[i]), _chunks(parts, kind, i))
            for i in range(shared)
        ]
        levels += small.finish()
        with files.replacing(path) as temporary, open(temporary, "xb") as stream:
            write_geotiff(stream, parts.grid, style, levels)
    if kind == "mask":
        _name_classes(path, parts.classes)
    return tally


def _places(parts: Parts, number: int, level: int, style: Style) -> NDArray[np.int64]:
    """Where the tiles of a part lie among those of the whole level, band by band."""
    window = parts.plan.window(number)
    rows, columns = tiles_across(*level_sizes(*parts.plan.size)[level])
    top, left = (start // (TILE << level) for start in (window.row, window.column))
    height, width = level_sizes(window.height, window.width, level + 1)[level]
    here = tiles_across(height, width)
    inside = (top + np.arange(here[0]))[:, None] * columns + left + np.arange(here[1])
    bands: NDArray[np.int64] = np.arange(style.bands)[:, None] * (rows * columns) + inside.ravel()
    return bands.ravel()


def _chunks(parts: Parts, kind: str, level: int) -> Callable[[], Iterator[bytes]]:
    """The compressed tiles of a level, block by block."""

    def chunks() -> Iterator[bytes]:
        for number in range(parts.total):
            yield from parts.read(number, kind).levels[level].chunks()

    return chunks


class _Pyramid:
    """Makes the overviews that are smaller than the parts', strip by strip."""

    def __init__(self, sizes: list[tuple[int, int]], style: Style, spool: IO[bytes]) -> None:
        """Take the sizes of the smallest level that parts hold and of those to make [px]."""
        self.sizes, self.style, self.spool = sizes, style, spool
        self.row: list[Pixels] = []
        self.strips: list[list[Pixels]] = [[] for _ in sizes]
        self.made: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[] for _ in sizes]

    def add(self, image: Pixels, begins_row: bool) -> None:
        """Take the smallest image of a part; they come row by row."""
        if begins_row and self.row:
            self._flush_row()
        self.row.append(halve(image, self.style))

    def finish(self) -> list[Level]:
        """Return the levels that were made; there must have been parts if there are any."""
        if self.row:
            self._flush_row()
        for level in range(1, len(self.sizes)):
            if self.strips[level]:
                self._emit(level)
        return [self._level(level) for level in range(1, len(self.sizes))]

    def _flush_row(self) -> None:
        strip = np.concatenate(self.row, axis=2)
        self.row = []
        self._take(1, strip)

    def _take(self, level: int, strip: Pixels) -> None:
        """Take rows of a level; whole rows of tiles are written."""
        if level == len(self.sizes):
            return
        self.strips[level].append(strip)
        if sum(part.shape[1] for part in self.strips[level]) >= TILE:
            self._emit(level)

    def _emit(self, level: int) -> None:
        """Compress a row of tiles into the spool."""
        strip = np.concatenate(self.strips[level], axis=1)
        self.strips[level] = []
        encoded = encode_level(strip, self.style)
        begin = self.spool.seek(0, 2)
        self.spool.writelines(encoded.chunks())
        ends = begin + np.cumsum(encoded.counts)
        self.made[level].append((encoded.counts, ends - encoded.counts))
        self._take(level + 1, halve(strip, self.style))

    def _level(self, level: int) -> Level:
        bands = self.style.bands
        counts, starts = (
            np.concatenate([row[i].reshape(bands, -1) for row in self.made[level]], axis=1).ravel()
            for i in (0, 1)
        )
        order = np.flatnonzero(counts)

        def chunks() -> Iterator[bytes]:
            for i in order.tolist():
                self.spool.seek(starts[i])
                yield self.spool.read(counts[i])

        return Level(*self.sizes[level], counts, order, chunks)


def assemble_polygons(parts: Parts, wanted: Polygons, talk: Talk) -> int:
    """Join the pieces of all blocks and write them as polygons; returns how many there are.

    Raises:
        DataError: A part is missing or damaged.
        OutputError: The file cannot be written.
    """
    joiners = [Joiner(*parts.plan.size) for _ in range(parts.layers)]
    total = parts.total
    found: list[tuple[Shapes, dict[str, NDArray[Any]]]] = []

    def keep(objects: Objects) -> None:
        found.append(
            outline(
                objects,
                parts.grid,
                simplify_px=wanted.simplify_px,
                square=wanted.square,
                min_area_m2=wanted.min_area_m2,
            )
        )

    for number in talk.track(range(total), "joining polygons", total):
        for joiner, pieces in zip(joiners, parts.read_pieces(number), strict=True):
            keep(joiner.add(pieces))
    for joiner in joiners:
        keep(joiner.finish())
    shapes = np.concatenate([one for one, _ in found])
    columns = {name: np.concatenate([c[name] for _, c in found]) for name in found[0][1]}
    first = np.lexsort((columns["class_index"], columns["column"], columns["row"]))
    names = np.array(parts.classes.names, dtype=object)
    indexes = columns["class_index"][first]
    values = np.array([info.value for info in parts.classes], dtype=np.int64)
    write_features(
        wanted.path,
        parts.grid.crs,
        shapes[first],
        {
            "class": names[indexes],
            "value": values[indexes],
            "area_m2": columns["area_m2"][first].round(3),
            "probability": columns["probability"][first].round(4),
        },
    )
    return len(shapes)


def write_vrt(parts: Parts, kind: str, path: Path) -> None:
    """Write a virtual raster over the parts, which stay where they are.

    Raises:
        OutputError: The file cannot be written.
    """
    style, grid = parts.style(kind), parts.grid
    a, b, c, d, e, f = grid.transform[:6]
    sources = []
    for number in range(parts.total):
        if parts.is_empty(number):
            continue
        window = parts.plan.window(number)
        name = escape(
            parts.path(number, kind).absolute().relative_to(path.parent.absolute()).as_posix()
        )
        size = f'xSize="{window.width}" ySize="{window.height}"'
        sources.append(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>'
            f'<SourceBand>BAND</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
            f'<DstRect xOff="{window.column}" yOff="{window.row}" {size}/></SimpleSource>'
        )
    table = "".join(
        f'<Entry c1="{r}" c2="{g}" c3="{b_}" c4="255"/>'
        for r, g, b_ in (style.colors.get(i, (i, i, i)) for i in range(256))
    )
    looks = f"<ColorInterp>Palette</ColorInterp><ColorTable>{table}</ColorTable>"
    scale = "" if style.scale is None else f"<Scale>{style.scale!r}</Scale>"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>{style.nodata}</NoDataValue>'
        f"{looks if style.colors else scale}"
        f"{''.join(sources).replace('BAND', str(band))}</VRTRasterBand>"
        for band in range(1, style.bands + 1)
    )
    placed = f"<GeoTransform>{c!r}, {a!r}, {b!r}, {f!r}, {d!r}, {e!r}</GeoTransform>"
    srs = f"<SRS>{escape(grid.crs)}</SRS>" if grid.crs else ""
    files.write_text(
        path,
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{srs}{placed}{bands}'
        "</VRTDataset>\n",
    )


def _name_classes(path: Path, classes: Classes) -> None:
    """Write the classes' names where GDAL and QGIS look for them, beside the mask."""
    if classes.task == "multilabel":
        return
    names = {info.value: info.name for info in classes}
    rows = "".join(
        f"<Category>{escape(names.get(value, ''))}</Category>" for value in range(max(names) + 1)
    )
    band = f'<PAMRasterBand band="1"><CategoryNames>{rows}</CategoryNames></PAMRasterBand>'
    files.write_text(Path(f"{path}.aux.xml"), f"<PAMDataset>{band}</PAMDataset>\n")
