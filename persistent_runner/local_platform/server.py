"""The REST API of the local platform: exactly the table of `rescale/api.py`.

GET without the trailing slash is redirected on the same host; any other method without it is answered 404, so that a
client's mistake is seen and does not turn into a GET.
"""

# ruff: noqa: D102 - what a method of Api does is what its endpoint in the table says
from __future__ import annotations

import hmac
import os
import re
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import HTTPException, NotFound

from persistent_runner.local_platform import catalogue, jobs
from persistent_runner.local_platform.files import CHUNK, FileStore, Incoming, StoredFile
from persistent_runner.rescale.api import API_ROOT, ENDPOINTS, PAGE_SIZE, RunEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner.local_platform.jobs import Jobs, VirtualJob
    from persistent_runner.local_platform.shown import Shown


class ApiError(Exception):
    """An answer that is not a success: `status` and JSON `body`."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def _not_found() -> ApiError:
    return ApiError(404, {"detail": "Not found."})


class Api:
    """One method for each endpoint, by the endpoint's name in the table."""

    def __init__(self, jobs_: Jobs, files: FileStore, shown: Shown) -> None:
        self._jobs = jobs_
        self._files = files
        self._shown = shown

    # who and what

    def me(self) -> Response:
        return jsonify(catalogue.USER)

    def projects(self) -> Response:
        return _page(catalogue.PROJECTS)

    def core_types(self) -> Response:
        return _page(catalogue.CORE_TYPES)

    def compute_prices(self) -> Response:
        return jsonify(catalogue.COMPUTE_PRICES)

    def analyses(self) -> Response:
        return _page(catalogue.ANALYSES)

    # jobs

    def jobs(self) -> Response:
        query = request.args
        rows = self._jobs.search(query.get("search", ""), query.get("state", ""), query.get("job_status", ""))
        summaries = [jobs.summary(job) for job in rows if not self._shown.hidden(job)]
        page = query.get("page", "1")
        return _page(self._shown.listing(summaries, int(page) if page.isdecimal() else 1))

    def create_job(self) -> tuple[Response, int]:
        job = self._jobs.create(self._shown.saved(_json_body()))
        return jsonify(self._shown.wire(job, self._jobs.wire(job, _base_url()))), 201

    def job(self, job_id: str) -> Response:
        job = self._job(job_id)
        return jsonify(self._shown.wire(job, self._jobs.wire(job, _base_url())))

    def change_job(self, job_id: str) -> Response:
        job = self._job(job_id)
        self._jobs.change(job, _json_body())
        return jsonify({"id": job.id, "isLowPriority": job.request.is_low_priority, "name": job.name})

    def delete_job(self, job_id: str) -> tuple[str, int]:
        with_inputs = request.args.get("deleteInputFiles", "").lower() == "true"
        self._jobs.delete(self._job(job_id), with_inputs=with_inputs)
        return "", 204

    def submit_job(self, job_id: str) -> tuple[str, int]:
        self._jobs.submit(self._job(job_id))
        return "", 200

    def stop_job(self, job_id: str) -> tuple[str, int]:
        job = self._job(job_id)
        if not job.submitted:
            raise ApiError(400, {"detail": "The job was not submitted."})
        job.stop()
        return "", 202

    def force_stop_job(self, job_id: str) -> tuple[str, int]:
        if not self._job(job_id).force_stop():
            raise ApiError(400, {"detail": "Ask for an ordinary stop first."})
        return "", 202

    def statuses(self, job_id: str) -> Response:
        job = self._job(job_id)
        return _page(self._shown.statuses(job, jobs.job_statuses(job), of_cluster=False))

    def cluster_statuses(self, job_id: str) -> Response:
        job = self._job(job_id)
        rows = jobs.cluster_statuses(job)
        if rows is None:
            raise _not_found()
        return _page(self._shown.statuses(job, rows, of_cluster=True))

    def instances(self, job_id: str) -> Response:
        job = self._job(job_id)
        rows = self._shown.instances(job, jobs.instances(job))
        if rows is None:
            raise _not_found()
        return _page(rows)

    def job_files(self, job_id: str) -> Response:
        job = self._job(job_id)
        rows = self._files.search(request.args.get("search", ""), job_id=job.id, oldest_first=True)
        return _page([row.wire(_base_url()) for row in rows])

    # runs

    def runs(self, job_id: str) -> Response:
        row = jobs.run(self._job(job_id))
        return _page([row] if row else [])

    def run(self, job_id: str, run_id: str) -> Response:
        row = jobs.run(self._job(job_id))
        if row is None or run_id != row["id"]:
            raise _not_found()
        return jsonify(row)

    def run_files(self, job_id: str, run_id: str) -> Response:
        self.run(job_id, run_id)
        return self.job_files(job_id)

    def run_directory(self, job_id: str, run_id: str) -> Response:
        work = self._live_folder(job_id, run_id)
        files = (Path(folder, name) for folder, _, names in os.walk(work) for name in names)  # some vanish meanwhile
        paths = sorted(path.relative_to(work).as_posix() for path in files if path.is_file())
        return jsonify(
            [
                RunEntry(path=path, resource=f"/api/jobs/{job_id}/runs/{run_id}/tail/{path}").model_dump()
                for path in paths
            ]
        )

    def run_tail(self, job_id: str, run_id: str, path: str) -> Response:
        work = self._live_folder(job_id, run_id).resolve()
        target = (work / path.rstrip("/")).resolve()
        if not target.is_relative_to(work) or not target.is_file():
            raise _not_found()
        count = request.args.get("lines")
        if count is None:
            return Response(_pieces(target, 0, target.stat().st_size), mimetype="application/octet-stream")
        if not count.isdecimal():
            raise ApiError(400, {"lines": ["A valid integer is required."]})
        with target.open("rb") as stream:
            last = deque(stream, maxlen=int(count))
        lines = [line.rstrip(b"\r\n").decode(errors="replace") for line in last]
        return jsonify({"fileType": _file_type(target), "lines": lines})

    # files

    def files(self) -> Response:
        query = request.args
        oldest_first = query.get("ordering", "").lstrip() == "dateUploaded"
        rows = self._files.search(query.get("search", ""), oldest_first=oldest_first)
        return _page([row.wire(_base_url()) for row in rows])

    def upload_file(self) -> tuple[Response, int]:
        if "Transfer-Encoding" in request.headers:
            raise ApiError(411, {"detail": "Chunked uploads are not accepted: send a Content-Length."})
        given = request.files.get("file")
        if given is None or not isinstance(given.stream, Incoming):
            raise ApiError(400, {"file": ["No file was submitted."]})
        type_id = request.form.get("type_id", "1")
        name = given.filename.replace("\\", "/").rpartition("/")[2] if given.filename else ""
        if not name or not type_id.isdecimal():
            self._files.discard(given.stream)
            raise ApiError(
                400, {"file": ["The upload carries no file name."]} if not name else {"type_id": ["Invalid."]}
            )
        stored = self._files.keep(given.stream, name, type_id=int(type_id))
        return jsonify(stored.wire(_base_url())), 201

    def file(self, file_id: str) -> Response:
        return jsonify(self._file(file_id).wire(_base_url()))

    def change_file(self, file_id: str) -> Response:
        body = _json_body()
        name, type_id = (body.get("name"), body.get("typeId")) if isinstance(body, dict) else (None, None)
        stored = self._files.rename(
            file_id,
            name=name if isinstance(name, str) else None,
            type_id=type_id if isinstance(type_id, int) else None,
        )
        if stored is None:
            raise _not_found()
        return jsonify(stored.wire(_base_url()))

    def delete_file(self, file_id: str) -> tuple[str, int]:
        if not self._files.delete(file_id):
            raise _not_found()
        return "", 204

    def file_lines(self, file_id: str) -> Response:
        with self._file(file_id).content.open("rb") as stream:
            return jsonify({"lines": [line.decode(errors="replace") for line in stream]})

    def file_contents(self, file_id: str) -> Response:
        stored = self._file(file_id)
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(stored.size)}
        span = _span(request.headers.get("Range"), stored.size)
        if span is None:
            body = _pieces(stored.content, 0, stored.size)
            return Response(body, 200, headers, mimetype="application/octet-stream")
        first, last = span
        if first > last:
            raise ApiError(416, {"detail": f"The file has {stored.size} bytes."})
        headers["Content-Range"] = f"bytes {first}-{last}/{stored.size}"
        headers["Content-Length"] = str(last - first + 1)
        body = _pieces(stored.content, first, last - first + 1)
        return Response(body, 206, headers, mimetype="application/octet-stream")

    # what several need

    def _job(self, job_id: str) -> VirtualJob:
        job = self._jobs.get(job_id)
        if job is None or self._shown.hidden(job):
            raise _not_found()
        return job

    def _file(self, file_id: str) -> StoredFile:
        stored = self._files.get(file_id)
        if stored is None:
            raise _not_found()
        return stored

    def _live_folder(self, job_id: str, run_id: str) -> Path:
        job = self._job(job_id)
        if not job.running or run_id != "1":
            raise _not_found()
        return job.cluster.work


def _base_url() -> str:
    return request.host_url.rstrip("/")


def _json_body() -> object:
    body = request.get_json(silent=True, force=True)
    if body is None:
        raise ApiError(400, {"detail": "JSON parse error."})
    found: object = body
    return found


def _page(rows: list[dict[str, Any]]) -> Response:
    """Return one page of `rows`; `next` keeps the other query parameters and the request's host."""
    page, size = request.args.get("page", "1"), request.args.get("page_size", str(PAGE_SIZE))
    if not (page.isdecimal() and size.isdecimal() and int(page) and int(size)):
        raise ApiError(404, {"detail": "Invalid page."})
    number, first = int(page), (int(page) - 1) * int(size)
    if number > 1 and first >= len(rows):
        raise ApiError(404, {"detail": "Invalid page."})
    last = first + int(size)
    return jsonify(
        {
            "count": len(rows),
            "next": _other_page(number + 1) if last < len(rows) else None,
            "previous": _other_page(number - 1) if number > 1 else None,
            "results": rows[first:last],
        }
    )


def _other_page(number: int) -> str:
    query = [(name, value) for name, value in request.args.items(multi=True) if name != "page"]
    return f"{request.base_url}?{urlencode([*query, ('page', str(number))])}"


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first and last byte of a Range header, the end clamped; None where the whole file is meant."""
    match = re.fullmatch(r"\s*bytes=(\d*)-(\d*)\s*", header or "")
    if match is None or match[0].strip() == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size - 1
    last = int(match[2]) if match[2] else size - 1
    if last < int(match[1]) and match[2]:
        return None
    return int(match[1]), min(last, size - 1)


def _pieces(path: Path, first: int, count: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(first)
        while count > 0 and (data := stream.read(min(CHUNK, count))):
            count -= len(data)
            yield data


def _file_type(path: Path) -> str:
    """Return what `file` says, as the platform does; a plain guess where it is not installed."""
    if program := shutil.which("file"):
        said = subprocess.run([program, str(path)], capture_output=True, check=False, text=True, errors="replace")
        return said.stdout.strip()
    return f"{path}: ASCII text"


def make_app(api: Api, api_key: str, files: FileStore) -> Flask:
    """Return the application: every endpoint of the table, and nothing else."""

    class StreamingRequest(Request):
        """A request whose uploads go straight to the stored files."""

        def _get_file_stream(self, *_: Any, **__: Any) -> Any:
            return files.incoming()

    app = Flask("rescale", static_folder=None)
    app.request_class = StreamingRequest
    app.url_map.strict_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]

    def check() -> Response | None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if not key:
            return _refused(401, "Authentication credentials were not provided.")
        if scheme != "Token" or not hmac.compare_digest(key.strip().encode(), api_key.encode()):
            return _refused(401, "Invalid token.")
        rule = request.url_rule
        if rule is not None and rule.rule.endswith("/") and not request.path.endswith("/"):
            if request.method not in {"GET", "HEAD"}:
                return _refused(404, "Not found.")
            query = f"?{request.query_string.decode()}" if request.query_string else ""
            return Response(status=301, headers={"Location": f"{request.script_root}{request.path}/{query}"})
        return None

    app.before_request(check)
    app.register_error_handler(ApiError, lambda error: (jsonify(error.body), error.status))
    app.register_error_handler(jobs.Refused, lambda error: (jsonify(error.body), 400))
    app.register_error_handler(HTTPException, _http_error)
    for name, endpoint in ENDPOINTS.items():
        rule = API_ROOT + re.sub(r"\{(\w+)\}", r"<\1>", endpoint.path.replace("{path}", "<path:path>"))
        app.add_url_rule(rule, name, getattr(api, name), methods=[endpoint.method], provide_automatic_options=False)
    return app


def _http_error(error: HTTPException) -> Response:
    if isinstance(error, NotFound):
        return _refused(404, "Not found.")
    if error.code == 405:
        return _refused(405, f'Method "{request.method}" not allowed.')
    return _refused(error.code or 500, error.description or "Error.")


def _refused(status: int, detail: str) -> Response:
    answer = jsonify({"detail": detail})
    answer.status_code = status
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Token"
    return answer
