"""`settings.py`: the environment, the account, the state directory."""

from __future__ import annotations

import logging
import stat
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.redaction import redact
from persistent_runner.settings import (
    Account,
    apiconfig_path,
    is_loopback,
    load_settings,
    read_account,
    state_dir,
    write_profile,
)

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


def config(home: Path, text: str, mode: int = 0o600) -> Path:
    path = apiconfig_path(home)
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


def test_defaults() -> None:
    """Without a setting there is no profile, no key, and runs/ in the current folder."""
    settings = load_settings()
    assert (settings.profile, settings.ssh_key, settings.runs_dir, settings.poll) == (None, None, Path("runs"), None)


def test_the_environment_is_read_and_unrelated_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with our prefix that names no setting is nobody's business; an empty one counts as not set."""
    monkeypatch.setenv("PERSISTENT_RUNNER_PROFILE", "eu")
    monkeypatch.setenv("PERSISTENT_RUNNER_SSH_KEY", "~/key")
    monkeypatch.setenv("PERSISTENT_RUNNER_POLL", "2m")
    monkeypatch.setenv("PERSISTENT_RUNNER_RUNS_DIR", "")
    monkeypatch.setenv("PERSISTENT_RUNNER_SOMETHING_ELSE", "x")
    settings = load_settings()
    assert settings.profile == "eu"
    assert settings.ssh_key == Path.home() / "key"
    assert settings.poll == timedelta(minutes=2)
    assert settings.runs_dir == Path("runs")


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
    for wrong in ("https://me:an0ther-word@proxy:1", "proxy:3128", "http://proxy/path"):
        monkeypatch.setenv("PERSISTENT_RUNNER_SSH_PROXY", wrong)
        with pytest.raises(ConfigError, match="PERSISTENT_RUNNER_SSH_PROXY is not the address") as caught:
            load_settings()
        assert wrong not in str(caught.value)


def test_poll_depends_on_where_the_platform_is() -> None:
    """This machine is asked often, a real platform every 15 s, and a setting decides for both."""
    assert load_settings().poll_interval("http://127.0.0.1:1") == timedelta(seconds=0.1)
    assert load_settings().poll_interval("https://platform.rescale.com") == timedelta(seconds=15)
    assert load_settings(poll="3s").poll_interval("http://127.0.0.1:1") == timedelta(seconds=3)


def test_a_profile_is_read_raw(tmp_path: Path) -> None:
    """A per cent sign is part of the value, a byte order mark is not, and the API's path is cut from the URL."""
    config(tmp_path, f"\ufeff[default]\napibaseurl = https://platform.rescale.com/api/v2/\napikey = %{KEY}\n")
    account = read_account("default", home=tmp_path)
    assert (account.base_url, account.api_key) == ("https://platform.rescale.com", f"%{KEY}")
    assert KEY not in repr(account)
    assert "[default]" in account.source
    assert KEY not in account.source


def test_the_environment_profile_takes_key_and_url_together(tmp_path: Path) -> None:
    """`env` reads both from the environment, and misses what is not there instead of taking it from the file."""
    config(tmp_path, f"[env]\napibaseurl=https://a.example\napikey={KEY}\n")
    environ = {"RESCALE_API_KEY": KEY, "RESCALE_API_URL": "https://eu.rescale.com/"}
    assert read_account("env", environ=environ, home=tmp_path).base_url == "https://eu.rescale.com"
    both = {**environ, "RESCALE_API_BASE_URL": "https://platform.rescale.jp"}
    assert read_account("env", environ=both, home=tmp_path).base_url == "https://platform.rescale.jp"
    with pytest.raises(ConfigError, match="RESCALE_API_BASE_URL is not set"):
        read_account("env", environ={"RESCALE_API_KEY": KEY}, home=tmp_path)
    with pytest.raises(ConfigError, match="RESCALE_API_KEY and RESCALE_API_BASE_URL is not set"):
        read_account("env", environ={}, home=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message says where profiles are read from."""
    with pytest.raises(ConfigError) as caught:
        read_account("default", home=tmp_path)
    assert str(apiconfig_path(tmp_path)) in str(caught.value)


def test_a_missing_profile_gets_the_nearest_name(tmp_path: Path) -> None:
    """The message lists the profiles there are and the one that was probably meant."""
    config(tmp_path, f"[default]\napikey={KEY}\n[europe]\napikey={KEY}\n")
    with pytest.raises(ConfigError, match='did you mean "europe"') as caught:
        read_account("erope", home=tmp_path)
    assert "[default], [europe]" in str(caught.value)


def test_a_profile_with_a_missing_key_is_refused(tmp_path: Path) -> None:
    """The URL of one source is never combined with the key of another."""
    config(tmp_path, f"[default]\napikey = {KEY}\n")
    with pytest.raises(ConfigError, match="has no apibaseurl"):
        read_account("default", environ={"RESCALE_API_BASE_URL": "https://x.example"}, home=tmp_path)


def test_a_file_that_is_no_ini_is_refused_without_its_lines(tmp_path: Path) -> None:
    """The parser's message would quote the line, which may be the key."""
    config(tmp_path, f"[default]\n{KEY}\n")
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_account("default", home=tmp_path)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://platform.rescale.com",
        "ftp://127.0.0.1",
        "platform.rescale.com",
        "https://",
        "https://u:p@h",
        "http://127.0.0.1.evil.example",
    ],
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    """The key travels over TLS, or does not leave this machine."""
    config(tmp_path, f"[default]\napibaseurl={url}\napikey={KEY}\n")
    with pytest.raises(ConfigError, match="base URL"):
        read_account("default", home=tmp_path)


@pytest.mark.parametrize("key", [f'"{KEY}"', f"{KEY} {KEY}", "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(key: str, tmp_path: Path) -> None:
    """A key copied with its quotes is caught before the platform refuses it."""
    config(tmp_path, f"[default]\napibaseurl=https://x.example\napikey={key}\n")
    with pytest.raises(ConfigError, match="API key of profile") as caught:
        read_account("default", home=tmp_path)
    assert key not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no group and other bits")
def test_a_file_that_others_can_read_gets_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning is the command that mends it."""
    path = config(tmp_path, f"[default]\napibaseurl=https://x.example\napikey={KEY}\n", mode=0o644)
    with caplog.at_level(logging.WARNING):
        read_account("default", home=tmp_path)
    assert f"chmod 600 '{path}'" in caplog.text
    assert KEY not in caplog.text
    caplog.clear()
    path.chmod(0o600)
    read_account("default", home=tmp_path)
    assert not caplog.records


def test_a_written_profile_is_read_back_and_leaves_the_others(tmp_path: Path) -> None:
    """Comments and other sections stay as they are; the section itself is replaced; the file is its owner's alone."""
    path = config(
        tmp_path, "# mine\n[default]\napikey = a%b\n[local]\napikey = old\nextra = 1\n[last]\nx = y", mode=0o644
    )
    assert write_profile("local", "http://127.0.0.1:8080", KEY, home=tmp_path) == path.resolve()
    assert read_account("local", home=tmp_path) == Account(
        "local", "http://127.0.0.1:8080", KEY, f"profile [local] in {path}"
    )
    text = path.read_text()
    assert text.startswith("# mine\n[default]\napikey = a%b\n")
    assert "[last]\nx = y\n" in text
    assert "old" not in text
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_first_profile_creates_the_file(tmp_path: Path) -> None:
    """A new user needs no editor; a name that would break the file is refused."""
    write_profile("new", "https://x.example", KEY, home=tmp_path)
    assert read_account("new", home=tmp_path).api_key == KEY
    with pytest.raises(ConfigError, match="cannot name a profile"):
        write_profile("a]\nb", "https://x.example", KEY, home=tmp_path)
    with pytest.raises(ConfigError, match="cannot name a profile"):
        write_profile("env", "https://x.example", KEY, home=tmp_path)


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
