"""`run-study --check`: all that can be known of a start before a cluster is leased."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError, ResultMissing
from persistent_runner.inputs import LINK_MODE, walk_inputs
from persistent_runner.lease.guard import Budget
from persistent_runner.lease.meter import Cost
from persistent_runner.plan import (
    check_budget,
    complete,
    first_parameters,
    load_study,
    quote_of,
    rehearse,
    rendered,
    request_of,
    run_path,
    spec_guard,
)
from persistent_runner.settings import load_settings
from persistent_runner.site import choose_platform, line_before_money
from persistent_runner.spread import machines_of, trials_at_a_time
from persistent_runner.study.content import refused
from persistent_runner.study.readers import Readings
from persistent_runner.study.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistent_runner.study.spec import StudySpec


def check_study(
    path: str | Path,
    *,
    profile: str | None = None,
    n_trials: int | None = None,
    max_concurrent: int | None = None,
    runs_dir: str | Path | None = None,
    sets: Sequence[str] = (),
    sample: str | Path | None = None,
) -> dict[str, Any]:
    """Rehearse a start without leasing anything: validate all, render trial 0 into a folder, ask for job and price.

    `sample` is a folder with the files of a finished run, which the readers are tried on in place of the solver's.
    Returns what `run-study --check` shows. Raises what a start would raise before money is spent.
    """
    settings = load_settings(profile=profile, runs_dir=Path(runs_dir) if runs_dir else None)
    spec = load_study(path, sets, n_trials, max_concurrent)
    parameters = first_parameters(spec)
    files = _render(spec, parameters, run_path(settings, spec.study.name) / "check")
    rehearse(spec)
    readings = _read(spec, parameters, Path(sample)) if sample is not None else []
    changed = refused(spec, RunFolder(run_path(settings, spec.study.name), spec.study.name))
    site = choose_platform(settings)
    try:
        request = complete(request_of(spec), site)
        quote = quote_of(spec, request, site.platform)
        guard = spec_guard(spec, settings)
        budget = Budget(spec.study.max_cost, spec.study.max_time)
        check_budget(spec, quote, guard, budget)
        limit = budget.limit(quote.price_per_hour, Cost(), request.walltime, guard)
    finally:
        site.close()
    cores = spec.trial.cores or spec.cluster.cores
    return {
        "study": spec.study.name,
        "n_trials": spec.study.n_trials,
        "parameters": parameters,
        "rendered": files,
        "readings": readings,
        "changed": changed,
        "command": spec.command_text or spec.trial.objective,
        "job": request.model_dump(mode="json", exclude={"name", "command", "public_key", "env"})
        | {"env": sorted(request.env)},
        "nodes": quote.nodes,
        "cores_per_node": quote.cores_per_node,
        "nodes_of_a_trial": machines_of(cores, quote.cores_per_node),
        "trials_at_a_time": trials_at_a_time(quote.nodes, quote.cores_per_node, cores, spec.trial.max_concurrent),
        "price_per_hour": quote.price_per_hour,
        "notes": list(quote.notes),
        "lease": line_before_money(request, quote, site, guard, limit),
    }


def text_of(found: dict[str, Any]) -> str:
    """Return for people what `check_study` found."""
    job, together, whole = found["job"], found["trials_at_a_time"], found["nodes_of_a_trial"]
    on_whole = f", each on {whole} whole nodes" if whole > 1 else ""
    tiles = ", ".join(f"{tile['analysis']} {tile['version']}" for tile in job["software"])
    wrong = sum(reading["value"] is None for reading in found["readings"])
    blocks = {
        "study": [f"{found['study']}: {found['n_trials']} trials"],
        "trial 0": [", ".join(f"{name} = {value}" for name, value in found["parameters"].items())],
        "command": str(found["command"]).splitlines(),
        "rendered": found["rendered"],
        "readings": [_reading_text(reading) for reading in found["readings"]],
        "job": [f"{tiles}; env {', '.join(job['env']) or 'none'}"],
        "nodes": [f"{found['nodes']}, of {found['cores_per_node']} cores; {together} trials at a time{on_whole}"],
        "lease": [found["lease"], *found["notes"]],
    }
    if found["changed"]:
        told = "a start goes on only with --new NAME or, where the change allows it, --accept-changed, --reread"
        blocks["changed"] = [*found["changed"], told]
    lines = [f"{name if n == 0 else '':<12}{line}" for name, block in blocks.items() for n, line in enumerate(block)]
    return "\n".join(
        [*lines, f"{wrong} of the metrics cannot be read. Nothing was leased." if wrong else "Nothing was leased."]
    )


def _reading_text(reading: dict[str, Any]) -> str:
    if reading["value"] is None:
        return str(reading["note"])
    return f"{reading['metric']} = {reading['value']:.10g}  ({reading['note']})"


def _read(spec: StudySpec, parameters: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return what each metric finds in the files of a finished run: its value and where it stood, or what is wrong."""
    if not folder.is_dir():
        raise ConfigError(f"--sample: there is no folder {folder}", remedy="Name the folder of a finished run.")
    if not spec.metrics:
        raise ConfigError("--sample: the study has no [metrics]; its objective reads its results itself")
    found = Readings(folder, spec.metrics, functions=spec.functions, parameters=parameters)
    readings: list[dict[str, Any]] = []
    for name in spec.metrics:
        try:
            reading = found.reading(name)
        except ResultMissing as error:
            readings.append({"metric": name, "value": None, "note": error.message})
            continue
        note = reading.note
        bounds = spec.constraints.get(name)
        if bounds is not None:
            missed = bounds.violation(reading.value)
            note += "; the constraint is met" if missed <= 0 else f"; the constraint is missed by {missed:.6g}"
        readings.append({"metric": name, "value": reading.value, "note": note})
    return readings


def _render(spec: StudySpec, parameters: dict[str, Any], folder: Path) -> list[str]:
    """Write the working directory that a trial with these parameters would get; return its files."""
    files = rendered(spec, parameters)
    files.append(("parameters.json", json.dumps(parameters, indent=1).encode() + b"\n", 0o644))
    big = [file for file in walk_inputs(spec.folder, spec.trial.inputs) if file.shared]
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier check
    try:
        for name, data, mode in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode == LINK_MODE:
                target.symlink_to(data.decode())
                continue
            target.write_bytes(data)
            if sys.platform != "win32":
                target.chmod(mode)
        for file in big:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.source, folder / file.path)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}", remedy="Choose --runs-dir DIR.") from None
    return [str(folder / name) for name in [*(name for name, _, _ in files), *(file.path for file in big)]]
