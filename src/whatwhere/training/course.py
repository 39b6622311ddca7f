"""What a training needs beside its data: the net, the batches, and a place for the best weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader

from whatwhere import bundle, nets
from whatwhere.config import MODELS, to_dict
from whatwhere.data import doctor
from whatwhere.data.loader import Chips
from whatwhere.data.plan import DataPlan
from whatwhere.data.sources import Split
from whatwhere.errors import UsageError
from whatwhere.losses import balanced_weights
from whatwhere.machine import threads
from whatwhere.nn.build import build_model, geometry
from whatwhere.notation import parse_class_weights
from whatwhere.talk import Talk
from whatwhere.train.clock import Clock
from whatwhere.train.fit import Epoch, History, Weights, fit
from whatwhere.train.growing import half_size
from whatwhere.train.state import States
from whatwhere.types import Geometry

_LONG_EPOCH = 4000  # chips: from so many on, that epochs may be shorter is worth a line


@dataclass(frozen=True)
class Course:
    """A net and what it learns from.

    Attributes:
        plan: Of the data.
        device: Where the net runs.
        workers: Processes that read ahead.
        encoder: A backbone of the user's own, or None.
        arguments: The net's own.
        shape: Its geometry, measured once.
    """

    plan: DataPlan
    device: str
    workers: int
    encoder: Any
    arguments: dict[str, Any]
    shape: Geometry

    @classmethod
    def of(cls, plan: DataPlan, device: str, workers: int = 0, encoder: Any = None) -> Course:
        """Decide about the net, and measure it.

        Raises:
            UsageError: The net cannot be built, or is not for the task; or chips are to be halved
                that are too small for it.
        """
        nets.check_task(plan.recipe, plan.classes.task)
        arguments = nets.net_arguments(plan.recipe, len(plan.loader("train")))
        model = plan.recipe.model if encoder is None else copy.deepcopy(encoder)
        net = build_model(model, len(plan.reader.bands), plan.classes.n_outputs, **arguments)
        course = cls(plan, device, workers, encoder, arguments, geometry(net))
        if plan.recipe.half_size and course.half is None:
            height, width = plan.shape
            raise UsageError(
                f"--half-size {plan.recipe.half_size:g}: chips of {height}×{width} px cannot be "
                f"halved for a net whose sides are multiples of {course.shape.stride} px, two at "
                "the least. Leave it out, or take larger chips."
            )
        return course

    @property
    def half(self) -> tuple[int, int] | None:
        """(height, width) of chips at half the side [px]; None where they are too small."""
        height, width = (self.shape.window(side) for side in self.plan.shape)
        return half_size(height, width, self.shape.stride)

    def net(self, talk: Talk) -> Any:
        """Build the net that the training begins with."""
        plan = self.plan
        return nets.first_net(
            plan.recipe, self.arguments, plan.reader.bands, plan.classes, talk, self.encoder
        )

    def loader(self, split: Split) -> DataLoader[Any]:
        """Return the batches of a split."""
        return self.plan.loader(split, self.workers, self.shape)

    def describe(self) -> dict[str, Any]:
        """What is trained: what a training that goes on must find again, and the threads."""
        return {
            "recipe": to_dict(self.plan.recipe),
            "data": self.plan.contents(),
            "versions": nets.versions(),
            "device": self.device,
            "threads": threads(),
        }

    def tell(self, talk: Talk) -> None:
        """Say what was decided, where it is not what everybody expects."""
        recipe, shape = self.plan.recipe, self.shape
        if recipe.model not in MODELS:
            sees = "the whole tile" if shape.margin is None else f"{shape.margin} px far"
            talk.say(f"net      {recipe.model}: sides of {shape.stride} px; a pixel sees {sees}")
        loader = self.plan.loader("train")
        chips = len(cast(Chips, loader.dataset))
        if 0 < recipe.epoch_chips < chips:
            talk.say(f"training an epoch has {recipe.epoch_chips:,} of {chips:,} chips, by turns")
        elif self.plan.scenes is not None and chips > _LONG_EPOCH:
            talk.say(
                f"training an epoch has {chips:,} chips; --epoch-chips 2000 makes epochs of 2,000, "
                "which take turns"
            )
        if recipe.half_size and self.half is not None:
            talk.say(
                f"training chips have half the side, {self.half[0]}×{self.half[1]} px, in the "
                f"first {recipe.half_size:.0%}"
            )
        steps, usual = len(loader), recipe.bn_momentum
        momentum = self.arguments.get("bn_momentum", usual)
        if momentum != usual:
            talk.say(
                f"training an epoch has {steps} steps: batch norm keeps {momentum:g} of its "
                f"statistics at a step, not {usual:g} (--no-bn-adapt to insist)"
            )

    def fit(
        self,
        output: Path,
        talk: Talk,
        *,
        log: Path | None = None,
        most_batches: int | None = None,
        states: States | None = None,
        state: Mapping[str, Any] | None = None,
        save_minutes: float = 5.0,
        clock: Clock | None = None,
        trial: bool = False,
    ) -> History:
        """Train; the bundle in `output` always holds the best weights so far."""
        plan, classes = self.plan, self.plan.classes
        net = self.net(talk)
        blank = nets.blank_card(plan, net, self.arguments, self.shape)
        asked = copy.deepcopy(net).eval()  # answers the self-test with the weights that are saved

        def keep(weights: Weights, row: Epoch) -> None:
            scores = {"epoch": row.epoch, "val_loss": row.val_loss}
            monitor = plan.recipe.monitor
            if monitor != "loss":
                scores[monitor] = getattr(row, f"val_{monitor}")
            card = blank.replace(scores=scores)
            bundle.save(output / "bundle", nets.tested(card, asked, weights), weights)

        return fit(
            net,
            self.loader("train"),
            self.loader("val"),
            plan.recipe,
            classes.task,
            len(classes),
            on_best=keep,
            talk=talk,
            log=log,
            device=self.device,
            most_batches=most_batches,
            class_weights=class_weights(plan),
            class_names=classes.names,
            states=states,
            state=state,
            of=self.describe() if states is not None else None,
            save_minutes=save_minutes,
            clock=clock,
            trial=trial,
            stride=self.shape.stride,
        )


def class_weights(plan: DataPlan) -> tuple[float, ...]:
    """Return the weight of each class in the loss; empty where the recipe wants none.

    Raises:
        UsageError: There are not as many numbers as classes.
    """
    asked, classes = parse_class_weights(plan.recipe.class_weights), plan.classes
    train = plan.splits["train"]
    if asked == "balanced":
        total = None
        if classes.task == "multilabel":
            total = sum(plan.survey.facts[pair.key].numbers[0].total() for pair in train)
        return balanced_weights(doctor.class_pixels(plan.survey, train, classes), total)
    weights = tuple(weight for weight in asked if isinstance(weight, float))
    if weights and len(weights) != len(classes):
        raise UsageError(
            f"class_weights has {len(weights)} numbers for {len(classes)} classes: give one for "
            f"each of {', '.join(classes.names)}, in this order, or `balanced`."
        )
    return weights
