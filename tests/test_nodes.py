"""Trials on all machines of a cluster: how they spread, what a machine that comes late, goes dark or is lost means."""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from persistent_runner import nodes
from persistent_runner.background import in_background
from persistent_runner.errors import AttemptLost
from persistent_runner.interrupts import Interrupts
from persistent_runner.lease.cluster import Setup
from persistent_runner.recovery import Backoff
from persistent_runner.remote.agent import MARKER
from persistent_runner.remote.patience import Patience
from persistent_runner.runner import _run_trials
from persistent_runner.study.progress import Limits
from persistent_runner.study.results import trials_table
from persistent_runner.study.run_folder import RunFolder
from tests.driving import HOSTILE, LONG, Gated, all_jobs, kill
from tests.driving import until as eventually
from tests.pools import DEADLINE, until
from tests.remote.conftest import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.pool import Pool
    from persistent_runner.remote.workdir import WorkDir
    from tests.pools import Pools

WHO = 'echo "$LOCAL_PLATFORM_MACHINE"'


def a_cluster(pools: Pools, count: int = 2, setup: Setup | None = None, **faults: dict[str, Any]) -> ClusterLease:
    """Lease machines of four cores each; `faults` are in force from the start."""
    for what, options in faults.items():
        pools.rescale.faults.order({"what": what, **options})
    return pools.lease(setup, core_type="marble", cores=4 * count)


@pytest.fixture(autouse=True)
def _withdrawn(pools: Pools) -> Iterator[None]:
    yield
    pools.rescale.faults.clear()


class Held:
    """Trials that say where they run and end when they are told to."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.places: dict[int, str] = {}
        self.futures: dict[int, Future[str]] = {}

    def start(self, *numbers: int, attempt: int = 1, where: str = "") -> None:
        """Start trials and wait until they run."""
        begun = {number: threading.Event() for number in numbers}
        for number in numbers:
            self.places[number] = place = where or self._pool.place()
            self.futures[number] = self._pool.submit(number, attempt, place, self._task(begun[number]))
        until(lambda: all(begun[it].is_set() or self.futures[it].done() for it in numbers), f"trials {numbers}")

    def _task(self, begun: threading.Event) -> Callable[[WorkDir], str]:
        def task(work: WorkDir) -> str:
            work.run(f"{WHO} > who; echo begun; until [ -e end ]; do sleep 0.02; done", on_line=lambda _: begun.set())
            return work.pull("who").read_text().strip()

        return task

    def end(self, *numbers: int) -> list[str]:
        """Let trials end, each by its own directory, and return what each said of its machine."""
        for number in numbers:
            self._pool._places[f"{number:05d}.1"].link.put(
                f"{number:05d}.1/end", b"", offset=0, size=0, sha256=EMPTY, mode=0o600
            ).result(DEADLINE)
        return [self.futures[number].result(DEADLINE) for number in numbers]


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def all_up(pool: Pool, trials: int) -> None:
    """Wait until so many trials may run at a time."""
    until(lambda: pool.capacity == trials, f"room for {trials} trials, there is for {pool.capacity}")


def test_trials_spread_over_all_machines(pools: Pools) -> None:
    """Each machine has its share, the head node the first one; the room that one leaves is the next one's place."""
    lease = a_cluster(pools, 4)
    pool = pools.pool(lease, trial_cores=2)
    head = pool.place()
    assert head.split()[1] == lease.head_node.instance_id
    all_up(pool, 8)
    assert pool.place() == head

    held = Held(pool)
    held.start(*range(8))
    names = {node.hostname for node in lease.nodes}
    assert Counter(pool.node(place) for place in held.places.values()) == dict.fromkeys(names, 2)
    said = held.end(5)
    assert said == [f"{said[0].rpartition('-node')[0]}-{pool.node(held.places[5])}"]
    assert pool.place() == held.places[5]
    said += held.end(0, 1, 2, 3, 4, 6, 7)
    assert sorted(Counter(said).values()) == [2, 2, 2, 2]
    assert pool.trial_price == pytest.approx(lease.price * 2 / 16)


def test_no_more_at_a_time_than_was_asked_for(pools: Pools) -> None:
    """max_concurrent holds for all machines together."""
    pool = pools.pool(a_cluster(pools), trial_cores=1, max_concurrent=6)
    all_up(pool, 6)
    assert pool.place("", [pool.place()] * 3) != pool.place()  # what is ready has its share as well


def test_machines_that_only_the_head_node_reaches(pools: Pools) -> None:
    """A machine without an address of its own is reached over the head node's connection."""
    lease = a_cluster(pools, 3, machines={"form": "private_workers"})
    assert [bool(node.address) for node in lease.nodes] == [True, False, False]
    pool = pools.pool(lease, trial_cores=4)
    all_up(pool, 3)
    held = Held(pool)
    held.start(0, 1, 2)
    assert len(set(held.end(0, 1, 2))) == 3


def test_a_machine_that_is_not_reached_at_first(
    pools: Pools, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on without it, which is said once; later it is tried again."""
    monkeypatch.setattr(nodes, "REACH", Backoff(first=0.1, most=0.1, total=0.5))
    monkeypatch.setattr(nodes, "AGAIN", Backoff(first=0.1, most=0.1, total=float("inf")))
    lease = a_cluster(pools, 3)
    lost = lease.nodes[2].hostname
    pools.rescale.faults.order({"what": "ssh", "do": "refuse", "machine": 2, "job": lease.job_id})
    pool = pools.pool(lease, trial_cores=4)
    until(lambda: f"{lost}: " in caplog.text, "the warning")
    all_up(pool, 2)
    held = Held(pool)
    held.start(0, 1)
    assert lost not in {pool.node(place) for place in held.places.values()}
    warned = [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING and lost in it.getMessage()]
    assert "The trials run on the other nodes; it is tried again later." in warned[0]

    pools.rescale.faults.order({"what": "ssh", "do": "refuse", "machine": 2, "seconds": 0, "job": lease.job_id})
    all_up(pool, 3)
    held.start(2)
    assert pool.node(held.places[2]) == lost
    assert len(set(held.end(0, 1, 2))) == 3


def test_a_machine_whose_address_comes_late(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials begin on the head node; the others follow when the platform shows them."""
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 3)
    lease = pools.lease(core_type="marble", cores=8)
    shown = lease.nodes
    lease.hold.watch.cluster = type(lease.cluster)(lease.job_id, shown[:1], 0)
    pool = pools.pool(lease, trial_cores=4)
    assert pool.capacity == 1
    all_up(pool, 2)


def test_a_machine_that_is_lost(pools: Pools) -> None:
    """What ran there is lost without a word on its design, and goes elsewhere; the others do not notice."""
    lease = a_cluster(pools, 3)
    pool = pools.pool(lease, trial_cores=4)
    all_up(pool, 3)
    held = Held(pool)
    held.start(0, 1, 2)
    last = lease.nodes[2].hostname
    (victim,) = (number for number, place in held.places.items() if pool.node(place) == last)
    pools.rescale.faults.order({"what": "worker", "job": lease.job_id})
    with pytest.raises(AttemptLost, match=f"{last} is no machine of the cluster any more"):
        held.futures[victim].result(DEADLINE)
    all_up(pool, 2)
    assert pool.place(held.places[victim]) != held.places[victim]
    others = sorted({0, 1, 2} - {victim})
    assert len(set(held.end(*others))) == 2
    held.start(9, where=pool.place(held.places[victim]))
    held.end(9)


def test_a_machine_that_is_silent_for_a_while(pools: Pools) -> None:
    """Nothing new is placed there; what runs there goes on and is joined when it answers again."""
    lease = a_cluster(pools, 2)
    pool = pools.pool(lease, trial_cores=2)
    all_up(pool, 4)
    held = Held(pool)
    held.start(0, 1)
    (there,) = (number for number, place in held.places.items() if pool.node(place) == lease.nodes[1].hostname)
    for order in ({"do": "refuse"}, {"do": "drop"}):
        pools.rescale.faults.order({"what": "ssh", "machine": 1, "job": lease.job_id, **order})
    all_up(pool, 3)
    assert pool.node(pool.place()) == lease.head_node.hostname
    assert pool.place(held.places[there]) == held.places[there]  # what runs there is to be joined
    pools.rescale.faults.order({"what": "ssh", "do": "refuse", "seconds": 0, "machine": 1, "job": lease.job_id})
    all_up(pool, 4)
    assert len(set(held.end(0, 1))) == 2


def test_a_machine_that_is_silent_for_too_long(
    pools: Pools, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran there is lost and may run elsewhere, while the platform still shows it; when it answers it is used again."""
    soon = Backoff(first=0.1, most=0.1, total=0.5)
    monkeypatch.setattr(nodes, "AGAIN", Backoff(first=4, most=4, total=float("inf")))
    monkeypatch.setattr(nodes, "Link", functools.partial(nodes.Link, patience=Patience(reconnect=soon)))
    lease = a_cluster(pools, 2)
    pool = pools.pool(lease, trial_cores=4)
    all_up(pool, 2)
    held, dark = Held(pool), lease.nodes[1].hostname
    held.start(0, 1)
    (there,) = (number for number, place in held.places.items() if pool.node(place) == dark)
    for order in ({"do": "refuse"}, {"do": "drop"}):
        pools.rescale.faults.order({"what": "ssh", "machine": 1, "job": lease.job_id, **order})
    with pytest.raises(AttemptLost, match=f"{dark}: "):
        held.futures[there].result(DEADLINE)
    assert pool.place(held.places[there]) != held.places[there]
    lost = f"{pool._nodes.by(held.places[there]).root}/{there:05d}.1"
    assert processes(f"{MARKER}={lost}")
    eventually(lambda: "The trials run on the other nodes; it is tried again later." in caplog.text, "the word of it")
    pools.rescale.faults.order({"what": "ssh", "do": "refuse", "seconds": 0, "machine": 1, "job": lease.job_id})
    all_up(pool, 2)
    assert not processes(f"{MARKER}={lost}")  # beside the next one there
    assert not Path(lost).exists()
    held.start(2, where=held.places[there])
    assert len(set(held.end(2, 1 - there))) == 2


def test_the_setup_runs_once_where_all_see_its_files(pools: Pools) -> None:
    """Machines with the head node's files have its setup, and run none."""
    lease = a_cluster(pools, 3, Setup((), "echo x >> counter; echo tool > tool", pools.folder))
    pool = pools.pool(lease, trial_cores=4)
    all_up(pool, 3)
    futures = [
        pool.submit(number, 1, place.where, lambda work: work.run("cat $SETUP_DIR/counter $SETUP_DIR/tool").output)
        for number, place in enumerate(pool._nodes.all())
    ]
    assert [future.result(DEADLINE) for future in futures] == ["x\ntool\n"] * 3


def test_the_setup_runs_on_each_machine_with_files_of_its_own(pools: Pools) -> None:
    """Each has it before its first trial, and has it once, also after another start."""
    lease = a_cluster(pools, 3, Setup((), f"{WHO} >> who", pools.folder), own_homes={})
    told = []
    for start in (1, 2):
        pool = pools.pool(lease, trial_cores=4)
        all_up(pool, 3)
        futures = [
            pool.submit(number, start, place.where, lambda work: work.run(f"{WHO}; cat $SETUP_DIR/who").output)
            for number, place in enumerate(pool._nodes.all())
        ]
        told.append([future.result(DEADLINE).split() for future in futures])
        pool.close()
    assert told[0] == told[1]
    assert [said[0] for said in told[0]] == [said[1] for said in told[0]]
    assert [len(said) for said in told[0]] == [2, 2, 2]
    assert len({said[0] for said in told[0]}) == 3


def test_a_setup_that_fails_on_one_machine(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    """That one is not used, and it is said why; the study goes on with the others."""
    command = 'echo no such package; case "$LOCAL_PLATFORM_MACHINE" in *-node1-*) exit 9;; esac'
    lease = a_cluster(pools, 3, Setup((), command, pools.folder), own_homes={})
    pool = pools.pool(lease, trial_cores=4)
    waiting = pool.submit(7, 1, pool._nodes.all()[1].where, lambda work: work.run("true"))  # as of an earlier start
    with pytest.raises(AttemptLost, match="exit code 9"):
        waiting.result(DEADLINE)
    all_up(pool, 2)
    until(lambda: "it is not used any more" in caplog.text, "the warning")
    assert f"the setup on {lease.nodes[1].hostname}: " in caplog.text
    assert "exit code 9" in caplog.text
    held = Held(pool)
    held.start(0, 1)
    assert len(set(held.end(0, 1))) == 2


def test_the_switch_sees_what_runs_on_a_machine_with_a_home_of_its_own(pools: Pools) -> None:
    """As long as a trial runs there the head node says so where the job's switch looks, also when the driver is gone."""
    lease = a_cluster(pools, 2, own_homes={})
    pool = pools.pool(lease, trial_cores=2)
    all_up(pool, 4)
    entry = f".persistent-runner/{lease.name}/{lease.nodes[1].instance_id}/running"

    def listed() -> list[str]:
        return lease.connection.run(f"ls {entry} 2>/dev/null || true", hide=True).stdout.split()

    held = Held(pool)
    where = pool._nodes.all()[1].where
    held.start(0, 1, where=where)
    assert listed() == ["elsewhere"]
    held.end(0)
    assert listed() == ["elsewhere"]
    held.end(1)
    until(lambda: not listed(), "the end of the entry")

    held.start(2, where=where)
    pool.close()
    assert listed() == ["elsewhere"]
    again = pools.pool(lease, trial_cores=2)
    until(lambda: not listed(), "the end of what a driver has left")
    joined = Held(again)
    joined.start(2, where=where)
    assert listed() == ["elsewhere"]
    joined.end(2)
    until(lambda: not listed(), "the end of the entry")


def test_an_attempt_leaves_the_machine_that_it_ran_on(pools: Pools) -> None:
    """What is acknowledged goes from there, also where an earlier start has run it."""
    lease = a_cluster(pools, 2, own_homes={})

    def look(work: WorkDir) -> list[str]:
        gone = 'for n in $(seq 600); do [ "$(echo 0*)" = 00001.1 ] && break; sleep 0.05; done; '
        return work.run(f"cd ..; {gone if work.number else ''}echo 0*").output.split()

    for start in (1, 2):
        pool = pools.pool(lease, trial_cores=4)
        all_up(pool, 2)
        worker = pool._nodes.all()[1].where
        pool.submit(0, start, worker, look).result(DEADLINE)
        if start == 2:
            for attempt in (1, 2):
                pool.acknowledge(0, attempt)
            assert pool.submit(1, 1, worker, look).result(DEADLINE) == ["00001.1"]
        pool.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Gated]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Gated(tmp_path / HOSTILE)
    yield found
    eventually(lambda: not found.processes(), f"the end of {found.processes()}")


@pytest.mark.parametrize("own_homes", [False, True])
def test_trials_are_joined_on_their_machines_after_a_kill(place: Gated, own_homes: bool) -> None:
    """SIGKILL while eight trials run on four machines: none is started again, none is looked for on another one."""
    line = place.gated(n_trials=8, cores=16, core_type="marble", trial_cores=2)
    with place.platform() as platform:
        if own_homes:
            place.fault("own_homes")
        first = place.start(*line, **LONG)
        place.until_run(8)
        eventually(lambda: len(place.seen()) == 8, "what the trials print")
        kill(first)
        for path in place.seen():
            path.unlink()
        second = place.start(*line, **LONG)
        eventually(lambda: len(place.seen()) == 8, "the trials to be joined")
        place.go.touch()
        assert second.end() == 0, second.said
        assert len(all_jobs(platform)) == 1
    assert place.counts == dict.fromkeys("01234567", 1)
    rows = place.rows()
    assert [(row["state"], row["attempts"]) for row in rows] == [("COMPLETE", "1")] * 8
    assert all(row["value"] == row["params_x"] for row in rows)
    assert sorted(Counter(row["node"].partition("-")[0] for row in rows).items()) == [
        (f"node{number}", 2) for number in range(4)
    ]


def test_a_study_goes_on_when_a_machine_is_lost(place: Gated) -> None:
    """Its trials have another attempt on the other machines, and all are complete."""
    line = place.gated(n_trials=4, cores=8, core_type="marble", trial_cores=2)
    with place.platform() as platform:
        driver = place.start(*line, **LONG)
        place.until_run(4)
        place.fault("worker")
        driver.wait_for("is no machine of the cluster any more")
        place.go.touch()
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 1
    rows = place.rows()
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4
    assert sorted(row["attempts"] for row in rows) == ["1", "1", "2", "2"]
    assert {row["node"].partition("-")[0] for row in rows} == {"node0"}


def test_a_big_input_is_brought_once_to_machines_that_share_their_files(pools: Pools) -> None:
    """Trials on all of them need it at once: one brings it, and each has it whole (row R1)."""
    content = random.Random(7).randbytes(6 << 20)
    (pools.folder / "mesh.bin").write_bytes(content)
    pool = pools.pool(a_cluster(pools, 3), trial_cores=4)
    all_up(pool, 3)

    def task(work: WorkDir) -> str:
        work.push("mesh.bin")
        return work.run("sha256sum < mesh.bin").output.split()[0]

    places: list[str] = []
    for _ in range(3):
        places.append(pool.place("", places))
    assert len(set(places)) == 3
    before = sum(node.link.lanes.there._arrived for node in pool._nodes.all())
    found = [pool.submit(number, 1, place, task) for number, place in enumerate(places)]
    assert [future.result(60) for future in found] == [hashlib.sha256(content).hexdigest()] * 3
    assert sum(node.link.lanes.there._arrived for node in pool._nodes.all()) - before < 1.5 * len(content)


def test_hundreds_at_a_time(pools: Pools, tmp_path: Path) -> None:
    """One driver has two hundred trials under way at once on four machines, and each of them has its share."""
    running, go = tmp_path / "running", tmp_path / "go"
    running.mkdir()
    lease = pools.lease(core_type="calcite", cores=480, env={"HERE": str(tmp_path)})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        work.run('touch "$HERE/running/$TRIAL_NUMBER"; until [ -e "$HERE/go" ]; do sleep 1; done')
        return trial.suggest_float("x", 0, 1)

    watch = in_background(lambda: (eventually(lambda: len(list(running.iterdir())) == 200, "200"), go.touch()), "watch")
    with RunFolder(tmp_path / "run", "many") as folder:
        _run_trials(
            lease,
            study,
            objective,
            folder=folder,
            interrupts=Interrupts(),
            inputs_root=tmp_path,
            limits=Limits(200),
            trial_cores=2,
            max_concurrent=None,
        )
        table = trials_table(study)
    watch.result(DEADLINE)
    assert list(table["state"].unique()) == ["COMPLETE"]
    assert sorted(table["attempts"].unique()) == [1]
    assert sorted(table["node"].value_counts().index) == sorted(node.hostname for node in lease.nodes)
    assert table["node"].value_counts().min() >= 200 - 3 * 60  # a node has 60 slots, and one may come late
