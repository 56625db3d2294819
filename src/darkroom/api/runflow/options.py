"""What a run keeps beside the task so that it can be answered later: the envelope of its request.

Written to and read from the task's `options`, which nothing below the dialect reads.
"""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID, uuid5

import msgspec

from darkroom.tasks.task import Task
from darkroom.types import Value

DIALECT = "runflow"
NAMESPACE = UUID("9b1c7a52-6f3e-5d0a-8e4b-2f6f0c1d7a10")  # of the ids below that are made from names
IDEMPOTENT_HOURS = 24


class RunOptions(Value, frozen=True, kw_only=True):
    """model: the path it was asked for under. base_url: of the request, for URLs in callbacks.

    fingerprint: of the request's body, to tell a replay from another request under the same idempotency key.
    ignored: input fields nobody knows. warnings: what was accepted and changed nothing.
    """

    model: str
    base_url: str
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    client_ref: str | None = None
    fingerprint: str = ""
    batch_id: str | None = None
    batch_index: int = 0
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def options_of(task: Task) -> RunOptions:
    return msgspec.convert(task.options, RunOptions)


def as_options(options: RunOptions) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(options)
    return built


def fingerprint(*parts: object) -> str:
    """Equal for equal JSON values, however they were spaced and ordered."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def named_id(*parts: str) -> str:
    """The UUID that always belongs to these words."""
    return str(uuid5(NAMESPACE, "\x1f".join(parts)))
