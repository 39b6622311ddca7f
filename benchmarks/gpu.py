"""What a GPU makes of it: `make bench-gpu`, within ten minutes, and a table at the end.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --small --dry-run      # does it run at all?

Four things are measured, each as a ratio of two figures from this run:

* `tutorial`: the tutorial's recipe, its convolutions in bfloat16, on the pairs of `tgs_salt`, 50
  epochs: seconds in its epochs, beside 15.
* `inference` and `training`: a U-Net on resnet34, images of 512 px, convolutions in bfloat16, as it
  comes and compiled, beside segmentation_models_pytorch compiled the same, where that is installed.
  "Of the bound" is it divided by what was taken: the sum over all layers of the longer one of two
  times, that of moving what a layer reads and writes at the bandwidth of a large copy, and that
  of its multiplications at the rate of a large matrix product, both measured first. A training step
  counts three times that; its optimiser, loss and norms in 32 bits are not in the bound.
* `raster`: a map of a large scene with that net, `--backend torch-bf16`: the seconds that its tiles
  take on the device, the way there and back included, divided by those of the whole.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import append
from torch import Tensor, nn

Table = list[dict[str, Any]]


def main() -> None:
    """Measure, keep the rows, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="hardly any work: a rehearsal")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no rows")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch can use here: nothing was measured")
    bandwidth, rate = machine(asked)
    about = {
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "processor",
        "gb_per_s": round(bandwidth / 1e9),
        "tflop_per_s": round(rate / 1e12, 2),
    }
    rows = [*steps(asked, bandwidth, rate), raster(asked), *tutorial(asked)]
    for row in () if asked.dry_run else rows:
        append("gpu", **about, **row)
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        print(f"{row['what']:36}{row['seconds']:>10}  {row['ratio']:>7}  {row['ratio_is']}")


def machine(asked: Any) -> tuple[float, float]:
    """Return the bandwidth of a large copy [bytes/s], and the rate of a matrix product [1/s]."""
    side, count = (512, 2**22) if asked.small else (8192, 2**29)
    one = torch.empty(count, dtype=torch.bfloat16, device=asked.device)
    other = torch.empty_like(one)
    copied = 2 * one.nbytes / seconds(lambda: other.copy_(one), asked)
    matrix = torch.randn(side, side, device=asked.device).bfloat16()
    return copied, 2 * side**3 / seconds(lambda: matrix @ matrix, asked)


def seconds(work: Callable[[], Any], asked: Any, rounds: int = 20) -> float:
    """Return the median time of some work, waiting for the device each time [s]."""
    rounds = 2 if asked.small else rounds
    times = []
    for number in range(3 + rounds):
        started = time.perf_counter()
        work()
        if asked.device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def steps(asked: Any, bandwidth: float, rate: float) -> Table:
    """Return inference and training of resnet34's U-Nets."""
    from whatwhere.nn.build import build_model

    side, size = (64, 2) if asked.small else (512, 16)
    images = torch.randn(size, 3, side, side, device=asked.device)
    images = images.contiguous(memory_format=torch.channels_last)
    truth = (torch.rand(size, 1, side, side, device=asked.device) > 0.5).float()
    nets: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: build_model("resnet34", 3, 1, pretrained=False)
    }
    try:
        import segmentation_models_pytorch as library

        nets["smp"] = lambda: library.Unet("resnet34", encoder_weights=None, classes=1)
    except ImportError:
        print("segmentation_models_pytorch is left out: it is not installed")
    rows: Table = []
    taken: dict[tuple[str, str, bool], float] = {}
    for who, make in nets.items():
        for compiled in (False, True):
            torch.manual_seed(0)
            torch.compiler.reset()
            net = make().to(asked.device, memory_format=torch.channels_last)
            bound = bound_of(net, images, bandwidth, rate)
            if compiled:
                net.compile()
            for what, work in works(net, images, truth, asked.device).items():
                took = taken[who, what, compiled] = seconds(work, asked)
                limit = bound * (3 if what == "training" else 1)
                told = f"{what}, {who}{', compiled' if compiled else ''}"
                rows.append(line(told, took, limit / took, "of the bound"))
    for what in ("inference", "training"):
        if ("smp", what, True) in taken:
            best = min(taken["ours", what, compiled] for compiled in (False, True))
            told = f"{what}, ours beside smp compiled"
            rows.append(line(told, best, taken["smp", what, True] / best, "times as quick"))
    return rows


def works(
    net: nn.Module, images: Tensor, truth: Tensor, device: str
) -> dict[str, Callable[[], None]]:
    """Return a step of inference and one of training, convolutions in bfloat16."""
    loss_of = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def inference() -> None:
        net.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            net(images)

    def training() -> None:
        net.train()
        with torch.autocast(device, torch.bfloat16):
            logits = net(images)
        loss = loss_of(logits.float(), truth)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return {"inference": inference, "training": training}


def bound_of(net: nn.Module, images: Tensor, bandwidth: float, rate: float) -> float:
    """Return the least time of one look at the images [s], with 2 bytes for each number."""
    total = 0.0

    def add(layer: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        nonlocal total
        tensors = [one for one in (*given, result) if isinstance(one, Tensor)]
        weights = [*layer.parameters(recurse=False)]
        moved = 2 * sum(one.numel() for one in (*tensors, *weights)) / bandwidth
        products = 0
        if isinstance(layer, nn.Conv2d):
            products = 2 * result.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            products = 2 * given[0].numel() * layer.weight[0].numel()
        total += max(moved, products / rate)

    layers = [layer for layer in net.modules() if not [*layer.children()]]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.inference_mode():
        net.eval()(images)
    for hook in hooks:
        hook.remove()
    return total


def raster(asked: Any) -> dict[str, Any]:
    """Return how much of a map's time its net takes."""
    import rasterio
    from engines import make_bundle

    from whatwhere import Talk, jobs
    from whatwhere.predict import backends

    side = 300 if asked.small else 20_000
    spent = 0.0
    run = backends.TorchBackend.run

    def timed(backend: Any, images: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        found = run(backend, images)  # brings its result back, so it waits for the device
        spent += time.perf_counter() - started
        return found

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = make_bundle("resnet34", folder)
        noise = np.random.default_rng(0).integers(0, 256, (3, 256, side), dtype=np.uint8)
        settings = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8"}
        placed = {"crs": "EPSG:32645", "transform": rasterio.Affine(0.3, 0, 3e5, 0, -0.3, 3e6)}
        tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"}
        with rasterio.open(folder / "scene.tif", "w", **settings, **placed, **tiled) as file:
            for row in range(0, side, 256):
                rows = min(256, side - row)
                file.write(noise[:, :rows], window=((row, row + rows), (0, side)))
        backend = "torch-bf16" if backends.has_bf16(asked.device) else "torch"
        started = time.perf_counter()
        backends.TorchBackend.run = timed  # type: ignore[method-assign]  # put back below
        try:
            jobs.predict(
                bundle, folder / "scene.tif", folder / "map.tif",
                device=asked.device, backend=backend, talk=Talk(),
            )  # fmt: skip
        finally:
            backends.TorchBackend.run = run  # type: ignore[method-assign]
        whole = time.perf_counter() - started
    return line(f"raster of {side}x{side} px, {backend}", whole, spent / whole, "of it in the net")


def tutorial(asked: Any) -> Table:
    """Return the time of the tutorial's training."""
    from whatwhere import Talk, jobs

    if "WHATWHERE_DATA" not in os.environ:
        print("the tutorial's training is left out: WHATWHERE_DATA names no folder of data")
        return []
    data = Path(os.environ["WHATWHERE_DATA"]) / "tgs_salt"
    few: dict[str, Any] = {"epochs": 1, "epoch_chips": 64, "val_chips": 32}
    many: dict[str, Any] = {"epochs": 50, "stop_patience": 0, "precision": "bf16"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        jobs.train(
            data, run, resize="128", device=asked.device, talk=Talk(),
            **(few if asked.small else many),
        )  # fmt: skip
        with open(run / "log.csv", newline="", encoding="utf-8") as stream:
            taken = sum(float(row["seconds"]) for row in csv.DictReader(stream))
    return [line("tutorial, its epochs", taken, 15 / taken, "of 15 s")]


def line(what: str, taken: float, ratio: float, of: str) -> dict[str, Any]:
    """Return a row."""
    return {"what": what, "seconds": round(taken, 4), "ratio": round(ratio, 3), "ratio_is": of}


if __name__ == "__main__":
    main()
