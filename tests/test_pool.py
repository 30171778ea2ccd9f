"""Trials onto nodes: how many at a time, the setup once, a thread and a folder for each."""

from __future__ import annotations

import secrets
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from persistent_runner.errors import (
    AttemptLost,
    BudgetSpent,
    ConnectionLost,
    JobStopped,
    LeaseLost,
    SetupFailed,
)
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.guard import Budget
from persistent_runner.lease.ledger import Ledger
from tests.pools import DEADLINE, Pools, until

if TYPE_CHECKING:
    from persistent_runner.remote.workdir import WorkDir


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_trials_run_together(pools: Pools) -> None:
    """Trials that each wait for the other one end: they run at the same time, each in its own directory and folder."""
    pool = pools.pool()
    assert pool.capacity == 2

    def task(work: WorkDir) -> str:
        other = "00001.1" if work.attempt == "00000.1" else "00000.1"
        work.run(f"touch here; until [ -e ../{other}/here ]; do sleep 0.01; done; echo $TRIAL_NUMBER $LICENCE > out")
        return work.pull("out").read_text()

    futures = [pool.submit(number, 1, pool.place(), task) for number in range(2)]
    assert [future.result(60) for future in futures] == ["0 1055@host\n", "1 1055@host\n"]
    assert sorted(path.parent.name for path in pools.folder.glob("trials/*/out")) == ["00000", "00001"]


def test_no_two_attempts_share_a_directory(pools: Pools) -> None:
    """What trials at the same time, and attempts after one another, write under one name stays their own (row R14)."""
    pool = pools.pool()

    def task(work: WorkDir) -> list[str]:
        other = "00001.1" if work.attempt == "00000.1" else "00000.1"
        wait = f"until [ -e ../{other}/out ]; do sleep 0.01; done; " if work.attempt.endswith(".1") else ""
        said = work.run(f"ls; echo {work.attempt} >> out; {wait}pwd; cat out", outputs=["out"]).output
        return [*said.split(), work.pull("out").read_text().strip()]

    futures = [pool.submit(number, 1, pool.place(), task) for number in range(2)]
    found = [future.result(60) for future in futures] + [pool.submit(0, 2, pool.place(), task).result(60)]
    names = ["00000.1", "00001.1", "00000.2"]
    assert [(*said[:1], *said[2:]) for said in found] == [("parameters.json", name, name) for name in names]
    assert len({said[1] for said in found}) == 3


def test_an_acknowledged_attempt_leaves_the_node(pools: Pools) -> None:
    """An attempt stays on the node until it is said that its result is safe; others are not touched."""
    pool = pools.pool()
    first, second = (
        Path(pool.submit(number, 1, pool.place(), lambda work: work.run("mkdir a; pwd").output.strip()).result(60))
        for number in range(2)
    )
    assert first.is_dir()
    pool.acknowledge(0, 1)
    until(lambda: not first.exists(), "the attempt's directory goes")
    assert second.is_dir()


@pytest.mark.parametrize("made_of_it", [1.0, ValueError("no result"), optuna.TrialPruned("no result")])
def test_a_hidden_fault_of_the_machine(pools: Pools, made_of_it: object) -> None:
    """An objective that catches everything cannot turn a lost attempt into a result, or a fault of its own."""
    pool = pools.pool()
    begun = threading.Event()

    def task(work: WorkDir) -> float:
        try:
            work.run("echo begun; sleep 600", on_line=lambda _: begun.set())
        except Exception:  # noqa: BLE001 - as a careless objective does
            if isinstance(made_of_it, Exception):
                raise made_of_it from None
            return 1.0
        return 0.0

    future = pool.submit(0, 1, pool.place(), task)
    assert begun.wait(DEADLINE)
    pool.stop()
    with pytest.raises(AttemptLost):
        future.result(60)


def test_all_cores_by_default(pools: Pools) -> None:
    """Without a word about cores a trial has the whole cluster, so one runs at a time."""
    pool = pools.pool(trial_cores=None)
    assert pool.capacity == 1
    assert pool.submit(0, 1, pool.place(), lambda work: work.run("echo $TRIAL_CORES").output).result(60) == "2\n"


def test_setup_once_a_lease(pools: Pools) -> None:
    """The setup runs before the first trial and once on a lease, however often a study starts on it."""
    (pools.folder / "solver").mkdir()
    (pools.folder / "solver" / "tool.sh").write_text("echo from the setup")
    lease = pools.lease(Setup(("solver/",), "echo x >> counter", pools.folder))
    told = []
    for attempt in (1, 2):
        pool = pools.pool(lease)
        told.append(
            pool.submit(
                0, attempt, pool.place(), lambda work: work.run("sh $SETUP_DIR/tool.sh; cat $SETUP_DIR/counter").output
            )
        )
        told[-1].result(60)
        pool.close()
    assert [future.result().splitlines() for future in told] == [["from the setup", "x"]] * 2
    assert (pools.folder / "setup" / "command-1.log").exists()


def test_a_changed_setup_runs(pools: Pools) -> None:
    """Another setup on the same lease is another one: it runs, and trials see its folder."""
    lease = pools.lease(Setup((), "echo one > which", pools.folder))
    pools.pool(lease).close()
    lease.setup = Setup((), "echo two > which", pools.folder)
    pool = pools.pool(lease)
    assert pool.submit(0, 1, pool.place(), lambda work: work.run("cat $SETUP_DIR/which").output).result(60) == "two\n"


def test_a_setup_of_which_a_file_changed_runs(pools: Pools) -> None:
    """Content of a big file, and where a link leads, are part of what the setup is; the time of a file is not."""
    tools = pools.folder / "tools"
    tools.mkdir()
    (tools / "solver").write_bytes(b"a" * (1 << 20))
    (tools / "other").write_text("b")
    (tools / "link").symlink_to("solver")
    lease = pools.lease(Setup(("tools/",), "head -c 1 solver link > which", pools.folder))
    seen = []
    for attempt in range(1, 5):
        pool = pools.pool(lease)
        told = pool.submit(
            0, attempt, pool.place(), lambda work: work.run("basename $SETUP_DIR; tail -c 1 $SETUP_DIR/which").output
        )
        seen.append(tuple(told.result(60).splitlines()))
        pool.close()
        if attempt == 1:
            (tools / "solver").touch()
        elif attempt == 2:
            (tools / "solver").write_bytes(b"c" * (1 << 20))
        else:
            (tools / "link").unlink()
            (tools / "link").symlink_to("other")
    assert [last for _, last in seen] == ["a", "a", "c", "b"]
    assert [seen[0] == seen[1], len({name for name, _ in seen})] == [True, 3]


def test_a_failed_setup(pools: Pools) -> None:
    """It says its command, its last lines and where the log is; the next start on the same cluster runs it again."""
    lease = pools.lease(Setup((), 'echo no such package; [ -e "$HOME/mended" ] || exit 9', pools.folder))
    with pytest.raises(
        SetupFailed, match=r"the setup: `[^`]*` ended with exit code 9 [\s\S]*no such package"
    ) as caught:
        pools.pool(lease)
    assert str(pools.folder / "setup") in caught.value.remedy
    assert lease.connection.run(f"ls -d work/study.1/{caught.value.directory}", hide=True).ok
    with pytest.raises(SetupFailed):
        pools.pool(lease)
    lease.connection.run("touch mended")
    pool = pools.pool(lease)
    assert (
        pool.submit(0, 1, pool.place(), lambda work: work.run("basename $SETUP_DIR").output)
        .result(60)
        .startswith("setup-")
    )


def test_a_setup_that_was_killed(pools: Pools) -> None:
    """It says nothing of the setup: the next start on the same cluster runs it again."""
    lease = pools.lease(
        Setup((), '[ -e "$HOME/again" ] || { touch "$HOME/again"; kill -9 $PPID; sleep 600; }', pools.folder)
    )
    with pytest.raises(AttemptLost, match="the setup was lost"):
        pools.pool(lease)
    assert pools.pool(lease).capacity == 2


def test_stop(pools: Pools) -> None:
    """Stopping ends every running trial with its processes; their attempts count as lost."""
    pool = pools.pool()
    started = threading.Barrier(3)
    word = f"word-{secrets.token_hex(8)}"

    def task(work: WorkDir) -> None:
        work.run(f"echo {word}; sleep 600", on_line=lambda _: started.wait(DEADLINE))

    futures = [pool.submit(number, 1, pool.place(), task) for number in range(2)]
    started.wait(DEADLINE)
    pool.stop()
    for future in futures:
        with pytest.raises(AttemptLost, match="was stopped"):
            future.result(60)
    told = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in told if word.encode() in line]


def test_close_with_running_trials(pools: Pools) -> None:
    """Closing leaves no thread behind; what waited learns that the link is gone."""
    pool = pools.pool()
    begun = threading.Event()
    future = pool.submit(
        0, 1, pool.place(), lambda work: work.run("echo begun; sleep 600", on_line=lambda _: begun.set())
    )
    assert begun.wait(DEADLINE)
    pool.close()
    with pytest.raises(ConnectionLost, match="the link was closed"):
        future.result(0)
    assert not [thread for thread in threading.enumerate() if thread.name == "trial 0"]


def test_the_objectives_own_exception(pools: Pools) -> None:
    """What an objective raises comes out of its future as it is."""
    pool = pools.pool()

    def task(work: WorkDir) -> None:
        raise ZeroDivisionError(work.attempt)

    with pytest.raises(ZeroDivisionError, match=r"00004\.2"):
        pool.submit(4, 2, pool.place(), task).result(60)


@pytest.mark.parametrize(("what", "error"), [("preempt", LeaseLost), ("stop", JobStopped)])
def test_the_cluster_is_gone(what: str, error: type[Exception], pools: Pools) -> None:
    """When the job ends under running trials, they hear it as the loss of the lease, or that somebody stopped it."""
    lease = pools.lease()
    pool = pools.pool(lease)
    begun = threading.Event()
    future = pool.submit(
        0, 1, pool.place(), lambda work: work.run("echo begun; sleep 600", on_line=lambda _: begun.set())
    )
    assert begun.wait(DEADLINE)
    pools.rescale.faults.order({"what": what, "job": lease.job_id})
    with pytest.raises(error, match=lease.job_id):
        future.result(60)


def test_a_renewed_pool_is_on_other_machines_and_set_up_anew(pools: Pools) -> None:
    """The next cluster is another place with a setup of its own; the former one is stopped first."""
    lease = pools.lease(Setup((), "echo x$SETUP_DIR >> counter", pools.folder))  # which knows no earlier setup
    pool = pools.pool(lease)
    before, job_id = pool.place(), lease.job_id

    def counted(work: WorkDir) -> str:
        return work.run("cat $SETUP_DIR/counter; pwd").output

    first = pool.submit(0, 1, pool.place(), counted).result(60)
    pool.renew(1, 0.0)
    pool.open()

    assert pools.platform.state(job_id).stopped
    assert pool.place() != before
    assert lease.name in pool.place()
    assert pool.submit(0, 2, pool.place(), counted).result(60).splitlines()[0] == "x" == first.splitlines()[0]
    assert 0 < pool.seconds_left <= 3600


def test_a_renewal_that_a_trial_could_not_use_leases_nothing(pools: Pools) -> None:
    """What max_cost leaves is less than a trial takes: no cluster is started for it."""
    lease = pools.lease(budget=Budget(max_time=timedelta(hours=2)))
    pool = pools.pool(lease)
    with pytest.raises(BudgetSpent, match="Too little is left for another cluster by max_time = 2h"):
        pool.renew(1, 24 * 3600.0)
    assert [entry.state for entry in Ledger(pools.folder / "ledger").entries()] == ["closed"]
