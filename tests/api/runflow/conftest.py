from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.runflow.serving import Runs, serving


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    """A client of a server that checks no keys."""
    async with serving(tmp_path) as server:
        yield Runs(server)
