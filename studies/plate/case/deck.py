"""Read a deck in CalculiX's format: the cards that the plate's deck uses, and no others.

A card, an option or an element that is not known here ends the program: nothing in a deck is passed over in silence.
The format is that of the CalculiX CrunchiX User's Manual, version 2.20, chapter "Input deck format".
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CARDS: dict[str, set[str]] = {  # each with the options that may follow it
    "*HEADING": set(),
    "*INCLUDE": {"INPUT"},
    "*NODE": {"NSET"},
    "*ELEMENT": {"TYPE", "ELSET"},
    "*NSET": {"NSET"},
    "*ELSET": {"ELSET"},
    "*MATERIAL": {"NAME"},
    "*ELASTIC": set(),
    "*SOLID SECTION": {"ELSET", "MATERIAL"},
    "*BOUNDARY": set(),
    "*STEP": set(),
    "*STATIC": set(),
    "*DLOAD": set(),
    "*NODE FILE": {"OUTPUT"},
    "*EL FILE": {"OUTPUT"},
    "*END STEP": set(),
}
NO_DATA_NEEDED = {"*HEADING", "*NODE FILE", "*EL FILE"}  # what stands below them changes no result


class Deck:
    """What a deck and the files it includes say. Nodes and elements keep their numbers; a set is a list of numbers."""

    def __init__(self, path: Path) -> None:
        self.nodes: dict[int, list[float]] = {}
        self.elements: dict[int, list[int]] = {}
        self.sets: dict[str, list[int]] = {}
        self.young, self.poisson, self.thickness = 0.0, 0.0, 0.0
        self.boundary: list[tuple[str, int, int]] = []  # set, first and last direction held at zero
        self.pressure: list[tuple[str, str, float]] = []  # set, side P1..P4, pressure on it
        self._read(path)

    def members(self, group: str) -> list[int]:
        """Numbers in the set `group`."""
        if group not in self.sets:
            sys.exit(f"the deck uses the set {group}, but no *NSET or *ELSET defines it")
        return self.sets[group]

    def _read(self, path: Path) -> None:
        if not path.is_file():
            sys.exit(f"{path} is not there; `python3 mesh.py plate.inp` writes the mesh")
        card, options = "", {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.startswith("**") or not line.strip():
                continue
            fields = [field.strip() for field in line.strip().rstrip(",").split(",")]
            try:
                if line.startswith("*"):
                    card, options = fields[0].upper(), dict(_option(field) for field in fields[1:])
                    if card not in CARDS or options.keys() - CARDS[card]:
                        raise ValueError("not known to this solver")  # noqa: TRY301
                    if card == "*INCLUDE":
                        self._read(path.with_name(options["INPUT"]))
                elif card not in NO_DATA_NEEDED:
                    self._data(card, options, fields)
            except (ValueError, LookupError) as error:
                below = "" if line.startswith("*") else f" (under {card or 'no card'})"
                sys.exit(f"{path}, line {number}: {line.strip()}{below}: {error}")

    def _data(self, card: str, options: dict[str, str], fields: list[str]) -> None:
        if card == "*NODE":
            self.nodes[int(fields[0])] = [float(value) for value in fields[1:3]]
        elif card == "*ELEMENT" and options["TYPE"].upper() == "CPS8R" and len(fields) == 9:
            self.elements[int(fields[0])] = [int(value) for value in fields[1:]]
        elif card in ("*NSET", "*ELSET"):
            self.sets.setdefault(options[card[1:]].upper(), []).extend(int(value) for value in fields)
        elif card == "*ELASTIC":
            self.young, self.poisson = (float(value) for value in fields)
        elif card == "*SOLID SECTION":
            (self.thickness,) = (float(value) for value in fields)
        elif card == "*BOUNDARY" and len(fields) == 3:
            self.boundary.append((fields[0].upper(), int(fields[1]), int(fields[2])))
        elif card == "*DLOAD":
            self.pressure.append((fields[0].upper(), fields[1].upper(), float(fields[2])))
        else:
            raise ValueError("not known to this solver")


def _option(field: str) -> tuple[str, str]:
    name, _, value = field.partition("=")
    return name.strip().upper(), value.strip()
