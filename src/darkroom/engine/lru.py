"""A store of limited size that forgets what was used longest ago, but never what is in use.

Prompt embeddings, reference latents, reference K/V and whole models are kept by it; size is entries or bytes,
as the owner counts. The engine has one thread, so there is no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")
Kept = TypeVar("Kept")


@dataclass(slots=True)
class _Entry(Generic[Kept]):
    value: Kept
    size: int
    users: int = 0


class Lru(Generic[Key, Kept]):
    """limit: what the sizes may add up to; entries in use count, and may exceed it between them.

    evicted: told key and value of every entry that has to make room. hits, misses: of get, evictions: since the start.
    """

    def __init__(self, limit: int, evicted: Callable[[Key, Kept], None] | None = None) -> None:
        self.limit = limit
        self.size = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._evicted = evicted
        self._entries: dict[Key, _Entry[Kept]] = {}  # the order is that of use, oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        """Whether it is kept; not counted as a use."""
        return key in self._entries

    def __iter__(self) -> Iterator[tuple[Key, Kept, int]]:
        return iter([(key, entry.value, entry.size) for key, entry in self._entries.items()])

    def users(self) -> int:
        """Uses that were not released yet, of all entries."""
        return sum(entry.users for entry in self._entries.values())

    def counters(self, name: str, unit: str = "bytes") -> dict[str, float]:
        """For an engine's status: name_hits, name_misses, name_evictions, name_bytes. unit: of the sizes."""
        return {
            f"{name}_hits": float(self.hits),
            f"{name}_misses": float(self.misses),
            f"{name}_evictions": float(self.evictions),
            f"{name}_{unit}": float(self.size),
        }

    def get(self, key: Key) -> Kept | None:
        """What is kept under the key, now the most recently used."""
        entry = self._entries.pop(key, None)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries[key] = entry
        return entry.value

    def put(self, key: Key, value: Kept, size: int) -> None:
        """Keep a value that is not there yet. One larger than the limit stays only while it is in use."""
        assert key not in self._entries, "kept already"
        self._entries[key] = _Entry(value, size, users=1)  # so that making room does not take it
        self.size += size
        self.release(key)

    def put_used(self, key: Key, value: Kept, size: int) -> None:
        """put and use in one."""
        assert key not in self._entries, "kept already"
        self._entries[key] = _Entry(value, size, users=1)
        self.size += size
        self.shrink()

    def use(self, key: Key) -> None:
        """Hold on to an entry until release; counted, so each user releases once."""
        self._entries[key].users += 1

    def release(self, key: Key) -> None:
        """One user less; what is over the limit now goes."""
        entry = self._entries[key]
        assert entry.users > 0, "released more often than used"
        entry.users -= 1
        self.shrink()

    def shrink(self, room: int = 0) -> bool:
        """Forget unused entries, oldest first, until `room` more would fit. False when it would not."""
        for key in [key for key, entry in self._entries.items() if entry.users == 0]:
            if self.size + room <= self.limit:
                break
            entry = self._entries.pop(key)
            self.size -= entry.size
            self.evictions += 1
            if self._evicted:
                self._evicted(key, entry.value)
        return self.size + room <= self.limit

    def drop(self, key: Key) -> None:
        """Forget an entry, in use or not."""
        self.size -= self._entries.pop(key).size
