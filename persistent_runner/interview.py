"""What `persistent-runner init` asks on a terminal: what is varied, the command, what is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from persistent_runner.errors import ConfigError
from persistent_runner.study.candidates import candidates
from persistent_runner.study.deck import PARAM_FORM, joined, new_mark, read_place
from persistent_runner.study.solver import Solver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistent_runner.study.candidates import Candidate
    from persistent_runner.study.deck import Deck, Mark, Number
    from persistent_runner.study.fields import Direction
    from persistent_runner.study.sample import Metric

_PAGE = 20
_SHOWN_COLUMNS = 60
_DIRECTIONS: dict[str, Direction] = {"minimize": "minimize", "maximize": "maximize"}


def ask_for_marks(decks: Mapping[str, Deck]) -> list[Mark]:
    """Show the numbers of a deck, the likeliest first, and return those that are chosen, named and bounded.

    Raises ConfigError where none is.
    """
    found = candidates(decks.values())
    click.echo(f"The deck has {len(found)} numbers; these are likely to be parameters:", err=True)
    shown = _show(found, 0)
    marks: list[Mark] = []
    while True:
        answer = _asked("Which (numbers of this list, [FILE:]LINE:COLUMN, more, or nothing when done)")
        if not answer:
            break
        if answer == "more":
            shown = _show(found, shown)
            continue
        for word in answer.replace(",", " ").split():
            marks = _with(marks, word, found, decks)
    if not marks:
        raise ConfigError("no parameter was chosen, so there is nothing to vary", remedy=f"Or write {PARAM_FORM}.")
    return marks


def _with(marks: list[Mark], word: str, found: Sequence[Candidate], decks: Mapping[str, Deck]) -> list[Mark]:
    """Return the marks with the one that an answer means; as they are, with the reason said, where it cannot be."""
    single = [mark.at(number) for mark in marks for number in mark.numbers]
    try:
        number, name = _chosen(word, found, decks)
        others = {mark.name for mark in marks if mark.value != number.value}
        free = next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(marks) + 3))) if each not in others)
        return joined([*single, _marked(number, free)])
    except ConfigError as error:
        click.echo(f"  {error}", err=True)
        return marks


def _show(found: Sequence[Candidate], first: int) -> int:
    """Show the next page; return where the one after it begins."""
    for n, each in enumerate(found[first : first + _PAGE], first + 1):
        number = each.number
        line = number.deck.lines[number.line - 1].strip()[:_SHOWN_COLUMNS]
        click.echo(f"{n:4}  {number.text:>12}  {number.place:<24} {line}", err=True)
    if first >= len(found):
        click.echo("There are no more.", err=True)
    return first + _PAGE


def _chosen(word: str, found: Sequence[Candidate], decks: Mapping[str, Deck]) -> tuple[Number, str]:
    """Return the number that an answer means, and a name for it."""
    if ":" in word:
        return read_place(decks, word), "x"
    if not re.fullmatch(r"\d+", word, re.ASCII) or not 1 <= int(word) <= len(found):
        raise ConfigError(f'"{word}" is neither a number from 1 to {len(found)} nor LINE:COLUMN')
    candidate = found[int(word) - 1]
    return candidate.number, candidate.name


def _marked(number: Number, name: str) -> Mark:
    """Ask for name and range of a number; ask again where they cannot be."""
    click.echo(f"{number.place}: {number.text}", err=True)
    mark = None
    while mark is None:
        mark = _described(number, name)
    return mark


def _described(number: Number, name: str) -> Mark | None:
    chosen = _asked("  Name", name)
    ends = (number.value * 0.5, number.value * 1.5) if number.value else (-1.0, 1.0)
    low, high = (_short(end, is_whole=number.is_whole) for end in sorted(ends))
    try:
        return new_mark(chosen, number, _asked("  Low", low), _asked("  High", high))
    except ConfigError as error:
        click.echo(f"  {error}", err=True)
        return None


def _short(value: float, *, is_whole: bool) -> str:
    return str(round(value)) if is_whole else f"{value:.6g}"


def ask_for_command() -> Solver | None:
    """Return the command of a trial; None where nothing is answered."""
    answer = _asked("The command that runs this deck (nothing: write it later)")
    return Solver("", [answer]) if answer else None


def ask_for_metrics(proposed: Sequence[Metric]) -> tuple[list[Metric], dict[str, Direction]]:
    """Show what can be read out of the sample; return what is chosen, and what of it is optimised which way."""
    click.echo("Numbers that the sample holds:", err=True)
    for n, metric in enumerate(proposed, 1):
        rule = metric.extract.rule[:_SHOWN_COLUMNS]
        click.echo(f"{n:4}  {metric.value:>12.6g}  {metric.name:<24} {metric.extract.file}: {rule}", err=True)
    chosen: list[Metric] = []
    objectives: dict[str, Direction] = {}
    answer = _asked("Which are read (numbers of this list; nothing: write it later)")
    for word in answer.replace(",", " ").split():
        if not re.fullmatch(r"\d+", word, re.ASCII) or not 1 <= int(word) <= len(proposed):
            click.echo(f'  "{word}" is no number from 1 to {len(proposed)}', err=True)
            continue
        metric = proposed[int(word) - 1]
        if metric in chosen:
            continue
        chosen.append(metric)
        kinds = click.Choice([*_DIRECTIONS, "read"])
        aim = click.prompt(f"  {metric.name}", type=kinds, default="read" if objectives else "minimize", err=True)
        if aim in _DIRECTIONS:
            objectives[metric.name] = _DIRECTIONS[aim]
    if chosen and not objectives:
        click.echo(f"  one must be optimised: {chosen[0].name} is minimised", err=True)
        objectives[chosen[0].name] = "minimize"
    return chosen, objectives


def _asked(question: str, default: str = "") -> str:
    answer: str = click.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()
