"""Answers that come later: of a call in a thread of its own, and what is made of another answer."""

from __future__ import annotations

import threading
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
