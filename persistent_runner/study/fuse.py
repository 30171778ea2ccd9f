"""When failed trials end a study: too many in a row."""

from __future__ import annotations

import logging
import re

from optuna.trial import TrialState

from persistent_runner.study.proposals import StudyFailed

log = logging.getLogger(__name__)


class Fuse:
    """Counts failures in a row; `most` of them end the study, None never does."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._failures = 0
        self._said = ""

    def say(self, number: int, message: str, remedy: str) -> None:
        """Log why a trial failed; for the same cause as the last one in one line."""
        cause = re.sub(r"\d+", "", message)  # but for numbers of trials, values and lines
        if cause == self._said:
            log.warning(
                "trial %d failed as the one before did: %s",
                number,
                message.splitlines()[0].removesuffix("; its last lines:"),
            )
        else:
            log.warning("%s", "\n".join(filter(None, (message, remedy))))
        self._said = cause

    def saw(self, state: TrialState) -> None:
        """Count a trial's end; any other one than a failure begins anew."""
        self._failures = self._failures + 1 if state == TrialState.FAIL else 0

    def blown(self, message: str, remedy: str) -> StudyFailed | None:
        """Return what ends the study after a failure that says `message`; None where it goes on."""
        if self._most is None or self._failures < self._most:
            return None
        return StudyFailed(
            f"{self._most} trials failed one after another; the last one:\n{message}",
            remedy=f"{remedy}\nMend the cause and run the same line: it goes on where it stopped.".strip(),
        )
