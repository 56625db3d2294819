"""What passes cost, as far as they ran."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from darkroom.engine.costs import KEPT, STALE, Costs


@dataclass(eq=False)
class Row:
    tokens: int = 1000
    cost_key: str = "network"
    geometry: str = "square"


def taught(*passes: tuple[list[Row], float]) -> Costs:
    costs = Costs()
    for rows, seconds in passes:
        costs.learn(rows, seconds)
    return costs


def test_a_kind_is_known_after_two_passes_and_the_first_does_not_count() -> None:
    row = Row()
    costs = taught(([row], 5.0))
    assert costs.of([row]) is None
    costs.learn([row], 1.0)
    assert costs.of([row]) == 1.0


def test_the_median_forgets_what_is_long_ago_and_what_is_odd() -> None:
    row, costs = Row(), Costs()
    for _ in range(KEPT):
        costs.learn([row], 1.0)
    costs.learn([row], 90.0)
    assert costs.of([row]) == 1.0
    for _ in range(KEPT):
        costs.learn([row], 2.0)
    assert costs.of([row]) == 2.0


@pytest.mark.parametrize(
    "other", [Row(tokens=2000), Row(cost_key="other"), Row(geometry="wide")], ids=["tokens", "network", "geometry"]
)
def test_kinds_are_told_apart(other: Row) -> None:
    row = Row()
    costs = taught(*[([row, row], 1.0)] * 2)
    assert costs.of([row, Row(tokens=1010)]) == 1.0
    assert costs.of([row]) is None and costs.of([row] * 3) is None
    assert costs.of([row, other]) is None


def test_a_kind_that_did_not_run_for_long_is_tried_again() -> None:
    pair, single = [Row(), Row()], [Row()]
    costs = taught((pair, 2.0), (pair, 2.0))
    for _ in range(STALE):
        assert costs.of(pair) == 2.0
        costs.learn(single, 1.0)
    costs.learn(single, 1.0)
    assert costs.of(pair) is None
    costs.learn(pair, 3.0)
    assert costs.of(pair) == 2.0  # the lower of the two that are as frequent


def test_a_row_that_never_ran_is_guessed_from_what_is_nearest() -> None:
    costs = Costs()
    assert costs.alone(Row(2000)) == pytest.approx(2 * costs.alone(Row(1000)))
    costs.learn([Row(1000)], 1.0)
    costs.learn([Row(4000)], 6.0)
    assert costs.alone(Row(4000)) == 6.0
    assert costs.alone(Row(500)) == pytest.approx(0.5)
    assert costs.alone(Row(8000)) == pytest.approx(12.0)
    assert costs.alone(Row(1000, "other")) == pytest.approx(1.0)
    costs.learn([Row(1000, "other")], 7.0)
    assert costs.alone(Row(2000, "other")) == pytest.approx(14.0)


def test_rows_move_on_while_their_pass_runs() -> None:
    row, costs = Row(), Costs()
    for _ in range(2):
        learn = costs.learner([row])
        row.cost_key = "with an adapter"
        learn(1.0)
        row.cost_key = "network"
    assert costs.of([row]) == 1.0


def test_what_does_not_fit_into_memory_costs_more_than_anything() -> None:
    rows = [Row(), Row()]
    costs = taught((rows, 1.0), (rows, 1.0))
    costs.too_large(rows)
    assert costs.of(rows) == float("inf")
