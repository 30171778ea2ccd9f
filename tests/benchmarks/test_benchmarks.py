"""The benchmarks run, and what they count is true; how long things take is not a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import noop
from tests.openssh import SSHD, WHY_NOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(SSHD is None, reason=WHY_NOT)
def test_a_trial_is_one_frame_out_and_one_back(tmp_path: Path) -> None:
    """A no-op trial with an input and a result costs one frame each way; its time stands beside the plain ways'."""
    rows = noop.measure(tmp_path, 3)
    assert (rows[0].frames_out, rows[0].frames_in) == (1, 1)
    assert all(row.seconds > 0 for row in rows)
    printed = noop.table(rows).splitlines()
    assert [line.split(":")[0] for line in printed[1:]] == ["link", "ours", "plain Fabric", "plain Fabric"]
