"""[metrics.NAME] as a frozen model: the rule that finds a number, and what makes a rule impossible."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from persistent_runner.spelling import did_you_mean
from persistent_runner.study.fields import FunctionName, RelativePath
from persistent_runner.study.formula import Circle, Formula, FormulaText, order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self


Rule = dict[str, str | int]
"""The keys of a [metrics.NAME] beside its file."""


def _column(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a column's name in quotes, or its number, from 1, without them")  # noqa: TRY004 - pydantic takes ValueError alone
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is no column; they are counted from 1")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _regex(value: str) -> str:
    groups = re.compile(_pattern(value)).groups
    if groups != 1:
        raise ValueError(f"has {groups} groups; put ( ) around the number only, and (?: ) around others")
    return value


class Extract(BaseModel):
    """[metrics.NAME]: the rule that finds a number, the file that it stands in, and which of several is taken.

    It needs exactly one of `column`, `regex`, `json`, `function` and `expr`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={
            "oneOf": [{"required": [rule]} for rule in ("column", "regex", "json", "function", "expr")],
            "dependentRequired": {"column": ["file"], "regex": ["file"], "json": ["file"], "match": ["regex"]},
            "dependentSchemas": {"below": {"anyOf": [{"required": [rule]} for rule in ("column", "regex")]}},
        },
    )
    file: RelativePath | None = Field(default=None, examples=["report.csv"])
    """The file that it is read from, below the trial's working directory. It comes back without being among the
    outputs."""
    below: Annotated[str, AfterValidator(_pattern)] | None = Field(default=None, examples=[r"displacements .*set TIP"])
    """Of a file with many tables, which one: a regular expression that matches what stands above it. Read are the lines
    from there to the next blank one; where it matches more than once, such as for each time, those below the last."""
    column: Annotated[str | int, BeforeValidator(_column)] | None = Field(default=None, examples=["cd"])
    """A column of a table (commas, semicolons, tabs or blanks), by its name or its number from 1."""
    regex: Annotated[str, AfterValidator(_regex)] | None = Field(default=None, examples=[r"Cd\s*=\s*(\S+)"])
    """A regular expression of Python's with one group, around the number; `^` and `$` mean a line."""
    # `json` is a method of every pydantic model
    json_path: str | None = Field(default=None, alias="json", examples=["forces.0.cd"])
    """A path into a JSON file: keys and numbers of items, from 0, with dots between."""
    function: FunctionName | None = Field(default=None, examples=["post.py:drag"])
    """A Python function of the study's folder, called on the driver with the path of `file`, or of the trial's folder,
    by several threads where several trials run at a time."""
    expr: FormulaText | None = Field(default=None, examples=["drag / lift"])
    """A formula over other metrics and the trial's parameters."""
    match: int | None = Field(default=None, examples=[-1], json_schema_extra={"not": {"const": 0}})
    """Which match of `regex` counts, from 1, or from the end with -1. Instead of `reduce`."""
    reduce: Literal["first", "last", "min", "max", "mean"] = Field(default="last", examples=["max"])
    """What is made of several numbers, such as the rows of a column."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        rules = self._rules
        if len(rules) != 1:
            found = " and ".join(rules) or "none of them"
            raise ValueError(
                f'needs exactly one of column, regex, json, function and expr, such as column = "drag"; it has {found}'
            )
        ((rule, value),) = rules.items()
        if not str(value).strip():
            raise ValueError(f"its {rule} is empty")
        if rule in {"column", "regex", "json"} and self.file is None:
            raise ValueError(f'{rule} reads a file, and none is named; write it as in file = "report.csv"')
        if self.below is not None and rule not in {"column", "regex"}:
            raise ValueError(f"below chooses among lines of text; remove it, {rule} does not read by lines")
        if rule == "expr" and self.file is not None:
            raise ValueError("expr calculates from other metrics and parameters; remove file")
        if rule in {"function", "expr"} and "reduce" in self.model_fields_set:
            raise ValueError(f"{rule} gives one number; remove reduce")
        if self.match is not None:
            if rule != "regex":
                raise ValueError(f"match counts the matches of a regex; remove it, {rule} has none")
            if "reduce" in self.model_fields_set:
                raise ValueError("match and reduce both choose among the matches; remove one of them")
            if self.match == 0:
                raise ValueError("match counts from 1, or from the end with -1; 0 is neither")
        return self

    @property
    def _rules(self) -> dict[str, str | int]:
        rules = {"column": self.column, "regex": self.regex, "json": self.json_path}
        rules |= {"function": self.function, "expr": self.expr}
        return {key: value for key, value in rules.items() if value is not None}

    @property
    def rule(self) -> str:
        """The rule in words, for messages."""
        ((key, value),) = self._rules.items()
        rule = f'column "{value}"' if isinstance(self.column, str) else f"{key} {value}"
        return rule if self.below is None else f"{rule} below {self.below}"


def formula_mistakes(metrics: Mapping[str, Extract], parameters: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Yield (keys, what) for each `expr` that cannot work: names that are not there, or are two things; circles."""
    formulas = {name: Formula(extract.expr) for name, extract in metrics.items() if extract.expr is not None}
    known = [*metrics, *parameters]
    for name, formula in formulas.items():
        for unknown in sorted(formula.names - set(known)):
            what = f'{formula.text}: there is no metric and no parameter "{unknown}"; {did_you_mean(unknown, known)}'
            yield ["metrics", name, "expr"], what
        for twice in sorted(formula.names & metrics.keys() & set(parameters)):
            yield ["metrics", name, "expr"], f"{formula.text}: {twice} is a metric and a parameter; rename one of them"
    try:
        order(formulas)
    except Circle as error:
        yield ["metrics", error.names[0], "expr"], f"an expr {error}; break it"
