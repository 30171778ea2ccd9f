"""Names of files on a node that cannot be theirs here: each system has its own, and some are taken."""

from __future__ import annotations

from persistent_runner.portable import unportable
from persistent_runner.remote.live_log import KEPT_NAME


class LocalNames:
    """The names of one attempt's files that are kept here, as far as they were asked about."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # by what a file system without case makes of them

    def problem(self, name: str) -> str:
        """Return why a file of the node cannot be kept here under its name; empty when it can."""
        if problem := unportable(name):
            return problem
        if KEPT_NAME.fullmatch(name):
            return "named like the log that is kept beside it"
        if (other := self._names.setdefault(name.casefold(), name)) != name:
            return f"named like {other} but for upper and lower case"
        return ""
