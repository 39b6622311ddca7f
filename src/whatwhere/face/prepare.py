"""`prepare_data`: arcgis.learn's words for a data set, turned into ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whatwhere.config import Recipe, make_recipe
from whatwhere.data.census import look
from whatwhere.data.inputs import Inputs
from whatwhere.data.plan import DataPlan, plan_data, wish_of
from whatwhere.data.sources import Split, holds_export
from whatwhere.errors import UsageError
from whatwhere.face.data import SegmentationData
from whatwhere.face.drawing import bands_shown
from whatwhere.face.gather import gather, gather_stratified, gather_table
from whatwhere.face.inline import talk_here
from whatwhere.face.words import (
    DATA_SETTINGS,
    DATA_WORDS,
    PLACES,
    SETTINGS,
    band_words,
    check_words,
    class_words,
    named_in,
)
from whatwhere.notation import parse_split
from whatwhere.talk import Talk

_DATASETS = (None, "Classified_Tiles")


def prepare_data(
    path: Any,
    class_mapping: Mapping[Any, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.1,
    batch_size: int | None = 64,
    transforms: Any = None,
    collate_fn: Any = None,
    seed: int = 42,
    dataset_type: str | None = None,
    resize_to: int | tuple[int, int] | None = None,
    working_dir: str | Path | None = None,
    **kwargs: Any,
) -> SegmentationData:
    """Look at a data set once, and decide how a net will see it.

    The names are those of arcgis.learn. `docs/how-to/from-arcgis.md` lists what each of them does.

    Args:
        path: A folder of images and masks or an export of ArcGIS Pro, a raster with `labels=`, a
            `data.toml`, or a list of folders.
        class_mapping: The name of each value in the masks; 0 is background if it has none. An
            export names its classes itself: what is said here goes before.
        chip_size: Side of the chips cut for training [px]; 0 takes small images whole. No longer
            than the longest image.
        val_split_pct: Share that validates, where no split is given, above 0 and below 1.
        batch_size: Chips a step; None for the recipe's own.
        transforms: None changes training chips a little, anew in each epoch; False does not.
        collate_fn: Has no effect.
        seed: What all chance is drawn from.
        dataset_type: None or `Classified_Tiles`.
        resize_to: Images are stretched to this first [px]: a side, or (height, width).
        working_dir: Where `models/` is made; the data's folder without it.
        **kwargs: arcgis.learn's other keywords; `labels`, `class_field`, `aoi`, `nodata`,
            `buffer_m` and `trust` as in `jobs.train`; and any setting of a recipe.

    Returns:
        What `UnetClassifier` takes.

    Raises:
        UsageError: A keyword is unknown (the nearest is named), or its value cannot be.
        DataError: There is an error in the data; all that were found are named.
    """
    talk = kwargs.get("talk") or talk_here()
    class_mapping = class_mapping or named_in(kwargs.get("emd") or {})
    known = {*DATA_WORDS, *PLACES, *SETTINGS}
    check_words({**kwargs, "collate_fn": collate_fn}, known, "prepare_data", talk)
    if dataset_type not in _DATASETS:
        raise UsageError(
            f"dataset_type must be None or 'Classified_Tiles', not {dataset_type!r}: this package "
            "gives each pixel a class, and nothing else."
        )
    settings = {name: value for name, value in kwargs.items() if name in SETTINGS}
    settings |= _settings(
        class_mapping=class_mapping,
        export=_is_export(path),
        chip_size=chip_size,
        val_split_pct=val_split_pct,
        batch_size=batch_size,
        transforms=transforms,
        seed=seed,
        resize_to=resize_to,
        given=kwargs,
    )
    recipe = _recipe(settings)
    alpha = kwargs.get("alpha", 0.7)
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be from 0 to 1, not {alpha!r}.")
    root, work = _place(path, kwargs, working_dir, talk)
    places = {name: kwargs[name] for name in PLACES if kwargs.get(name) is not None}
    inputs = Inputs.of(root, **places)
    if kwargs.get("stratify") and not inputs.has_scenes:
        found = look(inputs, wish_of(recipe), recipe.split_gap, talk)
        found.require_sound()
        shares = parse_split(recipe.split)
        root = gather_stratified(found, shares, recipe.seed, work / "data", talk)
        inputs = Inputs.of(root, **places)
    plan = _fitted(plan_data(inputs, recipe, talk), talk)
    settings["chip_size"] = plan.recipe.chip_size
    data = SegmentationData(
        inputs,
        plan,
        settings,
        working_dir=work,
        workers=int(kwargs.get("num_workers") or 0),
        alpha=alpha,
        rgb=bands_shown(kwargs.get("rgb_bands"), plan.reader.bands.names),
        talk=talk,
    )
    plan.tell(talk)
    return data


def _settings(
    *,
    class_mapping: Mapping[Any, str] | None,
    export: bool,
    chip_size: int,
    val_split_pct: float,
    batch_size: int | None,
    transforms: Any,
    seed: int,
    resize_to: int | tuple[int, int] | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Write their arguments as a recipe's settings; what is said in our words goes before."""
    if transforms not in (None, False):
        raise UsageError(
            "transforms must be None or False: fastai does not run here. Say flip=, rotate=, "
            "scale=, shift=, brightness= and contrast= instead."
        )
    if isinstance(val_split_pct, bool) or not 0 < val_split_pct < 1:
        raise UsageError(f"val_split_pct must be above 0 and below 1, not {val_split_pct!r}.")
    if class_mapping and given.get("classes"):
        raise UsageError("class_mapping and classes say the same: leave one out.")
    found: dict[str, Any] = {"chip_size": chip_size or 0, "seed": seed}
    found["split"] = given.get("split") or f"{1 - val_split_pct:.9g}/{val_split_pct:.9g}/0"
    if batch_size is not None:
        found["batch_size"] = batch_size
    if class_mapping:
        found["classes"] = class_words(class_mapping, background=not export)
    if given.get("do_normalize") is False:
        found["normalize"] = False
    if given.get("train_tail"):
        found["train_first"] = True
    if transforms is False:
        found["augment"] = False
    if given.get("lighting_transforms") is False:
        found |= {"brightness": 0.0, "contrast": 0.0}
    if resize_to:
        found["resize"] = resize_to
    bands = band_words(given.get("bands"), given.get("extract_bands"))
    if bands is not None:
        found["bands"] = bands
    return found


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    """A recipe of what is said about the data; the net is chosen later."""
    return make_recipe(**{n: value for n, value in settings.items() if n in DATA_SETTINGS})


def _place(
    path: Any, given: Mapping[str, Any], working_dir: str | Path | None, talk: Talk
) -> tuple[Path, Path]:
    """Return where the data lies, put together if it lies in several places, and where to work."""
    several = [Path(one) for one in path] if isinstance(path, (list, tuple)) else []
    parts: dict[Split | None, list[Path]] = {None: several or ([Path(path)] if path else [])}
    beside: tuple[tuple[str, Split], ...] = (("valid_path", "val"), ("test_path", "test"))
    for name, split in beside:
        said = given.get(name)
        if said:
            folders = said if isinstance(said, (list, tuple)) else [said]
            parts[split] = [Path(one) for one in folders]
    table = given.get("images_df")
    first = parts[None][0] if parts[None] else None
    if first is None and (table is None or working_dir is None):
        raise UsageError("path is empty: give a folder; for images_df give working_dir.")
    work = Path(working_dir) if working_dir is not None else _folder_of(first or Path())
    if table is not None:
        if path or len(parts) > 1:
            raise UsageError("images_df says where all images lie: leave the paths out.")
        return gather_table(table, work / "data"), work
    if first is not None and len(parts) == 1 and len(parts[None]) == 1:
        return first, work
    if given.get("labels") is not None or any(
        one.is_file() for some in parts.values() for one in some
    ):
        raise UsageError(
            "several places, valid_path and test_path are for folders of images and masks; list "
            "rasters in a data.toml, each with its split."
        )
    return gather(parts, work / "data", talk, trust=bool(given.get("trust"))), work


def _is_export(path: Any) -> bool:
    """Whether an export of ArcGIS Pro is among the places, which names its classes itself."""
    places = path if isinstance(path, (list, tuple)) else [path] if path else []
    return any(holds_export(Path(one)) for one in places)


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _fitted(plan: DataPlan, talk: Talk) -> DataPlan:
    """Return the plan with chips no longer than the longest image."""
    recipe, resize = plan.recipe, plan.reader.resize
    if plan.scenes is not None or not recipe.chip_size:
        return plan
    longest = max(max(resize or one.size) for one in plan.survey.facts.values())
    if longest >= recipe.chip_size:
        return plan
    talk.say(f"note     chip_size: {longest} px, as long as the longest image.")
    recipe = make_recipe(recipe, chip_size=longest)
    return dataclasses.replace(plan, recipe=recipe, shape=(longest, longest))
