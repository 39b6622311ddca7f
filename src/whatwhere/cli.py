"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from whatwhere._version import __version__
from whatwhere.config import Recipe
from whatwhere.errors import INTERRUPTED, WhatwhereError, plain
from whatwhere.machine import large_pages

app = typer.Typer(
    name="whatwhere",
    help="What is where, for every pixel: U-Net segmentation for pictures of any size.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="a folder with images/ and masks/ (or labels/); a raster, or a folder of such, with "
        "--labels; a data.toml that lists scenes",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or its bundle")]
Model = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run folder, its bundle, or an .onnx or .xml file")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Tile = Annotated[
    int,
    typer.Option(help="longest side of what the net sees at once [px]; 0: fits the net", min=0),
]
Backend = Annotated[
    str,
    typer.Option(
        help="engine: torch, torch-bf16, torch-compiled, onnx, openvino, or auto: the quickest of "
        "torch, onnx and openvino here  [default: torch, or that of an export]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Tta = Annotated[bool, typer.Option("--tta", help="the mean over all symmetries seen in training")]
Threshold = Annotated[
    str | None, typer.Option(help="in the place of the bundle's: 0.4, or salt=0.4,fault=0.6")
]
NoData = Annotated[
    float | None,
    typer.Option(help='a value that stands for "no data", whatever the file says'),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="read files beside a raster, files made of other files, remote paths"
    ),
]
Polygons = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="outlines too: .gpkg, .geojson or .fgb; for several scenes the ending"
    ),
]
SimplifyPx = Annotated[
    float | None,
    typer.Option(help="how far an outline may move [px]; 0: not at all", min=0, show_default=False),
]
Square = Annotated[bool, typer.Option("--square", help="outlines with right angles")]
MinArea = Annotated[float, typer.Option(help="leave out polygons and holes below this [m²]", min=0)]
KeepParts = Annotated[bool, typer.Option("--keep-parts", help="keep the parts beside the map")]
_TILE = 0
_LAYOUT = "\n\t"  # signs that a message itself is laid out by


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; it gets `--debug`, and its errors become one message and an exit code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, debug: bool, **named: Any) -> None:
            try:
                function(*args, **named)
            except WhatwhereError as error:
                if debug:
                    traceback.print_exc()
                typer.echo(f"error: {plain(error, kept=_LAYOUT)}", err=True)
                raise typer.Exit(error.exit_code) from None
            except KeyboardInterrupt as error:
                typer.echo("interrupted: what was finished is kept.", err=True)
                raise typer.Exit(getattr(error, "exit_code", INTERRUPTED)) from None
            except BrokenPipeError:
                # The reader of a pipe has gone: nothing more to say, and nothing wrong.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(0) from None
            except (MemoryError, RuntimeError) as error:
                if not _memory_is_full(error):
                    raise
                if debug:
                    traceback.print_exc()
                typer.echo(
                    "error: the memory is full. Try a smaller --batch-size or --tile.", err=True
                )
                raise typer.Exit(5) from None

        option = typer.Option("--debug", help="show where an error arose")
        signature = inspect.signature(function, eval_str=True)
        last = inspect.Parameter(
            "debug",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, option],
        )
        parameters = [*signature.parameters.values(), last]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(name)(run)
        return run

    return register


def _memory_is_full(error: Exception) -> bool:
    """Whether this is Python's error, or torch's of processor or card, for want of memory."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in told or "allocate memory" in told


def with_recipe(function: Callable[..., None], only: Sequence[str] = ()) -> Callable[..., None]:
    """Give a command one option for each setting of the recipe, collected in `settings`.

    Args:
        function: The command.
        only: The settings that have a meaning for it; empty for all.
    """
    fields = [item for item in dataclasses.fields(Recipe) if not only or item.name in only]

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> None:
        settings = {item.name: named.pop(item.name) for item in fields}
        function(*args, settings=settings, **named)

    signature = inspect.signature(function, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name != "settings"]
    options = []
    for item in fields:
        flag = "--" + item.name.replace("_", "-")
        flags = f"{flag}/--no-{flag[2:]}" if isinstance(item.default, bool) else flag
        shown = f"default: {item.default}" if item.default != "" else "default: none"
        if isinstance(item.default, bool):
            shown = f"default: {'on' if item.default else 'off'}"
        option = typer.Option(flags, help=f"{item.metadata['help']}  [{shown}]", show_default=False)
        kind = type(item.default) | None
        options.append(
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind, option],
            )
        )
    parameters = [*own, *options]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


_SCENES: dict[str, tuple[Any, Any, Any]] = {
    "labels": (
        Path | None,
        None,
        typer.Option(help="of scenes: polygons, lines or points, or a raster of classes; a folder"),
    ),
    "class_field": (
        str | None,
        None,
        typer.Option(help="the labels' field that holds the class; without it there is one"),
    ),
    "layer": (
        str | None,
        None,
        typer.Option(help="the layer of the labels, where their file has several"),
    ),
    "aoi": (
        Path | None,
        None,
        typer.Option(help="polygons beyond which scenes are not labelled (not background)"),
    ),
    "nodata": (
        float | None,
        None,
        typer.Option(help='a value that stands for "no data", whatever the file says'),
    ),
    "buffer_m": (float, 0.0, typer.Option(help="how far lines and points reach [m]", min=0)),
    "trust": (
        bool,
        False,
        typer.Option(
            "--trust", help="read files beside a raster, files made of other files, remote paths"
        ),
    ),
}


def with_scenes(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where scenes have their labels, collected in `where`."""

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> None:
        where = {name: named.pop(name) for name in _SCENES}
        function(*args, where=where, **named)

    signature = inspect.signature(function, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name != "where"]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, option],
        )
        for name, (kind, default, option) in _SCENES.items()
    ]
    parameters = [*own, *options]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"whatwhere {__version__}")
        raise typer.Exit


@app.callback()
def _whatwhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    pass


@command("demo")
def _demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="where everything goes")
    ] = Path("whatwhere-demo"),
    seed: Annotated[int, typer.Option(help="what all chance is drawn from", min=0)] = 42,
) -> None:
    """Train, tune, evaluate and predict on made-up seismic sections, offline."""
    from whatwhere.demo import demo

    demo(folder, seed)


@command("inspect")
@with_scenes
def _inspect(
    data: Data,
    classes: Annotated[str, typer.Option(help="class table, as 0=background,255=salt")] = "",
    bands: Annotated[str, typer.Option(help="of scenes: names or numbers, as in train")] = "auto",
    chip_size: Annotated[int, typer.Option(help="for blocks of scenes, as in train", min=0)] = 0,
    resolution_m: Annotated[
        float, typer.Option(help="read scenes at this pixel size [m]; 0: their own", min=0)
    ] = 0.0,
    as_json: Json = False,
    *,
    where: dict[str, Any],
) -> None:
    """Say what is in a data set, and what is wrong with it."""
    from whatwhere import jobs, show

    found = jobs.inspect(
        data, classes, bands=bands, chip_size=chip_size, resolution_m=resolution_m, **where
    )
    typer.echo(json.dumps(found) if as_json else show.inspection(found))
    if any(problem["severity"] == "error" for problem in found["problems"]):
        raise typer.Exit(3)


@command("train")
@with_recipe
@with_scenes
def _train(
    data: Data,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="the run folder", show_default=False)
    ],
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="tutorial, modern, timed, or a TOML file  [default: tutorial; timed where "
            "--minutes are given]",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="processes that read ahead; 0: none", min=0)] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="stop after the rehearsal; say what the rest takes")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the training that was begun in the run")
    ] = False,
    save_minutes: Annotated[
        float, typer.Option(help="how often the state is kept [min]; 0: after each step", min=0)
    ] = 5.0,
    settings: dict[str, Any],
    where: dict[str, Any],
) -> None:
    """Train a U-Net on images and masks, or on scenes and their labels."""
    from whatwhere import jobs, show

    run = jobs.train(
        data,
        output,
        recipe=recipe,
        device=device,
        workers=workers,
        dry_run=dry_run,
        resume=resume,
        save_minutes=save_minutes,
        **where,
        **settings,
    )
    if run is not None:
        typer.echo(show.scores(run.scores))
        tuned = run.card.classes.task == "multiclass" or run.card.tuning
        verb = "evaluate" if tuned else "tune"
        typer.echo(f"next: whatwhere {verb} {output} {_typed(data, where)}")


_CHIP = ("classes", "bands", "chip_size", "resolution_m", "split_gap", "seed")


@command("chip")
@functools.partial(with_recipe, only=_CHIP)
@with_scenes
def _chip(
    data: Data,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="a new folder for the chips", show_default=False)
    ],
    *,
    overlap: Annotated[
        int, typer.Option(help="what training chips share with their neighbours [px]", min=0)
    ] = 0,
    stride: Annotated[
        int, typer.Option(help="from one chip to the next [px], in the place of --overlap", min=0)
    ] = 0,
    layout: Annotated[
        str,
        typer.Option(
            "--format", help="folder: images and masks in split folders; esri: as ArcGIS exports"
        ),
    ] = "folder",
    split: Annotated[
        str | None,
        typer.Option(
            help="shares of training, validation and test, where none is given; without it esri "
            "makes one folder  [default: 70/15/15 of folder]",
            show_default=False,
        ),
    ] = None,
    rotation: Annotated[
        float, typer.Option(help="of esri: all once more, turned by this and its multiples [°]")
    ] = 0.0,
    min_overlap: Annotated[
        float,
        typer.Option(help="of esri: share of its area that a polygon must have in a chip [0 to 1]"),
    ] = 0.0,
    first: Annotated[int, typer.Option(help="of esri: the number of the first chip", min=0)] = 0,
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty", help="of esri: leave out training chips with nothing but background"
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="count the chips and write none")
    ] = False,
    as_json: Json = False,
    settings: dict[str, Any],
    where: dict[str, Any],
) -> None:
    """Cut scenes into training chips on disk, which train or ArcGIS read."""
    from whatwhere import jobs, show

    given = {name: value for name, value in settings.items() if value is not None}
    found = jobs.chip(
        data,
        output,
        overlap=overlap,
        stride=stride,
        rotation=rotation,
        min_overlap=min_overlap,
        split=split,
        format=layout,
        first=first,
        skip_empty=skip_empty,
        dry_run=dry_run,
        **where,
        **given,
    )
    typer.echo(json.dumps(found) if as_json else show.chips(found))


@command("lr-find")
@with_recipe
@with_scenes
def _lr_find(
    data: Data,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="draw the loss over the rate here, a PNG")
    ] = None,
    *,
    recipe: Annotated[str, typer.Option(help="tutorial, modern, or a TOML file")] = "tutorial",
    device: Device = "auto",
    as_json: Json = False,
    settings: dict[str, Any],
    where: dict[str, Any],
) -> None:
    """Find the learning rate to train with."""
    from whatwhere import jobs

    found = jobs.lr_find(data, recipe=recipe, picture=output, device=device, **where, **settings)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"the loss falls fastest at a learning rate of {found['suggestion']:.2g}")
    flag = f"--lr {found['suggestion']:.2g}"
    typer.echo(f"next, other flags as here: whatwhere train {_typed(data, where)} -o RUN {flag}")


def _typed(data: Path, where: dict[str, Any]) -> str:
    """Return what is typed for this data."""
    from whatwhere.data.inputs import Inputs

    return Inputs.of(data, **where).words


@command("evaluate")
@with_scenes
def _evaluate(
    run: Model,
    data: Data,
    part: Annotated[
        str,
        typer.Option(
            help="auto: the test split of the run's own data, all pairs of other data, of a "
            "bundle or an export the folder test/ where there are such folders; "
            "train, val, test, all"
        ),
    ] = "auto",
    threshold: Threshold = None,
    device: Device = "auto",
    tile: Tile = _TILE,
    backend: Backend = "",
    tta: Tta = False,
    as_json: Json = False,
    *,
    where: dict[str, Any],
) -> None:
    """Score a run on images and masks, or on scenes and their labels."""
    from whatwhere import jobs, show

    scores = jobs.evaluate(
        run,
        data,
        part=part,
        threshold=threshold,
        device=device,
        tile=tile,
        backend=backend,
        tta=tta,
        **where,
    )
    typer.echo(json.dumps(scores) if as_json else show.scores(scores))


@command("tune")
@with_scenes
def _tune(
    run: RunPath,
    data: Data,
    metric: Annotated[
        str, typer.Option(help="iou, dice, mean_iou, mean_iou_images or pixel_accuracy")
    ] = "iou",
    device: Device = "auto",
    tile: Tile = _TILE,
    tta: Tta = False,
    as_json: Json = False,
    *,
    where: dict[str, Any],
) -> None:
    """Choose the threshold on data, and keep it in the bundle."""
    from whatwhere import jobs, show

    found = jobs.tune(run, data, metric=metric, device=device, tile=tile, tta=tta, **where)
    typer.echo(json.dumps(found) if as_json else show.tuning(found))


@command("predict")
def _predict(
    run: Model,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="images, scenes and folders")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="a folder; or a PNG for one image, a .tif for one scene",
            show_default=False,
        ),
    ],
    threshold: Threshold = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="probabilities too: 16-bit PNG, or 8-bit GeoTIFF"),
    ] = False,
    uncertainty: Annotated[
        str, typer.Option(help="of a scene too: entropy, or spread (of --tta or --with)")
    ] = "",
    polygons: Polygons = "",
    simplify_px: SimplifyPx = None,
    square: Square = False,
    min_area_m2: MinArea = 0.0,
    overlay: Annotated[bool, typer.Option("--overlay", help="pictures to look at too")] = False,
    table: Annotated[
        Path | None, typer.Option(help="write pixels and shares of each class as CSV here")
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="a run to take the mean with; may be repeated"),
    ] = None,
    tta: Tta = False,
    device: Device = "auto",
    tile: Tile = _TILE,
    backend: Backend = "",
    overlap: Annotated[
        int | None,
        typer.Option(
            help="context around a tile [px]; left out: as much as leaves no seam; less is "
            "quicker, and blended",
            min=0,
            show_default=False,
        ),
    ] = None,
    resolution_m: Annotated[
        float, typer.Option(help="pixels the net is to see [m]; 0: as in training", min=0)
    ] = 0.0,
    nodata: NoData = None,
    trust: Trust = False,
    memory_limit: Annotated[
        int, typer.Option(help="what a scene may take of memory [MB]; 0: 3 GB", min=0)
    ] = 0,
    shard: Annotated[
        str, typer.Option(help="a share of the blocks: 1/8, or auto in an array of jobs")
    ] = "",
    keep_parts: KeepParts = False,
    as_json: Json = False,
) -> None:
    """Segment images, and scenes of any size."""
    from whatwhere import jobs, show

    written = jobs.predict(
        run,
        inputs,
        output,
        threshold=threshold,
        probabilities=probabilities,
        overlay=overlay,
        table=table,
        device=device,
        tile=tile,
        backend=backend,
        others=others or (),
        tta=tta,
        uncertainty=uncertainty,
        polygons=polygons,
        simplify_px=simplify_px,
        square=square,
        min_area_m2=min_area_m2,
        overlap=overlap,
        resolution_m=resolution_m,
        nodata=nodata,
        trust=trust,
        memory_limit_mb=memory_limit,
        shard=shard,
        keep_parts=keep_parts,
    )
    typer.echo(show.predictions(written, as_json))


@command("assemble")
def _assemble(
    output: Annotated[
        Path, typer.Argument(metavar="MAP", help="the map whose parts lie beside it")
    ],
    polygons: Polygons = "",
    simplify_px: SimplifyPx = None,
    square: Square = False,
    min_area_m2: MinArea = 0.0,
    vrt: Annotated[
        bool, typer.Option("--vrt", help="a virtual raster over the parts in the map's place")
    ] = False,
    keep_parts: KeepParts = False,
    as_json: Json = False,
) -> None:
    """Put together what the shards of a prediction have made."""
    from whatwhere import jobs, show

    written = jobs.assemble(
        output,
        polygons=polygons,
        simplify_px=simplify_px,
        square=square,
        min_area_m2=min_area_m2,
        vrt=vrt,
        keep_parts=keep_parts,
    )
    typer.echo(show.predictions([written], as_json))


@command("export")
@with_scenes
def _export(
    run: RunPath,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="the file: .onnx, .xml (OpenVINO), .pt2 (PyTorch), .dlpk or .emd (ArcGIS)",
            show_default=False,
        ),
    ],
    tile: Annotated[
        int,
        typer.Option(
            help="for images of this side alone [px], as QGIS Deepness and geodeep want; 0: any",
            min=0,
        ),
    ] = 0,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="of .xml: compute in 8 bits, if the validation split is scored as well"
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="of --int8: what the run was trained on"),
    ] = None,
    as_json: Json = False,
    *,
    where: dict[str, Any],
) -> None:
    """Write a trained net as one file for other programs, compared with the original."""
    from whatwhere import jobs, show

    found = jobs.export(run, output, tile=tile, int8=int8, data=data, **where)
    typer.echo(json.dumps(found) if as_json else show.exported(found))


@command("models")
def _models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="a name, or a shell pattern like 'resnet*'")
    ] = "",
    shapes: Annotated[
        bool, typer.Option("--shapes", help="show each stage's size, and the margin")
    ] = False,
    in_channels: Annotated[
        int | None, typer.Option(help="bands of the image", min=1, show_default=False)
    ] = None,
    size: Annotated[str, typer.Option(help="of the image [px]: 128 or HEIGHTxWIDTH")] = "128",
    as_json: Json = False,
) -> None:
    """List the architectures and backbones."""
    from whatwhere import jobs, show
    from whatwhere.notation import parse_size

    found = jobs.models(pattern, in_channels, parse_size(size) if shapes else None)
    typer.echo(json.dumps(found["models"]) if as_json else show.models(found, pattern))


@command("env")
def _env(as_json: Json = False) -> None:
    """Versions, processor, GPU: for a bug report, and what is amiss."""
    from whatwhere import show
    from whatwhere.environment import environment

    found = environment()
    typer.echo(json.dumps(found) if as_json else show.environment(found))


def main() -> None:
    """Run the command line; a fault of ours leaves its trace in a file, not on the screen."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal knows "─" or every file name
    large_pages()
    try:
        app()
    except Exception as error:  # the last resort: everything known was caught above
        if isinstance(error, WhatwhereError) or "--debug" in sys.argv:
            raise
        typer.echo(_apology(error), err=True)
        sys.exit(1)


def _apology(error: Exception) -> str:
    import tempfile

    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="whatwhere-", suffix=".txt", delete=False, encoding="utf-8"
        ) as stream:
            stream.write(f"whatwhere {__version__}\n{' '.join(sys.argv)}\n\n{trace}")
            place = f"Its trace is in {stream.name}: send it with the output of `whatwhere env`."
    except OSError:
        place = "Run it again with --debug to see the trace."
    return f"error: this is a fault of whatwhere's: {type(error).__name__}: {error}. {place}"
