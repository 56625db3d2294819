"""POST /v1: an array of tasks, each on its own; results and errors of all of them in one envelope.

Beside it, POST /v1/cards/{id}/task says which task asks for a request that a record or a picture's file carries.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response, WebSocket

from darkroom.api.auth import authenticate, check_key
from darkroom.api.events import preview_every
from darkroom.api.files import base_url
from darkroom.api.health import Metrics
from darkroom.api.runware.call import Call, Reply
from darkroom.api.runware.dispatch import AUTHENTICATION, PING, answer, read_tasks
from darkroom.api.runware.errors import WireError
from darkroom.api.runware.progress import ProgressBoard
from darkroom.api.runware.unparse import read_request, task_of
from darkroom.api.runware.ws import Sessions
from darkroom.api.services import Services

PONG: dict[str, Any] = {"taskType": PING, "pong": True}
DRY_RUN_HEADER = "x-runware-dry-run"
TRUE = ("1", "true", "yes")
SUMMARY = "Run tasks (the Runware task API)"
TASK_SUMMARY = "The task that asks for a request, as records and pictures' files carry it"


def routes(services: Services, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["runware"])
    board = ProgressBoard()
    sessions = Sessions(services, board, metrics)

    @router.post("/v1", summary=SUMMARY, openapi_extra=REQUEST_BODY, responses=RESPONSES)
    async def tasks(request: Request) -> Response:
        found = read_tasks(await request.body())
        owner = await caller(services, request, found)
        call = Call(
            services=services,
            board=board,
            owner=owner,
            base=base_url(services, request),
            dry_run=request.headers.get(DRY_RUN_HEADER, "").lower() in TRUE,
            preview_every=preview_every(request.headers),
        )
        wanted = [task for task in found if kind_of(task) != AUTHENTICATION]
        replies = await asyncio.gather(*(collect(call, task) for task in wanted))
        return envelope([reply for of_task in replies for reply in of_task])

    @router.post("/v1/cards/{card_id}/task", summary=TASK_SUMMARY, openapi_extra=ASKED_BODY)
    async def task(card_id: str, request: Request) -> dict[str, Any]:
        await authenticate(services, request.headers.get("authorization"))
        card = services.catalog.resolve(card_id)
        asked = read_request(await request.body(), card.id)
        return task_of(asked, card, asked.ttl_seconds)

    @router.api_route("/v1", methods=["GET", "HEAD", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def other_methods() -> None:
        raise HTTPException(405, headers={"Allow": "POST"})

    @router.websocket("/v1")
    async def socket(websocket: WebSocket) -> None:
        await sessions.serve(websocket)

    return router


async def caller(services: Services, request: Request, tasks: list[object]) -> str:
    """By header, by authentication tasks in the body, or by both; each one given must be valid. Raises Unauthorized."""
    header = request.headers.get("authorization")
    keys = [task for task in tasks if isinstance(task, dict) and kind_of(task) == AUTHENTICATION]
    owner = "" if keys and header is None else await authenticate(services, header)
    for task in keys:
        key = task.get("apiKey")
        owner = await check_key(services, key if isinstance(key, str) else "")
    return owner


def kind_of(task: object) -> object:
    return task.get("taskType") if isinstance(task, dict) else None


async def collect(call: Call, task: object) -> list[Reply]:
    """All replies to one task, in the order of its results."""
    if kind_of(task) == PING:
        return [Reply(data=(PONG,))]
    return sorted([reply async for reply in answer(call, task)], key=lambda reply: reply.order)


def envelope(replies: list[Reply]) -> Response:
    """200 as soon as anything was answered; when everything failed, the status of the first error.

    `errors` is left out when there is none: a client raises as soon as the key exists.
    """
    data = [item for reply in replies for item in reply.data]
    errors: list[WireError] = [error for reply in replies for error in reply.errors]
    body: dict[str, Any] = {"data": data}
    if errors:
        body["errors"] = [error.body for error in errors]
    refused = errors and not data and not any(reply.answered for reply in replies)
    status, headers = (errors[0].status, errors[0].headers) if refused else (200, {})
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


TASK_SCHEMA = {
    "type": "object",
    "description": "One task. The fields depend on taskType; GET /v1/cards/{id}/schema gives those of imageInference.",
    "properties": {"taskType": {"type": "string"}, "taskUUID": {"type": "string", "format": "uuid"}},
    "required": ["taskType"],
}
ENVELOPE_SCHEMA = {
    "type": "object",
    "properties": {
        "data": {"type": "array", "items": {"type": "object"}},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                "required": ["code", "message"],
            },
        },
    },
    "required": ["data"],
}
REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "array", "items": TASK_SCHEMA, "minItems": 1}}},
    }
}
ASKED_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ENVELOPE_SCHEMA}}}
    for status, text in {
        200: "Results, acknowledgements, or a mixture with errors.",
        400: "Every task was refused or failed.",
        401: "No key, or not one of this server's.",
        404: "What every task asked for is not there.",
        413: "The body is too large.",
        429: "The queue is full; Retry-After says when to come back.",
    }.items()
}
