"""What is owed to others because of a task: a POST per result to webhookURL, a PUT per picture to uploadEndpoint.

The body of a POST is both documented forms at once, so that either kind of receiver can read it: `{"data": [item]}`
(or `{"errors": [error]}`) with the item's own fields repeated at the top level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from darkroom.api.runware.errors import wire_fault
from darkroom.api.runware.options import Options, options_of
from darkroom.api.runware.render import LOST, identity, item, not_uploaded
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Attempt, Delivery, Fault, Owed, OwedKind, Result, Task

JSON = {"Content-Type": "application/json"}


class RunwareAnnouncer:
    """The worker's Announcer for this dialect. Results are announced by URL, also those asked for inline."""

    def on_result(self, task: Task, result: Result) -> Sequence[Owed]:
        options = options_of(task)
        owed = []
        if options.webhook_url:
            owed.append(_post(options, _body(task, options, result), result.index))
        if options.upload_url and result.media_id:
            upload = Owed(
                kind=OwedKind.UPLOAD,
                url=options.upload_url,
                policy="upload",
                media_id=result.media_id,
                result=result.index,
            )
            owed.append(upload)
        return owed

    def on_end(self, task: Task, status: Status, fault: Fault | None) -> Sequence[Owed]:
        """One call for all the results that will never be; those that are or failed were announced one by one."""
        options = options_of(task)
        missing = task.request.count - len(task.results)
        if not options.webhook_url or status is Status.SUCCEEDED or missing <= 0:
            return ()
        return (_post(options, _failed(options, fault or LOST), None),)

    def on_given_up(self, task: Task, delivery: Delivery, attempt: Attempt) -> Sequence[Owed]:
        """A picture that uploadEndpoint did not take is told to the webhook. attempt: the last one."""
        options = options_of(task)
        if not options.webhook_url or delivery.owed.kind is not OwedKind.UPLOAD:
            return ()
        error = not_uploaded(task, delivery, attempt, base=options.base_url).body
        return (_post(options, {**error, "errors": [error]}, delivery.owed.result),)


def _body(task: Task, options: Options, result: Result) -> dict[str, Any]:
    if result.fault is not None:
        return _failed(options, result.fault)
    done = item(task, result, base=options.base_url)
    return {**done, "data": [done]}


def _failed(options: Options, fault: Fault) -> dict[str, Any]:
    error = wire_fault(fault, task=identity(options), base=options.base_url).body
    return {**error, "errors": [error]}


def _post(options: Options, body: Mapping[str, Any], result: int | None) -> Owed:
    assert options.webhook_url is not None
    return Owed(
        kind=OwedKind.WEBHOOK,
        url=options.webhook_url,
        policy="runware",
        body=msgspec.json.encode(body),
        headers=JSON,
        signing="standard",
        result=result,
    )
