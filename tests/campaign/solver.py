"""The solver of the campaign's studies: it writes into a file of its own what it was started with, and when it ended.

Standard library alone; it is an input of the studies and runs on the node.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

SIZE = 300_000  # bytes: more than travels with an exit


def field(number: int, x: float) -> bytes:
    """The large result of a trial."""
    seed = hashlib.sha256(f"{number} {x!r}".encode()).digest()
    return seed * (SIZE // len(seed)) + b"end\n"


def say(event: str, **facts: object) -> None:
    """Append a line to the truth, in one write, and wait until the disk has it."""
    record = {"event": event, "attempt": Path.cwd().name, "at": time.monotonic(), **facts}
    fd = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (json.dumps(record) + "\n").encode())
    os.fsync(fd)
    os.close(fd)


def main() -> None:
    """Solve: y is the square of x. It takes so many seconds once to three times, and every third trial more of them."""
    x = json.loads(Path("parameters.json").read_text())["x"]
    number = int(os.environ["TRIAL_NUMBER"])
    say("start", number=number, x=x)
    # As solvers do: what is there before the end is neither whole nor right.
    Path("field.bin").write_bytes(field(number, x)[: SIZE // 2])
    Path("out.json").write_text(json.dumps({"y": -1.0}))
    print("solving", flush=True)
    time.sleep(float(sys.argv[1]) * (1 + number % 3))
    if number % 3 == 2:
        time.sleep(float(sys.argv[2]))
    Path("field.bin").write_bytes(field(number, x))
    Path("out.json").write_text(json.dumps({"y": x * x}))
    say("end", number=number, x=x, y=x * x)


if __name__ == "__main__":
    main()
