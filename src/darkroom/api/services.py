"""What the routes are given. assembly.py builds it; a test builds one from fakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import Catalog
from darkroom.catalog.installed import Installed
from darkroom.config import Settings
from darkroom.media.fetch import Fetcher
from darkroom.media.store import MediaStore
from darkroom.pool import EnginePool
from darkroom.tasks.store import TaskStore
from darkroom.worker import Announcer


class KeyChecker(Protocol):
    """tasks.keys.Keys, as far as the routes need it."""

    async def check(self, key: str) -> str | None:
        """The owner's id, None for a key that is not ours or was revoked."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """announce: by dialect, what is owed to clients when a task ends. keys: None when checking is off (a server on
    loopback without keys). features: which optional parts are installed ("safety", "faces"); a request that needs
    another one is refused before it is accepted.
    """

    settings: Settings
    catalog: Catalog
    installed: Installed
    adapters: Adapters
    store: TaskStore
    media: MediaStore
    fetcher: Fetcher
    pool: EnginePool
    announce: Mapping[str, Announcer]
    keys: KeyChecker | None = None
    features: frozenset[str] = field(default_factory=frozenset)
