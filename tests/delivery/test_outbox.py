"""Every call that is owed is made at least once, in its policy's rhythm, whatever dies in between."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from darkroom.config import Settings
from darkroom.delivery.outbox import LEASE_SECONDS, Outbox
from darkroom.media.fetch import Fetcher
from darkroom.media.store import MediaStore
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.memory import MemoryTaskStore
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.task import Attempt, Delivery, Owed, OwedKind, Task
from tests.eventually import eventually
from tests.media.web import PUBLIC, Names, Network, Web, http, serving
from tests.tasks.stores import Clock, new_task, upload, webhook

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as server:
        yield server


class Bench:
    """A store, files, and outboxes on them."""

    def __init__(self, store: Any, media: MediaStore, clock: Clock) -> None:
        self.store, self.media, self.clock = store, media, clock
        self.network = Network()
        names = Names(example_com=[[PUBLIC]], inner_example=[["10.0.0.1"]])
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no authority, and costs nothing to make
        self.fetcher = Fetcher(resolve=names, network=self.network, tls=nobody)

    def outbox(self, *, settings: dict[str, Any] | None = None, **options: Any) -> Outbox:
        return Outbox(
            self.store,
            self.media,
            self.fetcher,
            Settings(**(settings or {})),
            clock=self.clock,
            chance=lambda: 0.5,
            **options,
        )

    async def owe(self, *owed: Owed, owner: str = "alice") -> str:
        task = await self.store.submit(new_task(owner=owner))
        claim = await self.store.claim("w", 60)
        await self.store.finish(claim, Status.SUCCEEDED, owed=owed)
        return str(task.id)

    async def delivered(self, task_id: str) -> bool:
        return (await self.only(task_id)).state == "delivered"

    async def only(self, task_id: str) -> Delivery:
        (delivery,) = await self.store.deliveries(task_id)
        return delivery


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Bench]:
    store: Any
    if request.param == "memory":
        store = MemoryTaskStore(clock=clock)
    else:
        store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}", clock=clock)
    bench = Bench(store, await MediaStore.open(tmp_path / "media", store.files), clock)
    yield bench
    await bench.fetcher.close()
    await store.close()


def offsets(delivery: Delivery) -> list[float]:
    first = delivery.attempts[0].at
    return [round((attempt.at - first).total_seconds(), 2) for attempt in delivery.attempts]


async def run_out(bench: Bench, outbox: Outbox) -> None:
    """Deliver until nothing is pending, with the clock in big enough small steps."""
    for _ in range(400):
        await outbox.deliver_due()
        bench.clock.advance(0.05)
    for _ in range(8):
        await outbox.deliver_due()
        bench.clock.advance(20_000)


# Delivering


async def test_a_webhook_is_posted_as_it_was_frozen(bench: Bench, web: Web) -> None:
    web.answers["/hook?token=a%2Fb"] = http(200, b"thanks")
    body = b'{"data":[{"imageUUID":"\xc3\xa4"}]}'
    task_id = await bench.owe(webhook(web.url("/hook?token=a%2Fb"), body=body, headers={"X-Own": "1"}))
    assert await bench.outbox().deliver_due() == 1
    (request,) = web.received
    assert (request.method, request.body) == ("POST", body)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-own"] == "1"
    assert not any("signature" in name for name in request.headers)
    delivery = await bench.only(task_id)
    assert (delivery.state, delivery.next_at) == ("delivered", None)
    (attempt,) = delivery.attempts
    assert (attempt.status, attempt.error, attempt.response) == (200, None, "thanks")
    assert attempt.milliseconds > 0
    assert await bench.outbox().deliver_due() == 0


async def test_an_upload_puts_the_file_with_type_and_length(bench: Bench, web: Web) -> None:
    web.answers["/put"] = http(200)
    data = bytes(range(256)) * 100
    stored = await bench.media.put("alice", data, "image/webp", kind="result", width=1, height=1)
    task_id = await bench.owe(upload(web.url("/put"), media_id=stored.id))
    await bench.outbox().deliver_due()
    (request,) = web.received
    assert (request.method, request.body) == ("PUT", data)
    assert (request.headers["content-type"], request.headers["content-length"]) == ("image/webp", "25600")
    assert (await bench.only(task_id)).state == "delivered"


async def test_standard_webhooks_keep_the_id_and_renew_the_timestamp(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(500)
    task_id = await bench.owe(webhook(web.url(), body=b"{}", signing="standard"))
    await run_out(bench, bench.outbox(settings={"webhook_secret": SECRET}))
    delivery = await bench.only(task_id)
    assert {request.headers["webhook-id"] for request in web.received} == {delivery.id}
    assert len({request.headers["webhook-timestamp"] for request in web.received}) > 1
    for request, attempt in zip(web.received, delivery.attempts, strict=True):
        timestamp = request.headers["webhook-timestamp"]
        assert int(timestamp) == int(attempt.at.timestamp())
        signed = f"{delivery.id}.{timestamp}.".encode() + request.body
        signature = base64.b64encode(hmac.new(b"s" * 32, signed, hashlib.sha256).digest()).decode()
        assert request.headers["webhook-signature"] == f"v1,{signature}"


async def test_runflow_callbacks_are_signed_by_the_owners_secret(bench: Bench, web: Web) -> None:
    class Secrets:
        async def secret_for(self, owner: str) -> str | None:
            return {"alice": "whsec_alice"}.get(owner)

    web.answers["/"] = http(200)
    callback = webhook(web.url(), body=b'{"a":1}', policy="runflow", signing="runflow")
    await bench.owe(callback, owner="alice")
    await bench.owe(callback, owner="bob")
    outbox = bench.outbox(callback_secrets=Secrets())
    await outbox.deliver_due()
    signatures = {request.headers.get("runflow-signature") for request in web.received}
    assert signatures == {hmac.new(b"whsec_alice", b'{"a":1}', hashlib.sha256).hexdigest(), None}


async def test_the_servers_own_secret_signs_for_everybody(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(200)
    await bench.owe(webhook(web.url(), body=b"x", policy="runflow", signing="runflow"))
    await bench.outbox(settings={"callback_secret": "s"}).deliver_due()
    assert web.received[0].headers["runflow-signature"] == hmac.new(b"s", b"x", hashlib.sha256).hexdigest()


# Trying again


async def test_runware_webhooks_are_tried_for_hours(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(404, b"no")
    task_id = await bench.owe(webhook(web.url()))
    await run_out(bench, bench.outbox())
    delivery = await bench.only(task_id)
    assert (delivery.state, delivery.next_at) == ("failed", None)
    assert offsets(delivery)[:7] == pytest.approx([0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75], abs=0.36)
    assert [attempt.status for attempt in delivery.attempts] == [404] * 12
    assert len(web.received) == 12


async def test_a_receiver_that_is_back_after_an_hour_hears_of_it(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(503)
    task_id = await bench.owe(webhook(web.url()))
    outbox = bench.outbox()
    for _ in range(60):
        await outbox.deliver_due()
        bench.clock.advance(60)
    assert (await bench.only(task_id)).state == "pending"
    web.answers["/"] = http(200)
    bench.clock.advance(7200)
    await outbox.deliver_due()
    assert await bench.delivered(task_id)


async def test_a_first_call_does_not_wait_behind_those_that_failed_before(bench: Bench, web: Web) -> None:
    web.answers.update({"/": http(200), "/down": http(500)})
    for _ in range(40):
        await bench.owe(webhook(web.url("/down")))
    outbox = bench.outbox()
    for _ in range(2):
        await outbox.deliver_due()  # 32 at once
    bench.clock.advance(10)  # all of them are due again
    task_id = await bench.owe(webhook(web.url()))
    await outbox.deliver_due()
    assert await bench.delivered(task_id)


async def test_runflow_callbacks_are_tried_after_one_and_two_seconds(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(503)
    task_id = await bench.owe(webhook(web.url(), policy="runflow"))
    await run_out(bench, bench.outbox())
    delivery = await bench.only(task_id)
    assert offsets(delivery) == pytest.approx([0, 1, 3], abs=0.11)
    assert delivery.state == "failed"


async def test_a_receiver_that_recovers_gets_it(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(500)
    task_id = await bench.owe(webhook(web.url()))
    outbox = bench.outbox()
    await outbox.deliver_due()
    pending = await bench.only(task_id)
    assert pending.state == "pending"
    assert pending.next_at is not None
    assert await outbox.deliver_due() == 0
    web.answers["/"] = http(200)
    bench.clock.advance(1)
    await outbox.deliver_due()
    delivery = await bench.only(task_id)
    assert (delivery.state, [attempt.status for attempt in delivery.attempts]) == ("delivered", [500, 200])


async def test_gone_and_private_addresses_are_given_up_at_once(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(410)
    gone = await bench.owe(webhook(web.url()))
    inner = await bench.owe(webhook(web.url(host="inner.example")))
    await bench.outbox().deliver_due()
    assert (await bench.only(gone)).state == "failed"
    refused = await bench.only(inner)
    assert (refused.state, len(refused.attempts)) == ("failed", 1)
    assert refused.attempts[0].error is not None
    assert "DARKROOM_ALLOW_PRIVATE_URLS" in refused.attempts[0].error
    assert bench.network.dialled == [PUBLIC]


async def test_a_redirect_is_not_followed(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(302, Location="http://169.254.169.254/latest")
    task_id = await bench.owe(webhook(web.url(), policy="runflow"))
    await run_out(bench, bench.outbox())
    delivery = await bench.only(task_id)
    assert [attempt.status for attempt in delivery.attempts] == [302]
    assert delivery.state == "failed"


async def test_an_answer_is_kept_in_part_and_can_be_anything(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(200, b"\0\xff" + b"x" * 10_000)
    task_id = await bench.owe(webhook(web.url()))
    await bench.outbox().deliver_due()
    response = (await bench.only(task_id)).attempts[0].response
    assert response.startswith("\ufffd\ufffdxx")
    assert len(response) == 2048


# Uploads that fail


async def test_a_failed_upload_is_recorded_and_told(bench: Bench, web: Web) -> None:
    web.answers["/put"] = http(403, b"expired")
    web.answers["/hook"] = http(200)
    stored = await bench.media.put("alice", b"x", "image/png", kind="result", width=1, height=1)
    told: list[tuple[Task, Delivery, Attempt]] = []

    def given_up(task: Task, delivery: Delivery, attempt: Attempt) -> list[Owed]:
        told.append((task, delivery, attempt))
        return [webhook(web.url("/hook"), body=b'{"errors":[]}')]

    task_id = await bench.owe(upload(web.url("/put"), media_id=stored.id, result=0))
    await run_out(bench, bench.outbox(given_up={"runware": given_up}))
    failed, announced = await bench.store.deliveries(task_id)
    assert (failed.state, failed.owed.kind, failed.owed.result) == ("failed", OwedKind.UPLOAD, 0)
    assert [attempt.status for attempt in failed.attempts] == [403] * 3
    assert announced.state == "delivered"
    assert [request.target for request in web.received] == ["/put"] * 3 + ["/hook"]
    ((task, delivery, attempt),) = told
    assert (task.id, delivery.id, attempt.status) == (task_id, failed.id, 403)
    assert (await bench.store.get(task_id)).status is Status.SUCCEEDED


async def test_a_failed_webhook_is_told_to_nobody(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(410)
    task_id = await bench.owe(webhook(web.url()))
    await bench.outbox(given_up={"runware": lambda *_: pytest.fail("told")}).deliver_due()
    assert len(await bench.store.deliveries(task_id)) == 1


async def test_a_picture_that_is_gone_cannot_be_uploaded(bench: Bench, web: Web) -> None:
    task_id = await bench.owe(upload(web.url("/put")))
    await bench.outbox().deliver_due()
    delivery = await bench.only(task_id)
    assert (delivery.state, delivery.attempts[0].error) == ("failed", "The picture is no longer kept.")
    assert web.received == []


# What another version wrote


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ({"policy": "of another version"}, "There is no retry policy 'of another version' in this version of Darkroom"),
        ({"signing": "of another version"}, "There is no signature 'of another version' in this version of Darkroom"),
        ({"kind": "pigeon"}, "There is no kind of delivery 'pigeon' in this version of Darkroom"),
    ],
)
async def test_what_this_version_cannot_deliver_is_given_up_with_the_reason(
    bench: Bench, web: Web, foreign: dict[str, str], told: str
) -> None:
    web.answers["/fine"] = http(200)
    lost = await bench.owe(webhook(web.url("/hook"), **foreign))
    fine = await bench.owe(webhook(web.url("/fine")))
    await bench.outbox().deliver_due()
    delivery = await bench.only(lost)
    (attempt,) = delivery.attempts
    assert (delivery.state, delivery.next_at, attempt.status) == ("failed", None, None)
    assert attempt.error is not None and attempt.error.startswith(told)
    assert await bench.delivered(fine)
    bench.clock.advance(LEASE_SECONDS + 1)
    assert await bench.outbox().deliver_due() == 0
    assert [request.target for request in web.received] == ["/fine"]


async def test_an_upload_this_version_cannot_make_is_told_like_any_that_failed(bench: Bench, web: Web) -> None:
    web.answers["/hook"] = http(200)
    task_id = await bench.owe(upload(web.url("/put"), policy="of another version"))
    told = {"runware": lambda *_: [webhook(web.url("/hook"))]}
    await run_out(bench, bench.outbox(given_up=told))
    assert [delivery.state for delivery in await bench.store.deliveries(task_id)] == ["failed", "delivered"]


# Whatever dies


async def test_a_server_that_dies_while_it_sends_is_made_up_for(bench: Bench, web: Web) -> None:
    task_id = await bench.owe(webhook(web.url()))
    started = asyncio.Event()

    async def silent(writer: Any) -> None:
        started.set()
        await asyncio.sleep(30)

    web.answers["/"] = silent
    dying = asyncio.create_task(bench.outbox().run())
    await started.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    web.answers["/"] = http(200)
    assert await bench.outbox().deliver_due() == 0  # its lease
    bench.clock.advance(LEASE_SECONDS + 1)
    assert await bench.outbox().deliver_due() == 1
    assert (await bench.only(task_id)).state == "delivered"
    assert len(web.received) == 2


async def test_two_servers_share_the_work(bench: Bench, web: Web) -> None:
    for number in range(20):
        web.answers[f"/{number}"] = http(200)
    await bench.owe(*(webhook(web.url(f"/{number}")) for number in range(20)))
    await asyncio.gather(*(bench.outbox().deliver_due() for _ in range(3)))
    assert sorted(request.target for request in web.received) == sorted(f"/{number}" for number in range(20))


async def test_run_delivers_at_once_and_one_slow_receiver_holds_nobody_up(bench: Bench, web: Web) -> None:
    async def silent(writer: Any) -> None:
        await asyncio.sleep(120)

    web.answers["/slow"] = silent
    web.answers["/fast"] = http(200)
    stored = await bench.media.put("alice", b"x", "image/png", kind="result", width=1, height=1)
    outbox = bench.outbox()
    running = asyncio.create_task(outbox.run())
    await bench.owe(upload(web.url("/slow"), media_id=stored.id))  # an upload may take a minute
    task_id = await bench.owe(webhook(web.url("/fast")))
    await eventually(lambda: bench.delivered(task_id))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_task_is_not_forgotten_before_its_deliveries_have_come_to_an_end(bench: Bench, web: Web) -> None:
    web.answers["/"] = http(500)
    await bench.owe(webhook(web.url()))
    outbox = bench.outbox()
    await outbox.deliver_due()
    assert await bench.store.expire(bench.clock() + timedelta(seconds=1), 10) == 0
    await run_out(bench, outbox)
    assert len(web.received) > 1
    assert await bench.store.expire(bench.clock() + timedelta(seconds=1), 10) == 1
