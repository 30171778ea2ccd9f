"""What a user relies on when a study.toml is read: what it means, and how a mistake in it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from persistent_runner.errors import ConfigError
from persistent_runner.study.spec import StudySpec

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[study]
name = "wing"
n_trials = 40

[cluster]
core_type = "emerald"
cores = 72
walltime = "8h"

[space]
thickness = { type = "float", low = 0.05, high = 0.20 }
chord = 2.0

[trial]
inputs = ["case/"]
command = "./solver deck.inp"
cores = 36

[metrics.drag]
file = "report.csv"
column = "cd"

[objectives]
drag = "minimize"
"""
WHOLE = """
[study]
name = "wing-2.b"
n_trials = 40
sampler = "random"
seed = 7
storage = "postgresql+psycopg://host/db"
max_cost = 400
max_time = "12h"
max_consecutive_failures = 3
[cluster]
core_type = "emerald"
cores = 72
walltime = "90m"
priority = "economy"
project = "P"
software = [{ analysis = "user_included", version = "0" }, { analysis = "ansys", version = "2024 R1" }]
env = { ANSYSLMD_LICENSE_FILE = "1055@ansys.example.com" }
max_queue = "2h"
orphan_idle = "9m"
orphan_busy = "3h"
host_key = "accept-unverified"
keeper = false
[setup]
inputs = ["../shared/"]
command = ["pip install numpy", "make"]
[space]
thickness = { type = "float", low = 1, high = 100, log = true }
gap = { type = "float", low = 0.1, high = 0.3, step = 0.1 }
ribs = { type = "int", low = 2, high = 8, step = 2 }
alloy = { type = "categorical", choices = ["6061-T6", "7075-T6", 3] }
chord = 2
name_ = "a'b"
[trial]
inputs = ["case"]
command = ["blockMesh", "solver > log"]
max_concurrent = 2
timeout = "0.2s"
outputs = ["*.log", "report.csv"]
template = { delimiters = ["<<", ">>"] }
[metrics.lift]
file = "report[1].csv"
regex = 'Cl\\s*=\\s*(\\S+)'
reduce = "mean"
[metrics.drag]
file = "forces.json"
json = "forces.cd"
[metrics.moment]
file = "forces.json"
json = "forces.cm"
[objectives]
lift = "maximize"
drag = "minimize"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my {wing} $é 'q'"
    (folder / "case").mkdir(parents=True)
    (folder / "case" / "deck.inp.j2").write_text("@{ thickness }@ @{ chord }@")
    (folder / "case" / "solver").write_text("#!/bin/sh\n")
    (folder / "case" / "solver").chmod(0o755)
    return folder


def load(folder: Path, text: str = GOOD, *sets: str) -> StudySpec:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return StudySpec.load(folder, sets)


def mistakes(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *sets)
    assert caught.value.exit_code == 2
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


def test_a_small_study(folder: Path) -> None:
    """What is not written has the documented default."""
    spec = load(folder)
    assert (spec.study.sampler, spec.study.seed, spec.study.storage) == ({"name": "tpe"}, None, "sqlite")
    assert (spec.study.max_consecutive_failures, spec.cluster.priority, spec.setup.command) == (5, "on_demand", "")
    assert spec.cluster.software[0].analysis == "user_included"
    assert (spec.study.max_cost, spec.cluster.orphan_idle, spec.cluster.orphan_busy) == (None, None, None)
    assert (spec.cluster.host_key, spec.cluster.keeper) == ("proven", True)
    assert spec.cluster.walltime == timedelta(hours=8)
    assert spec.folder == folder.resolve()
    assert spec.designs.distributions == {"thickness": FloatDistribution(0.05, 0.20)}
    assert spec.designs.constants == {"chord": 2.0}
    assert (spec.objective_names, spec.directions) == (["drag"], ["minimize"])
    assert (spec.command_text, spec.metric_files) == ("./solver deck.inp", ["report.csv"])
    with pytest.raises(ValidationError):
        spec.study.n_trials = 3  # type: ignore[misc]


def test_every_key(folder: Path) -> None:
    """A study.toml with every key that is built means what the documentation says."""
    (folder / "case" / "deck.inp.j2").write_text("<<thickness>><<gap>><<ribs>><<alloy>><<chord>><<name_>>")
    (folder.parent / "shared").mkdir()
    spec = load(folder, WHOLE)
    assert spec.designs.distributions == {
        "thickness": FloatDistribution(1, 100, log=True),
        "gap": FloatDistribution(0.1, 0.3, step=0.1),
        "ribs": IntDistribution(2, 8, step=2),
        "alloy": CategoricalDistribution(["6061-T6", "7075-T6", 3]),
    }
    assert spec.designs.constants == {"chord": 2, "name_": "a'b"}
    assert (spec.objective_names, spec.directions) == (["lift", "drag"], ["maximize", "minimize"])
    assert spec.command_text == "blockMesh\nsolver > log"
    assert spec.setup.command == "pip install numpy\nmake"
    assert spec.metric_files == ["report[1].csv", "forces.json"]
    assert spec.output_patterns == ["*.log", "report.csv", "report[[]1].csv", "forces.json"]
    assert spec.trial.timeout == timedelta(seconds=0.2)
    assert spec.study.max_cost == 400
    assert (spec.cluster.orphan_idle, spec.cluster.orphan_busy) == (timedelta(minutes=9), timedelta(hours=3))
    assert (spec.cluster.host_key, spec.cluster.keeper) == ("accept-unverified", False)
    assert spec.trial.template.delimiters.start == "<<"
    assert isinstance(spec.make_sampler(3), optuna.samplers.RandomSampler)


def test_metrics_without_a_file(folder: Path) -> None:
    """What is calculated or reads the whole folder has nothing to be pulled; functions are loaded once, when used."""
    text = GOOD.replace(
        "[objectives]",
        """[metrics.mass]
file = "field.bin"
function = "post.py:mass"
[metrics.count]
function = "post.py:count"
[metrics.ratio]
expr = "drag / (mass * chord * thickness)"
[objectives]""",
    )
    spec = load(folder, text, "metrics.drag.column=2")
    assert spec.metric_files == spec.output_patterns == ["report.csv", "field.bin"]
    assert spec.metrics["drag"].column == 2
    (folder / "post.py").write_text(
        "from pathlib import Path\n"
        "with (Path(__file__).parent / 'loaded').open('a') as file: file.write('x')\n"
        "def mass(path): return 1\ndef count(path): return 2\n"
    )
    assert [spec.functions[name](None) for name in ("post.py:mass", "post.py:count")] == [1, 2]
    assert spec.functions is spec.functions
    assert (folder / "loaded").read_text() == "x"


def test_the_sampler_is_optunas(folder: Path) -> None:
    """`tpe` is Optuna's own, and the same seed proposes the same."""
    spec = load(folder)
    asked = [
        optuna.create_study(sampler=spec.make_sampler(seed)).ask(spec.designs.distributions).params
        for seed in (1, 1, 2)
    ]
    assert asked[0] == asked[1] != asked[2]
    assert isinstance(spec.make_sampler(None), optuna.samplers.TPESampler)


def test_the_fingerprint_shows_what_was_changed(folder: Path) -> None:
    """A study that goes on with another space or other objectives can be told apart, and nothing else matters."""
    first = load(folder).fingerprint()
    assert load(folder, GOOD.replace("n_trials = 40", "n_trials = 60")).fingerprint() == first
    assert load(folder, GOOD.replace("0.20", "0.25")).fingerprint() != first
    assert load(folder, GOOD.replace("chord = 2.0", "chord = 2.5")).fingerprint() != first
    assert load(folder, GOOD.replace('"minimize"', '"maximize"')).fingerprint() != first


def test_the_name_of_a_study_without_one(folder: Path) -> None:
    """Without a name a study is called as its folder, as far as a name can hold it."""
    assert load(folder, GOOD.replace('name = "wing"\n', "")).study.name == "my-wing-q"


def test_set_wins_over_the_file(folder: Path) -> None:
    """`--set` takes numbers, lists and texts with or without quotes, and its mistakes are told as its own."""
    spec = load(
        folder,
        GOOD,
        "cluster.cores=96",
        "study.max_time=12h",
        'study.name="x"',
        "space.chord=3.5",
        "trial.command=a = b",
    )
    assert (spec.cluster.cores, spec.study.max_time, spec.study.name) == (96, timedelta(hours=12), "x")
    assert (spec.designs.constants, spec.command_text) == ({"chord": 3.5}, "a = b")
    assert '--set: [cluster] cores: must be a whole number, not "x"' in mistakes(folder, GOOD, "cluster.cores=x")
    assert "--set: [cluster] core: there is no such key" in mistakes(folder, GOOD, "cluster.core=3")
    assert "is not of the form table.key=value" in mistakes(folder, GOOD, "cores=3")
    assert '"name" is a value, not a table' in mistakes(folder, GOOD, "study.name.x=3")


def test_all_mistakes_are_told_together(folder: Path) -> None:
    """One run shows every mistake with its table, key, line, and what to do."""
    text = (
        GOOD.replace("n_trials", "n_trails").replace("72", "true").replace('"8h"', "8").replace('drag = "m', 'drg = "m')
    )
    assert mistakes(folder, text).splitlines() == [
        'study.toml: [study] n_trails (line 4): there is no such key; did you mean "n_trials"?',
        "study.toml: [cluster] cores (line 8): must be a whole number, not true",
        'study.toml: [cluster] walltime (line 9): 8 is not a duration; write it as "90s", "20m" or "8h"',
        'study.toml: [objectives] drg (line 25): there is no [metrics.drg]; did you mean "drag"?',
        f"Mend {folder.resolve() / 'study.toml'}; nothing was leased.",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # wrong values
        ("n_trials = 40", "n_trials = 0", "[study] n_trials (line 4): must be at least 1, not 0"),
        ("n_trials = 40", 'n_trials = "40"', 'must be a whole number, not "40"'),
        ("n_trials = 40", "n_trials = 40.0", "must be a whole number, not 40.0"),
        ('name = "wing"', 'name = "a/b"', '"a/b" is no name; use up to 80 letters'),
        ('name = "wing"', 'name = ".."', '".." is no name'),
        ('name = "wing"', 'sampler = "tpee"', '"tpee" is no sampler; did you mean "tpe"?'),
        ('name = "wing"', 'storage = "postgres"', 'must be "sqlite" or an address of an Optuna storage'),
        ('"8h"', '"8 hours"', "'8 hours' is not a duration; write it as"),
        ('"8h"', '"0s"', "not a duration above zero"),
        ("cores = 72", 'cores = 72\npriority = "ondemand"', 'must be "on_demand" or "economy", not "ondemand"'),
        ("cores = 72", "cores = 72\nenv = { A = 1 }", "[cluster] env.A (line 9): must be text in quotes"),
        ("cores = 72", 'cores = 72\nenv = { TRIAL_CORES = "1" }', "TRIAL_CORES is set by the runner itself"),
        ("cores = 72", "cores = 72\nsoftware = []", "[cluster] software (line 9): is empty"),
        ("cores = 72", 'cores = 72\nsoftware = [{ analysis = "a", version = 0 }]', "[cluster] software[0] version"),
        ("cores = 36", 'stage_ahead = "fast"', '[trial] stage_ahead (line 18): must be a whole number from 0, or "auto"'),
        ("cores = 36", 'keep_outputs = "bst"', 'keep_outputs (line 18): must be "all", "best", "failed" or a whole number'),
        ("cores = 36", "keep_outputs = 0", 'keep_outputs (line 18): must be "all", "best", "failed" or a whole number'),
        ("cores = 36", "stage_ahead = true", 'stage_ahead (line 18): must be a whole number from 0, or "auto"'),
        ("cores = 36", "cores = 73", "[trial] cores (line 18): 73 is more than the 72 of the whole cluster"),
        ("cores = 36", 'outputs = "*.log"', '[trial] outputs (line 18): must be a list, such as ["a", "b"], not "*.log"'),
        ("cores = 36", 'outputs = ["../*.log"]', "is not a file below the working directory"),
        ("cores = 36", 'outputs = ["./a//b.log"]', 'never matches; write it as in "a/b.log"'),
        ("cores = 36", 'outputs = ["fields/"]', 'never matches; write it as in "fields/*"'),
        ("cores = 36", 'template.delimiters = ["@{"]', 'must be two texts, such as ["@{", "}@"]'),
        ("cores = 36", 'template.delimiters = ["a", "b"]', "template delimiter 'a' cannot be used; Choose two strings"),
        ('command = "./solver deck.inp"', "", "needs either command or objective"),
        ('command = "./solver deck.inp"', "command = []", "is empty or holds a NUL"),
        ('command = "./solver deck.inp"', "command = 7", "must be text, or a list of texts"),
        ("cores = 36", 'objective = "beam.py:objective"', "needs either command or objective"),
        # the space
        ("0.05", "0.25", "[space] thickness (line 12): low (0.25) is not below high (0.2); swap them"),
        ("0.05", "true", "[space] thickness.low (line 12): must be a number, not true"),
        ("0.05", "nan", "must be a finite number"),
        ("0.05", "0.0, log = true", "a logarithmic scale starts above zero"),
        ("0.05", "0.05, step = 0.1", "high (0.2) is not a whole number of steps (0.1) above low (0.05)"),
        ("0.05", "0.05, step = 0.05, log = true", "log and step do not go together"),
        ("0.05", "0.05, step = 0", "it must be above zero"),
        ('"float"', '"int"', "thickness.low (line 12): must be a whole number, not 0.05"),
        ('"float"', '"flot"', '[space] thickness.type (line 12): "flot" is no type; did you mean "float"?'),
        ('type = "float", ', "", "write one of float, int, categorical"),
        ("high", "hihg", 'thickness.hihg (line 12): there is no such key; did you mean "high"?'),
        ("chord = 2.0", "chord = true", "must be a number, text in quotes, or a table"),
        ("chord = 2.0", "chord = inf", "a constant is finite"),
        ("chord = 2.0", 'chord = { type = "categorical", choices = [] }', "at least one choice"),
        ("chord = 2.0", 'chord = { type = "categorical", choices = [true] }', "neither a number nor text"),
        ("chord = 2.0", 'chord = { type = "categorical", choices = [1, 1.0] }', "stands twice"),
        ("chord = 2.0", '"1x" = 2.0', "[space] 1x (line 13): is no name"),
        ("chord = 2.0", "lambda = 2.0", "is no name"),
        ('thickness = { type = "float", low = 0.05, high = 0.20 }', "thickness = 1", "[space] (line 11): there is nothing to vary"),
        # metrics and objectives
        ('column = "cd"', "", "[metrics.drag] (line 20): needs exactly one of column, regex, json, function and expr"),
        ('column = "cd"', 'colum = "cd"', '[metrics.drag] colum (line 22): there is no such key; did you mean "column"?'),
        ('column = "cd"', 'json_path = "cd"', "there is no such key"),
        ('column = "cd"', "regex = '('", "[metrics.drag] regex (line 22): is no regular expression"),
        ('column = "cd"', "regex = 'cd'", "[metrics.drag] regex (line 22): has 0 groups"),
        ('column = "cd"', "column = 0", "[metrics.drag] column (line 22): 0 is no column; they are counted from 1"),
        ('column = "cd"', "column = true", "must be a column's name in quotes, or its number, from 1"),
        ('column = "cd"', "regex = '(a)'\nmatch = '1'", '[metrics.drag] match (line 23): must be a whole number, not "1"'),
        ('column = "cd"', "regex = '(a)'\nmach = 1", '[metrics.drag] mach (line 23): there is no such key; did you mean "match"?'),
        ('file = "report.csv"\n', "", "[metrics.drag] (line 20): column reads a file, and none is named"),
        ('column = "cd"', 'function = "post.drag"', '[metrics.drag] function (line 22): "post.drag" does not name a function'),
        ('column = "cd"', 'expr = "2 * lift"', "expr calculates from other metrics and parameters; remove file"),
        ('file = "report.csv"\ncolumn = "cd"', 'expr = "2 ^ 3"', "[metrics.drag] expr (line 21): '2 ^ 3': a power is written **"),
        ('file = "report.csv"\ncolumn = "cd"', 'expr = "2 * cord"', '[metrics.drag] expr (line 21): 2 * cord: there is no metric and no parameter "cord"; did you mean "chord"?'),
        ('file = "report.csv"\ncolumn = "cd"', 'expr = "2 * drag"', "[metrics.drag] expr (line 21): an expr goes in a circle: drag -> drag; break it"),
        ('"report.csv"', '"/report.csv"', "[metrics.drag] file (line 21)"),
        ('[metrics.drag]\nfile = "report.csv"\ncolumn = "cd"', "", "[metrics]: is missing; say how a number is read"),
        ('"minimize"', '"min"', 'must be "minimize" or "maximize", not "min"'),
        ('drag = "minimize"', "", "[objectives] (line 24): is empty; write what is to be optimised"),
        # tables
        ("[objectives]", "[objective]", 'there is no such table; did you mean "objectives"?'),
        ("[study]", "[[study]]", "[study] (line 2): must be a table"),
        ("[space]", "[[space]]", "[space] (line 11): must be a table"),
        # inputs and templates
        ('"case/"', '"cse/"', '[trial] inputs (line 16): input "cse/" is not there; in'),
        ('"case/"', '"/etc/"', '"/etc/" is not below or beside the study\'s folder'),
        ('"case/"', '"../../x"', "is not below or beside"),
        ('"case/"', '".."', "is not below or beside"),
        ("chord", "cord", 'deck.inp.j2, line 1: chord: there is no parameter "chord"; did you mean "cord"?'),
        ("chord = 2.0", "chord = 2.0\nspan = 1", "[trial] inputs (line 17): no template uses the parameter span"),
        ("[space]", '[setup]\ninputs = ["case/"]\n[space]', "[setup] inputs (line 12): deck.inp.j2 is a template"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_where_it_is(folder: Path, old: str, new: str, message: str) -> None:
    """Each mistake names table, key and line, says what is wrong and what to do."""
    assert old in GOOD
    assert message in mistakes(folder, GOOD.replace(old, new, 1))


def test_which_outputs_are_kept_is_one_of_four(folder: Path) -> None:
    """A word or a number of trials; a number means nothing where several objectives have a front."""
    for keep in ('"best"', '"failed"', "3"):
        spec = load(folder, GOOD.replace("[trial]", f"[trial]\nkeep_outputs = {keep}", 1))
        assert str(spec.trial.keep_outputs) == keep.strip('"')
    for keep in ('"worst"', "0", "true"):
        assert "[trial] keep_outputs" in mistakes(folder, GOOD.replace("[trial]", f"[trial]\nkeep_outputs = {keep}"))
    two = GOOD.replace("[trial]", "[trial]\nkeep_outputs = 3", 1) + 'lift = "maximize"\n'
    assert "a number goes with one objective" in mistakes(folder, two)


def test_a_cluster_without_its_switch_has_nothing_that_proves_it(folder: Path) -> None:
    """`keeper = false` asks for both: a bare `sleep inf` prints no host keys, and who wants that has to say so."""
    bare = GOOD.replace("[cluster]", "[cluster]\nkeeper = false")
    said = mistakes(folder, bare)
    assert 'write host_key = "accept-unverified" as well, or leave keeper out' in said
    spec = load(folder, bare.replace("keeper = false", 'keeper = false\nhost_key = "accept-unverified"'))
    assert not spec.cluster.keeper


@pytest.mark.parametrize("key", ["profile", "api_key", "token", "base_url"])
@pytest.mark.parametrize("table", ["study", "cluster"])
def test_a_study_cannot_name_an_account(folder: Path, table: str, key: str) -> None:
    """A stranger's folder must not spend money, and the value is not printed."""
    said = mistakes(folder, GOOD.replace(f"[{table}]", f'[{table}]\n{key} = "canary"'))
    assert f"[{table}] {key} " in said
    assert "use --profile NAME" in said
    assert "canary" not in said


def test_a_secret_is_refused_and_not_printed(folder: Path) -> None:
    """Something that looks like an API key is told by its line alone, wherever it stands."""
    secret = "0123456789abcdef" * 2 + "01234567"
    said = mistakes(folder, GOOD.replace('"wing"', f'"wing" # {secret}') + 'x = "y"\n')
    assert said.startswith("study.toml: line 3 holds 40 hexadecimal digits")
    assert secret not in said
    said = mistakes(folder, GOOD, f"cluster.project={secret}")
    assert said.startswith("--set cluster.project: holds 40 hexadecimal digits")
    assert secret not in said


def test_broken_toml_names_the_line(folder: Path) -> None:
    """A syntax error is told with its line, in plain words, and with the file."""
    said = mistakes(folder, GOOD.replace("n_trials =", "n_trials"))
    assert said.splitlines() == [
        "study.toml, line 4: a key and its value are written as in key = value",
        "    n_trials 40",
        f"Mend {folder.resolve() / 'study.toml'}; nothing was leased.",
    ]
    (folder / "study.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        StudySpec.load(folder)


def test_a_study_that_is_not_there(folder: Path) -> None:
    """A typo in the path is answered with the nearest name."""
    for path, message in (
        (folder.parent / "my wing $e 'q'", "my {wing} $é 'q'\"?"),
        (folder, "there is no study.toml in "),
        (folder.parent / "a" / "b", "there is no folder"),
    ):
        with pytest.raises(ConfigError) as caught:
            StudySpec.load(path)
        assert message in str(caught.value)


def test_a_file_from_windows(folder: Path) -> None:
    """A byte-order mark and CRLF do no harm, and the file may have any name."""
    (folder / "other.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert StudySpec.load(folder / "other.toml").study.name == "wing"


def test_a_python_objective(folder: Path) -> None:
    """With a Python objective there are no metrics, and [objectives] gives the directions."""
    start, end = GOOD.index("inputs ="), GOOD.index("[objectives]")
    text = GOOD[:start] + 'objective = "beam.py:objective"\n' + GOOD[end:]
    assert load(folder, text).directions == ["minimize"]
    assert load(folder, text).command_text == ""
    assert "[metrics]" in mistakes(folder, text + '[metrics.drag]\nfile = "a"\ncolumn = "b"\n')
    assert "inputs goes with a command" in mistakes(
        folder, text.replace("objective =", 'inputs = ["case"]\nobjective =')
    )
    for wrong in ("beam.py", "beam:objective", "../beam.py:f", "beam.py:a b"):
        assert "write it as in" in mistakes(folder, text.replace("beam.py:objective", wrong))


def test_reading_a_study_loads_nothing_heavy(folder: Path) -> None:
    """`--check` and error messages come fast: no Optuna, no pandas, no SSH to read a study.toml."""
    load(folder)
    code = (
        "import sys; from pathlib import Path; from persistent_runner.study.spec import StudySpec;"
        "StudySpec.load(Path(sys.argv[1])); print(*sorted({'optuna', 'pandas', 'numpy', 'fabric', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_what_a_node_would_refuse_to_run(folder: Path) -> None:
    """A script from Windows, a missing execute bit and a misspelt program are told for trial and setup alike."""
    (folder / "case" / "solver").write_bytes(b"#!/bin/sh\r\n")
    told = mistakes(folder, GOOD)
    assert "study.toml: [trial] command (line 17): " in told
    assert "solver is a script with Windows line ends" in told
    (folder / "case" / "solver").write_bytes(b"#!/bin/sh\n")
    (folder / "case" / "solver").chmod(0o644)
    assert "the command runs ./solver, and " in mistakes(folder, GOOD)
    assert f"run chmod +x {folder.resolve() / 'case' / 'solver'}" in mistakes(folder, GOOD)
    (folder / "case" / "solver").chmod(0o755)
    assert 'did you mean "solver"?' in mistakes(folder, GOOD.replace("./solver", "./solvre"))
    setup = '[setup]\ninputs = ["case/solver"]\ncommand = "./solvre"\n'
    assert "[setup] command (line 28): the command begins with ./solvre" in mistakes(folder, GOOD + setup)
