"""The playground at "/": static files of the package, under a policy that lets the page talk to this server only."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from darkroom.errors import NotFound

FOLDER = Path(__file__).parent.parent / "playground"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, answered from the cache when unchanged
}


def routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}  # nothing else is ever served

    @router.get("/")
    def index() -> Response:
        return answer(files["index.html"])

    @router.get("/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise NotFound("There is nothing at this address.", what="page")
        return answer(files[name])

    return router


def answer(path: Path) -> Response:
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)
