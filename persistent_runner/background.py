"""Answers that come later: of a call in a thread of its own, and what is made of another answer."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")
Result = TypeVar("Result")


def in_background(call: Callable[[], Result], name: str) -> Future[Result]:
    """Return what `call()` will give or raise. Nobody waits for its thread when the process ends."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the future carries it
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


class Crew:
    """Threads that make one call after the other: to begin one takes as long as all else that a short trial asks of it.

    Nobody waits for them when the process ends.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def start(self, call: Callable[[], None], name: str) -> None:
        """Make a call that raises nothing, at once, in a thread that has this name meanwhile."""
        with self._lock:
            is_new = not self._idle
            if is_new:
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            else:
                self._idle -= 1
        self._calls.put((call, name))

    def close(self, seconds: float) -> None:
        """Let each thread end when it has nothing more to do, and wait so long for that; nothing starts any more."""
        for _ in self._threads:
            self._calls.put(None)
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while self._make_one():
            with self._lock:
                self._idle += 1

    def _make_one(self) -> bool:
        todo = self._calls.get()
        if todo is None:
            return False
        call, threading.current_thread().name = todo
        call()
        return True


def then(source: Future[Answer], convert: Callable[[Answer], Result]) -> Future[Result]:
    """Return a future of what `convert` makes of another one's answer; it cannot be cancelled."""
    target: Future[Result] = Future()
    target.set_running_or_notify_cancel()  # nobody can cancel what a node may be doing

    def done(finished: Future[Answer]) -> None:
        try:
            result = convert(finished.result())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            target.set_exception(error)
        else:
            target.set_result(result)

    source.add_done_callback(done)
    return target
