"""Waiting in tests for what happens soon, and failing when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool] | bool], seconds: float = 30.0) -> None:
    """Until check() is true; TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while True:
            found = check()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)
