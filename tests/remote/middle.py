"""A man in the middle: an SSH server that lets anybody in, answers, and writes down all that it sees."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

import paramiko

from persistent_runner.remote.ssh import public_line

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[bytes, int]


class Middle(paramiko.ServerInterface):
    """Serves on a loopback port with a key of its own; a context manager.

    `answer` gives what a command prints and its exit code; None never answers. `seen` is what clients have shown, in
    order: `("user", name)`, `("key", line)`, `("session", kind)`, `("command", text)`, and any other request.
    """

    def __init__(self, answer: Callable[[str], Answer | None] = lambda _: (b"", 0)) -> None:
        self.host_key = paramiko.ECDSAKey.generate()
        self.seen: list[tuple[str, str]] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.transports: list[paramiko.Transport] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)
        for transport in self.transports:
            transport.close()
            transport.join(20)

    def _serve(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            transport = paramiko.Transport(sock)
            transport.add_server_key(self.host_key)
            self.transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(threading.Event(), server=self)

    def _note(self, kind: str, what: object) -> None:
        self.seen.append((kind, what.decode("utf-8", "replace") if isinstance(what, bytes) else str(what)))

    def get_allowed_auths(self, username: str) -> str:
        self._note("user", username)
        return "publickey"

    def check_auth_none(self, username: str) -> int:
        self._note("user", username)
        return int(paramiko.common.AUTH_FAILED)

    def check_auth_password(self, username: str, password: str) -> int:
        self._note("password", password)
        return int(paramiko.common.AUTH_SUCCESSFUL)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._note("user", username)
        self._note("key", public_line(key))
        return int(paramiko.common.AUTH_SUCCESSFUL)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._note("session", kind)
        return int(paramiko.common.OPEN_SUCCEEDED)

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self._note("env", name)
        return True

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self._note("subsystem", name)
        return False

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        self._note("agent", "forwarded")
        return True

    def check_channel_pty_request(self, channel: paramiko.Channel, *_: object) -> bool:
        self._note("pty", "asked")
        return True

    def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
        self._note("global", kind)
        return False

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._note("command", command)
        answered = self._answer(command.decode("utf-8", "replace"))
        if answered is not None:
            threading.Timer(1.0, self._reply, (channel, *answered)).start()  # once the request was said to be taken
        return True

    @staticmethod
    def _reply(channel: paramiko.Channel, text: bytes, code: int) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.sendall(text)
            channel.send_exit_status(code)
            channel.close()
