"""One function for each verb; the command line and Python call these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whatwhere import bundle, files, pictures, runs
from whatwhere import evaluate as scoring
from whatwhere.bundle import Card
from whatwhere.config import Recipe, make_recipe
from whatwhere.data import doctor
from whatwhere.data.areas import same_ground, with_labels
from whatwhere.data.bands import bands_of
from whatwhere.data.census import check_present, look
from whatwhere.data.classes import written
from whatwhere.data.inputs import Inputs
from whatwhere.data.scenes import Wish
from whatwhere.data.sources import Pair
from whatwhere.data.splits import choose, fingerprint, own
from whatwhere.errors import DataError, Problem, UsageError
from whatwhere.predict.backends import BF16
from whatwhere.predict.choice import EXPORTS
from whatwhere.predict.decide import parse_thresholds
from whatwhere.predict.engine import load
from whatwhere.predict.images import Written
from whatwhere.runs import Run
from whatwhere.talk import Talk, difference


def inspect(
    data: str | Path,
    classes: str = "",
    talk: Talk | None = None,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    bands: str = "auto",
    chip_size: int = 0,
    resolution_m: float = 0.0,
) -> dict[str, Any]:
    """Say what is in a data set and what is wrong with it.

    Args:
        data: A folder with `images/` and `masks/`, a raster or a folder of rasters with `labels`,
            or a `data.toml` that lists scenes.
        classes: The class table, where it cannot be found (see `Recipe.classes`).
        talk: Where the progress goes.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        bands: Which bands of scenes are looked at (see `Recipe.bands`).
        chip_size: Of the chips that scenes are to be cut into [px]; it bears on their blocks.
        resolution_m: At which pixel size scenes are read [m]; 0 for their own.

    Returns:
        Counts, sizes, types, classes with their shares, and `problems`: a list of objects with
        `severity`, `file`, `cause`, `remedy`, errors first.

    Raises:
        DataError: There is no such data, or it is none of images and masks.
        UsageError: Something was said that means nothing for this data.
    """
    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    found = look(inputs, Wish(bands, chip_size, resolution_m, spec=classes), 0.0, talk or Talk())
    table = None
    more: list[Problem] = []
    if found.facts:
        try:
            table = doctor.classes_of(found, classes)
            more += doctor.check_classes(found, table)
            more += doctor.check_training(found, doctor.given_splits(found), table)
            more += check_present(found, table)
        except DataError as error:
            more.append(Problem("error", str(data), str(error), ""))
        try:
            bands_of(found, "auto")
        except DataError as error:
            more.append(Problem("error", str(data), str(error), ""))
    problems = tuple(sorted([*found.problems, *more], key=_severity))
    return doctor.summary(doctor.Survey(found.source, found.facts, problems), table)


def train(
    data: str | Path,
    output: str | Path,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    recipe: str | Path | Recipe | None = None,
    device: str = "auto",
    workers: int = 0,
    dry_run: bool = False,
    resume: bool = False,
    save_minutes: float = 5.0,
    encoder: Any = None,
    talk: Talk | None = None,
    **settings: Any,
) -> Run | None:
    """Train a net on images and masks, or on scenes and their labels.

    A pass through the whole chain on a few chips goes before, so that what would fail in the night
    fails in the first minute. Whatever ends a training early, `resume` goes on with it: the weights
    at the end are those of one that was never interrupted, bit for bit, on one processor with one
    torch and one number of threads.

    Args:
        data: A folder with `images/` and `masks/`, a raster or a folder of rasters with `labels`,
            or a `data.toml` that lists scenes.
        output: The run folder, which must not hold a run yet.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        recipe: A name, a TOML file, or a `Recipe`; None for `tutorial`, and `timed` where `minutes`
            are given: then what is not said is chosen, the net too, and the threshold is tuned.
        device: `auto`, `cpu`, `cuda` or `mps`.
        workers: Processes that read ahead; 0 reads in this one.
        dry_run: Stop after the first pass, and say what the rest would take.
        resume: Go on with the training that was begun in the run folder. Its recipe is taken where
            nothing is said; data, recipe and versions must be the same.
        save_minutes: How often the state is kept in the run folder [min]; 0 does after each step.
            A signal to stop (Ctrl-C, SIGTERM) keeps it too; a second one stops at once.
        encoder: A torch module of your own that returns a list of feature maps, in the place of a
            backbone's name; `load` and the other verbs want it again.
        talk: Where lines and bars go.
        **settings: Any setting of `Recipe`, such as `resize=128` or `epochs=20`.

    Returns:
        The run; None after a dry run.

    Raises:
        UsageError: A setting is unknown or out of its range, or the folder holds a run.
        DataError: There is an error in the data; all that were found are named.
        OutputError: The run folder cannot be written.
        NumericsError: The loss is not finite.
        BusyError: Another process trains in the run folder.
        KeyboardInterrupt: It was asked to stop; what was done is kept.
    """
    begun = time.monotonic()
    from whatwhere.training.run import train_run

    said = {name for name, value in settings.items() if value is not None}
    silent = not (recipe or said)
    base = recipe or ("timed" if settings.get("minutes") else "tutorial")
    if base != "timed" or Path(settings.get("pretrained_path") or "-").is_dir():
        said |= {"model", "half_size"}  # the recipe's, or that of the run it starts from
    chosen = _recipe(base, encoder, settings)
    if resume:
        chosen = runs.kept_recipe(Path(output), None if silent else chosen)
    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    return train_run(
        inputs,
        Path(output),
        chosen,
        device,
        workers,
        dry_run,
        talk or Talk(),
        encoder,
        resume=resume,
        save_minutes=save_minutes,
        said=frozenset(said),
        begun=begun,
    )


def chip(
    data: str | Path,
    output: str | Path,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    classes: str = "",
    bands: str = "auto",
    chip_size: int = 0,
    overlap: int = 0,
    stride: int = 0,
    rotation: float = 0.0,
    min_overlap: float = 0.0,
    resolution_m: float = 0.0,
    split: str | None = None,
    split_gap: float = 0.25,
    seed: int = 42,
    format: str = "folder",
    first: int = 0,
    skip_empty: bool = False,
    dry_run: bool = False,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Cut scenes into training chips on disk: a folder that `train` reads, or one for ArcGIS.

    Images are GeoTIFFs of the scene's own number type that lie where they were cut. What the
    numbers in masks mean, and which one stands for pixels that do not count, is kept beside them in
    `classes.toml`, which `train` reads.

    `folder` has the splits that a training on the scenes would make, and masks as palette PNGs.

    `esri` is what *Export Training Data For Deep Learning* writes: `images/`, `labels/`, `map.txt`,
    the definition, the sums and `stats.txt`. All chips have one size; the last ones are moved back
    to end where the scene does. Labels are GeoTIFFs; 0 is the background, or what is not labelled
    if there is such: the background then has a value of its own. Pixels without data are 0 there,
    hold the scene's own number for them in the images, or 0, and are not in the sums.

    Args:
        data: A raster or a folder of rasters with `labels`, or a `data.toml` that lists scenes.
        output: A new folder: `train/`, `val/` and `test/`, each with `images/` and `masks/`; of
            `esri` one export, or one for each split if there are splits.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        classes: The class table, where it cannot be found (see `Recipe.classes`).
        bands: Which bands are taken (see `Recipe.bands`).
        chip_size: Side of a chip [px]; 0 for 256, less where the scenes are small.
        overlap: What neighbouring training chips share at the least [px]. Those of validation and
            test do not overlap; in a `folder` each of their pixels counts once.
        stride: From one training chip to the next [px], in the place of `overlap`.
        rotation: Cut all once more, turned by this angle, and by its multiples below 360 [degrees].
            Turned chips that reach beyond the scene, or the block of a split, are left out. For
            `esri`.
        min_overlap: Burn only those polygons into a chip of which at least this share of the area
            lies in it [0 to 1]. For `esri`.
        resolution_m: At which pixel size scenes are read [m]; 0 for their own.
        split: Shares of training, validation and test, where a list does not say; None for
            70/15/15 in a `folder`, and no splits in `esri`.
        split_gap: Strip that training blocks lose beside those of other splits [share of a chip].
        seed: What the splits are drawn from.
        format: `folder` or `esri`.
        first: The number of the first chip. For `esri`.
        skip_empty: Leave out training chips that show nothing but background. For `esri`.
        dry_run: Count the chips and write none.
        talk: Where lines and bars go.

    Returns:
        `output`; `chips`, how many in each split, or in `all`; `left_out`, how many had no pixel
        that counts; `chip_px`, their height and width [px]; `classes`, the table of the masks;
        `next`, what to type. Of `esri` also `pixels`, of each class, and `next_python`. After a dry
        run nothing is left out yet, and there is no `next`.

    Raises:
        UsageError: The folder is not empty; something was said that means nothing here.
        DataError: There is an error in the data; all that were found are named.
        OutputError: A file cannot be written.
    """
    from whatwhere.chipping.cut import cut_chips
    from whatwhere.chipping.layout import Cut

    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    recipe = make_recipe(
        classes=classes,
        bands=bands,
        chip_size=chip_size,
        resolution_m=resolution_m,
        split_gap=split_gap,
        seed=seed,
        **({"split": split} if split else {}),
    )
    cut = Cut(
        format,
        overlap,
        stride,
        rotation,
        min_overlap,
        apart=bool(split),
        first=first,
        skip_empty=skip_empty,
        dry_run=dry_run,
    )
    return cut_chips(inputs, Path(output), recipe, cut, talk or Talk())


def _recipe(base: str | Path | Recipe, encoder: Any, settings: dict[str, Any]) -> Recipe:
    """Make the recipe; a run that it starts from gives the net where nobody else names one."""
    from whatwhere import nets

    given = {name: value for name, value in settings.items() if value is not None}
    if encoder is not None:
        given["model"] = f"{nets.OWN}{type(encoder).__name__}"
    start = given.get("pretrained_path")
    if start and "model" not in given and not isinstance(base, Recipe):
        given = {**nets.inherited(start), **given}
    return make_recipe(base, **given)


def lr_find(
    data: str | Path,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    recipe: str | Path | Recipe = "tutorial",
    picture: str | Path | None = None,
    low: float = 1e-7,
    high: float = 1.0,
    device: str = "auto",
    encoder: Any = None,
    talk: Talk | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Find the learning rate at which a training of this data learns fastest.

    A copy of the net takes 100 steps, each with a higher rate than the one before. Nothing of it is
    kept.

    Args:
        data: A folder with `images/` and `masks/`, a raster or a folder of rasters with `labels`,
            or a `data.toml` that lists scenes.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        recipe: A name, a TOML file, or a `Recipe`; its `lr` does not matter.
        picture: A PNG file to draw the loss over the rate into.
        low: The first rate that is tried, above 0.
        high: The last one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        encoder: A torch module of your own, as in `train`.
        talk: Where lines and bars go.
        **settings: Any setting of `Recipe`; the batch size and the loss matter most.

    Returns:
        `suggestion`, the rate to take; `lrs`, the rates tried, and `losses`, the smoothed training
        loss at each.

    Raises:
        UsageError: A setting is unknown or out of its range; the picture is no PNG.
        DataError: There is an error in the data; all that were found are named.
        OutputError: The picture cannot be written.
        NumericsError: The loss never falls, or is not finite.
    """
    from whatwhere.training.run import find_rate

    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    chosen = _recipe(recipe, encoder, settings)
    if picture is not None:
        if Path(picture).suffix.lower() != ".png":
            raise UsageError(f"{picture}: the picture is a PNG: let its name end in .png.")
        files.check_writable(Path(picture).parent)
    found = find_rate(inputs, chosen, device, talk or Talk(), encoder, low, high)
    if picture is not None:
        drawn = pictures.draw_lr(found.lrs, found.losses, found.suggestion)
        files.write_bytes(Path(picture), drawn)
    return {
        "suggestion": found.suggestion,
        "lrs": list(found.lrs),
        "losses": list(found.losses),
    }


def models(
    pattern: str = "",
    in_channels: int | None = None,
    size: tuple[int, int] | None = None,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Say what there is of architectures and backbones.

    Args:
        pattern: A name or a shell pattern; empty for a selection.
        in_channels: Bands of the image; None for 1, and 3 with a backbone.
        size: (height, width) of an image [px], to tell the shapes of all stages; None does not.
        talk: Where the progress goes.

    Returns:
        `models`: objects with `name`, `parameters`, `trainable`, `reductions`, `stride`,
        `pretrained`, `training_memory_mb_512`, and with a size `stages` and `margin`; `left_out`:
        why others that match cannot be taken, by name; `backbones`: how many timm has, 0 where a
        pattern was given.

    Raises:
        UsageError: Nothing matches; the nearest names are told.
    """
    from whatwhere.nn.build import (
        count_backbones,
        list_models,
        model_facts,
        require_backbone,
        stage_facts,
    )

    names = list_models(pattern)
    if not names:
        if any(sign in pattern for sign in "*?["):
            raise UsageError(
                f"no model matches {pattern!r}. Try 'resnet*', or none for a selection."
            )
        require_backbone(pattern)
        names = [pattern]  # with a tag, such as resnet34.a1_in1k
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in (talk or Talk()).track(names, "building", len(names)):
        try:
            facts = model_facts(name, in_channels)
            if size is not None:
                bands = facts["in_channels"]
                facts |= stage_facts(name, (bands, *size))
        except UsageError as error:
            if len(names) == 1:
                raise
            left_out[name] = str(error).split(". ")[0].removeprefix(f"{name} ")
            continue
        found.append(facts)
    return {"models": found, "left_out": left_out, "backbones": 0 if pattern else count_backbones()}


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    part: str = "auto",
    threshold: str | float | None = None,
    device: str = "auto",
    tile: int = 0,
    backend: str = "",
    encoder: Any = None,
    tta: bool = False,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Score a run.

    Args:
        run: A run folder or a bundle; or an `.onnx` or `.xml` file of one.
        data: As in `train`. If it is the one the run was trained from, its
            test split is scored; of any other every pair that the run has not seen. For a bundle or
            an export, which do not say what they have seen, its folder `test`, if it has such.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        part: `train`, `val`, `test` or `all` to score just these.
        threshold: Takes the place of the bundle's: a number, or `label=number` with commas.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile: The longest side of what the net sees at once [px]; 0 takes what fits the net.
        backend: The engine, as in `predict`.
        encoder: The module that gives the feature maps, if the net was trained on one of your own.
        tta: Look at each image in all symmetries that the net saw in training, and take the mean.
        talk: Where the progress goes.

    Returns:
        `classes` (a list of objects with `name value iou dice precision recall support`),
        `mean_iou`, `mean_iou_images`, `pixel_accuracy`, `threshold`, `images`, and `on`: what was
        scored, in words.

    Raises:
        BundleError: The run is missing or damaged.
        DataError: The data cannot be read, or does not fit the run's classes or bands.
    """
    talk, run = talk or Talk(), runs.run_folder(Path(run))
    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    predictor = load(
        run, device=device, tile=tile, backend=backend, encoder=encoder, tta=tta, talk=talk
    )
    card = predictor.card
    thresholds = _thresholds(threshold, card)
    pairs, on = _pairs(run, inputs, card, "score" if part == "auto" else part, talk)
    found = scoring.evaluate(
        talk.track(scoring.answers(predictor, pairs), "scoring", len(pairs)),
        card.classes,
        thresholds,
    )
    scores = {**found.to_json(), "on": on}
    ours = runs.has_report(run) and on == own("test")
    if ours and part == "auto" and threshold is None and not tta and backend != BF16:
        runs.keep_scores(run, "test", found, scores)
        runs.rewrite_report(run, predictor.card)
    return scores


def tune(
    run: str | Path,
    data: str | Path,
    *,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    metric: str = "iou",
    device: str = "auto",
    tile: int = 0,
    encoder: Any = None,
    tta: bool = False,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Choose the threshold of each label and keep it in the bundle.

    Args:
        run: A run folder or a bundle.
        data: As in `train`. If it is the one the run was trained from, its
            validation split is taken; of any other every pair that the run has not seen. For a
            bundle, which does not say what it has seen, its folder `val`, if it has such.
        labels: For scenes: polygons, lines or points, or a raster of classes; or a folder of such.
        class_field: The field of the labels that holds the class; without it there is one class.
        layer: The layer of the labels, where their file has several.
        aoi: Polygons beyond which scenes are not labelled, which is not background.
        nodata: Stands for "no data" in scenes, whatever they say.
        buffer_m: How far lines and points reach on each side [m].
        trust: Read what lies beside rasters, files made of other files, and remote paths.
        metric: `iou`, `dice`, `mean_iou`, `mean_iou_images` or `pixel_accuracy`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile: The longest side of what the net sees at once [px]; 0 takes what fits the net.
        encoder: The module that gives the feature maps, if the net was trained on one of your own.
        tta: Look at each image in all symmetries that the net saw in training, and take the mean.
        talk: Where the progress goes.

    Returns:
        `metric`, `on`, `images`, and `labels`: for each one `threshold`, `value` of the metric
        there, and `at_half`, its value at 0.5.

    Raises:
        UsageError: A softmax has no threshold; the metric is not known.
        BundleError: The run is missing or damaged.
        DataError: The data cannot be read, or does not fit the run.
    """
    talk, run = talk or Talk(), runs.run_folder(Path(run))
    inputs = Inputs.of(
        data,
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    chosen = scoring.parse_metric(metric)
    if run.suffix.lower() in EXPORTS:
        raise UsageError(
            f"{run}: thresholds are kept in a bundle, not in an export. Tune the run, and export "
            "it again."
        )
    predictor = load(run, device=device, tile=tile, encoder=encoder, tta=tta)
    card = predictor.card
    if card.classes.task == "multiclass":
        raise UsageError(
            f"{run}: a net of {len(card.classes)} classes takes the most likely one and has no "
            "threshold to tune."
        )
    pairs, on = _pairs(run, inputs, card, "tune", talk)
    found = scoring.evaluate(
        talk.track(scoring.answers(predictor, pairs), "tuning", len(pairs)),
        card.classes,
        card.thresholds,
    )
    if found.histogram is None:
        raise DataError(f"{data}: no probability was counted.")
    card, told = runs.keep_tuning(run, card, found, chosen, on)
    if runs.has_report(run):
        runs.drop_scores(run, "test")  # they were taken at the threshold before
        runs.keep_thresholds(run, found, card.thresholds)
        runs.rewrite_report(run, card)
    return told


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: str | float | None = None,
    probabilities: bool = False,
    overlay: bool = False,
    table: str | Path | None = None,
    device: str = "auto",
    tile: int = 0,
    backend: str = "",
    encoder: Any = None,
    others: Sequence[str | Path] = (),
    tta: bool = False,
    uncertainty: str = "",
    polygons: str | Path = "",
    simplify_px: float | None = None,
    square: bool = False,
    min_area_m2: float = 0.0,
    overlap: int | None = None,
    resolution_m: float = 0.0,
    nodata: float | None = None,
    trust: bool = False,
    memory_limit_mb: int = 0,
    shard: str = "",
    keep_parts: bool = False,
    talk: Talk | None = None,
) -> list[Written]:
    """Segment images and scenes.

    A scene is a raster whose pixels have coordinates, or any raster if the output is a TIFF. It may
    be of any size: it is made block by block, in memory that does not grow with it, and what is
    done is not done again after a fault. A map lies on its scene's own grid.

    Args:
        run: A run folder or a bundle; or an `.onnx` or `.xml` file of one.
        inputs: Files and folders; of a folder with `images/` these are taken.
        output: A folder; or a PNG file for one image, a TIFF for one scene.
        threshold: Takes the place of the bundle's: a number, or `label=number` with commas.
        probabilities: Write probabilities too: 16-bit PNG of an image, an 8-bit GeoTIFF of a scene.
        overlay: Write pictures of the classes over the image too.
        table: A CSV file to write each image's pixels and shares of each class to.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile: The longest side of what the net sees at once [px]; 0 takes what fits the net.
        backend: The engine, as in `load`: `torch`, `torch-bf16`, `torch-compiled`, `onnx`,
            `openvino`, or `auto` for the quickest one here, which is measured with the first image
            or scene. Empty for `torch`, and for that of an export. Work that goes on keeps the
            engine it was begun with.
        encoder: The module that gives the feature maps, if the net was trained on one of your own.
        others: More runs of the same classes and bands: the mean of all answers is taken.
        tta: Look at each image or tile in all symmetries that the net saw in training, and take the
            mean.
        uncertainty: `entropy` or `spread` (of the answers, where there are several): an 8-bit
            GeoTIFF beside the map.
        polygons: A GeoPackage, GeoJSON or FlatGeobuf file for the outlines of all but the
            background; for several scenes an ending such as `.gpkg`.
        simplify_px: How far an outline may move from the pixels' sides [px]; 0 keeps them.
        square: Give outlines right angles, as buildings have.
        min_area_m2: Leave out polygons and holes smaller than this [m²].
        overlap: Context on each side of a tile [px]. None takes as much as the net needs to leave
            no seam; less is quicker, and blended.
        resolution_m: Side of the pixels that the net is to see [m]; 0 takes what it was trained on.
        nodata: Stands for "no data", whatever the file says.
        trust: Read what lies beside a raster, files made of other files, and remote paths.
        memory_limit_mb: What a scene may take of memory [MB]; 0 for 3 GB at the most. More makes
            larger tiles, and less is computed twice.
        shard: Do only a share of the blocks: `1/8`, or `auto` in an array of jobs. The shard that
            finishes last puts the map together.
        keep_parts: Keep the folder of parts beside the map.
        talk: Where the progress goes.

    Returns:
        What was written for each image and scene.

    Raises:
        BundleError: The run is missing or damaged.
        DataError: Images cannot be read; all others are segmented first, then all such are named.
        UsageError: What is asked for has no meaning for what is given.
        OutputError: A file cannot be written.
    """
    from whatwhere.predicting import Wanted, segment

    sources = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    wanted = Wanted(
        threshold=threshold,
        probabilities=probabilities,
        overlay=overlay,
        table=Path(table) if table is not None else None,
        device=device,
        tile=tile,
        backend=backend,
        encoder=encoder,
        others=[Path(other) for other in others],
        tta=tta,
        uncertainty=uncertainty,
        polygons=str(polygons),
        simplify_px=simplify_px,
        square=square,
        min_area_m2=min_area_m2,
        overlap=overlap,
        resolution_m=resolution_m,
        nodata=nodata,
        trust=trust,
        memory_limit_mb=memory_limit_mb,
        shard=shard,
        keep_parts=keep_parts,
    )
    paths = [Path(source) for source in sources]
    return segment(Path(run), paths, Path(output), wanted, talk or Talk())


def assemble(
    output: str | Path,
    *,
    polygons: str | Path = "",
    simplify_px: float | None = None,
    square: bool = False,
    min_area_m2: float = 0.0,
    vrt: bool = False,
    keep_parts: bool = False,
    talk: Talk | None = None,
) -> Written:
    """Put the parts together that shards of a prediction have made.

    Args:
        output: The map that `predict` was told to make; its parts lie beside it.
        polygons: As in `predict`, if the parts were made with polygons.
        simplify_px: As in `predict`.
        square: As in `predict`.
        min_area_m2: As in `predict`.
        vrt: Write a virtual raster over the parts instead, which then stay where they are.
        keep_parts: Keep the folder of parts beside the map.
        talk: Where the progress goes.

    Returns:
        What was written.

    Raises:
        DataError: Parts are missing or damaged.
        UsageError: Polygons are wanted, and the parts were made without.
        OutputError: A file cannot be written.
    """
    from whatwhere.predicting import Wanted, put_together

    wanted = Wanted(
        polygons=str(polygons),
        simplify_px=simplify_px,
        square=square,
        min_area_m2=min_area_m2,
        keep_parts=keep_parts,
    )
    return put_together(Path(output), wanted, vrt, talk or Talk())


def export(
    run: str | Path,
    output: str | Path,
    *,
    tile: int = 0,
    int8: bool = False,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    class_field: str | None = None,
    layer: str | None = None,
    aoi: str | Path | None = None,
    nodata: float | None = None,
    buffer_m: float = 0.0,
    trust: bool = False,
    encoder: Any = None,
    talk: Talk | None = None,
) -> dict[str, Any]:
    """Write a trained net as one file for other programs.

    The ending decides: `.onnx` for ONNX Runtime and others, `.xml` for OpenVINO (its weights lie
    beside it, in a `.bin`), both of which `predict`, `evaluate` and `load` take in the place of a
    run, without PyTorch; `.pt2` for PyTorch without this package (`torch.export.load`); `.dlpk` or
    `.emd` for ArcGIS (an `.emd` comes with its bundle beside it).

    Normalisation and probabilities are inside: `(N, C, H, W)` float32 in the units of the files
    goes in, `(N, K, H, W)` in [0, 1] comes out. The card is in the file too. The export is compared
    with the net at three sizes, and nothing is written if a probability differs by more than 1e-4.

    With `tile` an ONNX file has the form that QGIS Deepness and geodeep share: `(1, C, tile, tile)`
    of bytes divided by 255 goes in; of what comes out the highest channel is the class, at the
    thresholds of the bundle.

    With `int8` the numbers of an OpenVINO file are whole ones from -128 to 127: what is lost is
    measured. Their ranges are taken from the run's training images. The file is written if the mean
    IoU on the run's validation split falls by at most 0.005; both figures are in its card.

    Args:
        run: A run folder or a bundle.
        output: The file to write; one that is there is replaced.
        tile: Side of the only image that the file is to take [px]; 0 for images of any size.
        int8: Whether the net is to compute in 8 bits, for `.xml`.
        data: The data that the run was trained on, for `int8`.
        labels: Of that data, as in `train`.
        class_field: The same.
        layer: The same.
        aoi: The same.
        nodata: The same.
        buffer_m: The same.
        trust: The same.
        encoder: The module that gives the feature maps, if the net was trained on one of your own.
        talk: Where the progress goes.

    Returns:
        `file`, `bytes`, `tile`; `largest_difference` of a probability from the net's, and
        `compared`: `[N, H, W]` of what was compared. For ArcGIS the last two are None and empty.
        With `int8` these are of the net in float32, and `mean_iou` and `mean_iou_int8` are there
        too.

    Raises:
        BundleError: The run is missing or damaged, or the export does not answer as the net does,
            or not well enough in 8 bits.
        UsageError: There is no such ending, the net cannot be exported in this form, or a library
            is not installed.
        DataError: With `int8`: the data cannot be read, or is not the run's.
        OutputError: The file cannot be written.
    """
    from whatwhere.export import export as write

    path, talk = Path(output), talk or Talk()
    inputs = Inputs.of(
        data or "",
        labels=labels,
        class_field=class_field,
        layer=layer,
        aoi=aoi,
        nodata=nodata,
        buffer_m=buffer_m,
        trust=trust,
    )
    if not int8 and (data is not None or inputs.said):
        raise UsageError("--data and what goes with it is for --int8. Leave it out.")
    if int8:
        if data is None:
            raise UsageError("--int8 wants the data that the run was trained on: --data DATA.")
        return _export_int8(Path(run), path, tile, inputs, encoder, talk)
    if path.suffix.lower() in (".dlpk", ".emd"):
        return _package(Path(run), path, tile)
    return write(Path(run), path, tile=tile, encoder=encoder, talk=talk)


def _export_int8(
    run: Path, output: Path, tile: int, inputs: Inputs, encoder: Any, talk: Talk
) -> dict[str, Any]:
    """Find a run's own training and validation images again, and export it in 8 bits."""
    from whatwhere.quantizing import export_int8

    run = runs.run_folder(run)
    card = bundle.load_card(run)
    seen = runs.seen_images(run)
    if not seen["val"]:
        raise UsageError(
            f"{run}: the run folder says which images trained and validated. Give it, not its "
            "bundle alone."
        )
    found = _survey(inputs, card, talk)
    pairs: dict[str, list[Pair]] = {}
    for split in ("train", "val"):
        known = set(seen[split])
        pairs[split] = [pair for pair in found.pairs if found.digests[pair.key] in known]
        if not pairs[split]:
            raise DataError(
                f"{inputs.root}: no pair of {own(split)} is in it. Give the data that the run was "
                "trained on."
            )
    return export_int8(run, output, pairs["train"], pairs["val"], tile, encoder, talk)


def _package(run: Path, output: Path, tile: int) -> dict[str, Any]:
    """Write what ArcGIS opens: one file, or a definition with its bundle beside it."""
    from whatwhere.packages import write_package

    if tile:
        raise UsageError(f"--tile is for .onnx, .xml and .pt2, and {output} is for ArcGIS.")
    if output.suffix.lower() == ".emd":
        if (output.parent / runs.SPLITS).exists():
            raise UsageError(f"{output}: a run is in this folder. Take another one.")
        write_package(run, output.parent, output.stem)
    else:
        with files.scratch(output.absolute().parent) as folder:
            made = write_package(run, folder, output.stem)
            files.write_bytes(output, made[-1].read_bytes())
    size = output.stat().st_size
    told = {"file": str(output), "bytes": size, "tile": 0}
    return {**told, "largest_difference": None, "compared": []}


def _pairs(run: Path, inputs: Inputs, card: Card, part: str, talk: Talk) -> tuple[list[Pair], str]:
    """Survey a data set and choose the pairs to score."""
    found = _survey(inputs, card, talk)
    seen = runs.seen_images(run)
    own_data = card.data.get("sha256") == fingerprint(found)
    folders = any(pair.split for pair in found.pairs)
    if not seen["train"] and own_data and not folders and part in ("score", "tune"):
        raise DataError(
            f"{inputs.root}: the net was trained on this data, and {run} does not say on which of "
            "it. Give the run folder; or --part all to score every pair, seen in training or not."
        )
    ground = same_ground(run / runs.SPLIT_AREAS, found.pairs)
    pairs, on = choose(found.pairs, found.digests, seen, part, ground)
    return pairs, on


def _survey(inputs: Inputs, card: Card, talk: Talk) -> doctor.Survey:
    """Look at a data set as a net's card says."""
    wish = Wish(
        bands=card.bands,
        chip_size=max(card.chip_size),
        resolution_m=card.pixel_size or 0.0,
        side=int(card.data.get("block_px", 0)),
        classes=card.classes,
        insists=False,
        spec=str(card.recipe.get("classes", "")),
    )
    found = look(inputs, wish, 0.0, talk)
    found.require_sound()
    unknown = doctor.check_classes(found, card.classes)
    if unknown:
        _refuse_classes(doctor.Survey(found.source, found.facts, tuple(unknown)), card)
    return with_labels(found, card.classes)


def _refuse_classes(found: doctor.Survey, card: Card) -> None:
    """Raise the errors of masks that hold other numbers than the bundle knows, with a table."""
    known = ", ".join(
        f"{'/'.join(written(number) for number in info.raw)} {info.name}" for info in card.classes
    )
    there = {number for facts in found.facts.values() for one in facts.numbers for number in one}
    shown = ", ".join(written(number) for number in sorted(there)[:12])
    more = f" and {len(there) - 12} more" if len(there) > 12 else ""
    table = difference([("classes", known, f"{shown}{more}")], ("of the bundle", "in the masks"))
    try:
        found.require_sound()
    except DataError as error:
        raise DataError(f"{error}\n{table}", error.problems) from error


def _thresholds(threshold: str | float | None, card: Card) -> tuple[float, ...]:
    if threshold is None:
        return card.thresholds
    return parse_thresholds(str(threshold), card.classes)


def _severity(problem: Problem) -> int:
    return ("error", "warning", "note").index(problem.severity)
