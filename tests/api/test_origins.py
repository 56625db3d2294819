"""A server without keys is its own machine's: which pages it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.servers import TestServer, serving
from tests.api.sockets import Closed, Socket

HERE = [
    "http://localhost:3000",
    "http://127.0.0.1:5173",
    "http://[::1]:8080",
    "http://darkroom.test",
    "http://a.localhost",
]
ELSEWHERE = ["https://app.example", "http://192.168.1.5", "http://intranet", "null", "http://localhost.example"]
PING = [{"taskType": "ping", "ping": True}]


@pytest.mark.parametrize("origin", HERE)
async def test_pages_of_this_machine_may_call(server: TestServer, origin: str) -> None:
    async with server.client(Origin=origin) as client:
        answer = await client.post("/v1", json=PING)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ELSEWHERE)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/tasks"), ("POST", "/v1"), ("GET", "/v1/runs")])
async def test_other_pages_may_not_and_are_told_why(server: TestServer, origin: str, method: str, path: str) -> None:
    async with server.client(Origin=origin) as client:
        answer = await client.request(method, path, content=b'[{"taskType": "ping", "ping": true}]')
        assert answer.status_code == 403
        assert "DARKROOM_CORS_ORIGINS" in answer.text
        assert answer.headers["access-control-allow-origin"] == "*"  # so that the page can read it


async def test_a_socket_of_another_page_is_not_opened(server: TestServer) -> None:
    with pytest.raises(Closed):
        async with Socket(server.app, origin="https://app.example") as socket:
            await socket.authenticate()
    async with Socket(server.app, origin="http://localhost:3000") as socket:
        await socket.authenticate()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_a_public_name_that_stands_for_this_machine_opens_nothing(server: TestServer, host: str) -> None:
    for headers in ({}, {"Origin": f"http://{host}"}):
        async with server.client(Host=host, **headers) as client:
            answer = await client.get("/v1/tasks")
            assert answer.status_code == 403
            assert "DARKROOM_PUBLIC_URL" in answer.text or "DARKROOM_CORS_ORIGINS" in answer.text


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "studio.local", "darkroom", "10.0.0.7"]
)
async def test_programs_and_names_of_this_network_are_answered(server: TestServer, host: str) -> None:
    async with server.client(Host=host) as client:
        assert (await client.get("/v1/tasks")).status_code == 200


async def test_the_operator_may_name_the_server_and_the_pages(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "a", public_url="https://pictures.example") as server,
        server.client(Host="pictures.example", Origin="https://pictures.example") as client,
    ):
        assert (await client.get("/v1/tasks")).status_code == 200
    async with serving(tmp_path / "b", cors_origins="https://one.example") as server:
        for origin, status in (("https://one.example", 200), ("https://two.example", 403)):
            async with server.client(Origin=origin) as client:
                assert (await client.get("/v1/tasks")).status_code == status
    async with serving(tmp_path / "c", cors_origins="*") as server, server.client(Origin="https://a.example") as client:
        assert (await client.get("/v1/tasks")).status_code == 200
