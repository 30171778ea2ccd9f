"""`tests/failures.md` names real tests, and every failure that a lease must survive."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [line for line in (TESTS / "failures.md").read_text("utf-8").splitlines() if re.match(r"\| [A-Z]\d", line)]
WANTED = {
    *(f"A{n}" for n in range(1, 23)),
    *(f"L{n}" for n in range(1, 19)),
    *(f"S{n}" for n in range(1, 17)),
    *(f"R{n}" for n in range(1, 16)),
    *(f"D{n}" for n in range(1, 16) if n != 14),  # the beat is one frame in a thread: there is no process of its own
    *(f"T{n}" for n in range(1, 13)),
    *(f"U{n}" for n in (1, 3, 4, 5, 6)),
}


def functions_of(file: str) -> set[str]:
    """Return the names of a file's tests."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_failure_has_a_row_with_a_test() -> None:
    """None is left out, and none rests on words alone."""
    assert {row.split("|")[1].strip() for row in ROWS} == WANTED
    assert [row for row in ROWS if "::test_" not in row] == []


def test_the_named_tests_exist() -> None:
    """A test that was renamed takes its row along."""
    named = [match for row in ROWS for match in re.findall(r"`([\w/]+\.py)::(\w+)`", row)]
    assert [f"{file}::{name}" for file, name in named if name not in functions_of(file)] == []
    assert len(named) >= len(ROWS)
