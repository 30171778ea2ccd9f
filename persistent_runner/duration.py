"""Durations: `"90s" "20m" "8h" "0.2s"` outside, `timedelta` inside."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(value: object) -> timedelta:
    """Return the duration that `"90s"`, `"20m"`, `"8h"` or a timedelta means; ValueError for all else."""
    if isinstance(value, timedelta):
        found = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", value) if isinstance(value, str) else None
        if not match:
            raise ValueError(f'{value!r} is not a duration; write it as "90s", "20m" or "8h"')
        found = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if found <= timedelta(0):
        raise ValueError(f"{value!r} is not a duration above zero")
    return found


def format_duration(value: timedelta | float) -> str:
    """Return a duration (timedelta or seconds) for people: `12s`, `3m20s`, `1h05m`."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole % 60 else f"{whole // 60}m"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m" if whole % 3600 // 60 else f"{whole // 3600}h"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(lambda value: f"{value.total_seconds():g}s"),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[smh]\s*$", "title": "duration"}),
]
"""A pydantic field that takes the one form of durations."""
