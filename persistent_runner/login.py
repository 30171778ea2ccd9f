"""`persistent-runner login`: an account into apiconfig, and an SSH key whose public half can be pasted."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from persistent_runner.account import apiconfig_path, has_profile, new_account, read_account, write_profile
from persistent_runner.errors import ConfigError, PlatformRefused
from persistent_runner.recovery import Backoff
from persistent_runner.remote import ssh
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import load_settings
from persistent_runner.site import OWN_KEY_NAME, default_key
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    import paramiko

    from persistent_runner.account import Account

REGIONS = {
    "us": "https://platform.rescale.com",
    "eu": "https://eu.rescale.com",
    "jp": "https://platform.rescale.jp",
    "kr": "https://kr.rescale.com",
    "itar": "https://itar.rescale.com",
    "gov": "https://itar.rescale-gov.com",
}
"""The platform's regions, as its vendor's clients and documents name them (`gov`: ITAR, FedRAMP Moderate)."""
PASTE_AT = "User Profile > Job Settings > SSH"
"""Where the platform's portal takes a public key and the rule of addresses that may connect."""


def log_in(
    profile: str, *, region: str | None, base_url: str | None, ssh_key: str | None, replace: bool
) -> tuple[Account, Path]:
    """Ask for what is not given, try the key, write the profile, find or make an SSH key, and say what comes next.

    The API key comes from a prompt that shows nothing, or from the first line of stdin; never from the command line.
    Returns the account and the path of the SSH key. Raises ConfigError for what cannot be used, PlatformRefused where
    the platform does not accept the key (then nothing is written).
    """
    named_key = Path(ssh_key).expanduser().absolute() if ssh_key else load_settings().ssh_key
    asks = sys.stdin.isatty()
    new_account(profile, "https://platform.rescale.com", "k")  # a wrong name is said before anything is asked
    _refuse_to_replace(profile, asks=asks, replace=replace)
    url = base_url or _url_of(region or _asked_region(asks=asks))
    new_account(profile, url, "k")
    account = new_account(profile, url, _asked_key(url, asks=asks))
    who = _owner(account)
    path = write_profile(profile, account.base_url, account.api_key)
    account = read_account(profile)  # what others will read; a fault elsewhere in the file is said now
    click.echo(f"The API key is accepted: {who}.")
    click.echo(f"The profile [{profile}] is in {path}, which you alone can read.")
    key_path, key = _ssh_key(named_key)
    click.echo(f"\nPaste this public key at {account.base_url} into {PASTE_AT}:\n")
    click.echo(ssh.public_line(key))
    if ssh_key is not None:
        click.echo(f"\nFor this SSH key, set:  PERSISTENT_RUNNER_SSH_KEY={key_path}")
    click.echo(f"\nThen type:  persistent-runner doctor --profile {profile}")
    return account, key_path


def _refuse_to_replace(profile: str, *, asks: bool, replace: bool) -> None:
    if replace or not has_profile(profile):
        return
    path = apiconfig_path()
    if not asks or not click.confirm(f"{path} has a profile [{profile}]. Replace it?", err=True):
        raise ConfigError(
            f"{path} has a profile [{profile}], and it stays as it is.",
            remedy="Choose another name with --profile NAME, or replace it with --replace.",
        )


def _asked_region(*, asks: bool) -> str:
    if not asks:
        raise ConfigError(
            "There is no terminal to ask for the region.",
            remedy=f"Add --region {'|'.join(REGIONS)}, or --base-url URL.",
        )
    for name, url in REGIONS.items():
        click.echo(f"  {name:5} {url}", err=True)
    answer: str = click.prompt("Region, or a URL", default="us", err=True)
    return answer.strip()


def _url_of(region: str) -> str:
    if region in REGIONS or "://" in region:
        return REGIONS.get(region, region)
    raise ConfigError(
        f"There is no region {region!r}; {did_you_mean(region, REGIONS)}",
        remedy=f"Regions are {', '.join(REGIONS)}; any other address is named with --base-url URL.",
    )


def _asked_key(url: str, *, asks: bool) -> str:
    if not asks:
        key = sys.stdin.readline().strip()
        if not key:
            raise ConfigError(
                "There is no terminal to ask for the API key, and the first line of stdin is empty.",
                remedy="Pipe it in from where it is kept; it is never an argument, since others can read those.",
            )
        return key
    click.echo(f"An API key is made at {url} under User Profile > API. What you type is not shown.", err=True)
    answer: str = click.prompt("API key", hide_input=True, err=True)
    return answer


def _owner(account: Account) -> str:
    platform = RescalePlatform(account.base_url, account.api_key, backoff=Backoff(total=30))
    try:
        return f"it is {platform.me().email}'s"
    except PlatformRefused as error:
        raise PlatformRefused(
            error.message, remedy=f"{error.remedy} Nothing was written.".strip(), status=error.status
        ) from None
    finally:
        platform.close()


def _ssh_key(named: Path | None) -> tuple[Path, paramiko.PKey]:
    """Return the SSH key that will be used: the named one, else the first usable one at home, else a new one."""
    path = named
    if path is not None:
        key = ssh.load_key(path)
        click.echo(f"The SSH key is {path}.")
        return path, key
    with contextlib.suppress(ConfigError):
        path = default_key()
    if path is not None:
        try:
            key = ssh.load_key(path)
        except ConfigError as error:
            if path.name == OWN_KEY_NAME:
                raise
            click.echo(f"{error.message}, so this tool gets a key of its own.")
        else:
            click.echo(f"The SSH key is {path}.")
            return path, key
    path = Path.home() / ".ssh" / OWN_KEY_NAME
    make_ssh_key(path)
    click.echo(f"A new SSH key is in {path}, which you alone can read.")
    return path, ssh.load_key(path)


def make_ssh_key(path: Path) -> None:
    """Make an Ed25519 key without a passphrase (0600), and its public half beside it; ConfigError where it cannot."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        path.with_name(f"{path.name}.pub").write_bytes(public + b" persistent_runner\n")
    except OSError as error:
        raise ConfigError(
            f"The SSH key {path} cannot be made: {error.strerror}.",
            remedy="Make one elsewhere with ssh-keygen -t ed25519 and name it with --ssh-key PATH.",
        ) from None
