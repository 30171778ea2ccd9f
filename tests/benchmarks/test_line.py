"""The line is as long and as narrow as it says; how much longer a busy machine makes it is not a test."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.benchmarks.line import line
from tests.benchmarks.tcp import HOST, served
from tests.openssh import free_port

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

RTT = 0.1


def echo() -> AbstractContextManager[int]:
    """Serve a port that sends back what comes, and its end when that comes."""

    def answer(sock: socket.socket) -> None:
        while data := sock.recv(1 << 18):
            sock.sendall(data)

    return served(answer)


def connect(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(1 << 18)
        assert more
        data += more
    return data


def test_each_ping_takes_a_round_trip_and_many_at_once_take_little_more() -> None:
    """The handshake is one round trip and each ping another; what is under way together waits for nothing."""
    pings = 10
    with echo() as target, line(HOST, target, RTT) as port:
        begun = time.monotonic()
        with connect(port) as sock:
            sock.sendall(b"?")
            read(sock, 1)
            opened = time.monotonic()
            for _ in range(pings):
                sock.sendall(b"?")
                read(sock, 1)
            one_by_one = time.monotonic() - opened

            def burst() -> float:
                begun = time.monotonic()
                for _ in range(pings):
                    sock.sendall(b"?")
                    time.sleep(0.001)
                read(sock, pings)
                return time.monotonic() - begun

            at_once = min(burst() for _ in range(5))
    assert opened - begun >= 2 * RTT
    assert one_by_one >= pings * RTT
    assert RTT <= at_once < one_by_one / 2


def test_connections_share_the_bandwidth_and_lose_nothing() -> None:
    """Two that send at a time take as long as their bytes together, and each gets all of its own back, and the end."""
    size, rate = 1 << 20, 40e6
    found: dict[int, tuple[str, str]] = {}

    def send(number: int, port: int) -> None:
        sent, digest = os.urandom(size), hashlib.sha256()
        with connect(port) as sock:
            writer = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR)))
            writer.start()
            while data := sock.recv(1 << 18):
                digest.update(data)
            writer.join()
        found[number] = hashlib.sha256(sent).hexdigest(), digest.hexdigest()

    with echo() as target, line(HOST, target, 0.01, rate) as port:
        begun = time.monotonic()
        threads = [threading.Thread(target=send, args=(number, port)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - begun
    assert len(found) == 2
    assert all(sent == back for sent, back in found.values())
    assert taken >= 2 * size * 8 / rate


def test_a_full_buffer_holds_the_sender_back() -> None:
    """Before the narrow place lies what 1.5 s carry, and no more: the rest stays with the sender."""
    rate = 8e6
    with echo() as target, line(HOST, target, 0.0, rate) as port, connect(port) as sock:
        sock.setblocking(False)
        sent, until = 0, time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                sent += sock.send(bytes(1 << 18))
            except BlockingIOError:
                time.sleep(0.001)
        assert sent < 32 << 20


def test_who_does_not_listen_is_seen_to_end_the_connection() -> None:
    """A target that refuses ends what was opened towards it."""
    with line(HOST, free_port(), 0.01) as port, connect(port) as sock, suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def test_connections_that_come_and_go_are_told_apart() -> None:
    """What comes of a connection that was closed is not taken for the next one's, of the same number."""
    answered = []

    def ask(port: int) -> None:
        for _ in range(100):
            with connect(port) as sock:
                sock.sendall(b"?")
                answered.append(read(sock, 1))

    with echo() as target, line(HOST, target, 0.0) as port:
        threads = [threading.Thread(target=ask, args=(port,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answered) == 400


def test_it_carries_much_where_nothing_is_narrow() -> None:
    """Without a bandwidth the delay alone counts: as much as fits is under way at once."""
    size = 32 << 20
    with echo() as target, line(HOST, target, RTT) as port, connect(port) as sock:
        begun = time.monotonic()
        writer = threading.Thread(target=sock.sendall, args=(bytes(size),))
        writer.start()
        left = size
        while left:
            left -= len(sock.recv(1 << 18))
        writer.join()
        taken = time.monotonic() - begun
    assert taken < RTT * size / (1 << 18)
