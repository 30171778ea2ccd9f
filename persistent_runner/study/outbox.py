"""Results between the journal and the study: told when the storage takes them, kept while it does not answer."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import RunnerError
from persistent_runner.study.resume import Result, tell
from persistent_runner.study.storage import root_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna

    from persistent_runner.study.progress import Progress

log = logging.getLogger(__name__)

AWAY_SECONDS = 600  # how long an idle cluster waits for a storage that does not answer


class StorageAway(RunnerError):
    """The study's storage does not answer; committed results are in the journal and are told by the next start."""


@contextlib.contextmanager
def needs_storage() -> Iterator[None]:
    """Say in words that a storage went away where nothing can go on without it; its own texts hold the address."""
    try:
        yield
    except StorageInternalError as error:
        raise StorageAway(
            f"the study's storage does not answer: {root_cause(error)}",
            remedy="All results are in the journal; run the same line again when it is back.",
        ) from None


class Outbox:
    """What is committed and not told yet, by trial; the storage may be away for `most_idle` seconds."""

    def __init__(self, study: optuna.Study, progress: Progress, most_idle: float = math.inf) -> None:
        self._study = study
        self._progress = progress
        self._most_idle = min(AWAY_SECONDS, most_idle)
        self._results: dict[int, tuple[optuna.Trial, Result]] = {}
        self._away_since: float | None = None

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, number: object) -> bool:
        return number in self._results

    def put(self, trial: optuna.Trial, result: Result) -> None:
        """Keep a result until it is told."""
        self._results[trial.number] = (trial, result)

    def deliver(self) -> None:
        """Tell what was committed; what a storage does not take stays for the next time."""
        for number, (trial, result) in list(self._results.items()):

            def deliver(trial: optuna.Trial = trial, result: Result = result) -> None:
                self._progress.count_told(self._study, tell(self._study, trial, result))

            if not self.stored(deliver):
                return
            crash_point("told")
            del self._results[number]
            self._say(number, result)

    def stored(self, call: Callable[[], None]) -> bool:
        """Return whether the storage took a call; the next turn tries again where it does not answer."""
        try:
            call()
        except StorageInternalError as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                log.warning(
                    "the study's storage does not answer (%s); results are kept in the journal", root_cause(error)
                )
            return False
        self._away_since = None
        return True

    def is_away(self, *, leaving: bool) -> bool:
        """Return whether there is a storage to be waited for; StorageAway when that has lasted too long.

        Who is `leaving` waits for nothing: what is not told then is told by the next start.
        """
        if self._away_since is None or (leaving and not self._results):
            return False
        if leaving or time.monotonic() - self._away_since > self._most_idle:
            raise StorageAway(
                f"the study's storage does not answer; {len(self._results)} results wait in the journal",
                remedy="When it is back run the same line: it tells them and goes on where it stopped.",
            )
        return True

    def _say(self, number: int, result: Result) -> None:
        best = self._progress.best
        log.info(
            "trial %d: %s after %s  (%d of %d%s)",
            number,
            _result_text(result),
            format_duration(result.facts["seconds"]),
            self._progress.settled,
            self._progress.total,
            f", best {best[1]:.6g} in trial {best[0]}" if best else "",
        )


def _result_text(result: Result) -> str:
    if not result.values:
        return result.state.name
    text = ", ".join(f"{value:.6g}" for value in result.values)
    missed = [name for name, violation in result.constraints.items() if violation > 0]
    return f"{text}, infeasible ({', '.join(missed)})" if missed else text
