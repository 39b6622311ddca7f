"""GeoPackages are databases: what may be in one that is not trusted, and what its layers are.

A view is a program that runs when it is read, a virtual table is read by a module that may open any
file, and what a journal beside the database says is done to it when it is opened. None of that is
needed for shapes. Nothing is run here: the database is opened as one that never changes.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from whatwhere.io.crs import check_alone
from whatwhere.io.image import fault

OPEN = {"IMMUTABLE": "YES"}
"""How GDAL is to open one: without locks and journals, which would be files beside it."""

_MOST_STEPS = 5_000_000  # of SQLite's machine, for one question
_MOST_OBJECTS = 100_000
_QUOTED = re.compile(
    r'"(?:[^"]|"")*"' r"|'(?:[^']|'')*'" r"|\[[^\]]*\]" r"|`(?:[^`]|``)*`" r"|--[^\n]*|/\*.*?\*/",
    re.DOTALL,
)
_VIRTUAL = re.compile(r"\bvirtual\b", re.IGNORECASE)
_RTREE = re.compile(
    r"\s*create\s+virtual\s+table\s+(?:if\s+not\s+exists\s+)?[\w.]*\s*using\s+rtree\s*\(",
    re.IGNORECASE,
)
_VIEW = re.compile(r"\s*create\s+(?:temp\s+|temporary\s+)?view\b", re.IGNORECASE)
_OWN = ("gpkg_", "sqlite_", "rtree_", "ogr_")
_LAYERS = (
    "select c.table_name, g.column_name is not null from gpkg_contents c left join "
    "gpkg_geometry_columns g on lower(g.table_name) = lower(c.table_name) order by c.rowid"
)


def layers_of(path: Path, trust: str) -> dict[str, bool]:
    """Return the layers, and whether each has shapes.

    Args:
        path: The file.
        trust: What to say to those who trust it.

    Raises:
        DataError: It is damaged or at work, or something in it would be run.
    """
    _check_journals(path, trust)
    with _opened(path) as base:
        views = _check_objects(path, base, trust)
        _check_systems(path, base)
        layers = {str(name): bool(spatial) for name, spatial in base.execute(_LAYERS)}
    for name in layers:
        if name.casefold() in views:
            cause = f"its layer {name!r} is a view, which is a program of the database."
            raise fault(path, cause, f"Save it as a table. {trust}")
    return layers


def _check_systems(path: Path, base: sqlite3.Connection) -> None:
    for row in base.execute("select * from gpkg_spatial_ref_sys"):
        check_alone(path, *(word for word in row if isinstance(word, str)))


def _check_journals(path: Path, trust: str) -> None:
    """Refuse a database that a program writes, or died writing: not all of it is in the file."""
    for ending in ("-journal", "-wal"):
        beside = path.with_name(f"{path.name}{ending}")
        if beside.is_file() and beside.stat().st_size:
            cause = f"{beside.name} beside it holds changes that are not in it yet."
            remedy = f"Open and close it in the program that writes it. {trust}"
            raise fault(path, cause, remedy)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database that is taken not to change; what takes too long is broken off."""
    try:
        base = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, timeout=0
        )
        try:
            base.set_progress_handler(lambda: 1, _MOST_STEPS)
            yield base
        finally:
            base.close()
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        told = " ".join(str(error).split())[:200]
        raise fault(
            path, f"the file is damaged or cannot be read ({told}).", "Copy it again."
        ) from error


def _check_objects(path: Path, base: sqlite3.Connection, trust: str) -> set[str]:
    """Refuse virtual tables and views in the place of the format's own tables; return all views."""
    rows = base.execute(f"select name, sql from sqlite_master limit {_MOST_OBJECTS + 1}").fetchall()
    if len(rows) > _MOST_OBJECTS:
        raise fault(path, f"it holds more than {_MOST_OBJECTS:,} tables.", "Take fewer.")
    views: set[str] = set()
    for name, told in rows:
        if not isinstance(told, str) or not isinstance(name, str):
            continue
        plain = _QUOTED.sub(" ", told)
        if _VIRTUAL.search(plain) and not _RTREE.match(plain):
            cause = f"{name!r} in it is a virtual table, which a program reads from elsewhere."
            raise fault(path, cause, f"Save it as a table. {trust}")
        if _VIEW.match(plain):
            views.add(name.casefold())
            if name.casefold().startswith(_OWN) or name.casefold() not in told.casefold():
                cause = f"{name!r} in it is a view, which is a program of the database."
                raise fault(path, cause, f"Save it as a table. {trust}")
    return views
