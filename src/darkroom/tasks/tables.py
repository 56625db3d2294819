"""The tables: what every column means, for SQLite and PostgreSQL alike.

Times are microseconds since 1970 in a BIGINT: equal in both databases, comparable, without a time zone to lose.
Structured values are JSON text written and read by msgspec with the type of the value. Migrations in migrations/
build these tables; a test keeps the two equal.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from darkroom.tasks.task import Fault
from darkroom.types import ImageRequest, Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Moment(sa.types.TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


class Json(sa.types.TypeDecorator[Any]):
    """A value of one msgspec type as JSON text. None is NULL."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._decode = msgspec.json.Decoder(kind).decode

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else self._decode(value)


class Text(sa.types.TypeDecorator[str]):
    """Text of callers. PostgreSQL cannot hold NUL, so that one character is kept, and looked for, as U+FFFD."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd")


Identifier = Text(36)  # a UUID in its usual spelling
Name = Text(255)

metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", Identifier, primary_key=True),  # UUIDv7: sorting by it is sorting by age
    sa.Column("owner", Name, nullable=False),
    sa.Column("dialect", Text(32), nullable=False),
    sa.Column("external_id", Name, nullable=False),
    sa.Column("idempotency_key", Name),
    sa.Column("client_ref", Name),  # options["client_ref"], a copy that can be searched
    sa.Column("status", Text(16), nullable=False),
    sa.Column("request", Json(ImageRequest), nullable=False),
    sa.Column("wire", Json(dict[str, Any]), nullable=False),
    sa.Column("options", Json(dict[str, Any]), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("started_at", Moment),
    sa.Column("finished_at", Moment),
    sa.Column("ttl_seconds", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("fault", Json(Fault)),
    sa.Column("cost", sa.Float),
    sa.Column("version", sa.Integer, nullable=False),  # grows with every change a watcher must hear of
    sa.Column("token", sa.Integer, nullable=False),  # grows with every claim; an older one is refused (fencing)
    sa.Column("worker", Name),
    sa.Column("claimed_at", Moment),
    sa.Column("lease_until", Moment),
    sa.UniqueConstraint("owner", "dialect", "external_id"),
    sa.Index(None, "status", "owner", "id"),  # the queue
    sa.Index(None, "owner", "claimed_at"),  # whose turn it was
    sa.Index(None, "owner", "id"),  # lists
    sa.Index(None, "finished_at"),  # expiry and throughput
    sa.Index(None, "owner", "client_ref"),
    sa.Index(None, "owner", "idempotency_key"),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("task_id", Identifier, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("media_id", Identifier),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("nsfw", sa.Boolean),
    sa.Column("record", Json(Record), nullable=False),
    sa.Column("fault", Json(Fault)),
    sa.Column("finished_at", Moment),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Identifier, primary_key=True),  # UUIDv7
    sa.Column("task_id", Identifier, sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("kind", Text(16), nullable=False),
    sa.Column("url", Text, nullable=False),
    sa.Column("policy", Text(32), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("media_id", Identifier),
    sa.Column("headers", Json(dict[str, str]), nullable=False),
    sa.Column("signing", Text(32), nullable=False),
    sa.Column("result", sa.Integer),
    sa.Column("state", Text(16), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("next_at", Moment),
    sa.Column("lease_until", Moment),
    sa.Column("automatic", sa.Boolean, nullable=False),
    sa.Index(None, "task_id", "id"),
    sa.Index(None, "state", "next_at"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("delivery_id", Identifier, sa.ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # from 1
    sa.Column("at", Moment, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("error", Text),
    sa.Column("milliseconds", sa.Float, nullable=False),
    sa.Column("response", Text, nullable=False),
)

media = sa.Table(
    "media",
    metadata,
    sa.Column("id", Identifier, primary_key=True),  # UUIDv4: its URL is the permission to read it
    sa.Column("owner", Name, nullable=False),
    sa.Column("kind", Text(16), nullable=False),
    sa.Column("content_type", Name, nullable=False),
    sa.Column("extension", Text(16), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", Text(64), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment),
    sa.Index(None, "expires_at"),
    sa.Index(None, "owner", "created_at"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", Name, primary_key=True),
    sa.Column("key", Name, primary_key=True),
    sa.Column("body_hash", Text(64), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("lease_until", Moment, nullable=False),  # until then the first call is believed to be still at work
    sa.Column("status", sa.Integer),  # NULL until the first call is answered
    sa.Column("body", sa.LargeBinary),
    sa.Index(None, "created_at"),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", Identifier, primary_key=True),  # the owner id of everything made with this key
    sa.Column("name", Name, nullable=False),
    sa.Column("prefix", Text(16), nullable=False, unique=True),  # how a key is found; not secret
    sa.Column("hash", Text(64), nullable=False),  # SHA-256 of the whole key, hex
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("revoked_at", Moment),
    sa.Column("last_used_at", Moment),
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("owner", Name, primary_key=True),
    sa.Column("kind", Text(32), primary_key=True),
    sa.Column("id", Name, primary_key=True),
    sa.Column("value", Json(dict[str, Any]), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment),
    sa.Index(None, "expires_at"),
)
