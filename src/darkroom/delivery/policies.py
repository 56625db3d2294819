"""When a delivery is tried again, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from darkroom.media.fetch import Reply
from darkroom.tasks.task import Owed, OwedKind
from darkroom.types import Value

LONGEST_RETRY_AFTER_SECONDS: Final = 60.0  # a receiver may ask for a pause, not for a day
SIGNATURES: Final = ("standard", "runflow", "")  # those that outbox.py can make
GONE: Final = 410  # the receiver says: never again


class RetryPolicy(Value, frozen=True, kw_only=True):
    """waits: seconds before the second try, the third and so on; there is one try more than waits.

    jitter: a wait is varied by up to this part of it, so that deliveries which failed together do not return
    together. timeout_seconds: of one try. client_errors_are_final: an answer that is neither 2xx nor 5xx ends it.
    """

    waits: tuple[float, ...]
    timeout_seconds: float
    jitter: float = 0.0
    client_errors_are_final: bool = False

    def pause(self, tried: int, reply: Reply, random: Callable[[], float]) -> float | None:
        """Seconds until the next try after so many; None: give up. random: 0 to 1."""
        if tried > len(self.waits) or self._is_final(reply):
            return None
        wait = self.waits[tried - 1] * (1 + self.jitter * (2 * random() - 1))
        asked = 0.0 if self.client_errors_are_final else min(reply.retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        return max(wait, asked)

    def _is_final(self, reply: Reply) -> bool:
        if reply.refused or reply.status == GONE:
            return True
        return self.client_errors_are_final and reply.status is not None and reply.status < 500


def policies(webhook_waits: Sequence[float]) -> dict[str, RetryPolicy]:
    """By name.

    Runware's documentation says: wait about 5 s for the answer; back off from 250 ms, doubling, at most 8 s, with
    jitter; how often it does not say. So a webhook is tried seven times like that, for receivers that restart, and then
    after webhook_waits (seconds), for those that are down. Runflow's: three attempts, waiting 1 s, then 2 s, on 5xx and
    network errors only; 10 s for an answer.
    """
    return {
        "runware": RetryPolicy(waits=(*DOUBLING, *webhook_waits), timeout_seconds=5.0, jitter=0.2),
        "runflow": RetryPolicy(waits=(1.0, 2.0), timeout_seconds=10.0, client_errors_are_final=True),
        "upload": RetryPolicy(waits=(1.0, 2.0), timeout_seconds=60.0, jitter=0.2),
    }


DOUBLING: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
POLICIES: Final = policies(())
LONGEST_TRY_SECONDS: Final = max(policy.timeout_seconds for policy in POLICIES.values())


def is_delivered(reply: Reply) -> bool:
    """Only 2xx is."""
    return reply.status is not None and 200 <= reply.status < 300


def foreign(owed: Owed) -> str | None:
    """Why this version cannot make a call that another one wrote down; None: it can.

    Such a row is given up: tried again it would fail the same way for ever, and its task could not be forgotten.
    """
    for what, name, known in (
        ("kind of delivery", owed.kind, tuple(OwedKind)),
        ("retry policy", owed.policy, POLICIES),
        ("signature", owed.signing, SIGNATURES),
    ):
        if name not in known:
            return (
                f"There is no {what} {name!r} in this version of Darkroom, so this was never sent. "
                "Run the version that accepted the task, or send the task again."
            )
    return None
