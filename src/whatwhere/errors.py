"""What can go wrong, and the exit code each of them has.

    WhatwhereError                       1  a fault of ours
    ├── UsageError        ValueError     2  flags, arguments, recipes
    │   └── ShapeError    ValueError     2  an array or image of a size that cannot be taken
    ├── DataError         ValueError     3  images, masks and folders
    ├── BundleError       ValueError     4  a bundle that is damaged, unknown or does not fit
    ├── OutputError       OSError        5  disks, permissions, memory
    ├── NumericsError     ArithmeticError 6 numbers that are no longer numbers
    └── BusyError         OSError        75 somebody else is at work there

Ctrl-C ends with 130, other signals with 128 and their number (SIGTERM: 143).

Each one inherits a builtin too, so that callers may catch either. A message says what was asked,
what came, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

INTERRUPTED = 130


class WhatwhereError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(WhatwhereError, ValueError):
    """A flag, an argument or a recipe that cannot be followed."""

    exit_code = 2


class ShapeError(UsageError):
    """An image or array of a shape that cannot be taken."""


class BundleError(WhatwhereError, ValueError):
    """A bundle that is damaged, unknown, or does not fit what is asked of it."""

    exit_code = 4


class OutputError(WhatwhereError, OSError):
    """Something could not be written."""

    exit_code = 5


class NumericsError(WhatwhereError, ArithmeticError):
    """A loss, a weight or a probability that is not a finite number."""

    exit_code = 6


class BusyError(WhatwhereError, OSError):
    """Somebody else is at work in a folder."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """Work ended because a signal asked for it.

    Attributes:
        exit_code: What the program ends with.
    """

    def __init__(self, number: int | None = None) -> None:
        """Take the number of the signal; None for Ctrl-C."""
        super().__init__()
        self.exit_code = INTERRUPTED if number is None else 128 + number


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; of one that says nothing, its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def plain(text: object, kept: str = "") -> str:
    """Return text as a terminal shows it: what is no letter, such as a line break, is escaped.

    Args:
        text: Such as a path, whose name may hold anything.
        kept: What is left as it is.
    """
    return "".join(
        sign if sign.isprintable() or sign in kept else repr(sign)[1:-1] for sign in str(text)
    )


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing that was noticed about the data.

    Attributes:
        severity: `error` stops a training, `warning` may spoil it, `note` is worth knowing.
        file: The file or folder it is about, as the user would type it.
        cause: What is the matter, one sentence.
        remedy: What to do about it, one sentence.
    """

    severity: Severity
    file: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{plain(self.file)}: {self.cause} {self.remedy}".strip()


class DataError(WhatwhereError, ValueError):
    """Images, masks or folders that cannot be used; carries every problem that was found.

    Attributes:
        problems: All of them, in the order found; empty when the message says it all.
    """

    exit_code = 3

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message)
