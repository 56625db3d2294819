"""API keys: who may use the server. A key is shown once, when it is made; only its hash is kept.

A key is dk_<8 characters>_<32 characters>, letters and digits. The first part finds the record and is no secret; of
the whole, a SHA-256 is compared in constant time. A fast hash is right here: the secret part holds 190 random
bits, so there is nothing to guess.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, Protocol

import sqlalchemy as sa

from darkroom.errors import NotFound
from darkroom.tasks.database import Database
from darkroom.tasks.ids import uuid7
from darkroom.tasks.tables import keys
from darkroom.types import Value

ALPHABET: Final = string.ascii_letters + string.digits
SHAPE: Final = re.compile(r"dk_([A-Za-z0-9]{8})_[A-Za-z0-9]{32}", re.ASCII)
USE_NOTED_EVERY: Final = timedelta(minutes=1)


class Key(Value, frozen=True, kw_only=True):
    """What may be known about a key. id: owner of everything made with it. prefix: how the key begins."""

    id: str
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class KeyStore(Protocol):
    """Make, list, revoke and check keys."""

    async def create(self, name: str) -> tuple[Key, str]:
        """A new key and its plain text, which nobody can show again."""

    async def list(self) -> Sequence[Key]:
        """All, oldest first, revoked ones too."""

    async def revoke(self, key_id: str) -> Key:
        """From now on it opens nothing. By id or prefix. Raises NotFound(what="key")."""

    async def check(self, plain: str) -> str | None:
        """The owner id of a valid key, None for anything else."""

    async def any(self) -> bool:
        """Whether any key is in force; without one the server serves only its own machine."""


class StoredKey(Value, frozen=True, kw_only=True):
    """A key with the hash of its plain text."""

    key: Key
    hash: str


class Keys:
    """KeyStore in the database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def create(self, name: str) -> tuple[Key, str]:
        made, plain = new_key(name, self._clock())
        key = made.key
        statement = sa.insert(keys).values(
            id=key.id, name=key.name, prefix=key.prefix, hash=made.hash, created_at=key.created_at
        )
        await self._database.write(lambda connection: connection.execute(statement))
        return key, plain

    async def list(self) -> Sequence[Key]:
        statement = sa.select(keys).order_by(keys.c.id)
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [_as_stored(row).key for row in rows]

    async def revoke(self, key_id: str) -> Key:
        statement = (
            sa.update(keys)
            .where(sa.or_(keys.c.id == key_id, keys.c.prefix == key_id))
            .values(revoked_at=sa.func.coalesce(keys.c.revoked_at, sa.literal(self._clock(), keys.c.revoked_at.type)))
            .returning(*keys.c)
        )
        row = await self._database.write(lambda connection: connection.execute(statement).first())
        if row is None:
            raise unknown_key(key_id)
        return _as_stored(row).key

    async def check(self, plain: str) -> str | None:
        prefix = prefix_of(plain)
        if prefix is None:
            return None
        statement = sa.select(keys).where(keys.c.prefix == prefix)
        row = await self._database.read(lambda connection: connection.execute(statement).first())
        stored = None if row is None else _as_stored(row)
        if stored is None or not opens(stored, plain):
            return None
        await self._note_use(stored.key)
        return stored.key.id

    async def any(self) -> bool:
        statement = sa.select(keys.c.id).where(keys.c.revoked_at.is_(None)).limit(1)
        return await self._database.read(lambda connection: connection.scalar(statement)) is not None

    async def _note_use(self, key: Key) -> None:
        now = self._clock()
        if key.last_used_at is None or now - key.last_used_at >= USE_NOTED_EVERY:
            statement = sa.update(keys).where(keys.c.id == key.id).values(last_used_at=now)
            await self._database.write(lambda connection: connection.execute(statement), durable=False)


def new_key(name: str, now: datetime) -> tuple[StoredKey, str]:
    """A random key: what is kept of it, and its plain text."""
    prefix = "dk_" + "".join(secrets.choice(ALPHABET) for _ in range(8))
    plain = prefix + "_" + "".join(secrets.choice(ALPHABET) for _ in range(32))
    return StoredKey(key=Key(id=uuid7(now), name=name, prefix=prefix, created_at=now), hash=hash_of(plain)), plain


def prefix_of(plain: str) -> str | None:
    """How the key begins; None when it cannot be one of ours."""
    return plain[:11] if SHAPE.fullmatch(plain) else None


def opens(stored: StoredKey, plain: str) -> bool:
    """Whether this is the key, and in force."""
    same = hmac.compare_digest(stored.hash, hash_of(plain))
    return same and stored.key.revoked_at is None


def hash_of(plain: str) -> str:
    return sha256(plain.encode()).hexdigest()


def unknown_key(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id!r} here; `darkroom keys list` shows all.", what="key")


def _as_stored(row: sa.Row[tuple[object, ...]]) -> StoredKey:
    fields = dict(row._mapping)
    plain_hash = fields.pop("hash")
    return StoredKey(key=Key(**fields), hash=plain_hash)
