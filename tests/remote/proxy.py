"""A network between a test and a server: it can go away, or go silent."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Forwards a loopback port of its own to another one; a context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket, threading.Event]] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.passed = 0  # bytes so far, both ways

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(20)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return len(self._pairs)

    def drop(self) -> int:
        """Cut every connection, as a network that goes away does; return how many there were."""
        cut = 0
        with self._lock:
            for near, far, flow in self._pairs:
                flow.set()
                with contextlib.suppress(OSError):
                    near.shutdown(socket.SHUT_RDWR)
                    cut += 1
                with contextlib.suppress(OSError):
                    far.shutdown(socket.SHUT_RDWR)
        return cut

    def freeze(self) -> None:
        """Let the present connections stay open and carry nothing any more; new ones work."""
        with self._lock:
            for *_, flow in self._pairs:
                flow.clear()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            flow, left = threading.Event(), [2]
            flow.set()
            with self._lock:
                self._pairs.append((near, far, flow))
            self._spawn(self._pump, near, far, flow, left)
            self._spawn(self._pump, far, near, flow, left)

    def _pump(self, source: socket.socket, sink: socket.socket, flow: threading.Event, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                flow.wait()
                sink.sendall(data)
                with self._lock:
                    self.passed += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left[0] -= 1
            if not left[0]:
                source.close()
                sink.close()
