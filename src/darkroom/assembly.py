"""The parts of a server behind its engine, made from Settings: SQLite or PostgreSQL, a folder or a bucket.

Importing this takes a second, most of it the web framework's and the database's; wiring.py does it while the engine
starts.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from fastapi import FastAPI

from darkroom.api.app import create_app
from darkroom.api.gate import Gate
from darkroom.api.health import Metrics
from darkroom.api.runflow.callbacks import RunflowAnnouncer
from darkroom.api.runflow.closing import BatchCloser
from darkroom.api.runflow.secrets import CallbackSecrets
from darkroom.api.runware.announce import RunwareAnnouncer
from darkroom.api.services import Services
from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.config import Settings, is_loopback
from darkroom.delivery.expiry import Expiry
from darkroom.delivery.outbox import Outbox
from darkroom.errors import ConfigurationError
from darkroom.media.fetch import Fetcher
from darkroom.media.store import MediaStore
from darkroom.pool import EnginePool
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.takeover import end_leases
from darkroom.tasks.task import Fault, Owed, Task
from darkroom.worker import Announcer, Worker

log = structlog.get_logger("darkroom")


@dataclass(frozen=True, slots=True)
class Assembled:
    """background: what has to run for all of it to work, by name."""

    app: FastAPI
    services: Services
    worker: Worker
    background: Mapping[str, Coroutine[Any, Any, None]]


async def assemble(settings: Settings, pool: EnginePool, parts: contextlib.AsyncExitStack) -> Assembled:
    """Opened and ready for requests; parts: takes what has to be closed. Raises ConfigurationError."""
    store, abandoned = await open_store(settings, parts)
    check_address(settings, has_keys=await store.keys.any())
    media = await MediaStore.open(
        settings.media_url or str(settings.data / "media"), store.files, keep_seconds=settings.keep_seconds
    )
    if abandoned:
        log.warning("taking up what a killed server left", tasks=abandoned)
        await media.sweep(grace_seconds=0)  # nobody is writing yet: what has no record was cut off
    fetcher = Fetcher(
        allow_private=settings.allow_private_urls, seconds=settings.fetch_seconds, max_bytes=settings.fetch_bytes
    )
    parts.push_async_callback(fetcher.close)
    # Connections of its own: callers' slow pictures must not keep other callers' deliveries waiting.
    deliverer = Fetcher(allow_private=settings.allow_private_urls)
    parts.push_async_callback(deliverer.close)
    announce = announcers()
    store.announce_lost = lost_announcer(announce)
    secrets = CallbackSecrets(store.documents, settings.callback_secret)
    metrics = Metrics()
    outbox = Outbox(
        store,
        media,
        deliverer,
        settings,
        callback_secrets=secrets,
        given_up={"runware": RunwareAnnouncer().on_given_up},
        meter=metrics,
    )
    installed = Installed(settings.models, settings.embedded)
    services = Services(
        settings=settings,
        catalog=load_catalog(),
        installed=installed,
        adapters=Adapters(settings.data / "adapters", installed),
        store=store,
        media=media,
        fetcher=fetcher,
        pool=pool,
        announce=announce,
        gate=Gate(store.keys),
        features=settings.features,
    )
    app = create_app(services, metrics=metrics)
    worker = Worker(
        store=store,
        media=media,
        pool=pool,
        catalog=services.catalog,
        adapters=services.adapters,
        announce=announce,
        settings=settings,
        meter=metrics,
    )
    background = {
        "worker": worker.run(),
        "outbox": outbox.run(),
        "batches": BatchCloser(services).run(),
        "expiry": Expiry(store, media, settings).run(),
    }
    return Assembled(app, services, worker, background)


async def open_store(settings: Settings, parts: contextlib.AsyncExitStack) -> tuple[SqlTaskStore, int]:
    """The store, and how many tasks a server that was killed had been working on."""
    settings.data.mkdir(parents=True, exist_ok=True)
    if not settings.database_url:
        parts.callback(only_server_on(settings.data).close)
    store = await SqlTaskStore.open(
        settings.database,
        queue_limit=settings.queue_limit,
        queue_limit_per_key=settings.queue_limit_per_key,
    )
    parts.push_async_callback(store.close)
    return store, 0 if settings.database_url else await end_leases(store.database)


def only_server_on(folder: Path) -> BinaryIO:
    """A lock that is freed when this process ends, however it ends. Raises ConfigurationError when another has it."""
    lock = (folder / "server.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigurationError(
            f"Another server works on the data folder {folder}. Give this one a folder of its own (DARKROOM_DATA, "
            "--data), or let several servers share one PostgreSQL (DARKROOM_DATABASE_URL).",
            parameter="data",
        ) from None
    return lock


def check_address(settings: Settings, *, has_keys: bool) -> None:
    """Raises ConfigurationError for a server that everybody on the network could use."""
    if not has_keys and not is_loopback(settings.host):
        raise ConfigurationError(
            f"The server would listen on {settings.host} for everybody, without a key. Make one with "
            "`darkroom keys create NAME`, or listen on 127.0.0.1 (DARKROOM_HOST, --host).",
            parameter="host",
        )


def announcers() -> dict[str, Announcer]:
    """By dialect, what its tasks owe to others."""
    return {"runware": RunwareAnnouncer(), "runflow": RunflowAnnouncer()}


def lost_announcer(announce: Mapping[str, Announcer]) -> Callable[[Task, Fault], Sequence[Owed]]:
    """What is owed for a task that the store itself gives up, because its servers died too often."""

    def owed(task: Task, fault: Fault) -> Sequence[Owed]:
        announcer = announce.get(task.dialect)
        return announcer.on_end(task, Status.FAILED, fault) if announcer else ()

    return owed
