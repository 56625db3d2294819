"""What holds for every route: the mode header, CORS, bounded bodies, errors that tell nothing they should not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkroom.api.pages import anchor
from darkroom.tasks.sql import SqlTaskStore
from tests.api.servers import CATALOG, TestServer, serving


@pytest.mark.parametrize("path", ["/health", "/v1/cards", "/ii/none.jpg", "/docs", "/", "/nothing"])
async def test_every_answer_says_what_draws(server: TestServer, path: str) -> None:
    async with server.client() as client:
        assert (await client.get(path)).headers["darkroom-model"] == "embedded"


async def test_a_page_may_call_from_anywhere_with_a_key(locked: TestServer) -> None:
    async with locked.client(Origin="https://app.example", Authorization="Bearer dk_anna") as client:
        answer = await client.post("/v1", json=[{"taskType": "ping", "ping": True}])
        asked = await client.options(
            "/v1",
            headers={"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
        )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()


async def test_origins_can_be_limited_or_switched_off(tmp_path: Path) -> None:
    async with serving(tmp_path / "a", cors_origins="https://one.example") as server:
        async with server.client(Origin="https://one.example") as client:
            assert (await client.get("/health")).headers["access-control-allow-origin"] == "https://one.example"
        async with server.client(Origin="https://two.example") as client:
            assert "access-control-allow-origin" not in (await client.get("/health")).headers
    async with serving(tmp_path / "b", cors_origins="") as server, server.client(Origin="https://a.example") as client:
        assert "access-control-allow-origin" not in (await client.get("/health")).headers


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large(tmp_path: Path, announced: bool) -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    async with serving(tmp_path, body_bytes=10_000) as server, server.client() as client:
        for path in ("/v1", "/v1/asset-uploads"):
            content = b"x" * 20_000 if announced else parts()
            response = await client.post(path, content=content)
            assert response.status_code == 413
            told = response.json()["errors"][0] if path == "/v1" else response.json()
            assert told["message"] == "The request is larger than this server takes."


async def test_other_methods_and_addresses(server: TestServer) -> None:
    async with server.client() as client:
        wrong = await client.get("/v1")
        assert wrong.status_code == 405
        assert wrong.json()["errors"][0]["code"] == "unsupportedMethod"
        nowhere = await client.get("/v1/nothing")
        assert nowhere.status_code == 404
        assert (nowhere.json()["code"], nowhere.json()["errors"]) == ("NOT_FOUND", None)


async def test_a_failure_of_ours_tells_a_number_and_nothing_else(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /root/x.py")

    monkeypatch.setattr(SqlTaskStore, "recent", broken)
    async with server.client() as client:
        flat = await client.get("/v1/tasks")
    task = await server.post(
        {"taskType": "accountManagement", "taskUUID": "5e1d2bde-c882-4900-9d4d-0669648c8a8a", "operation": "getDetails"}
    )
    for response in (flat, task):
        assert response.status_code == 500
        assert "secret" not in response.text
        assert "Its log has the details under" in response.text
    assert flat.json()["code"] == "INTERNAL_ERROR"
    assert task.json()["errors"][0]["code"] == "internalServerError"


async def test_health_readiness_and_metrics_need_no_key(locked: TestServer) -> None:
    async with locked.client() as client:
        assert (await client.get("/health")).json() == {"status": "ok", "version": "0.1.0", "model": "embedded"}
        ready = await client.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["components"] == {"database": "ok", "engine": "ok"}
        metrics = (await client.get("/metrics")).text
    assert 'darkroom_tasks{status="queued"} 0.0' in metrics
    assert "darkroom_http_requests_total" in metrics


@pytest.mark.parametrize("path", ["/", "/app.js", "/docs", "/health", "/ready", "/metrics", "/v1/cards"])
async def test_whatever_can_be_got_can_be_asked_about(server: TestServer, path: str) -> None:
    async with server.client() as client:
        answer, got = await client.head(path), await client.get(path)
    assert (answer.status_code, answer.content) == (got.status_code, b"")
    assert answer.headers["content-type"] == got.headers["content-type"]


async def test_a_picture_by_its_address(server: TestServer) -> None:
    made = await server.post(
        {
            "taskType": "imageInference",
            "taskUUID": "5e1d2bde-c882-4900-9d4d-0669648c8a8a",
            "model": "runware:400@4",
            "positivePrompt": "a boat",
            "width": 128,
            "height": 128,
            "outputFormat": "PNG",
        }
    )
    address = made.json()["data"][0]["imageURL"]
    async with server.client() as client:
        picture = await client.get(address)
        head = await client.head(address)
        etag = picture.headers["etag"]
        known = [
            await client.get(address, headers={"If-None-Match": said})
            for said in (etag, f"W/{etag}", f'"other", {etag}', "*")
        ]
        other_type = await client.get(address.replace(".png", ".jpg"))
        unknown = await client.get(address[:-8] + "0000.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    assert "immutable" in picture.headers["cache-control"]
    assert head.status_code == 200
    assert head.content == b""
    assert [answer.status_code for answer in known] == [304] * 4
    assert other_type.status_code == unknown.status_code == 404


async def test_a_picture_is_cached_no_longer_than_it_is_kept(server: TestServer) -> None:
    made = await server.post(
        {
            "taskType": "imageInference",
            "taskUUID": "5e1d2bde-c882-4900-9d4d-0669648c8a8a",
            "model": "runware:400@4",
            "positivePrompt": "a boat",
            "width": 128,
            "height": 128,
            "ttl": 60,
        }
    )
    async with server.client() as client:
        picture = await client.get(made.json()["data"][0]["imageURL"])
    age = int(picture.headers["cache-control"].partition("max-age=")[2].split(",")[0])
    assert 0 < age <= 60


async def test_every_link_of_the_served_manual_leads_somewhere(server: TestServer) -> None:
    async with server.client() as client:
        found: dict[str, str] = {}
        waiting = ["http://darkroom.test/docs"]
        while waiting:
            page = waiting.pop()
            if page in found:
                continue
            answer = await client.get(page)
            assert answer.status_code == 200, page
            found[page] = answer.text
            hrefs = re.findall(r'href="([^"]+)"', answer.text) if "html" in answer.headers["content-type"] else []
            for address in (httpx.URL(page).join(href) for href in hrefs):
                if address.host == "darkroom.test":
                    waiting.append(str(address.copy_with(fragment=None)))
        for page, text in found.items():
            for href in re.findall(r'href="([^"]*#[^"]+)"', text):
                address = httpx.URL(page).join(href)
                target = str(address.copy_with(fragment=None))
                assert target not in found or f'id="{address.fragment}"' in found[target], f"{page}: {href}"


async def test_the_manual_and_the_models_pages(server: TestServer) -> None:
    async with server.client() as client:
        index = (await client.get("/docs")).text
        assert "/docs/api/runware" in index
        manual = await client.get("/docs/api/runware")
        assert 'id="errors"' in manual.text
        model = await client.get("/docs/models/bfl-flux-2-klein-4b-base")
        for path in CATALOG.resolve("runware:400@5").parameters:  # whatever an error is about has its place
            assert f'id="{anchor(path)}"' in model.text
        assert (await client.get("/docs/../pyproject")).status_code == 404
        assert (await client.get("/docs/%2e%2e/README")).status_code == 404
        samplers = (await client.get("/docs/samplers")).text
        assert 'src="images/samplers.jpg"' in samplers and "&lt;!--" not in samplers
        assert (await client.get("/docs/images/samplers.jpg")).headers["content-type"] == "image/jpeg"
        assert (await client.get("/docs/images/nothing.jpg")).status_code == 404
    assert "default-src 'none'" in manual.headers["content-security-policy"]


async def test_every_documentation_link_of_an_error_leads_somewhere(server: TestServer) -> None:
    response = await server.post(
        {
            "taskType": "imageInference",
            "taskUUID": "5e1d2bde-c882-4900-9d4d-0669648c8a8a",
            "model": "runware:400@5",
            "positivePrompt": "",
            "width": 100,
            "height": 128,
            "acceleratorOptions": {"fbCacheThreshold": 3},
            "lora": [{"model": "x", "weight": 9}],
            "nonsense": 1,
        }
    )
    errors = response.json()["errors"]
    assert len(errors) == 5
    async with server.client() as client:
        for error in errors:
            address, _, anchor = error["documentation"].partition("#")
            page = await client.get(address)
            assert page.status_code == 200
            assert f'id="{anchor}"' in page.text or not anchor


@pytest.mark.parametrize(("path", "code"), [("/v1", "serviceUnavailable"), ("/v1/cards", "UNAVAILABLE")])
async def test_who_still_waits_when_the_server_stops_is_told(tmp_path: Path, path: str, code: str) -> None:
    sent: list[dict[str, Any]] = []
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        asked.set()
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with serving(tmp_path) as server:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(b"host", b"darkroom.test")], "client": ("127.0.0.1", 1), "server": ("darkroom.test", 80),
        }  # fmt: skip
        scope = scope if path == "/v1" else {**scope, "path": "/v1/asset-uploads", "raw_path": b"/v1/asset-uploads"}
        call = asyncio.create_task(server.app(scope, receive, send))
        await asked.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert sent[0]["status"] == 503
    assert code in sent[1]["body"].decode()
