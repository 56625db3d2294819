"""Keys, idempotency, media records and documents without a disk, for memory.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from darkroom.tasks.documents import Document, missing
from darkroom.tasks.idempotency import KEPT, LEASE_SECONDS, LOOK_SECONDS, StoredResponse, check_body
from darkroom.tasks.keys import USE_NOTED_EVERY, Key, StoredKey, new_key, opens, prefix_of, unknown_key
from darkroom.types import Media, MediaKind, Value


class MemoryKeys:
    """A KeyStore."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._keys: dict[str, StoredKey] = {}  # by prefix

    async def create(self, name: str) -> tuple[Key, str]:
        made, plain = new_key(name, self._clock())
        self._keys[made.key.prefix] = made
        return made.key, plain

    async def list(self) -> Sequence[Key]:
        return [stored.key for stored in self._keys.values()]

    async def revoke(self, key_id: str) -> Key:
        for prefix, stored in self._keys.items():
            if key_id in (prefix, stored.key.id):
                key = replace(stored.key, revoked_at=stored.key.revoked_at or self._clock())
                self._keys[prefix] = replace(stored, key=key)
                return key
        raise unknown_key(key_id)

    async def check(self, plain: str) -> str | None:
        stored = self._keys.get(prefix_of(plain) or "")
        if stored is None or not opens(stored, plain):
            return None
        now, used = self._clock(), stored.key.last_used_at
        if used is None or now - used >= USE_NOTED_EVERY:
            self._keys[stored.key.prefix] = replace(stored, key=replace(stored.key, last_used_at=now))
        return stored.key.id

    async def any(self) -> bool:
        return any(stored.key.revoked_at is None for stored in self._keys.values())


class _Call(Value, frozen=True, kw_only=True):
    body_hash: str
    created_at: datetime
    lease_until: datetime
    response: StoredResponse | None = None


class MemoryIdempotency:
    """IdempotentCalls."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._calls: dict[tuple[str, str], _Call] = {}

    async def begin(
        self, owner: str, key: str, body_hash: str, *, lease_seconds: float = LEASE_SECONDS
    ) -> StoredResponse | None:
        while (call := self._current(owner, key)) is not None:
            check_body(call.body_hash, body_hash)
            if call.response is not None:
                return call.response
            await asyncio.sleep(LOOK_SECONDS)
        now = self._clock()
        until = now + timedelta(seconds=lease_seconds)
        self._calls[owner, key] = _Call(body_hash=body_hash, created_at=now, lease_until=until)
        return None

    async def finish(self, owner: str, key: str, status: int, body: bytes) -> None:
        call = self._calls.get((owner, key))
        if call is not None and call.response is None:
            self._calls[owner, key] = replace(call, response=StoredResponse(status=status, body=body))

    async def abandon(self, owner: str, key: str) -> None:
        call = self._calls.get((owner, key))
        if call is not None and call.response is None:
            del self._calls[owner, key]

    async def expire(self, now: datetime) -> int:
        old = [name for name, call in self._calls.items() if call.created_at <= now - KEPT]
        for name in old:
            del self._calls[name]
        return len(old)

    def _current(self, owner: str, key: str) -> _Call | None:
        now = self._clock()
        call = self._calls.get((owner, key))
        if call is None or call.created_at <= now - KEPT:
            return None
        return call if call.response is not None or call.lease_until > now else None


class MemoryMediaRecords:
    """The MediaTable of media/store.py."""

    def __init__(self) -> None:
        self._records: dict[str, Media] = {}

    async def add(self, record: Media) -> bool:
        earlier = self._records.get(record.id)
        if earlier is not None and earlier.owner != record.owner:
            return False
        created_at = record.created_at if earlier is None else earlier.created_at
        self._records[record.id] = replace(record, created_at=created_at)
        return True

    async def get(self, media_id: str) -> Media | None:
        return self._records.get(media_id)

    async def remove(self, media_ids: Sequence[str]) -> None:
        for media_id in media_ids:
            self._records.pop(media_id, None)

    async def prolong(self, media_id: str, expires_at: datetime) -> None:
        record = self._records.get(media_id)
        if record is not None and record.expires_at is not None and record.expires_at < expires_at:
            self._records[media_id] = replace(record, expires_at=expires_at)

    async def expired(self, now: datetime, limit: int) -> Sequence[Media]:
        over = [(record.expires_at, record) for record in self._records.values() if record.expires_at is not None]
        return [record for end, record in sorted(over, key=lambda pair: pair[0]) if end <= now][:limit]

    async def recent(self, owner: str, kind: MediaKind, limit: int) -> Sequence[Media]:
        mine = [record for record in self._records.values() if (record.owner, record.kind) == (owner, kind)]
        return sorted(mine, key=lambda record: record.created_at, reverse=True)[:limit]

    async def with_prefix(self, prefix: str) -> Sequence[Media]:
        return [record for record in self._records.values() if record.id.startswith(prefix)]


class MemoryDocuments:
    """A DocumentStore."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._documents: dict[tuple[str, str, str], Document] = {}

    async def put(
        self, owner: str, kind: str, document_id: str, value: dict[str, Any], *, expires_at: datetime | None = None
    ) -> Document:
        name = (owner, kind, document_id)
        created_at = self._documents[name].created_at if name in self._documents else self._clock()
        document = Document(
            owner=owner, kind=kind, id=document_id, value=value, created_at=created_at, expires_at=expires_at
        )
        self._documents[name] = document
        return document

    async def get(self, owner: str, kind: str, document_id: str) -> Document:
        document = self._documents.get((owner, kind, document_id))
        if document is None or not self._is_alive(document):
            raise missing(kind)
        return document

    async def list(self, owner: str, kind: str) -> Sequence[Document]:
        mine = [document for document in self._documents.values() if (document.owner, document.kind) == (owner, kind)]
        return sorted(filter(self._is_alive, mine), key=lambda document: (document.created_at, document.id))

    async def delete(self, owner: str, kind: str, document_id: str) -> bool:
        return self._documents.pop((owner, kind, document_id), None) is not None

    async def expire(self, now: datetime) -> int:
        over = [name for name, one in self._documents.items() if one.expires_at is not None and one.expires_at <= now]
        for name in over:
            del self._documents[name]
        return len(over)

    def _is_alive(self, document: Document) -> bool:
        return document.expires_at is None or document.expires_at > self._clock()
