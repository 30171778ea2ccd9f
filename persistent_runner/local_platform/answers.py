"""Answers that go wrong on order: lost, refused, cut, late or somebody else's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flask import Flask, Response, g, jsonify, request

from persistent_runner.local_platform.fault_kinds import (
    Answer,
    Code,
    Dropped,
    Fault,
    Hang,
    Html,
    Lost,
    Next,
    NoRange,
    Redirect,
    Revoked,
    Slow,
    Truncated,
)
from persistent_runner.local_platform.faults import Draft
from persistent_runner.local_platform.http import drop_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner.local_platform.faults import Faults, Named
    from persistent_runner.local_platform.jobs import Jobs

_PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form>Password</form></body></html>\n"


def spoil_answers(app: Flask, faults: Faults, jobs: Jobs) -> None:
    """Make the orders of `faults` count for the requests to `app`, before anything else is looked at."""

    def before() -> Response | None:
        name = request.endpoint
        order = faults.take(
            Answer,
            _job(jobs),
            lambda fault: not fault.endpoints or name in fault.endpoints,
        )
        g.fault = order.fault if order else None
        if order is not None and isinstance(order.fault, Hang | Slow):
            order.gone.wait(order.fault.seconds)
        if isinstance(g.fault, NoRange):
            request.environ.pop("HTTP_RANGE", None)
        return _instead(g.fault)

    def after(response: Response) -> Response:
        return _spoiled(response, g.get("fault"))

    app.before_request(before)
    app.after_request(after)


def _job(jobs: Jobs) -> Named | None:
    """Return the job that a request is about, also one that it creates."""
    if request.endpoint == "create_job":
        body = request.get_json(silent=True)
        return Draft(str(body.get("name", ""))) if isinstance(body, dict) else None
    job_id = (request.view_args or {}).get("job_id")
    return jobs.get(job_id) if job_id else None


def _instead(fault: Fault | None) -> Response | None:
    """Return what is answered instead of doing what was asked; None where it is done."""
    if isinstance(fault, Dropped | Hang):
        return _dropped()
    if isinstance(fault, Html):
        return Response(_PAGE, 200, mimetype="text/html")
    if isinstance(fault, Redirect):
        return Response(status=302, headers={"Location": fault.to})
    if isinstance(fault, Revoked):
        return _with_json({"detail": "Invalid token."}, 401, {"WWW-Authenticate": "Token"})
    return _of_code(fault) if isinstance(fault, Code) and not fault.done else None


def _spoiled(response: Response, fault: Fault | None) -> Response:
    """Return what is answered after the deed."""
    if isinstance(fault, Lost):
        return _dropped()
    if isinstance(fault, Code) and fault.done:
        return _of_code(fault)
    if isinstance(fault, Truncated):
        length = response.content_length or 0
        # the content of a file is not in memory; the server closes when less was sent than the header says
        response.response = _first(response.iter_encoded(), length // 2 if fault.bytes is None else fault.bytes)
    if isinstance(fault, Next) and isinstance(page := response.get_json(silent=True), dict) and "next" in page:
        origin = request.host_url.rstrip("/") if fault.to is None else fault.to.rstrip("/")
        response.set_data(json.dumps({**page, "next": f"{origin}{request.full_path.rstrip('?')}"}))
    return response


def _first(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Yield the first `count` bytes."""
    for piece in pieces:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def _dropped() -> Response:
    drop_connection(request.environ)
    return Response(status=500)  # goes nowhere


def _of_code(fault: Code) -> Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    if isinstance(fault.body, str):
        return Response(fault.body, fault.status, headers, mimetype="text/html")
    return _with_json({"detail": "Ordered."} if fault.body is None else fault.body, fault.status, headers)


def _with_json(body: object, status: int, headers: dict[str, str]) -> Response:
    answer = jsonify(body)
    answer.status_code = status
    answer.headers.update(headers)
    return answer
