"""What a running command has printed, here while it runs: nothing for short ones, seldom for long ones, in one frame."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from persistent_runner.logs import TrialLog
from persistent_runner.remote.frames import Exit
from persistent_runner.remote.live_log import LiveLog, live_log, whole_log
from tests.remote.conftest import run, start, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remote.conftest import Site

WAIT = "; until [ -e ../go ]; do sleep 0.02; done"


def text_of(log: TrialLog) -> str:
    return "".join(log.read())


def test_a_short_command_costs_no_frame_for_its_log(sshd_site: Site) -> None:
    """One frame out and one back, with the log that is looked at now and then as without."""
    link = sshd_site.link()
    pieces: list[tuple[int, bytes]] = []
    before = link.frames_out, link.frames_in
    assert run(link, "seq 1000", on_log=lambda *piece: pieces.append(piece), seldom=True).code == 0
    assert (link.frames_out - before[0], link.frames_in - before[1]) == (1, 1)
    assert pieces == []


def test_many_logs_travel_in_one_frame(sshd_site: Site) -> None:
    """Commands that print at a time share a frame; what one prints in many pieces between two looks comes as one."""
    link = sshd_site.link()
    pieces: dict[int, list[tuple[int, bytes]]] = {number: [] for number in range(8)}
    futures = [
        start(
            link,
            f"for i in 1 2 3; do echo {number} $i; sleep 0.01; done; touch printed" + WAIT,
            attempt=f"{number:05d}.1",
            on_log=lambda offset, data, to=pieces[number]: to.append((offset, data)),
            seldom=True,
        )
        for number in pieces
    ]
    until(lambda: all((sshd_site.root / f"{n:05d}.1" / "printed").exists() for n in pieces), "all have printed")
    until(lambda: all(found and found[-1][1].endswith(b" 3\n") for found in pieces.values()), "all of each")
    frames = link.frames_in
    (sshd_site.root / "go").touch()
    for future in futures:
        assert future.result(60).code == 0
    assert frames < len(pieces)
    for number, found in pieces.items():
        assert b"".join(data for _, data in found) == b"".join(b"%d %d\n" % (number, i) for i in (1, 2, 3))


def test_of_much_the_newest_comes(sshd_site: Site) -> None:
    """A command that prints megabytes sends the last whole lines of them, and where in the log they stand."""
    link = sshd_site.link()
    pieces: list[tuple[int, bytes]] = []
    future = start(link, "seq 1000000" + WAIT, on_log=lambda *piece: pieces.append(piece), seldom=True)
    until(lambda: pieces and pieces[-1][1].endswith(b"\n1000000\n"), "the last line")
    (sshd_site.root / "go").touch()
    ended = future.result(60)
    offset, data = pieces[-1]
    assert len(data) <= 1 << 14
    assert offset + len(data) == ended.log_bytes
    first = int(data.split()[0])
    assert data == b"".join(b"%d\n" % n for n in range(first, 1_000_001))


def test_the_live_log_goes_on_after_a_drop(site: Site) -> None:
    """A new agent goes on where the one before it was: nothing comes twice, nothing is missing."""
    work = site.work()
    here = TrialLog(work.folder)
    text = ""

    def seen(word: str) -> bool:
        nonlocal text
        text += text_of(here)
        return word in text

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work.run, "echo one; until [ -e next ]; do sleep 0.02; done; echo two" + WAIT)
        until(lambda: seen("one"), "the first line")
        assert work.last_line == "one"
        site.proxy.drop()
        (site.root / "00000.1" / "next").touch()
        until(lambda: seen("two"), "the second line")
        (site.root / "go").touch()
        assert running.result(60).output == "one\ntwo\n"
    assert text + text_of(here) == "one\ntwo\n"
    assert sorted(path.name for path in work.folder.glob("command*")) == ["command-1.log"]


def test_a_command_that_on_line_ended_leaves_its_log(site: Site) -> None:
    """A pruned trial's log is here, to the last line that it printed."""

    def on_line(line: str) -> None:
        if line == "diverges":
            raise ZeroDivisionError

    work = site.work()
    try:
        work.run("echo begins; echo diverges; sleep 600", on_line=on_line)
    except ZeroDivisionError:
        assert whole_log(work.folder, 0).read_text() == "begins\ndiverges\n"
        assert not live_log(work.folder, 0).exists()
    else:
        raise AssertionError("on_line was not heard")


def test_an_earlier_attempts_logs_go(sshd_site: Site) -> None:
    """What is shown of a trial is of its last attempt alone."""
    link = sshd_site.link()
    work = sshd_site.work(link)
    work.run("echo one")
    work.run("echo two")
    sshd_site.work(link, attempt="00000.2").run("echo again")
    assert [path.name for path in work.folder.glob("command*")] == ["command-1.log"]


def test_a_live_log_is_bounded_and_a_reader_misses_nothing(tmp_path: Path) -> None:
    """The file is cut at its front again and again; who reads along gets each line once, who comes late the last ones."""
    log, offset, text = LiveLog(tmp_path, 0, most=10_000), 0, ""
    with closing(TrialLog(tmp_path)) as reader:
        for number in range(5000):
            line = b"line %d\n" % number
            log.add(offset, line)
            offset += len(line)
            if number % 100 == 0:
                text += text_of(reader)
            assert live_log(tmp_path, 0).stat().st_size <= 10_100
        text += text_of(reader)
    assert text.splitlines() == [f"line {number}" for number in range(5000)]
    with closing(TrialLog(tmp_path)) as reader:
        late = text_of(reader).splitlines()
    assert late[0].startswith("[the first ")
    assert late[-1] == "line 4999"
    assert log.last_line == "line 4999"


def test_what_did_not_come_is_named(tmp_path: Path) -> None:
    """A reader sees that there is a gap, and gets the end of the log from the exit, each byte once."""
    log = LiveLog(tmp_path, 0)
    log.add(0, b"a\n")
    log.add(100, b"b\n")
    log.end(Exit("done", log_tail=b"b\nc\n", log_bytes=104))
    with closing(TrialLog(tmp_path)) as reader:
        assert text_of(reader) == "a\n[98 bytes are left out here]\nb\nc\n"


def test_last_lines_are_for_a_terminal(tmp_path: Path) -> None:
    """The last line is what a terminal would show last, without escapes; of an endless one it is the end."""
    log = LiveLog(tmp_path, 0)
    assert log.last_line == ""
    log.add(0, b"step\t1\n10%\r20%\r\x1b[31m30%\x07\r\n\n")
    assert log.last_line == "[31m30%"
    log.add(28, b"x" * 5_000_000)
    assert 0 < len(log.last_line) <= 1000


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path) -> None:
    """A live log is for display: where it cannot be written the last line is there all the same."""
    log = LiveLog(tmp_path / "not there", 0)
    log.add(0, b"one\n")
    assert log.last_line == "one"
