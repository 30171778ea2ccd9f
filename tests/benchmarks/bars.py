"""What a benchmark found beside its bar, the peer that ran in the same run, and the physical limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure of ours: `bar` is the most that it may be, or with `at_least` the least; `peer` is (name, figure).

    A row without a bar is there to be compared with. `limit` is what physics leaves, in the same unit. `note` says how
    it was measured.
    """

    what: str
    ours: float
    unit: str
    bar: float | None
    at_least: bool = False
    peer: tuple[str, float] | None = None
    limit: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the bar is met, if there is one."""
        return self.bar is None or (self.ours >= self.bar if self.at_least else self.ours <= self.bar)


def table(title: str, rows: list[Row]) -> str:
    """Return the rows of one benchmark as text."""
    width = max(len(row.what) for row in rows)
    lines = [title, f"  {'':<{width}}{'measured':>14}{'bar':>14}{'limit':>12}{'':>8}  peer in the same run"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:.4g}"
        peer = "" if row.peer is None else f"{row.peer[0]}: {row.peer[1]:.4g}{_ratio(row)}"
        lines.append(
            f"  {row.what:<{width}}{_figure(row.ours, row.unit):>14}{_bar(row):>14}{limit:>12}{_word(row):>8}  {peer}".rstrip()
        )
        if row.note:
            lines.append(f"  {'':<{width}}  {row.note}")
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """Return the last line of all benchmarks that have bars."""
    barred = [row for row in rows if row.bar is not None]
    met = sum(row.is_met for row in barred)
    return f"bars: {met} met, {len(barred) - met} missed"


def _figure(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()


def _bar(row: Row) -> str:
    return "" if row.bar is None else f"{'>=' if row.at_least else '<='} {row.bar:.4g}"


def _word(row: Row) -> str:
    return "" if row.bar is None else "met" if row.is_met else "MISSED"


def _ratio(row: Row) -> str:
    if row.peer is None or not row.ours or not row.peer[1]:
        return ""
    times = row.ours / row.peer[1] if row.at_least else row.peer[1] / row.ours
    return f" ({times:.1f} times)"
