"""The text of the command that holds a cluster."""

from __future__ import annotations

import re


def job_command(name: str) -> str:
    """Return the command of a lease's job: it does nothing until it is stopped.

    The dead-man's switch that ends the job when its driver is gone is not built yet. `sleep inf` is GNU's; `exec`
    makes it the very process that the platform's stop ends, so that no shell leaves it behind.
    Raises ValueError for a name that could leave the comment.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"{name!r} cannot name a lease")
    return f"# persistent_runner lease {name}\nexec sleep inf"
