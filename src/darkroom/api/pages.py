"""The manual, for browsers: its pages at /docs, each model's parameters at /docs/models/….

Errors of the task API link to these pages, so that the explanation is always that of the server which refused.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse
from markdown_it import MarkdownIt
from markdown_it.token import Token

from darkroom.api.services import Services
from darkroom.catalog.card import Card, Parameter
from darkroom.errors import NotFound

PACKAGE = Path(__file__).parent.parent
MANUALS = (PACKAGE / "manual", PACKAGE.parent.parent / "docs")  # in a wheel, in a checkout
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
)
NAVIGATION = '<nav><a href="/">Playground</a> · <a href="/docs">Manual</a></nav>'
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
STYLE = (
    ":root{color-scheme:light dark}"  # not on body: the page around it would stay white
    "body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #8886;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}img{max-width:100%}pre{padding:1rem;overflow-x:auto;background:#8882}:target{background:#fc04}"
)


def routes(services: Services) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def index() -> HTMLResponse:
        return html("Darkroom", contents(services))

    @router.get("/docs/models/{name}")
    async def model(name: str) -> HTMLResponse:
        card = services.catalog.resolve(name)
        return html(card.name, card_page(card))

    @router.get("/docs/images/{name}")
    async def image(name: str) -> FileResponse:
        file = next((file for file in manual_images() if file.name == name), None)
        if file is None:
            raise NotFound(f"The manual has no picture '{name[:80]}'.", what="page")
        return FileResponse(file)

    @router.get("/docs/{name:path}")
    async def manual(name: str) -> HTMLResponse:
        text = manuals().get(name.removesuffix(".md").strip("/"))
        if text is None:
            raise NotFound(f"The manual has no page '{name[:80]}'. /docs lists them.", what="page")
        return html(name, to_html(text.read_text(encoding="utf-8"), name))

    return router


def html(title: str, body: str) -> HTMLResponse:
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>{NAVIGATION}{body}"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})


def manuals() -> dict[str, Path]:
    """Every page of the manual by its name, "api/runware". Names are compared, never joined into a path."""
    folder = manual_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.md"))}


def manual_images() -> list[Path]:
    """The pictures its pages show."""
    return [path for path in (manual_folder() / "images").glob("*") if path.suffix in (".jpg", ".png")]


def manual_folder() -> Path:
    return next((folder for folder in MANUALS if folder.is_dir()), MANUALS[-1])


def to_html(text: str, name: str) -> str:
    """A page's Markdown as HTML, with the ids at its headings that links name; comments are left out, other raw HTML in
    it stays text, and so do links to files of the repository that are not in the manual."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(COMMENT.sub("", text))
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", heading_id(inline.content))
        if inline.children:
            inline.children = list(without_links_out(inline.children, name))
    return str(parser.renderer.render(tokens, parser.options, {}))


def heading_id(text: str) -> str:
    """As the sites that show Markdown make it: "Reference K/V" is reference-kv."""
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")


def without_links_out(parts: Iterable[Token], name: str) -> Iterator[Token]:
    """The parts of a line, but for the ends of links to what is outside the manual. name: of the page."""
    dropped = False
    for part in parts:
        if part.type == "link_open":
            path = posixpath.join(posixpath.dirname(name), str(part.attrs.get("href", "")))
            dropped = posixpath.normpath(path).startswith("..")
        if not (dropped and part.type in ("link_open", "link_close")):
            yield part


def contents(services: Services) -> str:
    pages = "".join(f'<li><a href="/docs/{name}">{escape(name)}</a>' for name in manuals())
    models = "".join(f'<li><a href="/docs/models/{c.slug}">{escape(c.name)}</a>' for c in services.catalog.cards)
    return f"<h1>Darkroom</h1><h2>Manual</h2><ul>{pages}</ul><h2>Models: every parameter</h2><ul>{models}</ul>"


def card_page(card: Card) -> str:
    """Every parameter of a model, with the anchors that errors link to (#request-inputs-referenceimages)."""
    rows = "".join(parameter_row(path, p) for path, p in card.parameters.items())
    return (
        f"<h1>{escape(card.name)}</h1><p>{escape(card.description)}</p><p><code>{escape(card.id)}</code></p>"
        f"<table><tr><th>Parameter<th>Type<th>Allowed<th>Default<th>Meaning</tr>{rows}</table>"
        "<p>¹ Not on the hosted API's page of this model; real clients send it.</p>"
    )


def parameter_row(path: str, parameter: Parameter) -> str:
    words = " ".join(part for part in (parameter.meaning, parameter.effect, parameter.cost) if part)
    need = (" (required)" if parameter.required else "") + ("" if parameter.documented else " ¹")
    default = "" if parameter.default is None else f"<code>{escape(str(parameter.default))}</code>"
    return (
        f'<tr id="{anchor(path)}"><td><code>{escape(path)}</code>{need}<td>{escape(parameter.type.value)}'
        f"<td>{escape(allowed(parameter))}<td>{default}<td>{escape(words)}</tr>"
    )


def allowed(parameter: Parameter) -> str:
    """The range of a parameter in words."""
    if parameter.value:
        return parameter.value
    if parameter.choices:
        return ", ".join(parameter.choices)
    spans = (
        (parameter.min, parameter.max, ""),
        (parameter.min_length, parameter.max_length, " characters"),
        (parameter.min_items, parameter.max_items, " entries"),
    )
    words = [span(low, high) + unit for low, high, unit in spans if low is not None or high is not None]
    if parameter.step:
        words.append(f"in steps of {parameter.step}")
    return ", ".join(words)


def span(low: int | float | None, high: int | float | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"


def anchor(path: str) -> str:
    """The id of a parameter on its model's page."""
    return "request-" + re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")
