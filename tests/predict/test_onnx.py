"""An exported net in the place of a run: the same answers, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from made import salt_folder
from made_maps import make_classes, make_pixels, make_predictor, save_bundle, write_scene
from own_nets import Chain
from told import assert_told, call
from whatwhere import jobs
from whatwhere.bundle import Card
from whatwhere.errors import BundleError, NumericsError, ShapeError, UsageError
from whatwhere.predict import exported as files
from whatwhere.predict import onnx as engine
from whatwhere.predict.engine import Predictor, load
from whatwhere.predict.exported import of_one_tile
from whatwhere.predict.maps import MapOptions, map_scene
from whatwhere.predict.onnx import OnnxBackend, read_exported
from whatwhere.talk import QUIET
from whatwhere.types import Geometry, Normalization

TILE = 128
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net with a small margin, whose bands differ in their means and deviations."""
    net = make_predictor("tutorial", upsample="bilinear", kernel_size=1, n_filters=4, seed=4)
    normalization = Normalization((120.0, 130.5, 101.25), (61.0, 55.5, 70.0))
    net.card = net.card.replace(normalization=normalization, thresholds=(0.37,))
    return save_bundle(tmp_path_factory.mktemp("runs") / "bundle", net)


@pytest.fixture(scope="module")
def net(run: Path) -> Predictor:
    return load(run, device="cpu")


@pytest.fixture(scope="module")
def free(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("free") / "model.onnx"
    jobs.export(run, path, talk=QUIET)
    return path


@pytest.fixture(scope="module")
def fixed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "model.onnx"
    jobs.export(run, path, tile=TILE, talk=QUIET)
    return path


def assert_near(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4
    assert np.ptp(wanted) > 0.2


# --- the same answers ---------------------------------------------------------------------------


def test_pixels_without_data_count_as_they_do_for_the_run(net: Predictor, free: Path) -> None:
    """They are the mean: whatever they hold, and although the graph normalises by itself."""
    exported = load(free)
    pixels = make_pixels(83, 120).astype(np.float32)
    valid = np.ones((83, 120), dtype=np.bool_)
    valid[20:50, 30:70] = False
    wanted = net.probabilities(pixels, valid)
    pixels[:, ~valid] = np.array([np.nan, 1e38, -np.inf], dtype=np.float32)[:, None]
    found = exported.probabilities(pixels, valid)
    assert_near(found, wanted)
    black = np.where(valid, make_pixels(83, 120), 0)
    assert np.abs(net.probabilities(black) - wanted).max() > 0.1  # it matters what they count as
    assert exported.net is None


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (250, 331)])
def test_images_are_cut_as_for_the_run(run: Path, free: Path, size: tuple[int, int]) -> None:
    pixels = make_pixels(*size)
    wanted = load(run, device="cpu", tile=128).probabilities(pixels)
    found = load(free, tile=128).probabilities(pixels)
    assert np.abs(found - wanted).max() <= 1e-4


def test_a_map_is_that_of_the_run(run: Path, free: Path, tmp_path: Path) -> None:
    pixels = make_pixels(200, 260)
    pixels[:, 40:90, 100:150] = 0
    scene = write_scene(tmp_path / "s.tif", pixels, nodata=0)
    for name, model in (("run", run), ("onnx", free)):
        out = tmp_path / f"{name}.tif"
        jobs.predict(model, scene, out, probabilities=True, tta=True, talk=QUIET)
    layers = []
    for name in ("run", "onnx"):
        with rasterio.open(tmp_path / f"{name}_probabilities.tif") as file:
            layers.append(file.read().astype(int))
    assert np.abs(layers[0] - layers[1]).max() <= 1
    assert np.ptp(layers[0]) > 50
    with rasterio.open(tmp_path / "run.tif") as one, rasterio.open(tmp_path / "onnx.tif") as other:
        assert np.mean(one.read(1) != other.read(1)) < 1e-4
        assert (other.read(1)[40:90, 100:150] == other.nodata).all()


def test_parts_of_a_run_and_of_its_export_are_not_mixed(
    run: Path, free: Path, fixed: Path, tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(100, 100))
    half = MapOptions(thresholds=(0.5,), shard=(2, 2))  # of one block the second shard has none
    map_scene([load(run, device="cpu")], scene, tmp_path / "m.tif", half, QUIET)
    with pytest.raises(UsageError, match="parts of another plan"):
        map_scene([load(free)], scene, tmp_path / "m.tif", half, QUIET)
    digests = {load(path, device="cpu").digest for path in (run, free, fixed)}
    assert len(digests) == 3


def test_a_run_and_its_export_work_together(run: Path, free: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", make_pixels(64, 64))
    jobs.predict(free, scene, tmp_path / "m.tif", others=[run], uncertainty="spread", talk=QUIET)
    with rasterio.open(tmp_path / "m_spread.tif") as file:
        assert file.read(1).max() == 0  # two answers, and they are one


def test_it_is_scored_as_the_run_is(tmp_path: Path) -> None:
    data = salt_folder(tmp_path / "data", 5, (40, 40))
    net = make_predictor("tutorial", bands=["grey"], upsample="bilinear", kernel_size=1)
    infos = net.card.classes.infos
    classes = make_classes()
    classes = type(classes)(
        (infos[0], type(infos[1])("salt", 255, (255, 0, 0), raw=(255,))), "binary"
    )
    net.card = net.card.replace(classes=classes)
    folder = save_bundle(tmp_path / "bundle", net)
    jobs.export(folder, tmp_path / "m.onnx", talk=QUIET)
    wanted = jobs.evaluate(folder, data, part="all", talk=QUIET)
    found = jobs.evaluate(tmp_path / "m.onnx", data, part="all", talk=QUIET)
    assert found["images"] == 5
    assert found["mean_iou"] == pytest.approx(wanted["mean_iou"], abs=1e-3)
    assert found["classes"][1]["support"] == wanted["classes"][1]["support"]
    assert_told(call("evaluate", tmp_path / "m.onnx", data, "--part", "all"), 0, "mean IoU")
    before = (tmp_path / "m.onnx").read_bytes()
    told = call("tune", tmp_path / "m.onnx", data)
    assert_told(told, 2, r"m\.onnx: thresholds are kept in a bundle, not in an export\. Tune the")
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_nothing_of_pytorch_is_loaded(free: Path, tmp_path: Path) -> None:
    """Neither for an image nor for a map with polygons."""
    Image.fromarray(make_pixels(50, 60).transpose(1, 2, 0)).save(tmp_path / "i.png")
    write_scene(tmp_path / "s.tif", make_pixels(300, 200))
    code = (
        "import sys\nfrom whatwhere import jobs\nfrom whatwhere.cli import app\n"
        f"app(['predict', {str(free)!r}, 'i.png', '-o', 'i_mask.png'], standalone_mode=False)\n"
        "jobs.predict(sys.argv[1], 's.tif', 'm.tif', polygons='m.gpkg', probabilities=True)\n"
        "print(*(name for name in ('torch', 'timm', 'lightning') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(free)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
    assert (tmp_path / "m.gpkg").is_file() and (tmp_path / "i_mask.png").is_file()


# --- the form for one size ----------------------------------------------------------------------


def test_the_form_for_qgis_is_taken_too(net: Predictor, fixed: Path) -> None:
    """What is smaller is mirrored up; what is larger is cut. Only its edges see something else."""
    exported = load(fixed)
    for size in ((TILE, TILE), (60, 90), (200, 150)):
        pixels = make_pixels(*size)
        found, wanted = exported.probabilities(pixels), net.probabilities(pixels)
        inner = (slice(None), slice(0, max(size[0] - 48, 1)), slice(0, max(size[1] - 48, 1)))
        assert_near(found[inner], wanted[inner])
    with pytest.raises(ShapeError, match="takes at most 128×128 px, not 129×20"):
        exported.backend.run(np.zeros((1, 3, 129, 20), dtype=np.float32))
    with pytest.raises(UsageError, match=r"--tile 256: .* was exported for tiles of 128 px"):
        load(fixed, tile=256)


@pytest.mark.parametrize(
    ("shape", "tile", "wanted"),
    [
        (Geometry(16, 122), 512, Geometry(16, 122)),
        (Geometry(32, 542), 512, Geometry(32, None)),  # there is no room for what it sees
        (Geometry(32, None), 512, Geometry(32, None)),
        (Geometry(16, 92, 92, 12), 512, Geometry(16, 92)),
    ],
)
def test_the_geometry_of_one_tile(shape: Geometry, tile: int, wanted: Geometry) -> None:
    assert of_one_tile(shape, tile) == wanted


@pytest.mark.parametrize("thresholds", [(0.0, 1.0), (0.37, 0.8)])
def test_probabilities_are_unbent(thresholds: tuple[float, float], tmp_path: Path) -> None:
    import torch

    from whatwhere.nn.whole import ForMaps

    values = np.linspace(0, 1, 60, dtype=np.float32)
    wanted = np.stack([values, values[::-1]])[:, None, :]
    net = ForMaps(lambda image: torch.from_numpy(wanted[None]), thresholds)  # type: ignore[arg-type]
    bent = net(torch.zeros(1, 1, 1, 1)).numpy()
    backend = OnnxBackend.__new__(OnnxBackend)
    backend.exported = Exported(tile=60)  # type: ignore[assignment]
    backend._limits = engine.upwards(thresholds)[:, None, None]
    backend._ask = lambda images: bent  # type: ignore[method-assign]
    found = backend.run(np.zeros((1, 3, 1, 60), dtype=np.float32))
    assert np.abs(found[0] - wanted).max() < 1e-6


class Exported:
    def __init__(self, tile: int) -> None:
        self.tile = tile


# --- what is no export of ours ------------------------------------------------------------------


def plain(path: Path) -> Path:
    """An ONNX file of somebody else's."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_files_of_others_are_told_from_ours(tmp_path: Path) -> None:
    path = plain(tmp_path / "theirs.onnx")
    image = tmp_path / "i.png"
    Image.fromarray(make_pixels(20, 20).transpose(1, 2, 0)).save(image)
    done = call("predict", path, image, "-o", tmp_path / "m.png")
    assert_told(done, 4, r"theirs\.onnx: there is no card in it.*`whatwhere export` made")
    (tmp_path / "text.onnx").write_text("hello, I am no net", encoding="utf-8")
    with pytest.raises(BundleError, match=r"text\.onnx: this is no ONNX file, or a damaged one"):
        load(tmp_path / "text.onnx")
    with pytest.raises(BundleError, match=r"none\.onnx: the file cannot be read"):
        load(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(BundleError, match=r"folder\.onnx: the file cannot be read"):
        load(tmp_path / "folder.onnx")


def changed(free: Path, path: Path, change: Change) -> Path:
    model = onnx.load(free)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def say(key: str, text: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = [entry for entry in model.metadata_props if entry.key == key]
        entry.value = text

    return change


def without_a_line(model: onnx.ModelProto) -> None:
    kept = {entry.key: entry.value for entry in model.metadata_props}
    del kept["whatwhere_export"]
    helper.set_model_props(model, kept)


def in_the_card(**lines: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = {entry.key: entry.value for entry in model.metadata_props}
        kept["whatwhere_card"] = json.dumps({**json.loads(kept["whatwhere_card"]), **lines})
        helper.set_model_props(model, kept)

    return change


def other_weights(model: onnx.ModelProto) -> None:
    """As a few flipped bits do it: the file is whole, and the net another one."""
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = np.frombuffer(tensor.raw_data, dtype=np.float32)
    tensor.raw_data = (-values).tobytes()


def weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def weights_elsewhere_inside(model: onnx.ModelProto) -> None:
    """In a constant of a branch of an `If`."""
    inner = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    inner.data_location = TensorProto.EXTERNAL
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["v"], value=inner)
    graphs = [helper.make_graph([constant], f"b{i}", [], [value]) for i in range(2)]
    choice = helper.make_node("If", ["c"], ["w"], then_branch=graphs[0], else_branch=graphs[1])
    model.graph.node.append(choice)


def weights_that_are_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.data_location = TensorProto.EXTERNAL


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def foreign_set(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.com", 1))


def own_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("", "F", ["x"], ["y"], [node], opsets))


def no_graph(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("whatwhere_format", "2"), "the file has format '2', this version reads 1"),
        (say("whatwhere_card", "{"), "what is said in the file cannot be read"),
        (say("whatwhere_card", "[" * 100_000), "what is said in the file cannot be read"),
        (say("whatwhere_card", "{}"), "the card lacks"),
        (say("whatwhere_export", '{"tile": -1, "memory_mb": 1, "largest_difference": 0}'), "tile"),
        (say("whatwhere_export", '{"tile": 1e999}'), "cannot be read"),
        (without_a_line, "cannot be read: 'whatwhere_export'"),
        (in_the_card(orientation="down"), "a size or orientation that there is not"),
        (in_the_card(bands={"names": ["a"], "numbers": [], "convert": False}), "do not agree"),
        (
            in_the_card(
                bands={"names": ["a", "b"], "numbers": [], "convert": False},
                normalization={"mean": [0, 0], "std": [1, 1]},
            ),
            "its image does not go with its card",
        ),
        (
            in_the_card(classes=make_classes(3, "multiclass").to_json(), thresholds=[]),
            "its probabilities does not go with its card",
        ),
        (other_weights, r"does not answer as it did when it was saved \(off by"),
        (weights_elsewhere, "its weights lie in another file, which is not opened"),
        (weights_elsewhere_inside, "its weights lie in another file"),
        (weights_that_are_sparse, "its weights lie in another file"),
        (foreign_operator, r"operators that are not ONNX's \(com\.microsoft\), which is refused"),
        (foreign_set, r"operators that are not ONNX's \(evil\.com\)"),
        (own_function, r"operators that are not ONNX's \(of its own\)"),
        (no_graph, "ONNX Runtime does not take this file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    free: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = changed(free, tmp_path / "m.onnx", change)
    with pytest.raises(BundleError, match=rf"m\.onnx: .*{message}"):
        load(path)


def test_a_file_that_was_cut_off_is_damaged(free: Path, tmp_path: Path) -> None:
    data = free.read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BundleError, match=r"m\.onnx: "):
            load(tmp_path / "m.onnx")


def test_what_is_too_large_is_not_read(
    free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MOST_CARD_CHARACTERS", 100)
    with pytest.raises(BundleError, match="more than 16 MB are not read"):
        load(free)
    monkeypatch.setattr(engine, "MOST_BYTES", 1000)
    with pytest.raises(BundleError, match="more than 2 GB are not read"):
        load(free)


def test_what_it_cannot_do_is_refused(free: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda: .* runs on the processor. Give the run"):
        load(free, device="cuda")
    with pytest.raises(UsageError, match="the whole net is in this file, and takes no encoder="):
        load(free, encoder=Chain(3, (4,)))
    with pytest.raises(NumericsError, match="output is not finite"):
        load(free).backend.run(np.full((1, 3, 8, 8), np.nan, dtype=np.float32))
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot run this net on \(1, 2, 8, 8\)"):
        load(free).backend.run(np.zeros((1, 2, 8, 8), dtype=np.float32))


def test_it_computes_with_the_threads_of_the_machine(
    free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    backend = load(free).backend
    assert isinstance(backend, OnnxBackend)

    def threads() -> int:
        return int(backend._session.get_session_options().intra_op_num_threads)

    assert threads() == 3
    with backend.computing(1):
        assert threads() == 1
        assert backend.run(np.zeros((2, 3, 8, 8), dtype=np.float32)).shape == (2, 1, 8, 8)
    assert threads() == 3


def test_what_the_file_knows(free: Path, run: Path) -> None:
    found = read_exported(free)
    assert isinstance(found.card, Card)
    assert (found.tile, found.usable) == (0, found.card)
    assert 0 < found.difference <= 1e-4
    backend = load(free).backend
    assert isinstance(backend, OnnxBackend)
    assert backend.memory_mb(3, 1024) == 4 * found.memory_mb
