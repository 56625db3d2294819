"""Every field of every card: missing, wrong type, below, above, off step, not in the list; and edges that must pass.

The cases come from the card as a text of rules (ranges, types), the expectations from what such a rule means; the
validator gets them through the published schema. So a rule that is lost on the way to the schema fails here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from darkroom.catalog.card import Card, Kind, Parameter
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.validate import validate_task
from darkroom.errors import Problem

CATALOG = load_catalog()
WRONG_TYPE = {
    Kind.STRING: 5,
    Kind.INTEGER: "5",
    Kind.FLOAT: "5",
    Kind.BOOLEAN: "true",
    Kind.OBJECT: "x",
    Kind.ARRAY: "x",
}


def valid_task(card: Card) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": "ac17b01d-8c5d-46f9-bd42-227280d05ff3",
        "model": card.id,
        "positivePrompt": "a lighthouse at dusk",
        "width": 1024,
        "height": 768,
    }


def with_value(card: Card, path: str, value: Any) -> dict[str, Any]:
    """A valid task but for the value at a dotted path; entries of an array of objects get their required fields."""
    task = valid_task(card)
    node: Any = task
    *parents, name = path.split(".")
    for depth, parent in enumerate(parents, 1):
        parameter = card.parameters.get(".".join(parents[:depth]))
        if parameter is not None and parameter.type is Kind.ARRAY:
            node[parent] = [{"model": "acme:1@1"}]
            node = node[parent][0]
        else:
            node = node.setdefault(parent, {})
    node[name] = value
    return task


def spelled(path: str) -> str:
    return path.replace("lora.", "lora[0].")


def good_values(parameter: Parameter) -> Iterator[Any]:
    """Values that must pass: defaults, every choice, both ends of every range and one step inside."""
    if parameter.default is not None:
        yield parameter.default
    yield from parameter.choices
    match parameter.type:
        case Kind.STRING if parameter.value is not None:
            yield parameter.value
        case Kind.STRING if parameter.format == "uuid":
            yield "1b9D6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"
        case Kind.STRING if parameter.format == "uri":
            yield from ("http://example.com/a?token=b", "https://example.com")
        case Kind.STRING if not parameter.choices:
            yield from ("é" * (parameter.min_length or 0), "x" * (parameter.max_length or 50_000))
        case Kind.INTEGER | Kind.FLOAT:
            step = parameter.step or 1
            if parameter.min is not None:
                yield from (parameter.min, parameter.min + step)
            if parameter.max is not None:
                yield from (parameter.max, parameter.max - step)
        case Kind.BOOLEAN:
            yield from (True, False)
        case Kind.ARRAY if parameter.items is Kind.STRING:
            yield from (["x"] * (parameter.min_items or 1), ["x"] * (parameter.max_items or 100))


def bad_values(parameter: Parameter) -> Iterator[tuple[Any, Problem]]:
    yield WRONG_TYPE[parameter.type], Problem.TYPE
    match parameter.type:
        case Kind.STRING if parameter.choices:
            yield "nonsense", Problem.CHOICE
        case Kind.STRING if parameter.value is not None:
            yield "nonsense", Problem.CHOICE
        case Kind.STRING if parameter.format is not None:
            yield "nonsense", Problem.FORMAT
        case Kind.STRING:
            if parameter.min_length:
                yield "x" * (parameter.min_length - 1), Problem.TOO_SHORT
            if parameter.max_length is not None:
                yield "é" * (parameter.max_length + 1), Problem.TOO_LONG
        case Kind.INTEGER | Kind.FLOAT:
            yield True, Problem.TYPE
            step = parameter.step or 1
            if parameter.min is not None:
                yield parameter.min - step, Problem.BELOW
            if parameter.max is not None:
                yield parameter.max + step, Problem.ABOVE
            if parameter.type is Kind.INTEGER:
                yield (parameter.min or 0) + 0.5, Problem.TYPE
            if parameter.step is not None:
                inside = (parameter.min or 0) + parameter.step
                yield inside + (1 if parameter.type is Kind.INTEGER else parameter.step / 2), Problem.STEP
        case Kind.ARRAY:
            yield [5], Problem.TYPE
            if parameter.min_items:
                yield [], Problem.TOO_FEW
            if parameter.max_items is not None:
                yield ["x"] * (parameter.max_items + 1), Problem.TOO_MANY
        case Kind.OBJECT if not parameter.open:
            yield {"nonsense": 1}, Problem.UNKNOWN


FIELDS = [
    pytest.param(card, path, id=f"{card.id}-{path}") for card in CATALOG.cards for path, _ in card.parameters.items()
]
REQUIRED = [(card, path) for card in CATALOG.cards for path, p in card.parameters.items() if p.required]


def test_the_table_is_not_empty() -> None:
    everything = [p for card in CATALOG.cards for p in card.parameters.values()]
    assert sum(1 for p in everything for _ in good_values(p)) > 1000
    assert sum(1 for p in everything for _ in bad_values(p)) > 700


@pytest.mark.parametrize(("card", "path"), FIELDS)
def test_edges_pass(card: Card, path: str) -> None:
    for value in good_values(card.parameters[path]):
        assert [v.message for v in validate_task(card, with_value(card, path, value))] == [], value


@pytest.mark.parametrize(("card", "path"), FIELDS)
def test_every_rule_refuses(card: Card, path: str) -> None:
    for value, problem in bad_values(card.parameters[path]):
        check_refusal(card, path, value, problem)


def check_refusal(card: Card, path: str, value: Any, problem: Problem) -> None:
    """The violation names the field, the problem and all that is allowed."""
    violations = validate_task(card, with_value(card, path, value))
    field = spelled(path)
    if problem is Problem.UNKNOWN:
        field += ".nonsense"
    elif isinstance(value, list) and problem is Problem.TYPE:
        field += "[0]"
    named = [v for v in violations if v.parameter == field]
    assert [v.problem for v in named] == [problem], (value, [v.message for v in violations])
    assert f"'{field}'" in named[0].message
    if problem is Problem.TYPE:
        assert named[0].expected
    has_fields = any(inner.startswith(f"{path}.") for inner in card.parameters)
    if problem is Problem.CHOICE or (problem is Problem.UNKNOWN and has_fields):
        assert named[0].allowed
    parameter = card.parameters[path]
    if problem in (Problem.BELOW, Problem.ABOVE, Problem.STEP):
        for bound in (parameter.min, parameter.max, parameter.step):
            assert bound is None or str(bound) in named[0].message


@pytest.mark.parametrize(("card", "path"), REQUIRED, ids=lambda value: getattr(value, "id", value))
def test_required_fields(card: Card, path: str) -> None:
    if "." in path:
        task = with_value(card, path, "x")
        del task["lora"][0][path.rpartition(".")[2]]
    else:
        task = valid_task(card)
        del task[path]
    violations = [v for v in validate_task(card, task) if v.problem is Problem.MISSING]
    assert len(violations) == 1
    assert spelled(path) in (violations[0].parameter or "")


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_null_is_not_given(card: Card) -> None:
    task = valid_task(card) | {
        path: None for path in card.parameters if "." not in path and path not in valid_task(card)
    }
    assert validate_task(card, task) == []
    assert [v.problem for v in validate_task(card, valid_task(card) | {"positivePrompt": None})] == [Problem.MISSING]


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_unknown_names_come_with_the_allowed_ones(card: Card) -> None:
    violation = validate_task(card, valid_task(card) | {"postivePrompt": "x"})[0]
    assert violation.problem is Problem.UNKNOWN
    assert set(violation.allowed) == {path.split(".")[0] for path in card.parameters}
    assert "Did you mean 'positivePrompt'" in violation.message
