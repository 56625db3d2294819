"""Whose turn it is, on a simulated device: costs are data, and time is what they add up to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.engine.scheduler import LINE_SHARE, StepScheduler

Device = Callable[[Sequence["Row"]], float]


@dataclass(eq=False)
class Row:
    """calls_left: of a run of `calls`. came, went: when, by the simulated clock."""

    batch_key: str = "a"
    tokens: int = 100
    calls: int = 50
    geometry: str = ""
    last_turn: int = 0
    calls_left: int = 0
    came: float = 0.0
    went: float = math.inf
    served: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls_left = self.calls

    @property
    def cost_key(self) -> str:
        return self.batch_key

    @property
    def work(self) -> float:
        return float(self.calls * self.tokens)


def busy(rows: Sequence[Row]) -> float:
    """A device that is full with one row: a batch takes as long as its rows one by one."""
    return sum(row.tokens for row in rows) / 100


def idle(rows: Sequence[Row]) -> float:
    """A device that waits for launches: rows more cost little."""
    return 0.85 + 0.15 * busy(rows)


def crowded(rows: Sequence[Row]) -> float:
    """Pays up to four rows; beyond, the batch leaves the cache."""
    return idle(rows) if len(rows) <= 4 else 2 * busy(rows)


class Simulation:
    """Runs batches on a device until nothing is left, and lets rows come at their time."""

    def __init__(self, device: Device, max_rows: int = 100, max_tokens: int = 1_000_000) -> None:
        self.device = device
        self.line: StepScheduler[Row] = StepScheduler(max_rows, max_tokens)
        self.now = 0.0
        self.batches: list[list[Row]] = []

    def step(self) -> list[Row]:
        batch = self.line.next_batch()
        seconds = self.device(batch)
        self.line.costs.learn(batch, seconds)
        self.now += seconds
        for row in batch:
            row.calls_left -= 1
            row.served.append(self.now)
            if row.calls_left == 0:
                row.went = self.now
                self.line.leave(row)
        self.batches.append(batch)
        return batch

    def add(self, *rows: Row) -> None:
        for row in rows:
            row.came = self.now
            self.line.admit(row)

    def run(self, *rows: Row) -> Simulation:
        self.add(*rows)
        while self.line.running:
            self.step()
        return self

    def sizes(self, last: int = 20) -> list[int]:
        return [len(batch) for batch in self.batches[-last:]]


def rows(count: int, **fields: object) -> list[Row]:
    return [Row(**fields) for _ in range(count)]  # type: ignore[arg-type]


def test_nothing_runs_nothing_steps() -> None:
    assert StepScheduler[Row](4, 100).next_batch() == []


def test_a_batch_is_as_large_as_pays() -> None:
    long = {device: Simulation(device) for device in (busy, idle, crowded)}
    for simulation in long.values():
        simulation.add(*rows(8, calls=1000))
        for _ in range(100):
            simulation.step()
    assert set(long[idle].sizes()) == {8}
    assert set(long[crowded].sizes()) == {4}
    assert set(long[busy].sizes()) == {1}


def test_a_size_is_tried_before_it_is_judged_and_tried_again_much_later() -> None:
    simulation = Simulation(busy)
    simulation.add(*rows(2, calls=10_000))
    for _ in range(1200):
        simulation.step()
    pairs = [turn for turn, batch in enumerate(simulation.batches) if len(batch) == 2]
    assert len(pairs) == 4
    assert pairs[1] < 10 < 400 < pairs[2]


def test_only_rows_of_one_key_share_a_step() -> None:
    simulation = Simulation(idle).run(*rows(3, batch_key="a"), *rows(3, batch_key="b"))
    assert all(len({row.batch_key for row in batch}) == 1 for batch in simulation.batches)
    assert max(simulation.sizes(1000)) == 3


def test_between_equals_the_first_is_first_done() -> None:
    line = rows(4, calls=20)
    Simulation(busy).run(*line)
    assert [row.went for row in line] == sorted(row.went for row in line)
    # One after another the mean would be 50, all in turns 78; a part of the time is the line's.
    assert statistics.mean(row.went for row in line) < 60


def test_a_row_over_the_budget_of_tokens_runs_alone() -> None:
    simulation = Simulation(idle, max_tokens=250).run(*rows(2, tokens=500), *rows(4, tokens=100))
    assert max(sum(row.tokens for row in batch) for batch in simulation.batches if len(batch) > 1) <= 250
    assert all(len(batch) == 1 for batch in simulation.batches if any(row.tokens > 250 for row in batch))


def test_a_batch_too_large_for_memory_is_not_tried_again() -> None:
    simulation = Simulation(idle)
    simulation.add(*rows(4, calls=1000))
    refused = 0
    for _ in range(100):
        batch = simulation.line.next_batch()
        if len(batch) > 2:
            refused += 1
            simulation.line.costs.too_large(batch)
        else:
            simulation.line.costs.learn(batch, idle(batch))
    assert refused == 1


@pytest.mark.parametrize("device", [busy, idle, crowded])
@pytest.mark.parametrize("others", [1, 3, 7, 13])
@pytest.mark.parametrize("same", [True, False], ids=["same key", "other key"])
def test_four_steps_beside_fifty_take_at_most_three_times_as_long(device: Device, others: int, same: bool) -> None:
    simulation, short, before = Simulation(device, max_rows=16), list[Row](), 0.0
    for turn in range(1500):
        for row in rows(others - len([row for row in simulation.line.running if row.calls == 50]), calls=50):
            simulation.add(row)
        if turn % 29 == 20:
            short.append(Row("a" if same else "b", calls=4))
            simulation.add(short[-1])
            short[-1].came = before  # it waited for the whole of the pass that ran
        before = simulation.now
        simulation.step()
    waits = sorted(row.went - row.came for row in short[:-1])
    alone = 4 * device(short[:1])
    assert waits[int(0.95 * len(waits))] <= 3 * alone
    done = [row for batch in simulation.batches for row in batch if row.calls == 50 and row.calls_left == 0]
    assert done, "the long ones do not come to their end"


@pytest.mark.parametrize("device", [busy, idle])
def test_long_rows_get_on_while_short_ones_never_end(device: Device) -> None:
    simulation, long = Simulation(device), Row("b", calls=50)
    simulation.add(long)
    while long.calls_left:
        while len(simulation.line.running) < 3:
            simulation.add(Row("a", calls=4))
        simulation.step()
        assert simulation.now < 3 * 50 / LINE_SHARE


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(20, 400), st.integers(1, 60)), min_size=1, max_size=14
    ),
    device=st.sampled_from([busy, idle, crowded]),
)
def test_nobody_starves(kinds: list[tuple[str, int, int]], device: Device) -> None:
    """However rows arrive, each has its turn when the line's part of the time has served those before it."""
    simulation = Simulation(device, max_tokens=1500)
    arriving = [Row(key, tokens, calls) for key, tokens, calls in kinds]
    dearest = max(
        device([row for row in arriving if row.batch_key == key]) for key in {row.batch_key for row in arriving}
    )
    longest = 2 * len(arriving) * dearest / LINE_SHARE + 2 * dearest
    every = list(arriving)
    while arriving or simulation.line.running:
        if arriving:
            simulation.add(arriving.pop())
        batch = simulation.step()
        assert len({row.batch_key for row in batch}) == 1
        for row in simulation.line.running:
            waited = simulation.now - (row.served or [row.came])[-1]
            assert waited <= longest
    assert all(len(row.served) == row.calls for row in every)


def test_the_last_places_are_for_rows_in_a_hurry() -> None:
    line: StepScheduler[Row] = StepScheduler(16, 1000)
    for row in rows(14, calls=50):
        assert line.has_room(row.work)
        line.admit(row)
    long, short = Row(calls=50), Row(calls=4)
    assert not line.has_room(long.work)
    for row in rows(2, calls=4):
        assert line.has_room(short.work)
        line.admit(row)
    assert not line.has_room(short.work)


def test_free_rows() -> None:
    a = Row("a")
    line: StepScheduler[Row] = StepScheduler(2, 1000)
    line.admit(a)
    assert line.free_rows == 1 and line.has_room(a.work)
    line.leave(a)
    assert (line.free_rows, line.next_batch()) == (2, [])
