"""A trained net and the data it goes with: kept, loaded, scored and used."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatwhere import bundle, jobs, runs
from whatwhere import evaluate as scoring
from whatwhere.bundle import Card
from whatwhere.config import Recipe, make_recipe
from whatwhere.data.classes import written
from whatwhere.data.splits import fingerprint, own
from whatwhere.errors import BundleError, UsageError
from whatwhere.face.begin import begin
from whatwhere.face.data import SegmentationData
from whatwhere.face.packed import Opened, open_trained
from whatwhere.face.words import check_words
from whatwhere.packages import SCRIPT, why_not, write_package
from whatwhere.predict.decide import decide, to_values
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.images import Written
from whatwhere.report import FOLDER
from whatwhere.talk import Talk, difference
from whatwhere.types import Image

MODELS_FOLDER = "models"
"""Where runs and bundles lie, below the folder to work in."""


class Held:
    """What a classifier does with the weights it holds.

    Attributes:
        data: What it was made with; None for a net that only predicts.
        recipe: How the next training goes.
        encoder: A backbone of the user's own, or None.
        run: The run folder or bundle that holds the weights; None before the first.
        device: Where the net runs: `auto`, `cpu`, `cuda` or `mps`.
        talk: What speaks to the user.
    """

    data: SegmentationData | None
    recipe: Recipe
    encoder: Any
    run: Path | None
    device: str
    talk: Talk
    _known: dict[str, dict[str, Any]]
    _predictor: Predictor | None
    _opened: Opened | None  # a package lies unpacked as long as this is held
    _missing: str

    def save(
        self,
        name_or_path: str | Path,
        framework: str = "PyTorch",
        publish: bool = False,
        gis: Any = None,
        compute_metrics: bool = True,
        save_optimizer: bool = False,
        save_inference_file: bool = True,
        **kwargs: Any,
    ) -> Path:
        """Write a package: the bundle, and what ArcGIS asks for.

        In the folder lie `bundle.json` and `weights-*.safetensors`, which are all that this package
        reads; `NAME.emd`, the definition; `WhatwhereClassifier.py`, which ArcGIS Pro runs
        (experimental: written after its published interface, and not tried there); `report.html`,
        if the run has one; and `NAME.dlpk`, all of them in one file.

        Args:
            name_or_path: A name, for a folder below `models/`; or a path. A package that is there
                is replaced.
            framework: `PyTorch`.
            publish: Must be False: there is no portal.
            gis: Must be None.
            compute_metrics: Keep the report, and the scores of the validation split in the
                definition, where they are known.
            save_optimizer: Has no effect.
            save_inference_file: Write the script for ArcGIS Pro. Nets that it cannot run are saved
                without, which is said.
            **kwargs: Keywords that mean nothing for a U-Net, which is said.

        Returns:
            The folder, which `load`, `from_model` and every verb of the command line take.

        Raises:
            UsageError: There is no such framework, or nothing was trained.
            BundleError: The run's scores cannot be read.
            OutputError: It cannot be written.
        """
        idle = {"publish": publish, "gis": gis, "save_optimizer": save_optimizer}
        check_words({**idle, **kwargs}, (), "save", self.talk)
        if framework.lower() != "pytorch":
            raise UsageError(f"framework must be PyTorch, not {framework!r}.")
        run, folder = self._weights(), self._folder(name_or_path)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is a file; a folder is written.")
        if (folder / runs.SPLITS).exists():
            raise UsageError(f"{folder}: a run is in this folder. Take another name.")
        scores = (self._known.get("val") or kept_scores(run)) if compute_metrics else None
        refusal = why_not(self._card()) if save_inference_file else ""
        if refusal:
            self.talk.say(f"note     save: {SCRIPT} is not written: {refusal}.")
        write_package(
            run,
            folder,
            folder.absolute().name,
            script=save_inference_file,
            report=compute_metrics,
            scores=scores,
        )
        return folder

    def load(self, name_or_path: str | Path, strict: bool | str = True) -> None:
        """Take the weights of a run or a package: they are what is scored, used and trained on.

        Args:
            name_or_path: A name, for a folder below `models/`; or a path, as in `from_model`.
            strict: Refuse other classes than the data's. If not, the next `fit` begins with a new
                head for them.

        Raises:
            BundleError: It is missing or damaged, or nothing of a foreign model's weights fits.
            UsageError: It is another net.
        """
        path = self._folder(name_or_path)
        path = path if path.exists() or not Path(name_or_path).exists() else Path(name_or_path)
        opened = open_trained(path)
        if opened.foreign is not None:
            self._load_foreign(opened, bool(strict))
            return
        card = bundle.load_card(opened.run or path)
        self._check_same(path, card.model, card.classes.names, bool(strict))
        self.run, self._known, self._predictor = opened.run, {}, None
        self._opened, self._missing = opened, ""

    def _load_foreign(self, opened: Opened, strict: bool) -> None:
        """Take what fits of the weights of a model of arcgis.learn."""
        if opened.foreign is None or opened.place is None:
            raise BundleError(f"{opened.path}: there is no model in it.")
        named = opened.foreign.backbone.removeprefix("timm:") or self.recipe.model
        self._check_same(opened.path, named, opened.foreign.classes.names, strict)
        begun = begin(opened.foreign, self.recipe, opened.place, self.talk)
        if begun.seed is not None:
            self.recipe = make_recipe(self.recipe, pretrained_path=str(begun.seed))
        self.run, self._known, self._predictor = begun.run, {}, None
        self._opened = opened
        self._missing = f"{opened.path}: its backbone was taken, and the decoder starts anew."

    def _check_same(self, path: Path, model: str, classes: Sequence[str], strict: bool) -> None:
        """Raise `UsageError` if another net is loaded than this one."""
        rows = [("model", model, self.recipe.model)]
        if strict and self.data is not None:
            rows.append(("classes", ", ".join(classes), ", ".join(self._names())))
        unlike = [row for row in rows if row[1] != row[2]]
        if unlike:
            raise UsageError(
                f"{path} does not go with this net:\n{difference(unlike)}\nfrom_model() makes one "
                "that does."
            )

    def predict(self, image: NDArray[Any] | str | Path, probabilities: bool = False) -> Any:
        """Segment a picture.

        Args:
            image: `(H, W)` or `(C, H, W)` as stored in files, any size; or the path of an image.
            probabilities: Return probabilities instead.

        Returns:
            `(H, W)` uint8, the value of each pixel's class; zeros and ones `(K, H, W)` for labels
            that overlap. Or probabilities `(K, H, W)` float32 in [0, 1].

        Raises:
            DataError: The file cannot be read.
            ShapeError: The image does not have the bands that the net was trained on.
        """
        predictor = self._loaded()
        card = predictor.card
        valid = None
        found: Image
        if isinstance(image, (str, Path)):
            found, valid = predictor.read(Path(image))
        else:
            pixels = np.asarray(image)
            found = predictor.probabilities(pixels[None] if pixels.ndim == 2 else pixels)
        if probabilities:
            return found
        labels = decide(found, card.classes, card.thresholds)
        if card.classes.task == "multilabel":
            return labels.astype(np.uint8) if valid is None else (labels * valid).astype(np.uint8)
        return to_values(labels, card.classes, valid)

    def predict_raster(
        self,
        scene: str | Path | Sequence[str | Path],
        out: str | Path,
        **options: Any,
    ) -> list[Written]:
        """Make a map of a scene of any size, or masks of images, as files.

        Args:
            scene: A raster, an image, a folder, or several.
            out: A GeoTIFF for one scene, a PNG for one image, else a folder.
            **options: As in `jobs.predict`, such as `polygons="map.gpkg"` or `tta=True`.

        Returns:
            What was written for each of them.

        Raises:
            DataError: A file cannot be read; all others are segmented first.
            UsageError: What is asked for has no meaning for what is given.
            OutputError: A file cannot be written.
        """
        names = set(inspect.signature(jobs.predict).parameters) - {"run", "inputs", "output"}
        check_words(options, names, "predict_raster", self.talk)
        usual = {"device": self.device, "encoder": self.encoder, "talk": self.talk}
        return jobs.predict(self._weights(), scene, out, **{**usual, **options})

    def export(self, path: str | Path, tile: int = 0) -> Path:
        """Write the net as one file for other programs.

        Args:
            path: Ends in `.onnx`, `.xml`, `.pt2`, `.dlpk` or `.emd`.
            tile: Side of the only image that it is to take [px], for programs around QGIS; 0 for
                images of any size.

        Raises:
            UsageError: There is no such ending, or the net cannot be exported in this form.
            BundleError: The export does not answer as the net does; nothing was written.
            OutputError: It cannot be written.
        """
        jobs.export(self._weights(), path, tile=tile, encoder=self.encoder, talk=self.talk)
        return Path(path)

    def tune_threshold(self, metric: str = "iou") -> dict[str, float]:
        """Choose each label's threshold on the validation split, and keep it in the bundle.

        Args:
            metric: `iou`, `dice`, `mean_iou`, `mean_iou_images` or `pixel_accuracy`.

        Returns:
            The threshold of each label, by name.

        Raises:
            UsageError: A net of several classes takes the most likely one and has no threshold.
        """
        data = self._data("tune_threshold")
        found = jobs.tune(
            self._weights(),
            data.path,
            **data.inputs.said,
            metric=metric,
            device=self.device,
            encoder=self.encoder,
            talk=self.talk,
        )
        self._known, self._predictor = {}, None
        return {name: float(row["threshold"]) for name, row in found["labels"].items()}

    @property
    def net(self) -> Any:
        """The torch module with the weights there are, in evaluation mode."""
        return self._loaded().net

    @property
    def report(self) -> Path:
        """The page that tells of the last `fit`: curves, examples, scores, methods."""
        page = self._weights() / "report.html"
        if not page.is_file():
            raise UsageError(f"{self.run}: there is no report, only the bundle.")
        return page

    def _scores(self, split: str, talk: Talk | None = None) -> dict[str, Any]:
        """Score the data's split, once."""
        data, talk = self._data("scores"), talk or self.talk
        if split in self._known:
            return self._known[split]
        run = self._weights()
        if runs.seen_images(run)["train"]:
            scores = jobs.evaluate(
                run,
                data.path,
                **data.inputs.said,
                part=split,
                device=self.device,
                encoder=self.encoder,
                talk=talk,
            )
        else:
            scores = self._score_bundle(data, split, talk)
        self._known[split] = scores
        return scores

    def _score_bundle(self, data: SegmentationData, split: str, talk: Talk) -> dict[str, Any]:
        """Score a split of the data with a bundle that does not know what it has seen."""
        predictor, plan = self._loaded(), data.plan
        card = predictor.card
        as_now = {"seed": plan.recipe.seed, "split": plan.recipe.split}
        as_then = {name: card.recipe.get(name) for name in as_now}
        if card.data.get("sha256") == fingerprint(plan.survey) and as_now != as_then:
            rows = [(n, str(as_then[n]), str(as_now[n])) for n in as_now if as_then[n] != as_now[n]]
            talk.say(
                "warning  this net was trained on this data, dealt otherwise: images that it was "
                f"trained on may be among those scored.\n{difference(rows, ('then', 'now'))}"
            )
        pairs = [pair for name, some in plan.splits.items() if name == split for pair in some]
        if not pairs:
            raise UsageError(f"there is no image in {own(split)}.")
        found = scoring.evaluate(
            talk.track(scoring.answers(predictor, pairs), "scoring", len(pairs)),
            card.classes,
            card.thresholds,
        )
        return found.to_json()

    def _names(self) -> list[str]:
        """The classes of the next `fit`."""
        if self.data is None:
            return self._card().classes.names
        rows = (one.partition("=") for one in self.recipe.classes.split(","))
        ignored = {number for number, _, name in rows if name == "ignore"}
        return [one.name for one in self.data.table if not ignored & set(map(written, one.raw))]

    def _card(self) -> Card:
        return bundle.load_card(self._weights())

    def _data(self, verb: str) -> SegmentationData:
        if self.data is None:
            raise UsageError(
                f"{verb}: this net was made without data: from_model(path, prepare_data(…))."
            )
        return self.data

    def _weights(self) -> Path:
        if self.run is None and self._missing:
            raise UsageError(
                f"nothing was trained yet. {self._missing} Train it: "
                "from_model(path, prepare_data(…)).fit()."
            )
        if self.run is None:
            raise UsageError("nothing was trained yet: fit() first, or load() what was saved.")
        return self.run

    def _loaded(self) -> Predictor:
        if self._predictor is None:
            self._predictor = load(self._weights(), device=self.device, encoder=self.encoder)
        return self._predictor

    def _folder(self, name_or_path: str | Path) -> Path:
        """Where a name lies: below `models/`, unless it is a path."""
        path = Path(name_or_path)
        if path.name != str(name_or_path) or self.data is None:
            return path
        return self.data.working_dir / MODELS_FOLDER / path


def kept_scores(run: Path) -> dict[str, Any] | None:
    """Return a run's scores of the validation split; None for a bundle without its run.

    Raises:
        BundleError: They cannot be read.
    """
    path = run / FOLDER / "validation.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        rows = [
            (row["name"], row["precision"], row["recall"], row["dice"]) for row in found["classes"]
        ]
        if not rows or "pixel_accuracy" not in found:
            raise ValueError("there are no scores in it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: the run's scores cannot be read ({error!r}). Copy the run again, or say "
            "compute_metrics=False."
        ) from error
    return dict(found)


def number(value: float | None) -> float:
    """A score; NaN for what is absent."""
    return math.nan if value is None else value
