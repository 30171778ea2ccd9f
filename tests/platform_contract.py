"""What every `Platform` keeps: one class of tests, a fixture `platform` and a fixture `request_for` for each platform.

A subclass in `test_platforms.py` gives `platform` (the Platform) and `request_for(name)` (a LeaseRequest whose command
runs until it is stopped).
"""

from __future__ import annotations

import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import PlatformRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.platform import LeaseRequest, LeaseState, Platform

DEADLINE = 60.0  # seconds


def until(platform: Platform, job_id: str, reached: Callable[[LeaseState], bool]) -> list[LeaseState]:
    """Poll until a state is reached; return every state that was seen."""
    deadline = time.monotonic() + DEADLINE
    seen = [platform.state(job_id)]
    while not reached(seen[-1]):
        assert time.monotonic() < deadline, seen[-1]
        threading.Event().wait(0.02)
        seen.append(platform.state(job_id))
    return seen


class PlatformContract:
    """The verbs, in the order of a lease's life."""

    @pytest.fixture
    def name(self) -> str:
        """Return a name that no other job has."""
        return f"contract-{secrets.token_hex(6)}"

    def test_a_created_job_waits_and_can_be_deleted(
        self, platform: Platform, request_for: Callable[[str], LeaseRequest], name: str
    ) -> None:
        """Create saves and starts nothing; the job is found by its exact name, and is gone after delete."""
        saved = platform.create(request_for(name))
        assert saved.differs == ()
        assert platform.find(name) == [saved.job_id]
        assert platform.find(name[:-1]) == []
        (row,) = [row for row in platform.jobs(name[:-1]) if row.job_id == saved.job_id]
        assert (row.name, row.status) == (name, "")
        assert row.owner
        assert row.created is not None
        assert platform.jobs(name[1:]) == []
        state = platform.state(saved.job_id)
        facts = (state.submitted, state.booting, state.executing, state.ending, state.ended, state.stopped)
        assert not any(facts)
        assert platform.nodes(saved.job_id) == []
        assert platform.log(saved.job_id) == ""
        platform.delete(saved.job_id)
        assert platform.find(name) == []

    def test_a_life_from_submit_to_stopped(
        self, platform: Platform, request_for: Callable[[str], LeaseRequest], name: str
    ) -> None:
        """Submitted, executing with an address, stopped on request; stopping again is no fault, and it can be deleted."""
        job_id = platform.create(request_for(name)).job_id
        platform.submit(job_id)
        try:
            states = until(platform, job_id, lambda state: state.executing)
            assert all(state.submitted and not state.ended for state in states)
            assert states[-1].booting
            assert (states[-1].executed, states[-1].booted) == (None, None)
            head = platform.nodes(job_id)[0]
            assert head.address
            assert 1 <= head.port <= 65535
            assert head.user
            assert head.instance_id
        finally:
            platform.stop(job_id)
        last = until(platform, job_id, lambda state: state.stopped)[-1]
        assert last.ended
        assert last.reason
        assert not last.executing
        assert not last.booting
        assert last.executed is not None
        assert last.booted is not None
        assert last.executed > timedelta(0)
        assert last.booted > last.executed
        assert [row.status for row in platform.jobs(name)] != [""]
        platform.stop(job_id)
        platform.stop(job_id, force=True)
        platform.delete(job_id)
        assert platform.find(name) == []

    def test_a_running_job_is_not_deleted(
        self, platform: Platform, request_for: Callable[[str], LeaseRequest], name: str
    ) -> None:
        """What costs money cannot be lost from sight."""
        job_id = platform.create(request_for(name)).job_id
        platform.submit(job_id)
        try:
            until(platform, job_id, lambda state: state.executing)
            with pytest.raises(PlatformRefused):
                platform.delete(job_id)
            assert platform.find(name) == [job_id]
        finally:
            platform.stop(job_id)
            platform.stop(job_id, force=True)
        until(platform, job_id, lambda state: state.stopped)
