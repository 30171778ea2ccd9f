"""How trials share the cores of a cluster: several on one machine, or one on several whole machines."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import CommandFailed, ConfigError, LeaseLost
from persistent_runner.spread import trials_at_a_time
from tests.pools import DEADLINE
from tests.studies.trial_here import mpi_compiles

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.remote.workdir import WorkDir
    from tests.pools import Pools

MACHINES = 'sort "$TRIAL_HOSTS" | uniq -c'


@pytest.mark.parametrize(
    ("nodes", "node", "trial", "most", "expected"),
    [
        (1, 36, 36, None, 1),
        (1, 36, 18, None, 2),
        (1, 36, 10, None, 3),
        (1, 36, 10, 2, 2),
        (1, 36, 1, 50, 36),
        (2, 36, 36, None, 2),
        (3, 36, 10, None, 9),
        (3, 36, 10, 7, 7),
        (2, 36, 72, None, 1),
        (2, 36, 37, None, 1),  # 36 + 1 cores take two whole nodes
        (4, 36, 72, None, 2),
        (5, 36, 72, None, 2),
        (6, 36, 72, 2, 2),
    ],
)
def test_trials_at_a_time(nodes: int, node: int, trial: int, most: int | None, expected: int) -> None:
    """As many as fit the node's cores, or the nodes, never more than asked for."""
    assert trials_at_a_time(nodes, node, trial, most) == expected


def test_a_trial_too_big(pools: Pools) -> None:
    """A trial that can never fit is refused."""
    with pytest.raises(ConfigError, match="a trial of 3 cores does not fit a cluster of 1 x 2 cores"):
        pools.pool(trial_cores=3)


def machines(printed: str) -> dict[str, int]:
    """Return how many lines of the machine file each machine has, from what `MACHINES` prints."""
    return {name: int(count) for count, name in (line.split() for line in printed.splitlines())}


def test_a_trial_on_several_machines(pools: Pools) -> None:
    """A trial that one node is too small for has a line for each core in its machine file, and whole nodes."""
    lease = pools.lease(core_type="marble", cores=8)
    pool = pools.pool(lease, trial_cores=6)
    assert pool.capacity == 1
    task = pool.submit(0, 1, pool.place(), lambda work: work.run(f"echo $TRIAL_CORES; {MACHINES}").output)
    cores, listed = task.result(60).split("\n", 1)
    assert cores == "6"
    assert list(machines(listed).values()) in ([4, 2], [2, 4])
    assert lease.nodes[1].hostname in machines(listed)
    assert pool.trial_price == lease.price  # of the cores that nobody else can use, too


def test_trials_do_not_share_machines(pools: Pools) -> None:
    """Two trials at a time have different machines, also when the third takes the place of the one that ends first."""
    pool = pools.pool(pools.lease(core_type="marble", cores=16), trial_cores=8)
    assert pool.capacity == 2

    begun = [threading.Event() for _ in range(3)]

    def task(work: WorkDir) -> set[str]:
        script = f"{MACHINES} > seen; echo begun; until [ -e ../end-{work.number} ]; do sleep 0.01; done"
        work.run(script, on_line=lambda _: begun[work.number].set())
        return set(machines(work.pull("seen").read_text()))

    def start(number: int) -> Future[set[str]]:
        future = pool.submit(number, 1, pool.place(), task)
        assert begun[number].wait(DEADLINE)
        return future

    def end(number: int, future: Future[set[str]]) -> set[str]:
        """Let a trial end; nothing else may be starting, since the command for it takes machines as a trial does."""
        pool.submit(90 + number, 1, pool.place(), lambda work: work.run(f"touch ../end-{number}")).result(DEADLINE)
        return future.result(DEADLINE)

    futures = [start(0), start(1)]
    second = end(1, futures[1])
    third = end(2, start(2))
    first = end(0, futures[0])
    assert [len(first), len(second), len(third)] == [2, 2, 2]
    assert not first & second
    assert third == second


def test_a_later_start_leaves_machines_alone_on_which_something_runs(pools: Pools) -> None:
    """What an earlier driver has started goes on, and the next one's trials run on other machines."""
    lease = pools.lease(core_type="marble", cores=16)
    first = pools.pool(lease, trial_cores=8)
    begun = threading.Event()
    script = f"{MACHINES} > seen; echo begun; until [ -e ../end ]; do sleep 0.01; done"
    first.submit(0, 1, first.place(), lambda work: work.run(script, outputs=["seen"], on_line=lambda _: begun.set()))
    assert begun.wait(DEADLINE)
    first.close()

    second = pools.pool(lease, trial_cores=8)
    other = machines(second.submit(1, 1, second.place(), lambda work: work.run(MACHINES).output).result(60))
    second.submit(2, 1, second.place(), lambda work: work.run("touch ../end")).result(60)

    def joined(work: WorkDir) -> str:
        work.run(script, outputs=["seen"], on_line=lambda _: None)
        return work.pull("seen").read_text()

    assert set(machines(second.submit(0, 1, second.place(), joined).result(60))).isdisjoint(other)


def test_a_worker_that_dies_is_no_fault_of_the_design(pools: Pools) -> None:
    """A trial that fails when one of its machines is gone is lost with the cluster; the next one runs it (row R9)."""
    lease = pools.lease(core_type="marble", cores=8)
    pool, begun = pools.pool(lease, trial_cores=8), threading.Event()
    worker = lease.nodes[1].hostname
    script = "echo begun; ${RESCALE_PREFERRED_REMSH} $(sort -u $TRIAL_HOSTS | grep node1) 'sleep 600'"

    with pytest.raises(CommandFailed, match="exit code 3"):  # all machines are there: it is the design's
        pool.submit(0, 1, pool.place(), lambda work: work.run("exit 3")).result(DEADLINE)
    lost = pool.submit(1, 1, pool.place(), lambda work: work.run(script, on_line=lambda _: begun.set()))
    assert begun.wait(DEADLINE)
    pools.rescale.faults.order({"what": "worker", "job": lease.job_id})
    with pytest.raises(LeaseLost, match=rf"has lost a machine of its cluster \({worker}\)"):
        lost.result(DEADLINE)

    pool.renew(1, 0)
    pool.open()
    assert (
        pool.submit(1, 2, pool.place(), lambda work: work.run(f"{MACHINES} | wc -l").output).result(DEADLINE) == "2\n"
    )


@pytest.mark.parametrize(
    ("remote_shell", "said"),
    [
        ("false", "node1-{job} does not see /"),  # which ends as `test -e` does where there is no such file
        ("no_such_ssh", "node1-{job} does not let the head node log in"),
    ],
)
def test_machines_that_do_not_work_together(
    remote_shell: str, said: str, pools: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that a parallel solver could not be started on is named before the first trial, which runs all the same."""
    lease = pools.lease(core_type="marble", cores=8, env={"RESCALE_PREFERRED_REMSH": remote_shell})
    pool = pools.pool(lease, trial_cores=8)
    warned = "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said.format(job=lease.job_id.lower()) in warned
    assert pool.submit(0, 1, pool.place(), lambda work: work.run("echo $TRIAL_CORES").output).result(60) == "8\n"


@pytest.mark.skipif(not mpi_compiles(), reason="no MPI here (Debian: apt install openmpi-bin libopenmpi-dev)")
def test_ranks_run_on_the_machines_of_their_trial(pools: Pools, tmp_path: Path) -> None:
    """Open MPI starts a trial's ranks on the machines that are its own, for each of two trials at a time."""
    allowed = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    pool = pools.pool(pools.lease(core_type="onyx", cores=64, env=allowed), trial_cores=32)
    assert pool.capacity == 2
    script = (
        'for host in $(sort -u "$TRIAL_HOSTS"); do echo "$host slots=1"; done > two\n'
        # each with a folder of its own: of two that share one, the first to end deletes it under the other's start
        'here=$(mktemp -d); trap "rm -rf $here" EXIT; '
        'mpirun --mca orte_tmpdir_base "$here" --hostfile two --bind-to none sh -c "touch ../here-$TRIAL_NUMBER; '
        "until [ -e ../here-0 ] && [ -e ../here-1 ]; do sleep 0.1; done; "
        'echo rank \\$OMPI_COMM_WORLD_RANK, \\$OMPI_COMM_WORLD_LOCAL_RANK of its machine"'
    )
    futures = [
        pool.submit(number, 1, pool.place(), lambda work: work.run(script, timeout="60s").output) for number in range(2)
    ]
    said = [str(future.exception(90) or future.result()) for future in futures]
    for printed in said:
        ranks = [line for line in printed.splitlines() if line.startswith("rank")]  # mpirun warns of its own
        assert sorted(ranks) == ["rank 0, 0 of its machine", "rank 1, 0 of its machine"], said
