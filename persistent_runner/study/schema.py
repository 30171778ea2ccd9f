"""The JSON Schema of study.toml, made from its models: editors complete keys by it and underline mistakes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from persistent_runner.render import Delimiters
from persistent_runner.study.spec import StudySpec

if TYPE_CHECKING:
    from pydantic_core import core_schema


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a whole study.toml.

    It accepts every study.toml that `StudySpec.load` accepts, and refuses unknown keys, wrong types and wrong words.
    What lies between tables (a metric that is not there, a template's unknown name) is for `run-study --check` alone.
    """
    found = StudySpec.model_json_schema(schema_generator=_TomlSchema)
    found["$defs"]["StudyTable"]["required"].remove("name")  # `load` takes the folder's name
    for table in found["properties"].values():
        table.pop("default", None)  # a table that is left out is as if all its keys were
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "study.toml of persistent_runner",
        **found,
        "description": "A study: what is varied, what one trial runs, how its numbers are read, and where it runs.",
    }


class _TomlSchema(GenerateJsonSchema):
    """Pydantic's, where a key that is left out is no null, and what is said of a key is the text under it."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        if isinstance(schema.get("default"), BaseModel) or found.get("default", "") in (None, ""):
            found.pop("default", None)  # it says nothing, or could not be written
        return found

    def encode_default(self, dft: Any) -> Any:
        return list(dataclasses.astuple(dft)) if isinstance(dft, Delimiters) else super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        if "patternProperties" in found:
            found["additionalProperties"] = False  # else any other name would do
        return found

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found, keys = super().model_schema(schema), _texts(schema["cls"])
        del found["title"]
        found["description"] = " ".join(found["description"].split())
        found["properties"] = {key: found["properties"][key] for key in keys if key in found["properties"]}
        for key, of in found["properties"].items():
            if keys[key]:
                of["description"] = keys[key]
        if "const" in found["properties"].get("type", {}):
            # it tells the entries of [space] apart, and has a default for Python alone
            found["required"] = ["type", *found["required"]]
            del found["properties"]["type"]["default"]
        return found


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the text under each field of a model, by its key, the model's own fields before those that it inherits.

    Pydantic's `use_attribute_docstrings` would read the source at each start, and that takes longer than all else.
    """
    found: dict[str, str] = {}
    for cls in model.__mro__[: model.__mro__.index(BaseModel)]:
        (tree,) = ast.parse(inspect.getsource(cls)).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise([*tree.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id[0] != "_":
                key = model.model_fields[field.target.id].alias or field.target.id
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                found.setdefault(key, " ".join(text.split()))
    return found
