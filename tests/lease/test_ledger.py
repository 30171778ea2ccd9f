"""`lease/ledger.py`: what is recorded of a lease survives, is private, is one driver's at a time, is never misread."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.lease.ledger import FORMAT_VERSION, Ledger, NotRecorded

if TYPE_CHECKING:
    from pathlib import Path

SWITCH = {"tick_seconds": 15.0, "idle": 40, "busy": 160, "budget": 1900, "cap_seconds": 28560}


def test_a_record_tells_whose_lease_it_is(tmp_path: Path) -> None:
    """Every change is in the file when the call returns, so that a crash at any moment leaves the truth."""
    ledger = Ledger(
        tmp_path / "the ledger", base_url="http://127.0.0.1:1", profile="local", folder="runs/é", account="me@here"
    )
    record = ledger.open("persistent_runner-x-1", study="x", terms={"cores": 2}, switch=SWITCH, price=4.5)
    (entry,) = ledger.entries()
    assert (entry.state, entry.job_id, entry.base_url) == ("creating", "", "http://127.0.0.1:1")
    assert (entry.profile, entry.folder, entry.account) == ("local", "runs/é", "me@here")
    assert (entry.host, entry.pid) == (socket.gethostname(), os.getpid())
    assert (entry.study, entry.terms, entry.switch, entry.price) == ("x", {"cores": 2}, SWITCH, 4.5)
    record.update(state="saved", job_id="AbCdEf")
    record.update(state="submitting")
    record.pin("node 2026", ["ssh-ed25519 AAAA"])
    record.pin("node 2027", ["ssh-ed25519 BBBB"])
    (entry,) = ledger.entries()
    assert (entry.state, entry.job_id) == ("submitting", "AbCdEf")
    assert entry.pins == {"node 2026": ["ssh-ed25519 AAAA"], "node 2027": ["ssh-ed25519 BBBB"]}
    assert entry == record.entry
    assert ledger.unfinished() == [entry]
    record.update(state="closed")
    assert ledger.entries()[0].state == "closed"
    assert ledger.unfinished() == []


def test_machines_that_are_proven_at_the_same_time(tmp_path: Path) -> None:
    """No thread's record undoes another's, and none comes after the lease was let go: it may be somebody else's then."""
    ledger = Ledger(tmp_path / "ledger")
    record = ledger.open("a")
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            pool.submit(record.pin, f"node {number}", ["ssh-ed25519 AAAA"])
        record.update(state="releasing")
    (entry,) = ledger.entries()
    assert (entry.state, len(entry.pins)) == ("releasing", 40)
    record.let_go()
    record.pin("late", ["ssh-ed25519 BBBB"])
    assert ledger.entries() == [entry]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no group and other bits")
def test_records_are_private_and_leave_no_temporary_files(tmp_path: Path) -> None:
    """Other users of the machine see neither the directory nor the record nor the secret."""
    ledger = Ledger(tmp_path / "ledger")
    record = ledger.open("a", secret="5ec2e7")
    record.update(state="saved", job_id="x")
    assert stat.S_IMODE(ledger.directory.stat().st_mode) == 0o700
    assert sorted(path.name for path in ledger.directory.iterdir()) == ["a.json", "a.lock", "a.secret"]
    for name in ("a.json", "a.secret"):
        assert stat.S_IMODE((ledger.directory / name).stat().st_mode) == 0o600
    assert "5ec2e7" not in (ledger.directory / "a.json").read_text()


def test_a_closed_lease_leaves_its_record_alone(tmp_path: Path) -> None:
    """The secret goes, and the lock is given up, when the lease is over."""
    ledger = Ledger(tmp_path)
    record = ledger.open("a", secret="5ec2e7")
    assert record.secret == "5ec2e7"
    record.update(state="closed")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert record.secret == ""
    record.let_go()


def test_an_order_by_age(tmp_path: Path) -> None:
    """The oldest lease is settled first."""
    ledger = Ledger(tmp_path)
    for name, began in (("a", "2026-01-02T00:00:00+00:00"), ("b", "2026-01-01T00:00:00+00:00")):
        ledger.open(name)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "began": began}))
    assert [entry.name for entry in ledger.entries()] == ["b", "a"]


def test_a_living_drivers_record_is_not_taken(tmp_path: Path) -> None:
    """The lock is held for as long as its process drives the lease, and no longer (row L16)."""
    ledger = Ledger(tmp_path)
    record = ledger.open("a", secret="5ec2e7")
    (entry,) = ledger.entries()
    assert ledger.is_driven(entry) is True
    assert Ledger(tmp_path).take(entry) is None
    record.let_go()
    assert ledger.is_driven(entry) is False
    taken = Ledger(tmp_path).take(entry)
    assert taken is not None
    assert taken.secret == "5ec2e7"
    assert ledger.is_driven(entry) is True
    taken.let_go()


def test_a_process_that_was_killed_gives_its_lock_up(tmp_path: Path) -> None:
    """No file that a crash leaves behind keeps a lease from being settled."""
    code = (
        "import sys, pathlib; from persistent_runner.lease.ledger import Ledger; "
        "record = Ledger(pathlib.Path(sys.argv[1])).open('a'); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "open\n"
        ledger = Ledger(tmp_path)
        (entry,) = ledger.entries()
        assert entry.pid == driver.pid
        assert ledger.is_driven(entry) is True
        driver.kill()
    taken = ledger.take(entry)
    assert taken is not None
    taken.let_go()


def test_a_taken_record_is_read_anew(tmp_path: Path) -> None:
    """Between the list and the lock another driver may have settled it."""
    ledger = Ledger(tmp_path)
    record = ledger.open("a")
    (stale,) = ledger.entries()
    record.update(state="closed")
    taken = ledger.take(stale)
    assert taken is not None
    assert taken.entry.state == "closed"
    taken.let_go()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_another_hosts_record_cannot_be_judged(tmp_path: Path) -> None:
    """A shared home shows its records on every machine, and locks of other hosts are not to be relied on."""
    ledger = Ledger(tmp_path)
    ledger.open("a").let_go()
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another-machine"}))
    (entry,) = ledger.entries()
    assert ledger.is_driven(entry) is None
    assert ledger.take(entry) is None


def test_a_record_that_vanished_is_not_taken(tmp_path: Path) -> None:
    """The lock is not kept when the record behind it cannot be read."""
    ledger = Ledger(tmp_path)
    ledger.open("a").let_go()
    (entry,) = ledger.entries()
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError):
        ledger.take(entry)
    assert ledger.is_driven(entry) is False


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """An older version does not act on a record that it may misread."""
    Ledger(tmp_path).open("a").let_go()
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": FORMAT_VERSION + 1}))
    with pytest.raises(ConfigError, match="newer version"):
        Ledger(tmp_path).entries()


def test_a_record_of_the_first_format_is_read(tmp_path: Path) -> None:
    """A lease that an older version left is settled; what that version did not know is empty."""
    old = {
        "version": 1,
        "name": "persistent_runner-x-000000000000",
        "base_url": "https://platform.example.com",
        "profile": "default",
        "folder": "/runs/x",
        "state": "submitted",
        "job_id": "AbCdEf",
        "host": "here",
        "pid": 1,
        "began": "2026-01-01T00:00:00+00:00",
        "changed": "2026-01-01T00:00:00+00:00",
    }
    (tmp_path / "persistent_runner-x-000000000000.json").write_text(json.dumps(old))
    (entry,) = Ledger(tmp_path).entries()
    assert (entry.job_id, entry.switch, entry.account, entry.pins) == ("AbCdEf", None, "", {})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": "x"}', '{"version": 2, "state": "flying"}']
)
def test_a_broken_record_is_named(text: str, tmp_path: Path) -> None:
    """The message names the file and what to do; it is not passed over, since it may stand for a cluster (row L17)."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json") as caught:
        Ledger(tmp_path).entries()
    assert caught.value.remedy


def test_an_unknown_state_is_named(tmp_path: Path) -> None:
    """A word that this version does not know is not taken for another one."""
    Ledger(tmp_path).open("a").let_go()
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "flying"}))
    with pytest.raises(ConfigError, match="'flying'"):
        Ledger(tmp_path).entries()


def test_a_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    """The name is part of a path."""
    with pytest.raises(ValueError, match="cannot name"):
        Ledger(tmp_path).open("../x")


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """The caller learns that nothing was recorded, in words."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotRecorded, match="could not be recorded"):
        Ledger(tmp_path / "file").open("a")


def test_a_record_that_fails_is_not_held(tmp_path: Path) -> None:
    """Where the first record does not get to the disk, the lock is given up as well."""
    ledger = Ledger(tmp_path)
    (tmp_path / "a.secret").mkdir()
    (tmp_path / "a.secret" / "in the way").touch()
    with pytest.raises(NotRecorded) as caught:
        ledger.open("a", secret="5ec2e7")
    ledger.open("a").let_go()
    assert "a" in caught.value.message  # and with it all that the traceback holds has lived until now
