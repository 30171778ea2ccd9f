"""What every test of the loop needs: quick turns, a run folder, and a study in its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from persistent_runner.study import loop as loop_module
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.storage import quiet_optuna
from tests.study.test_loop import HOSTILE, new_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import optuna


@pytest.fixture(autouse=True)
def _fast_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_optuna()
    monkeypatch.setattr(loop_module, "TURN_SECONDS", 0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / HOSTILE, "wing") as found:
        yield found


@pytest.fixture
def stored(folder: RunFolder) -> optuna.Study:
    return new_study("sqlite", folder)
