"""How long a virtual job stays in each status."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Durations:
    """Seconds that a job stays in each status, in the order of the statuses.

    `terminate` is the longest time that a command gets between SIGTERM and SIGKILL.
    """

    pending: float
    waiting_for_queue: float
    queued: float
    started: float
    cluster_starting: float
    validated: float
    cluster_started: float
    terminate: float
    stopping: float
    stop_requested: float
    cluster_stopping: float


FAST = Durations(0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 1.0, 0.05, 0.05, 0.05)
"""For tests and first steps: under a second until Executing."""

RECORDED = Durations(15, 45, 5, 10, 15, 430, 11, 30, 2, 5, 40)
"""As recorded on the platform in 2016 and 2023: about 60 s Pending and waiting, 8-9 min until Executing, 45 s stop."""

STATUSES = tuple(field.name for field in fields(Durations))
"""The names of the durations."""


def with_durations(durations: Durations, changes: Mapping[str, float]) -> Durations:
    """Return `durations` with some of them changed; raises ConfigError for a name or a number that is none."""
    for name, seconds in changes.items():
        if name not in STATUSES:
            raise ConfigError(f"{name} is no status that lasts: {did_you_mean(name, STATUSES, most=len(STATUSES))}")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"{name} cannot last {seconds} seconds")
    return replace(durations, **changes)
