"""The real sets, where they are: what a newcomer would do first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from whatwhere import jobs
from whatwhere.talk import Talk

QUIET = Talk(quiet=True)


@pytest.mark.parametrize(
    ("name", "pairs", "task", "shares"),
    [
        ("tgs_salt", 3152, "binary", [0.7573, 0.2427]),
        ("isbi2012", 24, "binary", [0.2254, 0.7746]),
        ("s2_india", 24, "multiclass", [0.1706, 0.2301, 0.5376, 0.0616]),
    ],
)
def test_inspection_raises_no_error(
    name: str, pairs: int, task: str, shares: list[float], real_data: Callable[[str], Path]
) -> None:
    found = jobs.inspect(real_data(name), talk=QUIET)
    assert [p for p in found["problems"] if p["severity"] == "error"] == []
    assert (found["pairs"], found["readable"], found["task"]) == (pairs, pairs, task)
    assert [row["share"] for row in found["classes"]] == pytest.approx(shares, abs=1e-4)


@pytest.mark.slow
def test_membranes_are_segmented_with_no_flag_but_the_paths(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    data = real_data("isbi2012")
    jobs.train(data, tmp_path / "run", talk=QUIET)
    scores = jobs.evaluate(tmp_path / "run", data, talk=QUIET)
    assert scores["mean_iou"] > 0.7
