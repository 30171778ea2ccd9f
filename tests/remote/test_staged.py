"""Commands that wait on the node for their place: when they start, when they do not, and what withdraws them."""

from __future__ import annotations

import os
import shlex
import signal
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import AttemptLost
from tests.remote.conftest import run, start, until
from tests.remote.test_link import TREE, agents, supervisor_of

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.remote.frames import Exit
    from persistent_runner.remote.link import Link
    from tests.remote.conftest import Site

GATED = "echo x >> counter; until [ -e go ]; do sleep 0.01; done"


def folder(site: Site, number: int) -> Path:
    """Return the working directory of a trial's first attempt."""
    return site.root / f"{number:05d}.1"


def go(site: Site, number: int) -> None:
    """Let a command end."""
    (folder(site, number) / "go").touch()


def staged(link: Link, number: int, among: int = 1, **options: object) -> Future[Exit]:
    """Send a command that starts while fewer than `among` run."""
    return start(link, GATED, attempt=f"{number:05d}.1", among=among, **options)


def runs(site: Site, number: int) -> bool:
    """Whether a command has begun."""
    return (folder(site, number) / "counter").exists()


def test_one_starts_when_another_one_ends(site: Site, link: Link) -> None:
    """As many run as may, in the order in which they were sent; one that waits has claimed nothing."""
    futures = [staged(link, number, 2, files=[("deck", b"x", 0o644)]) for number in range(4)]
    link.ping().result(60)  # all of them have come
    until(lambda: runs(site, 0) and runs(site, 1), "the first two run")
    assert not folder(site, 2).exists()
    go(site, 1)
    until(lambda: runs(site, 2), "the third one runs")
    assert futures[1].result(60).state == "done"
    assert not folder(site, 3).exists()
    go(site, 0)
    until(lambda: runs(site, 3), "the last one runs")
    go(site, 2)
    go(site, 3)
    assert [future.result(60).state for future in futures] == ["done"] * 4
    assert [(folder(site, number) / "counter").read_text() for number in range(4)] == ["x\n"] * 4


def test_the_next_one_starts_before_the_driver_hears_of_the_last_one(sshd_site: Site) -> None:
    """A core does not idle while the word of it is on its way."""
    link = sshd_site.link()
    first, second = staged(link, 0), staged(link, 1)
    until(lambda: runs(sshd_site, 0), "the first one runs")
    link.ping().result(60)
    sshd_site.proxy.freeze()
    go(sshd_site, 0)
    until(lambda: runs(sshd_site, 1), "the second one runs")
    assert not first.done()
    sshd_site.proxy.drop()
    go(sshd_site, 1)
    assert [first.result(60).state, second.result(60).state] == ["done", "done"]
    assert (folder(sshd_site, 1) / "counter").read_text() == "x\n"


def test_nothing_starts_without_its_driver(sshd_site: Site) -> None:
    """What waits goes with its agent; the next one that sends it starts it, once."""
    link = sshd_site.link()
    staged(link, 0)
    staged(link, 1)
    until(lambda: runs(sshd_site, 0), "the first one runs")
    link.ping().result(60)
    link.close()
    until(lambda: not agents(sshd_site), "the end of the agent")
    go(sshd_site, 0)
    until((folder(sshd_site, 0) / ".attempt/0/exit.json").exists, "the first one has ended")
    again = sshd_site.link()
    assert not folder(sshd_site, 1).exists()
    first, second = staged(again, 0), staged(again, 1)
    until(lambda: runs(sshd_site, 1), "the second one runs")
    go(sshd_site, 1)
    assert [first.result(60).state, second.result(60).state] == ["done", "done"]
    assert (folder(sshd_site, 1) / "counter").read_text() == "x\n"


def test_a_drop_changes_nothing(site: Site, link: Link) -> None:
    """The new agent is sent what runs and what waits; what has begun is joined, and counts."""
    futures = [staged(link, number) for number in range(3)]
    until(lambda: runs(site, 0), "the first one runs")
    link.ping().result(60)
    site.proxy.drop()
    link.ping().result(60)
    assert not folder(site, 1).exists()
    for number in range(3):
        until(lambda number=number: runs(site, number), f"{number} runs")
        go(site, number)
    assert [future.result(60).state for future in futures] == ["done"] * 3
    assert [(folder(site, number) / "counter").read_text() for number in range(3)] == ["x\n"] * 3


def test_withdrawn(site: Site, link: Link) -> None:
    """What waits never begins, whoever sends it again; what runs goes on."""
    first, second, third = (staged(link, number) for number in range(3))
    until(lambda: runs(site, 0), "the first one runs")
    for number in range(2):
        link.withdraw(f"{number:05d}.1", 0).result(60)
    assert second.result(60).state == "withdrawn"
    go(site, 0)
    assert first.result(60).state == "done"
    until(lambda: runs(site, 2), "the third one runs")
    go(site, 2)
    assert third.result(60).state == "done"
    assert run(link, GATED, attempt="00001.1").state == "withdrawn"
    link.withdraw("00002.1", 0).result(60)  # it has ended
    assert run(link, GATED, attempt="00002.1").state == "done"
    assert not runs(site, 1)


def test_withdrawn_before_it_came(sshd_site: Site) -> None:
    """A command that is sent once more after its withdrawal does not begin."""
    link = sshd_site.link()
    link.withdraw("00000.1", 0).result(60)
    assert staged(link, 0).result(60).state == "withdrawn"
    assert not runs(sshd_site, 0)


def test_stopped_while_it_waits(sshd_site: Site) -> None:
    """Its end does not need its start."""
    link = sshd_site.link()
    first, second = staged(link, 0), staged(link, 1)
    until(lambda: runs(sshd_site, 0), "the first one runs")
    link.kill("00001.1", 0).result(60)
    assert second.result(60).state == "withdrawn"
    go(sshd_site, 0)
    assert first.result(60).state == "done"
    assert not runs(sshd_site, 1)


def test_one_takes_the_place_of_another_one(sshd_site: Site) -> None:
    """However many run there by now: the one that ends leaves its place to the first that waits, and to no other."""
    link = sshd_site.link()
    futures = [start(link, GATED, attempt=f"{number:05d}.1") for number in range(3)]
    until(lambda: all(runs(sshd_site, number) for number in range(3)), "three run")
    futures += [staged(link, 3, among=2), staged(link, 4, among=2)]
    link.ping().result(60)
    go(sshd_site, 0)
    until(lambda: runs(sshd_site, 3), "the first that waited runs")
    assert futures[0].result(60).state == "done"
    futures.append(start(link, GATED, attempt="00000.1"))  # joined: it has ended, and leaves no place
    assert futures[-1].result(60).state == "done"
    assert not runs(sshd_site, 4)
    for number in range(1, 5):
        until(lambda number=number: runs(sshd_site, number), f"{number} runs")
        go(sshd_site, number)
    assert [future.result(60).state for future in futures] == ["done"] * 6


def test_withdrawn_before_it_is_sent(sshd_site: Site) -> None:
    """A trial whose inputs are just being made ready does not begin, though there is a place."""
    work = sshd_site.work(among=1)
    work.push()
    work.withdraw()
    with pytest.raises(AttemptLost, match="withdrawn before it began") as lost:
        work.run(GATED)
    assert not lost.value.has_begun
    assert not runs(sshd_site, 0)


@pytest.mark.parametrize("how", ["lost", "killed"])
def test_a_place_is_free_when_the_whole_tree_is_gone(sshd_site: Site, how: str) -> None:
    """The next command starts only when nothing of the last one is left, however that ended."""
    link = sshd_site.link()
    marker = f"PERSISTENT_RUNNER_COMMAND={folder(sshd_site, 0)}/0"
    look = f"grep -lasF {shlex.quote(marker)} /proc/[0-9]*/environ || echo gone"
    first, second = start(link, TREE, among=1), start(link, look, attempt="00001.1", among=1)
    until((folder(sshd_site, 0) / "ready").exists, "the tree stands")
    if how == "killed":
        link.kill("00000.1", 0)
    else:
        os.kill(supervisor_of(sshd_site), signal.SIGKILL)
    assert first.result(60).state == how
    assert second.result(60).log_tail == b"gone\n"
