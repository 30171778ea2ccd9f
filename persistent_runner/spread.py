"""How trials share the cores of a cluster: several on one machine, or one on several whole machines."""

from __future__ import annotations

import logging
import shlex
import time
from typing import TYPE_CHECKING

from persistent_runner.errors import CommandFailed, CommandTimedOut, ConfigError, NoCapacity
from persistent_runner.nodes import ARRIVAL_SECONDS, LOOK_SECONDS
from persistent_runner.remote.node import Span

if TYPE_CHECKING:
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.remote.workdir import WorkDir

log = logging.getLogger(__name__)

REACH_SECONDS = 60  # for the head node to log in to all others

_SEE = """
see() {
    "${RESCALE_PREFERRED_REMSH:-ssh}" -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=accept-new \\
        "$1" "test -e '$PWD/parameters.json'" </dev/null && return 0 || said=$?
    [ $said = 1 ] && echo "$1 does not see $PWD" || echo "$1 does not let the head node log in"
}
"""


def machines_of(cores: int, cores_per_node: int) -> int:
    """Return how many machines a trial takes."""
    return -(-cores // cores_per_node)


def trials_at_a_time(nodes: int, cores_per_node: int, cores: int, most: int | None) -> int:
    """Return how many trials of some cores run together: as fit each node, or on whole nodes where one is too small.

    ConfigError for a trial that the cluster is too small for.
    """
    whole = machines_of(cores, cores_per_node)
    if whole > nodes:
        raise ConfigError(
            f"a trial of {cores} cores does not fit a cluster of {nodes} x {cores_per_node} cores",
            remedy="Lower the cores of a trial.",
        )
    fit = nodes * (cores_per_node // cores) if whole == 1 else nodes // whole
    return fit if most is None else min(fit, most)


def span_of(lease: ClusterLease, cores: int, cores_per_node: int) -> Span | None:
    """Return what trials are spread over that are too large for one machine, once all machines are there; else None.

    Raises NoCapacity where they do not all come.
    """
    if cores <= cores_per_node:
        return None
    until = time.monotonic() + ARRIVAL_SECONDS
    while len(lease.nodes) < lease.quote.nodes:
        if time.monotonic() > until:
            raise NoCapacity(
                f"only {len(lease.nodes)} of {lease.quote.nodes} machines have an address, "
                f"{ARRIVAL_SECONDS:.0f} s after the first",
                remedy="Run the same line again, or ask for another core type.",
            )
        lease.turned()
        time.sleep(LOOK_SECONDS)
        lease.check_machines()
    return Span(tuple(node.hostname for node in lease.nodes[1:]), cores_per_node)


def warn_of_unreachable(work: WorkDir, workers: tuple[str, ...]) -> None:
    """Look from the head node whether it can log in to each other one and whether that sees the files of a trial.

    That it can by its hostname, and that the working directories are shared, is what the platform's descriptions say
    (a parallel solver's start needs both). What does not hold is a warning: not every solver is started this way.
    """
    script = _SEE + "".join(f"see {shlex.quote(name)}\n" for name in workers)
    try:
        said = work.run(script, timeout=f"{REACH_SECONDS}s").output
    except (CommandFailed, CommandTimedOut) as error:
        said = error.message
    if said.strip():
        log.warning("The machines do not work together as a trial on several of them may need it:\n%s", said.rstrip())
