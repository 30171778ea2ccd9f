"""When failed trials end a study: too many in a row."""

from __future__ import annotations

from optuna.trial import TrialState

from persistent_runner.study.proposals import StudyFailed


class Fuse:
    """Counts failures in a row; `most` of them end the study, None never does."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._failures = 0

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
