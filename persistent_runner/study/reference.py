"""The reference page of study.toml: every table and key in words, from the JSON Schema of its models."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from persistent_runner.study.schema import study_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WIDTH = 120
_HEAD = """# Every key of study.toml

Each key stands with its type, its default and an example.

- A *duration* is `"90s"`, `"20m"`, `"8h"` or `"0.2s"`, above zero.
- A *formula* is arithmetic over names: numbers, `+ - * / // % **`, comparisons, `and or not`, `a if b else c`, `pi`,
  and functions such as `min`, `max`, `round`, `sqrt`, `exp`, `log` and `sin`.
- The *name* of a parameter or a metric has letters, digits and `_`; it does not begin with a digit, and is no word of
  Python.
- A key that is not listed here is an error. `run-study STUDY --check` names every mistake in a study before anything is
  leased.

An editor that knows TOML schemas (Taplo, or Even Better TOML in VS Code) completes the keys and underlines mistakes.
`persistent-runner schema > study.schema.json` writes the schema beside a study, whose first line then names it:

```toml
#:schema ./study.schema.json
```

This page is made from the models that read study.toml, by `persistent-runner schema --markdown`.
"""
_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "table",
}


def reference_page() -> str:
    """Return the page, in Markdown."""
    return "\n".join([_HEAD, *_Page(study_schema()).lines()]).rstrip() + "\n"


class _Page:
    """Writes a JSON Schema table by table, in the schema's own order."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._told: dict[str, str] = {}  # keys of tables within tables, by where they stand first

    def lines(self) -> Iterator[str]:
        """Yield the blocks of the page, each with its own line ends."""
        for name, property_ in self._schema["properties"].items():
            table = self._resolved(property_)
            place, _, what = table["description"].partition(": ")
            needed = " Required." if name in self._schema["required"] else ""
            yield f"## `{place}`\n\n{_wrapped(what[0].upper() + what[1:] + needed)}\n"
            if name == "space":
                yield from self._kinds(table)
            elif "properties" in table:
                yield from self._keys(table)
            else:
                yield from self._own_names(place, table)

    def _own_names(self, place: str, table: dict[str, Any]) -> Iterator[str]:
        """Write a table whose keys are names of the user's own."""
        for example in table.get("examples", ()):
            for design in example if isinstance(example, list) else [example]:
                lines = [place, *(f"{key} = {in_toml(value)}" for key, value in design.items())]
                yield "\n".join(["```toml", *lines, "```\n"])
        (entry,) = table.get("items", table)["patternProperties"].values()
        of = self._resolved(entry)
        if "properties" not in of:
            yield f"Each value: {self._type(of)}.\n"
            return
        place, _, what = of["description"].partition(": ")
        yield _wrapped(f"`{place}`: {what}") + "\n"
        yield from self._keys(of)

    def _kinds(self, table: dict[str, Any]) -> Iterator[str]:
        """Write the kinds of entries of [space]."""
        (entry,) = table["patternProperties"].values()
        for kind in map(self._resolved, entry["oneOf"]):
            keys = kind.get("properties", {})
            needed = {key: keys[key].get("const") or keys[key]["examples"][0] for key in kind.get("required", ())}
            yield f"### `NAME = {in_toml(needed or kind['examples'][0])}`\n\n{_wrapped(kind['description'])}\n"
            if keys:
                yield from self._keys(kind)

    def _keys(self, table: dict[str, Any], indent: str = "") -> Iterator[str]:
        for key, property_ in table["properties"].items():
            of = self._resolved(property_)
            if key in table.get("required", ()):
                default = "required"
            else:
                default = f"default `{in_toml(of['default'])}`" if "default" in of else "optional"
            example = f", as in `{key} = {in_toml(of['examples'][0])}`" if "examples" in of else ""
            # two blanks at the end are a line's end in Markdown
            yield f"{indent}- **`{key}`** ({self._type(of)}; {default}){example}  "
            yield _wrapped(of["description"], indent + "  ")
            inner = self._resolved(of.get("items", of))
            if "properties" not in inner:
                continue
            first = self._told.setdefault(json.dumps(inner["properties"]), key)
            if first == key:
                yield from self._keys(inner, indent + "  ")
            else:
                yield f"{indent}  Its keys are those of `{first}`."
        if not indent:
            yield ""

    def _resolved(self, of: Mapping[str, Any]) -> dict[str, Any]:
        """Return a schema with what it refers to; its own words win over those."""
        if "$ref" not in of:
            return dict(of)
        referred: dict[str, Any] = self._schema["$defs"][of["$ref"].rpartition("/")[2]]
        return referred | {key: of[key] for key in of if key != "$ref"}

    def _type(self, of: Mapping[str, Any]) -> str:
        """Return the type of a value in words."""
        if "title" in of:
            return str(of["title"])
        if "const" in of or "enum" in of:
            words = [f"`{in_toml(word)}`" for word in of.get("enum", [of.get("const")])]
        elif "anyOf" in of:
            words = [self._type(each) for each in of["anyOf"]]
            words = [word for word in words if word != "whole number" or "number" not in words]
        elif isinstance(of["type"], list):
            words = [_WORDS[each] for each in of["type"]]
        elif of["type"] == "array":
            words = [f"list of {self._type(self._resolved(of['items']))}s"]
        else:
            limit = f" from {of['minimum']}" if "minimum" in of else ""
            limit += f" above {of['exclusiveMinimum']:g}" if "exclusiveMinimum" in of else ""
            words = [_WORDS[of["type"]] + limit]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def in_toml(value: Any) -> str:
    """Return a value of JSON as TOML writes it on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {in_toml(each)}" for key, each in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, str) and "\\" in value and "'" not in value:
        return f"'{value}'"  # a regular expression, as people write it
    return json.dumps(value)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
