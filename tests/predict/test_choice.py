"""A run on other engines: its graph is made once and kept, and the quickest engine is taken."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from made_maps import make_pixels, make_predictor, save_bundle, write_scene
from own_nets import Chain
from told import assert_told, call
from whatwhere import bundle, files, jobs
from whatwhere.errors import BundleError, OutputError, UsageError
from whatwhere.predict import choice, graphs
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.maps import MapOptions, map_scene
from whatwhere.predict.plan import load_plan
from whatwhere.talk import QUIET, Talk

pytest.importorskip("openvino")
SECONDS = {"torch": 3.0, "onnx": 2.0, "openvino": 1.0}


class Heard(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph was made once."""
    net = make_predictor("tutorial", upsample="bilinear", kernel_size=1, seed=4)
    folder = save_bundle(tmp_path_factory.mktemp("runs") / "bundle", net)
    talk = Heard()
    load(folder, backend="onnx", talk=talk)
    assert "looking for the net's graph" in str(talk)
    assert "engine   onnx compared at 3 sizes" in str(talk) and "openvino compared" in str(talk)
    return folder


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Engines take as long as this says; what was measured is noted."""
    told: dict[str, Any] = {"seconds": dict(SECONDS), "seen": []}

    def seconds(backend: Any, images: NDArray[np.float32]) -> float:
        told["seen"].append((backend.engine, images.shape))
        return float(told["seconds"][backend.engine])

    monkeypatch.setattr(choice, "seconds", seconds)
    return told


def graphs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("graph-*.onnx"))


# --- the graph of a run -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_run_answers_the_same_on_every_engine(run: Path, engine: str) -> None:
    pixels = make_pixels(90, 70)
    wanted = load(run, device="cpu").probabilities(pixels)
    before = graphs_in(run)
    talk = Heard()
    found = load(run, backend=engine, talk=talk)
    assert found.backend.engine == engine and found.net is None
    assert np.abs(found.probabilities(pixels) - wanted).max() <= 1e-4 and np.ptp(wanted) > 0.2
    assert found.digest == load(run).digest and found.card == load(run).card
    assert graphs_in(run) == before and len(before) == 1 and not talk.lines


@pytest.mark.slow
def test_what_was_made_once_needs_no_pytorch(run: Path, tmp_path: Path) -> None:
    Image.fromarray(make_pixels(50, 60).transpose(1, 2, 0)).save(tmp_path / "i.png")
    code = (
        "import sys\nfrom whatwhere import jobs\n"
        "for engine in ('onnx', 'openvino'):\n"
        "    jobs.predict(sys.argv[1], 'i.png', engine, backend=engine)\n"
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    masks = [np.asarray(Image.open(tmp_path / name / "i.png")) for name in ("onnx", "openvino")]
    assert np.mean(masks[0] != masks[1]) < 1e-3 and masks[0].mean() > 0


def made_anew(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[str]:
    """Count how often a graph is made, without the work."""
    made: list[str] = []

    def make(found: Any, encoder: Any, talk: Talk) -> bytes:
        made.append(found.digest)
        return data

    monkeypatch.setattr(graphs, "_made", make)
    return made


def copied(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_graph_that_is_damaged_or_of_another_net_is_made_anew(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path / "bundle")
    (kept,) = graphs_in(folder)
    data = kept.read_bytes()
    made = made_anew(monkeypatch, data)
    load(folder, backend="onnx", talk=QUIET)
    assert not made
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    load(folder, backend="onnx", talk=QUIET)
    assert len(made) == 1 and kept.read_bytes() == data
    monkeypatch.setattr(graphs, "__version__", "99")
    load(folder, backend="onnx", talk=QUIET)
    assert len(made) == 2
    assert len(graphs_in(folder)) == 1 and graphs_in(folder) != [kept]  # the old one is gone
    bundle.save_card(folder, load(folder).card.replace(thresholds=(0.4,)))
    load(folder, backend="onnx", talk=QUIET)
    assert len(made) == 3 and made[2] != made[1]


def test_a_folder_that_cannot_be_written_is_no_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path / "bundle")
    (kept,) = graphs_in(folder)
    made = made_anew(monkeypatch, kept.read_bytes())
    kept.unlink()

    def refuse(path: Path, data: bytes) -> Path:
        raise OutputError(f"{path}: cannot write this file: Read-only file system.")

    monkeypatch.setattr(files, "write_bytes", refuse)
    talk = Heard()
    for _ in range(2):
        net = load(folder, backend="openvino", talk=talk)
        assert net.probabilities(make_pixels(20, 30)).shape == (1, 20, 30)
    assert len(made) == 2 and not graphs_in(folder)
    assert "cannot be written: the graph is made anew each time" in str(talk)


def test_an_engine_that_differs_is_not_taken(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: dict[str, Any]
) -> None:
    folder = copied(run, tmp_path / "bundle")
    (kept,) = graphs_in(folder)
    model = onnx.load(kept)
    lines = {entry.key: entry.value for entry in model.metadata_props}
    lines["whatwhere_export"] = lines["whatwhere_export"].replace('"openvino": ', '"other": ', 1)
    made_anew(monkeypatch, graphs.with_lines(model, lines))
    kept.unlink()
    with pytest.raises(BundleError, match="openvino does not answer as the net does: take another"):
        load(folder, backend="openvino", talk=QUIET)
    talk = Heard()
    net = load(folder, backend="auto", talk=talk)
    assert net.engines == ("torch", "onnx")
    assert "note     openvino is left out: openvino does not answer as the net does" in str(talk)


# --- what is asked for --------------------------------------------------------------------------


def test_what_has_no_meaning_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match="--backend must be auto, torch, .* onnx or openvino, not 'x'",
    ):
        load(run, backend="x")
    with pytest.raises(UsageError, match="--device cuda: onnx runs on the processor"):
        load(run, backend="onnx", device="cuda")
    Image.fromarray(make_pixels(9, 9).transpose(1, 2, 0)).save(tmp_path / "i.png")
    words = ("predict", run, tmp_path / "i.png", "-o", tmp_path / "out", "--backend")
    assert_told(
        call(*words, "tensorrt"),
        2,
        "--backend must be auto, torch, torch-bf16, torch-compiled, onnx or openvino",
    )
    assert_told(call(*words, "onnx"), 0)
    (graph,) = graphs_in(run)
    export = tmp_path / "m.onnx"
    export.write_bytes(graph.read_bytes())
    for other in ("torch", "openvino"):
        with pytest.raises(UsageError, match=rf"--backend {other}: .*m\.onnx is run by onnx alone"):
            load(export, backend=other)
    for same in ("onnx", "auto", ""):
        assert load(export, backend=same).backend.engine == "onnx"


@pytest.mark.parametrize(("engine", "missing"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_engine_that_is_not_installed_is_named_with_what_to_type(
    run: Path, monkeypatch: pytest.MonkeyPatch, engine: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    told = rf'{missing} is needed for this: pip install "whatwhere\[{engine}\]"'
    with pytest.raises(UsageError, match=told):
        load(run, backend=engine)


def test_a_net_without_a_graph_stays_with_pytorch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path / "bundle")
    graphs_in(folder)[0].unlink()

    def none(*_words: Any, **_named: Any) -> Any:
        raise UsageError("timm's swin has no graph for sizes that are left free")

    monkeypatch.setattr(graphs, "onnx_model", none)
    with pytest.raises(
        UsageError, match="tutorial runs on PyTorch alone: .* timm's swin has no gr"
    ):
        load(folder, backend="onnx", talk=QUIET)
    talk = Heard()
    assert load(folder, backend="auto", talk=talk).engines == ("torch",)
    assert "engine   torch is taken: tutorial runs on PyTorch alone" in str(talk)
    monkeypatch.setattr(choice, "installed", lambda name: False)
    assert load(folder, backend="auto", talk=talk).engines == ("torch",)
    assert "engine   torch is taken: no other is installed" in str(talk)


def test_a_graph_on_an_encoder_of_ones_own_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(run, tmp_path / "bundle")
    (kept,) = graphs_in(folder)
    made = made_anew(monkeypatch, kept.read_bytes())
    kept.unlink()
    graphs.graph_of(bundle.load(folder), folder, Chain(3, (4,)), QUIET)
    assert made and not graphs_in(folder)


# --- the quickest -------------------------------------------------------------------------------


@pytest.mark.parametrize("quickest", ["torch", "onnx", "openvino"])
def test_the_quickest_is_taken_and_that_is_said(
    run: Path, timed: dict[str, Any], quickest: str
) -> None:
    timed["seconds"] = {**SECONDS, quickest: 0.5}
    talk = Heard()
    net = load(run, backend="auto", device="cpu", talk=talk)
    assert net.engines == ("torch", "onnx", "openvino")
    pixels = make_pixels(40, 33)
    found = net.probabilities(pixels)
    assert net.backend.engine == quickest and net.engines == (quickest,)
    assert {shape for _, shape in timed["seen"]} == {(1, 3, 40, 33)}  # what will be used
    ratios = {name: timed["seconds"]["torch"] / s for name, s in timed["seconds"].items()}
    told = f"onnx {ratios['onnx']:.2f} times, openvino {ratios['openvino']:.2f} times"
    assert f"engine   {quickest} is taken for 40×33 px; as quick as torch: {told}" in talk.lines
    assert np.array_equal(found, load(run, backend=quickest, device="cpu").probabilities(pixels))
    measured = len(timed["seen"])
    net.probabilities(make_pixels(50, 50))
    assert len(timed["seen"]) == measured  # once


def test_engines_are_measured_in_turn_and_large_tiles_smaller(
    run: Path, timed: dict[str, Any]
) -> None:
    timed["seconds"] = dict.fromkeys(SECONDS, 0.01)
    assert load(run, backend="auto", device="cpu", tile=96, talk=QUIET).quickest(500, 70) == "torch"
    names = [name for name, _ in timed["seen"]]
    assert names == [*SECONDS] * 6  # one round to warm up, five that count
    assert {shape for _, shape in timed["seen"]} == {(1, 3, 96, 70)}
    timed["seen"].clear()
    timed["seconds"] = dict.fromkeys(SECONDS, 20.0)
    load(run, backend="auto", device="cpu", tile=4096, talk=QUIET).quickest(3000, 3000)
    assert [name for name, _ in timed["seen"]] == [*SECONDS] * 2  # it is brief
    assert {shape for _, shape in timed["seen"]} == {(1, 3, 1024, 1024)}


# --- parts of two engines never mix ---------------------------------------------------------------


@contextlib.contextmanager
def begun(run: Path, scene: Path, output: Path, **how: Any) -> Iterator[Predictor]:
    """Do the first of two shards; of one block the other has none."""
    net = load(run, device="cpu", talk=QUIET, **how)
    map_scene([net], scene, output, MapOptions(thresholds=(0.5,), shard=(2, 2)), QUIET)
    yield net


def finish(nets: Sequence[Predictor], scene: Path, output: Path) -> None:
    options = MapOptions(thresholds=(0.5,), keep_parts=True)
    map_scene(nets, scene, output, options, QUIET)


def test_a_job_that_goes_on_keeps_its_engine(
    run: Path, tmp_path: Path, timed: dict[str, Any]
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(60, 60))
    parts = tmp_path / "m.tif.parts"
    with begun(run, scene, tmp_path / "m.tif", backend="auto") as net:
        assert net.backend.engine == "openvino"
        assert load_plan(parts).engines == ("openvino",)
    timed["seconds"]["onnx"] = 0.1  # now another one would be taken
    timed["seen"].clear()
    net = load(run, backend="auto", device="cpu", talk=QUIET)
    finish([net], scene, tmp_path / "m.tif")
    assert net.backend.engine == "openvino" and not timed["seen"]
    for other in ("torch", "onnx", ""):
        again = load(run, backend=other, device="cpu", talk=QUIET)
        with pytest.raises(UsageError, match=rf"engines +openvino +{other or 'torch'}"):
            finish([again], scene, tmp_path / "m.tif")
    finish([load(run, backend="openvino", talk=QUIET)], scene, tmp_path / "m.tif")


def test_a_plan_of_an_engine_that_is_not_here_is_refused(
    run: Path, tmp_path: Path, timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(60, 60))
    with begun(run, scene, tmp_path / "m.tif", backend="auto"):
        pass
    monkeypatch.setattr(choice, "installed", lambda name: name != "openvino")
    net = load(run, backend="auto", device="cpu", talk=QUIET)
    with pytest.raises(UsageError, match=r"engines +openvino +torch"):
        finish([net], scene, tmp_path / "m.tif")
    with pytest.raises(UsageError, match="begun with openvino, and there is only torch, onnx here"):
        net.take("openvino")


def test_a_shard_knows_the_map_of_the_engine_that_others_took(
    run: Path, tmp_path: Path, timed: dict[str, Any]
) -> None:
    scene, output = write_scene(tmp_path / "s.tif", make_pixels(60, 60)), tmp_path / "m.tif"
    jobs.predict(run, scene, output, backend="auto", talk=QUIET)
    made = output.read_bytes()
    timed["seconds"]["onnx"] = 0.1
    with begun(run, scene, output, backend="auto"):
        assert output.read_bytes() == made and not (tmp_path / "m.tif.parts").exists()


def test_the_command_line_measures_and_says_it(
    run: Path, tmp_path: Path, timed: dict[str, Any]
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(60, 60))
    done = call("predict", run, scene, "-o", tmp_path / "m.tif", "--backend", "auto", "--tile", 320)
    assert_told(done, 0, r"engine   openvino is taken for 320×320 px; .* onnx 1\.50 times")
    with rasterio.open(tmp_path / "m.tif") as one:
        found = one.read(1)
    jobs.predict(run, scene, tmp_path / "t.tif", talk=QUIET)
    with rasterio.open(tmp_path / "t.tif") as other:
        assert np.mean(found != other.read(1)) < 1e-3 and found.mean() > 0
