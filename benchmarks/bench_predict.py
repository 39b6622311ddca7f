"""A scene mapped from file to file, beside four peers, with the same net and weights.

    WHATWHERE_DATA=data python benchmarks/bench_predict.py
    OMP_NUM_THREADS=1 python benchmarks/bench_predict.py --crop 1024 --tile 512 --dry-run

All but some of ours run a U-Net of segmentation_models_pytorch in float32 on the processor, one
tile at a time. Its weights are drawn from a seed and its norms' statistics measured on the scene,
so that probabilities spread. Peers are not among this project's dependencies; one that is missing
is left out:

    pip install segmentation-models-pytorch monai geo-inference geoai-py terratorch

Each way has a process of its own, and they take turns: in each round all of them, each followed by
its net alone, which is given the very tiles it was given there, from memory. `over_net` is what the
whole way takes beyond that, in the median of the rounds; `beside_net` is the same by a clock around
the net within the whole way, which knows no noise between two processes, but not what others take
from the net while it computes (none where the net is TorchScript, which has no clock). `computed`
counts the pixels that went through the net for each pixel of the scene: where tiles are made twice,
it says so, `over_net` does not. Memory is what is added to the process's peak after imports and
net. The seam error is the
distance to `p_whole`, what the net says of windows with all the context it can see, over all pixels
farther from the scene's edge than it sees; it is measured in a run that is not timed.

`ours-onnx`, `ours-openvino` and `ours-int8` run an export of the net, the last in 8 bits fitted to
windows of the scene, whose seam is the distance to what the net in 8 bits says of such windows.
`monai-onnx` lets ONNX Runtime, as it comes, run that export within MONAI's window. `ours-free` runs
the run or export that `--free` names, whatever net that is: its rows tell a rate, and no seam.
Names with `default` take what a program takes by itself.

The plain names share `--tile` and `--overlap`: neighbours overlap by twice that. The names with
`exact` and `wide` share the halo that our default takes for this net, around cores of 1,024 px: a
smaller scene is one tile of theirs, and has no seam. geo-inference always overlaps by half a tile.
MONAI and TerraTorch blend the logits, as they do in their own examples; TerraTorch drops half of
the overlap (all of it where wide) and blends the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from rows import append

from whatwhere.machine import large_pages, peak_memory_mb, threads

SCENE = "oam_banepa/scene_train.tif"
STRIDE = 32
CORE = 1024  # of the wide tiles, and of the windows of `p_whole` [px]
RELEASES = {
    "ours": "whatwhere",
    "ours-exact": "whatwhere",
    "ours-onnx": "whatwhere",
    "ours-openvino": "whatwhere",
    "ours-int8": "whatwhere",
    "monai": "monai",
    "monai-wide": "monai",
    "geo-inference": "geo-inference",
    "geoai": "geoai-py",
    "geoai-wide": "geoai-py",
    "terratorch": "terratorch",
    "terratorch-wide": "terratorch",
    "ours-openvino-exact": "whatwhere",
    "ours-default": "whatwhere",
    "ours-onnx-default": "whatwhere",
    "ours-int8-default": "whatwhere",
    "ours-free": "whatwhere",
    "monai-onnx": "monai",
    "monai-default": "monai",
    "geoai-default": "geoai-py",
    "geo-inference-default": "geo-inference",
}
EXPORTS = {
    "ours-onnx": "net.onnx",
    "ours-openvino": "net.xml",
    "ours-openvino-exact": "net.xml",
    "ours-int8": "int8.xml",
    "ours-onnx-default": "net.onnx",
    "ours-int8-default": "int8.xml",
    "monai-onnx": "net.onnx",
}
"""The ways on an export of the net, and its file."""

DEFAULTS = {
    **dict.fromkeys(("ours", "ours-onnx", "ours-int8"), (0, 0)),
    "monai": (512, 64),
    "geoai": (512, 128),
    "geo-inference": (1024, 256),
}
"""Tile and overlap on each side that a program takes by itself [px].

MONAI has no tile of its own; ours follow from scene, net and memory.
"""

MODULES = {
    "ours": ("whatwhere.predict.maps", "tifffile"),
    "monai": ("monai.inferers",),
    "geo-inference": ("geo_inference.geo_inference",),
    "geoai": ("geoai.train",),
    "terratorch": ("terratorch.tasks.tiled_inference",),
}

Probabilities = NDArray[np.float32]
Run = Callable[[Path, "Probabilities | None"], None]
"""Maps the scene to a file; fills `(H, W)` with its probabilities where it is given one."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process does.

    Attributes:
        folder: Where scene, net and tiles lie.
        name: One of `RELEASES`.
        encoder: Of the net.
        tile: Side of what the net sees [px].
        overlap: Context on each side of a tile [px].
        margin: How far the net sees [px].
        free: A run or an export of ours, for the way that takes a net of its own.
    """

    folder: str
    name: str
    encoder: str
    tile: int
    overlap: int
    margin: int
    free: str = ""

    @property
    def scene(self) -> Path:
        """The scene's file."""
        return Path(self.folder, "scene.tif")

    @property
    def tiles(self) -> Path:
        """Where what the net was given is kept."""
        return Path(self.folder, f"tiles-{self.name}")


def main() -> None:
    """Measure, and keep a row of each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scene", type=Path, help=f"default: WHATWHERE_DATA/{SCENE}")
    parser.add_argument("--crop", type=int, default=0, help="side of the part that is mapped [px]")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--tile", type=int, default=1024, help="of the plain names [px]")
    parser.add_argument("--overlap", type=int, default=64, help="on each side of a tile [px]")
    parser.add_argument("--free", default="", help="a run or an export, for the way `ours-free`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(RELEASES), choices=list(RELEASES))
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no rows")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        WORKS[given.worker[0]](json.loads(given.worker[1]))
        return
    scene = given.scene or Path(os.environ["WHATWHERE_DATA"], SCENE)
    with tempfile.TemporaryDirectory() as folder:
        asked = {"folder": folder, "encoder": given.encoder, "crop": given.crop}
        facts = ask("prepare", {**asked, "scene": str(scene.absolute())})
        if facts is None:
            sys.exit("The net or the scene cannot be prepared.")
        print(f"scene {facts['height']}×{facts['width']} px, the net sees {facts['margin']} px far")
        jobs = [job for name in given.only if (job := make_job(name, folder, given, facts))]
        compare(jobs, facts, given)


def make_job(name: str, folder: str, given: argparse.Namespace, facts: Any) -> Job | None:
    """Return a way's job; None, with a line, where its peer is not installed."""
    try:
        version(RELEASES[name])
    except PackageNotFoundError:
        print(f"{name} is not installed, and left out: pip install {RELEASES[name]}")
        return None
    if name == "ours-free" and not given.free:
        return None
    tile, overlap = given.tile, given.overlap
    if name.endswith(("-exact", "-wide")):
        tile, overlap = CORE + 2 * facts["halo"], facts["halo"]
    elif name.endswith("-default"):
        tile, overlap = DEFAULTS[name.removesuffix("-default")]
    elif name == "geo-inference":
        overlap = tile // 4
    return Job(folder, name, given.encoder, tile, overlap, facts["margin"], given.free)


def ask(work: str, words: dict[str, Any]) -> dict[str, Any] | None:
    """Let a process of its own do something; None, with a line, if it failed.

    This process stays small: Linux lets a child begin with its parent's peak of memory.
    """
    command = [sys.executable, "-W", "ignore", __file__, "--worker", work, json.dumps(words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()] or ["no word of it"]
        print(f"{words.get('name', '')} {work} failed: {told[-1]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(jobs: list[Job], facts: dict[str, Any], given: argparse.Namespace) -> None:
    """Measure seams, then times in turn, and keep the rows."""
    seams = {}
    for job in jobs:
        seams[job.name] = ask("seam", dataclasses.asdict(job))
        print(f"seams of {job.name}: {seams[job.name]}", flush=True)
    taken: dict[str, list[tuple[Any, Any]]] = {job.name: [] for job in jobs if seams[job.name]}
    for number in range(given.rounds):
        for job in jobs:
            if job.name in taken:
                words = dataclasses.asdict(job)
                pair = ask("map", words), ask("net", words)
                if None in pair:
                    del taken[job.name]
                    continue
                taken[job.name].append(pair)
                print(f"round {number + 1}: {job.name} {pair[0]} net {pair[1]}", flush=True)
    for job in jobs:
        if job.name not in taken:
            continue
        whole, net = zip(*taken[job.name], strict=True)
        over = [a["seconds"] / b["seconds"] - 1 for a, b in taken[job.name]]
        over_cpu = [a["cpu_seconds"] / b["cpu_seconds"] - 1 for a, b in taken[job.name]]
        free = job.name == "ours-free"
        row = {
            "way": job.name,
            "release": version(RELEASES[job.name]),
            "encoder": f"{Path(job.free).name}, its own" if free else job.encoder,
            "height": facts["height"],
            "width": facts["width"],
            "threads": threads(),
            "rounds": given.rounds,
            "tile": "" if free else job.tile or "",
            "overlap": "" if free or not job.tile else job.overlap,
            "seconds": middle(one["seconds"] for one in whole),
            "cpu_seconds": middle(one["cpu_seconds"] for one in whole),
            "net_seconds": middle(one["seconds"] for one in net),
            "net_cpu_seconds": middle(one["cpu_seconds"] for one in net),
            "over_net": middle(over),
            "over_net_min": round(min(over), 3),
            "over_net_max": round(max(over), 3),
            "over_net_cpu": middle(over_cpu),
            "beside_net": middle(one["beside_net"] for one in whole)
            if "beside_net" in whole[0]
            else None,
            "peak_mb": max(one["peak_mb"] for one in whole),
            **(seams[job.name] or {}),
        }
        if given.dry_run:
            print(row)
        else:
            append("bench_predict", **row)


def middle(values: Any) -> float:
    """Return the median."""
    return round(statistics.median(values), 3)


# What follows runs in processes of their own.


def prepare(words: dict[str, Any]) -> None:
    """Cut the scene, draw a net, and find what it says of windows with all their context."""
    import torch

    from whatwhere.nn.build import seen_margin

    torch.set_num_threads(threads())
    folder, pixels = Path(words["folder"]), cut_scene(words)
    net = draw_net(words["encoder"], pixels)
    torch.save(net.state_dict(), folder / "net.pt")
    probe: Any = torch.nn.Sequential(net)
    probe.encoder, probe.in_channels = types.SimpleNamespace(stride=STRIDE), len(pixels)
    margin = seen_margin(probe)
    if margin is None:
        sys.exit("a net that sees the whole window has no seam error: choose another encoder")
    halo = -(-margin // STRIDE) * STRIDE

    def ask(seen: NDArray[np.uint8]) -> Probabilities:
        found: Probabilities = torch.sigmoid(net(normalized(seen)))[0, 0].numpy()
        return found

    with torch.inference_mode():
        np.save(folder / "whole.npy", see_whole(ask, pixels, halo))
    _, height, width = pixels.shape
    facts = {"margin": margin, "halo": halo, "height": height, "width": width}
    print(json.dumps(facts))


def cut_scene(words: dict[str, Any]) -> NDArray[np.uint8]:
    """Write what is mapped to `scene.tif`, and return its pixels `(3, H, W)`."""
    with rasterio.open(words["scene"]) as file:
        if file.count != 3 or file.dtypes[0] != "uint8":
            sys.exit("the scene must have three bands of bytes")
        height, width = (min(words["crop"] or side, side) for side in file.shape)
        pixels: NDArray[np.uint8] = file.read(window=Window(0, 0, width, height))
        placed = {"crs": file.crs, "transform": file.transform}
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256}
    layout |= {"compress": "deflate", "interleave": "pixel", "dtype": "uint8", **placed}
    path = Path(words["folder"], "scene.tif")
    with rasterio.open(path, "w", count=3, height=height, width=width, **layout) as file:
        file.write(pixels)
    return pixels


def build_net(encoder: str) -> Any:
    """Build the net that all run, without weights."""
    import segmentation_models_pytorch as smp

    return smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)


def draw_net(encoder: str, pixels: NDArray[np.uint8]) -> Any:
    """Draw weights, let the norms see the scene, and spread the logits (standard deviation 2)."""
    import torch

    torch.manual_seed(0)
    net = build_net(encoder)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all that is seen
    rng = np.random.default_rng(0)
    side = min(512, *(length // STRIDE * STRIDE for length in pixels.shape[1:]))
    corners = [[int(rng.integers(0, n - side + 1)) for n in pixels.shape[1:]] for _ in range(8)]
    images = [normalized(pixels[:, r : r + side, c : c + side]) for r, c in corners]
    with torch.no_grad():
        net.train()
        for image in images:
            net(image)
        net.eval()
        logits = torch.cat([net(image) for image in images])
        last = net.segmentation_head[0]
        gain = 2 / float(logits.std())
        last.weight *= gain
        last.bias.copy_((last.bias - logits.mean()) * gain)
    return net


def see_whole(
    ask: Callable[[NDArray[np.uint8]], Probabilities], pixels: NDArray[np.uint8], halo: int
) -> Probabilities:
    """Return `(H, W)` probabilities with all the context there is to see; NaN near the edge."""
    _, height, width = pixels.shape
    whole = np.full((height, width), np.nan, dtype=np.float32)
    ends = [side // STRIDE * STRIDE - halo for side in (height, width)]
    for row in range(halo, ends[0], CORE):
        for column in range(halo, ends[1], CORE):
            last, right = min(row + CORE, ends[0]), min(column + CORE, ends[1])
            found = ask(pixels[:, row - halo : last + halo, column - halo : right + halo])
            whole[row:last, column:right] = found[halo:-halo, halo:-halo]
    if np.isnan(whole).all():
        sys.exit(f"the scene is too small: it needs sides above {2 * halo} px")
    return whole


def normalized(pixels: NDArray[np.uint8]) -> Any:
    """Return `(1, 3, H, W)` as the net takes it."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).float()[None] / 255


def load_net(job: Job) -> Any:
    """Return the net with its weights; or our engine of its export, which is called as a net is."""
    import torch

    torch.set_num_threads(threads())
    large_pages()  # as our pipeline does: the others and the net alone are helped by it too
    if job.name == "ours-free":
        from whatwhere.predict.engine import load

        return as_net(load(job.free))
    net = build_net(job.encoder)
    net.load_state_dict(torch.load(Path(job.folder, "net.pt"), weights_only=True))
    net.eval()
    return open_export(job, net) if job.name in EXPORTS else net


def make_card(job: Job) -> Any:
    """Return the card of the net."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from made_maps import make_predictor
    from whatwhere.types import Geometry, Normalization

    return make_predictor().card.replace(
        normalization=Normalization((0.0,) * 3, (255.0,) * 3),
        geometry=Geometry(STRIDE, job.margin),
    )


def open_export(job: Job, net: Any) -> Any:
    """Export the net as `whatwhere export` does, once, and open what runs it."""
    import torch

    from whatwhere.nn.blocks import cut_back, mirror_up
    from whatwhere.predict.backends import TorchBackend
    from whatwhere.predict.choice import open_exported
    from whatwhere.predict.engine import Predictor
    from whatwhere.predict.graphs import Original

    class AnySize(torch.nn.Module):
        """Takes images of any size."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net
            net.check_input_shape = lambda _image: None  # its question stops the tracing

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            sides = [(side + STRIDE - 1) // STRIDE * STRIDE for side in image.shape[-2:]]
            return cut_back(self.net(mirror_up(image, *sides)), *image.shape[-2:])

    path = Path(job.folder, EXPORTS[job.name])
    if job.name.startswith("monai"):
        if not path.exists():
            open_export(dataclasses.replace(job, name="ours-onnx"), net)
        return as_it_comes(path)
    if not path.exists():
        backend = TorchBackend(AnySize(), "binary")
        original = Original(card=make_card(job), backend=backend, digest="0" * 64)
        write_export(original, job, path)
    return as_net(Predictor(make_card(job), open_exported(path), job.tile, "seeded"))


def as_it_comes(path: Path) -> Any:
    """Return what runs an export of ours in ONNX Runtime, without any setting of ours."""
    import onnxruntime
    import torch

    class Session(torch.nn.Module):
        """Gives logits, as a net does."""

        def __init__(self) -> None:
            super().__init__()
            self.session = onnxruntime.InferenceSession(path)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            name = self.session.get_inputs()[0].name
            (found,) = self.session.run(None, {name: 255 * images.numpy()})
            return torch.logit(torch.from_numpy(found))

    return Session()


def as_net(predictor: Any) -> Any:
    """Let hooks and clocks of nets see what a predictor asks its engine."""
    import torch

    class Engine(torch.nn.Module):
        """Asks the engine."""

        def __init__(self) -> None:
            super().__init__()
            self.predictor, self.ask = predictor, predictor.backend.run
            predictor.backend.run = self  # the pipeline asks through this

        def forward(self, images: Any) -> Any:
            return self.ask(images)

    return Engine()


def write_export(original: Any, job: Job, path: Path) -> None:
    """Write an export, in 8 bits fitted to windows of the scene; it is not compared.

    Drawn weights magnify what engines round otherwise, beyond what `whatwhere export` accepts.
    """
    import nncf
    import openvino as library

    from whatwhere.export import made_xml, write
    from whatwhere.predict import openvino
    from whatwhere.predict.backends import note_answers
    from whatwhere.predict.graphs import onnx_model, with_lines
    from whatwhere.predict.onnx import OnnxBackend
    from whatwhere.quantizing import quantized

    about = {"largest_difference": 1.0, "versions": {}}
    model = onnx_model(original, for_maps=False)
    if path.suffix == ".onnx":
        backend = OnnxBackend(original.exported(model.SerializeToString()))
        answers = note_answers(backend, original.card)
        path.write_bytes(with_lines(model, original.lines(answers, about)))
        return
    graph, tolerance = library.Core().read_model(model.SerializeToString()), 1e-3
    if path.name == EXPORTS["ours-int8"]:
        with rasterio.open(job.scene) as file:
            pixels = file.read().astype(np.float32)
        chance, sides = np.random.default_rng(0), pixels.shape[1:]
        corners = [[int(chance.integers(0, side - 255)) for side in sides] for _ in range(100)]
        chips = [pixels[None, :, r : r + 256, c : c + 256] for r, c in corners]
        graph = quantized(nncf, graph, [np.ascontiguousarray(chip) for chip in chips])
        tolerance = 0.05
    made = made_xml(original, *openvino.to_files(graph, path.parent))
    write(path, made, original.lines({**made.self_test, "tolerance": tolerance}, about))


def ours(job: Job, net: Any) -> Run:
    """`map_scene`, as `whatwhere predict` calls it."""
    from whatwhere.predict.backends import TorchBackend
    from whatwhere.predict.blocks import Answer
    from whatwhere.predict.engine import Predictor
    from whatwhere.predict.maps import MapOptions, map_scene
    from whatwhere.predict.parts import Parts
    from whatwhere.talk import QUIET

    if hasattr(net, "predictor"):
        predictor = net.predictor
    else:
        predictor = Predictor(make_card(job), TorchBackend(net, "binary"), job.tile, "seeded")
    exact = job.name.endswith(("-exact", "-default", "-free"))
    overlap = None if exact else job.overlap
    options = MapOptions(thresholds=(0.5,), overlap=overlap)
    make = Parts.make

    def run(output: Path, keep: Probabilities | None) -> None:
        def note(parts: Parts, number: int, answer: Answer) -> None:
            if keep is not None:
                keep[parts.plan.window(number).slices] = answer.probabilities[0]
            make(parts, number, answer)

        Parts.make = make if keep is None else note  # type: ignore[method-assign]
        map_scene([predictor], job.scene, output, options, QUIET)

    return run


def monai(job: Job, net: Any) -> Run:
    """MONAI's inferer on the whole scene."""
    import torch
    from monai.inferers import SlidingWindowInferer

    # MONAI cuts the fractions of a step off: half a pixel makes up for rounding.
    fraction = (2 * job.overlap - 0.5) / job.tile
    inferer = SlidingWindowInferer(job.tile, 1, fraction, mode="gaussian")

    def run(output: Path, keep: Probabilities | None) -> None:
        pixels, profile = read_scene(job)
        with torch.inference_mode():
            found = torch.sigmoid(inferer(pixels, net))[0, 0].numpy()
        write_mask(output, found, profile, keep)

    return run


def terratorch(job: Job, net: Any) -> Run:
    """TerraTorch's tiled inference on the whole scene."""
    import torch
    from terratorch.tasks.tiled_inference import tiled_inference

    wide = job.name.endswith("-wide")
    words = {"crop": job.tile, "stride": job.tile - 2 * job.overlap, "batch_size": 1}
    # Where the scene begins for it must be a multiple of the net's stride.
    words["delta"] = job.overlap if wide else job.overlap // 2 // STRIDE * STRIDE

    def run(output: Path, keep: Probabilities | None) -> None:
        pixels, profile = read_scene(job)
        with torch.inference_mode():
            padding = "reflect" if words["delta"] else False
            found = tiled_inference(net, pixels, padding=padding, **words)
            found = torch.sigmoid(found)[0, 0].numpy()
        write_mask(output, found, profile, keep)

    return run


def geoai(job: Job, net: Any) -> Run:
    """Semantic inference of geoai, which reads and writes by itself; it divides bytes by 255."""
    import torch
    from geoai.train import semantic_inference_on_geotiff

    class Two(torch.nn.Module):
        """Two logits, whose softmax is the sigmoid of one."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Any) -> Any:
            logit = self.net(image)
            return torch.cat([torch.zeros_like(logit), logit], dim=1)

    words: dict[str, Any] = {"probability_threshold": 0.5, "device": torch.device("cpu")}
    words |= {"window_size": job.tile, "overlap": 2 * job.overlap, "batch_size": 1, "quiet": True}
    two = Two()

    def run(output: Path, keep: Probabilities | None) -> None:
        beside = output.with_suffix(".probabilities.tif")
        if keep is not None:
            words["probability_path"] = str(beside)
        semantic_inference_on_geotiff(two, str(job.scene), str(output), **words)
        if keep is not None:
            with rasterio.open(beside) as file:
                keep[:] = file.read(2)

    return run


def geo_inference(job: Job, net: Any) -> Run:
    """geo-inference on the net as TorchScript, which reads and writes by itself."""
    import geo_inference.geo_inference as peer
    import torch

    class Scripted(torch.nn.Module):
        """From bytes to probabilities."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.net = inner

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.net(image.float() / 255))

    path, work = Path(job.folder, "scripted.pt"), Path(job.folder, "work")
    if not path.exists():
        torch.jit.script(Scripted(net)).save(path)
    work.mkdir(exist_ok=True)
    words: dict[str, Any] = {
        "model": str(path),
        "work_dir": str(work),
        "device": "cpu",
        "num_classes": 1,
    }
    inference = peer.GeoInference(**words, prediction_threshold=0.5)
    once, step = peer.runModel, job.tile // 2

    def run(output: Path, keep: Probabilities | None) -> None:
        if keep is not None:
            height, width = keep.shape
            sums = np.zeros((2, height + 2 * job.tile, width + 2 * job.tile))

            def note(*given: Any, block_info: Any = None, **more: Any) -> Any:
                found = once(*given, block_info=block_info, **more)
                if block_info and found is not None:
                    row, column = (i * step for i in block_info[0]["chunk-location"][1:])
                    sums[:, row : row + job.tile, column : column + job.tile] += found
                return found

            peer.runModel = note
            inference.model = Scripted(net)  # whose tiles can be kept
        name = inference(str(job.scene), patch_size=job.tile, workers=1)
        (work / name).replace(output)
        if keep is not None:
            keep[:] = (sums[0] / np.maximum(sums[1], 1e-12))[:height, :width]

    return run


def read_scene(job: Job) -> tuple[Any, dict[str, Any]]:
    """Read the whole scene as the net takes it, and its profile."""
    with rasterio.open(job.scene) as file:
        return normalized(file.read()), dict(file.profile)


def write_mask(
    path: Path, found: Probabilities, profile: dict[str, Any], keep: Probabilities | None
) -> None:
    """Decide, and write a GeoTIFF like the scene's."""
    with rasterio.open(path, "w", **{**profile, "count": 1}) as file:
        file.write((found >= 0.5).astype(np.uint8), 1)
    if keep is not None:
        keep[:] = found


WAYS: dict[str, Callable[[Job, Any], Run]] = {
    "ours": ours,
    "monai": monai,
    "geo-inference": geo_inference,
    "geoai": geoai,
    "terratorch": terratorch,
}


def ready(words: dict[str, Any]) -> tuple[Job, Any, Run]:
    """Import a way's libraries, load the net, and make all ready that is made once."""
    job = Job(**words)
    way = next(way for way in WAYS if job.name.startswith(way))
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        for module in MODULES[way]:
            importlib.import_module(module)
        net = load_net(job)
        return job, net, WAYS[way](job, net)


def map_it(words: dict[str, Any]) -> None:
    """Map the scene once, and print what it took."""
    job, net, run = ready(words)
    output = Path(job.folder, f"map-{job.name}.tif")
    output.unlink(missing_ok=True)
    inside, begun = 0.0, 0.0

    def begin(_net: Any, _given: Any) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end(_net: Any, given: Any, _found: Any) -> None:
        nonlocal inside
        if not getattr(given[0], "is_meta", False):  # how much memory a tile takes is asked so
            inside += time.perf_counter() - begun

    net.register_forward_pre_hook(begin)
    net.register_forward_hook(end)
    before, cpu, started = peak_memory_mb(), cpu_seconds(), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        run(output, None)
    taken = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu}
    if inside:
        taken["beside_net"] = taken["seconds"] / inside - 1
    print(json.dumps({**rounded(taken), "peak_mb": (peak_memory_mb() or 0) - (before or 0)}))


def seam(words: dict[str, Any]) -> None:
    """Map the scene, keep the tiles that the net is given, and print how far seams are seen."""
    job, net, run = ready(words)
    job.tiles.mkdir()
    whole: Probabilities = np.load(Path(job.folder, "whole.npy"))
    pixels = 0

    def note(_net: Any, images: tuple[Any, ...]) -> None:
        nonlocal pixels
        if getattr(images[0], "is_meta", False):  # how much memory a tile takes is asked so
            return
        name = f"{len(list(job.tiles.iterdir())):06d}.npy"
        np.save(job.tiles / name, np.asarray(images[0]))
        pixels += np.asarray(images[0])[:, 0].size

    net.register_forward_pre_hook(note)
    keep = np.full(whole.shape, np.nan, dtype=np.float32)
    output = Path(job.folder, f"seam-{job.name}.tif")
    with contextlib.redirect_stdout(sys.stderr):
        run(output, keep)
    done = {"tiles": len(list(job.tiles.iterdir())), "computed": round(pixels / whole.size, 3)}
    if job.name == "ours-free":  # of another net, which has another whole
        print(json.dumps({**done, "seam_max": None, "seam_mean": None, "mask_differs": None}))
        return
    if hasattr(net, "predictor") and "int8" in job.name:
        whole = whole_of_engine(job, net)
    inside = ~np.isnan(whole)
    apart = np.abs(keep - whole)[inside]
    with rasterio.open(output) as file:
        differs = (file.read(1) == 1)[inside] != (whole >= 0.5)[inside]
    found = {
        **done,
        "seam_max": float(f"{apart.max():.3g}"),
        "seam_mean": float(f"{apart.mean():.3g}"),
        "mask_differs": float(f"{differs.mean():.3g}"),
    }
    print(json.dumps(found))


def whole_of_engine(job: Job, net: Any) -> Probabilities:
    """Return what an engine of ours says of windows with all the context there is to see."""
    with rasterio.open(job.scene) as file:
        pixels: NDArray[np.uint8] = file.read()

    def ask(seen: NDArray[np.uint8]) -> Probabilities:
        there = np.ones(seen.shape[1:], dtype=np.bool_)
        found: Probabilities = net.ask(net.predictor.prepare(seen, there)[None])[0, 0]
        return found

    return see_whole(ask, pixels, -(-job.margin // STRIDE) * STRIDE)


def net_alone(words: dict[str, Any]) -> None:
    """Run the net on the tiles of a way, and print what it took."""
    import torch

    job = Job(**words)
    net = load_net(job)
    layout = torch.contiguous_format
    exported = hasattr(net, "predictor")
    if job.name.startswith("ours") and not exported:  # our engine's own layout
        layout = torch.channels_last
        net.to(memory_format=layout)
    seconds = cpu = 0.0
    with torch.inference_mode():
        for path in sorted(job.tiles.iterdir()):
            images: Any = np.load(path)
            if not exported:
                images = torch.from_numpy(images).contiguous(memory_format=layout)
            before, started = cpu_seconds(), time.perf_counter()
            net(images)
            seconds += time.perf_counter() - started
            cpu += cpu_seconds() - before
    print(json.dumps(rounded({"seconds": seconds, "cpu_seconds": cpu})))


def cpu_seconds() -> float:
    """Return what this process and its children have had of the processors [s]."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Keep milliseconds."""
    return {name: round(value, 3) for name, value in figures.items()}


WORKS = {"prepare": prepare, "seam": seam, "map": map_it, "net": net_alone}


if __name__ == "__main__":
    main()
