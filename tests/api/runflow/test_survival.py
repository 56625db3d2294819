"""kill -9 of the server while runs with callbacks are at work: every run ends once, every callback arrives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.api.runflow.receiver import receiving
from tests.api.runflow.serving import MODEL, TERMINAL
from tests.live import LiveServer

COUNT = 8
PATH = f"/v1/models/{MODEL}/runs"


async def test_runs_survive_kill_9(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, models=str(tmp_path / "models"), lease_seconds="5", concurrent_tasks="3")
    async with receiving() as receiver:
        await asyncio.to_thread(server.start)
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                bodies = [body(number, receiver.url) for number in range(COUNT)]
                created = [await create(client, given) for given in bodies]
                await some_progress(client)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                again = [await create(client, given) for given in bodies]
                assert again == created  # the same keys, answered as before the kill
                ended = [await end_of(client, run["id"]) for run in created]
                assert {run["status_code"] for run in ended} == {"succeeded"}
                assert len((await client.get("/v1/runs", params={"limit": "500"})).json()["items"]) == COUNT
                for run in ended:
                    picture = await client.get(run["output"]["outputs"][0]["url"])
                    assert picture.content.startswith(b"\x89PNG")
                await receiver.got(COUNT)
                announced = {call.json["run_id"]: call.json for call in receiver.calls}
                assert set(announced) == {run["id"] for run in created}
                assert all(announced[run["id"]]["output"] == run["output"] for run in ended)
        finally:
            await asyncio.to_thread(server.kill)


def body(number: int, url: str) -> dict[str, Any]:
    return {
        "input": {"prompt": f"[slow 40] number {number}", "width": 128, "height": 128, "num_inference_steps": 10},
        "callback_url": url,
        "metadata": {"number": number},
    }


async def create(client: httpx.AsyncClient, given: dict[str, Any]) -> Any:
    key = f"number-{given['metadata']['number']}"
    response = await client.post(PATH, json=given, headers={"Idempotency-Key": key})
    assert response.status_code == 201, response.text
    return response.json()


async def some_progress(client: httpx.AsyncClient) -> None:
    """Until the first run has ended: others are at work, others wait."""
    for _ in range(600):
        if (await client.get("/v1/runs", params={"q": "status_code:succeeded"})).json()["items"]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no run ended")


async def end_of(client: httpx.AsyncClient, run_id: str) -> Any:
    for _ in range(600):
        run = (await client.get(f"/v1/runs/{run_id}")).json()
        if run["status_code"] in TERMINAL:
            return run
        await asyncio.sleep(0.1)
    raise AssertionError(f"{run_id} did not end")
