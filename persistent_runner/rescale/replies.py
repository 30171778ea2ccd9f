"""What answers and errors of HTTP say, in our words."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from persistent_runner.errors import RunnerError

if TYPE_CHECKING:
    import requests
    from pydantic import ValidationError

_LONGEST_RETRY_AFTER = 300.0  # seconds


def leaves(reply: object, path: str = "") -> list[str]:
    """Return the messages of a nested error body, each behind its path: `jobanalyses.0.hardware: ...`."""
    if isinstance(reply, dict):
        return [leaf for key, value in reply.items() for leaf in leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(reply, list):
        numbered = any(isinstance(value, dict | list) for value in reply)
        return [
            leaf
            for number, value in enumerate(reply)
            for leaf in leaves(value, f"{path}.{number}" if numbered else path)
        ]
    return [] if reply in (None, "") else [f"{path}: {reply}" if path else str(reply)]


def retry_after(response: requests.Response) -> float | None:
    """Return the wait in seconds that `Retry-After` asks for (seconds or a date), at most five minutes."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return min(float(value), _LONGEST_RETRY_AFTER)
    try:
        # The server's clock against the server's clock: ours may be wrong.
        until = parsedate_to_datetime(value) - parsedate_to_datetime(response.headers.get("Date", ""))
    except (ValueError, TypeError):
        return None
    return min(max(until.total_seconds(), 0.0), _LONGEST_RETRY_AFTER)


def is_web_page(response: requests.Response) -> bool:
    """Return whether an answer is a web page, whatever its type says."""
    return "html" in response.headers.get("Content-Type", "").lower() or response.content.lstrip()[:1] == b"<"


def innermost(error: BaseException) -> str:
    """Return the plainest words for a failed connection: those of the cause at the bottom."""
    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(cause, RunnerError):  # of something else, which was being handled when this was asked
            break
        error = cause
    return str(error) or type(error).__name__


def flaws(error: ValidationError) -> str:
    """Return the fields that did not fit, without their values."""
    found = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in found)
