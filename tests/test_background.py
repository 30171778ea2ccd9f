"""Threads that make one call after the other."""

from __future__ import annotations

import queue
import threading

from persistent_runner.background import Crew

SECONDS = 30.0


def test_a_call_waits_for_no_other() -> None:
    """Each is made at once, however many others go on; a thread has its call's name, and takes the next call."""
    crew, said, go = Crew(), queue.SimpleQueue[tuple[str, int]](), threading.Event()

    def call() -> None:
        said.put((threading.current_thread().name, threading.get_ident()))
        assert go.wait(SECONDS)

    for number in range(5):
        crew.start(call, f"call {number}")
    first = dict(said.get(timeout=SECONDS) for _ in range(5))
    assert set(first) == {f"call {number}" for number in range(5)}
    assert len(set(first.values())) == 5
    go.set()
    later = []
    for number in range(20):
        crew.start(call, f"later {number}")
        later.append(said.get(timeout=SECONDS))
    assert [name for name, _ in later] == [f"later {number}" for number in range(20)]
    assert len({*first.values(), *(ident for _, ident in later)}) < 10
    crew.close(SECONDS)


def test_its_threads_end_when_it_is_closed() -> None:
    """One that is at a call makes it to the end, and is waited for only so long."""
    crew, begun, go = Crew(), threading.Event(), threading.Event()
    threads = []

    def call() -> None:
        threads.append(threading.current_thread())
        begun.set()
        assert go.wait(SECONDS)

    crew.start(call, "one that goes on")
    assert begun.wait(SECONDS)
    crew.start(lambda: threads.append(threading.current_thread()), "a short one")
    crew.close(0.01)
    assert threads[0].is_alive()
    go.set()
    crew.close(SECONDS)
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)
