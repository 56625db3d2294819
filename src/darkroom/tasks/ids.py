"""Identifiers that sort by age."""

from __future__ import annotations

import secrets
import threading
from datetime import UTC, datetime
from uuid import UUID

_lock = threading.Lock()
_last = 0


def utc_now() -> datetime:
    return datetime.now(UTC)


def uuid7(now: datetime) -> str:
    """A UUIDv7 for this moment; within a process each is greater than the one before while the clock does not go back.

    48 bits of milliseconds and 12 bits of their fraction (RFC 9562 §6.2, method 3), then 62 random bits.
    """
    global _last
    microseconds = int(now.timestamp() * 1_000_000)
    tick = (microseconds // 1000 << 12) | (microseconds % 1000) * 4096 // 1000
    with _lock:
        if _last - 4096 * 1000 < tick <= _last:  # up to a second back: the same burst, or a clock being corrected
            tick = _last + 1
        _last = tick
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    value = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)
    return str(UUID(int=value))
