"""`UnetClassifier`: a U-Net that is trained, looked at, kept and used from Python."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whatwhere import bundle, jobs, nets, pictures
from whatwhere import evaluate as scoring
from whatwhere.bundle import CARD
from whatwhere.config import MODELS, Recipe
from whatwhere.data.labels import read_pixels
from whatwhere.errors import UsageError
from whatwhere.face.course import Start, course_of, log_of, start_of, still_ignored
from whatwhere.face.data import SegmentationData, split_called, values_of
from whatwhere.face.drawing import Panel, bands_shown, draw_losses, draw_panels
from whatwhere.face.held import MODELS_FOLDER, Held, number
from whatwhere.face.inline import show, show_png, talk_here
from whatwhere.face.packed import open_trained
from whatwhere.face.tables import frame
from whatwhere.face.words import DATA_SETTINGS, METRICS, SETTINGS, check_words
from whatwhere.nn.build import list_models
from whatwhere.predict.decide import decide
from whatwhere.raster_function import device_of
from whatwhere.talk import Talk


class UnetClassifier(Held):
    """A U-Net on a backbone, with the names of arcgis.learn.

    Each `fit` is a training of its own in a run folder below `models/`, beginning with the weights
    of the one before: what `whatwhere train` makes, and every verb of the command line takes.

    Attributes:
        frozen: Whether the backbone rests.
        runs: The run folders of its trainings, in order.
        class_balancing: As it was made with, like the four that follow.
        monitor: What decides which epoch is kept, as said to the last `fit`.
    """

    monitor = "valid_loss"

    def __init__(
        self,
        data: SegmentationData | None,
        backbone: Any = None,
        pretrained_path: str | os.PathLike[str] | None = None,
        backend: str = "pytorch",
        **kwargs: Any,
    ) -> None:
        """Decide on a net; weights that it begins with are fetched here.

        Args:
            data: What `prepare_data` returned; None for a net that only predicts.
            backbone: None for resnet34; a name of timm's, with or without `timm:` before it; a
                function of such a name; a torch module that returns a list of feature maps; or
                `tutorial` or `unet2015`, which have no backbone.
            pretrained_path: Whose weights it begins with: a run, a bundle, a package (its folder,
                `.emd` or `.dlpk`), or a model of arcgis.learn, as far as its weights fit.
            backend: `pytorch`.
            **kwargs: arcgis.learn's other keywords; `device`: `auto`, `cpu`, `cuda`, `mps` or the
                number of a GPU; and any setting of a recipe.

        Raises:
            UsageError: A keyword is unknown (the nearest is named), its value cannot be, or weights
                that were asked for cannot be had.
            BundleError: What `pretrained_path` names is missing or damaged, or does not fit.
        """
        self.data = data
        self.talk: Talk = kwargs.get("talk") or (data.talk if data else talk_here())
        start = start_of(data, backbone, pretrained_path, backend, kwargs, self.talk)
        self._take(start, device_of(kwargs.get("device", "auto")))
        if data is not None:
            nets.check_model(self.recipe, self.encoder)

    def _take(self, start: Start, device: str) -> None:
        self.recipe, self.encoder, self.run = start.recipe, start.encoder, start.run
        self.frozen, self.device = start.frozen, device
        self.class_balancing = start.said["class_balancing"]
        self.focal_loss = start.said["focal_loss"]
        self.dice_loss_fraction = start.said["dice_loss_fraction"]
        self.dice_loss_average = start.said["dice_loss_average"]
        self.weighted_dice = start.said["weighted_dice"]
        self.runs: list[Path] = []
        self._known, self._predictor = {}, None
        self._opened, self._missing = start.opened, start.missing

    # Training

    def lr_find(
        self,
        allow_plot: bool = True,
        mixed_precision: bool = False,
        *,
        start_lr: float = 1e-6,
        end_lr: float = 1.0,
        **kwargs: Any,
    ) -> float:
        """Find the learning rate at which the next `fit` learns fastest.

        Args:
            allow_plot: Show the loss over the rate, in a notebook.
            mixed_precision: As in `fit`.
            start_lr: The first rate that is tried, above 0.
            end_lr: The last one.
            **kwargs: Any setting of a recipe that has to do with the course.

        Raises:
            UsageError: A keyword is unknown, or its value cannot be.
            NumericsError: The loss never falls, or is not finite.
        """
        data = self._data("lr_find")
        check_words(kwargs, SETTINGS - DATA_SETTINGS, "lr_find", self.talk)
        recipe = self._next(mixed_precision=mixed_precision, **kwargs)
        found = jobs.lr_find(
            data.path,
            **data.inputs.said,
            recipe=recipe,
            low=start_lr,
            high=end_lr,
            device=self.device,
            encoder=self.encoder,
            talk=self.talk,
        )
        rate = float(found["suggestion"])
        if allow_plot:
            show_png(pictures.draw_lr(found["lrs"], found["losses"], rate))
        self.talk.say(f"note     learning rate {rate:.3g}")
        return rate

    def fit(
        self,
        epochs: int = 10,
        lr: float | slice | tuple[float, float] | None = None,
        one_cycle: bool = True,
        early_stopping: bool = False,
        checkpoint: bool | str = True,
        tensorboard: bool = False,
        monitor: str = "valid_loss",
        mixed_precision: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train, in a run folder of its own; the best epoch on the validation split is kept.

        Args:
            epochs: Passes through the training chips.
            lr: The highest learning rate; of a pair or a slice the first is the backbone's. None
                asks `lr_find`.
            one_cycle: The rate rises and falls along a cycle; else it falls when the validation
                loss stands still.
            early_stopping: Stop when 5 epochs bettered what is monitored by less than 0.001.
            checkpoint: True or `best`: the best epoch is kept. Others are not.
            tensorboard: Say where the log lies.
            monitor: `valid_loss`, of which the lowest is kept; or `accuracy`, `valid_miou` or
                `dice`, of which the highest is.
            mixed_precision: Let the net compute in 16 bits; losses stay in 32.
            **kwargs: Any setting of a recipe that has to do with the course, such as `clip=1.0`.

        Raises:
            UsageError: A keyword is unknown, or its value cannot be.
            NumericsError: The loss is not finite, or no learning rate was found.
            OutputError: The run folder cannot be written.
        """
        data = self._data("fit")
        known = SETTINGS - DATA_SETTINGS
        check_words({**kwargs, "tensorboard": tensorboard}, known, "fit", self.talk)
        if monitor not in self.available_metrics:
            raise UsageError(
                f"monitor must be one of {', '.join(self.available_metrics)}, not {monitor!r}."
            )
        self.monitor = monitor
        if checkpoint not in (True, False, "best", "all"):
            raise UsageError(f"checkpoint must be True, False, best or all, not {checkpoint!r}.")
        if checkpoint in (False, "all"):
            self.talk.say("note     checkpoint: the best epoch is kept, and no other.")
        if lr is None:
            lr = self.lr_find(allow_plot=False, mixed_precision=mixed_precision, **kwargs)
        recipe = self._next(
            epochs=epochs,
            lr=lr,
            one_cycle=one_cycle,
            early_stopping=early_stopping,
            mixed_precision=mixed_precision,
            monitor=METRICS[monitor],
            **kwargs,
        )
        output = self._next_folder()
        try:
            run = jobs.train(
                data.path,
                output,
                **data.inputs.said,
                recipe=recipe,
                device=self.device,
                workers=data.workers,
                encoder=self.encoder,
                talk=self.talk,
            )
        except KeyboardInterrupt:
            if (output / "bundle" / CARD).is_file():  # the best epoch so far
                self._adopt(output)
            raise
        self._adopt(output)
        if run is not None:
            self._known["val"] = dict(run.scores)

    def _next(self, **said: Any) -> Recipe:
        """How the next training goes; it begins with the weights there are."""
        return course_of(self.recipe, self.run, self.frozen, **said)

    def _next_folder(self) -> Path:
        place = self._data("fit").working_dir / MODELS_FOLDER
        counts = (place / f"fit_{count:03d}" for count in itertools.count(1))
        return next(folder for folder in counts if not folder.exists())

    def _adopt(self, run: Path) -> None:
        self.run = run
        self.runs.append(run)
        self._known, self._predictor = {}, None

    def freeze(self) -> None:
        """Let the backbone rest from the next `fit` on; raises `UsageError` if there is none."""
        self.frozen = self._has_backbone()

    def unfreeze(self) -> None:
        """Let the backbone learn from the next `fit` on; raises `UsageError` if there is none."""
        self.frozen = not self._has_backbone()

    def _has_backbone(self) -> bool:
        if self.recipe.model in MODELS:
            raise UsageError(f"a {self.recipe.model} net has no backbone to freeze.")
        return True

    # Looking

    @property
    def mixup(self) -> bool:
        """Whether training images are laid over each other."""
        return self.recipe.mixup > 0

    @property
    def available_metrics(self) -> list[str]:
        """What `monitor` may be."""
        return [*METRICS]

    @property
    def supported_backbones(self) -> list[str]:
        """Names of backbones, as `backbones` gives them."""
        return self.backbones()

    @property
    def supported_datasets(self) -> list[str]:
        """What `dataset_type` may be."""
        return ["Classified_Tiles"]

    @staticmethod
    def backbones(pattern: str = "*") -> list[str]:
        """Return the names that `backbone` takes: those of timm's that match a shell pattern."""
        return [name for name in list_models(pattern) if name not in MODELS]

    @staticmethod
    def transformer_backbones() -> list[str]:
        """Return the names of plain and windowed transformers."""
        patterns = ("vit_*", "swin*", "maxvit*", "deit*", "beit*", "eva*")
        return [name for pattern in patterns for name in list_models(pattern)]

    def plot_losses(self) -> Any:
        """Show training and validation loss of all epochs so far; returns matplotlib's figure."""
        log = [row for run in self.runs for row in log_of(run)]
        if not log:
            raise UsageError("no epoch was trained here yet: fit() first.")
        return show(draw_losses(log))

    def show_results(
        self,
        rows: int = 5,
        alpha: float | None = None,
        data_loader: str = "validation",
        index: int = 0,
        nodata: float | None = None,
        imsize: float = 5,
        top: float | None = None,
        rgb_bands: Sequence[int | str] | None = None,
        statistics_type: str | None = None,
        stretch_type: str | None = None,
        return_fig: bool = True,
    ) -> Any:
        """Show images with their true classes and, beside, with those that the net predicts.

        Args:
            rows: Images, whole.
            alpha: How much the colours cover, in [0, 1]; None for that of `prepare_data`.
            data_loader: `training`, `validation` or `testing`.
            index: The first image of the split, from 0.
            nodata: Has no effect, like `top`, `statistics_type` and `stretch_type`.
            imsize: Side of a picture [inches].
            top: Has no effect.
            rgb_bands: Three names, or places from 0, of the bands shown as red, green and blue.
            statistics_type: Has no effect.
            stretch_type: Has no effect.
            return_fig: Return the figure; else it is only shown.

        Returns:
            A figure of matplotlib; a notebook shows it.

        Raises:
            UsageError: There is no such split, band or image, or nothing was trained.
        """
        data = self._data("show_results")
        own_stretch = statistics_type if statistics_type != "DRA" else None
        idle = {"nodata": nodata, "top": top, "statistics_type": own_stretch}
        idle["stretch_type"] = stretch_type if stretch_type != "percentclip" else None
        check_words(idle, (), "show_results", self.talk)
        pairs = data.plan.splits[split_called(data_loader)]
        if not 0 <= index < len(pairs):
            raise UsageError(
                f"there is no image {index} in the {data_loader} split, which has {len(pairs)}."
            )
        predictor = self._loaded()
        card = predictor.card
        panels = []
        for answer in scoring.answers(predictor, pairs[index : index + max(rows, 1)]):
            image = read_pixels(answer.pair, card.bands)[0]
            said = decide(answer.probabilities, card.classes, card.thresholds)
            panels.append(Panel(f"{answer.pair.key}: truth", image, answer.truth, answer.valid))
            panels.append(Panel("prediction", image, said, answer.valid))
        figure = draw_panels(
            panels,
            card.classes,
            columns=2,
            side=imsize,
            alpha=data.alpha if alpha is None else alpha,
            rgb=bands_shown(rgb_bands, card.bands.names),
        )
        shown = show(figure)
        return shown if return_fig else None

    def accuracy(self) -> float:
        """Return the share of the validation pixels whose class is right, over the whole set."""
        value: float | None = self._scores("val")["pixel_accuracy"]
        return math.nan if value is None else value

    def mIOU(
        self, mean: bool = False, show_progress: bool = True, split: str = "valid"
    ) -> float | dict[int, float]:
        """Return the IoU of each class by its value, or their mean.

        Args:
            mean: Return the mean over the classes that are there.
            show_progress: Show a bar.
            split: `train`, `valid` or `test`.
        """
        talk = self.talk if show_progress else Talk(quiet=True)
        found = self._scores(split_called(split), talk)
        if mean:
            return number(found["mean_iou"])
        rows = [number(row["iou"]) for row in found["classes"]]
        return dict(zip(values_of(self._card().classes), rows, strict=True))

    def per_class_metrics(self, ignore_classes: Sequence[int] = ()) -> Any:
        """Return precision, recall and F1 of each class on the validation split.

        Args:
            ignore_classes: Values of classes to leave out of the table.

        Returns:
            A pandas `DataFrame` with a column for each class; without pandas a `Table` that looks
            like it.
        """
        rows = self._scores("val")["classes"]
        values = values_of(self._card().classes)
        return frame(
            {
                row["name"]: {
                    "precision": number(row["precision"]),
                    "recall": number(row["recall"]),
                    "f1": number(row["dice"]),
                }
                for value, row in zip(values, rows, strict=True)
                if value not in ignore_classes
            }
        )

    @classmethod
    def from_model(
        cls,
        emd_path: str | Path,
        data: SegmentationData | None = None,
        **kwargs: Any,
    ) -> UnetClassifier:
        """Make the classifier that a run or a package holds, with how it was trained.

        Of a model of arcgis.learn the classes, the bands, the normalisation and the backbone are
        taken; of its weights what fits, and that is said. Where nothing fits, `fit` begins anew.

        Args:
            emd_path: A run folder, a bundle, or its card; the folder of a package, its `.emd` or
                its `.dlpk`, which is unpacked for as long as the classifier lives; or those of a
                model of arcgis.learn.
            data: To score it on and train it on; None for a net that only predicts.
            **kwargs: As of the class, to change what it was trained with; `backbone` for a net on a
                module of your own.

        Raises:
            BundleError: It is missing or damaged.
            UsageError: A keyword cannot be followed; or the model does not name its backbone.
        """
        opened = open_trained(emd_path, lenient=True)
        if opened.run is None:
            told = opened.foreign.backbone if opened.foreign is not None else ""
            backbone = kwargs.pop("backbone", told)
            if not backbone:
                raise UsageError(f"{emd_path}: it does not name its backbone: say backbone=….")
            return cls(data, backbone, opened, **kwargs)
        card = bundle.load_card(opened.run)
        start = {"model", "pretrained", "pretrained_path", "freeze_epochs", "train_first"}
        kept = SETTINGS - DATA_SETTINGS - start - {"monitor"}
        settings = {name: value for name, value in card.recipe.items() if name in kept}
        if {"focal_loss", "dice_loss_fraction"} & set(kwargs):
            settings.pop("loss", None)
        if "class_balancing" in kwargs:
            settings.pop("class_weights", None)
        ignored = still_ignored(card.classes, data.table) if data is not None else []
        if data is not None and ignored and not {"ignore_classes", "classes"} & set(kwargs):
            settings["ignore_classes"] = ignored
            talk = kwargs.get("talk") or data.talk
            talk.say(f"note     ignore_classes: {ignored}, as it was trained.")
        backbone = kwargs.pop("backbone", card.model)
        return cls(data, backbone, opened, **{**settings, **kwargs})

    @classmethod
    def from_emd(cls, data: SegmentationData | None, emd_path: str | Path) -> UnetClassifier:
        """Do what `from_model` does, with the arguments in the old order."""
        return cls.from_model(emd_path, data)

    def __repr__(self) -> str:
        rests = "" if self.recipe.model in MODELS else f", backbone {self._state()}"
        if self.run is None:
            return f"UnetClassifier({self.recipe.model}{rests}; not trained yet)"
        words = [str(self.run)]
        if "val" in self._known:
            words.append(f"mean IoU {number(self._known['val']['mean_iou']):.4f} on validation")
        return f"UnetClassifier({self.recipe.model}{rests}; {', '.join(words)})"

    def _state(self) -> str:
        return "rests" if self.frozen else "learns"
