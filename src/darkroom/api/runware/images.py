"""imageInference: check, resolve the references, put it on record; then, for a sync task, its results as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec

from darkroom.api.inputs import ADDRESS, as_uuid, forget_images, own_picture, resolve_images
from darkroom.api.runware.call import Call, Reply, WireTask
from darkroom.api.runware.options import DIALECT, Options, options_of
from darkroom.api.runware.parse import FACE_PATHS, Parsed, Refused, fitted_size, parse
from darkroom.api.runware.render import failures, identity, item, not_uploaded
from darkroom.api.services import Services
from darkroom.catalog.card import Card
from darkroom.catalog.price import cost
from darkroom.config import EngineKind
from darkroom.errors import (
    Conflict,
    DarkroomError,
    FeatureNotInstalled,
    InputImageError,
    InvalidParameter,
    NotFound,
    Problem,
)
from darkroom.media.store import Media
from darkroom.tasks.lifecycle import is_final
from darkroom.tasks.store import ResultStored, TaskChanged
from darkroom.tasks.task import NewTask, OwedKind, Result, Task
from darkroom.types import ImageRequest

REFERENCES = "inputs.referenceImages"
UPLOAD_SECONDS = 90.0  # how long a sync task waits to hear that its upload failed
UPLOAD_POLL_SECONDS = 0.1


async def image_inference(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """One imageInference task."""
    parsed = parse(task, call.services.catalog, default_acceleration=call.services.settings.default_acceleration)
    try:
        await check_installed(call, parsed)
        if call.dry_run:
            yield Reply(data=priced(parsed))
            return
        accepted = await accept(call, task, parsed)
    except DarkroomError as error:
        raise Refused([error], parsed.card) from error
    if not parsed.options.sync:
        yield Reply(data=(identity(options_of(accepted)),))
        return
    async for reply in results(call, accepted):
        yield reply


async def check_installed(call: Call, parsed: Parsed) -> None:
    """Refuse now what could only fail later. Raises ModelNotInstalled, FeatureNotInstalled, NotFound, Conflict."""
    services, request = call.services, parsed.request
    if services.settings.engine is not EngineKind.FAKE:
        services.installed.locate(parsed.card)
    if request.check_safety and "safety" not in services.features:
        name = parsed.spelled.get("safety.checkContent", "safety")
        raise FeatureNotInstalled(
            f"No safety classifier is installed on this server, so nothing can be checked: leave `{name}` out, or "
            "install one with `darkroom pull safety` and start the server again.",
            parameter=name,
        )
    if request.faces and "faces" not in services.features:
        path = next(path for path in FACE_PATHS if path in parsed.card.parameters)
        name = parsed.spelled.get(path, path)
        raise FeatureNotInstalled(
            f"No faces can be refined on this server: leave `{name}` out. Its operator can install a detector "
            "(`darkroom pull faces --from FILE.onnx`) and what runs it (`pip install 'darkroom[faces]'`), and start "
            "the server again.",
            parameter=name,
        )
    check_callable(services, parsed.options)
    for place, use in enumerate(request.adapters):
        try:
            await asyncio.to_thread(services.adapters.find, use.adapter, call.owner)
        except NotFound as error:
            raise NotFound(error.message, what="adapter", parameter=f"lora[{place}].model") from None
    if parsed.references and not call.dry_run:
        await refuse_used(services, call.owner, parsed.options.task_uuid)


def check_callable(services: Services, options: Options) -> None:
    """Raises InvalidParameter for an address that could not be called when the pictures are there."""
    for name, url in (("webhookURL", options.webhook_url), ("uploadEndpoint", options.upload_url)):
        try:
            if url is not None:
                services.fetcher.check(url)
        except InputImageError as error:
            message = f"'{name}' cannot be used. {error.message}"
            raise InvalidParameter(message, parameter=name, problem=Problem.FORMAT, expected="string") from None


async def refuse_used(services: Services, owner: str, task_uuid: str) -> None:
    """The store refuses a used taskUUID too; asking first spares fetching its references again."""
    try:
        await services.store.find(owner, DIALECT, task_uuid.lower())
    except NotFound:
        return
    raise used(task_uuid)


def used(task_uuid: str) -> Conflict:
    return Conflict(f"taskUUID {task_uuid} was used before; ask getResponse for its results.", parameter="taskUUID")


async def accept(call: Call, task: WireTask, parsed: Parsed) -> Task:
    """Store the references, complete the request and put the task on record."""
    field = references_field(task)
    named = [own_picture(call.services, call.base, text) or text for text in parsed.references]
    references = await resolve_images(call.services, call.owner, named, field)
    try:
        for place, media in enumerate(references):
            check_shape(parsed.card, media, f"{field}[{place}]")
        return await submit(call, task, parsed, references)
    except DarkroomError:  # its references would lie there for days, and nobody would ever ask for them
        await forget_images(call.services, call.owner, named, references)
        raise


async def submit(call: Call, task: WireTask, parsed: Parsed, references: list[Media]) -> Task:
    """Put the task on record. Raises Conflict, Overloaded."""
    request = completed(call, parsed, references)
    options = msgspec.structs.replace(
        parsed.options, base_url=call.base, cost=price(parsed, request, [m.width * m.height for m in references])
    )
    stored = {
        text: media.id
        for text, media in zip(parsed.references, references, strict=True)
        if not ADDRESS.match(text) and not as_uuid(text)
    }
    new = NewTask(
        owner=call.owner,
        dialect=DIALECT,
        external_id=options.task_uuid.lower(),
        request=request,
        wire=recordable(task, stored),
        options=msgspec.to_builtins(options),
        ttl_seconds=parsed.ttl_seconds,
    )
    try:
        return await call.services.store.submit(new)
    except Conflict:
        raise used(options.task_uuid) from None


def references_field(task: WireTask) -> str:
    """Where this client put its references: an error about one of them names that place."""
    if task.get("referenceImages"):
        return "referenceImages"
    inputs = task.get("inputs")
    older = isinstance(inputs, dict) and inputs.get("references") and not inputs.get("referenceImages")
    return "inputs.references" if older else REFERENCES


def check_shape(card: Card, media: Media, parameter: str) -> None:
    """Raises InputImageError for a reference that the model cannot read."""
    short, long = sorted((media.width, media.height))
    limits = card.references
    if short < limits.min_side or long > limits.max_aspect * short:
        raise InputImageError(
            f"{parameter} is {media.width}×{media.height} pixels; each side must have at least {limits.min_side}, and "
            f"the longer one at most {limits.max_aspect:g} times the shorter.",
            parameter=parameter,
        )


def completed(call: Call, parsed: Parsed, references: list[Media]) -> ImageRequest:
    """The request with stored references, the size they give and this server's settings."""
    request = parsed.request
    width, height = request.width, request.height
    if not parsed.sized and references:
        width, height = fitted_size(parsed.card, references[0].width, references[0].height)
    return msgspec.structs.replace(
        request,
        width=width,
        height=height,
        references=tuple(media.id for media in references),
        preview_every=call.preview_every,
        output=msgspec.structs.replace(request.output, metadata=call.services.settings.metadata),
    )


def price(parsed: Parsed, request: ImageRequest, reference_pixels: list[int]) -> float:
    """What one result costs, US dollars."""
    return cost(parsed.card, request.width, request.height, request.steps, reference_pixels, 1, DIALECT)


def priced(parsed: Parsed) -> tuple[dict[str, Any], ...]:
    """The answer of a dry run: one item a result, with its cost and no image. References count as 1024² each."""
    each = price(parsed, parsed.request, [1024 * 1024] * len(parsed.references))
    return ({**identity(parsed.options), "cost": each},) * parsed.request.count


def recordable(value: Any, stored: Mapping[str, str]) -> Any:
    """The request as sent, image data replaced by the id under which it is stored. stored: data → id."""
    if isinstance(value, dict):
        return {key: recordable(inner, stored) for key, inner in value.items()}
    if isinstance(value, list):
        return [recordable(inner, stored) for inner in value]
    return stored.get(value, value) if isinstance(value, str) else value


async def results(
    call: Call, task: Task, *, skip: frozenset[int] = frozenset(), polled: bool = False
) -> AsyncIterator[Reply]:
    """Results of a task in their order, each as soon as it and those before it are there. Ends with the task.

    Failures come last, one to a reply: a client that has seen an error takes nothing more for that task.
    skip: results that the client has. polled: in the form of getResponse, with a status in each item.
    """
    queue = InOrder(skip)
    status = "success" if polled else None
    async with call.services.store.watch(task.id) as events:
        task = events.task
        for result in queue.add(task.results):
            yield await finished(call, task, result, status)
        async for event in events:
            if isinstance(event, ResultStored):
                for result in queue.add((event.result,)):
                    yield await finished(call, task, result, status)
            elif isinstance(event, TaskChanged):
                task = event.task
    if not is_final(task.status):  # the watch ended before the task did: the server stops, or the task was forgotten
        task = await call.services.store.get(task.id)
    for result in queue.rest(task.results):
        yield await finished(call, task, result, status)
    card = call.services.catalog.resolve(task.request.card)
    errors = failures(task, base=call.base, card=card, status="error" if polled else None)
    if not polled:
        errors += await upload_failures(call, task)
    for place, error in enumerate(errors):
        yield Reply(errors=(error,), order=task.request.count + place)


class InOrder:
    """Holds results back until those before them are there, so that a client's first image has the first seed."""

    def __init__(self, skip: frozenset[int]) -> None:
        self.skip = skip
        self.waiting: dict[int, Result] = {}
        self.next = 0

    def add(self, found: Iterable[Result]) -> list[Result]:
        """Pictures that are next in line now. Failed results take their place in line and are not handed out."""
        self.waiting.update((result.index, result) for result in found if result.index >= self.next)
        ready = []
        while self.next in self.waiting:
            ready.append(self.waiting.pop(self.next))
            self.next += 1
        return self._pictures(ready)

    def rest(self, found: Iterable[Result]) -> list[Result]:
        """All that are left when no more will come."""
        self.waiting.update((result.index, result) for result in found if result.index >= self.next)
        ready = [self.waiting[index] for index in sorted(self.waiting)]
        self.waiting.clear()
        return self._pictures(ready)

    def _pictures(self, ready: list[Result]) -> list[Result]:
        return [result for result in ready if result.media_id and result.index not in self.skip]


async def finished(call: Call, task: Task, result: Result, status: str | None) -> Reply:
    data = await file_of(call.services, task, result)
    found = await asyncio.to_thread(item, task, result, base=call.base, data=data, status=status)
    return Reply(data=(found,), order=result.index)


async def file_of(services: Services, task: Task, result: Result) -> bytes | None:
    """The picture's bytes where the answer carries them; None where a URL is enough, or the file is gone."""
    if not result.media_id or not options_of(task).inline:
        return None
    try:
        return (await services.media.get(result.media_id))[1]
    except NotFound:
        return None


async def upload_failures(call: Call, task: Task, *, wait: bool = True) -> list[Any]:
    """One error for each file that could not be PUT to uploadEndpoint. wait: until every upload has come to an end."""
    options: Options = options_of(task)
    if not options.upload_url:
        return []
    for _ in range(int(UPLOAD_SECONDS / UPLOAD_POLL_SECONDS)):
        uploads = [d for d in await call.services.store.deliveries(task.id) if d.owed.kind is OwedKind.UPLOAD]
        if not wait or all(delivery.state != "pending" for delivery in uploads):
            break
        await asyncio.sleep(UPLOAD_POLL_SECONDS)
    failed = [delivery for delivery in uploads if delivery.state == "failed"]
    return [not_uploaded(task, delivery, delivery.attempts[-1], base=call.base) for delivery in failed]
