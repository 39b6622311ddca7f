"""The engines that run a net, on the same tiles: PyTorch as `predict` uses it, and the others.

    python benchmarks/engines.py
    OMP_NUM_THREADS=1 python benchmarks/engines.py --nets tutorial --side 256 --rounds 3 --dry-run

Nets are without training, exports are those of `whatwhere export`; that in 8 bits is fitted to
noise, for its speed, and its answers say nothing. Each engine has a process of
its own, which loads the net as `predict` does, and they take turns: in each round all of them run
the same tile once, and the ratios are of one round each: the seconds of PyTorch divided by those
of the engine, above 1 means that the engine is quicker. `first_s` is what passes from the start of
the process until the first answer; `added_mb` what the tiles add to the memory it had before them,
at the most. `difference` is the largest of a probability from PyTorch's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import append

from whatwhere.machine import threads

WARM_UPS = 2
ENGINES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino", "int8": "nncf"}
BANDS = 3


def tile_of(side: int) -> NDArray[np.float32]:
    """Return one image as a file holds it, `(1, 3, side, side)`."""
    noise = np.random.Generator(np.random.Philox(key=[0, 7]))
    return noise.integers(0, 256, (1, BANDS, side, side)).astype(np.float32)


def make_bundle(name: str, folder: Path) -> Path:
    """Save a net without training; the bundle's path."""
    import torch

    from whatwhere import bundle
    from whatwhere.bundle import Card
    from whatwhere.nn.build import build_model, geometry
    from whatwhere.types import Bands, Classes, ClassInfo, Normalization

    torch.manual_seed(0)
    net = build_model(name, BANDS, 1)
    infos = (ClassInfo("other", 0, (0, 0, 0), "background", (0,)), ClassInfo("it", 1, (9, 9, 9)))
    card = Card(
        model=name, arguments={}, parameters=1, classes=Classes(infos, "binary"),
        bands=Bands(("red", "green", "blue")),
        normalization=Normalization((127.0,) * BANDS, (74.0,) * BANDS), resize=None,
        chip_size=(256, 256), orientation="free", geometry=geometry(net), pixel_size=None,
        thresholds=(0.5,), scores={}, tuning={}, objects={}, self_test={}, recipe={}, data={},
        versions={}, created="",
    )  # fmt: skip
    bundle.save(folder / "bundle", card, {key: t.numpy() for key, t in net.state_dict().items()})
    return folder / "bundle"


def make(name: str, folder: Path) -> dict[str, Path]:
    """Make a bundle and its exports; the path of each engine's."""
    from whatwhere import jobs
    from whatwhere.talk import QUIET

    paths = {"torch": make_bundle(name, folder)}
    for engine, file in (("onnx", "model.onnx"), ("openvino", "model.xml")):
        if engine in there():
            paths[engine] = folder / file
            jobs.export(folder / "bundle", paths[engine], talk=QUIET)
    if "int8" in there():
        paths["int8"] = folder / "int8.xml"
        make_int8(folder / "bundle", paths["int8"])
    return paths


def make_int8(bundle: Path, path: Path) -> None:
    """Export a net in 8 bits without scoring it: it has learnt nothing."""
    from whatwhere import export, quantizing
    from whatwhere.predict import openvino
    from whatwhere.predict.exported import library
    from whatwhere.predict.graphs import onnx_model

    original = export.open_original(bundle, path, 0, None)
    data = onnx_model(original, for_maps=False).SerializeToString()
    plain = library("openvino", "openvino").Core().read_model(data)
    chips = [tile_of(256)] * 4
    small = quantizing.quantized(quantizing._nncf(), plain, chips)
    made = export.made_xml(original, *openvino.to_files(small, path.parent))
    about = {"largest_difference": 0.0, "versions": export.versions(".xml")}
    test = {**made.self_test, "tolerance": quantizing._TOLERANCE}
    export.write(path, made, original.lines(test, about))


def there() -> list[str]:
    """Return the engines that are installed."""
    found = []
    for name, library in ENGINES.items():
        try:
            version(library)
            found.append(name)
        except PackageNotFoundError:
            print(f"{name} is left out: pip install {library}")
    return found


def serve(path: Path, side: int) -> None:
    """Run the tile once for each line that comes in, and tell the seconds; then the memory."""
    from whatwhere import load

    predictor = load(path, device="cpu")
    pixels = tile_of(side)
    image = predictor.prepare(pixels[0])[None]
    before = memory_mb("VmRSS")
    found = predictor.backend.run(image)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "answer":
            np.save(path.parent / f"{path.name}.npy", found)
            print("kept", flush=True)
            continue
        started = time.perf_counter()
        predictor.backend.run(image)
        print(time.perf_counter() - started, flush=True)
    peak = memory_mb("VmHWM")
    print("unknown" if peak is None or before is None else peak - before)


def memory_mb(word: str) -> int | None:
    """Return a line of what Linux says of this process' memory [MB]; None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{word}:"))


class Engine:
    """A process that runs a net when it is told to."""

    def __init__(self, path: Path, side: int) -> None:
        """Start it, and wait for its first answer."""
        words = [sys.executable, __file__, "--serve", str(path), "--side", str(side)]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self.first_s = time.perf_counter() - started
        self.path = path

    def once(self) -> float:
        """Run the tile; the seconds."""
        return float(self._told("run"))

    def answer(self) -> NDArray[np.float32]:
        """Return what it answered."""
        self._told("answer")
        found: NDArray[np.float32] = np.load(self.path.parent / f"{self.path.name}.npy")
        return found

    def end(self) -> int | None:
        """Let it end; the memory that the tiles took [MB]."""
        told, _ = self.process.communicate()
        return int(told) if told.strip().isdigit() else None

    def _told(self, word: str) -> str:
        if self.process.stdin is None:
            raise RuntimeError("the process cannot be asked")
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("the engine ended before it answered")
        return line


def measure(name: str, side: int, rounds: int) -> list[dict[str, Any]]:
    """Return the figures of each engine for one net."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make(name, Path(folder))
        engines = {key: Engine(path, side) for key, path in paths.items()}
        times: dict[str, list[float]] = {key: [] for key in engines}
        for number in range(WARM_UPS + rounds):
            for key, engine in engines.items():
                taken = engine.once()
                if number >= WARM_UPS:
                    times[key].append(taken)
        answers = {key: engine.answer() for key, engine in engines.items()}
        rows = []
        for key, engine in engines.items():
            ratios = [a / b for a, b in zip(times["torch"], times[key], strict=True)]
            seconds = statistics.median(times[key])
            rows.append(
                {
                    "net": name,
                    "engine": key,
                    "release": version("openvino" if key == "int8" else ENGINES[key]),
                    "tile": f"1x{BANDS}x{side}x{side}",
                    "threads": threads(),
                    "rounds": rounds,
                    "run_s": round(seconds, 4),
                    "mpx_per_s": round(side * side / seconds / 1e6, 3),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_min": round(min(ratios), 3),
                    "ratio_max": round(max(ratios), 3),
                    "first_s": round(engine.first_s, 2),
                    "added_mb": engine.end(),
                    "difference": f"{np.abs(answers[key] - answers['torch']).max():.1e}",
                }
            )
    return rows


def main() -> None:
    """Measure, and keep a row of each net and engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["tutorial", "resnet18", "resnet34"])
    parser.add_argument("--side", type=int, default=512, help="of the tile [px]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep no rows")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.side)
        return
    for name in given.nets:
        for row in measure(name, given.side, given.rounds):
            if given.dry_run:
                print(row)
            else:
                append("engines", **row)


if __name__ == "__main__":
    main()
