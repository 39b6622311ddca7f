"""How chips lie: what is asked for, which windows they take, and what is written of them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affine import Affine

from whatwhere import files
from whatwhere.data.inputs import Inputs, list_scenes
from whatwhere.data.lattice import chip_starts
from whatwhere.data.scenes import Scene
from whatwhere.errors import UsageError
from whatwhere.grid import Grid
from whatwhere.io.scaled import Scaled
from whatwhere.types import Window

FOLDER, ESRI = "folder", "esri"
FORMATS = (FOLDER, ESRI)

_MOST_CHIPS = 10**9  # names have nine digits
_SLACK = 1e-6  # what sines leave of a whole number [px]


@dataclass(frozen=True)
class Cut:
    """How scenes are to be cut.

    Attributes:
        layout: One of `FORMATS`.
        overlap: What neighbouring chips share at the least [px].
        stride: From one chip to the next [px]; 0 where the overlap says it.
        rotation: All is cut again, turned by this and its multiples below 360 [degrees]; 0 does
            not.
        min_overlap: Of polygons only those are burnt into a chip of which this share of the area
            lies in it [0 to 1].
        apart: Whether splits were asked for.
        first: The number of the first chip.
        skip_empty: Training chips that show nothing but background are left out.
        dry_run: Chips are counted, and none is written.
    """

    layout: str = FOLDER
    overlap: int = 0
    stride: int = 0
    rotation: float = 0.0
    min_overlap: float = 0.0
    apart: bool = False
    first: int = 0
    skip_empty: bool = False
    dry_run: bool = False

    def check(self, data: Inputs) -> None:
        """Refuse what cannot be done, before any pixel is read.

        Raises:
            UsageError: Something is out of its range, or has no meaning here.
        """
        if self.layout not in FORMATS:
            raise UsageError(
                f"--format {self.layout}: chips are written as folder (images and masks) or as "
                "esri (Classified Tiles of ArcGIS); other formats are not written yet."
            )
        if self.overlap < 0:
            raise UsageError(f"--overlap must be at least 0 px, not {self.overlap}.")
        if self.stride < 0:
            raise UsageError(f"--stride must be at least 1 px, not {self.stride}.")
        if self.stride and self.overlap:
            raise UsageError(
                f"--stride {self.stride} and --overlap {self.overlap} say the same in two ways: "
                "give one of them."
            )
        if not 0 <= self.rotation < 360:
            raise UsageError(
                f"--rotation must be from 0 to below 360 degrees, not {self.rotation:g}."
            )
        if not 0 <= self.min_overlap <= 1:
            raise UsageError(f"--min-overlap must be from 0 to 1, not {self.min_overlap:g}.")
        if not 0 <= self.first < _MOST_CHIPS:
            raise UsageError(
                f"--first must be from 0 to below {_MOST_CHIPS:,}, not {self.first:,}."
            )
        for flag, given in (
            ("--rotation", self.rotation),
            ("--min-overlap", self.min_overlap),
            ("--first", self.first),
            ("--skip-empty", self.skip_empty),
        ):
            if given and self.layout == FOLDER:
                raise UsageError(
                    f"{flag} is for --format esri. Leave it out: a training on a folder turns its "
                    "chips itself, counts what it sees of a polygon, and draws rare classes more "
                    "often."
                )
        if not data.has_scenes:
            raise UsageError(
                f"{data.root}: chips are cut from scenes; this is a folder of images and masks, of "
                "which train cuts its chips itself. Give a raster and --labels, or a data.toml."
            )
        rasters = [one.labels for one in list_scenes(data) if not one.is_vector]
        if rasters and self.min_overlap:
            raise UsageError(
                f"{rasters[0]}: --min-overlap is for polygons; this is a raster. Leave it out."
            )

    def shared(self, side: int) -> int:
        """Return what neighbouring chips of a side share at the least [px].

        Raises:
            UsageError: Chips would not move on, or leave gaps.
        """
        if self.overlap >= side:
            raise UsageError(
                f"--overlap {self.overlap}: chips of {side} px overlap by less than their side."
            )
        if self.stride > side:
            raise UsageError(
                f"--stride {self.stride}: chips of {side} px would leave gaps; take {side} at the "
                "most."
            )
        return side - self.stride if self.stride else self.overlap

    @property
    def turns(self) -> list[float]:
        """By how much all is turned and cut again [degrees]."""
        if not self.rotation:
            return []
        count = math.ceil(360 / self.rotation - 1e-9)
        return [self.rotation * i for i in range(1, count)]


@dataclass(frozen=True)
class Place:
    """Where a chip lies in its scene.

    Attributes:
        scene: The scene.
        step: From (column, row) of the chip to (column, row) of the scene [px].
        shape: (height, width) of the chip [px].
        window: What it is of the scene's pixels; None where it is turned.
    """

    scene: Scene
    step: Affine
    shape: tuple[int, int]
    window: Window | None

    @classmethod
    def straight(cls, scene: Scene, window: Window) -> Place:
        """Return the place of a window."""
        step = Affine.translation(window.column, window.row)
        return cls(scene, step, (window.height, window.width), window)

    @property
    def ground(self) -> Grid:
        """Where it lies among the scene's coordinates; a scene that lies nowhere has pixels."""
        whole = self.scene.raster.grid
        return Grid(whole.crs, whole.transform @ self.step, *self.shape)

    @property
    def grid(self) -> Grid:
        """Where it lies on the ground; nowhere where the scene does."""
        if self.scene.raster.grid.is_placed:
            return self.ground
        return Grid("", Affine.identity(), *self.shape)


@contextlib.contextmanager
def new_folder(output: Path, keep: bool = True) -> Iterator[None]:
    """Make the folder for the chips; it is gone if the block fails and it was not there before.

    Args:
        output: The folder.
        keep: Leave it there if the block does not fail.

    Raises:
        UsageError: There is something in it.
        OutputError: It cannot be written.
    """
    if output.is_file() or (output.is_dir() and not files.holds_nothing(output)):
        what = "this is a file" if output.is_file() else "there is something in this folder"
        raise UsageError(f"{output}: {what}. Take a new folder for the chips.")
    fresh = not output.exists()
    files.check_writable(output)
    try:
        yield
    except BaseException:
        if fresh:
            output.rmdir()
        raise
    if fresh and not keep:
        output.rmdir()


def nodata_mark(scene: Scene) -> float | None:
    """What a scene says that stands for "no data" in all bands that are taken.

    What is resampled was averaged over pixels that have data: there the number means itself.
    """
    if isinstance(scene.raster, Scaled):
        return None
    marks = {scene.raster.nodata[number - 1] for number in scene.numbers}
    return marks.pop() if len(marks) == 1 else None


def whole_windows(
    region: Window, shape: tuple[int, int], overlap: int, ground: Sequence[Window]
) -> list[Window]:
    """Return windows of one size that cover a part of a scene.

    The last ones are moved back to end where it does. Where it is too small for one, they reach
    into its neighbours.

    Args:
        region: What is to be covered.
        shape: (height, width) of a window [px].
        overlap: What neighbours share at the least [px].
        ground: Windows that do not overlap: what may be shown, `region` being part of it.

    Returns:
        Empty where none lies on the ground.
    """
    rows = _choices(region.row, region.height, shape[0], overlap)
    columns = _choices(region.column, region.width, shape[1], overlap)
    found = []
    for some in itertools.product(rows, columns):
        windows = [Window(row, column, *shape) for row, column in itertools.product(*some)]
        inside = len(windows) == 1  # in the region itself
        found += [one for one in windows if inside or _covered(one, ground)][:1]
    return found


def _choices(first: int, length: int, side: int, overlap: int) -> list[list[int]]:
    """First pixels of windows along a side; several to choose from where it is too short."""
    if length < side:
        return [[first, first + length - side]]
    overlap = min(overlap, side - 1)
    return [[first + start] for start, _ in chip_starts(length, side, overlap)]


def _covered(window: Window, ground: Sequence[Window]) -> bool:
    """Whether all of a window lies in some that do not overlap."""
    area = 0
    for one in ground:
        height = min(window.row + window.height, one.row + one.height) - max(window.row, one.row)
        width = min(window.column + window.width, one.column + one.width)
        width -= max(window.column, one.column)
        area += max(0, height) * max(0, width)
    return area == window.height * window.width


def turned_places(
    scene: Scene, region: Window, shape: tuple[int, int], overlap: int, angle: float
) -> list[Place]:
    """Return the chips of a lattice that is turned clockwise about the middle of a region.

    Only those are returned whose pixels all have their middles in the region.

    Args:
        scene: Where it lies.
        region: The part of it that is cut.
        shape: (height, width) of a chip [px].
        overlap: What neighbours share at the least [px].
        angle: By which it is turned [degrees].
    """
    middle = (region.column + region.width / 2, region.row + region.height / 2)
    turn = Affine.translation(*middle) @ Affine.rotation(angle)
    cosine, sine = abs(turn.a), abs(turn.d)
    height = math.ceil(region.width * sine + region.height * cosine - _SLACK)
    width = math.ceil(region.width * cosine + region.height * sine - _SLACK)
    if height < shape[0] or width < shape[1]:
        return []
    starts = [
        [start for start, _ in chip_starts(length, side, min(overlap, side - 1))]
        for length, side in zip((height, width), shape, strict=True)
    ]
    places = []
    for row, column in itertools.product(*starts):
        step = turn @ Affine.translation(column - width / 2, row - height / 2)
        if _inside(step, shape, region):
            places.append(Place(scene, step, shape, None))
    return places


def _inside(step: Affine, shape: tuple[int, int], region: Window) -> bool:
    """Whether the middles of all pixels of a turned chip lie in a region."""
    for row, column in itertools.product((0.5, shape[0] - 0.5), (0.5, shape[1] - 0.5)):
        x, y = step @ (column, row)
        across, down = x - region.column, y - region.row
        if not (-_SLACK <= across <= region.width + _SLACK):
            return False
        if not (-_SLACK <= down <= region.height + _SLACK):
            return False
    return True
