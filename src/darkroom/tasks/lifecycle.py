"""The states of a task and of a result, and the only moves between them."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"  # every result that was asked for is there
    FAILED = "failed"  # at least one result is missing; those that are there stay readable
    CANCELLED = "cancelled"


MOVES: dict[Status, frozenset[Status]] = {  # a state without moves is final
    Status.QUEUED: frozenset({Status.PROCESSING, Status.CANCELLED, Status.FAILED}),
    Status.PROCESSING: frozenset(
        {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.QUEUED}  # back to queued: its worker died
    ),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}

MAX_ATTEMPTS = 3


def is_final(status: Status) -> bool:
    return not MOVES[status]


def may_move(before: Status, after: Status) -> bool:
    return after in MOVES[before]
