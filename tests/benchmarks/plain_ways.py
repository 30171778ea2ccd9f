"""How else a trial is run over SSH: the ways of Rescale's tutorial, Fabric, paramiko and OpenSSH, each at its best.

Each way is a context manager that gives a call: it runs one trial and returns its results, (small, big).
"""

from __future__ import annotations

import io
import itertools
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fabric
import paramiko

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.benchmarks.far import Far

Results = tuple[bytes, bytes]
SMALL, BIG = "small", "big"


class Sample:
    """A trial as many are: texts of 2, 8 and 20 KB to send, a pipe and a copy to run, 1 KB and 64 KB to bring back."""

    def __init__(self, place: Far) -> None:
        self._home = place.server.home
        source = self._home / "random.bin"
        if not source.exists():
            source.write_bytes(os.urandom(1 << 16))
        self.files = {name: _text(size) for name, size in (("mesh.txt", 2000), ("bc.txt", 8000), ("case.txt", 20000))}
        self.small_command = f"cat {' '.join(self.files)} | tail -c 1024 > {SMALL}"
        self.command = f"{self.small_command}; cp '{source}' {BIG}"
        self.results = b"".join(self.files.values())[-1024:], source.read_bytes()

    def new_folder(self) -> str:
        """Return a name on the server that no trial has had."""
        return f"{self._home}/plain.{secrets.token_hex(6)}"


def _text(size: int) -> bytes:
    lines = (f"node {n:6d}  x = {n * 0.125:12.6f}  y = {n * n % 977 / 7:12.6f}  fixed\n" for n in itertools.count())
    text = ""
    while len(text) < size:
        text += next(lines)
    return text[:size].encode()


def plain(place: Far) -> fabric.Connection:
    """Return a connection as Fabric gives it: no shorter way, no faster cipher, nothing of ours."""
    keys = {"key_filename": str(place.server.key)}
    return fabric.Connection(place.node.address, user=place.node.user, port=place.node.port, connect_kwargs=keys)


@contextmanager
def by_fabric(place: Far, sample: Sample) -> Iterator[Callable[[], Results]]:
    """One connection of plain Fabric: put, run, get."""
    with plain(place) as connection, tempfile.TemporaryDirectory() as here:
        for name, data in sample.files.items():
            Path(here, name).write_bytes(data)

        def trial() -> Results:
            folder = sample.new_folder()
            connection.run(f"mkdir {folder}", hide=True, in_stream=False)
            for name in sample.files:
                connection.put(f"{here}/{name}", f"{folder}/{name}")
            connection.run(f"cd {folder}; {sample.command}", hide=True, in_stream=False)
            for name in (SMALL, BIG):
                connection.get(f"{folder}/{name}", f"{here}/{name}")
            return Path(here, SMALL).read_bytes(), Path(here, BIG).read_bytes()

        yield trial


@contextmanager
def _paramiko(place: Far) -> Iterator[paramiko.SSHClient]:
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(
            place.node.address,
            place.node.port,
            place.node.user,
            key_filename=str(place.server.key),
            look_for_keys=False,
        )
        yield client


@contextmanager
def by_connecting(place: Far, sample: Sample) -> Iterator[Callable[[], Results]]:
    """A connection of paramiko for each trial, and scp for each file, as in Rescale's tutorial."""

    def trial() -> Results:
        folder = sample.new_folder()
        with _paramiko(place) as client:
            _execute(client, f"mkdir {folder}")
            for name, data in sample.files.items():
                _scp_there(client, f"{folder}/{name}", data)
            _execute(client, f"cd {folder}; {sample.command}")
            return _scp_back(client, f"{folder}/{SMALL}"), _scp_back(client, f"{folder}/{BIG}")

    yield trial


@contextmanager
def by_sftp(place: Far, sample: Sample) -> Iterator[Callable[[], Results]]:
    """One connection of paramiko with one SFTP session, nothing confirmed that need not be."""
    with _paramiko(place) as client, client.open_sftp() as sftp:

        def trial() -> Results:
            folder = sample.new_folder()
            sftp.mkdir(folder)
            for name, data in sample.files.items():
                sftp.putfo(io.BytesIO(data), f"{folder}/{name}", confirm=False)
            _execute(client, f"cd {folder}; {sample.command}")
            small, big = io.BytesIO(), io.BytesIO()
            sftp.getfo(f"{folder}/{SMALL}", small)
            sftp.getfo(f"{folder}/{BIG}", big)
            return small.getvalue(), big.getvalue()

        yield trial


@contextmanager
def by_control_master(place: Far, sample: Sample) -> Iterator[Callable[[], Results]]:
    """OpenSSH's own client on one connection that it keeps: tar there, the command, tar back, one session a trial."""
    # a socket's name has 100 characters at most; who is told to exit takes it away when it likes
    with tempfile.TemporaryDirectory() as short:
        line = ["ssh", "-F", "none", "-S", f"{short}/control", "-i", str(place.server.key), "-p", str(place.node.port)]
        line += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        line += [f"{place.node.user}@{place.node.address}"]
        subprocess.run([*line[:1], "-M", "-N", "-f", *line[1:]], check=True, stdin=subprocess.DEVNULL)
        try:
            yield lambda: _by_tar(line, sample)
        finally:
            subprocess.run([*line[:-1], "-O", "exit", line[-1]], check=True, capture_output=True)


def _by_tar(line: list[str], sample: Sample) -> Results:
    folder = sample.new_folder()
    there = io.BytesIO()
    with tarfile.open(fileobj=there, mode="w:gz", compresslevel=1) as archive:
        for name, data in sample.files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    script = f"mkdir {folder} && cd {folder} && tar xz && {{ {sample.command}; }} && tar cz {SMALL} {BIG}"
    back = subprocess.run([*line, script], input=there.getvalue(), capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(back)) as archive:
        found = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    return found[SMALL], found[BIG]


WAYS = {
    "plain Fabric: put, run, get": by_fabric,
    "paramiko: a connection a trial, scp": by_connecting,
    "paramiko: one SFTP session": by_sftp,
} | ({"OpenSSH: ControlMaster, tar": by_control_master} if shutil.which("ssh") else {})


def _execute(client: paramiko.SSHClient, command: str) -> None:
    _, out, _ = client.exec_command(command)
    assert out.channel.recv_exit_status() == 0


def _scp_there(client: paramiko.SSHClient, path: str, data: bytes) -> None:
    into, out, _ = client.exec_command(f"scp -t {path}")
    for part in (f"C0644 {len(data)} file\n".encode(), data + b"\0"):
        assert out.read(1) == b"\0"
        into.write(part)
        into.flush()
    assert out.read(1) == b"\0"
    into.channel.shutdown_write()
    assert out.channel.recv_exit_status() == 0


def _scp_back(client: paramiko.SSHClient, path: str) -> bytes:
    into, out, _ = client.exec_command(f"scp -f {path}")
    into.write(b"\0")
    size = int(out.readline().split()[1])
    into.write(b"\0")
    data = bytes(out.read(size))
    assert out.read(1) == b"\0"
    into.write(b"\0")
    assert out.channel.recv_exit_status() == 0
    return data
