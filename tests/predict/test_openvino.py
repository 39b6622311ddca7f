"""A net exported for OpenVINO in the place of a run: the same answers, without PyTorch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from made_maps import make_pixels, make_predictor, save_bundle, write_scene
from told import assert_told, call
from whatwhere import bundle, files, jobs
from whatwhere.errors import BundleError, NumericsError, OutputError, ShapeError, UsageError
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.openvino import OpenvinoBackend, parse, read_exported
from whatwhere.talk import QUIET
from whatwhere.types import Normalization

ov = pytest.importorskip("openvino")
TILE = 128
Change = Callable[[str], str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose bands differ in their means and deviations."""
    net = make_predictor("tutorial", upsample="bilinear", kernel_size=1, n_filters=4, seed=4)
    normalization = Normalization((120.0, 130.5, 101.25), (61.0, 55.5, 70.0))
    net.card = net.card.replace(normalization=normalization, thresholds=(0.37,))
    return save_bundle(tmp_path_factory.mktemp("runs") / "bundle", net)


@pytest.fixture(scope="module")
def net(run: Path) -> Predictor:
    return load(run, device="cpu")


@pytest.fixture(scope="module")
def free(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("free") / "model.xml"
    jobs.export(run, path, talk=QUIET)
    return path


@pytest.fixture(scope="module")
def fixed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "model.xml"
    jobs.export(run, path, tile=TILE, talk=QUIET)
    return path


def assert_near(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4
    assert np.ptp(wanted) > 0.2


# --- the same answers ---------------------------------------------------------------------------


def test_any_program_gets_the_same_answers(net: Predictor, free: Path) -> None:
    """With OpenVINO alone: the numbers of files go in, of any size and number."""
    compiled = ov.Core().compile_model(free, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((1, 1), (5, 40), (131, 97)):
        images = np.stack([make_pixels(*size, seed=seed) for seed in range(2)])
        wanted = np.stack([net.probabilities(image) for image in images])
        found = compiled(images.astype(np.float32))["probabilities"]
        assert np.abs(found - wanted).max() <= 1e-4


def test_images_and_pixels_without_data_are_as_for_the_run(net: Predictor, free: Path) -> None:
    exported = load(free, tile=128)
    assert exported.net is None
    pixels = make_pixels(250, 331)
    valid = np.ones((250, 331), dtype=np.bool_)
    valid[20:50, 30:70] = False
    assert_near(exported.probabilities(pixels, valid), net.probabilities(pixels, valid))


def test_a_map_is_that_of_the_run(run: Path, free: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(200, 260))
    layers = []
    for name, model in (("run", run), ("xml", free)):
        jobs.predict(model, scene, tmp_path / f"{name}.tif", probabilities=True, talk=QUIET)
        with rasterio.open(tmp_path / f"{name}_probabilities.tif") as file:
            layers.append(file.read().astype(int))
    assert np.abs(layers[0] - layers[1]).max() <= 1
    assert np.ptp(layers[0]) > 50


@pytest.mark.slow
def test_the_form_for_one_size(net: Predictor, fixed: Path) -> None:
    """What is smaller is mirrored up; what is larger is cut."""
    exported = load(fixed)
    for size in ((TILE, TILE), (60, 90), (200, 150)):
        pixels = make_pixels(*size)
        found, wanted = exported.probabilities(pixels), net.probabilities(pixels)
        inner = (slice(None), slice(0, max(size[0] - 48, 1)), slice(0, max(size[1] - 48, 1)))
        assert_near(found[inner], wanted[inner])
    with pytest.raises(ShapeError, match="takes at most 128×128 px, not 129×20"):
        exported.backend.run(np.zeros((1, 3, 129, 20), dtype=np.float32))
    pixels = make_pixels(TILE, TILE).astype(np.float32)
    found = ov.Core().compile_model(fixed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels[None])
    assert_near(found["probabilities"][0], net.probabilities(pixels))


def test_nothing_of_pytorch_is_loaded_and_nobody_is_called(free: Path, tmp_path: Path) -> None:
    Image.fromarray(make_pixels(50, 60).transpose(1, 2, 0)).save(tmp_path / "i.png")
    write_scene(tmp_path / "s.tif", make_pixels(300, 200))
    code = (
        "import sys\ncalled = []\n"
        "sys.addaudithook(lambda name, _: name.startswith('socket.') and called.append(name))\n"
        "from whatwhere import jobs\nfrom whatwhere.cli import app\n"
        f"app(['predict', {str(free)!r}, 'i.png', '-o', 'i_mask.png'], standalone_mode=False)\n"
        "jobs.predict(sys.argv[1], 's.tif', 'm.tif', polygons='m.gpkg', probabilities=True)\n"
        "print(*(name for name in ('torch', 'timm', 'lightning') if name in sys.modules), *called)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(free)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
    assert (tmp_path / "m.gpkg").is_file() and (tmp_path / "i_mask.png").is_file()
    assert not (tmp_path / "home").exists()


def test_it_computes_in_float32_with_the_threads_of_the_plan(
    free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    backend = load(free).backend
    assert isinstance(backend, OpenvinoBackend)

    def setting(name: str) -> Any:
        return backend._session.get_compiled_model().get_property(name)

    assert setting("INFERENCE_PRECISION_HINT") == ov.Type.f32
    usual = setting("INFERENCE_NUM_THREADS")
    with backend.computing(1):
        assert setting("INFERENCE_NUM_THREADS") == 1
        assert setting("INFERENCE_PRECISION_HINT") == ov.Type.f32
        assert backend.run(np.zeros((2, 3, 8, 8), dtype=np.float32)).shape == (2, 1, 8, 8)
    assert setting("INFERENCE_NUM_THREADS") == usual


# --- what the files say -------------------------------------------------------------------------


def test_what_the_file_knows(run: Path, free: Path) -> None:
    found = read_exported(free)
    original = bundle.load(run)
    assert found.card.replace(self_test={}) == original.card
    assert found.source == original.digest
    assert 0 < found.difference <= 1e-4 and found.tile == 0
    theirs = ov.Core().read_model(free)  # OpenVINO finds it where it keeps such
    told = theirs.get_rt_info(["whatwhere", "export"]).astype(str)
    assert json.loads(told)["compared"] == [[1, 37, 57], [1, 5, 7], [2, 16, 48]]
    assert b"site-packages" not in free.read_bytes()
    assert "f16" not in free.read_text(encoding="utf-8").lower().replace("bf16", "")


def test_weights_that_are_missing_or_others_are_told(free: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(free, tmp_path))
    with pytest.raises(BundleError, match=r"model\.xml: its weights, model\.bin beside it, cannot"):
        load(path)
    data = free.with_suffix(".bin").read_bytes()
    for wrong in (data[:-1], b"", bytes([data[0] ^ 1]) + data[1:]):
        path.with_suffix(".bin").write_bytes(wrong)
        with pytest.raises(BundleError, match=r"model\.xml: model\.bin beside it holds other weig"):
            load(path)
    image = tmp_path / "i.png"
    Image.fromarray(make_pixels(20, 20).transpose(1, 2, 0)).save(image)
    assert_told(call("predict", path, image, "-o", tmp_path / "m.png"), 4, "Copy both files again")
    path.with_suffix(".bin").write_bytes(data)
    assert load(path).digest == load(free).digest


def test_both_files_are_written_or_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.xml"
    path.write_bytes(b"from before")
    write = files._written_beside

    def full(place: Path, data: bytes) -> Any:
        if place == path:
            raise OutputError(f"{place}: the disk is full.")
        return write(place, data)

    monkeypatch.setattr(files, "_written_beside", full)
    with pytest.raises(OutputError, match="the disk is full"):
        files.write_together({path.with_suffix(".bin"): b"weights", path: b"graph"})
    assert [one.name for one in tmp_path.iterdir()] == ["model.xml"]
    assert path.read_bytes() == b"from before"
    monkeypatch.undo()
    path.with_suffix(".bin").mkdir()
    with pytest.raises(OutputError, match=r"model\.bin: cannot write this file: Is a directory"):
        files.write_together({path.with_suffix(".bin"): b"weights", path: b"graph"})
    assert path.read_bytes() == b"from before"


def say(key: str, text: str) -> Change:
    return lambda graph: re.sub(rf'<{key} value="[^"]*"', f'<{key} value="{text}"', graph)


def first(layer: str, attribute: str, value: str) -> Change:
    """Change an attribute of the first layer of this kind."""

    def change(graph: str) -> str:
        place = re.search(rf'<layer [^>]*type="{layer}"[^>]*>', graph)
        assert place is not None
        line = re.sub(rf'{attribute}="[^"]*"', f'{attribute}="{value}"', place[0])
        return graph.replace(place[0], line, 1)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("format", "2"), "the file has format '2', this version reads 1"),
        (say("card", "{"), "what is said in the file cannot be read"),
        (say("card", "{}"), "the card lacks"),
        (say("export", "{&quot;tile&quot;: -1}"), "cannot be read"),
        (say("weights", "0"), "holds other weights"),
        (
            lambda graph: re.sub("<whatwhere>.*</whatwhere>", "", graph, flags=re.S),
            "holds other we",
        ),
        (lambda graph: graph.replace("<net", "<!DOCTYPE a><net"), "declares words of its own"),
        (lambda graph: graph[: len(graph) // 2], "no graph of OpenVINO, or a damaged one"),
        (lambda graph: "hello", "no graph of OpenVINO, or a damaged one"),
        (
            first("Convolution", "version", "extension"),
            r"not OpenVINO's \(Convolution of extension",
        ),
        (first("Convolution", "version", ""), r"not OpenVINO's \(Convolution of nowhere\)"),
        (first("Convolution", "type", "Evil"), "OpenVINO does not take this file"),
        (
            lambda graph: graph.replace('offset="0"', 'offset="99999999"', 1),
            "OpenVINO does not take this file",
        ),
        (
            lambda graph: graph.replace('names="probabilities"', 'names="masks"'),
            "its probabilities does not go with its card",
        ),
        (
            lambda graph: graph.replace('"image"', '"picture"'),
            "its image does not go with its card",
        ),
        (say("source", "x"), ""),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    free: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = tmp_path / "m.xml"
    shutil.copy(free.with_suffix(".bin"), tmp_path / "m.bin")
    text = free.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    if not message:  # a change that does no harm
        assert load(path).digest != load(free).digest
        return
    with pytest.raises(BundleError, match=rf"m\.xml: .*{message}"):
        load(path)


def test_answers_are_compared_when_it_is_opened(free: Path, tmp_path: Path) -> None:
    import hashlib

    data = bytearray(free.with_suffix(".bin").read_bytes())
    values = np.frombuffer(data, dtype=np.float32, count=len(data) // 4).copy()
    values[100:] *= -1
    wrong = values.tobytes() + bytes(data[values.nbytes :])
    (tmp_path / "m.bin").write_bytes(wrong)
    text = say("weights", hashlib.sha256(wrong).hexdigest())(free.read_text(encoding="utf-8"))
    (tmp_path / "m.xml").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"m\.xml: "):
        load(tmp_path / "m.xml")


def test_operators_inside_others_are_looked_at() -> None:
    inner = '<layer type="If" version="opset8"><then_body><layers><layer type="A" version="x"/>'
    graph = f"<net><layers>{inner}</layers></then_body></layer></layers></net>"
    with pytest.raises(BundleError, match=r"operators that are not OpenVINO's \(A of x\)"):
        parse(graph.encode())


def test_what_it_cannot_do_is_refused(free: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda: .* runs on the processor. Give the run"):
        load(free, device="cuda")
    for value in (np.nan, np.inf, -1e30):
        image = np.zeros((1, 3, 8, 8), dtype=np.float32)
        image[0, 1, 2, 3] = value
        with pytest.raises(NumericsError, match=r"values that are not finite, or beyond 1e\+18"):
            load(free).backend.run(image)
    with pytest.raises(BundleError, match=r"OpenVINO cannot run this net on \(1, 2, 8, 8\)"):
        load(free).backend.run(np.zeros((1, 2, 8, 8), dtype=np.float32))
    with pytest.raises(BundleError, match=r"none\.xml: the file cannot be read"):
        load(tmp_path / "none.xml")
    with pytest.raises(UsageError, match="thresholds are kept in a bundle, not in an export"):
        jobs.tune(free, tmp_path)
    with pytest.raises(UsageError, match="this is an export. Give the run"):
        jobs.export(free, tmp_path / "n.onnx")
