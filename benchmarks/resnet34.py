"""A U-Net on resnet34 beside those of segmentation_models_pytorch and fastai, on the processor.

One forward pass of 512 by 512 pixels, and one training step (cross-entropy, backward, Adam). The
nets take turns in one process, each round all of them; the ratios are of one round each. Peers come
as they are built by default, without weights. They are not among this project's dependencies: make
an environment beside it, and install them there. One that is missing is left out.

    pip install segmentation-models-pytorch fastai
    python benchmarks/resnet34.py
    python benchmarks/resnet34.py --widths 256,128,64,32,16 128,64,32,16,16

`--widths` are those of our decoder; each list is a net of its own, and the first is what all others
are divided by. Memory is what a fresh process adds to what it had after the imports. Where other
work runs beside it, `OMP_NUM_THREADS=1` and `--clock cpu` tell the nets apart better than the wall.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from rows import append
from torch import Tensor, nn
from torch.nn import functional

from whatwhere.machine import peak_memory_mb, threads
from whatwhere.nn.build import build_model, count_parameters

SIDE = 512
WARM_UPS = 2
PEERS = {"smp": "segmentation-models-pytorch", "fastai": "fastai"}
MODULES = {
    "smp": ("segmentation_models_pytorch",),
    "fastai": ("fastai.vision.learner", "torchvision.models"),
}


def build(name: str) -> nn.Module:
    """Build `smp`, `fastai`, or ours: `default` or a decoder's widths with commas between."""
    modules = load(name)
    if name == "smp":
        net = modules[0].Unet("resnet34", encoder_weights=None, classes=1)
    elif name == "fastai":
        net = modules[0].create_unet_model(modules[1].resnet34, 1, (SIDE, SIDE), pretrained=False)
    else:
        widths = () if name == "default" else tuple(int(word) for word in name.split(","))
        net = build_model("resnet34", 3, 1, decoder_channels=widths)
    return net  # type: ignore[no-any-return]


def load(name: str) -> list[object]:
    """Import what a net is built with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [importlib.import_module(module) for module in MODULES.get(name, ("timm",))]


def forward(net: nn.Module, _batch: int, _side: int) -> Callable[[], None]:
    """Return what runs a forward pass."""
    image = torch.randn(1, 3, SIDE, SIDE)

    def once() -> None:
        net.eval()
        with torch.inference_mode():
            net(image)

    return once


def training(net: nn.Module, batch: int, side: int) -> Callable[[], None]:
    """Return what runs a training step."""
    image = torch.randn(batch, 3, side, side)
    labels = torch.randint(0, 2, (batch, 1, side, side)).float()
    adam = torch.optim.Adam(net.parameters())

    def once() -> None:
        net.train()
        loss: Tensor = functional.binary_cross_entropy_with_logits(net(image), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return once


WORKS = {"forward": forward, "training": training}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turn(
    works: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time each work once a round, the first rounds without keeping the figures [s]."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(WARM_UPS + rounds):
        for name, work in works.items():
            started = clock()
            work()
            if number >= WARM_UPS:
                times[name].append(clock() - started)
    return times


def added_memory(name: str, kind: str, batch: int, side: int) -> int | None:
    """Return what a net and its work add to a fresh process's memory [MB]; None if not known.

    Ask before this process has grown: Linux lets a child begin with its parent's peak.
    """
    words = [sys.executable, __file__, "--batch", str(batch), "--side", str(side)]
    words += ["--memory", name, kind]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
    return int(told) if told.isdigit() else None


def print_memory(name: str, kind: str, batch: int, side: int) -> None:
    """Do the work three times, and print by how much the peak rose [MB]."""
    load(name)
    before = peak_memory_mb()
    work = WORKS[kind](build(name), batch, side)
    for _ in range(3):
        work()
    after = peak_memory_mb()
    print("unknown" if before is None or after is None else after - before)


def main() -> None:
    """Measure, and keep a row of each net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", default=["default"], help="of our decoder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--side", type=int, default=256, help="of a training image [px]")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no rows")
    parser.add_argument("--memory", nargs=2, metavar=("NET", "WORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    torch.manual_seed(0)
    if given.memory:
        print_memory(*given.memory, given.batch, given.side)
        return
    names = list(given.widths)
    for name in given.peers:
        try:
            version(PEERS[name])
            names.append(name)
        except PackageNotFoundError:
            print(f"{name} is not installed, and left out: pip install {PEERS[name]}")
    memory = {
        (kind, name): added_memory(name, kind, given.batch, given.side)
        for kind in WORKS
        for name in names
    }
    nets = {name: build(name) for name in names}
    times = {}
    for kind, make in WORKS.items():
        works = {name: make(net, given.batch, given.side) for name, net in nets.items()}
        times[kind] = in_turn(works, given.rounds, CLOCKS[given.clock])
    for name, net in nets.items():
        figures: dict[str, object] = {}
        for kind, taken in times.items():
            ratios = [a / b for a, b in zip(taken[name], taken[names[0]], strict=True)]
            figures |= {
                f"{kind}_s": round(statistics.median(taken[name]), 3),
                f"{kind}_ratio": round(statistics.median(ratios), 3),
                f"{kind}_ratio_min": round(min(ratios), 3),
                f"{kind}_ratio_max": round(max(ratios), 3),
                f"{kind}_mb": memory[kind, name],
            }
        row = {
            "net": name if name in PEERS else f"ours {name}",
            "release": version(PEERS.get(name, "whatwhere")),
            "parameters": count_parameters(net).trainable,
            "threads": torch.get_num_threads(),
            "clock": given.clock,
            "rounds": given.rounds,
            "forward": f"1x{SIDE}x{SIDE}",
            "training": f"{given.batch}x{given.side}x{given.side}",
            "divided_by": f"ours {names[0]}",
            **figures,
        }
        if given.dry_run:
            print(row)
        else:
            append("resnet34", **row)


if __name__ == "__main__":
    main()
