"""The JSON Schema of study.toml says what the models say, and the reference page explains every key."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter

from persistent_runner.errors import ConfigError
from persistent_runner.lease.platform import Software
from persistent_runner.study import space, tables
from persistent_runner.study.extract import Extract
from persistent_runner.study.reference import in_toml, reference_page
from persistent_runner.study.schema import study_schema
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.toml import read
from tests.study.test_spec import GOOD, WHOLE
from tests.test_readme import BLOCK, README, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STUDIES = ROOT / "studies"
FILES = sorted(STUDIES.glob("*/*.toml"))
MODELS = [
    tables.StudyTable,
    tables.ClusterTable,
    Software,
    tables.SetupTable,
    tables.TrialTable,
    tables.TemplateTable,
    space.FloatParameter,
    space.IntParameter,
    space.CategoricalParameter,
    space.DerivedParameter,
    Extract,
    tables.Bounds,
]
SCHEMA = study_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def mistakes(data: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(data)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study without a mistake, of which one key at a time is changed."""
    (tmp_path / "study.toml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "deck.inp.j2").write_text("@{ thickness }@ @{ chord }@", encoding="utf-8")
    (tmp_path / "case" / "solver").write_text("#!/bin/sh\n")
    (tmp_path / "case" / "solver").chmod(0o755)
    StudySpec.load(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("option", "file"), [("", "study.schema.json"), ("--markdown", "REFERENCE.md")])
def test_the_shipped_files_are_up_to_date(option: str, file: str) -> None:
    """Whoever changes a model sees which file to write anew, and how."""
    command = [sys.executable, "-m", "persistent_runner", "schema", *option.split()]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode("utf-8")
    same = (STUDIES / file).read_text("utf-8") == printed
    assert same, f"write it anew: persistent-runner schema {option} > studies/{file}"


def test_it_is_a_json_schema() -> None:
    """An editor takes it for what it says it is."""
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(STUDIES).as_posix())
def test_the_shipped_studies_are_accepted_and_name_it(file: Path) -> None:
    """Whoever opens a study that ships has the schema at work, and no false alarm."""
    text = file.read_text("utf-8")
    first = text.splitlines()[0]
    assert (file.parent / first.removeprefix("#:schema ")).resolve() == STUDIES / "study.schema.json"
    assert mistakes(tomllib.loads(text)) == []


def test_the_examples_of_others_are_accepted() -> None:
    """The README's study, and one that has every key."""
    (readme,) = [block["text"] for block in BLOCK.finditer(README) if (block["file"] or "").endswith("study.toml")]
    for text in (readme, GOOD, WHOLE):
        assert mistakes(tomllib.loads(text)) == []


@pytest.mark.parametrize(
    "given",
    [
        'study.name="a.b_c-1"',
        'study.sampler="random"',
        'study.sampler={ name = "tpe", n_startup_trials = 20, multivariate = true }',
        'study.storage="sqlite:////data/wing.db"',
        "study.max_cost=0.5",
        'study.require=["thickness < chord"]',
        'cluster.walltime=" 1.5 h "',
        'cluster.software=[{ analysis = "a", version = "1" }]',
        'cluster.env={ A_1 = "x" }',
        'trial.command=["a", "b"]',
        'trial.template={ delimiters = ["@{", "}@"] }',
        'space.flap={ type = "float", low = 0, high = 1, when = "thickness > 0.1", otherwise = 0, unit = "m" }',
        "space.flügel=1",
        'space.area={ expr = "chord * thickness" }',
        "metrics.drag.column=2",
        "metrics.drag.below=forces .*set TIP",
        'metrics.ratio={ expr = "2 * drag" }',
        "constraints.drag={ max = 1 }",
        'failures.licence={ pattern = "no licence", exit_code = [65, 66] }',
        'failures.mesh={ pattern = ["a", "b"], exit_code = 1, do = "infeasible" }',
        "baseline.thickness=0.1",
    ],
)
def test_what_the_models_accept_is_accepted(study: Path, given: str) -> None:
    """No editor underlines what would run: the schema never asks for more than the models."""
    # no templates: they would have to use each parameter
    sets = ["trial.command=solver deck.inp", "trial.inputs=[]", given]
    StudySpec.load(study, sets)
    assert mistakes(read(study, sets).data) == []


@pytest.mark.parametrize(
    "given",
    [
        "study.n_trails=3",
        'study.n_trials="3"',
        "study.n_trials=0",
        'study.name="a b"',
        'study.sampler="tpee"',
        "study.sampler=3",
        'study.sampler={ name = "tpe", seed = 1 }',
        "study.seed=-1",
        'study.storage="mysql"',
        "study.max_cost=0",
        'study.max_time="12 hours"',
        "study.max_time=12",
        'cluster.core_type=""',
        "cluster.cores=true",
        'cluster.priority="low"',
        "cluster.software=[]",
        'cluster.software=[{ analysis = "a" }]',
        "cluster.env={ A = 1 }",
        'cluster.env={ "a b" = "x" }',
        'cluster.host_key="any"',
        'cluster.keeper="no"',
        'setup.command=""',
        'trial.inputs="case/"',
        "trial.command=[1]",
        'trial.objective="beam.py:objective"',
        'trial.outputs=["/etc/passwd"]',
        'trial.template={ delimiters = ["a", "b"] }',
        "space.chord=true",
        "space.chord=[1, 2]",
        "space.chord={ low = 0.5, high = 1.5 }",
        'space.chord={ type = "real", low = 0, high = 1 }',
        'space.chord={ type = "float", low = 0 }',
        'space.chord={ type = "int", low = 0.5, high = 4 }',
        'space.chord={ type = "int", low = 0, high = 4, steps = 2 }',
        'space.chord={ type = "categorical", choices = [] }',
        'space.chord={ type = "categorical", choices = ["a", "a"] }',
        'space.chord={ type = "float", low = 0, high = 1, otherwise = 0 }',
        "space.2d=1",
        'metrics.drag.json="cd"',
        'metrics.drag.reduce="median"',
        'metrics.lift={ column = "cl" }',
        'metrics.lift={ file = "r.json", json = "cl", below = "a" }',
        'metrics.lift={ file = "report.csv" }',
        "metrics.drag.match=1",
        'objectives.drag="minimise"',
        "constraints.drag={}",
        "constraints.drag={ most = 1 }",
        "start.thickness=1",
        "failures.all=1",
    ],
)
def test_what_it_refuses_the_models_refuse(study: Path, given: str) -> None:
    """An unknown key, a wrong type and a wrong word are underlined while they are written."""
    with pytest.raises(ConfigError):
        StudySpec.load(study, [given])
    assert mistakes(read(study, [given]).data) != []


@pytest.mark.parametrize("table", ["study", "cluster", "trial", "objectives"])
def test_a_missing_table_is_missed(table: str) -> None:
    """What a study cannot do without is asked for."""
    data = {key: value for key, value in tomllib.loads(GOOD).items() if key != table}
    assert mistakes(data) == [f"'{table}' is a required property"]


def keys_of(model: type[BaseModel]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the name of each key of a table, its field, and its schema."""
    properties = SCHEMA["$defs"][model.__name__]["properties"]
    assert list(properties) != []
    for name, field in model.model_fields.items():
        yield field.alias or name, field, properties[field.alias or name]


@pytest.mark.parametrize("model", MODELS)
def test_every_key_is_explained_with_an_example_that_works(model: type[BaseModel]) -> None:
    """An editor shows what a key means, and its default; the examples are what schema and model take."""
    for key, field, schema in keys_of(model):
        assert re.fullmatch(r"[A-Z`].*\.", schema["description"]), key
        for example in schema.get("examples", ()):
            assert VALIDATOR.evolve(schema=schema | {"$defs": SCHEMA["$defs"]}).is_valid(example), key
            TypeAdapter(Annotated[field.annotation, Field(), *field.metadata]).validate_python(example)
        assert schema.get("examples") or "const" in schema or "$ref" in schema, key
        if "default" in schema:
            assert VALIDATOR.evolve(schema=schema | {"$defs": SCHEMA["$defs"]}).is_valid(schema["default"]), key


def test_defaults_are_the_models() -> None:
    """What an editor says happens without a key is what happens."""
    defaults = {
        (model.__name__, key): schema["default"]
        for model in MODELS
        for key, _, schema in keys_of(model)
        if "default" in schema
    }
    assert defaults["StudyTable", "sampler"] == {"name": "tpe"}
    assert defaults["StudyTable", "max_consecutive_failures"] == 5
    assert defaults["ClusterTable", "keeper"] is True
    assert defaults["ClusterTable", "software"] == [{"analysis": "user_included", "version": "0"}]
    assert defaults["TemplateTable", "delimiters"] == ["@{", "}@"]
    assert defaults["Extract", "reduce"] == "last"


def test_the_page_has_every_key_in_its_table() -> None:
    """Whoever looks a key up finds it below its table, in the order of study.toml."""
    page = reference_page()
    sections = re.split(r"^## `\[+(\w+)\]+`$", page, flags=re.MULTILINE)[1:]
    assert sections[::2] == list(SCHEMA["properties"])
    text = dict(zip(sections[::2], sections[1::2], strict=True))
    of = {"study": [0], "cluster": [1, 2], "setup": [3], "trial": [4, 5], "space": [6, 7, 8, 9], "metrics": [10]}
    for table, models in (of | {"constraints": [11]}).items():
        keys = [key for model in models for key, _, _ in keys_of(MODELS[model])]
        assert sorted(re.findall(r"^ *- \*\*`(\w+)`\*\*", text[table], re.MULTILINE)) == sorted(keys)


def test_what_the_page_shows_is_toml() -> None:
    """A reader can copy each line."""
    page = reference_page()
    shown = re.findall(r"as in `(.*)`", page) + re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    shown += re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(shown) > 50
    for line in shown:
        tomllib.loads(line)


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, "a", r"Cd\s*=\s*(\S+)", "it's \\ 1", [1, "a"], {}, {"a": [{"b": "c"}]}]
)
def test_values_are_written_as_toml(value: object) -> None:
    """What is written is read as the same."""
    assert tomllib.loads(f"value = {in_toml(value)}") == {"value": value}
