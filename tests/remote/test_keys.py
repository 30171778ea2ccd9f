"""Keys that load, and keys that do not, each with the line that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.remote.keys import load_key, public_line
from tests.openssh import make_key

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "a {b} $c 'é\" d"

KINDS = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa": ["-t", "ecdsa"],
    "rsa": ["-t", "rsa", "-b", "2048"],
    "ecdsa in PEM": ["-t", "ecdsa", "-m", "PEM"],
    "rsa in PEM": ["-t", "rsa", "-b", "2048", "-m", "PEM"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_load(kind: str, tmp_path: Path) -> None:
    """The kinds and formats that ssh-keygen makes are read, in a folder of any name."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    path = make_key(folder / "id", *KINDS[kind])
    assert public_line(load_key(path)) == " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        ("missing", "there is no file", "ssh-keygen -t ed25519 -f"),
        ("folder", "cannot be read: Is a directory", "PERSISTENT_RUNNER_SSH_KEY"),
        ("empty", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("rubbish", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("cut off", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("public", "is the public half", "Name the private one"),
        ("pkcs8 rsa", "is in PKCS8 format", "ssh-keygen -p -f"),
        ("pkcs8 ecdsa", "is in PKCS8 format", "ssh-keygen -p -f"),
        ("passphrase", "has a passphrase", "ssh-keygen -t ed25519 -N ''"),
        ("passphrase in pem", "has a passphrase", "ssh-keygen -t ed25519 -N ''"),
        ("ppk", "is a PuTTY key", "-O private-openssh -o"),
    ],
)
def test_keys_that_do_not_load(kind: str, message: str, remedy: str, tmp_path: Path) -> None:
    """Each key that cannot be used is named with its trouble and the line that mends it; nothing was spent."""
    path = tmp_path / "id"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "rubbish":
        path.write_bytes(os.urandom(500))
    elif kind == "cut off":
        path.write_bytes(make_key(tmp_path / "whole").read_bytes()[:150])
    elif kind == "public":
        make_key(path)
        path = path.with_suffix(".pub")
    elif kind.startswith("pkcs8"):
        make_key(path, "-t", kind.split()[1], "-m", "PKCS8")
    elif kind.startswith("passphrase"):
        form = ["-m", "PEM"] if "pem" in kind else []
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", *form, "-N", "open sesame", "-f", str(path)], check=True)
    elif kind == "ppk":
        path.write_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n")
    with pytest.raises(ConfigError) as caught:
        load_key(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="Windows has other rights than modes")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_key_that_others_may_read(mode: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key file with wrong rights loads, with the line that mends it (row S3)."""
    path = make_key(tmp_path / "id")
    path.chmod(mode)
    load_key(path)
    assert (f"chmod 600 {path}" in caplog.text) is warned


class Terminal:
    """A process with a terminal of its own that loads a key; what it asks is answered from here."""

    def __init__(self, path: Path) -> None:
        self._master, slave = os.openpty()
        code = (
            "import fcntl, sys, termios, pathlib\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from persistent_runner.errors import RunnerError\n"
            "from persistent_runner.remote.keys import load_key, public_line\n"
            "try: print('LOADED', public_line(load_key(pathlib.Path(sys.argv[1]))))\n"
            "except RunnerError as error: print('REFUSED', error.message)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def said(self, *words: str) -> str:
        """Return what it says until one of these words comes, or its end."""
        text = ""
        while not any(word in text for word in words):
            try:
                text += os.read(self._master, 4096).decode()
            except OSError:  # it has ended
                break
        return text

    def type(self, line: str) -> None:
        os.write(self._master, f"{line}\n".encode())

    def end(self) -> str:
        """Return the rest of what it says."""
        text = self.said("never")
        assert self._process.wait(30) == 0
        os.close(self._master)
        return text


@pytest.mark.parametrize("form", [(), ("-m", "PEM")])
@pytest.mark.parametrize(("wrong", "loads"), [(0, True), (2, True), (3, False)])
def test_a_passphrase_is_asked_for(form: tuple[str, ...], wrong: int, loads: bool, tmp_path: Path) -> None:
    """On a terminal the passphrase is asked for up to three times, and is not shown."""
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", *form, "-N", "open sesame", "-f", str(path)], check=True)
    terminal = Terminal(path)
    shown = ""
    for line in ["guess"] * wrong + ["open sesame"] * loads:
        asked = terminal.said("Passphrase of", "LOADED", "REFUSED")
        assert "Passphrase of" in asked
        shown += asked + (terminal.said("id: ") if "id: " not in asked else "")
        terminal.type(line)
    shown += terminal.end()
    public = " ".join(path.with_suffix(".pub").read_text().split()[:2])
    assert (f"LOADED {public}" in shown) is loads
    assert ("REFUSED" in shown) is not loads
    assert shown.count("not its passphrase") == wrong
    assert "sesame" not in shown
