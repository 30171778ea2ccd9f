"""What a user relies on when a study.toml runs as an objective, and when it names a Python function."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from persistent_runner.errors import CommandFailed, ConfigError, ParametersInvalid, ResultMissing
from persistent_runner.inputs import walk_inputs
from persistent_runner.remote.frames import OutputFile
from persistent_runner.render import render_inputs
from persistent_runner.study.objective import CommandObjective, load_python_objective
from persistent_runner.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path

HEAD = """
[study]
n_trials = 3
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
[space]
width = { type = "float", low = 1, high = 2 }
alloy = { type = "categorical", choices = ["'; rm -rf ~ #", "$(id)"] }
length = 3
"""
COMMAND = """
[trial]
inputs = ["case/"]
command = ["factor=2", "python3 solver.py $factor", "echo done > run.log"]
timeout = "1m"
stall = "30s"
outputs = ["*.log"]
[metrics.lift]
file = "out.json"
json = "lift"
[metrics.area]
file = "out.csv"
column = "area"
[metrics.mass]
file = "out.json"
json = "mass"
[objectives]
mass = "minimize"
area = "maximize"
"""
SOLVER = """\
import json, sys
width, length = (float(word) for word in open("deck.txt").readline().split())
factor = float(sys.argv[1])
json.dump({"lift": factor, "mass": width * factor}, open("out.json", "w"))
open("out.csv", "w").write(f"step,area\\n1,0\\n2,{width * length}\\n")
"""


@dataclass
class OwnMachine:
    """A working directory on this machine: what a WorkDir does on a node, without a node."""

    study: Path
    place: Path
    folder: Path
    ran: list[tuple[str, Any, Sequence[str]]] = field(default_factory=list)

    def push(self, /, *inputs: str, **parameters: Any) -> None:
        (self.place / "parameters.json").write_text(json.dumps(parameters))
        for path, data, mode in render_inputs(walk_inputs(self.study, inputs), parameters):
            target = self.place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode)

    def run(
        self,
        command: str,
        *,
        timeout: timedelta | str | None = None,
        stall: timedelta | str | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        self.ran.append((command, timeout, stall, outputs))
        done = subprocess.run(["bash", "-c", f"set -eo pipefail\n{command}"], cwd=self.place, check=False)
        if done.returncode:
            raise CommandFailed("the command failed", exit_code_of_command=done.returncode)

    def pull(self, name: str) -> Path:
        if not (self.place / name).is_file():
            raise ResultMissing(f"{name} is not there")
        target = self.folder / name
        target.write_bytes((self.place / name).read_bytes())
        return target

    def left(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.place.iterdir() if path.is_file()}

    def find(self, name: str) -> OutputFile:
        if not (self.place / name).is_file():
            raise ResultMissing(f"{name} is not there")
        data = (self.place / name).read_bytes()
        size = len(data)
        return OutputFile(name, size, hashlib.sha256(data).hexdigest(), data=data if size < 1000 else None)

    def find_all(self, pattern: str) -> list[OutputFile]:
        return [self.find(path.relative_to(self.place).as_posix()) for path in sorted(self.place.glob(pattern))]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "my {wing} $é 'q'"
    (folder / "case").mkdir(parents=True)
    (folder / "case" / "deck.txt.j2").write_text("@{ width }@ @{ length }@\n@{ alloy }@\n")
    (folder / "case" / "solver.py").write_text(SOLVER)
    (folder / "study.toml").write_text(HEAD + COMMAND)
    return folder


@pytest.fixture
def work(study: Path, tmp_path: Path) -> OwnMachine:
    for name in ("place", "artifacts"):
        (tmp_path / name).mkdir()
    return OwnMachine(study, tmp_path / "place", tmp_path / "artifacts")


def ask(spec: StudySpec, **values: object) -> optuna.Trial:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=spec.directions)
    study.enqueue_trial(values)
    return study.ask(spec.designs.distributions)


def test_a_study_toml_is_an_objective(study: Path, work: OwnMachine) -> None:
    """Inputs are rendered, the command's lines run in one shell, and the values come in the order of [objectives]."""
    spec = StudySpec.load(study)
    outcome = CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)
    assert outcome.values == (3.0, 4.5)
    assert outcome.metrics == {"lift": 2.0, "area": 4.5, "mass": 3.0}
    assert json.loads((work.place / "parameters.json").read_text()) == {"length": 3, "width": 1.5, "alloy": "$(id)"}
    assert work.ran == [(spec.command_text, spec.trial.timeout, spec.trial.stall, ["*.log", "out.json", "out.csv"])]
    assert sorted(path.name for path in work.folder.iterdir()) == ["out.csv", "out.json", "run.log"]


@pytest.mark.parametrize("alloy", ["'; rm -rf ~ #", "$(id)"])
def test_a_hostile_value_reaches_the_deck_only(study: Path, work: OwnMachine, alloy: str) -> None:
    """A parameter never becomes a part of the command."""
    spec = StudySpec.load(study)
    CommandObjective(spec)(ask(spec, width=1, alloy=alloy), work)
    assert (work.place / "deck.txt").read_text().splitlines()[1] == alloy
    assert alloy not in work.ran[0][0]


def test_outputs_come_back_when_a_number_is_missing(study: Path, work: OwnMachine) -> None:
    """A failed trial leaves the log that explains it."""
    text = (study / "study.toml").read_text().replace("python3 solver.py $factor", "true")
    (study / "study.toml").write_text(text)
    spec = StudySpec.load(study)
    with pytest.raises(ResultMissing, match=r"out\.json"):
        CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)
    assert [path.name for path in work.folder.iterdir()] == ["run.log"]


def test_one_wrong_number_fails_the_trial(study: Path, work: OwnMachine) -> None:
    """With several objectives a single value that is not finite leaves no values at all."""
    solver = study / "case" / "solver.py"
    solver.write_text(SOLVER.replace("width * factor", "float('nan')"))
    spec = StudySpec.load(study)
    with pytest.raises(ResultMissing, match=r"metric mass: out\.json: mass holds nan"):
        CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)


def test_a_value_that_does_not_fit_its_field_fails_the_trial(study: Path, work: OwnMachine) -> None:
    """Another design's may: the study goes on, and the template's line is named."""
    deck = next(study.rglob("*.j2"))
    deck.write_text("a line\n@{ width | width(2) }@\n" + deck.read_text())
    spec = StudySpec.load(study)
    with pytest.raises(ParametersInvalid, match=rf"{deck.name}, line 2: .*does not fit into 2 columns"):
        CommandObjective(spec)(ask(spec, width=1.25, alloy="$(id)"), work)
    assert work.ran == []


def test_a_failing_command_is_the_trials_failure(study: Path, work: OwnMachine) -> None:
    """Nothing is read after a command that failed."""
    (study / "case" / "solver.py").write_text("raise SystemExit(3)")
    spec = StudySpec.load(study)
    with pytest.raises(CommandFailed) as caught:
        CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)
    assert caught.value.exit_code_of_command == 3
    assert not list(work.folder.iterdir())


METRICS = """
[metrics.worst]
file = "out.csv"
function = "post.py:worst"
[metrics.files]
function = "post.py:files"
[metrics.efficiency]
expr = "area / (mass * length * width)"
[objectives]
"""
POST = """\
import csv

def worst(path):
    with open(path) as file:
        return max(float(row["area"]) for row in csv.DictReader(file))

def files(folder):
    return len(list(folder.iterdir()))
"""


def with_functions(study: Path, code: str = POST, metrics: str = METRICS) -> StudySpec:
    (study / "study.toml").write_text(HEAD + COMMAND.replace("[objectives]\n", metrics))
    (study / "post.py").write_text(code)
    return StudySpec.load(study)


@pytest.fixture
def _own_modules() -> Any:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.usefixtures("_own_modules")
def test_metrics_by_functions_and_formulas(study: Path, work: OwnMachine) -> None:
    """A function sees the file or all that was pulled; a formula uses numbers, parameters and constants."""
    spec = with_functions(study)
    outcome = CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)
    assert outcome.metrics == {"lift": 2.0, "area": 4.5, "mass": 3.0, "worst": 4.5, "files": 3.0, "efficiency": 1 / 3}
    assert list(outcome.metrics) == list(spec.metrics)
    assert work.ran[0][-1] == ["*.log", "out.json", "out.csv"]


@pytest.mark.usefixtures("_own_modules")
def test_a_function_that_fails_is_the_trials_failure(study: Path, work: OwnMachine) -> None:
    """The user's own line is named, not the library's below it, and the study goes on."""
    spec = with_functions(study, POST.replace('row["area"]', 'json.loads("nan?")').replace("csv\n", "csv, json\n", 1))
    with pytest.raises(ResultMissing) as caught:
        CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)
    assert caught.value.message == (
        "metric worst: out.csv: post.py:worst failed: json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0) "
        '(post.py, line 5, in <genexpr>: return max(float(json.loads("nan?")) for row in csv.DictReader(file)))'
    )
    spec = with_functions(study, POST.replace("len(list(folder.iterdir()))", "exit(2)"))
    with pytest.raises(ResultMissing, match=r"metric files: post.py:files failed: SystemExit: 2 \(post\.py, line 8"):
        CommandObjective(spec)(ask(spec, width=1.5, alloy="$(id)"), work)


@pytest.mark.usefixtures("_own_modules")
@pytest.mark.parametrize(
    ("code", "metrics", "message"),
    [
        (
            POST,
            METRICS.replace("post.py:files", "pots.py:files"),
            r'study\.toml: \[metrics\.files\] function \(line 33\): .*did you mean "post\.py"',
        ),
        (
            POST,
            METRICS.replace("post.py:files", "post.py:file"),
            r'post\.py has no function "file"; did you mean "files"',
        ),
        (
            POST.replace("folder):", "):"),
            METRICS,
            r"\[metrics\.files\] function \(line 33\): .* cannot be called as files\(path\)",
        ),
        ("1 / 0", METRICS, r"\[metrics\.worst\] function \(line 31\): running (?s:.*)ZeroDivisionError"),
        (
            "import vtk_of_nobody.io",
            METRICS,
            r"(?s)No module named 'vtk_of_nobody'.*Install vtk_of_nobody beside .*: pip install vtk_of_nobody\. Nothing",
        ),
    ],
)
def test_a_function_that_is_not_there_is_told_before_money_is_spent(
    study: Path, code: str, metrics: str, message: str
) -> None:
    """It is loaded when the objective is made, not when the first trial ends."""
    spec = with_functions(study, code, metrics)
    with pytest.raises(ConfigError, match=message) as caught:
        CommandObjective(spec)
    assert caught.value.exit_code == 2


def python_study(study: Path, code: str, name: str = "beam.py:objective") -> StudySpec:
    (study / "study.toml").write_text(HEAD + f'[trial]\nobjective = "{name}"\n[objectives]\nmass = "minimize"\n')
    (study / "beam.py").write_text(code)
    return StudySpec.load(study)


@pytest.mark.usefixtures("_own_modules")
def test_a_python_objective_is_found(study: Path) -> None:
    """The function may use modules beside it and dataclasses, and no bytecode is left in the study's folder."""
    (study / "beam_helper_of_this_test.py").write_text("FACTOR = 3")
    code = (
        "from __future__ import annotations\nimport dataclasses, beam_helper_of_this_test as helper\n"
        "@dataclasses.dataclass\nclass Box:\n    x: int\n"
        "def objective(trial, work):\n    return Box(2).x * helper.FACTOR\n"
    )
    assert load_python_objective(python_study(study, code))(None, None) == 6
    assert not list(study.rglob("__pycache__"))


@pytest.mark.usefixtures("_own_modules")
@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "beem.py:objective", r'there is no file .*beem\.py; did you mean "beam\.py"\?'),
        ("def objectiv(trial, work): ...", "beam.py:objective", 'no function "objective"; did you mean "objectiv"'),
        (
            "objective = 3",
            "beam.py:objective",
            'beam\\.py has no function "objective"; it has no function at all\nNothing was leased',
        ),
        ("def objective(trial): ...", "beam.py:objective", r"cannot be called as objective\(trial, work\)"),
        ("raise SystemExit(1)", "beam.py:objective", "SystemExit"),
        ("def objective(", "beam.py:objective", r"beam\.py\", line 1\n"),
    ],
)
def test_a_python_objective_that_is_not_there(study: Path, code: str, name: str, message: str) -> None:
    """A wrong name, a wrong signature or a broken file is told before anything is leased."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_python_objective(python_study(study, code, name))
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("_own_modules")
def test_an_error_in_the_users_file_keeps_its_traceback(study: Path) -> None:
    """The user sees their own lines, without ours."""
    spec = python_study(study, "def broken():\n    return 1 / 0\n\nbroken()\n")
    with pytest.raises(ConfigError) as caught:
        load_python_objective(spec)
    said = str(caught.value)
    assert 'beam.py", line 4, in <module>' in said
    assert 'beam.py", line 2, in broken' in said
    assert "ZeroDivisionError" in said
    assert "objective.py" not in said
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert traceback.extract_tb(caught.value.__cause__.__traceback__)[-1].name == "broken"
