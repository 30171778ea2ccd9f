"""Signals, counted."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from persistent_runner.interrupts import Interrupts, Leave, held_back


def send(*numbers: int) -> None:
    """Send signals to this process and wait until each has been handled."""
    for number in numbers:
        signal.raise_signal(number)


def test_interrupts_are_counted_and_the_third_leaves() -> None:
    """Once and twice are only counted, for the loop to heed; the third ends whatever the main thread does."""
    with Interrupts() as interrupts:
        assert (interrupts.count, interrupts.asked.is_set()) == (0, False)
        send(signal.SIGINT)
        assert (interrupts.count, interrupts.asked.is_set()) == (1, True)
        send(signal.SIGINT)
        assert interrupts.count == 2
        with pytest.raises(Leave):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_counts_as_two_and_never_as_three(number) -> None:
    """A terminal that closes sends more than one SIGHUP: the cluster is released all the same."""
    with Interrupts() as interrupts:
        send(number, number, signal.SIGTERM)
        assert interrupts.count == 2
    with Interrupts() as interrupts:
        send(signal.SIGINT, number)
        assert interrupts.count == 2


def test_handlers_are_put_back() -> None:
    """After a study a notebook's stop button does again what it did before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_at_once_raises_at_the_first() -> None:
    """A step that nobody can watch, such as the setup, is left at the first interrupt, also one that came before."""
    with Interrupts() as interrupts:
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            threading.Event().wait(60)
        assert interrupts.count == 1
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            pytest.fail("not reached")
        send(signal.SIGINT)  # counted only, again
        assert interrupts.count == 2


def test_outside_the_main_thread_nothing_is_changed() -> None:
    """Python takes signal handlers in the main thread alone; a study in another thread runs without them."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupts() as interrupts:
                assert interrupts.count == 0
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_who_leaves_is_not_held_up_by_another_press() -> None:
    """The fourth Ctrl-C comes while the third is heeded: it is counted and raises nothing."""
    with Interrupts() as interrupts:
        send(signal.SIGINT, signal.SIGINT)
        with pytest.raises(Leave):
            send(signal.SIGINT)
        send(signal.SIGINT, signal.SIGTERM)
        assert interrupts.count == 4


def test_an_event_of_somebody_elses_is_set_and_given_back() -> None:
    """A lease's waits end while a study is interrupted; the next study on it waits again."""
    event = threading.Event()
    with Interrupts(event):
        send(signal.SIGINT)
        assert event.is_set()
    assert not event.is_set()


@pytest.mark.parametrize("others", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM], []])
def test_a_release_is_held_up_by_the_second_ctrl_c_alone(others: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A terminal that closes and an impatient finger leave a script's release alone; twice means it."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with held_back():
        send(signal.SIGINT, *others)
        assert "The release goes on. Press Ctrl-C again" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGINT, *others)  # who leaves is not held up by another press
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_whoever_counts_interrupts_goes_on_counting_during_a_release() -> None:
    """`run-study` has said what each press means."""
    with Interrupts() as interrupts, held_back():
        send(signal.SIGINT)
        assert interrupts.count == 1
