"""What a user sees: the table while a study runs, and the result."""

from __future__ import annotations

import io
import logging
from concurrent.futures import Future
from datetime import timedelta
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from persistent_runner.lease.meter import Cost
from persistent_runner.live import LiveTable, best_line, cost_text, logging_to, result_table
from persistent_runner.study.progress import Progress, Running

PARAMS = {
    "plate_thickness": 0.5651,
    "number_of_ribs": 379,
    "chord_length": 403940.0,
    "alloy": "7075-T6",
    "angle_of_attack": -0.75,
    "flap_deflection": 5.4e-10,
    "mach": 0.86,
    "sweep": 0.5,
}

COST = Cost(180, 220, 1.234, 1.498)


def terminal(width: int, *, is_terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, height=24, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def trials(count: int) -> pd.DataFrame:
    rows = [
        {"number": n, "state": "FAIL" if n == 1 else "COMPLETE", "value": None if n == 1 else n + 0.123456789}
        | {f"params_{name}": value for name, value in PARAMS.items()}
        | {"failure": "", "attempts": 1, "seconds": 1.3243, "folder": f"trials/{n:05d}"}
        for n in range(count)
    ]
    return pd.DataFrame(rows)


def progress_of(*numbers: int) -> Progress:
    running = {n: Running(SimpleNamespace(number=n), 1, Future(), PARAMS) for n in numbers}
    return Progress(
        total=40, complete=3, failed=1, best=(2, 0.354147), running=running, settled_now=4, seconds_of_trials=12
    )


@pytest.mark.parametrize("width", [50, 80, 160])
def test_the_live_table_fits_its_terminal(width) -> None:
    """Lease, cost, progress, best, rate and each running trial with its parameters; nothing wraps into the next line."""
    console = terminal(width)
    lease = SimpleNamespace(
        job_id="abcdef", state=SimpleNamespace(status="Executing"), age=timedelta(minutes=3), cost=COST
    )
    table = LiveTable(console, "wing", lease)
    console.print(table._render(progress_of(4, 5)))

    lines = shown(console).splitlines()
    assert all(len(line) <= width for line in lines)
    text = " ".join(shown(console).split())
    assert "wing · job abcdef Executing · 3m · cost about 1.23 (1.50 with start-up)" in text
    assert "4 of 40 done, 1 failed · best 0.354147 (trial 2) · 3s a trial · about" in text
    assert "trial running for parameters" in text
    rows = [line.split() for line in lines[-2:]]
    assert [(row[0], row[1], row[2][:5]) for row in rows] == [("4", "0s", "plate"), ("5", "0s", "plate")]


@pytest.mark.parametrize("width", [80, 120])
def test_the_last_line_of_each_log_stands_below_its_trial(width) -> None:
    """One line each, cut to the terminal; a trial that has printed nothing has none; all of it fits the screen."""
    console = terminal(width)
    lease = SimpleNamespace(
        job_id="a", state=SimpleNamespace(status="Executing"), age=timedelta(0), cost=Cost(1, 1, None, None)
    )
    progress = progress_of(*range(100))
    for number in range(1, 100):
        progress.running[number].last_line = f"step {number} [red]residual " + "漢" * 200
    console.print(LiveTable(console, "wing", lease)._render(progress))
    lines = shown(console).splitlines()
    assert len(lines) < 24
    assert max(map(cell_len, lines)) <= width
    below = [line.split()[:3] for line in lines[3:]]
    assert [words[0] for words in below[:5]] == ["0", "1", "step", "2", "step"]
    assert below[2] == ["step", "1", "[red]residual"]
    assert lines[-1] == "and 92 more"


def test_the_cost_is_said_with_start_up_where_that_makes_a_difference() -> None:
    """Whether start-up is billed is not known, so nobody is told the lower sum alone."""
    assert cost_text(COST) == "cost about 1.23 (1.50 with start-up)"
    assert cost_text(Cost(180, 180, 1.234, 1.234)) == "cost about 1.23"
    assert cost_text(Cost(180, 181, 1.234, 1.236)) == "cost about 1.23"
    assert cost_text(Cost(180, 220, None, None)) == "cost unknown"


def test_many_running_trials_are_cut() -> None:
    """A hundred running trials do not push the rest off the screen."""
    console = terminal(80)
    lease = SimpleNamespace(
        job_id="a", state=SimpleNamespace(status="Executing"), age=timedelta(0), cost=Cost(1, 1, None, None)
    )
    console.print(LiveTable(console, "wing", lease)._render(progress_of(*range(100))))
    assert len(shown(console).splitlines()) < 24
    assert "and 88 more" in shown(console)


def test_lines_of_the_log_stand_as_they_are() -> None:
    """Brackets are not markup, long lines are whole, and the terminal gets them above the table."""
    for is_terminal in (True, False):
        console = terminal(30, is_terminal=is_terminal)
        with logging_to(console, level=logging.INFO):
            logging.getLogger("persistent_runner.x").info("took [bold]%s[/bold] of a long, long line", "40")
            logging.getLogger("persistent_runner.x").debug("a detail")
        assert shown(console) == "took [bold]40[/bold] of a long, long line\n"


def test_results_of_eight_parameters_are_readable_on_80_columns() -> None:
    """No number is cut: where the columns do not fit, the parameters stand beside each other by name."""
    console = terminal(80)
    console.print(result_table(trials(3), console))
    lines = shown(console).splitlines()

    assert all(len(line) <= 80 for line in lines)
    assert "…" not in shown(console)
    assert lines[0].split() == ["number", "state", "value", "seconds", "parameters"]
    assert shown(console).count("flap_deflection=5.4e-10") == 3
    assert lines[1].split()[:4] == ["0", "COMPLETE", "0.12346", "1.3"]


def test_results_have_a_column_each_where_they_fit_and_in_files() -> None:
    """On a wide terminal, and where no terminal is, the table is a table."""
    for console in (terminal(200), terminal(80, is_terminal=False)):
        console.print(result_table(trials(2), console), soft_wrap=True)
        lines = shown(console).splitlines()
        assert lines[0].split() == ["number", "state", "value", "seconds", *PARAMS]
        assert lines[2].split()[:3] == ["1", "FAIL", "1.3"]


def test_the_last_rows_of_many() -> None:
    """A study of a thousand trials does not flood the terminal."""
    console = terminal(200)
    console.print(result_table(trials(100), console))
    assert "and 40 before these, all in trials.csv" in shown(console)
    assert len(shown(console).splitlines()) == 62


def test_best_lines() -> None:
    """One objective: values, parameters, what was measured beside; several: how many; none: why."""
    best = {"number": 3, "values": {"drag": 0.1}, "params": {"x": 1, "alloy": "6061"}, "metrics": {"theory": 0.123456}}
    summary = {"trials": {"COMPLETE": 2, "FAIL": 1}, "objectives": {"drag": "minimize"}, "best": [best]}
    assert best_line(summary) == "Best: drag = 0.1 in trial 3 with x = 1, alloy = 6061; beside it theory = 0.12346"
    assert best_line(summary | {"best": []}).startswith("No trial meets the constraints (2 COMPLETE, 1 FAIL).")
    none = {"best": [], "trials": {"FAIL": 1}}
    assert best_line(summary | none).startswith("No trial is complete (1 FAIL).")
    assert best_line(summary | {"baseline": {"values": {"drag": 0.2}}}).endswith("; the baseline has drag = 0.2")
    outside = {"values": {"drag": 0.2}, "feasible": False}
    assert best_line(summary | {"baseline": outside}).endswith("drag = 0.2, and does not meet the constraints")
    two = summary | {"objectives": {"drag": "minimize", "lift": "maximize"}, "best": [best, best]}
    assert best_line(two) == "2 trials that no other one beats (2 COMPLETE, 1 FAIL)."
