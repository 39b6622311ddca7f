"""What the catalogue of faults is made of: a case, and what must be true of every one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from typer.testing import Result

from made import snapshot
from made_maps import make_predictor, save_bundle
from told import assert_told, call
from whatwhere import files

Words: TypeAlias = Sequence[object]
"""A command line."""

_MARKS = ("✗ error", "! warning", "· note", "error:")
_MOST_LINES = 3  # of a problem; the rows of a table aside


@dataclass(frozen=True)
class At:
    """Where a case is made.

    Attributes:
        folder: An empty one.
        nets: Where nets lie that several cases use.
    """

    folder: Path
    nets: Path

    @property
    def data(self) -> Path:
        """Where a data set goes."""
        return self.folder / "data"

    @property
    def out(self) -> Path:
        """The only place where something may be written."""
        return self.folder / "out"

    def net(self, *bands: str) -> Path:
        """A bundle that nobody trained, of the tutorial's net."""
        path = self.nets / "-".join(bands)
        if not path.exists():
            save_bundle(path, make_predictor(bands=bands or ("grey",)))
        return path


@dataclass(frozen=True)
class Case:
    """A fault as a user meets it.

    Attributes:
        name: Its number in the list of faults, and what it is.
        code: What the program ends with.
        told: Regular expressions of what it says.
        make: Makes it, and returns what is typed; a path alone is inspected.
    """

    name: str
    code: int
    told: tuple[str, ...]
    make: Callable[[At], Words | Path]

    def __str__(self) -> str:
        return self.name


class Catalogue(list[Case]):
    """The cases of a file, in the order in which they are written."""

    def case(self, name: str, code: int, *told: str) -> Callable[..., Callable[[At], Words | Path]]:
        """Add what is defined below as a case."""

        def add(make: Callable[[At], Words | Path]) -> Callable[[At], Words | Path]:
            self.append(Case(name, code, told, make))
            return make

        return add


def check(case: Case, folder: Path, nets: Path) -> Result:
    """Make a case, type what it says, and see that the user is told and nothing is lost."""
    at = At(folder, nets)
    made = case.make(at)
    words = ["inspect", made] if isinstance(made, Path) else list(made)
    before = snapshot(folder)
    result = call(*words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_told(result, case.code, *case.told)
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before, "something was lost"
    beside = [name for name in after if name not in before and not name.startswith("out")]
    assert not beside, f"written beside the data: {beside}"
    assert not [name for name in after if f"/{files.TEMPORARY}" in f"/{name}"]
    check_words(result.output, case.code)
    if words[0] == "inspect":
        check_problems(call(*words, "--json"), case.code)
    return result


def check_words(text: str, code: int) -> None:
    """See that what is said of each problem is short, and that an error is said once."""
    told: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(_MARKS):
            told.append([])
        if told and not line.startswith(("  ", "─")):
            told[-1].append(line)
    errors = [one for one in told if one[0].startswith(("✗ error", "error:"))]
    assert bool(errors) == (code in (2, 3, 4, 5, 6, 75)), text
    long = [one for one in told if len(one) > _MOST_LINES + one[-1].endswith(("notes", "note"))]
    assert not long, long


def check_problems(result: Result, code: int) -> None:
    """See that each problem names a file, a cause and, of an error, a remedy."""
    if not result.stdout.startswith("{"):
        return  # there is no data at all
    problems = json.loads(result.stdout)["problems"]
    assert (code == 3) == any(problem["severity"] == "error" for problem in problems)
    for problem in problems:
        assert problem["file"] and problem["cause"], problem
        if problem["severity"] == "error":
            assert problem["remedy"] or re.search(r"[.:)] [A-Z]", problem["cause"]), problem
