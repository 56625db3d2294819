"""One caller's request to the task API, and what answers it: shared by HTTP and the socket.

A handler takes a Call and one task and yields Replies. Over HTTP all replies of all tasks become one body; on the
socket each reply is a message of its own, as soon as it is there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from darkroom.api.runware.errors import WireError
from darkroom.api.runware.progress import ProgressBoard
from darkroom.api.services import Services
from darkroom.types import Value

WireTask = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """board: progress of polled tasks. owner: whose key it is. base: this server's address as the client sees it.

    dry_run: validate and price only. preview_every: steps between previews, for those who follow the task's events.
    """

    services: Services
    board: ProgressBoard
    owner: str
    base: str
    dry_run: bool = False
    preview_every: int = 0


class Reply(Value, frozen=True, kw_only=True):
    """data, errors: items for the envelope. order: place among the replies of its task, where that is not time.

    answered: the errors are what was asked for (getResponse of a failed task), so HTTP says 200. unfinished: id of a
    task whose results are still to come; a socket pushes them when they are ready.
    """

    data: tuple[dict[str, Any], ...] = ()
    errors: tuple[WireError, ...] = ()
    order: int = 0
    answered: bool = False
    unfinished: str | None = None


Handler = Callable[[Call, WireTask], AsyncIterator[Reply]]


def nothing_done(task: WireTask) -> Reply:
    """The answer of a dry run of a utility task, once it was found to be in order: they cost nothing."""
    return Reply(data=({**identity(task), "cost": 0.0},))


def identity(task: WireTask) -> dict[str, Any]:
    """What the answer to a utility task begins with."""
    return {"taskType": task["taskType"], "taskUUID": task["taskUUID"]}
