"""`leasing.py`: leases as scripts and studies ask for them, on the local platform, with drivers that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner import ConfigError, RunnerError, lease
from persistent_runner.errors import BudgetSpent
from persistent_runner.interrupts import Interrupts
from persistent_runner.leasing import settle_unneeded
from persistent_runner.local_platform.attach import ensure_process
from persistent_runner.settings import load_settings
from tests.driving import HOSTILE, Place, unfinished_jobs, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner import ClusterLease
    from persistent_runner.local_platform.attach import Attachment

SHORT_TICKS = {"PERSISTENT_RUNNER_KEEPER_TICK": "0.1s", "PERSISTENT_RUNNER_BEAT": "0.2s"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A machine of one's own for this module; its platform ends with it."""
    place = Place(tmp_path_factory.mktemp("leasing") / HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HOME": str(place.home), "XDG_STATE_HOME": str(place.state_home), **SHORT_TICKS}.items():
            patch.setenv(name, value)
        with place.platform():
            yield place
    until(lambda: not place.platform_address.exists(), "the end of the platform")


@pytest.fixture
def place(home: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Work in that machine's folder; nothing may run on after a test."""
    monkeypatch.chdir(home.folder)
    with home.platform() as platform:
        yield home
        until(lambda: unfinished_jobs(platform) == [], "the end of every job")


def a_lease(name: str, **changes: Any) -> ClusterLease:
    """Return a small lease."""
    return lease(name, **({"core_type": "emerald", "cores": 2, "walltime": "8h"} | changes))


def killed(place: Place, name: str, **arguments: Any) -> str:
    """Lease a cluster in a process that is killed while it holds it; return the job's id."""
    script = (
        "import os, signal\n"
        "from persistent_runner import lease\n"
        f"cluster = lease({name!r}, core_type='emerald', cores=2, walltime='8h', **{arguments!r})\n"
        "cluster.acquire()\n"
        "print(cluster.job_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=place.folder,
        env=place.environment | SHORT_TICKS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def records(place: Place, name: str) -> list[dict[str, Any]]:
    """Return the ledger's records of one study."""
    paths = sorted((place.state / "ledger").glob(f"persistent_runner-{name}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def attachment(place: Place) -> Attachment:
    """Return a hold on the place's platform, to be closed."""
    return ensure_process(place.state)


def test_a_script_goes_on_with_the_cluster_of_one_that_was_killed(place: Place) -> None:
    """The same job for the same run folder; when the block ends it is released as any other (row L2)."""
    job_id = killed(place, "crashed")
    with a_lease("crashed") as cluster:
        assert cluster.is_attached
        assert cluster.job_id == job_id
        assert cluster.connection.run("echo $((6*7))", hide=True).stdout.strip() == "42"
    (record,) = records(place, "crashed")
    assert record["state"] == "closed"


def test_another_study_leaves_it_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It gets a cluster of its own; the orphan is named, and ends by itself when nobody comes back."""
    job_id = killed(place, "left", orphan_idle="15s")
    with a_lease("another") as cluster, attachment(place) as platform:
        assert not cluster.is_attached
        assert cluster.job_id != job_id
        assert f"Job {job_id} of an earlier start (left) still runs" in caplog.text
        until(lambda: unfinished_jobs(platform) == [cluster.job_id], "the orphan's own end")


def test_a_kept_cluster_goes_to_the_next_script(place: Place) -> None:
    """`keep`: the block's end leaves it, another study with the same request gets it, without a second job."""
    with a_lease("first", keep="10m") as first:
        assert first.hold.learn_age()
    (record,) = records(place, "first")
    assert (record["state"], record["kept_seconds"]) == ("kept", 600)
    with a_lease("second") as second:
        assert second.is_attached
        assert second.job_id == first.job_id
    assert records(place, "second") == []
    (record,) = records(place, "first")
    assert (record["state"], record["study"]) == ("closed", "second")


def test_a_study_keeps_its_cluster_for_the_next_one(place: Place) -> None:
    """`run-study --keep`: said with how to end it; another study goes on with the same job and releases it."""
    driver = place.run(place.study(name="one"), "--keep", "10m", **SHORT_TICKS)
    (record,) = records(place, "one")
    job_id = record["job_id"]
    assert record["state"] == "kept"
    assert f"Job {job_id} is kept for 10m and costs money until then; persistent-runner stop {job_id}" in driver.said
    following = place.run(place.study(name="two", folder="two"), **SHORT_TICKS)
    assert f"Going on with job {job_id}" in following.said
    assert len(place.rows("one")) == len(place.rows("two")) == 3
    assert records(place, "two") == []
    assert {record["state"] for record in records(place, "one")} == {"closed"}


@pytest.mark.parametrize("limits", [{"study.max_cost": 0.01}, {"study.max_time": "'1m'"}, {"trial.timeout": "'30h'"}])
def test_a_kept_cluster_of_another_size_of_money_or_time_is_left(limits: dict[str, object], place: Place) -> None:
    """A study that may spend less than the switch would let it, or needs more, leases its own; the other stays kept."""
    name = f"kept-{next(iter(limits)).replace('.', '-')}"
    place.run(place.study(name=name), "--keep", "10m", **SHORT_TICKS)
    ((key, value),) = limits.items()
    following = place.run(place.study(name=f"after-{name}", folder="two"), "--set", f"{key}={value}", **SHORT_TICKS)
    assert "Going on with job" not in following.said
    (record,) = records(place, name)
    assert record["state"] == "kept"
    assert place.start("stop", record["job_id"], "--yes", program="persistent-runner").end() == 0


def test_a_block_that_fails_keeps_nothing(place: Place) -> None:
    """A cluster is left only where all went well."""
    with pytest.raises(ZeroDivisionError), a_lease("failing", keep="10m"):
        raise ZeroDivisionError
    (record,) = records(place, "failing")
    assert record["state"] == "closed"


def test_a_budget_that_is_too_small_leases_nothing(place: Place) -> None:
    """`max_cost` of a script; nothing is created."""
    with pytest.raises(BudgetSpent, match="by max_cost"):
        a_lease("poor", max_cost=0.000001).acquire()
    assert records(place, "poor") == []


def test_a_bare_lease(place: Place) -> None:
    """`keeper=False` with the host accepted unverified: a bare `sleep inf`, and the record says that nothing proves."""
    with a_lease("bare", keeper=False, host_key="accept-unverified") as cluster:
        (record,) = records(place, "bare")
        assert record["switch"] is None
        assert record["unverified"]
        assert cluster.hold.request.command.endswith("exec sleep inf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host_key": "any"}, "proven"),
        ({"keeper": False}, "accept-unverified"),
        ({"orphan_idle": "0.1s"}, "orphan_idle"),
        ({"keep": "soon"}, "lease: "),
        ({"max_queue": "never"}, "lease: "),
        ({"name": "a b"}, "cannot name a lease"),
        ({"cores": "many"}, "cores"),
        ({"software": [{"analysis": "x"}]}, "version"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_wrong_arguments_lease_nothing(changes: dict[str, Any], said: str, place: Place) -> None:
    """Each is named before anything is asked for."""
    arguments = {"name": "wrong", **changes}
    with pytest.raises(ConfigError, match=said):
        a_lease(arguments.pop("name"), **arguments)
    assert records(place, "wrong") == []


def test_a_study_with_nothing_to_run_ends_what_its_crashed_start_left(place: Place) -> None:
    """All trials are settled: the cluster that a killed start of the same run folder left is ended, not kept."""
    study = place.study(name="done")
    place.run(study)
    job_id = killed(place, "done")
    with attachment(place) as platform:
        assert unfinished_jobs(platform) == [job_id]
        driver = place.run(study)
        assert "Nothing to run" in driver.said
        assert unfinished_jobs(platform) == []
    assert {record["state"] for record in records(place, "done")} == {"closed"}


def test_a_study_goes_on_with_its_crashed_starts_cluster(place: Place) -> None:
    """`run-study` after a kill: the same job, and the money it took counts once."""
    job_id = killed(place, "again", env={"PR_TEST_MARK": place.mark})
    driver = place.run(place.study(name="again"), **SHORT_TICKS)
    assert f"Going on with job {job_id}" in driver.said
    assert len(place.rows("again")) == 3
    (record,) = records(place, "again")
    assert record["state"] == "closed"
    lines = [json.loads(line) for line in (place.runs / "again/journal.jsonl").read_text().splitlines()]
    leases = [(line["name"], line["final"]) for line in lines if line.get("kind") == "lease"]
    assert leases == [(record["name"], False), (record["name"], True)]


def test_an_unneeded_look_starts_no_platform(place: Place) -> None:
    """Where no start of this folder left anything, nobody is asked."""

    class Folder:
        path = place.runs / "nothing"

    settle_unneeded(load_settings(profile="nobody"), Folder, Interrupts())  # type: ignore[arg-type]
    killed(place, "something")
    Folder.path = place.runs / "something"
    with pytest.raises(RunnerError):
        settle_unneeded(load_settings(profile="nobody"), Folder, Interrupts())  # type: ignore[arg-type]
    with a_lease("something") as cluster:
        assert cluster.is_attached
