"""Listings: the filter grammar of `q`, sorting, cursors and field projection. Pure; http.py feeds it rows.

    filter      = all { "OR" all }
    all         = term { "AND" term }
    term        = "NOT" term | "(" filter ")" | comparison
    comparison  = field ( ":" | "=" | ">" | "<" | ">=" | "<=" ) value
                | field "." ( "EQ" | "GT" | "LT" | "GTE" | "LTE" ) ":" value
    value       = bare word | 'quoted' | "quoted"        (a backslash escapes inside quotes)

Text compares for equality only and case-sensitively. Times are ISO 8601; a date alone is its midnight in UTC, except
that `=` and `:` mean the whole day. A field that is null matches nothing, and NOT of that matches.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import cmp_to_key
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from darkroom.errors import InvalidParameter, Problem
from darkroom.types import Value

MAX_LIMIT = 500
DEFAULT_LIMIT = 50
MAX_FILTER = 2048  # characters
MAX_DEPTH = 32  # of parentheses and NOTs
COMPARISON = re.compile(
    r"""(?P<field>[A-Za-z_][A-Za-z0-9_]*)
        (?:\.(?P<word>EQ|GTE|LTE|GT|LT):|\s*(?P<op>>=|<=|[:=<>]))
        \s*(?:'(?P<single>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s()'"]+))""",
    re.VERBOSE | re.DOTALL,
)
WORD = re.compile(r"(?:AND|OR|NOT)(?![A-Za-z0-9_:=<>.])|[()]")
OPERATORS = {":": "=", "EQ": "=", "GT": ">", "LT": "<", "GTE": ">=", "LTE": "<="}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


class FieldKind(StrEnum):
    TEXT = "text"
    TIME = "time"
    NUMBER = "number"


Fields = Mapping[str, FieldKind]
Row = Mapping[str, Any]  # the values of such fields: text, aware datetime, number or None
RUN_FIELDS: Fields = {  # what runs can be searched and sorted by
    "id": FieldKind.TEXT,
    "status_code": FieldKind.TEXT,
    "client_ref": FieldKind.TEXT,
    "model": FieldKind.TEXT,
    "model_id": FieldKind.TEXT,
    "batch_id": FieldKind.TEXT,
    "request_id": FieldKind.TEXT,
    "failure_code": FieldKind.TEXT,
    "created_at": FieldKind.TIME,
    "started_at": FieldKind.TIME,
    "completed_at": FieldKind.TIME,
    "duration_ms": FieldKind.NUMBER,
    "cost": FieldKind.NUMBER,
}
ALIASES = {"status": "status_code", "finished_at": "completed_at"}
SPELLINGS = {"cancelled": "canceled"}  # of status_code, whose own spelling is canceled
NEWEST_FIRST = (("created_at", True), ("id", True))
OLDEST_FIRST = (("created_at", False), ("id", False))
Order = tuple[tuple[str, bool], ...]  # (field, descending)


class Filter(Value, frozen=True, kw_only=True):
    """A comparison (join is ""), or parts joined by AND, OR or NOT. until: the end of the day `value` begins."""

    join: str = ""
    parts: tuple[Filter, ...] = ()
    field: str = ""
    op: str = "="
    value: Any = None
    until: datetime | None = None

    def matches(self, row: Row) -> bool:
        if self.join == "NOT":
            return not self.parts[0].matches(row)
        if self.join:
            return (all if self.join == "AND" else any)(part.matches(row) for part in self.parts)
        found = row[self.field]
        if found is None:
            return False
        if self.until is not None and self.op == "=":
            return bool(self.value <= found < self.until)
        return COMPARE[self.op](found, self.value)

    def demands(self, field: str) -> frozenset[Any] | None:
        """The only values of a field that can match; None when any may. Lets the store skip the rest."""
        if self.join == "AND":
            found = [values for part in self.parts if (values := part.demands(field)) is not None]
            return frozenset.intersection(*found) if found else None
        if self.join == "OR":
            sets = [part.demands(field) for part in self.parts]
            return None if None in sets else frozenset().union(*(values for values in sets if values))
        return frozenset({self.value}) if not self.join and self.field == field and self.op == "=" else None


class Query(Value, frozen=True, kw_only=True):
    """What a listing asks for. sort: (field, descending). position: sort values of the row the cursor stands at."""

    limit: int = DEFAULT_LIMIT
    filter: Filter | None = None
    sort: Order = NEWEST_FIRST
    position: tuple[Any, ...] | None = None
    backwards: bool = False
    fields: tuple[str, ...] = ()

    @property
    def by_age(self) -> bool | None:
        """In which order of age rows are wanted: True newest first, False oldest first, None in another order."""
        if self.sort not in (NEWEST_FIRST, OLDEST_FIRST):
            return None
        return (self.sort == NEWEST_FIRST) != self.backwards


def parse_query(parameters: Mapping[str, str], fields: Fields, order: Order = NEWEST_FIRST) -> Query:
    """limit, pq, from_prev, q, fields and sort_by of a URL. Raises InvalidParameter; others are ignored.

    order: when sort_by asks for none.
    """
    sort = _sort(parameters.get("sort_by", ""), fields)
    position = None
    if cursor := parameters.get("pq"):
        sort, position = _read_cursor(cursor, sort, fields)
    text = parameters.get("q", "").strip()
    return Query(
        limit=_limit(parameters.get("limit")),
        filter=parse_filter(text, fields) if text else None,
        sort=sort or order,
        position=position,
        backwards=_flag(parameters.get("from_prev")),
        fields=tuple(name.strip() for name in parameters.get("fields", "").split(",") if name.strip()),
    )


Item = TypeVar("Item")


class Page(Value, Generic[Item], frozen=True, kw_only=True):
    """One page in the order asked for. The cursors are for `pq`; previous goes with from_prev=true."""

    items: tuple[Item, ...]
    first: str
    next: str | None
    previous: str | None


class Selection(Generic[Item]):
    """Picks one page out of rows that arrive in pieces, holding no more than a page of them."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.kept: list[tuple[Any, tuple[Any, ...], Item]] = []
        self._key = cmp_to_key(self._compare)

    def add(self, rows: Iterable[tuple[Row, Item]]) -> None:
        found = [
            (self._key(values), values, item)
            for row, item in rows
            if self.query.filter is None or self.query.filter.matches(row)
            if self._beyond(values := tuple(row[name] for name, _ in self.query.sort))
        ]
        self.kept = heapq.nsmallest(self.query.limit + 1, [*self.kept, *found], key=lambda kept: kept[0])

    @property
    def full(self) -> bool:
        """A page and one more are here: enough when rows arrive in order."""
        return len(self.kept) > self.query.limit

    def page(self) -> Page[Item]:
        kept = self.kept[: self.query.limit]
        more, came_from = self.full, self.query.position is not None
        if self.query.backwards:
            kept.reverse()
            more, came_from = came_from, more
        return Page(
            items=tuple(item for _, _, item in kept),
            first=_cursor(self.query.sort, None),
            next=_cursor(self.query.sort, kept[-1][1]) if more and kept else None,
            previous=_cursor(self.query.sort, kept[0][1]) if came_from and kept else None,
        )

    def _beyond(self, values: tuple[Any, ...]) -> bool:
        return self.query.position is None or self._compare(values, self.query.position) > 0

    def _compare(self, left: tuple[Any, ...], right: tuple[Any, ...]) -> int:
        """Order of two rows as asked for, the other way round when walking backwards; null comes last."""
        turn = -1 if self.query.backwards else 1
        for (_, descending), one, other in zip(self.query.sort, left, right, strict=True):
            if one == other:
                continue
            if one is None or other is None:
                return turn if one is None else -turn
            return turn * (-1 if (one < other) != descending else 1)
        return 0


def project(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Only the fields asked for, in that order; all when none is. Raises InvalidParameter for an unknown one."""
    for name in names:
        if name not in record:
            raise _wrong("fields", f"{name} is not a field here; there are {', '.join(record)}.", Problem.CHOICE)
    return {name: record[name] for name in names} if names else dict(record)


def parse_filter(text: str, fields: Fields) -> Filter:
    """A filter expression. Raises InvalidParameter saying where it stops making sense."""
    if "\0" in text:
        raise _wrong("q", "holds a NUL character, which no field has.", Problem.FORMAT)
    if len(text) > MAX_FILTER:
        raise _wrong("q", f"is {len(text)} characters long; at most {MAX_FILTER} are read.", Problem.TOO_LONG)
    return FilterParser(text, fields).parse()


class FilterParser:
    """Recursive descent over the grammar above."""

    def __init__(self, text: str, fields: Fields) -> None:
        self.text = text
        self.fields = fields
        self.at = 0
        self.depth = 0

    def parse(self) -> Filter:
        found = self.any_of()
        if self.at < len(self.text):
            self.refuse("expected AND, OR or the end")
        return found

    def any_of(self) -> Filter:
        return self.joined("OR", self.all_of)

    def all_of(self) -> Filter:
        return self.joined("AND", self.term)

    def joined(self, word: str, part: Callable[[], Filter]) -> Filter:
        parts = [part()]
        while self.take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Filter(join=word, parts=tuple(parts))

    def term(self) -> Filter:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"it is nested deeper than {MAX_DEPTH} levels")
        if self.take("NOT"):
            found = Filter(join="NOT", parts=(self.term(),))
        elif self.take("("):
            found = self.any_of()
            if not self.take(")"):
                self.refuse("a closing parenthesis is missing")
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Filter:
        self.skip_spaces()
        match = COMPARISON.match(self.text, self.at)
        if match is None:
            self.refuse("expected a comparison such as status_code:succeeded")
        name = ALIASES.get(match["field"], match["field"])
        if name not in self.fields:
            self.refuse(f"{match['field']} cannot be searched; {', '.join(self.fields)} can")
        op = match["word"] or match["op"]
        quoted = match["single"] if match["single"] is not None else match["double"]
        text = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted is not None else match["bare"]
        found = self.compare(name, OPERATORS.get(op, op), text)
        self.at = match.end()
        self.skip_spaces()
        return found

    def compare(self, name: str, op: str, text: str) -> Filter:
        kind = self.fields[name]
        if kind is FieldKind.TIME:
            start, until = self.time(name, text)
            return Filter(field=name, op=op, value=start, until=until)
        if kind is FieldKind.NUMBER:
            return Filter(field=name, op=op, value=self.number(name, text))
        if op != "=":
            self.refuse(f"{name} is text and compares with : or = only")
        return Filter(field=name, op=op, value=SPELLINGS.get(text, text) if name == "status_code" else text)

    def time(self, name: str, text: str) -> tuple[datetime, datetime | None]:
        try:
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
                day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
                return day, day + timedelta(days=1)
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)), None
        except (ValueError, OverflowError):
            self.refuse(f"{name} compares with a time such as 2026-04-01 or 2026-04-01T12:00:00Z")

    def number(self, name: str, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            self.refuse(f"{name} compares with a number")
        return found

    def take(self, word: str) -> bool:
        self.skip_spaces()
        match = WORD.match(self.text, self.at)
        if match is None or match[0] != word:
            return False
        self.at = match.end()
        self.skip_spaces()
        return True

    def skip_spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def refuse(self, why: str) -> NoReturn:
        raise _wrong("q", f"cannot be read from character {self.at + 1} on: {why}.", Problem.FORMAT)


def _sort(text: str, fields: Fields) -> Order:
    """sort_by; the id is added so that no two rows are equal. () when none is asked for."""
    order: list[tuple[str, bool]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        given, _, direction = part.partition(":")
        name = ALIASES.get(given, given)
        if name not in fields or direction not in ("", "asc", "desc"):
            known = ", ".join(fields)
            raise _wrong("sort_by", f"{part} is not FIELD:asc or FIELD:desc with one of {known}.", Problem.FORMAT)
        order.append((name, direction == "desc"))
    if order and all(name != "id" for name, _ in order):
        order.append(("id", order[-1][1]))
    return tuple(order)


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise _wrong("limit", f"must be a whole number from 1 to {MAX_LIMIT}.", Problem.ABOVE)
    return int(text)


def _flag(text: str | None) -> bool:
    if text is not None and text.lower() not in ("true", "false", "1", "0", ""):
        raise _wrong("from_prev", "must be true or false.", Problem.TYPE)
    return text is not None and text.lower() in ("true", "1")


def _cursor(sort: Order, position: tuple[Any, ...] | None) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([sort, position])).decode().rstrip("=")


def _read_cursor(text: str, wanted: Order, fields: Fields) -> tuple[Order, tuple[Any, ...] | None]:
    kinds: dict[FieldKind, Any] = {FieldKind.TEXT: str, FieldKind.TIME: datetime, FieldKind.NUMBER: float}
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        sort, stored = msgspec.json.decode(raw, type=tuple[Order, tuple[Any, ...] | None])
        if not sort or any(name not in fields for name, _ in sort) or b"\\u0000" in raw:
            raise ValueError("not one of ours")
        position = None
        if stored is not None:
            pairs = zip(stored, sort, strict=True)
            position = tuple(msgspec.convert(value, kinds[fields[name]] | None) for value, (name, _) in pairs)
            if any(isinstance(value, datetime) and value.tzinfo is None for value in position):
                raise ValueError("a time without a zone")
    except (ValueError, binascii.Error, RecursionError):
        message = "is not a cursor of this listing; copy next_pq or prev_pq of a page."
        raise _wrong("pq", message, Problem.FORMAT) from None
    if wanted and wanted != sort:
        raise _wrong("pq", "is the cursor of another sort_by; leave sort_by as it was.", Problem.INCOMPATIBLE)
    return sort, position


def _wrong(parameter: str, message: str, problem: Problem) -> InvalidParameter:
    return InvalidParameter(f"{parameter}: {message}", parameter=parameter, problem=problem)
