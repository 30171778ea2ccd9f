"""The Python API on the local platform, as the README shows it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading

import optuna
import pytest

from persistent_runner import BudgetSpent, ConfigError, LeaseLost, RunnerError, lease, optimize, run_study, trials_table
from persistent_runner.study import results
from persistent_runner.study.storage import quiet_optuna
from tests.driving import HOSTILE, Place, unfinished_jobs, until
from tests.remote.conftest import processes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A machine of one's own for this module; its platform ends with it."""
    place = Place(tmp_path_factory.mktemp("api") / HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place.home))
        patch.setenv("XDG_STATE_HOME", str(place.state_home))
        quiet_optuna()
        with place.platform():
            yield place
    until(lambda: not place.platform_address.exists(), "the end of the platform")


@pytest.fixture
def place(home, monkeypatch):
    monkeypatch.chdir(home.folder)
    with home.platform() as platform:
        yield home
        assert unfinished_jobs(platform) == []


def a_lease(name: str = "beam", **changes):
    return lease(name, **({"core_type": "emerald", "cores": 2, "walltime": "8h"} | changes))


def objective(trial: optuna.Trial, work) -> float:
    assert work.connection.is_connected
    work.push("case", height=trial.suggest_float("height", 0.02, 0.2))
    work.run("cp deck.inp out.txt; echo done", timeout="20m")
    return float(work.pull("out.txt").read_text())


def test_lease_optimize_and_table(place) -> None:
    """The README's example: a Fabric connection by hand, a study, twenty more of it, the table."""
    (place.folder / "case").mkdir(exist_ok=True)
    (place.folder / "case/deck.inp.j2").write_text("@{ height }@\n")
    study = optuna.create_study(study_name="beam v2", storage="sqlite:///beam.db", load_if_exists=True)
    with a_lease() as cluster:
        assert cluster.connection.run("nproc", hide=True).stdout.strip().isdigit()
        assert (cluster.head_node.address, len(cluster.nodes)) == ("127.0.0.1", 1)
        optimize(study, objective, cluster, n_trials=2, trial_cores=1)
        optimize(study, objective, cluster, n_trials=1, trial_cores=1)
        optimize(study, objective, cluster, total_trials=3)
    table = trials_table(study)

    assert list(table["state"]) == ["COMPLETE"] * 3
    assert list(table["value"]) == list(table["params_height"])
    runs = place.runs / "beam-v2"
    assert (runs / "trials.csv").exists()
    assert (runs / "trials/00002/out.txt").exists()
    assert cluster.state.stopped


def test_the_table_is_written_while_the_study_runs(place, monkeypatch) -> None:
    """Each trial finds the one before it in `trials.csv`, and waits for it there."""
    monkeypatch.setattr(results, "TABLE_SECONDS", 0.0)
    monkeypatch.setattr(results, "_SHARE", 1.0)  # the first one may load pandas
    table = place.runs / "watched/trials.csv"

    def complete() -> int:
        return table.read_text().count("COMPLETE") if table.exists() else 0

    def watching(trial: optuna.Trial, _: object) -> float:
        until(lambda: complete() == trial.number, "the table")
        return float(trial.number)

    study = optuna.create_study(study_name="watched")
    with a_lease() as cluster:
        optimize(study, watching, cluster, n_trials=3, trial_cores=2)
    assert complete() == 3


def test_a_pruned_trials_processes_are_gone_before_its_cores_are_used_again(place) -> None:
    """A callback that sees a line may prune: the trial is told PRUNED, its log is here, its process tree is gone."""
    mark = f"pr-pruned-{secrets.token_hex(8)}"
    left = []

    def on_line(line: str) -> None:
        if line == "diverges":
            raise optuna.TrialPruned(line)

    def watched(trial: optuna.Trial, work) -> float:
        if trial.number == 0:
            work.run(
                f"export MARK={mark}; setsid sleep 600 & (sleep 600 & sleep 600) & echo diverges; wait", on_line=on_line
            )
        left.append(processes(mark))
        return float(trial.number)

    study = optuna.create_study(study_name="pruned")
    with a_lease() as cluster:
        optimize(study, watched, cluster, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"]
    assert left == [set()]
    assert (place.runs / "pruned/trials/00000/command-1.log").read_text().startswith("diverges\n")


def test_a_lease_can_be_held_by_hand(place) -> None:
    """Acquire and release, for a notebook; the second release does nothing; afterwards there is no connection."""
    cluster = a_lease(setup_command="echo prepared > ready.txt")
    cluster.acquire()
    study = optuna.create_study(study_name="by hand")
    optimize(
        study,
        lambda _trial, work: float(work.run('cat "$SETUP_DIR/ready.txt"').output == "prepared\n"),
        cluster,
        total_trials=1,
    )
    cluster.release()
    cluster.release(force=True)

    assert study.best_value == 1.0
    with pytest.raises(LeaseLost):
        cluster.connect()


@pytest.mark.parametrize(
    "ending",
    ["os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGHUP)", "sys.exit(0)", "forgotten = 1"],
)
def test_a_script_that_ends_takes_its_cluster_along(place, ending) -> None:
    """SIGTERM, SIGHUP, and an end without release(): a lease held by hand is released before the process is gone."""
    script = (
        "import os, signal, sys, time\n"
        "from persistent_runner import lease\n"
        "cluster = lease('held', core_type='emerald', cores=2, walltime='8h')\n"
        "cluster.acquire()\n"
        f"{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ledger = [json.loads(path.read_text()) for path in (place.state / "ledger").glob("persistent_runner-held-*.json")]
    assert {entry["state"] for entry in ledger} == {"closed"}, done.stderr


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_what_an_objective_raises_reaches_the_caller_and_the_cluster_goes(place, kind) -> None:
    """A bug, or a KeyboardInterrupt of the objective's own, leaves the with statement; the job is stopped."""
    study = optuna.create_study(study_name="bug")

    def broken(_trial, _work) -> float:
        raise kind("mine")

    with pytest.raises(kind, match="mine"), a_lease() as cluster:
        optimize(study, broken, cluster, n_trials=1)
    assert cluster.state.stopped
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_catch_lets_a_study_go_on(place) -> None:
    """catch= is Optuna's: such a trial fails, and the next one runs."""
    study = optuna.create_study(study_name="catch")

    def sometimes(trial, _work) -> float:
        if trial.number == 0:
            raise ValueError("no mesh")
        return 1.0

    with a_lease() as cluster:
        optimize(study, sometimes, cluster, n_trials=2, catch=(ValueError,))
    assert list(trials_table(study)["failure"]) == ["ValueError: no mesh", ""]


def test_wrong_arguments_are_named_before_anything_is_leased(place) -> None:
    """A core type, a core count or a duration that does not exist, and n_trials with total_trials."""
    with pytest.raises(ConfigError, match="emerald"):
        a_lease(core_type="emerld")
    with pytest.raises(ConfigError, match="cores"):
        a_lease(cores=3)
    with pytest.raises(ConfigError, match="20m"):
        a_lease(walltime="eight")
    with pytest.raises(ConfigError, match="economy"):
        a_lease(priority="cheap")
    study = optuna.create_study()
    for arguments in ({}, {"n_trials": 1, "total_trials": 1}):
        with pytest.raises(ConfigError, match="n_trials or total_trials"):
            optimize(study, objective, a_lease(), **arguments)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keeper": False}, 'write host_key="accept-unverified" as well'),
        ({"host_key": "any"}, 'host_key is "any"; write "proven" or "accept-unverified"'),
        ({"orphan_idle": "10s"}, "could end under its driver"),
        ({"keep": "soon"}, "20m"),
        ({"max_queue": "2"}, "20m"),
    ],
    ids=["bare", "host key", "limit", "keep", "queue"],
)
def test_a_lease_that_would_be_unsafe_is_refused_before_anything_is_leased(place, changes, said) -> None:
    """A switch left out without a word, a limit below the beat, a duration that is none."""
    with pytest.raises(ConfigError) as caught:
        a_lease(**changes)
    assert said in str(caught.value)


def test_a_budget_of_a_lease_by_hand_is_its_own(place) -> None:
    """max_cost bounds what the cluster may cost in all, and nothing is leased where it leaves nothing."""
    with pytest.raises(BudgetSpent, match="by max_cost"):
        a_lease(max_cost=1e-6).acquire()
    with a_lease(max_cost=0.5) as cluster:
        assert cluster.price is not None
        assert cluster.left.total_seconds() <= 0.5 / cluster.price * 3600


def test_optimize_goes_on_with_another_cluster(place) -> None:
    """The machines are gone in the middle of a trial: the same trial again on the next job, and one value is told."""
    study, jobs = optuna.create_study(study_name="preempted"), []

    def objective(_trial, work) -> float:
        jobs.append(cluster.job_id)
        if len(jobs) == 1:
            place.fault("preempt", job=cluster.job_id)
            work.run("sleep 600")
        return float(work.run("echo 1.5").output)

    with a_lease("preempted") as cluster:
        optimize(study, objective, cluster, n_trials=1)
        assert cluster.connection.run("echo here", hide=True).stdout == "here\n"
    assert len(set(jobs)) == 2
    assert [trial.value for trial in study.trials] == [1.5]
    assert list(trials_table(study)["attempts"]) == [2]
    assert cluster.cost.seconds > cluster.age.total_seconds()  # of both jobs


def test_a_kept_lease_is_gone_on_with_by_another_script(place, monkeypatch) -> None:
    """`keep` leaves the cluster where the block ends well; who asks for the same finds it, with its files."""
    for name in ("KEEPER_TICK", "BEAT"):
        monkeypatch.setenv(f"PERSISTENT_RUNNER_{name}", "0.2s")
    with a_lease("first", keep="5m") as first:
        first.connection.run("echo mine > left.txt", hide=True)
    with a_lease("second") as second:
        assert second.is_attached
        assert second.job_id == first.job_id
        assert second.connection.run("cat left.txt", hide=True).stdout == "mine\n"
        assert second.cost.seconds < first.cost.seconds + second.age.total_seconds()
    assert second.state.stopped
    with pytest.raises(ZeroDivisionError), a_lease("third", keep="5m") as third:
        1 / 0  # noqa: B018
    assert third.state.stopped


def test_the_cluster_of_a_killed_script_is_gone_on_with(place, monkeypatch) -> None:
    """The same script again finds the cluster that its killed predecessor had."""
    for name in ("KEEPER_TICK", "BEAT"):
        monkeypatch.setenv(f"PERSISTENT_RUNNER_{name}", "0.2s")
    script = (
        "import os, signal\n"
        "from persistent_runner import lease\n"
        "cluster = lease('killed', core_type='emerald', cores=2, walltime='8h')\n"
        "cluster.acquire()\n"
        "print(cluster.job_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    quick = {"PERSISTENT_RUNNER_KEEPER_TICK": "0.2s", "PERSISTENT_RUNNER_BEAT": "0.2s"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=place.folder,
        env=place.environment | quick,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    with a_lease("killed") as cluster:
        assert cluster.is_attached
        assert cluster.job_id == done.stdout.strip()


def test_studies_of_one_name_keep_their_results_apart(place) -> None:
    """A second study in memory, and a study.toml, do not write over what an earlier study of that name has left."""

    def first(_trial, work) -> float:
        work.run("echo first > out.txt")
        return float(work.pull("out.txt").stat().st_size)

    def second(_trial, work) -> float:
        work.run("echo the second > out.txt")
        return float(work.pull("out.txt").stat().st_size)

    studies = [optuna.create_study(study_name="twice") for _ in range(2)]
    with a_lease() as cluster:
        optimize(studies[0], first, cluster, n_trials=1)
        optimize(studies[1], second, cluster, n_trials=1)
        optimize(studies[0], first, cluster, n_trials=1)
    assert (place.runs / "twice/trials/00000/out.txt").read_text() == "first\n"
    assert (place.runs / "twice/trials/00001/out.txt").read_text() == "first\n"
    assert (place.runs / "twice-2/trials/00000/out.txt").read_text() == "the second\n"

    with pytest.raises(ConfigError, match="Python study of the same name"):
        run_study(place.study(name="twice"), runs_dir=place.runs)


def test_sys_exit_in_an_objective_is_a_failure(place) -> None:
    """An objective that ends the interpreter does not end the study as if all were well."""
    study = optuna.create_study(study_name="exits")
    with pytest.raises(RunnerError, match=r"sys.exit\(0\)"), a_lease() as cluster:
        optimize(study, lambda _trial, _work: sys.exit(0), cluster, n_trials=1)


@pytest.mark.parametrize("signals", [["SIGTERM", "SIGHUP", "SIGTERM"], ["SIGTERM", "SIGINT"]])
def test_a_script_that_is_told_to_end_more_than_once_releases(place, signals) -> None:
    """A closing terminal sends several: the first ends the block, the others do not cut its release off (row D3)."""
    place.fault("dropped", endpoints=["stop_job"], times=2)
    script = "from persistent_runner import lease\nimport time\n"
    script += "with lease('told', core_type='emerald', cores=2, walltime='8h') as cluster:\n"
    script += "    print('held', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(getattr(signal, signals[0]))
        said = ""
        while "asking for its stop" not in said:
            said += process.stderr.readline()
        for name in signals[1:]:
            process.send_signal(getattr(signal, name))
        said += process.stderr.read()
        assert process.wait(60) != 0
    assert "is released: " in said
    assert "The release goes on" in said


def test_an_interrupt_in_the_queue_of_a_renewal_ends_optimize(place) -> None:
    """Ctrl-C in a notebook while another cluster is waited for: the queue is left, and the lease can be released."""
    study = optuna.create_study(study_name="waits in the queue")

    def objective(_trial, work) -> float:
        place.fault("duration", status="queued", seconds=3600)
        place.fault("preempt", job=cluster.job_id)
        work.run("sleep 600")
        return 1.0

    def press() -> None:
        until(lambda: cluster.state.status == "Queued", "the second job in the queue")
        os.kill(os.getpid(), signal.SIGINT)

    with a_lease("queued") as cluster:
        first = cluster.job_id
        finger = threading.Thread(target=press)
        finger.start()
        with pytest.raises(KeyboardInterrupt):
            optimize(study, objective, cluster, n_trials=1)
        finger.join()
        assert cluster.job_id != first
        assert not cluster.interrupted.is_set()
        place.withdraw_faults()
    assert cluster.state.stopped
