"""The OpenAPI document, and every operation in it under values made from its own schemas: never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.runware.test_fuzz import ANYTHING, Loop
from tests.api.servers import TestServer

FUZZ = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
METHODS = ("get", "post", "put", "delete", "patch")
SEGMENTS = st.text(
    alphabet=st.characters(blacklist_characters="/?#", blacklist_categories=("Cs",)), min_size=1, max_size=20
)
STREAMS = "/v1/tasks/{task_id}/events"
IDS = st.uuids().map(str) | SEGMENTS | st.sampled_from(["black-forest-labs", "flux-2-klein-4b", "runware:400@5", ".."])


@pytest.fixture(scope="module")
def loop() -> Any:
    with Loop() as running:
        yield running


@pytest.fixture(scope="module")
def document(loop: Loop) -> dict[str, Any]:
    async def read(server: TestServer) -> Any:
        async with server.client() as client:
            return (await client.get("/openapi.json")).json()

    found: dict[str, Any] = loop.run(read)
    return found


def test_the_document_names_what_people_call(document: dict[str, Any]) -> None:
    paths = set(document["paths"])
    assert {"/v1", "/v1/tasks/{task_id}/events", "/v1/tasks/{task_id}/cancel", "/v1/cards", "/health"} <= paths
    assert document["openapi"].startswith("3.1")
    followed = document["paths"]["/v1/tasks/{task_id}/events"]["get"]["responses"]["200"]
    assert list(followed["content"]) == ["text/event-stream"]
    assert "get" not in document["paths"]["/v1/models/{model}/runs"]
    schema = document["paths"]["/v1"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["type"] == "array"


def value_for(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Texts for a query parameter: of its type, and of no type."""
    kinds = {"integer": st.integers(-5, 500).map(str), "boolean": st.sampled_from(["true", "false"])}
    return kinds.get(schema.get("type", ""), st.text(max_size=20)) | st.text(max_size=10)


@st.composite
def requests_for(draw: st.DrawFn, path: str, operation: dict[str, Any], method: str) -> httpx.Request:
    """One request to an operation of the document."""
    url, query, headers = path, {}, {}
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            url = url.replace("{" + name + "}", quote(draw(IDS), safe=""))
        elif parameter["in"] == "query" and draw(st.booleans()):
            query[name] = draw(value_for(parameter.get("schema", {})))
        elif parameter["in"] == "header" and draw(st.booleans()):
            headers[name] = draw(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20))
    body = json.dumps(draw(ANYTHING)).encode() if method in ("post", "put", "patch") else None
    return httpx.Request(method.upper(), f"http://darkroom.test{url}", params=query, headers=headers, content=body)


def test_no_operation_ever_fails(document: dict[str, Any], loop: Loop) -> None:
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations and path != STREAMS:
                fuzz(loop, path, method, operations[method])


def fuzz(loop: Loop, path: str, method: str, operation: dict[str, Any]) -> None:
    @FUZZ
    @given(requests_for(path, operation, method))
    def examples(request: httpx.Request) -> None:
        async def send(server: TestServer) -> httpx.Response:
            async with server.client() as client, asyncio.timeout(20):
                return await client.send(request)

        response = loop.run(send)
        documented_unavailable = response.status_code == 503 and response.json()["code"] == "MODEL_UNAVAILABLE"
        assert response.status_code < 500 or documented_unavailable, f"{request.method} {request.url}: {response.text}"
        assert "Traceback" not in response.text

    examples()
