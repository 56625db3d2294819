"""modelSearch: the cards and the adapters of this server, in the words of the task API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from darkroom.api.runware.call import Call, Reply, WireTask, identity
from darkroom.api.runware.fields import TEXT, Form
from darkroom.catalog.adapters import Adapter
from darkroom.catalog.card import Card
from darkroom.types import GuidanceKind

ARCHITECTURE = "flux2"
CATEGORIES = ["checkpoint", "lora", "lycoris", "controlnet", "vae", "embeddings"]
WORDS = {"type": "array", "items": TEXT, "maxItems": 50}
FORM = Form(
    {
        "search": {"type": "string", "maxLength": 2000},
        "tags": WORDS,
        "category": {"type": "string", "enum": CATEGORIES},
        "type": {"type": "string", "enum": ["base", "inpainting", "refiner"]},
        "architecture": TEXT,
        "conditioning": TEXT,
        "visibility": {"type": "string", "enum": ["public", "private", "all", "favorite", "owned"]},
        "source": {"type": "string", "enum": ["official", "community"]},
        "capabilities": WORDS,
        "sort": TEXT,
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
        "offset": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
    }
)


async def model_search(call: Call, task: WireTask) -> AsyncIterator[Reply]:
    """One item with the page asked for, and how many there are in all."""
    fields = FORM.read(task)
    adapters = await asyncio.to_thread(call.services.adapters.all, call.owner)
    entries = [card_entry(card) for card in call.services.catalog.cards] + [adapter_entry(a) for a in adapters]
    found = [entry for entry in entries if matches(entry, fields)]
    start = fields.get("offset", 0)
    page = found[start : start + fields.get("limit", 20)]
    yield Reply(data=({**identity(task), "totalResults": len(found), "results": page},))


def card_entry(card: Card) -> dict[str, Any]:
    """Every key the older Python SDK builds its object from is present, lists and booleans never null."""
    return {
        "air": card.id,
        "name": card.name,
        "version": card.id.rpartition("@")[2],
        "category": "checkpoint",
        "architecture": card.architecture,
        "type": "base",
        "tags": ["text-to-image", "image-to-image", f"guidance-{card.guidance.value}"],
        "heroImage": "",
        "private": False,
        "comment": card.description,
        "defaultWidth": card.defaults.width,
        "defaultHeight": card.defaults.height,
        "defaultSteps": card.defaults.steps,
        "defaultScheduler": "Default",
        "defaultCFG": 1.0 if card.guidance is GuidanceKind.NONE else card.defaults.cfg_scale,
    }


def adapter_entry(adapter: Adapter) -> dict[str, Any]:
    return {
        "air": adapter.id,
        "name": adapter.name,
        "version": adapter.version,
        "category": "lora",
        "architecture": adapter.architecture,
        "tags": list(adapter.tags),
        "heroImage": "",
        "private": bool(adapter.owner),
        "comment": adapter.description,
        "defaultWeight": adapter.default_weight,
        "positiveTriggerWords": adapter.trigger_words,
    }


def matches(entry: dict[str, Any], fields: dict[str, Any]) -> bool:
    """search: every word somewhere in air, name, comment, tags. Other fields: equal, case aside."""
    text = " ".join((entry["air"], entry["name"], entry["comment"], *entry["tags"])).casefold()
    tags = {tag.casefold() for tag in entry["tags"]}
    visibility = fields.get("visibility", "all")
    source = "official" if entry["category"] == "checkpoint" else "community"
    return (
        all(word in text for word in fields.get("search", "").casefold().split())
        and all(tag.casefold() in tags for tag in fields.get("tags", ()))
        and all(tag.casefold() in tags for tag in fields.get("capabilities", ()))
        and fields.get("category", entry["category"]) == entry["category"]
        and fields.get("type", entry.get("type")) == entry.get("type")
        and fields.get("architecture", entry["architecture"]).casefold() == entry["architecture"].casefold()
        and fields.get("source", source) == source
        and "conditioning" not in fields
        and visibility in ("all", "private" if entry["private"] else "public", "owned" if entry["private"] else "")
    )
