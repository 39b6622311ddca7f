"""The report: one file that needs nothing else, with what a reader looks for."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from made import labels_folder, salt_folder
from whatwhere import jobs, pictures
from whatwhere.bundle import load_card
from whatwhere.data.classes import find_classes
from whatwhere.report import methods, write
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = salt_folder(tmp_path_factory.mktemp("salt"), 16, (32, 32))
    path = tmp_path_factory.mktemp("runs") / "a <b> run"
    jobs.train(
        data, path, epochs=2, n_filters=2, batch_size=4, talk=QUIET, classes="rock & sand,salt"
    )
    jobs.tune(path, data, talk=QUIET)
    jobs.evaluate(path, data, talk=QUIET)
    return path


def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_it_needs_nothing_else(run: Path) -> None:
    text = page(run)
    assert not re.findall(r"(?:src|href)\s*=\s*['\"](?!data:|report/)", text)
    assert "http" not in re.sub(r"base64,[^']*", "", text)
    assert text.count("data:image/png;base64,") >= 5


def test_it_has_every_part(run: Path) -> None:
    text = page(run)
    for title in ("Training", "Examples", "Threshold", "Scores: test", "Data", "Methods"):
        assert f"<h2>{title}" in text
    scores = json.loads((run / "report" / "test.json").read_text(encoding="utf-8"))
    assert f"{scores['mean_iou']:.4f}" in text


def test_names_are_escaped(run: Path) -> None:
    text = page(run)
    assert "rock &amp; sand" in text
    assert "a &lt;b&gt; run" in text
    assert "<b> run" not in text


def test_the_methods_paragraph_tells_the_recipe_and_versions(run: Path) -> None:
    found = re.search(r"class='methods'>(.*?)</p>", page(run), re.DOTALL)
    assert found
    card = load_card(run)
    for words in (
        *("Adam", "0.001", "binary cross-entropy", "batches of 4", "left-right flips", "Seed 42"),
        f"{card.parameters:,} parameters",
        f"torch {card.versions['torch']}",
        f"trained on {card.data['train']} images",
        "and normalised by mean and standard deviation of the training images.",
    ):
        assert words in found.group(1), words


def test_the_methods_paragraph_is_true_of_other_courses(run: Path) -> None:
    card = load_card(run)
    changed = {
        **{"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup": 0.2},
        **{"loss": "dice+0.5*cross_entropy", "class_weights": "balanced", "ema": 0.05},
        **{"clip": 1.0, "accumulate": 4, "precision": "bf16", "freeze_epochs": 2},
        **{"encoder_lr": 0.1, "stop_patience": 0, "dropout": 0.0, "upsample": "shuffle"},
        **{"train_first": True, "monitor": "mean_iou", "normalize": False},
    }
    text = methods(
        card.replace(model="resnet34", arguments={}, recipe={**card.recipe, **changed}), None
    )
    for words in (
        *("(resnet34, ", "shuffle upsampling, pretrained on ImageNet)", "by AdamW", "decay 0.01"),
        *("on the dice loss + 0.5 × binary cross-entropy, classes weighted (balanced)",),
        *("batches of 4, 4 of which made a step", "at 0.1 of the rate", "first 2 epochs"),
        *("clipped to a norm of 1", "bf16 mixed", "averaged with a half-life of 5%"),
        *("rose for 20% of the steps and fell along a cosine", "stopped after 2 epochs"),
        *("backbone (but for its first filters)", "by the mean iou, validation loss"),
        "values as they are",
    ):
        assert words in text, words
    for words in ("multiplied by", "filters in the first block", "dropout", "normalised by"):
        assert words not in text, words


def test_the_share_of_waiting_is_told_where_the_log_has_it(run: Path, tmp_path: Path) -> None:
    assert re.search(r"Of the time of the steps, \d+\.\d% went by waiting for data", page(run))
    log = (run / "log.csv").read_text(encoding="utf-8")
    for name, text, wanted in (
        ("three", "waiting\n0.9\n0.1\n0.3\n0.2\n", "20.0%"),
        ("old", re.sub(r",[^,\n]*$", "", log, flags=re.MULTILINE), ""),
        ("changed", log.replace("0.", "zero"), ""),
        ("none", None, ""),
    ):
        folder = tmp_path / name
        (folder / "report").mkdir(parents=True)
        if text is not None:
            (folder / "log.csv").write_text(text, encoding="utf-8")
        (folder / "report" / "curves.png").write_bytes(b"")
        write(folder, load_card(run), [])
        assert ("waiting for data" in page(folder)) == bool(wanted) and wanted in page(folder)


def test_areas_are_there_as_csv(run: Path) -> None:
    lines = (run / "report" / "areas_test.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("image,class,valid_pixels,true_pixels,predicted_pixels")
    assert len(lines) == 1 + json.loads((run / "report" / "test.json").read_text())["images"]


def test_a_multi_label_run_has_a_report(tmp_path: Path) -> None:
    data = labels_folder(tmp_path / "data", 8)
    jobs.train(data, tmp_path / "run", epochs=1, n_filters=2, batch_size=4, talk=QUIET)
    assert "bright" in page(tmp_path / "run")


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_curves_of_one_epoch_and_of_a_wild_start_can_be_drawn() -> None:
    row: dict[str, Any] = {
        "epoch": 1, "lr": 1e-3, "train_loss": 0.5, "val_loss": 0.6, "val_mean_iou": None,
        "best": True,
    }  # fmt: skip
    wild = [
        {**row, "epoch": i + 1, "val_loss": loss} for i, loss in enumerate([47.0, 2.0, 0.3, 0.3])
    ]
    for log in ([row], wild):
        assert pixels(pictures.draw_curves(log)).std() > 0


def test_a_rate_that_falls_in_every_epoch_is_not_marked_in_each() -> None:
    row: dict[str, Any] = {
        "lr": 1.0, "train_loss": 0.5, "val_loss": 0.6, "val_mean_iou": 0.5, "best": True,
    }  # fmt: skip
    still = [{**row, "epoch": i + 1} for i in range(9)]
    once = [{**one, "lr": 1.0 if i < 4 else 0.1} for i, one in enumerate(still)]
    cosine = [{**one, "lr": 1.0 - 0.1 * i} for i, one in enumerate(still)]
    plain, marked, falling = (pixels(pictures.draw_curves(log)) for log in (still, once, cosine))
    assert np.array_equal(plain, falling)
    assert not np.array_equal(plain, marked)


def test_the_rate_to_take_is_marked_and_an_explosion_does_not_hide_the_fall() -> None:
    rates = np.geomspace(1e-6, 1, 61)
    losses = np.where(rates < 0.5, 1 - 0.5 * (rates > 1e-3), 3.0)

    def look(rate: float) -> tuple[float, float]:
        """Where the orange line is, left to right, and how far the blue one falls."""
        picture = pixels(pictures.draw_lr(list(rates), list(losses), rate)).astype(int)
        height, width, _ = picture.shape
        redder = picture[..., 0] - picture[..., 2]
        orange, blue = (redder > 60).sum(0), redder < -60
        before, after = (np.flatnonzero(blue[:, int(x * width)]).mean() for x in (0.45, 0.7))
        return float(orange.argmax()) / width, float(after - before) / height

    (left, _), (right, fall) = look(1e-5), look(1e-2)
    assert 0.1 < left < right < 0.9
    assert right - left == pytest.approx(3 / 6, abs=0.15)  # three of six powers of ten
    assert fall > 0.3


def test_errors_are_coloured_by_their_kind() -> None:
    black = np.zeros((1, 4, 3))
    example = pictures.Example(
        "", black, np.array([[1, 1, 0, 0]]), np.zeros((1, 4)), np.array([[1, 0, 1, 0]]),
        np.ones((1, 4), bool),
    )  # fmt: skip
    drawn = pictures.draw_errors(example)[0]
    for pixel, color in zip(drawn, (pictures.RIGHT, pictures.MISSED, pictures.FALSE), strict=False):
        assert np.allclose(pixel, 0.65 * np.array(color), atol=1)
    assert drawn[3].tolist() == [0, 0, 0]


def test_areas_without_a_row_can_be_drawn() -> None:
    classes = find_classes([], "0=background,1=salt")
    assert pixels(pictures.draw_areas([], classes)).std() > 0
