"""`LocalRescale`: Rescale on this machine, over real HTTP and real SSH, for as long as it is held."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.attach import Attachment, ensure_process, require_posix, require_servers
from persistent_runner.local_platform.clock import Clock, RealClock
from persistent_runner.local_platform.durations import FAST, RECORDED, Durations
from persistent_runner.local_platform.faults import Faults
from persistent_runner.local_platform.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from persistent_runner.local_platform.http import HttpServer
    from persistent_runner.local_platform.job import VirtualJob
    from persistent_runner.local_platform.jobs import Jobs
    from persistent_runner.local_platform.sshd import SshHost, SshNode

__all__ = ["FAST", "RECORDED", "Attachment", "Durations", "LocalRescale", "ensure_process", "serve"]


class LocalRescale:
    """A platform below `root`, listening on 127.0.0.1 alone; a context manager.

    Its files lie in a new folder (0700) of `root`, which goes when it stops; `authorized_keys` is created if missing,
    stays, and is read anew at each login. `base_url` and `api_key` are what a client needs; both are there after
    `start`, as are `control_url` and `control_token` for faults on command from outside; `faults` takes them here.
    `journal` is a file to which every event of every job is appended. Raises ConfigError where the machine cannot
    serve it.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        authorized_keys: Path | None = None,
        durations: Durations = FAST,
        clock: Clock | None = None,
        api_key: str | None = None,
        journal: Path | None = None,
    ) -> None:
        self.root = Path(root).absolute()
        self.authorized_keys = Path(authorized_keys).absolute() if authorized_keys else self.root / "authorized_keys"
        self.api_key = api_key or secrets.token_hex(20)
        self.base_url = ""
        self.control_token = secrets.token_hex(20)
        self.control_url = ""
        self.faults = Faults()
        self._port = port
        self._durations = durations
        self._clock = clock or RealClock()
        self._changed = threading.Condition()
        self._jobs: Jobs | None = None
        self._ssh: SshHost | None = None
        self._journal_path = Path(journal).absolute() if journal else None
        self._journal: Journal | None = None
        self._http: HttpServer | None = None
        self._control: HttpServer | None = None
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start to serve."""
        require_posix()
        require_servers()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        from persistent_runner.local_platform import control, processes
        from persistent_runner.local_platform.answers import spoil_answers
        from persistent_runner.local_platform.cluster import Site
        from persistent_runner.local_platform.files import FileStore
        from persistent_runner.local_platform.http import HttpServer
        from persistent_runner.local_platform.jobs import Jobs
        from persistent_runner.local_platform.server import Api, make_app
        from persistent_runner.local_platform.shown import Shown
        from persistent_runner.local_platform.sshd import SshHost

        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="rescale-", dir=self.root))
        self.authorized_keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.authorized_keys.exists():
            self.authorized_keys.touch(mode=0o600)
        try:
            self._http = HttpServer(self._port)
        except OSError as error:
            raise ConfigError(
                f"The local platform cannot listen on 127.0.0.1:{self._port}: {error.strerror or error}",
                remedy="Choose another port, or none for a free one.",
            ) from None
        self.base_url = f"http://127.0.0.1:{self._http.port}"
        self._journal = Journal(self._journal_path)
        self._ssh = SshHost()
        self._ssh.start()
        files = FileStore(self._folder / "files", self._clock.now)
        site = Site(
            root=self._folder,
            clock=self._clock,
            durations=self._durations,
            files=files,
            path=processes.search_path(processes.python_folder(self._folder)),
            base_url=self.base_url,
            api_key=self.api_key,
            open_node=self._open_node,
            finished=self.changed,
            faults=self.faults,
            journal=self._journal,
        )
        self._jobs = Jobs(site)
        self.faults.perform = self._jobs.disturb
        app = make_app(Api(self._jobs, files, Shown(self.faults, self._clock.now)), self.api_key, files)
        spoil_answers(app, self.faults, self._jobs)
        self._http.serve(app)
        self._control = HttpServer(0, threads=2)
        self.control_url = f"http://127.0.0.1:{self._control.port}{control.PATH}"
        self._control.serve(control.make_control_app(self.faults, self.control_token))

    def stop(self) -> None:
        """End every job and its processes, stop to serve, remove the folder. Nothing to do a second time."""
        self.faults.clear()
        for server in (self._control, self._http):
            if server is not None:
                server.stop()
        if self._jobs is not None:
            self._jobs.end_all()
        if self._ssh is not None:
            self._ssh.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._journal is not None:
            self._journal.close()
        self._http = self._control = self._jobs = self._ssh = self._folder = self._journal = None

    @property
    def unfinished_jobs(self) -> int:
        """The number of jobs that were submitted and whose cluster has not stopped."""
        return self._jobs.unfinished if self._jobs is not None else 0

    def changed(self) -> None:
        """Wake whoever waits in `wait_until`."""
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition()` holds, looking at it whenever something changed; `timeout` in seconds."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def _open_node(self, job: VirtualJob, home: Path, environment: Mapping[str, str]) -> SshNode:
        from persistent_runner.local_platform import processes
        from persistent_runner.local_platform.sshd import NodeSettings

        assert self._ssh is not None

        def public_keys() -> list[str]:
            lines = [job.request.public_key or ""]
            for listed in (self.authorized_keys, job.cluster.home / ".ssh" / "authorized_keys"):
                with contextlib.suppress(OSError):
                    lines += listed.read_text(encoding="utf-8", errors="replace").splitlines()
            return lines

        def reachable(host: str, port: int) -> int | None:
            names = {
                name: machine.node.port
                for machine in job.cluster.machines
                for name in (machine.private_hostname, machine.private_ip)
            }
            if host in names and port in {22, names[host]}:
                return names[host]
            return port if host in {"127.0.0.1", "localhost"} and port in names.values() else None

        return self._ssh.open_node(NodeSettings(job.user, home, processes.shell(), environment, public_keys, reachable))


def serve(
    *,
    port: int = 0,
    authorized_keys: Path | None = None,
    durations: Durations = FAST,
    journal: Path | None = None,
    faults: Iterable[object] = (),
    on_ready: Callable[[dict[str, str]], None] = lambda _: None,
) -> None:
    """Serve a platform in the foreground until SIGINT, SIGTERM or SIGHUP, then end every job and process.

    When it is ready, `on_ready` gets `base_url`, `api_key`, `authorized_keys`, `control_url` and `control_token`, then
    they are printed on stdout as one line of JSON. Without `authorized_keys` that file lies in the platform's own
    folder and goes with it. `faults` are in force from the start. To be called in the main thread; raises ConfigError
    for a fault that there is not, and where the machine cannot serve it.
    """
    ended = threading.Event()
    require_posix()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    root = Path(tempfile.mkdtemp(prefix="persistent-runner-platform-"))
    platform = LocalRescale(root, port=port, authorized_keys=authorized_keys, durations=durations, journal=journal)
    try:
        for fault in faults:
            platform.faults.order(fault)
        with platform:
            ready = {
                "base_url": platform.base_url,
                "api_key": platform.api_key,
                "authorized_keys": os.fspath(platform.authorized_keys),
                "control_url": platform.control_url,
                "control_token": platform.control_token,
            }
            on_ready(ready)
            print(json.dumps(ready), flush=True)  # noqa: T201 - the line that callers wait for
            ended.wait()
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
