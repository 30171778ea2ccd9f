"""`persistent-runner init`: a study's folder from a deck that runs already."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from persistent_runner.errors import ConfigError
from persistent_runner.init_report import CASE, say
from persistent_runner.inputs import TEMPLATE_SUFFIX, read_input, walk_inputs
from persistent_runner.interview import ask_for_command, ask_for_marks, ask_for_metrics
from persistent_runner.study.deck import PARAM_FORM, Deck, free_delimiters, joined, read_mark, with_includes
from persistent_runner.study.leftovers import leftovers
from persistent_runner.study.new import NewStudy
from persistent_runner.study.sample import proposals, read_metric
from persistent_runner.study.solver import Solver, solver_of
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.toml import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from persistent_runner.inputs import InputFile
    from persistent_runner.study.fields import Direction
    from persistent_runner.study.sample import Metric

_LARGEST_TEXT_BYTES = 2**26


def init_study(
    decks: Sequence[str],
    *,
    into: str | None = None,
    params: Sequence[str] = (),
    command: Sequence[str] = (),
    sample: str | None = None,
    metrics: Sequence[str] = (),
) -> Path:
    """Copy a deck (files, or a case's folder) into a new study, its chosen numbers marked; return the study's folder.

    What is not given is asked for on a terminal. Says what it made and what comes next. Raises ConfigError for what
    cannot be done; then there is no new folder.
    """
    folder = _new_folder(decks, into)
    results = _sample_folder(sample)
    files, left = _without_leftovers(decks, _files(decks))
    texts = _texts(files)
    asks = sys.stdin.isatty()
    if not params and not asks:
        raise ConfigError(
            "no parameter is marked, and there is no terminal to ask for them", remedy=f"Write {PARAM_FORM}."
        )
    given = [read_metric(each, results) for each in metrics]
    _check_names(given)
    marks = joined([read_mark(texts, each) for each in params]) or ask_for_marks(texts)
    solver = solver_of(texts)
    if command:
        solver = replace(solver or Solver(""), command=list(command), note="", logs=None)
    elif solver is None and asks:
        solver = ask_for_command()
    marked = [text for text in texts.values() if any(n.deck is text for mark in marks for n in mark.numbers)]
    inputs = {text.path for text in marked} | (_unchanged(files, results) if results else set())
    proposed = proposals(results, inputs, solver.logs if solver else None) if results and not given else []
    objectives: dict[str, Direction] = {given[0].name: "minimize"} if given else {}
    if proposed and asks:
        given, objectives = ask_for_metrics(proposed)
    study = NewStudy(
        source=", ".join(Path(deck).resolve().name for deck in decks),
        marks=marks,
        solver=solver,
        metrics=given,
        objectives=objectives,
        proposed=proposed,
        delimiters=free_delimiters(marked),
    )
    answered = asks and (not params or not command or bool(proposed))
    wrong = _write(folder, files, marked, study, answered=answered)
    say(folder, files, marked, study, left=left, sample=sample)
    for warning in [*wrong, *_doubts(files, study), *_missing(decks, texts, files), *_compressed(texts)]:
        click.echo(f"Warning: {warning}", err=True)
    return folder


def _new_folder(decks: Sequence[str], into: str | None) -> Path:
    folder = Path(into) if into is not None else Path(Path(decks[0]).resolve().stem)
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is there already", remedy=f"Choose another name with --into {folder.name}-study.")
    return folder


def _sample_folder(sample: str | None) -> Path | None:
    if sample is None:
        return None
    folder = Path(sample)
    if not folder.is_dir():
        raise ConfigError(f"--sample {sample}: there is no such folder", remedy="Name the folder of a finished run.")
    return folder


def _files(decks: Sequence[str]) -> list[InputFile]:
    files = walk_inputs(Path(), decks)
    if not files:
        raise ConfigError(f"there is no file in {', '.join(decks)}")
    for file in files:
        if file.template:
            raise ConfigError(
                f"{file.source} is a template already, by its name",
                remedy=f"Give the deck as it runs: rename it without {TEMPLATE_SUFFIX}, with numbers in it.",
            )
    return files


def _without_leftovers(decks: Sequence[str], files: list[InputFile]) -> tuple[list[InputFile], list[str]]:
    """Return the files without an earlier run's results, and what was left out; what is named itself stays."""
    named = {Path(deck).resolve() for deck in decks}
    sources = {file.path: file.source for file in files if file.source.resolve() not in named}
    left = leftovers(sources.keys(), lambda path: read_input(sources[path]).decode("latin-1"))
    kept = [file for file in files if file.path not in left]
    tops = {file.path.split("/")[0] for file in kept}
    names = (path if (top := path.split("/")[0]) in tops else top for path in sorted(left))
    return kept, list(dict.fromkeys(names))


def _texts(files: Sequence[InputFile]) -> dict[str, Deck]:
    """Return the files that are text, by where they land; links and those above 64 MiB are not looked into."""
    found = {}
    for file in files:
        try:
            if file.link or file.source.stat().st_size > _LARGEST_TEXT_BYTES:
                continue
            text = Deck.of(file.path, file.source.read_bytes())
        except OSError as error:
            raise ConfigError(f"{file.source} cannot be read: {error.strerror}") from None
        if text is not None:
            found[file.path] = text
    if found and all(text.is_compressed for text in found.values()):
        raise ConfigError(f"{', '.join(found)} is compressed, so its numbers cannot be seen", remedy="gunzip it first.")
    return with_includes(found)


def _compressed(texts: Mapping[str, Deck]) -> Iterator[str]:
    found = [path for path, text in texts.items() if text.is_compressed]
    if found:
        yield f"compressed, so no number in it can be varied: {', '.join(found)}; gunzip first what you want to vary."


def _check_names(metrics: Sequence[Metric]) -> None:
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--metric {name}= is given twice", remedy="Give each number a name of its own.")


def _unchanged(files: Sequence[InputFile], sample: Path) -> set[str]:
    """Return the files of the sample that are the deck's own; none where the deck was run in its own folder."""
    if any((sample / file.path).resolve() == file.source.resolve() for file in files):
        return set()
    return {
        file.path
        for file in files
        if (twin := sample / file.path).is_file() and twin.read_bytes() == file.source.read_bytes()
    }


def _write(
    folder: Path, files: Sequence[InputFile], marked: Sequence[Deck], study: NewStudy, *, answered: bool
) -> list[str]:
    """Write the whole study, or nothing; return what is wrong with it where a person has `answered` questions for it.

    Options are given again with one line; what somebody has typed is not thrown away.
    """
    bytes_of = {deck.path: deck.template(study.marks, study.delimiters) for deck in marked}
    templates = {file.source.resolve(): bytes_of[file.path] for file in files if file.path in bytes_of}
    try:
        folder.mkdir(parents=True)
        try:
            for file in files:
                _copy(file, folder / CASE, templates)
            (folder / FILE_NAME).write_text(study.toml(), encoding="utf-8", newline="\n")
            if study.metrics and study.solver:
                _load(folder)
        except ConfigError as error:
            if answered:
                return [error.message]
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    return []


def _load(folder: Path) -> None:
    """Raise ConfigError where the study that was written is none: an option said what study.toml cannot."""
    try:
        StudySpec.load(folder)
    except ConfigError as error:
        raise ConfigError(error.message, remedy="Nothing was made.") from None


def _copy(file: InputFile, case: Path, templates: Mapping[Path, bytes]) -> None:
    """Copy a file, or write its template; a link stays one unless a template stands where it leads."""
    text = templates.get(file.source.resolve())
    target = case / (file.path if text is None else file.path + TEMPLATE_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        target.write_bytes(text)
    elif file.link:
        target.symlink_to(file.link)
        return
    else:
        shutil.copyfile(file.source, target)
    shutil.copymode(file.source, target)


def _doubts(files: Sequence[InputFile], study: NewStudy) -> Iterator[str]:
    """Yield what may not be as its owner thinks."""
    for mark in study.marks:
        text = mark.numbers[0].text
        if not mark.is_inside:
            yield (
                f"{mark.name} is {text} in the deck, outside {mark.low:g} to {mark.high:g}, so the deck as it came is "
                "no first trial."
            )
    read = dict.fromkeys(metric.extract.file for metric in study.metrics or study.proposed)
    there = [file.path for file in files if file.path in read]
    if there:
        yield (
            f"an old result was copied with the deck: {', '.join(there)}. Remove it from {CASE}, or a trial that "
            "writes none gives its number."
        )


def _missing(decks: Sequence[str], texts: Mapping[str, Deck], files: Sequence[InputFile]) -> Iterator[str]:
    """Yield the files beside a deck that it names, such as an include, and that were not given."""
    given = {file.source.resolve() for file in files}
    for deck in map(Path, decks):
        text = texts.get(deck.name)
        if text is None or not deck.is_file():
            continue
        beside = [path for path in deck.resolve().parent.iterdir() if path.is_file() and path.resolve() not in given]
        named = sorted(path.name for path in beside if "." in path.name and path.name in text.text)
        if named:
            yield (
                f"{deck.name} names what lies beside it and was not copied: {', '.join(named)}. "
                f"Put it into {CASE} if a trial needs it."
            )
