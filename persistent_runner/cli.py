"""`run-study` runs a study, `persistent-runner` has the other verbs. Nothing heavy is imported early."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persistent_runner.ending import INTERRUPTED, ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistent_runner.runner import StudyRun

SWITCH_SECONDS = 0.0005  # a sampler that computes has the interpreter for no longer when a link has something to do
_FOLDER = click.Path(path_type=str)
_SETTLED = {"COMPLETE", "FAIL", "PRUNED"}
_PARAM_HELP = "Vary this number: with 5:20 in whole numbers, where it is one itself, with 5.0:20.0 in real ones."
_METRIC_HELP = "KIND: column, regex or json; of several values the last, or as in column@max, regex@mean, regex@1."
STUDY_HELP = """Run the study of a folder or a study.toml on a leased cluster.

Without a profile the cluster is leased on the local platform: this machine, real SSH, no account. The same line again
goes on where it stopped. Ctrl-C once lets running trials finish, twice stops them; the cluster is released either way.

\b
Exit codes: 0 done and released; 1 the study failed; 2 usage, study.toml, template or setting; 3 the platform refused;
4 something may still run (it says what); 5 no capacity or a deadline; 6 host not proven; 130 interrupted, released.
"""


@click.command(help=STUDY_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", type=_FOLDER)
@click.option("--profile", metavar="NAME", help="A section of ~/.config/rescale/apiconfig, or env.")
@click.option("--n-trials", type=click.IntRange(min=1), metavar="N", help="Total of settled trials over all starts.")
@click.option("--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Most trials at a time.")
@click.option("--runs-dir", type=_FOLDER, metavar="DIR", help="Where results are kept (default: ./runs).")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a key of study.toml: cluster.cores=4.")
@click.option("--check", is_flag=True, help="Lease nothing: validate, render trial 0, show job, nodes and price.")
@click.option("--sample", type=_FOLDER, metavar="DIR", help="With --check: try the readers on a finished run's files.")
@click.option("--keep", metavar="DURATION", help="Leave the cluster to the next study for so long: 30m.")
@click.option("--force-stop", is_flag=True, help="End the cluster without waiting for its files to be saved.")
@click.option("--new", metavar="NAME", help="Begin a new study under this name.")
@click.option("--accept-changed", is_flag=True, help="Go on though deck, setup, command or readers have changed.")
@click.option("--retry-failed", is_flag=True, help="Run the designs of failed trials again; accepts changes.")
@click.option("--import", "known", type=_FOLDER, metavar="FILE.csv", help="Add designs whose results are known.")
@click.option("--reread", "read_again", is_flag=True, help="Read all results anew out of the kept files; runs nothing.")
@click.option("--no-pilot", is_flag=True, help="The deck is proven: do not let the first trial run alone.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before money is spent.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object (that of summary.json).")
@click.option("-q", "--quiet", is_flag=True, help="Show warnings only.")
@click.option("-v", "--verbose", is_flag=True, help="Show everything.")
@click.version_option(package_name="persistent_runner")
def run_study(study: str, check: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Run the study of a folder or a file."""
    if (new := options.pop("new")) is not None:
        if options["read_again"]:
            raise click.UsageError("--reread reads what a study has; one that begins anew with --new has nothing.")
        options["sets"] = (*options["sets"], f"study.name={json.dumps(new)}")
    with ending(verbose=verbose), _shown(quiet=quiet, verbose=verbose) as console:
        if check:
            sys.exit(_check(study, as_json=as_json, **options))
        elif options.pop("sample") is not None:
            raise click.UsageError("--sample goes with --check.")
        else:
            sys.exit(_run(study, console, as_json=as_json, quiet=quiet, **options))


def _run(study: str, console: Any, *, as_json: bool, quiet: bool, yes: bool, **options: Any) -> int:
    from persistent_runner import runner
    from persistent_runner.live import LiveTable

    # Each frame takes several turns of threads that wait for the interpreter. With Python's own 5 ms for each a trial
    # comes back twice as late beside a busy sampler. The process is ours, so nobody else's choice is changed.
    sys.setswitchinterval(SWITCH_SECONDS)
    if not quiet:
        options["display"] = lambda name, lease: LiveTable(console, name, lease)
    run = runner.run_study(study, confirm=_confirmation(yes=yes), **options)
    try:
        if as_json:
            click.echo(json.dumps(run.summary, indent=1))
        else:
            _print_result(run, full=not quiet)
        sys.stdout.flush()
    except (OSError, SystemExit):  # rich ends the program when the reader of a pipe has gone; the study is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return run.exit_code


def _check(study: str, *, as_json: bool, **options: Any) -> int:
    from persistent_runner.check import check_study, text_of

    of_a_lease = {"force_stop", "keep", "yes", "accept_changed", "retry_failed", "read_again", "no_pilot", "known"}
    found = check_study(study, **{name: value for name, value in options.items() if name not in of_a_lease})
    click.echo(json.dumps(found, indent=1) if as_json else text_of(found))
    accepted = options["accept_changed"] or options["retry_failed"] or options["read_again"]
    unread = any(reading["value"] is None for reading in found["readings"])
    return 2 if unread or (found["changed"] and not accepted) else 0


def _confirmation(*, yes: bool) -> Callable[[str, bool], None]:
    """Return what is done with the line before money: said, and asked where a person can answer and pays for it."""

    def confirm(line: str, costs_money: bool) -> None:
        from persistent_runner.errors import ConfigError

        logging.getLogger("persistent_runner").info(line)
        if costs_money and not yes and sys.stdin.isatty() and not click.confirm("Lease it?", err=True):
            raise ConfigError("not leased, as you answered", remedy="Nothing was spent.")

    return confirm


def _print_result(run: StudyRun, *, full: bool) -> None:
    from rich.console import Console

    from persistent_runner.live import best_line, result_table

    console = Console(highlight=False, markup=False)
    if full and run.table is not None and len(run.table):
        console.print(result_table(run.table, console, run.headings), soft_wrap=not console.is_terminal)
    console.print(f"Results: {run.folder}", soft_wrap=True)
    if run.exit_code == INTERRUPTED:
        settled = sum(count for state, count in run.summary["trials"].items() if state in _SETTLED)
        if settled < run.summary["n_trials"]:
            console.print(
                f"Interrupted with {settled} of {run.summary['n_trials']} trials done; the same line goes on."
            )
        if not run.summary["best"]:
            return
    console.print(best_line(run.summary), soft_wrap=not console.is_terminal)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="persistent_runner")
def main() -> None:
    """Everything beside running a study (that is `run-study`)."""


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the API (default: a free one).")
@click.option(
    "--authorized-keys", type=_FOLDER, metavar="FILE", help="Public keys that may log in; read at each login."
)
@click.option("--profile", metavar="NAME", help="Write the platform's address and key into apiconfig under this name.")
@click.option(
    "--durations",
    type=click.Choice(["fast", "recorded"]),
    default="fast",
    show_default=True,
    help="How long each status lasts: fast, or as recorded on the real platform (about nine minutes).",
)
@click.option("--duration", "changes", multiple=True, metavar="STATUS=SECONDS", help="How long one of them lasts.")
@click.option("--journal", type=_FOLDER, metavar="FILE", help="Append every event of every job to this file.")
@click.option("--fault", "faults", multiple=True, metavar="JSON", help='What goes wrong: {"what": "lost", ...}.')
@click.option("--list-faults", is_flag=True, help="Print all that can go wrong on command, and end.")
def platform(changes: tuple[str, ...], faults: tuple[str, ...], list_faults: bool, **options: Any) -> None:
    """Serve the local platform until interrupted: Rescale's API and real SSH on this machine's loopback.

    Prints one JSON line with base_url, api_key and authorized_keys when it is ready. It is not the real platform.
    The line's control_url takes the same faults while it runs, by POST with its control_token as bearer token:

    \b
      {"what": "status", "endpoints": ["submit_job"], "status": 503, "times": 2}
      {"what": "preempt", "relaunch": 5, "after": 10, "job": "persistent_runner-wing-*"}
    """  # noqa: D301 - click wants the backspace itself: it keeps a block as it is
    if list_faults:
        from persistent_runner.local_platform.fault_kinds import described

        click.echo(described())
        return
    with ending(verbose=False):
        from persistent_runner.site import serve_local_platform

        serve_local_platform(
            changes=dict(map(_seconds_of, changes)), faults=[_object_of(fault) for fault in faults], **options
        )


def _seconds_of(change: str) -> tuple[str, float]:
    name, _, seconds = change.partition("=")
    try:
        return name.strip(), float(seconds)
    except ValueError:
        raise click.BadParameter(f"{change!r} is not STATUS=SECONDS", param_hint="--duration") from None


def _object_of(fault: str) -> object:
    try:
        return json.loads(fault)
    except ValueError:
        raise click.BadParameter(f"{fault!r} is not JSON", param_hint="--fault") from None


@main.command()
@click.option("--profile", metavar="NAME", help="Also list what this account has on the platform.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def leases(profile: str | None, as_json: bool) -> None:
    """List every unfinished job of ours: id, study, state, age, cost, when it ends by itself, whose it is."""
    with ending(verbose=False):
        from persistent_runner.inventory import COLUMNS, Inventory, table_row

        with Inventory(profile) as inventory:
            rows = [table_row(holding) for holding in inventory.holdings()]
        if as_json:
            click.echo(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=1))
        elif rows:
            _print_blocks(rows, COLUMNS)
        else:
            click.echo("Nothing of ours is unfinished.")


def _print_blocks(rows: list[list[str]], columns: tuple[str, ...]) -> None:
    """Print a block for each row, a line for each cell: some cells are whole sentences."""
    width = max(map(len, columns)) + 2
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                click.echo(f"{column:<{width}}{cell}")
        click.echo()


@main.command()
@click.argument("trial")
@click.option("-f", "--follow", is_flag=True, help="Go on until the trial has ended.")
@click.option("--study", type=_FOLDER, metavar="NAME", help="A study's name or folder (default: the newest one).")
@click.option("--runs-dir", type=_FOLDER, metavar="DIR", help="Where results are kept (default: ./runs).")
@click.option("-n", "--lines", type=click.IntRange(min=1), metavar="LINES", help="Begin with the last lines only.")
def logs(trial: str, study: str | None, runs_dir: str | None, **options: Any) -> None:
    """Print the log of a trial's last attempt, while it runs (about a second late) or afterwards."""
    with ending(verbose=False):
        from persistent_runner.logs import Run, find_run, show_log, trial_number
        from persistent_runner.settings import load_settings

        def say(text: str) -> None:
            click.echo(text, err=True)

        number = trial_number(trial)
        settings = load_settings(runs_dir=Path(runs_dir) if runs_dir else None)
        run = Run(find_run(settings, Path(study) if study else None, say))
        try:
            show_log(run, number, write=lambda text: click.echo(text, nl=False), say=say, **options)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@main.command()
@click.argument("job", required=False, metavar="[ID]")
@click.option("--all", "everything", is_flag=True, help="Every unfinished job in this machine's ledger.")
@click.option("--profile", metavar="NAME", help="Look for the job on this account, if the ledger does not have it.")
@click.option("--force-stop", is_flag=True, help="End it without waiting for its files to be saved.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def stop(job: str | None, everything: bool, profile: str | None, force_stop: bool, yes: bool) -> None:
    """End a job of ours and wait until the platform says Stopped; exit code 4 where it does not."""
    if (job is None) == (not everything):
        raise click.UsageError("Name one job, or write --all.")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("Nobody can be asked here: --yes ends it without asking.")
    with ending(verbose=False), _shown(quiet=False, verbose=False):
        from persistent_runner.inventory import Inventory, stop_all

        with Inventory(profile) as inventory:
            found = inventory.recorded() if job is None else [inventory.find(job)]
            if not found:
                click.echo("Nothing of ours is unfinished.")
                return
            for holding in found:
                click.echo(f"{holding.job_id or holding.name}: {holding.study}, {holding.state}, {holding.whose}")
            question = "End it?" if len(found) == 1 else f"End these {len(found)}?"
            if not yes and not click.confirm(question, err=True):
                click.echo("Nothing was ended.", err=True)
                return
            for holding, state in stop_all(inventory, found, force=force_stop):
                click.echo(f"{holding.job_id or holding.name}: {state}")


@main.command()
@click.option("--profile", default="default", show_default=True, metavar="NAME", help="The section of apiconfig.")
@click.option("--region", metavar="NAME", help="us, eu, jp, kr, itar or gov; asked for where it is not given.")
@click.option("--base-url", metavar="URL", help="Another platform's address, instead of a region.")
@click.option("--ssh-key", type=_FOLDER, metavar="FILE", help="A private SSH key of yours (default: look in ~/.ssh).")
@click.option("--replace", is_flag=True, help="Replace a profile of this name without asking.")
def login(profile: str, **options: Any) -> None:
    """Enter an account: try its API key, write the profile, and show the SSH key to paste into the portal.

    The API key is asked for, or read from stdin where that is no terminal; it is never an argument.
    """
    with ending(verbose=False):
        from persistent_runner.login import log_in

        log_in(profile, **options)


@main.command()
@click.argument("study", type=_FOLDER, required=False)
@click.option("--profile", metavar="NAME", help="A section of ~/.config/rescale/apiconfig, or env.")
@click.option("--connect", is_flag=True, help="Then lease the cheapest cluster, connect, release it, say the cost.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before money is spent.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(study: str | None, profile: str | None, connect: bool, yes: bool, as_json: bool) -> None:
    """Look at all that a start needs, before any money: account, keys, study, cluster, and who may log in.

    A job is saved, read back and deleted again, and never started. Each fault is named with its remedy. The exit code
    is that of the first fault; 0 where there is none.
    """
    with ending(verbose=False):
        from persistent_runner.doctor import Doctor

        with Doctor(profile, show=None if as_json else click.echo) as found:
            found.examine(study)
            if connect:
                with _shown(quiet=False, verbose=False):
                    found.connect(_confirmation(yes=yes))
        if as_json:
            click.echo(json.dumps(found.findings.report(), indent=1))
        sys.exit(found.findings.exit_code)


@main.command()
@click.argument("decks", nargs=-1, required=True, metavar="DECK...", type=_FOLDER)
@click.option("--into", type=_FOLDER, metavar="NAME", help="The new folder (default: the deck's name).")
@click.option("--param", "params", multiple=True, metavar="NAME=[FILE:]LINE:COLUMN:LOW:HIGH", help=_PARAM_HELP)
@click.option("--command", multiple=True, metavar="TEXT", help="What runs a trial; several make several lines.")
@click.option("--sample", type=_FOLDER, metavar="DIR", help="A finished run's files, to find what can be read.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=FILE:KIND:RULE", help=_METRIC_HELP)
def init(decks: tuple[str, ...], **options: Any) -> None:
    """Make a study's folder from a deck that runs already: files, or the folder of a case.

    The files are copied; of the numbers in them those that you choose become parameters, and the deck as it came is
    the first trial. Without --param the numbers are shown and asked for. A number in several places takes one --param
    for each, of the same name and range. The first --metric is minimised; study.toml says it in one word.
    """
    with ending(verbose=False):
        from persistent_runner.init import init_study

        init_study(decks, **options)


@main.command()
@click.option("--markdown", is_flag=True, help="Print the reference page of every key instead.")
def schema(markdown: bool) -> None:
    """Print the JSON Schema of study.toml, by which an editor completes its keys and underlines mistakes.

    Written to study.schema.json beside a study, a first line of study.toml names it: #:schema ./study.schema.json
    """
    from persistent_runner.study.reference import reference_page
    from persistent_runner.study.schema import study_schema

    click.echo(reference_page() if markdown else json.dumps(study_schema(), indent=1) + "\n", nl=False)


@contextlib.contextmanager
def _shown(*, quiet: bool, verbose: bool) -> Iterator[Any]:
    from rich.console import Console

    from persistent_runner.live import logging_to

    console = Console(stderr=True, highlight=False, markup=False)
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    with logging_to(console, level=level):
        yield console
