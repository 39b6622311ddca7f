"""The page of figures is drawn from the benchmarks' rows."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


def test_the_last_row_of_each_kind_counts(figures: ModuleType) -> None:
    rows = [
        {"net": net, "engine": engine, "ratio": ratio}
        for net, engine, ratio in (
            ("a", "x", "1"),
            ("b", "x", "2"),
            ("a", "y", "3"),
            ("a", "x", "4"),
        )
    ]
    found = figures.newest(rows, "net", "engine")
    assert [row["ratio"] for row in found] == ["2", "3", "4"]


def test_seeds_are_averaged(figures: ModuleType) -> None:
    same = {"set": "salt", "system": "ours", "start": "scratch", "minutes": "10.0"}
    rows = [
        {**same, "seed": seed, "test_mean_iou": iou}
        for seed, iou in (("1", "0.1"), ("1", "0.5"), ("2", "0.7"))
    ]
    (bar,) = figures._minutes(rows)
    assert (bar.value, bar.low, bar.high) == (pytest.approx(0.6), 0.5, 0.7)
    assert bar.ours and "2 seeds" in bar.name


def test_a_net_of_ones_own_stands_beside_what_it_took_turns_with(figures: ModuleType) -> None:
    def row(way: str, encoder: str, seconds: str) -> dict[str, str]:
        return {"way": way, "encoder": encoder, "seconds": seconds, "rounds": "3"}

    rows = [
        row("monai", "resnet34", "9"),
        row("ours-free", "bh.xml, its own", "3"),
        row("ours-free", "unknown.xml, its own", "1"),
        row("monai", "resnet34", "8"),
        row("ours-free", "bh.xml, its own", "2"),
        row("monai", "resnet18", "7"),
        row("ours-free", "bh8.xml, its own", "1"),
    ]
    assert [(bar.value, bar.ours) for bar in figures._free(rows)] == [(8, False), (2, True)]


def test_the_page_shows_the_rows_that_are_there(figures: ModuleType, tmp_path: Path) -> None:
    page = figures.write(tmp_path)["figures.md"]
    pictures = re.findall(r"\]\((figures/[^)]+\.svg)\)", page)
    assert pictures and len(set(pictures)) == len(pictures)
    for chart in figures.CHARTS:
        rows = figures._rows(chart.file)
        bars = chart.bars(rows) if rows else []
        assert all(0 <= bar.low <= bar.value <= bar.high for bar in bars)
        assert (f"## {chart.title}\n" in page) == bool(bars)
    for name in pictures:
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<?xml")


def test_the_same_rows_give_the_same_picture(figures: ModuleType) -> None:
    bars = [figures.Bar("mine", 2.0, 1.5, 2.5, True), figures.Bar("theirs", 1.0, 1.0, 1.0)]
    once, again = (figures.draw(bars, "times", 1.0) for _ in range(2))
    assert once == again and ">mine<" in once and ">theirs<" in once
