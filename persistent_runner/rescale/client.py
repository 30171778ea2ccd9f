"""The verbs of `Platform` on Rescale."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from persistent_runner.errors import PlatformError, PlatformRefused
from persistent_runner.lease.platform import JobRow, LeaseRequest, LeaseState, SavedJob
from persistent_runner.recovery import Backoff, recover
from persistent_runner.redaction import hide
from persistent_runner.remote.node import Node
from persistent_runner.rescale.api import (
    HEAD_NODE_ROLE,
    ClusterStatus,
    Endpoints,
    Hardware,
    Instance,
    Job,
    JobAnalysis,
    JobAnalysisSoftware,
    JobRequest,
    JobSummary,
    Status,
)
from persistent_runner.rescale.catalogue import Catalogue, whole_hours
from persistent_runner.rescale.files import JobFiles
from persistent_runner.rescale.states import lease_state
from persistent_runner.rescale.transport import Transport

if TYPE_CHECKING:
    import threading

_LOG_FILE = "process_output.log"
_LAUNCHED = "Process output follows:"
_IDLE_COMMAND = "# "  # the shortest command that passes the platform's validation
_PROOF = "PERSISTENT_RUNNER_PROOF"
_READ_BACK = 60.0  # seconds within which a job that was just created is found by its id
_BILLING = {"on_demand": "INSTANT", "economy": "ON_DEMAND"}
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class _NotThereYet(PlatformRefused):
    """A job that was created answers 404."""


class RescalePlatform(Catalogue):
    """Rescale as a `Platform`, with its catalogue and, in `files`, the output files of ended jobs.

    `base_url` is without `/api/v2/`; a set `stop` ends the repeats of a failed GET; `backoff` is how long they go on.
    """

    def __init__(
        self, base_url: str, api_key: str, *, stop: threading.Event | None = None, backoff: Backoff | None = None
    ) -> None:
        backoff = backoff or Backoff()
        super().__init__(Transport(base_url, api_key, stop=stop, backoff=backoff))
        self.files = JobFiles(self._http, stop=stop, backoff=backoff)
        self._stop = stop
        self._read_back_backoff = replace(backoff, total=min(backoff.total, _READ_BACK))

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._http.close()

    def create(self, request: LeaseRequest) -> SavedJob:
        """Save a job without starting it, read it back and compare; the POST is never repeated."""
        asked = self._job_request(request)
        job_id: str = self._http.call(Endpoints.create_job, body=asked).id
        return self._compared(job_id, asked)

    def read_back(self, job_id: str, request: LeaseRequest) -> SavedJob:
        """Read a saved job and compare it with what was asked."""
        return self._compared(job_id, self._job_request(request))

    def _compared(self, job_id: str, asked: JobRequest) -> SavedJob:
        saved = self._saved(job_id)
        differs, not_echoed = _compare(asked, saved)
        return SavedJob(job_id, differs, not_echoed, saved.cidr_rule or "", saved.public_key or "")

    def _saved(self, job_id: str) -> Job:
        """Return a job that was just created; for a while the platform may not know it yet."""

        def once() -> Job:
            try:
                saved: Job = self._http.call(Endpoints.job, job_id=job_id)
            except PlatformRefused as error:
                if error.status == 404:
                    raise _NotThereYet(error.message, remedy=error.remedy, status=404) from None
                raise
            return saved

        return recover(once, {_NotThereYet: lambda _: None}, self._read_back_backoff, self._stop)

    def _job_request(self, request: LeaseRequest) -> JobRequest:
        hide(request.proof)
        proof = {_PROOF: request.proof} if request.proof else {}
        hardware = Hardware(
            core_type=request.core_type, cores_per_slot=request.cores, walltime=whole_hours(request.walltime)
        )
        return JobRequest(
            name=request.name,
            jobanalyses=[
                JobAnalysis(
                    analysis=JobAnalysisSoftware(code=software.analysis, version=software.version),
                    command=_IDLE_COMMAND if number else request.command,
                    hardware=hardware,
                    env_vars=dict(request.env) | ({} if number else proof),
                )
                for number, software in enumerate(request.software)
            ],
            is_low_priority=request.priority == "economy",
            billing_priority_value=_BILLING[request.priority],
            project_id=self.project_id(request.project),
            public_key=request.public_key or None,
        )

    def submit(self, job_id: str) -> None:
        """Start a saved job; the POST is never repeated."""
        self._http.call(Endpoints.submit_job, job_id=job_id)

    def find(self, name: str) -> list[str]:
        """Return the ids of the jobs with exactly this name; nothing is believed only when it was read twice.

        A list that changes while its pages are read may skip a row.
        """
        return self._named(name) or self._named(name)

    def _named(self, name: str) -> list[str]:
        return [row.id for row in self._http.call(Endpoints.jobs, params={"search": name}) if row.name == name]

    def jobs(self, prefix: str) -> list[JobRow]:
        """Return the jobs whose names begin so, the newest first; those that others share with us are among them."""
        found: list[JobSummary] = self._http.call(Endpoints.jobs, params={"search": prefix})
        found.sort(key=lambda row: row.date_inserted or _LONG_AGO, reverse=True)
        return [
            JobRow(
                row.id,
                row.name,
                row.owner,
                row.job_status.content if row.job_status else "",
                row.date_inserted,
                bool(row.cluster_status_display and row.cluster_status_display.content == ClusterStatus.STOPPED),
            )
            for row in found
            if row.name.startswith(prefix)
        ]

    def state(self, job_id: str, *, patient: bool = True) -> LeaseState:
        """Return what the platform says of the job now, from its statuses and its cluster's."""
        statuses: list[Status] = self._http.call(Endpoints.statuses, patient=patient, job_id=job_id)
        clusters: list[Status] = []
        try:
            clusters = self._http.call(Endpoints.cluster_statuses, patient=patient, job_id=job_id)
        except PlatformRefused as error:
            if error.status != 404:  # 404 for a while after the submit
                raise
        return lease_state(statuses, clusters)

    def nodes(self, job_id: str, *, patient: bool = True) -> list[Node]:
        """Return the machines that have an address, the head node first; empty while it has none that leads there.

        To another one the head node leads: an address within the cluster is enough.
        """
        try:
            instances: list[Instance] = self._http.call(Endpoints.instances, patient=patient, job_id=job_id)
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
        workers = (_node(item, is_worker=True) for item in instances if item is not heads[0])
        return [head, *(node for node in workers if node is not None)]

    def log(self, job_id: str, *, lines: int = 20) -> str:
        """Return the last lines that the job's command printed; empty where there are none (yet).

        A running job is read through `tail`, an ended one from its output file.
        """
        with contextlib.suppress(PlatformError):
            few = {"lines": lines}
            tail = self._http.call(
                Endpoints.run_tail, params=few, patient=False, job_id=job_id, run_id="1", path=_LOG_FILE
            )
            return _printed(tail.lines)
        with contextlib.suppress(PlatformError):
            for file in self._http.call(Endpoints.job_files, params={"search": _LOG_FILE}, job_id=job_id):
                if file.name == _LOG_FILE:
                    whole = self._http.call(Endpoints.file_lines, patient=False, file_id=file.id).lines
                    return _printed([line.rstrip("\n") for line in whole[-lines:]])
        return ""

    def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
        """Ask for the end of a job, gracefully or by force; nothing to do when it has ended."""
        try:
            self._http.call(Endpoints.force_stop_job if force else Endpoints.stop_job, patient=patient, job_id=job_id)
        except PlatformRefused:
            state = self.state(job_id, patient=patient)
            if not (state.ending or state.ended or state.stopped):
                raise

    def delete(self, job_id: str) -> None:
        """Remove a job that was never submitted or has stopped; one that is gone already is no fault."""
        try:
            self._http.call(Endpoints.delete_job, job_id=job_id)
        except PlatformRefused as error:
            if error.status != 404:
                raise


def _printed(lines: list[str]) -> str:
    """Return what a command printed, without the head of the log, which repeats the command (recorded logs)."""
    heads = [number for number, line in enumerate(lines) if line.endswith(_LAUNCHED)]
    return "\n".join(lines[heads[-1] + 1 if heads else 0 :]).rstrip()


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


def _node(instance: Instance, *, is_worker: bool = False) -> Node | None:
    """Return where to reach an instance, None while its address, port or user is missing or no such thing."""
    address = instance.public_ip or instance.public_hostname or ""
    private = instance.private_ip or instance.private_hostname or ""
    port, user = instance.ssh_port or 0, instance.username or ""
    leads_there = _ADDRESS.fullmatch(address) or (is_worker and not address and _ADDRESS.fullmatch(private))
    if not (leads_there and 1 <= port <= 65535 and _USER.fullmatch(user)):
        return None
    return Node(
        instance.id,
        address,
        port,
        user,
        role=instance.role or "",
        started=instance.date_started or "",
        private_address=private,
        hostname=instance.private_hostname or instance.private_ip or address,
    )
