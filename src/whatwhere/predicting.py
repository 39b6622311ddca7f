"""Masks for images, maps for scenes: what is given decides which of the two is made."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whatwhere import files
from whatwhere.bundle import Card
from whatwhere.data.sources import images_of
from whatwhere.errors import DataError, Problem, UsageError, plain
from whatwhere.io.names import require_name
from whatwhere.io.raster import SUFFIXES as RASTERS
from whatwhere.io.raster import close_handles, open_raster
from whatwhere.io.vector import WRITTEN as VECTORS
from whatwhere.predict.assemble import Polygons, write_vrt
from whatwhere.predict.decide import parse_thresholds
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.images import Written, plan_outputs, predict_image, stems_of, table_of
from whatwhere.predict.maps import (
    ENDING,
    MapOptions,
    assemble,
    map_scene,
    remove_parts,
    require_all,
)
from whatwhere.predict.parts import Parts, outputs_of
from whatwhere.predict.plan import load_plan, parse_shard
from whatwhere.talk import Talk

_MAPS = (".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a prediction is asked for, as `jobs.predict` describes it."""

    threshold: str | float | None = None
    probabilities: bool = False
    overlay: bool = False
    table: Path | None = None
    device: str = "auto"
    tile: int = 0
    backend: str = ""
    encoder: Any = None
    others: Sequence[Path] = ()
    tta: bool = False
    uncertainty: str = ""
    polygons: str = ""
    simplify_px: float | None = None
    square: bool = False
    min_area_m2: float = 0.0
    overlap: int | None = None
    resolution_m: float = 0.0
    nodata: float | None = None
    trust: bool = False
    memory_limit_mb: int = 0
    shard: str = ""
    keep_parts: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def segment(
    run: Path, inputs: Sequence[Path], output: Path, wanted: Wanted, talk: Talk
) -> list[Written]:
    """Segment images and scenes, as `jobs.predict` describes it."""
    scenes, images = sort_inputs(inputs, output, wanted.trust)
    _check(scenes, images, output, wanted)
    open_net = functools.partial(
        load, device=wanted.device, tile=wanted.tile, backend=wanted.backend, talk=talk
    )
    first = open_net(run, encoder=wanted.encoder, tta=wanted.tta)
    members = [first, *map(open_net, wanted.others)]
    written: list[Written] = []
    problems: list[Problem] = []
    if scenes:
        written += _map(members, scenes, output, wanted, problems, talk)
    if images:
        written += _mask(first, images, output, wanted, problems, talk)
    if wanted.table is not None:
        files.write_text(wanted.table, table_of([one for one in written if one.files]))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:20])
        total = len(written) + len(problems)
        raise DataError(
            f"{len(problems)} of {total} images could not be segmented:\n{listed}", problems
        )
    return written


def sort_inputs(inputs: Sequence[Path], output: Path, trust: bool) -> tuple[list[Path], list[Path]]:
    """Tell scenes, of which maps are made, from images, of which masks are.

    A scene is a raster whose pixels have coordinates; any raster is one if the output is a TIFF.
    """
    scenes: list[Path] = []
    images: list[Path] = []
    wanted = output.suffix.lower() in _MAPS and not output.is_dir()
    for path in inputs:
        require_name(path)
        if not path.is_dir() and (wanted or _is_scene(path, trust)):
            scenes.append(path)
        elif path.is_dir():
            inside = [one for one in images_of(path) if one.suffix.lower() in RASTERS]
            placed = [one for one in inside if _is_scene(one, trust)]
            scenes += placed
            if placed:
                images += [one for one in images_of(path) if one not in set(placed)]
            else:
                images.append(path)
        else:
            images.append(path)
    return list(dict.fromkeys(scenes)), images


def _is_scene(path: Path, trust: bool) -> bool:
    if path.suffix.lower() not in RASTERS or not (trust or path.is_file()):
        return False
    try:
        return open_raster(path, trust=trust).grid.is_placed
    except DataError:
        return path.suffix.lower() not in _MAPS  # a TIFF may be an image that GDAL does not read


def _check(scenes: list[Path], images: list[Path], output: Path, wanted: Wanted) -> None:
    """Refuse what has no meaning for what is given."""
    for_scenes = {
        "--polygons": bool(wanted.polygons),
        "--uncertainty": bool(wanted.uncertainty),
        "--shard": bool(wanted.shard),
        "--overlap": wanted.overlap is not None,
        "--resolution-m": wanted.resolution_m > 0,
        "--nodata": wanted.nodata is not None,
        "--with": bool(wanted.others),
        "--keep-parts": wanted.keep_parts,
        "--memory-limit": wanted.memory_limit_mb > 0,
    }
    given = [name for name, there in for_scenes.items() if there]
    if images and given:
        raise UsageError(
            f"{', '.join(given)}: for scenes, which have coordinates; {images[0]} is an image. "
            "With an output that ends in .tif it is taken as a scene."
        )
    if scenes and wanted.overlay:
        raise UsageError("--overlay is for images: open the map over its scene in a GIS.")
    shapes = {"--square": wanted.square, "--min-area-m2": wanted.min_area_m2 > 0}
    shapes["--simplify-px"] = wanted.simplify_px is not None
    alone = [name for name, there in shapes.items() if there]
    if alone and not wanted.polygons:
        raise UsageError(f"{', '.join(alone)} wants --polygons FILE.")
    numbers = (wanted.resolution_m, wanted.min_area_m2, wanted.simplify_px or 0)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise UsageError("--resolution-m, --min-area-m2 and --simplify-px are numbers from 0 up.")
    if wanted.shard and wanted.table:
        raise UsageError("--table counts a whole map: leave it out, or --shard.")
    if wanted.overlap is not None and wanted.overlap < 0:
        raise UsageError(f"--overlap must be at least 0, not {wanted.overlap}.")


def _map(
    members: Sequence[Predictor],
    scenes: Sequence[Path],
    output: Path,
    wanted: Wanted,
    problems: list[Problem],
    talk: Talk,
) -> list[Written]:
    single = output.suffix.lower() in _MAPS and not output.is_dir()
    if single and len(scenes) > 1:
        raise UsageError(f"{output}: this is one file for {len(scenes)} scenes. Give a folder.")
    if not single and output.is_file():
        raise UsageError(f"{output}: this is a file that is no .tif. Give a folder, or a .tif.")
    targets = [output] if single else [output / f"{stem}.tif" for stem in stems_of(scenes)]
    shapes = [_polygons(wanted, target, len(scenes)) for target in targets]
    _check_outputs(scenes, targets, shapes, wanted)
    written = []
    for scene, target, polygons in zip(scenes, targets, shapes, strict=True):
        options = MapOptions(
            thresholds=thresholds_of(wanted.threshold, members[0].card),
            probabilities=wanted.probabilities,
            uncertainty=wanted.uncertainty,
            polygons=polygons,
            tta=wanted.tta,
            overlap=wanted.overlap,
            resolution_m=wanted.resolution_m,
            nodata=wanted.nodata,
            trust=wanted.trust,
            memory_limit_mb=wanted.memory_limit_mb,
            shard=parse_shard(wanted.shard, wanted.environment) if wanted.shard else (1, 1),
            keep_parts=wanted.keep_parts,
        )
        try:
            try:
                mapped = map_scene(members, scene, target, options, talk)
            finally:
                close_handles()  # on Windows nobody may replace a file that is open
        except DataError as error:
            if len(scenes) == 1:
                raise
            cause = str(error).removeprefix(f"{scene}: ")
            problems += error.problems or [Problem("error", str(scene), cause, "")]
            continue
        if mapped.files and not mapped.valid:
            talk.say(f"note     {plain(scene)}: no pixel of it has data, and none of its map.")
        pixels = dict(mapped.pixels)
        written.append(Written(scene, mapped.files, pixels, mapped.valid, mapped.objects))
    return written


def _check_outputs(
    scenes: Sequence[Path],
    targets: Sequence[Path],
    shapes: Sequence[Polygons | None],
    wanted: Wanted,
) -> None:
    """Refuse to write a file twice, or over a scene, before the first one is made."""
    kinds = ["mask", *(["probabilities"] if wanted.probabilities else [])]
    kinds += [wanted.uncertainty] if wanted.uncertainty else []
    made = [path for target in targets for path in outputs_of(target, kinds).values()]
    made += [Path(f"{target}.aux.xml") for target in targets]
    made += [polygons.path for polygons in shapes if polygons]
    made += [wanted.table] if wanted.table else []
    inputs, seen = {scene.resolve() for scene in scenes}, set()
    for path in made:
        place = path.resolve()
        if place in inputs:
            raise UsageError(f"{path}: this would overwrite a scene. Choose another name.")
        if str(place).casefold() in seen:
            raise UsageError(f"{path}: two files would get this name. Choose other names.")
        seen.add(str(place).casefold())
    if wanted.table:
        files.check_writable(wanted.table.absolute().parent)


def _polygons(wanted: Wanted, target: Path, scenes: int) -> Polygons | None:
    if not wanted.polygons:
        return None
    given = wanted.polygons
    if given.lower() in VECTORS:  # an ending alone
        path = target.with_suffix(given)
    elif scenes > 1:
        raise UsageError(
            f"--polygons {given}: this is one file for {scenes} scenes. Give an ending: "
            f"--polygons .gpkg makes a file for each."
        )
    else:
        path = Path(given)
    if path.suffix.lower() not in VECTORS:
        raise UsageError(f"--polygons {given}: write to one of {', '.join(VECTORS)}.")
    fine = {} if wanted.simplify_px is None else {"simplify_px": wanted.simplify_px}
    return Polygons(path=path, square=wanted.square, min_area_m2=wanted.min_area_m2, **fine)


def _mask(
    predictor: Predictor,
    images: Sequence[Path],
    output: Path,
    wanted: Wanted,
    problems: list[Problem],
    talk: Talk,
) -> list[Written]:
    thresholds = thresholds_of(wanted.threshold, predictor.card)
    targets = plan_outputs(
        images,
        output,
        predictor.card.classes,
        probabilities=wanted.probabilities,
        overlay=wanted.overlay,
        table=wanted.table,
    )
    written: list[Written] = []
    for target in talk.track(targets, "segmenting", len(targets)):
        try:
            written.append(predict_image(predictor, target, thresholds))
        except DataError as error:
            cause = str(error).removeprefix(f"{target.image}: ")
            problems += error.problems or [Problem("error", str(target.image), cause, "")]
    if predictor.approximate:
        talk.say(
            "note  this net looks at whole tiles: where an image was cut, the result depends a "
            "little on the tile. --tile SIDE of the longest image avoids it."
        )
    return written


def put_together(output: Path, wanted: Wanted, vrt: bool, talk: Talk) -> Written:
    """Assemble the parts that shards have made, as `jobs.assemble` describes it."""
    folder = Path(f"{output}{ENDING}")
    parts = Parts(folder, load_plan(folder))
    scene = Path(str(parts.plan.scene.get("name")))
    if vrt and wanted.polygons:
        raise UsageError("--vrt leaves the parts as they are: polygons come with the map.")
    if vrt:
        require_all(parts)
        paths = outputs_of(output.with_suffix(".vrt"), parts.kinds)
        for kind, path in paths.items():
            write_vrt(parts, kind, path)
        return Written(scene, tuple(paths.values()), {}, 0)
    mapped = assemble(parts, output, _polygons(wanted, output, 1), talk)
    if not wanted.keep_parts:
        remove_parts(folder)
    return Written(scene, mapped.files, dict(mapped.pixels), mapped.valid, mapped.objects)


def thresholds_of(threshold: str | float | None, card: Card) -> tuple[float, ...]:
    """Return the thresholds to decide by: the bundle's, or those that are given."""
    if threshold is None:
        return card.thresholds
    return parse_thresholds(str(threshold), card.classes)
