"""`persistent-runner doctor`: what a start would meet, piece by piece, before any money; each fault with its remedy."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from invoke.exceptions import CommandTimedOut

from persistent_runner.account import ENVIRONMENT_PROFILE, read_account
from persistent_runner.draft import Draft
from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError, ConnectionLost, PlatformRefused, RunnerError
from persistent_runner.findings import Finding, Findings
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.leasing import lease
from persistent_runner.plan import first_parameters, load_study, quote_of, rehearse, rendered, request_of
from persistent_runner.recovery import Backoff
from persistent_runner.remote import ssh
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import is_loopback, load_settings
from persistent_runner.site import choose_platform, default_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import paramiko

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.lease.platform import Quote
    from persistent_runner.rescale.api import CoreType
    from persistent_runner.settings import Settings
    from persistent_runner.study.spec import StudySpec

_PATIENCE = Backoff(total=30)  # seconds; a platform out of reach is said soon
_ANSWER_SECONDS = 60
_OUR_ENVIRONMENT = {"PERSISTENT_RUNNER_DOCTOR": "1"}
"""Makes our cluster another than any that a study has kept: that one must not be taken, and ended, by a look."""
_HOUR = timedelta(hours=1)


class Doctor:
    """Looks at a start in order, and goes on after a fault with all that does not need what failed.

    A context manager: on exit a local platform that nobody else needs ends. What was seen is in `findings`,
    and `show` gets it line by line as it is seen.
    """

    def __init__(self, profile: str | None = None, *, show: Callable[[str], None] | None = None) -> None:
        self.findings = Findings(show)
        self._profile = profile
        self._settings: Settings | None = None
        self._platform: RescalePlatform | None = None
        self._base_url = ""
        self._key: paramiko.PKey | None = None
        self._spec: StudySpec | None = None
        self._ways_out = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._ways_out.enter_context(self.findings)
        return self

    def __exit__(self, *_: object) -> None:
        self._ways_out.close()

    @property
    def costs_money(self) -> bool:
        """Whether a lease on the platform that was looked at is paid for."""
        return not is_loopback(self._base_url)

    # --- what needs no cluster

    def examine(self, study: str | Path | None = None) -> None:
        """Look at everything that costs nothing; with a study at its files and at the cluster it asks for as well."""
        with self.findings.looking_at("settings") as finding:
            self._settings = load_settings(profile=self._profile)
            finding.seen = f"profile {self._settings.profile}" if self._settings.profile else "no profile is named"
        if self._settings is not None:
            if self._settings.profile is None:
                self._look_at_the_local_platform(self._settings)
            else:
                self._look_at_the_account(self._settings.profile)
                self._look_at_the_ssh_key(self._settings)
                self._look_at_the_proxy(self._settings)
        if study is not None:
            self._look_at_the_study(study)
        if self._platform is None or self._settings is None:
            self.findings.add(Finding("cluster", "not looked at: no platform was reached", "skipped"))
            return
        request: LeaseRequest | None = None
        if self._spec is not None:
            request = self._look_at_the_cluster(request_of(self._spec), self._spec)
        if request is None:
            with self.findings.looking_at("cheapest") as finding:
                request = self.cheapest()
                quote = self._platform.quote(request)
                finding.seen = f"{_cluster(request, quote)}; {_price(request, quote)}"
        if request is not None:
            proxied = self._settings.ssh_proxy is not None
            Draft(self.findings, self._platform, self._base_url, self._key, proxied=proxied).look(request)

    def _look_at_the_local_platform(self, settings: Settings) -> None:
        with self.findings.looking_at("platform") as finding:
            site = choose_platform(settings)
            self._ways_out.callback(site.close)
            self._platform, self._base_url, self._key = site.platform, site.base_url, site.key
            finding.seen = "the local one on this machine, with an account and an SSH key of its own; nothing is paid"

    def _look_at_the_account(self, profile: str) -> None:
        with self.findings.looking_at("profile") as finding:
            account = read_account(profile)
            finding.seen = f"{account.source}, {account.base_url}"
            self._base_url = account.base_url
        if finding.verdict == "failed":
            return
        with self.findings.looking_at("API key") as finding:
            platform = RescalePlatform(account.base_url, account.api_key, backoff=_PATIENCE)
            self._ways_out.callback(platform.close)
            try:
                finding.seen = f"accepted; it is {platform.me().email}'s"
            except PlatformRefused as error:
                remedy = error.remedy
                if error.status == 401 and profile != ENVIRONMENT_PROFILE:
                    remedy += f" Another one is entered with: persistent-runner login --profile {profile}"
                raise PlatformRefused(f"{error.message} It came from {account.source}.", remedy=remedy) from None
            self._platform = platform

    def _look_at_the_ssh_key(self, settings: Settings) -> None:
        with self.findings.looking_at("SSH key") as finding:
            path = settings.ssh_key or default_key()
            self._key = ssh.load_key(path)
            finding.seen = f"{path}, {self._key.get_name()}"
            if sys.platform != "win32" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                finding.warn(f"{path} can be read by others", f"Type: chmod 600 '{path}'")

    def _look_at_the_proxy(self, settings: Settings) -> None:
        if settings.ssh_proxy is not None:
            with self.findings.looking_at("proxy") as finding:
                parts = urlsplit(settings.ssh_proxy.get_secret_value())
                finding.seen = f"SSH connections go through {parts.hostname}:{parts.port or 80}"
        elif not is_loopback(self._base_url) and (os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")):
            with self.findings.looking_at("proxy") as finding:
                finding.warn(
                    "HTTPS_PROXY is set and PERSISTENT_RUNNER_SSH_PROXY is not: SSH connections go out directly",
                    "Where only a proxy leads out, set PERSISTENT_RUNNER_SSH_PROXY=http://HOST:PORT.",
                )

    def _look_at_the_study(self, path: str | Path) -> None:
        with self.findings.looking_at("study") as finding:
            self._spec = spec = load_study(path, (), None, None)
            finding.seen = f"{spec.study.name}: {spec.study.n_trials} trials"
        if self._spec is None:
            return
        with self.findings.looking_at("templates") as finding:
            files = rendered(spec, first_parameters(spec))
            rehearse(spec)
            finding.seen = f"trial 0 gets {len(files)} input file{'' if len(files) == 1 else 's'}"

    # --- the cluster that is asked for

    def _look_at_the_cluster(self, request: LeaseRequest, spec: StudySpec) -> LeaseRequest | None:
        """Return a request that the catalogue can serve, None where it cannot; each fault gets a line of its own."""
        assert self._platform is not None
        with self.findings.looking_at("cluster") as finding:
            quote = quote_of(spec, request, self._platform)
            finding.seen = _cluster(request, quote)
        if finding.verdict != "failed":
            self._say(
                "price", "; ".join([_price(request, quote), *quote.notes]), known=quote.price_per_hour is not None
            )
            tiles = ", ".join(f"{tile.analysis} {tile.version}" for tile in request.software)
            self._say("software", tiles)
            if request.project:
                self._say("project", request.project)
            return request
        # A quote stops at the first fault; what else is wrong shows where the rest is replaced by what is known to fit.
        with contextlib.suppress(RunnerError):
            plain = self.cheapest()
            for name, part in (
                ("software", {"software": request.software}),
                ("project", {"project": request.project}),
                ("walltime", {"walltime": request.walltime}),
            ):
                self._look_at_a_part(name, spec, plain.model_copy(update=part), besides=finding)
        return None

    def _look_at_a_part(self, name: str, spec: StudySpec, request: LeaseRequest, besides: Finding) -> None:
        assert self._platform is not None
        try:
            quote_of(spec, request, self._platform)
        except RunnerError as error:
            if error.message != besides.seen:
                self.findings.add(Finding(name, error.message, "failed", error.remedy, error.exit_code))

    def _say(self, name: str, seen: str, *, known: bool = True) -> None:
        self.findings.add(Finding(name, seen, "ok" if known else "warning"))

    def cheapest(self) -> LeaseRequest:
        """Return a request for the cheapest cluster of the catalogue, for one hour; RunnerError where there is none."""
        if self._platform is None:
            raise ConfigError("no platform was reached", remedy="Mend what failed above.")
        request = LeaseRequest(core_type="", cores=1, walltime=_HOUR)
        (tile,) = request.software
        versions = [
            version
            for analysis in self._platform.analyses()
            for version in analysis.versions
            if (analysis.code, version.version_code) == (tile.analysis, tile.version)
        ]
        allowed = {code for version in versions for code in version.allowed_core_types}
        kinds = [
            kind
            for kind in self._platform.core_types()
            if not kind.is_deprecated and kind.cores and (not allowed or kind.code in allowed)
        ]
        if not kinds:
            raise ConfigError(
                "the platform offers this account no core type", remedy="Ask who administers the account."
            )
        found = min(kinds, key=_hourly)
        return request.model_copy(update={"core_type": found.code, "cores": found.cores[0]})

    # --- a lease of the cheapest cluster

    def connect(self, confirm: Callable[[str, bool], None]) -> None:
        """Lease the cheapest cluster, run a command on it, release it, and say how long that took and what it cost.

        `confirm` gets the line before money and whether any is spent, and raises to refuse.
        """
        if self.findings.exit_code:
            self.findings.add(Finding("lease", "nothing was leased: mend what failed first", "skipped"))
            return
        with self.findings.looking_at("lease") as finding:
            request = self.cheapest()
            assert self._platform is not None
            quote = self._platform.quote(request)
            line = f"{_cluster(request, quote)}, at {self._base_url}; {_price(request, quote)}"
            confirm(f"{line}, also if this machine disappears.", self.costs_money)
            begin = time.monotonic()
            held = lease(
                "doctor",
                core_type=request.core_type,
                cores=request.cores,
                walltime=request.walltime,
                profile=self._profile,
                env=_OUR_ENVIRONMENT,
            )
            with held as cluster:
                up = time.monotonic()
                connecting = cluster.age.total_seconds()
                finding.seen = f"{cluster.head_node}: {_first_words(cluster)}"
                ran = time.monotonic()
            ended = time.monotonic()
        if finding.verdict == "failed":
            return
        self._say(
            "time",
            f"start-up {format_duration(up - begin - connecting)}, connect {format_duration(connecting)}, "
            f"command {format_duration(ran - up)}, release {format_duration(ended - ran)}",
        )
        cost = held.cost
        if cost.cost is None:
            self._say("cost", "the platform names no price", known=False)
            return
        paid = "" if self.costs_money else "; nothing is paid for a local platform"
        self._say("cost", f"{_amount(cost.cost)}, or {_amount(cost.cost_with_start_up)} where start-up is billed{paid}")


def _first_words(cluster: ClusterLease) -> str:
    """Return what the head node and its Python say of themselves; ConnectionLost where no answer comes."""
    node = cluster.head_node
    with ssh.translated(node):
        try:
            done = cluster.connection.run("uname -sr; python3 --version", hide=True, warn=True, timeout=_ANSWER_SECONDS)
        except CommandTimedOut:
            raise ConnectionLost(f"{node} did not answer a command within {_ANSWER_SECONDS} s") from None
    if not done.ok:
        raise ConfigError(
            f"{node} has no python3, which trials are started with: {done.stderr.strip()}",
            remedy="Choose another software tile or core type in [cluster].",
        )
    return ", ".join(done.stdout.splitlines())


def _amount(cost: float | None) -> str:
    """Return what something cost, for people, in the platform's currency."""
    if cost is None:
        return "unknown"
    return f"{cost:.2f}" if cost >= 0.01 else "less than 0.01"


def _cores(request: LeaseRequest) -> str:
    return f"{request.cores} core{'' if request.cores == 1 else 's'} of {request.core_type}"


def _hourly(kind: CoreType) -> float:
    """Return the price of the smallest cluster of a core type, per hour; one without a price comes last."""
    return float("inf") if kind.price is None else kind.price * kind.cores[0]


def _cluster(request: LeaseRequest, quote: Quote) -> str:
    nodes = f"{quote.nodes} node" + ("s" if quote.nodes > 1 else "")
    walltime = format_duration(request.walltime)
    return f"{_cores(request)} on {nodes}, {request.priority}, for at most {walltime}"


def _price(request: LeaseRequest, quote: Quote) -> str:
    if quote.price_per_hour is None:
        return "the platform names no price"
    hours = math.ceil(request.walltime / _HOUR)
    return f"{quote.price_per_hour:.2f} an hour, so at most {quote.price_per_hour * hours:.2f}"
