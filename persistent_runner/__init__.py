"""Optuna studies of simulations on one leased cluster.

::

    8  cli.py                                  run-study and persistent-runner (click), lazy imports
    7  runner.py  plan.py  check.py  live.py   puts the house together
       site.py                                 the only file that chooses a platform
    6  local_platform/                         Rescale on this machine: same wire table, real SSH
         local attach process | server http checks catalogue | jobs job files processes clock | sshd
    5  study/    spec toml space | objective results | loop progress resume returned | run_folder storage summary
       rescale/  api | client transport
    4  pool.py                                 trials onto nodes
    3  lease/    platform | manager cluster stopper meter progress | keeper | ledger
    2  remote/   node | ssh | agent launch frames link | transfer | workdir
    1  errors.py  recovery.py  settings.py  render.py  duration.py  interrupts.py  spelling.py

A module imports from its own package and from floors below; `tests/test_architecture.py` holds that.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persistent_runner.errors import (
        AttemptLost,
        CommandFailed,
        CommandTimedOut,
        ConfigError,
        ConnectionLost,
        HostNotProven,
        LeaseLost,
        NoCapacity,
        PlatformError,
        PlatformRefused,
        PlatformUnavailable,
        ReleaseUnconfirmed,
        ResultMissing,
        RunnerError,
        TrialFailed,
    )
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.local_platform.local import LocalRescale
    from persistent_runner.remote.workdir import WorkDir
    from persistent_runner.render import render
    from persistent_runner.runner import lease, optimize, run_study
    from persistent_runner.study.results import trials_table

__all__ = [
    "AttemptLost",
    "ClusterLease",
    "CommandFailed",
    "CommandTimedOut",
    "ConfigError",
    "ConnectionLost",
    "HostNotProven",
    "LeaseLost",
    "LocalRescale",
    "NoCapacity",
    "PlatformError",
    "PlatformRefused",
    "PlatformUnavailable",
    "ReleaseUnconfirmed",
    "ResultMissing",
    "RunnerError",
    "TrialFailed",
    "WorkDir",
    "lease",
    "optimize",
    "render",
    "run_study",
    "trials_table",
]

_HOMES = {
    "ClusterLease": "lease.manager",
    "LocalRescale": "local_platform.local",
    "WorkDir": "remote.workdir",
    "lease": "runner",
    "optimize": "runner",
    "render": "render",
    "run_study": "runner",
    "trials_table": "study.results",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`lease` and `render` are public functions and modules of ours as well: to the outside the functions win."""

    lease = property(lambda _: __getattr__("lease"), lambda _, __: None)
    render = property(lambda _: __getattr__("render"), lambda _, __: None)


sys.modules[__name__].__class__ = _Package
