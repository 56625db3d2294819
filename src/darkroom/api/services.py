"""What the routes are given. assembly.py builds it; a test builds one from fakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from darkroom.api.gate import Gate
from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import Catalog
from darkroom.catalog.installed import Installed
from darkroom.config import Settings
from darkroom.media.fetch import Fetcher
from darkroom.media.store import MediaStore
from darkroom.pool import EnginePool
from darkroom.tasks.store import TaskStore
from darkroom.worker import Announcer


@dataclass(frozen=True, kw_only=True)
class Services:
    """announce: by dialect, what is owed to clients when a task ends. features: which optional parts are installed
    ("safety", "faces"); a request that needs another one is refused before it is accepted.
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
    gate: Gate
    features: frozenset[str] = field(default_factory=frozenset)
