"""Opening, migrating, and what happens to work when somebody hangs up or the database is not there."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from darkroom.errors import ConfigurationError, StorageError
from darkroom.tasks.database import HEAD, Database, backend_of, migrate, revision
from darkroom.tasks.migrations import configuration
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.tables import metadata
from tests.tasks.stores import database_url, new_task

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return await database_url(request.param, tmp_path)


async def test_migrations_build_the_tables(url: str) -> None:
    database = await Database.open(url)

    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    assert await database.read(differences) == []
    await database.close()


async def test_head_is_the_newest_migration(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        assert ScriptDirectory.from_config(configuration.of(connection)).get_current_head() == HEAD
    engine.dispose()


async def test_opening_again_changes_nothing(url: str) -> None:
    first = await SqlTaskStore.open(url)
    task = await first.submit(new_task())
    await first.close()
    again = await SqlTaskStore.open(url)
    assert await again.get(task.id) == task
    assert await migrate(again.database) is False
    await again.close()


async def test_servers_that_start_together_migrate_once(url: str) -> None:
    databases = await asyncio.gather(*(Database.open(url) for _ in range(4)))
    for database in databases:
        assert await database.read(revision) == HEAD
        await database.close()


async def test_a_newer_database_is_refused(url: str) -> None:
    database = await Database.open(url)
    await database.write(
        lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num='9999'"))
    )
    await database.close()
    with pytest.raises(ConfigurationError, match="newer Darkroom"):
        await Database.open(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("postgresql://user@host:port/name", "not a database URL"),
        ("postgresql://user@host:99999/name", "not a database URL"),
        ("mysql://localhost/x", "names mysql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        backend_of(url)
    assert error.value.parameter == "database_url"


async def test_a_database_that_cannot_be_used_is_named_without_its_password_and_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        await Database.open("postgresql://nobody:secret@127.0.0.1:1/nothing?ssl=disable")
    assert caught.value.message == (
        "The database postgresql://nobody:***@127.0.0.1:1/nothing cannot be used: Connect call failed ('127.0.0.1', 1)."
    )
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database, but as long as the header of one is\n" * 4)
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with other.begin() as connection:
        connection.execute(sa.text("CREATE TABLE keys (name TEXT)"))
    other.dispose()
    for name, cause in (
        ("folder", "unable to open database file"),
        ("text", "file is not a database"),
        ("other", "table keys already exists"),
    ):
        with pytest.raises(StorageError) as caught:
            await Database.open(tmp_path / f"{name}.db")
        assert caught.value.message == f"The database {tmp_path / name}.db cannot be used: {cause}."


@pytest.mark.parametrize("url", ["postgresql://x:secret@127.0.0.1:1/d?colour=red", "postgresql://x:secret@a..b/d"])
async def test_a_url_that_the_driver_does_not_take_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^DARKROOM_DATABASE_URL \(postgresql://x:") as caught:
        await Database.open(url)
    assert "secret" not in caught.value.message


async def test_a_url_may_say_sslmode_as_other_clients_do() -> None:
    with pytest.raises(StorageError, match="Connect call failed"):
        await Database.open("postgresql://x@127.0.0.1:1/d?sslmode=require")


@pytest.mark.parametrize("folder", ["a%20b", "a?b=c", "a#b", "a b", "ä'\"b"])
async def test_a_file_may_lie_in_a_folder_of_any_name(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "darkroom.db"
    await (await Database.open(file)).close()
    assert file.is_file()
    assert os.listdir(tmp_path) == [folder]


class Failing:
    """A backend whose every transaction ends like this."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def read(self, work: Any) -> Any:
        raise self.error

    async def write(self, work: Any, durable: bool) -> Any:
        raise self.error

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("name", ["DBAPIError", "InternalError", "OperationalError", "InterfaceError"])
async def test_whatever_a_driver_says_of_the_database_is_a_storage_error(name: str) -> None:
    """asyncpg tells of a restart, of too many clients and of deadlocks in classes that become these."""
    error = getattr(sa.exc, name)("SELECT 1", {}, RuntimeError("terminating connection"))
    database = Database(Failing(error))
    for work in (database.read(lambda connection: None), database.write(lambda connection: None)):
        with pytest.raises(StorageError):
            await work


@pytest.mark.parametrize("kind", [sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError])
async def test_what_a_statement_got_wrong_stays_a_bug(kind: type[sa.exc.DBAPIError]) -> None:
    database = Database(Failing(kind("SELECT", {}, RuntimeError("syntax error"))))
    with pytest.raises(kind):
        await database.read(lambda connection: None)


async def test_a_caller_that_hangs_up_does_not_tear_a_transaction(url: str) -> None:
    store = await SqlTaskStore.open(url)
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
        submitting = asyncio.create_task(store.submit(new_task(external_id=f"after {delay}")))
        await asyncio.sleep(delay)
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
    await store.submit(new_task(external_id="last"))  # connections and locks are whole
    found = await store.recent("alice")
    assert found[0].external_id == "last"
    await store.close()


async def test_a_failed_transaction_leaves_nothing(url: str) -> None:
    store = await SqlTaskStore.open(url)

    def half(connection: sa.Connection) -> None:
        connection.execute(sa.text("DELETE FROM tasks"))
        raise RuntimeError("no")

    task = await store.submit(new_task())
    with pytest.raises(RuntimeError):
        await store.database.write(half)
    assert await store.get(task.id) == task
    await store.close()


async def test_the_loop_goes_on_while_the_disk_is_busy(tmp_path: Path) -> None:
    """Another process holds SQLite's write lock: submissions wait, everything else does not."""
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}")
    task = await store.submit(new_task())
    other = await asyncio.to_thread(_lock, tmp_path / "darkroom.db")
    waiting = asyncio.create_task(store.submit(new_task()))
    longest = 0.0
    for _ in range(20):
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        longest = max(longest, time.perf_counter() - began)
        assert await store.get(task.id) == task  # readers never wait for the writer
    assert not waiting.done()
    other.rollback()
    other.close()
    async with asyncio.timeout(10):
        await waiting
    assert longest < 2  # SQLite waits for the lock for many seconds
    await store.close()


def _lock(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection
