"""What `persistent-runner init` asks on a terminal: what is varied, the command, what is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from persistent_runner.errors import ConfigError
from persistent_runner.study.candidates import candidates
from persistent_runner.study.deck import PARAM_FORM, joined, new_mark, read_end, read_name, read_place
from persistent_runner.study.solver import Solver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from persistent_runner.study.deck import Deck, Mark, Number
    from persistent_runner.study.fields import Direction
    from persistent_runner.study.sample import Metric

    Checked = TypeVar("Checked")

_PAGE = 20
_SHOWN_COLUMNS = 60
_WHICH = "Which (such as 1 or 2-5,8; more; /WORD to look for; [FILE:]LINE:COLUMN; nothing when done)"
_DIRECTIONS: dict[str, Direction] = {"minimize": "minimize", "maximize": "maximize"}


def ask_for_marks(decks: Mapping[str, Deck]) -> list[Mark]:
    """Show the numbers of a deck, the likeliest first, and return those that are chosen, named and bounded.

    Raises ConfigError where none is.
    """
    listing = _Listing(decks)
    click.echo(f"The deck has {len(listing.all)} numbers; these are likely to be parameters:", err=True)
    listing.show_more()
    marks: list[Mark] = []
    while (chosen := _asked_until(_WHICH, "", listing.answered)) is not None:
        for number, name in chosen:
            marks = _with(marks, number, name)
    if not marks:
        raise ConfigError("no parameter was chosen, so there is nothing to vary", remedy=f"Or write {PARAM_FORM}.")
    return marks


class _Listing:
    """The numbers of a deck, of which those with a word, and then a page of these, are shown."""

    def __init__(self, decks: Mapping[str, Deck]) -> None:
        self._decks = decks
        self.all = candidates(decks.values())
        self._left = [*enumerate(self.all, 1)]

    def answered(self, answer: str) -> list[tuple[Number, str]] | None:
        """Return the numbers that an answer means, with a name for each: none where it asks to see others.

        None where there is no answer. Raises ConfigError where a word of it means nothing.
        """
        if not answer:
            return None
        if answer == "more":
            self.show_more()
            return []
        if answer.startswith("/"):
            self._look_for(answer[1:].strip())
            return []
        return [each for word in answer.replace(",", " ").split() for each in self._chosen(word)]

    def _chosen(self, word: str) -> list[tuple[Number, str]]:
        if ":" in word:
            return [(read_place(self._decks, word), "x")]
        try:
            return [(self.all[n - 1].number, self.all[n - 1].name) for n in _numbers(word, len(self.all))]
        except ConfigError as error:
            raise ConfigError(f"{error.message}, nor LINE:COLUMN; to look for a word write /{word}") from None

    def _look_for(self, word: str) -> None:
        self._left = [each for each in enumerate(self.all, 1) if each[1].holds(word)]
        click.echo(f'{len(self._left)} of them with "{word}":' if word else "All of them:", err=True)
        self.show_more()

    def show_more(self) -> None:
        """Show the next page, below what the numbers belong to."""
        page, self._left = self._left[:_PAGE], self._left[_PAGE:]
        above = ""
        for n, each in page:
            number = each.number
            heading = f"{number.deck.path}  {each.context.words}".rstrip()
            if heading != above:
                click.echo(f"      {heading}", err=True)
                above = heading
            place = f"{number.line}:{number.column}"
            click.echo(f"{n:4}  {number.text:>12}  {place:<8} {each.line[:_SHOWN_COLUMNS]}", err=True)
        click.echo(f"      ({len(self._left)} more)" if self._left else "      (there are no more)", err=True)


def _numbers(word: str, most: int) -> list[int]:
    """Return the numbers of a list that `3` or `2-5` means; ConfigError where it is none of them."""
    ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word, re.ASCII)
    if ends and 1 <= int(ends[1]) <= int(ends[2] or ends[1]) <= most:
        return [*range(int(ends[1]), int(ends[2] or ends[1]) + 1)]
    raise ConfigError(f'"{word}" is neither a number from 1 to {most} nor a range of them, such as 2-5')


def _with(marks: list[Mark], number: Number, name: str) -> list[Mark]:
    """Return the marks and a number, its name and range asked for; as they are where it is marked already."""
    single = [mark.at(each) for mark in marks for each in mark.numbers]
    for mark in single:
        if mark.numbers[0].place == number.place:
            click.echo(f"  {number.place} is {mark.name} already", err=True)
            return marks
    same = [mark.name for mark in marks if mark.value == number.value]
    others = {mark.name: mark.numbers[0] for mark in marks if mark.value != number.value}
    free = (each for each in (name, *(f"{name}_{n}" for n in range(2, len(marks) + 3))) if each not in others)

    def a_name(chosen: str) -> str:
        if other := others.get(chosen):
            raise ConfigError(f"{chosen} is {other.text} at {other.place}, not {number.text}; give this another name")
        return read_name(chosen)

    click.echo(f"{number.place}: {number.text}", err=True)
    chosen = _asked_until("  Name", same[-1] if same else next(free), a_name)
    known = next((mark for mark in marks if mark.name == chosen), None)
    if known is None:
        return [*marks, _bounded(number, chosen)]
    click.echo(f"  the same parameter as at {known.numbers[0].place}", err=True)
    return joined([*single, known.at(number)])


def _bounded(number: Number, name: str) -> Mark:
    """Ask for the range of a number."""
    ends = (number.value * 0.5, number.value * 1.5) if number.value else (-1.0, 1.0)
    first, last = (_short(end, is_whole=number.is_whole) for end in sorted(ends))
    if number.is_whole:
        click.echo("  5 and 20 make it a whole number, 5.0 and 20.0 a real one", err=True)

    def an_end(end: str) -> str:
        read_end(end)
        return end

    mark = None
    while mark is None:
        low = _asked_until("  Low", first, an_end)
        more = last if read_end(low) < read_end(last) else ""
        question = "  High" if more else "  High (nothing: Low again)"
        mark = _asked_until(question, more, lambda end: new_mark(name, number, low, end) if end else None)  # noqa: B023 - called at once
        outside = f"  {number.text} is outside, so the deck as it came will be no first trial; keep the range"
        if mark is not None and not mark.is_inside and not click.confirm(outside, default=False, err=True):
            mark = None
    return mark


def _short(value: float, *, is_whole: bool) -> str:
    return str(round(value)) if is_whole else f"{value:.6g}"


def ask_for_command() -> Solver | None:
    """Return the command of a trial; None where nothing is answered."""
    answer = _asked("The command that runs this deck (nothing: write it later)")
    return Solver("", [answer]) if answer else None


def ask_for_metrics(proposed: Sequence[Metric]) -> tuple[list[Metric], dict[str, Direction]]:
    """Show what can be read out of the sample; return what is chosen, and what of it is optimised which way."""
    click.echo("Numbers that the sample holds:", err=True)
    file = ""
    for n, metric in enumerate(proposed, 1):
        if metric.extract.file != file:
            file = metric.extract.file or ""
            click.echo(f"      {file}", err=True)
        click.echo(f"{n:4}  {metric.value:>12.6g}  {metric.name:<24} {metric.note}", err=True)

    def of_the_list(answer: str) -> list[Metric]:
        numbers = [n for word in answer.replace(",", " ").split() for n in _numbers(word, len(proposed))]
        return [proposed[n - 1] for n in dict.fromkeys(numbers)]

    chosen = _asked_until("Which are read (such as 1 or 2-5,8; nothing: write it later)", "", of_the_list)
    objectives: dict[str, Direction] = {}
    for metric in chosen:
        kinds = click.Choice([*_DIRECTIONS, "read"])
        default = "read" if objectives else metric.usual_direction
        aim = click.prompt(f"  {metric.name}", type=kinds, default=default, err=True)
        if aim in _DIRECTIONS:
            objectives[metric.name] = _DIRECTIONS[aim]
    if chosen and not objectives:
        objectives[chosen[0].name] = chosen[0].usual_direction
        click.echo(f"  one must be optimised: {chosen[0].name} = {chosen[0].usual_direction}", err=True)
    return chosen, objectives


def _asked_until(question: str, default: str, checked: Callable[[str], Checked]) -> Checked:
    """Ask until an answer is one; return what it means."""
    while True:
        try:
            return checked(_asked(question, default))
        except ConfigError as error:
            click.echo(f"  {error}", err=True)


def _asked(question: str, default: str = "") -> str:
    answer: str = click.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()
