"""The secrets that this process knows, and the one way by which none of them reaches a log or a terminal.

`hide(secret)` registers an API key, a lease's proof, a passphrase, a proxy's password. From the first one on every log
record is made without them, whichever logger it is for: the record factory is the only place that all of them pass. A
filter on a logger misses the records of the loggers below it, and one on our own handlers misses those of the user. The
hooks for exceptions that nobody caught and for warnings are wrapped likewise. What was installed before is called with
what is left, and where no secret is in it, with everything as it was.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from types import TracebackType

HIDDEN = "[hidden]"

_SHORTEST = 6  # characters; anything shorter would be found in ordinary words
_TALKATIVE = ("paramiko", "urllib3")

_lock = threading.Lock()
_secrets: set[str] = set()
_pattern: re.Pattern[str] | None = None
_installed = False


def hide(secret: str | None) -> None:
    """Keep a secret out of logs, tracebacks, warnings and messages from now on; one below 6 characters is not kept."""
    global _pattern  # noqa: PLW0603 - the secrets are the process's
    if not secret or len(secret) < _SHORTEST:
        return
    with _lock:
        if secret in _secrets:
            return
        _secrets.add(secret)
        forms = {form for known in _secrets for form in _forms(known)}
        # The longest first, so that no end of a long form is left over.
        _pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form))))
        _install()


def redact(text: str) -> str:
    """Return the text with `[hidden]` for each secret, be it plain, URL-encoded, in base64 or escaped as in JSON."""
    return text if _pattern is None else _pattern.sub(HIDDEN, text)


def _forms(secret: str) -> set[str]:
    encoded = quote(secret, safe="")
    forms = {secret, encoded, quote(secret), quote_plus(secret), re.sub(r"%..", lambda code: code[0].lower(), encoded)}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    plain = secret.encode()
    for ahead in range(3):
        # Within a longer text, such as `user:password`, base64 has three forms; the characters at the ends depend on
        # the neighbours.
        text = base64.b64encode(b"\0" * ahead + plain).decode().rstrip("=")
        inside = text[-(-ahead * 8 // 6) : (ahead + len(plain)) * 8 // 6]
        for form in (inside, text) if ahead == 0 else (inside,):
            forms |= {form, form.replace("+", "-").replace("/", "_")}
    return forms


def _install() -> None:
    global _installed  # noqa: PLW0603 - the hooks are the process's
    if _installed:
        return
    _installed = True
    for name in _TALKATIVE:
        if logging.getLogger(name).level == logging.NOTSET:  # a level that the user chose stays
            logging.getLogger(name).setLevel(logging.WARNING)
    _wrap_log_records()
    _wrap_exceptions()
    _wrap_warnings()


def _wrap_log_records() -> None:
    make = logging.getLogRecordFactory()

    def record_of(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit; logging shows them as they are
            message = f"{record.msg} {record.args}"
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            if (clean := redact(text)) != text:
                # Every formatter prints `exc_text` where it stands; without `exc_info` none makes it anew.
                record.exc_text, record.exc_info = clean, None
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return record

    logging.setLogRecordFactory(record_of)


def _wrap_exceptions() -> None:
    show, show_of_thread = sys.excepthook, threading.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _says_a_secret(kind, error, trace):
            show(kind, error, trace)

    def shown_of_thread(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_value is None or not _says_a_secret(args.exc_type, args.exc_value, args.exc_traceback):
            show_of_thread(args)

    sys.excepthook, threading.excepthook = shown, shown_of_thread


def _says_a_secret(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> bool:
    """Return whether an exception's text holds a secret; if so it was printed without."""
    text = "".join(traceback.format_exception(kind, error, trace))
    clean = redact(text)
    if clean != text and sys.stderr is not None:
        sys.stderr.write(clean)
    return clean != text


def _wrap_warnings() -> None:
    form = warnings.formatwarning

    def formed(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return redact(form(message, category, filename, lineno, line))

    warnings.formatwarning = formed
