"""Whatever is sent, over HTTP or the socket: an answer in the documented shape, no 5xx, no traceback, no hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkroom.api.runware.dispatch import HANDLERS
from tests.api.servers import CATALOG, TestServer, serving
from tests.api.sockets import Closed, Socket

UUID = "5e1d2bde-c882-4900-9d4d-0669648c8a8a"
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.sampled_from([UUID, "runware:400@5", "URL", "sync", "2^63", "__BLANK__", "\x00", "😀", "http://[", "data:,"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted(
    {path.split(".")[0] for card in CATALOG.cards for path in card.parameters} | {"apiKey", "operation", "media"}
)
NESTED = sorted({path for card in CATALOG.cards for path in card.parameters if "." in path})


def nested(path: str, value: Any) -> dict[str, Any]:
    head, *rest = path.split(".")
    return {head: nested(".".join(rest), value) if rest else value}


VALID = st.fixed_dictionaries(
    {
        "taskType": st.sampled_from([*HANDLERS, "ping", "videoInference"]),
        "taskUUID": st.uuids(version=4).map(str),
        "model": st.sampled_from([card.id for card in CATALOG.cards]),
        "positivePrompt": st.text(min_size=1, max_size=30),
        "width": st.sampled_from([128, 256]),
        "height": st.sampled_from([128, 256]),
        "steps": st.just(1),
    }
)
TASKS = (
    st.tuples(VALID, st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3)).map(lambda pair: pair[0] | pair[1])
    | st.builds(lambda task, path, value: task | nested(path, value), VALID, st.sampled_from(NESTED), ANYTHING)
    | st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5)
    | ANYTHING
)
BODIES = (
    st.lists(TASKS, max_size=3).map(lambda tasks: json.dumps(tasks).encode())
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
)


def check_error(error: dict[str, Any]) -> None:
    assert error["code"], error
    assert error["code"] != "internalServerError", error
    assert isinstance(error["message"], str)
    for sign in ("Traceback", "darkroom/", ".py", "site-packages"):
        assert sign not in error["message"], error


def check_envelope(body: dict[str, Any]) -> None:
    assert set(body) <= {"data", "errors", "error"}
    assert isinstance(body.get("data", []), list)
    assert body.get("errors", [1]), "errors is left out when there is none"
    for error in body.get("errors", ()):
        check_error(error)
    for item in body.get("data", ()):
        assert item["taskType"]
        assert not {"code", "error", "errorId"} & set(item)


@asynccontextmanager
async def refusing_server() -> AsyncIterator[TestServer]:
    """Without private addresses, as a public server runs: nothing the fuzzer invents is ever called."""
    with TemporaryDirectory() as folder:
        async with serving(
            Path(folder), allow_private_urls=False, queue_limit=10_000, queue_limit_per_key=10_000
        ) as server:
            yield server


class Loop:
    """An event loop with a server on it that outlives the single examples, which hypothesis runs synchronously."""

    def __enter__(self) -> Loop:
        self.runner = asyncio.Runner()
        self.context = refusing_server()
        self.server = self.runner.run(self.context.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()

    def run(self, work: Callable[[TestServer], Coroutine[Any, Any, Any]]) -> Any:
        return self.runner.run(work(self.server))


def test_http_never_fails_whatever_is_sent() -> None:
    with Loop() as loop:

        @FUZZ
        @given(BODIES)
        def examples(body: bytes) -> None:
            async def send(server: TestServer) -> httpx.Response:
                async with server.client() as client:
                    return await client.post("/v1", content=body)

            response = loop.run(send)
            assert response.status_code < 500, response.text
            check_envelope(response.json())

        examples()


def test_the_socket_never_fails_whatever_is_sent() -> None:
    with Loop() as loop:

        @FUZZ
        @given(st.lists(BODIES, min_size=1, max_size=3), st.booleans())
        def examples(messages: list[bytes], handshake: bool) -> None:
            async def talk(server: TestServer) -> None:
                async with Socket(server.app) as socket:
                    if handshake:
                        await socket.authenticate()
                    for message in messages:
                        socket.send_bytes(message)
                    socket.send({"taskType": "ping", "ping": True})
                    await until_pong(socket)

            loop.run(talk)

        examples()


async def until_pong(socket: Socket) -> None:
    """Everything until the pong, which shows that the connection lives; answers to slow tasks may come after it."""
    while True:
        message = await socket.receive()
        check_envelope(message)
        if message.get("data") == [{"taskType": "ping", "pong": True}]:
            return


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "[1e400]",
        '[{"taskType":"imageInference","seed":' + "9" * 5000 + "}]",
        '["\\ud800"]',
        '[{"taskType":"imageInference","taskUUID":"' + UUID + '","model":"runware:400@5","positivePrompt":"\\ud800"}]',
        "\ufeff[]",
        "[{}" + ",{}" * 3000 + "]",
    ],
    ids=["deep array", "deep object", "infinity", "huge integer", "surrogate", "surrogate in a prompt", "mark", "many"],
)
async def test_json_at_its_limits(server: TestServer, text: str) -> None:
    async with server.client() as client:
        response = await client.post("/v1", content=text.encode("utf-8", "surrogatepass"))
    assert response.status_code == 400
    check_envelope(response.json())
    async with Socket(server.app) as socket:
        await socket.authenticate()
        socket.send_text(text)
        socket.send({"taskType": "ping", "ping": True})
        try:
            await until_pong(socket)
        except Closed as closed:
            assert closed.code == 1009
