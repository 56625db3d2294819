"""From one element of a request's array to the handler of its taskType; whatever goes wrong becomes a Reply."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec

from darkroom.api.bodies import why_unreadable
from darkroom.api.runware.account import account_management
from darkroom.api.runware.call import Call, Handler, Reply, WireTask
from darkroom.api.runware.errors import Malformed, Unsupported, wire_error
from darkroom.api.runware.images import image_inference
from darkroom.api.runware.model_upload import model_upload
from darkroom.api.runware.models import model_search
from darkroom.api.runware.options import IMAGE_INFERENCE
from darkroom.api.runware.parse import Refused
from darkroom.api.runware.polling import get_response, get_task_details
from darkroom.api.runware.prompts import prompt_enhance
from darkroom.api.runware.uploads import image_upload, media_storage
from darkroom.errors import InvalidParameter, Problem

HANDLERS: dict[str, Handler] = {
    IMAGE_INFERENCE: image_inference,
    "getResponse": get_response,
    "getTaskDetails": get_task_details,
    "imageUpload": image_upload,
    "mediaStorage": media_storage,
    "modelSearch": model_search,
    "modelUpload": model_upload,
    "promptEnhance": prompt_enhance,
    "accountManagement": account_management,
}
AUTHENTICATION = "authentication"  # these two are the transports' affair
PING = "ping"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def read_tasks(body: bytes | str) -> list[object]:
    """The elements of a request; a bare object stands for an array of one. Raises Malformed."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Malformed(f"The body {why_unreadable(body)}. Send an array of task objects as JSON.") from None
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list) or not found:
        raise Malformed("The body must be an array with at least one task object.")
    return found


async def answer(call: Call, task: object) -> AsyncIterator[Reply]:
    """All replies to one task; ends without raising, unless it is cancelled."""
    card = None
    known: WireTask = task if isinstance(task, dict) else {}
    try:
        async for reply in handler_for(task)(call, known):
            yield reply
    except Refused as refusal:
        card = refusal.card
        yield Reply(
            errors=tuple(wire_error(error, task=known, card=card, base=call.base) for error in refusal.violations)
        )
    except Exception as error:  # noqa: BLE001 - one task's failure, ours included, must not stop the others
        yield Reply(errors=(wire_error(error, task=known, card=card, base=call.base),))


def handler_for(task: object) -> Handler:
    """Raises for anything that is not a task object with a known type and a UUID."""
    if not isinstance(task, dict):
        raise Malformed("Every element of the array must be a task object.")
    kind = task.get("taskType")
    if kind is None:
        raise _wrong("taskType", Problem.MISSING, "'taskType' is required.")
    handler = HANDLERS.get(kind) if isinstance(kind, str) else None
    if handler is None:
        raise Unsupported(
            f"This server has no task type '{str(kind)[:64]}'. It has: {', '.join(HANDLERS)}.", parameter="taskType"
        )
    if task.get("taskUUID") is None:
        raise _wrong("taskUUID", Problem.MISSING, "'taskUUID' is required: a UUID v4 of your choice.")
    if not isinstance(task["taskUUID"], str) or not UUID.fullmatch(task["taskUUID"]):
        raise _wrong("taskUUID", Problem.FORMAT, "'taskUUID' must be a UUID v4.")
    return handler


def _wrong(name: str, problem: Problem, message: str) -> InvalidParameter:
    return InvalidParameter(message, parameter=name, problem=problem, expected="string")
