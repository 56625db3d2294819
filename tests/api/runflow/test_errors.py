"""Every error of ours has a place in the table of answers, and every fault in that of failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from darkroom.api.runflow.errors import CODES, FAILURES, NOT_FOUND, Rejected, failure, flat, location
from darkroom.errors import (
    DarkroomError,
    InputImageError,
    InvalidParameter,
    NotFound,
    Overloaded,
    Problem,
    Unauthorized,
)
from darkroom.tasks.task import Fault

MANUAL = (Path(__file__).parents[3] / "docs" / "api" / "runflow.md").read_text()
OURS_ALONE = {"internal", "lease_lost", "configuration"}  # never a caller's affair: 500
OF_A_REQUEST = {"conflict", "unauthorized", "overloaded"}  # cannot happen to a run that was accepted
OF_A_RUN = {"inference", "out_of_memory", "engine_lost"}  # cannot happen to a request


def kinds(of: type[DarkroomError] = DarkroomError) -> Iterator[type[DarkroomError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


CODES_OF_OURS = sorted({kind.code for kind in kinds() if kind.__module__ == "darkroom.errors"})


@pytest.mark.parametrize("code", CODES_OF_OURS)
def test_every_error_has_its_answer(code: str) -> None:
    assert (code in CODES) != (code in OURS_ALONE | OF_A_RUN)


@pytest.mark.parametrize("code", CODES_OF_OURS)
def test_every_fault_has_its_failure(code: str) -> None:
    assert (code in FAILURES) != (code in OURS_ALONE | OF_A_REQUEST)


def test_the_manual_names_every_code() -> None:
    answers = {name for _, name in CODES.values()} | set(NOT_FOUND.values())
    failures = {name for name, _ in FAILURES.values()}
    assert [name for name in sorted(answers | failures) if f"`{name}`" not in MANUAL] == []


def answered(error: Exception) -> tuple[int, dict[str, object]]:
    response = flat(error)
    assert response.media_type == "application/json"
    return response.status_code, json.loads(bytes(response.body))


def test_a_bug_tells_nothing() -> None:
    status, body = answered(RuntimeError("/secret/path and a password"))
    assert (status, body["code"], body["errors"]) == (500, "INTERNAL_ERROR", None)
    assert "secret" not in str(body)


@pytest.mark.parametrize("what", ["task", "model", "batch", "asset", "media"])
def test_what_is_not_found_is_named(what: str) -> None:
    assert answered(NotFound("no", what=what))[1]["code"] == NOT_FOUND.get(what, "NOT_FOUND")


def test_headers() -> None:
    assert flat(Overloaded("full", retry_after_seconds=7)).headers["retry-after"] == "7"
    assert flat(Unauthorized("no")).headers["www-authenticate"] == "Bearer"
    assert flat(HTTPException(405, headers={"Allow": "GET"})).headers["allow"] == "GET"


def test_several_fields_of_one_violation_have_an_entry_each() -> None:
    both = InvalidParameter("together", parameter=("input.width", "input.height"), problem=Problem.MISSING)
    image = InputImageError("not a picture", parameter="input.image_urls[1]")
    _, body = answered(Rejected([both, image]))
    assert body["message"] == "together not a picture"
    assert body["errors"] == [
        {"field": "input.width", "loc": ["input", "width"], "msg": "together", "type": "missing"},
        {"field": "input.height", "loc": ["input", "height"], "msg": "together", "type": "missing"},
        {
            "field": "input.image_urls[1]",
            "loc": ["input", "image_urls", 1],
            "msg": "not a picture",
            "type": "image",
        },
    ]


def test_locations() -> None:
    assert location("input[3].image_urls[0]") == ["input", 3, "image_urls", 0]
    assert location("callback_url") == ["callback_url"]


def test_a_fault_nobody_knows_is_internal() -> None:
    assert failure(Fault(code="something", message="x")) == ("INTERNAL_ERROR", "inference")
    assert failure(None) == ("INTERNAL_ERROR", "inference")
