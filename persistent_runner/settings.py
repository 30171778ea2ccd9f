"""Who we are and where: settings from the environment, the account on a platform, the user's state directory."""

from __future__ import annotations

import configparser
import ipaddress
import itertools
import logging
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from persistent_runner.duration import Duration
from persistent_runner.errors import ConfigError
from persistent_runner.redaction import hide
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

PREFIX = "PERSISTENT_RUNNER_"
ENVIRONMENT_PROFILE = "env"
"""The profile that is read from RESCALE_API_KEY and RESCALE_API_BASE_URL (or RESCALE_API_URL)."""

_FORMS = {
    "profile": "the name of a section of apiconfig",
    "ssh_key": "the path of a private SSH key",
    "runs_dir": "the path of a folder",
    **dict.fromkeys(
        ("poll", "beat", "keeper_tick", "orphan_idle", "orphan_busy", "hang"),
        'a duration above zero such as "15s", "2m" or "0.2s"',
    ),
    "ssh_proxy": "the address of an HTTP proxy such as http://proxy.example.com:3128",
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
            if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"} or parts.query:
                raise ValueError("no proxy")
        return value

    def poll_interval(self, base_url: str) -> timedelta:
        """Return `poll`; where it is not set 15 s, or 0.1 s for a platform on this machine."""
        return self.poll or timedelta(seconds=0.1 if is_loopback(base_url) else 15)


def load_settings(**overrides: object) -> Settings:
    """Return the settings; an override that is not None wins over the environment.

    Raises ConfigError that names each wrong variable and never shows its value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
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


@dataclass(frozen=True)
class Account:
    """An account on a platform: `name` is the profile's, `source` says for people where it was read."""

    name: str
    base_url: str
    api_key: str = field(repr=False)
    source: str


def read_account(name: str, *, environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Account:
    """Return the account that the profile `name` means; key and base URL come from the same source.

    `name` is a section of `~/.config/rescale/apiconfig` (the vendor's own file, keys `apibaseurl` and `apikey`), or
    `env`. Raises ConfigError that says where it looked, what is there, and what to do.
    """
    if name == ENVIRONMENT_PROFILE:
        return _account_from_environment(environ)
    path = apiconfig_path(home)
    parser = _parse(path)
    if name not in parser:
        raise ConfigError(
            f"{path} has no profile [{name}]; {did_you_mean(name, parser.sections())}",
            remedy=f"It has {_listed(parser.sections())}. Choose one with --profile, or add the section.",
        )
    section = parser[name]
    missing = [key for key in ("apibaseurl", "apikey") if not section.get(key)]
    if missing:
        raise ConfigError(
            f"The profile [{name}] in {path} has no {' and no '.join(missing)}.", remedy="Add it to that section."
        )
    source = f"profile [{name}] in {path}"
    return Account(name, _checked_url(section["apibaseurl"], source), _checked_key(section["apikey"], source), source)


def _account_from_environment(environ: Mapping[str, str]) -> Account:
    key = environ.get("RESCALE_API_KEY")
    variable = "RESCALE_API_BASE_URL" if environ.get("RESCALE_API_BASE_URL") else "RESCALE_API_URL"
    url = environ.get(variable)
    if not key or not url:
        missing = " and ".join(
            text for text, there in (("RESCALE_API_KEY", key), ("RESCALE_API_BASE_URL", url)) if not there
        )
        raise ConfigError(
            f"The profile env reads the account from environment variables, and {missing} is not set.",
            remedy="Set RESCALE_API_KEY and RESCALE_API_BASE_URL, or choose a section of apiconfig with --profile.",
        )
    source = f"RESCALE_API_KEY and {variable}"
    return Account(ENVIRONMENT_PROFILE, _checked_url(url, source), _checked_key(key, source), source)


def new_account(name: str, base_url: str, api_key: str) -> Account:
    """Return an account that is not in apiconfig yet; ConfigError for a name, a URL or a key that cannot be one."""
    if name == ENVIRONMENT_PROFILE or not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name):
        raise ConfigError(f"{name!r} cannot name a profile.", remedy="Use letters, digits, dot, underscore and hyphen.")
    source = "the new profile"
    return Account(name, _checked_url(base_url, source), _checked_key(api_key, source), source)


def write_profile(name: str, base_url: str, api_key: str, *, home: Path | None = None) -> Path:
    """Write the section `name` of apiconfig (0600); everything else in the file stays. Return the file's path."""
    account = new_account(name, base_url, api_key)
    path = apiconfig_path(home).resolve()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = path.read_text("utf-8-sig").splitlines() if path.exists() else []
    heads = [number for number, line in enumerate(lines) if line.startswith("[")] + [len(lines)]
    for begin, end in itertools.pairwise(heads):
        if lines[begin].strip() == f"[{name}]":
            del lines[begin:end]
            break
    lines += [f"[{name}]", f"apibaseurl = {account.base_url}", f"apikey = {account.api_key}"]
    # mkstemp creates 0600: the key is never readable by others, not even for a moment.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".apiconfig-")
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")
    Path(temporary).replace(path)
    return path


def apiconfig_path(home: Path | None = None) -> Path:
    """Return the path of the vendor's file of profiles (on Windows below %USERPROFILE%)."""
    return (home or Path.home()) / ".config" / "rescale" / "apiconfig"


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
        if _open_to_others(path):
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"The state directory {path} cannot be made: {error.strerror}.",
            remedy="Make your home writable, or set XDG_STATE_HOME to a folder that is.",
        ) from None
    return path


def _parse(path: Path) -> configparser.RawConfigParser:
    # A raw parser, since a `%` in a key breaks interpolation; and [DEFAULT] is a section like any other.
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no file {path}, where profiles are read from.",
            remedy="Write it with a section [default] and the keys apibaseurl and apikey, or use --profile env.",
        ) from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}).", remedy="Make it your own text.") from None
    except configparser.Error as error:
        # The parser's own message quotes the line, which may be the key.
        numbers = re.findall(r"line:?\s+(\d+)", str(error))
        where = f", line {numbers[0]}" if numbers else ""
        raise ConfigError(
            f"{path}{where} is not of the form [profile] and key = value ({type(error).__name__}).",
            remedy="Correct that line.",
        ) from None
    if _open_to_others(path):
        log.warning("%s holds API keys and others can read it; run: chmod 600 '%s'", path, path)
    return parser


def _open_to_others(path: Path) -> bool:
    return sys.platform != "win32" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _listed(sections: list[str]) -> str:
    return ", ".join(f"[{section}]" for section in sections) or "no profile"


def _checked_url(url: str, source: str) -> str:
    """Return the base URL without a path of the API; ConfigError unless it is https, or http to this machine."""
    url = re.sub(r"/(api(/v\d+)?/?)?$", "", url.strip())
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0 and not (parts.username or parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"http", "https"}:
        raise ConfigError(f"The base URL of {source} is not a URL.", remedy="Write it as https://platform.rescale.com")
    if parts.scheme == "http" and not is_loopback(url):
        raise ConfigError(
            f"The base URL of {source} is plain http to {parts.hostname}: the API key would travel in clear.",
            remedy="Write it with https://",
        )
    return url


def _checked_key(key: str, source: str) -> str:
    key = key.strip()
    if not re.fullmatch(r"[!#-&(-~]+", key):  # visible ASCII without quotes
        raise ConfigError(
            f"The API key of {source} holds a blank, a quote or a character that no key has.",
            remedy="Copy the key again, without quotes.",
        )
    hide(key)
    return key
