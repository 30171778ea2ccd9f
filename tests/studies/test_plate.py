"""The flagship study: its solver against theory and against CalculiX, its deck, and that a sampler finds the optimum."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import pytest

from persistent_runner.inputs import walk_inputs
from persistent_runner.render import render_inputs
from persistent_runner.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Iterator

STUDY = Path(__file__).parents[2] / "studies" / "plate"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Case:
    """A working directory on this machine, with the verbs that an objective uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = ""

    def push(self, *inputs: str, **parameters: Any) -> None:
        for path, content, _ in render_inputs(walk_inputs(STUDY, inputs), parameters):
            (self.folder / path).write_bytes(content)

    def run(self, command: str, timeout: str = "") -> None:
        done = self.attempt(command)
        assert done.returncode == 0, done.stderr
        self.log += done.stdout

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(
            ["sh", "-ec", command],
            cwd=self.folder,
            env={"PATH": path, **ONE_THREAD},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def pull(self, name: str) -> Path:
        return self.folder / name

    def edit(self, old: str, new: str) -> None:
        """Replace one piece of text in the rendered deck."""
        deck = (self.folder / "plate.inp").read_text()
        assert deck.count(old) == 1
        (self.folder / "plate.inp").write_text(deck.replace(old, new))

    def solve(self) -> pd.DataFrame:
        self.run(StudySpec.load(STUDY).command_text)
        return pd.read_csv(self.pull("stress.csv"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_optimum_of_theory_has_the_same_stress_everywhere(case: Case) -> None:
    """An ellipse whose axes stand as the pulls do has 3.0 along the whole hole: the study's target is right."""
    case.push("case/", aspect=2.0, exponent=2.0)
    hoop = case.solve()["hoop"]
    assert hoop.max() == pytest.approx(3.0, rel=0.02)
    assert hoop.min() == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("aspect", [1.0, 1.5, 2.5])
def test_ellipses_agree_with_inglis(case: Case, aspect: float) -> None:
    """At both ends of every ellipse the stress is that of Inglis (1913); for the circle they are 1 and 5."""
    case.push("case/", aspect=aspect, exponent=2.0)
    hoop = case.solve()["hoop"]
    assert hoop.iloc[0] == pytest.approx(1 + 2 * aspect - 2, rel=0.03)
    assert hoop.iloc[-1] == pytest.approx(2 * (1 + 2 / aspect) - 1, rel=0.03)


@pytest.mark.parametrize(("aspect", "exponent"), [(1.0, 2.0), (3.0, 1.5), (1.3, 2.75)])
def test_every_hole_has_the_same_area(case: Case, aspect: float, exponent: float) -> None:
    """A small hole would win without merit: all shapes have the area of the unit circle, and the asked proportions."""
    case.push("case/", aspect=aspect, exponent=exponent)
    x, y = case.solve()[["x", "y"]].to_numpy().T
    quarter = np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
    assert quarter == pytest.approx(np.pi / 4, rel=0.005)
    assert x.max() / y.max() == pytest.approx(aspect, rel=1e-5)


def test_turning_the_plate_turns_the_stress(case: Case) -> None:
    """Loads are read from the deck: a hole turned by 90 degrees under exchanged pulls has the same stresses, mirrored."""
    case.push("case/", aspect=1.6, exponent=2.3)
    upright = case.solve()
    case.push("case/", aspect=1 / 1.6, exponent=2.3)
    case.edit("EDGE_X, P2, -2.", "EDGE_X, P2, -1.")
    case.edit("EDGE_Y, P2, -1.", "EDGE_Y, P2, -2.")
    assert case.solve()["hoop"].to_numpy() == pytest.approx(upright["hoop"].to_numpy()[::-1], abs=2e-5)


def test_the_deck_is_what_is_solved(case: Case) -> None:
    """The parameters reach the result through the rendered deck alone: a changed heading is another hole."""
    case.push("case/", aspect=1.0, exponent=2.5)
    case.edit("aspect=1.000000 exponent=2.500000", "aspect=2.000000 exponent=2.000000")
    assert case.solve()["hoop"].max() == pytest.approx(3.0, rel=0.02)


def test_the_log_ends_with_the_theory(case: Case) -> None:
    """The last line of a trial's log sets the peak beside the theory, taken from the loads of the deck."""
    case.push("case/", aspect=2.0, exponent=2.0)
    case.solve()
    last = case.log.splitlines()[-1]
    assert re.fullmatch(
        r"peak hoop stress 3\.0\d\d; theory: at least 3\.000, which aspect 2\.000 with exponent 2 has", last
    )
    assert json.loads(case.pull("theory.json").read_text()) == {"peak_stress": 3.0, "aspect": 2.0, "exponent": 2.0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("*STATIC", "*DYNAMIC", r"plate\.inp, line 15: \*DYNAMIC: not known"),
        ("*STEP", "*STEP, NLGEOM", r"plate\.inp, line 14: \*STEP, NLGEOM: not known"),
        ("SYM_X, 1, 1", "SYM_X, 1, one", r"plate\.inp, line 12: SYM_X, 1, one \(under \*BOUNDARY\)"),
        ("SYM_X, 1, 1", "WALL, 1, 1", r"the set WALL"),
        ("mesh.inp\n*MAT", "other.inp\n*MAT", r"other\.inp is not there"),
    ],
)
def test_a_deck_it_cannot_solve_is_refused(case: Case, old: str, new: str, message: str) -> None:
    """Nothing in a deck is passed over in silence: what the solver does not know ends it, with the place."""
    case.push("case/", aspect=2.0, exponent=2.0)
    case.edit(old, new)
    done = case.attempt("python3 mesh.py plate.inp >mesh.log\npython3 plate.py plate")
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_deck_without_parameters_is_refused(case: Case) -> None:
    """A heading that names no hole is an error with what it must hold, not a default hole."""
    case.push("case/", aspect=2.0, exponent=2.0)
    case.edit("aspect=2.000000", "round")
    done = case.attempt("python3 mesh.py plate.inp")
    assert (done.returncode, "aspect=... exponent=..." in done.stderr) == (1, True)


@pytest.mark.skipif(shutil.which("ccx") is None, reason="CalculiX is not here (Debian: apt install calculix-ccx)")
def test_calculix_solves_the_same_deck(case: Case) -> None:
    """Who has CalculiX runs the rendered deck unchanged, and reads the same peak within 6 %."""
    case.push("case/", aspect=1.5, exponent=2.5)
    here = case.solve()["hoop"].max()
    case.run("ccx -i plate")
    hole = (case.folder / "mesh.inp").read_text().partition("NSET=HOLE\n")[2].partition("*")[0]
    nodes = {int(number) for number in hole.replace(",", " ").split()}
    stresses = (case.folder / "plate.frd").read_text().partition(" -4  STRESS")[2].partition(" -3")[0].splitlines()
    lines = [line for line in stresses if line.startswith(" -1") and int(line[3:13]) in nodes]
    assert len(lines) == len(nodes)
    xx, yy, _, xy = np.array([[float(line[13 + 12 * i : 25 + 12 * i]) for i in range(4)] for line in lines]).T
    assert here == pytest.approx(((xx + yy) / 2 + np.hypot((xx - yy) / 2, xy)).max(), rel=0.06)


def _from_notebook() -> Any:
    cells = json.loads((STUDY / "plate.ipynb").read_text())["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "def objective" in "".join(cell["source"])]
    names: dict[str, Any] = {"pd": pd}
    exec(source.partition("# storage=")[0], names)
    return names["objective"]


def _from_module() -> Any:
    spec = importlib.util.spec_from_file_location("plate_objective", STUDY / "objective.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.objective


@pytest.mark.parametrize("objective", [_from_module, _from_notebook])
def test_python_and_toml_say_the_same(case: Case, objective: Any) -> None:
    """study.toml, objective.py and the notebook search the same space and read the same number."""
    spec = StudySpec.load(STUDY)
    study = optuna.create_study()
    study.enqueue_trial({"aspect": 2.0, "exponent": 2.0})
    trial = study.ask()
    assert objective()(trial, case) == pytest.approx(3.0, rel=0.02)
    assert trial.distributions == spec.designs.distributions
    assert pd.read_csv(case.pull("stress.csv"))[spec.metrics["peak_stress"].column].max() == pytest.approx(
        3.0, rel=0.02
    )


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the modules of the case into this process: forty trials without eighty processes."""
    names = ("deck", "mesh", "plate")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(STUDY / "case"))
    yield tuple(importlib.import_module(name) for name in names)
    for name in names:
        del sys.modules[name]


def test_forty_trials_two_at_a_time_find_the_ellipse(case: Case, solver: Any) -> None:
    """The study's own space, sampler and seed end near the theory, whichever of two running trials ends first."""
    deck, mesh, plate = solver
    spec = StudySpec.load(STUDY)
    order = random.Random(1)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=spec.study.seed))
    running: list[optuna.Trial] = []
    for asked in range(spec.study.n_trials + 1):
        if asked < spec.study.n_trials:
            running.append(study.ask(dict(spec.designs.distributions)))
        while len(running) > (1 if 0 < asked < spec.study.n_trials else 0):
            trial = running.pop(order.randrange(len(running)))
            case.push("case/plate.inp.j2", **trial.params)
            (case.folder / "mesh.inp").write_text(mesh.mesh(**trial.params))
            read = deck.Deck(case.folder / "plate.inp")
            study.tell(trial, float(plate.along_hole(read, plate.solve(read)[1])[:, 3].max()))
    assert len(study.trials) == spec.study.n_trials
    assert study.best_params["aspect"] == pytest.approx(2, abs=0.15)
    assert study.best_params["exponent"] == pytest.approx(2, abs=0.3)
    assert study.best_value < 3.2
