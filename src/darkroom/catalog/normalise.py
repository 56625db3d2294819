"""What clients really send, turned into what the card's page documents; driven by the card alone.

Old spellings and places (`aliases`), other letter case and other names of a choice, list entries wrapped in objects,
nulls for "not given", whole numbers written with a point. Nothing is checked here but that a field is not given twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom.catalog.card import Card, Kind, Parameter
from darkroom.catalog.validate import validate_task, without_nulls
from darkroom.errors import InvalidParameter, Problem
from darkroom.types import Value

ABSENT = object()


class Prepared(Value, frozen=True, kw_only=True):
    """task: in documented form. violations: all, with fields as the client spelled them; [] means it may run.
    spelled: documented path → path as sent, where they differ."""

    task: dict[str, Any]
    violations: list[InvalidParameter]
    spelled: dict[str, str]


def prepare_task(card: Card, task: Mapping[str, Any]) -> Prepared:
    """Normalise one task and validate it against its card. Raises nothing."""
    documented, spelled, twice = normalise(card, task)
    violations = [*twice, *validate_task(card, documented)]
    return Prepared(
        task=documented, violations=[respelled(violation, spelled) for violation in violations], spelled=spelled
    )


def normalise(card: Card, task: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[InvalidParameter]]:
    """(the task in documented form, documented path → path as sent where they differ, fields given twice)."""
    result: dict[str, Any] = without_nulls(task)
    spelled: dict[str, str] = {}
    twice: list[InvalidParameter] = []
    for path, parameter in card.parameters.items():
        for alias in parameter.aliases:
            moved = _take(result, alias.split("."))
            if moved is ABSENT:
                continue
            kept = read(result, path, ABSENT)
            if kept is ABSENT or kept in ([], {}):
                _put(result, path.split("."), moved)
                spelled[path] = alias
            elif moved not in (kept, [], {}):
                message = f"'{alias}' is another name of '{path}': give one of the two."
                twice.append(InvalidParameter(message, parameter=(path, alias), problem=Problem.INCOMPATIBLE))
    for path, parameter in card.parameters.items():
        _rewrite(result, path.split("."), parameter)
    model = result.get("model")
    if isinstance(model, str) and model.strip().lower() in map(str.lower, card.names):
        result["model"] = card.id
    return result, spelled, twice


def read(task: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path, default where it or anything on the way is missing."""
    node: Any = task
    for name in path.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def read_or_default(card: Card, task: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a normalised task, else the card's default for it (None when it has none)."""
    parameter = card.parameters.get(path)
    return read(task, path, parameter.default if parameter else None)


def _take(task: dict[str, Any], path: list[str]) -> Any:
    """Remove and return the value at a path, ABSENT if there is none; objects emptied by that go too."""
    name, *rest = path
    if not rest:
        return task.pop(name, ABSENT)
    inner = task.get(name)
    if not isinstance(inner, dict):
        return ABSENT
    value = _take(inner, rest)
    if value is not ABSENT and not inner:
        del task[name]
    return value


def _put(task: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at a path. What a client put there in place of an object stays, to be refused."""
    *parents, name = path
    for parent in parents:
        inner = task.setdefault(parent, {})
        if not isinstance(inner, dict):
            return
        task = inner
    task[name] = value


def _rewrite(node: Any, path: list[str], parameter: Parameter) -> None:
    """Bring the value at a path, in every entry of the lists on the way, into its documented form."""
    name, *rest = path
    if isinstance(node, list):
        for entry in node:
            _rewrite(entry, path, parameter)
    elif isinstance(node, dict) and name in node:
        if rest:
            _rewrite(node[name], rest, parameter)
        else:
            node[name] = _documented(node[name], parameter)


def _documented(value: Any, parameter: Parameter) -> Any:
    if isinstance(value, list):
        if parameter.item_key is not None:
            return [entry.get(parameter.item_key, entry) if isinstance(entry, dict) else entry for entry in value]
        return [_documented(entry, parameter) for entry in value] if parameter.or_list else value
    if parameter.choices and isinstance(value, str):
        return choice(parameter, value)
    if parameter.type is Kind.INTEGER and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def choice(parameter: Parameter, value: str) -> str:
    """The documented spelling of a choice, whatever its case; the value itself where it is none."""
    known = {name.lower(): name for name in parameter.choices}
    known |= {other.lower(): name for other, name in parameter.choice_aliases.items()}
    return known.get(value.strip().lower(), value)


def respelled(violation: InvalidParameter, spelled: Mapping[str, str]) -> InvalidParameter:
    """The same violation in the client's words, when it used another name for the field."""
    message, parameter = violation.message, violation.parameter
    for path, alias in spelled.items():
        message = message.replace(f"'{path}", f"'{alias}")
        if isinstance(parameter, str):
            parameter = _renamed(parameter, path, alias)
        elif parameter:
            parameter = tuple(_renamed(name, path, alias) for name in parameter)
    return InvalidParameter(
        message,
        parameter=parameter or (),
        problem=violation.problem,
        expected=violation.expected,
        allowed=violation.allowed,
    )


def _renamed(parameter: str, path: str, alias: str) -> str:
    """A field at a path or within it, by the path's other name."""
    inside = parameter == path or parameter.startswith((f"{path}.", f"{path}["))
    return alias + parameter[len(path) :] if inside else parameter
