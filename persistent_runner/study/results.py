"""Numbers out of output files, and the table of trials (the only pandas)."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from persistent_runner.errors import ResultMissing
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Self

    import optuna
    import pandas as pd

    from persistent_runner.study.run_folder import RunFolder

USER_ATTRIBUTE = "persistent_runner"
"""Of a study: {"objectives": [names]}. Of a trial: what `trials_table` shows beside Optuna's own facts."""

LARGEST_FILE_BYTES = 2**30
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?", re.ASCII)


def relative_path(value: str) -> str:
    """Return a path of a file below the working directory as it is; ValueError for any other."""
    path = PurePosixPath(value)
    if not value.strip() or not value.isprintable() or path.is_absolute() or ".." in path.parts:
        raise ValueError(f'"{value}" is not a file below the working directory; write it as in "results/drag.csv"')
    if path.parts[:1] == (".attempt",):
        raise ValueError(f'"{value}" lies in the runner\'s own folder .attempt; write your results elsewhere')
    return value


class Extract(BaseModel):
    """[metrics.NAME]: the file that a number stands in, the rule that finds it, and which of several is taken.

    `column` names a column of a table (commas, semicolons, tabs or blanks); `regex` has one group, and `^ $` mean a
    line; `json` is a path such as `forces.0.cd`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    file: Annotated[str, AfterValidator(relative_path)]
    column: str | None = None
    regex: str | None = None
    # `json` is a method of every pydantic model
    json_path: str | None = Field(None, alias="json")
    reduce: Literal["first", "last", "min", "max", "mean"] = "last"

    @model_validator(mode="after")
    def _check(self) -> Self:
        rules = [rule for rule in (self.column, self.regex, self.json_path) if rule is not None]
        if len(rules) != 1 or not rules[0].strip():
            raise ValueError('needs exactly one of column, regex and json, such as column = "drag"')
        if self.regex is not None:
            try:
                groups = re.compile(self.regex).groups
            except re.error as error:
                raise ValueError(f"regex is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"regex has {groups} groups; put ( ) around the number only, and (?: ) around others")
        return self

    @property
    def rule(self) -> str:
        """The rule in words, for messages."""
        if self.column is not None:
            return f'column "{self.column}"'
        return f"regex {self.regex}" if self.regex is not None else f"json {self.json_path}"


def read_metric(extract: Extract, folder: Path, *, name: str) -> float:
    """Return the number that `extract` finds in its file below `folder`: always finite.

    Raises ResultMissing with the metric's `name`, file, rule, and the nearest columns, lines or keys.
    """
    where = f"metric {name}: {extract.file}"
    try:
        text = _text(folder, extract.file)
        if extract.column is not None:
            found = _column(text, extract.column)
        elif extract.regex is not None:
            found = _matches(text, extract.regex)
        else:
            found = _json(text, extract.json_path or "")
        chosen = {"first": found[:1], "last": found[-1:]}.get(extract.reduce, found)
        numbers = [_number(place, value, from_json=extract.json_path is not None) for place, value in chosen]
        return _reduce(extract.reduce, numbers)
    except (OverflowError, ValueError) as error:
        raise ResultMissing(
            f"{where}: {error}",
            remedy=f"Look at the file and at the command's log, or mend the rule ({extract.rule}) in [metrics.{name}].",
        ) from None


def _reduce(how: str, numbers: list[float]) -> float:
    if how == "min":
        return min(numbers)
    if how == "max":
        return max(numbers)
    # of one number for first and last
    return math.fsum(numbers) / len(numbers)


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        near = did_you_mean(name, sorted(_files(folder)))
        raise ValueError(f"the file is not there; in the trial's folder: {near}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("the file is a link that leaves the trial's folder")
    size = path.stat().st_size
    if size > LARGEST_FILE_BYTES:
        raise ValueError(f"the file has {size / 2**30:.1f} GiB, and at most 1 GiB is read; write the number elsewhere")
    data = path.read_bytes()
    if not data.strip():
        raise ValueError("the file is empty")
    if b"\0" in data:
        raise ValueError("the file is not text (it holds NUL bytes)")
    return data.decode("utf-8-sig", errors="replace")


def _files(folder: Path) -> Iterable[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _column(text: str, column: str) -> list[tuple[str, object]]:
    rows = _rows(text)
    header = [cell.strip().strip('"') for cell in rows[0][1]]
    if header.count(column.strip()) != 1:
        what = "stands there more than once" if column.strip() in header else "is not there"
        raise ValueError(f'the column "{column}" {what}; {did_you_mean(column, header)} (columns: {", ".join(header)})')
    at = header.index(column.strip())
    values: list[tuple[str, object]] = [
        (f"line {line}", cells[at] if at < len(cells) else "") for line, cells in rows[1:]
    ]
    if not values:
        raise ValueError("the table has a header and no rows")
    return values


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of the header and of each row of a table.

    The header is the first line; below a head of `#` lines, as solvers write it, the last of them if it has as many
    names as the first row has cells.
    """
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), None)
    if first is None:
        raise ValueError("the table has no rows")
    separator = next((sign for sign in ",;\t" if sign in lines[first]), None)
    rows = _split(lines[first:], separator, first + 1)
    above = next((n for n in range(first - 1, -1, -1) if lines[n].strip()), None)
    if above is not None:
        head = _split([lines[above].lstrip().lstrip("#")], separator, above + 1)[0]
        if len(head[1]) == len(rows[0][1]) and all(_NUMBER.fullmatch(cell.strip()) for cell in rows[0][1]):
            return [head, *rows]
    return rows


def _split(lines: list[str], separator: str | None, first: int) -> list[tuple[int, list[str]]]:
    if separator is None:
        return [(n, line.split()) for n, line in enumerate(lines, first) if line.strip()]
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True)
    try:
        return [(first - 1 + reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"line {first - 1 + reader.line_num} is no line of a table: {error}") from None


def _matches(text: str, regex: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    line, at = 1, 0
    for match in re.finditer(regex, text, re.MULTILINE):
        line, at = line + text.count("\n", at, match.start()), match.start()
        found.append((f"line {line}", match[1]))
    if not found:
        raise ValueError(f"nothing matches {regex}; the nearest lines are:\n{_nearest_lines(text, regex)}")
    return found


def _nearest_lines(text: str, regex: str) -> str:
    """Return up to three lines that hold most of the words of the regex; without any, the last three."""
    words = {word.casefold() for word in re.findall(r"[^\W\d_]{2,}", re.sub(r"\\.", " ", regex))}
    lines = [line.strip()[:160] for line in text.splitlines()[-20_000:] if line.strip()]
    scores = [sum(word in line.casefold() for word in words) for line in lines]
    best = max(scores)
    near = [line for line, score in zip(lines, scores, strict=True) if score == best]
    return "\n".join(f"    {line}" for line in near[-3:])


def _json(text: str, path: str) -> list[tuple[str, object]]:
    try:
        # int() refuses 5000 digits with words of its own; all of them become floats here
        value = json.loads(text, parse_int=float)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    done = ""
    for part in path.split("."):
        place = f'"{done}"' if done else "the top"
        if isinstance(value, dict):
            if part not in value:
                raise ValueError(f'at {place} there is no key "{part}"; {did_you_mean(part, map(str, value))}')
            value = value[part]
        elif isinstance(value, list):
            if not re.fullmatch(r"-?\d{1,9}", part, re.ASCII) or not -len(value) <= int(part) < len(value):
                raise ValueError(f'at {place} stands a list of {len(value)}; "{part}" is no position in it (from 0)')
            value = value[int(part)]
        else:
            raise ValueError(f'at {place} stands {_shown(value)}, so there is no "{part}" below it')  # noqa: TRY004 - one family of errors
        done = f"{done}.{part}" if done else part
    if isinstance(value, list):
        if not value:
            raise ValueError(f'at "{done}" stands an empty list')
        return [(f"{done}.{n}", item) for n, item in enumerate(value)]
    return [(done, value)]


def _number(place: str, value: object, *, from_json: bool) -> float:
    """Return a finite float: text that is a number (Fortran's D is an E), or in JSON a number, and nothing else."""
    if isinstance(value, str) and not from_json and _NUMBER.fullmatch(value.strip()):
        return _finite(place, float(value.strip().replace("d", "e").replace("D", "e")), value)
    if isinstance(value, float):
        return _finite(place, value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{place} holds no value")
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in {"nan", "inf", "infinity"}:
        raise ValueError(f"{place} holds {value.strip()}, which is not a finite number")
    raise ValueError(f"{place} holds {_shown(value)}, which is not a number")


def _finite(place: str, number: float, written: str | None = None) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{place} holds {_shown(written) if written else number}, which is not a finite number")
    return number


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial, ordered by number.

    The columns are `number, state, value` (several objectives: `values_<name>`), `params_<name>, metrics_<name>,
    constraints_<name>, failure, attempts, seconds, cost, node, folder, started, ended`. `seconds` is the time of the
    last attempt, `cost` its share of the cluster's price, `started` and `ended` local times as datetimes. A trial that
    this package did not run has empty cells.
    """
    import pandas as pd  # 0.4 s that --help need not pay

    trials = study.get_trials(deepcopy=False)
    facts = [_facts(trial.user_attrs) for trial in trials]
    metrics = [_facts({USER_ATTRIBUTE: fact.get("metrics")}) for fact in facts]
    columns: dict[str, pd.Series[Any]] = {
        "number": pd.Series([trial.number for trial in trials], dtype="int64"),
        "state": pd.Series([trial.state.name for trial in trials], dtype="str"),
    }
    names = _objective_names(study)
    values = [trial.values or [] for trial in trials]  # noqa: PD011 - a trial, not a data frame
    for n, name in enumerate(names):
        cells = [row[n] if n < len(row) else None for row in values]
        columns["value" if len(names) == 1 else f"values_{name}"] = pd.Series(cells, dtype="float64")
    columns |= _spread("params_", [trial.params for trial in trials])
    columns |= _spread("metrics_", metrics)
    columns |= _spread("constraints_", [trial.constraints or {} for trial in trials])
    for name, dtype in _OWN_COLUMNS.items():
        columns[name] = pd.Series([fact.get(name) for fact in facts], dtype=dtype)
    columns["started"] = pd.Series([trial.datetime_start for trial in trials], dtype="datetime64[us]")
    columns["ended"] = pd.Series([trial.datetime_complete for trial in trials], dtype="datetime64[us]")
    return pd.DataFrame(columns)


def write_table(folder: RunFolder, study: optuna.Study) -> pd.DataFrame:
    """Write the table as `trials.csv` of a run folder, and return it."""
    table = trials_table(study)
    folder.write("trials.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


_OWN_COLUMNS = {
    "failure": "str",
    "attempts": "Int64",
    "seconds": "float64",
    "cost": "float64",
    "node": "str",
    "folder": "str",
}


def _facts(attributes: dict[str, Any]) -> dict[str, Any]:
    facts = attributes.get(USER_ATTRIBUTE)
    return facts if isinstance(facts, dict) else {}


def _objective_names(study: optuna.Study) -> list[str]:
    count = len(study.directions)
    names = _facts(study.user_attrs).get("objectives")
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return list(study.metric_names or map(str, range(count)))


def _spread(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, pd.Series[Any]]:
    """Return a column per key, whole numbers kept whole beside empty cells."""
    import pandas as pd

    columns: dict[str, pd.Series[Any]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        cells = [row.get(key) for row in rows]
        whole = all(cell is None or (isinstance(cell, int) and not isinstance(cell, bool)) for cell in cells)
        columns[prefix + key] = pd.Series(cells, dtype="Int64") if whole else pd.Series(cells)
    return columns
