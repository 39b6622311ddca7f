"""What an Esri export of training chips tells of itself: sums, and the texts beside the chips.

The sums are gathered chip by chip and may be merged in any order. As in Esri's own files, `M1` is a
band's mean, `M2` the sum of its squared deviations from it, `Num` the number of pixels, and the
standard deviation is that of a sample: the root of M2 / (Num - 1). Only pixels with data are
counted, which `Num` shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import WktVersion

from whatwhere.grid import Grid
from whatwhere.io.crs import parse_crs, pixel_size_m
from whatwhere.io.esri import CLASSIFIED, class_rows
from whatwhere.types import Classes, Valid

_WEB_MERCATOR = (3857, 102100)  # Esri's older number of it stands first in its files


@dataclass(frozen=True, eq=False)
class BandSums:
    """What is known of the values of each band.

    Attributes:
        count: Pixels with data; the same in every band.
        low: `(C,)` the smallest value; infinite where there is no pixel.
        high: `(C,)` the largest.
        mean: `(C,)`.
        squares: `(C,)` the sum of the squared deviations from the mean.
    """

    count: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def none(cls, bands: int) -> BandSums:
        """Return those of no pixel."""
        ends = np.full(bands, np.inf)
        return cls(0, ends, -ends, np.zeros(bands), np.zeros(bands))

    @classmethod
    def of(cls, pixels: NDArray[Any], valid: Valid) -> BandSums:
        """Measure a chip.

        Args:
            pixels: `(C, H, W)` of any number type.
            valid: `(H, W)` where there is data.
        """
        values = pixels[:, valid].astype(np.float64)
        count = values.shape[1]
        if not count:
            return cls.none(len(pixels))
        mean = values.mean(axis=1)
        apart = values - mean[:, None]
        slip = apart.sum(axis=1)  # what rounding left of the mean
        squares = (apart**2).sum(axis=1) - slip**2 / count
        return cls(count, values.min(axis=1), values.max(axis=1), mean + slip / count, squares)

    def merged(self, other: BandSums) -> BandSums:
        """Return those of both together.

        Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983: the
        deviations of both parts, and how far their means lie apart.
        """
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        share = other.count / count
        return BandSums(
            count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.mean + apart * share,
            self.squares + other.squares + apart**2 * (self.count * share),
        )

    @property
    def deviation(self) -> NDArray[np.float64]:
        """`(C,)` the standard deviation of a sample."""
        found: NDArray[np.float64] = np.sqrt(self.squares / max(self.count - 1, 1))
        return found


@dataclass(frozen=True, eq=False)
class ClassSums:
    """How many pixels of each class the chips hold.

    Attributes:
        chips: How many.
        pixels: `(K,)` of each class.
        chips_with: `(K,)` how many chips have a pixel of each.
        least: `(K,)` its fewest pixels in a chip.
        most: `(K,)` its most.
        kinds: How many classes a chip has: the fewest, the most, and the sum over all chips.
    """

    chips: int
    pixels: NDArray[np.int64]
    chips_with: NDArray[np.int64]
    least: NDArray[np.int64]
    most: NDArray[np.int64]
    kinds: tuple[int, int, int]

    @classmethod
    def of(cls, pixels: NDArray[np.int64]) -> ClassSums:
        """Take the pixels of each class in a chip, `(K,)`."""
        there = (pixels > 0).astype(np.int64)
        kinds = int(there.sum())
        return cls(1, pixels, there, pixels, pixels, (kinds, kinds, kinds))

    def merged(self, other: ClassSums) -> ClassSums:
        """Return those of both together."""
        mine, others = self.kinds, other.kinds
        return ClassSums(
            self.chips + other.chips,
            self.pixels + other.pixels,
            self.chips_with + other.chips_with,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
            (min(mine[0], others[0]), max(mine[1], others[1]), mine[2] + others[2]),
        )


@dataclass(frozen=True)
class Export:
    """What is told of a folder of chips.

    Attributes:
        size: (height, width) of a chip [px].
        classes: Those that have a value above 0, in the order of the sums.
        bands: Their names.
        grids: Of the rasters that the chips were cut from.
        values: Of the bands.
        labels: Of the classes.
        first: The number of the first chip.
    """

    size: tuple[int, int]
    classes: Classes
    bands: tuple[str, ...]
    grids: tuple[Grid, ...]
    values: BandSums
    labels: ClassSums
    first: int = 0

    def definition(self) -> dict[str, Any]:
        """Return what `esri_model_definition.emd` holds, without the strings to fill in."""
        rows = zip(self._names, *self._measures, strict=True)
        placed = all(grid.is_placed for grid in self.grids)
        return {
            "ImageHeight": self.size[0],
            "ImageWidth": self.size[1],
            "MetaDataMode": CLASSIFIED,
            "BlackenAroundFeature": False,
            "IsMultidimensional": False,
            "CropTileMode": "Fixed_Size",
            "ImageSpaceUsed": "MAP_SPACE" if placed else "PIXEL_SPACE",
            **_cells(self.grids),
            "InputRastersProps": self._rasters,
            "AllTilesStats": [
                {"BandName": name, "Min": low, "Max": high, "Mean": mean, "StdDev": deviation}
                for name, low, high, mean, deviation, _ in rows
            ],
            "Classes": class_rows(self.classes),
        }

    def sums(self) -> dict[str, Any]:
        """Return what `esri_accumulated_stats.json` holds."""
        told = self.labels
        return {
            "Version": 1,
            "NumBands": len(self.bands),
            "TileSizeX": self.size[1],
            "TileSizeY": self.size[0],
            "NumClasses": len(self.classes),
            "NumTiles": told.chips,
            "NumTilesAsDouble": told.chips,
            "NextTileIndex": self.first + told.chips,
            "OutputFeatures": False,
            "MetaDataMode": CLASSIFIED,
            **_cells(self.grids),
            "Classes": [
                {"ClassValue": info.value, "ClassName": info.name} for info in self.classes
            ],
            "ClassPixelStats": {
                "NumClasses": len(self.classes),
                "NumImagesTotal": told.chips,
                "NumImagesPerClass": told.chips_with.tolist(),
                "NumPixelsPerClass": told.pixels.tolist(),
                "NumClassesPerImage": _spread(*told.kinds, told.chips),
                "PixelsPerClass": [
                    _spread(int(low), int(high), int(total), told.chips)
                    for low, high, total in zip(told.least, told.most, told.pixels, strict=True)
                ],
            },
            "InputRastersProps": self._rasters,
            "BandStatsState": [
                {
                    **{"Min": low, "Max": high, "Mean": mean, "StdDev": deviation},
                    **{"M1": mean, "M2": squares, "Num": self.values.count},
                }
                for low, high, mean, deviation, squares in zip(*self._measures, strict=True)
            ],
        }

    def summary(self) -> str:
        """Return what `stats.txt` holds."""
        told, (height, width) = self.labels, self.size
        fewest, most, kinds = told.kinds
        lines = [
            f"images = {told.chips} *{len(self.bands)}*{height}*{width}",
            f"classes = {len(self.classes)}",
            f"classes per image = [min = {fewest}, mean = {kinds / told.chips:.2f}, max = {most}]",
            "cls name              cls value     images   pixels"
            "      min size   mean size    max size",
        ]
        columns = (told.chips_with, told.pixels, told.least, told.most)
        for info, images, pixels, low, high in zip(self.classes, *columns, strict=True):
            name = " ".join(info.name.split())
            lines.append(
                f"{name:<22}{info.value:>9}{images:>11}{pixels:>11}{low:>12.2f}"
                f"{pixels / told.chips:>12.2f}{high:>12.2f}"
            )
        return _lines(lines)

    @property
    def _names(self) -> list[str]:
        """The names of the bands; one without a name is called as Esri calls it."""
        return [
            f"Band_{name.removeprefix('band ')}" if name.startswith("band ") else name
            for name in self.bands
        ]

    @property
    def _rasters(self) -> dict[str, Any]:
        return {
            "RasterCount": len(self.grids),
            "SensorName": "Undefined",
            "BandNames": self._names,
        }

    @property
    def _measures(self) -> list[list[int | float]]:
        """Smallest, largest, mean, deviation and squares, each of all bands."""
        sums = self.values
        found = (sums.low, sums.high, sums.mean, sums.deviation, sums.squares)
        return [[_plain(float(value)) for value in one] for one in found]


def as_text(value: Mapping[str, Any]) -> str:
    """Return JSON as Esri's tool sets it."""
    told = json.dumps(value, indent=2, separators=(",", " : "), ensure_ascii=False, allow_nan=False)
    return f"{told}\n"


def map_text(names: Sequence[str]) -> str:
    """Return what `map.txt` holds: an image and its label on each line, as Windows writes paths."""
    return _lines([f"images\\{name}  labels\\{name} " for name in names])


def world_text(transform: Affine) -> str:
    """Return a world file: steps in x and y along a row, then down, and the first pixel's middle.

    The numbers have all their digits, and no exponent.
    """
    x, y = transform @ (0.5, 0.5)
    numbers = (transform.a, transform.d, transform.b, transform.e, x, y)
    return "".join(f"{Decimal(repr(float(number))):f}\n" for number in numbers)


def _cells(grids: Sequence[Grid]) -> dict[str, Any]:
    """The sizes of the smallest and the largest pixels; nothing where rasters lie nowhere."""
    if not all(grid.is_placed for grid in grids):
        return {}
    ordered = sorted(grids, key=_side)
    return {"MinCellSize": _cell(ordered[0]), "MaxCellSize": _cell(ordered[-1])}


def _side(grid: Grid) -> float:
    return pixel_size_m(grid) or math.sqrt(abs(grid.transform.determinant))


def _cell(grid: Grid) -> dict[str, Any]:
    matrix = grid.transform
    return {
        "x": _plain(math.hypot(matrix.a, matrix.d)),
        "y": _plain(math.hypot(matrix.b, matrix.e)),
        **({"spatialReference": _system(grid.crs)} if grid.crs else {}),
    }


def _system(crs: str) -> dict[str, Any]:
    """A coordinate system by its number, or in Esri's words where it has none."""
    found = parse_crs(crs)
    authority, number = found.to_authority() or ("", "")
    if authority not in ("EPSG", "ESRI") or not number.isdecimal():
        return {"wkt": found.to_wkt(version=WktVersion.WKT1_ESRI)}
    latest, older = int(number), int(number)
    if latest == _WEB_MERCATOR[0]:
        older = _WEB_MERCATOR[1]
    return {"wkid": older, "latestWkid": latest}


def _spread(low: int, high: int, total: int, count: int) -> dict[str, Any]:
    mean = _plain(total / count)
    return {"Min": low, "Max": high, "Mean": mean, "Sum": total, "Count": count}


def _plain(number: float) -> int | float:
    """A whole number without a point, as Esri's tool writes it."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)
