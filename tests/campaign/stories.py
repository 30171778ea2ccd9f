"""What neither deaths at a point nor random events bring about: plays with a plot of their own.

Each takes the stage, plays one study and returns it; what must hold then is the oracle's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.campaign import nodes
from tests.campaign.oracle import lines
from tests.campaign.stage import TRIALS, until

SETTLE = 0.3  # seconds for what was sent to be on its way, of which nothing is seen from outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.stage import Played, Stage


def deserted_in_the_queue(stage: Stage) -> Played:
    """The driver dies right after its job was submitted, and nobody comes back: the switch ends the cluster."""
    return _deserted(stage, "submit-recorded")


def deserted_at_work(stage: Stage) -> Played:
    """The driver dies while trials run, and nobody comes back."""
    return _deserted(stage, "launched:2")


def _deserted(stage: Stage, point: str) -> Played:
    played = stage.study()
    played.abandoned = True
    driver = stage.start(played, point)
    _end(played, driver)
    return played


def lost_answers(stage: Stage) -> Played:
    """The job is created and submitted, and neither answer arrives."""
    played = stage.study()
    for endpoint in ("create_job", "submit_job"):
        stage.fault(played, "lost", endpoints=[endpoint], times=1)
    stage.drive(played)
    return played


def hanging_solvers(stage: Stage) -> Played:
    """A solver never ends: its whole process tree is gone when its trial is told, and the others do not suffer."""
    played = stage.study(timeout=8)
    driver = stage.start(played)
    until(lambda: driver.ended(0) or len(_events(played, "end")) == TRIALS, "the end of all trials")
    played.left = [line for line in nodes.command_lines(played.mark) if "python3 solver.py" in line]
    _end(played, driver)
    return played


def dead_supervisors(stage: Stage) -> Played:
    """Those that see a command to its end are killed: what they leave behind is ended before the trial runs again."""
    played = stage.study(seconds=1.0)
    played.disturbed = True
    driver = stage.start(played)
    until(lambda: len(_said(played, "start")) == 2, "two trials")
    nodes.kill_one(nodes.supervisors(played.mark), 0.9)
    _end(played, driver)
    return played


def another_host(stage: Stage) -> Played:
    """The head node shows another key than the proven one: nothing is sent to it any more, and the lease ends."""
    played = stage.study(seconds=1.0)
    played.disturbed = played.abandoned = True
    driver = stage.start(played)
    with contextlib.suppress(TimeoutError):
        until(lambda: driver.ended(0) or len(_said(played, "start")) == 2, "two trials")
        stage.fault(played, "host_key")
    _end(played, driver)
    return played


def two_drivers(stage: Stage) -> Played:
    """One of two drivers of a study dies; the other finishes what is its own and leaves the dead one's trials alone."""
    played = stage.study(shared=True)
    _end(played, stage.start(played, "launched:2"))
    _end(played, stage.start(played, runs="runs-of-another"))
    stage.drive(played)
    return played


def an_agent_wakes_late(stage: Stage) -> Played:
    """An agent is held up with trials that it was sent; another driver runs them, then the agent goes on.

    The driver is held up until the running trials have ended, so that it sends the next ones to an agent that sleeps.
    """
    # outputs would have to be fetched from it, what waits would begin
    played = stage.study(outputs=False, ahead=0, seconds=1.5)
    first = stage.start(played)
    until(lambda: _events(played, "end") and len(_said(played, "start")) == 3, "two trials after the first one")
    first.send(signal.SIGSTOP)
    until(lambda: len(_said(played, "end")) == 3, "their end")
    until(lambda: not nodes.supervisors(played.mark), "their records")
    time.sleep(SETTLE)
    sleeping = nodes.agents(played.mark)
    _signal(sleeping, signal.SIGSTOP)
    first.send(signal.SIGCONT)
    until(lambda: len(_events(played, "start")) == 5, "the last two trials")
    time.sleep(SETTLE)
    _end(played, first, kill=True)
    second = stage.start(played)
    # trial 3 is the shorter one: its folder on the node is gone while trial 4 runs
    until(lambda: second.ended(0) or {3} <= {event["trial"] for event in _events(played, "end")}, "a trial's end")
    until(lambda: not _is_there(stage, played, "00003.1"), "the end of its folder")
    _signal(sleeping, signal.SIGCONT)
    _end(played, second)
    return played


def _is_there(stage: Stage, played: Played, attempt: str) -> bool:
    """Whether an attempt has a folder on a node; other folders may vanish while this looks."""
    walk = os.walk(stage.folder)
    return any(attempt in folders and Path(top).name.startswith(f"{played.name}.") for top, folders, _ in walk)


def _end(played: Played, driver: Any, *, kill: bool = False) -> None:
    """See a driver's end and note how it was."""
    if kill:
        driver.kill()
    until(lambda: driver.ended(0), "the driver's end")
    played.codes.append(driver.code)


def _said(played: Played, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(played.truth) if line["event"] == event]


def _events(played: Played, event: str) -> list[dict[str, Any]]:
    return [line for run in played.runs for line in lines(run / "events.jsonl") if line["event"] == event]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


STORIES: dict[str, Callable[[Stage], Played]] = {
    story.__name__.replace("_", " "): story
    for story in (
        deserted_in_the_queue,
        deserted_at_work,
        lost_answers,
        hanging_solvers,
        dead_supervisors,
        another_host,
        two_drivers,
        an_agent_wakes_late,
    )
}
