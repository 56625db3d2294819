"""Short requests beside long ones, as the engine serves them: time is what the passes cost on a stated device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from darkroom.engine.costs import Costed, Costs
from darkroom.engine.runner import Runner
from darkroom.types import Picture
from tests.engine.conftest import FreeCompany, image, job, make_engine, run


class Full(Costs):
    """A device that one row fills: a pass takes as long as its tokens are many."""

    def of(self, rows: Sequence[Costed]) -> float:
        return sum(row.tokens for row in rows) / 100

    def alone(self, row: Costed) -> float:
        return row.tokens / 100


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Costs], list[float]]:
    """Counts what the passes of an engine with these costs add up to."""

    def watch(costs: Costs) -> list[float]:
        passes, original = list[float](), Runner.velocities

        def velocities(self: Runner, transformer: Any, rows: Sequence[Any]) -> Any:
            passes.append(costs.of(rows) or 0.0)
            return original(self, transformer, rows)

        monkeypatch.setattr(Runner, "velocities", velocities)
        return passes

    return watch


@pytest.mark.parametrize("device", [Full, FreeCompany])
@pytest.mark.parametrize("long_ones", [{"count": 4}, {"count": 20}, {"count": 4, "references": [image(96, 96)]}])
def test_four_steps_beside_fifty_take_at_most_three_times_as_long(
    clock: Callable[[Costs], list[float]], device: type[Costs], long_ones: dict[str, Any]
) -> None:
    costs = device()
    passes = clock(costs)
    run(make_engine(costs), job("base", steps=4))
    alone, waits = sum(passes), []
    engine = make_engine(costs, max_rows=16)
    for number in range(3):
        engine.add(job("base", f"long {number}", steps=50, **long_ones))
    for number in range(6):
        for _ in range(40):
            engine.step()
        passes.clear()
        engine.add(job("base", f"short {number}", steps=4))
        while not any(isinstance(event, Picture) and event.task == f"short {number}" for event in engine.step()):
            pass
        waits.append(sum(passes) / alone)
    assert max(waits) <= 3, waits


def test_an_engine_learns_what_its_passes_cost() -> None:
    costs = Costs()
    engine = make_engine(costs)
    engine.add(job("base", "pair", count=2, steps=8))
    rows: list[Any] = []
    while not engine.idle:
        engine.step()
        rows = engine._scheduler.running[:] or rows
    assert 0 < (costs.of(rows[:1]) or 0.0) < 60
    assert 0 < (costs.of(rows * 2 if len(rows) == 1 else rows) or 0.0) < 60
    assert engine.status().counters["forwards"] < engine.status().counters["row_steps"]
