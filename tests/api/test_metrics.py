"""/metrics counts what happened, and its manual lists every name."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from darkroom.api.health import Metrics
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Fault, OwedKind, Result, Task
from darkroom.types import ImageRequest, Record

MANUAL = Path(__file__).parents[2] / "docs" / "metrics.md"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_manual_lists_every_metric_with_its_kind_and_labels() -> None:
    rows = re.findall(r"^\| `(darkroom_\w+)` \| (\w+) \| (.*?) \| .+ \|$", MANUAL.read_text(), re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    there = {
        family.name: (family.type, tuple(instrument._labelnames))
        for instrument in vars(Metrics()).values()
        if hasattr(instrument, "collect") and hasattr(instrument, "_labelnames")
        for family in instrument.collect()
    }
    assert listed == there


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
    metrics.delivery(OwedKind.WEBHOOK, "pending")
    metrics.delivery(OwedKind.WEBHOOK, "delivered")
    value = metrics.registry.get_sample_value
    assert value("darkroom_tasks_ended_total", {"status": "succeeded"}) == 1
    assert value("darkroom_task_seconds_sum", {"card": "runware:400@5"}) == 2.5
    assert value("darkroom_delivery_attempts_total", {"kind": "webhook", "outcome": "retried"}) == 1
    assert value("darkroom_delivery_attempts_total", {"kind": "webhook", "outcome": "delivered"}) == 1


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
