"""A finished run's files: which numbers stand in them, and by which rule of [metrics] each can be read."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistent_runner.errors import ConfigError, ResultMissing
from persistent_runner.inputs import RESERVED
from persistent_runner.study.extract import Extract
from persistent_runner.study.printed import printed_rules
from persistent_runner.study.readers import Readings
from persistent_runner.study.space import identifier
from persistent_runner.study.tabular import NUMBER, Table
from persistent_runner.study.toml import explain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from persistent_runner.study.extract import Rule
    from persistent_runner.study.fields import Direction

    _Named = tuple[str, Rule]
    """A rule with a label"""

METRIC_FORM = (
    "--metric NAME=FILE:KIND:RULE, KIND being column, regex or json, such as --metric "
    "peak=stress.csv:column@max:von_mises"
)
LARGEST_FILE_BYTES = 4 * 2**20
_MOST_OF_A_FILE = 12
_GIVEN = re.compile(
    r"(?P<name>[^=]*)=(?P<file>.+?):(?P<kind>column|regex|json)(?:@(?P<which>[^:]*))?:(?P<rule>.+)", re.DOTALL
)
_MOST_COLUMNS = 50
_LABEL = r"(?<![\w()./%-])[A-Za-z][\w()./%-]*+(?: [\w()./%-]++){0,6}+"
_SAID = re.compile(rf"(?P<label>{_LABEL})(?P<sign>\s*[=:]\s*){NUMBER.pattern}(?![\w.:/-])", re.ASCII)
_BLANKS = r"\s+"
_VALUE = r"([-+.\deEdD]+)"
# what only counts rows, and how long a run took: neither is a result
_COUNTER = re.compile(r"(?:time|step|iter(?:ation)?s?|inc(?:rement)?|frame)", re.IGNORECASE)
_DURATION = re.compile(
    r"\b(?:execution|clock|wall|cpu|elapsed|run)?[ _-]?time\b|\b(?:elapsed|seconds)\b", re.IGNORECASE
)
_LOG = re.compile(r"log(?:\..*)?|.*\.(?:log|out)", re.IGNORECASE)
# what solvers write beside their results: CalculiX's bookkeeping, its fields, and what it says while it runs
_NO_RESULTS = {".12d", ".cvg", ".frd", ".sta"}
_NO_RESULTS_IN = ("FoamFile", "CalculiX Version")


@dataclass(frozen=True)
class Metric:
    """A rule of [metrics] under its name; `value` is what it reads out of the sample, if there is one, `note` where."""

    name: str
    extract: Extract
    value: float | None = None
    note: str = ""

    def tried_on(self, sample: Path) -> Metric:
        """Return the metric with its value in a finished run's folder; ResultMissing where it has none there."""
        reading = Readings(sample, {self.name: self.extract}).reading(self.name)
        return Metric(self.name, self.extract, reading.value, reading.note)

    @property
    def usual_direction(self) -> Direction:
        """Which way it is usually optimised: towards zero, where it is the smallest of many."""
        return "maximize" if self.extract.reduce == "min" else "minimize"

    @property
    def is_one_of_many(self) -> bool:
        """Whether several rows of a table were there to choose from."""
        return self.extract.column is not None and "only row" not in self.note


def read_metric(given: str, sample: Path | None) -> Metric:
    """Return what a `--metric` says, tried on the sample if there is one; ConfigError where it cannot be."""
    parts = _GIVEN.fullmatch(given)
    if parts is None:
        raise ConfigError(f"--metric {given}: is not of the form", remedy=f"Write {METRIC_FORM}.")
    name, rule, which = parts["name"].strip(), parts["rule"], parts["which"]
    try:
        identifier(name)
    except ValueError as error:
        raise ConfigError(f'--metric {given}: "{name}" {error}') from None
    column = parts["kind"] == "column" and rule.isdecimal()
    try:
        extract = Extract.model_validate(
            {"file": parts["file"], parts["kind"]: int(rule) if column else rule} | _which(which)
        )
    except ValidationError as error:
        what = "; ".join(explain(each) for each in error.errors(include_url=False))
        raise ConfigError(f"--metric {given}: {parts['kind']}: {what}", remedy=f"Write {METRIC_FORM}.") from None
    metric = Metric(name, extract)
    if sample is None:
        return metric
    try:
        return metric.tried_on(sample)
    except ResultMissing as error:
        raise ConfigError(
            f"--metric {given}: {error.message}", remedy=f"It was looked for in the sample, {sample}."
        ) from None


def _which(given: str | None) -> Rule:
    """Return what stands behind the @ of a `--metric` as a key: the number of a match, or one of `reduce`'s words."""
    if given is None:
        return {}
    return {"match": int(given)} if re.fullmatch(r"[+-]?\d{1,9}", given, re.ASCII) else {"reduce": given}


def proposals(sample: Path, inputs: Collection[str] = (), logs: Collection[str] | None = None) -> list[Metric]:
    """Return what can be read out of the files of a finished run, but for `inputs`, with the values that it gives.

    Looked at are text files up to 4 MiB: printed tables, columns of tables, the numbers of JSON, and then `name =
    number`, the last of a file first; at most twelve of one file. Of logs it is `logs` alone, where they are known.
    """
    found: dict[str, Metric] = {}
    said: list[tuple[str, str]] = []
    for path in sorted(sample.rglob("*")):
        name = path.relative_to(sample).as_posix()
        foreign = logs is not None and name not in logs and _LOG.fullmatch(path.name)  # the command does not write it
        if name in inputs or foreign or name.split("/")[0] in RESERVED or not path.is_file():
            continue
        if path.suffix.lower() in _NO_RESULTS:
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.stat().st_size <= LARGEST_FILE_BYTES and _may_hold_results(text := path.read_text("utf-8-sig")):
                rules = [*_structured(text)]
                _add(found, sample, name, rules)
                if not rules:
                    said.append((name, text))
    for name, text in said:
        _add(found, sample, name, _said(text))
    return list(found.values())


def _may_hold_results(text: str) -> bool:
    """Whether it is text, and neither a field of OpenFOAM nor the log of CalculiX."""
    return "\0" not in text and not any(sign in text[:2000] for sign in _NO_RESULTS_IN)


def _add(found: dict[str, Metric], sample: Path, file: str, rules: Iterable[_Named]) -> None:
    """Add proposals of a file, each under a name of its own, that read a number."""
    count = 0
    function = re.match(r"postProcessing/([^/]+)/", file)  # of OpenFOAM: its columns are called alike in all of them
    for label, rule in rules:
        label = f"{function[1]} {label}" if function else label  # noqa: PLW2901
        name = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_").lower()
        name = name if name[:1].isalpha() else f"m_{name}"
        free = next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(found) + 3))) if each not in found)
        with contextlib.suppress(ValueError, ResultMissing):  # ValidationError is a ValueError
            extract = Extract.model_validate({"file": file} | rule)
            found[free] = Metric(identifier(free), extract).tried_on(sample)
            count += 1
        if count == _MOST_OF_A_FILE:
            return


def _structured(text: str) -> Iterator[_Named]:
    """Yield a label and a rule for each number of a JSON or a table."""
    if text.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            for path in _json_paths(json.loads(text), ""):
                yield path.replace(".", "_"), {"json": path}
            return
    yield from [*printed_rules(text)] or _columns(text)


def _said(text: str) -> list[_Named]:
    """Return a label and a rule for each `name = number`, the last one first: results stand at the end of a log."""
    found: dict[str, _Named] = {}
    for match in _SAID.finditer(text):
        if _DURATION.search(match["label"]) or match["label"].count("(") != match["label"].count(")"):
            continue
        words = match["label"].split()
        regex = rf"\b{_BLANKS.join(map(re.escape, words))}" + rf"\s*{match['sign'].strip()}\s*{_VALUE}"
        found.pop(regex, None)
        found[regex] = " ".join(words), {"regex": regex}
    return [*reversed(found.values())]


def _columns(text: str) -> list[_Named]:
    """Return a label and a rule for each column of numbers: by name, or in a table of numbers alone by number."""
    try:
        table = Table(text)
    except ValueError:
        return []
    if table.names:
        names = [name for name in dict.fromkeys(table.names[:_MOST_COLUMNS]) if not _COUNTER.fullmatch(name)]
        return [(name, {"column": name}) for name in names if name and _is_numeric(table, name)]
    numbers = range(1, table.width + 1)
    if table.width == 1 or not all(_is_numeric(table, n) for n in numbers):
        return []
    return [(f"column {n}", {"column": n}) for n in numbers[:_MOST_COLUMNS]]


def _is_numeric(table: Table, column: str | int) -> bool:
    """Whether there is such a column, with a number in each row."""
    try:
        return all(NUMBER.fullmatch(cell.strip()) for cell in table.column(column))
    except (ValueError, IndexError):
        return False


def _json_paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path
    elif isinstance(value, dict):
        for key, each in value.items():
            if key and "." not in key:
                yield from _json_paths(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and path:
        if value and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
            yield path
        else:
            for n, each in enumerate(value[:3]):
                yield from _json_paths(each, f"{path}.{n}")
