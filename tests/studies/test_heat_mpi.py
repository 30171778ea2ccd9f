"""The MPI study: right by theory, the same on any number of ranks, and across two nodes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.studies.trial_here import Study, mpi_compiles

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not mpi_compiles(), reason="no MPI to compile with here (Debian: apt install openmpi-bin libopenmpi-dev)"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Compile the program once, by the study's own setup."""
    return Study("heat_mpi", tmp_path_factory.mktemp("heat"))


def test_theory_has_the_fewest_sweeps(study: Study) -> None:
    """Young's omega needs fewer sweeps than its neighbours, and the middle has a quarter of the hot edge's heat."""
    here = study.trial(omega=1.952)
    assert here["theory_omega"] == pytest.approx(1.952093)
    assert here["centre"] == pytest.approx(0.25, abs=1e-5)
    assert here["sweeps"] == 366
    assert study.trial(omega=1.945)["sweeps"] > 366
    assert study.trial(omega=1.959)["sweeps"] > 366


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_change_nothing_but_the_time(study: Study, ranks: int) -> None:
    """The sweeps are the same however the rows are shared out, so that the optimum is the design's, not the machine's."""
    found = study.trial(hosts="localhost\n" * ranks, omega=1.952)
    assert (found["sweeps"], found["ranks"], found["nodes"]) == (366, ranks, 1)


def test_two_nodes(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI starts its daemon on a second node by its remote shell, and the ranks there take part.

    The second node is this machine, too: its remote shell drops the name. Two daemons that share a machine do not agree
    on which ranks share memory, so everything goes over TCP.
    """
    shell = tmp_path / "rsh"
    shell.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    monkeypatch.setenv("OMPI_MCA_plm_rsh_agent", str(shell))
    monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")
    found = study.trial(hosts=f"{os.uname().nodename}\n" * 2 + "node1-abcdef\n" * 2, omega=1.952)
    assert (found["sweeps"], found["ranks"], found["nodes"]) == (366, 4, 2)
