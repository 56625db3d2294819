"""Which tasks a list asks for."""

from __future__ import annotations

from datetime import datetime

from darkroom.tasks.lifecycle import Status
from darkroom.types import Value


class TaskQuery(Value, frozen=True, kw_only=True):
    """statuses: empty for all. Both created bounds are exclusive. cursor: id of the last task of the page before."""

    owner: str
    dialect: str | None = None
    statuses: tuple[Status, ...] = ()
    client_ref: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    newest_first: bool = True
    cursor: str | None = None
    limit: int = 50
