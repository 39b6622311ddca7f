"""Maps of rasters: planned, made part by part, put together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from whatwhere import files
from whatwhere.errors import DataError, UsageError
from whatwhere.io.crs import pixel_size_m
from whatwhere.io.geotiff import stamp_of
from whatwhere.io.hints import undeclared_nodata
from whatwhere.io.raster import Raster, open_raster
from whatwhere.io.vector import WRITTEN, require_writable
from whatwhere.machine import share_pages, threads
from whatwhere.predict.assemble import Polygons, assemble_polygons, assemble_raster
from whatwhere.predict.blocks import Segmenter, bands_in
from whatwhere.predict.engine import Predictor, looks_of, usual_tile
from whatwhere.predict.parts import PIECES, Parts, outputs_of
from whatwhere.predict.plan import (
    FILE,
    Plan,
    blocks_of,
    describe_grid,
    describe_scene,
    require_space,
)
from whatwhere.symmetries import FREE
from whatwhere.talk import Talk
from whatwhere.tiling import Lattice, make_lattice

ENDING = ".parts"
"""What is added to a map's name for the folder of its parts."""

_SAME_SIZE, _ODD_SIZE, _WRONG_SIZE = 1.02, 1.5, 4.0
_CORES = (256, 512, 1024, 1536, 2048, 3072, 4096)
_MEMORY_MB = 3072
_BESIDE_MB = 400  # for a block that is read, one that is made and one that is written
_WORTH = 0.95  # a larger core must lower the work to this share
_PANEL = 4  # columns of blocks that are gone through together
_AHEAD = 2  # blocks that wait to be written


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """What is wanted of a map, beside where it goes.

    Attributes:
        thresholds: One for each label.
        probabilities: Whether probabilities are written too.
        uncertainty: `entropy`, `spread`, or empty for neither.
        polygons: What polygons are wanted; None for none.
        tta: Whether every symmetry seen in training is looked at.
        overlap: Context on each side of a tile [px]; None takes what the net needs.
        resolution_m: Size of the pixels the net is to see [m]; 0 takes what it was trained on.
        nodata: Stands for "no data", whatever the file says; None for what it says.
        trust: Read what lies beside the raster, files made of others, and remote paths.
        memory_limit_mb: What the work may take of memory [MB]; 0 for 3 GB at the most. More makes
            larger tiles, and less is computed twice.
        shard: Which part of the work is done, from 1, and of how many.
        keep_parts: Leave the parts where they are when the map is there.
    """

    thresholds: tuple[float, ...] = ()
    probabilities: bool = False
    uncertainty: str = ""
    polygons: Polygons | None = None
    tta: bool = False
    overlap: int | None = None
    resolution_m: float = 0.0
    nodata: float | None = None
    trust: bool = False
    memory_limit_mb: int = 0
    shard: tuple[int, int] = (1, 1)
    keep_parts: bool = False


@dataclass(frozen=True)
class Mapped:
    """A map that was put together.

    Attributes:
        files: What was written; empty where other shards have not finished.
        pixels: Of each class, by its name.
        valid: Pixels with data.
        objects: How many polygons were written; None where none were wanted.
    """

    files: tuple[Path, ...] = ()
    pixels: Mapping[str, int] = field(default_factory=dict)
    valid: int = 0
    objects: int | None = None


def map_scene(
    members: Sequence[Predictor], scene: Path, output: Path, options: MapOptions, talk: Talk
) -> Mapped:
    """Segment a raster of any size, or a share of it.

    Blocks that were made before, by this machine or another, are not made again. Whoever makes the
    last one puts the map together.

    Raises:
        DataError: The raster cannot be read, or does not have the nets' bands or pixel size.
        UsageError: The options do not fit the nets, or the parts that are there.
        OutputError: Something cannot be written.
        NumericsError: A net's output is not finite.
    """
    raster = open_raster(scene, trust=options.trust, nodata=options.nodata)
    hint = undeclared_nodata(raster)
    for note in [*raster.notes, *([hint] if hint else [])]:
        talk.say(f"{note.severity:8} {note}")
    segmenter, plan = _plan(members, raster, options, talk)
    targets = targets_of(plan.outputs, output, options.polygons)
    _check_targets(scene, targets)
    if options.polygons:
        require_writable(options.polygons.path, raster.grid.crs)
    for parent in {path.absolute().parent for path in targets}:
        files.check_writable(parent)
    height, width = plan.size
    planes = sum(10 * segmenter.outputs if kind != "mask" else 2 for kind in plan.outputs)
    disk = require_space(output, height * width, planes)
    place = Path(f"{output}{ENDING}")
    engines = [member.engines for member in members]
    if options.shard != (1, 1) and not place.exists() and _is_made(targets, plan, engines):
        talk.say(f"done     {output} is this very map: nothing is left to do")
        return Mapped(targets)
    folder = files.make_folder(place)
    parts = Parts(folder, _settled(plan, members, folder, segmenter.lattice.tile))
    mine = list(plan.share(options.shard))
    todo = [n for n in talk.track(mine, "looking for parts", len(mine)) if not parts.is_done(n)]
    _tell(raster, plan, segmenter, disk, (len(mine), len(todo)), options, talk)
    _make(segmenter, raster, parts, todo, talk)
    if segmenter.disagreement:
        talk.say(
            f"seams    tiles were blended, which moved a probability by up to "
            f"{segmenter.disagreement:.3f} where they meet"
        )
    if parts.missing():
        talk.say(
            f"done     {len(mine):,} of {parts.total:,} blocks; the shard that finishes last makes "
            "the map"
        )
        return Mapped()
    if describe_scene(raster) != plan.scene:
        raise DataError(f"{scene}: the scene has changed since work on it began. Begin anew.")
    try:
        mapped = assemble(parts, output, options.polygons, talk)
    except DataError:
        if folder.exists() or not _is_made(targets, parts.plan, [parts.plan.engines]):
            raise
        talk.say(f"done     {output}: another shard has put it together")
        return Mapped(targets)
    if not options.keep_parts:
        remove_parts(folder)
    return mapped


def _settled(plan: Plan, members: Sequence[Predictor], folder: Path, tile: int) -> Plan:
    """Settle the plan and the engine of each net: that of the parts there, or the quickest."""
    if not (folder / FILE).exists():
        quickest = tuple(member.quickest(tile, tile) for member in members)
        plan = dataclasses.replace(plan, engines=quickest)
    settled = plan.settle(folder, [member.engines for member in members])
    for member, engine in zip(members, settled.engines, strict=True):
        member.take(engine)
    return settled


def _is_made(targets: Sequence[Path], plan: Plan, engines: Sequence[Sequence[str]]) -> bool:
    """Whether the outputs are there, and the rasters carry the plan's stamp with such engines."""
    rasters = [path for path in targets if path.suffix.lower() not in WRITTEN]
    if not all(path.is_file() for path in targets):
        return False
    found = {stamp_of(path) for path in rasters}
    plans = (dataclasses.replace(plan, engines=names) for names in itertools.product(*engines))
    return any(found == {one.stamp} for one in plans)


def assemble(parts: Parts, output: Path, polygons: Polygons | None, talk: Talk) -> Mapped:
    """Put parts together.

    Raises:
        DataError: Parts are missing or damaged; the first of them are named.
        UsageError: Polygons are wanted, and the parts were made without.
    """
    require_all(parts)
    if polygons and PIECES not in parts.plan.outputs:
        raise UsageError(
            f"{parts.folder}: its parts were made without polygons. Predict again with --polygons."
        )
    tallies = {
        kind: assemble_raster(parts, kind, path, talk)
        for kind, path in outputs_of(output, parts.kinds).items()
    }
    objects = assemble_polygons(parts, polygons, talk) if polygons else None
    made = targets_of(parts.plan.outputs, output, polygons)
    return Mapped(made, tallies["mask"].pixels, tallies["mask"].valid, objects)


def require_all(parts: Parts) -> None:
    """Raise `DataError` if parts are missing."""
    missing = parts.missing()
    if missing:
        shown = ", ".join(parts.path(n, "mask").name for n in missing[:3])
        raise DataError(
            f"{parts.folder}: {len(missing):,} of {parts.total:,} parts are missing "
            f"({shown}{' …' * (len(missing) > 3)}). Run the shards that have not finished again."
        )


def targets_of(kinds: Sequence[str], output: Path, polygons: Polygons | None) -> tuple[Path, ...]:
    """Return all files that are made."""
    rasters = outputs_of(output, [kind for kind in kinds if kind != PIECES])
    return (*rasters.values(), *([polygons.path] if polygons else []))


def remove_parts(folder: Path) -> None:
    """Remove parts that were put together, the plan last; what others hold open stays."""
    for path in folder.glob("*-*-*"):
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _plan(
    members: Sequence[Predictor], raster: Raster, options: MapOptions, talk: Talk
) -> tuple[Segmenter, Plan]:
    first = members[0]
    card = first.card
    for other in members[1:]:
        if (other.card.classes, other.card.bands) != (card.classes, card.bands):
            raise UsageError("nets that work together must have the same classes and bands.")
        if (other.card.pixel_size, other.card.resize) != (card.pixel_size, card.resize):
            raise UsageError("nets that work together must be trained on the same pixel size.")
    if card.resize:
        raise UsageError(
            f"the net stretches every image to {card.resize[0]}×{card.resize[1]} px, which is not "
            "for scenes. Train with --chip-size in the place of --resize."
        )
    if options.uncertainty not in ("", "entropy", "spread"):
        raise UsageError(f"--uncertainty must be entropy or spread, not {options.uncertainty!r}.")
    looks = looks_of([member.card for member in members])
    symmetries = looks if options.tta else FREE[:1]
    if options.uncertainty == "spread" and len(members) * len(symmetries) == 1:
        raise UsageError(
            "--uncertainty spread needs several answers: add --tta, or nets by --with."
        )
    geometries = {member.card.geometry for member in members}
    if len(geometries) > 1:
        raise UsageError("nets that work together must have the same stride and margin.")
    factor = _factor(card.pixel_size, raster, options.resolution_m, talk)
    lattice, block = _lattice(first, raster, factor, options)
    device = str(getattr(first.backend, "device", "cpu"))
    segmenter = Segmenter(
        members=members,
        lattice=lattice,
        symmetries=symmetries,
        batch=1 if device == "cpu" else 4,
        numbers=bands_in(card, raster),
        factor=factor,
    )
    outputs = ["mask"]
    outputs += ["probabilities"] if options.probabilities else []
    outputs += [options.uncertainty] if options.uncertainty else []
    outputs += [PIECES] if options.polygons else []
    plan = Plan(
        scene=describe_scene(raster),
        grid=describe_grid(raster.grid),
        table=card.classes.to_json(),
        bundles=tuple(member.digest for member in members),
        engines=tuple(member.backend.engine for member in members),
        bands=segmenter.numbers,
        nodata=options.nodata,
        trust=options.trust,
        factor=segmenter.factor,
        core=lattice.core,
        halo=lattice.halo,
        blend=lattice.blend,
        batch=segmenter.batch,
        symmetries=len(symmetries),
        block=block,
        thresholds=tuple(options.thresholds),
        outputs=tuple(outputs),
        device=device,
        threads=threads(),
    )
    return segmenter, plan


def _lattice(
    predictor: Predictor, raster: Raster, factor: float, options: MapOptions
) -> tuple[Lattice, int]:
    """Return how tiles lie, and the side of a block [px].

    Of the cores whose windows the memory has room for, the one is taken that lets the least be
    computed: large ones waste less on halos, and a small scene may be one window. Tiles that are
    blended are small beside a block, which remembers them. That of nets that look at the whole tile
    is always the same, since the result depends on it.
    """
    card, geometry = predictor.card, predictor.card.geometry
    planes, bands, stride = card.classes.n_outputs, len(card.bands), geometry.stride
    blocks = blocks_of(planes, factor, raster.size)
    windows = functools.partial(_windows, size=raster.size, factor=factor)
    measure = getattr(predictor.backend, "memory_mb", None)
    if predictor.tile or geometry.border or geometry.margin is None or measure is None:
        lattice = make_lattice(geometry, predictor.tile or usual_tile(geometry), options.overlap)
        return lattice, min(blocks, key=lambda block: math.prod(map(sum, windows(lattice, block))))
    margin = geometry.margin if options.overlap is None else options.overlap
    halo = geometry.window(margin)
    blend = halo < geometry.margin
    cores = [core for core in _CORES if core >= max(stride, 2 * halo if blend else 0)]
    pixel_mb = measure(bands, 512) / 512**2 + (12 * bands + 4 * planes) / 2**20
    limit = options.memory_limit_mb or _MEMORY_MB
    best: tuple[int, Lattice, int] | None = None
    for block, core in itertools.product(blocks, cores):
        if core > max(round(block * factor) // (2 if blend else 1), cores[0]):
            continue
        lattice = make_lattice(geometry, core // stride * stride + 2 * halo, options.overlap)
        seen = windows(lattice, block)
        beside = _BESIDE_MB
        if block > blocks[0]:
            beside += max(8 * bands * (math.prod(raster.size) - blocks[0] ** 2) // 2**20, 0)
        if pixel_mb * math.prod(map(max, seen)) + beside > limit:
            continue
        work = math.prod(map(sum, seen))
        if best is None or work < _WORTH * best[0]:
            best = work, lattice, block
    if best is None:
        least = (cores or _CORES[-1:])[0] + 2 * halo
        raise UsageError(
            f"--memory-limit {limit}: a tile of {least} px takes about "
            f"{pixel_mb * least**2 + _BESIDE_MB:,.0f} MB. Allow that, or take a smaller --overlap."
        )
    return best[1:]


def _windows(
    lattice: Lattice, block: int, *, size: tuple[int, int], factor: float
) -> list[list[int]]:
    """Return the sides of what nets see, of a scene's rows and of its columns [px]."""
    within = max(1, round(block * factor))
    return [lattice.lengths(max(1, round(side * factor)), within) for side in size]


def _factor(trained: float | None, raster: Raster, asked: float, talk: Talk) -> float:
    """Return how many pixels the net is to see in the place of one, along a side."""
    wanted = asked or trained
    own = pixel_size_m(raster.grid)
    if wanted is None or own is None:
        if asked:
            raise DataError(
                f"{raster.path}: its pixels have no known size on the ground: leave "
                "--resolution-m out."
            )
        return 1.0
    ratio = own / wanted
    off = max(ratio, 1 / ratio)
    if off <= _SAME_SIZE:
        return 1.0
    told = f"{raster.path}: its pixels are {own:.3g} m, the net was trained on {wanted:.3g} m"
    if off > _WRONG_SIZE and not asked:
        raise DataError(
            f"{told}: it has never seen things at this size. --resolution-m {wanted:.3g} does it "
            "all the same."
        )
    talk.say(f"{'warning' if off > _ODD_SIZE else 'note':8} {told}: the scene is resampled.")
    return float(ratio)


def _check_targets(scene: Path, targets: Sequence[Path]) -> None:
    for path in targets:
        if path.exists() and scene.exists() and path.samefile(scene):
            raise UsageError(f"{path}: this would overwrite the scene. Choose another name.")
        if path.is_dir():
            raise UsageError(f"{path}: this is a folder. Give a file's name.")
    if len({str(path.absolute()).casefold() for path in targets}) < len(targets):
        raise UsageError("two outputs would get the same name. Choose others.")


def _tell(
    raster: Raster,
    plan: Plan,
    segmenter: Segmenter,
    disk: int,
    blocks: tuple[int, int],
    options: MapOptions,
    talk: Talk,
) -> None:
    height, width = plan.size
    lattice = segmenter.lattice
    windows = _windows(lattice, plan.block, size=plan.size, factor=segmenter.factor)
    work = math.prod(map(sum, windows)) / (height * width)
    much = work > 3 and not lattice.blend and options.overlap is None
    work *= len(segmenter.members) * plan.symmetries
    way = f"blended over {2 * lattice.halo} px" if lattice.blend else "without a seam"
    talk.say(
        f"plan     {raster.path}: {height:,}×{width:,} px; tiles of {max(map(max, windows))} px "
        f"{way}, {work:.1f} times the pixels are computed"
    )
    if much:
        talk.say(
            f"note     a pixel of this net sees {lattice.halo} px far. More memory "
            "(--memory-limit) wastes less; --overlap 64 blends narrower tiles: several times as "
            "quick, not quite exact"
        )
    share = "" if options.shard == (1, 1) else f" (shard {options.shard[0]} of {options.shard[1]})"
    there = f"{blocks[0] - blocks[1]:,} are there" if blocks[1] < blocks[0] else "none is there yet"
    talk.say(
        f"plan     {blocks[0]:,} blocks of {plan.block} px{share}, {there}; about "
        f"{max(disk, 1):,} MB on the disk while it runs"
    )


def _make(
    segmenter: Segmenter, raster: Raster, parts: Parts, todo: Sequence[int], talk: Talk
) -> None:
    """Make parts; reading ahead, computing and writing go on side by side."""
    plan = parts.plan
    size = plan.size[0] * plan.size[1]
    clock, done, told = time.monotonic(), 0, 0.0
    read = functools.partial(segmenter.read, raster)
    share_pages()
    if segmenter.lattice.blend:  # blocks that share tiles come one after the other
        todo = sorted(todo, key=lambda n: (n % plan.columns // _PANEL, n))
    windows = [plan.window(number) for number in todo]
    with (
        _engines(segmenter.members, plan.threads),
        _pool("write") as pool,
        _pool("read") as reader,
        talk.bar("segmenting", len(todo)) as step,
    ):
        waiting: list[Future[None]] = []
        ahead = [reader.submit(read, window) for window in windows[:1]]
        for i, (number, window) in enumerate(zip(todo, windows, strict=True)):
            seen = ahead.pop(0).result()
            ahead += [reader.submit(read, one) for one in windows[i + 1 : i + 2]]
            answer = segmenter.answer(seen)
            while len(waiting) >= _AHEAD:
                waiting.pop(0).result()
            waiting.append(pool.submit(parts.make, number, answer))
            done += window.height * window.width
            rate = done / 1e6 / max(time.monotonic() - clock, 1e-9)
            step(text=f"segmenting, {rate:.2f} Mpx/s")
            if talk.is_plain and done / size >= told + 0.1:
                told = done / size
                talk.say(f"         {done / size:.0%} of the scene, {rate:.2f} Mpx/s")
        for one in waiting:
            one.result()


@contextlib.contextmanager
def _pool(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread of its own, which finishes what it was given, even if we are interrupted."""
    with ThreadPoolExecutor(1, thread_name_prefix=f"whatwhere-{name}") as pool:
        yield pool


@contextlib.contextmanager
def _engines(members: Sequence[Predictor], count: int) -> Iterator[None]:
    """Compute with so many threads as the plan says."""
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(member.backend.computing(count))
        yield
