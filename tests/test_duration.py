"""`duration.py`: one form of durations everywhere."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from persistent_runner.duration import Duration, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("8h", 28800), ("0.2s", 0.2), (" 1.5h ", 5400)]
)
def test_written_durations_are_read(text: str, seconds: float) -> None:
    """Seconds, minutes and hours are written with their unit, with or without a fraction."""
    assert parse_duration(text) == timedelta(seconds=seconds)


def test_a_timedelta_is_taken_as_it_is() -> None:
    """Python code hands in a timedelta where study.toml has a string."""
    assert parse_duration(timedelta(minutes=3)) == timedelta(minutes=3)


@pytest.mark.parametrize("value", ["20", 20, 20.0, None, "1d", "-5m", "m", "1e3s", "20 minutes", "0s", timedelta(0)])
def test_everything_else_is_refused(value: object) -> None:
    """A number without a unit is refused rather than guessed, and so is a duration that is not above zero."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "0.2s"),
        (12, "12s"),
        (59.7, "1m"),
        (200, "3m20s"),
        (1200, "20m"),
        (3900, "1h05m"),
        (7200, "2h"),
    ],
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    """People see two units at most."""
    assert format_duration(seconds) == text
    assert format_duration(timedelta(seconds=seconds)) == text


def test_the_pydantic_type_reads_and_writes_the_same_form() -> None:
    """A duration in a model survives the way out and back."""
    adapter: TypeAdapter[timedelta] = TypeAdapter(Duration)
    assert adapter.dump_python(adapter.validate_python("2m")) == "120s"
    assert adapter.validate_python("120s") == timedelta(minutes=2)
    with pytest.raises(ValidationError):
        adapter.validate_python(5)
