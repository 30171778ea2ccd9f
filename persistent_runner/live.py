"""What a user sees while a study runs: a live table on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from persistent_runner.duration import format_duration
from persistent_runner.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from rich.console import RenderableType

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.lease.meter import Cost
    from persistent_runner.study.progress import Progress

_MOST_ROWS = 12
_OTHER_LINES = 7  # of the live table beside its trials: two of them wrap on a narrow terminal
_MOST_RESULTS = 60
_DRAW_SECONDS = 0.2  # at least, between two tables: a turn of many short trials must not wait for each


@contextlib.contextmanager
def logging_to(console: Console, *, level: int) -> Iterator[None]:
    """Show this package's log on a console while it is entered: above the table on a terminal, else as plain lines."""
    ours = logging.getLogger("persistent_runner")
    handler = _AboveTheTable(console) if console.is_terminal else logging.StreamHandler(console.file)
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


def log_by_default() -> None:
    """Show progress on stderr in a script or a notebook that has set up no logging of its own, as Optuna does."""
    ours = logging.getLogger("persistent_runner")
    if not ours.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)


class _AboveTheTable(logging.Handler):
    """Prints through the console, which keeps the live table below the lines."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a terminal that was closed must not end the study."""
        style = "yellow" if record.levelno >= logging.WARNING else ""
        with contextlib.suppress(OSError):
            self._console.print(Text(printable(self.format(record)), style=style), soft_wrap=True)


class LiveTable:
    """The table of a running study; nothing is drawn where the console is no terminal."""

    def __init__(self, console: Console, name: str, lease: ClusterLease) -> None:
        self._name = name
        self._lease = lease
        self._console = console
        self._drawn = -math.inf
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):  # the terminal was closed
                self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw how far the study is; so soon after the last time it is left to the next turn."""
        if self._live is not None and time.monotonic() - self._drawn >= _DRAW_SECONDS:
            self._drawn = time.monotonic()
            with contextlib.suppress(OSError):
                self._live.update(self._render(progress))

    def _render(self, progress: Progress) -> RenderableType:
        lease = self._lease
        cost = "" if lease.cost.cost is None else f" · {cost_text(lease.cost)}"
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
        table.add_column("trial", justify="right", width=6)
        table.add_column("running for", justify="right", width=12)
        table.add_column(
            "parameters", no_wrap=True, width=max(10, self._console.width - 24)
        )  # room for the ^C that a terminal echoes
        now = time.monotonic()
        running = sorted(progress.running.items())
        rows = self._rows(any(trial.last_line for _, trial in running))
        for number, trial in running[:rows]:
            table.add_row(str(number), format_duration(round(now - trial.since)), Text(_pairs(trial.params, "=", "  ")))
            if trial.last_line:
                table.add_row("", "", Text(trial.last_line, style="dim"))
        parts: list[RenderableType] = [Text(head, style="bold"), Text(done), table]
        if len(running) > rows:
            parts.append(Text(f"and {len(running) - rows} more", style="dim"))
        return Group(*parts)

    def _rows(self, two_lines_each: bool) -> int:
        """Return how many trials are shown: with a line of its log below each as many as the terminal is high for."""
        return min(_MOST_ROWS, max(2, (self._console.height - _OTHER_LINES) // 2)) if two_lines_each else _MOST_ROWS


def cost_text(cost: Cost) -> str:
    """Return what was spent, in words: with start-up where that makes a difference, since it may be billed."""
    if cost.cost is None or cost.cost_with_start_up is None:
        return "cost unknown"
    text = f"cost about {cost.cost:.2f}"
    return (
        text if cost.cost_with_start_up < cost.cost + 0.005 else f"{text} ({cost.cost_with_start_up:.2f} with start-up)"
    )


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def result_table(trials: pd.DataFrame, console: Console, headings: Mapping[str, str] | None = None) -> Table:
    """Return a study's trials as a table for people: the last rows where there are many.

    A column for each parameter, or one column with all of them on a terminal too narrow for that. `headings` are what
    parameters are called, with their units.
    """
    left_out = max(0, len(trials) - _MOST_RESULTS)
    names = {f"params_{name}": f"params_{heading}" for name, heading in (headings or {}).items()}
    rows = _with_feasibility(trials.iloc[left_out:].rename(columns=names))
    table = _one_column_each(rows)
    widest = console.measure(table, options=console.options.update(width=10_000)).maximum
    if widest > console.width:
        if console.is_terminal:
            table = _one_column_for_all(rows)
        else:
            table.width = widest
    if left_out:
        table.caption = f"and {left_out} before these, all in trials.csv"
    return table


def _with_feasibility(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a state that says which trials miss a constraint, and which designs never ran."""
    missed = (rows[[name for name in rows.columns if name.startswith("constraints_")]] > 0).any(axis=1)
    ran = rows["attempts"].notna()
    state = rows["state"].mask(missed & ran & rows["state"].isin(["COMPLETE", "PRUNED"]), "infeasible")
    return rows.assign(state=state.mask(missed & ~ran & (rows["state"] == "PRUNED"), "not allowed"))


def _one_column_each(rows: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = [*_ahead(rows), *(name for name in rows.columns if name.startswith("params_"))]
    for name in names:
        table.add_column(_heading(name), justify="right", no_wrap=True)
    for row in rows[names].itertuples(index=False):
        table.add_row(*(_cell(name, value) for name, value in zip(names, row, strict=True)))
    return table


def _one_column_for_all(rows: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = _ahead(rows)
    for name in names:
        table.add_column(_heading(name), justify="right", no_wrap=True)
    table.add_column("parameters", ratio=1, overflow="fold")
    given = [name for name in rows.columns if name.startswith("params_")]
    for _, row in rows.iterrows():
        params = {_heading(name): row[name] for name in given if not _is_empty(row[name])}
        table.add_row(*(_cell(name, row[name]) for name in names), _pairs(params, "=", "  "))
    return table


def _ahead(rows: pd.DataFrame) -> list[str]:
    """Return the columns that stand before the parameters."""
    known = ("number", "state", "value", "seconds")
    return [name for name in rows.columns if name in known or name.startswith("values_")]


def _heading(column: str) -> str:
    return column.removeprefix("params_").removeprefix("values_")


def _cell(column: str, value: object) -> str:
    if _is_empty(value):
        return ""
    return f"{value:.1f}" if column == "seconds" else _short(value)


def _is_empty(value: object) -> bool:
    return value is None or value != value or str(value) == "<NA>"  # noqa: PLR0124 - NaN


def best_line(summary: dict[str, Any]) -> str:
    """Return the result in one line: the best values, their parameters, what else was measured there, the baseline."""
    counts = ", ".join(f"{count} {state}" for state, count in summary["trials"].items()) or "none"
    if not summary["best"]:
        if summary["trials"].get("COMPLETE"):
            return f"No trial meets the constraints ({counts}). trials.csv shows by how much each misses them."
        again = "--retry-failed runs them again" if "FAIL" in summary["trials"] else "the same line goes on"
        return f"No trial is complete ({counts}). Mend the cause; {again}."
    if len(summary["objectives"]) > 1:
        volume = f", hypervolume {summary['hypervolume']:.6g}" if "hypervolume" in summary else ""
        return f"{len(summary['best'])} trials that no other one beats ({counts}){volume}."
    best = summary["best"][0]
    text = f"Best: {_pairs(best['values'])} in trial {best['number']} with {_pairs(best['params'])}"
    text += f"; beside it {_pairs(best['metrics'])}" if best["metrics"] else ""
    if (baseline := summary.get("baseline")) is not None:
        text += f"; the baseline has {_pairs(baseline['values'])}"
        text += "" if baseline.get("feasible", True) else ", and does not meet the constraints"
    return text


def _pairs(values: Mapping[str, object], equals: str = " = ", comma: str = ", ") -> str:
    return comma.join(f"{name}{equals}{_short(value)}" for name, value in values.items())
