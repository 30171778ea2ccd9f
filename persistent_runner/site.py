"""Which platform, and who we are there: the only place that chooses one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.account import read_account, write_profile
from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError, PlatformRefused
from persistent_runner.lease.ledger import Ledger
from persistent_runner.recovery import Backoff
from persistent_runner.remote import ssh
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import Settings, is_loopback, state_dir

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    import paramiko

    from persistent_runner.lease.guard import Guard
    from persistent_runner.lease.platform import LeaseRequest, Quote

OWN_KEY_NAME = "id_ed25519_persistent_runner"
"""The SSH key that `persistent-runner login` makes where there is none; it goes before the user's others."""
_KEY_NAMES = (OWN_KEY_NAME, "id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Site:
    """A platform that was chosen, and our way onto its machines."""

    name: str
    base_url: str
    platform: RescalePlatform
    key: paramiko.PKey
    key_name: str
    poll: timedelta
    account: str = ""
    let_go: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close what was opened; a local platform that nobody else needs ends."""
        self.platform.close()
        self.let_go()

    def ledger(self, folder: str = "") -> Ledger:
        """Return the user's ledger, as one who leases here for a run folder."""
        directory = state_dir() / "ledger"
        return Ledger(directory, base_url=self.base_url, profile=self.name, folder=folder, account=self.account)

    @property
    def costs_money(self) -> bool:
        """Whether a lease here is paid for."""
        return not is_loopback(self.base_url)


def choose_platform(settings: Settings, *, stop: threading.Event | None = None) -> Site:
    """Return the platform of the profile, or the local platform where none is named.

    Raises ConfigError for a profile, a key or an SSH key that cannot be used, PlatformRefused when the API key is not
    accepted. A set `stop` ends the repeats of failed requests.
    """
    if settings.profile is None:
        from persistent_runner.local_platform.attach import ensure_process

        local = ensure_process(state_dir())
        platform = RescalePlatform(local.base_url, local.api_key, stop=stop)
        key = ssh.load_key(local.ssh_key)
        poll = settings.poll_interval(local.base_url)
        return Site("local", local.base_url, platform, key, str(local.ssh_key), poll, let_go=local.close)
    account = read_account(settings.profile)
    path = settings.ssh_key or default_key()
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
        soon = RescalePlatform(account.base_url, account.api_key, stop=stop, backoff=Backoff(total=30))
        with contextlib.closing(soon):
            user = soon.me()
    except PlatformRefused as error:
        site.close()
        if error.status != 401:
            raise
        came = f"{error.message} It came from {account.source}."
        raise PlatformRefused(came, remedy=error.remedy, status=401) from None
    except BaseException:
        site.close()
        raise
    return replace(site, account=user.account)


def default_key() -> Path:
    """Return the SSH key that is taken where PERSISTENT_RUNNER_SSH_KEY names none; ConfigError where there is none."""
    folder = Path.home() / ".ssh"
    for name in _KEY_NAMES:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"there is no SSH key: PERSISTENT_RUNNER_SSH_KEY is not set and {folder} has none of {', '.join(_KEY_NAMES)}",
        remedy="Make one with: persistent-runner login. Or: ssh-keygen -t ed25519, and paste its public half into the "
        "platform's profile.",
    )


def line_before_money(
    request: LeaseRequest, quote: Quote, site: Site, guard: Guard, limit: tuple[timedelta, str]
) -> str:
    """Return what a lease is and can cost: said before anything is spent.

    `limit` is how long it may run at most, and what ends it then.
    """
    most, why = limit
    nodes = f"{quote.nodes} node" + ("s" if quote.nodes > 1 else "")
    price = quote.price_per_hour

    def worth(span: timedelta) -> str:
        return "" if price is None else f" ({price * (span / timedelta(hours=1)):.2f})"

    idle_end, busy_end = min(guard.idle_end, most), min(guard.busy_end, most)
    busy = ""
    if busy_end > idle_end:
        busy = f", or {format_duration(busy_end)}{worth(busy_end)} while a trial runs"
    where = f"on {site.name} ({site.base_url})"
    parts = [
        f"{request.cores} cores of {request.core_type} on {nodes}, {request.priority}, {where}",
        "the platform names no price" if price is None else f"{price:.2f} an hour, start-up perhaps billed as well",
        f"at most {format_duration(most)}{worth(most)}, {why}",
    ]
    if guard.keeper:
        parts.append(
            f"if this machine disappears, it ends by itself within {format_duration(idle_end)}{worth(idle_end)}{busy}, "
            "and as long after its start where it is still queued"
        )
    else:
        parts.append("WITHOUT A DEAD-MAN'S SWITCH (keeper = false): if this machine disappears it runs until then")
    if not site.costs_money:
        parts.append("this platform is local: nothing is paid")
    return "; ".join(parts) + "."


def serve_local_platform(
    *,
    port: int,
    authorized_keys: str | None,
    profile: str | None,
    durations: str,
    changes: Mapping[str, float],
    journal: str | None,
    faults: Sequence[object],
) -> None:
    """Serve the local platform in the foreground until a signal; see `persistent-runner platform --help`."""
    from persistent_runner.local_platform.attach import require_posix, require_servers

    require_posix()
    require_servers()
    if authorized_keys and not Path(authorized_keys).is_file():
        raise ConfigError(
            f"--authorized-keys: there is no file {authorized_keys}",
            remedy="Make a key, and then name its public half: persistent-runner login, or ssh-keygen -t ed25519.",
        )
    from persistent_runner.local_platform import local
    from persistent_runner.local_platform.durations import FAST, RECORDED, with_durations

    def ready(address: dict[str, str]) -> None:
        if profile is not None:
            write_profile(profile, address["base_url"], address["api_key"])

    local.serve(
        port=port,
        authorized_keys=Path(authorized_keys).absolute() if authorized_keys else None,
        durations=with_durations({"fast": FAST, "recorded": RECORDED}[durations], changes),
        journal=Path(journal) if journal else None,
        faults=faults,
        on_ready=ready,
    )
