"""Callbacks as a receiver sees them: payload, headers, signatures over the raw bytes, retries, history, redelivery."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from darkroom.api.runflow.render import delivery_record
from darkroom.errors import StorageError
from darkroom.media.fetch import inner_address
from darkroom.tasks.task import Attempt, Delivery, Owed, OwedKind
from tests.api.runflow.receiver import Call, Receiver, receiving
from tests.api.runflow.serving import MODEL, Runs, make_keys, serving
from tests.eventually import eventually

KEYS = ["event", "run_id", "status", "output", "duration_ms", "created_at", "completed_at", "metadata"]


def is_signed(call: Call, secret: str) -> bool:
    """As the documented handler does it: 64 hex characters, HMAC-SHA256 of the raw body under the whole secret."""
    given = call.headers.get("runflow-signature", "")
    expected = hmac.new(secret.encode(), call.body, sha256).hexdigest()
    return len(given) == 64 and hmac.compare_digest(given, expected)


async def history(runs: Runs, run: Any, state: str = "delivered") -> list[Any]:
    """The deliveries of a run, once the last one has come to this state."""
    found: list[Any] = []

    async def settled() -> bool:
        found[:] = await runs.get(f"/v1/runs/{run['id']}/callback")
        return bool(found) and found[-1]["status_code"] == state

    await eventually(settled, 15)
    return found


async def called(runs: Runs, receiver: Receiver, **given: Any) -> tuple[Any, Call]:
    metadata = {"user_id": 42, "nested": {"a": [1.5, None]}}
    run = await runs.made(envelope={"callback_url": receiver.url, "metadata": metadata}, **given)
    return run, (await receiver.got(1))[-1]


async def test_success(runs: Runs) -> None:
    async with receiving() as receiver:
        run, call = await called(runs, receiver)
        payload = call.json
        assert list(payload) == KEYS
        assert (payload["event"], payload["status"]) == ("run.completed", "succeeded")
        assert (payload["run_id"], payload["output"], payload["metadata"]) == (
            run["id"],
            run["output"],
            run["metadata"],
        )
        for name in ("created_at", "completed_at", "duration_ms"):
            assert payload[name] == run[name]
        assert payload["created_at"].endswith("+00:00")
        assert payload["completed_at"].endswith("+00:00")
        assert call.headers["content-type"] == "application/json"
        assert call.headers["runflow-request-id"] == run["request_id"]
        assert "runflow-signature" not in call.headers
        (record,) = await history(runs, run)
        assert record["payload_bytes"] == call.body.decode()
        assert record["payload"] == payload
        assert (record["attempt_count"], record["max_attempts"], record["is_automatic"]) == (1, 3, True)
        assert record["attempts"][0]["status_code"] == 200
        assert record["attempts"][0]["response_body"] == "ok"


async def test_failure(runs: Runs) -> None:
    async with receiving() as receiver:
        _, call = await called(runs, receiver, prompt="[fail]")
        assert (call.json["event"], call.json["status"], call.json["output"]) == ("run.failed", "failed", None)


async def test_cancellation_is_announced_once_and_spelled_with_two_l(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server, receiving() as receiver:
        runs = Runs(server)
        run = await runs.create(envelope={"callback_url": receiver.url})
        cancelled = await runs.post(f"/v1/admin/runs/{run['id']}/cancellation")
        await runs.post(f"/v1/admin/runs/{run['id']}/cancellation", status=200)
        (call,) = await receiver.got(1)
        assert cancelled["status_code"] == "canceled"
        payload = call.json
        assert (payload["event"], payload["status"], payload["output"]) == ("run.cancelled", "cancelled", None)
        assert all(payload[name] == cancelled[name] for name in ("completed_at", "duration_ms"))
        assert len(await history(runs, run)) == 1


async def test_the_secret_of_the_server_signs(tmp_path: Path) -> None:
    async with serving(tmp_path, callback_secret="whsec_of the server ä") as server, receiving() as receiver:
        _, call = await called(Runs(server), receiver)
        assert is_signed(call, "whsec_of the server ä")
        assert not is_signed(Call(call.at, call.headers, call.body + b" "), "whsec_of the server ä")


async def test_the_newest_secret_of_the_key_signs(tmp_path: Path) -> None:
    anna_key, bert_key = await make_keys(tmp_path, "anna", "bert")
    async with serving(tmp_path, callback_secret="whsec_server") as server, receiving() as receiver:
        anna, bert = Runs(server, anna_key), Runs(server, bert_key)
        first = await anna.post("/v1/callback-secrets", {"label": "first"})
        assert first["plain_secret"].startswith("whsec_")
        assert (first["label"], first["is_current"]) == ("first", True)
        second = await anna.post("/v1/callback-secrets")
        listed = (await anna.get("/v1/callback-secrets"))["items"]
        assert [(secret["id"], secret["is_current"]) for secret in listed] == [
            (second["id"], True),
            (first["id"], False),
        ]
        assert all("plain_secret" not in secret and "secret" not in secret for secret in listed)
        _, call = await called(anna, receiver)
        assert is_signed(call, second["plain_secret"])
        await anna.checked_delete(f"/v1/callback-secrets/{second['id']}")
        await anna.made(envelope={"callback_url": receiver.url})
        assert is_signed((await receiver.got(2))[1], first["plain_secret"])
        await bert.made(envelope={"callback_url": receiver.url})
        assert is_signed((await receiver.got(3))[2], "whsec_server")
        assert (await bert.get("/v1/callback-secrets"))["items"] == []


async def test_a_secret_survives_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        plain = (await Runs(server).post("/v1/callback-secrets"))["plain_secret"]
    async with serving(tmp_path) as server, receiving() as receiver:
        _, call = await called(Runs(server), receiver)
        assert is_signed(call, plain)


async def test_secrets_are_made_once_for_one_idempotency_key(runs: Runs) -> None:
    made = [await runs.post("/v1/callback-secrets", {"label": "x"}, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert made[0] == made[1]
    assert len((await runs.get("/v1/callback-secrets"))["items"]) == 1
    await runs.post("/v1/callback-secrets", {"label": "x" * 256}, 422)


async def test_three_attempts_one_and_two_seconds_apart(runs: Runs) -> None:
    async with receiving(503, 0, 200) as receiver:  # 0: hangs up
        run, _ = await called(runs, receiver)
        calls = await receiver.got(3)
        assert len({call.body for call in calls}) == 1
        assert len({call.headers["runflow-request-id"] for call in calls}) == 1
        pauses = [after.at - before.at for before, after in pairwise(calls)]
        assert pauses[0] > 0.9 and pauses[1] > 1.9  # and no longer, as tests with a clock of their own say
        (record,) = await history(runs, run)
        assert record["attempt_count"] == 3


async def test_after_three_failures_it_is_given_up_and_the_run_stays_as_it_was(runs: Runs) -> None:
    async with receiving(500) as receiver:
        run, _ = await called(runs, receiver)
        (record,) = await history(runs, run, "failed")
        assert len(receiver.calls) == record["attempt_count"] == 3
        assert (record["failure_reason_code"], record["next_attempt_at"]) == ("http_error", None)
        assert await runs.get(f"/v1/runs/{run['id']}") == run


async def test_other_answers_end_the_delivery(runs: Runs) -> None:
    for status in (302, 400, 404, 429):
        async with receiving(status) as receiver:
            run, _ = await called(runs, receiver)
            (record,) = await history(runs, run, "failed")
            assert len(receiver.calls) == record["attempt_count"] == 1


async def test_private_receivers_are_refused_unless_allowed(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with serving(tmp_path, working=False) as server:
            run = await Runs(server).create(envelope={"callback_url": receiver.url})
        async with serving(tmp_path, allow_private_urls=False) as server:  # the operator thought again
            runs = Runs(server)
            (record,) = await history(runs, await runs.ended(run), "failed")
            assert (record["attempt_count"], record["failure_reason_code"]) == (1, "address_refused")
            assert record["failure_detail"]
        assert receiver.calls == []


@pytest.mark.parametrize(
    ("errors", "owed", "code"),
    [
        (["no connection could be made."] * 3, {}, "network_error"),
        ([inner_address().message], {}, "address_refused"),
        (["no connection could be made.", "No answer within 10 s.", inner_address().message], {}, "address_refused"),
        (["There is no signature"], {"signing": "of another version"}, "not_supported"),
        (["There is no kind of delivery"], {"kind": "pigeon", "body": b"\xff coo"}, "not_supported"),
    ],
)
def test_the_reason_of_a_delivery_that_was_given_up(errors: list[str], owed: dict[str, Any], code: str) -> None:
    now = datetime.now(UTC)
    attempts = tuple(Attempt(at=now, status=None, error=error, milliseconds=1.0) for error in errors)
    about = {"kind": OwedKind.WEBHOOK, "url": "https://a.example/", "policy": "runflow", "body": b"{}", **owed}
    record = delivery_record(
        Delivery(
            id=str(uuid4()),
            task_id="t",
            owed=Owed(**about),
            state="failed",
            created_at=now,
            next_at=None,
            attempts=attempts,
        ),
        {},
    )
    assert (record["failure_reason_code"], record["failure_detail"]) == (code, errors[-1])


async def test_an_inner_receiver_is_refused_before_a_picture_is_made(tmp_path: Path) -> None:
    async with serving(tmp_path, allow_private_urls=False) as server:
        runs = Runs(server)
        for url in ("http://127.0.0.1:9/x", "http://localhost:9/x", "http://[::1]/x", "http://10.0.0.1/x"):
            answer = await runs.create(envelope={"callback_url": url}, status=422)
            assert answer["errors"][0]["field"] == "callback_url"
            assert "DARKROOM_ALLOW_PRIVATE_URLS" in answer["message"]
            batch = {"input": [{"prompt": "a"}], "callback_url": url}
            await runs.post(f"/v1/models/{MODEL}/batches", batch, 422)
        assert (await runs.get("/v1/runs"))["items"] == []


async def test_redelivery(runs: Runs) -> None:
    async with receiving(404, 200) as receiver:
        run, first = await called(runs, receiver)
        await history(runs, run, "failed")
        path = f"/v1/runs/{run['id']}/callback-redeliveries"
        record = await runs.post(path)
        assert (record["is_automatic"], record["run_id"]) == (False, run["id"])
        second = (await receiver.got(2))[1]
        assert second.json["run_id"] == first.json["run_id"]
        assert second.json["completed_at"] == run["completed_at"]
        assert len(await history(runs, run)) == 2


async def test_a_redelivery_needs_a_callback_an_end_and_nothing_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server, receiving(500) as receiver:
        runs = Runs(server)
        silent = await runs.create()
        waiting = await runs.create(envelope={"callback_url": receiver.url})
        for run, said in ((silent, "no callback_url"), (waiting, "queued")):
            answer = await runs.post(f"/v1/runs/{run['id']}/callback-redeliveries", status=422)
            assert said in answer["message"]
        await runs.post(f"/v1/admin/runs/{waiting['id']}/cancellation")
        await receiver.got(1)
        answer = await runs.post(f"/v1/runs/{waiting['id']}/callback-redeliveries", status=422)
        assert "under way" in answer["message"]


async def test_callbacks_survive_a_restart(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with serving(tmp_path, working=False) as server:
            server.services.store._owed.wake = lambda: None  # type: ignore[attr-defined]
            run = await Runs(server).create(envelope={"callback_url": receiver.url})
        async with serving(tmp_path) as server:
            await Runs(server).ended(run)
            assert (await receiver.got(1))[0].json["run_id"] == run["id"]


async def test_a_media_store_that_fails_is_told(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StorageError("The picture could not be stored; the server's disk may be full.")

    monkeypatch.setattr(runs.server.services.media, "place", full)
    async with receiving() as receiver:
        run, call = await called(runs, receiver)
        assert (run["failure_code"], run["failure_stage_code"]) == ("OUTPUT_STORE_FAILED", "postprocess")
        assert call.json["event"] == "run.failed"
