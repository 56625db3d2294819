"""Which rows share the next step. Bookkeeping only: no tensors, no clock; what a pass costs comes from costs.py.

The row leads for which its size times the time to its end is least: a short request beside long ones is done nearly as
soon as alone, and between equals the one that came first. A part of the time is the line's: it goes to the row that
waited longest, so nobody starves, whatever arrives. (The product keeps the mean slowdown, time in the system over time
alone, near its least: Wierman, Harchol-Balter and Osogami, "Nearly insensitive bounds on SMART scheduling", 2005.)

Rows that can share the leader's pass join it where that pays, by what passes have cost so far. Where they would hold up
a much shorter row, they join only if they hardly do. Where a batch does not pay, rows take turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Generic, Protocol, TypeVar

from darkroom.engine.costs import Costed, Costs

LINE_SHARE: Final = 0.2  # of the time, for the row that waited longest
PAYS: Final = 0.9  # a batch must take less than this of the time per row that one alone takes
HELPS: Final = 0.97  # a larger one less than this of a smaller one's, else the search ends
HURRY: Final = 2.0  # a row is held up by rows with more than so many times its work
HELD_UP: Final = 1.5  # how much longer its steps may take because of them
SIZES: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
RESERVED: Final = 8  # one of so many places is kept for rows in a hurry


class Schedulable(Costed, Protocol):
    """A row, as far as its turn goes."""

    last_turn: int

    @property
    def batch_key(self) -> Hashable: ...

    @property
    def calls_left(self) -> int:
        """Passes that it still needs."""
        ...

    @property
    def work(self) -> float:
        """Of its whole run, in a measure that only compares rows."""
        ...


RowType = TypeVar("RowType", bound=Schedulable)


class StepScheduler(Generic[RowType]):
    """max_rows: in flight. max_tokens: of one forward pass; a row that is larger runs alone."""

    def __init__(self, max_rows: int, max_tokens: int, costs: Costs | None = None) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.costs = costs or Costs()
        self.running: list[RowType] = []
        self._turn = 0
        self._owed = 0.0  # seconds that the line may claim; below 0 it had more than its share

    @property
    def free_rows(self) -> int:
        return self.max_rows - len(self.running)

    @property
    def reserved_rows(self) -> int:
        """How many of the places are for rows with much less work than most."""
        return self.max_rows // RESERVED

    def has_room(self, work: float) -> bool:
        """Whether a row with so much work may come in."""
        return self.free_rows > self.reserved_rows or (self.free_rows > 0 and self.in_hurry(work))

    def in_hurry(self, work: float) -> bool:
        """Whether nearly all rows in flight are much longer."""
        others = [row for row in self.running if row.work <= HURRY * work]
        return len(others) < self.reserved_rows

    def admit(self, row: RowType) -> None:
        """A new row, at the back of the line."""
        row.last_turn = self._next_turn()
        self.running.append(row)

    def next_batch(self) -> list[RowType]:
        """The rows to step together now; [] when none is running."""
        if not self.running:
            self._owed = 0.0
            return []
        line = _line(self.running)
        if self._owed >= (self.costs.of(line[:1]) or 0.0):
            batch = self._batch(line[0], line)
        else:
            batches = [self._batch(leader, line) for leader in _leaders(line)]
            batch = min(batches, key=lambda batch: batch[0].work * batch[0].calls_left * self._seconds(batch))
        seconds = self._seconds(batch)
        if line[0] in batch:
            self._owed = max(self._owed - seconds, -seconds)
        else:
            self._owed += LINE_SHARE * seconds
        turn = self._next_turn()
        for each in batch:
            each.row.last_turn = turn
        return [each.row for each in batch]

    def leave(self, row: RowType) -> None:
        self.running.remove(row)

    def _batch(self, leader: Place[RowType], line: Sequence[Place[RowType]]) -> list[Place[RowType]]:
        """The leader and as many others as make the pass cheapest per row; a size that is not known yet is tried."""
        best = [leader]
        least = own = self.costs.of(best)
        if own is None or least is None:
            return best
        for batch, hurried in self._larger(leader, line):
            seconds = self.costs.of(batch)
            if seconds is None and not hurried:
                return batch
            if seconds is None or (hurried and seconds > HELD_UP * own) or seconds / len(batch) > HELPS * least:
                break
            best, least = batch, seconds / len(batch)
        return best if least < PAYS * own else [leader]

    def _larger(
        self, leader: Place[RowType], line: Sequence[Place[RowType]]
    ) -> Iterator[tuple[list[Place[RowType]], bool]]:
        """The leader with others, in growing numbers, and whether they hold it up: those that do come last."""
        others = [each for each in line if each is not leader and each.batch_key == leader.batch_key]
        equals = [each for each in others if each.work <= HURRY * leader.work]
        longer = [each for each in others if each.work > HURRY * leader.work]
        batch = self._within_budget([leader, *equals, *longer])
        for size in (*(size for size in SIZES if size < len(batch)), len(batch)):
            if size > 1:
                yield batch[:size], size > 1 + len(equals)

    def _within_budget(self, places: Sequence[Place[RowType]]) -> list[Place[RowType]]:
        tokens = accumulate(each.tokens for each in places)
        return [
            each for each, total in zip(places, tokens, strict=True) if each is places[0] or total <= self.max_tokens
        ]

    def _seconds(self, batch: Sequence[Place[RowType]]) -> float:
        """Of a pass, guessed as long as it was not tried."""
        known = self.costs.of(batch)
        return sum(map(self.costs.alone, batch)) if known is None else known

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn


@dataclass(frozen=True, slots=True, eq=False)
class Place(Generic[RowType]):
    """What a row's turn depends on, read once a turn."""

    row: RowType
    batch_key: Hashable
    cost_key: Hashable
    geometry: Hashable
    tokens: int
    work: float
    calls_left: int


def _line(rows: Sequence[RowType]) -> list[Place[RowType]]:
    """The row that waited longest first."""
    return [
        Place(row, row.batch_key, row.cost_key, row.geometry, row.tokens, row.work, row.calls_left)
        for row in sorted(rows, key=lambda row: row.last_turn)
    ]


def _leaders(line: Sequence[Place[RowType]]) -> list[Place[RowType]]:
    """Of the rows that differ in nothing but how far they are, the one that is furthest."""
    first: dict[Hashable, Place[RowType]] = {}
    for each in line:
        kind = each.batch_key, each.work, each.tokens
        if kind not in first or each.calls_left < first[kind].calls_left:
            first[kind] = each
    return list(first.values())
