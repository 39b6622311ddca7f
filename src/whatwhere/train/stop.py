"""Asking a training to stop: the step is finished, the state is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Stop:
    """Whether somebody asked to stop.

    Attributes:
        signal: Which signal asked; None where none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._taken: list[int] = []

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Note the first request; the second one stops at once.

        Raises:
            KeyboardInterrupt: It was asked before.
        """
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that ask a program to end, while the block runs.

        Only the main thread can; in others nothing happens.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        self._taken = [number for number in numbers if before[number] is not signal.SIG_IGN]
        self.take()
        try:
            yield
        finally:
            taken, self._taken = self._taken, []
            for number in taken:
                signal.signal(number, before[number] or signal.SIG_DFL)

    def take(self) -> None:
        """Take the signals again, if this listens, from whoever took them meanwhile.

        Lightning hears SIGTERM, too, and would end a training between a step and its state.
        """
        for number in self._taken:
            signal.signal(number, self.ask)


class Halt(Exception):
    """A training ends here because somebody asked; its state was kept."""
