"""How a command ends early: in words, with an exit code."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

INTERRUPTED = 130
"""The exit code after an interrupt."""


@contextlib.contextmanager
def ending(*, verbose: bool) -> Iterator[None]:
    """Turn what ends a command early into a message and an exit code; a traceback is the user's objective's only."""
    from persistent_runner.errors import RunnerError
    from persistent_runner.pipes import silence_unread
    from persistent_runner.redaction import redact

    try:
        yield
    except RunnerError as error:
        if verbose:
            logging.getLogger("persistent_runner").debug("", exc_info=error)
        click.echo(redact(f"Error: {error}"), err=True)
        sys.exit(error.exit_code)
    except click.ClickException:
        raise  # click says it itself
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the objective's own, which ended the study
        if isinstance(error, BrokenPipeError) and silence_unread():
            return
        text = traceback.format_exception(type(error), error, _of_the_user(error.__traceback__))
        click.echo(redact("".join(text)), err=True)
        sys.exit(1)


def _of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is neither ours nor a library's; all of it where none is."""
    ours = (str(Path(__file__).parent), str(Path(click.__file__).parent), str(Path(threading.__file__).parent))
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith((*ours, "<frozen")):
        found = found.tb_next
    return found or trace
