"""`lease/create.py` and the submit: one job and one cluster, whatever answers are lost."""

from __future__ import annotations

import dataclasses
import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.rescale.client import RescalePlatform

from .conftest import QUICK, SHORT

if TYPE_CHECKING:
    from persistent_runner.lease.platform import LeaseRequest, SavedJob

    from .conftest import Leases

AWAY = PlatformUnavailable("the answer was lost")
SOON = Deadlines(created=SHORT, connect=QUICK)


def created(leases: Leases) -> list[str]:
    """Return the ids of the jobs that were created, by the platform's own record."""
    return [line["job"] for line in leases.journal("created")]


def submitted(leases: Leases) -> list[str]:
    """Return the ids of the jobs that were submitted, by the platform's own record."""
    return [line["job"] for line in leases.journal("submitted")]


def test_a_lost_answer_to_create_is_found_by_the_name(local: Leases) -> None:
    """The saved job is found by its unique name and used; nothing is created twice (rows A8, L1)."""
    local.rescale.faults.add("lost", endpoints=["create_job"], times=1)
    with local.make() as lease:
        assert created(local) == submitted(local) == [lease.job_id]


def test_a_lost_answer_of_a_job_that_was_saved_otherwise(local: Leases) -> None:
    """A job that was found again is compared with what was asked before it is submitted, as any other."""
    local.rescale.faults.add("lost", endpoints=["create_job"], times=1)
    local.rescale.faults.add("saves", field="hardware.walltime", value=48)
    lease = local.make()
    with pytest.raises(PlatformRefused, match="walltime: asked 2, saved 48"):
        lease.acquire()
    assert submitted(local) == []
    assert local.jobs() == []


def test_of_several_jobs_that_lost_answers_left_one_is_submitted(local: Leases) -> None:
    """Saved jobs cost nothing: the others are deleted, and one cluster starts (row A8)."""

    class CreatesTwice(RescalePlatform):
        times = 0

        def create(self, request: LeaseRequest) -> SavedJob:
            self.times += 1
            super().create(request)
            super().create(request)
            raise AWAY

    platform = local.client(CreatesTwice)
    with local.make(platform=platform) as lease:
        assert platform.times == 1
        assert len(created(local)) == 2
        assert submitted(local) == local.jobs() == [lease.job_id]
        assert [line["job"] for line in local.journal("deleted")] == [
            id_ for id_ in created(local) if id_ != lease.job_id
        ]


def test_a_create_that_did_not_arrive_is_made_anew(local: Leases) -> None:
    """Not found within the deadline: created again with the same name, by which a late one would be found (row A8)."""
    local.rescale.faults.add("dropped", endpoints=["create_job"], times=1)
    with local.make(deadlines=SOON) as lease:
        (line,) = local.journal("created")
        assert line["name"] == lease.name == local.ledger.entries()[0].name


def test_a_job_that_appears_in_the_list_late_is_not_created_twice(local: Leases) -> None:
    """An empty list is believed only when it has stayed so for a while (row A8)."""
    local.rescale.faults.add("lost", endpoints=["create_job"], times=1)
    local.fault("hidden", seconds=1.0)
    with local.make() as lease:
        assert created(local) == [lease.job_id]


def test_a_created_job_that_is_not_to_be_read_yet(local: Leases) -> None:
    """A 404 right after the create is waited out (row A4)."""
    local.fault("hidden", seconds=0.5)
    with local.make() as lease:
        assert created(local) == submitted(local) == [lease.job_id]


def test_a_create_that_was_one_too_many_is_made_again(local: Leases) -> None:
    """After a 429 nothing was done: one look is enough, and none for minutes (row A6)."""
    looks: list[str] = []

    class Counts(RescalePlatform):
        def find(self, name: str) -> list[str]:
            looks.append(name)
            return super().find(name)

    for endpoint in ("create_job", "submit_job"):
        local.rescale.faults.add("status", endpoints=[endpoint], status=429, times=2)
    with local.make(platform=local.client(Counts), deadlines=Deadlines(created=timedelta(hours=1))) as lease:
        assert created(local) == submitted(local) == [lease.job_id]
        assert looks == [lease.name] * 2


def test_a_429_to_a_create_that_was_done_all_the_same(local: Leases) -> None:
    """That nothing was done is a guess, and nothing is lost where it is wrong."""
    local.rescale.faults.add("status", endpoints=["create_job"], status=429, done=True, times=1)
    with local.make() as lease:
        assert created(local) == submitted(local) == [lease.job_id]


def test_a_create_that_is_refused_is_told(local: Leases) -> None:
    """The platform's own words, no second try, no job, and no record that stands for one (row A3)."""
    local.rescale.faults.add("status", endpoints=["create_job"], status=403, body={"detail": "no such project"})
    lease = local.make()
    with pytest.raises(PlatformRefused, match="no such project") as caught:
        lease.acquire()
    assert caught.value.exit_code == 3
    assert created(local) == []
    assert [entry.state for entry in local.ledger.entries()] == ["closed"]


def test_an_interrupt_while_it_looks_for_a_lost_job(local: Leases) -> None:
    """The look for a job whose answer was lost ends at once when it is interrupted; what is found is deleted."""
    stop = threading.Event()

    class IsInterrupted(RescalePlatform):
        def find(self, name: str) -> list[str]:
            if stop.is_set():
                return super().find(name)
            stop.set()
            return []

    local.rescale.faults.add("lost", endpoints=["create_job"], times=1)
    lease = local.make(platform=local.client(IsInterrupted), stop=stop)
    with pytest.raises((KeyboardInterrupt, PlatformUnavailable)):
        lease.acquire()
    assert len(created(local)) == 1
    assert local.jobs() == []


def test_a_difference_refuses_and_nothing_is_submitted(local: Leases) -> None:
    """A job that was saved otherwise than asked is deleted before it costs anything (row A17)."""
    local.rescale.faults.add("saves", field="hardware.walltime", value=48)
    local.rescale.faults.add("saves", field="hardware.coresPerSlot", value=72)
    lease = local.make()
    with pytest.raises(PlatformRefused, match=r"(?s)asked 2, saved 72.*asked 2, saved 48"):
        lease.acquire()
    assert submitted(local) == []
    assert local.cluster_of(lease) == "gone"
    assert local.ledger.entries()[0].state == "closed"


def test_what_is_not_echoed_is_a_warning(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """A platform that does not show a field is used all the same, and the user is told which field."""
    local.rescale.faults.add("not_echoed", field="publicKey")
    with caplog.at_level(logging.WARNING), local.make():
        pass
    assert "did not show what it saved of publicKey" in caplog.text


def test_a_saved_job_that_cannot_be_deleted_is_left_on_record(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """It costs nothing: the first fault is told, not this one; and the record does not say that it is gone."""

    class DeletesNothing(RescalePlatform):
        def create(self, request: LeaseRequest) -> SavedJob:
            return dataclasses.replace(super().create(request), differs=("cores: asked 2, saved 72",))

        def delete(self, job_id: str) -> None:
            raise AWAY

    lease = local.make(platform=local.client(DeletesNothing))
    with pytest.raises(PlatformRefused, match="saved 72"):
        lease.acquire()
    assert "could not be deleted" in caplog.text
    (entry,) = local.ledger.entries()
    assert entry.state == "saved"
    assert local.ledger.is_driven(entry) is False  # the next start tries again
    assert local.settle() is None
    assert local.jobs() == []
    assert local.ledger.entries()[0].state == "closed"


def test_a_lost_answer_to_submit_is_looked_up(local: Leases) -> None:
    """The job runs: the lease goes on with it, without a second submit (row A9)."""
    local.rescale.faults.add("lost", endpoints=["submit_job"], times=1)
    with local.make() as lease:
        assert lease.state.executing
    assert submitted(local) == [lease.job_id]
    assert local.most_at_a_time() == 1


def test_a_submit_that_did_not_arrive_is_repeated(local: Leases) -> None:
    """The job's own state says that it was not started: the same job is submitted again (row A9)."""
    local.rescale.faults.add("dropped", endpoints=["submit_job"], times=1)
    local.rescale.faults.add("status", endpoints=["submit_job"], status=502, times=1)
    with local.make() as lease:
        assert created(local) == submitted(local) == [lease.job_id]


def test_a_submit_that_never_arrives_costs_nothing(local: Leases) -> None:
    """After the deadline the job, which was never started, is deleted and the fault is told (row A9)."""
    local.rescale.faults.add("status", endpoints=["submit_job"], status=502)
    lease = local.make(deadlines=SOON)
    with pytest.raises(PlatformUnavailable):
        lease.acquire()
    assert submitted(local) == []
    assert local.cluster_of(lease) == "gone"


def test_a_submit_is_not_repeated_while_its_effect_cannot_be_read(local: Leases) -> None:
    """Between two submits the state is read: one that arrived is never followed by another (row A9)."""
    local.rescale.faults.add("lost", endpoints=["submit_job"], times=1)
    local.rescale.faults.add("status", endpoints=["statuses"], status=503, times=3)
    asked: list[str] = []

    class Counts(RescalePlatform):
        def submit(self, job_id: str) -> None:
            asked.append(job_id)
            super().submit(job_id)

    with local.make(platform=local.client(Counts)) as lease:
        assert asked == [lease.job_id]


@pytest.mark.parametrize("status", [400, 409])
def test_a_refusal_of_a_submit_that_was_done(status: int, local: Leases) -> None:
    """A platform that says no to what it has already done is not believed: the job's state decides (row A5)."""
    local.rescale.faults.add("status", endpoints=["submit_job"], status=status, done=True, times=1)
    with local.make() as lease:
        assert lease.state.executing
    assert submitted(local) == [lease.job_id]


def test_a_submit_that_is_refused_is_told(local: Leases) -> None:
    """No second try; the saved job is deleted; the platform's own words are the message (row A3)."""
    local.rescale.faults.add("status", endpoints=["submit_job"], status=403, body={"detail": "over the quota"})
    lease = local.make()
    with pytest.raises(PlatformRefused, match="over the quota") as caught:
        lease.acquire()
    assert caught.value.exit_code == 3
    assert local.cluster_of(lease) == "gone"
    assert submitted(local) == []


def test_a_submit_whose_effect_nobody_can_tell_is_stopped(local: Leases) -> None:
    """Where even the state cannot be read, the job counts as one that runs: its end is asked for and confirmed."""
    local.rescale.faults.add("lost", endpoints=["submit_job"], times=1)
    order = local.rescale.faults.add("status", endpoints=["statuses"], status=503)

    class ComesBack(RescalePlatform):
        def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
            local.rescale.faults.remove(order)
            super().stop(job_id, force=force, patient=patient)

    lease = local.make(
        platform=local.client(ComesBack), deadlines=dataclasses.replace(SOON, unreachable=timedelta(minutes=1))
    )
    with pytest.raises(PlatformUnavailable):
        lease.acquire()
    assert local.has_stopped(lease)
    assert local.ledger.entries()[0].state == "closed"


def test_an_interrupt_after_the_submit_ends_the_job(local: Leases) -> None:
    """A job that has begun is stopped; nobody tries to delete it as one that costs nothing."""
    deleted: list[str] = []

    class IsInterrupted(RescalePlatform):
        def submit(self, job_id: str) -> None:
            super().submit(job_id)
            raise KeyboardInterrupt

        def delete(self, job_id: str) -> None:
            deleted.append(job_id)
            super().delete(job_id)

    lease = local.make(platform=local.client(IsInterrupted))
    with pytest.raises(KeyboardInterrupt):
        lease.acquire()
    assert deleted == []
    assert local.has_stopped(lease)
    assert local.ledger.entries()[0].state == "closed"
