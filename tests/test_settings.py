"""`settings.py`: the environment and the state directory."""

from __future__ import annotations

import stat
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.redaction import redact
from persistent_runner.settings import is_loopback, load_settings, state_dir

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no setting of the developer's own shell in the way."""
    for name in (
        "PROFILE",
        "SSH_KEY",
        "RUNS_DIR",
        "POLL",
        "BEAT",
        "KEEPER_TICK",
        "ORPHAN_IDLE",
        "ORPHAN_BUSY",
        "HANG",
        "SSH_PROXY",
    ):
        monkeypatch.delenv(f"PERSISTENT_RUNNER_{name}", raising=False)


def test_defaults() -> None:
    """Without a setting there is no profile, no key, and runs/ in the current folder."""
    settings = load_settings()
    assert (settings.profile, settings.ssh_key, settings.runs_dir, settings.poll) == (None, None, Path("runs"), None)


def test_the_environment_is_read_and_unrelated_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable without our prefix is nobody's business; an empty one counts as not set."""
    monkeypatch.setenv("PERSISTENT_RUNNER_PROFILE", "eu")
    monkeypatch.setenv("PERSISTENT_RUNNER_SSH_KEY", "~/key")
    monkeypatch.setenv("PERSISTENT_RUNNER_POLL", "2m")
    monkeypatch.setenv("PERSISTENT_RUNNER_RUNS_DIR", "")
    monkeypatch.setenv("PERSISTENT_RUNNERS", "x")
    settings = load_settings()
    assert settings.profile == "eu"
    assert settings.ssh_key == Path.home() / "key"
    assert settings.poll == timedelta(minutes=2)
    assert settings.runs_dir == Path("runs")


def test_a_misspelled_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is not read is not kept, so its name is refused before money is spent; its value is not shown."""
    monkeypatch.setenv("PERSISTENT_RUNNER_ORPHAN_IDEL", "1m30s")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message == (
        'PERSISTENT_RUNNER_ORPHAN_IDEL is no setting; did you mean "PERSISTENT_RUNNER_ORPHAN_IDLE"?'
    )
    assert "1m30s" not in str(caught.value)


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was given wins; one that was not (None) leaves the environment's value."""
    monkeypatch.setenv("PERSISTENT_RUNNER_PROFILE", "eu")
    assert load_settings(profile="us").profile == "us"
    assert load_settings(profile=None).profile == "eu"


def test_no_dotenv_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's folder cannot choose a platform."""
    (tmp_path / ".env").write_text("PERSISTENT_RUNNER_PROFILE=theirs\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().profile is None


def test_a_wrong_value_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and the form; the value may be a secret pasted into the wrong place."""
    monkeypatch.setenv("PERSISTENT_RUNNER_POLL", KEY)
    with pytest.raises(ConfigError, match="PERSISTENT_RUNNER_POLL is not a duration") as caught:
        load_settings()
    shown = "".join(str(error) for error in (caught.value, caught.value.__cause__, caught.value.__context__))
    assert KEY not in shown
    assert caught.value.exit_code == 2


def test_the_limits_of_an_orphaned_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not set has the documented default; orphan_busy is then for the study to say."""
    settings = load_settings()
    assert (settings.beat, settings.keeper_tick, settings.hang) == (
        timedelta(seconds=20),
        timedelta(seconds=15),
        timedelta(minutes=30),
    )
    assert (settings.orphan_idle, settings.orphan_busy, settings.ssh_proxy) == (timedelta(minutes=10), None, None)
    for name in ("BEAT", "KEEPER_TICK", "ORPHAN_IDLE", "ORPHAN_BUSY", "HANG"):
        monkeypatch.setenv(f"PERSISTENT_RUNNER_{name}", "0.2s")
    settings = load_settings()
    given = {settings.beat, settings.keeper_tick, settings.orphan_idle, settings.orphan_busy, settings.hang}
    assert given == {timedelta(seconds=0.2)}


@pytest.mark.parametrize("name", ["BEAT", "KEEPER_TICK", "ORPHAN_IDLE", "ORPHAN_BUSY", "HANG"])
@pytest.mark.parametrize("value", ["0s", "-1s", "soon", "20"])
def test_a_limit_that_is_no_time_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat of zero or a limit without a unit would protect nobody."""
    monkeypatch.setenv(f"PERSISTENT_RUNNER_{name}", value)
    with pytest.raises(ConfigError, match=f"PERSISTENT_RUNNER_{name} is not a duration above zero"):
        load_settings()


def test_a_proxy_for_ssh_is_an_address_and_its_password_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings nor a log shows it, also not where the address is none."""
    monkeypatch.setenv("PERSISTENT_RUNNER_SSH_PROXY", "http://me:s3cret-word@proxy.example.com:3128")
    settings = load_settings()
    assert settings.ssh_proxy is not None
    assert settings.ssh_proxy.get_secret_value() == "http://me:s3cret-word@proxy.example.com:3128"
    assert "s3cret-word" not in repr(settings)
    assert "s3cret-word" not in redact("Connecting through http://me:s3cret-word@proxy.example.com:3128")
    wrong_ones = ["https://me:an0ther-word@proxy:1", "proxy:3128", "http://proxy/path", "http://proxy:99999"]
    wrong_ones += ["http://me:8123#an0ther@proxy:3128", "http://me:an0ther#x@proxy", "http://proxy:0", "http://[x"]
    for wrong in wrong_ones:
        monkeypatch.setenv("PERSISTENT_RUNNER_SSH_PROXY", wrong)
        with pytest.raises(ConfigError, match="PERSISTENT_RUNNER_SSH_PROXY is not the address") as caught:
            load_settings()
        assert wrong not in str(caught.value)
        assert "an0ther" not in str(caught.value)
        assert "%23 for #" in str(caught.value)


def test_poll_depends_on_where_the_platform_is() -> None:
    """This machine is asked often, a real platform every 15 s, and a setting decides for both."""
    assert load_settings().poll_interval("http://127.0.0.1:1") == timedelta(seconds=0.1)
    assert load_settings().poll_interval("https://platform.rescale.com") == timedelta(seconds=15)
    assert load_settings(poll="3s").poll_interval("http://127.0.0.1:1") == timedelta(seconds=3)


@pytest.mark.parametrize("url", ["http://127.0.0.1:80", "http://localhost", "http://[::1]:9/x", "https://127.1.2.3"])
def test_loopback(url: str) -> None:
    """Addresses of this machine by number, and localhost."""
    assert is_loopback(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1.example", "http://localhost.example", "https://10.0.0.1", "x", ""])
def test_not_loopback(url: str) -> None:
    """A name that only looks like this machine is another one."""
    assert not is_loopback(url)


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="XDG_STATE_HOME is a thing of Linux")
def test_the_state_directory_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that was open to others is closed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ein Ort"))
    path = state_dir()
    assert path.is_relative_to(tmp_path)
    path.chmod(0o755)
    assert stat.S_IMODE(state_dir().stat().st_mode) == 0o700
