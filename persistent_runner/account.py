"""The account on a platform: read from the vendor's own file of profiles or from the environment, and written there."""

from __future__ import annotations

import configparser
import itertools
import logging
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from persistent_runner.errors import ConfigError
from persistent_runner.redaction import hide
from persistent_runner.settings import is_loopback, open_to_others
from persistent_runner.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

ENVIRONMENT_PROFILE = "env"
"""The profile that is read from RESCALE_API_KEY and RESCALE_API_BASE_URL (or RESCALE_API_URL)."""


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
    make = f"make this one with: persistent-runner login{'' if name == 'default' else f' --profile {name}'}"
    if not path.exists():
        raise ConfigError(
            f"There is no profile [{name}]: there is no file {path}, where profiles are read from.",
            remedy=f"M{make[1:]}. Or set RESCALE_API_KEY and RESCALE_API_BASE_URL, and use --profile env.",
        )
    parser = _parse(path)
    if name not in parser:
        near = nearest(name, parser.sections())
        raise ConfigError(
            f"{path} has no profile [{name}]{f'; did you mean [{near}]?' if near else '.'}",
            remedy=f"It has {_listed(parser.sections())}. Choose one with --profile, or {make}",
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


def has_profile(name: str, *, home: Path | None = None) -> bool:
    """Return whether apiconfig has the section; ConfigError for a file that cannot be read."""
    path = apiconfig_path(home)
    return path.exists() and name in _parse(path)


def write_profile(name: str, base_url: str, api_key: str, *, home: Path | None = None) -> Path:
    """Write URL and key of the section `name` of apiconfig (0600); everything else in the file stays as it is.

    Returns the file's path. Raises ConfigError, and then the file is as it was.
    """
    account = new_account(name, base_url, api_key)
    path = apiconfig_path(home).resolve()
    if path.exists():
        _parse(path)  # what is broken in it is said by its line
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = path.read_bytes().decode("utf-8") if path.exists() else ""
        text = _with_section(before, name, {"apibaseurl": account.base_url, "apikey": account.api_key})
        _check_nothing_else_changed(before, text, account)
        _replace(path, text)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{path} cannot be written ({getattr(error, 'strerror', None) or type(error).__name__}).",
            remedy="Make it your own UTF-8 text in a folder of yours, or write the section by hand.",
        ) from None
    return path


def apiconfig_path(home: Path | None = None) -> Path:
    """Return the path of the vendor's file of profiles (on Windows below %USERPROFILE%)."""
    return (home or Path.home()) / ".config" / "rescale" / "apiconfig"


def _new_parser() -> configparser.RawConfigParser:
    # Raw, since a `%` in a key breaks interpolation; and [DEFAULT] is a section like any other.
    return configparser.RawConfigParser(default_section="")


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = _new_parser()
    try:
        parser.read_string(path.read_text("utf-8-sig"))
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
    if open_to_others(path):
        log.warning("%s holds API keys and others can read it; run: chmod 600 '%s'", path, path)
    return parser


def _with_section(text: str, name: str, values: Mapping[str, str]) -> str:
    """Return the text of a configuration file with these values in one section; every other line stays."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.split("\n")
    heads = [number for number, line in enumerate(lines) if _section_of(line)] + [len(lines)]
    for begin, after in itertools.pairwise(heads):
        if _section_of(lines[begin]) == name:
            kept = [line for line in lines[begin + 1 : after] if _option_of(line) not in values]
            written = [f"{key} = {value}{end[:-1]}" for key, value in values.items()]
            return "\n".join([*lines[: begin + 1], *written, *kept, *lines[after:]])
    gap = end if text and not text.endswith("\n") else ""
    return text + gap + end.join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""])


def _section_of(line: str) -> str:
    """Return the section that a line begins, as configparser reads it; empty for any other line."""
    text = line.strip().removeprefix("\ufeff")
    match = None if text.startswith(("#", ";")) else configparser.RawConfigParser.SECTCRE.match(text)
    return match["header"] if match else ""


def _option_of(line: str) -> str:
    return re.split("[=:]", line, maxsplit=1)[0].strip().lower()


def _check_nothing_else_changed(before: str, after: str, account: Account) -> None:
    """Raise ConfigError unless a text reads as the other does, but for one section's URL and key."""
    old, new = _sections(before), _sections(after)
    old.setdefault(account.name, {}).update(apibaseurl=account.base_url, apikey=account.api_key)
    if old != new:
        raise ConfigError(
            f"The file of profiles is written in a way that [{account.name}] cannot be put into.",
            remedy="Write the section by hand, with the keys apibaseurl and apikey.",
        )


def _sections(text: str) -> dict[str, dict[str, str]]:
    parser = _new_parser()
    try:
        parser.read_string(text.removeprefix("\ufeff"))
    except configparser.Error:
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}


def _replace(path: Path, text: str) -> None:
    # mkstemp creates 0600: the key is never readable by others, not even for a moment.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".apiconfig-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
