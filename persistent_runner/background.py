"""What is not here yet: a call in a thread of its own, and what is made of what a future gives."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
Source = TypeVar("Source")


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


def then(source: Future[Source], convert: Callable[[Source], Result]) -> Future[Result]:
    """Return a future of what `convert` makes of what another one gives, in the thread that ends that."""
    target: Future[Result] = Future()
    target.set_running_or_notify_cancel()  # nobody can cancel what a node may be doing

    def done(finished: Future[Source]) -> None:
        try:
            result = convert(finished.result())
        except Exception as error:  # noqa: BLE001 - the future carries it
            target.set_exception(error)
        else:
            target.set_result(result)

    source.add_done_callback(done)
    return target
