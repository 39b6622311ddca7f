"""Rows of figures: what was measured, on which code and machine."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whatwhere.machine import processors

RESULTS = Path(__file__).parent / "results"


def append(name: str, **figures: Any) -> None:
    """Append a row to `results/NAME.csv`, and print it."""
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "processors": processors(),
        "python": platform.python_version(),
        "torch": version("torch"),
        **figures,
    }
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(path.name, row)


def commit() -> str:
    """Return the short hash of the code, with a plus where it has been changed since."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True
        ).stdout

    changed = git("status", "--porcelain", "--", "src").strip()
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
