"""Builds a server from Settings and runs it: the engine first, then the parts behind it (assembly.py), then the port.

A Server starts its parts from the bottom up and stops them from the top down. Its background tasks are watched: one
that dies stops the server, loudly, because a server whose queue nobody works on only looks alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import structlog
import uvicorn

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import Catalog, load_catalog
from darkroom.catalog.installed import Installed
from darkroom.config import EngineKind, Settings, unknown_names, url_of
from darkroom.engine.drivers import check_device
from darkroom.engine.spec import build_engine, engine_spec
from darkroom.errors import ConfigurationError
from darkroom.loading import loading
from darkroom.pool import ChildPool, EnginePool, LocalPool

if TYPE_CHECKING:  # a second to import: see Server._start
    from fastapi import FastAPI

    from darkroom.api.services import Services
    from darkroom.assembly import Assembled
    from darkroom.worker import Worker

LAST_WORDS_SECONDS: Final = 0.2
SHUT_SECONDS: Final = 2.0  # for answers that are being written when everything behind them has stopped
KEEP_ALIVE_SECONDS: Final = 75

log = structlog.get_logger("darkroom")


def build(settings: Settings) -> Server:
    """A server that is not started yet. Raises ConfigurationError for settings that cannot work."""
    if settings.engine is not EngineKind.FAKE:
        installed_of(settings).check()
    return Server(settings)


class Server:
    """start() before app is used, stop() after. failed: done as soon as a background task died, with its error."""

    def __init__(self, settings: Settings, *, pool: EnginePool | None = None) -> None:
        """pool: instead of the one the settings ask for."""
        self.settings = settings
        self.pool = pool or engine_pool(settings)
        self.app: FastAPI
        self.services: Services
        self.worker: Worker
        self.failed: asyncio.Future[None]
        self._background: list[asyncio.Task[None]] = []
        self._parts = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Returns when requests can be taken; the engine may still be loading, tasks wait for it."""
        self.failed = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Claim no more tasks, finish those that run or hand them back, then stop everything."""
        if hasattr(self, "worker"):
            await self.worker.stop(self.settings.grace_seconds if grace_seconds is None else grace_seconds)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background.clear()
        if self.failed.done():
            self.failed.exception()  # whoever waits for it raises it; everybody else has read the log
        await self._parts.aclose()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._parts.push_async_callback(self.pool.stop)
        self._watch("engine", self._run_engine())  # first: loading its libraries takes longer than all the rest
        assemble, _ = await asyncio.gather(  # on threads of their own, so that the engine does start
            asyncio.to_thread(import_the_rest), asyncio.to_thread(check_devices, self.settings)
        )
        assembled = await assemble(self.settings, self.pool, self._parts)
        self.app, self.services, self.worker = assembled.app, assembled.services, assembled.worker
        for name, work in assembled.background.items():
            self._watch(name, work)

    async def _run_engine(self) -> None:
        await self.pool.start()
        status = await self.pool.status()
        log.info("the engine is ready", device=status.device, dtype=status.dtype)
        if card := await asyncio.to_thread(smallest_card, load_catalog(), installed_of(self.settings)):
            await self.pool.warm(card.id)
        await self.pool.watch()

    def _watch(self, name: str, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self._died(name, done))
        self._background.append(task)

    def _died(self, name: str, task: asyncio.Future[None]) -> None:
        if task.cancelled() or not (error := task.exception()):
            return
        if not isinstance(error, ConfigurationError):
            log.critical("a background task died and the server stops", task=name, exc_info=error)
        if not self.failed.done():
            self.failed.set_exception(error)


def import_the_rest() -> Callable[[Settings, EnginePool, contextlib.AsyncExitStack], Coroutine[Any, Any, Assembled]]:
    """What the parts behind the engine are made with. The web framework and the database's take a second to import."""
    from darkroom.assembly import assemble

    return assemble


def engine_pool(settings: Settings) -> EnginePool:
    """Where the pictures are made."""
    if settings.engine is EngineKind.LOCAL:
        spec = engine_spec(settings, settings.device)
        return LocalPool(lambda: build_engine(spec))
    return ChildPool([engine_spec(settings, device) for device in devices_of(settings)])


def check_devices(settings: Settings) -> None:
    """Raises ConfigurationError for a device that is surely not here: what is refused has not been said to listen.
    A driver may take as long to answer as the web framework to load; blocking."""
    if settings.engine is not EngineKind.FAKE:
        for device in devices_of(settings):
            check_device(device)


def devices_of(settings: Settings) -> list[str]:
    return [device.strip() for device in settings.device.split(",")]


def installed_of(settings: Settings) -> Installed:
    return Installed(settings.models, settings.embedded)


def smallest_card(catalog: Catalog, installed: Installed) -> Card | None:
    """The card to load before anybody asks: the cheapest guess at the first request. None when none can be served."""
    demo = installed.demo
    served = [card for card in catalog.cards if demo or installed.is_installed(card)]
    return min(served, key=lambda card: card.weights.bytes, default=None)


# Running it


def serve(settings: Settings) -> None:
    """Run a server until SIGTERM or Ctrl-C. Raises ConfigurationError, or what a background task died of."""
    configure_logging(settings.log_format)
    with contextlib.ExitStack() as start, asyncio.Runner(loop_factory=new_event_loop) as runner:
        start.enter_context(loading())
        runner.run(run(build(settings), started=start.close))


async def run(server: Server, started: Callable[[], None] = lambda: None) -> None:
    """Start, answer until a signal or a failure, stop. A second signal does not wait for what runs.

    started: called once the server answers.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    listener = bind(server.settings.host, server.settings.port)  # first: a port in use is the commonest mistake
    try:
        await server.start()
        web = WebServer(server.app, server.settings)
        answering = asyncio.create_task(web.serve([listener]))
        log_start(server, listener)
        started()
        await first_of(answering, server.failed, stop.wait())
        await wind_down(server, web, answering, hurry)
        if server.failed.done():
            server.failed.result()
    finally:
        await server.stop(grace_seconds=0)
        listener.close()


async def wind_down(server: Server, web: WebServer, answering: asyncio.Task[None], hurry: asyncio.Event) -> None:
    """No more connections and claims; what runs is finished and answered; what still waits is cut off."""
    log.info("stopping", finish_within_seconds=server.settings.grace_seconds)
    for accepting in web.servers:
        accepting.close()
    await first_of(server.worker.stop(server.settings.grace_seconds), hurry.wait())
    if not hurry.is_set():
        await asyncio.sleep(LAST_WORDS_SECONDS)  # what is finished goes out on sockets, which are closed at once below
    web.should_exit = True
    await asyncio.wait({answering}, timeout=0 if hurry.is_set() else SHUT_SECONDS)
    for waiting in web.server_state.tasks:
        waiting.cancel()
    await answering


class WebServer(uvicorn.Server):
    """uvicorn without signal handlers, log settings and life cycle: run() has its own."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                ws_max_size=settings.body_bytes,
                ws_per_message_deflate=False,  # pictures do not get smaller, and trying takes long
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError when the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except UnicodeError:
        raise cannot_listen(host, port, "that is no name of a host") from None
    except OSError as error:
        code = error.errno or 0  # its own words where it has some: Python's add the address once more
        raise cannot_listen(host, port, os.strerror(code) if code in errno.errorcode else str(error.strerror)) from None
    # Inherited by every connection. asyncio sets it only on sockets that name their protocol, which these do not: a
    # small body behind its headers would wait for the client's delayed acknowledgement, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def cannot_listen(host: str, port: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The server cannot listen on {host} port {port}: {why}. Choose another with --host and --port.",
        parameter="port",
    )


def log_start(server: Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    for name in unknown_names():
        log.warning("there is no such setting; docs/settings.md lists them", name=name)
    url = url_of(host, port)
    log.info("listening", url=url, data=str(server.settings.data))
    if server.settings.engine is EngineKind.FAKE:
        log.warning("the fake engine draws patterns; for pictures set DARKROOM_ENGINE=child")
    elif server.services.installed.demo:
        log.warning(
            "demo mode: no weights are installed, a tiny embedded model serves every card; see `darkroom pull`",
            models=str(server.settings.models),
        )
    if server.settings.log_format == "text":
        sys.stderr.write(first_request(url))


def first_request(url: str) -> str:
    """What a newcomer may paste: the playground's address and a request that makes a picture."""
    task: dict[str, object] = {"taskType": "imageInference", "taskUUID": str(uuid4()), "model": "runware:400@4"}
    task |= {"positivePrompt": "a red circle above a blue square", "width": 256, "height": 256}
    return f"\nplayground: {url}\ncurl -s {url}/v1 -H 'Content-Type: application/json' -d '{json.dumps([task])}'\n\n"


async def first_of(*waits: Awaitable[object]) -> None:
    """Returns when one of them is done; the tasks made for the others are cancelled, futures are left alone."""
    futures = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future, wait in zip(futures, waits, strict=True):
            if future is not wait:
                future.cancel()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it exists (not on Windows)."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def configure_logging(log_format: str) -> None:
    """Everything, libraries too, in one form to stderr: text for people, json for collectors."""
    stamp = "iso" if log_format == "json" else "%Y-%m-%dT%H:%M:%SZ"  # nobody reads microseconds
    stamps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt=stamp, utc=True),
    ]
    if log_format == "json":
        rendering: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:  # plain tracebacks: the default shows local variables, and with them keys and prompts
        plain = structlog.dev.plain_traceback
        colours = sys.stderr.isatty()
        rendering = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain, pad_level=False)]
    structlog.configure(
        processors=[*stamps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*stamps, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("uvicorn", "httpx", "httpcore", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
