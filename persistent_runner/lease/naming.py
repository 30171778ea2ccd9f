"""The names of jobs: unique, and telling whose they are."""

from __future__ import annotations

import re
import secrets

from persistent_runner.errors import ConfigError

NAME_PREFIX = "persistent_runner-"


def lease_name(study: str) -> str:
    """Return a job name that nobody else has, and that tells whose it is; ConfigError where `study` cannot be in it."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", study):
        raise ConfigError(f"{study!r} cannot name a lease.", remedy="Use 1 to 80 letters, digits and . _ -")
    return f"{NAME_PREFIX}{study}-{secrets.token_hex(6)}"


def study_of(name: str) -> str:
    """Return the study that a job's name tells of; empty where the name is not one of ours."""
    match = re.fullmatch(rf"{NAME_PREFIX}(.+)-[0-9a-f]{{12}}", name)
    return match[1] if match else ""
