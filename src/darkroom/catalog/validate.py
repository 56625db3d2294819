"""Requests against a schema: every violation, as an error that names the field, the rule and what is allowed.

    validate_task(card, task)      one image task against its card's schema
    Validator(schema)              the same for any other JSON Schema (a dialect's own)

Violations come in the order in which the hosted API checks: unknown names, missing fields, then values in the order
of the schema (the prompt before the sizes). `null` means "not given".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError, ValidationErrorKind

from darkroom.catalog.card import Card
from darkroom.catalog.schema import task_schema
from darkroom.errors import InvalidParameter, Problem

Schema = Mapping[str, Any]
Path = Sequence[str | int]
Found = tuple[Path, InvalidParameter]  # a violation and where it is

RANKS = {Problem.UNKNOWN: 0, Problem.MISSING: 1}  # values come after both
MAX_DEPTH = 16  # levels of nesting; no request has more than five
SHOWN_CHOICES = 12  # the error carries all of them, its sentence so many
ARTICLES = {"integer": "an integer", "object": "an object", "array": "an array"}

_task_validators: dict[int, tuple[Card, Validator]] = {}  # by identity; the card is kept so that it stays one


def validate_task(card: Card, task: Mapping[str, Any]) -> list[InvalidParameter]:
    """Every violation of one task, [] when it may run. The card's other names are as good as its id."""
    known = _task_validators.get(id(card))
    if known is None:
        known = _task_validators.setdefault(id(card), (card, Validator(task_schema(card))))
    model = task.get("model")
    if isinstance(model, str) and model.strip().lower() in map(str.lower, card.names):
        task = {**task, "model": card.id}
    return known[1].violations(task)


def validate_values(card: Card, values: Mapping[str, Any]) -> list[InvalidParameter]:
    """The same for some values by dotted path, whatever else the task would need; for callers that fill in the rest."""
    task: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        node = task
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return [violation for violation in validate_task(card, task) if violation.problem is not Problem.MISSING]


class Validator:
    """One compiled JSON Schema (draft 2020-12)."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._compiled = Draft202012Validator(dict(schema), validate_formats=True)

    def violations(self, instance: Any) -> list[InvalidParameter]:
        """All of them, one per field and rule, in the order above. Raises nothing."""
        instance = without_nulls(instance)
        if (broken := _unreadable(instance, ())) is not None:
            return [broken[1]]
        found = [each for error in self._compiled.iter_errors(instance) for each in self._translate(error)]
        return [violation for _, violation in sorted(_one_per_field(found), key=self._order)]

    def _translate(self, error: ValidationError) -> Iterator[Found]:
        path, rules = list(error.instance_path), self._rules(error.instance_path)
        match error.kind:
            case ValidationErrorKind.AdditionalProperties() as kind:
                allowed = tuple(rules.get("properties", ()))
                yield from (_unknown([*path, name], allowed) for name in kind.unexpected)
            case ValidationErrorKind.Required() as kind:
                if "dependentRequired" in error.schema_path:
                    yield _half(path, str(kind.value), rules, error.instance)
                else:
                    yield self._missing([[*path, str(kind.value)]])
            case ValidationErrorKind.AnyOf() as kind:
                yield from self._no_branch(path, rules, error, kind.context)
            case _:
                yield _wrong_value(path, rules, error)

    def _no_branch(
        self, path: list[str | int], rules: Schema, error: ValidationError, branches: list[list[ValidationError]]
    ) -> Iterator[Found]:
        """None of several forms fits. Fields missing in each are one error naming them; else the nearest form's."""
        if all(isinstance(e.kind, ValidationErrorKind.Required) for branch in branches for e in branch):
            missing = [[*path, *e.instance_path[len(path) :], str(e.kind.value)] for branch in branches for e in branch]
            yield self._missing([self._deepest(field) for field in missing])
            return
        forms = rules.get("anyOf", [{}])
        index = next((i for i, form in enumerate(forms) if _is_type(error.instance, form.get("type"))), None)
        if index is None:
            wanted = [_type_name(form) for form in forms]
            yield _wrong_type(path, "|".join(wanted), error.instance)
            return
        for inner in branches[index][:1]:
            yield _wrong_value(list(inner.instance_path), _walk(forms[index], inner.instance_path[len(path) :]), inner)

    def _missing(self, paths: list[list[str | int]]) -> Found:
        names = tuple(dict.fromkeys(spell(path) for path in paths))
        expected = "|".join(dict.fromkeys(filter(None, (_type_name(self._rules(path)) for path in paths)))) or None
        if len(names) == 1:
            return _invalid(paths[0], Problem.MISSING, f"'{names[0]}' is required.", expected=expected)
        quoted = [f"'{name}'" for name in names]
        message = f"{' and '.join(quoted[:-1])} are required, unless {quoted[-1]} is given."
        return paths[0], InvalidParameter(message, parameter=names, problem=Problem.MISSING, expected=expected)

    def _rules(self, path: Path) -> Schema:
        return _walk(self._schema, path)

    def _deepest(self, path: list[str | int]) -> list[str | int]:
        """The field meant by a missing object: the one thing it would be given for."""
        while len(inner := list(self._rules(path).get("properties", ()))) == 1:
            path = [*path, inner[0]]
        return path

    def _order(self, found: Found) -> tuple[int, tuple[int, ...]]:
        path, violation = found
        position, rules = [], self._schema
        for part in path:
            names = list(rules.get("properties", ()))
            position.append(part if isinstance(part, int) else names.index(part) if part in names else len(names))
            rules = _walk(rules, [part])
        return RANKS.get(violation.problem, 2), tuple(position)


def without_nulls(value: Any, depth: int = 0) -> Any:
    """The same without object members that are null: clients send them for what they leave out.

    What is nested deeper than any request stays as it is; `violations` refuses it.
    """
    if depth > MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(inner, depth + 1) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner, depth + 1) for inner in value]
    return value


def _has_surrogate(text: str) -> bool:
    try:
        text.isascii() or text.encode()  # not one character after the other: a request may have a hundred million
    except UnicodeEncodeError:
        return True
    return False


def _unreadable(value: Any, path: tuple[str | int, ...]) -> Found | None:
    """What JSON can say and nothing after it can hold: a lone surrogate ("\\ud800"), nesting without end."""
    if isinstance(value, str):
        return (
            _invalid(path, Problem.FORMAT, f"'{spell(path)}' is not valid Unicode.") if _has_surrogate(value) else None
        )
    if len(path) > MAX_DEPTH:
        return _invalid(path[:1], Problem.FORMAT, f"'{spell(path[:1])}' is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, Mapping):
        inner = [((*path, key), each) for key, text in value.items() for each in (key, text)]
    else:
        inner = [((*path, index), each) for index, each in enumerate(value)] if isinstance(value, list) else []
    return next((found for place, each in inner if (found := _unreadable(each, place)) is not None), None)


def spell(path: Path) -> str:
    """A path as clients read it: "lora[0].weight". What is not Unicode is shown escaped."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return text.encode("utf-8", "backslashreplace").decode()


def _walk(schema: Schema, path: Path) -> Schema:
    for part in path:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return schema


def _one_per_field(found: list[Found]) -> Iterator[Found]:
    """Several rules may refuse a field for one reason: 100 is below 128 and no multiple of 16, half a size is there."""
    seen: set[str] = set()
    for path, violation in sorted(found, key=lambda each: each[1].problem is Problem.STEP):
        names = {violation.parameter} if isinstance(violation.parameter, str) else set(violation.parameter or ())
        if not names & seen:
            yield path, violation
        seen |= names


def _invalid(path: Path, problem: Problem, message: str, **more: Any) -> Found:
    return path, InvalidParameter(message, parameter=spell(path), problem=problem, **more)


def _unknown(path: Path, allowed: tuple[str, ...]) -> Found:
    name = str(path[-1])
    hint = _did_you_mean(name, allowed)
    where = f"'{spell(path[:-1])}'" if len(path) > 1 else "This task"
    taken = f"takes: {', '.join(allowed)}" if allowed else "takes nothing here"
    message = f"'{spell(path)}' is not a parameter here.{hint} {where} {taken}."
    return _invalid(path, Problem.UNKNOWN, message, allowed=allowed)


def _did_you_mean(name: str, allowed: tuple[str, ...]) -> str:
    known = {choice.lower(): choice for choice in allowed}
    near = difflib.get_close_matches(name[:64].lower(), known, n=1, cutoff=0.7)
    return f" Did you mean '{known[near[0]]}'?" if near else ""


def _half(path: Path, missing: str, rules: Schema, given: Any) -> Found:
    """One field of a pair is there without the other."""
    pairs: Mapping[str, list[str]] = rules.get("dependentRequired", {})
    trigger = next(name for name, needed in pairs.items() if missing in needed and name in given)
    names = tuple(spell([*path, name]) for name in rules["properties"] if name in (missing, trigger))
    message = f"'{spell([*path, trigger])}' is given without '{spell([*path, missing])}'; they must be used together."
    expected = _type_name(_walk(rules, [missing])) or None
    return [*path, missing], InvalidParameter(message, parameter=names, problem=Problem.MISSING, expected=expected)


def _wrong_type(path: Path, expected: str, given: Any) -> Found:
    wanted = " or ".join(_article(name) for name in expected.split("|"))
    return _invalid(
        path, Problem.TYPE, f"'{spell(path)}' must be {wanted}, not {_article(_json_type(given))}.", expected=expected
    )


def _wrong_value(path: Path, rules: Schema, error: ValidationError) -> Found:
    """One value that breaks one keyword. rules: the schema at its place, which has the whole range for the message."""
    kinds, expected = ValidationErrorKind, _type_name(rules)
    given: Any = error.instance
    match error.kind:
        case kinds.Type() as kind:
            return _wrong_type(path, expected or "|".join(kind.types), given)
        case kinds.Enum() as kind:
            return _wrong_choice(path, tuple(map(str, kind.options)), given, expected)
        case kinds.Constant() as kind:
            return _wrong_choice(path, (str(kind.expected_value),), given, expected)
        case kinds.Minimum() | kinds.ExclusiveMinimum():
            problem, rule = Problem.BELOW, f"{_range(rules)}; {_shown(given)} was given"
        case kinds.Maximum() | kinds.ExclusiveMaximum():
            problem, rule = Problem.ABOVE, f"{_range(rules)}; {_shown(given)} was given"
        case kinds.MultipleOf():
            problem, rule = Problem.STEP, f"{_range(rules)}; {_shown(given)} was given"
        case kinds.MinLength():
            problem, rule = Problem.TOO_SHORT, f"{_size(rules, 'Length', 'characters')}; it has {len(given)}"
        case kinds.MaxLength():
            problem, rule = Problem.TOO_LONG, f"{_size(rules, 'Length', 'characters')}; it has {len(given)}"
        case kinds.MinItems():
            problem, rule = Problem.TOO_FEW, f"{_size(rules, 'Items', 'entries')}; it has {len(given)}"
        case kinds.MaxItems():
            problem, rule = Problem.TOO_MANY, f"{_size(rules, 'Items', 'entries')}; it has {len(given)}"
        case kinds.Format() | kinds.Pattern():
            problem, rule = Problem.FORMAT, _format(rules)
        case _:
            problem, rule = Problem.INCOMPATIBLE, f"is not allowed as given: {error.message}"
    return _invalid(path, problem, f"'{spell(path)}' {rule}.", expected=expected or None)


def _wrong_choice(path: Path, allowed: tuple[str, ...], given: Any, expected: str) -> Found:
    hint = _did_you_mean(str(given), allowed)
    shown = ", ".join(f"'{choice}'" for choice in allowed[:SHOWN_CHOICES])
    more = f" and {len(allowed) - SHOWN_CHOICES} more" if len(allowed) > SHOWN_CHOICES else ""
    rule = f"must be {'one of ' if len(allowed) > 1 else ''}{shown}{more}"
    return _invalid(
        path, Problem.CHOICE, f"'{spell(path)}' {rule}.{hint}", expected=expected or "string", allowed=allowed
    )


def _shown(number: object) -> str:
    text = str(number)
    return text if len(text) <= 24 else f"{text[:20]}…"


def _range(rules: Schema) -> str:
    low, high, step = rules.get("minimum"), rules.get("maximum"), rules.get("multipleOf")
    text = f"must be between {low} and {high}" if low is not None and high is not None else ""
    text = text or (f"must be at least {low}" if low is not None else f"must be at most {high}" if high else "must be")
    return f"{text}, in multiples of {step}" if step is not None else text


def _size(rules: Schema, what: str, unit: str) -> str:
    low, high = rules.get(f"min{what}"), rules.get(f"max{what}")
    if low is not None and high is not None:
        return f"must have between {low} and {high} {unit}"
    return f"must have at least {low} {unit}" if low is not None else f"must have at most {high} {unit}"


def _format(rules: Schema) -> str:
    names = {
        "uuid": "a UUID of version 4",
        "uri": "a URL that can be called: http:// or https://, a host, and no spaces",
    }
    return f"must be {names.get(str(rules.get('format')), 'in the documented form')}"


def _type_name(rules: Schema) -> str:
    """The type in the words of the API's errors: "integer", "string[]"; "" where the schema names none."""
    if "anyOf" in rules:
        return "|".join(_type_name(form) for form in rules["anyOf"])
    kind = rules.get("type", "")
    if isinstance(kind, list):
        return "|".join(kind)
    return f"{rules['items'].get('type', '')}[]" if kind == "array" and "items" in rules else str(kind)


def _article(name: str) -> str:
    return f"a list of {name[:-2]}s" if name.endswith("[]") else ARTICLES.get(name, f"a {name}")


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = ((str, "string"), (int, "integer"), (float, "number"), (Mapping, "object"), (Sequence, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _is_type(value: Any, name: object) -> bool:
    given = _json_type(value)
    return given == name or (name == "number" and given == "integer")
