"""`account.py`: the vendor's file of profiles and the environment, read and written."""

from __future__ import annotations

import configparser
import logging
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.account import Account, apiconfig_path, has_profile, read_account, write_profile
from persistent_runner.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef0123456789abcdef01234567"


def config(home: Path, text: str, mode: int = 0o600) -> Path:
    path = apiconfig_path(home)
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


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
    """The message says where profiles are read from, and how this one is made."""
    for name, login in (("default", "persistent-runner login."), ("Wrok", "persistent-runner login --profile Wrok.")):
        with pytest.raises(ConfigError) as caught:
            read_account(name, home=tmp_path)
        assert str(apiconfig_path(tmp_path)) in str(caught.value)
        assert f"There is no profile [{name}]" in caught.value.message
        assert f"Make this one with: {login} Or" in caught.value.remedy


def test_a_missing_profile_gets_the_nearest_name(tmp_path: Path) -> None:
    """The message lists the profiles there are and the one that was probably meant."""
    config(tmp_path, f"[default]\napikey={KEY}\n[europe]\napikey={KEY}\n")
    with pytest.raises(ConfigError, match=r"did you mean \[europe\]") as caught:
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
    assert text.endswith("extra = 1\n[last]\nx = y")
    assert "old" not in text
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("head", ["[default] # mine", "  [default]", "[default]\t", "\ufeff[default]"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_section_is_found_however_its_head_is_written(head: str, end: str, tmp_path: Path) -> None:
    """What configparser takes for the section is replaced, not written a second time; every other line stays."""
    lines = [
        head,
        "apikey = old",
        "; of May",
        "other = 1",
        "apibaseurl: https://x.example",
        "",
        "# of eu",
        "[eu]",
        "a = b",
    ]
    path = config(tmp_path, "")
    path.write_bytes(end.join(lines).encode())
    assert has_profile("default", home=tmp_path)
    write_profile("default", "https://y.example", KEY, home=tmp_path)
    assert read_account("default", home=tmp_path).api_key == KEY
    after = path.read_bytes().decode().split(end)
    assert [line for line in after if line not in lines] == ["apibaseurl = https://y.example", f"apikey = {KEY}"]
    assert [line for line in lines if line not in after] == ["apikey = old", "apibaseurl: https://x.example"]


@given(
    st.lists(
        st.sampled_from(
            [
                "[a]",
                "[b] x",
                " [a]",
                "#[a]",
                "apikey = 1",
                " apikey = 2",
                "ApiBaseUrl:3",
                "k = v",
                "  more",
                "",
                "ca\x85f=1",
            ]
        ),
        max_size=8,
    )
)
def test_whatever_is_written_reads_as_before_but_for_the_section(tmp_path_factory, lines) -> None:
    """Any file that can be read: one section has the new account and all else is as it was, or nothing is written."""
    home = tmp_path_factory.mktemp("home")
    path = config(home, "\n".join(lines))
    before = path.read_bytes()

    def sections() -> dict[str, dict[str, str]]:
        parser = configparser.RawConfigParser(default_section="")
        parser.read_string(path.read_text("utf-8-sig"))
        return {name: dict(parser[name]) for name in parser.sections()}

    try:
        expected = sections()
    except configparser.Error:
        expected = None
    try:
        write_profile("a", "https://y.example", KEY, home=home)
    except ConfigError:
        assert path.read_bytes() == before
        assert expected is None or any(line.startswith(" ") for line in lines)
    else:
        assert expected is not None
        expected.setdefault("a", {}).update(apibaseurl="https://y.example", apikey=KEY)
        assert sections() == expected
    assert [found.name for found in path.parent.iterdir()] == ["apiconfig"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """No traceback, and nothing of the key is left beside it."""
    (tmp_path / ".config").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match="apiconfig cannot be written"):
        write_profile("a", "https://y.example", KEY, home=tmp_path)


def test_the_first_profile_creates_the_file(tmp_path: Path) -> None:
    """A new user needs no editor; a name that would break the file is refused."""
    write_profile("new", "https://x.example", KEY, home=tmp_path)
    assert read_account("new", home=tmp_path).api_key == KEY
    with pytest.raises(ConfigError, match="cannot name a profile"):
        write_profile("a]\nb", "https://x.example", KEY, home=tmp_path)
    with pytest.raises(ConfigError, match="cannot name a profile"):
        write_profile("env", "https://x.example", KEY, home=tmp_path)
