"""What the leases of a run folder have cost, by its journal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import RunnerError
from persistent_runner.lease.meter import Cost
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spending import recorder, spent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USED = Cost(1800, 2000, 5.0, 5.6)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "it's {a} $folder", "wing") as found:
        yield found


def test_leases_that_have_ended_are_summed_and_other_records_are_not_money(folder: RunFolder) -> None:
    """Over all starts, with start-up and without."""
    record = recorder(folder, 10.0)
    folder.commit(kind="attempt", trial=0, attempt=1)
    for name in ("a", "b"):
        record(name, Cost(3600, 3600), False)
        record(name, USED, True)

    assert spent(folder.journal()) == Cost(3600, 4000, 10.0, 11.2)
    assert spent([]) == Cost()


def test_a_lease_whose_end_nobody_saw_counts_with_all_that_it_can_have_taken(folder: RunFolder) -> None:
    """A driver that died cannot say what its cluster cost: the budget takes the worst, not nothing."""
    record = recorder(folder, 10.0)
    record("a", Cost(7200, 7200), False)
    assert spent(folder.journal()) == Cost(7200, 7200, 20.0, 20.0)
    record("a", USED, True)  # a later start has read how long it ran
    assert spent(folder.journal()) == USED


def test_a_lease_that_goes_on_is_left_to_its_holder(folder: RunFolder) -> None:
    """`but` names it; the others without an end count, and its own earlier parts that have ended do too."""
    record = recorder(folder, 10.0)
    record("kept", Cost(3600, 3600), False)
    record("kept", USED, True)
    record("kept", Cost(3600, 3600), False)
    record("lost", Cost(360, 360), False)
    assert spent(folder.journal(), but="kept") == USED + Cost(360, 360, 1.0, 1.0)


def test_a_cluster_that_was_kept_twice_is_paid_twice(folder: RunFolder) -> None:
    """Each study of one folder that adopts a kept cluster adds its own part."""
    record = recorder(folder, 10.0)
    for _ in range(2):
        record("kept", Cost(3600, 3600), False)
        record("kept", USED, True)
    assert spent(folder.journal()) == USED + USED


def test_without_a_price_nothing_is_known_and_time_is(folder: RunFolder) -> None:
    """A sum with an unknown part is unknown."""
    recorder(folder, 10.0)("a", USED, True)
    recorder(folder, None)("b", Cost(10, 20, None, None), True)
    assert spent(folder.journal()) == Cost(1810, 2020, None, None)


def test_a_journal_that_cannot_be_written_stops_a_lease_before_it_costs(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """What is to cost money is recorded first; what has cost it already is released all the same."""
    (folder.path / "journal.jsonl").unlink()
    (folder.path / "journal.jsonl").mkdir()
    record = recorder(folder, 10.0)
    with pytest.raises(RunnerError, match="cannot be written"):
        record("a", Cost(3600, 3600), False)
    with caplog.at_level(logging.WARNING):
        record("a", USED, True)
    assert "cannot be written" in caplog.text
