"""`lease/manager.py`: a cluster is held from create to Stopped, on the local platform over HTTP and SSH."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import (
    ConfigError,
    ConnectionLost,
    LeaseLost,
    NoCapacity,
    PlatformRefused,
    PlatformUnavailable,
    ReleaseUnconfirmed,
    RunnerError,
)
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import lease_name
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.recovery import Backoff
from persistent_runner.rescale.api import Endpoints
from persistent_runner.rescale.client import RescalePlatform

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.lease.platform import LeaseRequest, LeaseState, SavedJob

    from .conftest import Leases

AWAY = PlatformUnavailable("the answer was lost")
SHORT = timedelta(seconds=0.3)


def platform_of(leases: Leases, kind: type[RescalePlatform] = RescalePlatform) -> Any:
    """Return a client of the same platform that behaves as `kind` does."""
    return kind(leases.rescale.base_url, leases.rescale.api_key, backoff=Backoff(first=0.01, total=0))


def test_a_cluster_is_acquired_used_and_released(leases: Leases) -> None:
    """EXECUTING is reached, the head node answers over SSH, `Stopped` is read, and the record says so."""
    quote = leases.platform.quote(leases.request())
    setup = Setup(inputs=("solver/",), command="true", folder=leases.ledger.directory)
    lease = leases.make(quote=quote, setup=setup)
    with lease as held:
        assert held is lease
        assert lease.state.executing
        assert lease.nodes == lease.cluster.nodes == (lease.head_node,)
        assert lease.cluster.generation == 0
        assert lease.connection.run("echo $((6*7))", hide=True, in_stream=False).stdout.strip() == "42"
        assert lease.acquire() is lease.cluster
        assert lease.connect() is lease.connection
        (entry,) = leases.ledger.entries()
        assert (entry.state, entry.job_id, entry.name) == ("submitted", lease.job_id, lease.request.name)
        assert (lease.price, lease.cores_per_node, lease.setup) == (quote.price_per_hour, 2, setup)
        assert lease.age > timedelta(0)
        assert leases.cluster_of(lease) == "running"
        connection = lease.connection
    assert lease.state.stopped
    assert leases.cluster_of(lease) == "stopped"
    assert not connection.is_connected
    assert leases.ledger.entries()[0].state == "closed"
    assert leases.released == 1
    assert lease.cost is not None
    assert lease.price is not None
    assert lease.age == lease.age  # it stands still
    assert lease.cost == pytest.approx(lease.price * lease.age.total_seconds() / 3600)


def test_releasing_twice_does_nothing_more(leases: Leases) -> None:
    """Every way out may release; the second time is free, and an ended lease is not acquired again."""
    lease = leases.make()
    lease.release()
    assert leases.released == 0
    lease.acquire()
    lease.release()
    lease.release(force=True)
    assert leases.released == 1
    with pytest.raises(RunnerError, match="has ended"):
        lease.acquire()
    with pytest.raises(LeaseLost, match="not held any more"):
        lease.connect()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)])
def test_every_way_out_releases(error: BaseException, leases: Leases) -> None:
    """An error of the user's own code, an interrupt and an exit all end with the cluster gone."""
    lease = leases.make()
    with pytest.raises(type(error)), lease:
        raise error
    assert leases.cluster_of(lease) == "stopped"


def test_nothing_is_there_before_acquire(leases: Leases) -> None:
    """Asking for the head node of a lease that is not held says what to do."""
    lease = leases.make()
    for name in ("cluster", "nodes", "head_node", "connection"):
        with pytest.raises(RunnerError, match="with statement"):
            getattr(lease, name)
    assert (lease.price, lease.cost, lease.age) == (None, None, timedelta(0))


def test_a_forced_stop_follows_the_graceful_one(leases: Leases) -> None:
    """`--force-stop` asks for both, in this order, and still reads `Stopped`."""
    lease = leases.make(request=leases.request(command="trap '' TERM; sleep 3600 & wait; sleep 3600"))
    lease.acquire()
    lease.release(force=True)
    statuses = [row.status for row in leases.platform._http.call(Endpoints.statuses, job_id=lease.job_id)]
    assert "Force Stop" in statuses
    assert leases.cluster_of(lease) == "stopped"


def test_a_job_that_ends_before_it_can_be_used(leases: Leases) -> None:
    """The platform's reason and the last lines of the log end the wait; nothing polls for ever."""

    class SeesOnlyTheEnd(RescalePlatform):
        def state(self, job_id: str) -> LeaseState:
            while not (state := super().state(job_id)).stopped:
                threading.Event().wait(0.02)
            return state

    lease = leases.make(
        platform=platform_of(leases, SeesOnlyTheEnd), request=leases.request(command="echo no licence; exit 3")
    )
    with pytest.raises(NoCapacity, match=r"(?s)A run failed.*no licence.*Exited with code 3") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert leases.ledger.entries()[0].state == "closed"


def test_a_difference_refuses_and_nothing_is_submitted(leases: Leases) -> None:
    """A job that was saved otherwise than asked is deleted before it costs anything."""
    submitted: list[str] = []

    class SavesSomethingElse(RescalePlatform):
        def create(self, request: LeaseRequest) -> SavedJob:
            saved = super().create(request)
            return dataclasses.replace(saved, differs=("walltime: asked 2, saved 48", "cores: asked 2, saved 72"))

        def submit(self, job_id: str) -> None:
            submitted.append(job_id)

    lease = leases.make(platform=platform_of(leases, SavesSomethingElse), max_queue=SHORT)
    with pytest.raises(PlatformRefused, match=r"(?s)asked 2, saved 48.*asked 2, saved 72"):
        lease.acquire()
    assert submitted == []
    assert leases.cluster_of(lease) == "gone"
    assert leases.ledger.entries()[0].state == "closed"


def test_what_is_not_echoed_is_a_warning(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """A platform that does not show a field is used all the same, and the user is told which field."""

    class IsSilent(RescalePlatform):
        def create(self, request: LeaseRequest) -> SavedJob:
            return dataclasses.replace(super().create(request), not_echoed=("publicKey",))

    with caplog.at_level(logging.WARNING), leases.make(platform=platform_of(leases, IsSilent)):
        pass
    assert "did not show what it saved of publicKey" in caplog.text


def test_a_lost_answer_to_create_leaves_nothing(leases: Leases) -> None:
    """The saved job is found by its unique name and deleted; nothing is created twice."""
    created: list[str] = []

    class LosesTheAnswer(RescalePlatform):
        def create(self, request: LeaseRequest) -> SavedJob:
            created.append(super().create(request).job_id)
            raise AWAY

    lease = leases.make(platform=platform_of(leases, LosesTheAnswer))
    with pytest.raises(PlatformUnavailable):
        lease.acquire()
    assert len(created) == 1
    assert leases.cluster_of(lease) == "gone"


def test_a_saved_job_that_cannot_be_deleted_is_left_on_record(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """It costs nothing: the first fault is told, not this one; and the record does not say that it is gone."""

    class DeletesNothing(RescalePlatform):
        def create(self, request: LeaseRequest) -> SavedJob:
            return dataclasses.replace(super().create(request), differs=("cores: asked 2, saved 72",))

        def delete(self, job_id: str) -> None:
            raise AWAY

    lease = leases.make(platform=platform_of(leases, DeletesNothing), max_queue=SHORT)
    with pytest.raises(PlatformRefused, match="saved 72"):
        lease.acquire()
    leases.platform.delete(lease.job_id)
    assert "could not be deleted" in caplog.text
    assert leases.ledger.entries()[0].state == "saved"


def test_a_lost_answer_to_submit_is_looked_up(leases: Leases) -> None:
    """The job runs: the lease goes on with it, without a second submit."""
    calls: list[str] = []

    class LosesTheAnswer(RescalePlatform):
        def submit(self, job_id: str) -> None:
            calls.append(job_id)
            super().submit(job_id)
            raise AWAY

    with leases.make(platform=platform_of(leases, LosesTheAnswer)) as lease:
        assert lease.state.executing
    assert calls == [lease.job_id]


def test_a_submit_that_did_not_arrive_is_not_repeated(leases: Leases) -> None:
    """The job was never started: it is deleted and the fault is told."""

    class NeverArrives(RescalePlatform):
        def submit(self, job_id: str) -> None:
            raise AWAY

    lease = leases.make(platform=platform_of(leases, NeverArrives))
    with pytest.raises(PlatformUnavailable):
        lease.acquire()
    assert leases.cluster_of(lease) == "gone"


def test_a_queue_without_end_is_left_at_the_deadline(queued: Leases) -> None:
    """After max_queue the job is stopped, that is confirmed, and run-study ends with 5."""
    lease = queued.make(max_queue=SHORT)
    with pytest.raises(NoCapacity, match="did not start within") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert queued.cluster_of(lease) == "stopped"
    assert lease.age == timedelta(0)


def test_an_interrupt_in_the_queue_releases(queued: Leases) -> None:
    """The stop event ends the wait at once, and the job with it."""
    stop = threading.Event()

    class Watched(RescalePlatform):
        def state(self, job_id: str) -> LeaseState:
            state = super().state(job_id)
            if state.status == "Queued":
                stop.set()
            return state

    lease = queued.make(platform=platform_of(queued, Watched), stop=stop, poll=timedelta(seconds=0.05))
    with pytest.raises(KeyboardInterrupt):
        lease.acquire()
    assert queued.cluster_of(lease) == "stopped"
    assert queued.released == 1


def test_an_interrupt_before_the_submit_spends_nothing(leases: Leases) -> None:
    """A stop that is already set leaves no job."""
    stop = threading.Event()
    stop.set()
    lease = leases.make(stop=stop)
    with pytest.raises(KeyboardInterrupt):
        lease.acquire()
    assert leases.cluster_of(lease) == "gone"


def test_a_refused_connection_is_tried_again(leases: Leases) -> None:
    """SSH comes up some time after EXECUTING; the state is looked at between two tries."""
    tries: list[str] = []

    def connect(node: Any) -> Any:
        tries.append(str(node))
        if len(tries) < 3:
            raise ConnectionLost(f"{node}: refused")
        return leases.connect(node)

    with leases.make(connect=connect) as lease:
        assert lease.connection.is_connected
        assert len(tries) == 3


def test_a_closed_connection_is_opened_anew_by_connect(leases: Leases) -> None:
    """Whoever reconnects gets the new connection, and so does everybody who asks later."""
    with leases.make() as lease:
        first = lease.connection
        first.close()
        second = lease.connect()
        assert second is not first
        assert lease.connection is second
        assert second.run("true", hide=True, in_stream=False).ok


def test_a_job_that_ends_while_we_connect_is_lost(leases: Leases) -> None:
    """A node that refuses because its job has ended is not asked for ten minutes."""
    lease = leases.make()

    def connect(node: Any) -> Any:
        leases.platform.stop(lease.job_id)
        raise ConnectionLost(f"{node}: refused")

    lease._connect = connect
    with pytest.raises(LeaseLost, match="User Terminated"):
        lease.acquire()
    assert leases.cluster_of(lease) == "stopped"


def test_a_machine_that_moved_is_the_next_generation(leases: Leases) -> None:
    """A re-launch of the same job is read from the instances: new address, generation + 1."""
    platform = platform_of(leases)
    lease = leases.make(platform=platform)

    def connect(node: Any) -> Any:
        if lease.cluster.generation == 0:
            real = platform.nodes
            platform.nodes = lambda job_id: [dataclasses.replace(node, started="later") for node in real(job_id)]
            raise ConnectionLost(f"{node}: refused")
        return leases.connect(node)

    lease._connect = connect
    with lease:
        assert (lease.cluster.generation, lease.head_node.started) == (1, "later")


def test_no_address_within_the_deadline(leases: Leases) -> None:
    """A cluster that nobody can reach is given back."""

    class HasNoAddress(RescalePlatform):
        def nodes(self, job_id: str) -> list[Any]:
            return []

    lease = leases.make(platform=platform_of(leases, HasNoAddress), deadlines=Deadlines(nodes=SHORT))
    with pytest.raises(NoCapacity, match="no machine has an address"):
        lease.acquire()
    assert leases.cluster_of(lease) == "stopped"


def test_check_tells_a_lost_lease(leases: Leases) -> None:
    """A job that somebody else stopped is lost, with the platform's reason; releasing it is still fine."""
    with leases.make() as lease:
        assert lease.check().executing
        leases.platform.stop(lease.job_id)
        with pytest.raises(LeaseLost, match="User Terminated"):
            lease.check()
    assert lease.check().ended
    assert leases.cluster_of(lease) == "stopped"


def test_lost_answers_to_stop_are_repeated(leases: Leases) -> None:
    """Stop is idempotent: it is asked for until it is heard."""
    calls: list[str] = []

    class LosesSome(RescalePlatform):
        def stop(self, job_id: str, *, force: bool = False) -> None:
            calls.append(job_id)
            if len(calls) <= 2:
                raise AWAY
            super().stop(job_id, force=force)

    with leases.make(platform=platform_of(leases, LosesSome)) as lease:
        pass
    assert len(calls) == 3
    assert leases.cluster_of(lease) == "stopped"


def test_polls_without_an_answer_are_tolerated(leases: Leases) -> None:
    """A gateway's 504 neither ends the wait for the cluster nor the wait for Stopped."""

    class Blinks(RescalePlatform):
        asked = 0

        def state(self, job_id: str) -> LeaseState:
            self.asked += 1
            if self.asked % 2:
                raise AWAY
            return super().state(job_id)

    with leases.make(platform=platform_of(leases, Blinks)) as lease:
        assert lease.state.executing
    assert leases.cluster_of(lease) == "stopped"


def test_a_stop_that_hangs_is_forced(leases: Leases) -> None:
    """A stop without an effect is followed by a forced one, and the end is still confirmed."""
    calls: list[bool] = []

    class IgnoresAGracefulStop(RescalePlatform):
        def stop(self, job_id: str, *, force: bool = False) -> None:
            calls.append(force)
            if force:
                super().stop(job_id)

    deadlines = Deadlines(ending=SHORT)
    with leases.make(platform=platform_of(leases, IgnoresAGracefulStop), deadlines=deadlines) as lease:
        pass
    assert calls == [False, True]
    assert leases.cluster_of(lease) == "stopped"


@pytest.mark.parametrize("hang", ["never ending", "never stopped", "unreachable", "refused"])
def test_a_release_that_is_not_confirmed_says_what_may_run(hang: str, leases: Leases) -> None:
    """Job id, URL and the time of its own end are told, exit code 4; and a later release can still succeed."""

    class Hangs(RescalePlatform):
        broken = False

        def stop(self, job_id: str, *, force: bool = False) -> None:
            if not self.broken or hang == "never stopped":
                super().stop(job_id, force=force)

        def state(self, job_id: str) -> LeaseState:
            state = super().state(job_id)
            if not self.broken:
                return state
            if hang == "unreachable":
                raise AWAY
            if hang == "refused":
                raise PlatformRefused("the key was refused", status=401)
            return dataclasses.replace(state, stopped=False)

    platform = platform_of(leases, Hangs)
    deadlines = Deadlines(ending=SHORT, ended=SHORT, unreachable=SHORT)
    lease = leases.make(platform=platform, deadlines=deadlines)
    lease.acquire()
    platform.broken = True
    with pytest.raises(ReleaseUnconfirmed) as caught:
        lease.release()
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert lease.job_id in text
    assert f"{leases.rescale.base_url}/jobs/{lease.job_id}/" in text
    assert "by its walltime of 2h" in text
    assert leases.released == 0
    assert leases.ledger.entries()[0].state == "releasing"
    platform.broken = False
    lease.release()
    assert leases.cluster_of(lease) == "stopped"
    assert leases.released == 1


def test_leaving_during_the_release_says_what_may_run(leases: Leases) -> None:
    """The third interrupt leaves at once, and the message is the same as for a release that failed."""

    class IsInterrupted(RescalePlatform):
        broken = True

        def stop(self, job_id: str, *, force: bool = False) -> None:
            if self.broken:
                raise KeyboardInterrupt
            super().stop(job_id, force=force)

    platform = platform_of(leases, IsInterrupted)
    lease = leases.make(platform=platform)
    lease.acquire()
    with pytest.raises(ReleaseUnconfirmed, match="the release was interrupted"):
        lease.release()
    platform.broken = False
    lease.release()
    assert leases.cluster_of(lease) == "stopped"


def test_a_lease_that_cannot_be_recorded_is_not_begun(leases: Leases, tmp_path: Path) -> None:
    """Without its record a crash could leave a cluster that nobody knows."""
    (tmp_path / "a file").write_text("")
    lease = leases.make(ledger=Ledger(tmp_path / "a file"))
    with pytest.raises(RunnerError, match="could not be recorded"):
        lease.acquire()
    assert leases.cluster_of(lease) == "gone"


def test_a_record_that_fails_later_does_not_keep_the_cluster(leases: Leases) -> None:
    """A full disk at the end must not stand between us and the stop."""
    lease = leases.make()
    lease.acquire()
    for file in leases.ledger.directory.iterdir():
        file.unlink()
    leases.ledger.directory.rmdir()
    leases.ledger.directory.write_text("")
    lease.release()
    assert leases.cluster_of(lease) == "stopped"


def test_each_status_is_told_once(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """The log shows the way of the job without a line for every poll."""
    with caplog.at_level(logging.INFO, logger="persistent_runner.lease"), leases.make() as lease:
        pass
    told = [record.message.split(" (")[0] for record in caplog.records if record.name.endswith("progress")]
    assert f"Job {lease.job_id}: Executing" in told
    assert [line for line, following in itertools.pairwise(told) if line == following] == []


def test_names_are_unique_and_tell_whose_they_are() -> None:
    """The name finds the job again when every local record is lost."""
    names = {lease_name("wing") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("persistent_runner-wing-") for name in names)


@pytest.mark.parametrize("study", ["", "a b", "a\nb", "../x", "é", "x" * 81])
def test_a_name_that_cannot_be_a_jobs_is_refused(study: str) -> None:
    """The name stands in a command, in a file's name and in a search."""
    with pytest.raises(ConfigError, match="cannot name a lease"):
        lease_name(study)
