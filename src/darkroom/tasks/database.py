"""One database: opening it by file or URL, bringing its tables up to date, running a piece of work in one transaction.

SQLite runs in WAL mode: readers never wait for the writer, and there is one writer at a time. A write that a
client or another machine was told about is on disk before it returns (synchronous=FULL); one that is only
bookkeeping between servers (leases, heartbeats) survives the death of a process, not a power cut, and costs no
disk flush.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from darkroom.errors import ConfigurationError, StorageError

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
HEAD: Final = "0001"  # newest revision of migrations/versions; a test keeps it true
READERS: Final = 4  # SQLite's threads that read; one writes
BUSY_SECONDS: Final = 30  # how long SQLite waits for another process's write


INSERT: Final[dict[str, Callable[[sa.Table], postgresql.Insert | sqlite.Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class Backend(Protocol):
    """How work meets a connection. name: what an operator calls the database, without its password."""

    name: str

    async def read(self, work: Work[T]) -> T: ...

    async def write(self, work: Work[T], durable: bool) -> T: ...

    async def close(self) -> None: ...


class Database:
    """Runs work in transactions. Work is a plain function of a connection, so that one transaction reads as one.

    It may run on another thread and must not touch what belongs to the event loop.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        """For the operator; no caller is shown it."""
        return self._backend.name

    @classmethod
    async def open(cls, place: str | Path) -> Database:
        """A SQLite file, or a URL (sqlite:///path, postgresql://…); creates and migrates.

        Raises ConfigurationError, StorageError.
        """
        database = cls(backend_of(place))
        try:
            await migrate(database)
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Waits for work that is under way."""
        while self._running:
            await asyncio.wait(self._running)
        await self._backend.close()

    async def read(self, work: Work[T]) -> T:
        """Run work on one snapshot; it must not write. Raises StorageError when the database does not answer."""
        return await self._shielded(self._backend.read(work))

    async def write(self, work: Work[T], *, durable: bool = True) -> T:
        """Run work in one transaction, all of it or nothing. Raises StorageError when the database does not answer.

        A caller that is cancelled meanwhile (its client hung up) does not tear the transaction. durable: on disk
        when this returns; False for bookkeeping that may be forgotten when the machine loses power.
        """
        return await self._shielded(self._backend.write(work, durable))

    async def _shielded(self, work: Awaitable[T]) -> T:
        task: asyncio.Task[T] = asyncio.ensure_future(_translated(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


class SqliteBackend:
    """Whole transactions on threads of their own: one hop to a thread for each, not one for every call in it.

    (An asynchronous driver hops a dozen times a transaction: measured, 28 ms of the event loop a task against 7.)
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.name = str(engine.url.database)
        self._engine = engine
        self._reading = ThreadPoolExecutor(READERS, "database reader")
        self._writing = ThreadPoolExecutor(1, "database writer")

    async def read(self, work: Work[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, work)

    async def write(self, work: Work[T], durable: bool) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._write, work, durable)

    async def close(self) -> None:
        for executor in (self._reading, self._writing):
            await asyncio.to_thread(executor.shutdown)
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            _driver(connection).execute("BEGIN")
            return work(connection)

    def _write(self, work: Work[T], durable: bool) -> T:
        with self._engine.begin() as connection:
            driver, flush = _driver(connection), "FULL" if durable else "NORMAL"
            if connection.info.get("flush") != flush:
                driver.execute(f"PRAGMA synchronous={flush}")
                connection.info["flush"] = flush
            driver.execute("BEGIN IMMEDIATE")  # two writers that both began by reading could only fail
            return work(connection)


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    """What begins a transaction. An event of the engine could as well, but with one listener SQLAlchemy looks for
    others at every statement."""
    return cast(sqlite3.Connection, connection.connection.driver_connection)


class PostgresBackend:
    """Transactions of an asynchronous driver."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.name = engine.url.set(drivername="postgresql", password=None, query={}).render_as_string()
        self._engine = engine

    async def read(self, work: Work[T]) -> T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Work[T], durable: bool) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()


def insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT."""
    return INSERT[connection.dialect.name](table)


# What a statement of ours got wrong. Whatever else a driver raises (a restart, too many clients, a deadlock, a database
# that has become read-only) comes in classes that differ from driver to driver, and passes.
OURS: Final = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)


async def _translated(work: Awaitable[T]) -> T:
    try:
        return await work
    except OURS:
        raise
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sqlite3.OperationalError, OSError) as error:
        raise StorageError("The database does not answer; try again in a moment.") from error


def backend_of(place: str | Path) -> Backend:
    """What a SQLite file (made if it is not there) or a URL means. Raises ConfigurationError."""
    if isinstance(place, Path):  # never as a URL: a folder's name may hold what means something there
        return SqliteBackend(_sqlite_engine(sa.URL.create("sqlite", database=str(place))))
    try:
        parsed = sa.make_url(place)
        fits = 0 <= (parsed.port or 0) <= 65535
    except (sa.exc.ArgumentError, ValueError):  # ValueError: its port is no number
        fits = False
    if not fits:
        raise ConfigurationError(
            "DARKROOM_DATABASE_URL is not a database URL; write postgresql://user:password@host:port/name, with %40 "
            "for @, %2F for / and so on in the password.",
            parameter="database_url",
        ) from None
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite":
        return SqliteBackend(_sqlite_engine(parsed))
    if kind in ("postgres", "postgresql"):
        return PostgresBackend(_postgres_engine(parsed))
    raise ConfigurationError(
        f"DARKROOM_DATABASE_URL names {kind}; Darkroom knows sqlite and postgresql.", parameter="database_url"
    )


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "DARKROOM_DATABASE_URL names no file; write sqlite:///path/to/darkroom.db.", parameter="database_url"
        )
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        poolclass=sa.QueuePool,
        pool_size=READERS + 1,
        max_overflow=0,
        connect_args={"check_same_thread": False},  # a connection serves one thread at a time, not always the same
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver must not open transactions of its own
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _postgres_engine(url: sa.URL) -> AsyncEngine:
    if mode := url.query.get("sslmode"):  # as every hosted PostgreSQL writes it; the driver takes the same words as ssl
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg"), pool_size=10, max_overflow=10, pool_pre_ping=True
        )
    except ModuleNotFoundError:
        raise ConfigurationError(
            "PostgreSQL needs the extra: pip install 'darkroom[postgres]'.", parameter="database_url"
        ) from None


async def migrate(database: Database) -> bool:
    """Bring the tables to HEAD; False when they were there already.

    Whatever is wrong with a database shows here first, to its operator: the message names it and says what the driver
    says. Raises ConfigurationError (a newer database, a URL the driver does not take), StorageError.
    """
    try:
        if await database.read(revision) == HEAD:
            return False
        await database.write(_upgrade)
    except StorageError as error:
        raise StorageError(f"The database {database.name} cannot be used: {_reason(error.__cause__)}.") from error
    except OURS as error:  # no statement of ours is wrong here: they are refused, or another program's tables are there
        raise StorageError(f"The database {database.name} cannot be used: {_reason(error)}.") from error
    except (TypeError, ValueError, OverflowError) as error:  # an option, a host name that the driver cannot take
        raise ConfigurationError(
            f"DARKROOM_DATABASE_URL ({database.name}) cannot be used: {error}.", parameter="database_url"
        ) from error
    return True


def _reason(error: BaseException | None) -> str:
    """What a driver said, without the statement and the link that SQLAlchemy puts around it."""
    said = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    said = (said and said.__cause__) or said  # asyncpg's own error, under SQLAlchemy's name for it
    text = said.strerror if isinstance(said, OSError) and said.strerror else str(said)
    return text.partition("\n")[0].rstrip(".") or type(said).__name__


def revision(connection: sa.Connection) -> str | None:
    """Which migration the database is at; None when it is empty."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # imported late: a database that is up to date starts without it
    from alembic.util import CommandError

    from darkroom.tasks.migrations import configuration

    if connection.dialect.name == "postgresql":  # several servers may start at once; the others wait, then find HEAD
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('darkroom migrations'))"))
    try:
        command.upgrade(configuration.of(connection), "head")
    except CommandError:
        raise ConfigurationError(
            "The database was written by a newer Darkroom; install that version or use another database.",
            parameter="database_url",
        ) from None
