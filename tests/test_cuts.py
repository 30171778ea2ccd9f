"""A study whose connections are all cut again and again: nothing is lost, nothing runs twice."""

from __future__ import annotations

import dataclasses
import random
import shutil
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import paramiko
import pytest

from persistent_runner.interrupts import Interrupts
from persistent_runner.remote.link import Link
from persistent_runner.remote.ssh import Login
from persistent_runner.runner import _run_trials
from persistent_runner.study.objective import CommandObjective
from persistent_runner.study.progress import Limits
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import open_study
from tests.campaign import solver
from tests.campaign.oracle import lines
from tests.pools import Pools
from tests.remote.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.local_platform.local import LocalRescale
    from tests.openssh import OpenSsh

TRIALS = 40
CUTS = 40  # at least
DEADLINE = 400  # seconds for all of it, on a busy machine
AT_A_TIME = 2
STUDY = f"""
[study]
name = "cuts"
n_trials = {TRIALS}
sampler = "random"
seed = 1
[cluster]
core_type = "emerald"
cores = {AT_A_TIME}
walltime = "1h"
[space]
x = {{ type = "float", low = 0.0, high = 1.0 }}
[trial]
inputs = ["solver.py"]
command = "python3 solver.py 0.3 0"
cores = 1
outputs = ["field.bin"]
[metrics.y]
file = "out.json"
json = "y"
[objectives]
y = "minimize"
"""


@pytest.fixture
def network(sshd: OpenSsh) -> Iterator[Proxy]:
    """Stand between the driver and OpenSSH."""
    with Proxy(sshd.port) as found:
        yield found


@pytest.fixture
def pools(rescale: LocalRescale, sshd: OpenSsh, network: Proxy, tmp_path: Path) -> Iterator[Pools]:
    """Make leases whose head node is OpenSSH behind that network."""
    login = Login(paramiko.PKey.from_path(sshd.key), key_name="the test's key", proof=sshd.proof())
    made = Pools(rescale, tmp_path, lambda _: login.connect(dataclasses.replace(sshd.node(), port=network.port)))
    yield made
    made.close()


class Cutter(threading.Thread):
    """Cuts all connections each 0.05 s to `longest` while entered, and counts them; ends the study at the deadline."""

    def __init__(self, network: Proxy, longest: float, seed: int = 1) -> None:
        super().__init__()
        self.cut = 0
        self._network = network
        self._longest = longest
        self._over = threading.Event()
        self._random = random.Random(seed)

    def run(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while not self._over.wait(self._random.uniform(0.05, self._longest)):
            self.cut += self._network.drop()
            if time.monotonic() > deadline:
                signal.raise_signal(signal.SIGTERM)  # the driver stops what runs, and the study is not done
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def seconds_to_an_agent(lease: ClusterLease) -> float:
    """Return how long it takes here and now from no connection to an agent that speaks."""
    begun = time.monotonic()
    lease.connection.close()
    link = Link(lease.connect, run="", lease="nobody", node="node")
    link.open()
    link.close()
    return time.monotonic() - begun


# paramiko's own thread, when its connection dies in the moment in which a channel is made; the link's deadline heeds it
@pytest.mark.filterwarnings(
    r"ignore:Exception in thread[\s\S]*_unlink_channel:pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_study_whose_connections_are_cut_all_the_time(pools: Pools, network: Proxy, tmp_path: Path) -> None:
    """No connection to OpenSSH lives for more than half a second: each command runs once, all results come whole."""
    inputs, truth = tmp_path / "study", tmp_path / "truth.jsonl"
    inputs.mkdir()
    shutil.copy(solver.__file__, inputs)
    (inputs / "study.toml").write_text(STUDY)
    spec = StudySpec.load(inputs)
    lease = pools.lease(cores=AT_A_TIME, env={"TRUTH": str(truth)})
    # Where the machine is so busy that an agent takes as long as that, none would ever be reached.
    longest = max(0.5, 2 * seconds_to_an_agent(lease))
    with (
        RunFolder(tmp_path / "runs/cuts", "cuts") as folder,
        Interrupts() as interrupts,
        Cutter(network, longest) as cutter,
    ):
        study = open_study(spec, folder)
        _run_trials(
            lease,
            study,
            CommandObjective(spec),
            folder=folder,
            interrupts=interrupts,
            inputs_root=inputs,
            limits=Limits(TRIALS),
            trial_cores=1,
            max_concurrent=None,
            spec=spec,
        )
        attempts = Counter(line["trial"] for line in folder.journal() if line["kind"] == "attempt")
    assert cutter.cut * longest >= CUTS * 0.5
    said = lines(truth)
    once = dict.fromkeys(range(TRIALS), 1)
    assert Counter(line["number"] for line in said if line["event"] == "start") == once
    assert attempts == once
    ends = {line["number"]: line for line in said if line["event"] == "end"}
    assert {trial.number: trial.values for trial in study.trials} == {n: [end["y"]] for n, end in ends.items()}
    for number, end in ends.items():
        kept = folder.path / "trials" / f"{number:05d}"
        assert (kept / "field.bin").read_bytes() == solver.field(number, end["x"])
        assert (kept / "command-1.log").read_text() == "solving\n"
