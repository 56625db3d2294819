"""Is it alive, is it ready, how is it doing: /health, /ready, /metrics. Without a key; nothing private is in them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from darkroom.api.engine_metrics import EngineMetrics
from darkroom.api.services import Services
from darkroom.errors import StorageError
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Result, Task
from darkroom.types import EngineStatus
from darkroom.version import VERSION

STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 180, 600)
ANSWER_SECONDS = 2.0  # a part that takes longer to say how it is counts as not ready


class Metrics:
    """What this process counts: the worker's Meter and the outbox's too. docs/metrics.md lists it all.

    One registry a server, so that two servers in one process do not mix.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "darkroom_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "darkroom_http_request_seconds", "Time to the last byte of an answer.", ["route"], registry=self.registry
        )
        self.stages = Histogram(
            "darkroom_stage_seconds",
            "Where the time of one picture goes.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.task_seconds = Histogram(
            "darkroom_task_seconds",
            "From the acceptance of a task to its end.",
            ["card"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.ended = Counter("darkroom_tasks_ended", "Tasks that ended here.", ["status"], registry=self.registry)
        self.results = Counter(
            "darkroom_results", "Pictures, made or failed (by error code).", ["outcome"], registry=self.registry
        )
        self.steps = Counter(
            "darkroom_steps", "Denoising steps of finished pictures.", ["kind"], registry=self.registry
        )
        self.deliveries = Counter(
            "darkroom_delivery_attempts", "Calls made for clients.", ["kind", "outcome"], registry=self.registry
        )
        self.sockets = Gauge("darkroom_open_sockets", "WebSocket connections.", registry=self.registry)
        self.delivery_seconds = Histogram(
            "darkroom_delivery_seconds", "Time of one call made for a client.", ["kind"], registry=self.registry
        )
        self.tasks = Gauge("darkroom_tasks", "Tasks on record, by state.", ["status"], registry=self.registry)
        self.oldest = Gauge(
            "darkroom_queue_oldest_seconds", "How long the oldest queued task has waited.", registry=self.registry
        )
        self.owed = Gauge(
            "darkroom_deliveries_pending", "Calls for clients still to be made.", ["kind"], registry=self.registry
        )
        self.engine = EngineMetrics()
        self.registry.register(self.engine)
        ProcessCollector(registry=self.registry)

    def result(self, result: Result) -> None:
        """A picture is stored, or is known to have failed."""
        self.results.labels(result.fault.code if result.fault else "made").inc()
        if result.fault is None:
            for stage, milliseconds in result.record.stage_ms.items():
                self.stages.labels(stage).observe(milliseconds / 1000)
            self.steps.labels("computed").inc(result.record.steps_computed)
            self.steps.labels("reused").inc(result.record.steps_reused)

    def task(self, task: Task) -> None:
        """A task has ended."""
        self.ended.labels(task.status.value).inc()
        if task.finished_at is not None:
            self.task_seconds.labels(task.request.card).observe((task.finished_at - task.created_at).total_seconds())

    def delivery(self, kind: str, state: str, milliseconds: float) -> None:
        """One try of a call. state: what the delivery is after it."""
        self.deliveries.labels(str(kind), "retried" if state == "pending" else state).inc()
        self.delivery_seconds.labels(str(kind)).observe(milliseconds / 1000)

    async def text(self, services: Services) -> bytes:
        """The Prometheus exposition, with what the store and the engine say at this moment."""
        async with asyncio.timeout(ANSWER_SECONDS):
            counts, backlog = await asyncio.gather(services.store.counts(), services.store.backlog())
        for status in Status:
            self.tasks.labels(status.value).set(counts.get(status, 0))
        since = backlog.queued_since
        self.oldest.set((datetime.now(UTC) - since).total_seconds() if since else 0)
        for kind, owed in backlog.owed.items():
            self.owed.labels(kind.value).set(owed)
        self.engine.status = await engine_status(services)
        return generate_latest(self.registry)


def routes(services: Services, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="The process is alive; what it serves")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": VERSION, "model": model_mode(services)}

    @router.get("/ready", summary="Whether tasks can be taken, part by part")
    async def ready(response: Response) -> dict[str, Any]:
        parts = {"database": await database_ready(services), "engine": (await engine_status(services)).ready}
        response.status_code = 200 if all(parts.values()) else 503
        states = {name: "ok" if fine else "unavailable" for name, fine in parts.items()}
        return {"status": "ok" if all(parts.values()) else "unavailable", "components": states}

    @router.get("/metrics", include_in_schema=False)
    async def exposition() -> Response:
        return Response(await metrics.text(services), media_type=CONTENT_TYPE_LATEST)

    return router


def model_mode(services: Services) -> str:
    """ "embedded" in demo mode, else "installed": also the Darkroom-Model header of every answer."""
    return "embedded" if services.installed.demo else "installed"


async def engine_status(services: Services) -> EngineStatus:
    """The pool's word, or "not ready" when it does not answer in time."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await services.pool.status()
    except TimeoutError:
        return EngineStatus(ready=False)


async def database_ready(services: Services) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await services.store.counts()
    except (TimeoutError, StorageError):
        return False
    return True
