"""The text of a new study.toml: complete, short, and with a word beside what its owner will want to change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistent_runner.render import DEFAULT_DELIMITERS, Delimiters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from persistent_runner.study.deck import Mark
    from persistent_runner.study.fields import Direction
    from persistent_runner.study.sample import Metric
    from persistent_runner.study.solver import Solver

_LONGEST_COMMAND = 100
_EXAMPLE = """
# How a number is read, and what is optimised, is left to write, such as:
# [metrics.mass]
# file  = "report.txt"
# regex = 'mass\\s*=\\s*(\\S+)'          # or column = "mass" of a table, or json = "results.mass"
#
# [objectives]
# mass = "minimize"
"""


@dataclass(frozen=True)
class NewStudy:
    """What is known of a study that is made from a deck. Without `metrics`, `proposed` ones stand there as comments."""

    source: str
    marks: Sequence[Mark]
    solver: Solver | None
    metrics: Sequence[Metric]
    objectives: Mapping[str, Direction]
    proposed: Sequence[Metric] = ()
    delimiters: Delimiters = DEFAULT_DELIMITERS

    def toml(self) -> str:
        """Return the text of study.toml."""
        return "\n".join([*self._head(), *self._space(), *self._trial(), *self._metrics()]).rstrip() + "\n"

    def _head(self) -> Iterator[str]:
        yield f"# Made from {self.source} by `persistent-runner init`."
        yield from _table("study", [("n_trials = 20", "of all starts together"), ("seed     = 1", "")])
        keys = [
            ('core_type = "emerald"', "the kind of machine; --check says which there are"),
            ("cores     = 2", "of the whole cluster"),
            ('walltime  = "8h"', "the cluster ends by then, and another one is leased if trials are left"),
        ]
        if self.solver and self.solver.env:
            env = ", ".join(f"{name} = {_text(value)}" for name, value in self.solver.env.items())
            keys.append((f"env       = {{ {env} }}", "as many threads as a trial has cores"))
        yield from _table("cluster", keys)
        if self.solver and self.solver.hint:
            yield f"# {self.solver.hint}"

    def _space(self) -> Iterator[str]:
        keys = []
        for mark in self.marks:
            kind = "int" if mark.is_int else "float"
            ends = f"low = {mark.toml(mark.low)}, high = {mark.toml(mark.high)}"
            places = f"{mark.numbers[0].place}{f', and {more} more' if (more := len(mark.numbers) - 1) else ''}"
            keys.append((f'{mark.name} = {{ type = "{kind}", {ends} }}', f"{mark.numbers[0].text} at {places}"))
        yield from _table("space", keys)
        outside = [mark.name for mark in self.marks if not mark.is_inside]
        if outside:
            yield f"\n# No [baseline], the deck as it came: its {', '.join(outside)} lies outside of [space]."
        else:
            keys = [(f"{mark.name} = {mark.toml(mark.value)}", "") for mark in self.marks]
            yield from _table("baseline", keys, "the deck as it came, which runs first")
        way = f"{self.delimiters.start} {self.marks[0].name} | fixed(4) {self.delimiters.end}"
        yield f"\n# In a template, {way}, sci(6), width(8), nastran(8) and abaqus(16) write it otherwise."

    def _trial(self) -> Iterator[str]:
        command = [_text(line) for line in self.solver.command] if self.solver else []
        keys = [('inputs  = ["case/"]', "its contents land in the trial's working directory")]
        if not command:
            keys.append(('# command = "./solver case.inp"', "left to write: what runs one trial"))
        elif len(command) == 1:
            keys.append((f"command = {command[0]}", ""))
        elif sum(map(len, command)) < _LONGEST_COMMAND:
            keys.append((f"command = [{', '.join(command)}]", ""))
        else:
            keys += [("command = [", ""), *((f"    {line},", "") for line in command), ("]", "")]
        keys.append(("cores   = 1", "so two trials run at a time"))
        if self.delimiters != DEFAULT_DELIMITERS:
            signs = ", ".join(map(_text, (self.delimiters.start, self.delimiters.end)))
            why = f"the deck holds {DEFAULT_DELIMITERS.start} or {DEFAULT_DELIMITERS.end} itself"
            keys.append((f"template = {{ delimiters = [{signs}] }}", why))
        keys.append(('# timeout = "2h"', "a trial that takes longer has failed"))
        keys.append(('# outputs = ["*.log"]', "files to keep, beside those that a metric reads"))
        yield from _table("trial", keys)

    def _metrics(self) -> Iterator[str]:
        for metric in self.metrics:
            yield from _metric(metric)
        if self.metrics:
            keys = [(f"{name} = {_text(direction)}", "") for name, direction in self.objectives.items()]
            yield from _table("objectives", keys, '"minimize" or "maximize"')
        elif self.proposed:
            yield "\n# Which of these numbers is read, and what is optimised, is left to choose: take the # away."
            for metric in self.proposed:
                yield from (f"# {line}" if line else "#" for line in "\n".join(_metric(metric)).split("\n")[1:])
                yield "#"
            yield "# [objectives]"
            yield f"# {self.proposed[0].name} = {_text(self.proposed[0].usual_direction)}"
        else:
            yield _EXAMPLE


def _metric(metric: Metric) -> Iterator[str]:
    rule = metric.extract.model_dump(by_alias=True, exclude_unset=True)
    if metric.is_one_of_many:
        rule.setdefault("reduce", metric.extract.reduce)
    width = max(map(len, rule))
    keys = [
        (f"{key:<{width}} = {value if isinstance(value, int) else _text(value)}", "") for key, value in rule.items()
    ]
    if "reduce" in rule:
        keys[-1] = (keys[-1][0], "first, last, min, max or mean")
    yield from _table(
        f"metrics.{metric.name}", keys, "" if metric.value is None else f"{metric.value:.6g} in the sample"
    )


def _table(name: str, keys: Sequence[tuple[str, str]], what: str = "") -> Iterator[str]:
    """Yield a table's lines, with the comments below each other where the keys are short."""
    width = max((len(key) for key, comment in keys if comment and len(key) <= 70), default=0)
    yield f"\n[{name}]" + (f"     # {what}" if what else "")
    yield from (f"{key:<{width}}     # {comment}" if comment else key for key, comment in keys)


def _text(value: str) -> str:
    """Return text in TOML's quotes: as it is where that can be, for the sake of regular expressions."""
    if "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
