"""The routes beside the dialects: models with their schemas, a key's own tasks, the playground's files."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.api.servers import SomeKeys, serving
from tests.catalog.test_installed import BASE, install, part

ALICE, BOB = {"Authorization": "Bearer alice_key"}, {"Authorization": "Bearer bob_key"}
KEYS = SomeKeys({"alice_key": "alice", "bob_key": "bob"})


def task(prompt: str, **fields: Any) -> dict[str, Any]:
    base = {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "model": "runware:400@4"}
    return {**base, "positivePrompt": prompt, "width": 128, "height": 128, **fields}


async def test_every_card_comes_with_its_schema(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        cards = (await client.get("/v1/cards")).json()["items"]
        assert [card["id"] for card in cards if card["preferred"]] == ["runware:400@4"]
        for card in cards:
            schema = (await client.get(f"/v1/cards/{card['id']}/schema")).json()
            assert card["name"] in schema["title"]
            assert schema["properties"]["width"]["multipleOf"] == 16
        assert (await client.get("/v1/cards/nobody:1@1/schema")).status_code == 404


async def test_a_card_says_how_large_the_embedded_model_draws(tmp_path: Path) -> None:
    part(tmp_path / "embedded", "vae", "text_encoder", "tokenizer", "base/transformer")
    async with serving(tmp_path) as server, server.client() as client:
        cards = (await client.get("/v1/cards")).json()["items"]
        assert {card["largest_side"] for card in cards} == {512}
        install(tmp_path / "models", BASE)  # real weights draw whatever the schema allows
        cards = (await client.get("/v1/cards")).json()["items"]
        assert {card["largest_side"] for card in cards} == {None}


async def test_tasks_are_found_by_every_word_and_by_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        await server.post(
            task("A Red circle"), task("a red square"), task("a blue circle", model="runware:400@5", steps=2)
        )

        async def prompts(**query: str) -> list[str]:
            page = (await client.get("/v1/tasks", params=query)).json()
            return [item["prompt"] for item in page["items"]]

        assert len(await prompts()) == 3
        assert await prompts(search="red CIRCLE") == ["A Red circle"]
        assert await prompts(model="runware:400@5") == ["a blue circle"]
        assert await prompts(search="green") == []


async def test_pages_follow_each_other_without_gap_or_repeat(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server, server.client() as client:
        sent = [task(f"number {n}", deliveryMethod="async") for n in range(7)]
        await server.post(*sent)
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await client.get("/v1/tasks", params={"limit": 3, "cursor": cursor})).json()
            seen += [item["prompt"] for item in page["items"]]
            if not (cursor := page["next"] or ""):
                break
        assert sorted(seen) == [f"number {n}" for n in range(7)]


async def test_a_queued_task_tells_how_many_come_before_it(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server, server.client() as client:
        first, second, third = sent = [task(f"number {n}", deliveryMethod="async") for n in range(3)]
        for one in sent:
            await server.post(one)

        async def position(one: dict[str, Any]) -> int | None:
            place: int | None = (await client.get(f"/v1/tasks/{one['taskUUID']}")).json()["position"]
            return place

        assert [await position(one) for one in sent] == [0, 1, 2]
        listed = (await client.get("/v1/tasks")).json()["items"]
        assert [record["position"] for record in listed] == [2, 1, 0]
        cancelled = (await client.post(f"/v1/tasks/{first['taskUUID']}/cancel")).json()
        assert (cancelled["status"], cancelled["position"]) == ("cancelled", None)
        assert [await position(one) for one in (first, second, third)] == [None, 0, 1]


async def test_a_request_is_told_back_as_the_task_that_asks_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        sent = task("a red circle", seed=7, steps=3, outputFormat="PNG", safety={"checkContent": False})
        await server.post(sent)
        record = (await client.get(f"/v1/tasks/{sent['taskUUID']}")).json()
        told = (await client.post("/v1/cards/runware:400@4/task", json=record["request"])).json()
        assert {"positivePrompt": "a red circle", "seed": 7, "steps": 3, "outputFormat": "PNG"}.items() <= told.items()
        again = (await server.post({**told, "taskUUID": str(uuid.uuid4())})).json()
        assert again["data"][0]["seed"] == 7


@pytest.mark.parametrize(
    ("model", "body", "status", "told"),
    [
        ("nobody:1@1", b"{}", 404, "nobody:1@1"),
        ("runware:400@4", b"{", 422, "The body is not JSON"),
        ("runware:400@4", b"[]", 422, "not a request"),
        ("runware:400@4", b'{"prompt": "a boat"}', 422, "width"),
        ("runware:400@4", b'{"prompt": "a", "width": 64, "height": 64, "steps": "4", "seed": 1}', 422, "$.steps"),
    ],
)
async def test_what_is_no_request_is_told_so(tmp_path: Path, model: str, body: bytes, status: int, told: str) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.post(f"/v1/cards/{model}/task", content=body)
        assert answer.status_code == status
        assert told in answer.json()["message"]


async def test_a_task_tells_how_its_pictures_were_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        sent = task("a red circle", numberResults=2, seed=7, outputFormat="PNG")
        await server.post(sent)
        record = (await client.get(f"/v1/tasks/{sent['taskUUID']}")).json()
        assert record["status"] == "succeeded"
        assert [result["seed"] for result in record["results"]] == [7, 8]
        assert record["results"][0]["stage_ms"]["denoise"] > 0
        picture = await client.get(record["results"][0]["url"])
        assert picture.headers["content-type"] == "image/png"
        assert (await client.get(f"/v1/tasks/{record['id']}")).json() == record


async def test_references_are_told_as_addresses(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        first = (await server.post(task("a first picture"))).json()["data"][0]
        sent = task("a second picture", inputs={"referenceImages": [first["imageUUID"]]})
        await server.post(sent)
        record = (await client.get(f"/v1/tasks/{sent['taskUUID']}")).json()
        assert list(record["references"]) == record["request"]["references"]
        assert (await client.get(record["references"][first["imageUUID"]])).status_code == 200


async def test_a_key_sees_its_own_tasks_only(tmp_path: Path) -> None:
    async with serving(tmp_path, keys=KEYS) as server, server.client() as client:
        sent = task("hers alone")
        await server.post(sent, **ALICE)
        mine = (await client.get("/v1/tasks", headers=ALICE)).json()["items"]
        assert [item["prompt"] for item in mine] == ["hers alone"]
        assert (await client.get("/v1/tasks", headers=BOB)).json()["items"] == []
        for name in (sent["taskUUID"], mine[0]["id"]):
            assert (await client.get(f"/v1/tasks/{name}", headers=BOB)).status_code == 404
        for path in ("/v1/tasks", "/v1/cards", "/v1/adapters", "/v1/cards/runware:400@4/schema"):
            assert (await client.get(path)).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/tasks?cursor=nonsense", 422),
        ("/v1/tasks?limit=0", 422),
        ("/v1/tasks?model=nobody", 404),
        ("/v1/tasks/x", 422),
    ],
)
async def test_bad_questions_are_told_so(tmp_path: Path, path: str, status: int) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.get(path)
        assert answer.status_code == status
        assert answer.json()["message"]


async def test_the_playground_may_talk_to_its_own_server_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (await client.get("/app.js")).headers["content-type"].startswith("text/javascript")
        for name in ("/nothing.js", "/..%2Fconfig.py", "/config.py"):
            assert (await client.get(name)).status_code == 404
