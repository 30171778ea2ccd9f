"""One trial of a study in a folder of this machine, as its study.toml says, without a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from persistent_runner.inputs import walk_inputs
from persistent_runner.render import render_inputs
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.extract import Extract
from persistent_runner.study.readers import Readings
from persistent_runner.study.space import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

STUDIES = Path(__file__).parents[2] / "studies"
HOSTS = "localhost\n"


def needs(*programs: str, package: str) -> pytest.MarkDecorator:
    """Skip, and say why, where a solver is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} here (Debian: apt install {package})")


def mpi_compiles() -> bool:
    """Whether a program with MPI can be made here: Debian's openmpi-bin has the compiler, but not its headers."""
    if shutil.which("mpirun") is None or shutil.which("mpicc") is None:
        return False
    command = ["mpicc", "-E", "-x", "c", "-"]
    return subprocess.run(command, input=b"#include <mpi.h>\n", capture_output=True, check=False).returncode == 0


class Study:
    """A study's folder, and the folder in which its setup and its trials run, each in one of its own."""

    def __init__(self, name: str, work: Path) -> None:
        self.folder = STUDIES / name
        self.work = work
        self.toml: dict[str, Any] = tomllib.loads((self.folder / "study.toml").read_text("utf-8"))
        self._trials = 0
        if "setup" in self.toml:
            self._run(self.toml["setup"], self.setup, {})

    @property
    def setup(self) -> Path:
        """The setup's folder."""
        return self.work / "setup"

    def parameters(self, varied: dict[str, Any]) -> dict[str, Any]:
        """Return what a template gets: what is varied, the constants and the derived."""
        space: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Parameter])
        return DesignSpace(space.validate_python(self.toml["space"])).complete(varied)

    def trial(self, hosts: str = HOSTS, **varied: Any) -> dict[str, float]:
        """Run one trial to its end; return its metrics."""
        self._trials += 1
        folder = self.work / f"{self._trials:05}"
        self._run(self.toml["trial"], folder, self.parameters(varied), hosts)
        extracts = {name: Extract.model_validate(rule) for name, rule in self.toml["metrics"].items()}
        return Readings(folder, extracts, parameters=self.parameters(varied)).numbers()

    def feasible(self, metrics: dict[str, float]) -> bool:
        """Whether all constraints of study.toml hold."""
        limits: dict[str, dict[str, float]] = self.toml["constraints"]
        return all(
            limit.get("min", -float("inf")) <= metrics[name] <= limit.get("max", float("inf"))
            for name, limit in limits.items()
        )

    def _run(self, table: dict[str, Any], folder: Path, parameters: dict[str, Any], hosts: str = HOSTS) -> None:
        folder.mkdir()
        for path, content, mode in render_inputs(walk_inputs(self.folder, table.get("inputs", [])), parameters):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode)
        machines = self.work / "hosts"
        machines.write_text(hosts)
        variables = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TRIAL_HOSTS": str(machines),
            "TRIAL_CORES": str(len(hosts.splitlines())),
            "SETUP_DIR": str(self.setup),
            "PWD": str(folder),
        }
        lines: str | Sequence[str] = table["command"]
        process = subprocess.Popen(
            ["bash", "-c", "set -eo pipefail\n" + (lines if isinstance(lines, str) else "\n".join(lines))],
            cwd=folder,
            env=os.environ | self.toml["cluster"].get("env", {}) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                said, _ = process.communicate(timeout=60)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # a solver may have processes of its own
                raise
        assert process.returncode == 0, said[-4000:]
