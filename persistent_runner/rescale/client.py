"""The verbs of `Platform` on Rescale, and its catalogue: core types, prices, software, projects."""

from __future__ import annotations

import contextlib
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError, PlatformError, PlatformRefused
from persistent_runner.lease.platform import LeaseRequest, LeaseState, Quote, SavedJob
from persistent_runner.recovery import Backoff
from persistent_runner.remote.node import Node
from persistent_runner.rescale.api import (
    HEAD_NODE_ROLE,
    USER_TERMINATED,
    Analysis,
    ClusterStatus,
    ComputePrice,
    CoreType,
    Endpoints,
    Hardware,
    Instance,
    Job,
    JobAnalysis,
    JobAnalysisSoftware,
    JobRequest,
    JobStatus,
    Project,
    Status,
    User,
)
from persistent_runner.rescale.transport import Transport
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

_LOG_FILE = "process_output.log"
_LOG_LINES = 20
_IDLE_COMMAND = "# "  # the shortest command that passes the platform's validation
_BILLING = {"on_demand": "INSTANT", "economy": "ON_DEMAND"}
# The economy plan's name ends in `on-demand` (documented); the endings of the other are guesses, and where no plan has
# one of them the price of the core type is taken.
_PLAN_ENDINGS = {"on_demand": ("-priority", "instant"), "economy": ("on-demand",)}
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class RescalePlatform:
    """Rescale as a `Platform`.

    `base_url` is without `/api/v2/`; a set `stop` ends the repeats of a failed GET; `backoff` is how long they go on.
    """

    def __init__(
        self, base_url: str, api_key: str, *, stop: threading.Event | None = None, backoff: Backoff | None = None
    ) -> None:
        self._http = Transport(base_url, api_key, stop=stop, backoff=backoff or Backoff())

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._http.close()

    # --- the catalogue

    def me(self) -> User:
        """Return whose key this is."""
        user: User = self._http.call(Endpoints.me)
        return user

    def projects(self) -> list[Project]:
        """Return the projects that jobs may be charged to."""
        found: list[Project] = self._http.call(Endpoints.projects)
        return found

    def core_types(self) -> list[CoreType]:
        """Return every kind of machine."""
        found: list[CoreType] = self._http.call(Endpoints.core_types)
        return found

    def prices(self) -> list[ComputePrice]:
        """Return the prices of the day."""
        found: list[ComputePrice] = self._http.call(Endpoints.compute_prices)
        return found

    def analyses(self) -> list[Analysis]:
        """Return every software tile."""
        found: list[Analysis] = self._http.call(Endpoints.analyses)
        return found

    def quote(self, request: LeaseRequest) -> Quote:
        """Return what the request would get and cost; ConfigError for what the platform does not have."""
        kinds = {kind.code: kind for kind in self.core_types()}
        kind = kinds.get(request.core_type)
        if kind is None:
            usable = [code for code, kind in kinds.items() if not kind.is_deprecated]
            raise _unknown("core type", request.core_type, usable)
        if kind.is_deprecated:
            raise ConfigError(
                f"The core type {kind.code} is deprecated: the platform takes no new job on it.",
                remedy="Choose another core_type in [cluster].",
            )
        _check_cores(kind, request.cores)
        hours = self.me().max_job_hours
        if hours is not None and _hours(request.walltime) > hours:
            raise ConfigError(
                f"walltime is {_hours(request.walltime)} h, and this account's jobs may take {hours} h.",
                remedy=f'Write walltime = "{hours}h" or less in [cluster].',
            )
        self._check_software(request)
        self._project_id(request.project)
        price, notes = self._price(kind, request)
        most = kind.cores[-1] if kind.cores else request.cores
        nodes = max(1, request.cores // most)
        return Quote(price, nodes, request.cores // nodes, notes)

    def _check_software(self, request: LeaseRequest) -> None:
        tiles = {tile.code: tile for tile in self.analyses()}
        for software in request.software:
            tile = tiles.get(software.analysis)
            if tile is None:
                raise _unknown("software", software.analysis, tiles)
            versions = [version.version_code for version in tile.versions]
            if software.version not in versions:
                raise _unknown(f"version of {tile.code}", software.version, versions)

    def _price(self, kind: CoreType, request: LeaseRequest) -> tuple[float | None, tuple[str, ...]]:
        """Return the price of the whole cluster in USD per hour, and where it comes from."""
        endings = _PLAN_ENDINGS[request.priority]
        for row in self.prices():
            plan = row.plan_type.lower().replace("_", "-")
            here = row.core_type == kind.code and row.is_active and row.os in {"", "linux"}
            if here and plan.endswith(endings) and row.value is not None:
                return row.value.amount * request.cores, (f"price of the plan {row.plan_type}",)
        per_core = kind.price if request.priority == "on_demand" else kind.low_priority_price
        if per_core is None:
            return None, (f"the platform names no {request.priority} price for {kind.code}",)
        return per_core * request.cores, (f"list price of the core type {kind.code}",)

    def _project_id(self, project: str | None) -> str | None:
        """Return the id of a project that is named by id or by name."""
        if project is None:
            return None
        projects = self.projects()
        for found in projects:
            if project in {found.id, found.name}:
                return found.id
        raise _unknown("project", project, [found.name or found.id for found in projects])

    # --- the verbs of Platform

    def create(self, request: LeaseRequest) -> SavedJob:
        """Save a job without starting it, read it back and compare; the POST is never repeated."""
        asked = self._job_request(request)
        job_id: str = self._http.call(Endpoints.create_job, body=asked).id
        saved: Job = self._http.call(Endpoints.job, job_id=job_id)
        differs, not_echoed = _compare(asked, saved)
        return SavedJob(job_id, differs, not_echoed, saved.cidr_rule or "")

    def _job_request(self, request: LeaseRequest) -> JobRequest:
        hardware = Hardware(
            core_type=request.core_type, cores_per_slot=request.cores, walltime=_hours(request.walltime)
        )
        return JobRequest(
            name=request.name,
            jobanalyses=[
                JobAnalysis(
                    analysis=JobAnalysisSoftware(code=software.analysis, version=software.version),
                    command=_IDLE_COMMAND if number else request.command,
                    hardware=hardware,
                    env_vars=dict(request.env),
                )
                for number, software in enumerate(request.software)
            ],
            is_low_priority=request.priority == "economy",
            billing_priority_value=_BILLING[request.priority],
            project_id=self._project_id(request.project),
            public_key=request.public_key or None,
        )

    def submit(self, job_id: str) -> None:
        """Start a saved job; the POST is never repeated."""
        self._http.call(Endpoints.submit_job, job_id=job_id)

    def find(self, name: str) -> list[str]:
        """Return the ids of the jobs with exactly this name."""
        return [row.id for row in self._http.call(Endpoints.jobs, params={"search": name}) if row.name == name]

    def state(self, job_id: str) -> LeaseState:
        """Return what the platform says of the job now, from its statuses and its cluster's."""
        statuses: list[Status] = self._http.call(Endpoints.statuses, job_id=job_id)
        clusters: list[Status] = []
        try:
            clusters = self._http.call(Endpoints.cluster_statuses, job_id=job_id)
        except PlatformRefused as error:
            if error.status != 404:  # 404 for a while after the submit
                raise
        return _lease_state(statuses, clusters)

    def nodes(self, job_id: str) -> list[Node]:
        """Return the machines that have an address, the head node first; empty while it has none."""
        try:
            instances: list[Instance] = self._http.call(Endpoints.instances, job_id=job_id)
        except PlatformRefused as error:
            if error.status == 404:
                return []
            raise
        heads = instances if len(instances) == 1 else [item for item in instances if item.role == HEAD_NODE_ROLE]
        if len(heads) > 1:
            raise PlatformRefused(f"Job {job_id} has {len(heads)} instances with the role {HEAD_NODE_ROLE}, not one.")
        head = _node(heads[0]) if heads else None
        if head is None:
            return []
        workers = (_node(item) for item in instances if item is not heads[0])
        return [head, *(node for node in workers if node is not None)]

    def log(self, job_id: str) -> str:
        """Return the last lines that the job's command printed; empty where there are none (yet).

        A running job is read through `tail`, an ended one from its output file.
        """
        with contextlib.suppress(PlatformError):
            few = {"lines": _LOG_LINES}
            tail = self._http.call(
                Endpoints.run_tail, params=few, repeat=False, job_id=job_id, run_id="1", path=_LOG_FILE
            )
            return "\n".join(tail.lines).rstrip()
        with contextlib.suppress(PlatformError):
            for file in self._http.call(Endpoints.job_files, params={"search": _LOG_FILE}, job_id=job_id):
                if file.name == _LOG_FILE:
                    lines = self._http.call(Endpoints.file_lines, repeat=False, file_id=file.id).lines
                    return "".join(lines[-_LOG_LINES:]).rstrip()
        return ""

    def stop(self, job_id: str, *, force: bool = False) -> None:
        """Ask for the end of a job, gracefully or by force; nothing to do when it has ended."""
        try:
            self._http.call(Endpoints.force_stop_job if force else Endpoints.stop_job, job_id=job_id)
        except PlatformRefused:
            state = self.state(job_id)
            if not (state.ended or state.stopped):
                raise

    def delete(self, job_id: str) -> None:
        """Remove a job that was never submitted or has stopped; one that is gone already is no fault."""
        try:
            self._http.call(Endpoints.delete_job, job_id=job_id)
        except PlatformRefused as error:
            if error.status != 404:
                raise


def _hours(walltime: timedelta) -> int:
    return math.ceil(walltime / timedelta(hours=1))


def _unknown(what: str, wanted: str, there: Iterable[str]) -> ConfigError:
    """Return the error for a name that the platform does not have, with the nearest one that it has."""
    return ConfigError(
        f"The platform has no {what} {wanted!r} for this account; {did_you_mean(wanted, there)}",
        remedy="Correct it in [cluster].",
    )


def _check_cores(kind: CoreType, cores: int) -> None:
    """Refuse a core count that the core type does not offer: one of its counts, or a multiple of the largest."""
    if cores < 1:
        raise ConfigError(f"{cores} cores cannot be leased.", remedy="Write cores = 1 or more in [cluster].")
    if not kind.cores or cores in kind.cores or cores % kind.cores[-1] == 0:
        return
    most = kind.cores[-1]
    offered = [*kind.cores, cores // most * most, (cores // most + 1) * most]
    below = max((count for count in offered if 0 < count < cores), default=None)
    above = min(count for count in offered if count > cores)
    near = f"{below} or {above}" if below else f"{above}"
    raise ConfigError(
        f"The core type {kind.code} does not offer {cores} cores.",
        remedy=f"The nearest counts are {near}; it offers {', '.join(map(str, kind.cores))} and multiples of {most}.",
    )


def _compare(asked: JobRequest, saved: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the platform saved otherwise than asked, and what it did not echo."""
    differs: list[str] = []
    not_echoed: list[str] = []

    def compare(what: str, wanted: object, found: object, *, echoed: bool) -> None:
        if not echoed:
            not_echoed.append(what)
        elif wanted != found:
            differs.append(f"{what}: asked {wanted!r}, saved {found!r}")

    top = saved.model_fields_set
    compare("isLowPriority", asked.is_low_priority, saved.is_low_priority, echoed="is_low_priority" in top)
    compare(
        "billingPriorityValue",
        asked.billing_priority_value,
        saved.billing_priority_value,
        echoed="billing_priority_value" in top,
    )
    if asked.project_id:
        compare("projectId", asked.project_id, saved.project_id, echoed="project_id" in top)
    if asked.public_key:
        # A comment behind the key is not part of it.
        found = (saved.public_key or "").split()[:2]
        compare("publicKey", asked.public_key.split()[:2], found, echoed=bool(found))
    if not saved.cidr_rule:
        not_echoed.append("cidrRule")
    if not saved.jobanalyses:
        return tuple(differs), (*not_echoed, "jobanalyses")
    compare("number of analyses", len(asked.jobanalyses), len(saved.jobanalyses), echoed=True)
    for number, (want, have) in enumerate(zip(asked.jobanalyses, saved.jobanalyses, strict=False), 1):
        at = f"analysis {number}"
        compare(f"{at} command", want.command, have.command, echoed=True)
        compare(f"{at} code", want.analysis.code, have.analysis.code, echoed=True)
        compare(f"{at} version", want.analysis.version, have.analysis.version, echoed=have.analysis.version is not None)
        there = have.hardware.model_fields_set
        compare(f"{at} coreType", want.hardware.core_type, have.hardware.core_type, echoed=True)
        compare(f"{at} coresPerSlot", want.hardware.cores_per_slot, have.hardware.cores_per_slot, echoed=True)
        compare(f"{at} slots", want.hardware.slots, have.hardware.slots, echoed="slots" in there)
        compare(f"{at} walltime", want.hardware.walltime, have.hardware.walltime, echoed="walltime" in there)
        if want.env_vars:
            # Names alone: a value may be a secret.
            saved_env = have.env_vars or {}
            wrong = [name for name, value in want.env_vars.items() if saved_env.get(name) != value]
            compare(f"{at} envVars that are not as asked", [], wrong, echoed="env_vars" in have.model_fields_set)
    return tuple(differs), tuple(not_echoed)


def _newest(statuses: list[Status]) -> Status | None:
    """Return the newest entry: by date, then by the server's order (newest first)."""
    return max(statuses, key=lambda status: status.status_date or _LONG_AGO, default=None)


def _lease_state(statuses: list[Status], clusters: list[Status]) -> LeaseState:
    """Return both histories as one state; a terminal job status wins over any date."""
    terminal = _newest([status for status in statuses if status.status in JobStatus.TERMINAL])
    newest = terminal or _newest(statuses)
    cluster = _newest(clusters)
    if newest is None:
        return LeaseState("Saved")
    stopping = [status for status in statuses if status.status == JobStatus.STOPPING]
    reasons = [status.status_reason for status in (*stopping, newest) if status.status_reason]
    ever_a_cluster = any(status.status != ClusterStatus.NOT_STARTED for status in clusters)
    ended = terminal is not None
    ending = newest.status in {JobStatus.STOPPING, JobStatus.FORCE_STOP}
    stopped = (cluster is not None and cluster.status == ClusterStatus.STOPPED) or (ended and not ever_a_cluster)
    shown = f"{newest.status}, cluster {cluster.status}" if (ended or ending) and cluster else newest.status
    return LeaseState(
        shown,
        reason=reasons[0] if reasons else "",
        submitted=True,
        executing=newest.status == JobStatus.EXECUTING,
        ending=ending,
        ended=ended,
        stopped=stopped,
        by_somebody=USER_TERMINATED in reasons,
    )


def _node(instance: Instance) -> Node | None:
    """Return where to reach an instance, None while its address, port or user is missing or no such thing."""
    address = instance.public_ip or instance.public_hostname or ""
    port, user = instance.ssh_port or 0, instance.username or ""
    if not (_ADDRESS.fullmatch(address) and 1 <= port <= 65535 and _USER.fullmatch(user)):
        return None
    return Node(
        instance.id,
        address,
        port,
        user,
        role=instance.role or "",
        started=instance.date_started or "",
        private_address=instance.private_ip or instance.private_hostname or "",
    )
