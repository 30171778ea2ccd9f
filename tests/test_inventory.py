"""`persistent-runner leases` and `stop`, as real processes: every job of ours is found, and ended by its id alone."""

from __future__ import annotations

import json
import re
import signal
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.account import write_profile
from persistent_runner.lease.naming import NAME_PREFIX
from persistent_runner.local_platform.attach import make_key_pair
from persistent_runner.local_platform.catalogue import OWNER
from persistent_runner.local_platform.local import LocalRescale
from tests.driving import HOSTILE, Driver, Place
from tests.lease.conftest import TICKING, Key, Leases
from tests.rescale.scripted import KEY, Said, Script, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.lease.manager import ClusterLease


@pytest.fixture(scope="module")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run a platform that is somebody's account."""
    root = tmp_path_factory.mktemp("platform")
    with LocalRescale(root, journal=root / "journal.jsonl") as platform:
        yield platform


class Desk:
    """A user's machine with the profile `lab`, and leases that are recorded in its ledger."""

    def __init__(self, place: Place, leases: Leases) -> None:
        self.place = place
        self.leases = leases

    def orphan(self, **options: Any) -> ClusterLease:
        """Return a lease whose driver has died."""
        lease = self.leases.make(**options)
        lease.acquire()
        self.leases.die(lease)
        return lease

    def run(self, *args: str, code: int = 0) -> Driver:
        """Run `persistent-runner` to its end, which must have this exit code."""
        driver = self.place.start(*args, program="persistent-runner")
        assert driver.end() == code, driver.said + driver.out
        return driver

    def listed(self, *args: str) -> list[dict[str, str]]:
        """Return what `leases` shows."""
        rows: list[dict[str, str]] = json.loads(self.run("leases", "--json", *args).out)
        return rows

    def forget(self) -> None:
        """Lose the ledger, as a machine that was set up anew has."""
        for path in self.leases.folder.iterdir():
            path.unlink()


@pytest.fixture
def desk(rescale: LocalRescale, tmp_path: Path) -> Iterator[Desk]:
    """Give a user's machine."""
    place = Place(tmp_path / HOSTILE)
    (place.home / ".ssh").mkdir(mode=0o700)
    make_key_pair(place.home / ".ssh/id_ed25519", tmp_path / "keys")
    write_profile("lab", rescale.base_url, rescale.api_key, home=place.home)
    line = (tmp_path / "keys").read_text().strip()
    leases = Leases(rescale, Key(place.home / ".ssh/id_ed25519", line), place.state)
    leases.ledger = leases.ledger_of("runs/x", profile="lab", account=OWNER)
    yield Desk(place, leases)
    leases.close()


def test_nothing_is_said_as_nothing(desk: Desk) -> None:
    """No ledger, no platform started, no account asked."""
    assert desk.run("leases").out == "Nothing of ours is unfinished.\n"
    assert desk.run("stop", "--all", "-y").out == "Nothing of ours is unfinished.\n"
    assert not desk.place.platform_address.exists()


def test_an_orphan_is_listed_and_stopped_by_its_id(desk: Desk) -> None:
    """Id, study, state, age, cost, its own end, whose it is; then `Stopped` is read, and nothing is left."""
    lease = desk.orphan()
    (row,) = desk.listed()
    assert row["job"] == lease.job_id
    assert row["study"] == desk.leases.study
    assert row["state"] == "Executing"
    assert row["cost"].startswith("at most 0.0")
    assert re.fullmatch(
        r"It ends by itself by \d\d:\d\d UTC, by \d\d:\d\d UTC if a trial still runs there, at the latest by its walltime of 2h",
        row["ends"],
    )
    assert row["whose"] == "its driver has died"
    shown = desk.run("leases").out
    assert f"job    {lease.job_id}\n" in shown
    assert "whose  its driver has died\n" in shown

    driver = desk.run("stop", lease.job_id, "--yes")
    assert driver.out.splitlines()[-1].startswith(f"{lease.job_id}: ")
    assert "cluster Stopped" in driver.out
    assert desk.leases.cluster_of(lease) == "stopped"
    assert desk.leases.ledger.unfinished() == []
    assert desk.listed() == []


def test_a_living_drivers_and_a_kept_cluster_say_whose_they_are(desk: Desk) -> None:
    """Which process drives it; that it waits for another study; a record of another machine as such."""
    driven = desk.leases.make()
    driven.acquire()
    with desk.leases.make(guard=TICKING, lease={"keep": timedelta(minutes=20)}) as kept:
        assert kept.hold.learn_age()
    elsewhere = desk.orphan()
    path = desk.leases.folder / f"{elsewhere.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another-machine"}))
    rows = {row["job"]: row for row in desk.listed()}
    assert rows[driven.job_id]["whose"] == f"process {desk.leases.ledger.entries()[0].pid} on this machine"
    assert rows[kept.job_id]["whose"] == "kept for another study"
    assert re.match(r"It ends by itself by \d\d:\d\d UTC, at the latest", rows[kept.job_id]["ends"])
    assert "10m45s after its driver's last sign of life" in rows[driven.job_id]["ends"]
    assert rows[elsewhere.job_id]["whose"] == "leased on another-machine"

    desk.run("stop", elsewhere.job_id, "--force-stop", "--yes")  # asked for by its id: it may be stopped from anywhere
    assert desk.leases.cluster_of(elsewhere) == "stopped"
    assert desk.leases.cluster_of(kept) == desk.leases.cluster_of(driven) == "running"
    driven.release()


def test_it_asks_first(desk: Desk) -> None:
    """Without --yes and where nobody can answer nothing is ended."""
    lease = desk.orphan()
    driver = desk.run("stop", lease.job_id, code=2)
    assert "--yes ends it without asking" in driver.said
    assert desk.leases.cluster_of(lease) == "running"
    assert desk.leases.journal("stop_asked") == []


@pytest.mark.parametrize("args", [[], ["abc", "--all"]])
def test_one_job_or_all(args: list[str], desk: Desk) -> None:
    """What is to be ended is said in one way."""
    assert "Name one job, or write --all" in desk.run("stop", *args, code=2).said


def test_a_lost_ledger_is_made_up_for_by_the_names(desk: Desk) -> None:
    """The account is asked for jobs with our name; one is stopped when its owner is who asks (row L17)."""
    lease = desk.orphan()
    desk.forget()
    assert desk.listed() == []
    assert "--profile NAME looks for it on that account" in desk.run("stop", lease.job_id, "-y", code=2).said
    assert desk.leases.cluster_of(lease) == "running"

    (row,) = [row for row in desk.listed("--profile", "lab") if row["study"] == desk.leases.study]
    assert row["job"] == lease.job_id
    assert row["state"] == "Executing"
    assert row["whose"] == f"{OWNER}, not in this machine's ledger"
    desk.run("stop", lease.job_id, "--profile", "lab", "-y")
    assert desk.leases.cluster_of(lease) == "stopped"
    assert [row for row in desk.listed("--profile", "lab") if row["study"] == desk.leases.study] == []


def test_all_is_never_what_is_known_by_its_name_alone(desk: Desk) -> None:
    """`--all` ends what this machine has recorded; others' drivers may hold the rest."""
    lease = desk.orphan()
    desk.forget()
    assert "Nothing of ours" in desk.run("stop", "--all", "--profile", "lab", "-y").out
    assert desk.leases.cluster_of(lease) == "running"


def test_a_saved_job_is_deleted(desk: Desk) -> None:
    """A job that was never submitted costs nothing and is removed."""
    record = desk.leases.ledger.open(f"{NAME_PREFIX}{desk.leases.study}-000000000000", study=desk.leases.study)
    request = desk.leases.request(name=record.entry.name, command="true")
    job_id = desk.leases.platform.create(request).job_id
    record.let_go()
    (row,) = desk.listed()
    assert (row["job"], row["state"], row["cost"]) == ("-", "Saved", "")
    assert "never submitted, deleted" in desk.run("stop", record.entry.name, "-y").out
    assert desk.leases.jobs() == []
    assert job_id in [line["job"] for line in desk.leases.journal("deleted")]
    assert desk.leases.ledger.unfinished() == []


def test_a_stop_that_is_not_confirmed_ends_with_4(desk: Desk) -> None:
    """Of several each is tried; the one that may still run is named, with its page; the record stays open."""
    first, second = desk.orphan(), desk.orphan()
    desk.leases.rescale.faults.add("status", endpoints=["stop_job"], status=400, job=first.job_id)
    driver = desk.run("stop", "--all", "-y", code=4)
    assert f"{first.job_id}: NOT CONFIRMED: Job {first.job_id} may still run and cost money" in driver.out
    assert f"{desk.leases.rescale.base_url}/jobs/{first.job_id}/" in driver.said
    assert desk.leases.cluster_of(first) == "running"
    assert desk.leases.cluster_of(second) == "stopped"
    (entry,) = desk.leases.ledger.unfinished()
    assert (entry.job_id, entry.state) == (first.job_id, "releasing")


def test_a_job_whose_account_is_not_known_any_more_stays_in_the_list(desk: Desk) -> None:
    """It may still cost money: it is shown with why it cannot be asked for, and a stop is not confirmed."""
    lease = desk.orphan()
    (desk.place.home / ".config/rescale/apiconfig").write_text("[another]\napibaseurl = https://x.example.com\n")
    (desk.place.home / ".config/rescale/apiconfig").chmod(0o600)
    (row,) = desk.listed()
    assert row["job"] == lease.job_id
    assert row["state"].startswith("unknown: ")
    assert "has no profile [lab]" in row["state"]
    driver = desk.run("stop", lease.job_id, "-y", code=4)
    assert "cannot be asked for" in driver.said
    assert desk.leases.cluster_of(lease) == "running"


def test_a_cluster_that_has_ended_is_no_longer_listed(desk: Desk) -> None:
    """Its record is closed by the look at it."""
    lease = desk.orphan()
    desk.leases.platform.stop(lease.job_id)
    desk.leases.rescale.wait_until(lambda: desk.leases.rescale.unfinished_jobs == 0, 60)
    assert desk.listed() == []
    assert desk.leases.ledger.unfinished() == []


def test_records_of_a_platform_that_is_gone_are_closed(desk: Desk) -> None:
    """A local platform ends its jobs when it ends; none is started to ask it."""
    gone = desk.leases.ledger_of("runs/z", base_url="http://127.0.0.1:1", account="", profile="local")
    gone.open(f"{NAME_PREFIX}z-000000000000").let_go()
    assert desk.listed() == []
    assert desk.leases.ledger.unfinished() == []
    assert not desk.place.platform_address.exists()


def test_a_damaged_record_is_named(desk: Desk) -> None:
    """Nothing is listed as if it were all (row L17)."""
    desk.leases.ledger.open("persistent_runner-x-000000000000").let_go()
    (desk.leases.folder / "persistent_runner-x-000000000000.json").write_text("{")
    assert "persistent_runner-x-000000000000.json" in desk.run("leases", code=2).said


@pytest.mark.parametrize(("owner", "code"), [("colleague@example.com", 3), ("", 3), ("ME@example.com", 0)])
def test_a_job_that_somebody_shares_with_us_is_not_stopped(owner: str, code: int, tmp_path: Path) -> None:
    """Its name is like ours and the account shows it; only its owner, as `users/me` names us, ends it."""
    script = Script()
    server = serve(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    name = f"{NAME_PREFIX}wing-0123456789ab"
    status = [{"status": "Executing", "statusDate": "2026-01-01T00:00:00Z"}]
    over = [{"status": "Completed", "statusDate": "2026-01-01T00:01:00Z"}, *status]
    gone = [{"status": "Stopped", "statusDate": "2026-01-01T00:02:00Z"}]

    def page(rows: list[dict[str, Any]]) -> Said:
        return Said(body={"count": len(rows), "next": None, "previous": None, "results": rows})

    row = {"id": "AbCdEf", "name": name, "owner": owner, "jobStatus": {"content": "Executing"}}
    script.says("GET users/me/", Said(body={"email": "me@example.com"}))
    script.says("GET jobs/", page([row]))
    script.says("GET jobs/AbCdEf/statuses/", page(status), page(over))
    script.says("GET jobs/AbCdEf/cluster_statuses/", page([]), page(gone))
    script.says("POST jobs/AbCdEf/stop/", Said(body={}))
    place = Place(tmp_path / HOSTILE)
    (place.home / ".ssh").mkdir()
    make_key_pair(place.home / ".ssh/id_ed25519", tmp_path / "keys")
    try:
        driver = place.start(
            *("stop", "AbCdEf", "--profile", "env", "--yes"),
            program="persistent-runner",
            RESCALE_API_KEY=KEY,
            RESCALE_API_BASE_URL=script.url,
        )
        assert driver.end() == code, driver.said + driver.out
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(script.calls("POST")) == (1 if code == 0 else 0)
    if code:
        assert f"belongs to {owner or 'somebody unknown'}, not to this account" in driver.said


def test_a_job_that_is_not_known_now_stays_in_the_list(desk: Desk) -> None:
    """A look ends no record: the platform may know it again (row A4)."""
    lease = desk.orphan()
    order = desk.leases.fault("hidden")
    (row,) = desk.listed()
    assert row["state"] == "not known to the platform"
    desk.leases.rescale.faults.remove(order)
    (row,) = desk.listed()
    assert row["state"] == "Executing"
    desk.run("stop", lease.job_id, "--yes")
    assert desk.leases.cluster_of(lease) == "stopped"


def test_a_stop_that_is_interrupted_says_what_may_run(desk: Desk) -> None:
    """Once goes on, twice ends with 4: `Stopped` was not read."""
    lease = desk.orphan()
    desk.leases.fault("stop_hangs", at="stopping", seconds=30)
    driver = desk.place.start("stop", lease.job_id, "--yes", program="persistent-runner")
    driver.wait_for("asking for its stop")
    driver.process.send_signal(signal.SIGINT)
    driver.wait_for("The release goes on")
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 4, driver.said
    assert f"Job {lease.job_id} may still run and cost money" in driver.said


def test_another_accounts_key_ends_no_record(desk: Desk) -> None:
    """The profile has another account now: what was leased with the former is not looked for with it."""
    lease = desk.orphan()
    path = desk.leases.folder / f"{lease.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "account": "somebody@example.com"}))
    (row,) = desk.listed()
    assert row["state"].startswith("unknown: lab is ")
    assert json.loads(path.read_text())["state"] == "submitted"
