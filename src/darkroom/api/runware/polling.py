"""getResponse and getTaskDetails: what became of a task, sync ones too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from darkroom.api.runware.call import Call, Reply, WireTask, identity
from darkroom.api.runware.errors import WireError
from darkroom.api.runware.images import file_of, upload_failures
from darkroom.api.runware.options import DIALECT, options_of
from darkroom.api.runware.render import failures, item, unfinished
from darkroom.errors import NotFound
from darkroom.tasks.lifecycle import is_final
from darkroom.tasks.task import Task


async def get_response(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """The state of all results in one reply, in the order of the results: finished, failed and still to come."""
    found = await find(call, task)
    data, errors = await state(call, found, polled=True)
    open_still = not is_final(found.status)
    yield Reply(data=tuple(data), errors=tuple(errors), answered=True, unfinished=found.id if open_still else None)


async def get_task_details(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """The task as it was sent, in an array like a request, and its answer so far.

    Image data in the request is shown as the id it is stored by.
    """
    found = await find(call, task)
    data, errors = await state(call, found, polled=False)
    response: dict[str, Any] = {"data": data} if data or not errors else {}
    if errors:
        response["errors"] = [error.body for error in errors]
    yield Reply(data=({**identity(task), "request": [found.wire], "response": response},))


async def find(call: Call, task: WireTask) -> Task:
    """The caller's task by the UUID it gave. Raises NotFound."""
    try:
        return await call.services.store.find(call.owner, DIALECT, task["taskUUID"].lower())
    except NotFound:
        message = f"There is no task {task['taskUUID']}, or its record has expired."
        raise NotFound(message, what="task", parameter="taskUUID") from None


async def state(call: Call, task: Task, *, polled: bool) -> tuple[list[dict[str, Any]], list[WireError]]:
    """(items in the order of their results, errors)."""
    done = {result.index: result for result in task.results}
    open_still = polled and not is_final(task.status)
    percent = call.board.percent(call.services, task.id) if open_still else {}
    items = []
    for index in range(task.request.count):
        if index in done and done[index].media_id:
            data = await file_of(call.services, task, done[index])
            status = "success" if polled else None
            items.append(await asyncio.to_thread(item, task, done[index], base=call.base, data=data, status=status))
        elif index not in done and open_still:
            items.append(unfinished(task, percent.get(index)))
    card = call.services.catalog.resolve(task.request.card)
    errors = failures(task, base=call.base, card=card, status="error" if polled else None)
    if options_of(task).upload_url and is_final(task.status):
        errors += await upload_failures(call, task, wait=False)
    return items, errors
