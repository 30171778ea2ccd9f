"""A trial through the link while a sampler computes in the same interpreter, by how long a thread may keep it."""

from __future__ import annotations

import itertools
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from persistent_runner.cli import SWITCH_SECONDS
from tests.benchmarks.bars import Row
from tests.benchmarks.far import ANSWER, far, median, milliseconds, said
from tests.benchmarks.noops import start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TITLE = "A trial that does nothing, through the link, RTT 50, beside a thread that computes"
RTT = 0.05
PYTHONS = 0.005  # s, the interpreter's own choice
MORE = 1.5  # times what a trial takes alone


def measure(folder: Path, repeats: int) -> list[Row]:
    """Return what a trial takes alone, and beside the busy thread with Python's turns and with ours."""
    with far(RTT) as place, place.link() as link:
        attempts = (f"{number:05d}.1" for number in itertools.count())

        def trial() -> None:
            assert start(link, next(attempts), "true").result(ANSWER).code == 0

        trial()
        alone = milliseconds(trial, repeats)
        with _turns(PYTHONS), _computing():
            before = milliseconds(trial, repeats)
        with _turns(SWITCH_SECONDS), _computing():
            after = milliseconds(trial, repeats)
    peer = (f"turns of {1000 * PYTHONS:g} ms", median(before))
    return [
        Row("alone", median(alone), "ms", None, limit=1000 * RTT, note=said(alone)),
        Row(
            f"beside it, turns of {1000 * SWITCH_SECONDS:g} ms",
            median(after),
            "ms",
            MORE * median(alone),
            peer=peer,
            limit=1000 * RTT,
            note=said(after),
        ),
    ]


@contextmanager
def _turns(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _computing() -> Iterator[None]:
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(number * number for number in range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
