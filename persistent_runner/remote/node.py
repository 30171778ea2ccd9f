"""One machine of a cluster, as the platform describes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """Where to reach a machine.

    `address` and `port` are what a client connects to, `address` is empty where only the cluster's other machines reach
    it; `user` is the login; `role` and `started` are the platform's own strings (a changed `instance_id` or `started`
    means another machine). `hostname` is what the other machines of the cluster call it.
    """

    instance_id: str
    address: str
    port: int
    user: str
    role: str = ""
    started: str = ""
    private_address: str = ""
    hostname: str = ""

    def __str__(self) -> str:
        return f"{self.user}@{self.address or self.private_address}:{self.port}"


@dataclass(frozen=True)
class Span:
    """What commands are spread over that need more than one machine: the head node and `workers`, by their hostnames.

    `cores` are those of each machine.
    """

    workers: tuple[str, ...]
    cores: int
