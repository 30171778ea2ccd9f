"""What it costs the driver to follow growing logs: many commands that print at a time, through one link."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistent_runner.remote.link import Link
from persistent_runner.remote.ssh import Login, load_key
from persistent_runner.remote.workdir import WorkDir
from tests.openssh import openssh

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.remote.frames import Exit

BAR = 0.05  # of a core
# Ten lines a second without a process for each: nothing comes out of the pipe, so the shell's own `read` waits.
SCRIPT = (
    "mkfifo pipe; exec 3<>pipe; for i in {1..%d}; do "
    'echo "step $i residual 1.2345e-05 continuity 2.3456e-06 energy 3.4567e-07"; read -t 0.1 -u 3 || true; done'
)


@dataclass(frozen=True)
class Row:
    """One way of following: the driver's CPU time and the frames that came, both over the wall time in seconds."""

    way: str
    cpu: float
    seconds: float
    frames_out: int
    frames_in: int
    lines: int

    @property
    def share(self) -> float:
        """Of a core."""
        return self.cpu / self.seconds


class _Link(Link):
    """A link that can be told to follow no log, whatever is asked."""

    is_followed = True

    def start(self, *args: Any, **options: Any) -> Future[Exit]:
        return super().start(*args, **(options if self.is_followed else options | {"on_log": None, "seldom": False}))


def measure(folder: Path, commands: int, lines: int) -> list[Row]:
    """Return the rows of the table: `commands` at a time print so many lines each, followed by nobody, or both ways."""
    script = SCRIPT % lines
    with openssh(folder / "openssh") as server:
        login = Login(load_key(server.key), key_name="benchmark", proof=server.proof())
        connection = login.connect(server.node())
        try:
            link = _Link(lambda: connection, run="benchmark", lease="benchmark", node="node")
            link.open()
            try:
                attempts = (f"{number:05d}.1" for number in range(4 * commands))
                heard: list[str] = []

                def work() -> WorkDir:
                    name = next(attempts)
                    path = folder / "trials" / name
                    return WorkDir(link, attempt=name, number=0, folder=path, inputs_root=folder, cores=1, env={})

                work().run("true")  # the first one loads what the others find in memory
                link.is_followed = False
                unseen = _row("followed by nobody", link, commands, lambda: work().run(script), heard)
                link.is_followed = True
                return [
                    unseen,
                    _row("live log of each trial", link, commands, lambda: work().run(script), heard),
                    _row("on_line for each", link, commands, lambda: work().run(script, on_line=heard.append), heard),
                ]
            finally:
                link.close()
        finally:
            connection.close()


def _row(way: str, link: Link, commands: int, run: Callable[[], object], heard: list[str]) -> Row:
    before = link.frames_out, link.frames_in, len(heard)
    begun, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(commands) as pool:
        for future in [pool.submit(run) for _ in range(commands)]:
            future.result()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return Row(way, cpu, seconds, link.frames_out - before[0], link.frames_in - before[1], len(heard) - before[2])


def table(rows: list[Row], commands: int) -> str:
    """Return the rows as text, each with what following costs beyond the first."""
    lines = [
        f"{f'{commands} commands that print 10 lines/s':<36}{'driver CPU':>12}{'following':>12}{'frames out, in':>17}"
    ]
    for row in rows:
        more = row.share - rows[0].share
        missed = "" if more < BAR else "  MISSED"
        frames = f"{row.frames_out}, {row.frames_in}"
        lines.append(f"{row.way:<36}{row.share:>11.1%} {more:>11.1%} {frames:>16}{missed}")
    return "\n".join(lines)
