"""When a delivery is tried again, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from darkroom.media.fetch import Reply
from darkroom.types import Value

LONGEST_RETRY_AFTER_SECONDS: Final = 60.0  # a receiver may ask for a pause, not for a day
GONE: Final = 410  # the receiver says: never again


class RetryPolicy(Value, frozen=True, kw_only=True):
    """tries: in all. The wait doubles from first_seconds to longest_seconds at most.

    jitter: the wait is varied by up to this part of it, so that deliveries which failed together do not return
    together. timeout_seconds: of one try. client_errors_are_final: an answer that is neither 2xx nor 5xx ends it.
    """

    tries: int
    first_seconds: float
    longest_seconds: float
    timeout_seconds: float
    jitter: float = 0.0
    client_errors_are_final: bool = False

    def pause(self, tried: int, reply: Reply, random: Callable[[], float]) -> float | None:
        """Seconds until the next try after so many; None: give up. random: 0 to 1."""
        if tried >= self.tries or self._is_final(reply):
            return None
        wait = min(self.longest_seconds, self.first_seconds * 2.0 ** (tried - 1))
        wait *= 1 + self.jitter * (2 * random() - 1)
        asked = 0.0 if self.client_errors_are_final else min(reply.retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        return max(wait, asked)

    def _is_final(self, reply: Reply) -> bool:
        if reply.refused or reply.status == GONE:
            return True
        return self.client_errors_are_final and reply.status is not None and reply.status < 500


# Runware: "wait about 5 s for the answer; back off from 250 ms, doubling, at most 8 s, with jitter". Runflow: three
# attempts, waiting 1 s, then 2 s, on 5xx and network errors only; 10 s for an answer.
POLICIES: Final = {
    "runware": RetryPolicy(tries=5, first_seconds=0.25, longest_seconds=8.0, timeout_seconds=5.0, jitter=0.2),
    "runflow": RetryPolicy(
        tries=3, first_seconds=1.0, longest_seconds=2.0, timeout_seconds=10.0, client_errors_are_final=True
    ),
    "upload": RetryPolicy(tries=3, first_seconds=1.0, longest_seconds=8.0, timeout_seconds=60.0, jitter=0.2),
}
LONGEST_TRY_SECONDS: Final = max(policy.timeout_seconds for policy in POLICIES.values())


def is_delivered(reply: Reply) -> bool:
    """Only 2xx is."""
    return reply.status is not None and 200 <= reply.status < 300
