"""A training of so many minutes: what it tries, takes, divides and says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from made import salt_folder
from told import assert_told, call
from whatwhere import jobs
from whatwhere.config import Recipe, make_recipe
from whatwhere.data.inputs import Inputs
from whatwhere.data.plan import DataPlan, plan_data
from whatwhere.errors import UsageError
from whatwhere.talk import QUIET, Talk
from whatwhere.train.module import Segmentation
from whatwhere.training import timed
from whatwhere.training.timed import Trial, candidates, settle

NONE = frozenset[str]()


class Heard(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    folder = salt_folder(tmp_path_factory.mktemp("data") / "d", count=20, size=(32, 32))
    return plan_data(Inputs(folder), make_recipe("timed", minutes=10.0), QUIET)


@pytest.mark.parametrize(
    ("size", "said", "model", "wanted"),
    [
        ((33, 90), NONE, "", (64, 96)),
        ((32, 64), NONE, "", (32, 64)),
        ((33, 90), frozenset({"chip_size"}), "", (33, 90)),
        ((33, 90), frozenset({"model"}), "tutorial", (33, 90)),
        ((33, 90), frozenset({"model"}), "resnet18", (64, 96)),
        ((40, 300), NONE, "", (256, 256)),
    ],
)
def test_small_images_are_stretched_to_what_is_computed_anyway(
    tmp_path: Path, size: tuple[int, int], said: frozenset[str], model: str, wanted: Any
) -> None:
    folder = salt_folder(tmp_path / "d", count=6, size=size)
    recipe = make_recipe("timed", minutes=10.0, **({"model": model} if model else {}))
    plan = plan_data(Inputs(folder), recipe, QUIET)
    heard = Heard()
    found = timed._fitted(plan, said, timed._size_of_all(plan, said), heard)
    assert found.shape == wanted
    assert [f"{wanted[0]}×{wanted[1]} px" in line for line in heard.lines] == (
        [True] if wanted != plan.shape else []
    )
    for batch in found.loader("val"):
        assert all(a <= b for a, b in zip(batch["image"].shape[-2:], wanted, strict=True))
    assert found.reader.resize == (wanted if wanted != plan.shape else None)
    again = plan_data(Inputs(folder), found.recipe, QUIET)  # as a training that goes on does
    assert again.shape == found.shape and again.contents() == found.contents()


def trial(name: str, recipe: Any, score: float, **more: Any) -> Trial:
    facts = {"steps": 9, "step_seconds": 0.5, "chip_seconds": 0.01, "parameters": 7, "stride": 16}
    return Trial(name, recipe, score=score, **{**facts, **more})


def settled(
    monkeypatch: pytest.MonkeyPatch,
    plan: DataPlan,
    folder: Path,
    scores: list[float],
    recipes: Sequence[Recipe] = (),
    said: frozenset[str] = NONE,
    **more: Any,
) -> tuple[Any, dict[str, Any], list[str]]:
    """What is decided if candidates do like this."""
    names = ["small", "own", "large"][: len(scores)]

    def all_of(recipe: Recipe, *_: Any) -> list[tuple[str, Recipe]]:
        return list(zip(names, recipes or [recipe] * len(names), strict=True))

    monkeypatch.setattr(timed, "candidates", all_of)
    given = iter(scores)

    def tried(name: str, of: Any, *_: Any, **__: Any) -> Trial:
        return trial(name, of[0].recipe, next(given), **more)

    monkeypatch.setattr(timed, "_try", tried)
    heard = Heard()
    found = settle(plan, said, "cpu", 0, None, folder, timed.time.monotonic(), heard)
    return found, json.loads((folder / "report" / "choice.json").read_text()), heard.lines


def test_the_best_candidate_gets_the_rest(
    monkeypatch: pytest.MonkeyPatch, plan: DataPlan, tmp_path: Path
) -> None:
    found, choice, lines = settled(monkeypatch, plan, tmp_path, [0.3, 0.7, 0.5])
    assert [row["chosen"] for row in choice["candidates"]] == [False, True, False]
    assert any("chosen   own: the highest mean IoU (0.700)" in line for line in lines)
    assert "orientation" in choice["found"] and "%" in choice["found"]["training pixels"]
    # 600 s, less the report and twice the validation of 3 chips.
    assert found.clock.seconds == pytest.approx(600 - 6 - 0.06, abs=1)
    assert found.clock.steps == pytest.approx(600 / 0.5, rel=0.1)


def test_one_that_cannot_be_tried_is_named_and_left(
    monkeypatch: pytest.MonkeyPatch, plan: DataPlan, tmp_path: Path
) -> None:
    _, choice, _ = settled(monkeypatch, plan, tmp_path, [0.3, 0.7], error="")
    assert choice["candidates"][1]["chosen"]
    with pytest.raises(UsageError, match="nothing could be trained .*small: too large"):
        settled(monkeypatch, plan, tmp_path, [-1.0], error="too large")


def test_epochs_and_validations_fit_the_time(
    monkeypatch: pytest.MonkeyPatch, plan: DataPlan, tmp_path: Path
) -> None:
    """A step of 15 s: an epoch is 3 of them, and no more chips are judged than it takes."""
    found, _, _ = settled(monkeypatch, plan, tmp_path, [0.3], step_seconds=15.0, chip_seconds=1.0)
    recipe = found.plan.recipe
    assert recipe.epoch_chips == 0 and recipe.val_chips == 0  # 14 chips are fewer than 3 batches
    with pytest.raises(UsageError, match=r"scoring 3 validation chips takes .* s of them"):
        settled(monkeypatch, plan, tmp_path, [0.3], step_seconds=400.0, chip_seconds=60.0)


@pytest.mark.parametrize(
    ("rival", "pace", "wins"), [(0.45, 0.5, True), (0.55, 0.5, False), (0.45, 10.0, False)]
)
def test_what_was_trained_before_wins_unless_another_is_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
    plan: DataPlan,
    tmp_path: Path,
    rival: float,
    pace: float,
    wins: bool,
) -> None:
    """Also where too few steps are left for it to pay off: of 10 s each there are 60."""
    learned = make_recipe(plan.recipe, model="resnet34")
    bare = make_recipe(learned, pretrained=False)
    _, choice, lines = settled(
        *(monkeypatch, plan, tmp_path, [0.4, rival, 0.3]),
        recipes=[learned, plan.recipe, bare],
        step_seconds=pace,
    )
    assert [row["chosen"] for row in choice["candidates"]] == [wins, not wins, False]
    assert any("trained before" in line for line in lines) is wins


def test_without_weights_at_hand_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise UsageError(f"{name} cannot be fetched.")

    monkeypatch.setattr("whatwhere.nets.fetch_weights", missing)
    heard = Heard()
    recipe = make_recipe("timed", minutes=5.0)
    found = candidates(recipe, NONE, None, heard)
    assert [name for name, _ in found] == ["tutorial, from scratch", "resnet34, from scratch"]
    assert not found[1][1].pretrained
    assert [one.decoder_channels for _, one in found] == ["", timed.DECODER]
    said = make_recipe("timed", decoder_channels="64,48,32,24,16", model="resnet34")
    (found_too,) = candidates(said, frozenset({"decoder_channels"}), None, QUIET)[1:]
    assert found_too[1].decoder_channels == said.decoder_channels
    assert sum("has no pretrained weights here" in line for line in heard.lines) == 2
    monkeypatch.setattr("whatwhere.nets.fetch_weights", lambda _name: Path("w"))
    found = candidates(recipe, NONE, None, heard)
    assert [name for name, _ in found] == [
        *("tf_efficientnet_lite0, pretrained", "tutorial, from scratch", "resnet34, pretrained")
    ]
    asked = make_recipe("timed", model="tutorial", minutes=5.0)
    assert candidates(asked, frozenset({"model"}), None, heard) == [("tutorial", asked)]


def test_nets_from_scratch_see_chips_of_large_images_halved_at_first(
    monkeypatch: pytest.MonkeyPatch, plan: DataPlan, tmp_path: Path
) -> None:
    """Not those that were trained before, nor where something else is asked or chips are small."""

    def halved(*said: str, large: bool = True, **settings: Any) -> tuple[float, int]:
        recipes = [make_recipe(plan.recipe, batch_size=1, **settings)]
        pace: dict[str, Any] = {"recipes": recipes, "step_seconds": 15.0, "large": large}
        pace["said"] = frozenset(("chip_size", *said))  # so they are not seen whole
        found, choice, _ = settled(monkeypatch, plan, tmp_path, [0.5], **pace)
        recipe = found.plan.recipe
        told = f"chips of half the side, in {recipe.half_size:.0%} of the time"
        assert choice["plan"].get("at first") == (told if recipe.half_size else None)
        assert found.plan.shape == plan.shape
        return recipe.half_size, recipe.epoch_chips

    assert halved() == (0.6, 7)  # an epoch of 3 steps would be so long at the full side
    assert halved("half_size") == (0.0, 3)
    assert halved("half_size", half_size=0.25) == (0.25, 4)
    assert halved(large=False) == (0.0, 3)
    assert halved(stop_patience=5) == (0.0, 3)
    assert halved(model="resnet18", pretrained=False) == (0.6, 7)
    assert halved(model="resnet18") == (0.0, 3)
    assert halved(pretrained_path="run") == (0.0, 3)
    assert halved(model="unet2015", n_filters=64, dropout=0.5) == (0.0, 3)


def test_nets_from_scratch_see_whole_images_shrunk_where_time_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that they see each of the 14 some 30 times; 600 s are 600 / pace / 14 passes."""
    folder = salt_folder(tmp_path / "d", count=20, size=(101, 190))
    plan = plan_data(Inputs(folder), make_recipe("timed", minutes=10.0, batch_size=1), QUIET)
    model = frozenset({"model"})

    def shrunk(pace: float, said: frozenset[str] = model, **settings: Any) -> Any:
        own = make_recipe(plan.recipe, **settings)
        given = dataclasses.replace(plan, recipe=own)
        fitted = own if "model" in said else make_recipe(own, resize=(128, 192))
        stride = 16 if own.model == "tutorial" else 32
        more: dict[str, Any] = {"recipes": [fitted], "step_seconds": pace, "stride": stride}
        found, choice, lines = settled(monkeypatch, given, tmp_path, [0.5], said=said, **more)
        size, recipe = found.plan.shape, found.plan.recipe
        assert any(f"shrunk to {size[0]}×{size[1]} px" in line for line in lines) is (
            recipe.resize != "" and size[0] < 101
        )
        assert choice["found"]["chips"].startswith(f"{size[0]}×{size[1]} px")
        assert recipe.half_size == 0.0 and "at first" not in choice["plan"]
        again = plan_data(Inputs(folder), recipe, QUIET)  # as a training that goes on does
        assert again.shape == size and again.contents() == found.plan.contents()
        return size, found.clock.steps

    assert shrunk(1.4)[0] == (101, 190)  # 30 passes
    size, steps = shrunk(4.0)
    assert size == (64, 112)  # 11 passes: by 0.59
    assert steps == pytest.approx(0.93 * 594 / 4.0 * 112 * 192 / (64 * 112), rel=0.05)
    assert shrunk(40.0)[0] == (48, 80)  # by no more than 0.45
    assert shrunk(4.0, model | {"half_size"})[0] == (101, 190)
    assert shrunk(4.0, model, pretrained_path="run")[0] == (101, 190)
    assert shrunk(4.0, NONE, model="resnet18", pretrained=False)[0] == (64, 128)  # was 128×192
    assert shrunk(4.0, NONE, model="resnet18")[0] == (128, 192)


@pytest.mark.parametrize(("side", "wanted"), [(64, True), (48, False)])
def test_a_trial_tells_whether_chips_can_be_halved(
    tmp_path: Path, side: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sees them at their whole side itself, whose pace the rest is planned by."""
    seen: list[int] = []
    answers = Segmentation._answers

    def watched(self: Any, image: Any) -> Any:
        seen.append(image.shape[-1])
        return answers(self, image)

    monkeypatch.setattr(Segmentation, "_answers", watched)
    folder = salt_folder(tmp_path / "d", count=12, size=(side, side))
    recipe = make_recipe("timed", model="tutorial", n_filters=2, batch_size=4, half_size=0.6)
    found = plan_data(Inputs(folder), recipe, QUIET)
    tried = timed._try("own", (found, "cpu", 0, None), tmp_path / "run", 0.5, QUIET, first=False)
    assert tried.large is wanted and set(seen) <= {side}
    assert tried.error or tried.stride == 16
    assert ("cannot be halved" in tried.error) is not wanted


def test_a_recipe_of_ones_own_says_itself_whether_chips_are_halved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[frozenset[str]] = []
    monkeypatch.setattr(
        "whatwhere.training.run.train_run", lambda *_, said, **__: heard.append(said)
    )
    own = make_recipe("timed", half_size=0.25)
    for recipe in (None, "timed", own):
        jobs.train(tmp_path, tmp_path / "run", minutes=1.0, recipe=recipe)
    assert ["half_size" in said for said in heard] == [False, False, True]


def test_large_chips_come_in_smaller_batches(plan: DataPlan) -> None:
    large = dataclasses.replace(plan, shape=(256, 256))
    assert timed._paced(large, NONE, "cpu").batch_size == 8
    middle = dataclasses.replace(plan, shape=(128, 128))
    assert timed._paced(middle, NONE, "cpu").batch_size == 16
    for said, device in ((frozenset({"batch_size"}), "cpu"), (NONE, "cuda")):
        assert timed._paced(large, said, device) == plan.recipe
    assert timed._paced(plan, NONE, "cpu").batch_size == plan.recipe.batch_size


def test_the_report_says_how_chips_are_changed(plan: DataPlan) -> None:
    def told(**settings: Any) -> str:
        recipe = make_recipe("timed", **settings)
        return timed._changes(dataclasses.replace(plan, recipe=recipe))

    assert told() == "left-right flips"
    assert told(scale=0.1, rotate=5.0) == "left-right flips, rotate 5, scale 0.1"
    assert told(augment=False) == "none"
    assert told(flip=0.0, mixup=0.4) == "mixup 0.4"
    above = dataclasses.replace(plan, recipe=make_recipe("timed", orientation="free"))
    assert timed._changes(above) == "all eight symmetries"
    oblong = dataclasses.replace(above, shape=(32, 64))
    assert timed._changes(oblong) == "flips in both directions"


def test_minutes_from_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drawing: Any
) -> None:
    """A run of three seconds has a choice, a first picture, a tuned threshold, its recipe."""
    monkeypatch.setattr(timed, "CANDIDATES", ("tutorial",))
    monkeypatch.setattr(timed, "_LEAST_RACE", 0.3)
    monkeypatch.setattr(timed, "_REPORT", 0.5)
    data = salt_folder(tmp_path / "d", count=20, size=(32, 32))
    run = tmp_path / "run"
    with drawing():
        done = call("train", data, "-o", run, "--minutes", 0.1, "--n-filters", 2, "--batch-size", 4)
    assert_told(done, 0, "trying   tutorial", "minutes were over", "tuned    ")
    assert (run / "report" / "first.png").stat().st_size > 1000
    card = json.loads((run / "bundle" / "bundle.json").read_text())["card"]
    assert card["tuning"]["metric"] == "mean_iou" and card["recipe"]["minutes"] == 0.1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h2>Choice</h2>" in page and "tutorial, from scratch" in page
    again = call("train", data, "-o", run, "--resume")
    assert_told(again, 2, "this training is finished")


def test_a_choice_that_was_not_followed_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timed, "CANDIDATES", ("tutorial",))
    monkeypatch.setattr(timed, "_LEAST_RACE", 0.3)
    data = salt_folder(tmp_path / "d", count=20, size=(32, 32))
    words = ("--minutes", 0.01, "--n-filters", 2)
    done = call("train", data, "-o", tmp_path / "run", *words)
    assert_told(done, 2, "Allow more")
    assert not (tmp_path / "run").exists()
    assert jobs.train(
        data, tmp_path / "run", minutes=1.0, n_filters=2, model="tutorial", dry_run=True,
        talk=QUIET,
    ) is None  # fmt: skip
    assert not (tmp_path / "run").exists()
