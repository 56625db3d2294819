"""Pictures and reference images: bytes in a local folder or a bucket, their records in the database.

A file is there before its record and gone after it, and a put is atomic in every kind of store (a local file gets
its name by a move when it is whole), so whoever finds a record finds the whole file. What a crash leaves in
between, files without a record, is swept up. Files lie in 256 folders by the first two characters of their id.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID, uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from darkroom.errors import ConfigurationError, Conflict, NotFound, StorageError
from darkroom.media.recent import Recent
from darkroom.types import Media as Media
from darkroom.types import MediaKind as MediaKind

EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/gif": "gif",
}
GRACE_SECONDS: Final = 3600.0  # a file without a record may be one that is being stored
LONGEST: Final = timedelta(days=365 * 100)  # a longer time is cut to this: a calendar ends, a caller's number need not
DIGITS: Final = "0123456789abcdef"


class MediaTable(Protocol):
    """Records of files. The database's is tasks/files.py."""

    async def add(self, record: Media) -> bool:
        """Write or, for the same owner, replace; False when the id is another owner's."""

    async def get(self, media_id: str) -> Media | None: ...

    async def remove(self, media_ids: Sequence[str]) -> None: ...

    async def prolong(self, media_id: str, expires_at: datetime) -> None:
        """Keep at least until then; never shortens."""

    async def expired(self, now: datetime, limit: int) -> Sequence[Media]:
        """Soonest first."""

    async def recent(self, owner: str, kind: MediaKind, limit: int) -> Sequence[Media]:
        """Newest first."""

    async def with_prefix(self, prefix: str) -> Sequence[Media]:
        """Those whose id begins so."""


class MediaStore:
    """Puts, finds, serves and deletes files. Raises errors.py classes only."""

    def __init__(
        self,
        store: ObjectStore,
        table: MediaTable,
        *,
        folder: Path | None = None,
        keep_seconds: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._table = table
        self._folder = folder
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._recent = Recent()

    @classmethod
    async def open(
        cls,
        url_or_folder: str | Path,
        table: MediaTable,
        *,
        keep_seconds: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> MediaStore:
        """A folder (made if missing) or a bucket by URL (s3://, gs://, az://). Raises ConfigurationError.

        keep_seconds: how long a file is kept that came without a ttl; None for ever.
        """
        text = str(url_or_folder)
        if "://" in text and not text.startswith("file://"):
            return cls(_bucket(text), table, keep_seconds=keep_seconds, clock=clock)
        try:
            folder = await asyncio.to_thread(_made, text.removeprefix("file://"))
        except OSError as error:
            raise ConfigurationError(
                f"The folder for pictures cannot be made: {error.strerror}. Set DARKROOM_DATA to a place that can "
                "be written to.",
                parameter="data",
            ) from None
        return cls(LocalStore(folder), table, folder=folder, keep_seconds=keep_seconds, clock=clock)

    async def put(
        self,
        owner: str,
        data: bytes,
        content_type: str,
        *,
        kind: MediaKind | str,
        width: int,
        height: int,
        ttl_seconds: int | None = None,
        media_id: str | None = None,
    ) -> Media:
        """Store a file. ttl_seconds: how long it is kept, None for the store's default. Width and height in pixels.

        media_id: a UUID chosen before, so that trying again replaces what the first try left. Raises Conflict when
        it is another owner's, StorageError when the bytes cannot be written.
        """
        if media_id is not None:
            await self._check_owner(media_id, owner)
        record = await self.place(
            owner,
            data,
            content_type,
            kind=kind,
            width=width,
            height=height,
            ttl_seconds=ttl_seconds,
            media_id=media_id,
        )
        if not await self._table.add(record):
            raise _taken(record.id)
        return record

    async def place(
        self,
        owner: str,
        data: bytes,
        content_type: str,
        *,
        kind: MediaKind | str,
        width: int,
        height: int,
        ttl_seconds: int | None = None,
        media_id: str | None = None,
    ) -> Media:
        """The file of a put without its record, for a caller that writes the record together with what names it.

        media_id: made from the owner's name, so that it cannot be another's. Raises StorageError.
        """
        now = self._clock()
        keep = self._keep_seconds if ttl_seconds is None else ttl_seconds
        name, extension = media_id or str(uuid4()), EXTENSIONS.get(content_type, "bin")
        media = Media(
            id=name,
            owner=owner,
            kind=MediaKind(kind),
            content_type=content_type,
            extension=extension,
            width=width,
            height=height,
            bytes=len(data),
            sha256=await self._write(_path(name, extension), data),
            created_at=now,
            expires_at=None if keep is None else _after(now, keep),
        )
        self._recent.put(media, data)
        return media

    async def discard(self, placed: Media) -> None:
        """Delete a file that was placed and whose record was never written. Raises StorageError."""
        self._recent.forget(placed.id)
        await self._remove_file(_path_of(placed))

    async def get(self, media_id: str) -> tuple[Media, bytes]:
        """A file by its id alone: the id is the permission. Raises NotFound(what="media"), StorageError."""
        media = await self._current(media_id)
        if (kept := self._recent.get(media)) is not None:
            return media, kept
        try:
            found = await obstore.get_async(self._store, _path_of(media))
            return media, bytes(await found.bytes_async())
        except FileNotFoundError:
            raise _missing() from None
        except (BaseError, OSError) as error:
            raise StorageError("The picture cannot be read at the moment; try again.") from error

    async def find(self, owner: str, media_id: str) -> Media:
        """An owner's file, without its bytes. Raises NotFound(what="media"), also for another owner's."""
        media = await self._current(media_id)
        if media.owner != owner:
            raise _missing()
        return media

    async def recent(self, owner: str, kind: MediaKind | str, limit: int = 50) -> Sequence[Media]:
        """An owner's files of one kind, newest first."""
        now = self._clock()
        return [media for media in await self._table.recent(owner, MediaKind(kind), limit) if not _is_over(media, now)]

    async def prolong(self, owner: str, media_id: str, ttl_seconds: int) -> None:
        """Keep for at least so long from now (an upload that was used). Raises NotFound(what="media")."""
        await self.find(owner, media_id)
        await self._table.prolong(media_id, _after(self._clock(), ttl_seconds))

    async def delete(self, owner: str, media_id: str) -> None:
        """Raises NotFound(what="media"), also for another owner's."""
        await self._remove([await self.find(owner, media_id)])

    async def expire(self, now: datetime, limit: int) -> int:
        """Delete files whose time is over, at most limit; returns how many."""
        over = await self._table.expired(now, limit)
        await self._remove(over)
        return len(over)

    async def sweep(self, *, grace_seconds: float = GRACE_SECONDS) -> tuple[int, int]:
        """Delete files without a record and records without a file; returns (files, records).

        Files younger than grace_seconds are left alone: their record may be about to be written.
        """
        try:
            files = await asyncio.to_thread(_remove_staged, self._folder, grace_seconds) if self._folder else 0
            records = 0
            for digit in DIGITS:
                removed = await self._sweep_part(digit, grace_seconds)
                files, records = files + removed[0], records + removed[1]
        except (BaseError, OSError) as error:
            raise StorageError("The store of pictures does not answer; the next sweep tries again.") from error
        return files, records

    async def ready(self) -> None:
        """Raises StorageError when the store does not answer."""
        try:
            async for _ in obstore.list(self._store, prefix="ready", chunk_size=1):
                break
        except (BaseError, OSError) as error:
            raise StorageError("The store of pictures does not answer; try again in a moment.") from error

    async def _current(self, media_id: str) -> Media:
        media = await self._table.get(media_id) if _is_uuid(media_id) else None
        if media is None or _is_over(media, self._clock()):
            raise _missing()
        return media

    async def _check_owner(self, media_id: str, owner: str) -> None:
        earlier = await self._table.get(media_id)
        if not _is_uuid(media_id) or (earlier is not None and earlier.owner != owner):
            raise _taken(media_id)

    async def _write(self, path: str, data: bytes) -> str:
        """The digest of what was written. A caller that is cancelled meanwhile leaves no file."""
        writing = asyncio.create_task(self._written(path, data))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # a thread cannot be stopped
            if not writing.exception():
                await self._remove_file(path)
            raise
        except (BaseError, OSError) as error:
            raise StorageError("The picture could not be stored; the server's disk may be full.") from error

    async def _written(self, path: str, data: bytes) -> str:
        if self._folder is not None:
            return await asyncio.to_thread(_save, self._store, self._folder, path, data)
        await obstore.put_async(self._store, path, data)
        return await asyncio.to_thread(_digest, data)

    async def _remove(self, records: Sequence[Media]) -> None:
        if not records:
            return
        await self._table.remove([media.id for media in records])
        for media in records:
            self._recent.forget(media.id)
            await self._remove_file(_path_of(media))

    async def _remove_file(self, path: str) -> None:
        try:
            await obstore.delete_async(self._store, path)
        except FileNotFoundError:
            return  # gone already is what was wanted
        except (BaseError, OSError) as error:
            raise StorageError("A picture could not be deleted; the next sweep tries again.") from error

    async def _sweep_part(self, digit: str, grace_seconds: float) -> tuple[int, int]:
        """Ids that begin with this digit: a sixteenth of everything is in memory at a time."""
        old = self._clock() - timedelta(seconds=grace_seconds)
        before = await self._table.with_prefix(digit)
        files: dict[str, datetime] = {}
        for second in DIGITS:
            async for chunk in obstore.list(self._store, prefix=digit + second):
                files.update((entry["path"], entry["last_modified"]) for entry in chunk)
        after = {_path_of(media) for media in await self._table.with_prefix(digit)}
        stray = [path for path, changed in files.items() if path not in after and changed < old]
        for path in stray:
            await self._remove_file(path)
        hollow = [media.id for media in before if _path_of(media) not in files]
        if hollow:
            await self._table.remove(hollow)
        return len(stray), len(hollow)


def _bucket(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"DARKROOM_MEDIA_URL does not work: {error}", parameter="media_url") from None


def _made(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _path_of(media: Media) -> str:
    return _path(media.id, media.extension)


def _path(media_id: str, extension: str) -> str:
    return f"{media_id[:2]}/{media_id}.{extension}"


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _save(store: ObjectStore, folder: Path, path: str, data: bytes) -> str:
    """On disk, name included: the record that follows must not outlive the file in a power cut. Returns the digest.

    All of it on one thread: every change of threads would cost more than what is done on it.
    """
    obstore.put(store, path, data)
    descriptor = os.open(folder / path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return _digest(data)


def _remove_staged(folder: Path, grace_seconds: float) -> int:
    """Files that a crash cut off while they were written: they carry '#' in their name, and lists leave them out."""
    removed = 0
    for file in _staged(folder):
        with suppress(FileNotFoundError):  # whole by now, and under its own name
            if file.stat().st_mtime < time.time() - grace_seconds:
                file.unlink()
                removed += 1
    return removed


def _staged(folder: Path) -> Iterator[Path]:
    return folder.glob("??/*#*")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _is_over(media: Media, now: datetime) -> bool:
    return media.expires_at is not None and media.expires_at <= now


def _after(now: datetime, seconds: int) -> datetime:
    return now + (LONGEST if seconds > LONGEST.total_seconds() else timedelta(seconds=seconds))


def _missing() -> NotFound:
    return NotFound("There is no image with this identifier, or it has expired.", what="media")


def _taken(media_id: str) -> Conflict:
    return Conflict(f"The identifier {media_id} cannot be used for a new image.")
