"""What a lease holds, and what is done on it before anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.remote.node import Node


@dataclass(frozen=True)
class Cluster:
    """The machines of one launch of a job, the head node first; a re-launch is `generation` + 1."""

    job_id: str
    nodes: tuple[Node, ...]
    generation: int


@dataclass(frozen=True)
class Setup:
    """What is done once on every new lease: the inputs and the command of `[setup]`, and the folder they lie in."""

    inputs: tuple[str, ...]
    command: str
    folder: Path
