"""Whether a key is asked for, and whose a key is.

A server without keys serves its own machine and takes everybody. As soon as a key is in force it asks for one, and goes
on asking until it ends, even when the last key is revoked: revoking must never open a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

LOOK_SECONDS = 1.0  # how soon a server without keys notices the first


class KeyChecker(Protocol):
    """tasks.keys.Keys, as far as the routes need it."""

    async def check(self, key: str) -> str | None:
        """The owner's id, None for a key that is not ours or was revoked."""

    async def any(self) -> bool:
        """Whether any key is in force."""


class Gate:
    """Over the keys of one server."""

    def __init__(self, keys: KeyChecker, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._closed = False
        self._look_at = clock()

    async def closed(self) -> bool:
        """Whether a key is needed."""
        if not self._closed and self._clock() >= self._look_at:
            found = await self._keys.any()
            self._closed = self._closed or found  # another request, which looked later, may have been answered earlier
            self._look_at = self._clock() + LOOK_SECONDS
        return self._closed

    async def owner(self, key: str) -> str | None:
        """Of a key; None when it opens nothing."""
        return await self._keys.check(key)
