"""Large outputs: they come after the commit, while other trials run, as far as they are to be kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.interrupts import Interrupts
from persistent_runner.remote.agent import PART
from persistent_runner.study import bringing
from persistent_runner.study import loop as loop_module
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.objective import Outcome
from persistent_runner.study.progress import Limits
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.storage import quiet_optuna
from tests.driving import HOSTILE, LONG, SHORT, Place, unfinished_jobs, until
from tests.small_disk import small_disk
from tests.study.test_loop import a_loop, new_study, states
from tests.test_full_disks import root_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import optuna

    from persistent_runner.pool import Pool
    from persistent_runner.remote.workdir import WorkDir
    from persistent_runner.study.loop import Loop
    from tests.pools import Pools

DESIGNS = (0.5, 0.9, 0.3, 0.6, 0.2)  # the second one fails
SOLVER = """
echo $TRIAL_NUMBER >> "$LOG"
cp parameters.json result.json
mkdir fields
head -c 300000 /dev/zero | tr '\\0' $TRIAL_NUMBER > fields/big.bin
echo $TRIAL_NUMBER > small.txt
! grep -q 0.9 parameters.json
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Place(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


def line_of(place: Place, *, outputs: str = "['fields/*', 'small.txt']", name: str = "tiny", **keys: Any) -> list[Any]:
    """Return the arguments of a start whose trials each leave a big output and a small one."""
    starts = "".join(f"[[start]]\nx = {x}\n" for x in DESIGNS)
    study = place.study(SOLVER, more=starts, folder=name, name=name, **({"n_trials": len(DESIGNS)} | keys))
    variables = f'{{LOG="{place.folder.parent}/ran",PR_TEST_MARK="{place.mark}"}}'
    return [study, "--no-pilot", "--set", f"cluster.env={variables}", "--set", f"trial.outputs={outputs}"]


def ran(place: Place) -> list[str]:
    return sorted((place.folder.parent / "ran").read_text().split())


def records(place: Place, kind: str, name: str = "tiny") -> list[dict[str, Any]]:
    lines = (place.runs / name / "journal.jsonl").read_text("utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def have(place: Place, path: str, name: str = "tiny") -> set[int]:
    """Return the trials of which a file is here, whole."""
    found = set()
    for folder in (place.runs / name / "trials").iterdir():
        number = int(folder.name)
        if (folder / path).exists():
            found.add(number)
            whole = {"fields/big.bin": str(number) * 300_000, "small.txt": f"{number}\n"}
            is_whole = path not in whole or (folder / path).read_text() == whole[path]
            assert is_whole, folder / path
    return found


def test_outputs_are_kept_as_asked(place) -> None:
    """All, the best so far, some of the best, or what failed; what metrics read, parameters and logs always are."""
    kept = {"all": {0, 2, 3, 4}, "best": {4}, "2": {2, 4}, "failed": {1}}
    for mode, trials in kept.items():
        name = f"keep-{mode}"
        keep = mode if mode.isdecimal() else f'"{mode}"'
        place.run(*line_of(place, name=name), "--set", f"trial.keep_outputs={keep}")
        assert have(place, "fields/big.bin", name) == trials
        assert have(place, "small.txt", name) == trials
        assert have(place, "result.json", name) == {0, 2, 3, 4}
        assert have(place, "parameters.json", name) == have(place, "command-1.log", name) == {0, 1, 2, 3, 4}
        assert have(place, "fields", name) == trials
    assert {record["trial"] for record in records(place, "output", "keep-all")} == {0, 2, 3, 4}


@pytest.mark.parametrize("point", ["result-recorded:2", "output-recorded:2", "acknowledged"])
def test_what_a_killed_start_was_owed_comes_from_its_cluster(place, point) -> None:
    """The cluster is there still: the next start fetches what is missing, no trial runs again (row D4)."""
    line = line_of(place, cores=1)
    with place.platform():
        place.run(*line, **LONG, PERSISTENT_RUNNER_CRASH=point, code=-9)
        place.run(*line, **LONG)
    assert have(place, "fields/big.bin") == {0, 2, 3, 4}
    assert ran(place) == list("01234")
    assert {record["trial"] for record in records(place, "outputs") if record["kept"]} == {0, 2, 3, 4}
    assert not list((place.runs / "tiny").rglob(f"*{PART}"))


@pytest.mark.parametrize("n_trials", [1, 3])
def test_what_a_killed_start_was_owed_comes_from_what_its_cluster_left(place, n_trials) -> None:
    """The cluster is gone: its files are asked for, also where no trial is left to run."""
    line = line_of(place, cores=1, n_trials=n_trials)
    with place.platform() as platform:
        place.run(*line, **SHORT, PERSISTENT_RUNNER_CRASH="result-recorded", code=-9)
        assert have(place, "fields/big.bin") == set()
        until(lambda: not unfinished_jobs(platform), "the end of the cluster by itself")
        second = place.run(*line, **LONG)
    assert "trial 0: 1 output is fetched from what its cluster has left" in second.said
    assert have(place, "fields/big.bin") == {0, 2} & set(range(n_trials))
    assert ran(place) == list("012")[:n_trials]
    assert not list((place.runs / "tiny").rglob(f"*{PART}"))


def test_what_a_killed_start_was_owed_comes_at_the_end_of_a_cluster_that_is_not_needed(place) -> None:
    """Nothing is left to run and the cluster is there still: what it saves at its end is fetched, then its platform ends."""
    line = line_of(place, cores=1, n_trials=1)
    place.run(*line, **LONG, PERSISTENT_RUNNER_CRASH="result-recorded", code=-9)
    assert "1 output is fetched from what its cluster has left" in place.run(*line, **LONG).said
    assert have(place, "fields/big.bin") == {0}
    assert "fetched" not in place.run(*line, **LONG).said


@pytest.mark.parametrize(("keep", "trials"), [('"all"', 1), ('"failed"', 2)])
def test_what_a_local_platform_had_that_has_ended_is_given_up(place, keep, trials) -> None:
    """It is said once and promised no more; what is here by then stays, and nothing waits for the rest."""
    line = [*line_of(place, cores=1, n_trials=trials), "--set", f"trial.keep_outputs={keep}"]
    place.run(*line, **SHORT, PERSISTENT_RUNNER_CRASH=f"result-recorded:{trials}", code=-9)
    have_before = have(place, "fields/big.bin")
    until(lambda: not place.platform_address.exists(), "the end of the cluster, and then of its platform")
    said = place.run(*line, **SHORT).said
    what = "its output fields/big.bin will not come" if keep == '"all"' else "what it has left will not come"
    assert f"{what}: the local platform that had it has ended" in said
    assert have(place, "fields/big.bin") == have_before
    assert "will not come" not in place.run(*line, **SHORT).said


def test_an_output_that_is_not_there_fails_its_trial(place) -> None:
    """It is known at the end of the command, before anything big is brought."""
    line = line_of(place, outputs="['fields/*', 'other.txt']", n_trials=2)
    place.run(*line, code=1)
    assert [row["state"] for row in place.rows()][:2] == ["FAIL"] * 2
    assert "there is no file other.txt" in place.rows()[0]["failure"]
    assert "[trial] outputs names it" in place.rows()[0]["failure"]
    assert have(place, "fields/big.bin") == {0}  # what is there may show why


# -- a loop on a pool


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a disk of eight megabytes."""
    quiet_optuna()
    monkeypatch.setattr(loop_module, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(bringing, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(bringing, "FIRST_LOOK", 0.1)
    with small_disk(tmp_path / "small", "8m") as path:
        yield path


def loop_on(pool: Pool, study: optuna.Study, folder: RunFolder, **changes: Any) -> Loop:
    """Return a loop of trials that leave a big output, the first one the biggest."""

    def objective(trial: optuna.Trial, work: WorkDir) -> Outcome:
        work.run(f"head -c {3_500_000 if trial.number == 0 else 200_000} /dev/zero > out", outputs=["out"])
        return Outcome((trial.params["x"],), {}, later=(work.find("out"),))

    options = {
        "submit": pool.submit,
        "stop_running": pool.stop,
        "place": pool.place,
        "acknowledge": pool.acknowledge,
        "link": pool.link,
        "capacity": 1,
        "keeping": Keeping("all", ["minimize"]),
        "limits": Limits(3),
    }
    return a_loop(study, folder, changes.pop("objective", objective), **(options | changes))


def there(pool: Pool) -> list[str]:
    """Return the attempts whose directories are on the node."""
    return sorted(path.name for path in root_of(pool).glob("0*"))


def sizes(folder: RunFolder) -> list[int]:
    found = []
    for path in sorted(folder.path.glob("trials/*/out*")):
        with contextlib.suppress(FileNotFoundError):  # a part that has come whole has another name
            found.append(path.stat().st_size)
    return found


def test_the_next_trials_run_while_an_output_finds_no_room(
    pools: Pools, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slot is free and its result told; once there is room it comes, and only then the node forgets it (row D6)."""
    pool, freed = pools.pool(folder=small / "runs"), []
    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)
        ballast = small / "ballast"
        ballast.write_bytes(b"\0" * 5_000_000)

        def turned(progress: Any) -> None:
            if progress.settled == 3 and "is full" in caplog.text and sizes(folder) == [200_000] * 2 and not freed:
                assert there(pool)[0] == "00000.1"
                freed.append(ballast.unlink())

        loop_on(pool, study, folder, on_turn=turned).run()
        assert freed
        assert states(study) == ["COMPLETE"] * 3
        assert sizes(folder) == [3_500_000, 200_000, 200_000]
        until(lambda: there(pool) == [], "the end of all directories on the node")


def test_an_interrupt_lets_outputs_come_and_a_second_one_leaves_them(
    pools: Pools, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was left is said, and comes with the next start."""
    caplog.set_level("INFO", "persistent_runner")
    pool, interrupts = pools.pool(folder=small / "runs"), Interrupts()
    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)
        ballast = small / "ballast"
        ballast.write_bytes(b"\0" * 5_000_000)

        def turned(_: Any) -> None:
            told = "come when there is room", "Outputs of trial 0 are on their way (3.5 MB) and waited for"
            if all(text in caplog.text for text in told):
                interrupts.count = 2 if "Interrupt again to leave them" in caplog.text else 1

        loop_on(pool, study, folder, on_turn=turned, interrupts=interrupts, limits=Limits(1)).run()
        assert interrupts.count == 2
        assert "Outputs of trial 0 are not here yet: what the platform saves" in caplog.text
        assert (states(study), sizes(folder), there(pool)) == (["COMPLETE"], [], ["00000.1"])
        ballast.unlink()
        loop_on(pool, study, folder, limits=Limits(1)).run()
        assert sizes(folder) == [3_500_000]
        until(lambda: there(pool) == [], "the end of all directories on the node")


def test_what_cannot_be_brought_later_is_named_and_fails_nothing(
    pools: Pools, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Something changes a file after its command has ended: the result stands, the journal says what is missing."""
    pool = pools.pool(folder=small / "runs")

    def objective(trial: optuna.Trial, work: WorkDir) -> Outcome:
        work.run("echo one > one; head -c 200000 /dev/zero > two", outputs=["*"])
        later = (work.find("one"), work.find("two"))
        (root_of(pool) / work.attempt / "two").write_bytes(b"1" * 200_000)
        return Outcome((trial.params["x"],), {}, later=later)

    with RunFolder(small / "runs", "wing") as folder:
        study = new_study("sqlite", folder)
        loop_on(pool, study, folder, objective=objective, limits=Limits(1)).run()
        assert states(study) == ["COMPLETE"]
        [found] = [record for record in folder.journal() if record["kind"] == "output"]
        assert (found["paths"], list(found["missing"])) == (["one"], ["two"])
        assert "changed after its command had ended" in found["missing"]["two"]
        assert not list(folder.path.glob("trials/*/two*"))
    assert "trial 0: its output two will not come: two of attempt 00000.1 changed" in caplog.text


def test_an_output_that_cannot_be_read(pools: Pools, small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others come all the same; the node keeps it, and what is not here is said."""
    pool = pools.pool(folder=small / "runs")

    def objective(trial: optuna.Trial, work: WorkDir) -> Outcome:
        work.run("echo one > first; echo two > second", outputs=["first", "second"])
        later = tuple(dataclasses.replace(work.find(name), data=None) for name in ("first", "second"))
        work.run("rm first; mkdir first")
        return Outcome((trial.params["x"],), {}, later=later)

    with RunFolder(small / "runs", "wing") as folder:
        loop_on(pool, new_study("sqlite", folder), folder, objective=objective, limits=Limits(1)).run()
        assert (folder.path / "trials/00000/second").read_text() == "two\n"
    assert "first is not a regular file" in caplog.text
    assert "Outputs of trial 0 are not here yet: what the platform saves" in caplog.text
    assert there(pool) == ["00000.1"]
