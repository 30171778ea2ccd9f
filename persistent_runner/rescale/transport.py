"""HTTP to Rescale at one door: authentication, time-outs, pages, repeats of GET, and faults as our own errors."""

from __future__ import annotations

import json
import logging
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
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
from persistent_runner.rescale.replies import flaws, innermost, is_web_page, leaves, retry_after
from persistent_runner.settings import is_loopback

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

    from persistent_runner.rescale.api import Endpoint, Wire

log = logging.getLogger(__name__)

Row = TypeVar("Row", bound=BaseModel)

_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two bytes
_TOTAL = 180.0  # seconds for a whole answer
_SOON = (5.0, 10.0)  # the same for who cannot wait
_MOST_PAGES = 1000
_PAGE_SIZE = 200
_TRANSIENT = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_BLOCK = 1 << 18  # bytes


class _TokenAuth(AuthBase):
    """`Authorization: Token KEY` on every request; a machine entry in ~/.netrc cannot take its place."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._api_key}"
        return request


class _NoAuth(AuthBase):
    """Nothing in place of the key, not even a machine entry of ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


@dataclass(frozen=True)
class Content:
    """An answer whose body is read piece by piece; `blocks(seconds)` raises PlatformUnavailable when that is over."""

    status: int
    headers: Mapping[str, str]
    blocks: Callable[[float], Iterator[bytes]]


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
        url = self._url(endpoint, names)
        if endpoint.shape == "list":
            return self._list(url, params or {}, endpoint.reply, patient=patient)
        response = self._send(endpoint.method, url, params=params, body=body, patient=patient)
        if endpoint.shape != "object":
            if response.content.lstrip()[:1] == b"<":  # a web page, whose 200 is no word of a deed
                raise self._no_api()
            return None
        try:
            return endpoint.reply.model_validate(self._json(response))
        except ValidationError as error:
            raise PlatformRefused(f"{self._what(response)}: the answer has another shape: {flaws(error)}") from None

    @contextmanager
    def stream(self, endpoint: Endpoint[Any, Any], *, headers: Mapping[str, str], **names: str) -> Iterator[Content]:
        """Open the content that an endpoint answers a GET with, in one try; the caller reads it and repeats.

        Whether `contents/` streams or redirects is not known, so redirects are followed: it may be a store's presigned
        address. The key goes to the platform's own origin alone, and nothing goes out in plain text but to loopback.
        """
        url = self._url(endpoint, names)
        for _ in range(_MOST_REDIRECTS):
            response = self._open(url, headers)
            if response.status_code not in _REDIRECTS:
                break
            response.close()
            url = self._redirected(url, response.headers.get("Location", ""))
        else:
            raise PlatformRefused(f"{self._asked('GET', url)}: the redirects did not end.")
        with closing(response):
            if not response.ok and self._is_ours(url):
                with self._translated(self._what(response)):
                    _read_whole(response, self._deadline)
            self._raise_for_status(response)
            yield Content(response.status_code, response.headers, partial(self._blocks, response))

    def _open(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        with self._translated(self._asked("GET", url)):
            return self._session.get(
                url,
                headers=dict(headers),
                auth=None if self._is_ours(url) else _NoAuth(),  # None: the session's own
                timeout=_TIMEOUT,
                allow_redirects=False,
                stream=True,
            )

    def _redirected(self, current: str, location: str) -> str:
        """Return where a redirect leads; PlatformRefused for an address that is none, or in plain text."""
        try:
            there = urljoin(current, location)
            local = is_loopback(there) and is_loopback(self.base_url)
            safe = urlsplit(there).scheme in ({"http", "https"} if local else {"https"})
            self._is_ours(there)  # reads the port
        except ValueError:
            safe = False
        if not safe:
            raise PlatformRefused(f"{self._asked('GET', current)}: redirected to an address that is none or not https.")
        return there

    def _blocks(self, response: requests.Response, seconds: float) -> Iterator[bytes]:
        what, until = self._what(response), time.monotonic() + seconds
        while True:
            with self._translated(what):
                block = response.raw.read1(_BLOCK, decode_content=True)
            if not block:
                return
            yield block
            if time.monotonic() > until:
                raise PlatformUnavailable(f"{what}: the content did not come in time.")
            if self._stop is not None and self._stop.is_set():
                raise PlatformUnavailable(f"{what}: given up, as the program is to end.")

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
                log.warning("%s is left out, it has another shape: %s", where, flaws(error))
            return None

    def _next(self, following: object, current: str) -> str | None:
        """Return the address of the next page, None after the last; refuse one that would take the key elsewhere."""
        if not isinstance(following, str) or not following:
            return None
        try:
            there = urljoin(current, following)
            parts, stays = urlsplit(there), self._is_ours(there)
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
        """Send one request and read its answer to the end."""
        with self._translated(self._asked(method, url)):
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
        self._raise_for_status(response)
        return response

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn HTTP's faults into ours; the only place that does."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise PlatformRefused(
                f"{what}: the certificate is not trusted ({self._clean(innermost(error))}).",
                remedy="Behind a proxy that opens TLS, set REQUESTS_CA_BUNDLE to its certificate.",
            ) from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
            raise PlatformUnavailable(f"{what}: no answer in time.") from None
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            raise PlatformUnavailable(f"{what}: the connection failed ({self._clean(innermost(error))}).") from None
        except requests.RequestException as error:
            raise PlatformRefused(f"{what}: {type(error).__name__}.") from None
        except ValueError:  # requests reads the address of a redirect that it does not follow
            raise PlatformRefused(f"{what}: redirected to an address that is none.") from None

    def _raise_for_status(self, response: requests.Response) -> None:
        code = response.status_code
        if 200 <= code < 300:
            return
        ours = self._is_ours(response.url)
        # The words of another host are left unread: they may repeat a presigned address.
        what = f"{self._what(response)}: {code} {self._words(response) if ours else ''}".rstrip()
        if 300 <= code < 400:
            there = urlsplit(urljoin(response.url, response.headers.get("Location", "")))
            raise PlatformRefused(
                f"{self._what(response)}: {code}, redirected to {there.scheme}://{there.netloc}{there.path}",
                remedy=f"The base URL may have to be {there.scheme}://{there.netloc}",
                status=code,
            )
        if code in _TRANSIENT or code >= 500:
            raise PlatformUnavailable(what, retry_after=retry_after(response), throttled=code == 429)
        if code == 401 and ours:
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
        if is_web_page(response):
            raise self._no_api()
        raise PlatformUnavailable(f"{self._what(response)}: the answer is not JSON.")

    def _no_api(self) -> PlatformRefused:
        return PlatformRefused(
            f"{self.host} answered with a web page, not the API.",
            remedy="Check the base URL, and whether a login page of the network stands in between.",
        )

    def _url(self, endpoint: Endpoint[Any, Any], names: Mapping[str, str]) -> str:
        path = endpoint.path.format(**{key: quote(value, safe="/") for key, value in names.items()})
        return f"{self.base_url}{API_ROOT}{path}"

    def _is_ours(self, url: str) -> bool:
        return _origin(urlsplit(url)) == _origin(urlsplit(self.base_url))

    def _asked(self, method: str, url: str) -> str:
        """Return what was asked of whom; of another host's address nothing else, it may be a presigned one."""
        if self._is_ours(url):
            return f"{method} {urlsplit(url).path} at {self.host}"
        return f"{method} at {urlsplit(url).hostname}, where {self.host} redirected to"

    def _what(self, response: requests.Response) -> str:
        return self._asked(response.request.method or "", response.url)

    def _words(self, response: requests.Response) -> str:
        """Return what the server says of an error: `detail`, else `path: message`, else the start of its text."""
        try:
            reply = response.json()
        except requests.exceptions.JSONDecodeError:
            return "(a web page)" if is_web_page(response) else self._clean(response.text)[:800]
        if isinstance(reply, dict) and isinstance(reply.get("detail"), str):
            return self._clean(reply["detail"])
        return self._clean("; ".join(leaves(reply)) or json.dumps(reply))[:800]

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


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
