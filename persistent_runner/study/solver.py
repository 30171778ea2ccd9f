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
_MESHES = {"system/blockMeshDict", "constant/polyMesh/blockMeshDict"}
_START = "cp -r 0.orig 0"
# the lines of an Allrun that say nothing that a trial needs, and those whose steps are plain
_OF_NO_ACCOUNT = re.compile(r"(?:#.*|cd [^;&|]*(?:\|\| exit(?: 1)?)?|(?:\.|source) \S*RunFunctions|)")
_ITS_OWN = re.compile(r"application=(?:\$\(getApplication\)|`getApplication`)")
_RUN = re.compile(r"runApplication +(?P<program>\w+)(?P<options>(?: +[\w./:-]+)*)")


@dataclass(frozen=True)
class Solver:
    """What runs a deck: its name for people, the lines of the command, and what its environment needs."""

    name: str
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    """A line for [cluster] that some machines need"""
    note: str = ""
    """What is to be said of the command"""
    logs: tuple[str, ...] | None = None
    """The logs that the command writes and that may hold results; None where that is not known"""


def solver_of(decks: Mapping[str, Deck]) -> Solver | None:
    """Return what runs a case with these text files; None where that is not clear."""
    return _openfoam(decks) or _calculix(decks) or _epanet(decks) or _python(decks)


def _openfoam(decks: Mapping[str, Deck]) -> Solver | None:
    control = decks.get("system/controlDict")
    application = _APPLICATION.search(control.text) if control else None
    if application is None:
        return None
    starts = any(path.startswith("0.orig/") for path in decks) and not any(path.startswith("0/") for path in decks)
    meshes = any(path.removesuffix(".gz") in _MESHES for path in decks)
    steps = [*([_START] if starts else []), *(["blockMesh"] if meshes else []), application[1]]
    note = ""
    if "Allrun" in decks:
        plain = _steps_of(decks["Allrun"].text, application[1])
        steps = plain or steps
        note = (
            "Its steps are those of Allrun."
            if plain
            else "Allrun does more than could be read; its steps are not taken over: compare [trial] command with it."
        )
    programs = [step.split()[0] for step in steps if step != _START]
    # the names that OpenFOAM's own runApplication gives them
    return Solver(
        "OpenFOAM",
        [step if step == _START else f"{step} | tee log.{step.split()[0]}" for step in steps],
        hint='env     = { WM_PROJECT_DIR = "/usr/share/openfoam" }   # where no login environment sets OpenFOAM up',
        note=note,
        logs=tuple(f"log.{program}" for program in programs if program != "blockMesh"),
    )


def _steps_of(allrun: str, application: str) -> list[str]:
    """Return the steps of an Allrun; none where one of its lines is more than a plain step."""
    steps = []
    for line in allrun.splitlines():
        plain = line.partition(" #")[0].strip()
        own = re.sub(r"\$\(getApplication\)|`getApplication`|\$\{?application\}?", application, plain)
        if _OF_NO_ACCOUNT.fullmatch(plain) or _ITS_OWN.fullmatch(plain):
            continue
        if plain == "restore0Dir":
            steps.append(_START)
        elif run := _RUN.fullmatch(own):
            steps.append(run["program"] + " ".join(["", *run["options"].split()]))
        else:
            return []
    return steps


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
    return Solver("CalculiX", [f"ccx -i {name}"], {"OMP_NUM_THREADS": "1"}, logs=())


def _epanet(decks: Mapping[str, Deck]) -> Solver | None:
    found = _inp(decks, _PIPES)
    if len(found) != 1:
        return None
    path = found[0].path
    return Solver("EPANET", [f"runepanet {shlex.quote(path)} {shlex.quote(path[: -len('inp')] + 'rpt')}"])


def _python(decks: Mapping[str, Deck]) -> Solver | None:
    found = [path for path in decks if path.endswith(".py")]
    return Solver("Python", [f"python3 {shlex.quote(found[0])}"]) if len(found) == 1 else None
