"""Batches: 1 to 100 inputs of one model in one call, one callback when the last run has ended.

Every item is a run of its own. The batch itself is a document that names its runs; while it is open a second one,
owned by nobody, makes it easy to find. BatchCloser (closing.py) looks at those, and when the last run of a batch has
ended it owes the callback (written to the outbox beside the first run) and closes the batch. A crash in between at most
announces it twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import msgspec

from darkroom.api.inputs import as_uuid
from darkroom.api.runflow import runs
from darkroom.api.runflow.callbacks import owed
from darkroom.api.runflow.errors import Rejected
from darkroom.api.runflow.options import DIALECT, named_id, options_of
from darkroom.api.runflow.parse import ModelRules, RunBody, bad_callback, parse_run
from darkroom.api.runflow.render import STATUS_CODE, cost, delivery_record, instant, milliseconds, output, run_record
from darkroom.api.runflow.schema import envelope
from darkroom.api.runflow.search import FieldKind, Fields, Order, Page, Query, Selection
from darkroom.api.services import Services
from darkroom.catalog.validate import Validator
from darkroom.errors import InputImageError, InvalidParameter, NotFound
from darkroom.tasks.documents import Document
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.task import Delivery, NewTask, Owed, Task
from darkroom.types import Value

MAX_ITEMS = 100
AT_ONCE = 8  # items whose references are fetched side by side
FETCH_SECONDS = 25.0  # for the references of all items: official clients wait 30 s for an answer
KIND = "batch"  # kinds of document
OPEN = "open_batch"
NOBODY = ""
ITEM_FIELDS: Fields = {
    "id": FieldKind.TEXT,
    "sequence_index": FieldKind.NUMBER,
    "run_id": FieldKind.TEXT,
    "status_code": FieldKind.TEXT,
    "client_ref": FieldKind.TEXT,
}
ITEM_ORDER: Order = (("sequence_index", False), ("id", False))
BODY = Validator(envelope({"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": {"type": "object"}}))


class Batch(Value, frozen=True, kw_only=True):
    """What the document holds. runs: ids in the order of the inputs. completed_at: once it is closed."""

    model: str
    base_url: str
    runs: tuple[str, ...]
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    completed_at: datetime | None = None


class Standing(Value, frozen=True, kw_only=True):
    """A batch and how its runs stand. Runs that have expired are missing."""

    id: str
    owner: str
    batch: Batch
    created_at: datetime
    tasks: tuple[Task, ...]

    @property
    def status(self) -> str:
        """succeeded, failed and canceled when all of them are; partial_succeeded for a mixture with success in it."""
        codes = {STATUS_CODE[task.status] for task in self.tasks}
        if not all(is_final(task.status) for task in self.tasks):
            return "queued" if codes == {"queued"} else "running"
        if len(codes) == 1:
            return codes.pop()
        return "partial_succeeded" if "succeeded" in codes else "failed"

    @property
    def ended(self) -> bool:
        return all(is_final(task.status) for task in self.tasks)

    @property
    def completed_at(self) -> datetime | None:
        ends = [task.finished_at for task in self.tasks if task.finished_at]
        return self.batch.completed_at or (max(ends) if self.ended and ends else None)

    def count(self, status: Status) -> int:
        return sum(task.status is status for task in self.tasks)


async def create(
    services: Services, owner: str, base: str, rules: ModelRules, body: Mapping[str, Any], key: str | None
) -> dict[str, Any]:
    """Accept all items or none. key: the caller's idempotency key; after a crash in mid-call the runs it left are found
    again, and with them their batch. Raises Rejected with every violation of every item, Overloaded, Conflict."""
    items = parse_batch(rules, body)
    runs.check_callback(services, body.get("callback_url"))
    batch_id = str(uuid4())
    limit = asyncio.Semaphore(AT_ONCE)
    deadline = asyncio.get_running_loop().time() + FETCH_SECONDS

    async def prepare(index: int, run: RunBody) -> NewTask:
        item_key = named_id("item", owner, key, str(index)) if key else None
        try:
            async with limit, asyncio.timeout_at(deadline if run.images else None):
                return await runs.prepare(services, owner, base, rules, run, key=item_key, batch=(batch_id, index))
        except TimeoutError:
            message = (
                f"'{run.image_field}' was not fetched in time: all pictures of a batch have {FETCH_SECONDS:g} s. "
                "Upload them first (POST /v1/asset-uploads), or send fewer items."
            )
            raise Rejected([InputImageError(message, parameter=run.image_field)]) from None

    prepared = await asyncio.gather(*(prepare(i, run) for i, run in enumerate(items)), return_exceptions=True)
    news = [new for new in prepared if isinstance(new, NewTask)]
    if len(news) < len(items):
        raise _failure(prepared, _named(body))
    tasks = await services.store.submit_all(news)
    if key:
        runs.check_same(tasks, [runs.fingerprint_of(rules, run) for run in items])
        batch_id = options_of(tasks[0]).batch_id or batch_id
    batch = Batch(
        model=rules.model.id,
        base_url=base,
        runs=tuple(task.id for task in tasks),
        callback_url=body.get("callback_url"),
        metadata=body.get("metadata"),
    )
    document = await services.store.documents.put(owner, KIND, batch_id, msgspec.to_builtins(batch))
    await services.store.documents.put(NOBODY, OPEN, batch_id, {"owner": owner})
    return record(await _standing(services, document))


def parse_batch(rules: ModelRules, body: Mapping[str, Any]) -> list[RunBody]:
    """Every item as a run. `input` is a list of inputs; the guide's `items: [{input: …}]` is taken too."""
    named = _named(body)
    found = [*BODY.violations({**body, "input": body.get(named)}), *bad_callback(body)]
    if found:
        raise Rejected([_renamed(each, "input", named) for each in found])
    items: list[RunBody] = []
    violations: list[InvalidParameter | InputImageError] = []
    for index, item in enumerate(body[named]):
        inner = item.get("input") if named == "items" else {k: v for k, v in item.items() if k != "client_ref"}
        try:
            items.append(parse_run(rules, {"input": inner, "client_ref": item.get("client_ref")}))
        except Rejected as error:
            place = _place(named, index)
            own = f"{named}[{index}].client_ref"
            violations.extend(_renamed(_renamed(each, "input", place), "client_ref", own) for each in error.violations)
    if violations:
        raise Rejected(violations)
    return items


def _named(body: Mapping[str, Any]) -> str:
    """What the list of inputs is called: items when the guide's form was sent."""
    return "items" if body.get("input") is None and "items" in body else "input"


def _place(named: str, index: int) -> str:
    """Where the input of an item stands in the body."""
    return f"items[{index}].input" if named == "items" else f"input[{index}]"


def _renamed(violation: InvalidParameter | InputImageError, old: str, new: str) -> InvalidParameter | InputImageError:
    """The same about an item: 'input.prompt' becomes 'input[3].prompt'."""

    def rename(path: str) -> str:
        inside = path == old or path.startswith((f"{old}.", f"{old}["))
        return f"{new}{path[len(old) :]}" if inside else path

    paths = (violation.parameter,) if isinstance(violation.parameter, str) else violation.parameter or ()
    message = violation.message
    for path in sorted(paths, key=len, reverse=True):
        message = message.replace(f"'{path}'", f"'{rename(path)}'")
    renamed = tuple(map(rename, paths)) if len(paths) > 1 else rename(paths[0])
    if isinstance(violation, InputImageError):
        return InputImageError(message, parameter=renamed)
    return InvalidParameter(
        message,
        parameter=renamed,
        problem=violation.problem,
        expected=violation.expected,
        allowed=violation.allowed,
    )


def _failure(prepared: Sequence[NewTask | BaseException], named: str) -> BaseException:
    """Which of the items' errors the caller is told: all about inputs together, else the first of another kind."""
    errors = [error for error in prepared if isinstance(error, BaseException)]
    rejected: list[InvalidParameter | InputImageError] = []
    for index, error in enumerate(prepared):
        if isinstance(error, Rejected):
            rejected.extend(_renamed(each, "input", _place(named, index)) for each in error.violations)
    return next((error for error in errors if not isinstance(error, Rejected)), Rejected(rejected))


async def find(services: Services, owner: str, batch_id: str) -> Standing:
    """Raises NotFound(what="batch")."""
    if not as_uuid(batch_id):
        raise NotFound(f"There is no batch {batch_id[:64]!r}.", what=KIND)
    return await _standing(services, await services.store.documents.get(owner, KIND, batch_id.lower()))


async def _standing(services: Services, document: Document) -> Standing:
    batch = msgspec.convert(document.value, Batch)
    found = await _tasks(services, document.owner, batch.runs)
    return Standing(
        id=document.id,
        owner=document.owner,
        batch=batch,
        created_at=document.created_at,
        tasks=tuple(found[run] for run in batch.runs if run in found),
    )


async def _tasks(services: Services, owner: str, names: Sequence[str]) -> dict[str, Task]:
    """The runs of a batch by id. Made together they have neighbouring ids, so one page of the store has them all."""
    found: dict[str, Task] = {}
    cursor = str(UUID(int=UUID(min(names)).int - 1))
    while True:
        page = await services.store.search(owner, DIALECT, newest_first=False, cursor=cursor, limit=runs.SCAN_ROWS)
        found.update((task.id, task) for task in page if task.id in names)
        if len(page) < runs.SCAN_ROWS or page[-1].id >= max(names):
            return found
        cursor = page[-1].id


def record(standing: Standing) -> dict[str, Any]:
    """The batch with its lean items."""
    batch, tasks = standing.batch, standing.tasks
    started = [task.started_at for task in tasks if task.started_at]
    return {
        "id": standing.id,
        "org_id": None,
        "target_type": "model",
        "target_type_code": "model",
        "target_id": named_id("model", batch.model),
        "model": batch.model,
        "status_code": standing.status,
        "source_code": "api",
        "items_total": len(batch.runs),
        "items_succeeded": standing.count(Status.SUCCEEDED),
        "items_failed": standing.count(Status.FAILED),
        "items_cancelled": standing.count(Status.CANCELLED),
        "input": [task.wire.get("input") for task in tasks],
        "cost": total(tasks) if standing.ended else None,
        "output": batch_output(standing, batch.base_url) if standing.ended else None,
        "metadata": batch.metadata,
        "callback_url": batch.callback_url,
        "duration_ms": milliseconds(standing.created_at, standing.completed_at),
        "failure_code": None,
        "failure_message": None,
        "failure_stage_code": None,
        "created_by": None,
        "created_at": instant(standing.created_at),
        "started_at": instant(min(started)) if started else None,
        "completed_at": instant(standing.completed_at),
        "links": None,
        "items": [item_handle(task) for task in tasks],
    }


def item_handle(task: Task) -> dict[str, Any]:
    options = options_of(task)
    return {
        "id": task.external_id,
        "sequence_index": options.batch_index,
        "run_id": task.id,
        "status_code": STATUS_CODE[task.status],
        "client_ref": options.client_ref,
    }


def items(standing: Standing, base: str, query: Query) -> Page[dict[str, Any]]:
    """One page of the items with everything about each."""
    selection: Selection[dict[str, Any]] = Selection(query)
    selection.add((item_handle(task), item_record(standing.id, task, base)) for task in standing.tasks)
    return selection.page()


def item_record(batch_id: str, task: Task, base: str) -> dict[str, Any]:
    run = run_record(task, base)
    same = ("created_at", "input", "cost", "output", "error", "started_at", "completed_at")
    failures = ("failure_code", "failure_message")
    return {**item_handle(task), "batch_id": batch_id, **{name: run[name] for name in same + failures}, "run": run}


def total(tasks: Sequence[Task]) -> str:
    return f"{sum((Decimal(cost(task) or '0') for task in tasks), Decimal(0)).normalize():f}"


def batch_output(standing: Standing, base: str) -> dict[str, Any] | None:
    """The pictures of all runs that succeeded, in order; None when none did."""
    made = [task for task in standing.tasks if task.status is Status.SUCCEEDED]
    outputs = [
        {**one, "run_id": task.id, "sequence_index": options_of(task).batch_index}
        for task in made
        for one in output(task, base)["outputs"]
    ]
    return {"outputs": outputs} if made else None


# The callback of a batch


def owed_for(standing: Standing) -> Owed:
    """The callback of a batch that has ended; its body is frozen here."""
    status = "cancelled" if standing.status == "canceled" else standing.status
    payload = {
        "event": f"batch.{status}",
        "batch_id": standing.id,
        "status": status,
        "output": batch_output(standing, standing.batch.base_url),
        "duration_ms": milliseconds(standing.created_at, standing.completed_at),
        "created_at": instant(standing.created_at),
        "completed_at": instant(standing.completed_at),
        "metadata": standing.batch.metadata,
    }
    return owed(standing.batch.callback_url or "", msgspec.json.encode(payload), standing.id)


async def callback_history(services: Services, standing: Standing) -> list[dict[str, Any]]:
    return [delivery_record(delivery, {"batch_id": standing.id}) for delivery in await deliveries(services, standing)]


async def redeliver(services: Services, standing: Standing) -> dict[str, Any]:
    """Raises InvalidParameter when there is nothing to deliver or a delivery is under way."""
    if not standing.batch.callback_url:
        raise runs.refused("callback_url", "This batch has no callback_url, so there is nothing to deliver.")
    if not standing.ended or not standing.tasks:
        raise runs.refused("batch_id", f"This batch is {standing.status}; its callback is sent when it has ended.")
    runs.check_none_pending(await deliveries(services, standing))
    delivery = await services.store.owe(standing.tasks[0].id, owed_for(standing))
    return delivery_record(delivery, {"batch_id": standing.id})


async def deliveries(services: Services, standing: Standing) -> list[Delivery]:
    if not standing.tasks:
        return []
    found = await services.store.deliveries(standing.tasks[0].id)
    return [delivery for delivery in found if delivery.owed.headers.get("Runflow-Request-Id") == standing.id]
