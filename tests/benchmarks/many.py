"""A study with many trials: what one more costs, and what the driver holds in memory.

Each size has a process of its own, `python -m tests.benchmarks.many`, whose trials do nothing and run nowhere: what is
measured is the loop, the journal, Optuna and its storage.
"""

from __future__ import annotations

import json
import logging
import resource
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import optuna

from persistent_runner.interrupts import Interrupts
from persistent_runner.study.loop import Loop
from persistent_runner.study.machines import Machines
from persistent_runner.study.objective import Outcome
from persistent_runner.study.progress import Limits
from persistent_runner.study.results import write_table
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import open_study, quiet_optuna
from persistent_runner.study.summary import summarize
from tests.benchmarks.bars import Row
from tests.benchmarks.studies import Study

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "A study with many trials, by CPU time: each runs nowhere and takes no time; random sampler"
FIRST = 50  # that are really run; the database and the journal are these again and again
TIMES = 2.0
MEMORY = 400.0  # MB


@dataclass(frozen=True)
class Seen:
    """Of one size: the ms from an ask to the next, those of a start and of the table and CSV, and the MB held.

    They are of this process's CPU: how long the disk takes depends on whoever uses it, and not on the trials.
    """

    trial: float
    start: float
    table: float
    megabytes: float


def measure(folder: Path, many: int, more: int) -> list[Row]:
    """Return what `more` trials cost after `many` and after a tenth, with each storage."""
    rows = []
    few = many // 10
    for storage in ("sqlite", "in memory"):
        before, after = (_apart(folder / f"{storage}-{size}", storage, size, more) for size in (few, many))
        peer = (f"at {few}", before.trial)
        rows += [
            Row(f"ask and tell at {many} trials, {storage}", after.trial, "ms", TIMES * before.trial, peer=peer),
            Row(f"driver's memory at {many} trials, {storage}", after.megabytes, "MB", MEMORY),
        ]
    last, first = after.table / many, before.table / few
    note = f"a start on these reads all of them once: {after.start:.0f} ms, at {few} {before.start:.0f} ms"
    rows.append(Row("table, CSV and summary, a trial", last, "ms", TIMES * first, peer=(f"at {few}", first), note=note))
    return rows


def _apart(folder: Path, storage: str, trials: int, more: int) -> Seen:
    line = [sys.executable, "-m", "tests.benchmarks.many", str(folder), storage, str(trials), str(more)]
    answer = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    return Seen(**json.loads(answer.stdout))


def here(folder: Path, storage: str, trials: int, more: int) -> Seen:
    """Measure one size in this process."""
    (folder / "study").mkdir(parents=True)
    (folder / "study/study.toml").write_text(Study(trials, "true", "random").text())
    spec = StudySpec.load(folder / "study")
    quiet_optuna()
    with RunFolder(folder / "runs/benchmark", "benchmark") as kept, Interrupts() as interrupts:

        def run(study: optuna.Study, total: int) -> list[float]:
            asked: list[float] = []

            def submit(number: int, attempt: int, where: str, task: Callable[[Any], Any]) -> Future[Any]:
                asked.append(time.process_time())
                future: Future[Any] = Future()
                future.set_result(task(_Nowhere))
                return future

            machines = Machines(submit=submit, capacity=lambda: 1, stop_running=lambda: None)
            limits = Limits(total)
            Loop(
                study,
                _nothing,
                machines=machines,
                folder=kept,
                limits=limits,
                interrupts=interrupts,
                designs=spec.designs,
            ).run()
            return asked

        if storage == "sqlite":
            run(open_study(spec, kept), FIRST)
            _multiply(kept, trials)
            study = open_study(spec, kept)
        else:
            study = optuna.create_study(sampler=spec.make_sampler(1))
            run(study, FIRST)
            for _ in range(FIRST, trials, FIRST):
                study.add_trials(study.get_trials(deepcopy=False)[:FIRST])
        begun = time.process_time()
        asked = run(study, trials + more)
        start = asked[0] - begun
        begun = time.process_time()
        write_table(kept, study)
        summarize(spec, study)
        table = time.process_time() - begun
    each = median(second - first for first, second in pairwise(asked))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Seen(1000 * each, 1000 * start, 1000 * table, used)


class _Nowhere:
    """The working directory of a trial that runs nowhere."""

    seconds = waited = 0.0


def _nothing(trial: optuna.Trial, work: Any) -> Outcome:
    return Outcome((trial.params["x"],), {"y": trial.params["x"]})


def _multiply(folder: RunFolder, trials: int) -> None:
    """Let the trials that a study has be there again and again, under further numbers, as if they had been run."""
    journal = folder.path / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    with closing(sqlite3.connect(folder.database)) as database, journal.open("a", encoding="utf-8") as lines:
        columns = {
            "trials": "study_id, state, datetime_start, datetime_complete",
            "trial_params": "param_name, param_value, distribution_json",
            "trial_values": "objective, value, value_type",
            "trial_user_attributes": "key, value_json",
        }
        for more in range(FIRST, trials, FIRST):
            for name, kept in columns.items():
                number = ("number, ", f"number + {more}, ") if name == "trials" else ("", "")
                database.execute(
                    f"INSERT INTO {name} (trial_id, {number[0]}{kept}) "
                    f"SELECT trial_id + {more}, {number[1]}{kept} FROM {name} WHERE trial_id <= {FIRST}"
                )
            lines.writelines(json.dumps(record | {"trial": record["trial"] + more}) + "\n" for record in records)
        database.commit()


if __name__ == "__main__":
    logging.getLogger("persistent_runner").setLevel(logging.ERROR)
    print(json.dumps(asdict(here(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
