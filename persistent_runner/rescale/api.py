"""Rescale's REST API, version 2, as types: the models on the wire and one table of endpoints.

Both ends read this file: `rescale/client.py` calls the endpoints, `local_platform/server.py` serves them. Field names,
status strings and shapes are facts taken from public documentation and recorded replies; what is a guess says so.
Models ignore unknown keys and statuses stay plain strings, because the platform adds both without notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from persistent_runner.rescale.fields import Date, Port, Text

API_ROOT = "/api/v2/"
PAGE_SIZE = 10
"""Rows on a page of a v2 list unless `page_size` says otherwise (recorded replies)."""


def date_with_z(moment: datetime) -> str:
    """Return `2023-09-04T11:03:46.398510Z`: the form of instances, files, job lists and cluster statuses."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def date_with_offset(moment: datetime) -> str:
    """Return `2026-04-03T03:45:58.683875+00:00`: the form of job statuses."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")


class Wire(BaseModel):
    """A JSON object of the API: camelCase outside, snake_case inside, unknown keys ignored, null read as absent."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Project(Wire):
    """A project that jobs are charged to."""

    id: str
    name: str = ""


class Workspace(Wire):
    """Where a key belongs (used by clients; never seen whole)."""

    id: Text = None
    name: Text = None


class User(Wire):
    """`users/me/`; never seen whole, so everything but the address is optional."""

    email: str
    workspace: Workspace | None = None
    full_name: str | None = None
    max_job_hours: int | None = None

    @property
    def account(self) -> str:
        """The address, with the workspace where the platform names one: a key sees the jobs of one workspace alone."""
        named = self.workspace and (self.workspace.id or self.workspace.name)
        return f"{self.email} in {named}" if named else self.email


class CoreType(Wire):
    """A kind of machine.

    `cores`: what `coresPerSlot` may be inside one node, ascending; larger clusters take multiples of the last one.
    `memory`: MB per core. `price` and `low_priority_price`: USD per core and hour (the second arrives as a string).
    """

    code: str
    name: str = ""
    cores: list[int] = []
    memory: int | None = None
    storage: int | None = None
    price: float | None = None
    low_priority_price: float | None = None
    walltime_required: bool | None = None
    is_deprecated: bool = False
    is_primary: bool = False
    remote_viz_allowed: bool = False
    has_ssd: bool = False
    compute: str | None = None
    io: str | float | None = None
    processor_info: str = ""
    description: str = ""
    display_order: int | None = None
    category_codes: list[str] = []


class Money(Wire):
    """An amount; a decimal string on the wire."""

    amount: float


class ComputePrice(Wire):
    """One row of `billing/computeprices/`.

    The economy plan's `planType` ends in `on-demand`. The unit is taken to be USD per core and hour, as in
    `coretypes/` (a guess).
    """

    core_type: str
    plan_type: str = ""
    os: str = ""
    is_active: bool = True
    value: Money | None = None


class AnalysisVersion(Wire):
    """A version of a software tile; `version_code` is what a job names."""

    id: str = ""
    version: str = ""
    version_code: str
    allowed_core_types: list[str] = []


class Analysis(Wire):
    """A software tile."""

    code: str
    name: str = ""
    description: str = ""
    vendor_name: str = ""
    versions: list[AnalysisVersion] = []


class JobAnalysisSoftware(Wire):
    """The tile of one analysis of a job."""

    code: str
    version: str | None = None


def _code_of(value: object) -> object:
    return value.get("code") if isinstance(value, dict) else value


class Hardware(Wire):
    """The cluster of a job; `walltime` is in hours. `coreType` is sent as a string and may come back as an object."""

    core_type: Annotated[str, BeforeValidator(_code_of)]
    cores_per_slot: int
    slots: int = 1
    walltime: int | None = None
    type: str = "compute"


class FileId(Wire):
    """A file that a job takes as input; archives are unpacked unless `decompress` is false."""

    id: str
    decompress: bool = True


class JobAnalysis(Wire):
    """One command on the cluster; several run one after another."""

    analysis: JobAnalysisSoftware
    command: str
    hardware: Hardware
    input_files: list[FileId] = []
    env_vars: dict[str, str] | None = Field(default_factory=dict, repr=False)  # a value may be a secret
    use_rescale_license: bool = False


class JobRequest(Wire):
    """What `POST jobs/` takes."""

    name: str
    jobanalyses: list[JobAnalysis] = Field(alias="jobanalyses", min_length=1)
    is_low_priority: bool = False
    billing_priority_value: str | None = None
    project_id: str | None = None
    public_key: str | None = None
    cidr_rule: str | None = None
    description: str = ""


class Job(Wire):
    """A saved job. It carries no status. A key that the platform did not echo is absent from `model_fields_set`."""

    id: str
    name: str = ""
    owner: str = ""
    date_inserted: Date | None = None
    jobanalyses: list[JobAnalysis] = Field(default_factory=list, alias="jobanalyses")
    is_low_priority: bool = False
    billing_priority_value: str | None = None
    project_id: str | None = None
    public_key: str | None = None
    cidr_rule: str | None = None
    ssh_port: int | None = None


class StatusContent(Wire):
    """A status inside a job list; `content` is empty for a draft."""

    content: str = ""


class JobSummary(Wire):
    """A row of `GET jobs/`."""

    id: str
    name: str = ""
    owner: str = ""
    date_inserted: Date | None = None
    job_status: StatusContent | None = None
    cluster_status_display: StatusContent | None = None


class Status(Wire):
    """An entry of `statuses/` or `cluster_statuses/`; both lists come newest first."""

    status: str
    status_date: Date | None = None
    status_reason: str | None = None


class Instance(Wire):
    """A machine. `role` is `CUSTOM` on one node, else `MPI_MASTER` or `MPI_SLAVE`; addresses may be null at first.

    What is no text, or no port from 1 to 65535, is read as absent.
    """

    id: str
    cluster_id: str = ""
    instance_group: str = ""
    role: Text = None
    username: Text = None
    public_ip: Text = None
    public_hostname: Text = None
    private_ip: Text = None
    private_hostname: Text = None
    ssh_port: Port = None
    is_behind_nat: bool | None = None
    supported_services: list[str] = []
    tenancy: str = ""
    date_started: str | None = None


class Checksum(Wire):
    """`fileHash` is the SHA-512 of the plain content, in hex."""

    hash_function: str = "sha512"
    file_hash: str


class File(Wire):
    """A stored file. `relative_path` is an output's path below the work directory; `decrypted_size` is in bytes."""

    id: str
    name: str = ""
    owner: str = ""
    type_id: int = 1
    date_uploaded: Date | None = None
    relative_path: str | None = None
    path: str = ""
    decrypted_size: int | None = None
    download_url: str = ""
    is_uploaded: bool = True
    is_deleted: bool = False
    file_checksums: list[Checksum] = []


class Lines(Wire):
    """Text lines: with their line ends from `files/{id}/lines/`, without from `tail`."""

    lines: list[str] = []
    file_type: str | None = None


class Run(Wire):
    """One run of a job; a basic job has exactly run `"1"`."""

    id: str
    date_started: Date | None = None
    date_completed: Date | None = None


class RunEntry(Wire):
    """A file in the work directory of a run in progress."""

    path: str
    resource: str = ""


Request = TypeVar("Request", bound=Wire | None)
Reply = TypeVar("Reply")
Shape = Literal["none", "object", "list", "bytes", "any"]


@dataclass(frozen=True)
class Endpoint(Generic[Request, Reply]):
    """One call: what is sent and what comes back; any 2xx means that it was done.

    `path` is below `/api/v2/` with `{names}` to fill in; `shape` says whether the reply is one object of type `reply`,
    a list of them (paged or bare: both are accepted), bytes, anything (JSON is not interpreted), or not looked at.
    """

    method: str
    path: str
    request: type[Request] | None
    reply: type[Reply]
    shape: Shape


class Endpoints:
    """The table."""

    me = Endpoint[None, User]("GET", "users/me/", None, User, "object")
    projects = Endpoint[None, Project]("GET", "users/me/projects/", None, Project, "list")
    core_types = Endpoint[None, CoreType]("GET", "coretypes/", None, CoreType, "list")
    compute_prices = Endpoint[None, ComputePrice]("GET", "billing/computeprices/", None, ComputePrice, "list")
    analyses = Endpoint[None, Analysis]("GET", "analyses/", None, Analysis, "list")

    jobs = Endpoint[None, JobSummary]("GET", "jobs/", None, JobSummary, "list")
    create_job = Endpoint[JobRequest, Job]("POST", "jobs/", JobRequest, Job, "object")
    job = Endpoint[None, Job]("GET", "jobs/{job_id}/", None, Job, "object")
    change_job = Endpoint[JobRequest, Any]("PATCH", "jobs/{job_id}/", JobRequest, object, "any")
    delete_job = Endpoint[None, None]("DELETE", "jobs/{job_id}/", None, type(None), "none")
    submit_job = Endpoint[None, None]("POST", "jobs/{job_id}/submit/", None, type(None), "none")
    stop_job = Endpoint[None, None]("POST", "jobs/{job_id}/stop/", None, type(None), "none")
    # What it answers was never seen: the cluster's status decides what came of it.
    force_stop_job = Endpoint[None, None]("POST", "jobs/{job_id}/force_stop/", None, type(None), "none")
    statuses = Endpoint[None, Status]("GET", "jobs/{job_id}/statuses/", None, Status, "list")
    cluster_statuses = Endpoint[None, Status]("GET", "jobs/{job_id}/cluster_statuses/", None, Status, "list")
    instances = Endpoint[None, Instance]("GET", "jobs/{job_id}/instances/", None, Instance, "list")
    job_files = Endpoint[None, File]("GET", "jobs/{job_id}/files/", None, File, "list")

    runs = Endpoint[None, Run]("GET", "jobs/{job_id}/runs/", None, Run, "list")
    run = Endpoint[None, Run]("GET", "jobs/{job_id}/runs/{run_id}/", None, Run, "object")
    run_files = Endpoint[None, File]("GET", "jobs/{job_id}/runs/{run_id}/files/", None, File, "list")
    run_directory = Endpoint[None, RunEntry](
        "GET", "jobs/{job_id}/runs/{run_id}/directory-contents/", None, RunEntry, "list"
    )
    run_tail = Endpoint[None, Lines]("GET", "jobs/{job_id}/runs/{run_id}/tail/{path}", None, Lines, "object")

    files = Endpoint[None, File]("GET", "files/", None, File, "list")
    upload_file = Endpoint[None, File]("POST", "files/contents/", None, File, "object")
    file = Endpoint[None, File]("GET", "files/{file_id}/", None, File, "object")
    change_file = Endpoint[None, Any]("PATCH", "files/{file_id}/", None, object, "any")
    delete_file = Endpoint[None, None]("DELETE", "files/{file_id}/", None, type(None), "none")
    file_lines = Endpoint[None, Lines]("GET", "files/{file_id}/lines/", None, Lines, "object")
    file_contents = Endpoint[None, bytes]("GET", "files/{file_id}/contents/", None, bytes, "bytes")


ENDPOINTS: dict[str, Endpoint[Any, Any]] = {
    name: endpoint for name, endpoint in vars(Endpoints).items() if isinstance(endpoint, Endpoint)
}
"""The same table by name, for whoever serves it."""


class JobStatus:
    """The job statuses that decide something. All others are shown as they come."""

    STARTED = "Started"
    VALIDATED = "Validated"
    EXECUTING = "Executing"
    COMPLETED = "Completed"
    STOPPING = "Stopping"
    FORCE_STOP = "Force Stop"
    # Completed is the only terminal status ever recorded; the others are listed by clients as a precaution.
    TERMINAL = frozenset({"Completed", "Failed", "Stopped", "Force Stopped", "Terminated", "Cancelled"})
    BEYOND_THE_QUEUE = frozenset({STARTED, VALIDATED, EXECUTING})
    ALIVE = frozenset(
        {"Pending", "Waiting for Queue", "Waiting for Cluster", "Queued", "Started", "Validated", "Executing"}
    )


class ClusterStatus:
    """The cluster statuses that decide something."""

    NOT_STARTED = "Not Started"
    STARTING = "Starting"
    STARTED = "Started"
    STOPPED = "Stopped"
    # before any machine is asked for; the last two are listed by clients
    WAITING = frozenset({NOT_STARTED, "Pending", "Queued"})


USER_TERMINATED = "User Terminated"
"""`statusReason` of a `Stopping` entry when somebody asked for the stop."""

HEAD_NODE_ROLE = "MPI_MASTER"
"""`role` of the head node where there are several."""
