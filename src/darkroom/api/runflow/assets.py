"""Input images: what `image_urls` may say, and uploads in three steps.

    POST /v1/asset-uploads                       → asset_id and upload_url
    PUT  <upload_url>                            the bytes, without a key: the URL is the permission
    POST /v1/asset-uploads/{id}/confirmations    → the asset; runflow://assets/{id} or its url goes into image_urls

A session is a document kept for an hour; the file is media under the asset's own id.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from darkroom.api.files import image_url
from darkroom.api.inputs import as_uuid, own_picture, resolve_image
from darkroom.api.runflow.errors import Forbidden, Rejected
from darkroom.api.runflow.parse import asset_id
from darkroom.api.runflow.render import instant
from darkroom.api.services import Services
from darkroom.catalog.validate import Validator
from darkroom.errors import DarkroomError, InputImageError, InvalidParameter, NotFound, Problem
from darkroom.media.images import decode, sniff
from darkroom.types import Media, MediaKind

MAX_BYTES = 52_428_800
TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
SPELLINGS = {"image/jpg": "image/jpeg"}
SESSION = "asset_upload"  # kinds of document
ASSET = "asset"
NOBODY = ""  # sessions are found by their URL alone, whoever owns them
SESSION_HOURS = 1
SCHEMA = {
    "type": "object",
    "properties": {
        "filename": {"type": "string", "minLength": 1, "maxLength": 500},
        "mime_type": {"type": "string", "minLength": 1, "maxLength": 255},
        "size_bytes": {"type": "integer", "minimum": 1, "maximum": MAX_BYTES},
    },
    "required": ["filename", "mime_type", "size_bytes"],
}
BODY = Validator(SCHEMA)


async def resolve_references(
    services: Services, owner: str, base: str, texts: Sequence[str], field: str
) -> list[Media]:
    """The stored images that image_urls means, in order, fetched side by side. Raises Rejected for all that fail."""
    several = field.endswith("image_urls")
    names = [f"{field}[{place}]" if several else field for place in range(len(texts))]
    found = await asyncio.gather(
        *(_resolve(services, owner, base, text, name) for text, name in zip(texts, names, strict=True)),
        return_exceptions=True,
    )
    failed = [error for error in found if isinstance(error, BaseException)]
    wrong = [error for error in failed if isinstance(error, InvalidParameter | InputImageError)]
    if failed:
        raise Rejected(wrong) if len(wrong) == len(failed) else next(e for e in failed if e not in wrong)
    return [media for media in found if isinstance(media, Media)]


async def _resolve(services: Services, owner: str, base: str, text: str, name: str) -> Media:
    """One of them. Pictures of this server are found by their id, without a request to ourselves."""
    own = own_picture(services, base, text) or asset_id(text)
    try:
        if own:
            return await services.media.find(owner, own)
        return await resolve_image(services, owner, text, name)
    except NotFound:
        message = f"'{name}': there is no image {own} of this key here, or it has expired."
        raise InvalidParameter(message, parameter=name, problem=Problem.INCOMPATIBLE) from None
    except InputImageError as error:
        raise InputImageError(f"'{name}': {error.message}", parameter=name) from None


async def open_upload(services: Services, owner: str, base: str, body: dict[str, Any]) -> dict[str, Any]:
    """Step 1. Raises Rejected."""
    found = BODY.violations(body)
    if not found and mime_type(body["mime_type"]) not in TYPES:
        message = f"'mime_type' must be one of {', '.join(TYPES)}."
        found = [InvalidParameter(message, parameter="mime_type", problem=Problem.CHOICE, allowed=TYPES)]
    if found:
        raise Rejected(found)
    upload_id, token = str(uuid4()), secrets.token_urlsafe(32)
    session = {
        "owner": owner,
        "token": token,
        "filename": body["filename"],
        "mime_type": mime_type(body["mime_type"]),
        "size_bytes": int(body["size_bytes"]),
    }
    expires_at = datetime.now(UTC) + timedelta(hours=SESSION_HOURS)
    await services.store.documents.put(NOBODY, SESSION, upload_id, session, expires_at=expires_at)
    return {
        "asset_id": upload_id,
        "upload_url": f"{base}/v1/asset-uploads/{upload_id}/content?token={token}",
        "expires_at": instant(expires_at),
    }


def mime_type(text: str) -> str:
    plain = text.partition(";")[0].strip().lower()
    return SPELLINGS.get(plain, plain)


async def check_upload(services: Services, upload_id: str, token: str, content_type: str) -> None:
    """Before a byte is read. Raises Forbidden for an address that expired or never was, Rejected for another type."""
    session = await _session(services, upload_id)
    if session is None or not hmac.compare_digest(str(session["token"]).encode(), token.encode()):
        raise Forbidden("This upload URL is not valid or has expired; POST /v1/asset-uploads gives a new one.")
    if mime_type(content_type) != session["mime_type"]:
        raise _wrong("Content-Type", f"must be {session['mime_type']}, as announced.")


async def receive(services: Services, upload_id: str, data: bytes) -> None:
    """Step 2, after check_upload. Raises InvalidParameter for another size, InputImageError for what is no picture."""
    upload_id = upload_id.lower()
    session = await _session(services, upload_id)
    if session is None:
        raise Forbidden("This upload URL has expired; POST /v1/asset-uploads gives a new one.")
    if len(data) != session["size_bytes"]:
        raise _wrong("size_bytes", f"{session['size_bytes']} bytes were announced, {len(data)} came.")
    owner = str(session["owner"])
    with suppress(NotFound):
        await services.media.find(owner, upload_id)
        return  # the same PUT again
    try:
        width, height, sniffed = await asyncio.to_thread(_look_at, data, services.settings.image_pixels)
    except InputImageError as error:
        error.parameter = "file"
        raise
    await services.media.put(
        owner,
        data,
        sniffed,
        kind=MediaKind.UPLOAD,
        width=width,
        height=height,
        ttl_seconds=services.settings.keep_seconds,
        media_id=upload_id,
    )


def _look_at(data: bytes, max_pixels: int) -> tuple[int, int, str]:
    pixels = decode(data, max_pixels=max_pixels)
    return pixels.width, pixels.height, sniff(data)


async def confirm(services: Services, owner: str, base: str, upload_id: str) -> dict[str, Any]:
    """Step 3. Raises NotFound for an unknown session, InvalidParameter when nothing was uploaded yet."""
    upload_id = upload_id.lower()
    session = await _session(services, upload_id)
    if session is None or session["owner"] != owner:
        return await read(services, owner, base, upload_id)  # confirmed earlier, or NotFound
    try:
        media = await services.media.find(owner, upload_id)
    except NotFound:
        raise _wrong("asset_id", "nothing was uploaded yet; PUT the file to upload_url first.") from None
    document = await services.store.documents.put(
        owner, ASSET, upload_id, {"filename": session["filename"]}, expires_at=media.expires_at
    )
    return asset_record(media, document.value["filename"], base)


async def read(services: Services, owner: str, base: str, wanted: str) -> dict[str, Any]:
    """An upload, or any picture of this key. Raises NotFound(what="asset")."""
    known = as_uuid(wanted)
    try:
        if known is None:
            raise NotFound("no UUID", what=ASSET)
        media = await services.media.find(owner, known)
    except NotFound:
        raise NotFound(f"There is no asset {wanted[:64]!r}, or it has expired.", what=ASSET) from None
    name = media.name
    with suppress(NotFound):
        name = (await services.store.documents.get(owner, ASSET, known)).value["filename"]
    return asset_record(media, name, base)


def asset_record(media: Media, name: str, base: str) -> dict[str, Any]:
    url = image_url(base, media.name)
    return {
        "id": media.id,
        "name": name,
        "url": url,
        "thumbnail_url": url,
        "mime_type": media.content_type,
        "size_bytes": media.bytes,
        "asset_type": "image",
        "width": media.width,
        "height": media.height,
        "folder_id": None,
        "created_at": instant(media.created_at),
        "expires_at": instant(media.expires_at),
    }


async def _session(services: Services, upload_id: str) -> dict[str, Any] | None:
    if known := as_uuid(upload_id):
        with suppress(NotFound):
            return (await services.store.documents.get(NOBODY, SESSION, known)).value
    return None


def _wrong(parameter: str, rule: str) -> DarkroomError:
    return InvalidParameter(f"'{parameter}': {rule}", parameter=parameter, problem=Problem.INCOMPATIBLE)
