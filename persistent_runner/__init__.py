"""Optuna studies of simulations on one leased cluster.

::

    8  cli.py  ending.py                       run-study and persistent-runner (click), lazy imports; how they end
    7  runner.py  leasing.py  plan.py          puts the house together
       salvage.py  saved_link.py  saved_outputs.py           what clusters that are gone have finished
       check.py  live.py  inventory.py         rehearses a start; shows a running one; lists and ends leases
       logs.py                                 shows what a trial prints
       site.py                                 the only file that chooses a platform
       login.py  doctor.py  findings.py  draft.py   before any money: the account, and what a start would meet
       init.py  interview.py  init_report.py   a study from a deck that runs already; what it asks for, and says
    6  local_platform/                         Rescale on this machine: same wire table, real SSH
         local attach process | server http checks catalogue | jobs job cluster commands files processes clock
         sshd ssh_commands between | faults fault_kinds answers shown control journal durations
    5  study/    spec across tables fields toml syntax | space design formula samplers | extract readers tabular
         functions objective
         loop proposals pilot failures standby committed fuse stopping tenure machines slots starts ahead outbox
         keeping owed bringing | progress resume returned content reread reuse known
         run_folder storage spending summary results
         schema reference | deck context candidates leftovers solver | sample printed new
       rescale/  api fields | client catalogue states transport
    4  pool.py  nodes.py  spread.py            trials onto nodes; the way onto each; how they share the cores
    3  lease/    platform access | manager hold watch cluster create naming progress stopper | guard keeper heart meter
         ledger settle
    2  remote/   node | ssh activity proof keys tunnel by_hand | agent launch packing frames outgoing patience
         link lanes flow haul transfer progress explain pushed live_log local_names habits workdir
    1  errors.py  recovery.py  redaction.py  settings.py  account.py  duration.py  interrupts.py
       render.py  templates.py  formats.py  inputs.py  scripts.py  spelling.py  background.py  printable.py
       portable.py  crash.py  pipes.py  disk.py

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
        BudgetSpent,
        CommandFailed,
        CommandStalled,
        CommandTimedOut,
        ConfigError,
        ConnectionLost,
        DiskFull,
        HostNotProven,
        JobStopped,
        LeaseLost,
        NoCapacity,
        NodeDiskFull,
        ParametersInvalid,
        PlatformError,
        PlatformRefused,
        PlatformUnavailable,
        ReleaseUnconfirmed,
        ResultMissing,
        RunnerError,
        SetupFailed,
        TrialFailed,
        ValueMisfit,
    )
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.leasing import lease
    from persistent_runner.local_platform.local import LocalRescale
    from persistent_runner.remote.workdir import WorkDir
    from persistent_runner.render import render
    from persistent_runner.runner import optimize, run_study
    from persistent_runner.study.results import trials_table

__all__ = [
    "AttemptLost",
    "BudgetSpent",
    "ClusterLease",
    "CommandFailed",
    "CommandStalled",
    "CommandTimedOut",
    "ConfigError",
    "ConnectionLost",
    "DiskFull",
    "HostNotProven",
    "JobStopped",
    "LeaseLost",
    "LocalRescale",
    "NoCapacity",
    "NodeDiskFull",
    "ParametersInvalid",
    "PlatformError",
    "PlatformRefused",
    "PlatformUnavailable",
    "ReleaseUnconfirmed",
    "ResultMissing",
    "RunnerError",
    "SetupFailed",
    "TrialFailed",
    "ValueMisfit",
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
    "lease": "leasing",
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
