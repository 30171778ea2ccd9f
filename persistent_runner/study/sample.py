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
from persistent_runner.study.readers import Readings
from persistent_runner.study.space import identifier
from persistent_runner.study.tabular import NUMBER, Table
from persistent_runner.study.toml import explain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    _Rule = tuple[str, dict[str, str]]
    """A label, and the keys of an Extract beside its file"""

METRIC_FORM = "--metric NAME=FILE:column|regex|json:RULE, such as --metric peak=stress.csv:column:von_mises"
LARGEST_FILE_BYTES = 4 * 2**20
_MOST_OF_A_FILE = 12
_GIVEN = re.compile(r"(?P<name>[^=]*)=(?P<file>.+?):(?P<kind>column|regex|json):(?P<rule>.+)", re.DOTALL)
_MOST_COLUMNS = 50
_LABEL = r"(?<![\w()./%-])[A-Za-z][\w()./%-]*+(?: [\w()./%-]++){0,6}+"
_SAID = re.compile(rf"(?P<label>{_LABEL})(?P<sign>\s*[=:]\s*){NUMBER.pattern}(?![\w.:/-])", re.ASCII)
# a table of CalculiX's .dat: " stresses (elem, integ.pnt.,sxx,...) for set E and time  0.1000000E+01"
_PRINTED = re.compile(r"^ *[a-z][a-z ]*\((?P<names>[^()\n]+)\) for set \S+ and time", re.MULTILINE)
_COUNTS = {"elem", "integ.pnt."}
_BLANKS = r"\s+"
_COUNTED = r"\d+"
_VALUE = r"([-+.\deEdD]+)"


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
    def is_one_of_many(self) -> bool:
        """Whether several rows of a table were there to choose from."""
        return self.extract.column is not None and "only row" not in self.note


def read_metric(given: str, sample: Path | None) -> Metric:
    """Return what a `--metric` says, tried on the sample if there is one; ConfigError where it cannot be."""
    parts = _GIVEN.fullmatch(given)
    if parts is None:
        raise ConfigError(f"--metric {given}: is not of the form", remedy=f"Write {METRIC_FORM}.")
    name, rule = parts["name"].strip(), parts["rule"]
    try:
        identifier(name)
    except ValueError as error:
        raise ConfigError(f'--metric {given}: "{name}" {error}') from None
    column = parts["kind"] == "column" and rule.isdecimal()
    try:
        extract = Extract.model_validate({"file": parts["file"], parts["kind"]: int(rule) if column else rule})
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


def proposals(sample: Path, inputs: Collection[str] = ()) -> list[Metric]:
    """Return what can be read out of the files of a finished run, but for `inputs`, with the values that it gives.

    Looked at are text files up to 4 MiB: named columns of tables, the numbers of JSON, and then `name = number`, the
    last of a file first; at most twelve of one file.
    """
    found: dict[str, Metric] = {}
    logs: list[tuple[str, str]] = []
    for path in sorted(sample.rglob("*")):
        name = path.relative_to(sample).as_posix()
        if name in inputs or name.split("/")[0] in RESERVED or not path.is_file():
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.stat().st_size <= LARGEST_FILE_BYTES and _may_hold_results(text := path.read_text("utf-8-sig")):
                rules = [*_structured(text)]
                _add(found, sample, name, rules)
                if not rules:
                    logs.append((name, text))
    for name, text in logs:
        _add(found, sample, name, _said(text))
    return list(found.values())


def _may_hold_results(text: str) -> bool:
    """Whether it is text, and no field of OpenFOAM, whose head says a version and whose body holds no name."""
    return "\0" not in text and "FoamFile" not in text[:2000]


def _add(found: dict[str, Metric], sample: Path, file: str, rules: Iterable[_Rule]) -> None:
    """Add proposals of a file, each under a name of its own, that read a number."""
    count = 0
    for label, rule in rules:
        name = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_").lower()
        name = name if name[:1].isalpha() else f"m_{name}"
        free = next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(found) + 3))) if each not in found)
        with contextlib.suppress(ValueError, ResultMissing):  # ValidationError is a ValueError
            extract = Extract.model_validate({"file": file} | rule)
            found[free] = Metric(identifier(free), extract).tried_on(sample)
            count += 1
        if count == _MOST_OF_A_FILE:
            return


def _structured(text: str) -> Iterator[_Rule]:
    """Yield a label and a rule for each number of a JSON or a table."""
    if text.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            for path in _json_paths(json.loads(text), ""):
                yield path.replace(".", "_"), {"json": path}
            return
    columns = [*((column, {"column": column}) for column in _columns(text))]
    yield from columns or _printed(text)


def _said(text: str) -> list[_Rule]:
    """Return a label and a rule for each `name = number`, the last one first: results stand at the end of a log."""
    found: dict[str, _Rule] = {}
    for match in _SAID.finditer(text):
        words = match["label"].split()
        regex = rf"\b{_BLANKS.join(map(re.escape, words))}" + rf"\s*{match['sign'].strip()}\s*{_VALUE}"
        found.pop(regex, None)
        found[regex] = " ".join(words), {"regex": regex}
    return [*reversed(found.values())]


def _columns(text: str) -> list[str]:
    """Return the names of the columns that hold numbers; none where the text is no table."""
    try:
        table = Table(text)
    except ValueError:
        return []
    lines = [line for line in text.splitlines() if line.strip()]
    first = next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))
    names: list[str] = []
    for line in lines[max(0, first - 1) : first + 1]:  # where a header may stand
        head = line.lstrip().lstrip("#")
        cells = re.split(r"[,;\t]", head) if re.search(r"[,;\t]", head) else head.split()
        names += [cell.strip().strip('"') for cell in cells]
    return [name for name in dict.fromkeys(names[:_MOST_COLUMNS]) if _is_numeric(table, name)]


def _is_numeric(table: Table, name: str) -> bool:
    """Whether there is a column of this name, with a number in each row."""
    try:
        return bool(name) and all(NUMBER.fullmatch(cell.strip()) for cell in table.column(name))
    except (ValueError, IndexError):
        return False


def _printed(text: str) -> Iterator[_Rule]:
    """Yield the columns of the tables of a .dat of CalculiX: the largest value over all rows of so many cells."""
    tables: dict[int, set[str]] = {}
    for match in _PRINTED.finditer(text):
        _, _, below = text[match.end() :].partition("\n")
        row = below.lstrip().partition("\n")[0].split()
        tables.setdefault(len(row), set()).add(match["names"])
    for count, heads in tables.items():
        if len(heads) > 1:
            continue  # rows of one could not be told from those of the other
        names = [name.strip() for name in next(iter(heads)).split(",")]
        for n, name in enumerate(names, count - len(names)):
            if name not in _COUNTS and n >= 0:
                cells = [_COUNTED if count > len(names) or names[0] in _COUNTS else r"\S+", *[r"\S+"] * (count - 1)]
                cells[n] = _VALUE
                yield f"{name} max", {"regex": "^ *" + " +".join(cells) + " *$", "reduce": "max"}


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
