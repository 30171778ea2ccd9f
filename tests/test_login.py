"""`persistent-runner login` as a user meets it: a real process, the local platform over HTTP, a terminal of its own."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import threading
from typing import TYPE_CHECKING

import paramiko
import pytest

from persistent_runner.account import read_account, write_profile
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.login import make_ssh_key
from persistent_runner.remote.ssh import public_line
from tests.driving import BIN, DEADLINE, HOSTILE, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN = "id_ed25519_persistent_runner"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a machine of one's own in a hostile folder."""
    return Place(tmp_path / HOSTILE)


@pytest.fixture(scope="module")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run the local platform."""
    with LocalRescale(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


def log_in(place: Place, *args: object, typed: str, code: int = 0, **environment: str) -> tuple[str, str]:
    """Run `persistent-runner login` with a pipe as stdin; return stdout and stderr."""
    done = subprocess.run(
        [str(BIN / "persistent-runner"), "login", *map(str, args)],
        input=typed,
        cwd=place.folder,
        env=place.environment | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_newcomer_gets_a_profile_a_key_and_the_next_line(place, rescale) -> None:
    """From nothing: apiconfig and the SSH key are the user's alone, and the public line logs in where it is pasted."""
    out, _ = log_in(place, "--base-url", f"{rescale.base_url}/api/v2/", typed=f"{rescale.api_key}\n")

    account = read_account("default", home=place.home)
    assert (account.base_url, account.api_key) == (rescale.base_url, rescale.api_key)
    assert mode(place.home / ".config/rescale/apiconfig") == 0o600
    key = place.home / ".ssh" / OWN
    assert (mode(key), mode(key.parent)) == (0o600, 0o700)
    line = public_line(paramiko.PKey.from_path(key))
    assert line.startswith("ssh-ed25519 ")
    assert f"\n{line}\n" in out
    assert key.with_suffix(".pub").read_text().startswith(line)
    assert "User Profile > Job Settings > SSH" in out
    assert out.endswith("Then type:  persistent-runner doctor --profile default\n")
    assert "it is local@localhost's" in out
    assert rescale.api_key not in out


def test_a_person_at_a_terminal_is_asked_and_the_key_is_not_shown(place, rescale) -> None:
    """The region may be a URL; what is typed as a key is on no screen."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "persistent-runner"), "login", "--profile", "lab"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=place.folder,
        env=place.environment,
        start_new_session=True,
    )
    os.close(theirs)
    patience = threading.Timer(DEADLINE, process.kill)
    patience.start()
    screen = b""
    answers = {b"Region, or a URL": rescale.base_url, b"API key:": rescale.api_key}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                screen += piece
                for question in [question for question in answers if question in screen]:
                    os.write(ours, f"{answers.pop(question)}\n".encode())
        except OSError:  # the other end has closed
            pass
    patience.cancel()
    assert process.wait(DEADLINE) == 0, screen.decode()
    assert read_account("lab", home=place.home).api_key == rescale.api_key
    assert b"https://platform.rescale.jp" in screen
    assert rescale.api_key.encode() not in screen


def test_a_wrong_key_is_refused_and_nothing_is_written(place, rescale) -> None:
    """The platform's words, exit code 3, and no file; the key is not repeated."""
    out, err = log_in(place, "--base-url", rescale.base_url, typed="hunter2hunter2\n", code=3)

    assert "refused the API key" in err
    assert "Nothing was written" in err
    assert "hunter2" not in out + err
    assert not (place.home / ".config").exists()
    assert not (place.home / ".ssh").exists()


@pytest.mark.parametrize(
    ("args", "typed", "said"),
    [
        ([], "k\n", "--region us|eu|jp|kr|itar|gov"),
        (["--region", "uss"], "k\n", 'mean "us"'),
        (["--base-url", "http://platform.example.com"], "k\n", "in clear"),
        (["--base-url", "http://127.0.0.1:1"], "", "stdin is empty"),
        (["--base-url", "http://127.0.0.1:1"], "two words\n", "holds a blank"),
        (["--profile", "env", "--region", "us"], "k\n", "cannot name a profile"),
    ],
    ids=["no region", "wrong region", "plain http", "no key", "bad key", "bad name"],
)
def test_bad_input_ends_with_2_and_says_what_to_do(place, args, typed, said) -> None:
    """Without a terminal nothing is waited for: what is missing or wrong is named, and no request is sent."""
    _, err = log_in(place, *args, typed=typed, code=2)
    assert said in err
    assert "two words" not in err


def test_a_profile_that_is_there_stays_unless_replaced(place, rescale) -> None:
    """No account is lost by mistake, and other sections stay as they are."""
    write_profile("default", "https://eu.rescale.com", "old-key", home=place.home)
    write_profile("other", "https://kr.rescale.com", "other-key", home=place.home)
    args = ("--base-url", rescale.base_url)

    _, err = log_in(place, *args, typed=f"{rescale.api_key}\n", code=2)
    assert "--replace" in err
    assert read_account("default", home=place.home).api_key == "old-key"

    log_in(place, *args, "--replace", typed=f"{rescale.api_key}\n")
    assert read_account("default", home=place.home).api_key == rescale.api_key
    assert read_account("other", home=place.home).api_key == "other-key"


def test_a_key_of_the_user_is_named_and_not_replaced(place, rescale) -> None:
    """Who has an SSH key keeps it: by --ssh-key, by the setting, or in ~/.ssh."""
    path = place.home / ".ssh" / "id_ed25519"
    make_ssh_key(path)
    elsewhere = place.folder / "my key"
    make_ssh_key(elsewhere)
    typed = f"{rescale.api_key}\n"
    args = ("--base-url", rescale.base_url, "--replace")

    assert public_line(paramiko.PKey.from_path(path)) in log_in(place, *args, typed=typed)[0]
    line = public_line(paramiko.PKey.from_path(elsewhere))
    out, _ = log_in(place, *args, "--ssh-key", elsewhere, typed=typed)
    assert line in out
    assert f"PERSISTENT_RUNNER_SSH_KEY={elsewhere}" in out
    assert line in log_in(place, *args, typed=typed, PERSISTENT_RUNNER_SSH_KEY=str(elsewhere))[0]
    assert not (place.home / ".ssh" / OWN).exists()


def test_a_key_with_a_passphrase_is_not_used_and_the_tool_gets_its_own(place, rescale) -> None:
    """The reason is said, and the new key goes before the old one from then on."""
    path = place.home / ".ssh" / "id_ed25519"
    path.parent.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", str(path)], check=True)
    before = path.read_bytes()
    typed = f"{rescale.api_key}\n"

    out, _ = log_in(place, "--base-url", rescale.base_url, typed=typed)
    assert "has a passphrase" in out
    own = public_line(paramiko.PKey.from_path(path.with_name(OWN)))
    assert own in out
    assert path.read_bytes() == before
    assert own in log_in(place, "--base-url", rescale.base_url, "--replace", typed=typed)[0]


def test_a_named_key_that_cannot_be_used_ends_with_2(place, rescale) -> None:
    """The account is kept; what to do about the key is said."""
    _, err = log_in(place, "--base-url", rescale.base_url, "--ssh-key", "nowhere", typed=f"{rescale.api_key}\n", code=2)
    assert "nowhere" in err
    assert "ssh-keygen" in err
    assert read_account("default", home=place.home).api_key == rescale.api_key
