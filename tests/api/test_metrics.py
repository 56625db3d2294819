"""/metrics counts what happened, and its manual lists every name."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from darkroom.api.health import Metrics
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.engine.engine import Engine
from darkroom.engine.options import EngineOptions
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Fault, OwedKind, Result, Task
from darkroom.types import CardStatus, Distribution, EngineStatus, ImageRequest, Record
from tests.api.servers import serving

MANUAL = Path(__file__).parents[2] / "docs" / "metrics.md"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_manual_lists_every_metric_with_its_kind_and_labels() -> None:
    rows = re.findall(r"^\| `(darkroom_\w+)` \| (\w+) \| (.*?) \| .+ \|$", MANUAL.read_text(), re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    metrics = Metrics()
    there = {
        family.name: (family.type, tuple(instrument._labelnames))
        for instrument in vars(metrics).values()
        if hasattr(instrument, "collect") and hasattr(instrument, "_labelnames")
        for family in instrument.collect()
    }
    there |= {family.name: (family.type, tuple(family._labelnames)) for family in metrics.engine.collect()}
    assert listed == there


def test_the_manual_lists_every_cache_and_every_kind_of_work(tmp_path: Path) -> None:
    engine = Engine(load_catalog(), Installed(tmp_path / "none", tmp_path / "none"), EngineOptions(device="cpu"))
    names = set(engine.status().counters) - {"jobs"}
    listed = set(re.findall(r"`(\w+)`", MANUAL.read_text()))
    assert {re.sub("_(hits|misses|evictions|bytes|entries)$", "", name) for name in names} <= listed


def test_what_engines_report_is_a_scrape_away() -> None:
    metrics = Metrics()
    metrics.engine.status = EngineStatus(
        ready=True,
        rows=3,
        memory_bytes=1 << 30,
        loaded=(CardStatus(card="runware:400@5", bytes=7, device="cuda:0", dtype="bf16"),) * 2,
        counters={"jobs": 2.0, "row_steps": 40.0, "kv_bank_hits": 5.0, "kv_bank_misses": 1.0, "kv_bank_bytes": 9.0},
        distributions={"step_seconds": Distribution(bounds=(0.1, 1.0), counts=(4, 2, 1), total=9.5)},
    )
    value = metrics.registry.get_sample_value
    assert value("darkroom_engine_ready") == 1
    assert (value("darkroom_engine_jobs"), value("darkroom_engine_rows")) == (2, 3)
    assert value("darkroom_engine_memory_bytes") == 1 << 30
    labels = {"card": "runware:400@5", "device": "cuda:0", "dtype": "bf16"}
    assert value("darkroom_engine_model_bytes", labels) == 14
    assert value("darkroom_engine_work_total", {"name": "row_steps"}) == 40
    assert value("darkroom_engine_work_total", {"name": "jobs"}) is None
    assert value("darkroom_cache_hits_total", {"cache": "kv_bank"}) == 5
    assert value("darkroom_cache_misses_total", {"cache": "kv_bank"}) == 1
    assert value("darkroom_cache_bytes", {"cache": "kv_bank"}) == 9
    assert value("darkroom_cache_entries", {"cache": "kv_bank"}) is None
    buckets = [value("darkroom_engine_step_seconds_bucket", {"le": bound}) for bound in ("0.1", "1.0", "+Inf")]
    assert buckets == [4, 6, 7]
    assert value("darkroom_engine_step_seconds_sum") == 9.5
    assert value("darkroom_engine_batch_rows_count") == 0


async def test_a_scrape_tells_what_waits_and_what_was_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.client() as client:
        await server.post(image())
        text = (await client.get("/metrics")).text
        assert 'darkroom_tasks{status="succeeded"} 1.0' in text
        assert "darkroom_queue_oldest_seconds 0.0" in text
        assert "darkroom_engine_step_seconds_count 4.0" in text
        assert "darkroom_engine_batch_rows_sum 4.0" in text
        assert 'darkroom_deliveries_pending{kind="webhook"} 0.0' in text
        assert re.search(r"^process_resident_memory_bytes \d", text, re.MULTILINE)
    (tmp_path / "idle").mkdir()
    async with serving(tmp_path / "idle", working=False) as server, server.client() as client:
        await server.post(image(deliveryMethod="async"))
        await asyncio.sleep(0.05)
        text = (await client.get("/metrics")).text
        oldest = re.search(r"^darkroom_queue_oldest_seconds (\S+)$", text, re.MULTILINE)
        assert oldest and 0.05 <= float(oldest[1]) < 10


def test_pictures_are_counted_with_their_stages_and_steps() -> None:
    metrics = Metrics()
    record = Record(stage_ms={"denoise": 1500.0}, steps_computed=3, steps_reused=1)
    metrics.result(Result(index=0, seed=1, media_id="a", record=record))
    metrics.result(Result(index=1, seed=2, fault=Fault(code="out_of_memory", message="…")))
    value = metrics.registry.get_sample_value
    assert value("darkroom_results_total", {"outcome": "made"}) == 1
    assert value("darkroom_results_total", {"outcome": "out_of_memory"}) == 1
    assert value("darkroom_stage_seconds_sum", {"stage": "denoise"}) == 1.5
    assert value("darkroom_steps_total", {"kind": "computed"}) == 3
    assert value("darkroom_steps_total", {"kind": "reused"}) == 1


def test_tasks_and_deliveries_are_counted() -> None:
    metrics = Metrics()
    metrics.task(ended_after(2.5))
    metrics.delivery(OwedKind.WEBHOOK, "pending", 1000.0)
    metrics.delivery(OwedKind.WEBHOOK, "delivered", 250.0)
    value = metrics.registry.get_sample_value
    assert value("darkroom_tasks_ended_total", {"status": "succeeded"}) == 1
    assert value("darkroom_task_seconds_sum", {"card": "runware:400@5"}) == 2.5
    assert value("darkroom_delivery_attempts_total", {"kind": "webhook", "outcome": "retried"}) == 1
    assert value("darkroom_delivery_attempts_total", {"kind": "webhook", "outcome": "delivered"}) == 1
    assert value("darkroom_delivery_seconds_sum", {"kind": "webhook"}) == 1.25


def ended_after(seconds: float) -> Task:
    return Task(
        id="1",
        owner="local",
        dialect="runware",
        external_id="1",
        status=Status.SUCCEEDED,
        request=ImageRequest(card="runware:400@5", prompt="a", width=64, height=64, steps=1, seed=1),
        wire={},
        options={},
        created_at=NOW,
        finished_at=NOW + timedelta(seconds=seconds),
    )


def image(**fields: Any) -> dict[str, Any]:
    size = {"width": 128, "height": 128, "steps": 4}
    task = {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "model": "runware:400@4"}
    return {**task, "positivePrompt": "a boat", **size, **fields}
