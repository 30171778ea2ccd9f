"""What an objective sees of its attempt: push, run, pull."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import (
    AttemptLost,
    CommandFailed,
    CommandStalled,
    CommandTimedOut,
    ConfigError,
    ConnectionLost,
    ResultMissing,
)
from persistent_runner.remote import agent
from persistent_runner.remote.agent import PART
from persistent_runner.remote.frames import OutputFile
from persistent_runner.remote.habits import Habits
from tests.remote.conftest import HOSTILE, until

if TYPE_CHECKING:
    from tests.remote.conftest import Site

NAMES = ["with space", "quote'\"", "{brace}", "$(id) $HOME", "é ß 漢字", "#hash~", "-rf", "[a-z]*?", "100%s"]
HOSTILE_VALUES = ["'; rm -rf ~ #", "line\nbreak", "$(id)", "`id`", "\\", '"', "é"]


def test_push_run_pull(site: Site) -> None:
    """Inputs are rendered and land in the working directory, the command runs there, a result comes back."""
    (site.inputs / "case").mkdir()
    (site.inputs / "case" / "deck.inp.j2").write_text("h = @{ height }@\n")
    (site.inputs / "case" / "as is.dat").write_bytes(b"\r\n\0")
    work = site.work()
    work.push("case/", height=0.25)
    result = work.run("cat deck.inp; wc -c < 'as is.dat'; echo 1,2 > 'out put.csv'", outputs=["*.csv"])
    assert result.exit_code == 0
    assert result.output.split() == ["h", "=", "0.25", "3"]
    assert work.pull("out put.csv").read_text() == "1,2\n"
    assert json.loads(work.pull("parameters.json").read_text()) == {"height": 0.25}
    assert work.pull("deck.inp").parent == work.folder


@pytest.mark.parametrize("value", HOSTILE_VALUES)
def test_parameter_values_run_nothing(sshd_site: Site, value: str) -> None:
    """A value that would break a shell reaches parameters.json and the deck as it is, and runs nothing."""
    (sshd_site.inputs / "deck.j2").write_text("@{ value }@")
    work = sshd_site.work()
    work.push("deck.j2", value=value)
    work.run("ls -A")
    assert work.pull("deck").read_text("utf-8") == value
    assert json.loads(work.pull("parameters.json").read_text("utf-8")) == {"value": value}
    assert sorted(path.name for path in (sshd_site.root / "00000.1").iterdir()) == [
        ".attempt",
        "deck",
        "parameters.json",
    ]


def test_outputs_called_like_parts_of_each_other(sshd_site: Site) -> None:
    """A mesh and its partition come both, in any order: nothing that is on its way takes another one's name."""
    work = sshd_site.work()
    work.run("echo mesh > mesh; echo partition > mesh.part", outputs=["mesh*"])
    for name in ("mesh.part", "mesh", "mesh.part"):
        work.pull(name)
    assert {path.name: path.read_text() for path in work.folder.glob("mesh*")} == {
        "mesh": "mesh\n",
        "mesh.part": "partition\n",
    }


def test_hostile_names(site: Site) -> None:
    """Names that mean something to a shell, to a format or to a glob go to the node and come back unharmed."""
    folder = site.inputs / HOSTILE
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_text(f"content {number}")
    work = site.work()
    work.push(HOSTILE + "/")
    work.run("mkdir 'd {i} $r'; for f in *; do [ -d \"$f\" ] || cp -- \"$f\" 'd {i} $r/'; done", outputs=["d */*"])
    for number, name in enumerate(NAMES):
        assert work.pull(f"d {{i}} $r/{name}").read_text() == f"content {number}"
        assert work.pull(name).read_text() == f"content {number}"
    assert len(work.pull_all("d */*")) == len(NAMES) + 1  # and parameters.json


def test_names_that_other_systems_misread(sshd_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A backslash, a line end, a reserved name, two names that differ in case alone: not kept, and said so."""
    work = sshd_site.work()
    work.run("mkdir r; cd r; touch 'a\\b' $'c\\nd' con.txt Case case plain", outputs=["r/*"])
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in work.pull_all("r/*")] == ["Case", "plain"]
    assert len(caplog.records) == 4
    with pytest.raises(ResultMissing, match=r"'r/a\\\\b' is not pulled: it is named with a character that another"):
        work.pull("r/a\\b")
    with pytest.raises(ResultMissing, match="named like r/Case but for upper and lower case"):
        work.pull("r/case")
    with pytest.raises(ResultMissing, match="named as only some systems allow"):
        work.pull("r/con.txt")


def test_a_name_in_no_text(sshd_site: Site) -> None:
    """A file named in another encoding is told of, and does not keep the others from coming."""
    work = sshd_site.work()
    work.run("touch $'\\xff\\xfe.csv' good.csv", outputs=["*.csv"])
    assert [path.name for path in work.pull_all("*.csv")] == ["good.csv"]


@pytest.mark.parametrize("name", ["link", "folder/link", "outside/secret", "fifo", "folder"])
def test_outputs_that_are_no_files(sshd_site: Site, name: str) -> None:
    """A link, a folder behind a link, a pipe and a folder are not pulled: a result is a regular file."""
    secret = sshd_site.folder / "secret"
    secret.write_text("of the driver's machine")
    (sshd_site.inputs / "make.sh").write_text(
        f"mkdir folder; ln -s {shlex.quote(str(sshd_site.folder))} outside\n"
        "ln -s outside/secret link; ln -s ../link folder/link; mkfifo fifo\n"
    )
    work = sshd_site.work()
    work.push("make.sh")
    assert work.run("sh make.sh; cat link", outputs=[name, "**/*"]).output == "of the driver's machine"
    with pytest.raises(ResultMissing):
        work.pull(name)
    assert "secret" not in {path.name for path in work.pull_all("**/*")}


@pytest.mark.parametrize("name", ["../00001.1/x", "/etc/passwd", "../../../../../../etc/passwd", "a/../../x", ""])
def test_paths_that_climb(sshd_site: Site, name: str) -> None:
    """Nothing outside the attempt's directory is ever named, listed or read."""
    work = sshd_site.work()
    work.run("true", outputs=[name, "../**/*"])
    with pytest.raises(ResultMissing, match="there is no file"):
        work.pull(name)
    assert work.pull_all("../**/*") == []


def test_a_missing_file_names_the_nearest(site: Site) -> None:
    """Who misspells a result sees what is there."""
    work = site.work()
    work.run("echo > stress.csv; echo > other.txt")
    with pytest.raises(ResultMissing, match=r"there is no file stres.csv; there are: stress\.csv") as caught:
        work.pull("stres.csv")
    assert "trial 0 (attempt 00000.1)" in caught.value.message


def test_a_failed_command(site: Site) -> None:
    """The error shows command, exit code and last lines, without what could drive a terminal; the log is here."""
    work = site.work()
    with pytest.raises(
        CommandFailed,
        match=r"`solve \$X` \(line 1 of the command\) ended with exit code 127 \(127: the command \"solve\" was not found\)",
    ) as caught:
        work.run("solve $X\necho no")
    assert caught.value.remedy.startswith("Load or install it in the command or in [setup]; a file of the working")
    assert "The whole log: " in caught.value.remedy
    work = site.work(attempt="00000.2")
    with pytest.raises(CommandFailed) as caught:
        work.run("seq 100; printf '\\033[31mred\\n'; exit 3")
    assert "    100\n    [31mred" in caught.value.message
    assert "    91\n" not in caught.value.message
    assert caught.value.exit_code_of_command == 3
    assert caught.value.log.endswith("command-1.log")
    assert work.folder.joinpath("command-1.log").read_text().startswith("1\n2\n")
    assert work.run("echo plan B").output == "plan B\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("yes | head -1", "a pipe whose reader ended first"),
        ("kill -9 $$", "likely out of memory"),
        ("kill -11 $$", "SIGSEGV"),
    ],
)
def test_exit_codes_are_explained(sshd_site: Site, script: str, words: str) -> None:
    """An exit code that stands for something is said in words."""
    with pytest.raises(CommandFailed, match=words):
        sshd_site.work().run(script)


def test_timeout(site: Site) -> None:
    """A command that takes too long is killed with its tree, and the message says after how long."""
    with pytest.raises(CommandTimedOut, match=r"passed its time-out of 3s and was killed; its last lines:\n    before"):
        site.work().run("echo before; sleep 600", timeout="3s")
    assert site.commands() == set()


def test_stall(site: Site) -> None:
    """A command that prints nothing for too long is killed with its tree; one that prints now and then is not."""
    talks = "for n in 1 2 3 4 5 6; do echo $n; sleep 0.3; done"
    with pytest.raises(
        CommandStalled, match=r"printed nothing for 3s and was killed; its last lines:\n(    \d\n){5}    6"
    ):
        site.work().run(f"{talks}; sleep 600", stall="3s", timeout="5m")
    assert site.commands() == set()


def test_trial_variables(sshd_site: Site) -> None:
    """A command knows its trial, its cores, and where the setup lies."""
    link = sshd_site.link()
    work = sshd_site.work(link, number=7, cores=2, env={"LICENCE": "1055@host"}, setup="setup-abc")
    told = work.run('echo "$TRIAL_NUMBER $TRIAL_CORES $LICENCE $SETUP_DIR"; wc -l < $TRIAL_HOSTS').output
    assert told == f"7 2 1055@host {sshd_site.root}/setup-abc\n2\n"


def test_on_line(site: Site) -> None:
    """Each line comes once, as it is printed, in the trial's own thread; the last one needs no line end."""
    lines: list[tuple[str, bool]] = []
    me = threading.current_thread()
    work = site.work()
    go = site.root / "00000.1" / "go"

    def on_line(line: str) -> None:
        lines.append((line, threading.current_thread() is me))
        if line == "step 2":
            go.touch()

    work.run("echo step 1; echo step 2; until [ -e go ]; do sleep 0.01; done; printf é", on_line=on_line)
    assert lines == [("step 1", True), ("step 2", True), ("é", True)]


def test_on_line_stops_the_command(site: Site) -> None:
    """What `on_line` raises (a pruned trial) ends the process tree and comes out of run; the attempt is not lost."""

    class Pruned(Exception):
        pass

    def on_line(line: str) -> None:
        if line == "diverges":
            raise Pruned

    work = site.work()
    with pytest.raises(Pruned):
        work.run("echo begins; echo diverges; sleep 600", on_line=on_line)
    assert site.commands() == set()
    assert work.run("echo next").output == "next\n"


def test_a_drop_is_not_noticed(site: Site) -> None:
    """A connection that drops costs time, not results: log, files and exit are the same."""
    work = site.work()
    started = site.root / "00000.1" / "started"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            work.run, "seq 30000; touch started; until [ -e go ]; do sleep 0.01; done; seq 9 > out", outputs=["out"]
        )
        until(started.exists, "the command runs")
        site.proxy.drop()
        (site.root / "00000.1" / "go").touch()
        result = running.result(60)
    assert result.output == "".join(f"{n}\n" for n in range(1, 30001))
    assert work.pull("out").read_text().split() == list("123456789")


def test_stop(site: Site) -> None:
    """A stopped attempt is lost, its tree is gone, and it can do nothing more."""
    work = site.work()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work.run, "touch started; sleep 600")
        until((site.root / "00000.1" / "started").exists, "the command runs")
        work.stop()
        with pytest.raises(AttemptLost, match="was stopped"):
            running.result(60)
    assert site.commands() == set()
    for call in (lambda: work.run("true"), lambda: work.pull("x"), work.push, lambda: work.connection):
        with pytest.raises(AttemptLost, match="was stopped"):
            call()


def test_dead_after_a_fault_of_the_machine(sshd_site: Site) -> None:
    """An objective that swallows the loss of the machine cannot go on as if nothing were."""
    link = sshd_site.link()
    work = sshd_site.work(link)
    work.run("echo > there")
    link.close()
    errors = []
    for call in (lambda: work.pull("there"), lambda: work.run("true"), work.push, lambda: work.pull_all("*")):
        with pytest.raises(ConnectionLost) as caught:
            call()
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 1


def test_a_command_failing_is_no_fault_of_the_machine(sshd_site: Site) -> None:
    """An objective may have a plan B for a failed command, a time-out and a missing result."""
    work = sshd_site.work()
    for command, options in (("false", {}), ("sleep 600", {"timeout": "0.2s"})):
        with pytest.raises((CommandFailed, CommandTimedOut)):
            work.run(command, **options)
    with pytest.raises(ResultMissing):
        work.pull("nothing")
    assert work.run("echo still here").output == "still here\n"


def test_connection(site: Site) -> None:
    """`work.connection` is the Fabric connection: it runs, puts and gets, and leaves our stdin alone."""
    import fabric

    work = site.work()
    assert isinstance(work.connection, fabric.Connection)
    ended = work.connection.run("cat; echo from the node", hide=True)
    assert ended.stdout == "from the node\n"
    quoted = work.connection.run('echo "$V"', env={"V": "a; echo b $(id)"}, hide=True)
    assert quoted.stdout == "a; echo b $(id)\n"
    source = site.inputs / "plain"
    source.write_text("over sftp")
    work.connection.put(str(source), f"{site.root}/put")
    assert (site.root / "put").read_text() == "over sftp"


def test_what_trials_pull_comes_with_the_exit(sshd_site: Site) -> None:
    """Of small files that one trial has pulled the next one's come with its exit: it asks for nothing more."""
    link, habits = sshd_site.link(), Habits()
    asked = []
    for number, script in enumerate(["echo 1 > a; echo 1 > b", "echo 2 > b; echo 2 > a", "echo 3 > a"]):
        work = sshd_site.work(link, attempt=f"0000{number}.1", habits=habits)
        before = link.frames_out
        work.run(script)
        assert work.pull("a").read_text() == f"{number + 1}\n"
        if number < 2:
            assert work.pull("b").read_text() == f"{number + 1}\n"
        else:
            with pytest.raises(ResultMissing, match=r"no file b; .*a"):
                work.pull("b")
        asked.append(link.frames_out - before)
    assert asked[0] > asked[1] == 1


def test_what_was_changed_by_hand_is_pulled_as_it_is(sshd_site: Site) -> None:
    """Whoever takes the connection may change what the exit told: then a pull looks anew."""
    link, habits = sshd_site.link(), Habits()
    for number in range(2):
        work = sshd_site.work(link, attempt=f"0000{number}.1", habits=habits)
        work.run("echo old > a")
        work.connection.run(f"echo new > {shlex.quote(str(sshd_site.root))}/0000{number}.1/a")
        assert work.pull("a").read_text() == "new\n"


def test_big_files_and_many_names_are_no_habits() -> None:
    """What does not fit into an exit is pulled by itself, and so is what each trial names in another way."""
    habits = Habits()
    habits.pulled(0, OutputFile("big", agent.FILE_INLINE + 1))
    habits.pulled(0, OutputFile("a*", 1))
    habits.pulled(1, OutputFile("result", 1))
    assert (habits.after(0), habits.after(1), habits.after(2)) == ([], ["result"], [])
    for number in range(100):
        habits.pulled(1, OutputFile(f"result-{number}", 1))
        habits.pulled(1, OutputFile("result", 1))
    assert "result" in habits.after(1)
    assert len(habits.after(1)) < 20


def test_big_inputs(site: Site) -> None:
    """Megabytes arrive whole with their mode, several files at once, and so do big results."""
    content = {f"big {n}": os.urandom(3_000_000 + n) for n in range(2)}
    for name, data in content.items():
        (site.inputs / name).write_bytes(data)
    (site.inputs / "big 0").chmod(0o755)
    work = site.work()
    work.push("big 0", "big 1")
    result = work.run("stat -c %a 'big 0'; cat 'big 0' 'big 1' > joined", outputs=["joined"])
    assert result.output == "755\n"
    assert work.pull("joined").read_bytes() == content["big 0"] + content["big 1"]
    assert list(work.folder.glob(f"*{PART}")) == []


def test_a_missing_input(sshd_site: Site) -> None:
    """An input that is not there is named before anything is sent."""
    work = sshd_site.work()
    with pytest.raises(ConfigError, match='input "case/" is not there'):
        work.push("case/")


def test_a_file_that_changes_after_the_exit(sshd_site: Site) -> None:
    """A result that is not the one that was there at the exit is refused, small or big."""
    work = sshd_site.work()
    work.run("head -c 1000000 /dev/zero > big", outputs=["big"])
    (sshd_site.root / "00000.1" / "big").write_bytes(b"x" * 1_000_000)
    with pytest.raises(ResultMissing, match=r"big of attempt 00000.1 changed after its command had ended"):
        work.pull("big")
    (sshd_site.root / "00000.1" / "big").unlink()
    with pytest.raises(ResultMissing, match=r"big cannot be read: .*No such file"):
        work.pull("big")
    assert list(work.folder.glob("big*")) == []


def test_many_small_inputs(sshd_site: Site) -> None:
    """Files that are small one by one and big together do not travel in one frame, in which nothing else could."""
    link = sshd_site.link()
    work = sshd_site.work(link)
    case = sshd_site.inputs / "many"
    case.mkdir()
    for number in range(40):
        (case / f"{number}.bin").write_bytes(bytes([number]) * 100_000)
    work.push("many/")
    frames = link.frames_out
    result = work.run("cat *.bin | wc -c")
    assert result.output.strip() == "4000000"
    assert link.frames_out - frames > 2


def test_a_command_that_fills_the_disk(sshd_site: Site) -> None:
    """It failed, and is not called lost: its exit code is known, and the next command runs when there is room again."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    work = sshd_site.work()
    small = sshd_site.root / work.attempt
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(CommandFailed, match="exit code 1"):
            work.run("dd if=/dev/zero of=big bs=4096 2>/dev/null; cat big big > more; exit 1")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
