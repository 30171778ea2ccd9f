"""`recovery.py`: which call is repeated, how long, and what ends it."""

from __future__ import annotations

import threading

import pytest

from persistent_runner.errors import ConnectionLost, PlatformUnavailable
from persistent_runner.recovery import Backoff, recover


def nothing(_: Exception) -> None:
    """Mend nothing: the same call again is the remedy."""


QUICK = Backoff(first=0.001, most=0.002, total=60)


class Flaky:
    """Fails as often as it is told to, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_a_call_is_repeated_until_it_answers() -> None:
    """A passing fault does not reach the caller."""
    call = Flaky(ConnectionLost("one"), ConnectionLost("two"))
    assert recover(call, {ConnectionLost: nothing}, QUICK) == "answer"
    assert call.calls == 3


def test_the_first_remedy_that_fits_is_applied_before_each_repeat() -> None:
    """The remedy gets the error, and errors of subclasses find the remedy of their base."""
    mended: list[tuple[str, str]] = []
    lost, away = ConnectionLost("lost"), PlatformUnavailable("away")
    remedies = {
        ConnectionLost: lambda error: mended.append(("connection", str(error))),
        Exception: lambda error: mended.append(("any", str(error))),
    }
    assert recover(Flaky(lost, away), remedies, QUICK) == "answer"
    assert mended == [("connection", "lost"), ("any", "away")]


def test_an_error_without_a_remedy_is_raised_at_once() -> None:
    """What nobody can mend is not tried again."""
    call = Flaky(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        recover(call, {ConnectionLost: nothing}, QUICK)
    assert call.calls == 1


def test_an_error_of_the_remedy_ends_the_repeats() -> None:
    """A remedy that finds out that it is all over says so."""

    def over(error: Exception) -> None:
        raise KeyError("over") from error

    with pytest.raises(KeyError):
        recover(Flaky(ConnectionLost("x")), {ConnectionLost: over}, QUICK)


def test_the_last_error_is_raised_when_the_time_is_used_up() -> None:
    """No wait begins that would end after the total; the caller gets the error as it was."""
    call = Flaky(*[ConnectionLost(str(number)) for number in range(5)])
    with pytest.raises(ConnectionLost, match="0"):
        recover(call, {ConnectionLost: nothing}, Backoff(first=10, total=1))
    assert call.calls == 1


def test_a_set_stop_raises_the_error_without_another_call() -> None:
    """An interrupt is not held up by repeats."""
    stop = threading.Event()
    stop.set()
    call = Flaky(ConnectionLost("first"))
    with pytest.raises(ConnectionLost, match="first"):
        recover(call, {ConnectionLost: nothing}, Backoff(first=30, total=1000), stop)
    assert call.calls == 1


def test_a_stop_that_is_set_during_the_wait_ends_it() -> None:
    """The wait listens to the event instead of sleeping through it."""
    stop = threading.Event()
    call = Flaky(ConnectionLost("first"))
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(ConnectionLost, match="first"):
        recover(call, {ConnectionLost: nothing}, Backoff(first=500, most=500, total=1000), stop)


def test_retry_after_is_waited_for() -> None:
    """A wait that the platform asks for is kept, and a little more: others were told the same (row A6)."""
    waits: list[float | None] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    recover(Flaky(PlatformUnavailable("busy", retry_after=37)), {PlatformUnavailable: nothing}, QUICK, Watched())
    assert len(waits) == 1
    assert waits[0] is not None
    assert 37 < waits[0] <= 37 + QUICK.most


def test_a_retry_after_beyond_the_total_is_not_waited_for() -> None:
    """A wait that cannot help is not begun."""
    call = Flaky(PlatformUnavailable("busy", retry_after=1000))
    with pytest.raises(PlatformUnavailable):
        recover(call, {PlatformUnavailable: nothing}, QUICK)
    assert call.calls == 1


def test_waits_double_up_to_the_most_and_jitter_stays_in_the_upper_half() -> None:
    """Many clients do not come back at the same moment, and none comes back at once."""
    backoff = Backoff(first=1, factor=2, most=5)
    for repeat, whole in [(0, 1), (1, 2), (2, 4), (3, 5), (10_000, 5)]:
        waits = [backoff.wait(repeat) for _ in range(50)]
        assert min(waits) >= whole / 2
        assert max(waits) <= whole
        assert len(set(waits)) > 1
