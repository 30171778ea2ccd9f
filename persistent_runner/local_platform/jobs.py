"""All virtual jobs of a local platform, and how they look on the wire. No HTTP here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from persistent_runner.local_platform import catalogue
from persistent_runner.local_platform.checks import Refused, parse_job
from persistent_runner.local_platform.faults import meant
from persistent_runner.local_platform.files import new_id
from persistent_runner.local_platform.job import VirtualJob
from persistent_runner.rescale.api import date_with_offset, date_with_z

__all__ = ["Jobs", "Refused", "VirtualJob"]

if TYPE_CHECKING:
    from persistent_runner.local_platform.cluster import Machine, Site
    from persistent_runner.local_platform.fault_kinds import Action
    from persistent_runner.rescale.api import JobAnalysis


class Jobs:
    """The jobs by id, newest last. Thread-safe."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._jobs: dict[str, VirtualJob] = {}
        self._bodies: dict[str, dict[str, Any]] = {}

    def create(self, body: object) -> VirtualJob:
        """Save a job; raises Refused."""
        request = parse_job(body, self._file_exists)
        assert isinstance(body, dict)
        with self._lock:
            job_id = next(found for found in iter(new_id, "") if found not in self._jobs)
            job = VirtualJob(job_id, request, self._site)
            self._jobs[job_id] = job
            self._bodies[job_id] = body
        job.tell("created")
        return job

    def get(self, job_id: str) -> VirtualJob | None:
        """Return the job with this id, None if there is none."""
        with self._lock:
            return self._jobs.get(job_id)

    def change(self, job: VirtualJob, body: object) -> None:
        """Change a draft; a job that was submitted stays as it is, without an error. Raises Refused."""
        merged = {**self._bodies[job.id], **body} if isinstance(body, dict) else body
        request = parse_job(merged, self._file_exists)
        if not job.submitted:
            assert isinstance(merged, dict)
            self._bodies[job.id] = merged
            job.request = request

    def submit(self, job: VirtualJob) -> None:
        """Start a draft; nothing to do for a job that was submitted. Raises Refused where an input is gone."""
        parse_job(self._bodies[job.id], lambda file_id: job.submitted or self._file_exists(file_id))
        job.submit()

    def delete(self, job: VirtualJob, *, with_inputs: bool) -> None:
        """Remove a draft or a job whose cluster has stopped, with its outputs; raises Refused for others."""
        if job.submitted and not job.stopped:
            raise Refused({"detail": "The job's cluster has not stopped yet: stop the job and wait for Stopped."})
        job.tell("deleted")
        with self._lock:
            self._jobs.pop(job.id, None)
            self._bodies.pop(job.id, None)
        for stored in self._site.files.search(job_id=job.id):
            self._site.files.delete(stored.id)
        if with_inputs:
            for analysis in job.request.jobanalyses:
                for given in analysis.input_files:
                    self._site.files.delete(given.id)

    def search(self, words: str = "", state: str = "", job_status: str = "") -> list[VirtualJob]:
        """Return the jobs that fit, newest first: name contains `words`, `state` completed or not_completed.

        `job_status` is a status in the form `WAITING_FOR_QUEUE`.
        """
        with self._lock:
            rows = list(self._jobs.values())[::-1]
        if state:
            rows = [job for job in rows if job.completed == (state == "completed")]
        if job_status:
            wanted = job_status.replace("_", " ").lower()
            rows = [job for job in rows if _newest(job).lower() == wanted]
        return [job for job in rows if words.lower() in job.name.lower()]

    def disturb(self, action: Action) -> int:
        """Let something happen now to the jobs that are meant and execute; return how many they are."""
        with self._lock:
            jobs = [job for job in self._jobs.values() if meant(action, job)]
        return sum([job.disturb(action) for job in jobs])

    @property
    def unfinished(self) -> int:
        """The number of jobs that were submitted and whose cluster has not stopped."""
        with self._lock:
            return sum(job.submitted and not job.stopped for job in self._jobs.values())

    def end_all(self) -> None:
        """End every job now; returns when their last processes are gone."""
        with self._lock:
            jobs = list(self._jobs.values())
        workers = [threading.Thread(target=job.abandon) for job in jobs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _file_exists(self, file_id: str) -> bool:
        return self._site.files.get(file_id) is not None

    # on the wire

    def wire(self, job: VirtualJob, base_url: str) -> dict[str, Any]:
        """Return the whole job object; it carries no status."""
        request = job.request
        priority = request.billing_priority_value or ("ON_DEMAND" if request.is_low_priority else "INSTANT")
        return {
            "id": job.id,
            "name": request.name,
            "owner": catalogue.OWNER,
            "dateInserted": date_with_z(job.inserted),
            "description": request.description,
            "isLowPriority": request.is_low_priority,
            "billingPriorityValue": priority,
            "projectId": request.project_id,
            "publicKey": request.public_key,
            "cidrRule": request.cidr_rule or "0.0.0.0/0",
            "sshPort": 22,
            "jobanalyses": [self._analysis(analysis, base_url) for analysis in request.jobanalyses],
            "resourceFilters": [],
            "archiveFilters": [],
            "jobvariables": [],
            "paramFile": None,
            "caseFile": None,
            "isTemplateDryRun": False,
            "includeNominalRun": False,
            "monteCarloIterations": None,
            "optimizer": None,
            "expectedRuns": None,
            "remoteVizConfig": None,
        }

    def _analysis(self, analysis: JobAnalysis, base_url: str) -> dict[str, Any]:
        hardware = analysis.hardware
        machine = catalogue.core_type(hardware.core_type) or {}
        tile = catalogue.analysis(analysis.analysis.code) or {"versions": []}
        version = analysis.analysis.version or tile["versions"][0]["versionCode"]
        version_name = next(row["version"] for row in tile["versions"] if row["versionCode"] == version)
        stored = [(self._site.files.get(given.id), given) for given in analysis.input_files]
        return {
            "analysis": {
                "code": analysis.analysis.code,
                "version": version,
                "name": tile["name"],
                "versionName": version_name,
            },
            "command": analysis.command,
            "hardware": {
                "coreType": {name: machine.get(name) for name in ("code", "name", "compute", "io", "processorInfo")},
                "coresPerSlot": hardware.cores_per_slot,
                "slots": hardware.slots,
                "walltime": hardware.walltime,
                "type": hardware.type,
            },
            "inputFiles": [
                {
                    **(found.wire(base_url) if found else {"id": given.id, "isDeleted": True}),
                    "decompress": given.decompress,
                }
                for found, given in stored
            ],
            "envVars": analysis.env_vars or {},
            "useRescaleLicense": analysis.use_rescale_license,
            "onDemandLicenseSeller": None,
            "userDefinedLicenseSettings": None,
            "flags": {},
            "preProcessScript": None,
            "preProcessScriptCommand": "",
            "postProcessScript": None,
            "postProcessScriptCommand": "",
            "templateTasks": [],
        }


def _newest(job: VirtualJob) -> str:
    return job.statuses[-1].status if job.statuses else ""


def _label(status: str) -> dict[str, Any]:
    return {"content": status, "labelClass": "", "useLabel": bool(status)}


def summary(job: VirtualJob) -> dict[str, Any]:
    """Return a row of the list of jobs; the status of a draft is empty."""
    names = [(catalogue.analysis(row.analysis.code) or {"name": ""})["name"] for row in job.request.jobanalyses]
    cluster = job.cluster_statuses[-1].status if job.cluster_statuses else None
    return {
        "id": job.id,
        "name": job.name,
        "owner": catalogue.OWNER,
        "dateInserted": date_with_z(job.inserted),
        "analysisNames": names,
        "isVisible": True,
        "sharedWith": [],
        "storage": 0,
        "jobStatus": _label(_newest(job)),
        "clusterStatusDisplay": _label(cluster) if cluster else None,
    }


def job_statuses(job: VirtualJob) -> list[dict[str, Any]]:
    """Return the whole history, newest first, with dates in the offset form."""
    return [
        {"status": entry.status, "statusDate": date_with_offset(entry.since), "statusReason": entry.reason}
        for entry in list(job.statuses)[::-1]
    ]


def cluster_statuses(job: VirtualJob) -> list[dict[str, Any]] | None:
    """Return the cluster's history, newest first, with dates in the Z form; None before there is a cluster."""
    rows = [
        {"status": entry.status, "statusDate": date_with_z(entry.since), "statusReason": entry.reason}
        for entry in list(job.cluster_statuses)[::-1]
    ]
    return rows or None


def instances(job: VirtualJob) -> list[dict[str, Any]]:
    """Return the machines with the 14 keys of the recorded reply; none while there is no cluster."""
    return [_instance(job, machine) for machine in list(job.cluster.machines)] if _cluster_up(job) else []


def _cluster_up(job: VirtualJob) -> bool:
    return any(entry.status == "Started" for entry in list(job.cluster_statuses))


def _instance(job: VirtualJob, machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "clusterId": job.cluster.id,
        "instanceGroup": "compute0",
        "role": machine.role,
        "username": job.user,
        "publicIp": "127.0.0.1",
        "publicHostname": "localhost",
        "privateIp": machine.private_ip,
        "privateHostname": machine.private_hostname,
        "sshPort": machine.node.port,
        "isBehindNat": True,
        "supportedServices": ["ssh"],
        "tenancy": "default",
        "dateStarted": date_with_z(machine.started),
    }


def run(job: VirtualJob) -> dict[str, Any] | None:
    """Return run "1" of a job, None before its command was started."""
    started = job.run_started
    if started is None:
        return None
    ended = next((entry.since for entry in job.statuses if entry.status == "Completed"), None)
    return {
        "id": "1",
        "dateStarted": date_with_z(started),
        "dateCompleted": date_with_z(ended) if ended else None,
        "displayOrder": 0,
        "isOptimal": False,
        "outputFileCount": 0,
        "outputFileSize": None,
        "parent": None,
        "type": 3,
        "variables": [],
    }
