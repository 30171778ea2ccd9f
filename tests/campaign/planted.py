"""`python -m tests.campaign.planted`: bugs that a driver must not have, each planted alone into a copy of the code.

A campaign that does not find them is worth nothing. Each is looked for by the play that is made for it; the table says
which promises were seen broken.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).parents[2]
SECONDS = 400.0  # for one play


@dataclass(frozen=True)
class Bug:
    """A text of a file below the package, what is planted in its place, and the play that shows it."""

    name: str
    file: str
    was: str
    now: str
    play: str


BUGS = (
    Bug(
        "any request is asked again",
        "rescale/transport.py",
        'if method != "GET" or not patient:',
        "if not patient:",
        "lost answers",
    ),
    Bug(
        "the study is told before the journal has it",
        "study/committed.py",
        """        commit(self._folder, number, running.params, result, outputs)
        crash_point("result-recorded")
        self._outbox.put(running.trial, result)
""",
        """        self._outbox.put(running.trial, result)
        self._outbox.deliver()
        commit(self._folder, number, running.params, result, outputs)
""",
        "told",
    ),
    Bug(
        "a job whose answer was lost is not looked for",
        "lease/create.py",
        "(found := _look_for(access, request.name, patience))",
        "(found := list[str]())",
        "lost answers",
    ),
    Bug(
        "the switch waits for a first beat without an end",
        "lease/keeper.py",
        "else miss=$((miss+1)); fi",
        'elif [ -n "$cur" ]; then miss=$((miss+1)); fi',
        "deserted in the queue",
    ),
    Bug(
        "results are taken before the command has ended",
        "remote/agent.py",
        """        asked = wait_signal([signal.SIGTERM, signal.SIGCHLD], left) == signal.SIGTERM
""",
        """        asked = wait_signal([signal.SIGTERM, signal.SIGCHLD], POLL) == signal.SIGTERM
        if os.fstat(1).st_size > len("done solving"):
            return "done", 0, 0
""",
        "launched",
    ),
    Bug(
        "any host key is accepted",
        "remote/ssh.py",
        "if self.accepted is not None and self.seen not in self.accepted:",
        "if self.accepted is not None and not self.seen:",
        "another host",
    ),
    Bug(
        "what a dead supervisor leaves is not looked for",
        "remote/agent.py",
        "left = marked(os.path.join(self.root, watch.command))",
        "left = set()",
        "dead supervisors",
    ),
    Bug(
        "the seed does not move on",
        "study/storage.py",
        """    return int.from_bytes(hashlib.sha256(f"{seed}:{trials}{run and f':{run}'}".encode()).digest()[:4], "big")
""",
        """    return seed
""",
        "told:2",
    ),
    Bug(
        "a time-out ends the shell alone",
        "remote/agent.py",
        "gone = sweep(signal.SIGTERM",
        'gone = (state == "timeout" and not send_signal([child], signal.SIGKILL)) or sweep(signal.SIGTERM',
        "hanging solvers",
    ),
    Bug(
        "the result is recorded before the outputs are here",
        "study/objective.py",
        "        here: set[str] = set()",
        """        import threading
        threading.Timer(2.0, lambda: [work.pull(name) for name in spec.trial.outputs]).start()
        here, outputs = set(), []""",
        "result-recorded",
    ),
    Bug(
        "another driver's trial is settled",
        "study/resume.py",
        "ours = [frozen for frozen in running if owner(frozen) == folder.run_id]",
        "ours = [frozen for frozen in running if owner(frozen) is not None]",
        "two drivers",
    ),
    Bug(
        "an agent that was replaced starts what it was sent",
        "remote/agent.py",
        "return os.path.exists(self.newer)",
        "return False",
        "an agent wakes late",
    ),
)


def broken_with(bug: Bug) -> list[str]:
    """Plant a bug into a copy of the code; return the promises that its play sees broken."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("persistent_runner", "tests"):
            shutil.copytree(TREE / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder, "persistent_runner", bug.file)
        text = file.read_text("utf-8")
        if text.count(bug.was) != 1:
            raise ValueError(f"{bug.name}: {bug.file} has {text.count(bug.was)} times what it is planted in place of")
        file.write_text(text.replace(bug.was, bug.now), "utf-8")
        line = [sys.executable, "-m", "tests.campaign", "--play", bug.play]
        played = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    rows = re.findall(r"^(\S.*?) {2,}(\d+) studies$", played.stdout, re.MULTILINE)
    if not rows:
        raise ValueError(f"{bug.name}: the campaign itself failed: {played.stderr[-2000:]}")
    return [promise for promise, count in rows if int(count)]


def main() -> int:
    """Plant each bug, print by which promises it was caught; return 1 where one was not."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.planted", description=__doc__)
    parser.add_argument("--together", type=int, default=4, help="how many are tried at a time")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.together) as pool:
        found = list(pool.map(broken_with, BUGS))
    for bug, broken in zip(BUGS, found, strict=True):
        print(f"{bug.name:<52}{', '.join(broken) or 'NOT CAUGHT'}")
    print(f"{sum(map(bool, found))} of {len(BUGS)} caught")
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
