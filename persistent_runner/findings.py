"""What `persistent-runner doctor` saw: one finding for each thing it looked at, each fault with its remedy."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from persistent_runner.errors import ReleaseUnconfirmed, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Finding:
    """One thing that was looked at: `seen` and, where it is not as it must be, `remedy` are for people."""

    name: str
    seen: str = ""
    verdict: Literal["ok", "warning", "failed", "skipped"] = "ok"
    remedy: str = ""
    exit_code: int = 0

    def warn(self, seen: str, remedy: str = "") -> None:
        """Say what may be wrong."""
        self.verdict, self.seen, self.remedy = "warning", seen, remedy

    def fail(self, seen: str, remedy: str, exit_code: int) -> None:
        """Say what is wrong; `exit_code` is what the command ends with where this is the first failure."""
        self.verdict, self.seen, self.remedy, self.exit_code = "failed", seen, remedy, exit_code

    def lines(self) -> Iterator[str]:
        """Give its lines on a page: verdict, name, what was seen, and below it what to do."""
        first, *more = self.seen.splitlines() or [""]
        yield f"{self.verdict:8} {self.name:11} {first}".rstrip()
        yield from (f"{'':20} {line}" for line in more)
        remedy = [line for line in self.remedy.splitlines() if line]
        yield from (f"{'':20} {'  ' if n else '->'} {line}" for n, line in enumerate(remedy))


class Findings:
    """The findings in the order of looking; `show` gets their lines one by one.

    A context manager: while it is entered, what the package logs as a warning belongs to what is being looked at.
    """

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self.all: list[Finding] = []
        self._show = show
        self._warnings: list[str] = []
        self._handler = _Collect(self._warnings)

    def __enter__(self) -> Self:
        logging.getLogger("persistent_runner").addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("persistent_runner").removeHandler(self._handler)

    @contextlib.contextmanager
    def looking_at(self, name: str) -> Iterator[Finding]:
        """Add one finding: a RunnerError is its failure, a warning in the log makes it a warning."""
        finding = Finding(name)
        self._warnings.clear()
        try:
            yield finding
        except RunnerError as error:
            finding.fail(error.message, error.remedy, error.exit_code)
        if finding.verdict == "ok" and self._warnings:
            finding.warn("; ".join(filter(None, [finding.seen, *self._warnings])))
        self.add(finding)

    def add(self, finding: Finding) -> None:
        """Add one finding, and show it."""
        self.all.append(finding)
        if self._show is not None:
            for line in finding.lines():
                self._show(line)

    @property
    def exit_code(self) -> int:
        """What the command ends with: 4 where something may still run, else the first failure's code, else 0."""
        codes = [finding.exit_code for finding in self.all if finding.verdict == "failed"]
        return ReleaseUnconfirmed.exit_code if ReleaseUnconfirmed.exit_code in codes else next(iter(codes), 0)

    def report(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        return {"findings": [asdict(finding) for finding in self.all], "exit_code": self.exit_code}


class _Collect(logging.Handler):
    """Collects the messages of warnings."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self._texts.append(record.getMessage())
