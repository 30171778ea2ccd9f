"""The private SSH key: read it, or say what is wrong with it and which line mends it."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import sys
from typing import TYPE_CHECKING

import paramiko

from persistent_runner.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_TRIES = 3


def load_key(path: Path) -> paramiko.PKey:
    """Read a private SSH key, asking for its passphrase where a person sits at a terminal.

    ConfigError says what is wrong with it and how to convert it. A key file that others may read is warned of.
    """
    again = f"Set PERSISTENT_RUNNER_SSH_KEY to a private key, or make one: ssh-keygen -t ed25519 -f {path}"
    try:
        head = path.read_bytes()[:100]
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"SSH key: there is no file {path}", remedy=again) from None
    except OSError as error:
        raise ConfigError(f"SSH key: {path} cannot be read: {error.strerror}", remedy=again) from None
    if head.startswith((b"-----BEGIN PRIVATE KEY", b"-----BEGIN ENCRYPTED PRIVATE KEY")):
        raise ConfigError(
            f"SSH key: {path} is in PKCS8 format, which the SSH library does not read",
            remedy=f"Convert it (an Ed25519 key: make a new one instead): ssh-keygen -p -f {path}",
        )
    if head.startswith(b"PuTTY-User-Key-File"):
        raise ConfigError(
            f"SSH key: {path} is a PuTTY key",
            remedy=f"Convert it: puttygen {path} -O private-openssh -o {path}.openssh",
        )
    if re.match(rb"(ssh|ecdsa|sk)-[\w@.-]+ AAAA", head):
        raise ConfigError(f"SSH key: {path} is the public half", remedy=f"Name the private one: {path.with_suffix('')}")
    if os.name == "posix" and mode & 0o077:
        log.warning("SSH key: others on this machine may read or change %s; mend it: chmod 600 %s", path, path)
    try:
        return paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):
        # TypeError is what the cryptography library raises for an encrypted key without a passphrase.
        return _with_passphrase(path)
    except Exception as error:  # noqa: BLE001 - paramiko and cryptography raise a dozen kinds for a damaged file
        raise ConfigError(
            f"SSH key: {path} is not a private key that can be used ({type(error).__name__})", remedy=again
        ) from None


def public_line(key: paramiko.PKey) -> str:
    """Return a key's public half as one OpenSSH line without a comment."""
    return f"{key.get_name()} {key.get_base64()}"


def _with_passphrase(path: Path) -> paramiko.PKey:
    other = f"Make a key without one for this tool: ssh-keygen -t ed25519 -N '' -f {path}.runner"
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"SSH key: {path} has a passphrase, and there is no terminal to ask for it", remedy=other)
    for left in reversed(range(_TRIES)):
        try:
            given = getpass.getpass(f"Passphrase of {path}: ")
        except EOFError:
            break
        key = _decrypted(path, given)
        if key is not None:
            return key
        print("This is not its passphrase." + (" Once more:" if left else ""), file=sys.stderr)  # noqa: T201
    raise ConfigError(f"SSH key: {path} has a passphrase, which was not given", remedy=other)


def _decrypted(path: Path, passphrase: str) -> paramiko.PKey | None:
    """Return the key; None for a wrong passphrase. Each kind is tried: PKey.from_path says text and takes bytes."""
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with contextlib.suppress(Exception):  # a wrong passphrase has as many names as there are formats
            return kind.from_private_key_file(str(path), passphrase)
    return None
