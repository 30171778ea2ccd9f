"""The lines of a TOML file: where each key stands, and what is wrong with one that is not TOML, in plain words."""

from __future__ import annotations

import ast
import re

Keys = tuple[str | int, ...]
"""The names of a key, from its table on; a number is the position of a table among several, or of an item."""

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_NUMBER = r"[+-]?\d[\d_]*(?:\.\d+)?"


def key_lines(text: str) -> dict[Keys, int]:
    """Return the first line of each table and key. A key inside a text of several lines may be counted too."""
    found: dict[Keys, int] = {}
    counts: dict[Keys, int] = {}
    table: Keys = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[2])
            found.setdefault(table, number)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
                found[table] = number
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def in_words(text: str, said: str) -> str:
    """Return the line of a text that is not TOML, and what is wrong with it; `said` is what tomllib said of it."""
    lines = text.replace("\r\n", "\n").split("\n")
    place = _PLACE.search(said)
    what = said[: place.start()] if place else said
    if place and place[1]:
        number, column = int(place[1]), int(place[2])
    else:
        number = _never_closed(lines, what)
        column = len(lines[number - 1]) + 1
    line = lines[number - 1]
    before, table, rest = key_lines("\n".join(lines[: number - 1])), _table_of(lines[: number - 1]), line[column - 1 :]
    if not re.search(r"\benv\b", f"{table} {line}"):
        return f"line {number}: {_meaning(what, line, rest, before, table)}\n    {line.strip()}"
    hidden = f"{line.partition('=')[0]}= ..."  # a token may stand there: it is not quoted
    return f"line {number}: {_meaning(what, hidden, '...', before, table)}"


def _meaning(what: str, line: str, rest: str, before: dict[Keys, int], table: str) -> str:
    if declared := re.match(r"Cannot (?:declare|mutate immutable namespace) (\(.*\))", what):
        keys: Keys = ast.literal_eval(declared[1])
        return f"[{'.'.join(map(str, keys))}] is there already{_at(before, keys)}; remove one of them, or rename it"
    if what == "Cannot overwrite a value":
        return _twice(line, before, table)
    if twice := re.match(r"Duplicate inline table key '(.*)'", what):
        return f"{twice[1]} stands twice between the braces; remove one of them"
    if what == "Invalid value":
        return _no_value(rest, line)
    if what.startswith("Expected newline"):
        return _more_than_a_value(line, rest)
    return next((words for pattern, words in _WORDS if re.match(pattern, f"{what}\n{line}")), what)


_UNCLOSED = "a list above this line is not closed; close it with ]"
_WORDS = (
    (
        r"(Illegal|Found invalid) character '\\n'|Expected \"'\"",
        "a quotation mark is not closed on this line",
    ),
    (r"Illegal|Found invalid", "a control character stands in the line; remove it"),
    (
        r"Unescaped '\\'",
        r"""in "double quotes" a \ is a special sign; write the text in 'single quotes', as a regex""",
    ),
    (
        r"Unterminated string",
        "a text of several lines is not closed; close it with the three quotation marks that it began with",
    ),
    (r"Expected '=' after a key", "a key and its value are written as in key = value"),
    (r"Unclosed array", _UNCLOSED),
    (
        r"Unclosed inline table|.*\n.*\{",
        "what stands between braces stands on one line, with commas between, and none at its end",
    ),
    (r"Invalid statement", "a line begins with the name of a key, or with the [ of a table's header"),
    (r"Expected '\]", "the header of a table is not closed; close it with ]"),
)
"""What tomllib says (a regex, with the line below it) in words."""


def _twice(line: str, before: dict[Keys, int], table: str) -> str:
    """Return what is wrong with a key, or a table's header, whose name is taken."""
    if header := _HEADER.match(line):
        return f"{header[2]} is a value already{_at(before, _parts(header[2]))}, and cannot be a table as well"
    key = _KEY.match(line)
    if not key:  # the end of a value of several lines
        return f"a key of [{table}] stands there twice; remove one of them"
    keys = (*(_parts(table) if table else ()), *_parts(key[1]))
    return f"{key[1]} stands twice in [{table}]{_at(before, keys, ' first')}; remove one of them"


def _at(before: dict[Keys, int], keys: Keys, first: str = "") -> str:
    line = before.get(keys)
    return f",{first} in line {line}" if line else ""


def _no_value(rest: str, line: str) -> str:
    if _KEY.match(rest):  # where an item of a list was to come
        return _UNCLOSED
    word = re.split(r"[,}\]#]", rest)[0].strip()
    key = _KEY.match(line)
    name = key[1] if key else "key"
    if not word:
        return f"a value is missing after {name} ="
    if word.casefold() in ("true", "false"):
        return f"write {word.casefold()} in small letters"
    if word.casefold() in ("none", "null"):
        return "there is no such value; leave the key out"
    if re.fullmatch(r"[+-]?\.\d+", word):
        return f"a number has a digit before its point: write {word.replace('.', '0.')}"
    text = word.strip("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb`")
    return f'text stands in {"" if text == word else "straight "}quotation marks: write "{text}"'


def _more_than_a_value(line: str, rest: str) -> str:
    value = line.partition("=")[2].partition("#")[0].strip()
    if re.fullmatch(rf"{_NUMBER}\s*[^\W\d_]+", value):
        return f'text stands in quotation marks: write "{value}"'
    if re.fullmatch(r"[+-]?\d+,\d+", value):
        return f"a number has a decimal point: write {value.replace(',', '.')}"
    if re.fullmatch(r"[+-]?0\d+", value):
        return "a whole number has no zeros before it"
    return f"a line has one key and one value, and here follows `{rest.strip()}`"


def _never_closed(lines: list[str], what: str) -> int:
    """Return the number of the line in which begins what is not closed before the end of the text."""
    quote = "'" if '"\'"' in what else '"""' if '"""' in "\n".join(lines) else "'''"
    for number, line in enumerate(lines, 1):
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", line) if quote == "'" else line
        if bare.partition("#")[0].count(quote) % 2 and (quote != "'" or "'''" not in bare):
            return number
    return max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)


def _table_of(lines: list[str]) -> str:
    """Return the name of the table that these lines end in; empty above the first one."""
    return next((header[2].strip() for line in reversed(lines) if (header := _HEADER.match(line))), "")


def _parts(dotted: str) -> Keys:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
