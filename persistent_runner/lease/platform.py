"""What a lease needs from whoever leases clusters. No vendor's words stand here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from persistent_runner.remote.node import Node


class Software(BaseModel):
    """One software tile: the platform's code of it and of its version."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    analysis: str = Field(examples=["calculix"])
    """The platform's code of the software."""
    version: str = Field(examples=["2.20"])
    """The platform's code of its version."""


class LeaseRequest(BaseModel):
    """What is asked of the platform.

    `name` and `command` are each job's own; `name` carries the token that finds the job again; `cores` are of the
    whole cluster; `walltime` is sent as whole hours, rounded up; the first of `software` carries `command`;
    `public_key` is one OpenSSH line; `proof` is the secret by which the node proves itself, for the job's environment
    alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = ""
    command: str = ""
    core_type: str
    cores: int
    walltime: timedelta
    priority: Literal["on_demand", "economy"] = "on_demand"
    project: str | None = None
    software: tuple[Software, ...] = (Software(analysis="user_included", version="0"),)
    env: dict[str, str] = Field(default={}, repr=False)  # a value may be secret
    public_key: str = ""
    proof: str = Field(default="", repr=False, exclude=True)

    @property
    def terms(self) -> dict[str, Any]:
        """What another request must equal to use this one's cluster, as plain data."""
        environment = json.dumps(sorted(self.env.items())).encode()  # values may be secret, so only their hash is kept
        return {
            "core_type": self.core_type,
            "cores": self.cores,
            "software": [[tile.analysis, tile.version] for tile in self.software],
            "env": hashlib.sha256(environment).hexdigest(),
            "project": self.project,
            "priority": self.priority,
            "ssh_key": self.public_key.split()[:2],
        }


@dataclass(frozen=True)
class SavedJob:
    """A job that was created and read back, and costs nothing yet.

    `differs` names what the platform saved otherwise than asked (do not submit), `not_echoed` what it did not show
    (a warning), `ssh_open_to` the CIDR rule that the platform will apply to SSH, `public_key` the key that it will
    let in.
    """

    job_id: str
    differs: tuple[str, ...] = ()
    not_echoed: tuple[str, ...] = ()
    ssh_open_to: str = ""
    public_key: str = ""


@dataclass(frozen=True)
class LeaseState:
    """What the platform says of a job now.

    `status` is its own word for the newest state and `reason` its explanation, both for people. `submitted`: it was
    handed in. `executing`: the command runs. `ending`: a stop is under way. `ended`: the command is over for good.
    `stopped`: the machines are gone, nothing costs any more. `by_somebody`: a person asked for the end. An unknown
    status sets none of them. `booting`: the machines start up, or are up. `executed` and `booted` are how long, by the
    platform's own clock, the command ran and the machines were there, of a job that has ended; None where its
    statuses do not tell.
    """

    status: str
    reason: str = ""
    submitted: bool = False
    booting: bool = False
    executing: bool = False
    ending: bool = False
    ended: bool = False
    stopped: bool = False
    by_somebody: bool = False
    executed: timedelta | None = None
    booted: timedelta | None = None

    def __str__(self) -> str:
        return f"{self.status}, {self.reason}" if self.reason else self.status


@dataclass(frozen=True)
class Quote:
    """What a request would get and cost, asked before anything is spent.

    `price_per_hour` is of the whole cluster, in the platform's currency (USD), None where the platform names none;
    `notes` say for people where the price comes from and what is uncertain.
    """

    price_per_hour: float | None
    nodes: int
    cores_per_node: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRow:
    """A job in a list: `status` is the platform's word and empty for a draft, `owner` an address.

    `stopped`: the list says that its machines are gone; one that does not say so may have stopped all the same.
    """

    job_id: str
    name: str
    owner: str
    status: str
    created: datetime | None = None
    stopped: bool = False


class Platform(Protocol):
    """The verbs. Each raises PlatformUnavailable or PlatformRefused and returns within its own deadline.

    Who is not `patient` is answered within seconds, or told that the platform did not answer.
    """

    def create(self, request: LeaseRequest) -> SavedJob:
        """Save a job without starting it, read it back and compare; never repeated blindly."""

    def read_back(self, job_id: str, request: LeaseRequest) -> SavedJob:
        """Read a saved job and compare it with what was asked."""

    def submit(self, job_id: str) -> None:
        """Start a saved job: from here on it costs money; never repeated blindly."""

    def find(self, name: str) -> list[str]:
        """Return the ids of the jobs with exactly this name; read twice before nothing is believed."""

    def jobs(self, prefix: str) -> list[JobRow]:
        """Return the jobs whose names begin so, the newest first."""

    def state(self, job_id: str, *, patient: bool = True) -> LeaseState:
        """Return what the platform says of the job now."""

    def nodes(self, job_id: str, *, patient: bool = True) -> list[Node]:
        """Return the machines that have an address, the head node first; empty while there are none."""

    def log(self, job_id: str, *, lines: int = 20) -> str:
        """Return the last lines that the job's command printed; empty where there are none yet."""

    def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
        """Ask for the end of a job, gracefully or by force; nothing to do when it has ended."""

    def delete(self, job_id: str) -> None:
        """Remove a job that was never submitted or has stopped."""
