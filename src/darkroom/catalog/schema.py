"""The JSON Schema of one image task, built from a card: what validates a request is what is published for its model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from darkroom.catalog.card import Card, Kind, Parameter

DIALECT = "https://json-schema.org/draft/2020-12/schema"
JSON_TYPES = {Kind.FLOAT: "number"}  # every other kind has JSON Schema's own name
FORMATS = {  # the pattern says what the format alone does not: version 4, and a scheme and a host to call
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$",
    "uri": "^[hH][tT][tT][pP][sS]?://[^/?#]",
}


def task_schema(card: Card) -> dict[str, Any]:
    """JSON Schema 2020-12 of one task for this card, nested as it is sent, properties in the card's order.

    Every object refuses unknown names. A size may be left out when something else gives it (`anyOf`), and its two
    numbers come together (`dependentRequired`).
    """
    root = _object()
    for path, parameter in card.parameters.items():
        _place(root, path, parameter)
    _require(root, card)
    return {"$schema": DIALECT, "title": f"A picture by {card.name} ({card.id})", **root}


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False}


def _place(root: dict[str, Any], path: str, parameter: Parameter) -> None:
    """Put one parameter where its path says, making the objects on the way; entries of an array are its items."""
    *parents, name = path.split(".")
    node = root
    for parent in parents:
        node = node["properties"].setdefault(parent, _object())
        node = node["items"] if node["type"] == "array" else node
    node["properties"][name] = _property(parameter) | node["properties"].pop(name, {})
    if parents and parameter.required:
        node.setdefault("required", []).append(name)


def _property(parameter: Parameter) -> dict[str, Any]:
    if parameter.type is Kind.OBJECT:
        body = {"type": "object"} if parameter.open else _object()
    elif parameter.items is not None:
        body = {"type": "array", "items": _object() if parameter.items is Kind.OBJECT else _type(parameter.items)}
    else:
        body = _type(parameter.type) | _bounds(parameter)
    if parameter.items is not None:
        body |= _given({"minItems": parameter.min_items, "maxItems": parameter.max_items})
    if parameter.or_list:
        body = {"anyOf": [body, {"type": "array", "items": body, "minItems": 1}]}
    return body | _given({"default": parameter.default, "description": parameter.meaning or None})


def _type(kind: Kind) -> dict[str, Any]:
    return {"type": JSON_TYPES.get(kind, kind.value)}


def _bounds(parameter: Parameter) -> dict[str, Any]:
    return _given(
        {
            "minimum": parameter.min,
            "maximum": parameter.max,
            "multipleOf": parameter.step,
            "minLength": parameter.min_length,
            "maxLength": parameter.max_length,
            "enum": list(parameter.choices) or None,
            "const": parameter.value,
            "format": parameter.format,
            "pattern": FORMATS.get(parameter.format or ""),
        }
    )


def _given(keywords: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keywords.items() if value is not None}


def _require(root: dict[str, Any], card: Card) -> None:
    """The rules between fields of the task itself: what must be there, alone, together or instead."""
    top = {path: parameter for path, parameter in card.parameters.items() if "." not in path}
    root["required"] = [path for path, parameter in top.items() if parameter.required and not parameter.unless]
    together = {path: list(parameter.together) for path, parameter in top.items() if parameter.together}
    if together:
        root["dependentRequired"] = together
    for instead in dict.fromkeys(parameter.unless for parameter in top.values() if parameter.unless):
        absent = [path for path, parameter in top.items() if parameter.unless == instead and parameter.required]
        root.setdefault("allOf", []).append({"anyOf": [{"required": absent}, _requires(instead.split("."))]})


def _requires(path: Iterable[str]) -> dict[str, Any]:
    """A schema that asks for one nested field to be there."""
    name, *rest = path
    return {"required": [name]} | ({"properties": {name: _requires(rest)}} if rest else {})
