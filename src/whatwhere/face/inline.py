"""What a notebook shows: progress in one place, and pictures where they are asked for."""

from __future__ import annotations

import html
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from whatwhere.talk import Talk

_PAUSE = 0.25  # seconds between two drawings of a bar
_KEPT = 200  # lines
_RESOLUTION = 72  # pixels an inch, as notebooks draw


def notebook() -> Any:
    """Return the shell of the notebook that runs this; None in a script or a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None


def talk_here() -> Talk:
    """Return what speaks to the user: in a notebook in one place, else line by line."""
    return NotebookTalk() if notebook() is not None else Talk()


def show_png(data: bytes) -> None:
    """Show a picture below the cell that runs; outside a notebook there is no such place."""
    if notebook() is not None:
        display = sys.modules["IPython"].display
        display.display(display.Image(data=data, format="png"))


def show(figure: Any) -> Any:
    """Show a figure of matplotlib below the cell that runs, and return it.

    A notebook shows what a cell returns: this figure not a second time in the same cell.
    """
    shell = notebook()
    if shell is None:
        return figure
    data = png_of(figure)
    shown_in = shell.execution_count

    def echo() -> None:
        if shell.execution_count != shown_in:
            show_png(data)

    show_png(data)
    figure._ipython_display_ = echo
    return figure


def png_of(figure: Any) -> bytes:
    """Return a figure as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_RESOLUTION)
    return stream.getvalue()


class NotebookTalk(Talk):
    """Says what is going on in one place below the cell, which changes as things go on.

    Epochs and warnings stay in sight; what was found and decided is folded away.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cell: Any = None
        self._place: Any = None
        self._lines: list[str] = []
        self._bar, self._drawn = "", 0.0

    @property
    def is_plain(self) -> bool:
        return False

    def say(self, text: str = "") -> None:
        self._begin()
        self._lines = [*self._lines, text][-_KEPT:]
        self._draw()

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        self._begin()
        done = 0

        def step(text: str | None = None, **_changes: Any) -> None:
            nonlocal done
            done += 1
            self._bar = (
                f"<div>{html.escape(text or description)} "
                f"<progress value='{done}' max='{max(total, 1)}'></progress> {done}/{total}</div>"
            )
            if time.monotonic() - self._drawn > _PAUSE:
                self._draw()

        try:
            yield step
        finally:
            self._bar = ""
            self._draw()

    def _begin(self) -> None:
        """Take a place of its own below each cell."""
        shell = notebook()
        cell = None if shell is None else shell.execution_count
        if self._place is None or cell != self._cell:
            display = sys.modules["IPython"].display
            self._cell, self._lines, self._bar = cell, [], ""
            self._place = display.display(display.HTML(""), display_id=True)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        display = sys.modules["IPython"].display
        self._place.update(display.HTML(page(self._lines, self._bar)))


def page(lines: list[str], bar: str = "") -> str:
    """Return lines as HTML: epochs and warnings in sight, all others folded away."""
    seen = [line for line in lines if line.startswith(("epoch", "warning", "note"))]
    folded = [line for line in lines if line not in seen]
    parts = []
    if folded:
        parts.append(
            "<details><summary>what was found and decided</summary>"
            f"<pre>{html.escape(chr(10).join(folded))}</pre></details>"
        )
    if seen:
        parts.append(
            f"<pre style='max-height: 20em; overflow: auto'>{html.escape(chr(10).join(seen))}</pre>"
        )
    return "".join([*parts, bar])
