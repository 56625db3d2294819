"""Whole answers beside their requests, as files: golden/<case>.json is {request, status, response}.

What differs from run to run is replaced by a word in angle brackets. DARKROOM_GOLDEN=write makes the files anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from tests.api.runflow.receiver import receiving
from tests.api.runflow.serving import MODEL, Runs, serving
from tests.eventually import eventually

FOLDER = Path(__file__).parent / "golden"
WRITE = os.environ.get("DARKROOM_GOLDEN") == "write"
SEED_BODY = {
    "input": {
        "prompt": "A vintage travel poster for 'RUNFLOW AIRWAYS' featuring a retro DC-3 airplane flying over "
        "snow-capped mountains at sunset, bold art deco typography, warm orange and teal color palette, textured "
        "paper grain, 1940s airline advertising style"
    },
    "callback_url": "https://your-server.com/webhook",
}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
CURSOR = ("first", "next", "previous", "next_pq", "prev_pq")
small = {"prompt": "a red circle", "width": 128, "height": 128, "seed": 7, "num_inference_steps": 2}


def steady(value: Any, name: str = "") -> Any:
    """The same with ids, times, durations, ports and cursors replaced."""
    if isinstance(value, dict):
        return {key: steady(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    if isinstance(value, str):
        if name in CURSOR:
            return "<cursor>"
        if name == "payload_bytes":
            return "<the body>"
        return re.sub(r"127\.0\.0\.1:\d+", "<receiver>", TIME.sub("<time>", UUID.sub("<uuid>", value)))
    timed = name.endswith("_ms") or name in ("queue", "text", "references", "denoise", "decode", "encode")
    return "<ms>" if timed and isinstance(value, int | float) else value


def check(case: str, request: Any, status: int, response: Any) -> None:
    found = {"request": steady(request), "status": status, "response": steady(response)}
    path = FOLDER / f"{case}.json"
    if WRITE:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    assert msgspec.json.decode(path.read_bytes()) == found


async def post(runs: Runs, case: str, path: str, body: Any, status: int) -> Any:
    answer = await runs.post(path, body, status)
    check(case, {"method": "POST", "path": path, "body": body}, status, answer)
    return answer


async def get(runs: Runs, case: str, path: str, status: int = 200) -> Any:
    answer = await runs.get(path, status)
    check(case, {"method": "GET", "path": path}, status, answer)
    return answer


async def test_a_run_that_waits(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server:
        runs = Runs(server)
        run = await post(runs, "created", f"/v1/models/{MODEL}/runs", SEED_BODY, 201)
        await post(runs, "cancelled", f"/v1/admin/runs/{run['id']}/cancellation", {"reason": "not needed"}, 201)
        await get(runs, "logs_of_a_cancelled_run", f"/v1/runs/{run['id']}/logs")
        await post(runs, "batch_created", f"/v1/models/{MODEL}/batches", {"input": [small | {"client_ref": "a"}]}, 201)


async def test_runs_that_end(runs: Runs) -> None:
    async with receiving() as receiver:
        envelope = {"callback_url": receiver.url, "metadata": {"order": 17}, "client_ref": "mine"}
        made = await runs.made(**small, num_images=2, envelope=envelope)
        await get(runs, "succeeded", f"/v1/runs/{made['id']}")
        check("callback_succeeded", None, 200, (await receiver.got(1))[0].json)
        failed = await runs.made(**small | {"prompt": "[fail]"}, envelope=envelope)
        await get(runs, "failed", f"/v1/runs/{failed['id']}")
        check("callback_failed", None, 200, (await receiver.got(2))[1].json)

        async def delivered() -> bool:
            return bool((await runs.get(f"/v1/runs/{made['id']}/callback"))[0]["status_code"] == "delivered")

        await eventually(delivered)
        await get(runs, "callback_history", f"/v1/runs/{made['id']}/callback")
        await get(runs, "page", "/v1/runs?limit=1&fields=id,status_code")


async def test_the_rest(runs: Runs) -> None:
    wrong = {"input": {"prompt": 7, "num_images": 9, "output_format": "jpg", "width": 512}, "client_ref": 7}
    await post(runs, "validation_error", f"/v1/models/{MODEL}/runs", wrong, 422)
    await get(runs, "not_found", "/v1/runs/c0ffee00-0000-7000-8000-000000000000", 404)
    await get(runs, "statuses", "/v1/runs/statuses")
    await get(runs, "model", f"/v1/models/{MODEL}")
    await get(runs, "me", "/v1/auth/me")
    await get(runs, "readiness", "/v1/readiness")
