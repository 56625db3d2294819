from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from darkroom.engine.scheduler import StepScheduler


@dataclass(eq=False)
class Row:
    batch_key: str
    tokens: int = 10
    last_turn: int = 0


def scheduler(*rows: Row, max_rows: int = 100, max_tokens: int = 1000) -> StepScheduler[Row]:
    made: StepScheduler[Row] = StepScheduler(max_rows, max_tokens)
    for row in rows:
        made.admit(row)
    return made


def test_rows_of_one_key_share_a_step_and_groups_take_turns() -> None:
    a, b, a2 = Row("a"), Row("b"), Row("a")
    line = scheduler(a, b, a2)
    assert [line.next_batch() for _ in range(4)] == [[a, a2], [b], [a, a2], [b]]


def test_nothing_runs_nothing_steps() -> None:
    assert scheduler().next_batch() == []


def test_a_newcomer_goes_to_the_back() -> None:
    a, b = Row("a"), Row("b")
    line = scheduler(a, b)
    line.next_batch()
    newcomer = Row("c")
    line.admit(newcomer)
    assert [line.next_batch()[0] for _ in range(3)] == [b, a, newcomer]


def test_what_did_not_fit_is_first_next_time() -> None:
    rows = [Row("a", tokens=40) for _ in range(5)]
    line = scheduler(*rows, max_tokens=100)
    assert line.next_batch() == rows[:2]
    assert line.next_batch() == rows[2:4]
    assert line.next_batch() == [rows[4], rows[0]]


def test_a_row_over_the_budget_runs_alone() -> None:
    large, small = Row("a", tokens=500), Row("a", tokens=10)
    line = scheduler(large, small, max_tokens=100)
    assert line.next_batch() == [large]
    assert line.next_batch() == [small]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 120)), min_size=1, max_size=20))
def test_nobody_starves(kinds: list[tuple[str, int]]) -> None:
    """However rows arrive, each is served at least every so many steps as there are rows, newcomers included."""
    line = scheduler(max_tokens=100)
    waited: Counter[int] = Counter()
    served: Counter[int] = Counter()
    arriving = [Row(key, tokens) for key, tokens in kinds]
    for turn in range(6 * len(kinds)):
        if arriving and turn % 2 == 0:
            line.admit(arriving.pop())
        batch = line.next_batch()
        assert len({row.batch_key for row in batch}) <= 1
        assert len(batch) == 1 or sum(row.tokens for row in batch) <= 100
        for row in line.running:
            waited[id(row)] = 0 if row in batch else waited[id(row)] + 1
            served[id(row)] += row in batch
            assert waited[id(row)] <= 2 * len(kinds)
    assert len(served) == len(kinds) and min(served.values()) > 0


def test_free_rows() -> None:
    a = Row("a")
    line = scheduler(a, max_rows=2)
    assert line.free_rows == 1
    line.leave(a)
    assert (line.free_rows, line.next_batch()) == (2, [])
