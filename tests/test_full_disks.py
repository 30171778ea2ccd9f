"""Full disks, here and on the node, under a study on a real cluster: nothing is told, lost or run twice."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.disk import has_room, refusal_of
from persistent_runner.errors import DiskFull
from persistent_runner.study import loop as loop_module
from persistent_runner.study import standby
from persistent_runner.study.progress import Limits
from persistent_runner.study.proposals import StudyFailed
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.storage import quiet_optuna
from tests.pools import Pools, until
from tests.small_disk import fill, small_disk
from tests.study.test_loop import a_loop, failures, new_study, states

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

    from persistent_runner.pool import Pool
    from persistent_runner.remote.workdir import WorkDir
    from persistent_runner.study.loop import Loop


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_optuna()
    monkeypatch.setattr(loop_module, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(standby, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(standby, "FIRST_LOOK", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run", "wing") as found:
        yield found


def loop_on(pool: Pool, study: optuna.Study, folder: RunFolder, objective: Any, **changes: Any) -> Loop:
    """Return a loop whose trials run on a pool."""
    submitted = changes.pop("submitted", [])

    def submit(number: int, attempt: int, where: str, task: Any) -> Any:
        submitted.append((number, attempt))
        return pool.submit(number, attempt, where, task)

    options = {
        "submit": submit,
        "stop_running": pool.stop,
        "place": pool.place,
        "acknowledge": pool.acknowledge,
        "capacity": 1,
    }
    return a_loop(study, folder, objective, **(options | changes))


def root_of(pool: Pool) -> Path:
    """Return the run's folder on the node."""
    return Path(pool._nodes.head.root)


@pytest.mark.parametrize(
    ("size", "disk"),
    [(200_000, "64k"), (700_000, "400k"), (1 << 20, "64k"), (100, "16k")],
    ids=["in a frame", "in pieces", "a copy on the node", "no room for the supervisor's own records"],
)
def test_inputs_that_find_no_room_on_the_node(
    pools: Pools, folder: RunFolder, caplog: pytest.LogCaptureFixture, size: int, disk: str
) -> None:
    """A pause as of a disk that a command fills: free room is told, no half file is left, the trial runs again (R1)."""
    (pools.folder / "mesh").write_bytes(os.urandom(size))
    pool, study, submitted = pools.pool(), new_study("sqlite", folder), []

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        if work.attempt == "00001.2":
            until(lambda: list(small.iterdir()) == [], "the end of what was half there")
        work.push("mesh", x=trial.params["x"])
        work.run("wc -c < mesh > out", outputs=["out"])
        return float(work.pull("out").read_text())

    with small_disk(root_of(pool) / "00001.1", disk) as small:
        loop_on(pool, study, folder, objective, submitted=submitted, limits=Limits(3)).run()
    assert submitted == [(0, 1), (1, 1), (1, 2), (2, 1)]
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.value for trial in study.trials] == [size] * 3
    assert f"trial 1 (attempt 00001.1): there is no room for its inputs of {size / 1e6:.1f} MB" in caplog.text
    assert f" MB are free in {small}" in caplog.text
    assert "trial 1: disk full; it runs again in 0.1s, and no other one starts before" in caplog.text


def test_a_big_input_that_finds_no_room_where_all_attempts_share_it(
    pools: Pools, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent again when there is room; until then no part of it is kept, and no trial fails (row R1)."""
    (pools.folder / "mesh").write_bytes(os.urandom(2 << 20))
    pool, study = pools.pool(), new_study("sqlite", folder)

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        work.push("mesh", x=trial.params["x"])
        return float(work.run("wc -c < mesh").output)

    with contextlib.ExitStack() as room:
        static = room.enter_context(small_disk(root_of(pool) / "static", "1m"))

        def turned(_: object) -> None:
            if "it runs again in 0.8s" in caplog.text and static.is_mount():
                assert list(static.iterdir()) == []
                room.close()

        loop_on(pool, study, folder, objective, limits=Limits(2), on_turn=turned).run()
    assert [trial.value for trial in study.trials] == [2 << 20] * 2
    assert failures(study) == ["", ""]


def test_a_command_that_fills_the_disk_and_ends_well(pools: Pools, folder: RunFolder) -> None:
    """Its record has no room for the names of its outputs: they are looked for, and all of them come."""
    pool, study = pools.pool(), new_study("sqlite", folder)

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        del trial
        work.run(
            "for i in $(seq 60); do echo $i > step_$i.csv; done; dd if=/dev/zero of=scratch bs=4096 || true",
            outputs=["*.csv", "scratch"],
        )
        return float(len(work.pull_all("*.csv")))

    with small_disk(root_of(pool) / "00000.1", "1m"):
        loop_on(pool, study, folder, objective, limits=Limits(1)).run()
    assert [trial.value for trial in study.trials] == [60.0]


def ran(pools: Pools) -> Counter[str]:
    """Return how often the command of each trial was started."""
    return Counter((pools.folder / "ran").read_text().split())


def leave(folder: RunFolder, room: int) -> None:
    """Make the journal so long that its last block on the disk has room for so many bytes."""
    journal = folder.path / "journal.jsonl"
    note = {"kind": "note", "text": ""}
    missing = -(journal.stat().st_size + len(json.dumps(note)) + 1 + room) % 4096
    with journal.open("a") as file:
        file.write(json.dumps(note | {"text": "x" * missing}) + "\n")
    assert journal.stat().st_size % 4096 == -room % 4096


def results(folder: RunFolder) -> list[tuple[int, str]]:
    return [(record["trial"], record["state"]) for record in folder.journal() if record["kind"] == "result"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of eight megabytes."""
    with small_disk(tmp_path / "small", "8m") as path:
        yield path


def test_results_that_find_no_room_here(pools: Pools, small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is too big to be pulled waits on the node, what else runs goes on, and no command runs twice (row D6)."""
    other, freed = pools.folder / "other", []
    pool = pools.pool(pools.lease(env={"LOG": str(pools.folder / "ran"), "OTHER": str(other)}), folder=small / "runs")

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        if trial.number == 1:
            work.run('echo 1 >> "$LOG"; until [ -e "$OTHER" ]; do sleep 0.01; done')
            return 1.0
        size = 3_500_000 if trial.number == 0 else 2
        work.run(f'echo $TRIAL_NUMBER >> "$LOG"; head -c {size} /dev/zero > out', outputs=["out"])
        return float(work.pull("out").stat().st_size)

    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)
        ballast = small / "ballast"
        ballast.write_bytes(b"\0" * 5_000_000)
        submitted: list[tuple[int, int]] = []

        def turned(progress: Any) -> None:
            if "is full" in caplog.text and not other.exists():
                assert 1 in progress.running
                assert not list((small / "runs/trials/00000").glob("out*"))
                other.touch()
            if progress.settled == 1 and not freed:
                freed.append(ballast.unlink())

        options = {"submitted": submitted, "limits": Limits(3), "capacity": 2, "on_turn": turned}
        loop_on(pool, study, folder, objective, **options).run()
        assert [trial.value for trial in study.trials] == [3.5e6, 1.0, 2.0]
        assert sorted(results(folder)) == [(n, "COMPLETE") for n in range(3)]
    assert ran(pools) == {"0": 1, "1": 1, "2": 1}
    assert set(submitted) == {(0, 1), (1, 1), (2, 1)}  # the same attempt is joined
    assert caplog.text.count("No trial starts until there is room") == 1
    assert "MB are free" in caplog.text


def test_a_run_that_finds_no_room_for_what_it_is(small: Path) -> None:
    """A new study on a full disk is refused in words before anything is leased."""
    with RunFolder(small / "runs", "wing") as folder:
        fill(small)
        with pytest.raises(DiskFull, match=r"run\.json cannot be written: the disk of this machine is full"):
            folder.set_content({"deck": {f"file{number}": "0" * 64 for number in range(2000)}})


@pytest.mark.parametrize("room", [0, 50, 1000], ids=["none", "for half a record", "for one record"])
def test_a_journal_that_finds_no_room(pools: Pools, small: Path, caplog: pytest.LogCaptureFixture, room: int) -> None:
    """Nothing is told that is not committed; when there is room the same results are, each once (row D6)."""
    pool = pools.pool(pools.lease(env={"LOG": str(pools.folder / "ran")}), folder=small / "runs")
    freed: list[None] = []
    ballast = small / "ballast"

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        work.run('echo $TRIAL_NUMBER >> "$LOG"')
        if trial.number == 1 and not freed:
            leave(folder, room)
            fill(small)
        return float(trial.number)

    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)

        def turned(_: object) -> None:
            if ("is full" in caplog.text or "does not answer" in caplog.text) and not freed:
                told = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
                assert told == [0]
                freed.append(ballast.unlink())

        loop_on(pool, study, folder, objective, limits=Limits(4), on_turn=turned).run()
        assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0, 3.0]
        assert results(folder) == [(n, "COMPLETE") for n in range(4)]
    assert freed
    assert ran(pools) == {str(n): 1 for n in range(4)}


def test_a_disk_that_stays_full_does_not_keep_the_cluster(pools: Pools, small: Path) -> None:
    """The start ends after a while; the next one takes the results that are on the node (row D6)."""
    pool = pools.pool(pools.lease(env={"LOG": str(pools.folder / "ran")}), folder=small / "runs")
    full = itertools.count()

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        work.run('echo $TRIAL_NUMBER >> "$LOG"')
        if not next(full):
            leave(folder, 50)
            fill(small)
        return 1.0

    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)
        with pytest.raises(StudyFailed, match=r"disk full here: nothing could run for 0\.5s"):
            loop_on(pool, study, folder, objective, limits=Limits(2), most_idle=0.5).run()
        assert results(folder) == []
        (small / "ballast").unlink()
        loop_on(pool, study, folder, objective, limits=Limits(2)).run()
        assert states(study) == ["COMPLETE"] * 2
        assert results(folder) == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert ran(pools) == {"0": 1, "1": 1}


def test_a_log_that_finds_no_room_says_nothing_on_the_terminal(small: Path) -> None:
    """A full disk shows no traceback for each line of the log; when there is room the lines are there."""
    code = """
import logging, sys
from pathlib import Path
from persistent_runner.study.run_folder import RunFolder
from tests.small_disk import fill
small = Path(sys.argv[1])
with RunFolder(small / "runs", "wing") as folder, folder.log():
    ballast = fill(small)
    for n in range(1000):
        logging.getLogger("persistent_runner.x").warning("line %d", n)
    ballast.unlink()
    logging.getLogger("persistent_runner.x").warning("there is room")
"""
    done = subprocess.run(
        [os.sys.executable, "-c", code, str(small)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stderr == ""
    assert "there is room" in (small / "runs/run.log").read_text()


def test_who_makes_room_may_delete_the_folder(tmp_path: Path) -> None:
    """Then there is room where the folder was."""
    folder = tmp_path / "trials/00001"
    full = refusal_of(OSError(errno.ENOSPC, "No space left on device"), folder)
    assert isinstance(full, DiskFull)
    assert has_room(full)
