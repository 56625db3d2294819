"""parse.py backwards: the imageInference task that asks for an ImageRequest, so that a picture can be made again.

Without its id, and without the addresses it was delivered to: those are the business of whoever sent it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from darkroom.api.bodies import why_unreadable
from darkroom.api.runware.parse import BLANK, FACE_FIELDS, FACE_PATHS, FORMATS
from darkroom.catalog.acceleration import cache_options
from darkroom.catalog.card import Card
from darkroom.catalog.guidance import scales_of
from darkroom.errors import InvalidParameter, Problem
from darkroom.types import FaceRefinement, ImageRequest

FORMAT_NAMES: Final = {kind: name for name, kind in FORMATS.items()}


class Asked(ImageRequest, frozen=True, kw_only=True):
    """A request as a record or a picture's file carries it, which has how long it was to be kept beside it."""

    ttl_seconds: int | None = None


def read_request(body: bytes, card: str) -> Asked:
    """Fields that are no request's are ignored: files of other versions have others. Raises InvalidParameter."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert({**found, "card": card}, Asked)
    except msgspec.ValidationError as error:
        told = f"This is not a request as a record or a picture's file carries it: {error}."
        raise InvalidParameter(told, parameter="body", problem=Problem.FORMAT) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        told = f"The body {why_unreadable(body)}."
        raise InvalidParameter(told, parameter="body", problem=Problem.FORMAT) from None


def task_of(request: ImageRequest, card: Card, ttl_seconds: int | None = None) -> dict[str, Any]:
    """Every parameter of it that the card has, nested as it is sent; what is off or unlimited is left out.

    What the task API has no word for is lost: that a flagged picture was handed over black (`hide_unsafe`).
    """
    cfg_scale, true_cfg_scale = scales_of(card, request.guidance, request.cfg_scale)
    values: dict[str, Any] = {
        "taskType": "imageInference",
        "model": card.id,
        "positivePrompt": request.prompt or BLANK,
        "negativePrompt": request.negative_prompt or None,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "seed": request.seed,
        "numberResults": request.count,
        "CFGScale": cfg_scale,
        "settings.trueCFGScale": true_cfg_scale,
        "scheduler": None if request.sampler == "Default" else request.sampler,
        "inputs.referenceImages": list(request.references) or None,
        "lora": [
            {"model": use.adapter, "weight": use.weight, "transformer": use.stage.value} for use in request.adapters
        ]
        or None,
        "acceleration": request.acceleration.value,
        "acceleratorOptions": cache_options(card, request.acceleration, request.step_cache, request.steps) or None,
        "safety.checkContent": request.check_safety or None,
        "providerSettings.bfl.promptUpsampling": request.upsample_prompt or None,
        "providerSettings.bfl.safetyTolerance": request.safety_tolerance if request.safety_tolerance != 2 else None,
        "outputFormat": FORMAT_NAMES[request.output.format],
        "outputQuality": request.output.quality,
        "ttl": ttl_seconds,
    }
    values |= _faces(card, request.faces) if request.faces else {}
    task: dict[str, Any] = {}
    for path, value in values.items():
        if value is not None and path in card.parameters:
            _put(task, path, value)
    return task


def _faces(card: Card, faces: FaceRefinement) -> dict[str, Any]:
    """By path, where this card has the face pass; the object itself too, since its presence switches the pass on."""
    at = next((path for path in FACE_PATHS if path in card.parameters), FACE_PATHS[0])
    fields = {f"{at}.{name}": getattr(faces, field) for name, field in FACE_FIELDS.items()}
    return {at: {}} | {path: value for path, value in fields.items() if value != ""}


def _put(task: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        task = task.setdefault(parent, {})
    task[name] = value
