"""A whole study as `run-study` runs it, on a machine at the end of a line; its trials write down when they ran."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest import mock

import optuna
import requests

from persistent_runner import runner
from persistent_runner.interrupts import Interrupts
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.pool import Pool
from persistent_runner.study.objective import CommandObjective
from persistent_runner.study.progress import Limits
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import open_study, quiet_optuna
from tests.pools import Pools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.study.progress import Progress
    from tests.benchmarks.far import Far

# The clock of the machine, by the shell itself: no process is started for it.
COMMAND = """echo "$TRIAL_NUMBER $EPOCHREALTIME" >> "$TIMES"
sleep {seconds}
cp parameters.json result.json
echo "$TRIAL_NUMBER $EPOCHREALTIME" >> "$TIMES\""""


@dataclass(frozen=True)
class Study:
    """What a study of x and z in [0, 1] is like, whose value is x."""

    trials: int
    command: str
    sampler: str = "tpe"
    storage: str = "sqlite"
    at_a_time: int = 1
    stage_ahead: str = "0"
    is_sent: bool = True  # ahead of time, where the study may
    result: str = "result.json"

    def text(self) -> str:
        """Return its study.toml."""
        return f"""
[study]
name = "benchmark"
n_trials = {self.trials}
sampler = "{self.sampler}"
seed = 1
[cluster]
core_type = "emerald"
cores = {self.at_a_time}
walltime = "1h"
[space]
x = {{ type = "float", low = 0.0, high = 1.0 }}
z = {{ type = "float", low = 0.0, high = 1.0 }}
[trial]
command = '''{self.command}'''
cores = 1
stage_ahead = {self.stage_ahead}
[metrics.y]
file = "{self.result}"
json = "x"
[objectives]
y = "minimize"
"""


class _Unsent(Pool):
    """What is chosen ahead of time waits here, as that of an objective in Python does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"queues": False}))


@dataclass(frozen=True)
class Times:
    """When each trial's command began and ended, in seconds, the earliest first."""

    spans: list[tuple[float, float]]

    @property
    def gaps(self) -> list[float]:
        """From the end of each to the begin of the next one, of trials that ran one after the other."""
        return [second[0] - first[1] for first, second in pairwise(self.spans)]

    @property
    def busy(self) -> float:
        """Which share of the time something ran, from the first begin to the last end."""
        return sum(end - begin for begin, end in self.spans) / (self.spans[-1][1] - self.spans[0][0])


@contextlib.contextmanager
def leased(folder: Path, place: Far, cores: int, times: Path) -> Iterator[ClusterLease]:
    """Lease a cluster whose head node is the far machine."""
    folder.mkdir(parents=True)
    with LocalRescale(folder / "platform") as rescale:
        pools = Pools(rescale, folder, lambda _: place.connect())
        try:
            yield pools.lease(core_type="granite" if cores > 1 else "emerald", cores=cores, env={"TIMES": str(times)})
        finally:
            pools.close()


def run(lease: Callable[[], ClusterLease], study: Study, folder: Path) -> tuple[Progress, float]:
    """Open a study, lease a cluster and run it to its end; return how far it came, and how long all trials took in s."""
    inputs = folder / "study"
    inputs.mkdir(parents=True)
    (inputs / "study.toml").write_text(study.text())
    spec = StudySpec.load(inputs)
    pools = Pool if study.is_sent else _Unsent
    with (
        _quiet(),
        mock.patch.object(runner, "Pool", pools),
        RunFolder(folder / "runs/benchmark", "benchmark") as kept,
        Interrupts() as interrupts,
    ):
        found = _in_memory(spec) if study.storage == "in memory" else open_study(spec, kept)
        cluster = lease()
        begun = time.perf_counter()
        progress = runner._run_trials(
            cluster,
            found,
            CommandObjective(spec),
            folder=kept,
            interrupts=interrupts,
            inputs_root=inputs,
            limits=Limits(study.trials),
            trial_cores=1,
            max_concurrent=None,
            spec=spec,
        )
        return progress, time.perf_counter() - begun


def _in_memory(spec: StudySpec) -> optuna.Study:
    quiet_optuna()
    return optuna.create_study(sampler=spec.make_sampler(spec.study.seed), directions=spec.directions)


def asked(rescale: LocalRescale, path: str) -> list[dict[str, Any]]:
    """Return the rows of a list, asked from the platform's own API."""
    headers = {"Authorization": f"Token {rescale.api_key}"}
    answer = requests.get(f"{rescale.base_url}/api/v2/{path}/", headers=headers, timeout=30)
    rows: list[dict[str, Any]] = answer.json()["results"]
    return rows


def timed(folder: Path, place: Far, study: Study, skip: int) -> Times:
    """Run a study of commands that write their times; the first ones load what the others find in memory."""
    times = folder.with_suffix(".times")
    with leased(folder, place, study.at_a_time, times) as lease:
        progress, _ = run(lambda: lease, study, folder)
    assert progress.complete == study.trials, progress
    seen: dict[int, list[float]] = {}
    for line in times.read_text().splitlines():
        number, at = line.split()
        seen.setdefault(int(number), []).append(float(at))
    found = Times(sorted((begin, end) for begin, end in seen.values())[skip:])
    assert study.at_a_time > 1 or min(found.gaps) >= 0, f"two ran at a time: {found.spans}"
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    ours = logging.getLogger("persistent_runner")
    before, ours.level = ours.level, logging.ERROR
    try:
        yield
    finally:
        ours.level = before
