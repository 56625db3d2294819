"""A running server per test, with and without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from tests.api.servers import SomeKeys, TestServer, serving


@pytest.fixture(autouse=True, scope="session")
def plain_tracebacks() -> None:
    """As a server logs them; structlog's default shows every local variable and takes seconds for it."""
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[TestServer]:
    """One that wants a key."""
    async with serving(tmp_path, keys=SomeKeys({"dk_anna": "anna", "dk_bob": "bob"})) as running:
        yield running
