"""Signals, counted: the main thread decides what each count means."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class Leave(KeyboardInterrupt):
    """The user asked a third time: go at once, and say what still runs."""


class Interrupts:
    """Counts interrupts while it is entered.

    Once (Ctrl-C): no new trials. Twice, or SIGTERM or SIGHUP, which count as two: stop what runs. The third raises
    Leave in the main thread. `asked` is set from the first on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name, weight in (("SIGINT", 1), ("SIGTERM", 2), ("SIGHUP", 2), ("SIGBREAK", 2)):
                number = getattr(signal, name, None)  # SIGHUP is POSIX, SIGBREAK is Windows
                if number is not None:
                    self._before[number] = signal.signal(number, self._handler(weight))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handler(self, weight: int) -> Any:
        def handle(_number: int, _frame: FrameType | None) -> None:
            if self.count >= 2:
                raise Leave
            self.count += weight
            self.asked.set()

        return handle
