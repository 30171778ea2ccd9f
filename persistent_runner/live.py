"""What a user sees while a study runs: a live table on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from persistent_runner.duration import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from rich.console import RenderableType

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.study.loop import Progress

_MOST_ROWS = 12
_MOST_RESULTS = 60


@contextlib.contextmanager
def logging_to(console: Console, *, level: int) -> Iterator[None]:
    """Show this package's log on a console while it is entered: above the table on a terminal, else as plain lines."""
    ours = logging.getLogger("persistent_runner")
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False, rich_tracebacks=False)
    else:
        handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(level)
    before = ours.level
    ours.setLevel(logging.DEBUG)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


class LiveTable:
    """The table of a running study; nothing is drawn where the console is no terminal."""

    def __init__(self, console: Console, name: str, lease: ClusterLease) -> None:
        self._name = name
        self._lease = lease
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw how far the study is."""
        if self._live is not None:
            self._live.update(self._render(progress))

    def _render(self, progress: Progress) -> RenderableType:
        lease = self._lease
        cost = "" if lease.cost is None else f" · about {lease.cost:.2f} so far"
        head = f"{self._name} · job {lease.job_id} {lease.state.status} · {format_duration(lease.age)}{cost}"
        done = f"{progress.settled} of {progress.total} done"
        if progress.failed:
            done += f", {progress.failed} failed"
        if progress.best is not None:
            done += f" · best {progress.best[1]:.6g} (trial {progress.best[0]})"
        if progress.seconds_per_trial is not None:
            done += f" · {format_duration(progress.seconds_per_trial)} a trial"
        if progress.seconds_left is not None:
            done += f" · about {format_duration(progress.seconds_left)} left"
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("trial", "running for", "parameters"):
            table.add_column(column)
        now = time.monotonic()
        running = sorted(progress.running.items())
        for number, trial in running[:_MOST_ROWS]:
            values = "  ".join(f"{name}={_short(value)}" for name, value in trial.trial.params.items())
            table.add_row(str(number), format_duration(round(now - trial.since)), Text(values, overflow="ellipsis"))
        parts: list[RenderableType] = [Text(head, style="bold"), Text(done), table]
        if len(running) > _MOST_ROWS:
            parts.append(Text(f"and {len(running) - _MOST_ROWS} more", style="dim"))
        return Group(*parts)


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def result_table(trials: pd.DataFrame) -> Table:
    """Return a study's trials as a table for people: the last rows where there are many."""
    columns = [
        name
        for name in trials.columns
        if name in ("number", "state", "value", "seconds") or name.startswith(("values_", "params_"))
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.removeprefix("params_").removeprefix("values_"), justify="right")
    left_out = max(0, len(trials) - _MOST_RESULTS)
    for row in trials[columns].iloc[left_out:].itertuples(index=False):
        table.add_row(*("" if value is None or value != value else _short(value) for value in row))  # noqa: PLR0124 - NaN
    if left_out:
        table.caption = f"and {left_out} before these, all in trials.csv"
    return table


def best_line(summary: dict[str, Any]) -> str:
    """Return the result in one line: the best values, their parameters, and what else was measured there."""
    counts = ", ".join(f"{count} {state}" for state, count in summary["trials"].items()) or "none"
    if not summary["best"]:
        return f"No trial is complete ({counts})."
    if len(summary["objectives"]) > 1:
        return f"{len(summary['best'])} trials that no other one beats ({counts})."
    best = summary["best"][0]
    text = f"Best: {_pairs(best['values'])} in trial {best['number']} with {_pairs(best['params'])}"
    return text + (f"; beside it {_pairs(best['metrics'])}" if best["metrics"] else "")


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_short(value)}" for name, value in values.items())
