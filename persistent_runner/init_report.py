"""What `persistent-runner init` says at the end: what it made, what is left to write, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from persistent_runner.inputs import TEMPLATE_SUFFIX
from persistent_runner.study.sample import METRIC_FORM
from persistent_runner.study.toml import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistent_runner.inputs import InputFile
    from persistent_runner.study.deck import Deck
    from persistent_runner.study.new import NewStudy

CASE = "case"
_MOST_NAMES = 6
_FIELDS = (
    "{} holds fields, which no rule reads: let the deck print what is to be read (*NODE PRINT, *EL PRINT), "
    'or read it with a Python function = "post.py:NAME".'
)


def say(
    folder: Path,
    files: Sequence[InputFile],
    marked: Sequence[Deck],
    study: NewStudy,
    *,
    left: Sequence[str] = (),
    sample: str | None = None,
) -> None:
    """Say what was made in a folder; `left` are the names of old results that were left out."""
    case = folder / CASE
    size = sum(file.source.stat().st_size for file in files) / 1e6
    click.echo(f"{folder / FILE_NAME}: varies {', '.join(mark.name for mark in study.marks)}")
    click.echo(f"{case}: the deck's files ({len(files)}, {size:.1f} MB), as they are but for the parameters in")
    for deck in marked:
        click.echo(f"  {case / (deck.path + TEMPLATE_SUFFIX)}")
    if left:
        more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
        click.echo(f"  without old results: {', '.join(left[:_MOST_NAMES])}{more}")
    for mark in study.marks:
        places = ", ".join(number.place for number in mark.numbers)
        click.echo(f"  {mark.name}: {mark.numbers[0].text} at {places}; {mark.words}")
    if study.solver and study.solver.name:
        click.echo(f"It looks like {study.solver.name}; the command is: {'; '.join(study.solver.command)}")
        if study.solver.note:
            click.echo(f"  {study.solver.note}")
    for metric in study.metrics:
        shown = "not tried, for want of --sample" if metric.value is None else f"{metric.value:g} ({metric.note})"
        direction = study.objectives.get(metric.name)
        click.echo(f"  {metric.name}, {direction or 'read'}: {shown}")
    _say_what_is_next(folder, study, sample)


def _say_what_is_next(folder: Path, study: NewStudy, sample: str | None) -> None:
    left = [] if study.solver else ["[trial] command"]
    left += [] if study.metrics else ["[metrics]", "[objectives]"]
    if left:
        click.echo(f"Left to write in {folder / FILE_NAME}: {', '.join(left)}.")
    if not study.metrics:
        for metric in study.proposed:
            click.echo(f"  proposed there: {metric.name} = {metric.value:g} ({metric.extract.file}, {metric.note})")
        if sample is None:
            click.echo("  --sample DIR, a finished run, shows what can be read; or give it:")
            click.echo(f"  {METRIC_FORM}")
        elif not study.proposed:
            click.echo(f"  {nothing_in(sample)}")
    name = shlex.quote(click.format_filename(folder))
    tried = f" --sample {shlex.quote(click.format_filename(sample))}" if sample else ""
    begin = "When that is written, type:" if left else "Then type:"
    click.echo(f"\n{begin}  run-study {name} --check{tried}\n{'':{len(begin)}}  run-study {name}")


def nothing_in(sample: str) -> str:
    """Return what is to be said of a finished run that holds no number that a rule could read."""
    files = [path for path in Path(sample).rglob("*") if path.is_file()]
    fields = [path.name for path in files if path.suffix == ".frd"]
    why = _FIELDS.format(fields[0]) if fields else f"files looked at: {len(files)}. A rule may be written by hand."
    return f"--sample {sample}: no number was found that a rule could read; {why}"
