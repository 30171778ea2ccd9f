"""Signals, counted: the main thread decides what each count means."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType


class Leave(KeyboardInterrupt):
    """The user asked a third time: go at once, and say what still runs."""


class Interrupts:
    """Counts interrupts while it is entered.

    Once (Ctrl-C): no new trials. Twice: stop what runs. The third raises Leave in the main thread. SIGTERM and SIGHUP
    ask for as much as two, and however many come never for more, since a closing terminal sends several. `asked` is
    set from the first on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.asked = threading.Event()
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
                number = getattr(signal, name, None)  # SIGHUP is POSIX, SIGBREAK is Windows
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first interrupt already: for steps that look at no count and lose nothing."""
        self._at_once = True
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.count = self.count + 1 if number == signal.SIGINT else max(self.count, 2)
        self.asked.set()
        if self.count >= 3:
            raise Leave
        if self._at_once:
            raise KeyboardInterrupt
