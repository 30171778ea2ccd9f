"""The README's commands and snippets do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^<!-- (file: (?P<file>\S+)|run) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which this installation's commands are found and the user's own state is not."""
    home = tmp_path / "home"
    home.mkdir()
    keep = {
        name: value for name, value in os.environ.items() if not name.startswith(("PERSISTENT_RUNNER_", "RESCALE_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return keep | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PATH": path}


def test_the_snippets_run(tmp_path: Path, environment: dict[str, str]) -> None:
    """A reader who copies the README's files and snippets, in their order, sees them work."""
    kinds = []
    for block in BLOCK.finditer(README):
        text = block["text"]
        kinds.append(block["file"] or block["language"])
        if block["file"]:
            target = tmp_path / block["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            continue
        command = ["bash", "-euc", text] if block["language"] == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
    assert kinds == ["beam/study.toml", "beam/case/beam.inp.j2", "beam/case/beam.py", "sh", "sh", "sh", "python"]
    assert (tmp_path / "runs" / "beam" / "trials.csv").read_text().count("COMPLETE") == 12


def test_the_two_commands_stand_first() -> None:
    """The main command and the test command are there word for word, as CI and newcomers run them."""
    assert (
        "\npython3 -m venv .venv && .venv/bin/pip install -q -e '.[local]' && .venv/bin/run-study studies/plate\n"
        in README
    )
    assert "\npython3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest\n" in README


def test_the_exit_codes_are_the_tool_s_own() -> None:
    """The README's table of exit codes says what the errors carry."""
    from persistent_runner import errors

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RunnerError)
    }
    assert raised <= listed
    assert listed == {0, 1, 2, 3, 4, 5, 6, 130}
