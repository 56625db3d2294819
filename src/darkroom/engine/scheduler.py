"""Which rows share the next step. Bookkeeping only: no tensors.

The group of rows that waited longest goes first, and goes to the back of the line with its step: whatever arrives,
every group gets its turn. Rows that did not fit into their group's batch are the first of their group next time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """A row, as far as its turn goes."""

    last_turn: int

    @property
    def batch_key(self) -> Hashable: ...

    @property
    def tokens(self) -> int: ...


RowType = TypeVar("RowType", bound=Schedulable)


class StepScheduler(Generic[RowType]):
    """max_rows: in flight. max_tokens: of one forward pass; a row that is larger runs alone."""

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.running: list[RowType] = []
        self._turn = 0

    @property
    def free_rows(self) -> int:
        return self.max_rows - len(self.running)

    def admit(self, row: RowType) -> None:
        """A new row, at the back of the line: newcomers cannot starve those who wait."""
        row.last_turn = self._next_turn()
        self.running.append(row)

    def next_batch(self) -> list[RowType]:
        """The rows to step together now; [] when none is running."""
        if not self.running:
            return []
        waiting = sorted(self.running, key=lambda row: row.last_turn)
        key = waiting[0].batch_key
        batch = self._within_budget([row for row in waiting if row.batch_key == key])
        turn = self._next_turn()
        for row in batch:
            row.last_turn = turn
        return batch

    def leave(self, row: RowType) -> None:
        self.running.remove(row)

    def _within_budget(self, rows: Sequence[RowType]) -> list[RowType]:
        batch, tokens = [rows[0]], rows[0].tokens
        for row in rows[1:]:
            tokens += row.tokens
            if tokens > self.max_tokens:
                break
            batch.append(row)
        return batch

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn
