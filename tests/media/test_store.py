"""Files are whole, their owner's alone, gone when their time is over; and nothing is left behind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import obstore
import pytest
from obstore.store import MemoryStore, S3Store

from darkroom.errors import ConfigurationError, Conflict, NotFound, StorageError
from darkroom.media.store import MediaKind, MediaStore
from darkroom.tasks.memory_records import MemoryMediaRecords
from darkroom.tasks.sql import SqlTaskStore
from tests.tasks.stores import Clock

DATA = b"\x89PNG" + bytes(range(256)) * 10
NOWHERE = "01234567-89ab-4cde-8f01-23456789abcd"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def table(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryMediaRecords()
        return
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}")
    yield store.files
    await store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "when missing"


@pytest.fixture(params=["folder", "bucket"])
async def media(request: pytest.FixtureRequest, folder: Path, table: Any, clock: Clock) -> MediaStore:
    if request.param == "bucket":
        return MediaStore(MemoryStore(), table, clock=clock)
    return await MediaStore.open(folder, table, clock=clock)


async def put(media: MediaStore, owner: str = "alice", data: bytes = DATA, **fields: Any) -> Any:
    settings = {"kind": "result", "width": 4, "height": 3, **fields}
    return await media.put(owner, data, settings.pop("content_type", "image/png"), **settings)


async def gone(media: MediaStore, media_id: str, owner: str = "alice") -> bool:
    for looking in (media.get(media_id), media.find(owner, media_id)):
        with pytest.raises(NotFound) as error:
            await looking
        assert error.value.what == "media"
    return True


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_file_is_stored_with_its_facts(media: MediaStore, clock: Clock) -> None:
    stored = await put(media, ttl_seconds=60)
    assert UUID(stored.id).version == 4
    assert stored.name == f"{stored.id}.png"
    assert (stored.owner, stored.kind, stored.content_type) == ("alice", MediaKind.RESULT, "image/png")
    assert (stored.width, stored.height, stored.bytes) == (4, 3, len(DATA))
    assert stored.sha256 == sha256(DATA).hexdigest()
    assert stored.expires_at == stored.created_at + timedelta(seconds=60)
    assert await media.find("alice", stored.id) == stored
    assert await media.get(stored.id) == (stored, DATA)


@pytest.mark.parametrize(
    ("content_type", "extension"),
    [("image/jpeg", "jpg"), ("image/webp", "webp"), ("image/gif", "gif"), ("application/zip", "bin")],
)
async def test_names_end_in_the_type(media: MediaStore, content_type: str, extension: str) -> None:
    assert (await put(media, content_type=content_type)).name.endswith(f".{extension}")


async def test_owners_see_only_their_own(media: MediaStore) -> None:
    stored = await put(media, owner="alice")
    for refused in (media.find("bob", stored.id), media.delete("bob", stored.id), media.prolong("bob", stored.id, 60)):
        with pytest.raises(NotFound):
            await refused
    assert await media.recent("bob", "result") == []
    assert (await media.get(stored.id))[1] == DATA  # its address is the permission to read it


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "x" * 36, NOWHERE.upper(), NOWHERE + "\0", NOWHERE])
async def test_what_is_not_there_is_not_found(media: MediaStore, name: str) -> None:
    assert await gone(media, name)


async def test_a_deleted_file_is_gone(media: MediaStore, folder: Path) -> None:
    stored = await put(media)
    await media.delete("alice", stored.id)
    assert await gone(media, stored.id)
    assert files(folder) == []
    with pytest.raises(NotFound):
        await media.delete("alice", stored.id)


async def test_a_file_is_gone_when_its_time_is_over_swept_or_not(media: MediaStore, folder: Path, clock: Clock) -> None:
    short, lasting = await put(media, ttl_seconds=60), await put(media)
    clock.advance(61)
    assert await gone(media, short.id)
    assert await media.recent("alice", "result") == [lasting]
    assert await media.expire(clock(), 10) == 1
    assert await media.expire(clock(), 10) == 0
    assert [path.name for path in files(folder)] in ([lasting.name], [])  # [] for the bucket
    assert (await media.get(lasting.id))[1] == DATA


async def test_expiry_takes_the_soonest_and_at_most_limit(media: MediaStore, clock: Clock) -> None:
    late, soon, middle = [await put(media, ttl_seconds=seconds) for seconds in (30, 10, 20)]
    clock.advance(25)
    assert await media.expire(clock(), 1) == 1
    clock.advance(-20)
    assert await gone(media, soon.id)
    assert await media.find("alice", middle.id) == middle
    assert await media.find("alice", late.id) == late


async def test_without_a_ttl_the_default_holds(folder: Path, table: Any, clock: Clock) -> None:
    media = await MediaStore.open(folder, table, keep_seconds=100, clock=clock)
    stored = await put(media)
    assert stored.expires_at == stored.created_at + timedelta(seconds=100)
    assert (await put(media, ttl_seconds=60)).expires_at < stored.expires_at


async def test_a_time_that_no_calendar_has_is_a_century(media: MediaStore, clock: Clock) -> None:
    stored = await put(media, kind="upload", ttl_seconds=10**15)
    assert stored.expires_at - stored.created_at == timedelta(days=36500)
    await media.prolong("alice", stored.id, 10**15)
    prolonged = await media.find("alice", stored.id)
    assert (prolonged.expires_at - stored.created_at).days == 36500


async def test_use_prolongs_and_never_shortens(media: MediaStore, clock: Clock) -> None:
    stored = await put(media, ttl_seconds=60)
    await media.prolong("alice", stored.id, 10)
    assert (await media.find("alice", stored.id)).expires_at == stored.expires_at
    await media.prolong("alice", stored.id, 1000)
    clock.advance(900)
    assert (await media.get(stored.id))[1] == DATA


async def test_trying_again_with_the_same_id_replaces(media: MediaStore, folder: Path) -> None:
    name = str(uuid4())
    first = await put(media, media_id=name)
    again = await put(media, media_id=name, data=b"other")
    assert (first.id, again.id) == (name, name)
    found, data = await media.get(name)
    assert (found.bytes, found.sha256, data) == (5, sha256(b"other").hexdigest(), b"other")
    assert len(files(folder)) <= 1
    with pytest.raises(Conflict):
        await put(media, owner="bob", media_id=name)
    with pytest.raises(Conflict):
        await put(media, media_id="../../escape")


async def test_recent_is_newest_first_and_of_one_kind(media: MediaStore, clock: Clock) -> None:
    stored = []
    for _ in range(3):
        stored.append(await put(media, kind="upload"))
        clock.advance(1)
    await put(media, kind="reference")
    assert await media.recent("alice", MediaKind.UPLOAD, 2) == [stored[2], stored[1]]


async def test_no_reader_ever_sees_half_a_file(folder: Path, table: Any) -> None:
    media, elsewhere = await MediaStore.open(folder, table), await MediaStore.open(folder, table)
    name, stop = str(uuid4()), asyncio.Event()
    versions = [bytes([letter]) * 400_000 for letter in b"abc"]
    await put(media, media_id=name, data=versions[0])

    async def read() -> int:
        seen = 0
        while not stop.is_set():
            _, data = await elsewhere.get(name)  # this one has what it wrote in memory
            assert data in versions
            seen += 1
        return seen

    readers = [asyncio.create_task(read()) for _ in range(2)]
    for turn in range(20):
        await put(media, media_id=name, data=versions[turn % 3])
    stop.set()
    assert min([await reader for reader in readers]) > 0


# Sweeping


async def test_stray_files_and_hollow_records_are_swept(media: MediaStore, table: Any, folder: Path) -> None:
    kept, hollow = await put(media), await put(media)
    await obstore.delete_async(media._store, f"{hollow.id[:2]}/{hollow.name}")
    await obstore.put_async(media._store, f"ab/{uuid4()}.png", b"stray")
    await table.remove([(stray := await put(media)).id])
    future = media._clock() + timedelta(days=365 * 30)  # the folder's clock is the real one
    media._clock = lambda: future
    assert await media.sweep(grace_seconds=0) == (2, 1)
    assert await media.sweep(grace_seconds=0) == (0, 0)
    assert (await media.get(kept.id))[1] == DATA
    assert await gone(media, hollow.id)
    assert await gone(media, stray.id)


async def test_a_put_that_is_cancelled_leaves_nothing(folder: Path, table: Any) -> None:
    media = await MediaStore.open(folder, table)
    for patience in (0.0, 0.0005, 0.001, 0.002):
        putting = asyncio.create_task(media.place("alice", DATA * 500, "image/png", kind="result", width=4, height=3))
        await asyncio.sleep(patience)
        if putting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await putting
            assert files(folder) == []
        else:
            await media.discard(await putting)


async def test_young_files_are_left_alone(media: MediaStore, table: Any, folder: Path) -> None:
    await table.remove([(await put(media)).id])
    assert await media.sweep() == (0, 0)


async def test_files_cut_off_while_written_are_swept(folder: Path, table: Any) -> None:
    media = await MediaStore.open(folder, table)
    kept = await put(media)
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / f"{uuid4()}.png#1").write_bytes(b"half")
    assert await media.sweep() == (0, 0)
    assert await media.sweep(grace_seconds=-1) == (1, 0)
    assert [path.name for path in files(folder)] == [kept.name]


async def test_a_file_that_is_whole_before_the_sweep_looks_at_it_is_passed_over(
    folder: Path, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.media.store._staged", lambda root: iter([root / "ab" / "moved.png#1"]))
    media = await MediaStore.open(folder, table)
    await put(media)
    assert await media.sweep() == (0, 0)


# Trouble


def put_in_the_way(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


async def test_a_full_or_missing_disk_is_a_storage_error(folder: Path, table: Any) -> None:
    media, elsewhere = await MediaStore.open(folder, table), await MediaStore.open(folder, table)
    stored = await put(media)
    put_in_the_way(folder)
    with pytest.raises(StorageError, match="could not be stored") as error:
        await put(media)
    assert str(folder) not in error.value.message
    assert (await media.get(stored.id))[1], "what was just stored is in memory"
    with pytest.raises((StorageError, NotFound)):
        await elsewhere.get(stored.id)


async def test_a_place_that_cannot_be_used_is_explained(tmp_path: Path, table: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="DARKROOM_DATA"):
        await MediaStore.open(tmp_path / "file" / "media", table)
    with pytest.raises(ConfigurationError, match="DARKROOM_MEDIA_URL"):
        await MediaStore.open("nonsense://bucket", table)


async def test_a_bucket_that_refuses_is_a_storage_error(table: Any, clock: Clock) -> None:
    nobody = S3Store("bucket", endpoint="http://127.0.0.1:9", region="x", client_options={"allow_http": True},
                     access_key_id="a", secret_access_key="b", retry_config={"max_retries": 0})  # fmt: skip
    media = MediaStore(nobody, table, clock=clock)
    for asking in (media.sweep(grace_seconds=0), media.ready()):
        with pytest.raises(StorageError, match="does not answer"):
            await asking


async def test_ready_answers(media: MediaStore) -> None:
    await media.ready()
