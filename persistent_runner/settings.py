"""Settings from the environment, and the user's state directory."""

from __future__ import annotations

import ipaddress
import os
import stat
import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from persistent_runner.duration import Duration
from persistent_runner.errors import ConfigError
from persistent_runner.redaction import hide
from persistent_runner.spelling import did_you_mean

PREFIX = "PERSISTENT_RUNNER_"
_OTHERS = (PREFIX + "CRASH", PREFIX + "HOST_KEYS", PREFIX + "PROOF")
"""Read elsewhere: named crash points, and what stands in a job's environment."""
_FORMS = {
    "profile": "the name of a section of apiconfig",
    "ssh_key": "the path of a private SSH key",
    "runs_dir": "the path of a folder",
    **dict.fromkeys(
        ("poll", "beat", "keeper_tick", "orphan_idle", "orphan_busy", "hang"),
        'a duration above zero such as "15s", "2m" or "0.2s"',
    ),
    "ssh_proxy": "the address of an HTTP proxy such as http://proxy.example.com:3128 (in a user or password write "
    "%23 for #, %2F for /, %3F for ?, %40 for @)",
}


class Settings(BaseSettings):
    """The settings; each is read from `PERSISTENT_RUNNER_` and its name, and from nowhere else.

    `poll` is the pause between two looks at the platform; None means `poll_interval`'s choice. `beat` is the time
    between two signs of life to the cluster, `keeper_tick` the time between two looks of its dead-man's switch, which
    ends it after `orphan_idle` without a beat, or `orphan_busy` while a trial runs. A main loop that has not turned for
    `hang` gives no sign of life any more. `ssh_proxy` is an HTTP proxy that SSH connections go through.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )
    profile: str | None = None
    ssh_key: Path | None = None
    runs_dir: Path = Path("runs")
    poll: Duration | None = None
    beat: Duration = timedelta(seconds=20)
    keeper_tick: Duration = timedelta(seconds=15)
    orphan_idle: Duration = timedelta(minutes=10)
    orphan_busy: Duration | None = None
    hang: Duration = timedelta(minutes=30)
    ssh_proxy: SecretStr | None = None

    @field_validator("ssh_key", "runs_dir")
    @classmethod
    def _with_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @field_validator("ssh_proxy")
    @classmethod
    def _is_a_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            for password in (parts.password, unquote(parts.password or "")):
                hide(password)
            odd = parts.path not in {"", "/"} or parts.query or parts.fragment
            # A port that is none raises ValueError here.
            if parts.scheme != "http" or not parts.hostname or odd or parts.port == 0:
                raise ValueError("no proxy")
        return value

    def poll_interval(self, base_url: str) -> timedelta:
        """Return `poll`; where it is not set 15 s, or 0.1 s for a platform on this machine."""
        return self.poll or timedelta(seconds=0.1 if is_loopback(base_url) else 15)


def load_settings(**overrides: object) -> Settings:
    """Return the settings; an override that is not None wins over the environment.

    Raises ConfigError that names each wrong variable and never shows its value, and each that is none of ours.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    known = [PREFIX + name.upper() for name in Settings.model_fields] + [*_OTHERS]
    if unknown := [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]:
        near = "\n".join(f"{name} is no setting; {did_you_mean(name, known)}" for name in unknown)
        raise ConfigError(near, remedy="Correct the name or unset it: a limit that is not read is not kept.")
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors(include_input=False))
    wrong = [
        f"{name if name in given else PREFIX + name.upper()} is not {_FORMS.get(name, 'a setting that exists')}."
        for name in names
    ]
    # Raised out here, so that no traceback carries pydantic's error and with it the value.
    raise ConfigError("\n".join(wrong), remedy="Correct the value or leave it out.")


def is_loopback(url: str) -> bool:
    """Return whether the URL's host is this machine by its address: 127.0.0.0/8, ::1 or localhost."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def state_dir() -> Path:
    """Return the user's state directory (ledger, proofs, pinned host keys), created for the user alone (0700)."""
    path = Path(platformdirs.user_state_dir("persistent_runner", appauthor=False))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if open_to_others(path):
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"The state directory {path} cannot be made: {error.strerror}.",
            remedy="Make your home writable, or set XDG_STATE_HOME to a folder that is.",
        ) from None
    return path


def open_to_others(path: Path) -> bool:
    """Return whether group or others may read or change a file or folder; never on Windows, which has no modes."""
    return sys.platform != "win32" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
