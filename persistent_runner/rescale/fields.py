"""Values as the API writes them, read tolerantly."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator


def parse_date(value: object) -> datetime:
    """Return the moment that any of the API's date forms names.

    `Z` or an offset, any number of fraction digits, UTC if naive. Raises ValueError for all else.
    """
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a date")  # noqa: TRY004 - pydantic turns ValueError into its own error
    text = re.sub(r"\.(\d+)", lambda fraction: "." + fraction[1][:6].ljust(6, "0"), value.strip())
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_text(value: object) -> str | None:
    """Return a text, None for all else."""
    return value if isinstance(value, str) else None


def read_port(value: object) -> int | None:
    """Return a port from 1 to 65535, as a number or in digits alone; None for all else."""
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535 else None


Date = Annotated[datetime, BeforeValidator(parse_date)]
# An odd machine must stay in the list: without the head node in it a worker would be taken for the head.
Text = Annotated[str | None, BeforeValidator(read_text)]
Port = Annotated[int | None, BeforeValidator(read_port)]
