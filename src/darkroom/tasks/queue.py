"""Order and bounds of the queue: what the stores share.

The rule of the queue: the owner with the fewest running tasks is next, among equals the one whose last claim is
longest ago, and of one owner the oldest task. So a key that submits a thousand tasks delays another key's first
by one turn, not by a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from darkroom.errors import Conflict, LeaseLost, NotFound, Overloaded
from darkroom.tasks.ids import uuid7
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status
from darkroom.tasks.task import Claim, Delivery, Fault, NewTask, Owed, Task
from darkroom.types import Value

MINUTE: Final = timedelta(minutes=1)
PENDING: Final = "pending"
ENGINE_LOST: Final = Fault(
    code="engine_lost",
    message=f"The engine died {MAX_ATTEMPTS} times while it worked on this task; it is not tried again.",
)
UNKNOWN_PACE_SECONDS: Final = 10  # what to wait when nothing was finished lately
LONGEST_WAIT_SECONDS: Final = 60


class OwnerTurn(Value, frozen=True, kw_only=True):
    """One owner in the queue. last_claim: microseconds, 0 for never. queued: how many wait; first: their oldest."""

    owner: str
    running: int
    last_claim: int
    first: str
    queued: int

    @property
    def order(self) -> tuple[int, int, str]:
        """The owner for whom this is least is next."""
        return self.running, self.last_claim, self.first


def position(turns: Iterable[OwnerTurn], own: OwnerTurn, ahead: int) -> int:
    """How many tasks are claimed before one of own, while nothing ends and nothing is added.

    ahead: how many older ones of the same owner are queued.
    """
    return ahead + sum(_before(other, own, ahead) for other in turns if other.owner != own.owner)


def _before(other: OwnerTurn, own: OwnerTurn, ahead: int) -> int:
    """How many tasks of another owner are claimed before own's.

    Every claim makes its owner run one more, and whoever runs fewest is next: own's turn comes when it runs
    own.running + ahead, and until then other has caught up with that. Where both run equally many, the order is that in
    which they first did: whoever ran more to begin with was there already, whoever came by a claim has the newer one.
    """
    goes_first = (-other.running, *other.order[1:]) < (-own.running, *own.order[1:])
    return max(0, min(other.queued, own.running + ahead - other.running + goes_first))


def check_room(
    wanted: int,
    *,
    waiting: int,
    limit: int,
    waiting_of_owner: int,
    limit_of_owner: int,
    finished_last_minute: int,
) -> None:
    """Raises Overloaded when the owner's queue or the whole one has no room for so many more."""
    for who, has, may in (("This key", waiting_of_owner, limit_of_owner), ("The server", waiting, limit)):
        if (missing := has + wanted - may) > 0:
            told = f"{who} has {has} tasks waiting, " + (
                "as many as it may" if has >= may else f"may have {may}, and {wanted} more do not fit"
            )
            raise Overloaded(
                f"{told}; try again later.", retry_after_seconds=_retry_after(missing, finished_last_minute)
            )


def _retry_after(places: int, finished_last_minute: int) -> int:
    """Until about so many places are free, at the pace of the last minute."""
    if finished_last_minute == 0:
        return UNKNOWN_PACE_SECONDS
    return max(1, min(LONGEST_WAIT_SECONDS, round(60 * places / finished_last_minute)))


def client_ref(new: NewTask) -> str | None:
    """options["client_ref"] as far as it can be searched for: a text of at most 255 characters."""
    found = new.options.get("client_ref")
    return found if isinstance(found, str) and len(found) <= 255 and "\0" not in found else None


# The values a store makes, and the errors it raises


def accepted(new: NewTask, task_id: str, now: datetime) -> Task:
    return Task(
        id=task_id,
        owner=new.owner,
        dialect=new.dialect,
        external_id=new.external_id,
        status=Status.QUEUED,
        request=new.request,
        wire=new.wire,
        options=new.options,
        created_at=now,
        ttl_seconds=new.ttl_seconds,
    )


def delivery(task_id: str, owed: Owed, now: datetime, *, automatic: bool) -> Delivery:
    """Due at once."""
    return Delivery(
        id=uuid7(now),
        task_id=task_id,
        owed=owed,
        state=PENDING,
        created_at=now,
        next_at=now,
        automatic=automatic,
    )


def unknown() -> NotFound:
    return NotFound("There is no task with this identifier.", what="task")


def used(new: NewTask) -> Conflict:
    return Conflict(f"A task with the identifier {new.external_id} exists already; use a new one.")


def lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"Worker {claim.worker} no longer holds task {claim.task.id}.")
