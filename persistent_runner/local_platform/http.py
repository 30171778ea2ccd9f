"""An HTTP server on loopback: waitress, with a loop that ends when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.wasyncore import close_all
from waitress.wasyncore import loop as socket_loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

_THREADS = 24
"""Ten downloads and ten uploads at a time, and the polls beside them."""


_DROP = "local_platform.drop"


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Waitress hides that an upload came in chunks; the platform refuses those, so it must be seen."""

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.chunked:
            self.headers["TRANSFER_ENCODING"] = "chunked"


class _Channel(HTTPChannel):  # type: ignore[misc]
    parser_class = _Parser

    def drop(self) -> None:
        """End the connection; what is still written goes nowhere."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


def drop_connection(environ: Mapping[str, Any]) -> None:
    """End the connection of a request that is being answered, by its WSGI environment."""
    environ[_DROP]()


class HttpServer:
    """Serves an application on 127.0.0.1 from threads. The port is bound at once, `serve` starts to answer."""

    def __init__(self, port: int, *, threads: int = _THREADS) -> None:
        self._app: Flask | None = None
        self._stopping = threading.Event()
        self._server = create_server(
            self._answer,
            # bound here: waitress leaks its own socket where the port is taken
            sockets=[socket.create_server(("127.0.0.1", port))],
            threads=threads,
            connection_limit=2000,
            max_request_body_size=1 << 40,
            asyncore_use_poll=True,
            ident=None,
        )
        self._server.channel_class = _Channel
        self.port = int(self._server.effective_port)
        self._thread = threading.Thread(target=self._loop, name="local-http", daemon=True)

    def _answer(self, environ: Any, start_response: Any) -> Any:
        assert self._app is not None
        # the one way that waitress gives to the connection: a bound method of its channel
        environ[_DROP] = environ["waitress.client_disconnected"].__self__.drop
        return self._app(environ, start_response)

    def serve(self, app: Flask) -> None:
        """Start to answer with `app`."""
        self._app = app
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            # waitress has no loop that ends on demand: this is the body of its own
            socket_loop(timeout=30, use_poll=True, map=self._server._map, count=1)  # noqa: SLF001

    def stop(self) -> None:
        """Stop to answer; connections that are open are closed."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._server.pull_trigger()
            self._thread.join()
        self._server.task_dispatcher.shutdown(timeout=1)
        close_all(self._server._map)  # noqa: SLF001
