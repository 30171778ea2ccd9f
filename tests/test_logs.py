"""`persistent-runner logs`: what a trial prints, while it runs and afterwards."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.logs import Run, find_run, last_lines, show_log, trial_number
from persistent_runner.remote.live_log import LiveLog, forget, whole_log
from persistent_runner.settings import Settings
from persistent_runner.study.run_folder import RunFolder
from tests.driving import BIN, HOSTILE, Place, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Place(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


def follower(place: Place) -> subprocess.Popen[str]:
    """Start `logs 0 --follow`; its output can be read line by line."""
    return subprocess.Popen(
        [str(BIN / "persistent-runner"), "logs", "0", "--follow"],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def logs(place: Place, *args: object, code: int = 0) -> tuple[str, str]:
    """Run `persistent-runner logs` to its end; return what it printed and what it said."""
    driver = place.start("logs", *args, program="persistent-runner")
    assert driver.end() == code, driver.said
    return driver.out, driver.said


def test_a_log_is_followed_until_its_trial_ends(place) -> None:
    """A line is there while the trial runs, and the rest when it has ended, without escapes; the log stays readable."""
    go = place.folder / "go"
    script = f"echo begins\nuntil [ -e {shlex.quote(str(go))} ]; do sleep 0.05; done\n"
    script += "printf '\\033[31mred\\n'; cp parameters.json result.json\n"
    study = place.study(script, n_trials=1)
    driver = place.start(study)
    until((place.runs / "tiny/trials/00000/command-1.live").exists, "a line")
    with follower(place) as to_the_end, follower(place) as interrupted:
        for each in (to_the_end, interrupted):
            assert each.stdout is not None
            assert each.stdout.readline() == "begins\n"
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.communicate()[1] == ""
        assert interrupted.returncode == 130
        assert logs(place, 0) == ("begins\n", "")
        assert "trial 5 of tiny has not started; begun are 0" in logs(place, 5, code=2)[1]

        go.touch()
        rest, said = to_the_end.communicate()
    assert rest == "[31mred\n"
    assert said.startswith("Trial 0: COMPLETE with 0.")
    assert to_the_end.returncode == 0
    assert driver.end() == 0

    assert logs(place, 0) == ("begins\n[31mred\n", "")
    assert logs(place, 0, "-n", 1, "--study", "study") == ("[31mred\n", "")
    assert not (place.runs / "tiny/trials/00000/command-1.live").exists()
    assert "trial 5 of tiny is not there; begun are 0" in logs(place, 5, code=2)[1]


# -- which study


def a_run(runs: Path, name: str, *trials: int, folder: str = "") -> Path:
    """Leave a run folder in which these trials have begun."""
    with RunFolder(runs / (folder or name), name) as run:
        for trial in trials:
            run.commit(kind="attempt", trial=trial, attempt=1, where="x")
    return run.path


def test_the_newest_study_or_the_one_that_is_named(tmp_path: Path) -> None:
    """Nobody has to name the only study; among several the newest is taken and said, and any can be named."""
    settings, said = Settings(runs_dir=tmp_path / "runs"), []
    with pytest.raises(ConfigError, match=r"there is no study in .*runs"):
        find_run(settings, None, said.append)
    wing = a_run(settings.runs_dir, "wing", 0)
    assert find_run(settings, None, said.append) == wing
    assert said == []

    beam = a_run(settings.runs_dir, "beam v2", 0, folder="beam-v2")
    (settings.runs_dir / "a file").touch()
    later = (wing / "journal.jsonl").stat().st_mtime + 10
    os.utime(beam / "journal.jsonl", (later, later))
    assert find_run(settings, None, said.append) == beam
    assert said == [f"Study beam v2, the newest of 2 in {settings.runs_dir}; --study NAME chooses another."]
    for named in ("wing", wing):
        assert find_run(settings, Path(named), said.append) == wing
    for named in ("beam v2", "beam-v2"):
        assert find_run(settings, Path(named), said.append) == beam
    with pytest.raises(ConfigError, match=r'there is no study wings in .*; did you mean "wing"'):
        find_run(settings, Path("wings"), said.append)


# -- which trial


class Watched:
    """`show_log` in a thread, as a person who follows sees it."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.written: list[str] = []
        self.said: list[str] = []
        options = {"follow": True, "lines": None, "write": self.written.append, "say": self.said.append, **options}
        self.thread = threading.Thread(target=show_log, args=(Run(path), 0), kwargs=options)
        self.thread.start()

    @property
    def text(self) -> str:
        return "".join(self.written)

    def end(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


def result(run: RunFolder, state: str = "COMPLETE", failure: str = "") -> None:
    values = [0.25] if state == "COMPLETE" else None
    run.commit(kind="result", trial=0, state=state, values=values, facts={"seconds": 12.0, "failure": failure})


def test_a_trial_that_was_lost_is_followed_into_its_next_attempt(tmp_path: Path) -> None:
    """Who follows sees that the trial begins again, and the new attempt's log from its beginning."""
    with RunFolder(tmp_path / "wing", "wing") as run:
        folder = run.path / "trials" / "00000"
        folder.mkdir()
        run.commit(kind="attempt", trial=0, attempt=1, where="x")
        LiveLog(folder, 0).add(0, b"first\n")
        watched = Watched(run.path)
        until(lambda: watched.text == "first\n", "the first attempt's line")
        forget(folder)
        run.commit(kind="attempt", trial=0, attempt=2, where="y")
        until(lambda: watched.said, "that it begins again")
        LiveLog(folder, 0).add(0, b"second\n")
        until(lambda: watched.text == "first\nsecond\n", "the second attempt's line")
        result(run, "FAIL", "trial 0: `solve` ended with exit code 1")
        watched.end()
    assert watched.said == [
        "Trial 0 was lost and begins again.",
        "Trial 0: FAIL after 12s: trial 0: `solve` ended with exit code 1",
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_who_follows_a_study_that_nobody_drives_is_told(tmp_path: Path, killed) -> None:
    """A driver that ended, or was killed and left its note, is not waited for."""
    with RunFolder(tmp_path / "wing", "wing") as run:
        run.commit(kind="attempt", trial=0, attempt=1, where="x")
        watched = Watched(run.path)
        assert Run(run.path).is_driven
        note = (run.path / "driver.json").read_text()
    if killed:
        (run.path / "driver.json").write_text(note)
    watched.end()
    assert watched.said == [
        "Trial 0 was interrupted; it printed nothing. Nobody drives wing now; its own line goes on with it."
    ]
    assert not Run(run.path).is_driven


def test_several_commands_and_none(tmp_path: Path) -> None:
    """Each command after the first has a heading; a trial that printed nothing is no riddle."""
    with RunFolder(tmp_path / "wing", "wing") as run:
        folder = run.path / "trials" / "00000"
        folder.mkdir()
        run.commit(kind="attempt", trial=0, attempt=1, where="x")
        nothing = Watched(run.path, follow=False)
        nothing.end()
        assert nothing.said == ["Trial 0 runs and has printed nothing yet; --follow waits."]
        whole_log(folder, 0).write_text("mesh\n")
        whole_log(folder, 1).write_bytes(b"solve 10%\rsolve 20%\r\nend")
        result(run)
    for lines, expected in ((None, "mesh\n==> command 2 <==\nsolve 10%\nsolve 20%\nend"), (2, "solve 20%\nend")):
        watched = Watched(run.path, follow=False, lines=lines)
        watched.end()
        assert (watched.text, watched.said) == (expected, [])


@pytest.mark.parametrize("cut", [lambda text: [text], list, lambda text: [text[:7], "", text[7:]]])
def test_last_lines_do_not_depend_on_the_pieces(cut: Callable[[str], list[str]]) -> None:
    """However a log comes, its last lines are the same."""
    assert last_lines(cut("one\ntwo\n\nthree\nfour"), 3) == "\nthree\nfour"
    assert last_lines(cut("one\n"), 3) == "one\n"


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "\u0663", ""])
def test_what_is_no_number_of_a_trial(text: str) -> None:
    """Who writes a study's name in its place hears where that goes."""
    with pytest.raises(ConfigError, match="is not the number of a trial, such as 7") as caught:
        trial_number(text)
    assert "--study NAME" in caught.value.remedy
    assert trial_number("07") == 7
