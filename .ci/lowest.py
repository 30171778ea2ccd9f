"""Print the lowest version of each dependency that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["local"]]:
    name, _, lowest = re.match(r"([\w.-]+)(\[.*\])?>=([\d.]+)", requirement).groups()
    print(f"{name}=={lowest}")  # noqa: T201 - for pip
