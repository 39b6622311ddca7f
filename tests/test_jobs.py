"""The main job from end to end, on a small trained run."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forks import Forks
from made import blocks_folder, labels_folder, salt_folder, snapshot
from whatwhere import jobs
from whatwhere.bundle import load, load_card
from whatwhere.config import make_recipe
from whatwhere.data.plan import plan_data
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.predict.engine import Predictor
from whatwhere.runs import split_keys
from whatwhere.talk import Talk
from whatwhere.training.course import class_weights

QUIET = Talk(quiet=True)
SMALL: dict[str, Any] = {"n_filters": 4, "batch_size": 4, "bn_momentum": 0.8, "talk": QUIET}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salt_folder(tmp_path_factory.mktemp("salt"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs; tests that change it work on a copy."""
    path = tmp_path_factory.mktemp("runs") / "run"
    jobs.train(data, path, epochs=3, lr=3e-3, **SMALL)
    return path


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, tmp_path / "own"))


def test_a_run_holds_what_is_promised(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    wanted = {"bundle/bundle.json", "log.csv", "report.html", "recipe.toml", "splits.json"}
    assert wanted <= names
    assert not [name for name in names if "rehearsal" in name or name.endswith(".tmp")]
    assert not [name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".pkl"))]


def test_the_log_has_a_line_for_each_epoch_and_the_best_is_kept(run: Path) -> None:
    with open(run / "log.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    losses = [float(row["val_loss"]) for row in rows]
    card = load_card(run)
    assert card.scores["epoch"] == 1 + int(np.argmin(losses))
    assert card.scores["val_loss"] == pytest.approx(min(losses))
    assert float(rows[0]["train_loss"]) > float(rows[-1]["train_loss"]) > 0


def test_the_bundle_gives_the_validation_loss_that_was_logged(run: Path, data: Path) -> None:
    predictor = Predictor.open(run)
    total, pixels = 0.0, 0
    for key in split_keys(run, "val"):
        with Image.open(data / "images" / f"{key}.png") as image:
            p = predictor.probabilities(np.asarray(image)[None])[0].astype(np.float64)
        with Image.open(data / "masks" / f"{key}.png") as mask:
            truth = np.asarray(mask) > 0
        total -= float(np.log(np.where(truth, p, 1 - p)).sum())
        pixels += truth.size
    assert total / pixels == pytest.approx(load_card(run).scores["val_loss"], rel=1e-4)


def test_two_runs_with_one_seed_are_equal_bit_for_bit(
    data: Path, run: Path, tmp_path: Path
) -> None:
    jobs.train(data, tmp_path / "again", epochs=3, lr=3e-3, **SMALL)
    first, second = load(run).weights, load(tmp_path / "again").weights
    assert all(np.array_equal(first[name], second[name]) for name in first)
    jobs.train(data, tmp_path / "other", epochs=1, lr=3e-3, seed=7, **SMALL)
    other = load(tmp_path / "other").weights
    assert not np.array_equal(first["c1.layers.0.weight"], other["c1.layers.0.weight"])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks as POSIX does")
def test_twenty_runs_with_one_seed_have_one_hash(tmp_path: Path) -> None:
    """Whatever else differs: the process, the order of its sets, the number of workers."""
    data = salt_folder(tmp_path / "data", 10, (32, 32))
    hashes: dict[tuple[int, int], list[str]] = {}
    for order in ("1", "2"):
        forks = Forks(PYTHONHASHSEED=order)
        plan = [(1, 0)] * 8 + [(1, 1), (1, 2), (2, 0)]
        for i, (seed, workers) in enumerate(plan):
            run = tmp_path / f"run {order} {i}"
            settings = {"epochs": 2, "batch_size": 2, "n_filters": 4, "seed": seed}
            ended = forks.run(job="train", data=data, run=run, settings=settings, workers=workers)
            assert ended["code"] == 0
            head = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))
            hashes.setdefault((seed, workers), []).append(head["weights"]["sha256"])
        forks.close()
    ours = [one for (seed, _), found in hashes.items() if seed == 1 for one in found]
    assert len(ours) == 20 and len(set(ours)) == 1
    (other,) = set(hashes[2, 0])
    assert other not in ours


def test_the_recipe_of_a_run_repeats_it(run: Path, data: Path, tmp_path: Path) -> None:
    jobs.train(data, tmp_path / "again", recipe=run / "recipe.toml", talk=QUIET)
    first, second = load(run), load(tmp_path / "again")
    assert first.card.recipe == second.card.recipe
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)


@pytest.mark.parametrize("name", ["recipe.toml", "report.html", "log.csv"])
def test_a_file_of_the_users_is_not_overwritten(name: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=f"{name} would be overwritten"):
        jobs.train(data, tmp_path, **SMALL)
    assert snapshot(tmp_path) == {name: b"mine"}


def test_a_run_is_not_put_among_the_data(data: Path) -> None:
    with pytest.raises(UsageError, match="this lies among the data"):
        jobs.train(data, data / "images" / "run", **SMALL)


def test_validation_pixels_that_do_not_count_are_told(tmp_path: Path) -> None:
    folder = blocks_folder(tmp_path / "data", [(32, 32)] * 8, n_classes=2)
    whole = tmp_path / "split"
    for i, path in enumerate(sorted((folder / "images").iterdir())):
        part = whole / ("train" if i < 6 else "val")
        for place in ("images", "masks"):
            (part / place).mkdir(parents=True, exist_ok=True)
            (part / place / path.name).write_bytes((folder / place / path.name).read_bytes())
        if i >= 6:
            ignored = np.full((32, 32), 9, dtype=np.uint8)
            Image.fromarray(ignored).save(part / "masks" / path.name)
    with pytest.raises(DataError, match="no pixel of the validation masks counts"):
        jobs.train(whole, tmp_path / "run", classes="0=background,1=a,9=ignore", **SMALL)


def test_the_rate_finder_finds_a_rate_that_trains_better_than_a_hundredth_of_it(
    data: Path, tmp_path: Path, drawing: Any
) -> None:
    before = snapshot(data)
    with drawing():
        found = jobs.lr_find(data, picture=tmp_path / "lr.png", **SMALL)
    assert snapshot(data) == before
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
    with Image.open(tmp_path / "lr.png") as picture:
        assert np.asarray(picture).std() > 0
    assert found["lrs"] == pytest.approx(np.geomspace(1e-7, 1, 100)[: len(found["lrs"])])
    assert len(found["losses"]) == len(found["lrs"])
    json.dumps(found, allow_nan=False)
    losses = []
    for share in (1, 0.01):
        out = tmp_path / f"run {share}"
        jobs.train(data, out, epochs=3, lr=share * found["suggestion"], **SMALL)
        with open(out / "log.csv", encoding="utf-8", newline="") as stream:
            losses.append(float(list(csv.DictReader(stream))[-1]["train_loss"]))
    assert losses[0] < losses[1]


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_steps_that_wait_for_their_data_are_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    lines: list[str] = []

    class Heard(Talk):
        def say(self, text: str = "") -> None:
            lines.append(text)

    monkeypatch.setattr("whatwhere.train.callbacks.Waiting.share", share)
    jobs.train(data, tmp_path / "run", epochs=1, **{**SMALL, "talk": Heard(quiet=True)})
    told = [line for line in lines if "waiting for data" in line]
    assert len(told) == (share > 0.1)
    assert all("50% of the time of the steps" in line and "--workers" in line for line in told)


def test_class_weights_are_counted_on_the_training_split(tmp_path: Path) -> None:
    """Each one is the square root of a ratio of pixels, counted here with Pillow."""
    folder = blocks_folder(tmp_path / "blocks", [(32, 32)] * 8)
    plan = plan_data(folder, make_recipe(class_weights="balanced"), QUIET)
    masks = [np.asarray(Image.open(pair.masks[0])) for pair in plan.splits["train"]]
    pixels = np.bincount(np.concatenate(masks).ravel())
    weights = np.array(class_weights(plan))
    np.testing.assert_allclose((weights / weights[0]) ** 2, pixels[0] / pixels)
    assert weights.mean() == pytest.approx(1)

    folder = labels_folder(tmp_path / "labels")
    plan = plan_data(folder, make_recipe(class_weights="balanced"), QUIET)
    train = plan.splits["train"]
    planes = [np.stack([np.asarray(Image.open(m)) > 0 for m in pair.masks]) for pair in train]
    share = np.stack(planes).mean((0, 2, 3))
    np.testing.assert_allclose(np.array(class_weights(plan)) ** 2, (1 - share) / share)

    with pytest.raises(UsageError, match="3 numbers for 2 classes: .* bright, left, in this order"):
        jobs.train(folder, tmp_path / "run", class_weights="1,2,3", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_training_with_every_setting_goes_through(tmp_path: Path) -> None:
    folder = blocks_folder(tmp_path / "data", [(32, 32)] * 10)
    settings: dict[str, Any] = {
        **{"loss": "dice+0.5*focal", "class_weights": (1, 2, 3), "optimizer": "adamw"},
        **{"weight_decay": 0.01, "schedule": "cosine", "accumulate": 2, "clip": 1.0, "ema": 0.2},
        **{"precision": "bf16", "stop_patience": 0, "epochs": 3, "lr": 0.01},
    }
    jobs.train(folder, tmp_path / "run", **{**SMALL, "batch_size": 2}, **settings)
    with open(tmp_path / "run" / "log.csv", encoding="utf-8", newline="") as stream:
        rates = [float(row["lr"]) for row in csv.DictReader(stream)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.005 > rates[-1] > 0
    assert jobs.evaluate(tmp_path / "run", folder, talk=QUIET)["images"] > 0


def test_a_dry_run_leaves_nothing_and_tells_the_cost(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SMALL, "talk": Talk()}
    assert jobs.train(data, tmp_path / "run", epochs=3, dry_run=True, **settings) is None
    assert not (tmp_path / "run").exists()
    told = capsys.readouterr().err
    assert re.search(
        r"rehearsal passed: about .* an epoch, at most .* .epochs: 3.; .*MB.*disk", told
    )


def test_a_folder_with_a_run_is_not_written_into(own_run: Path, data: Path) -> None:
    before = snapshot(own_run)
    with pytest.raises(UsageError, match=r"a run is in this folder\. Take another one"):
        jobs.train(data, own_run, **SMALL)
    assert snapshot(own_run) == before


def test_bad_data_is_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = salt_folder(tmp_path / "data", 6)
    (folder / "masks" / "s01.png").unlink()
    (folder / "images" / "s02.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"2 errors in the data") as caught:
        jobs.train(folder, tmp_path / "run", **SMALL)
    assert {Path(problem.file).name for problem in caught.value.problems} == {"s01.png", "s02.png"}
    assert not (tmp_path / "run").exists()


def test_evaluation_scores_the_test_split_of_its_own_data(run: Path, data: Path) -> None:
    scores = jobs.evaluate(run, data, talk=QUIET)
    assert scores["on"] == "the run's own test split"
    assert scores["images"] == len(split_keys(run, "test")) == 3
    assert set(scores) >= {
        *("classes", "mean_iou", "mean_iou_images", "pixel_accuracy", "threshold", "images"),
    }
    keys = {"name", "value", "iou", "dice", "precision", "recall", "support"}
    assert [set(row) for row in scores["classes"]] == [keys, keys]
    assert scores["threshold"] == 0.5
    assert sum(row["support"] for row in scores["classes"]) == 3 * 48 * 48
    json.dumps(scores, allow_nan=False)


def test_evaluation_counts_what_plain_numpy_counts(run: Path, data: Path) -> None:
    predictor = Predictor.open(run)
    hits = false = missed = rest = 0
    for key in split_keys(run, "test"):
        with Image.open(data / "images" / f"{key}.png") as image:
            said = predictor.probabilities(np.asarray(image)[None])[0] >= 0.5
        with Image.open(data / "masks" / f"{key}.png") as mask:
            truth = np.asarray(mask) == 255
        hits += int((said & truth).sum())
        false += int((said & ~truth).sum())
        missed += int((~said & truth).sum())
        rest += int((~said & ~truth).sum())
    scores = jobs.evaluate(run, data, talk=QUIET)
    back, salt = scores["classes"]
    assert salt["iou"] == pytest.approx(hits / (hits + false + missed))
    assert back["iou"] == pytest.approx(rest / (rest + false + missed))
    assert salt["recall"] == pytest.approx(hits / (hits + missed))
    assert scores["pixel_accuracy"] == pytest.approx((hits + rest) / (3 * 48 * 48))


def test_symmetries_are_looked_at_where_it_is_asked_for(
    run: Path, data: Path, tmp_path: Path
) -> None:
    """The tutorial's sections are upright: left-right flips."""
    shutil.copytree(run, tmp_path / "run")
    own, folder = tmp_path / "run", data / "images"
    plain, looked = (jobs.evaluate(own, data, tta=tta, talk=QUIET) for tta in (False, True))
    assert plain["mean_iou"] != looked["mean_iou"]
    kept = (own / "report" / "test.json").read_bytes()
    jobs.evaluate(own, data, tta=True, talk=QUIET)
    assert (own / "report" / "test.json").read_bytes() == kept
    jobs.predict(own, folder, tmp_path / "out", probabilities=True, tta=True, talk=QUIET)
    name = f"{split_keys(run, 'test')[0]}.png"
    with Image.open(folder / name) as file:
        image = np.asarray(file)[None]
    predictor = Predictor.open(own)
    mirrored = predictor.probabilities(image[..., ::-1])[..., ::-1]
    mean = (predictor.probabilities(image) + mirrored)[0] / 2
    with Image.open(tmp_path / "out" / "probabilities" / name) as file:
        np.testing.assert_allclose(np.asarray(file) / 65535, mean, atol=1e-5)
    found = jobs.tune(own, data, tta=True, talk=QUIET)
    assert jobs.tune(own, data, talk=QUIET)["labels"] != found["labels"]


def test_other_data_is_scored_whole_and_a_part_can_be_chosen(
    run: Path, data: Path, tmp_path: Path
) -> None:
    other = salt_folder(tmp_path / "other", 4, seed=99)
    assert jobs.evaluate(run, other, talk=QUIET)["images"] == 4
    assert jobs.evaluate(run, data, part="all", talk=QUIET)["images"] == 20
    assert jobs.evaluate(run, data, part="val", talk=QUIET)["images"] == 3


def test_a_runs_bundle_given_for_the_run_is_not_scored_on_its_training(
    run: Path, data: Path
) -> None:
    assert jobs.evaluate(run / "bundle", data, talk=QUIET)["images"] == 3


def test_images_seen_in_training_are_not_scored_by_mistake(
    run: Path, data: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    for key in split_keys(run, "train")[:2]:
        for place in ("images", "masks"):
            (seen / place).mkdir(parents=True, exist_ok=True)
            (seen / place / f"{key}.png").write_bytes((data / place / f"{key}.png").read_bytes())
    with pytest.raises(DataError, match="the run has seen every pair of this data"):
        jobs.evaluate(run, seen, talk=QUIET)


def test_a_bundle_without_its_run_is_not_scored_on_its_training_by_mistake(
    run: Path, data: Path, tmp_path: Path
) -> None:
    import shutil

    alone = shutil.copytree(run / "bundle", tmp_path / "alone")
    with pytest.raises(DataError, match="the net was trained on this data.*Give the run folder"):
        jobs.evaluate(alone, data, talk=QUIET)
    assert jobs.evaluate(alone, data, part="all", talk=QUIET)["images"] == 20
    other = salt_folder(tmp_path / "other", 3, seed=99)
    assert "not known" in jobs.evaluate(alone, other, talk=QUIET)["on"]
    dealt = tmp_path / "dealt"
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        salt_folder(dealt / part, count, seed=count)
    tried = jobs.train(dealt, tmp_path / "run", **SMALL)
    assert tried is not None
    own = shutil.copytree(tmp_path / "run" / "bundle", tmp_path / "own")
    assert jobs.evaluate(own, dealt, talk=QUIET)["on"].startswith("the folder test/")


def test_a_folder_below_a_run_is_not_the_run(run: Path, own_run: Path, data: Path) -> None:
    import shutil

    below = own_run / "backup" / "old"
    shutil.copytree(run / "bundle", below)
    before = snapshot(own_run / "bundle")
    jobs.tune(below, salt_folder(own_run.parent / "other", 4, seed=98), talk=QUIET)
    assert snapshot(own_run / "bundle") == before


def test_tuning_keeps_the_best_threshold(own_run: Path, data: Path) -> None:
    weights = sorted((own_run / "bundle").glob("*.safetensors"))
    found = jobs.tune(own_run, data, metric="iou", talk=QUIET)
    row = found["labels"]["foreground"]
    assert found["on"] == "the run's own validation split"
    assert load_card(own_run).thresholds == (row["threshold"],)
    assert sorted((own_run / "bundle").glob("*.safetensors")) == weights
    at_best = jobs.evaluate(own_run, data, part="val", talk=QUIET)
    at_half = jobs.evaluate(own_run, data, part="val", threshold=0.5, talk=QUIET)
    assert at_best["threshold"] == row["threshold"]
    assert at_best["classes"][1]["iou"] == pytest.approx(row["value"])
    assert at_half["classes"][1]["iou"] == pytest.approx(row["at_half"])
    for threshold in np.linspace(0.05, 0.95, 7):
        other = jobs.evaluate(own_run, data, part="val", threshold=float(threshold), talk=QUIET)
        assert (other["classes"][1]["iou"] or 0.0) <= row["value"] + 1e-12
    assert f"{row['threshold']:g}" in (own_run / "report.html").read_text(encoding="utf-8")


def test_predicted_masks_hold_class_values_at_the_images_size(run: Path, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (7, 93), (48, 48), (101, 64)]
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(images / f"i{i}.png")
    written = jobs.predict(
        run, images, tmp_path / "out", probabilities=True, overlay=True,
        table=tmp_path / "areas.csv", talk=QUIET,
    )  # fmt: skip
    assert len(written) == 4
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        f"i{i}.png" for i in range(4)
    ]
    for i, size in enumerate(sizes):
        with Image.open(tmp_path / "out" / f"i{i}.png") as mask:
            assert mask.mode == "P"
            assert (mask.height, mask.width) == size
            values = np.asarray(mask)
        with Image.open(tmp_path / "out" / "probabilities" / f"i{i}.png") as picture:
            assert picture.mode == "I;16"
            probability = np.asarray(picture) / 65535
        with Image.open(tmp_path / "out" / "overlays" / f"i{i}.png") as picture:
            assert (picture.height, picture.width, picture.mode) == (*size, "RGB")
        assert set(np.unique(values)) <= {0, 1}
        clear = np.abs(probability - 0.5) > 1 / 65535
        assert np.array_equal(values[clear] == 1, probability[clear] >= 0.5)
    rows = (tmp_path / "areas.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "image,class,pixels,share"
    assert len([row for row in rows if row]) == 1 + 4 * 2


def test_a_threshold_on_the_command_line_goes_before_the_bundles(
    run: Path, data: Path, tmp_path: Path
) -> None:
    source = data / "images" / "s00.png"
    shares = []
    for threshold in (0.0, 0.5, 1.0):
        out = tmp_path / f"{threshold}.png"
        jobs.predict(run, source, out, threshold=threshold, talk=QUIET)
        with Image.open(out) as mask:
            shares.append(float(np.asarray(mask).mean()))
    assert shares[0] == 1.0
    assert shares[0] >= shares[1] >= shares[2]
    assert shares[2] < 1


def test_a_data_folder_given_to_predict_means_its_images(
    run: Path, data: Path, tmp_path: Path
) -> None:
    written = jobs.predict(run, data, tmp_path / "out", talk=QUIET)
    assert len(written) == 20


def test_equal_stems_keep_their_folders(run: Path, data: Path, tmp_path: Path) -> None:
    source = (data / "images" / "s00.png").read_bytes()
    for place in ("a/x.png", "b/x.png", "b/y.png"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / place).write_bytes(source)
    jobs.predict(run, tmp_path / "in", tmp_path / "out", talk=QUIET)
    names = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    }
    assert names == {"a/x.png", "b/x.png", "y.png"}


def test_masks_do_not_overwrite_images(run: Path, data: Path, tmp_path: Path) -> None:
    folder = salt_folder(tmp_path / "data", 2)
    before = snapshot(folder)
    with pytest.raises(UsageError, match=r"s00.png: this would overwrite an image"):
        jobs.predict(run, folder / "images", folder / "images", talk=QUIET)
    for images in (folder / "images", data / "images"):  # its own, and another set's
        with pytest.raises(UsageError, match=r"this lies among the masks of a data set"):
            jobs.predict(run, images, folder / "masks", talk=QUIET)
    table = folder / "images" / "s01.png"
    with pytest.raises(UsageError, match=r"s01.png: this would overwrite an image"):
        jobs.predict(run, folder, folder / "out", table=table, talk=QUIET)
    assert snapshot(folder) == before


def test_a_bad_image_among_good_ones_is_named_and_the_rest_is_done(
    run: Path, tmp_path: Path
) -> None:
    folder = salt_folder(tmp_path / "data", 3) / "images"
    (folder / "s01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 3 images could not be segmented(.|\n)*s01.png"):
        jobs.predict(run, folder, tmp_path / "out", talk=QUIET)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s00.png", "s02.png"]


def test_images_of_other_bands_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    color = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(color).save(tmp_path / "color.png")
    with pytest.raises(DataError, match=r"  \S+color.png: the bands grey are wanted, the image"):
        jobs.predict(run, tmp_path / "color.png", tmp_path / "out.png", talk=QUIET)
    Image.fromarray(color[..., :1].repeat(3, -1)).save(tmp_path / "grey.png")
    jobs.predict(run, tmp_path / "grey.png", tmp_path / "out.png", talk=QUIET)


def test_data_of_other_classes_is_refused_with_a_table(run: Path, tmp_path: Path) -> None:
    other = blocks_folder(tmp_path / "other", [(40, 40)] * 2, n_classes=3)
    with pytest.raises(DataError, match="the class table does not know 2") as caught:
        jobs.evaluate(run, other, talk=QUIET)
    lines = [line.split() for line in str(caught.value).splitlines()[-2:]]
    assert lines[0] == ["of", "the", "bundle", "in", "the", "masks"]
    assert lines[1] == [
        "classes",
        "0",
        "background,",
        "1/255/65535",
        "foreground",
        *["0,", "1,", "2"],
    ]


def test_missing_things_are_told(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nothing"):
        jobs.predict(run, tmp_path / "nothing", tmp_path / "out", talk=QUIET)
    with pytest.raises(BundleError, match=r"there is no such folder. Give a run folder"):
        jobs.predict(tmp_path / "norun", data, tmp_path / "out", talk=QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no image in"):
        jobs.predict(run, tmp_path / "empty", tmp_path / "out", talk=QUIET)


def test_tiles_show_no_seam(run: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (1, 330, 420), dtype=np.uint8)
    whole = Predictor.open(run, tile=1024).probabilities(image)
    tiled = Predictor.open(run, tile=288).probabilities(image)
    assert np.abs(whole - tiled).max() < 1e-5


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_run_folder_that_cannot_be_written_is_told_at_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot"):
        jobs.train(data, tmp_path / "locked" / "run", **SMALL)


def test_several_classes_and_sizes(tmp_path: Path) -> None:
    data = blocks_folder(tmp_path / "data", [(40, 56), (64, 33), (30, 30), (90, 50), (48, 48)] * 2)
    run = jobs.train(data, tmp_path / "run", epochs=6, chip_size=32, lr=1e-2, **SMALL)
    assert run is not None
    assert run.card.classes.task == "multiclass"
    assert run.card.thresholds == ()
    scores = jobs.evaluate(run.path, data, talk=QUIET)
    assert scores["threshold"] is None
    assert [row["name"] for row in scores["classes"]] == ["background", "class 1", "class 2"]
    assert scores["mean_iou"] > 0.5
    with pytest.raises(UsageError, match="takes the most likely one and has no threshold"):
        jobs.tune(run.path, data, talk=QUIET)
    with pytest.raises(UsageError, match="no --threshold"):
        jobs.predict(run.path, data, tmp_path / "out", threshold=0.4, talk=QUIET)
    jobs.predict(run.path, data, tmp_path / "out", probabilities=True, talk=QUIET)
    planes = [
        np.asarray(Image.open(path)).astype(np.int64)
        for path in sorted((tmp_path / "out" / "probabilities").glob("*/b00.png"))
    ]
    assert len(planes) == 3
    assert np.abs(np.sum(planes, axis=0) - 65535).max() <= 2


def test_several_labels_have_a_threshold_each(tmp_path: Path) -> None:
    data = labels_folder(tmp_path / "data")
    run = jobs.train(data, tmp_path / "run", epochs=4, lr=1e-2, orientation="free", **SMALL)
    assert run is not None
    assert run.card.classes.task == "multilabel"
    tuned = jobs.tune(run.path, data, metric="dice", talk=QUIET)
    assert set(tuned["labels"]) == {"bright", "left"}
    scores = jobs.evaluate(run.path, data, talk=QUIET)
    assert scores["threshold"] == {name: row["threshold"] for name, row in tuned["labels"].items()}
    jobs.predict(run.path, data, tmp_path / "out", threshold="bright=0.3,left=0.6", talk=QUIET)
    assert (tmp_path / "out" / "bright" / "m00.png").exists()
    assert (tmp_path / "out" / "left" / "m00.png").exists()
    with pytest.raises(UsageError, match="each into a folder of its own"):
        jobs.predict(run.path, data / "images" / "m00.png", tmp_path / "one.png", talk=QUIET)
    with pytest.raises(UsageError, match="a number is needed for bright, left"):
        jobs.predict(run.path, data, tmp_path / "out", threshold="bright=0.3", talk=QUIET)


def test_resized_runs_give_masks_of_the_images_size(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 8, size=(48, 60))
    run = jobs.train(data, tmp_path / "run", epochs=1, resize=32, **SMALL)
    assert run is not None
    assert run.card.resize == (32, 32)
    jobs.predict(run.path, data, tmp_path / "out", talk=QUIET)
    with Image.open(tmp_path / "out" / "s00.png") as mask:
        assert mask.size == (60, 48)
    assert jobs.evaluate(run.path, data, part="all", talk=QUIET)["images"] == 8


def test_inspection_lists_all_problems_at_once(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 6)
    (data / "masks" / "s00.png").unlink()
    (data / "images" / "s01.png").write_bytes((data / "images" / "s01.png").read_bytes()[:200])
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(data / "masks" / "s02.png")
    found = jobs.inspect(data, talk=QUIET)
    errors = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert {Path(problem["file"]).name for problem in errors} == {"s00.png", "s01.png", "s02.png"}
    assert all(problem["cause"] and problem["remedy"] for problem in errors)
