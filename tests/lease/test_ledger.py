"""`lease/ledger.py`: what is recorded of a lease survives, is private, and is never misread."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.lease.ledger import Ledger, NotRecorded

if TYPE_CHECKING:
    from pathlib import Path


def test_a_record_tells_whose_lease_it_is(tmp_path: Path) -> None:
    """Every change is in the file when the call returns, so that a crash at any moment leaves the truth."""
    ledger = Ledger(tmp_path / "the ledger", base_url="http://127.0.0.1:1", profile="local", folder="runs/é")
    record = ledger.open("persistent_runner-x-1")
    (entry,) = ledger.entries()
    assert (entry.state, entry.job_id, entry.base_url) == ("creating", "", "http://127.0.0.1:1")
    assert (entry.profile, entry.folder) == ("local", "runs/é")
    assert (entry.host, entry.pid) == (socket.gethostname(), os.getpid())
    record.update(state="saved", job_id="AbCdEf")
    record.update(state="submitting")
    (entry,) = ledger.entries()
    assert (entry.state, entry.job_id) == ("submitting", "AbCdEf")
    record.update(state="closed")
    assert ledger.entries()[0].state == "closed"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no group and other bits")
def test_records_are_private_and_leave_no_temporary_files(tmp_path: Path) -> None:
    """Other users of the machine see neither the directory nor a file in it."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.open("a").update(state="saved", job_id="x")
    assert stat.S_IMODE(ledger.directory.stat().st_mode) == 0o700
    assert [path.name for path in ledger.directory.iterdir()] == ["a.json"]
    assert stat.S_IMODE((ledger.directory / "a.json").stat().st_mode) == 0o600


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """An older version does not act on a record that it may misread."""
    Ledger(tmp_path).open("a")
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(ConfigError, match="newer version"):
        Ledger(tmp_path).entries()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": "x"}'])
def test_a_broken_record_is_named(text: str, tmp_path: Path) -> None:
    """The message names the file and what to do; it is not passed over, since it may stand for a cluster."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json"):
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
