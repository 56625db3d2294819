"""The model catalogue: every Runflow name this server can serve, with its inputs as machine-readable rules."""

from __future__ import annotations

import asyncio
from typing import Any

from darkroom.api.runflow.options import named_id
from darkroom.api.runflow.parse import ModelRules
from darkroom.api.runflow.render import model_uuid
from darkroom.api.runflow.search import FieldKind, Fields, Order, Page, Query, Selection
from darkroom.api.services import Services
from darkroom.catalog.card import RunflowModel, RunflowPriced
from darkroom.errors import NotFound

FIELDS: Fields = {
    "id": FieldKind.TEXT,
    "slug": FieldKind.TEXT,
    "name": FieldKind.TEXT,
    "model": FieldKind.TEXT,
    "category_code": FieldKind.TEXT,
    "license_code": FieldKind.TEXT,
}
ORDER: Order = (("model", False), ("id", False))
TYPES = {"integer": "integer", "number": "float", "boolean": "boolean", "array": "array", "string": "string"}
PER = {
    RunflowPriced.OUTPUT: "per megapixel",
    RunflowPriced.INPUT_AND_OUTPUT: "per megapixel, input plus output",
    RunflowPriced.IMAGE: "per image",
}
OUTPUTS = (
    ("outputs", "array", "The pictures: url, type, width, height and more."),
    ("seed", "integer", "The seed of the first picture; picture i used seed + i."),
    ("model_data", "object", "The prompt, and warnings about what was ignored."),
    ("nsfw_detected", "boolean", "Flagged, cleared, or null: not checked."),
    ("timing", "object", "Milliseconds by stage."),
)
EMPTY_FIELDS = (
    "org_id", "deleted_at", "paper_url", "github_url", "icon_url", "cover_url", "content", "seo", "version",
)  # fmt: skip


class Models:
    """The rules of every model, compiled once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rules = {
            model.id.lower(): ModelRules(card, model) for card in services.catalog.cards for model in card.runflow
        }

    def rules(self, path: str) -> ModelRules:
        """Raises NotFound(what="model")."""
        _, model = self._services.catalog.resolve_runflow(path)
        return self._rules[model.id.lower()]

    async def find(self, path: str) -> dict[str, Any]:
        """One model this server can serve. Raises NotFound(what="model")."""
        rules = self.rules(path)
        if rules not in await self._served():
            raise NotFound(f"{rules.model.id} is known here but its weights are not installed.", what="model")
        return model_record(rules)

    async def listing(self, query: Query) -> Page[dict[str, Any]]:
        selection: Selection[dict[str, Any]] = Selection(query)
        records = [model_record(rules) for rules in await self._served()]
        selection.add((record, record) for record in records)
        return selection.page()

    async def _served(self) -> list[ModelRules]:
        installed = self._services.installed

        def look() -> list[ModelRules]:
            demo = installed.demo
            return [rules for rules in self._rules.values() if demo or installed.is_installed(rules.card)]

        return await asyncio.to_thread(look)


def model_record(rules: ModelRules) -> dict[str, Any]:
    card, model = rules.card, rules.model
    owner, _, slug = model.id.partition("/")
    model_id = model_uuid(model.id)
    sides = card.parameters["width"].max, card.parameters["height"].max
    return {
        "id": model_id,
        "model_creator_id": named_id("creator", owner),
        "slug": slug,
        "model": model.id,
        "name": model.name,
        "description": card.description,
        "family_id": named_id("family", card.architecture),
        "family_variant_code": card.slug,
        "status_code": "active",
        "availability_status": "available",
        "is_public": True,
        "is_open_source": not card.weights.gated,
        "is_official": True,
        "category_code": "image-to-image" if model.edit else "text-to-image",
        "param_count": card.network.parameters,
        "architecture": card.architecture,
        "license_code": card.weights.licence,
        "max_resolution": f"{sides[0]}x{sides[1]}",
        "lora_support": False,
        "fine_tuning": False,
        "supports_streaming": False,
        "notable_features": [],
        "pricing_note": pricing(model),
        "inputs": [input_record(rules, name, place) for place, name in enumerate(rules.properties)],
        "outputs": [output_record(model_id, place) for place in range(len(OUTPUTS))],
        **dict.fromkeys(EMPTY_FIELDS),
    }


def pricing(model: RunflowModel) -> str:
    return f"${model.price_per_megapixel} {PER[model.priced]}{', rounded up' if model.round_up else ''}"


def input_record(rules: ModelRules, name: str, place: int) -> dict[str, Any]:
    """One field of `input`, as the schema that validates it has it."""
    schema = rules.properties[name]
    model_id = model_uuid(rules.model.id)
    attributes = {
        "min": schema.get("minimum", schema.get("minItems")),
        "max": schema.get("maximum", schema.get("maxItems", schema.get("maxLength"))),
        "options": schema.get("enum"),
    }
    return {
        "id": named_id(model_id, "input", name),
        "model_id": model_id,
        "name": name,
        "display_name": name.replace("_", " ").capitalize(),
        "description": schema.get("description"),
        "variable_type_code": TYPES[schema["type"]],
        "default_behavior_code": "default" if "default" in schema else "omit",
        "validator_code": "options" if "enum" in schema else "range" if attributes["max"] is not None else None,
        "validator_attrs": {key: value for key, value in attributes.items() if value is not None},
        "is_required": name in rules.required,
        "default_value": schema.get("default"),
        "sort_order": place,
        "is_featured": name in ("prompt", "image_urls", "image_size"),
        "created_at": None,
        "updated_at": None,
    }


def output_record(model_id: str, place: int) -> dict[str, Any]:
    name, kind, description = OUTPUTS[place]
    return {
        "id": named_id(model_id, "output", name),
        "model_id": model_id,
        "name": name,
        "display_name": name.replace("_", " ").capitalize(),
        "description": description,
        "variable_type_code": kind,
        "validator_code": None,
        "validator_attrs": {},
        "sort_order": place,
        "created_at": None,
        "updated_at": None,
    }
