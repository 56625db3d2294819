"""What the store keeps: a task, its results, what is owed to others because of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from darkroom.tasks.lifecycle import Status
from darkroom.types import ImageRequest, Record, Value

DIALECTS: Final = ("runware", "runflow")  # whose wires tasks come from; in this order a client's id is looked up


class Fault(Value, frozen=True, kw_only=True):
    """Why something failed. code: of errors.py. parameter: dotted path, as the client spelled it."""

    code: str
    message: str
    parameter: str | None = None


class Result(Value, frozen=True, kw_only=True):
    """One image of a task. media_id: of the stored file. fault: set instead when it could not be made."""

    index: int
    seed: int
    media_id: str | None = None
    width: int = 0
    height: int = 0
    nsfw: bool | None = None
    record: Record = Record()
    fault: Fault | None = None
    finished_at: datetime | None = None


class NewTask(Value, frozen=True, kw_only=True):
    """A task to be accepted.

    owner: id of the key it belongs to ("local" when keys are off). dialect: whose wire it came from.
    external_id: what its client calls it, unique within (owner, dialect). wire: the request as the
    client sent it. options: what the dialect needs later to answer (output types, webhook, callback,
    metadata, ttl…); nothing below the dialect reads it. ttl_seconds: how long its files are kept, None for
    the server's default.
    """

    owner: str
    dialect: str
    external_id: str
    request: ImageRequest
    wire: dict[str, Any]
    options: dict[str, Any] = {}
    ttl_seconds: int | None = None
    idempotency_key: str | None = None


class Task(Value, frozen=True, kw_only=True):
    """One unit of work as it stands. id: UUIDv7. Times are aware UTC. cost: US dollars. attempts: claims so far.

    version: grows with every change of state and every result, so that older news can be told from newer.
    """

    id: str
    owner: str
    dialect: str
    external_id: str
    status: Status
    request: ImageRequest
    wire: dict[str, Any]
    options: dict[str, Any]
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ttl_seconds: int | None = None
    attempts: int = 0
    fault: Fault | None = None
    cost: float | None = None
    results: tuple[Result, ...] = ()
    version: int = 0


class Claim(Value, frozen=True, kw_only=True):
    """A task that this worker may work on until the lease runs out. token: changes with every claim (fencing)."""

    task: Task
    worker: str
    token: int


class OwedKind(StrEnum):
    WEBHOOK = "webhook"
    UPLOAD = "upload"


class Owed(Value, frozen=True, kw_only=True):
    """A call that must be made to somebody, written in the same transaction as what it tells of.

    kind: an OwedKind, or the name of one that only another version of Darkroom knows. body: the bytes to POST, frozen
    here (an upload PUTs media_id's file instead). policy: name of the retry policy in delivery/policies.py ("runware",
    "runflow", "upload"). signing: which signature the sender adds ("standard", "runflow" or ""). result: index it
    tells of, None for the whole task.
    """

    kind: OwedKind | str
    url: str
    policy: str
    body: bytes = b""
    media_id: str | None = None
    headers: dict[str, str] = {}
    signing: str = ""
    result: int | None = None


class Attempt(Value, frozen=True, kw_only=True):
    """One try of a delivery. status: HTTP status, None when no answer came."""

    at: datetime
    status: int | None
    error: str | None
    milliseconds: float
    response: str = ""


class Delivery(Value, frozen=True, kw_only=True):
    """An outbox row. next_at: when it is tried again; None once it is delivered or given up."""

    id: str
    task_id: str
    owed: Owed
    state: str  # "pending", "delivered", "failed"
    created_at: datetime
    next_at: datetime | None
    attempts: tuple[Attempt, ...] = ()
    automatic: bool = True
