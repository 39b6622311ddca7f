"""Scores as a table: pandas' where it is installed, else one of our own that looks like it."""

from __future__ import annotations

import html
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Columns = Mapping[str, Mapping[str, float]]
"""For each column the value of each row."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers with a name for each row.

    Attributes:
        data: For each column the value of each row; NaN where there is none.
    """

    data: Columns

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.data)

    @property
    def index(self) -> list[str]:
        """The names of the rows."""
        return list(dict.fromkeys(row for column in self.data.values() for row in column))

    @property
    def T(self) -> Table:
        """The same with rows and columns exchanged."""
        turned = {row: {c: column[row] for c, column in self.data.items()} for row in self.index}
        return Table(turned)

    def __getitem__(self, column: str) -> Mapping[str, float]:
        return self.data[column]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return a copy as dictionaries, columns first."""
        return {name: dict(column) for name, column in self.data.items()}

    def __repr__(self) -> str:
        rows = [["", *self.columns]]
        rows += [[row, *(f"{self.data[c][row]:.6f}" for c in self.columns)] for row in self.index]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.columns))
        rows = "".join(
            f"<tr><th>{html.escape(row)}</th>"
            + "".join(f"<td>{self.data[c][row]:.6f}</td>" for c in self.columns)
            + "</tr>"
            for row in self.index
        )
        return f"<table><tr>{heads}</tr>{rows}</table>"


def frame(columns: Columns) -> Any:
    """Return a pandas `DataFrame`, or a `Table` where pandas is not installed."""
    if importlib.util.find_spec("pandas") is None:
        return Table(columns)
    return importlib.import_module("pandas").DataFrame(
        {name: dict(column) for name, column in columns.items()}
    )
