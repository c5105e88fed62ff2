"""JSON schemas from the models, in the form that Kubernetes calls structural.

An API server takes less than pydantic writes: no references, unions, nulls, sets or open bounds,
and CEL rules only over what is bounded. Here references are resolved in place, `X | None` becomes X
(absent is how a field has no value), and everything that the server would refuse raises while
generating, with the field's path, instead of at `kubectl apply`.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from kubequant.api.base import VALIDATIONS

if TYPE_CHECKING:
    from pydantic_core import core_schema

_KEPT: Final = frozenset(
    {
        "type",
        "format",
        "description",
        "default",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "items",
        "minItems",
        "maxItems",
        "properties",
        "required",
        "additionalProperties",
        "maxProperties",
        VALIDATIONS,
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }
)
_DROPPED: Final = frozenset({"title"})
"""Titles repeat the fields' names."""


class NotStructuralError(TypeError):
    """A model says what an API server cannot hold; the text names the field."""


class _Generator(GenerateJsonSchema):
    """pydantic's schema, without nulls and with defaults that an API server can apply."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        value = _default(schema.get("default"))
        return inner if value is None else {**self._in_place(inner), "default": value}

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        if not schema.get("strict"):
            raise NotStructuralError("an integer that is not strict takes what a server refuses")
        return super().int_schema(schema)

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        choices = schema["expected"]
        if all(isinstance(choice, str) for choice in choices):
            return {"type": "string", "enum": choices}
        if all(isinstance(choice, int) for choice in choices):
            return {"type": "integer", "enum": choices}
        raise NotStructuralError("a choice must be among strings or among integers")

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        # The form of a map's keys is not structural: the models hold it.
        values = self.generate_inner(schema["values_schema"])
        written: JsonSchemaValue = {"type": "object", "additionalProperties": values}
        if "max_length" in schema:
            written["maxProperties"] = schema["max_length"]
        return written

    def _in_place(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        # A default beside a reference would be wrapped in allOf.
        return {"allOf": [schema]} if "$ref" in schema else schema


def _default(value: Any) -> Any:
    """Return a default as JSON; None where the server has nothing to write out."""
    if isinstance(value, BaseModel):
        # The object alone: its fields' own defaults fill it, where there are any.
        return {} if any(_default(inner) is not None for _, inner in value) else None
    if isinstance(value, tuple):
        return [_default(item) for item in value] or None
    if isinstance(value, str):
        return str(value) or None
    return value if isinstance(value, bool | int) else None


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of `model`, without references.

    Raises:
        NotStructuralError: a field is a union, a set, a float, unbounded, open or without
        description.
    """
    try:
        generated = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    except NotStructuralError as error:
        raise NotStructuralError(f"{model.__name__}: {error}") from None
    definitions = generated.pop("$defs", {})
    return _structural(generated, definitions, path=model.__name__, above=())


def contract_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a document between our own programs.

    As the structural schema, without what only an API server reads, and closed: fields that it does
    not name are refused.
    """
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": model.__name__}
    closed: dict[str, Any] = _closed(structural_schema(model))
    return {**schema, **closed}


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    closed = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if "properties" in node:
        closed["properties"] = {name: _closed(kid) for name, kid in node["properties"].items()}
        closed["additionalProperties"] = False
    elif "additionalProperties" in node:
        closed["additionalProperties"] = _closed(node["additionalProperties"])
    if "items" in node:
        closed["items"] = _closed(node["items"])
    return closed


def _structural(
    node: dict[str, Any], definitions: dict[str, Any], *, path: str, above: tuple[str, ...]
) -> dict[str, Any]:
    """Return `node` resolved, cleaned and checked; `above` names the definitions that hold it."""
    node, above = _resolved(node, definitions, path=path, above=above)
    unknown = node.keys() - _KEPT - _DROPPED
    if unknown:
        raise NotStructuralError(f"{path}: {', '.join(sorted(unknown))} is not structural")
    kept = {key: deepcopy(value) for key, value in node.items() if key in _KEPT}
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    match kept.get("type"):
        case "object":
            _check_object(kept, path)
            if "properties" in kept:
                kept["properties"] = {
                    name: _described(
                        _structural(kid, definitions, path=f"{path}.{name}", above=above),
                        f"{path}.{name}",
                    )
                    for name, kid in kept["properties"].items()
                }
                kept.pop("additionalProperties", None)
            else:
                kept["additionalProperties"] = _structural(
                    kept["additionalProperties"], definitions, path=f"{path}[*]", above=above
                )
        case "array":
            if "maxItems" not in kept or not isinstance(kept.get("items"), dict):
                raise NotStructuralError(f"{path}: a list needs a type of items and a bound")
            kept["items"] = _structural(kept["items"], definitions, path=f"{path}[]", above=above)
        case "string":
            if "maxLength" not in kept and "enum" not in kept and kept.get("format") != "date-time":
                raise NotStructuralError(f"{path}: a string needs a bound")
        case "integer" | "boolean":
            pass
        case other:
            raise NotStructuralError(f"{path}: {other or 'no single type'} is not structural")
    return dict(sorted(kept.items(), key=lambda pair: _ORDER.index(pair[0])))


_ORDER: Final = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    VALIDATIONS,
    "required",
    "properties",
    "additionalProperties",
    "items",
)


def _described(node: dict[str, Any], path: str) -> dict[str, Any]:
    # pydantic leaves out a field's description that its type has too, so this asks the result.
    if "description" not in node:
        raise NotStructuralError(f"{path}: a field needs a description")
    return node


def _check_object(node: dict[str, Any], path: str) -> None:
    if "properties" in node:
        return
    if not isinstance(node.get("additionalProperties"), dict) or "maxProperties" not in node:
        raise NotStructuralError(f"{path}: a map needs a type of values and a bound")


def _resolved(
    node: dict[str, Any], definitions: dict[str, Any], *, path: str, above: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `node` with a reference replaced by what it names, under what stands beside it."""
    merged = dict(node)
    while "$ref" in merged or "allOf" in merged:
        for part in merged.pop("allOf", ()):
            merged = {**part, **merged}
        if "$ref" in merged:
            name = merged.pop("$ref").rpartition("/")[2]
            if name in above:
                raise NotStructuralError(f"{path}: {name} holds itself")
            above = (*above, name)
            if VALIDATIONS in merged and VALIDATIONS in definitions[name]:
                raise NotStructuralError(f"{path}: rules of a field would hide those of its type")
            merged = {**definitions[name], **merged}
    return merged, above
