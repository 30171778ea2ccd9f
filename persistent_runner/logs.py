"""`persistent-runner logs`: what the commands of a trial have printed, while it runs and afterwards.

Reads the run folder alone, beside the driver that writes it: a look costs the study nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import filelock

from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError
from persistent_runner.printable import printable
from persistent_runner.remote.live_log import cut_before, live_log, whole_log
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from persistent_runner.settings import Settings

_POLL_SECONDS = 0.2
_PIECE = 1 << 20  # bytes that are read at a time


def trial_number(text: str) -> int:
    """Return the number of a trial that a user wrote; ConfigError for what is none."""
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f'"{text}" is not the number of a trial, such as 7', remedy="--study NAME chooses a study.")
    return int(text)


def find_run(settings: Settings, study: Path | None, say: Callable[[str], None]) -> Path:
    """Return the run folder of a study: named by its name, its own folder or its run folder; else the newest one.

    `say` is told which one was chosen among several. ConfigError where there is none.
    """
    folder = settings.runs_dir
    runs = {path: _study_of(path) for path in (sorted(folder.iterdir()) if folder.is_dir() else ()) if _is_run(path)}
    if study is None:
        if not runs:
            raise ConfigError(
                f"there is no study in {folder}", remedy="Name its place: --runs-dir DIR or --study NAME."
            )
        newest = max(runs, key=_changed)
        if len(runs) > 1:
            say(f"Study {runs[newest]}, the newest of {len(runs)} in {folder}; --study NAME chooses another.")
        return newest
    if _is_run(study):
        return study
    named = [path for path, name in runs.items() if str(study) in (name, path.name)]
    if named:
        return max(named, key=_changed)
    if study.is_file() or (study / "study.toml").is_file():
        from persistent_runner.plan import run_path  # heavy, and most name their study by its name
        from persistent_runner.study.spec import StudySpec

        path = run_path(settings, StudySpec.load(study).study.name)
        if _is_run(path):
            return path
        raise ConfigError(f"the study {study} has not run yet: there is no {path}")
    raise ConfigError(f"there is no study {study} in {folder}; {did_you_mean(str(study), runs.values())}")


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _study_of(path: Path) -> str:
    try:
        return str(json.loads((path / "run.json").read_text("utf-8"))["study"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.name


def _changed(path: Path) -> float:
    journal = path / "journal.jsonl"
    return journal.stat().st_mtime if journal.exists() else 0.0


class Run:
    """A study's run folder as one sees it from beside its driver: which trials have begun, and how they ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = _study_of(path)
        self.attempts: dict[int, int] = {}
        self.results: dict[int, dict[str, Any]] = {}
        self._at = 0

    def look(self) -> None:
        """Take what the journal has more than at the last look; a last line that is being written is left for later."""
        with contextlib.suppress(FileNotFoundError), (self.path / "journal.jsonl").open("rb") as file:
            file.seek(self._at)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):  # a damaged one is for the next start to name
                    self._note(json.loads(line))

    def _note(self, record: dict[str, Any]) -> None:
        if record["kind"] == "attempt":
            self.attempts[record["trial"]] = record["attempt"]
            self.results.pop(record["trial"], None)
        elif record["kind"] == "result":
            self.results[record["trial"]] = record

    @property
    def is_driven(self) -> bool:
        """Whether a driver works in it now."""
        if not (self.path / "driver.json").exists():
            return False
        try:  # one that was killed has left its note, and holds the lock no more
            with filelock.FileLock(self.path / "driver.lock", timeout=0):
                return False
        except (filelock.Timeout, OSError):
            return True


class TrialLog:
    """Reads what the commands of a trial print, one after the other, as far as it is here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seq = 0
        self._file: BinaryIO | None = None
        self._cut = self._begin = 0  # of the live log that is open: `cut_before`
        self._new_decoder()

    def _new_decoder(self) -> None:
        # A line that a progress bar overwrites is a line of its own here.
        utf_8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf_8, translate=True)

    def read(self) -> Iterator[str]:
        """Yield what has come since the last call, fit for a terminal; commands after the first have a heading."""
        while True:
            has_ended = whole_log(self._folder, self._seq).exists()  # if so, all of it is in the file that is open
            if self._file is None:
                name = (whole_log if has_ended else live_log)(self._folder, self._seq)
                try:
                    self._open(name)
                except FileNotFoundError:  # no such command yet
                    return
                if self._seq:
                    yield f"==> command {self._seq + 1} <==\n"
            for data in self._drain():
                yield _fit(self._decoder.decode(data))
            if not has_ended:
                return
            if rest := self._decoder.decode(b"", final=True):
                yield _fit(rest)
            self.close()
            self._seq += 1
            self._new_decoder()

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> None:
        self.close()
        self._file = path.open("rb")
        self._cut, self._begin = cut_before(self._file)
        self._file.seek(0)

    def _drain(self) -> Iterator[bytes]:
        while self._file is not None:
            while data := self._file.read(_PIECE):
                yield data
            try:
                path = live_log(self._folder, self._seq)
                if os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                    return
                at = self._cut + self._file.tell() - self._begin
                self._open(path)  # its front was cut; go on where the old one ended
                self._file.seek(self._begin + max(0, at - self._cut))
            except FileNotFoundError:  # the whole log has taken its place
                return


def _fit(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def last_lines(pieces: Iterable[str], count: int) -> str:
    """Return the last lines of a text that comes in pieces."""
    kept = ""
    for piece in pieces:
        kept = "".join((kept + piece).splitlines(keepends=True)[-count:])
    return kept


def show_log(
    run: Run,
    number: int,
    *,
    follow: bool,
    lines: int | None,
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Write the log of a trial's last attempt, or its last lines; with `follow` until the trial has ended.

    `say` gets what is not of the log. ConfigError for a trial that is not there, or has not started.
    """
    run.look()
    if number not in run.attempts:
        raise _not_there(run, number)
    attempt, printed = 0, False
    trial = TrialLog(run.path / "trials" / f"{number:05d}")
    try:
        while True:
            run.look()
            if run.attempts[number] != attempt:
                if attempt:
                    say(f"Trial {number} was lost and begins again.")
                    trial.close()
                    trial = TrialLog(run.path / "trials" / f"{number:05d}")
                attempt = run.attempts[number]
            goes_on = number not in run.results and run.is_driven
            for text in (last_lines(trial.read(), lines),) if lines else trial.read():
                printed = printed or bool(text)
                write(text)
            lines = None
            if not (follow and goes_on):
                break
            threading.Event().wait(_POLL_SECONDS)
    finally:
        trial.close()
    if follow or not printed:
        say(_state_of(run, number, printed=printed, goes_on=goes_on))


def _state_of(run: Run, number: int, *, printed: bool, goes_on: bool) -> str:
    nothing = "" if printed else "; it printed nothing"
    if (result := run.results.get(number)) is None:
        if goes_on:
            return f"Trial {number} runs and has printed nothing yet; --follow waits."
        return f"Trial {number} was interrupted{nothing}. Nobody drives {run.study} now; its own line goes on with it."
    facts = result["facts"]
    values = ", ".join(f"{value:.6g}" for value in result["values"] or ())
    text = f"Trial {number}: {result['state']}{values and f' with {values}'} after {format_duration(facts['seconds'])}"
    return text + nothing + (f": {printable(facts['failure'])}" if facts["failure"] else "")


def _not_there(run: Run, number: int) -> ConfigError:
    begun = _ranges(sorted(run.attempts))
    there = f"begun are {begun}" if begun else "none has begun"
    what = "has not started" if run.is_driven else "is not there"
    return ConfigError(
        f"trial {number} of {run.study} {what}; {there}",
        remedy=f"The study is in {run.path}; --study NAME chooses another one.",
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as in `0-4, 7`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, pair)) for pair in found)
