"""`redaction.py`: no secret that is known reaches a log, a traceback, a warning, in any of its forms."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import secrets
import subprocess
import sys
import urllib.parse
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.redaction import hide, redact

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = 'pä"ss \\wörd/+%&<>\n~ 9e1c'


def forms(secret: str) -> dict[str, str]:
    data = secret.encode()
    quoted = urllib.parse.quote(secret, safe="")
    return {
        "plain": secret,
        "quoted": quoted,
        "quoted in lower case": re.sub("%..", lambda code: code[0].lower(), quoted),
        "quoted plus": urllib.parse.quote_plus(secret),
        "quoted path": urllib.parse.quote(secret),
        "base64": base64.b64encode(data).decode(),
        "unpadded": base64.b64encode(data).decode().rstrip("="),
        "urlsafe": base64.urlsafe_b64encode(data).decode(),
        "urlsafe unpadded": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "json": json.dumps(secret),
        "json in unicode": json.dumps(secret, ensure_ascii=False),
        "repr": repr(secret),
    }


@pytest.mark.parametrize("form", forms(ODD))
@pytest.mark.parametrize("secret", [ODD, "0123456789abcdef" * 4, "canary+/=5d20"], ids=repr)
def test_every_form_is_hidden(form: str, secret: str) -> None:
    """Plain, URL-encoded, base64 of both kinds, escaped: what stands around stays."""
    hide(secret)
    text = forms(secret)[form]
    clean = redact(f"before {text} behind")
    assert secret not in clean
    assert text.strip("\"'=") not in clean
    assert clean.startswith("before ")
    assert clean.rstrip("=\"' ").endswith("behind")
    assert "[hidden]" in clean


@given(st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.characters(codec="utf-8"), max_size=8))
def test_base64_of_a_longer_text_hides_the_secret_within(before: str, behind: str) -> None:
    """`Basic` credentials are base64 of `user:password`; the secret is hidden at whatever place it stands."""
    secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    hide(secret)
    whole = base64.b64encode(f"{before}{secret}{behind}".encode()).decode()
    left = redact(whole).split("[hidden]")
    assert len(left) == 2
    # What is left decodes to the neighbours and at most two characters of the secret at each end.
    assert len(left[0]) <= len(before.encode()) * 8 // 6 + 3
    assert len(left[1]) <= len(behind.encode()) * 8 // 6 + 8


def test_short_words_are_no_secrets() -> None:
    """An empty key, or one of five letters, would blank out ordinary words."""
    for word in ("", None, "token"):
        hide(word)
    assert redact("a token is a token") == "a token is a token"


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    """No end of the longer one is left over."""
    hide("prefix-prefix")
    hide("prefix-prefix-and-more")
    assert redact("<prefix-prefix-and-more> <prefix-prefix>") == "<[hidden]> <[hidden]>"


@pytest.fixture
def foreign(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Return what a handler of the user's own prints, without any filter of ours, at the root or the logger `name`."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    # At the logger itself: Optuna's hands nothing on to the root once it has a handler of its own.
    logger = logging.getLogger(request.getfixturevalue("name") if "name" in request.fixturenames else None)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    "name", ["persistent_runner.x", "paramiko.transport", "urllib3.connectionpool", "optuna", "x.y"]
)
def test_no_logger_shows_a_secret_to_a_foreign_handler(name: str, foreign: io.StringIO) -> None:
    """Messages, arguments, tracebacks with their causes and stacks, in whatever library's logger they stand."""
    secret = secrets.token_hex(20)
    hide(secret)
    log = logging.getLogger(name)
    log.error("plain %s", secret)
    log.error("mapped %(key)s", {"key": secret})
    log.error(RuntimeError(secret))
    log.error({"headers": f"Token {secret}"})
    try:
        try:
            raise ValueError(secret)  # noqa: TRY301
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        log.exception("caught", stack_info=True)
    said = foreign.getvalue()
    assert secret not in said
    assert f"{name} plain [hidden]" in said
    assert "ValueError: [hidden]" in said
    assert "RuntimeError: outer" in said


def test_what_holds_no_secret_stays_as_it_was(foreign: io.StringIO) -> None:
    """Arguments and exceptions of other records are handed on untouched."""
    hide(secrets.token_hex(20))
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    log = logging.getLogger("somebody.else")
    log.addHandler(handler)
    try:
        raise KeyError("k")  # noqa: TRY301
    except KeyError:
        log.exception("n = %d", 7)
    log.removeHandler(handler)
    assert (seen[0].msg, seen[0].args) == ("n = %d", (7,))
    assert seen[0].exc_info is not None
    assert seen[0].exc_info[0] is KeyError
    assert "KeyError: 'k'" in foreign.getvalue()


def ran(code: str) -> str:
    """Run a script that knows a secret; return all that it printed."""
    head = "import sys, threading, warnings, logging\nfrom persistent_runner.redaction import hide\nKEY = 'canary' + 'x' * 9\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("hide(KEY)\nraise ValueError(KEY)", "ValueError: [hidden]"),
        (
            "hide(KEY)\nt = threading.Thread(target=lambda: int(KEY))\nt.start()\nt.join()",
            "int() with base 10: '[hidden]'",
        ),
        ("hide(KEY)\nwarnings.warn('is ' + KEY)", "UserWarning: is [hidden]"),
        ("hide(KEY)\nlogging.captureWarnings(True)\nlogging.basicConfig()\nwarnings.warn('is ' + KEY)", "is [hidden]"),
        ("hide(KEY)\nlogging.error('a %d', KEY)", "[hidden]"),
        ("sys.excepthook = lambda k, e, t: print('mine', e)\nhide(KEY)\nraise ValueError('plain')", "mine plain"),
        ("sys.excepthook = lambda k, e, t: print('mine', e)\nhide(KEY)\nraise ValueError(KEY)", "ValueError: [hidden]"),
        (
            (
                "made = logging.getLogRecordFactory()\n"
                "def own(*a, **k):\n r = made(*a, **k)\n r.msg = 'own ' + r.msg\n return r\n"
                "logging.setLogRecordFactory(own)\nhide(KEY)\nlogging.error('says %s', KEY)"
            ),
            "own says [hidden]",
        ),
        ("hide(KEY)\nhide(KEY)\nhide(KEY + KEY)\nraise ValueError(KEY + KEY)", "ValueError: [hidden]"),
    ],
)
def test_hooks_are_wrapped_and_never_replaced(code: str, expected: str) -> None:
    """Exceptions that nobody caught, in any thread, and warnings show no secret; the user's own hooks go on working."""
    said = ran(code)
    assert expected in said
    assert "canaryxxx" not in said


def test_libraries_that_talk_are_quiet_unless_the_user_wants_them() -> None:
    """Paramiko and urllib3 begin at WARNING; a level that was set before stays."""
    code = (
        "logging.getLogger('urllib3').setLevel(logging.DEBUG)\nhide(KEY)\n"
        "print(logging.getLogger('paramiko').level, logging.getLogger('urllib3').level)"
    )
    assert ran(code) == "30 10\n"
