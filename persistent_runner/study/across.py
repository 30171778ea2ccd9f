"""What is wrong between the tables of a study.toml, and with the files that it names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.scripts import script_mistakes, syntax_error
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.extract import formula_mistakes
from persistent_runner.study.formula import Formula
from persistent_runner.study.samplers import grid, make_sampler, refusal
from persistent_runner.study.space import Varied
from persistent_runner.templates import overlooked, template_mistakes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.inputs import InputFile
    from persistent_runner.study.tables import SetupTable, TrialTable


class Flaw(NamedTuple):
    """What is wrong, the keys of study.toml that it is about (none: it names its place itself), and the file to mend.

    Without a file that is study.toml.
    """

    keys: Sequence[str | int]
    what: str
    file: Path | None = None


def mistakes_across(folder: Path, parts: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield each mistake that lies between tables; those that are wrong by themselves are left out.

    `parts` are the tables that are right by themselves, `tables` all of them as they are written.
    """
    if "trial" in parts:
        yield from _numbers(parts["trial"], parts, tables)
        require = parts["study"].require if "study" in parts else ()
        metrics = [Formula(extract.expr) for extract in parts.get("metrics", {}).values() if extract.expr]
        formulas = {name for formula in metrics for name in formula.names}
        yield from _trial_files(folder, parts["trial"], parts.get("space"), require, formulas)
        cores, most = parts["trial"].cores, parts["cluster"].cores if "cluster" in parts else None
        if cores and most and cores > most:
            yield Flaw(["trial", "cores"], f"{cores} is more than the {most} of the whole cluster; lower it")
        if parts["trial"].keep_outputs not in {"all", "best", "failed"} and len(parts.get("objectives", ())) > 1:
            yield Flaw(["trial", "keep_outputs"], 'a number goes with one objective; "best" keeps those of the front')
    if parts.get("objectives") == {}:
        yield Flaw(["objectives"], 'is empty; write what is to be optimised, such as drag = "minimize"')
    if "space" in parts and "study" in parts:
        yield from _designs(folder, parts)
    if "setup" in parts:
        yield from _setup_files(folder, parts["setup"])


def warnings_across(folder: Path, trial: TrialTable, space: Mapping[str, object]) -> Iterator[str]:
    """Yield where the inputs hold parameters that nothing fills in."""
    for what, _ in overlooked(walk_inputs(folder, trial.inputs), list(space), trial.template.delimiters):
        yield what


def _numbers(trial: TrialTable, parts: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield what is wrong between what is varied, what is read and what is optimised."""
    metrics = tables.get("metrics", {})
    if trial.objective:
        if metrics:
            yield Flaw(["metrics"], f"the objective {trial.objective} returns its values itself; remove the table")
        if "study" in parts and parts["study"].reuse:
            yield Flaw(["study", "reuse"], f"goes with a command; what {trial.objective} does nobody can compare")
        return
    if not metrics:
        yield Flaw(["metrics"], "is missing; say how a number is read, in a table such as [metrics.drag]")
    elif isinstance(metrics, dict):
        for table in ("objectives", "constraints"):
            for name in parts.get(table, {}):
                if name not in metrics:
                    yield Flaw([table, name], f"there is no [metrics.{name}]; {did_you_mean(name, metrics)}")
        if isinstance(space := tables.get("space", {}), dict):
            yield from (Flaw(*flaw) for flaw in formula_mistakes(parts.get("metrics", {}), list(space)))
    if "space" in parts and not any(isinstance(item, Varied) for item in parts["space"].values()):
        yield Flaw(["space"], 'there is nothing to vary; write x = { type = "float", low = 0.0, high = 1.0 }')


def _designs(folder: Path, parts: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield what is wrong between what is varied, what is allowed, what is tried first, and the sampler."""
    study, designs = parts["study"], DesignSpace(parts["space"], parts["study"].require)
    mistakes = [Flaw(*flaw) for flaw in designs.mistakes(metrics=parts.get("metrics", ()))]
    yield from mistakes
    first: list[tuple[list[str | int], Mapping[str, Any]]] = [(["baseline"], parts.get("baseline", {}))]
    first += [(["start", n], design) for n, design in enumerate(parts.get("start", ()))]
    wrong = [
        Flaw([*keys, *filter(None, [name])], what)
        for keys, design in first
        for name, what in designs.check_design(design)
    ]
    yield from wrong
    if mistakes or wrong or not designs.varied:
        return
    if study.n_trials > sum(bool(design) for _, design in first) and (why := designs.why_impossible()):
        yield Flaw(["study", "require"], why)
    yield from _sampler(folder, parts, designs)


def _sampler(folder: Path, parts: Mapping[str, Any], designs: DesignSpace) -> Iterator[Flaw]:
    """Yield why the sampler cannot serve this study."""
    study = parts["study"]
    constraints, objectives = bool(parts.get("constraints")), len(parts.get("objectives", {}))
    if why := refusal(study.sampler, objectives, conditional=designs.is_conditional, constraints=constraints):
        yield Flaw(["study", "sampler"], why)
        return
    if study.sampler in ({"name": "tpe"}, {"name": "random"}):
        return  # as they come; Optuna need not be loaded
    if study.sampler["name"] == "grid":
        try:
            count = math.prod(map(len, grid(designs.distributions).values()))
        except ValueError as error:
            yield Flaw(["space"], str(error))
            return
        if study.n_trials > count:
            yield Flaw(["study", "n_trials"], f"is {study.n_trials}, and the grid has {count} designs; lower it")
    try:
        make_sampler(study.sampler, study.seed, folder, designs.distributions)
    except ValueError as error:
        yield Flaw(["study", "sampler"], str(error))


def _trial_files(
    folder: Path,
    trial: TrialTable,
    space: Mapping[str, object] | None,
    require: Sequence[str],
    formulas: set[str],
) -> Iterator[Flaw]:
    """Yield what is wrong with the inputs and the command, and with the templates where the space is known."""
    yield from _syntax("trial", trial.command or "")
    files = yield from _walked(folder, "trial", trial.inputs)
    if files is None:
        return
    try:
        yield from (Flaw(["trial", "command"], *flaw) for flaw in script_mistakes(files, trial.command or ""))
        if space is not None:
            designs = DesignSpace(space, require)
            used = {*designs.used, *formulas}
            for error in template_mistakes(
                files, designs.always, trial.template.delimiters, elsewhere=used, sometimes=designs.sometimes
            ):
                yield Flaw([] if error.file else ["trial", "inputs"], error.message, error.file)
    except ConfigError as error:
        yield Flaw(["trial", "inputs"], error.message, error.file)


def _setup_files(folder: Path, setup: SetupTable) -> Iterator[Flaw]:
    """Yield what is wrong with what is put on a new lease and run there."""
    yield from _syntax("setup", setup.command)
    files = yield from _walked(folder, "setup", setup.inputs)
    if files is None:
        return
    for file in files:
        if file.template:
            what = f"{file.source.name} is a template; the setup has no parameters: drop .j2"
            yield Flaw(["setup", "inputs"], what, file.source)
    try:
        yield from (Flaw(["setup", "command"], *flaw) for flaw in script_mistakes(files, setup.command))
    except ConfigError as error:
        yield Flaw(["setup", "inputs"], error.message, error.file)


def _walked(folder: Path, table: str, inputs: Sequence[str]) -> Generator[Flaw, None, list[InputFile] | None]:
    """Yield what is wrong with the inputs of a table; return their files, None where something is."""
    try:
        return walk_inputs(folder, inputs)
    except ConfigError as error:
        yield Flaw([table, "inputs"], error.message, error.file)
    return None


def _syntax(table: str, command: str) -> Iterator[Flaw]:
    if what := syntax_error(command):
        yield Flaw([table, "command"], what)
