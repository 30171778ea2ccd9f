"""`run-study` and `persistent-runner` as a user meets them: real processes, the local platform, real SSH."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from persistent_runner.local_platform.attach import make_key_pair
from tests.driving import BIN, DEADLINE, HOSTILE, Place, unfinished_jobs, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Place(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")
    assert not found.platform_address.exists()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A machine with a platform that is served apart, under the profile `lab`, as an account of one's own would be."""
    place = Place(tmp_path_factory.mktemp("served") / HOSTILE)
    make_key_pair(place.home / ".ssh key", place.folder / "keys")
    command = ["platform", "--profile", "lab", "--authorized-keys", "keys"]
    driver = place.start(*command, program="persistent-runner")
    until(lambda: (place.home / ".config/rescale/apiconfig").exists() or driver.process.poll() is not None, "ready")
    yield place
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 0, driver.said
    address = json.loads(driver.out)
    assert sorted(address) == ["api_key", "authorized_keys", "base_url", "control_token", "control_url"]
    until(lambda: not place.processes(), f"the end of {place.processes()}")


SHORT = {
    "PERSISTENT_RUNNER_ORPHAN_IDLE": "20s",
    "PERSISTENT_RUNNER_KEEPER_TICK": "0.5s",
    "PERSISTENT_RUNNER_BEAT": "0.5s",
}
"""For a cluster that a failed first trial leaves: it ends soon where no other start takes it."""


# -- the way through


def test_a_study_from_the_first_line_to_the_last(place) -> None:
    """A newcomer's first command, in a folder with a hostile name: the result on stdout, the progress on stderr."""
    study = place.study(f"cp parameters.json result.json; echo '{HOSTILE.replace(chr(39), '')}'")
    driver = place.run(study)

    assert driver.out.splitlines()[-2] == f"Results: {place.runs / 'tiny'}"
    assert driver.out.splitlines()[-1].startswith("Best: y = 0.1569 in trial 1 with x = 0.1569")
    assert "(3 of 3, best 0.156903 in trial 1)" in driver.said
    assert "nothing is paid" in driver.said
    assert "is released" in driver.said
    assert "Best" not in driver.said
    assert len(place.rows()) == 3
    assert (place.runs / ".gitignore").read_text() == "*\n"
    assert json.loads((place.runs / "tiny/trials/00001/result.json").read_text())["x"] == pytest.approx(
        0.1569, rel=1e-3
    )
    assert "Connected to" in (place.runs / "tiny/run.log").read_text("utf-8")


def test_the_same_line_again_runs_nothing_and_more_trials_go_on(place) -> None:
    """The second start shows the table and starts no platform; --n-trials adds; the designs are new ones."""
    study = place.study()
    place.run(study)
    address = place.platform_address
    until(lambda: not address.exists(), "the end of the platform")
    before = place.rows()

    again = place.run(study)
    assert again.said == "Nothing to run: all 3 trials are settled. --n-trials N runs more.\n"
    assert not (place.state / "ledger").exists() or "Creating" not in again.said
    assert "Best: y" in again.out
    assert place.rows() == before

    place.run(study, "--n-trials", 5, "--max-concurrent", 1)
    rows = place.rows()
    assert rows[:3] == before
    assert len({row["params_x"] for row in rows}) == 5


def test_json_is_the_summary_and_quiet_is_quiet(place) -> None:
    """Scripts read one JSON object, the one that is kept in summary.json; --quiet leaves stderr empty."""
    driver = place.run(place.study(), "--json", "--quiet", "--set", "study.n_trials=2")

    summary = json.loads(driver.out)
    assert driver.said == ""
    assert summary == json.loads((place.runs / "tiny/summary.json").read_text())
    assert (summary["version"], summary["trials"], summary["n_trials"]) == (1, {"COMPLETE": 2}, 2)
    assert summary["best"][0]["values"] == {"y": summary["best"][0]["params"]["x"]}


def test_check_leases_nothing(place) -> None:
    """--check shows trial 0, the job, the nodes and the price; it writes its own folder and nothing else."""
    study = place.study()
    (study / "case").mkdir()
    (study / "case" / "deck.inp.j2").write_text("x is @{ x | fixed(3) }@\n")
    driver = place.run(study, "--check", "--set", 'trial.inputs=["case/"]', "--runs-dir", "else where")
    machine = json.loads(place.run(study, "--check", "--json").out)

    check = place.folder / "else where/tiny/check"
    assert (check / "deck.inp").read_text() == "x is 0.798\n" or "x is 0." in (check / "deck.inp").read_text()
    assert sorted(path.name for path in (place.folder / "else where/tiny").iterdir()) == ["check"]
    assert driver.out.endswith("Nothing was leased.\n")
    assert "2 trials at a time" in driver.out
    assert "an hour, start-up perhaps billed as well; at most 55m" in driver.out
    assert "if this machine disappears, it ends by itself within 10m45s" in driver.out
    assert machine["nodes"] == 1
    assert "at most 55m" in machine["lease"]
    assert not (place.state / "ledger").exists() or not list((place.state / "ledger").iterdir())


def test_check_renders_a_case_as_a_trial_gets_it(place) -> None:
    """Own delimiters, includes, links, modes and big files: what --check leaves is what a trial finds."""
    study = place.study()
    (study / "case" / "bin").mkdir(parents=True)
    (study / "parts").mkdir()
    (study / "parts" / "m.j2").write_text("E = <<x | nastran(8)>> @{ x }@\n")
    (study / "case" / "deck.inp.j2").write_text('<<include("../parts/m.j2")>>\nend\n')
    (study / "case" / "bin" / "big").write_bytes(b"x" * (1 << 20))
    (study / "case" / "bin" / "big").chmod(0o755)
    (study / "case" / "link").symlink_to("bin/big")
    delimiters = ["--set", 'trial.template={delimiters=["<<", ">>"]}', "--set", 'trial.inputs=["case/"]']
    place.run(study, "--check", *delimiters)

    check = place.runs / "tiny" / "check"
    first, last = (check / "deck.inp").read_text().splitlines()
    assert (len(first), first[:4], first[12:], last) == (20, "E = ", " @{ x }@", "end")
    assert (check / "link").readlink().as_posix() == "bin/big"
    assert (check / "bin" / "big").stat().st_mode & 0o777 == 0o755
    assert (check / "link").read_bytes() == b"x" * (1 << 20)
    (study / "parts" / "m.j2").write_text("<<y>>")
    said = place.run(study, "--check", *delimiters, code=2).said
    assert 'm.j2, line 1: y: there is no parameter "y"' in said


def test_parameters_that_nothing_fills_in_are_told(place) -> None:
    """A rehearsal and a run warn, and go on; a value that some design cannot hold ends both before a lease."""
    study = place.study()
    (study / "case").mkdir()
    (study / "case" / "deck.inp").write_text("x is @{ x }@\n")
    inputs = ["--set", 'trial.inputs=["case/"]']
    told = 'case/deck.inp, line 1 holds "@{ x", but is no template: rename it to deck.inp.j2'
    assert told in place.run(study, "--check", "--quiet", *inputs).said
    assert told in place.run(study, "--n-trials", 1, *inputs).said
    (study / "case" / "deck.inp.j2").write_text("@{ x | width(19) }@")
    (study / "case" / "deck.inp").unlink()
    for flags in (["--check"], ["--new", "other"]):
        said = place.run(study, *flags, *inputs, code=2).said
        assert "does not fit into 19 columns" in said
        assert " (in a design with x = 0.0" in said
        assert f"Mend {study / 'case' / 'deck.inp.j2'}; nothing was leased." in said
    assert not (place.runs / "other").exists() or "Creating job" not in said


def test_check_says_what_the_limits_make_of_the_lease(place) -> None:
    """max_cost, the trials' timeout and a missing switch change the worst case, which --check names; it refuses too."""
    study = place.study()
    out = place.run(study, "--check", "--set", "study.max_cost=0.05", "--set", "trial.timeout=30m").out
    assert "(0.05), by max_cost = 0.05" in out
    assert "35m45s" not in out  # it cannot run for longer than at most
    assert "or 35m45s" in place.run(study, "--check", "--set", "trial.timeout=30m").out
    bare = ["--set", "cluster.keeper=false", "--set", "cluster.host_key=accept-unverified"]
    assert "WITHOUT A DEAD-MAN'S SWITCH" in place.run(study, "--check", *bare).out
    assert "could end under its driver" in place.run(study, "--check", "--set", "cluster.orphan_idle=30s", code=2).said
    assert "--keep" in place.run(study, "--keep", "soon", code=2).said


def test_help_and_version(place) -> None:
    """Both programs and the module explain themselves."""
    for program, args in (
        ("run-study", ["-h"]),
        ("persistent-runner", ["--help"]),
        ("python", ["-m", "persistent_runner", "-h"]),
    ):
        driver = place.start(*args, program=program)
        assert driver.end() == 0
        assert "Usage: " in driver.out
    assert "130 interrupted" in place.run("--help").out
    assert "0.1" in place.run("--version").out
    faults = place.start("platform", "--list-faults", program="persistent-runner")
    assert faults.end() == 0
    assert {"lost", "preempt", "ssh", "stop_hangs"} <= set(faults.out.splitlines())
    assert "options: after, relaunch" in faults.out


@pytest.mark.parametrize(
    "args",
    [
        "persistent-runner init a.txt --into made --param x=1:5:1:9",
        "persistent-runner doctor",
        "persistent-runner leases",
        "persistent-runner schema",
        "run-study study --check",
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_seen_enough_is_no_error(place, args, both) -> None:
    """`| head` ends a command quietly, whatever it was about to say, and what it was asked for is done."""
    place.study()
    (place.folder / "a.txt").write_text("x = 5\n")
    ours, theirs = os.pipe()
    os.close(ours)
    program, *options = args.split()
    done = subprocess.run(
        [BIN / program, *options],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs if both else subprocess.PIPE,
        cwd=place.folder,
        env=place.environment,
        timeout=DEADLINE,
        check=False,
    )
    os.close(theirs)
    assert done.returncode in {0, 1}
    assert "Traceback" not in str(done.stderr)
    assert "BrokenPipe" not in str(done.stderr)
    assert (place.folder / "made" / "study.toml").exists() == ("init" in args)


def test_a_study_with_all_that_a_space_can_say(place) -> None:
    """Baseline and first designs, what follows, what depends, what is not allowed, and constraints on the result."""
    study = place.folder / "whole"
    study.mkdir()
    (study / "study.toml").write_text(
        """
[study]
name = "whole"
n_trials = 12
seed = 3
require = ["a + b <= 1"]
[cluster]
core_type = "emerald"
cores = 1
walltime = "1h"
[space]
a = { type = "float", low = 0.0, high = 1.0, unit = "m" }
b = { type = "float", low = 0.0, high = 1.0, label = "width" }
n = { type = "int", low = 1, high = 3 }
more = { type = "float", low = 0.0, high = 1.0, when = "n > 2", otherwise = 0.5 }
c = { expr = "2 * a" }
[[start]]
a = 0.2
b = 0.7
[baseline]
a = 0.5
b = 0.5
n = 1
[trial]
command = "cp parameters.json r.json"
[metrics]
c = { file = "r.json", json = "c" }
b = { file = "r.json", json = "b" }
more = { file = "r.json", json = "more" }
[objectives]
c = "minimize"
[constraints]
b = { min = 0.4 }
"""
    )
    driver = place.run(study)
    assert "the baseline has c = 1" in driver.out
    heading = next(line for line in driver.out.splitlines() if line.startswith("number"))
    assert heading.split() == ["number", "state", "value", "seconds", "a", "[m]", "width", "n", "more"]
    rows = place.rows("whole")
    first, second = rows[:2]
    assert (first["params_a"], first["params_b"], first["params_n"]) == ("0.5", "0.5", "1")
    assert (second["params_a"], second["params_b"]) == ("0.2", "0.7")
    ran = [row for row in rows if row["state"] == "COMPLETE"]
    rejected = [row for row in rows if row["state"] != "COMPLETE"]
    assert (len(ran), bool(rejected)) == (12, True)
    for row in ran:
        a, b = float(row["params_a"]), float(row["params_b"])
        assert a + b <= 1
        assert float(row["metrics_c"]) == 2 * a
        assert float(row["metrics_more"]) == (float(row["params_more"]) if row["params_n"] == "3" else 0.5)
        assert float(row["constraints_b"]) == pytest.approx(0.4 - b)
    for row in rejected:
        assert row["failure"].startswith("not allowed: a + b <= 1 (a = ")
        assert (row["seconds"], row["folder"]) == ("", "")
    summary = json.loads((place.runs / "whole/summary.json").read_text())
    assert summary["trials"] == {"COMPLETE": 12, "REJECTED": len(rejected)}
    feasible = [row for row in ran if float(row["constraints_b"]) <= 0]
    assert summary["feasible"] == len(feasible) < 12
    assert summary["best"][0]["number"] == int(min(feasible, key=lambda row: float(row["value"]))["number"])
    place.run(study)
    assert place.rows("whole") == rows


# -- failures of trials


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("true", "there is no file result.json"),
        ('echo \'{"x": "thin"}\' > result.json', 'holds "thin", which is not a number'),
        ("echo '{\"x\": NaN}' > result.json", "which is not a finite number"),
        ("ln -s /etc/hostname result.json", "a symbolic link"),
        ("echo it is broken; exit 3", "ended with exit code 3"),
    ],
    ids=["missing", "text", "nan", "symlink", "exit code"],
)
def test_a_result_that_is_none_fails_its_trial(place, command, said) -> None:
    """File and rule are named, of the first trial too; failures in a row end the study with 1, the cluster released."""
    study = place.study(command)
    line = (study, "--set", "study.max_consecutive_failures=2", "--max-concurrent", 1)
    first = place.run(*line, code=1, **SHORT)
    assert said in first.said
    assert "The first trial failed" in first.said
    driver = place.run(*line, code=1, **SHORT)

    assert said in driver.said
    assert "2 trials failed one after another" in driver.said
    assert "Mend the cause" in driver.said
    assert "is released" in driver.said
    assert [row["state"] for row in place.rows()] == ["FAIL", "FAIL"]
    assert said in place.rows()[0]["failure"]


def test_a_bug_in_a_python_objective_is_shown_and_the_cluster_released(place) -> None:
    """The user's own traceback, exit code 1, nothing left running; catch and WorkDir work as in Python."""
    study = place.study()
    toml = (study / "study.toml").read_text("utf-8")
    head, _, _ = toml.partition("[trial]")
    (study / "study.toml").write_text(
        f'{head}[trial]\nobjective = "mine.py:objective"\n[objectives]\ny = "minimize"\n', encoding="utf-8"
    )
    (study / "mine.py").write_text(
        "def objective(trial, work):\n"
        "    x = trial.suggest_float('x', 0, 1)\n"
        "    assert work.run('nproc').output.strip().isdigit()\n"
        "    if trial.number == 1:\n"
        "        return {}['my bug']\n"
        "    return x\n"
    )
    driver = place.run(study, code=1)

    assert "KeyError: 'my bug'" in driver.said
    assert "mine.py" in driver.said
    assert "is released" in driver.said
    assert [row["state"] for row in place.rows()] == ["COMPLETE", "FAIL"]


def test_max_time_ends_with_5(place) -> None:
    """A start that runs out of its max_time releases, says how to go on, and is told from one that is done."""
    study = place.study("sleep 4; cp parameters.json result.json")
    driver = place.run(study, "--set", "study.max_time=3s", "--max-concurrent", 1, code=5)

    assert "max_time" in driver.said
    assert len(place.rows()) == 1
    assert "is released" in driver.said


# -- bad input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "nowhere"),
        (["study", "--set", "study.n_trails=4"], "n_trials"),
        (["study", "--set", "cluster.core_type=emerld"], "emerald"),
        (["study", "--set", "cluster.cores=3", "--set", "trial.cores=3"], "cores"),
        (["study", "--profile", "nobody"], "apiconfig"),
        (["study", "--profile", "nobody"], "persistent-runner login --profile nobody"),
        (["study", "--n-trials", "0"], "--n-trials"),
        (["study", "--set", "study.max_cost=0.001"], "is too little for any cluster"),
        (["study", "--check", "--set", "study.max_cost=0.001"], "is too little for any cluster"),
        (["study", "--set", "trial.command=echo 'abc"], "[trial] command: bash does not understand it"),
        (["study", "--set", 'study.sampler={name="tpe",n_startup_trials="five"}'], "must be a whole number"),
        (["."], "there is no study.toml in ."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_2_before_anything_is_leased(place, args, said) -> None:
    """What is wrong is named, with what is near it; nothing is created."""
    place.study()
    driver = place.run(*args, code=2)

    assert said in driver.said
    assert "Error: " in driver.said
    assert "Traceback" not in driver.said
    assert "Creating job" not in driver.said


def test_broken_toml(place) -> None:
    """The line is named."""
    path = place.study()
    (path / "study.toml").write_text("[study]\nn_trials = \n", encoding="utf-8")
    assert "line 2" in place.run(path, code=2).said


def test_a_study_that_changed_is_refused_with_the_difference(place) -> None:
    """Results of another space are not mixed with the old ones."""
    study = place.study()
    place.run(study)
    driver = place.run(study, "--set", "space.x.high=2.0", code=2)

    assert "was begun with other settings: [space] x: high was 1.0, now 2.0\n" in driver.said
    assert "begin a new study with --new NAME" in driver.said


def test_a_storage_that_cannot_be_opened_does_not_show_its_password(place) -> None:
    """The URL is shown without its password, and what to do."""
    url = "mysql+nosuchdriver://me:hunter2@db.example.com/wing"
    for flags in ([], ["--verbose"]):
        driver = place.run(place.study(), "--set", f"study.storage={url}", *flags, code=2)
        assert "[study] storage" in driver.said
        assert "db.example.com" in driver.said
        assert "hunter2" not in driver.said
    assert "hunter2" not in (place.runs / "tiny/run.log").read_text()


# -- accounts


def test_a_profile_leases_on_the_platform_that_it_names(served) -> None:
    """An account of apiconfig and a key of one's own do what the local platform does, and start no local platform."""
    key = served.home / ".ssh key"
    driver = served.run(served.study(), "--profile", "lab", PERSISTENT_RUNNER_SSH_KEY=str(key))

    assert "on lab (http://127.0.0.1:" in driver.said
    assert len(served.rows()) == 3
    assert not served.platform_address.exists()


def test_a_wrong_api_key_ends_with_3(served) -> None:
    """The platform's own words, which profile it was, and never the key."""
    config = served.home / ".config/rescale/apiconfig"
    url = next(line.partition("= ")[2] for line in config.read_text().splitlines() if line.startswith("apibaseurl"))
    environment = {"RESCALE_API_KEY": "hunter2hunter2", "RESCALE_API_BASE_URL": url}
    key = str(served.home / ".ssh key")
    driver = served.run(
        served.study(name="refused"), "--profile", "env", code=3, PERSISTENT_RUNNER_SSH_KEY=key, **environment
    )
    assert "hunter2" not in driver.said
    assert "refused the API key (Invalid token.)" in driver.said


def test_a_platform_out_of_reach_is_said_before_anything_is_leased(place) -> None:
    """A wrong address in apiconfig, or no network: it is asked again, who waits is told, and nothing is created."""
    config = place.home / ".config/rescale/apiconfig"
    config.parent.mkdir(parents=True)
    config.write_text("[real]\napibaseurl = https://nobody.invalid\napikey = hunter2\n")
    config.chmod(0o600)
    (place.home / ".ssh").mkdir()
    make_key_pair(place.home / ".ssh/id_ed25519", place.folder / "keys")
    for flags in ([], ["--check"]):
        driver = place.start(place.study(), "--profile", "real", *flags)
        driver.wait_for("nobody.invalid")
        driver.process.send_signal(signal.SIGINT)
        driver.end()
        assert "Creating job" not in driver.said
        assert "hunter2" not in driver.said


def test_ssh_keys_that_cannot_be_used_are_named_before_money_is_spent(served) -> None:
    """An unreadable key, a PKCS8 key, a missing one: each says the file and what to do."""
    key = generate_private_key(65537, 2048)
    pkcs8 = served.folder / "pkcs8"
    pkcs8.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pkcs8.chmod(0o600)
    text = served.folder / "no key"
    text.write_text("this is no key\n")
    study = served.study(name="keys")
    for path, said in ((pkcs8, "ssh-keygen -p"), (text, "no key"), (served.folder / "missing", "missing")):
        driver = served.run(study, "--profile", "lab", code=2, PERSISTENT_RUNNER_SSH_KEY=str(path))
        assert said in driver.said
        assert "Creating job" not in driver.said
    none = served.run(study, "--profile", "lab", code=2)
    assert "PERSISTENT_RUNNER_SSH_KEY" in none.said


# -- two drivers, interrupts


def test_keys_that_are_not_there_are_not_made_up(place) -> None:
    """A platform that is told to let in the keys of a missing file makes no empty one, and says how to make a key."""
    driver = place.start("platform", "--authorized-keys", "id.pub", program="persistent-runner")
    assert driver.end() == 2
    assert "there is no file id.pub" in driver.said
    assert "persistent-runner login" in driver.said
    assert not (place.folder / "id.pub").exists()


def test_a_second_driver_is_refused_and_told_of_the_first(place) -> None:
    """Two terminals, one study: the second names the first's process and host."""
    study = place.study(
        "while [ ! -e ../../../go ] && [ ! -e $GO ]; do sleep 0.05; done; cp parameters.json result.json"
    )
    go = place.folder / "go"
    first = place.start(study, "--set", f'cluster.env={{GO="{place.folder.parent}/go"}}')
    first.wait_for("Connected to")
    until(lambda: place.events("tiny", "start"), "a trial")
    second = place.run(study, code=2)
    (go.parent.parent / "go").touch()

    assert first.end() == 0, first.said
    assert f"process {first.process.pid} on {os.uname().nodename}" in second.said


SLEEPING = "sleep 600; cp parameters.json result.json"
MOMENTS = {
    "starting": (SLEEPING, "", 1),
    "waiting": (SLEEPING, "is submitted", 1),
    "setup": (SLEEPING, "setup: sleep 601", 1),
    "running": (SLEEPING, None, 2),
    "releasing": ("cp parameters.json result.json", "asking for its stop", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_at_any_moment_leaves_nothing(place, moment, number) -> None:
    """No trial's process, no unfinished job, and the platform itself ends; the exit code is 130."""
    command, said, times = MOMENTS[moment]
    more = '[setup]\ncommand = "sleep 601"' if moment == "setup" else ""
    study = place.study(command, more=more)
    with place.platform() as platform:
        if moment == "releasing":
            place.fault("stop_hangs", at="stopping", seconds=3)
        driver = place.start(study, "--no-pilot")
        if said:
            driver.wait_for(said)
        elif said is None:
            until(lambda: len(place.events("tiny", "start")) == 2 and sleepers(place), "two trials")
        else:
            until((place.runs / "tiny/driver.json").exists, "the driver")
        for n in range(times if number == signal.SIGINT else 1):
            if n:
                driver.wait_for("no new trials")
            driver.process.send_signal(number)

        assert driver.end() == 130, driver.said
        assert unfinished_jobs(platform) == []
        assert sleepers(place) == []
    assert "Mend the cause" not in driver.out
    if moment == "running":
        assert "Interrupted with 0 of 3 trials done; the same line goes on." in driver.out
        assert [row["state"] for row in place.rows()] == ["WAITING", "WAITING"]
        assert "may still run" not in driver.said


def sleepers(place: Place) -> list[int]:
    """Return the trials' own processes."""
    found = []
    for pid in place.processes():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\x0060"):
                found.append(pid)
        except OSError:
            continue
    return found


def test_three_interrupts_leave_and_say_what_still_runs(place) -> None:
    """Who presses a third time is not kept waiting: exit 4, the job's id, and until when it can run."""
    study = place.study(SLEEPING)
    with place.platform():
        driver = place.start(study, "--no-pilot")
        until(lambda: len(place.events("tiny", "start")) == 2, "two trials")
        place.fault("slow", endpoints=["stop_job"], seconds=3)
        for said in ("no new trials", "stopping the trials", None):
            driver.process.send_signal(signal.SIGINT)
            if said:
                driver.wait_for(said)
        assert driver.end() == 4, driver.said

    job_id = driver.said.partition("Job ")[2].partition(":")[0]
    assert f"Job {job_id} may still run and cost money" in driver.said
    assert "It ends by itself at the latest about 20" in driver.said
    assert f"/jobs/{job_id}/" in driver.said


def test_who_leaves_is_not_kept_by_a_platform_that_has_gone(place) -> None:
    """With nobody else on the local platform the third Ctrl-C ends the command as well: exit 4 and no second release."""
    driver = place.start(place.study(SLEEPING), "--no-pilot")
    until(lambda: len(place.events("tiny", "start")) == 2, "two trials")
    place.fault("slow", endpoints=["stop_job"], seconds=3)
    for said in ("no new trials", "stopping the trials", None):
        driver.process.send_signal(signal.SIGINT)
        if said:
            driver.wait_for(said)
    assert driver.end() == 4, driver.said
    assert driver.said.count("may still run") == 1


def test_one_interrupt_lets_running_trials_finish_and_the_next_start_goes_on(place) -> None:
    """Ctrl-C once loses nothing: the trials that ran are complete, the rest is for the same line again."""
    study = place.study('while [ ! -e "$GO" ]; do sleep 0.05; done; cp parameters.json result.json')
    go = place.folder.parent / "go"
    env = ["--no-pilot", "--set", f'cluster.env={{GO="{go}"}}']
    driver = place.start(study, *env)
    until(lambda: len(place.events("tiny", "start")) == 2, "two trials")
    driver.process.send_signal(signal.SIGINT)
    driver.wait_for("no new trials; the 2 running may finish")
    go.touch()

    assert driver.end() == 130, driver.said
    assert len(place.rows()) == 2
    assert "Interrupted with 2 of 3 trials done; the same line goes on." in driver.out
    assert "Best: y" in driver.out
    place.run(study, *env)
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3


def test_nothing_of_the_user_is_open_to_others(place) -> None:
    """State and keys are for the user alone."""
    place.run(place.study(), "--n-trials", 1)
    assert stat.S_IMODE(place.state.stat().st_mode) == 0o700
