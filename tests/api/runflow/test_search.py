"""Filters, cursors and order of listings."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.api.runflow.search import (
    MAX_DEPTH,
    RUN_FIELDS,
    Page,
    Query,
    Selection,
    parse_filter,
    parse_query,
    project,
)
from darkroom.errors import InvalidParameter

START = datetime(2026, 4, 1, 12, tzinfo=UTC)


def row(number: int, **values: Any) -> dict[str, Any]:
    blank = dict.fromkeys(RUN_FIELDS)
    return blank | {"id": f"id-{number:03}", "created_at": START + timedelta(hours=number)} | values


ROW = row(
    0,
    status_code="succeeded",
    client_ref="it's (me)",
    duration_ms=1500,
    cost=0.005,
    model="black-forest-labs/flux-2-klein-4b",
)
MATCH = [
    "status_code:succeeded",
    "status_code=succeeded",
    "status:succeeded",
    "status_code.EQ:'succeeded'",
    'status_code:"succeeded"',
    r"client_ref:'it\'s (me)'",
    'client_ref.EQ:"it\'s (me)"',
    "model:black-forest-labs/flux-2-klein-4b",
    "created_at>2026-04-01",
    "created_at:2026-04-01",
    "created_at>=2026-04-01T12:00:00Z",
    "created_at<=2026-04-01T12:00:00+00:00",
    "created_at.GT:'2026-03-31'",
    "created_at < 2026-04-02",
    "duration_ms>1000",
    "duration_ms.LTE:1500",
    "cost<0.01",
    "status_code:succeeded AND created_at>2026-04-01",
    "status_code:failed OR status_code:succeeded",
    "NOT status_code:failed",
    "NOT completed_at>2020-01-01",
    "NOT NOT status_code:succeeded",
    "(status_code:failed OR status_code:succeeded) AND NOT (client_ref:x)",
    "status_code:failed AND client_ref:x OR duration_ms:1500",
]
NO_MATCH = [
    "status_code:Succeeded",
    "status_code:failed",
    "client_ref:it",
    "completed_at>2020-01-01",
    "created_at:2026-04-02",
    "created_at<2026-04-01",
    "duration_ms>1500",
    "NOT status_code:succeeded",
    "status_code:failed AND (client_ref:x OR duration_ms:1500)",
]
REFUSED = [
    "",
    "succeeded",
    "status_code",
    "status_code:",
    "status_code:'open",
    "colour:red",
    "prompt:cat",
    "status_code>a",
    "status_code.LIKE:'x'",
    "created_at>yesterday",
    "created_at>9999-99-99",
    "duration_ms:long",
    "status_code:a status_code:b",
    "status_code:a AND",
    "AND status_code:a",
    "NOT",
    "(status_code:a",
    "status_code:a)",
    "status_code:a && client_ref:b",
    "(" * (MAX_DEPTH + 1) + "status_code:a" + ")" * (MAX_DEPTH + 1),
    "NOT " * (MAX_DEPTH + 1) + "status_code:a",
    "client_ref:" + "x" * 2048,
]


@pytest.mark.parametrize("text", MATCH)
def test_a_filter_that_matches(text: str) -> None:
    assert parse_filter(text, RUN_FIELDS).matches(ROW)


@pytest.mark.parametrize("text", NO_MATCH)
def test_a_filter_that_does_not_match(text: str) -> None:
    assert not parse_filter(text, RUN_FIELDS).matches(ROW)


@pytest.mark.parametrize("text", REFUSED)
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_filter(text, RUN_FIELDS)
    assert caught.value.parameter == "q"


def test_both_spellings_of_cancelled_find_the_same() -> None:
    cancelled = row(0, status_code="canceled")
    assert parse_filter("status_code:cancelled", RUN_FIELDS).matches(cancelled)
    assert parse_filter("status_code:canceled", RUN_FIELDS).matches(cancelled)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("status_code:failed", {"failed"}),
        ("status_code:failed AND cost>1", {"failed"}),
        ("status_code:failed AND status_code:queued", set()),
        ("status_code:failed OR status_code:queued", {"failed", "queued"}),
        ("status_code:failed OR cost>1", None),
        ("NOT status_code:failed", None),
        ("cost>1", None),
    ],
)
def test_what_a_filter_demands(text: str, values: set[str] | None) -> None:
    assert parse_filter(text, RUN_FIELDS).demands("status_code") == values


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*"()':\"<>= ", "AND", "OR", "NOT", "cost", "id", "1"])).map("".join)
)
def test_a_filter_is_read_or_refused_never_worse(text: str) -> None:
    with suppress(InvalidParameter):
        parse_filter(text, RUN_FIELDS).matches(ROW)


# Pages


def page_of(rows: list[dict[str, Any]], **parameters: str) -> Page[str]:
    selection: Selection[str] = Selection(parse_query(parameters, RUN_FIELDS))
    for start in range(0, len(rows), 7):  # in pieces, as the store hands them out
        selection.add((each, each["id"]) for each in rows[start : start + 7])
    return selection.page()


ROWS = [
    row(number, status_code="failed" if number % 3 else "succeeded", cost=number % 5 or None) for number in range(40)
]


@pytest.mark.parametrize("sort", ["", "created_at:asc", "status_code:asc,created_at:desc", "cost:desc", "cost"])
@pytest.mark.parametrize("limit", ["1", "7", "40", "500"])
def test_walking_forwards_and_backwards_meets_every_row_once(sort: str, limit: str) -> None:
    query = {"limit": limit} | ({"sort_by": sort} if sort else {})
    everything = page_of(ROWS, **(query | {"limit": "500"})).items
    assert sorted(everything) == [each["id"] for each in ROWS]
    forward, page = [], page_of(ROWS, **query)
    assert page.previous is None
    while True:
        forward.extend(page.items)
        if page.next is None:
            break
        page = page_of(ROWS, **query, pq=page.next)
    assert tuple(forward) == everything
    backward = list(page.items)
    while page.previous is not None:
        page = page_of(ROWS, **query, pq=page.previous, from_prev="true")
        backward = [*page.items, *backward]
    assert tuple(backward) == everything
    assert page_of(ROWS, **query, pq=page.first).items == everything[: int(limit)]


def test_newest_first_by_default_and_null_last() -> None:
    assert page_of(ROWS, limit="2").items == ("id-039", "id-038")
    assert page_of(ROWS, sort_by="cost:desc", limit="500").items[-1] in {"id-000", "id-005"}
    assert page_of(ROWS, sort_by="cost:asc", limit="1").items == ("id-001",)


def test_the_order_of_a_cursor_goes_on_without_naming_it_again() -> None:
    first = page_of(ROWS, sort_by="created_at:asc", limit="3")
    assert first.next
    assert page_of(ROWS, pq=first.next, limit="3").items == ("id-003", "id-004", "id-005")
    with pytest.raises(InvalidParameter, match="sort_by"):
        page_of(ROWS, pq=first.next, sort_by="created_at:desc")


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"pq": "nonsense"}, "pq"),
        ({"pq": "W10"}, "pq"),
        ({"pq": "e30"}, "pq"),
        ({"pq": "W1tbImNyZWF0ZWRfYXQiLHRydWVdLFsiaWQiLHRydWVdXSxbIjIwMjYtMDEtMDFUMDA6MDA6MDAiLCJ4Il1d"}, "pq"),
        ({"pq": "ä"}, "pq"),
        ({"from_prev": "maybe"}, "from_prev"),
        ({"sort_by": "colour:asc"}, "sort_by"),
        ({"sort_by": "id:up"}, "sort_by"),
        ({"q": "?"}, "q"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, str], name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_query(parameters, RUN_FIELDS)
    assert caught.value.parameter == name


@given(st.text(max_size=80))
def test_a_cursor_is_read_or_refused_never_worse(text: str) -> None:
    with suppress(InvalidParameter):
        parse_query({"pq": text}, RUN_FIELDS)


def test_projection() -> None:
    assert parse_query({"fields": "id, status_code"}, RUN_FIELDS).fields == ("id", "status_code")
    assert project({"a": 1, "b": 2}, ("b",)) == {"b": 2}
    assert project({"a": 1, "b": 2}, ()) == {"a": 1, "b": 2}
    with pytest.raises(InvalidParameter, match="colour"):
        project({"a": 1}, ("colour",))


def test_by_age_knows_which_way_to_read() -> None:
    assert Query().by_age is True
    assert Query(backwards=True).by_age is False
    assert parse_query({"sort_by": "created_at:asc"}, RUN_FIELDS).by_age is False
    assert parse_query({"sort_by": "created_at:asc", "from_prev": "1"}, RUN_FIELDS).by_age is True
    assert parse_query({"sort_by": "cost:asc"}, RUN_FIELDS).by_age is None
