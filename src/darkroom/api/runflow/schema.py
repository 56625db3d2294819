"""The JSON Schema of a run's body, per model: what validates a request is what the model catalogue publishes.

Ranges and defaults that belong to the model (size, steps, guidance, references) come from its card. Unknown fields
are allowed, since programs are ported between models with other fields; they are reported on the run instead. `null`
means "not given" everywhere.
"""

from __future__ import annotations

from typing import Any

from darkroom.catalog.card import Card, RunflowModel
from darkroom.types import GuidanceKind

PRESETS = {  # image_size → width, height
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
DEFAULT_PRESET = "landscape_4_3"
FORMATS = ("jpeg", "png", "webp")
MAX_PROMPT = 32_000  # characters; far more than any text encoder reads
MAX_IMAGES = 4
MAX_GUIDANCE = 20
MAX_URL = 2048
MAX_CLIENT_REF = 255


def takes_images(model: RunflowModel) -> bool:
    return model.edit


def needs_images(model: RunflowModel) -> bool:
    return model.id.endswith("/edit")


def input_schema(card: Card, model: RunflowModel, *, custom_size: bool = False) -> dict[str, Any]:
    """Schema of `input`. custom_size: image_size is an object with width and height instead of a preset."""
    properties = _common(card, model) | (_images(card) if takes_images(model) else {})
    if custom_size:
        properties["image_size"] = _custom_size(card)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "dependentRequired": {"width": ["height"], "height": ["width"]},
    }
    if needs_images(model):
        schema["anyOf"] = [{"required": ["image_urls"]}, {"required": ["image_url"]}]
    elif not custom_size:
        properties["image_size"]["default"] = DEFAULT_PRESET
    return schema


def envelope(input_rules: dict[str, Any]) -> dict[str, Any]:
    """Schema of the whole body around a schema of `input`."""
    return {
        "type": "object",
        "properties": {
            "input": input_rules,
            "callback_url": {
                "type": "string",
                "maxLength": MAX_URL,
                "description": "POSTed once when the run has ended.",
            },
            "metadata": {"type": "object", "description": "Kept with the run and sent back unchanged."},
            "client_ref": {
                "type": "string",
                "maxLength": MAX_CLIENT_REF,
                "pattern": "^[^\\u0000]*$",  # no database column holds a NUL
                "description": "Your own id of this run; GET /v1/runs?q=client_ref:… finds it.",
            },
        },
        "required": ["input"],
    }


def _common(card: Card, model: RunflowModel) -> dict[str, Any]:
    return {
        "prompt": {"type": "string", "maxLength": MAX_PROMPT, "description": "What the picture shows."},
        "image_size": {
            "type": "string",
            "enum": list(PRESETS),
            "description": "A preset, or an object with width and height in pixels.",
        },
        "width": _side(card, "width"),
        "height": _side(card, "height"),
        "num_images": _integer(1, MAX_IMAGES, 1, "Pictures to make; picture i uses seed + i."),
        "num_inference_steps": _steps(card, card.defaults.steps, "Denoising steps."),
        "steps": _steps(card, None, "Another name of num_inference_steps, which wins."),
        "seed": {
            "type": "integer",
            "description": "Any. The same request with the same seed gives the same pictures; random if absent.",
        },
        "guidance_scale": {
            "type": "number",
            "minimum": 0,
            "maximum": MAX_GUIDANCE,
            **({"default": card.defaults.cfg_scale} if card.guidance is not GuidanceKind.NONE else {}),
            "description": "How closely the prompt is followed. No effect on step-distilled models.",
        },
        "output_format": {
            "type": "string",
            "enum": list(FORMATS),
            "default": model.output_format,
            "description": "File format.",
        },
        "enable_safety_checker": {
            "type": "boolean",
            "default": True,
            "description": "Black out unsafe pictures, if a checker is installed; else nsfw_detected stays null.",
        },
        "sync_mode": {"type": "boolean", "default": False, "description": "Answer when the run has ended."},
    }


def _images(card: Card) -> dict[str, Any]:
    """References: 1 to what the model takes."""
    return {
        "image_urls": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": card.references.max_count,
            "description": "Pictures to work from: http(s) URLs, data URIs or runflow://assets/{id}.",
        },
        "image_url": {"type": "string", "description": "One picture; the same as image_urls with one entry."},
    }


def _custom_size(card: Card) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"width": _side(card, "width"), "height": _side(card, "height")},
        "required": ["width", "height"],
    }


def _side(card: Card, name: str) -> dict[str, Any]:
    """Any number of pixels within the model's range; rounded to a multiple of 16 afterwards."""
    rules = card.parameters[name]
    description = f"Pixels, rounded to a multiple of 16; {'height' if name == 'width' else 'width'} is needed too."
    return {"type": "integer", "minimum": rules.min, "maximum": rules.max, "description": description}


def _steps(card: Card, default: int | None, description: str) -> dict[str, Any]:
    rules = card.parameters["steps"]
    return _integer(rules.min, rules.max, default, description)


def _integer(low: float | None, high: float | None, default: int | None, description: str) -> dict[str, Any]:
    rules: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return rules | ({"default": default} if default is not None else {}) | {"description": description}
