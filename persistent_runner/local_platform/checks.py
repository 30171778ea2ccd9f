"""What the platform refuses in a job: the errors mirror the request, their leaves are lists of sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistent_runner.local_platform import catalogue
from persistent_runner.rescale.api import JobAnalysis, JobRequest

if TYPE_CHECKING:
    from collections.abc import Callable


class Refused(Exception):
    """A 400: `body` is its JSON."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.body = body


def parse_job(body: object, file_exists: Callable[[str], bool]) -> JobRequest:
    """Return the job that a create body describes; raises Refused."""
    if not isinstance(body, dict):
        raise Refused({"detail": "JSON parse error - an object was expected."})
    try:
        # wire names alone: the platform swallows `project_id` as it does any unknown key
        request = JobRequest.model_validate(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise Refused(_as_tree(error)) from None
    if not request.name.strip():
        raise Refused({"name": ["This field may not be blank."]})
    if request.project_id is not None and request.project_id not in {row["id"] for row in catalogue.PROJECTS}:
        raise Refused({"projectId": ["invalid project id"]})
    problems = [_problems(analysis, file_exists) for analysis in request.jobanalyses]
    if any(problems):
        raise Refused({"jobanalyses": problems})
    return request


def _problems(analysis: JobAnalysis, file_exists: Callable[[str], bool]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not analysis.command.strip():
        found["command"] = ["This field may not be blank."]
    elif "\0" in analysis.command:
        found["command"] = ["Null characters are not allowed."]
    if hardware := _hardware_problems(analysis):
        found["hardware"] = hardware
    tile = catalogue.analysis(analysis.analysis.code)
    if tile is None:
        found["analysis"] = {"code": [f'Analysis "{analysis.analysis.code}" does not exist.']}
    elif analysis.analysis.version not in {None, *(row["versionCode"] for row in tile["versions"])}:
        found["analysis"] = {"version": [f'Version "{analysis.analysis.version}" does not exist.']}
    if missing := [given.id for given in analysis.input_files if not file_exists(given.id)]:
        found["inputFiles"] = [f'Invalid file id "{file_id}" - object does not exist.' for file_id in missing]
    for name, value in (analysis.env_vars or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            found["envVars"] = [f'"{name}" is not a valid environment variable.']
    return found


def _hardware_problems(analysis: JobAnalysis) -> dict[str, list[str]]:
    hardware = analysis.hardware
    machine = catalogue.core_type(hardware.core_type)
    if machine is None:
        return {"coreType": [f'Core type "{hardware.core_type}" does not exist.']}
    offered = machine["cores"]
    cores = hardware.cores_per_slot
    if cores not in offered and (cores <= 0 or cores % offered[-1]):
        choices = ", ".join(map(str, offered))
        return {
            "coresPerSlot": [f"{cores} is not offered by {machine['code']}: {choices} or a multiple of {offered[-1]}."]
        }
    longest = catalogue.MAX_JOB_HOURS
    if hardware.walltime is not None and not 1 <= hardware.walltime <= longest:
        return {"walltime": [f"Must be between 1 and {longest} hours."]}
    if hardware.slots < 1:
        return {"slots": ["Must be at least 1."]}
    return {}


def _as_tree(error: ValidationError) -> dict[str, Any]:
    """Return pydantic's list of errors in the shape of the request, lists padded with empty objects."""
    tree: dict[str, Any] = {}
    for problem in error.errors():
        text = {"missing": "This field is required.", "too_short": "This list may not be empty."}.get(
            problem["type"], problem["msg"]
        )
        _insert(tree, problem["loc"], text)
    return tree


def _insert(tree: dict[str, Any], place: tuple[int | str, ...], text: str) -> None:
    node: Any = tree
    for here, below in zip(place, [*place[1:], None], strict=True):
        empty: Any = {} if isinstance(below, str) else []
        if isinstance(node, list):
            index = int(here)
            node.extend({} for _ in range(index + 1 - len(node)))
            if not node[index]:
                node[index] = empty
            node = node[index]
        else:
            node = node.setdefault(str(here), empty)
        if isinstance(node, list) and below is None:
            node.append(text)
