"""Runs over HTTP: create, read, list, cancel; errors of every kind; keys; idempotency; sync_mode; logs."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image

from darkroom.api.runflow import http
from darkroom.errors import StorageError
from tests.api.runflow.serving import BASE, EDIT, MODEL, Runs, make_keys, picture, serving
from tests.eventually import eventually

CREATE = f"/v1/models/{MODEL}/runs"


async def test_a_run_from_creation_to_picture(runs: Runs) -> None:
    metadata = {"user_id": 42, "tags": ["a", None]}
    body = {
        "input": {"prompt": "a red circle", "width": 256, "height": 128, "seed": 7, "output_format": "webp"},
        "metadata": metadata,
        "client_ref": "mine-1",
    }
    created = await runs.post(CREATE, body)
    assert UUID(created["id"]).version == 7
    assert created["status_code"] == "queued"
    assert created["output"] is None
    assert (created["input"], created["metadata"], created["client_ref"]) == (body["input"], metadata, "mine-1")
    run = await runs.ended(created)
    assert run["status_code"] == "succeeded"
    output = run["output"]
    assert set(output) == {"outputs", "seed", "model_data", "nsfw_detected", "timing", "image_urls"}
    (one,) = output["outputs"]
    assert output["image_urls"] == [one["url"]]
    assert (one["type"], one["width"], one["height"], one["content_type"]) == ("image", 256, 128, "image/webp")
    assert (output["seed"], output["nsfw_detected"]) == (7, None)
    assert output["model_data"]["prompt"] == "a red circle"
    assert {"queue_ms", "text_ms", "references_ms", "denoise_ms", "decode_ms", "encode_ms"} <= set(output["timing"])
    assert re.fullmatch(rf"{BASE}/ii/[0-9a-f-]{{36}}\.webp", one["url"])
    file = await runs.http.get(one["url"], headers={"Authorization": ""})
    assert file.headers["content-type"] == "image/webp"
    assert file.content[8:12] == b"WEBP"
    assert len(file.content) == one["file_size"]
    times = [datetime.fromisoformat(run[name]) for name in ("created_at", "started_at", "completed_at")]
    assert times == sorted(times)
    assert all(run[name].endswith("+00:00") for name in ("created_at", "started_at", "completed_at", "finished_at"))
    assert abs(run["duration_ms"] - (times[2] - times[0]) / timedelta(milliseconds=1)) <= 1


async def test_the_seeds_price_as_a_decimal_string(runs: Runs) -> None:
    assert (await runs.made(width=1024, height=1024))["cost"] == "0.005"
    assert (await runs.made(width=1024, height=768))["cost"] == "0.00375"
    assert (await runs.made(width=512, height=512, num_images=3))["cost"] == "0.00375"
    assert (await runs.made(prompt="[fail]"))["cost"] == "0"
    assert (await runs.create())["cost"] is None


async def test_several_pictures_count_their_seeds_up(runs: Runs) -> None:
    run = await runs.made(num_images=4, seed=100)
    outputs = run["output"]["outputs"]
    assert [one["seed"] for one in outputs] == [100, 101, 102, 103]
    assert run["output"]["seed"] == 100
    second = await runs.made(seed=101)
    files = [(await runs.http.get(url)).content for url in (outputs[1]["url"], second["output"]["outputs"][0]["url"])]
    assert files[0] == files[1] != (await runs.http.get(outputs[0]["url"])).content


async def test_a_random_seed_is_told_and_gives_the_same_again(runs: Runs) -> None:
    first = await runs.made()
    again = await runs.made(seed=first["output"]["seed"])
    other = await runs.made()
    urls = [run["output"]["outputs"][0]["url"] for run in (first, again, other)]
    files = [(await runs.http.get(url)).content for url in urls]
    assert files[0] == files[1] != files[2]


async def test_a_failed_run_says_why(runs: Runs) -> None:
    run = await runs.made(prompt="[fail]")
    assert run["status_code"] == run["status"] == "failed"
    assert run["output"] is None
    assert run["failure_code"] == "INFERENCE_FAILED"
    assert run["failure_stage_code"] == run["failure_stage"] == "inference"
    assert run["error"] == {"code": "INFERENCE_FAILED", "message": run["failure_message"]}
    assert (await runs.made(prompt="[oom]"))["failure_code"] == "OUT_OF_MEMORY"
    partly = await runs.made(prompt="[fail 1]", num_images=2)
    assert (partly["status_code"], partly["output"]) == ("failed", None)


async def test_nsfw_is_checked_when_a_checker_is_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        object.__setattr__(server.services, "features", frozenset({"safety"}))
        runs = Runs(server)
        flagged = await runs.made(prompt="[nsfw]")
        assert flagged["output"]["nsfw_detected"] is True
        file = await runs.http.get(flagged["output"]["outputs"][0]["url"])
        assert Image.open(io.BytesIO(file.content)).convert("RGB").getextrema() == ((0, 0),) * 3  # filtered: black
        assert (await runs.made())["output"]["nsfw_detected"] is False
        assert (await runs.made(enable_safety_checker=False))["output"]["nsfw_detected"] is None


async def test_without_a_checker_asking_for_one_is_noted(runs: Runs) -> None:
    run = await runs.made(enable_safety_checker=True)
    assert run["output"]["nsfw_detected"] is None
    assert any("checker" in note for note in run["output"]["model_data"]["warnings"])


async def test_what_was_ignored_is_told(runs: Runs) -> None:
    run = await runs.made(strength=0.5, guidance_scale=3)
    notes = " ".join(run["output"]["model_data"]["warnings"])
    assert "strength" in notes
    assert "guidance_scale" in notes
    logs = (await runs.get(f"/v1/runs/{run['id']}/logs"))["items"]
    assert any(line["level_code"] == "warning" and "strength" in line["message"] for line in logs)


# Refusals


REFUSALS = [
    ("POST", "/v1/models/black-forest-labs/nothing/runs", 404, "MODEL_NOT_FOUND"),
    ("POST", "/v1/models/a/b/c/d/runs", 404, "MODEL_NOT_FOUND"),
    ("POST", "/v1/models/flux-2-klein-4b/runs", 405, "METHOD_NOT_ALLOWED"),
    ("POST", f"/v1/models/{MODEL}", 405, "METHOD_NOT_ALLOWED"),
    ("GET", f"/v1/models/{MODEL}/runs", 405, "METHOD_NOT_ALLOWED"),
    ("GET", f"/v1/models/{MODEL}/batches", 405, "METHOD_NOT_ALLOWED"),
    ("DELETE", "/v1/runs", 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v1/models/black-forest-labs/nothing", 404, "MODEL_NOT_FOUND"),
    ("GET", "/v1/runs/nothing", 404, "RUN_NOT_FOUND"),
    ("GET", "/v1/runs/c0ffee00-0000-7000-8000-000000000000", 404, "RUN_NOT_FOUND"),
    ("GET", "/v1/runs/%00", 404, "RUN_NOT_FOUND"),
    ("GET", "/v1/runs/nothing/logs", 404, "RUN_NOT_FOUND"),
    ("GET", "/v1/runs/nothing/callback", 404, "RUN_NOT_FOUND"),
    ("POST", "/v1/runs/nothing/callback-redeliveries", 404, "RUN_NOT_FOUND"),
    ("POST", "/v1/admin/runs/nothing/cancellation", 404, "RUN_NOT_FOUND"),
    ("GET", "/v1/batches/nothing", 404, "BATCH_NOT_FOUND"),
    ("GET", "/v1/batches/%00/items", 404, "BATCH_NOT_FOUND"),
    ("GET", "/v1/assets/nothing", 404, "ASSET_NOT_FOUND"),
    ("POST", "/v1/asset-uploads/nothing/confirmations", 404, "ASSET_NOT_FOUND"),
    ("PUT", "/v1/asset-uploads/nothing/content?token=x", 403, "PERMISSION_DENIED"),
    ("DELETE", "/v1/callback-secrets/nothing", 404, "NOT_FOUND"),
    ("GET", "/v1/nothing/here", 404, "NOT_FOUND"),
    ("DELETE", "/v1/runs", 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v1/runs?limit=501", 422, "VALIDATION_ERROR"),
    ("GET", "/v1/runs?q=colour:red", 422, "VALIDATION_ERROR"),
    ("GET", "/v1/runs?pq=nonsense", 422, "VALIDATION_ERROR"),
    ("GET", "/v1/runs?sort_by=colour", 422, "VALIDATION_ERROR"),
]


async def test_refusals_are_flat(runs: Runs) -> None:
    for method, path, status, code in REFUSALS:
        body = {"input": {"prompt": "x"}} if method == "POST" and path.endswith("runs") else None
        answer = runs.checked(await runs.http.request(method, path, json=body), status)
        assert answer["code"] == code, path
        assert (answer["errors"] is None) == (status != 422), path


async def test_fields_of_a_listing_that_are_not_there(runs: Runs) -> None:
    await runs.create()
    assert (await runs.get("/v1/runs", 422, fields="colour"))["errors"][0]["field"] == "fields"


async def test_a_body_that_is_not_json_is_400(runs: Runs) -> None:
    for data in (b"", b"{", b"[]", b"null", b"\xff"):
        answer = runs.checked(await runs.http.post(CREATE, content=data), 400)
        assert answer["code"] == "BAD_REQUEST", data


async def test_violations_name_their_fields(runs: Runs) -> None:
    answer = await runs.create(num_images=9, output_format="jpg", status=422)
    assert answer["code"] == "VALIDATION_ERROR"
    assert [entry["field"] for entry in answer["errors"]] == ["input.num_images", "input.output_format"]
    assert answer["errors"][0]["loc"] == ["input", "num_images"]
    assert "between 1 and 4" in answer["errors"][0]["msg"]


async def test_a_body_beyond_the_limit_is_413(tmp_path: Path) -> None:
    async with serving(tmp_path, body_bytes=1000) as server:
        runs = Runs(server)
        assert (await runs.create(prompt="x" * 2000, status=413))["code"] == "PAYLOAD_TOO_LARGE"


async def test_a_full_queue_is_429_with_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False, queue_limit_per_key=2) as server:
        runs = Runs(server)
        await runs.create()
        await runs.create()
        refused = await runs.http.post(CREATE, json={"input": {"prompt": "x"}})
        assert runs.checked(refused, 429)["code"] == "RATE_LIMITED"
        assert int(refused.headers["retry-after"]) > 0


async def test_a_model_without_weights_is_503(tmp_path: Path) -> None:
    other = tmp_path / "models" / "black-forest-labs--FLUX.2-klein-9B"
    for part in ("transformer", "vae", "text_encoder"):
        (other / part).mkdir(parents=True)
        (other / part / "model.safetensors").touch()
        (other / part / "config.json").touch()
    (other / "tokenizer").mkdir()
    (other / "tokenizer" / "tokenizer.json").touch()
    async with serving(tmp_path) as server:
        runs = Runs(server)
        answer = await runs.create(status=503)
        assert answer["code"] == "MODEL_UNAVAILABLE"
        assert "darkroom pull" in answer["message"]
        listed = [model["model"] for model in (await runs.get("/v1/models"))["items"]]
        assert listed == ["black-forest-labs/flux-2-klein-9b", "black-forest-labs/flux-2-klein-9b/edit"]
        await runs.get(f"/v1/models/{MODEL}", 404)


# Keys


async def test_keys_see_only_their_own(tmp_path: Path) -> None:
    anna_key, bert_key = await make_keys(tmp_path, "anna", "bert")
    assert re.fullmatch("[A-Za-z0-9_]+", anna_key)
    async with serving(tmp_path) as server:
        anna, bert, nobody = Runs(server, anna_key), Runs(server, bert_key), Runs(server)
        run = await anna.made(envelope={"callback_url": "http://127.0.0.1:9/"})
        for path in (run["id"], f"{run['id']}/logs", f"{run['id']}/callback"):
            await anna.get(f"/v1/runs/{path}")
            assert (await bert.get(f"/v1/runs/{path}", 404))["code"] == "RUN_NOT_FOUND"
            assert (await nobody.get(f"/v1/runs/{path}", 401))["code"] == "UNAUTHORIZED"
        await bert.post(f"/v1/admin/runs/{run['id']}/cancellation", status=404)
        await bert.post(f"/v1/runs/{run['id']}/callback-redeliveries", status=404)
        assert (await bert.get("/v1/runs"))["items"] == []
        assert (await anna.get("/v1/auth/me"))["id"] != (await bert.get("/v1/auth/me"))["id"]
        url = run["output"]["outputs"][0]["url"]
        refused = await bert.create(EDIT, image_urls=[url], status=422)
        assert refused["errors"][0]["field"] == "input.image_urls[0]"
        asset = url.rpartition("/")[2].partition(".")[0]
        await bert.create(EDIT, image_urls=[f"runflow://assets/{asset}"], status=422)
        await anna.create(EDIT, image_urls=[url, f"runflow://assets/{asset}"])
        assert (await nobody.http.get(url)).status_code == 200  # the address is the permission


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
async def test_without_a_key_there_is_401_before_anything_else(tmp_path: Path, header: dict[str, str]) -> None:
    await make_keys(tmp_path, "anna")
    async with serving(tmp_path) as server:
        runs = Runs(server)
        asked = [
            ("POST", CREATE),
            ("POST", f"/v1/models/{MODEL}/batches"),
            ("POST", "/v1/models/a/b/runs"),
            ("GET", "/v1/models"),
            ("GET", "/v1/runs"),
            ("GET", "/v1/runs/statuses"),
            ("GET", "/v1/batches/x"),
            ("POST", "/v1/asset-uploads"),
            ("GET", "/v1/assets/x"),
            ("POST", "/v1/callback-secrets"),
            ("GET", "/v1/billing/balance"),
            ("GET", "/v1/auth/me"),
        ]
        for method, path in asked:
            response = await runs.http.request(method, path, content=b"not json", headers=header)
            assert runs.checked(response, 401)["code"] == "UNAUTHORIZED", path
        for path in ("/v1/health", "/v1/readiness", "/v1/public/models"):
            await runs.get(path)


async def test_the_organisation_header_is_accepted(runs: Runs) -> None:
    await runs.post(CREATE, {"input": {"prompt": "x"}}, **{"X-Organization-Id": "c0ffee00-0000-4000-8000-000000000000"})


# Idempotency


async def test_the_same_call_again_is_answered_as_the_first(runs: Runs) -> None:
    body = {"input": {"prompt": "x", "width": 128, "height": 128}}
    first = await runs.post(CREATE, body, **{"Idempotency-Key": "k1"})
    await runs.ended(first)
    again = await runs.http.post(
        CREATE, content=b'{ "input" : {"height":128, "width":128,"prompt":"x"} }', headers={"Idempotency-Key": "k1"}
    )
    assert runs.checked(again, 201) == first
    assert len((await runs.get("/v1/runs"))["items"]) == 1
    other = await runs.post(CREATE, {"input": {"prompt": "y"}}, 409, **{"Idempotency-Key": "k1"})
    assert other["code"] == "CONFLICT"
    await runs.post(f"/v1/models/{EDIT}/runs", body, 409, **{"Idempotency-Key": "k1"})
    assert (await runs.post(CREATE, body, **{"Idempotency-Key": "k2"}))["id"] != first["id"]
    assert (await runs.post(CREATE, body))["id"] != first["id"]


async def test_calls_with_one_key_at_once_make_one_run(runs: Runs) -> None:
    body = {"input": {"prompt": "x", "width": 128, "height": 128}}
    answers = await asyncio.gather(*(runs.post(CREATE, body, **{"Idempotency-Key": "k"}) for _ in range(8)))
    assert len({answer["id"] for answer in answers}) == 1
    assert len((await runs.get("/v1/runs"))["items"]) == 1


async def test_idempotency_survives_a_restart(tmp_path: Path) -> None:
    body = {"input": {"prompt": "x", "width": 128, "height": 128}}
    async with serving(tmp_path) as server:
        first = await Runs(server).post(CREATE, body, **{"Idempotency-Key": "k"})
    async with serving(tmp_path) as server:
        runs = Runs(server)
        assert await runs.post(CREATE, body, **{"Idempotency-Key": "k"}) == first
        await runs.post(CREATE, {"input": {"prompt": "y"}}, 409, **{"Idempotency-Key": "k"})


async def test_a_call_that_broke_off_after_it_made_its_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the answer was never sent")

    given = {"prompt": "once", "width": 128, "height": 128}
    header = {"Idempotency-Key": "broken"}
    with monkeypatch.context() as patched:
        patched.setattr(http, "run_record", broken)
        await runs.post(CREATE, {"input": given}, 500, **header)
    other = await runs.post(CREATE, {"input": {**given, "prompt": "another"}}, 409, **header)
    assert other["code"] == "CONFLICT"
    await runs.post(CREATE, {"input": given, "metadata": {"a": 1}}, 409, **header)
    again = await runs.post(CREATE, {"input": given}, **header)
    assert [run["id"] for run in (await runs.get("/v1/runs"))["items"]] == [again["id"]]


async def test_a_refused_call_does_not_use_its_key_up(runs: Runs) -> None:
    await runs.post(CREATE, {"input": {}}, 422, **{"Idempotency-Key": "k"})
    await runs.post(CREATE, {"input": {"prompt": "x"}}, 201, **{"Idempotency-Key": "k"})
    await runs.post(CREATE, {"input": {"prompt": "x"}}, 422, **{"Idempotency-Key": "k" * 256})


# sync_mode


async def test_sync_mode_answers_with_the_result(runs: Runs) -> None:
    run = await runs.create(sync_mode=True)
    assert run["status_code"] == "succeeded"
    assert (await runs.http.get(run["output"]["outputs"][0]["url"])).status_code == 200
    failed = await runs.create(prompt="[fail]", sync_mode=True)
    assert (failed["status_code"], failed["error"]["code"]) == ("failed", "INFERENCE_FAILED")


async def test_sync_mode_hands_back_the_record_when_it_takes_too_long(tmp_path: Path) -> None:
    async with serving(tmp_path, step_ms=150, sync_seconds=0.2) as server:
        runs = Runs(server)
        run = await runs.create(sync_mode=True, num_inference_steps=12)
        assert run["status_code"] in ("queued", "running")
        assert (await runs.ended(run))["status_code"] == "succeeded"


async def test_the_wait_of_sync_mode_counts_from_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, working=False, sync_seconds=3) as server:

        async def slow(*_: object, **__: object) -> bytes:
            await asyncio.sleep(3.1)
            return picture()

        monkeypatch.setattr(server.services.fetcher, "get", slow)
        began = time.monotonic()
        run = await Runs(server).create(EDIT, image_urls=["http://example.com/a.png"], sync_mode=True)
        assert 3.1 <= time.monotonic() - began < 6  # 6.1 if the wait began after the fetching
        assert run["status_code"] == "queued"


async def test_sync_mode_with_inline_outputs(tmp_path: Path) -> None:
    async with serving(tmp_path, inline_outputs=True) as server:
        runs = Runs(server)
        run = await runs.create(sync_mode=True, num_images=2)
        for one in run["output"]["outputs"]:
            head, _, data = one["url"].partition(",")
            assert head == "data:image/png;base64"
            assert base64.b64decode(data).startswith(b"\x89PNG")
        later = await runs.get(f"/v1/runs/{run['id']}")
        assert later["output"]["outputs"][0]["url"].startswith(BASE)


# Cancelling


async def test_a_running_run_is_cancelled_between_two_steps(tmp_path: Path) -> None:
    async with serving(tmp_path, step_ms=1000) as server:
        runs = Runs(server)
        run = await runs.create(num_inference_steps=50)

        async def is_running() -> bool:
            return bool((await runs.get(f"/v1/runs/{run['id']}"))["status_code"] == "running")

        async def is_idle() -> bool:
            return not (await server.pool.status()).rows

        await eventually(is_running)
        cancelled = await runs.post(f"/v1/admin/runs/{run['id']}/cancellation", {"reason": "changed my mind"})
        assert (cancelled["status_code"], cancelled["output"], cancelled["cost"]) == ("canceled", None, "0")
        await eventually(is_idle, seconds=20)  # of the 50 s that were left
        again = await runs.post(f"/v1/admin/runs/{run['id']}/cancellation", status=200)
        assert again == await runs.get(f"/v1/runs/{run['id']}")
        logs = (await runs.get(f"/v1/runs/{run['id']}/logs"))["items"]
        assert logs[-1]["meta"] == {"reason": "changed my mind"}


async def test_a_queued_run_is_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server:
        runs = Runs(server)
        run = await runs.create()
        assert (await runs.post(f"/v1/admin/runs/{run['id']}/cancellation"))["status_code"] == "canceled"


async def test_an_ended_run_stays_as_it_is(runs: Runs) -> None:
    run = await runs.made()
    assert await runs.post(f"/v1/admin/runs/{run['id']}/cancellation", {}, status=200) == run
    for reason in ("no", "x" * 501, 7):
        await runs.post(f"/v1/admin/runs/{run['id']}/cancellation", {"reason": reason}, status=422)


# Listing


async def test_listing(runs: Runs) -> None:
    made = [await runs.made(envelope={"client_ref": f"ref-{number % 2}"}) for number in range(4)]
    failed = await runs.made(prompt="[fail]")
    everything = (await runs.get("/v1/runs"))["items"]
    assert everything == [failed, *reversed(made)]
    assert (await runs.get("/v1/runs", q="status_code:failed"))["items"] == [failed]
    assert (await runs.get("/v1/runs", q="client_ref:ref-1"))["items"] == [made[3], made[1]]
    assert (await runs.get("/v1/runs", q="client_ref.EQ:'ref-1' AND NOT status_code:succeeded"))["items"] == []
    since = made[2]["created_at"]
    assert len((await runs.get("/v1/runs", q=f"created_at>='{since}'"))["items"]) == 3
    assert (await runs.get("/v1/runs", sort_by="created_at:asc"))["items"] == everything[::-1]
    assert (await runs.get("/v1/runs", fields="id,status_code", limit="1"))["items"] == [
        {"id": failed["id"], "status_code": "failed"}
    ]
    seen, query = [], {"limit": "2"}
    while True:
        page = await runs.get("/v1/runs", **query)
        assert (page["next"], page["previous"]) == (page["next_pq"], page["prev_pq"])
        seen.extend(page["items"])
        if page["next"] is None:
            break
        query["pq"] = page["next"]
    assert seen == everything
    back = await runs.get("/v1/runs", limit="2", pq=page["previous"], from_prev="true")
    assert back["items"] == everything[2:4]
    by_price = await runs.get("/v1/runs", sort_by="cost:desc,created_at:asc", limit="2")
    assert by_price["items"] == made[:2]


async def test_listing_looks_further_than_one_page_of_the_store(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False, queue_limit=1000, queue_limit_per_key=1000) as server:
        runs = Runs(server)
        first = await runs.create(envelope={"metadata": {"first": True}})
        for _ in range(205):
            await runs.create()
        assert (await runs.get("/v1/runs", sort_by="created_at:asc", limit="1"))["items"] == [first]
        assert (await runs.get("/v1/runs", q=f"id:{first['id']}"))["items"] == [first]
        assert len((await runs.get("/v1/runs", limit="500"))["items"]) == 206


async def test_statuses(runs: Runs) -> None:
    found = {status["code"]: status["is_terminal"] for status in await runs.get("/v1/runs/statuses")}
    assert found == {"queued": False, "running": False, "succeeded": True, "failed": True, "canceled": True}


# The rest


async def test_health_and_readiness(runs: Runs) -> None:
    health = await runs.get("/v1/health")
    assert (health["status"], health["ok"]) == ("ok", True)
    ready = await runs.get("/v1/readiness")
    assert ready == {"status": "ready", "checks": {"database": "ok", "media": "ok", "engine": "ok"}}


@pytest.mark.parametrize("part", ["database", "media", "engine"])
async def test_readiness_tells_the_part_that_is_down(runs: Runs, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down() -> None:
        raise TimeoutError if part == "engine" else StorageError("It does not answer.")

    services = runs.server.services
    target, name = {
        "database": (services.store, "counts"),
        "media": (services.media, "ready"),
        "engine": (services.pool, "status"),
    }[part]
    monkeypatch.setattr(target, name, down)
    answer = (await runs.http.get("/v1/readiness")).json()
    assert answer["status"] == "not_ready"
    assert [name for name, state in answer["checks"].items() if state != "ok"] == [part]
    assert (await runs.http.get("/v1/readiness")).status_code == 503


async def test_account(runs: Runs) -> None:
    balance = await runs.get("/v1/billing/balance")
    assert balance["currency"] == "USD"
    assert balance["balance_cents"] > 0
    assert (await runs.get("/v1/auth/me"))["memberships"][0]["scopes"]


async def test_catalogue(runs: Runs) -> None:
    listed = (await runs.get("/v1/models"))["items"]
    names = {model["model"] for model in listed}
    assert {MODEL, EDIT, "black-forest-labs/flux-2-klein-9b", "black-forest-labs/flux-2-klein-9b/edit"} <= names
    assert (await runs.get("/v1/public/models"))["items"] == listed
    one = await runs.get(f"/v1/models/{MODEL}")
    assert one in listed
    inputs = {field["name"]: field for field in one["inputs"]}
    assert inputs["prompt"]["is_required"]
    assert inputs["num_images"]["validator_attrs"] == {"min": 1, "max": 4}
    assert inputs["image_size"]["validator_attrs"]["options"][0] == "square_hd"
    assert inputs["image_size"]["default_value"] == "landscape_4_3"
    assert inputs["num_inference_steps"]["default_value"] == 4
    assert "image_urls" not in inputs
    edit = {field["name"]: field for field in (await runs.get(f"/v1/models/{EDIT}"))["inputs"]}
    assert edit["image_urls"]["is_required"]
    assert edit["image_urls"]["validator_attrs"] == {"min": 1, "max": 4}
    assert (await runs.get("/v1/models", q="slug:flux-2-klein-4b"))["items"] == [one]
    assert (await runs.get("/v1/models", limit="1", fields="model"))["items"] == [
        {"model": "black-forest-labs/flux-2-flex"}
    ]
    assert one["model_creator_id"] == edit["prompt"]["model_id"] or UUID(one["id"])
    run = await runs.create()
    assert run["model_id"] == one["id"]


async def test_logs_tell_the_story(runs: Runs) -> None:
    run = await runs.made(num_images=2)
    lines = (await runs.get(f"/v1/runs/{run['id']}/logs"))["items"]
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    assert len({line["id"] for line in lines}) == len(lines)
    told = [line["message"] for line in lines]
    assert told[0].startswith("Accepted")
    assert told[1].startswith("The engine")
    assert sum(message.startswith("Picture") for message in told) == 2
    assert told[-1] == "The run ended: succeeded."


async def test_the_same_picture_in_another_form(runs: Runs) -> None:
    data = base64.b64encode(picture(640, 480, "JPEG")).decode()
    run = await runs.made(EDIT, image_urls=[f"data:image/jpeg;base64,{data}"], width=None, height=None)
    assert [(one["width"], one["height"]) for one in run["output"]["outputs"]] == [(640, 480)]
    (kept,) = run["input"]["image_urls"]
    assert kept.startswith(f"{BASE}/ii/")
    assert (await runs.http.get(kept)).content == base64.b64decode(data)
    assert run["cost"] == "0.005"


def test_no_example_here_depends_on_the_order_of_keys() -> None:
    body: dict[str, Any] = {"b": 1, "a": {"d": 2, "c": 3}}
    from darkroom.api.runflow.options import fingerprint

    assert fingerprint("x", body) == fingerprint("x", {"a": {"c": 3, "d": 2}, "b": 1})
    assert fingerprint("x", body) != fingerprint("y", body)
