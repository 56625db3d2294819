"""Batches: 1 to 100 inputs in one call, one callback when the last run has ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from darkroom.api.runflow import batches
from darkroom.api.runflow.batches import NOBODY, OPEN
from darkroom.tasks.tables import idempotency, tasks
from tests.api.runflow.receiver import receiving
from tests.api.runflow.serving import EDIT, MODEL, Runs, make_keys, picture, serving
from tests.eventually import eventually

CREATE = f"/v1/models/{MODEL}/batches"
DATA_URI = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"


def small(prompt: str, **given: Any) -> dict[str, Any]:
    return {"prompt": prompt, "width": 128, "height": 128, "num_inference_steps": 1, **given}


async def ended(runs: Runs, batch: Any) -> Any:
    """Polls gently: a batch is a big record."""
    for _ in range(600):
        found = await runs.get(f"/v1/batches/{batch['id']}")
        if found["completed_at"] is not None:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"the batch is still {found['status_code']}")


async def test_a_batch_from_creation_to_callback(runs: Runs) -> None:
    async with receiving() as receiver:
        body = {
            "input": [small("one", seed=1, client_ref="a"), small("two", num_images=2), small("three")],
            "metadata": {"job": 7},
            "callback_url": receiver.url,
        }
        batch = await runs.post(CREATE, body)
        assert batch["items_total"] == 3
        assert [item["sequence_index"] for item in batch["items"]] == [0, 1, 2]
        assert [item["client_ref"] for item in batch["items"]] == ["a", None, None]
        done = await ended(runs, batch)
        assert (done["status_code"], done["items_succeeded"], done["items_failed"]) == ("succeeded", 3, 0)
        (call,) = await receiver.got(1)
        payload = call.json
        assert list(payload) == [
            "event", "batch_id", "status", "output", "duration_ms", "created_at", "completed_at", "metadata",
        ]  # fmt: skip
        assert (payload["event"], payload["status"]) == ("batch.succeeded", "succeeded")
        assert (payload["batch_id"], payload["metadata"]) == (batch["id"], {"job": 7})
        assert [one["sequence_index"] for one in payload["output"]["outputs"]] == [0, 1, 1, 2]
        assert call.headers["runflow-request-id"] == batch["id"]
        items = (await runs.get(f"/v1/batches/{batch['id']}/items"))["items"]
        assert [item["run"]["input"]["prompt"] for item in items] == ["one", "two", "three"]
        assert "client_ref" not in items[0]["run"]["input"]
        run = await runs.get(f"/v1/runs/{items[0]['run_id']}")
        assert (run["batch_id"], run["client_ref"]) == (batch["id"], "a")
        assert run == items[0]["run"]
        assert (await runs.get("/v1/runs", q=f"batch_id:{batch['id']}", limit="2"))["next"]
        assert len(receiver.calls) == 1  # and none for the single runs
        assert await runs.get(f"/v1/runs/{items[0]['run_id']}/callback") == []


async def test_the_guides_spelling_of_items(runs: Runs) -> None:
    batch = await runs.post(CREATE, {"items": [{"input": small("one")}, {"input": small("two"), "client_ref": "b"}]})
    assert [item["client_ref"] for item in batch["items"]] == [None, "b"]
    assert [given["prompt"] for given in batch["input"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("prompts", "status", "event"),
    [
        (["a", "[fail]"], "partial_succeeded", "batch.partial_succeeded"),
        (["[fail]", "[fail]"], "failed", "batch.failed"),
    ],
)
async def test_how_a_batch_ends(runs: Runs, prompts: list[str], status: str, event: str) -> None:
    async with receiving() as receiver:
        batch = await runs.post(CREATE, {"input": [small(p) for p in prompts], "callback_url": receiver.url})
        assert (await ended(runs, batch))["status_code"] == status
        assert (await receiver.got(1))[0].json["event"] == event


async def test_a_batch_whose_runs_are_all_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server, receiving() as receiver:
        runs = Runs(server)
        batch = await runs.post(CREATE, {"input": [small("a"), small("b")], "callback_url": receiver.url})
        assert batch["status_code"] == "queued"
        redelivery = f"/v1/batches/{batch['id']}/callback-redeliveries"
        assert "queued" in (await runs.post(redelivery, status=422))["message"]
        for item in batch["items"]:
            await runs.post(f"/v1/admin/runs/{item['run_id']}/cancellation")
        done = await ended(runs, batch)
        assert (done["status_code"], done["items_cancelled"], done["cost"]) == ("canceled", 2, "0")
        payload = (await receiver.got(1))[0].json
        assert (payload["event"], payload["status"], payload["output"]) == ("batch.cancelled", "cancelled", None)


async def test_redelivery(runs: Runs) -> None:
    async with receiving(404, 200) as receiver:
        batch = await runs.post(CREATE, {"input": [small("a")], "callback_url": receiver.url})
        await receiver.got(1)
        path = f"/v1/batches/{batch['id']}/callback"

        async def given_up() -> bool:
            return bool((await runs.get(path))[0]["status_code"] == "failed")

        await eventually(given_up)
        record = await runs.post(f"{path}-redeliveries")
        assert (record["batch_id"], record["is_automatic"]) == (batch["id"], False)
        assert (await receiver.got(2))[1].json["event"] == "batch.succeeded"
        silent = await runs.post(CREATE, {"input": [small("a")]})
        await ended(runs, silent)
        await runs.post(f"/v1/batches/{silent['id']}/callback-redeliveries", status=422)


WRONG = [
    ({}, ["input"]),
    ({"input": []}, ["input"]),
    ({"input": {}}, ["input"]),
    ({"input": [7]}, ["input[0]"]),
    ({"input": [{"prompt": "a"}] * 101}, ["input"]),
    ({"input": [{"prompt": "a"}, {}]}, ["input[1].prompt"]),
    ({"input": [{"num_images": 9, "prompt": 7}]}, ["input[0].prompt", "input[0].num_images"]),
    ({"input": [{"prompt": "a", "client_ref": "x" * 256}]}, ["input[0].client_ref"]),
    ({"items": [{"prompt": "a"}]}, ["items[0].input"]),
    ({"items": [{"input": {"seed": "-1", "prompt": "x"}}]}, ["items[0].input.seed"]),
    ({"input": [{"prompt": "a"}], "callback_url": "x"}, ["callback_url"]),
    ({"input": [{"prompt": "a"}], "metadata": 7}, ["metadata"]),
]


async def test_nothing_runs_when_one_item_is_wrong(runs: Runs) -> None:
    for body, fields in WRONG:
        answer = await runs.post(CREATE, body, 422)
        assert [entry["field"] for entry in answer["errors"]] == fields
        assert all(entry["field"] in entry["msg"] for entry in answer["errors"])
        assert (await runs.get("/v1/runs"))["items"] == []


@pytest.mark.parametrize("guides", [False, True])
async def test_a_reference_that_cannot_be_had_is_named_with_its_item(runs: Runs, guides: bool) -> None:
    inputs = [small("a", image_urls=[url]) for url in (DATA_URI, f"runflow://assets/{uuid4()}", "data:;base64,AAAA")]
    body = {"items": [{"input": each} for each in inputs]} if guides else {"input": inputs}
    answer = await runs.post(f"/v1/models/{EDIT}/batches", body, 422)
    place = "items[{}].input.image_urls[0]" if guides else "input[{}].image_urls[0]"
    assert [entry["field"] for entry in answer["errors"]] == [place.format(1), place.format(2)]
    assert all(entry["field"] in entry["msg"] for entry in answer["errors"])
    assert await runs.pending() == []


async def test_a_batch_that_does_not_fit_the_queue_leaves_nothing_there(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False, queue_limit_per_key=3) as server:
        runs = Runs(server)
        assert (await runs.post(CREATE, {"input": [small("a")] * 5}, 429))["code"] == "RATE_LIMITED"
        assert (await runs.get("/v1/runs"))["items"] == []
        await runs.post(CREATE, {"input": [small("a")] * 3})


async def test_a_refused_batch_does_not_use_its_key_up(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False, queue_limit_per_key=3) as server:
        runs, key = Runs(server), {"Idempotency-Key": "k"}
        waiting = await runs.create()
        await runs.post(CREATE, {"input": [small("a")] * 3}, 429, **key)
        await runs.post(f"/v1/admin/runs/{waiting['id']}/cancellation")
        batch = await runs.post(CREATE, {"input": [small("a")] * 3}, **key)
        assert [item["status_code"] for item in batch["items"]] == ["queued"] * 3


async def test_a_corrected_batch_may_have_the_key_of_the_refused_one(runs: Runs) -> None:
    key = {"Idempotency-Key": "k"}
    inputs = [small("a", image_urls=[url]) for url in (DATA_URI, f"runflow://assets/{uuid4()}")]
    await runs.post(f"/v1/models/{EDIT}/batches", {"input": inputs}, 422, **key)
    batch = await runs.post(f"/v1/models/{EDIT}/batches", {"input": inputs[:1]}, **key)
    assert (await ended(runs, batch))["items_succeeded"] == 1


async def test_a_key_is_forgotten_after_a_day(runs: Runs) -> None:
    key, database = {"Idempotency-Key": "k"}, runs.server.services.store.database  # type: ignore[attr-defined]
    first = await runs.post(CREATE, {"input": [small("a")]}, **key)
    two_days_ago = datetime.now(UTC) - timedelta(days=2)
    for table in (tasks, idempotency):
        await database.write(lambda connection, t=table: connection.execute(t.update().values(created_at=two_days_ago)))
    second = await runs.post(CREATE, {"input": [small("other")]}, **key)
    assert second["id"] != first["id"]
    assert (await ended(runs, first))["items"][0]["run_id"] == first["items"][0]["run_id"]


async def test_references_that_do_not_come_in_time_are_named(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "FETCH_SECONDS", 2.0)  # and what is there already takes no second
    async with silence() as port:
        urls = (f"http://127.0.0.1:{port}/a.png", DATA_URI)
        inputs = [small("a", image_urls=[url]) for url in urls]
        answer = await runs.post(f"/v1/models/{EDIT}/batches", {"input": inputs}, 422)
    assert [entry["field"] for entry in answer["errors"]] == ["input[0].image_urls"]
    assert "/v1/asset-uploads" in answer["message"]


@contextlib.asynccontextmanager
async def silence() -> AsyncIterator[int]:
    """The port of somebody who takes calls and says nothing."""
    closed = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed.wait()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        closed.set()
        server.close()


async def test_a_hundred_items(runs: Runs) -> None:
    batch = await runs.post(CREATE, {"input": [small(f"number {n}", seed=n) for n in range(100)]})
    done = await ended(runs, batch)
    assert done["items_succeeded"] == 100
    page = await runs.get(f"/v1/batches/{batch['id']}/items", limit="60", fields="sequence_index")
    rest = await runs.get(f"/v1/batches/{batch['id']}/items", limit="60", pq=page["next"])
    numbers = [item["sequence_index"] for item in page["items"] + rest["items"]]
    assert numbers == list(range(100))


async def test_idempotency(runs: Runs) -> None:
    body = {"input": [small("a"), small("b")]}
    first = await runs.post(CREATE, body, **{"Idempotency-Key": "k"})
    assert await runs.post(CREATE, body, **{"Idempotency-Key": "k"}) == first
    await runs.post(CREATE, {"input": [small("c")]}, 409, **{"Idempotency-Key": "k"})
    assert len((await runs.get("/v1/runs"))["items"]) == 2


async def test_batches_of_other_keys_are_not_there(tmp_path: Path) -> None:
    anna_key, bert_key = await make_keys(tmp_path, "anna", "bert")
    async with serving(tmp_path) as server:
        anna, bert = Runs(server, anna_key), Runs(server, bert_key)
        batch = await anna.post(CREATE, {"input": [small("a")]})
        for path in ("", "/items", "/callback"):
            await anna.get(f"/v1/batches/{batch['id']}{path}")
            await bert.get(f"/v1/batches/{batch['id']}{path}", 404)


async def test_a_batch_that_ended_while_the_server_was_down_is_announced(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with serving(tmp_path, working=False) as server:
            runs = Runs(server)
            batch = await runs.post(CREATE, {"input": [small("a")], "callback_url": receiver.url})
            await server.services.store.cancel(batch["items"][0]["run_id"])
            # stopped before anybody looks
        async with serving(tmp_path) as server:
            assert (await receiver.got(1))[0].json["event"] == "batch.cancelled"

            async def closed() -> bool:
                return not await server.services.store.documents.list(NOBODY, OPEN)

            await eventually(closed)
            assert len(receiver.calls) == 1
