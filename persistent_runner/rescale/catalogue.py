"""What Rescale offers: core types, prices, software, projects, and what a request would get and cost."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.lease.platform import LeaseRequest, Quote
from persistent_runner.rescale.api import Analysis, ComputePrice, CoreType, Endpoints, Project, User
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistent_runner.rescale.transport import Transport

# The economy plan's name ends in `on-demand` (documented); the endings of the other are guesses, and where no plan has
# one of them the price of the core type is taken.
_PLAN_ENDINGS = {"on_demand": ("-priority", "instant"), "economy": ("on-demand",)}


class Catalogue:
    """Reads the lists of the platform; nothing here costs anything or changes anything."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def me(self) -> User:
        """Return whose key this is."""
        user: User = self._http.call(Endpoints.me)
        return user

    def projects(self) -> list[Project]:
        """Return the projects that jobs may be charged to."""
        found: list[Project] = self._http.call(Endpoints.projects)
        return found

    def core_types(self) -> list[CoreType]:
        """Return every kind of machine."""
        found: list[CoreType] = self._http.call(Endpoints.core_types)
        return found

    def prices(self) -> list[ComputePrice]:
        """Return the prices of the day."""
        found: list[ComputePrice] = self._http.call(Endpoints.compute_prices)
        return found

    def analyses(self) -> list[Analysis]:
        """Return every software tile."""
        found: list[Analysis] = self._http.call(Endpoints.analyses)
        return found

    def quote(self, request: LeaseRequest) -> Quote:
        """Return what the request would get and cost; ConfigError for what the platform does not have."""
        kinds = {kind.code: kind for kind in self.core_types()}
        kind = kinds.get(request.core_type)
        if kind is None:
            usable = [code for code, kind in kinds.items() if not kind.is_deprecated]
            raise _unknown("core type", request.core_type, usable, "core_type")
        if kind.is_deprecated:
            raise ConfigError(
                f"The core type {kind.code} is deprecated: the platform takes no new job on it.",
                remedy="Choose another core_type in [cluster].",
                key="core_type",
            )
        _check_cores(kind, request.cores)
        hours = self.me().max_job_hours
        if hours is not None and whole_hours(request.walltime) > hours:
            raise ConfigError(
                f"walltime is {whole_hours(request.walltime)} h, and this account's jobs may take {hours} h.",
                remedy=f'Write walltime = "{hours}h" or less in [cluster].',
                key="walltime",
            )
        self._check_software(request)
        self.project_id(request.project)
        price, notes = self._price(kind, request)
        most = kind.cores[-1] if kind.cores else request.cores
        nodes = max(1, request.cores // most)
        return Quote(price, nodes, request.cores // nodes, notes)

    def _check_software(self, request: LeaseRequest) -> None:
        tiles = {tile.code: tile for tile in self.analyses()}
        for software in request.software:
            tile = tiles.get(software.analysis)
            if tile is None:
                raise _unknown("software", software.analysis, tiles, "software")
            versions = [version.version_code for version in tile.versions]
            if software.version not in versions:
                raise _unknown(f"version of {tile.code}", software.version, versions, "software")

    def _price(self, kind: CoreType, request: LeaseRequest) -> tuple[float | None, tuple[str, ...]]:
        """Return the price of the whole cluster in USD per hour, and where it comes from."""
        endings = _PLAN_ENDINGS[request.priority]
        for row in self.prices():
            plan = row.plan_type.lower().replace("_", "-")
            here = row.core_type == kind.code and row.is_active and row.os in {"", "linux"}
            if here and plan.endswith(endings) and row.value is not None:
                return row.value.amount * request.cores, (f"price of the plan {row.plan_type}",)
        per_core = kind.price if request.priority == "on_demand" else kind.low_priority_price
        if per_core is None:
            return None, (f"the platform names no {request.priority} price for {kind.code}",)
        return per_core * request.cores, (f"list price of the core type {kind.code}",)

    def project_id(self, project: str | None) -> str | None:
        """Return the id of a project that is named by id or by name."""
        if project is None:
            return None
        projects = self.projects()
        for found in projects:
            if project in {found.id, found.name}:
                return found.id
        raise _unknown("project", project, [found.name or found.id for found in projects], "project")


def whole_hours(walltime: timedelta) -> int:
    """Return a walltime in hours as the platform takes it: rounded up."""
    return math.ceil(walltime / timedelta(hours=1))


def _unknown(what: str, wanted: str, there: Iterable[str], key: str) -> ConfigError:
    """Return the error for a name that the platform does not have, with the nearest one that it has."""
    return ConfigError(
        f"The platform has no {what} {wanted!r} for this account; {did_you_mean(wanted, there)}",
        remedy="Correct it in [cluster].",
        key=key,
    )


def _check_cores(kind: CoreType, cores: int) -> None:
    """Refuse a core count that the core type does not offer: one of its counts, or a multiple of the largest."""
    if cores < 1:
        raise ConfigError(
            f"{cores} cores cannot be leased.", remedy="Write cores = 1 or more in [cluster].", key="cores"
        )
    if not kind.cores or cores in kind.cores or cores % kind.cores[-1] == 0:
        return
    most = kind.cores[-1]
    offered = [*kind.cores, cores // most * most, (cores // most + 1) * most]
    below = max((count for count in offered if 0 < count < cores), default=None)
    above = min(count for count in offered if count > cores)
    near = f"{below} or {above}" if below else f"{above}"
    raise ConfigError(
        f"The core type {kind.code} does not offer {cores} cores.",
        remedy=f"The nearest counts are {near}; it offers {', '.join(map(str, kind.cores))} and multiples of {most}.",
        key="cores",
    )
