"""Which web pages may talk to a server without keys: those of its own machine.

Such a server trusts whoever reaches it, and it can be reached from its machine only. But a browser on that machine
opens pages from everywhere, and any of them could send tasks and read what was made. So without keys a page of another
site is refused (its Origin), and so is whatever came under a public name (its Host): anybody can let a name of theirs
stand for 127.0.0.1 and have a page of their own call it. Programs that are no browsers send no Origin and are not
concerned, and neither are pictures: whoever has the address of one has it.
With keys any page may call: the key is what counts then. DARKROOM_CORS_ORIGINS=* lets any page call in any case.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from darkroom.api.services import Services

AUTO = "auto"
PICTURES = "/ii/"
NOT_PUBLIC = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test")  # names that no public DNS has


async def refusal(services: Services, scope: Scope) -> str | None:
    """Why a request is refused, in words for whoever wrote the page; None for one that is not."""
    if "*" in listed(services) or scope["path"].startswith(PICTURES):
        return None
    headers = Headers(scope=scope)
    origin, host = headers.get("origin"), host_of(f"//{headers.get('host', '')}")
    known = {host_of(services.settings.public_url)} - {""}
    foreign_name = not (is_inner_name(host) or host in known)
    foreign_page = origin is not None and not (
        is_loopback(host_of(origin))
        or host_of(origin) in known
        or (host_of(origin) == host and not foreign_name)
        or origin in listed(services)
    )
    if not (foreign_page or foreign_name) or await services.gate.closed():
        return None
    told = "This server has no keys, so it answers programs and pages of its own machine only; "
    if foreign_page:
        return (
            f"{told}this page comes from {origin!r}. Make a key with `darkroom keys create NAME`, or allow the page: "
            "DARKROOM_CORS_ORIGINS."
        )
    return (
        f"{told}it was called as {host!r}. Make a key with `darkroom keys create NAME`, or say that this is its name: "
        "DARKROOM_PUBLIC_URL."
    )


def allowed(services: Services) -> list[str]:
    """Origins that browsers are told may call: all of them by default, since whom to refuse depends on keys."""
    found = listed(services)
    return ["*"] if found == [AUTO] else found


def listed(services: Services) -> list[str]:
    """The setting."""
    return [origin.strip() for origin in services.settings.cors_origins.split(",") if origin.strip()]


def host_of(url: str) -> str:
    """In lower case, without port and brackets; "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_inner_name(host: str) -> bool:
    """Nothing that somebody else's DNS could let stand for this machine: an address, or no public name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(NOT_PUBLIC)
    return True
