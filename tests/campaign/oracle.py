"""What must hold after a study was driven to its end, whatever happened; asked of the platform, the solver, the files."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import time
from collections import Counter
from contextlib import closing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from persistent_runner.remote.agent import PART
from persistent_runner.study.standby import ATTEMPTS
from tests.campaign.nodes import command_lines
from tests.campaign.solver import field
from tests.campaign.stage import IDLE, TICK, TRIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.campaign.stage import Played, Stage

TEARDOWN = 20.0  # seconds that the platform may take to end what is left
ON_ITS_WAY = 1.5  # seconds in which what was sent already may still begin


def verdicts(stage: Stage, played: Played) -> dict[str, list[str]]:
    """Return for each promise what breaks it; empty lists where all is well."""
    truth = lines(played.truth)
    results = [line for run in played.runs for line in lines(run / "journal.jsonl") if line["kind"] == "result"]
    at_once: dict[str, Callable[[], Iterator[str]]] = {
        "each command once": lambda: _once(played, truth),
        "one job a lease, and it ends": lambda: _jobs(stage, played),
        "no process is left": lambda: _processes(played),
        "nothing runs past its end": lambda: _past(played, truth),
        "no secret": lambda: _secrets(stage, played),
        "nothing to an unproven host": lambda: _unproven(stage, played, truth),
    }
    in_the_end: dict[str, Callable[[], Iterator[str]]] = {
        "done": lambda: _done(played),
        "nothing finished is lost": lambda: _lost(played, truth, results),
        "no half file": lambda: _half(played, truth),
        "no trial left running": lambda: _left(played),
        "no design twice": lambda: _designs(played),
    }
    checks = at_once if played.abandoned else in_the_end | at_once
    return {name: list(check()) for name, check in checks.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON objects."""
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _done(played: Played) -> Iterator[str]:
    if not played.codes or played.codes[-1] != 0:
        yield f"the starts ended with {played.codes}; the last words: {played.said[-600:]}"
    refused = {3} if "answered with a web page" not in played.said else set()
    for code in played.codes:
        if code in {1000, 2, 6} | refused or (code == 1 and "Traceback" in played.said):
            yield f"a start ended with {code}: {played.said[-600:]}"


def _once(played: Played, truth: list[dict[str, Any]]) -> Iterator[str]:
    starts = Counter(line["attempt"] for line in truth if line["event"] == "start")
    yield from (f"attempt {attempt} was started {count} times" for attempt, count in starts.items() if count > 1)
    if not played.disturbed:  # then nothing on the cluster was lost, so no trial needed a second attempt
        trials = Counter(attempt.split(".")[0] for attempt in starts)
        yield from (f"trial {trial} ran {count} times" for trial, count in trials.items() if count > 1)


def _lost(played: Played, truth: list[dict[str, Any]], results: list[dict[str, Any]]) -> Iterator[str]:
    told = _trials(played)
    counts = Counter(line["trial"] for line in results)
    yield from (f"trial {trial} was committed {count} times" for trial, count in counts.items() if count > 1)
    for line in results:
        if (line["state"], line["values"] or []) != told.get(line["trial"]):
            yield f"trial {line['trial']} was committed as {line['values']} and told as {told.get(line['trial'])}"
    ends = {(line["number"], line["y"]) for line in truth if line["event"] == "end"}
    for number, (state, values) in told.items():
        if hangs(played, number):
            if state != "FAIL":
                yield f"trial {number} is {state}, and its solver hangs"
        elif state != "COMPLETE" or (number, values[0]) not in ends:
            why = next((line["facts"].get("failure", "") for line in results if line["trial"] == number), "")
            if played.disturbed and f"lost {ATTEMPTS} times" in why and number not in {trial for trial, _ in ends}:
                continue  # each of its attempts was hit
            yield f"trial {number} is {state} with {values} ({why}), and its solver said {sorted(ends)}"
    if len(told) != TRIALS:
        yield f"{len(told)} trials are told, of {TRIALS}"
    if set(counts) != set(told):
        yield f"committed {sorted(counts)}, told {sorted(told)}"
    table = played.runs[0] / "trials.csv"
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines())) if table.exists() else []
    if {int(row["number"]): float(row["value"]) for row in rows if row["value"]} != {
        number: values[0] for number, (_, values) in told.items() if values
    }:
        yield f"trials.csv has other values: {rows}"


def _half(played: Played, truth: list[dict[str, Any]]) -> Iterator[str]:
    x_of = {line["number"]: line["x"] for line in truth if line["event"] == "end"}
    for folder in sorted(folder for run in played.runs for folder in (run / "trials").glob("[0-9]*")):
        number = int(folder.name)
        for path in sorted(folder.rglob("*")):
            if path.suffix in {PART, ".part", ".new"}:
                yield f"{path} is left"
        if number in x_of and played.outputs:
            kept = folder / "field.bin"
            if not kept.exists() and played.disturbed and number in _owed(folder.parents[1]):
                continue  # its machine went between the commit and the transfer, and the journal says so
            if not kept.exists() or kept.read_bytes() != field(number, x_of[number]):
                yield f"{kept} is not what the solver wrote"


def _owed(run: Path) -> set[int]:
    """Return the trials of a run that were committed without their output, which has not come since."""
    records = lines(run / "journal.jsonl")
    here = {line["trial"] for line in records if line["kind"] == "output" and line["paths"]}
    return {line["trial"] for line in records if line["kind"] == "result" and line.get("outputs")} - here


def hangs(played: Played, number: int) -> bool:
    """Return whether the solver of a trial never ends by itself."""
    return played.timeout is not None and number % 3 == 2


def _past(played: Played, truth: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the commands that went on after their end was recorded, or while the trial's next one ran already."""
    yield from (f"{line} ran on" for line in played.left)
    starts = {line["attempt"]: line["at"] for line in truth if line["event"] == "start"}
    for line in truth:
        trial, _, attempt = line["attempt"].partition(".")
        if line["event"] == "end" and line["at"] > starts.get(f"{trial}.{int(attempt) + 1}", math.inf):
            yield f"attempt {line['attempt']} ended after the next one of its trial had begun"
        if line["event"] == "end" and hangs(played, line["number"]):
            yield f"attempt {line['attempt']} ended, and it hangs"


def _designs(played: Played) -> Iterator[str]:
    """Yield the designs that were asked for twice: the sampler draws from the reals."""
    with closing(sqlite3.connect(f"file:{played.database}?mode=ro", uri=True)) as connection:
        drawn = Counter(value for (value,) in connection.execute("SELECT param_value FROM trial_params"))
    yield from (f"x = {value} was proposed {count} times" for value, count in drawn.items() if count > 1)


def _unproven(stage: Stage, played: Played, truth: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what was started on a machine after it had shown another key than the proven one."""
    changes = [event["monotonic"] for event in _events(stage, played) if event.get("what") == "host_key"]
    for line in truth:
        if changes and line["event"] == "start" and line["at"] > changes[0] + ON_ITS_WAY:
            yield f"attempt {line['attempt']} was started {line['at'] - changes[0]:.1f} s after the host's key changed"


def _left(played: Played) -> Iterator[str]:
    for number, (state, _) in _trials(played).items():
        if state not in {"COMPLETE", "FAIL"}:
            yield f"trial {number} is {state}"


def _jobs(stage: Stage, played: Played) -> Iterator[str]:
    deadline = time.monotonic() + IDLE + 10 + 3 * TICK + TEARDOWN
    is_first = True
    while True:
        events = _events(stage, played)
        submitted = Counter(event["name"] for event in events if event["event"] == "submitted")
        jobs = {event["job"] for event in events if event["event"] == "submitted"}
        stopped = {
            event["job"] for event in events if event["event"] == "cluster_status" and event["status"] == "Stopped"
        }
        if is_first and played.codes and played.codes[-1] == 0:  # which says that Stopped was read
            yield from (f"job {job} was not stopped when its driver ended with 0" for job in sorted(jobs - stopped))
        is_first = False
        if jobs <= stopped or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    yield from (f"{name} was submitted {count} times" for name, count in submitted.items() if count > 1)
    yield from (f"job {job} is not stopped" for job in sorted(jobs - stopped))
    if not played.abandoned:
        saved = {event["job"] for event in events if event["event"] == "created"} - jobs
        deleted = {event["job"] for event in events if event["event"] == "deleted"}
        yield from (f"job {job} was saved, and neither submitted nor deleted" for job in sorted(saved - deleted))


def _events(stage: Stage, played: Played) -> list[dict[str, Any]]:
    return [event for event in lines(stage.journal) if fnmatchcase(str(event.get("name", "")), played.jobs)]


def _processes(played: Played) -> Iterator[str]:
    deadline = time.monotonic() + 10
    while (left := command_lines(played.mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield from left


def _secrets(stage: Stage, played: Played) -> Iterator[str]:
    secrets = {"the API key": stage.platform.api_key}
    for path in (played.folder / "state").rglob("*.secret"):
        secrets["a lease's secret"] = path.read_text("utf-8").strip()
    for name, secret in secrets.items():
        yield from (f"{name} is in the command line {line}" for line in played.seen if secret in line)
        for path in played.folder.rglob("*"):
            own = path.suffix == ".secret" or path.name == "apiconfig"
            if path.is_file() and not own and secret.encode() in path.read_bytes():
                yield f"{name} is in {path}"


def _trials(played: Played) -> dict[int, tuple[str, list[float]]]:
    """Return state and values of each trial, out of the study's own database; none where there is no database."""
    if not played.database.exists():
        return {}
    with closing(sqlite3.connect(f"file:{played.database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT t.number, t.state, v.value FROM trials t LEFT JOIN trial_values v ON v.trial_id = t.trial_id"
        )
        return {number: (state, [] if value is None else [value]) for number, state, value in rows}
