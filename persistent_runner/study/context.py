"""What the lines of a deck belong to: a keyword of Abaqus or CalculiX, dictionaries of OpenFOAM, another heading."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner.study.deck import Deck

_HEADING = re.compile(r"\s*\*([A-Za-z][A-Za-z ]*)|\s*\[(\w[\w ]*)\]")
_REMARK = re.compile(r"\s*(?:\*\*|//|#|!|;|\$|%|/\*)")
_FOAM = re.compile(r"^\s*FoamFile\b", re.MULTILINE)
_FOAM_FOLDERS = ("0/", "0.orig/", "constant/", "system/")
_FOAM_REMARK = re.compile(r"/\*.*?\*/|//[^\n]*|(?<![^\n])[ \t]*#include[^\n]*", re.DOTALL)
_FOAM_SIGN = re.compile(r"\"[^\"]*\"|[{}();]|[^\s{}();\"]+")
_SHELL = re.compile(r"#!.*\b(?:ba|da|k|z)?sh\b")

Syntax = Literal["abaqus", "foam", "shell", ""]


@dataclass(frozen=True)
class Context:
    """What a line belongs to.

    `words` are for people; `names` is the keyword, or the dictionaries and lists around the line, the outermost first.
    `is_remark` says that nothing reads the line, `is_head` that it is the keyword itself.
    """

    words: str = ""
    names: tuple[str, ...] = ()
    is_remark: bool = False
    is_head: bool = False


def within(context: Context, before: str) -> Context:
    """Return the context behind some text of a line of OpenFOAM's, which may open and close dictionaries itself."""
    names = [*context.names]
    words: list[str] = []
    for sign in _FOAM_SIGN.findall(before):
        if sign == "{":
            names += words[:1]
        elif sign == "}":
            names = names[:-1]
        elif sign != ";":
            words.append(sign)
            continue
        words = []
    return replace(context, words=" ".join(names), names=tuple(names), is_remark="//" in before)


def syntax_of(deck: Deck) -> Syntax:
    """Return whose language a deck is written in; empty where that does not matter."""
    if deck.is_abaqus:
        return "abaqus"
    if _SHELL.match(deck.text):
        return "shell"
    return "foam" if deck.path.startswith(_FOAM_FOLDERS) or _FOAM.search(deck.text) else ""


def contexts(deck: Deck) -> list[Context]:
    """Return the context of each line."""
    return list(_of_dictionaries(deck) if syntax_of(deck) == "foam" else _of_keywords(deck))


def _of_keywords(deck: Deck) -> Iterator[Context]:
    below = Context(names=(PurePosixPath(deck.path).stem,))
    for line in deck.lines:
        if _REMARK.match(line):
            yield Context(is_remark=True)
        elif head := _HEADING.match(line):
            name = (head[1] or head[2]).strip().lower()
            below = Context(re.sub(r"\s*,\s*", ", ", line.strip()), (name,))
            yield Context(below.words, below.names, is_head=True)
        else:
            yield below


def _of_dictionaries(deck: Deck) -> Iterator[Context]:
    """Yield what is open where a line begins. A word before a bracket is its name, in whatever line it stands."""
    opened: list[tuple[str, str]] = []
    words: list[str] = []
    plain = _FOAM_REMARK.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), deck.text).split("\n")
    for line, read in zip(deck.lines, plain, strict=True):
        names = tuple(name for _, name in opened if name)
        yield Context(" ".join(names), names, is_remark=bool(line.strip()) and not read.strip())
        for sign in _FOAM_SIGN.findall(read):
            if sign in "{(":
                opened.append((sign, words[0] if words else ""))
            elif sign in "})":
                while opened and opened.pop()[0] != {"}": "{", ")": "("}[sign]:
                    pass
            elif sign != ";":
                words.append(sign)
                continue
            words = []
