"""Signals, counted, and the ways out of a process: the main thread decides what each count means."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

log = logging.getLogger(__name__)

_GOES_ON = "The release goes on. Press Ctrl-C %s to leave at once; the cluster may cost money then."
_released = threading.Event()  # while the main thread waits for the end of a cluster


class Leave(KeyboardInterrupt):
    """The user asked a third time: go at once, and say what still runs."""


class Interrupts:
    """Counts interrupts while it is entered.

    Once (Ctrl-C): no new trials. Twice: stop what runs. The third raises Leave in the main thread, once: whoever leaves
    is not held up by a fourth. SIGTERM and SIGHUP ask for as much as two, and however many come never for more, since a
    closing terminal sends several. `asked` is set from the first on, until it is left.
    """

    def __init__(self, asked: threading.Event | None = None) -> None:
        self.count = 0
        self.asked = asked or threading.Event()
        self._at_once = False
        self._has_left = False
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
        self.asked.clear()

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
        if self.count >= 3 and not self._has_left:
            self._has_left = True
            raise Leave
        if self._has_left:
            return
        if self._at_once:
            raise KeyboardInterrupt
        if _released.is_set():
            log.warning(_GOES_ON, "again" if self.count == 2 else "twice")


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold interrupts back while a release goes on: what asks for the end of the process comes to no more than that.

    The second Ctrl-C within raises KeyboardInterrupt; SIGTERM and SIGHUP never do. Only handlers that are Python's own
    are replaced, and only in the main thread: whoever counts interrupts has said what each of them means.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0
    _released.set()

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += number == signal.SIGINT
        if count == 2 and number == signal.SIGINT:  # once: who leaves is not held up by a third
            raise KeyboardInterrupt
        if count < 2:
            log.warning(_GOES_ON, "again" if count else "twice")

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    replaced = [number for number in numbers if before[number] in {signal.default_int_handler, signal.SIG_DFL}]
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        _released.clear()
        for number in replaced:
            signal.signal(number, before[number])


class ExitGuard:
    """While it is installed, this process does not end on purpose without calling `release`.

    SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as Ctrl-C does, where nobody else has a handler for
    them; and the interpreter calls `release` before it exits.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._signals: list[int] = []

    def install(self) -> None:
        """Watch the ways out."""
        atexit.register(self._release)
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, signal.default_int_handler)
                    self._signals.append(number)

    def remove(self) -> None:
        """There is nothing left to release."""
        atexit.unregister(self._release)
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)
            self._signals.clear()
