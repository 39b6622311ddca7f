"""What a person reads while something runs: lines and progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Talk:
    """Says what is going on; results that programs read go elsewhere, to standard output."""

    def __init__(self, quiet: bool = False) -> None:
        """Speak to standard error, or not at all.

        Args:
            quiet: Say nothing and draw no bar.
        """
        self.quiet = quiet

    @property
    def is_plain(self) -> bool:
        """Whether there is nobody who would see a bar: lines are written in its place."""
        return not self.quiet and not sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """Print a line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """Draw a bar with the time left while the block runs, on a terminal only.

        Yields:
            A function to call after each step; `text=` changes the description.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda **_changes: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(description, total=total)

            def step(text: str | None = None, **_changes: Any) -> None:
                progress.update(task, advance=1, description=text or description)

            yield step

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield the items under a bar."""
        with self.bar(description, total) as step:
            for item in items:
                yield item
                step()


QUIET = Talk(quiet=True)


def difference(
    rows: list[tuple[str, str, str]], heads: tuple[str, str] = ("in the bundle", "wanted")
) -> str:
    """Return a table of what there is against what is wanted: name, one, the other."""
    lines = [("", *heads), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
