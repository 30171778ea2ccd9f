"""The agent's own rules, as plain functions, and that an old Python runs it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from persistent_runner.remote import agent
from persistent_runner.remote.frames import decode, encode
from tests.remote.conftest import until

SOURCE = Path(agent.__file__).read_text("utf-8")


def test_python_36_parses_it() -> None:
    """A cluster with an old system Python can run the agent."""
    ast.parse(SOURCE, feature_version=(3, 6))
    imported = {
        name.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for name in node.names
    }
    assert not any(name.startswith("persistent_runner") for name in imported)


def test_it_brings_no_threads() -> None:
    """What `threading` does after each fork takes as long as the fork itself, and a command takes two processes."""
    shown = "import sys; exec(sys.stdin.read()); print('threading' in sys.modules)"
    found = subprocess.run(["python3", "-IS", "-c", shown], input=SOURCE, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*.csv", ["a.csv", ".csv"], ["d/a.csv", "a.csv2", "A.CSV"]),
        ("**/*.csv", ["a.csv", "d/a.csv", "d/e/a.csv"], ["a.txt"]),
        ("d/*/x", ["d/e/x"], ["d/x", "d/e/f/x"]),
        ("d/**/x", ["d/x", "d/e/f/x"], ["x"]),
        ("?[a-c]", ["xa"], ["xd", "/a", "a"]),
        ("[!a]", ["b"], ["a", "/"]),
        ("[]]", ["]"], ["["]),
        ("a.b$", ["a.b$"], ["aab$", "a.b"]),
        ("[[]x", ["[x"], ["x"]),
        ("[", ["["], ["x"]),
    ],
)
def test_patterns(pattern: str, matches: list[str], others: list[str]) -> None:
    """`*` and `?` stay within a name, `**/` crosses folders, everything else is literal."""
    compiled = agent.pattern(pattern)
    assert [name for name in matches + others if compiled.match(name)] == matches


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a/.", "./a", "a\0", "link/a"])
def test_paths_that_lead_out(path: str, tmp_path: Path) -> None:
    """No request can name what is not below the attempt's folder."""
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(ValueError, match=r"path below|symbolic link"):
        agent.plain_path(str(tmp_path), path)


def test_manifest(tmp_path: Path) -> None:
    """The manifest names each output once, in the patterns' order; only a regular file has a checksum."""
    (tmp_path / ".attempt").mkdir()
    (tmp_path / ".attempt" / "log").write_text("of the runner")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to("../b.txt")
    os.mkfifo(tmp_path / "fifo")
    found = agent.manifest_of(str(tmp_path), ["b.txt", "**/*", "missing"])
    assert [entry["path"] for entry in found] == ["b.txt", "a.txt", "fifo", "sub/link"]
    assert found[0]["sha256"] == "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
    assert [entry.get("problem") for entry in found[2:]] == ["not a regular file", "a symbolic link"]
    assert "sha256" not in agent.manifest_of(str(tmp_path), ["a.txt"], checksums=False)[0]


def test_a_reused_process_id_is_dead() -> None:
    """A pid record is of one process alone: the same number at another start or another boot is somebody else."""
    state = agent.process_stat(os.getpid())
    assert state is not None
    record = {"pid": os.getpid(), "started": state[2], "boot": agent.boot_id()}
    assert agent.is_alive(record)
    assert not agent.is_alive({**record, "started": "1"})
    assert not agent.is_alive({**record, "boot": "another"})
    assert not agent.is_alive({**record, "pid": 2**22 + 1})


def test_a_zombie_is_dead() -> None:
    """A process that has ended and that nobody has reaped is there by its number, and runs no more (row R8)."""
    ended = subprocess.Popen(["true"])
    while (found := agent.process_stat(ended.pid)) is not None and found[0] != "Z":
        os.sched_yield()
    assert found is not None
    os.kill(ended.pid, 0)  # what a look by `kill -0` takes for life
    record = {"pid": ended.pid, "started": found[2], "boot": agent.boot_id()}
    assert not agent.is_alive(record)
    assert ended.pid not in agent.all_parents()
    ended.wait()


def agent_of(python: str, of_run: str = "r") -> list[str]:
    """Return the command line of an agent."""
    program = "import sys,json;exec(compile(sys.argv[1],'agent','exec'));main(json.loads(sys.argv[2]))"
    config = {"run": of_run, "lease": "l", "node": "n", "head": "n", "grace": 0.3, "nonce": "N"}
    return [python, "-IS", "-c", program, SOURCE, json.dumps(config)]


def talk(
    python: str, home: Path, requests: list[tuple[dict[str, Any], bytes]], *, of_run: str = "r", **env: str
) -> list[dict[str, Any]]:
    """Run an agent under a Python until each request has its answer; return the answers by id."""
    process = subprocess.Popen(
        agent_of(python, of_run),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **env},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() + process.stdout.readline() == b"\nN\n"
        answers: dict[int, dict[str, Any]] = {}
        for header, body in requests:
            process.stdin.write(encode(header, body))
            process.stdin.flush()
            while header["id"] not in answers:
                head = process.stdout.read(8)
                frame = head + process.stdout.read(sum(struct.unpack(">II", head)))
                [(answer, content)] = decode(bytearray(frame), "node")
                if answer["t"] != "hello":
                    answers[answer["id"]] = {**answer, "body": content}
        process.stdin.close()
    return [answers[header["id"]] for header, _ in requests]


def command(script: str, **options: Any) -> dict[str, Any]:
    """Return a request to run a script."""
    return {
        "t": "run", "id": 1, "attempt": "a.1", "seq": 0, "hash": "h", "script": script, "env": {}, "cores": 1,
        "timeout": None, "stall": None, "files": [], "outputs": [], "inline": 1 << 18, "follow": None, **options,
    }  # fmt: skip


def test_names_in_the_c_locale(tmp_path: Path) -> None:
    """A node without a UTF-8 locale keeps every name, value and script as it was sent."""
    found = talk(
        shutil.which("python3") or "python3",
        tmp_path,
        [
            (command('cat é; echo "$V ß"; cp é ü', files=[["é", 0o644, 2]], env={"V": "漢"}, outputs=["ü"]), b"e\n"),
            ({"t": "get", "id": 2, "path": "a.1/ü", "offset": 0, "length": 10}, b""),
        ],
        LC_ALL="POSIX",
        PYTHONCOERCECLOCALE="0",
    )
    assert found[0]["body"].startswith("e\n漢 ß\n".encode())
    assert found[0]["manifest"][0]["path"] == "ü"
    assert found[1]["body"] == b"e\n"


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9", "3.10", "3.12", "3.13"])
def test_other_pythons(version: str, tmp_path: Path) -> None:
    """The agent works under every Python from 3.6 on that this machine has."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no python{version}")
    found = talk(
        python,
        tmp_path,
        [
            (command("echo é; seq 3 > out; exit 4", outputs=["*"]), b""),
            (command("echo é; seq 3 > out; exit 4", id=2), b""),
            (command("sleep 600", id=3, attempt="a.2", timeout=0.2), b""),
            ({"t": "list", "id": 4, "attempt": "a.1", "outputs": ["**/*"]}, b""),
            ({"t": "drop", "id": 5, "attempt": "a.1"}, b""),
            ({"t": "ping", "id": 6, "beat": "a1b2.3"}, b""),
        ],
        LC_ALL="C",
    )
    assert [(answer.get("state"), answer.get("code")) for answer in found[:3]] == [
        ("done", 4),
        ("done", 4),
        ("timeout", 143),
    ]
    assert [entry["path"] for entry in found[3]["manifest"]] == ["out"]
    assert not (tmp_path / "work" / "r" / "a.1").exists()
    assert (tmp_path / ".persistent-runner" / "l" / "beat").read_text() == "a1b2.3\n"


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9", "3.10", "3.12", "3.13"])
def test_links_and_copies_under_other_pythons(version: str, tmp_path: Path) -> None:
    """A kept file, copies of it and links are made by every Python, and a name that is not ASCII is no matter."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no python{version}")
    big = b"big" * 1000
    name = hashlib.sha256(big).hexdigest()
    files = [["é/copy", 0o755, len(big), name], ["link", 0o120777, 7], ["small", 0o644, 2]]
    needs = command("stat -c %a é/copy; cat small; readlink link; cmp link é/copy", files=files)
    put = {"t": "put", "path": f"static/{name}", "offset": 0, "size": len(big), "sha256": name, "mode": 0o400}
    found = talk(
        python,
        tmp_path,
        [
            (needs, "é/copys\n".encode()),
            ({**put, "id": 2}, big),
            ({**needs, "id": 3}, "é/copys\n".encode()),
            ({**put, "id": 4, "offset": len(big) - 1}, big[-1:]),
        ],
        LC_ALL="C",
        PYTHONCOERCECLOCALE="0",
    )
    assert [answer.get("state") for answer in found] == ["absent", None, "done", None]
    assert [answer["t"] for answer in found] == ["exit", "done", "exit", "done"]
    assert (found[2]["code"], found[2]["body"]) == (0, "755\ns\né/copy\n".encode())
    assert [path.name for path in (tmp_path / "work" / "r" / "static").iterdir()] == [name]


def ping(number: int, **options: Any) -> tuple[dict[str, Any], bytes]:
    """Return a ping."""
    return {"t": "ping", "id": number, **options}, b""


def test_what_a_ping_brings_and_tells(tmp_path: Path) -> None:
    """A beat, how long to wait after it, and the end are files for the switch; its tick and its end are the answer."""
    lease = tmp_path / ".persistent-runner" / "l"
    lease.mkdir(parents=True)
    (lease / "tick").write_text("12\n")
    (lease / "ended").write_text("time-budget\n")
    python = shutil.which("python3") or "python3"
    [first, second] = talk(python, tmp_path, [ping(1, beat="a.1"), ping(2, beat="a.2", keep=40)])
    assert (first["t"], first["tick"], first["ended"]) == ("done", "12", "time-budget")
    assert second["t"] == "done"
    assert (lease / "beat").read_text() == "a.2\n"
    assert (lease / "keep").read_text() == "40 a.2\n"
    assert not (lease / "stop").exists()
    talk(python, tmp_path, [ping(1, stop=True)])
    assert (lease / "stop").exists()
    assert {path.name for path in lease.iterdir() if path.is_file()} == {"beat", "keep", "stop", "tick", "ended"}


def test_what_is_acknowledged_goes_though_the_driver_does_not_wait(tmp_path: Path) -> None:
    """Its last words are carried out when it has gone."""
    root = tmp_path / "work" / "r"
    for number in range(10):
        (root / f"{number}.1" / "field").mkdir(parents=True)
    words = b"".join(encode({"t": "drop", "id": number, "attempt": f"{number}.1"}, b"") for number in range(10))
    python = shutil.which("python3") or "python3"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run(agent_of(python), input=words, env=environment, stdout=subprocess.DEVNULL, check=True)
    until(lambda: not list(root.glob("*.1")), "the end of all directories")


@pytest.mark.parametrize("beat", ["", "a b", "a\n", "x" * 81, "../x", 3])
def test_what_is_no_beat(beat: object, tmp_path: Path) -> None:
    """The switch reads words that cannot be mistaken; anything else is refused."""
    [answer] = talk(shutil.which("python3") or "python3", tmp_path, [ping(1, beat=beat, keep=3)])
    assert answer["t"] == "error"
    assert [path for path in (tmp_path / ".persistent-runner" / "l").iterdir() if path.is_file()] == []


def test_an_agent_for_pings_alone(tmp_path: Path) -> None:
    """An agent without a run takes no epoch, makes no folder but the lease's, and does nothing else."""
    requests = [ping(1, beat="a.1"), (command("echo no", id=2), b""), ({"t": "drop", "id": 3, "attempt": "a"}, b"")]
    [pinged, refused, too] = talk(shutil.which("python3") or "python3", tmp_path, requests, of_run="")
    assert (pinged["t"], pinged["tick"], pinged["ended"]) == ("done", "", "")
    assert [answer["text"] for answer in (refused, too)] == ["this agent answers pings alone"] * 2
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        ".persistent-runner",
        ".persistent-runner/l",
        ".persistent-runner/l/beat",
    ]


@pytest.mark.parametrize(("outputs", "kept"), [(3, True), (200, False)])
def test_an_exit_record_fits_into_its_room(outputs: int, kept: bool, tmp_path: Path) -> None:
    """Where a file cannot grow any more, a long record says that it has no manifest; a short one is whole, with no rest behind it."""
    record = tmp_path / "exit.spare"
    record.write_bytes(b" " * 4096)
    ended = {"state": "done", "code": 0, "manifest": [{"path": f"output {n}", "size": n} for n in range(outputs)]}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    program = f"{limit}from persistent_runner.remote.agent import fill_spare; fill_spare({str(record)!r}, {ended!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert json.loads(record.read_bytes()) == ended | ({} if kept else {"manifest": None})
    assert not record.read_bytes().endswith(b" ")


def test_what_runs_on_a_node_with_a_home_of_its_own(tmp_path: Path) -> None:
    """The head node's agent places one entry where the switch looks, and takes it away; it leads nowhere else."""

    def busy(request_id: int, node: str, *, on: bool) -> tuple[dict[str, Any], bytes]:
        return {"t": "busy", "id": request_id, "node": node, "on": on}, b""

    python, lease = shutil.which("python3") or "python3", tmp_path / ".persistent-runner" / "l"
    talk(python, tmp_path, [busy(1, "worker", on=True), busy(2, "worker", on=True)])
    assert [path.name for path in lease.glob("*/running/*")] == ["elsewhere"]
    talk(python, tmp_path, [busy(1, "worker", on=False), busy(2, "never", on=False)])
    assert list(lease.glob("*/running/*")) == []
    answers = talk(python, tmp_path, [busy(1, "../../x", on=True), busy(2, "/x", on=True)])
    assert [answer["t"] for answer in answers] == ["error", "error"]
    assert not (tmp_path / "x").exists()
