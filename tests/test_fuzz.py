"""What fuzzing found stays mended, and a few files more are read each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import fuzz

TRIES = 12


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_files_that_are_nearly_good(name: str, place: Path) -> None:
    """Those of the corpus that this reader once choked on, and some drawn from a seed."""
    target = fuzz.TARGETS[name]
    seeds = target.seeds(place)
    given = [fuzz.unpacked(row) for row in fuzz.kept() if row["target"] == name]
    given += [fuzz.varied(target, seeds, random.Random(number)) for number in range(TRIES)]
    for one in given:
        with fuzz.fresh(place) as folder:
            assert not fuzz.fault_of(target, folder, one)


def test_a_fault_is_found(place: Path) -> None:
    """Else silence would say nothing."""

    def read(path: Path) -> None:
        if path.read_bytes() == b"bad":
            raise ValueError("bad")

    target = fuzz.Target("made up", read, lambda _folder: [{"a": b"good"}])
    assert not fuzz.fault_of(target, place, {"a": b"good"})
    assert fuzz.fault_of(target, place, {"a": b"bad"}).startswith("ValueError")
