"""How long `whatwhere --help` takes beside a typer program of two commands.

The two run in turn, each in a fresh process; the figure is the median of the ratios pair by pair.
The bound is 1.3.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import append

PAIRS = 25
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
    """Measure and keep a row."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plain.py"
        program.write_text(PLAIN, encoding="utf-8")
        ours = [sys.executable, "-m", "whatwhere", "--help"]
        plain = [sys.executable, str(program), "--help"]
        seconds(ours), seconds(plain)
        pairs = [(seconds(ours), seconds(plain)) for _ in range(PAIRS)]
    ratios = [a / b for a, b in pairs]
    append(
        "startup",
        what="whatwhere --help / typer program of two commands",
        pairs=PAIRS,
        ratio_median=round(statistics.median(ratios), 3),
        ratio_min=round(min(ratios), 3),
        ratio_max=round(max(ratios), 3),
        ours_s=round(statistics.median(a for a, _ in pairs), 3),
        plain_s=round(statistics.median(b for _, b in pairs), 3),
        bound=1.3,
    )


if __name__ == "__main__":
    main()
