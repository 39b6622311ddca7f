"""A net in 8 bits is kept if it scores as well on its validation images, else refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from made_maps import make_classes, make_pixels, make_predictor, save_bundle
from told import assert_told, call
from whatwhere import jobs, quantizing
from whatwhere.data.inputs import Inputs
from whatwhere.errors import BundleError, DataError, UsageError
from whatwhere.predict.engine import load
from whatwhere.predict.openvino import read_exported
from whatwhere.talk import QUIET
from whatwhere.types import Classes, ClassInfo

pytest.importorskip("openvino")
pytest.importorskip("nncf")
COUNT, VALIDATE = 12, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose masks are what the net of `run` says."""
    folder = tmp_path_factory.mktemp("data")
    net = made_net()
    for number in range(COUNT):
        pixels = make_pixels(48, 56, seed=number)
        for name, picture in (
            ("images", pixels.transpose(1, 2, 0)),
            ("masks", (net.predict(pixels) * 255).astype(np.uint8)),
        ):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / name / f"{number:02d}.png")
    return folder


def made_net() -> Any:
    net = make_predictor("tutorial", upsample="bilinear", kernel_size=1, n_filters=8, seed=4)
    plain = make_classes()
    salt = ClassInfo("salt", 255, (255, 0, 0), raw=(255,))
    net.card = net.card.replace(classes=Classes((plain.infos[0], salt), "binary"))
    return net


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    net = made_net()
    save_bundle(folder / "bundle", net)
    digests = jobs._survey(Inputs(data), net.card, QUIET).digests
    rows = [{"key": key, "digest": digest} for key, digest in sorted(digests.items())]
    splits = {"train": rows[VALIDATE:], "val": rows[:VALIDATE], "test": []}
    (folder / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return folder


class Graph:
    """A graph of one operator, in the place of the net's."""

    def __init__(self) -> None:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", bands, "h", "w"])
            for name, bands in (("image", 3), ("probabilities", 1))
        ]
        mean = helper.make_node("ReduceMean", ["image", "axes"], ["m"])
        nodes = [mean, helper.make_node("Sigmoid", ["m"], ["probabilities"])]
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [axes])
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])

    def SerializeToString(self) -> bytes:
        onnx.checker.check_model(self.model)
        return bytes(self.model.SerializeToString())


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the net scores as it was and in 8 bits, and on which images; nothing is computed."""
    told: dict[str, Any] = {"scores": [0.8, 0.8], "seen": []}

    def mean_iou(original: Any, backend: Any, pairs: Any, talk: Any) -> float:
        told["seen"].append([pair.key for pair in pairs])
        return float(told["scores"][(len(told["seen"]) - 1) % 2])

    def quantized(nncf: Any, model: Any, chips: Any) -> Any:
        told["chips"] = chips
        return model

    monkeypatch.setattr(quantizing, "_mean_iou", mean_iou)
    monkeypatch.setattr(quantizing, "quantized", quantized)
    monkeypatch.setattr(quantizing, "onnx_model", lambda *_words, **_named: Graph())
    monkeypatch.setattr(quantizing, "compare", lambda *_words: 1e-7)
    return told


def test_what_scores_as_well_is_written_with_both_figures(
    run: Path, data: Path, tmp_path: Path, scored: dict[str, Any]
) -> None:
    scored["scores"] = [0.8, 0.796]
    path = tmp_path / "m.xml"
    done = call("export", run, "-o", path, "--int8", "--data", data)
    assert_told(done, 0, r"mean IoU on the 4 validation images: 0\.7960 in 8 bits, 0\.8000 as it")
    card = read_exported(path).card
    assert card.scores == {"mean_iou": 0.8, "mean_iou_int8": 0.796}
    assert card.self_test["tolerance"] == 0.05
    assert scored["seen"] == [["00", "01", "02", "03"]] * 2  # and not one that trained
    assert [chip.shape for chip in scored["chips"]] == [(1, 3, 48, 56)] * (COUNT - VALIDATE)
    images = [np.asarray(Image.open(data / f"images/{n:02d}.png")) for n in range(VALIDATE, COUNT)]
    for chip, image in zip(scored["chips"], images, strict=True):  # in the numbers of the files
        assert np.abs(chip[0] - image.transpose(2, 0, 1)).max() < 1e-3
    told = json.loads(call("export", run, "-o", path, "--int8", "--data", data, "--json").stdout)
    assert (told["mean_iou"], told["mean_iou_int8"]) == (0.8, 0.796)


@pytest.mark.parametrize("after", [0.794, 0.0])
def test_what_falls_short_is_refused_and_what_was_there_stays(
    run: Path, data: Path, tmp_path: Path, scored: dict[str, Any], after: float
) -> None:
    scored["scores"] = [0.8, after]
    path = tmp_path / "m.xml"
    path.write_bytes(b"from before")
    told = rf"is {after:.4f} in 8 bits, 0\.8000 as it was, and may fall by 0\.005\. Nothing was wr"
    with pytest.raises(BundleError, match=told):
        jobs.export(run, path, int8=True, data=data, talk=QUIET)
    assert path.read_bytes() == b"from before"
    assert list(tmp_path.iterdir()) == [path]


def test_chips_are_cut_to_those_of_the_training(
    run: Path, data: Path, tmp_path: Path, scored: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from whatwhere import bundle

    folder = tmp_path / "run"
    save_bundle(folder / "bundle", made_net())
    (folder / "splits.json").write_bytes((run / "splits.json").read_bytes())
    card = bundle.load_card(folder)
    bundle.save_card(folder / "bundle", card.replace(chip_size=(32, 24)))
    monkeypatch.setattr(quantizing, "_CHIPS", 3)
    jobs.export(folder, tmp_path / "m.xml", int8=True, data=data, talk=QUIET)
    assert [chip.shape for chip in scored["chips"]] == [(1, 3, 32, 24)] * 3


def test_what_has_no_meaning_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--int8 wants the data that the run was trained on: --d"):
        jobs.export(run, tmp_path / "m.xml", int8=True)
    with pytest.raises(UsageError, match=r"m\.onnx: --int8 is for OpenVINO. Let the name end in"):
        jobs.export(run, tmp_path / "m.onnx", int8=True, data=data, talk=QUIET)
    alone = save_bundle(tmp_path / "alone", made_net())
    with pytest.raises(UsageError, match="alone: the run folder says which images trained and val"):
        jobs.export(alone, tmp_path / "m.xml", int8=True, data=data, talk=QUIET)
    other = tmp_path / "other"
    for name in ("images", "masks"):
        (other / name).mkdir(parents=True)
        pixels = make_pixels(40, 40, seed=99).transpose(1, 2, 0)
        Image.fromarray(pixels if name == "images" else pixels[..., 0] // 200 * 255).save(
            other / name / "a.png"
        )
    with pytest.raises(DataError, match="no pair of the run's own training split is in it. Give t"):
        jobs.export(run, tmp_path / "m.xml", int8=True, data=other, talk=QUIET)
    assert not list(tmp_path.glob("m.*"))


def test_a_library_that_is_missing_is_named(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UsageError, match=r'nncf is needed .* pip install "whatwhere\[int8\]"'):
        jobs.export(run, tmp_path / "m.xml", int8=True, data=data, talk=QUIET)


@pytest.mark.slow
def test_a_net_in_8_bits_is_what_was_scored(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks are the net's own, so it scores 1; in 8 bits a net that nobody trained cannot."""
    path = tmp_path / "m.xml"
    with pytest.raises(BundleError, match=r"0\.\d{4} in 8 bits, 1\.0000 as it was"):
        jobs.export(run, path, int8=True, data=data, talk=QUIET)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(quantizing, "MOST_LOSS", 1)
    found = jobs.export(run, path, int8=True, data=data, talk=QUIET)
    assert found["mean_iou"] == pytest.approx(1) and 0.3 < found["mean_iou_int8"] < 1
    for name in ("images", "masks"):
        for number in range(VALIDATE):
            (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
            picture = (data / name / f"{number:02d}.png").read_bytes()
            (tmp_path / "val" / name / f"{number:02d}.png").write_bytes(picture)
    scores = jobs.evaluate(path, tmp_path / "val", part="all", talk=QUIET)
    assert scores["mean_iou"] == pytest.approx(found["mean_iou_int8"], abs=1e-9)
    assert 'element_type="i8"' in path.read_text(encoding="utf-8")
    assert path.with_suffix(".bin").stat().st_size < 0.5 * sum(
        one.stat().st_size for one in (run / "bundle").glob("weights-*")
    )
    pixels = make_pixels(90, 70, seed=50)
    assert (load(path).probabilities(pixels) != load(run).probabilities(pixels)).any()
    jobs.export(run, path, int8=True, data=data, tile=64, talk=QUIET)
    assert load(path).probabilities(pixels).shape == (1, 90, 70)


@pytest.mark.slow
def test_nobody_is_told_of_it(run: Path, data: Path, tmp_path: Path) -> None:
    """NNCF sends what it does to its makers unless it is kept from it."""
    code = (
        "import sys\ncalled = []\n"
        "sys.addaudithook(lambda name, words: name in ('socket.connect', 'socket.getaddrinfo') and "
        "called.append(words))\n"
        "from whatwhere import jobs, quantizing\n"
        "quantizing.MOST_LOSS = 1\n"
        "jobs.export(sys.argv[1], 'm.xml', int8=True, data=sys.argv[2])\n"
        "import nncf.telemetry as t\n"
        "print(len(called), type(t.telemetry).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(data)],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 MagicMock\n"
