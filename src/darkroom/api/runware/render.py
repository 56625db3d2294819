"""Results and failures of a task → items and errors of the wire."""

from __future__ import annotations

import base64
from typing import Any

from darkroom.api.files import image_url
from darkroom.api.records import EXTENSION
from darkroom.api.runware.errors import WireError, wire_fault
from darkroom.api.runware.options import IMAGE_INFERENCE, Options, OutputType, options_of
from darkroom.catalog.card import Card
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.task import Attempt, Delivery, Fault, Result, Task
from darkroom.types import ImageFormat

CONTENT_TYPES = {ImageFormat.JPEG: "image/jpeg", ImageFormat.PNG: "image/png", ImageFormat.WEBP: "image/webp"}
CANCELLED = Fault(code="cancelled", message="The task was cancelled.")
NOT_UPLOADED = "Picture {media_id} was made, but uploadEndpoint did not take it ({why}); fetch it from its URL."
LOST = Fault(code="internal", message="The result was not made, and nobody wrote down why.")


def identity(options: Options) -> dict[str, Any]:
    """What every item and error of a task begins with; alone, it acknowledges an async task."""
    return {"taskType": IMAGE_INFERENCE, "taskUUID": options.task_uuid}


def item(
    task: Task, result: Result, *, base: str, data: bytes | None = None, status: str | None = None
) -> dict[str, Any]:
    """One finished result. data: the file, for options that return it inline. status: in getResponse answers."""
    options = options_of(task)
    found = identity(options)
    if status:
        found["status"] = status
    found["imageUUID"] = result.media_id
    if OutputType.URL in options.outputs or data is None:
        found["imageURL"] = image_url(base, f"{result.media_id}.{EXTENSION[task.request.output.format]}")
    if data is not None and options.inline:
        text = base64.b64encode(data).decode()
        if OutputType.BASE64 in options.outputs:
            found["imageBase64Data"] = text
        if OutputType.DATA_URI in options.outputs:
            found["imageDataURI"] = f"data:{CONTENT_TYPES[task.request.output.format]};base64,{text}"
    found["seed"] = seed_shown(options, result)
    if result.nsfw is not None:
        found["NSFWContent"] = result.nsfw
    if options.include_cost:
        found["cost"] = options.cost
    return found


def seed_shown(options: Options, result: Result) -> int:
    return options.seed_sent if options.seed_sent is not None and result.index == 0 else result.seed


def unfinished(task: Task, percent: int | None) -> dict[str, Any]:
    """The item of a result that is still to come. percent: 0 to 99, None where nobody knows."""
    found = {**identity(options_of(task)), "status": "processing"}
    if percent is not None:
        found["progress"] = percent
    return found


def failures(task: Task, *, base: str = "", card: Card | None = None, status: str | None = None) -> list[WireError]:
    """One error per result that could not be made; for a task that ended as a whole, one for all that is missing."""
    wire = identity(options_of(task))
    faults = [result.fault for result in task.results if result.fault is not None]
    missing = task.request.count - len(task.results)
    if is_final(task.status) and task.status is not Status.SUCCEEDED and missing:
        faults.append(task.fault or (CANCELLED if task.status is Status.CANCELLED else LOST))
    found = [wire_fault(fault, task=wire, base=base, card=card) for fault in faults]
    for error in found if status else ():
        error.body["status"] = status
    return found


def not_uploaded(task: Task, delivery: Delivery, last: Attempt, *, base: str) -> WireError:
    """The error for a file that uploadEndpoint did not take. last: the try with which it was given up."""
    why = f"HTTP {last.status}" if last.status else (last.error or "no answer").rstrip(".")
    message = NOT_UPLOADED.format(media_id=delivery.owed.media_id, why=why)
    fault = Fault(code="upload", message=message, parameter="uploadEndpoint")
    return wire_fault(fault, task=identity(options_of(task)), base=base)
