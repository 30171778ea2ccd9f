"""HTTP to Rescale at one door: authentication, time-outs, pages, repeats of GET, and faults as our own errors."""

from __future__ import annotations

import json
import logging
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

import requests
import urllib3
from pydantic import BaseModel, ValidationError
from requests.auth import AuthBase

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.printable import printable
from persistent_runner.recovery import Backoff, recover
from persistent_runner.redaction import hide, redact
from persistent_runner.rescale.api import API_ROOT
from persistent_runner.settings import is_loopback

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from persistent_runner.rescale.api import Endpoint, Wire

log = logging.getLogger(__name__)

Row = TypeVar("Row", bound=BaseModel)

_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two bytes
_TOTAL = 180.0  # seconds for a whole answer
_SOON = (5.0, 10.0)  # the same for who cannot wait
_LONGEST_RETRY_AFTER = 300.0  # seconds
_MOST_PAGES = 1000
_PAGE_SIZE = 200
_TRANSIENT = frozenset({408, 425, 429})


class _TokenAuth(AuthBase):
    """`Authorization: Token KEY` on every request; a machine entry in ~/.netrc cannot take its place."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._api_key}"
        return request


class Transport:
    """Calls the endpoints of `rescale/api.py`.

    A GET is repeated within `backoff` on 408, 425, 429, 5xx, broken connections and time-outs, unless `stop` is set; no
    other method is ever repeated here. Raises PlatformUnavailable and PlatformRefused and nothing else.
    """

    def __init__(
        self, base_url: str, api_key: str, *, stop: threading.Event | None, backoff: Backoff, deadline: float = _TOTAL
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.host = urlsplit(self.base_url).netloc
        hide(api_key)
        self._stop = stop
        self._backoff = backoff
        self._deadline = deadline
        self._half_read: set[str] = set()
        self._session = requests.Session()
        self._session.auth = _TokenAuth(api_key)
        # A proxy for the outside world has no way back to this machine.
        self._session.trust_env = not is_loopback(base_url)

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._session.close()

    def call(
        self,
        endpoint: Endpoint[Any, Any],
        *,
        params: Mapping[str, str | int] | None = None,
        body: Wire | None = None,
        patient: bool = True,
        **names: str,
    ) -> Any:
        """Return the endpoint's reply as its type; None where the shape is `none`.

        Who is not `patient` gets the answer of one try, or the fault of it, within seconds.
        """
        path = endpoint.path.format(**{key: quote(value, safe="/") for key, value in names.items()})
        url = f"{self.base_url}{API_ROOT}{path}"
        if endpoint.shape == "list":
            return self._list(url, params or {}, endpoint.reply, patient=patient)
        response = self._send(endpoint.method, url, params=params, body=body, patient=patient)
        if endpoint.shape != "object":
            return None
        try:
            return endpoint.reply.model_validate(self._json(response))
        except ValidationError as error:
            raise PlatformRefused(f"{self._what(response)}: the answer has another shape: {_flaws(error)}") from None

    def _list(self, url: str, params: Mapping[str, str | int], row_type: type[Row], *, patient: bool) -> list[Row]:
        """Return every row of a list, whether it comes bare or in pages; a row with a known `id` once."""
        rows: dict[object, Row] = {}
        seen: set[str] = set()
        following: str | None = url
        query: Mapping[str, str | int] | None = {"page_size": _PAGE_SIZE, **params}
        while following:
            if following in seen or len(seen) >= _MOST_PAGES:
                raise PlatformRefused(f"{self.host}: the pages of {urlsplit(url).path} did not end.")
            seen.add(following)
            response = self._send("GET", following, params=query, patient=patient)
            reply = self._json(response)
            page = reply if isinstance(reply, list) else reply.get("results") if isinstance(reply, dict) else None
            if not isinstance(page, list):
                raise PlatformRefused(f"{self._what(response)}: the answer is not a list.")
            for raw in page:
                key = raw.get("id") if isinstance(raw, dict) else None
                if (row := self._row(row_type, raw, url)) is not None:
                    rows.setdefault(len(rows) if key is None else f"id {key}", row)
            # `next` carries the query of the first page.
            query = None
            following = self._next(reply.get("next"), following) if isinstance(reply, dict) else None
        return list(rows.values())

    def _row(self, row_type: type[Row], raw: object, url: str) -> Row | None:
        try:
            return row_type.model_validate(raw)
        except ValidationError as error:
            if url not in self._half_read:  # once is enough: a poll would say it every few seconds
                self._half_read.add(url)
                where = f"{self.host}: a row of {urlsplit(url).path}"
                log.warning("%s is left out, it has another shape: %s", where, _flaws(error))
            return None

    def _next(self, following: object, current: str) -> str | None:
        """Return the address of the next page, None after the last; refuse one that would take the key elsewhere."""
        if not isinstance(following, str) or not following:
            return None
        try:
            parts = urlsplit(urljoin(current, following))
            stays = _origin(parts) == _origin(urlsplit(self.base_url))
        except ValueError:
            stays = False
        if not stays:
            raise PlatformRefused(f"{self.host}: the pages of {urlsplit(current).path} lead to another host.")
        # Some `next` lack the slash, and the redirect to it would be refused.
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/"))

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Wire | None = None,
        patient: bool = True,
    ) -> requests.Response:
        def once() -> requests.Response:
            return self._send_once(method, url, params, body, _TIMEOUT if patient else _SOON)

        if method != "GET" or not patient:
            return once()
        return recover(
            once, {PlatformUnavailable: lambda error: log.info("%s Asking again.", error)}, self._backoff, self._stop
        )

    def _send_once(
        self,
        method: str,
        url: str,
        params: Mapping[str, str | int] | None,
        body: Wire | None,
        timeout: tuple[float, float],
    ) -> requests.Response:
        """Send one request; the only place where HTTP's faults become ours."""
        what = f"{method} {urlsplit(url).path} at {self.host}"
        try:
            response = self._session.request(
                method,
                url,
                params=params,
                json=None if body is None else body.model_dump(by_alias=True, exclude_none=True),
                timeout=timeout,
                allow_redirects=False,
                stream=True,
            )
            _read_whole(response, self._deadline)
        except requests.exceptions.SSLError as error:
            raise PlatformRefused(
                f"{what}: the certificate is not trusted ({self._clean(_innermost(error))}).",
                remedy="Behind a proxy that opens TLS, set REQUESTS_CA_BUNDLE to its certificate.",
            ) from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
            raise PlatformUnavailable(f"{what}: no answer in time.") from None
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            raise PlatformUnavailable(f"{what}: the connection failed ({self._clean(_innermost(error))}).") from None
        except requests.RequestException as error:
            raise PlatformRefused(f"{what}: {type(error).__name__}.") from None
        except ValueError:  # requests reads the address of a redirect that it does not follow
            raise PlatformRefused(f"{what}: redirected to an address that is none.") from None
        self._raise_for_status(response)
        return response

    def _raise_for_status(self, response: requests.Response) -> None:
        code = response.status_code
        if 200 <= code < 300:
            return
        what = f"{self._what(response)}: {code} {self._words(response)}".rstrip()
        if 300 <= code < 400:
            there = urlsplit(urljoin(response.url, response.headers.get("Location", "")))
            raise PlatformRefused(
                f"{self._what(response)}: {code}, redirected to {there.scheme}://{there.netloc}{there.path}",
                remedy=f"The base URL may have to be {there.scheme}://{there.netloc}",
                status=code,
            )
        if code in _TRANSIENT or code >= 500:
            raise PlatformUnavailable(what, retry_after=_retry_after(response))
        if code == 401:
            raise PlatformRefused(
                f"{self.host} refused the API key ({self._words(response) or code}).",
                remedy="Check the key; it is valid in one region and one workspace only.",
                status=code,
            )
        raise PlatformRefused(what, status=code)

    def _json(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except requests.exceptions.JSONDecodeError:
            pass
        if _is_web_page(response):
            raise PlatformRefused(
                f"{self.host} answered with a web page, not the API.",
                remedy="Check the base URL, and whether a login page of the network stands in between.",
            )
        raise PlatformUnavailable(f"{self._what(response)}: the answer is not JSON.")

    def _what(self, response: requests.Response) -> str:
        return f"{response.request.method} {urlsplit(response.url).path} at {self.host}"

    def _words(self, response: requests.Response) -> str:
        """Return what the server says of an error: `detail`, else `path: message`, else the start of its text."""
        try:
            reply = response.json()
        except requests.exceptions.JSONDecodeError:
            return "(a web page)" if _is_web_page(response) else self._clean(response.text)[:800]
        if isinstance(reply, dict) and isinstance(reply.get("detail"), str):
            return self._clean(reply["detail"])
        return self._clean("; ".join(_leaves(reply)) or json.dumps(reply))[:800]

    def _clean(self, text: str) -> str:
        """Return foreign text on one line, without control characters and without secrets."""
        return redact(" ".join(printable(text).split()))


def _read_whole(response: requests.Response, seconds: float) -> None:
    """Read an answer to its end; TimeoutError when that takes too long, however steadily it drips."""
    until = time.monotonic() + seconds
    pieces = []
    while piece := response.raw.read1(1 << 16, decode_content=True):
        pieces.append(piece)
        if time.monotonic() > until:
            response.close()
            raise TimeoutError
    response._content = b"".join(pieces)  # noqa: SLF001 - requests has no time-out of its own for a whole answer


def _leaves(reply: object, path: str = "") -> list[str]:
    """Return the messages of a nested error body, each behind its path: `jobanalyses.0.hardware: ...`."""
    if isinstance(reply, dict):
        return [leaf for key, value in reply.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(reply, list):
        numbered = any(isinstance(value, dict | list) for value in reply)
        return [
            leaf
            for number, value in enumerate(reply)
            for leaf in _leaves(value, f"{path}.{number}" if numbered else path)
        ]
    return [] if reply in (None, "") else [f"{path}: {reply}" if path else str(reply)]


def _retry_after(response: requests.Response) -> float | None:
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


def _is_web_page(response: requests.Response) -> bool:
    return "html" in response.headers.get("Content-Type", "").lower() or response.content.lstrip()[:1] == b"<"


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _innermost(error: BaseException) -> str:
    """Return the plainest words for a failed connection: those of the cause at the bottom."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__


def _flaws(error: ValidationError) -> str:
    """Return the fields that did not fit, without their values."""
    flaws = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in flaws)
