"""What a prediction of a raster will do, written down before it begins.

Every machine that shares the work, and the same one after a fault, makes the same plan from the
same words, or is told in what it differs. A part carries the plan's hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affine import Affine

from whatwhere import files
from whatwhere._version import __version__
from whatwhere.errors import DataError, OutputError, UsageError
from whatwhere.grid import Grid
from whatwhere.io.geotiff import stamp_of
from whatwhere.io.raster import Raster
from whatwhere.talk import difference
from whatwhere.types import Classes, Window

FILE = "plan.json"
BLOCK = 2048
"""Side of a block [px]: each is one part."""

_SAMPLES, _SAMPLE_BYTES = 64, 65536
_FORMAT = 3  # 2 had mirror images around the scene


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the parts depend on.

    Attributes:
        scene: The raster's name, bytes, and a digest of samples of them.
        grid: Its grid, as JSON holds it.
        table: The class table, as JSON holds it.
        bundles: Digests of the nets.
        engines: What runs each of them: other engines give other last digits.
        bands: The positions of their bands in the raster.
        nodata: What the user says that stands for "no data"; None for what the file says.
        trust: Whether what lies beside the raster is read.
        factor: How many pixels the nets see in the place of one, along a side.
        core: Of the lattice [px].
        halo: Of the lattice [px].
        blend: Whether tiles are blended.
        batch: Tiles that go through a net together.
        symmetries: How many of the symmetries of a square each tile is looked at in.
        block: Side of a block [px].
        thresholds: One for each label.
        outputs: What is made: `mask`, `probabilities`, `entropy`, `spread`, `pieces`.
        device: What the nets run on.
        threads: How many the nets compute with: another number gives other last digits.
        version: Of this package.
    """

    scene: Mapping[str, Any]
    grid: Mapping[str, Any]
    table: Mapping[str, Any]
    bundles: tuple[str, ...]
    engines: tuple[str, ...]
    bands: tuple[int, ...]
    nodata: float | None
    trust: bool
    factor: float
    core: int
    halo: int
    blend: bool
    batch: int
    symmetries: int
    block: int
    thresholds: tuple[float, ...]
    outputs: tuple[str, ...]
    device: str
    threads: int
    version: str = __version__

    @property
    def stamp(self) -> str:
        """The plan's hash."""
        return hashlib.sha256(_canonical(self).encode()).hexdigest()[:32]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the raster [px]."""
        return int(self.grid["height"]), int(self.grid["width"])

    @property
    def rows(self) -> int:
        """Rows of blocks."""
        return -(-self.size[0] // self.block)

    @property
    def columns(self) -> int:
        """Columns of blocks."""
        return -(-self.size[1] // self.block)

    def window(self, number: int) -> Window:
        """Return the window of a block, numbered from 0 row by row."""
        row, column = (i * self.block for i in divmod(number, self.columns))
        height, width = self.size
        return Window(row, column, min(self.block, height - row), min(self.block, width - column))

    def share(self, shard: tuple[int, int]) -> Iterator[int]:
        """Yield the blocks of shard `(i, n)`, i from 1: every n-th one."""
        yield from range(shard[0] - 1, self.rows * self.columns, shard[1])

    def settle(self, folder: Path, engines: Sequence[Sequence[str]] = ()) -> Plan:
        """Write the plan, or go on with the one that is there: its number of threads is kept.

        Of several machines that begin at once the first one's plan is everybody's.

        Args:
            folder: Where the parts lie.
            engines: Of each net those that may be taken if the plan there names them.

        Raises:
            UsageError: The parts that are there belong to another plan; a table shows in what it
                differs.
        """
        path = folder / FILE
        if not path.exists():
            words = {"format": _FORMAT, "stamp": self.stamp, **json.loads(_canonical(self))}
            if files.create_json(path, words):
                self._clear(folder)
        there = load_plan(folder)
        plan = dataclasses.replace(self, threads=there.threads)
        pairs = zip(there.engines, engines, strict=False)
        if len(there.engines) == len(engines) and all(name in some for name, some in pairs):
            plan = dataclasses.replace(plan, engines=there.engines)
        was, now = (json.loads(_canonical(one)) for one in (there, plan))
        rows = [(k, _brief(was[k]), _brief(now[k])) for k in now if was[k] != now[k]]
        if rows:
            table = difference(rows, ("of the parts there", "wanted now"))
            raise UsageError(
                f"{folder}: there are parts of another plan in it:\n{table}\n"
                "Say the same as then to go on with them, or remove the folder to begin anew."
            )
        return plan

    def _clear(self, folder: Path) -> None:
        """Remove parts of a plan that is gone: by their names they would be taken for ours."""
        for left in [*folder.glob("*-*-*.*"), *folder.glob("*-*-empty")]:
            is_raster = left.suffix == ".tif"
            stamp = (
                stamp_of(left) if is_raster else left.read_bytes()[:32].decode("ascii", "replace")
            )
            if stamp != self.stamp:
                files.remove(left)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError("this is no plan of this version")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: the plan cannot be read ({error}). Remove its folder to begin anew."
        ) from error
    return found


def load_plan(folder: Path) -> Plan:
    """Read the plan of a folder of parts.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: there are no parts of a prediction. Check the name.")
    found = _read(path)
    try:
        named = {item.name: found[item.name] for item in dataclasses.fields(Plan)}
        lists = ("bundles", "engines", "bands", "thresholds", "outputs")
        named |= {name: tuple(named[name]) for name in lists}
        if isinstance(named["nodata"], str):
            named["nodata"] = float(named["nodata"])
        plan = Plan(**named)
        if found["stamp"] != plan.stamp:
            raise ValueError("its hash is another one")
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: the plan is damaged ({error!r}). Remove its folder to begin anew."
        ) from error
    return plan


def describe_scene(raster: Raster) -> dict[str, Any]:
    """Return what tells a raster from another: name, bytes, and a digest of 64 samples of them.

    Of a raster that is trusted to stand for other files the whole path is noted, and the size and
    time of each of these.
    """
    name = str(raster.path) if raster.trust else raster.path.name
    others = [[str(path), *_state(path)] for path in raster.files] if raster.trust else []
    try:
        size = raster.path.stat().st_size
        digest = hashlib.sha256()
        with open(raster.path, "rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(i * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError:  # a trusted path that is no file
        return {"name": name, "bytes": None, "digest": "", "files": others}
    return {"name": name, "bytes": size, "digest": digest.hexdigest()[:32], "files": others}


def _state(path: Path) -> tuple[int | None, int | None]:
    """Bytes and time of a file; None for what is no file."""
    try:
        found = path.stat()
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def describe_grid(grid: Grid) -> dict[str, Any]:
    """Return a grid as JSON holds it."""
    sides = {"height": grid.height, "width": grid.width}
    return {**sides, "crs": grid.crs, "transform": list(grid.transform[:6])}


def grid_of(plan: Plan) -> Grid:
    """Return the grid of a plan's raster; raises `DataError` where it is damaged."""
    try:
        known = plan.grid
        transform = Affine(*map(float, known["transform"]))
        return Grid(str(known["crs"]), transform, int(known["height"]), int(known["width"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"the plan's grid is damaged ({error!r}).") from error


def block_of(planes: int, factor: float) -> int:
    """Return the side of a block [px].

    It is small where a pixel has many probabilities, or becomes many pixels for the nets.

    Args:
        planes: Probabilities of a pixel.
        factor: How many pixels the nets see in the place of one, along a side.
    """
    side = BLOCK
    while side > 512 and (not _holds(side, planes) or side * factor > BLOCK * 1.5):
        side //= 2
    return side


def blocks_of(planes: int, factor: float, size: tuple[int, int]) -> list[int]:
    """Return the sides that a block may have [px], the usual one first.

    A scene of up to twice the usual side may be one block, of which the nets see larger windows.

    Args:
        planes: Probabilities of a pixel.
        factor: How many pixels the nets see in the place of one, along a side.
        size: (height, width) of the scene [px].
    """
    usual = block_of(planes, factor)
    twice = 2 * usual
    whole = factor == 1 and usual < max(size) <= twice and _holds(twice, planes)
    return [usual, twice] if whole else [usual]


def _holds(side: int, planes: int) -> bool:
    """Whether a block's probabilities fit into 256 MB."""
    return side * side * planes * 4 <= 2**28


def nodata_of(classes: Classes) -> int:
    """Return the number that stands for "no data" in a mask: 255, or the highest that is free."""
    taken = {0, 1} if classes.task == "multilabel" else {info.value for info in classes}
    return max(set(range(256)) - taken, default=255)


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Read `i/n`, or `auto`, `auto/n` for the index that a job's array gives.

    Known are SLURM's arrays, AWS Batch's array jobs and Kubernetes' indexed jobs; the last do not
    say how many they are.

    Returns:
        Which part of the work this is, from 1, and how many there are.

    Raises:
        UsageError: It cannot be read, or no index is given.
    """
    wanted, _, of = text.partition("/")
    index, count = _array(environment)
    if re.fullmatch(r"auto(/\d+)?", text):
        if index is None:
            raise UsageError(
                "--shard auto: no index of an array is given here (SLURM_ARRAY_TASK_ID, "
                "AWS_BATCH_JOB_ARRAY_INDEX, JOB_COMPLETION_INDEX). Say --shard i/n."
            )
        if of:
            count = int(of)
        if count is None:
            raise UsageError("--shard auto: how many there are is not known. Say --shard auto/n.")
    elif re.fullmatch(r"\d+/\d+", text):
        index, count = int(wanted) - 1, int(of)
    else:
        raise UsageError(f"--shard must be like 1/8, auto or auto/8, not {text!r}.")
    if not 0 <= index < count:
        raise UsageError(f"--shard {text}: part {index + 1} of {count} is none. They go from 1.")
    return index + 1, count


def _array(environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    """The index from 0 and the number of jobs in an array, where they are known."""

    def number(name: str) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else None

    slurm = number("SLURM_ARRAY_TASK_ID")
    if slurm is not None:
        first, step = number("SLURM_ARRAY_TASK_MIN") or 0, number("SLURM_ARRAY_TASK_STEP") or 1
        return (slurm - first) // step, number("SLURM_ARRAY_TASK_COUNT")
    batch = number("AWS_BATCH_JOB_ARRAY_INDEX")
    if batch is not None:
        return batch, number("AWS_BATCH_JOB_ARRAY_SIZE")
    return number("JOB_COMPLETION_INDEX"), None


def require_space(path: Path, pixels: int, planes: int) -> int:
    """Return an estimate of what parts and map take on the disk [MB]; refuse what cannot fit.

    Masks shrink to a few hundredths by compression; a twentieth is reckoned, twice, for the map is
    made beside its parts.

    Raises:
        OutputError: Less than half of it is free.
    """
    need = math.ceil(2 * pixels * planes / 20 / 2**20)
    folder = next(p for p in [path.parent, *path.absolute().parents] if p.is_dir())
    status = os.statvfs(folder) if hasattr(os, "statvfs") else None
    if status is not None and status.f_bavail * status.f_frsize // 2**20 < need // 2:
        raise OutputError(
            f"{path}: about {need:,} MB are needed there, "
            f"{status.f_bavail * status.f_frsize // 2**20:,} MB are free. Choose another disk."
        )
    return need


def _canonical(plan: Plan) -> str:
    words = dataclasses.asdict(plan)
    if plan.nodata is not None and not math.isfinite(plan.nodata):
        words["nodata"] = str(plan.nodata)  # JSON has no word for it
    return json.dumps(words, sort_keys=True, allow_nan=False)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        value = list(value.values())
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
