"""The server's HTTP and WebSocket face: all routes in one list, and what holds for every one of them.

Every answer says whether the embedded model draws (Darkroom-Model), every body is bounded, and whatever goes wrong
is answered in the words of errors.py: never with a traceback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom.api import events, files, health, pages, playground, records
from darkroom.api.errors import BodyTooLarge, describe, flat, framework, unexpected
from darkroom.api.files import base_url
from darkroom.api.health import Metrics, model_mode
from darkroom.api.origins import allowed, refusal
from darkroom.api.runflow import http as runflow
from darkroom.api.runware import errors as runware_errors
from darkroom.api.runware import http as runware
from darkroom.api.services import Services
from darkroom.errors import DarkroomError
from darkroom.version import VERSION

log = structlog.get_logger(__name__)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
TASK_API = "/v1"  # the one path of the Runware dialect; its errors look different from everybody else's
CLOSE_REASON = 120  # characters that fit into the closing frame of a socket
EXPOSED = ("Darkroom-Model", "Retry-After", "Runflow-Request-Id")


def create_app(services: Services, lifespan: Lifespan | None = None, *, metrics: Metrics | None = None) -> FastAPI:
    """The application over these services. lifespan: what starts and stops around it. metrics: shared with others."""
    metrics = metrics or Metrics()
    app = FastAPI(title="Darkroom", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan)
    for router in (
        runware.routes(services, metrics),  # POST and WebSocket /v1
        runflow.routes(services),  # /v1/models/…/runs, /v1/runs, /v1/asset-uploads, …
        records.routes(services),  # /v1/cards, /v1/cards/{id}/schema, /v1/adapters, /v1/tasks, /v1/tasks/{id}
        events.routes(services),  # /v1/tasks/{id}/events, /v1/tasks/{id}/cancel
        files.routes(services),  # /ii/<uuid>.<ext>
        health.routes(services, metrics),  # /health, /ready, /metrics
        pages.routes(services),  # /docs
        playground.routes(),  # / and its files
    ):
        app.include_router(router)
    app.state.services = services
    app.add_exception_handler(DarkroomError, refused)
    app.add_exception_handler(HTTPException, refused_by_framework)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_middleware(Guard, services=services, metrics=metrics)
    if origins := allowed(services):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=86400,
        )
    return app


async def refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DarkroomError)
    if request.url.path == TASK_API:
        status, body, headers = runware_errors.answer(error, base_url(request.app.state.services, request))
    else:
        status, body, headers = describe(error)
    return JSONResponse(body, status, headers)


async def refused_by_framework(request: Request, error: Exception) -> JSONResponse:
    """No such address, no such method."""
    assert isinstance(error, HTTPException)
    of_task_api = request.url.path == TASK_API
    base = base_url(request.app.state.services, request)
    body = runware_errors.framework(error.status_code, base=base) if of_task_api else framework(error.status_code)
    return JSONResponse(body, error.status_code, error.headers)


async def malformed(request: Request, error: Exception) -> JSONResponse:
    """A query or path parameter of the wrong type."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "request"
    return JSONResponse(flat("INVALID_PARAMETER", f"{name}: {first['msg']}.", name), 422)


class Guard:
    """Outermost: counts, refuses foreign pages, bounds the body, names the mode; what nobody caught becomes a 500 that
    tells nothing."""

    def __init__(self, app: ASGIApp, services: Services, metrics: Metrics) -> None:
        self.app = app
        self.services = services
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = await refusal(self.services, scope) if scope["type"] in ("http", "websocket") else None
        if scope["type"] != "http":
            if refused:
                await send({"type": "websocket.close", "code": 1008, "reason": refused[:CLOSE_REASON]})
            else:
                await self.app(scope, receive, send)
            return
        # A stream of events has no end, so there is nothing to leave out.
        is_head = scope["method"] == "HEAD" and not scope["path"].endswith("/events")
        scope = {**scope, "method": "GET"} if is_head else scope
        answer = Answer(send, model_mode(self.services), is_head)
        started = time.perf_counter()
        try:
            if refused:
                await answer.instead(403, self._address(scope), refused)
                return
            await self.app(scope, self._bounded(scope, receive), answer)
        except BodyTooLarge:
            await answer.instead(413, self._address(scope))
        except asyncio.CancelledError:  # the server stops, and this call has waited for longer than it may
            await answer.instead(503, self._address(scope))
        except Exception as error:  # noqa: BLE001 - the last line of defence: logged here, and the caller is told a number
            await answer.instead(500, self._address(scope), unexpected(error))
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels("HEAD" if is_head else scope["method"], route, answer.status).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _address(self, scope: Scope) -> tuple[str, str]:
        """(base URL, path) of a request."""
        return base_url(self.services, Request(scope)), scope["path"]

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body, until it is longer than allowed; then BodyTooLarge, before the rest is read."""
        limit = self.services.settings.body_bytes
        announced = Headers(scope=scope).get("content-length", "0")
        left = limit - (int(announced) if announced.isascii() and announced.isdigit() else 0)
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            if left < 0:
                raise BodyTooLarge
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise BodyTooLarge
            return message

        return bounded


class Answer:
    """The send of one request: adds the header, leaves out the body that HEAD does not want, and knows whether the
    answer has begun."""

    def __init__(self, send: Send, mode: str, is_head: bool) -> None:
        self.send = send
        self.mode = mode
        self.is_head = is_head
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).setdefault("Darkroom-Model", self.mode)
        elif self.is_head:
            message = {**message, "body": b""}
        await self.send(message)

    async def instead(self, status: int, address: tuple[str, str], message: str | None = None) -> None:
        """An error in place of the answer; when one has begun already, all that is left is to break off."""
        if self.status:
            return
        base, path = address
        of_task_api = path == TASK_API
        body = runware_errors.framework(status, message, base) if of_task_api else framework(status, message)

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await JSONResponse(body, status)({"type": "http"}, nothing, self)
