"""Outputs that a result was committed without: what the journal says of them, and what of them is here.

The result's record names them, a record says of each that it is here or will not come, and one more that all are
settled: kept, or not to be kept.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.errors import RunnerError
from persistent_runner.remote.frames import OutputFile
from persistent_runner.remote.transfer import part_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from persistent_runner.study.keeping import Keeping
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass
class Owed:
    """The outputs of a trial that are to come from where its last attempt ran.

    `files` are known from its exit; of a trial that failed they are looked for by `patterns`. `done` are the paths of
    those that are here or will never come, `is_wanted` turns false where they are not to be kept any more.
    """

    number: int
    attempt: int
    where: str
    files: tuple[OutputFile, ...] = ()
    patterns: tuple[str, ...] = ()
    done: set[str] = field(default_factory=set)
    is_wanted: bool = True

    @property
    def name(self) -> str:
        """The attempt, as its directory is called."""
        return f"{self.number:05d}.{self.attempt}"

    @property
    def lease(self) -> str:
        """The name of the lease that they are on."""
        return self.where.partition(" ")[0]

    @property
    def to_come(self) -> list[OutputFile]:
        """What is known to be missing here."""
        return [output for output in self.files if output.path not in self.done]

    def place(self, folder: RunFolder) -> Path:
        """Return the folder that they are kept in."""
        return folder.path / "trials" / f"{self.number:05d}"


def told(files: Sequence[OutputFile], patterns: Sequence[str], *, may_drop: bool) -> dict[str, Any]:
    """Return what a result's record says of outputs that are to come; `may_drop`: they are kept for a while only."""
    listed = [[output.path, output.size_bytes, output.sha256] for output in files]
    return {"files": listed, "patterns": list(patterns), "may_drop": may_drop}


def note(folder: RunFolder, owed: Owed, paths: Sequence[str], missing: Mapping[str, str] | None = None) -> None:
    """Record which outputs are here, and of those that will never come why; RunnerError where it cannot be written."""
    why = missing or {}
    if not owed.done.issuperset({*paths, *why}):
        folder.commit(kind="output", trial=owed.number, paths=list(paths), **({"missing": why} if why else {}))
        owed.done.update(paths, why)
        crash_point("output-recorded")
    for path, words in why.items():
        log.warning("trial %d: its output %s will not come: %s", owed.number, path, words)


def settle(folder: RunFolder, owed: Owed) -> None:
    """Record that all outputs of a trial are here that will come; RunnerError as `note`."""
    folder.commit(kind="outputs", trial=owed.number, kept=True)


def delete(folder: RunFolder, owed: Owed) -> None:
    """Delete what is here of outputs that are not to be kept, and record it; nothing else in their folder is touched.

    Raises nothing: what is left is deleted by the next start.
    """
    try:
        unlink(folder, owed)
        folder.commit(kind="outputs", trial=owed.number, kept=False)
    except (OSError, RunnerError) as error:
        log.warning("trial %d: its outputs are not to be kept, and were not deleted: %s", owed.number, error)


def drop_parts(folder: RunFolder, owed: Owed) -> None:
    """Delete the halves of what is to come, as far as they can be: Windows deletes nothing that is open."""
    for output in owed.to_come:
        with contextlib.suppress(OSError):
            part_of(owed.place(folder).joinpath(*output.path.split("/"))).unlink()


def unlink(folder: RunFolder, owed: Owed) -> None:
    """Delete what is here of the outputs of a trial, whole or not; OSError where that cannot be."""
    place = owed.place(folder)
    for path in owed.done.union(output.path for output in owed.files):
        target = place.joinpath(*path.split("/"))
        for each in (target, part_of(target)):
            each.unlink(missing_ok=True)
        _prune(place, target)


def _prune(place: Path, target: Path) -> None:
    """Delete the folders that a file has left empty."""
    with contextlib.suppress(OSError):  # not there, or not empty
        for parent in target.relative_to(place).parents[:-1]:
            (place / parent).rmdir()


@dataclass
class Found:
    """By trial the outputs that are still to come, those that are here and may have to go, and those that have to."""

    to_come: dict[int, Owed] = field(default_factory=dict)
    here: dict[int, Owed] = field(default_factory=dict)
    surplus: dict[int, Owed] = field(default_factory=dict)


def resume(folder: RunFolder, keeping: Keeping) -> Found:
    """Return what there is to do after earlier starts; what the journal has of results is taken into `keeping`."""
    history = _History()
    for record in folder.journal():
        if "trial" in record:
            history.take(record)
    for number in history.results:
        keeping.take(*history.rated(number))
    found = Found()
    for number, owed in history.owed.items():
        is_wanted, is_settled = keeping.wants(*history.rated(number)), number in history.settled
        if is_wanted and not is_settled:
            found.to_come[number] = owed
        elif is_wanted and number in history.may_drop:
            found.here[number] = owed
        elif is_wanted or history.results[number]["state"] == "FAIL":  # which another reader may find to be the best
            continue
        elif not is_settled or (number in history.may_drop and keeping.may_drop):
            found.surplus[number] = owed
    return found


class _History:
    """What a journal says of results and their outputs, by trial."""

    def __init__(self) -> None:
        self.results: dict[int, dict[str, Any]] = {}
        self.owed: dict[int, Owed] = {}
        self.settled: set[int] = set()
        self.may_drop: set[int] = set()
        self._places: dict[int, tuple[int, str]] = {}

    def rated(self, number: int) -> tuple[int, TrialState, list[float] | None, dict[str, float]]:
        record = self.results[number]
        return number, TrialState[record["state"]], record["values"], record.get("constraints") or {}

    def take(self, record: dict[str, Any]) -> None:
        number, kind = int(record["trial"]), record["kind"]
        if kind == "attempt":  # of a study that has since been deleted, where it has a result
            self._places[number] = record["attempt"], record.get("where", "")
            self.owed.pop(number, None)
            self.results.pop(number, None)
        elif kind == "result":
            self.results[number] = record
            if outputs := record.get("outputs"):
                self._owe(number, outputs)
        elif kind == "output" and number in self.owed:
            self.owed[number].done.update(record["paths"], record.get("missing", ()))
        elif kind == "outputs" and number in self.owed:
            if record["kept"]:
                self.settled.add(number)
            else:
                del self.owed[number]

    def _owe(self, number: int, outputs: dict[str, Any]) -> None:
        files = tuple(OutputFile(*entry) for entry in outputs["files"])
        self.owed[number] = Owed(number, *self._places.get(number, (1, "")), files, tuple(outputs["patterns"]))
        self.settled.discard(number)
        (self.may_drop.add if outputs["may_drop"] else self.may_drop.discard)(number)
