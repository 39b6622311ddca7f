"""Training and scoring on scenes, from the command line's point of view."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from typer.testing import CliRunner

from made_maps import NORTH_UP
from made_scenes import PLACES, bright_scene, town, truth_of, write_places
from whatwhere import jobs
from whatwhere.bundle import load_card
from whatwhere.cli import app
from whatwhere.errors import DataError, UsageError
from whatwhere.io.vector import read_features, write_features
from whatwhere.talk import QUIET, Talk

SETTINGS: dict[str, Any] = {
    **{"n_filters": 4, "epochs": 4, "batch_size": 8, "chip_size": 64, "lr": 0.01, "dropout": 0.0},
    **{"device": "cpu", "talk": QUIET},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, drawing: Any) -> tuple[Path, Path, Path]:
    """A scene, its labels, and a run."""
    root = tmp_path_factory.mktemp("scenes")
    scene, labels, _ = town(root)
    with drawing():
        jobs.train(scene, root / "run", labels=labels, **SETTINGS)
    return scene, labels, root / "run"


def test_a_run_on_a_scene_learns_and_says_where(trained: tuple[Path, Path, Path]) -> None:
    _, _, run = trained
    card = load_card(run / "bundle")
    assert card.orientation == "free" and card.chip_size == (64, 64)
    assert card.pixel_size == pytest.approx(0.5, rel=0.01)
    assert card.bands.names == ("red", "green", "blue")
    scores = json.loads((run / "report" / "validation.json").read_text(encoding="utf-8"))
    assert scores["mean_iou"] > 0.9 and scores["images"] == card.data["val"]
    lists = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    drawn = read_features(run / "splits.geojson", field="key")
    assert sorted(drawn.values) == sorted(row["key"] for rows in lists.values() for row in rows)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "blocks of about 128 px, cut from scenes" in page
    assert (run / "report" / "examples.png").stat().st_size > 10_000


def test_the_runs_own_blocks_are_known_again(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    scene, labels, run = trained
    scores = jobs.evaluate(run, scene, labels=labels, device="cpu", talk=QUIET)
    looked = jobs.evaluate(run, scene, labels=labels, device="cpu", tta=True, talk=QUIET)
    assert looked["mean_iou"] != scores["mean_iou"]
    assert scores["on"] == "the run's own test split" and scores["mean_iou"] > 0.9
    assert scores["images"] == load_card(run / "bundle").data["test"]
    told = jobs.tune(run, scene, labels=labels, device="cpu", talk=QUIET)
    assert told["on"] == "the run's own validation split"
    _, _, truth = town(tmp_path)
    place = NORTH_UP @ Affine.translation(5000, 0)
    other = bright_scene(tmp_path / "other.tif", truth, transform=place, seed=9)
    kinds = ["town_houses"] * len(PLACES)
    words = write_places(
        tmp_path / "w.gpkg", PLACES, transform=place, columns={"kind": [*kinds[:-1], "shed"]}
    )
    scores = jobs.evaluate(run, other, labels=words, class_field="kind", device="cpu", talk=QUIET)
    assert scores["on"] == "all pairs" and scores["mean_iou"] > 0.9
    assert scores["classes"][1]["support"] == truth.sum() - 24 * 32


def test_the_same_words_work_on_the_command_line(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    scene, labels, run = trained
    runner = CliRunner()
    done = runner.invoke(app, ["inspect", str(scene), "--labels", str(labels)])
    assert done.exit_code == 0, done.output
    assert "scene       town: 640×640 px, EPSG:32645, pixels 0.5 m; red, green, blue" in done.output
    assert "25 blocks, 25 of them with labels" in done.output
    done = runner.invoke(app, ["evaluate", str(run), str(scene), "--labels", str(labels), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["mean_iou"] > 0.9
    words = ["train", str(scene), "-o", str(tmp_path / "run"), "--labels", str(labels)]
    done = runner.invoke(app, [*words, "--n-filters", "4", "--chip-size", "64", "--dry-run"])
    assert done.exit_code == 0 and "between training blocks and others" in done.output
    assert not (tmp_path / "run").exists()
    done = runner.invoke(app, ["train", str(scene), "-o", str(tmp_path / "run")])
    assert done.exit_code == 2 and "a raster needs labels" in done.output
    done = runner.invoke(app, ["inspect", str(scene), "--labels", str(tmp_path / "no.gpkg")])
    assert done.exit_code == 3 and "no.gpkg" in done.output


def test_what_is_wrong_is_said_before_training(tmp_path: Path) -> None:
    scene, _, _ = town(tmp_path)
    places = [(0, 0, 60, 60), (-300, 0, 60, 60)]
    labels = write_places(tmp_path / "l.gpkg", places, columns={"kind": ["a", "gone"]})
    with pytest.raises(DataError, match="no pixel that counts is gone"):
        jobs.train(scene, tmp_path / "run", labels=labels, class_field="kind", **SETTINGS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="--class-field is for rasters with labels"):
        jobs.inspect(tmp_path, class_field="kind", talk=Talk(quiet=True))


def test_long_epochs_are_told_and_may_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whatwhere.training import course as training

    scene, labels, _ = town(tmp_path)
    words = {**SETTINGS, "labels": labels, "dry_run": True, "talk": Talk()}
    for most, said, line in (
        (10, {}, r"training an epoch has (\d+) chips; --epoch-chips 2000 makes epochs of 2,000"),
        (10, {"epoch_chips": 16}, r"training an epoch has 16 of (\d+) chips, by turns"),
        (4000, {}, None),
        (4000, {"epoch_chips": 4000}, None),
    ):
        monkeypatch.setattr(training, "_LONG_EPOCH", most)
        jobs.train(scene, tmp_path / "run", **words, **said)
        told = capsys.readouterr().err
        found = re.search(line or r"an epoch has ([\d,]+) (?:of|chips)", told)
        assert (found is not None) == (line is not None)
        assert found is None or int(found[1]) > 40
        steps = "an epoch has 2 steps" if said.get("epoch_chips") == 16 else ""
        assert steps in told


def test_a_softmax_on_several_scenes(tmp_path: Path) -> None:
    places = [place for place in PLACES if place[0] < 300 and place[1] < 300]
    kinds = ["roof" if i % 3 else "tree" for i in range(len(places))]
    numbers = [1 if kind == "roof" else 2 for kind in kinds]
    for i, name in enumerate("ab"):
        place = NORTH_UP @ Affine.translation(1000 * i, 0)
        truth = truth_of((320, 320), places, numbers)
        bright_scene(tmp_path / "in" / f"{name}.tif", truth, transform=place, seed=i)
        write_places(
            tmp_path / "labels" / f"{name}.gpkg", places, transform=place, columns={"kind": kinds}
        )
    run = jobs.train(
        tmp_path / "in",
        tmp_path / "run",
        labels=tmp_path / "labels",
        class_field="kind",
        **{**SETTINGS, "epochs": 8},
    )
    assert run is not None and run.card.classes.names == ["background", "roof", "tree"]
    ious = [row["iou"] for row in run.scores["classes"] if row["iou"] is not None]
    assert len(ious) == 3 and np.mean(ious) > 0.6


@pytest.mark.slow
def test_a_net_that_looks_at_whole_tiles_has_its_seams_measured(
    trained: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, labels, _ = trained
    monkeypatch.setattr("whatwhere.predict.seams.usual_tile", lambda _: 512)
    settings = {**SETTINGS, "epochs": 1, "model": "mobilenetv3_small_050", "pretrained": False}
    del settings["n_filters"]
    lines: list[str] = []

    class Heard(Talk):
        def say(self, text: str = "") -> None:
            lines.append(text)

    settings["talk"] = Heard(quiet=True)
    jobs.train(scene, tmp_path / "run", labels=labels, **settings)
    told = [line for line in lines if line.startswith("seams")]
    error = load_card(tmp_path / "run").scores["seam_error"]
    assert len(told) == 1 and f"{error:.3f}" in told[0] and 0 < error < 1


def test_fields_that_could_tell_classes_apart_are_named(tmp_path: Path) -> None:
    scene, labels, _ = town(tmp_path)
    shapes = read_features(labels)
    kinds = np.array(["house", "shed"] * len(shapes.shapes), dtype=object)[: len(shapes.shapes)]
    columns = {"kind": kinds, "id": np.arange(len(kinds)), "same": np.ones(len(kinds))}
    path = write_features(tmp_path / "more.gpkg", shapes.crs, shapes.shapes, columns)
    found = jobs.inspect(scene, labels=path, talk=QUIET)
    causes = [one["cause"] for one in found["problems"] if "--class-field" in one["remedy"]]
    assert len(causes) == 1 and "kind (2 values)" in causes[0] and "same" not in causes[0]
    named = jobs.inspect(scene, labels=path, class_field="kind", talk=QUIET)
    assert not [one for one in named["problems"] if "--class-field" in one["remedy"]]


def test_a_piece_of_the_training_scene_is_scored_where_it_was_not_seen(
    trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    scene, labels, run = trained
    with rasterio.open(scene) as source:
        window = rasterio.windows.Window(5, 7, 620, 610)  # off the run's blocks
        profile = {**source.profile, "width": 620, "height": 610}
        profile["transform"] = source.window_transform(window)
        with rasterio.open(tmp_path / "piece.tif", "w", **profile) as piece:
            piece.write(source.read(window=window))
    scores = jobs.evaluate(
        run, tmp_path / "piece.tif", labels=labels, device="cpu", part="all", talk=QUIET
    )
    every = scores["images"]
    scores = jobs.evaluate(run, tmp_path / "piece.tif", labels=labels, device="cpu", talk=QUIET)
    assert "whose ground it has" in scores["on"] and scores["images"] < every
    with rasterio.open(tmp_path / "piece.tif", "r+") as piece:  # the same pixels, elsewhere
        piece.transform = piece.transform @ Affine.translation(5000, 0)
    places = [(row - 7, column - 5, height, width) for row, column, height, width in PLACES]
    elsewhere = write_places(
        tmp_path / "elsewhere.geojson",
        places,
        transform=profile["transform"] @ Affine.translation(5000, 0),
    )
    scores = jobs.evaluate(run, tmp_path / "piece.tif", labels=elsewhere, device="cpu", talk=QUIET)
    assert scores["on"] == "all pairs" and scores["images"] == every
