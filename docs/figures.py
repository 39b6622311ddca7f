"""Draw what the benchmarks measured: a page with a picture for each question, from their rows.

`generate.py` calls it; the rows are those of `benchmarks/results/`, the newest of each kind.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
OURS, OTHER = "#2a6f97", "#b8b8b8"

Row = dict[str, str]


LITE0 = "tf_efficientnet_lite0"
"""The backbone that all systems take in `minutes.csv` that can."""

PEERS_OF_LITE0 = ("smp", "fastai")
FREE = {
    "bh.xml, its own": f"whatwhere: {LITE0}, half a decoder",
    "bh8.xml, its own": f"whatwhere: {LITE0}, half a decoder, 8 bits",
}
"""What lies in the exports that `ours-free` was given."""


@dataclass(frozen=True)
class Bar:
    """A bar: what it stands for, how long it is, and the least and the most that was seen."""

    name: str
    value: float
    low: float
    high: float
    ours: bool = False

    @classmethod
    def of(cls, name: str, row: Row, column: str, ours: bool = False) -> Bar:
        """Take a column and, where they are, its least and its most."""
        value = float(row[column])
        ends = [float(row.get(f"{column}_{end}") or value) for end in ("min", "max")]
        return cls(name, value, ends[0], ends[1], ours)


@dataclass(frozen=True)
class Chart:
    """A question, and how its answer is read from the rows of a file."""

    file: str
    title: str
    text: str
    unit: str
    bars: Callable[[Sequence[Row]], list[Bar]]
    line: float | None = None


def newest(rows: Sequence[Row], *names: str) -> list[Row]:
    """Return the last row of each combination of columns."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def _maps(column: str, encoder: str) -> Callable[[Sequence[Row]], list[Bar]]:
    """The newest rows of one net and one size of scene."""
    names = {
        "ours": "whatwhere, equal overlap",
        "ours-exact": "whatwhere, its own overlap",
        "ours-onnx": "whatwhere, ONNX Runtime, equal overlap",
        "ours-int8": "whatwhere, 8 bits, equal overlap",
        "ours-onnx-default": "whatwhere, ONNX Runtime, its defaults",
        "ours-int8-default": "whatwhere, 8 bits, its defaults",
        "monai-onnx": "monai on ONNX Runtime",
        "monai-default": "monai, tiles of 512 px, overlap of a quarter",
    }

    def bars(rows: Sequence[Row]) -> list[Bar]:
        same = [row for row in rows if row["encoder"] == encoder]
        last = [row for row in same if row["date"] == same[-1]["date"]]
        return [
            Bar.of(names.get(row["way"], row["way"]), row, column, row["way"].startswith("ours"))
            for row in newest(last, "way")
            if row["height"] == last[-1]["height"]
        ]

    return bars


def _free(rows: Sequence[Row]) -> list[Bar]:
    """The newest rows of nets of our own, each with the row of MONAI from the same run."""
    found: dict[str, list[Bar]] = {}
    for before, row in itertools.pairwise(rows):
        name = FREE.get(row["encoder"])
        if name and before["way"] == "monai" and before["encoder"] == "resnet34":
            peer = Bar.of(f"monai over resnet34 (rounds: {row['rounds']})", before, "seconds")
            found[name] = [peer, Bar.of(name, row, "seconds", True)]
    return [bar for pair in found.values() for bar in pair]


def _resnet(rows: Sequence[Row]) -> list[Bar]:
    quiet = [row for row in rows if row["clock"] == "wall" and row["threads"] == "2"]
    return [
        Bar.of(f"{row['net']}, {kind}", row, f"{kind}_ratio", row["net"].startswith("ours"))
        for row in newest(quiet, "net")
        for kind in ("forward", "training")
        if row["date"] == quiet[-1]["date"]
    ]


def _engines(rows: Sequence[Row]) -> list[Bar]:
    return [
        Bar.of(f"{row['net']}: {row['engine']}", row, "ratio", row["engine"] != "torch")
        for row in newest(rows, "net", "engine", "tile")
    ]


def _first(rows: Sequence[Row]) -> list[Bar]:
    return [
        Bar.of(row["what"], row, "ours_s", "torch" not in row["what"])
        for row in newest(rows, "what")
        if row["what"].startswith("predict")
    ]


def _training(rows: Sequence[Row]) -> list[Bar]:
    return [Bar.of(row["what"], row, "ratio", True) for row in newest(rows, "what")]


def _minutes(rows: Sequence[Row]) -> list[Bar]:
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in newest(rows, "set", "system", "start", "minutes", "seed"):
        if row["system"] in PEERS_OF_LITE0 and not row["net"].endswith(LITE0):
            continue  # a net that others cannot begin with
        key = row["set"], row["system"], row["start"], row["minutes"]
        groups.setdefault(key, []).append(float(row["test_mean_iou"]))
    return [
        Bar(
            f"{name}, {float(minutes):g} min: {system} {start} "
            f"({len(found)} seed{'s' * (len(found) > 1)})",
            sum(found) / len(found),
            min(found),
            max(found),
            system.startswith("ours"),
        )
        for (name, system, start, minutes), found in sorted(groups.items())
    ]


def _rows(name: str) -> list[Row]:
    try:
        with open(ROWS / f"{name}.csv", newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError:
        return []


def _iou(system: str, net: str) -> str:
    """The newest mean IoU on the test tiles of Banepa, first seed."""
    rows = [row for row in _rows("minutes") if (row["set"], row["seed"]) == ("banepa", "1")]
    found = [row for row in rows if row["system"] == system and row["net"].endswith(net)]
    return f"{float(found[-1]['test_mean_iou']):.3f} ({found[-1]['start']})" if found else "unknown"


FREE_TEXT = (
    "The same 3,072 × 3,072 px: resnet34 in MONAI's window, each in turn with the bar below: what "
    "`whatwhere train --minutes 10` made of tiles of this scene, exported and run by OpenVINO; "
    "shorter is better. Mean IoU of the test tiles: segmentation_models_pytorch's U-Net on "
    f"resnet34 after ten minutes {_iou('smp', 'resnet34')}, ours {_iou('ours', LITE0)}; what the "
    "export to 8 bits may cost is half a point. ImageNet's weights of resnet34 could not be had."
)

CHARTS = (
    Chart(
        "bench_predict",
        "A scene from file to file",
        "2,048 × 2,048 px, three bands, the same resnet18 U-Net with the same weights in every "
        "program; shorter is better.",
        "seconds",
        _maps("seconds", "resnet18"),
    ),
    Chart(
        "bench_predict",
        "Seams",
        "The largest difference of a probability from that of the scene in one piece, of the same "
        "maps; shorter is better.",
        "probability",
        _maps("seam_max", "resnet18"),
    ),
    Chart(
        "bench_predict",
        "A scene and resnet34",
        "3,072 × 3,072 px, three bands, the same resnet34 U-Net in every program, tiles of 1,024 "
        "px with 64 px of overlap on each side but for those by default; shorter is better.",
        "seconds",
        _maps("seconds", "resnet34"),
    ),
    Chart(
        "bench_predict",
        "Seams and resnet34",
        "The largest difference of a probability from that of the scene in one piece, of the same "
        "maps; shorter is better.",
        "probability",
        _maps("seam_max", "resnet34"),
    ),
    Chart(
        "bench_predict",
        "A scene and a net of one's own choice",
        FREE_TEXT,
        "seconds",
        _free,
    ),
    Chart(
        "engines",
        "Engines",
        "The same tile of 512 × 512 px through each engine: seconds of PyTorch divided by its own; "
        "longer is better. int8 answers slightly otherwise, and is taken only where it is asked "
        "for.",
        "times as quick as PyTorch",
        _engines,
        1.0,
    ),
    Chart(
        "startup",
        "The first prediction",
        "`whatwhere predict` of an image of 512 × 512 px, from the start of the process to its "
        "end; shorter is better.",
        "seconds",
        _first,
    ),
    Chart(
        "resnet34",
        "A U-Net on resnet34",
        "Seconds of the net divided by those of ours, forward at 512 px and a training step at "
        "256 px; longer means that ours is quicker.",
        "times the seconds of ours",
        _resnet,
        1.0,
    ),
    Chart(
        "training",
        "A training step",
        "Seconds of the peer divided by ours, all that happens around the step included; longer "
        "means that ours is quicker.",
        "times the seconds of ours",
        _training,
        1.0,
    ),
    Chart(
        "minutes",
        "Quality for a given time",
        "Mean IoU of the test images, which were scored once, after so many minutes of wall time "
        "with everything in it; longer is better.",
        "mean IoU",
        _minutes,
    ),
)


def write(folder: Path) -> dict[str, str]:
    """Write the pictures into `folder/figures`; returns the page by its name."""
    parts = [
        "# Figures\n",
        "What the scripts in `benchmarks/` measured, the newest rows of each; all rows, with "
        "commit and versions, are in `benchmarks/results/`. The machines had two processors and "
        "no GPU, and others used them too: ratios are of programs that took turns in one run. "
        "Whiskers are the least and the most that was seen.\n",
    ]
    place = folder / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for number, chart in enumerate(CHARTS):
        rows = _rows(chart.file)
        bars = chart.bars(rows) if rows else []
        if not bars:
            continue
        name = f"{number}-{chart.file}.svg"
        picture = draw(bars, chart.unit, chart.line)
        if not (place / name).exists() or (place / name).read_text(encoding="utf-8") != picture:
            (place / name).write_text(picture, encoding="utf-8", newline="\n")
        told = rows[-1]
        parts += [
            f"## {chart.title}\n",
            f"{chart.text}\n",
            f"![{chart.title}](figures/{name})\n",
            f"`benchmarks/results/{chart.file}.csv`, last row of {told['date']}, commit "
            f"{told['commit']}, {told['processor']}, torch {told['torch']}.\n",
        ]
    return {"figures.md": "\n".join(parts)}


def draw(bars: Sequence[Bar], unit: str, line: float | None) -> str:
    """Draw bars below each other; returns an SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8, 0.6 + 0.32 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(
        places,
        [bar.value for bar in bars],
        color=[OURS if bar.ours else OTHER for bar in bars],
        xerr=[[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]],
        error_kw={"elinewidth": 1, "ecolor": "#555555"},
    )
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    for at, bar in enumerate(bars):
        axes.annotate(
            f"{bar.value:.3g}", (bar.high, at), (4, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.12)
    if line is not None:
        axes.axvline(line, color="#555555", linewidth=1, linestyle=":")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "figures", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
