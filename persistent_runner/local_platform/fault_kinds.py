"""What can be ordered to go wrong, and how an order is written.

An order is an object: `what` and the options of that class below, for example
`{"what": "status", "endpoints": ["submit_job"], "status": 503, "times": 2}`. Common options: `job` (an id, or a pattern
of names such as `persistent_runner-wing-*`; absent: any job), `times` (absent: until removed), `probability` with
`seed`. All times are in seconds. An order for an answer that names a job does not count for the list of jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.durations import STATUSES
from persistent_runner.rescale.api import ENDPOINTS
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

ELSEWHERE = "https://login.example.com"


class Fault(BaseModel):
    """What all orders have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    job: str | None = None
    times: int | None = Field(None, ge=1)
    probability: float = Field(1.0, gt=0, le=1)
    seed: int = 0


# of an answer


class Answer(Fault):
    """Of a request to `endpoints` (names of the wire table; absent: all). One order counts for one request."""

    endpoints: tuple[str, ...] = ()

    @field_validator("endpoints", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("endpoints")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ENDPOINTS:
                raise ValueError(f"{name} is no endpoint: {did_you_mean(name, ENDPOINTS)}")
        return value


class Lost(Answer):
    """It is done, then the connection is dropped."""

    what: Literal["lost"] = "lost"


class Dropped(Answer):
    """The connection is dropped and nothing is done."""

    what: Literal["dropped"] = "dropped"


class Code(Answer):
    """A status 4xx or 5xx and nothing is done; `done`: it is done all the same. `retry_after` is sent as it is."""

    what: Literal["status"] = "status"
    status: int = Field(ge=400, le=599)
    retry_after: str | int | None = None
    body: Any = None
    done: bool = False


class Html(Answer):
    """A web page with status 200 and nothing is done."""

    what: Literal["html"] = "html"


class Truncated(Answer):
    """It is done; half of the body is sent, or so many `bytes` of it, then the connection ends."""

    what: Literal["truncated"] = "truncated"
    bytes: int | None = Field(None, ge=0)


class NoRange(Answer):
    """`Range` is ignored: all of the content is answered, with status 200."""

    what: Literal["no_range"] = "no_range"


class Hang(Answer):
    """The request is taken and nothing comes for `seconds`; then the connection is dropped."""

    what: Literal["hang"] = "hang"
    seconds: float = Field(3600, ge=0)


class Redirect(Answer):
    """A 302 to `to`."""

    what: Literal["redirect"] = "redirect"
    to: str = f"{ELSEWHERE}/"


class Slow(Answer):
    """It is done after `seconds`."""

    what: Literal["slow"] = "slow"
    seconds: float = Field(ge=0)


class Revoked(Answer):
    """The API key is not accepted; it is again when the order is removed."""

    what: Literal["revoked"] = "revoked"


class Next(Answer):
    """`next` of a list points to the origin `to`; absent: to the same page again, for ever."""

    what: Literal["next"] = "next"
    to: str | None = None


# of what the platform shows


class Hidden(Fault):
    """The job is not found (404) for `seconds` after it was created; absent: for ever."""

    what: Literal["hidden"] = "hidden"
    seconds: float | None = Field(None, ge=0)


class UnknownStatus(Fault):
    """A status nobody knows is the newest until the end, of the job, the cluster or both."""

    what: Literal["unknown_status"] = "unknown_status"
    status: str = "Hibernating"
    of: Literal["job", "cluster", "both"] = "both"


class Statuses(Fault):
    """The statuses come in an odd form: shuffled or turned round, all in one second, dates without zone or with Z."""

    what: Literal["statuses"] = "statuses"
    form: Literal["shuffled", "oldest_first", "same_second", "no_zone", "z"]


class Instances(Fault):
    """The machines are an empty list or a 404 for `seconds` after Executing; absent: for ever."""

    what: Literal["instances"] = "instances"
    form: Literal["empty", "404"] = "empty"
    seconds: float | None = Field(None, ge=0)


class Machines(Fault):
    """The machines are shown oddly, for `seconds` after Executing; absent: for ever.

    `no_public_address`, `private_workers` (only the head node has one), `no_address`, `no_user`, `shuffled`,
    `two_masters`, or `port` with the value of `port`.
    """

    what: Literal["machines"] = "machines"
    form: Literal["no_public_address", "private_workers", "no_address", "no_user", "port", "shuffled", "two_masters"]
    port: str | int | None = "0"
    seconds: float | None = Field(None, ge=0)


class Saves(Fault):
    """A field of a new job (`hardware.walltime`, `command`, `projectId`) is ignored, or `value` is saved instead."""

    what: Literal["saves"] = "saves"
    field: str
    value: Any = None


class NotEchoed(Fault):
    """A field of a saved job is not shown."""

    what: Literal["not_echoed"] = "not_echoed"
    field: str


class Listing(Fault):
    """The list of jobs grows or shrinks by a row with each page that is read."""

    what: Literal["listing"] = "listing"
    change: Literal["grows", "shrinks"]


# of a job's life; an order counts once for each job


class Duration(Fault):
    """A status lasts `seconds` (a million: it never starts); the names are those of the durations."""

    what: Literal["duration"] = "duration"
    status: str
    seconds: float = Field(ge=0, le=1e9)

    @field_validator("status")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in STATUSES:
            raise ValueError(f"{value} is no status that lasts: {did_you_mean(value, STATUSES, most=len(STATUSES))}")
        return value


class EndsEarly(Fault):
    """The job is Completed with `reason` after the duration `status`, without having executed."""

    what: Literal["ends_early"] = "ends_early"
    reason: str
    status: Literal["pending", "waiting_for_queue", "queued", "started", "cluster_starting", "validated"] = "validated"


class Walltime(Fault):
    """The walltime is over after `seconds`, whatever the job's hours are."""

    what: Literal["walltime"] = "walltime"
    seconds: float = Field(ge=0)


class LateSsh(Fault):
    """The machines refuse connections until `seconds` after Executing, or with `login` they refuse every key."""

    what: Literal["late_ssh"] = "late_ssh"
    seconds: float = Field(ge=0)
    login: bool = False


class OwnHomes(Fault):
    """Each machine has a home and a work folder of its own, where otherwise all have one in common."""

    what: Literal["own_homes"] = "own_homes"


class StopHangs(Fault):
    """A stop is taken, and the job stays Executing or Stopping for `seconds`; absent: until force_stop."""

    what: Literal["stop_hangs"] = "stop_hangs"
    at: Literal["executing", "stopping"] = "stopping"
    seconds: float | None = Field(None, ge=0)


class StopIgnored(Fault):
    """A stop is taken, and nothing happens; force_stop works."""

    what: Literal["stop_ignored"] = "stop_ignored"


# what happens to a job that executes


class Action(Fault):
    """Happens at once to every job that executes; with `after`, to each job that many seconds after Executing."""

    after: float | None = Field(None, ge=0)


class HostKey(Action):
    """The head node has another host key from now on, at the same address; connections are dropped."""

    what: Literal["host_key"] = "host_key"


class Port(Action):
    """The head node has another port from now on, with the same host key; connections are dropped."""

    what: Literal["port"] = "port"


class Preempt(Action):
    """The machines are gone at once. The job ends, or with `relaunch` gets new ones after so many seconds.

    A re-launch changes ids, ports, host keys and dateStarted, wipes the home folder and runs the command from its
    start; the job's status stays Executing.
    """

    what: Literal["preempt"] = "preempt"
    relaunch: float | None = Field(None, ge=0)


class Worker(Action):
    """The last machine of several is gone at once, with connections and processes, and is shown no more."""

    what: Literal["worker"] = "worker"


class Reboot(Action):
    """All processes of the machines end; after `seconds` the same machines run the command again from its start."""

    what: Literal["reboot"] = "reboot"
    seconds: float = Field(0.5, ge=0)


class Stop(Action):
    """Somebody stops the job."""

    what: Literal["stop"] = "stop"


class Ssh(Action):
    """SSH of the machines: `drop` all connections, or for `seconds` `refuse` new ones, every key (`login`), or
    `blackhole` all: connections stay open, new ones are taken, and no byte moves. With `machine` that of one: 0 is the
    head node."""  # noqa: D205, D209

    what: Literal["ssh"] = "ssh"
    do: Literal["drop", "refuse", "login", "blackhole"]
    seconds: float = Field(3600, ge=0)
    machine: int | None = Field(None, ge=0)


def _leaves(kind: type[Fault]) -> list[type[Fault]]:
    below = kind.__subclasses__()
    return [leaf for found in below for leaf in _leaves(found)] if below else [kind]


KINDS: dict[str, type[Fault]] = {kind.model_fields["what"].default: kind for kind in _leaves(Fault)}
"""All that can be ordered, by the name in `what`."""


def described() -> str:
    """Return all that can be ordered, as text: what it does, and its own options."""
    lines = [
        "Of every fault: job (an id, or a pattern of names), times, probability, seed; all times in seconds.",
        f"Endpoints: {', '.join(ENDPOINTS)}.",
        f"Statuses that last: {', '.join(STATUSES)}.",
        "",
    ]
    for what, kind in KINDS.items():
        lines.append(what)
        lines += [f"    {line.strip()}" for line in (kind.__doc__ or "").splitlines() if line.strip()]
        own = [_option(name, field) for name, field in kind.model_fields.items() if name not in Fault.model_fields]
        lines += [f"    options: {', '.join(own)}"] if own else []
    return "\n".join(lines)


def _option(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        name += f" ({' | '.join(get_args(field.annotation))})"
    return f"{name} (needed)" if field.is_required() else name


def parse(order: object) -> Fault:
    """Return the order that an object means; raises ConfigError that names what is wrong with it."""
    if not isinstance(order, dict):
        raise ConfigError('A fault is an object such as {"what": "lost", "endpoints": ["create_job"]}.')
    what = order.get("what")
    if not isinstance(what, str) or what not in KINDS:
        raise ConfigError(f"There is no fault {what!r}: {did_you_mean(str(what), KINDS, most=len(KINDS))}")
    kind = KINDS[what]
    for name in order:
        if name not in kind.model_fields:
            raise ConfigError(f"{what} has no option {name!r}: {did_you_mean(str(name), kind.model_fields)}")
    try:
        return kind.model_validate(order)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{what}: {where}: {first['msg']}") from None
