"""Which command runs a deck, where its files make it clear."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistent_runner.study.deck import Deck

_CALCULIX = re.compile(r"^\s*\*(?:HEADING|NODE|INCLUDE|STEP|MATERIAL|ELEMENT)\b", re.IGNORECASE | re.MULTILINE)
_STEP = re.compile(r"^\s*\*STEP\b", re.IGNORECASE | re.MULTILINE)
_PIPES = re.compile(r"^\s*\[PIPES\]", re.IGNORECASE | re.MULTILINE)
_APPLICATION = re.compile(r"^\s*application\s+(\w+)\s*;", re.MULTILINE)


@dataclass(frozen=True)
class Solver:
    """What runs a deck: its name for people, the lines of the command, and what its environment needs."""

    name: str
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    """A line for [cluster] that some machines need"""


def solver_of(decks: Mapping[str, Deck]) -> Solver | None:
    """Return what runs a case with these text files; None where that is not clear."""
    return _openfoam(decks) or _calculix(decks) or _epanet(decks) or _python(decks)


def _openfoam(decks: Mapping[str, Deck]) -> Solver | None:
    control = decks.get("system/controlDict")
    application = _APPLICATION.search(control.text) if control else None
    if application is None:
        return None
    mesh = {"system/blockMeshDict", "constant/polyMesh/blockMeshDict"} & decks.keys()
    programs = [*(["blockMesh"] if mesh else []), application[1]]
    # the names that OpenFOAM's own runApplication gives them
    return Solver(
        "OpenFOAM",
        [f"{program} | tee log.{program}" for program in programs],
        hint='env     = { WM_PROJECT_DIR = "/usr/share/openfoam" }   # where no login environment sets OpenFOAM up',
    )


def _inp(decks: Mapping[str, Deck], kind: re.Pattern[str]) -> list[Deck]:
    return [
        deck for deck in decks.values() if PurePosixPath(deck.path).suffix.lower() == ".inp" and kind.search(deck.text)
    ]


def _calculix(decks: Mapping[str, Deck]) -> Solver | None:
    found = _inp(decks, _CALCULIX)
    main = found if len(found) == 1 else [deck for deck in found if _STEP.search(deck.text)]
    if len(main) != 1:
        return None
    name = shlex.quote(main[0].path[: -len(".inp")])
    return Solver("CalculiX", [f"ccx -i {name}"], {"OMP_NUM_THREADS": "1"})


def _epanet(decks: Mapping[str, Deck]) -> Solver | None:
    found = _inp(decks, _PIPES)
    if len(found) != 1:
        return None
    path = found[0].path
    return Solver("EPANET", [f"runepanet {shlex.quote(path)} {shlex.quote(path[: -len('inp')] + 'rpt')}"])


def _python(decks: Mapping[str, Deck]) -> Solver | None:
    found = [path for path in decks if path.endswith(".py")]
    return Solver("Python", [f"python3 {shlex.quote(found[0])}"]) if len(found) == 1 else None
