"""What goes wrong in processes that read ahead, told as if it had gone wrong in this one."""

from __future__ import annotations

import re

from whatwhere.errors import OutputError, WhatwhereError

_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)(?: is killed by signal: (\w+))?")
_HANGS = re.compile(r"DataLoader timed out after (\d+)")


def told_here(error: Exception) -> Exception:
    """Return the error to raise in the place of one that torch brings from another process.

    Torch passes on an error with the trace of where it arose as its message, and says of a process
    that died no more than that it did.
    """
    text = str(error)
    if isinstance(error, WhatwhereError):
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        caught = text.startswith("Caught ") and "DataLoader worker" in text and name in text
        return type(error)(text.rpartition(name)[2].rstrip()) if caught else error
    if isinstance(error, (ConnectionError, EOFError)):
        text = "DataLoader worker (pid 0)"  # it was ended while it handed a batch over
    died, hangs = _DIED.search(text), _HANGS.search(text)
    if died is not None:
        which = "" if died[1] == "0" else f", number {died[1]},"
        how = f" (signal: {died[2]})" if died[2] else ""
        return OutputError(
            f"a process that reads ahead{which} was ended from outside{how}: most likely the "
            "memory was full. Take fewer --workers; --resume goes on from the last state that was "
            "kept."
        )
    if hangs is not None:
        return OutputError(
            f"no process that reads ahead gave a batch for {hangs[1]} s: the disk or network that "
            "the data lies on seems to hang. --resume goes on from the last state that was kept."
        )
    return error
