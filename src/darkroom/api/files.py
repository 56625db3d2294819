"""Pictures by URL: /ii/<uuid>.<ext>. No key: whoever has the URL has the picture, as with a CDN."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response, WebSocket

from darkroom.api.services import Services
from darkroom.errors import NotFound
from darkroom.media.store import Media

YEAR_SECONDS = 31_536_000


def routes(services: Services) -> APIRouter:
    router = APIRouter()

    @router.get("/ii/{name}", include_in_schema=False)
    async def picture(name: str, request: Request) -> Response:
        media, data = await services.media.get(name.partition(".")[0].lower())
        if media.name != name.lower():
            raise NotFound("There is no such picture, or it has expired.", what="media")
        headers = {
            "Cache-Control": f"public, max-age={seconds_kept(media)}, immutable",  # it never changes under its id
            "ETag": f'"{media.sha256}"',
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
            "Access-Control-Allow-Origin": "*",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        if is_known(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media.content_type, headers=headers)

    return router


def is_known(if_none_match: str, etag: str) -> bool:
    """Whether a client has this version: the header names it, weakly or in a list, or says any (RFC 9110 §13.1.2)."""
    named = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return etag in named or "*" in named


def seconds_kept(media: Media) -> int:
    """How long caches may hold a picture: no longer than this server does."""
    if media.expires_at is None:
        return YEAR_SECONDS
    return max(0, min(YEAR_SECONDS, int((media.expires_at - datetime.now(UTC)).total_seconds())))


def image_url(base_url: str, name: str) -> str:
    """The address of a stored file. name: of Media, "<id>.<ext>"."""
    return f"{base_url}/ii/{name}"


def base_url(services: Services, request: Request) -> str:
    """Where clients reach this server: the setting, else the address this very request came to. No slash at the end."""
    return services.settings.public_url.rstrip("/") or str(request.base_url).rstrip("/")


def socket_base_url(services: Services, socket: WebSocket) -> str:
    """The same for a socket: ws and wss stand for http and https."""
    if services.settings.public_url:
        return services.settings.public_url.rstrip("/")
    secure = socket.url.scheme == "wss"
    return f"{'https' if secure else 'http'}://{socket.url.netloc}"
