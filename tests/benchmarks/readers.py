"""The driver's CPU for reading numbers out of outputs, beside the plain way of pandas, re and json."""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from persistent_runner.study.extract import Extract
from persistent_runner.study.readers import Readings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BAR_MS = 1.0  # 1,000 outputs in a second
SMALL_BYTES = 10_000
NAMES = [f"c{n}" for n in range(10)]


@dataclass(frozen=True)
class Row:
    """One kind of output: the CPU of reading one of them, in seconds, ours and the plain way's."""

    what: str
    ours: float
    plain: float
    bar: float | None = BAR_MS / 1000


def measure(folder: Path, repeats: int, large_bytes: int) -> list[Row]:
    """Read `repeats` outputs of 10 KB for each kind, and one table of `large_bytes` by ten metrics."""
    small = [
        _compare("csv, last row", folder, repeats, _table(",", SMALL_BYTES), {"column": "c5"}, _frame(",", "last")),
        _compare(
            "csv, maximum",
            folder,
            repeats,
            _table(",", SMALL_BYTES),
            {"column": 6, "reduce": "max"},
            _frame(",", "max"),
        ),
        _compare(
            "csv with quotes, maximum",
            folder,
            repeats,
            _table(",", SMALL_BYTES, quote='"'),
            {"column": "c5", "reduce": "max"},
            _frame(",", "max"),
        ),
        _compare(
            "blanks, mean",
            folder,
            repeats,
            _table(" ", SMALL_BYTES),
            {"column": "c5", "reduce": "mean"},
            _frame(r"\s+", "mean"),
        ),
        _compare("regex, last match", folder, repeats, _log(SMALL_BYTES), {"regex": r"^Cd\s*=\s*(\S+)"}, _last_match),
        _compare("json", folder, repeats, _json(SMALL_BYTES), {"json": "forces.cd"}, _by_json),
    ]
    return [*small, _large(folder, large_bytes)]


def table(rows: list[Row]) -> str:
    """Return the rows as text, each with its ratio to the plain way and whether it meets its bar."""
    lines = [f"{'CPU of reading one output':<42}{'ours':>12}{'plain':>12}{'ratio':>8}{'bar':>10}"]
    for row in rows:
        bar = "-" if row.bar is None else f"{row.bar * 1000:g} ms {'met' if row.ours <= row.bar else 'MISSED'}"
        lines.append(
            f"{row.what:<42}{row.ours * 1000:>9.3f} ms{row.plain * 1000:>9.3f} ms{row.ours / row.plain:>8.2f}{bar:>13}"
        )
    return "\n".join(lines)


def _compare(
    what: str, folder: Path, repeats: int, text: str, rule: dict[str, Any], plain: Callable[[Path], float]
) -> Row:
    outputs = [folder / what / f"{n:05d}" for n in range(repeats)]
    for output in outputs:
        output.mkdir(parents=True)
        (output / "out.txt").write_text(text)
    metrics = {"drag": Extract(file="out.txt", **rule)}
    found = [0.0, 0.0]

    def ours(output: Path) -> None:
        found[0] = Readings(output, metrics).numbers()["drag"]

    def theirs(output: Path) -> None:
        found[1] = plain(output / "out.txt")

    row = Row(what, _cpu(ours, outputs), _cpu(theirs, outputs))
    assert abs(found[0] - found[1]) < 1e-9, what
    return row


def _cpu(read: Callable[[Path], None], outputs: list[Path]) -> float:
    read(outputs[0])  # what is imported is not counted
    begun = time.process_time()
    for output in outputs:
        read(output)
    return (time.process_time() - begun) / len(outputs)


def _large(folder: Path, size_bytes: int) -> Row:
    """Ten metrics of one large table, each another column; the plain way loads it once and for all."""
    (folder / "large").mkdir()
    (folder / "large" / "out.txt").write_text(_table(",", size_bytes))
    reduce = ("max", "min", "mean", "last", "first") * 2
    metrics = {name: Extract(file="out.txt", column=name, reduce=how) for name, how in zip(NAMES, reduce, strict=True)}

    def ours(output: Path) -> None:
        Readings(output, metrics).numbers()

    def theirs(output: Path) -> None:
        frame = pd.read_csv(output / "out.txt")
        for name, how in zip(NAMES, reduce, strict=True):
            _reduced(frame[name], how)

    outputs = [folder / "large"]
    return Row(f"csv of {size_bytes / 1e6:g} MB, ten metrics", _cpu(ours, outputs), _cpu(theirs, outputs), None)


def _table(separator: str, size_bytes: int, quote: str = "") -> str:
    chance = random.Random(1)
    lines = [separator.join(f"{quote}{name}{quote}" for name in NAMES)]
    length = 0
    while length < size_bytes:
        lines.append(separator.join(f"{chance.random():.6f}" for _ in NAMES))
        length += len(lines[-1]) + 1
    return "\n".join([*lines, ""])


def _log(size_bytes: int) -> str:
    lines = [
        f"Time = {n}\nGAMG: Solving for p, final residual {1 / (n + 1):.6e}\nCd = {n / 7:.6f}"
        for n in range(size_bytes // 70)
    ]
    return "\n".join([*lines, "End", ""])


def _json(size_bytes: int) -> str:
    history = [n / 7 for n in range(size_bytes // 20)]
    return json.dumps({"forces": {"cd": 0.25, "history": history}})


def _frame(separator: str, how: str) -> Callable[[Path], float]:
    return lambda path: _reduced(pd.read_csv(path, sep=separator)["c5"], how)


def _reduced(column: pd.Series[float], how: str) -> float:
    if how in {"first", "last"}:
        return float(column.iloc[0 if how == "first" else -1])
    return float(getattr(column, how)())


def _last_match(path: Path) -> float:
    return float(re.findall(r"^Cd\s*=\s*(\S+)", path.read_text(), re.MULTILINE)[-1])


def _by_json(path: Path) -> float:
    return float(json.loads(path.read_text())["forces"]["cd"])
