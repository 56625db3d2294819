"""imageUpload and mediaStorage: images to be used later by their UUID."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from darkroom.api.files import image_url
from darkroom.api.inputs import UPLOAD_SECONDS, as_uuid, read_image, resolve_image
from darkroom.api.runware.call import Call, Reply, WireTask, identity, nothing_done
from darkroom.api.runware.fields import Form
from darkroom.errors import InvalidParameter, NotFound, Problem
from darkroom.media.images import encode, shrink
from darkroom.media.store import Media, MediaKind
from darkroom.types import ImageFormat, Output, Pixels

MAX_SIDE = 2048  # pixels; larger images of imageUpload are scaled down, aspect kept
MEDIA = {"type": "string", "minLength": 1}
UPLOAD_FORM = Form({"image": MEDIA}, required=["image"])
STORAGE_FORM = Form(
    {"operation": {"type": "string", "enum": ["upload", "delete"]}, "media": MEDIA, "mediaUUID": MEDIA},
    required=["operation"],
)


async def image_upload(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """imageUUID and imageURL of the stored image."""
    fields = UPLOAD_FORM.read(task)
    if call.dry_run:
        yield nothing_done(task)
        return
    media = await stored(call, fields["image"], "image", MAX_SIDE)
    yield Reply(data=({**identity(task), "imageUUID": media.id, "imageURL": image_url(call.base, media.name)},))


async def media_storage(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """upload as above but at full size; delete by UUID, in either of the two fields."""
    fields = STORAGE_FORM.read(task)
    named = next((name for name in ("media", "mediaUUID") if name in fields), None)
    if named is None:
        raise InvalidParameter("'media' is required.", parameter="media", problem=Problem.MISSING, expected="string")
    if call.dry_run:
        yield nothing_done(task)
        return
    head = {**identity(task), "operation": fields["operation"]}
    if fields["operation"] == "delete":
        media_id = await delete(call, fields[named], named)
        yield Reply(data=({**head, "mediaUUID": media_id},))
        return
    media = await stored(call, fields[named], named, None)
    yield Reply(data=({**head, "mediaUUID": media.id, "mediaURL": image_url(call.base, media.name)},))


async def stored(call: Call, text: str, parameter: str, max_side: int | None) -> Media:
    """The image in any of the four forms, kept for UPLOAD_SECONDS after its last use."""
    if as_uuid(text):
        return await resolve_image(call.services, call.owner, text, parameter)
    data, pixels, content_type = await read_image(call.services, text, parameter)
    if max_side and max(pixels.width, pixels.height) > max_side:
        data, pixels, content_type = await asyncio.to_thread(scaled, pixels, content_type, max_side)
    return await call.services.media.put(
        call.owner,
        data,
        content_type,
        kind=MediaKind.UPLOAD,
        width=pixels.width,
        height=pixels.height,
        ttl_seconds=UPLOAD_SECONDS,
    )


def scaled(pixels: Pixels, content_type: str, max_side: int) -> tuple[bytes, Pixels, str]:
    """(file, pixels, content type) with no side above max_side: JPEG stays JPEG, all else becomes PNG."""
    small = shrink(pixels, max_side)
    kind = ImageFormat.JPEG if content_type == "image/jpeg" else ImageFormat.PNG
    data, content_type, _ = encode(small, Output(format=kind))
    return data, small, content_type


async def delete(call: Call, text: str, parameter: str) -> str:
    media_id = as_uuid(text)
    if media_id is None:
        raise InvalidParameter(
            f"'{parameter}' must be the UUID of the image to delete.",
            parameter=parameter,
            problem=Problem.FORMAT,
            expected="string",
        )
    try:
        await call.services.media.delete(call.owner, media_id)
    except NotFound as error:
        raise NotFound(error.message, what="media", parameter=parameter) from None
    return media_id
