"""How long it takes until a command is there: `--help`, and the first prediction.

`whatwhere --help` runs in turn with a typer program of two commands, each in a fresh process; the
figure is the median of the ratios pair by pair. The bound is 1.3.

`whatwhere predict` of an image of 512 by 512 px runs with a U-Net on resnet34 from its bundle, by
PyTorch, and in turn from its exports, by ONNX Runtime and OpenVINO: from the start of the process
to its end, with the mask written. The bound of these two is 3 s.

    python benchmarks/startup.py            # both
    python benchmarks/startup.py predict
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rows import append

PAIRS, ROUNDS = 25, 7
SIDE = 512  # of the image [px]
PLAIN = """
import typer

app = typer.Typer()

@app.command()
def hello(name: str) -> None:
    "Say hello."

@app.command()
def bye(name: str) -> None:
    "Say bye."

app()
"""


def seconds(words: list[str]) -> float:
    """Run a program once."""
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and keep the rows."""
    asked = sys.argv[1:] or ["help", "predict"]
    if "help" in asked:
        ask_for_help()
    if "predict" in asked:
        predict()


def ask_for_help() -> None:
    """Measure `--help`."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plain.py"
        program.write_text(PLAIN, encoding="utf-8")
        ours = [sys.executable, "-m", "whatwhere", "--help"]
        plain = [sys.executable, str(program), "--help"]
        seconds(ours), seconds(plain)
        pairs = [(seconds(ours), seconds(plain)) for _ in range(PAIRS)]
    keep("whatwhere --help / typer program of two commands", pairs, 1.3)


def predict() -> None:
    """Measure the first prediction of each engine, beside that of PyTorch."""
    from engines import make

    noise = np.random.Generator(np.random.Philox(key=[0, 7]))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        image = folder / "image.png"
        Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(image)
        paths = make("resnet34", folder)
        paths.pop("int8", None)
        times: dict[str, list[float]] = {engine: [] for engine in paths}
        for number in range(1 + ROUNDS):
            for engine, path in paths.items():
                out = folder / f"{engine} {number}"
                command = ["predict", str(path), str(image), "-o", str(out)]
                taken = seconds([sys.executable, "-m", "whatwhere", *command])
                times[engine] += [taken] if number else []  # the first one fills the disk's cache
        for engine, taken in times.items():
            pairs = list(zip(taken, times["torch"], strict=True))
            bound = "" if engine == "torch" else 3.0
            keep(f"predict {SIDE}x{SIDE} with resnet34: {engine} / torch", pairs, bound)


def keep(what: str, pairs: list[tuple[float, float]], bound: float | str) -> None:
    """Keep a row."""
    ratios = [a / b for a, b in pairs]
    append(
        "startup",
        what=what,
        pairs=len(pairs),
        ratio_median=round(statistics.median(ratios), 3),
        ratio_min=round(min(ratios), 3),
        ratio_max=round(max(ratios), 3),
        ours_s=round(statistics.median(a for a, _ in pairs), 3),
        plain_s=round(statistics.median(b for _, b in pairs), 3),
        bound=bound,
    )


if __name__ == "__main__":
    main()
