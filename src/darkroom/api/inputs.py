"""Input images, however a caller names them: the id of a stored one, a URL, a data URI or base64.

    UUID        of an upload or of an earlier result of the same key
    URL         http or https, fetched by the guarded client
    data URI    data:<any type>;base64,…
    base64      anything else that decodes

The bytes decide what an image is; what the caller or the other server says about its type is not believed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress

from darkroom.api.services import Services
from darkroom.errors import AddressRefused, DownloadFailed, InputImageError, InvalidParameter, NotFound, Problem
from darkroom.media.images import decode, sniff
from darkroom.media.store import Media, MediaKind
from darkroom.types import Pixels

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
STANDARD = bytes.maketrans(b"-_", b"+/")  # the address-safe alphabet in terms of the standard one
BLANKS = b" \t\r\n\f\v"
UPLOAD_SECONDS = 30 * 86400  # an upload is kept so long after its last use
OWN_PICTURE = re.compile(r"/ii/([0-9a-fA-F-]{36})\.[a-z]{3,4}(?:[?#].*)?")
SHOWN = 60  # characters of a caller's text that a message may repeat


async def resolve_images(services: Services, owner: str, texts: Sequence[str], parameter: str) -> list[Media]:
    """All of a request's images, in order, fetched side by side. The first one that fails is the error raised, and
    what was stored for the others is deleted again.
    """
    tasks = [
        asyncio.create_task(resolve_image(services, owner, text, f"{parameter}[{place}]"))
        for place, text in enumerate(texts)
    ]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await forget_images(services, owner, texts, found)
        raise


async def forget_images(services: Services, owner: str, texts: Sequence[str], found: Sequence[object]) -> None:
    """Delete what was stored for a request that was refused after all; what a text names by its UUID stays.

    found: for each text its Media, or why there is none.
    """
    for text, media in zip(texts, found, strict=True):
        if isinstance(media, Media) and not as_uuid(text):
            with suppress(NotFound):
                await services.media.delete(owner, media.id)


async def resolve_image(services: Services, owner: str, text: str, parameter: str = "image") -> Media:
    """The stored image a text means; bytes that are not stored yet are stored, upright size included.

    Raises NotFound(what="media"), InputImageError, AddressRefused or InvalidParameter, each naming the parameter.
    """
    if known := as_uuid(text):
        return await _stored(services, owner, known, parameter)
    data, pixels, content_type = await read_image(services, text, parameter)
    return await services.media.put(
        owner,
        data,
        content_type,
        kind=MediaKind.REFERENCE,
        width=pixels.width,
        height=pixels.height,
        ttl_seconds=services.settings.keep_seconds,
    )


def own_picture(services: Services, base: str, url: str) -> str | None:
    """The media id in the address of a picture on this very server, which need not be fetched; None for any other.

    base: the server's address as the caller knows it, beside DARKROOM_PUBLIC_URL.
    """
    for known in filter(None, (services.settings.public_url.rstrip("/"), base)):
        if url[: len(known)].lower() == known.lower() and (match := OWN_PICTURE.fullmatch(url[len(known) :])):
            return as_uuid(match[1])
    return None


def as_uuid(text: str) -> str | None:
    """The text as a canonical UUID, None when it is none."""
    try:
        return str(uuid.UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None


async def read_image(services: Services, text: str, parameter: str) -> tuple[bytes, Pixels, str]:
    """The bytes behind a URL, data URI or base64, decoded: (file, upright pixels, content type)."""
    try:
        data = await _bytes_of(services, text, parameter)
        pixels, content_type = await asyncio.to_thread(_look_at, data, services.settings.image_pixels)
    except InputImageError as error:
        error.parameter = parameter
        raise
    return data, pixels, content_type


async def _stored(services: Services, owner: str, media_id: str, parameter: str) -> Media:
    try:
        media = await services.media.find(owner, media_id)
        if media.kind is MediaKind.UPLOAD:
            await services.media.prolong(owner, media_id, UPLOAD_SECONDS)
        return media
    except NotFound:
        raise NotFound(
            f"There is no image {media_id}, or it has expired. Upload it again.", what="media", parameter=parameter
        ) from None


async def _bytes_of(services: Services, text: str, parameter: str) -> bytes:
    if ADDRESS.match(text):
        return await _fetched(services, text)
    head = DATA_URI.match(text)
    if head and ";base64," not in head[0].lower():
        raise _unreadable(parameter, "its data URI is not base64")
    return await asyncio.to_thread(_from_base64, text[head.end() :] if head else text, parameter)


async def _fetched(services: Services, url: str) -> bytes:
    try:
        return await services.fetcher.get(url)
    except AddressRefused:
        raise
    except InputImageError as error:
        raise DownloadFailed(error.message) from None


def _from_base64(text: str, parameter: str) -> bytes:
    try:
        plain = text.encode("ascii").translate(STANDARD, BLANKS).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _unreadable(parameter, f"'{text[:SHOWN]}' is neither a UUID, a URL, a data URI nor base64") from None


def _unreadable(parameter: str, why: str) -> InvalidParameter:
    return InvalidParameter(
        f"{parameter} cannot be read: {why}.", parameter=parameter, problem=Problem.FORMAT, expected="string"
    )


def _look_at(data: bytes, max_pixels: int) -> tuple[Pixels, str]:
    return decode(data, max_pixels=max_pixels), sniff(data)
