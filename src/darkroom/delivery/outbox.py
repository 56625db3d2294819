"""Makes the calls that are owed to others: webhooks, callbacks, uploads. At least once, whatever dies.

A row is written with what it tells of; here it is leased (so that of several servers one sends), sent, and its try
written down. A server that is killed in between leaves a lease that runs out, and another try is made.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from darkroom.config import Settings
from darkroom.delivery.policies import LONGEST_TRY_SECONDS, RetryPolicy, foreign, is_delivered, policies
from darkroom.delivery.signatures import runflow_headers, standard_headers, standard_keys
from darkroom.errors import NotFound, StorageError
from darkroom.media.fetch import Fetcher, Reply
from darkroom.media.store import MediaStore
from darkroom.tasks.store import TaskStore
from darkroom.tasks.task import Attempt, Delivery, Owed, OwedKind, Task

AT_ONCE: Final = 32  # calls under way
POLL_SECONDS: Final = 0.25  # how late a retry, or a row of another server, may be noticed
LEASE_SECONDS: Final = LONGEST_TRY_SECONDS + 30
RESPONSE_CHARACTERS: Final = 2048  # of an answer that are kept
REST_SECONDS: Final = 2.0  # when the database does not answer

log = structlog.get_logger(__name__)

GivenUp = Callable[[Task, Delivery, Attempt], Sequence[Owed]]


class CallbackSecrets(Protocol):
    """Which secret signs an owner's Runflow callbacks."""

    async def secret_for(self, owner: str) -> str | None: ...


class Meter(Protocol):
    """Takes the measurements of deliveries."""

    def delivery(self, kind: str, state: str, milliseconds: float) -> None:
        """One try was made; state is what the delivery is now: pending, delivered or failed."""


class Outbox:
    """run() until cancelled. given_up: what is owed in turn when an upload has failed for good (its dialect knows)."""

    def __init__(
        self,
        store: TaskStore,
        media: MediaStore,
        fetcher: Fetcher,
        settings: Settings,
        *,
        callback_secrets: CallbackSecrets | None = None,
        given_up: Mapping[str, GivenUp] | None = None,
        meter: Meter | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        """given_up: by dialect. clock, chance: for tests. Raises ConfigurationError for a bad webhook secret."""
        self._store = store
        self._media = media
        self._fetcher = fetcher
        self._keys = standard_keys(settings.webhook_secret)
        self._secrets = callback_secrets or _OneSecret(settings.callback_secret)
        self._given_up = given_up or {}
        self._meter = meter
        self._policies = policies(settings.webhook_waits)
        self._clock = clock
        self._chance = chance
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver what is due, and wait for more. Calls under way are given up when this is cancelled."""
        try:
            while True:
                if not await self._start_due():
                    await self._store.wait_for_owed(POLL_SECONDS)
        finally:
            for sending in self._sending:
                sending.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def deliver_due(self) -> int:
        """One try of everything that is due now; returns how many."""
        due = await self._store.due(self._clock(), AT_ONCE, LEASE_SECONDS)
        await asyncio.gather(*map(self._deliver, due))
        return len(due)

    async def _start_due(self) -> bool:
        """Start what is due as far as there is room; False when there was nothing to start."""
        if len(self._sending) >= AT_ONCE:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        try:
            due = await self._store.due(self._clock(), AT_ONCE - len(self._sending), LEASE_SECONDS)
        except StorageError as error:
            log.warning("outbox.waits", reason=error.message)
            await asyncio.sleep(REST_SECONDS)
            return False
        for delivery in due:
            sending = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
            self._sending.add(sending)
            sending.add_done_callback(self._sent)
        return bool(due)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            # The lease runs out and it is tried again; a bug shows in the log each time.
            log.error("outbox.delivery_failed", delivery=sending.get_name(), exc_info=error)

    async def _deliver(self, delivery: Delivery) -> None:
        began = self._clock()
        if (reason := foreign(delivery.owed)) is not None:
            await self._give_up(delivery, Attempt(at=began, status=None, error=reason, milliseconds=0.0))
            return
        policy = self._policies[delivery.owed.policy]
        try:
            reply = await self._send(delivery, policy, began)
        except NotFound:
            reply = Reply(status=None, error="The picture is no longer kept.", refused=True)
        except StorageError as error:
            reply = Reply(status=None, error=error.message)
        await self._record(delivery, policy, began, reply)

    async def _send(self, delivery: Delivery, policy: RetryPolicy, now: datetime) -> Reply:
        owed = delivery.owed
        if owed.kind is OwedKind.UPLOAD:
            media, data = await self._media.get(owed.media_id or "")
            return await self._fetcher.put(owed.url, data, media.content_type, seconds=policy.timeout_seconds)
        headers = {"Content-Type": "application/json", **owed.headers, **await self._signature(delivery, now)}
        return await self._fetcher.post(owed.url, owed.body, headers, seconds=policy.timeout_seconds)

    async def _signature(self, delivery: Delivery, now: datetime) -> dict[str, str]:
        match delivery.owed.signing:
            case "standard":
                return standard_headers(self._keys, delivery.id, now, delivery.owed.body)
            case "runflow":
                task = await self._store.get(delivery.task_id)
                return runflow_headers(await self._secrets.secret_for(task.owner), delivery.owed.body)
            case _:
                return {}

    async def _record(self, delivery: Delivery, policy: RetryPolicy, began: datetime, reply: Reply) -> None:
        attempt = Attempt(
            at=began,
            status=reply.status,
            error=reply.error,
            milliseconds=reply.milliseconds,
            response=reply.body.decode(errors="replace").replace("\0", "\ufffd")[:RESPONSE_CHARACTERS],
        )
        if is_delivered(reply):
            await self._note(delivery, attempt, "delivered")
            return
        pause = policy.pause(len(delivery.attempts) + 1, reply, self._chance)
        if pause is None:
            await self._give_up(delivery, attempt)
            return
        await self._note(delivery, attempt, "pending", next_at=self._clock() + timedelta(seconds=pause))

    async def _give_up(self, delivery: Delivery, attempt: Attempt) -> None:
        log.warning(
            "outbox.given_up",
            task=delivery.task_id,
            delivery=delivery.id,
            kind=delivery.owed.kind,
            status=attempt.status,
            error=attempt.error,
        )
        owed = await self._consequences(delivery, attempt)
        await self._note(delivery, attempt, "failed", owed=owed)

    async def _note(
        self,
        delivery: Delivery,
        attempt: Attempt,
        state: str,
        *,
        next_at: datetime | None = None,
        owed: Sequence[Owed] = (),
    ) -> None:
        await self._store.record_attempt(delivery.id, attempt, state=state, next_at=next_at, owed=owed)
        if self._meter:
            self._meter.delivery(delivery.owed.kind, state, attempt.milliseconds)

    async def _consequences(self, delivery: Delivery, attempt: Attempt) -> Sequence[Owed]:
        """A lost upload is told to the task's webhook; a lost webhook is told to nobody."""
        if delivery.owed.kind is not OwedKind.UPLOAD:
            return ()
        try:
            task = await self._store.get(delivery.task_id)
        except NotFound:
            return ()
        announce = self._given_up.get(task.dialect)
        return announce(task, delivery, attempt) if announce else ()


class _OneSecret:
    """The server's own secret for everybody."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def secret_for(self, owner: str) -> str | None:
        return self._secret or None
