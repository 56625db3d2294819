"""Callbacks: what is owed to `callback_url` when a run ends. The worker asks the Announcer, the outbox delivers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from darkroom.api.runflow.options import options_of
from darkroom.api.runflow.render import callback_payload, request_id
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Fault, Owed, OwedKind, Result, Task

POLICY = "runflow"  # 3 attempts, 1 s and 2 s apart, on 5xx and network errors only
SIGNING = "runflow"  # Runflow-Signature over the body, when a secret exists


class RunflowAnnouncer:
    """worker.Announcer for runs: nothing per picture, one callback at the end."""

    def on_result(self, task: Task, result: Result) -> Sequence[Owed]:
        return ()

    def on_end(self, task: Task, status: Status, fault: Fault | None) -> Sequence[Owed]:
        """The one callback of a run; an item of a batch has none, its batch is announced as a whole."""
        options = options_of(task)
        if not options.callback_url or options.batch_id:
            return ()
        return (owed_for_run(task, status, task.finished_at or datetime.now(UTC)),)


def owed_for_run(task: Task, status: Status, completed_at: datetime) -> Owed:
    """The callback of a run in this final state; its body is frozen here. The run has a callback_url."""
    return owed(
        options_of(task).callback_url or "",
        msgspec.json.encode(callback_payload(task, status, completed_at)),
        request_id(task),
    )


def owed(url: str, body: bytes, request: str) -> Owed:
    return Owed(
        kind=OwedKind.WEBHOOK,
        url=url,
        policy=POLICY,
        body=body,
        headers={"Content-Type": "application/json", "Runflow-Request-Id": request},
        signing=SIGNING,
    )
