"""Supervisors that see one command after the other to its end: what one command leaves, the next one never meets."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from persistent_runner.remote.agent import process_stat
from tests.remote.conftest import processes, run, start, until
from tests.remote.test_link import supervisor_of

if TYPE_CHECKING:
    from persistent_runner.remote.link import Link
    from tests.remote.conftest import Site

GATED = "touch begun; until [ -e go ]; do sleep 0.01; done; echo fine"


def name(number: int) -> str:
    return f"{number:05d}.1"


def ended(site: Site, link: Link, count: int) -> dict[int, str]:
    """Run commands one after the other; return an attempt of each supervisor that saw to one."""
    for number in range(count):
        assert run(link, "echo fine", attempt=name(number)).state == "done"
    return {supervisor_of(site, name(number)): name(number) for number in range(count)}


def test_they_see_to_many_commands_and_end_with_their_agent(site: Site, link: Link) -> None:
    """There is one that works and one that stands by; nothing of theirs is left when the driver goes."""
    assert len(ended(site, link, 8)) <= 2
    link.close()
    until(lambda: not processes(site.run), "the end of all that the agent started")


def test_each_command_has_its_own(site: Site, link: Link) -> None:
    """Directory, log, mask and variables are those of the command, whatever the one before did to its own."""
    masks = set()
    for number in range(4):
        script = (
            f'umask; echo "$OWN ${{LEFT-none}}"; basename "$PWD"; umask 0; cd /; export LEFT={number}; echo late >&2'
        )
        found = run(link, script, attempt=name(number), env={"OWN": str(number)})
        mask, *said = found.log_tail.decode().splitlines()
        assert said == [f"{number} none", name(number), "late"]
        masks.add(mask)
    assert len(masks) == 1


def test_a_kill_that_comes_late_ends_no_other_command(site: Site, link: Link) -> None:
    """Its supervisor is at another command by then."""
    earlier = ended(site, link, 4)
    future = start(link, GATED, attempt=name(9))
    until((site.root / name(9) / "begun").exists, "the command runs")
    link.kill(earlier[supervisor_of(site, name(9))], 0).result(30)
    (site.root / name(9) / "go").touch()
    assert (future.result(60).state, future.result(60).log_tail) == ("done", b"fine\n")


def test_a_signal_while_it_stands_by_ends_nothing(site: Site, link: Link) -> None:
    """It was for the command before, which has ended."""
    for pid in ended(site, link, 4):
        os.kill(pid, signal.SIGTERM)
    assert [run(link, "sleep 0.1", attempt=name(number)).state for number in range(10, 14)] == ["done"] * 4


def test_another_one_takes_the_place_of_one_that_was_killed(site: Site, link: Link) -> None:
    """Its end while it stood by costs no command."""
    for pid in ended(site, link, 4):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: (process_stat(pid) or "Z")[0] in "ZX", "its end")
    assert [run(link, "echo fine", attempt=name(number)).state for number in range(10, 14)] == ["done"] * 4


def test_a_newer_agent_hears_of_the_end_while_the_older_one_is_there(sshd_site: Site) -> None:
    """The supervisor stands by for the older one no more, and its own end is the word that the newer one waits for."""
    older = sshd_site.link()
    ended(sshd_site, older, 2)
    first = start(older, GATED, attempt=name(9))
    until((sshd_site.root / name(9) / "begun").exists, "the command runs")
    newer = sshd_site.link()
    second = start(newer, GATED, attempt=name(9))
    newer.ping().result(60)  # it has joined
    (sshd_site.root / name(9) / "go").touch()
    assert [second.result(60).log_tail, first.result(60).log_tail] == [b"fine\n"] * 2


def test_all_who_ask_for_one_command_hear_of_its_end(site: Site, link: Link) -> None:
    """It runs once, and its supervisor does not end with it."""
    first, second = start(link, GATED), start(link, GATED)
    until((site.root / name(0) / "begun").exists, "the command runs")
    link.ping().result(60)  # both have come
    (site.root / name(0) / "go").touch()
    assert [first.result(60).log_tail, second.result(60).log_tail] == [b"fine\n"] * 2


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("kill -9 $$", "done"),
        ("exit 143", "done"),
        ("(kill -TERM $PPID) & kill -9 $$", "killed"),
        ("(kill -TERM $PPID) & exit 143", "killed"),
        ("kill -STOP $PPID & (sleep 0.2; kill -TERM $PPID; kill -CONT $PPID) & exit 143", "killed"),
    ],
)
def test_a_machine_that_goes_down(site: Site, link: Link, script: str, state: str) -> None:
    """What ends a command and its supervisor, in whichever order, is told as no end of the command's own."""
    assert run(link, script).state == state
