"""The runs API over HTTP: every endpoint in one list. docs/api/runflow.md is its manual.

POST /v1/models/{owner}/{slug…}/runs                 → runs.create
GET  /v1/runs, /v1/runs/{id}, …/logs, …/callback     → runs, render
POST /v1/models/{owner}/{slug…}/batches              → batches.create
POST /v1/asset-uploads, PUT …/content, …             → assets
GET  /v1/models, /v1/public/models                   → models
POST /v1/callback-secrets                            → secrets
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from darkroom.api.auth import authenticate
from darkroom.api.files import base_url
from darkroom.api.health import ANSWER_SECONDS, database_ready, engine_status, model_mode
from darkroom.api.runflow import assets, batches, runs, secrets
from darkroom.api.runflow.errors import Rejected, answer, flat
from darkroom.api.runflow.models import FIELDS, ORDER, Models
from darkroom.api.runflow.options import fingerprint, named_id
from darkroom.api.runflow.parse import parse_run, read_json
from darkroom.api.runflow.render import STATUSES, run_record
from darkroom.api.runflow.schema import envelope
from darkroom.api.runflow.search import NEWEST_FIRST, RUN_FIELDS, Fields, Order, Page, Query, parse_query, project
from darkroom.api.services import Services
from darkroom.catalog.validate import Validator
from darkroom.errors import DarkroomError, InvalidParameter, Problem, StorageError
from darkroom.version import VERSION

MAX_KEY = 255
SYNC_MARGIN_SECONDS = 60.0  # beyond the longest wait before a call is believed dead: its references are fetched too
UNLIMITED_CENTS = 100_000_000  # there is no billing: a balance that no client finds too low
CANCELLATION: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string", "minLength": 3, "maxLength": 500}},
}
INPUT = {"type": "object", "description": "GET /v1/models/{owner}/{slug} lists the fields of a model."}
BODIES: dict[str, dict[str, Any]] = {  # by endpoint, for the OpenAPI document
    "create_run": envelope(INPUT),
    "create_batch": envelope({"type": "array", "minItems": 1, "maxItems": batches.MAX_ITEMS, "items": INPUT}),
    "open_upload": assets.SCHEMA,
    "create_secret": secrets.SCHEMA,
    "cancel_run": CANCELLATION,
}
CHECK_CANCELLATION = Validator(CANCELLATION)

Answer = tuple[int, Any]  # HTTP status and body


class FlatRoute(APIRoute):
    """Whatever an endpoint raises is answered in this dialect's shape."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except (DarkroomError, HTTPException) as error:
                return flat(error)

        return guarded


def routes(services: Services) -> APIRouter:
    """Specific paths come before those with parameters: /runs/statuses before /runs/{id}."""
    api = RunsApi(services)
    router = APIRouter(prefix="/v1", tags=["runs"], route_class=FlatRoute)
    for method, path, endpoint in (
        ("POST", "/models/{model:path}/runs", api.create_run),
        ("POST", "/models/{model:path}/batches", api.create_batch),
        ("GET", "/models", api.list_models),
        ("GET", "/public/models", api.list_public_models),
        ("GET", "/models/{model:path}/runs", api.only_post),
        ("GET", "/models/{model:path}/batches", api.only_post),
        ("GET", "/models/{model:path}", api.read_model),
        ("GET", "/runs", api.list_runs),
        ("GET", "/runs/statuses", api.list_statuses),
        ("GET", "/runs/{run_id}", api.read_run),
        ("GET", "/runs/{run_id}/logs", api.read_logs),
        ("GET", "/runs/{run_id}/callback", api.read_callbacks),
        ("POST", "/runs/{run_id}/callback-redeliveries", api.redeliver),
        ("POST", "/admin/runs/{run_id}/cancellation", api.cancel_run),
        ("GET", "/batches/{batch_id}", api.read_batch),
        ("GET", "/batches/{batch_id}/items", api.list_items),
        ("GET", "/batches/{batch_id}/callback", api.read_batch_callbacks),
        ("POST", "/batches/{batch_id}/callback-redeliveries", api.redeliver_batch),
        ("POST", "/asset-uploads", api.open_upload),
        ("PUT", "/asset-uploads/{asset_id}/content", api.receive_upload),
        ("POST", "/asset-uploads/{asset_id}/confirmations", api.confirm_upload),
        ("GET", "/assets/{asset_id}", api.read_asset),
        ("POST", "/callback-secrets", api.create_secret),
        ("GET", "/callback-secrets", api.list_secrets),
        ("DELETE", "/callback-secrets/{secret_id}", api.disable_secret),
        ("GET", "/billing/balance", api.read_balance),
        ("GET", "/auth/me", api.read_me),
        ("GET", "/health", api.read_health),
        ("GET", "/readiness", api.read_readiness),
    ):
        body = BODIES.get(endpoint.__name__)
        extra = {"requestBody": {"content": {"application/json": {"schema": body}}}} if body else None
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_class=Response,
            openapi_extra=extra,
            include_in_schema=endpoint != api.only_post,
        )
    return router


class RunsApi:
    """One method per endpoint: who is calling, what is asked, and the part that does it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.models = Models(services)

    # Runs

    async def create_run(self, request: Request, model: str) -> Response:
        """Create a run. 201 with its record; with input.sync_mode after it has ended or the wait is over."""
        deadline = time.monotonic() + self.services.settings.sync_seconds
        owner, base = await self.caller(request), base_url(self.services, request)
        rules = self.models.rules(with_owner(model))
        body = read_json(await request.body())

        async def create() -> Answer:
            run = parse_run(rules, body)
            task = await runs.create(self.services, owner, base, rules, run, key=idempotency_key(request))
            if not run.sync:
                return 201, run_record(task, base)
            return 201, await runs.synchronous_record(self.services, base, task, deadline - time.monotonic())

        return await self.once(request, owner, body, create)

    async def read_run(self, request: Request, run_id: str) -> Response:
        """One run as it stands."""
        task = await runs.find(self.services, await self.caller(request), run_id)
        return answer(run_record(task, base_url(self.services, request)))

    async def list_runs(self, request: Request) -> Response:
        """This key's runs, newest first. limit, pq, from_prev, q, fields, sort_by."""
        owner, base = await self.caller(request), base_url(self.services, request)
        query = self.query(request, RUN_FIELDS)
        page = await runs.listing(self.services, owner, query)
        return listed(page, [run_record(task, base) for task in page.items], query)

    async def list_statuses(self, request: Request) -> Response:
        """The states a run can be in."""
        await self.caller(request)
        names = ("code", "name", "is_terminal", "description")
        return answer([dict(zip(names, status, strict=True)) for status in STATUSES])

    async def read_logs(self, request: Request, run_id: str) -> Response:
        """What happened to a run, oldest first."""
        task = await runs.find(self.services, await self.caller(request), run_id)
        lines = await runs.logs(self.services, task)
        return answer({"items": lines, **cursors(None, None, None)})

    async def cancel_run(self, request: Request, run_id: str) -> Response:
        """Stop a run between two denoising steps. 201 when this call did, 200 when it had ended already."""
        owner = await self.caller(request)
        body = await optional_json(request)
        if found := CHECK_CANCELLATION.violations(body):
            raise Rejected(found)
        task = await runs.find(self.services, owner, run_id)
        task, cancelled = await runs.cancel(self.services, task, body.get("reason"))
        return answer(run_record(task, base_url(self.services, request)), 201 if cancelled else 200)

    async def read_callbacks(self, request: Request, run_id: str) -> Response:
        """The deliveries of a run's callback with every attempt, oldest first."""
        task = await runs.find(self.services, await self.caller(request), run_id)
        return answer(await runs.callback_history(self.services, task))

    async def redeliver(self, request: Request, run_id: str) -> Response:
        """Deliver the callback again, with a payload of the run as it is now."""
        task = await runs.find(self.services, await self.caller(request), run_id)
        return answer(await runs.redeliver(self.services, task), 201)

    # Batches

    async def create_batch(self, request: Request, model: str) -> Response:
        """Create 1 to 100 runs of one model. 201 with the batch; all of them or none."""
        owner, base = await self.caller(request), base_url(self.services, request)
        rules = self.models.rules(with_owner(model))
        body = read_json(await request.body())

        async def create() -> Answer:
            return 201, await batches.create(self.services, owner, base, rules, body, idempotency_key(request))

        return await self.once(request, owner, body, create)

    async def read_batch(self, request: Request, batch_id: str) -> Response:
        """A batch with a short entry for each of its runs."""
        return answer(batches.record(await batches.find(self.services, await self.caller(request), batch_id)))

    async def list_items(self, request: Request, batch_id: str) -> Response:
        """The runs of a batch in full, in the order of its inputs."""
        standing = await batches.find(self.services, await self.caller(request), batch_id)
        query = self.query(request, batches.ITEM_FIELDS, batches.ITEM_ORDER)
        page = batches.items(standing, base_url(self.services, request), query)
        return listed(page, page.items, query)

    async def read_batch_callbacks(self, request: Request, batch_id: str) -> Response:
        """The deliveries of a batch's callback."""
        standing = await batches.find(self.services, await self.caller(request), batch_id)
        return answer(await batches.callback_history(self.services, standing))

    async def redeliver_batch(self, request: Request, batch_id: str) -> Response:
        """Deliver a batch's callback again."""
        standing = await batches.find(self.services, await self.caller(request), batch_id)
        return answer(await batches.redeliver(self.services, standing), 201)

    # Models

    async def list_models(self, request: Request) -> Response:
        """The models this server can serve, with their inputs."""
        await self.caller(request)
        return await self.list_public_models(request)

    async def list_public_models(self, request: Request) -> Response:
        """The same without a key."""
        query = self.query(request, FIELDS, ORDER)
        page = await self.models.listing(query)
        return listed(page, page.items, query)

    async def only_post(self, request: Request, model: str) -> Response:
        """405: runs and batches are created here; they are listed and read elsewhere."""
        await self.caller(request)
        told = "This address takes POST only. GET /v1/runs lists runs, GET /v1/batches/{id} reads a batch."
        raise HTTPException(405, told, {"Allow": "POST"})

    async def read_model(self, request: Request, model: str) -> Response:
        """One model by owner and slug."""
        await self.caller(request)
        return answer(await self.models.find(model))

    # Uploads

    async def open_upload(self, request: Request) -> Response:
        """Announce a file; 201 with the address to PUT it to."""
        owner, base = await self.caller(request), base_url(self.services, request)
        body = read_json(await request.body())

        async def create() -> Answer:
            return 201, await assets.open_upload(self.services, owner, base, body)

        return await self.once(request, owner, body, create)

    async def receive_upload(self, request: Request, asset_id: str) -> Response:
        """The bytes of an announced file. No key: the address is the permission."""
        token = request.query_params.get("token", "")
        await assets.check_upload(self.services, asset_id, token, request.headers.get("content-type", ""))
        await assets.receive(self.services, asset_id, await request.body())
        return Response(status_code=200)

    async def confirm_upload(self, request: Request, asset_id: str) -> Response:
        """The file is there: 201 with the asset."""
        owner, base = await self.caller(request), base_url(self.services, request)
        await optional_json(request)
        return answer(await assets.confirm(self.services, owner, base, asset_id), 201)

    async def read_asset(self, request: Request, asset_id: str) -> Response:
        """An upload, or any picture of this key."""
        owner, base = await self.caller(request), base_url(self.services, request)
        return answer(await assets.read(self.services, owner, base, asset_id))

    # Account

    async def create_secret(self, request: Request) -> Response:
        """A new callback secret; plain_secret is shown this once."""
        owner = await self.caller(request)
        body = await optional_json(request)

        async def create() -> Answer:
            return 201, await secrets.create(self.services.store.documents, owner, body)

        return await self.once(request, owner, body, create)

    async def list_secrets(self, request: Request) -> Response:
        """This key's callback secrets, newest first, without the secrets themselves."""
        found = await secrets.listing(self.services.store.documents, await self.caller(request))
        return answer({"items": found, **cursors(None, None, None)})

    async def disable_secret(self, request: Request, secret_id: str) -> Response:
        """Sign with this secret no more."""
        return answer(await secrets.disable(self.services.store.documents, await self.caller(request), secret_id))

    async def read_balance(self, request: Request) -> Response:
        """There is no billing here: a balance that never runs out."""
        await self.caller(request)
        return answer({"balance_cents": UNLIMITED_CENTS, "currency": "USD", "unlimited": True})

    async def read_me(self, request: Request) -> Response:
        """Whom the key belongs to; 200 says that it works."""
        owner = await self.caller(request)
        organisation = {
            "id": named_id("org", owner),
            "name": "Darkroom",
            "slug": "darkroom",
            "plan_code": "self_hosted",
        }
        scopes = ["runs:create", "runs:read", "assets:create", "assets:read"]
        return answer(
            {
                "id": named_id("user", owner),
                "email": f"{owner}@localhost",
                **dict.fromkeys(("first_name", "last_name", "avatar_url", "timezone", "locale_code")),
                "email_verified_at": None,
                "memberships": [{"org": organisation, "role_code": "owner", "scopes": scopes}],
            }
        )

    # Health

    async def read_health(self, request: Request) -> Response:
        """The process answers. No key."""
        mode = model_mode(self.services)
        return answer({"status": "ok", "ok": True, "version": VERSION, "model": mode})

    async def read_readiness(self, request: Request) -> Response:
        """Whether runs can be taken and made, part by part; 503 when one of them cannot. No key."""
        checks = {
            "database": await database_ready(self.services),
            "media": await media_ready(self.services),
            "engine": (await engine_status(self.services)).ready,
        }
        ready = all(checks.values())
        states = {name: "ok" if fine else "unavailable" for name, fine in checks.items()}
        return answer({"status": "ready" if ready else "not_ready", "checks": states}, 200 if ready else 503)

    # Parts

    async def caller(self, request: Request) -> str:
        return await authenticate(self.services, request.headers.get("authorization"))

    def query(self, request: Request, fields: Fields, order: Order = NEWEST_FIRST) -> Query:
        return parse_query(request.query_params, fields, order)

    async def once(self, request: Request, owner: str, body: object, work: Callable[[], Awaitable[Answer]]) -> Response:
        """With an Idempotency-Key: one answer per key and body; another body is a Conflict, errors are not kept."""
        key = idempotency_key(request)
        if key is None:
            status, content = await work()
            return answer(content, status)
        calls = self.services.store.idempotency
        lease = self.services.settings.sync_seconds + SYNC_MARGIN_SECONDS
        earlier = await calls.begin(owner, key, fingerprint(request.url.path, body), lease_seconds=lease)
        if earlier is not None:
            return Response(earlier.body, earlier.status, media_type="application/json")
        try:
            status, content = await work()
            response = answer(content, status)
        except BaseException:
            await calls.abandon(owner, key)
            raise
        await calls.finish(owner, key, status, bytes(response.body))
        return response


def with_owner(model: str) -> str:
    """A model is owner/slug; a slug alone is not an address that takes POST, as on the hosted service."""
    if "/" not in model.strip("/"):
        told = f"A model is named owner/slug, such as black-forest-labs/flux-2-klein-4b; {model[:64]!r} has no owner."
        raise HTTPException(405, told, {"Allow": "GET"})
    return model


def idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY:
        message = f"'Idempotency-Key' must have between 1 and {MAX_KEY} characters; it has {len(key)}."
        raise InvalidParameter(message, parameter="Idempotency-Key", problem=Problem.TOO_LONG)
    return key


async def optional_json(request: Request) -> dict[str, Any]:
    """The body of a call that needs none."""
    data = await request.body()
    return read_json(data) if data.strip() else {}


async def media_ready(services: Services) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await services.media.ready()
    except (TimeoutError, StorageError):
        return False
    return True


def listed(page: Page[Any], items: Any, query: Query) -> Response:
    shown = [project(item, query.fields) for item in items]
    return answer({"items": shown, **cursors(page.first, page.next, page.previous)})


def cursors(first: str | None, following: str | None, previous: str | None) -> dict[str, str | None]:
    """Both sets of names that clients know."""
    return {"first": first, "next": following, "previous": previous, "next_pq": following, "prev_pq": previous}
