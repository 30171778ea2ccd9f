"""A tiny HTTP server whose replies a test writes down one by one: for what the local platform never says."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from persistent_runner.recovery import Backoff

KEY = "canary0123456789abcdef0123456789abcdef01"
QUICK = Backoff(first=0.001, most=0.01, total=30)


@dataclass
class Said:
    """A reply; `cut` promises more bytes than it sends and closes the connection, `drip` sends a byte each n seconds."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    drip: float = 0.0


class Script:
    """Replies by `METHOD path?query`, each list of replies in order, the last one for ever; and what was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Said]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    def says(self, call: str, *replies: Said) -> None:
        method, path = call.split(" ", 1)
        self.replies[f"{method} /api/v2/{path}"] = list(replies)

    def calls(self, method: str) -> list[str]:
        return [call for call, _, _ in self.asked if call.startswith(method)]

    def reply(self, call: str) -> Said:
        replies = (
            self.replies.get(call)
            or self.replies.get(call.split("?", maxsplit=1)[0])
            or [Said(404, {"detail": "Not found."})]
        )
        return replies.pop(0) if len(replies) > 1 else replies[0]


def serve(script: Script) -> ThreadingHTTPServer:
    """Return a server on a free port that follows the script; its loop is not running yet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = f"{self.command} {self.path}"
            script.asked.append((call, dict(self.headers), body))
            said = script.reply(call)
            text = said.body if isinstance(said.body, str) else "" if said.body is None else json.dumps(said.body)
            data = text.encode()
            self.send_response_only(said.status)  # without a Date of its own
            kind = "application/json" if not isinstance(said.body, str) else "text/plain"
            for name, value in {"Content-Type": kind, **said.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + (10 if said.cut else 0)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who waited has gone
                for piece in [data[n : n + 1] for n in range(len(data))] if said.drip else [data]:
                    self.wfile.write(piece)
                    threading.Event().wait(said.drip)
            self.close_connection = said.cut

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - the names of the standard library

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_port}"
    return server
