"""What other front ends need beside the two dialects: the models with their schemas, and a key's own tasks.

    GET /v1/cards                   the models, which of them can be used now, demo mode
    GET /v1/cards/{id}/schema       the JSON Schema that validates an imageInference task of this model
    GET /v1/adapters                the LoRAs this key may use
    GET /v1/tasks                   this key's tasks, newest first; search, model, cursor, limit
    GET /v1/tasks/{id}              one of them, by its own id or by the client's

The playground is built on these and on api/events.py; docs/api/events.md documents them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Query, Request

from darkroom.api.auth import authenticate
from darkroom.api.files import base_url, image_url
from darkroom.api.services import Services
from darkroom.catalog.card import Card
from darkroom.catalog.schema import task_schema
from darkroom.errors import ConfigurationError, InvalidParameter, ModelNotInstalled, NotFound, Problem
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import DIALECTS, Result, Task
from darkroom.types import ImageFormat, ImageRequest

EXTENSION = {ImageFormat.JPEG: "jpg", ImageFormat.PNG: "png", ImageFormat.WEBP: "webp"}
DEMO_SIZE = {"width": 256, "height": 256}  # what the embedded model draws best, in about a second
SCAN_PAGES = 20  # how far a search looks back at once, in pages of SCAN_ROWS tasks
SCAN_ROWS = 100
PREFERRED = "runware:400@4"  # quick and open: the first model a newcomer should meet
Authorization = Annotated[str | None, Header()]  # at module level: annotations are resolved there


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["records"])

    @router.get("/cards")
    async def cards(authorization: Authorization = None) -> dict[str, Any]:
        await authenticate(services, authorization)
        demo = services.installed.demo
        return {
            "items": [describe_card(services, card) for card in services.catalog.cards],
            "demo": f"darkroom pull {PREFERRED}" if demo else None,
        }

    @router.get("/cards/{card_id}/schema")
    async def schema(card_id: str, authorization: Authorization = None) -> dict[str, Any]:
        await authenticate(services, authorization)
        return task_schema(services.catalog.resolve(card_id))

    @router.get("/adapters")
    async def adapters(authorization: Authorization = None) -> dict[str, Any]:
        owner = await authenticate(services, authorization)
        found = services.adapters.all(owner)
        return {"items": [{"id": a.id, "name": a.name, "trigger_words": a.trigger_words} for a in found]}

    @router.get("/tasks")
    async def tasks(
        request: Request,
        search: str = "",
        model: str = "",
        cursor: str = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        authorization: Authorization = None,
    ) -> dict[str, Any]:
        owner = await authenticate(services, authorization)
        found, following = await matching(services, owner, search, model, cursor, limit)
        base = base_url(services, request)
        return {"items": await describe_tasks(services, found, base), "next": following}

    @router.get("/tasks/{task_id}")
    async def task(task_id: UUID, request: Request, authorization: Authorization = None) -> dict[str, Any]:
        owner = await authenticate(services, authorization)
        found = await find_task(services, owner, str(task_id))
        return await describe_task(services, found, base_url(services, request))

    return router


async def find_task(services: Services, owner: str, name: str) -> Task:
    """A task of this owner by its own id or by what its client called it. Raises NotFound."""
    for dialect in DIALECTS:
        try:
            return await services.store.find(owner, dialect, name)
        except NotFound:
            continue
    task = await services.store.get(name)
    if task.owner != owner:
        raise NotFound("There is no such task for this key.", what="task", parameter="taskUUID")
    return task


async def matching(
    services: Services, owner: str, search: str, model: str, cursor: str, limit: int
) -> tuple[list[Task], str | None]:
    """Tasks whose prompt has every word of search, and the cursor to go on from (None: there is no more)."""
    words = search.casefold().split()
    card = services.catalog.resolve(model).id if model else ""
    before = parse_cursor(cursor)
    found: list[Task] = []
    for _ in range(SCAN_PAGES):
        page = await services.store.recent(owner, before=before, limit=SCAN_ROWS)
        for task in page:
            before = (task.created_at, task.id)
            if (not card or task.request.card == card) and has_words(task.request, words):
                found.append(task)
                if len(found) == limit:
                    return found, make_cursor(task)
        if len(page) < SCAN_ROWS:
            return found, None
    return found, f"{before[0].isoformat()}~{before[1]}" if before else None


def has_words(request: ImageRequest, words: list[str]) -> bool:
    prompt = request.prompt.casefold()
    return all(word in prompt for word in words)


def make_cursor(task: Task) -> str:
    return f"{task.created_at.isoformat()}~{task.id}"


def parse_cursor(cursor: str) -> tuple[datetime, str] | None:
    """Raises InvalidParameter."""
    if not cursor:
        return None
    time, separator, task_id = cursor.partition("~")
    try:
        if separator:
            return datetime.fromisoformat(time), task_id
    except ValueError:
        pass
    raise InvalidParameter(
        "cursor is not one this server gave: use the `next` of the page before.",
        parameter="cursor",
        problem=Problem.FORMAT,
    )


def describe_card(services: Services, card: Card) -> dict[str, Any]:
    """One entry of GET /v1/cards."""
    try:
        located = services.installed.locate(card)
    except (ModelNotInstalled, ConfigurationError):
        located = None
    demo = located is not None and located.demo
    start = DEMO_SIZE if demo else {"width": card.defaults.width, "height": card.defaults.height}
    return {
        "id": card.id,
        "name": card.name,
        "slug": card.slug,
        "description": card.description,
        "guidance": card.guidance,
        "available": located is not None,
        "demo": demo,
        "preferred": card.id == PREFERRED,
        "start": start,
        "largest_side": (located.largest_side or None) if located else None,
        "runflow": [{"id": model.id, "edit": model.edit} for model in card.runflow],
    }


async def describe_task(services: Services, task: Task, base: str) -> dict[str, Any]:
    """A task as front ends see it: neutral names, addresses instead of ids, no wire of either dialect."""
    (record,) = await describe_tasks(services, [task], base)
    return record


async def describe_tasks(services: Services, tasks: Sequence[Task], base: str) -> list[dict[str, Any]]:
    """Several of them; their places in the queue are looked up together."""
    queued = [task.id for task in tasks if task.status is Status.QUEUED]
    positions = await services.store.queue_positions(queued) if queued else {}
    return [await _record(services, task, base, positions.get(task.id)) for task in tasks]


async def _record(services: Services, task: Task, base: str, position: int | None) -> dict[str, Any]:
    card = next((card for card in services.catalog.cards if card.id == task.request.card), None)
    return {
        "id": task.id,
        "client_id": task.external_id,
        "status": task.status,
        "position": position,
        "model": task.request.card,
        "model_name": card.name if card else task.request.card,
        "prompt": task.request.prompt,
        "request": msgspec.to_builtins(task.request),
        "references": await reference_urls(services, task, base),
        "created_at": task.created_at.isoformat(),
        "finished_at": task.finished_at.isoformat() if task.finished_at else None,
        "cost": task.cost,
        "fault": msgspec.to_builtins(task.fault) if task.fault else None,
        "results": [describe_result(task, result, base) for result in task.results],
    }


def describe_result(task: Task, result: Result, base: str) -> dict[str, Any]:
    name = f"{result.media_id}.{EXTENSION[task.request.output.format]}" if result.media_id else None
    return {
        "index": result.index,
        "seed": result.seed,
        "image_id": result.media_id,
        "url": image_url(base, name) if name else None,
        "width": result.width,
        "height": result.height,
        "nsfw": result.nsfw,
        "fault": msgspec.to_builtins(result.fault) if result.fault else None,
        **msgspec.to_builtins(result.record),
    }


async def reference_urls(services: Services, task: Task, base: str) -> dict[str, str]:
    """Addresses of the reference images that are still kept."""
    urls = {}
    for reference in task.request.references:
        try:
            urls[reference] = image_url(base, (await services.media.find(task.owner, reference)).name)
        except NotFound:
            continue
    return urls
