"""The life of a run: create, wait, read, list, cancel; its callbacks' history."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from darkroom.api.files import image_url
from darkroom.api.inputs import as_uuid
from darkroom.api.runflow.assets import resolve_references
from darkroom.api.runflow.callbacks import RunflowAnnouncer, owed_for_run
from darkroom.api.runflow.errors import Rejected
from darkroom.api.runflow.options import DIALECT, RunOptions, as_options, fingerprint, options_of
from darkroom.api.runflow.parse import ModelRules, RunBody, image_request, warnings_of
from darkroom.api.runflow.render import (
    STATUS_CODE,
    delivery_record,
    log_lines,
    request_id,
    run_record,
    search_row,
)
from darkroom.api.runflow.search import Page, Query, Selection
from darkroom.api.services import Services
from darkroom.errors import Conflict, InputImageError, InvalidParameter, NotFound, Problem
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.store import TaskChanged
from darkroom.tasks.task import Delivery, NewTask, Task
from darkroom.types import Acceleration, Media

log = structlog.get_logger(__name__)
SAFETY = "safety"  # of Services.features
SCAN_ROWS = 200  # tasks read at once while a listing looks for its page
CANCELLATION = "cancellation"  # kind of document: the reason somebody gave
STATUS_OF = {code: status for status, code in STATUS_CODE.items()}


async def create(
    services: Services, owner: str, base: str, rules: ModelRules, run: RunBody, *, key: str | None = None
) -> Task:
    """Accept a run: its references stored, its task on disk.

    key: the caller's idempotency key; after a crash in mid-call the task it left is found again. Raises Rejected,
    Overloaded, ModelNotInstalled, Conflict (the run that was left is another one).
    """
    check_callback(services, run.callback_url)
    task = await services.store.submit(await prepare(services, owner, base, rules, run, key=key))
    if key:
        check_same([task], [fingerprint_of(rules, run)])
    return task


async def prepare(
    services: Services,
    owner: str,
    base: str,
    rules: ModelRules,
    run: RunBody,
    *,
    key: str | None = None,
    batch: tuple[str, int] | None = None,
) -> NewTask:
    """What a run submits, with its references stored. batch: (id, position) when the run is an item of one. Raises
    Rejected, ModelNotInstalled."""
    await asyncio.to_thread(check_installed, services, rules)
    references = await resolve_references(services, owner, base, run.images, run.image_field)
    return _new_task(services, owner, base, rules, run, references, key, batch)


def check_callback(services: Services, url: str | None) -> None:
    """Raises Rejected for an address inside the operator's network that is not to be called, said before the pictures
    are made rather than after."""
    try:
        if url is not None:
            services.fetcher.check(url)
    except InputImageError as error:
        message = f"'callback_url' cannot be used. {error.message}"
        raise Rejected([InvalidParameter(message, parameter="callback_url", problem=Problem.FORMAT)]) from None


def check_same(tasks: Sequence[Task], fingerprints: Sequence[str]) -> None:
    """Raises Conflict when what an idempotency key left is not what is asked for now."""
    if [options_of(task).fingerprint for task in tasks] != list(fingerprints):
        raise Conflict("This Idempotency-Key was used with another request body; use a new key.")


def fingerprint_of(rules: ModelRules, run: RunBody) -> str:
    """Of what was asked for, as it was sent."""
    return fingerprint(rules.model.id, run.input, run.callback_url, run.metadata, run.client_ref)


def check_installed(services: Services, rules: ModelRules) -> None:
    """Raises ModelNotInstalled. In demo mode the embedded model serves every card. Looks at the disk."""
    if not services.installed.demo:
        services.installed.locate(rules.card)


def _new_task(
    services: Services,
    owner: str,
    base: str,
    rules: ModelRules,
    run: RunBody,
    references: Sequence[Media],
    key: str | None,
    batch: tuple[str, int] | None,
) -> NewTask:
    can_check = SAFETY in services.features
    request = image_request(
        run,
        rules.card,
        [(media.id, media.width, media.height) for media in references],
        acceleration=acceleration(services, rules),
        can_check_safety=can_check,
        metadata=services.settings.metadata,
    )
    options = RunOptions(
        model=rules.model.id,
        base_url=base,
        callback_url=run.callback_url,
        metadata=run.metadata,
        client_ref=run.client_ref,
        fingerprint=fingerprint_of(rules, run),
        batch_id=batch[0] if batch else None,
        batch_index=batch[1] if batch else 0,
        ignored=run.ignored,
        warnings=warnings_of(run, rules.card, can_check_safety=can_check),
    )
    return NewTask(
        owner=owner,
        dialect=DIALECT,
        external_id=str(uuid4()),
        request=request,
        wire={"input": without_data(run, references, base)},
        options=as_options(options),
        ttl_seconds=services.settings.keep_seconds,
        idempotency_key=key,
    )


def acceleration(services: Services, rules: ModelRules) -> Acceleration:
    """The server's default, else the card's."""
    named = services.settings.default_acceleration
    return Acceleration(named) if named else rules.card.defaults.acceleration


def without_data(run: RunBody, references: Sequence[Media], base: str) -> dict[str, Any]:
    """`input` as sent, but for data URIs: their bytes are stored once, the run keeps an address."""
    kept = [
        image_url(base, media.name) if text[:5].lower() == "data:" else text
        for text, media in zip(run.images, references, strict=True)
    ]
    if not kept:
        return run.input
    name = run.image_field.removeprefix("input.")
    unused = {"image_urls", "image_url"} - {name}  # the other name of the field, when both were given
    given = {field: value for field, value in run.input.items() if field not in unused}
    return given | {name: kept if name == "image_urls" else kept[0]}


async def find(services: Services, owner: str, run_id: str) -> Task:
    """Raises NotFound(what="task"), also for another owner's run and for a task that is no run."""
    known = as_uuid(run_id)
    with suppress(NotFound):
        task = await services.store.get(known) if known else None
        if task is not None and task.owner == owner and task.dialect == DIALECT:
            return task
    raise NotFound(f"There is no run {run_id[:64]!r}, or it has expired.", what="task")


async def wait_for_end(services: Services, task: Task, seconds: float) -> Task:
    """The task once it has ended, or as it stands after so many seconds."""
    async with services.store.watch(task.id) as events:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for event in events:
                    if isinstance(event, TaskChanged) and is_final(event.task.status):
                        return event.task
    return await services.store.get(task.id)


async def synchronous_record(services: Services, base: str, task: Task, seconds: float) -> dict[str, Any]:
    """The answer of a sync_mode request: the result if it is there in time, else the record as it stands."""
    task = await wait_for_end(services, task, seconds)
    inline: dict[str, str] = {}
    if services.settings.inline_outputs and task.status is Status.SUCCEEDED:
        inline = {
            result.media_id: await data_uri(services, result.media_id) for result in task.results if result.media_id
        }
    return run_record(task, base, inline)


async def data_uri(services: Services, media_id: str) -> str:
    media, data = await services.media.get(media_id)
    encoded = await asyncio.to_thread(base64.b64encode, data)
    return f"data:{media.content_type};base64,{encoded.decode()}"


async def listing(services: Services, owner: str, query: Query) -> Page[Task]:
    """One page of this owner's runs. Sorted by age it reads just that page; by anything else, all of them."""
    selection: Selection[Task] = Selection(query)
    wanted = _pushed_down(query)
    if wanted is None:
        return selection.page()
    newest_first = query.by_age is not False
    cursor = str(query.position[-1]) if query.by_age is not None and query.position else None
    while True:
        tasks = await services.store.search(
            owner, DIALECT, newest_first=newest_first, cursor=cursor, limit=SCAN_ROWS, **wanted
        )
        selection.add((search_row(task), task) for task in tasks)
        if len(tasks) < SCAN_ROWS or (query.by_age is not None and selection.full):
            return selection.page()
        cursor = tasks[-1].id


def _pushed_down(query: Query) -> dict[str, Any] | None:
    """What of the filter the store can look for itself; None when nothing can match."""
    wanted: dict[str, Any] = {}
    if query.filter is None:
        return wanted
    if (codes := query.filter.demands("status_code")) is not None:
        wanted["statuses"] = [STATUS_OF[code] for code in codes if code in STATUS_OF]
        if not wanted["statuses"]:
            return None
    if (references := query.filter.demands("client_ref")) is not None:
        if len(references) == 1:
            wanted["client_ref"] = next(iter(references))
        elif not references:
            return None
    return wanted


async def cancel(services: Services, task: Task, reason: str | None) -> tuple[Task, bool]:
    """(run, True) when this call cancelled it. The engine drops it between two denoising steps."""
    if is_final(task.status):
        return task, False
    now = datetime.now(UTC)
    owed = RunflowAnnouncer().on_end(msgspec.structs.replace(task, finished_at=now), Status.CANCELLED, None)
    task, cancelled = await services.store.cancel(task.id, owed, at=now)
    if cancelled:
        await services.pool.cancel(task.id)
        log.info("run_cancelled", run=task.id, reason=reason)
        if reason:
            await services.store.documents.put(task.owner, CANCELLATION, task.id, {"reason": reason})
    return task, cancelled


async def logs(services: Services, task: Task) -> list[dict[str, Any]]:
    reason = None
    if task.status is Status.CANCELLED:
        with suppress(NotFound):
            reason = (await services.store.documents.get(task.owner, CANCELLATION, task.id)).value["reason"]
    return log_lines(task, await own_deliveries(services, task), reason)


async def callback_history(services: Services, task: Task) -> list[dict[str, Any]]:
    return [_delivery(task, delivery) for delivery in await own_deliveries(services, task)]


async def own_deliveries(services: Services, task: Task) -> list[Delivery]:
    """Of this run's own callback. The callback of a batch is kept beside its first run, and is not one of them."""
    found = await services.store.deliveries(task.id)
    return [one for one in found if one.owed.headers.get("Runflow-Request-Id") == request_id(task)]


async def redeliver(services: Services, task: Task) -> dict[str, Any]:
    """Owe the callback once more, with a payload of the run as it is now. Raises InvalidParameter."""
    options = options_of(task)
    if not options.callback_url:
        raise refused("callback_url", "This run has no callback_url, so there is nothing to deliver.")
    if not is_final(task.status):
        raise refused("run_id", f"This run is {STATUS_CODE[task.status]}; its callback is sent when it has ended.")
    check_none_pending(await own_deliveries(services, task))
    owed = owed_for_run(task, task.status, task.finished_at or task.created_at)
    return _delivery(task, await services.store.owe(task.id, owed))


def check_none_pending(deliveries: Sequence[Delivery]) -> None:
    if any(delivery.state == "pending" for delivery in deliveries):
        raise refused("run_id", "A delivery of this callback is under way; wait until it has succeeded or failed.")


def refused(parameter: str, message: str) -> InvalidParameter:
    return InvalidParameter(message, parameter=parameter, problem=Problem.INCOMPATIBLE)


def _delivery(task: Task, delivery: Delivery) -> dict[str, Any]:
    return delivery_record(delivery, {"run_id": task.id})
