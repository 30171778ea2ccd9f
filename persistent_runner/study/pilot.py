"""The first trial runs alone, so that a mistake in a deck costs one run and no boot of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistent_runner.errors import ResultMissing
from persistent_runner.remote.explain import last_lines
from persistent_runner.remote.live_log import end_of_last_log
from persistent_runner.study.proposals import StudyFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.errors import SetupFailed, TrialFailed
    from persistent_runner.study.run_folder import RunFolder

_END = 1 << 14  # bytes of a log, of which the last lines are shown
_AGAIN = "Mend it and run the same line: it goes on, and on the same cluster while that is kept."
_NEXT = f"{_AGAIN} If it fails again with nothing changed, it counts as failed and the study goes on."
_READ = "Where only the readers in [metrics] are wrong, --reread takes the numbers from these files and runs nothing."


class PilotFailed(StudyFailed):
    """The first trial, or the setup before it, failed; the cluster is kept for a while, for the next start."""


def before_the_first(error: SetupFailed, way_in: Callable[[str], str]) -> PilotFailed:
    """Return what ends a start whose setup has failed before the first trial."""
    lines = [error.remedy, f"On the cluster: {way_in(error.directory)}", _AGAIN]
    return PilotFailed(error.message, remedy="\n".join(filter(None, lines)))


class Pilot:
    """While no trial of a study is complete, one runs alone, and its failure ends the start.

    It is told to the study only when a start with the same `digest` of deck, setup, command and readers has failed
    before. `way_in(directory)` is the line that leads into an attempt's directory.
    """

    def __init__(self, folder: RunFolder, digest: str, way_in: Callable[[str], str]) -> None:
        self._folder = folder
        self._digest = digest
        self._way_in = way_in
        self._is_known = any(record["kind"] == "pilot" and record["digest"] == digest for record in folder.journal())

    def ends(self, number: int, attempt: int, error: TrialFailed) -> PilotFailed | None:
        """Return what ends the start after a failure of the trial that runs alone; None where it is to be told."""
        if self._is_known:
            return None
        is_read = isinstance(error, ResultMissing)
        self._folder.commit(kind="pilot", trial=number, attempt=attempt, digest=self._digest, ran=is_read)
        message = error.message if f"trial {number}" in error.message else f"trial {number}: {error.message}"
        folder = self._folder.path / f"trials/{number:05d}"
        if is_read:  # many a solver ends with 0 whatever has happened
            message += f"\nThe last lines of the log:\n{last_lines(end_of_last_log(folder, _END))}"
        way_in = self._way_in(f"{number:05d}.{attempt}")
        lines = [
            error.remedy,
            f"Its files here: {folder}",
            f"On the cluster: {way_in}",
            _NEXT,
            _READ if is_read else "",
        ]
        return PilotFailed(
            f"The first trial failed, so no other one was started.\n{message}", remedy="\n".join(filter(None, lines))
        )
