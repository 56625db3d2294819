"""Who is calling: the owner a key belongs to."""

from __future__ import annotations

from darkroom.api.services import Services
from darkroom.errors import Unauthorized

LOCAL = "local"  # the one owner of a server that asks for no keys


async def authenticate(services: Services, header: str | None) -> str:
    """The owner behind an Authorization header ("Bearer <key>"). Raises Unauthorized."""
    scheme, _, key = (header or "").strip().partition(" ")
    if header and scheme.lower() != "bearer" and await services.gate.closed():
        raise Unauthorized("The Authorization header must read 'Bearer <key>'.")
    return await check_key(services, key.strip())


async def check_key(services: Services, key: str) -> str:
    """The owner of a key, however it came. Raises Unauthorized."""
    if not await services.gate.closed():
        return LOCAL
    if not key:
        raise Unauthorized("An API key is needed: send the header 'Authorization: Bearer <key>'.", missing=True)
    owner = await services.gate.owner(key)
    if owner is None:
        raise Unauthorized("This API key is not valid here. `darkroom keys create` makes one, `keys list` shows them.")
    return owner
