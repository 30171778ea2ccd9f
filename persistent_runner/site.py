"""Which platform, and who we are there: the only place that chooses one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError, PlatformRefused
from persistent_runner.recovery import Backoff
from persistent_runner.remote import ssh
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import (
    Settings,
    is_loopback,
    read_account,
    refuse_real_platform,
    state_dir,
    write_profile,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from datetime import timedelta

    import paramiko

    from persistent_runner.lease.platform import LeaseRequest, Quote

_KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Site:
    """A platform that was chosen, and our way onto its machines."""

    name: str
    base_url: str
    platform: RescalePlatform
    key: paramiko.PKey
    key_name: str
    poll: timedelta
    let_go: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close what was opened; a local platform that nobody else needs ends."""
        self.platform.close()
        self.let_go()

    @property
    def costs_money(self) -> bool:
        """Whether a lease here is paid for."""
        return not is_loopback(self.base_url)


def choose_platform(settings: Settings, *, leases: bool = True, stop: threading.Event | None = None) -> Site:
    """Return the platform of the profile, or the local platform where none is named.

    Raises ConfigError for a profile, a key or an SSH key that cannot be used, PlatformRefused when the API key is not
    accepted. `leases` False is for a look that leases nothing; a set `stop` ends the repeats of failed requests.
    """
    if settings.profile is None:
        from persistent_runner.local_platform.attach import ensure_process

        local = ensure_process(state_dir())
        platform = RescalePlatform(local.base_url, local.api_key, stop=stop)
        key = ssh.load_key(local.ssh_key)
        poll = settings.poll_interval(local.base_url)
        return Site("local", local.base_url, platform, key, str(local.ssh_key), poll, local.close)
    account = read_account(settings.profile)
    if leases:
        refuse_real_platform(account)
    path = settings.ssh_key or _default_key()
    site = Site(
        account.name,
        account.base_url,
        RescalePlatform(account.base_url, account.api_key, stop=stop),
        ssh.load_key(path),
        str(path),
        settings.poll_interval(account.base_url),
    )
    try:
        # The key is refused here, before anything else is asked, and a platform out of reach is said soon.
        RescalePlatform(account.base_url, account.api_key, stop=stop, backoff=Backoff(total=30)).me()
    except PlatformRefused as error:
        site.close()
        if error.status != 401:
            raise
        came = f"{error.message} It came from {account.source}."
        raise PlatformRefused(came, remedy=error.remedy, status=401) from None
    except BaseException:
        site.close()
        raise
    return site


def _default_key() -> Path:
    folder = Path.home() / ".ssh"
    for name in _KEY_NAMES:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"there is no SSH key: PERSISTENT_RUNNER_SSH_KEY is not set and {folder} has none of {', '.join(_KEY_NAMES)}",
        remedy="Make one with ssh-keygen -t ed25519 and paste its public half into the platform's profile.",
    )


def line_before_money(request: LeaseRequest, quote: Quote, site: Site) -> str:
    """Return what a lease is and can cost: said before anything is spent."""
    nodes = f"{quote.nodes} node" + ("s" if quote.nodes > 1 else "")
    line = (
        f"{request.cores} cores of {request.core_type} on {nodes}, {request.priority}, on {site.name} ({site.base_url})"
    )
    if quote.price_per_hour is None:
        line += "; the platform names no price"
    else:
        hours = -(-request.walltime.total_seconds() // 3600)
        rounded = "" if hours * 3600 == request.walltime.total_seconds() else " (walltimes are whole hours)"
        worst = quote.price_per_hour * hours
        line += (
            f"; {quote.price_per_hour:.2f} an hour; at most {format_duration(hours * 3600)}{rounded}, so {worst:.2f}, "
            "also if this machine disappears"
        )
    if not site.costs_money:
        line += ". This platform is local: nothing is paid"
    return line + "."


def serve_local_platform(*, port: int, authorized_keys: str | None, profile: str | None, durations: str) -> None:
    """Serve the local platform in the foreground until a signal; see `persistent-runner platform --help`."""
    from persistent_runner.local_platform.attach import require_posix, require_servers

    require_posix()
    require_servers()
    from persistent_runner.local_platform import local
    from persistent_runner.local_platform.job import FAST, RECORDED

    def ready(address: dict[str, str]) -> None:
        if profile is not None:
            write_profile(profile, address["base_url"], address["api_key"])

    local.serve(
        port=port,
        authorized_keys=Path(authorized_keys).absolute() if authorized_keys else None,
        durations={"fast": FAST, "recorded": RECORDED}[durations],
        on_ready=ready,
    )
