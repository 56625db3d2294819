from __future__ import annotations

import json

import pytest
from jsonschema_rs import Draft202012Validator, meta

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.schema import task_schema

CARDS = load_catalog().cards


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_it_is_a_json_schema_2020_12_and_json(card: Card) -> None:
    schema = json.loads(json.dumps(task_schema(card)))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert meta.is_valid(schema)
    Draft202012Validator(schema)
    assert list(schema["properties"])[:6] == ["taskType", "taskUUID", "model", "positivePrompt", "width", "height"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_every_object_refuses_unknown_names(card: Card) -> None:
    def walk(schema: dict, path: str) -> None:  # type: ignore[type-arg]
        if schema.get("type") == "object" and path != "routing":
            assert schema["additionalProperties"] is False, path
        for name, inner in schema.get("properties", {}).items():
            walk(inner, f"{path}.{name}".lstrip("."))
        if "items" in schema:
            walk(schema["items"], f"{path}[]")

    walk(task_schema(card), "")


def test_nesting_and_keywords_are_those_of_the_page() -> None:
    card = load_catalog().resolve("runware:400@5")
    schema = task_schema(card)
    top = schema["properties"]
    assert schema["required"] == ["taskType", "taskUUID", "model", "positivePrompt"]
    assert schema["dependentRequired"] == {"width": ["height"], "height": ["width"]}
    width = {"type": "integer", "minimum": 128, "maximum": 2048, "multipleOf": 16}
    assert {key: top["width"][key] for key in width} == width
    assert top["inputs"]["properties"]["referenceImages"]["maxItems"] == 4
    assert top["acceleratorOptions"]["properties"]["fbCacheThreshold"]["default"] == 0.25
    assert len(top["acceleratorOptions"]["properties"]) == 12
    assert len(top["advancedFeatures"]["properties"]["ultralytics"]["properties"]) == 8
    assert top["lora"]["minItems"] == 1
    assert top["lora"]["items"]["required"] == ["model"]
    assert top["lora"]["items"]["properties"]["weight"]["multipleOf"] == 0.01
    assert top["scheduler"]["enum"] == list(card.parameters["scheduler"].choices)
    assert top["taskUUID"]["format"] == "uuid"
    assert top["safety"]["properties"]["mode"]["enum"] == ["none", "fast"]


def test_flex_has_its_provider_settings() -> None:
    top = task_schema(load_catalog().resolve("bfl:6@1"))["properties"]
    assert set(top["providerSettings"]["properties"]["bfl"]["properties"]) == {"promptUpsampling", "safetyTolerance"}
