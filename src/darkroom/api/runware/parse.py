"""One imageInference task of the wire → an ImageRequest and how to deliver it. Pure: nothing is fetched or looked up.

What may be sent is decided by the card alone (catalog/normalise.py and the schema made from it); this file gives the
fields their meaning. References are still the client's texts here: api/inputs.py turns them into stored images.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from darkroom.api.runware.options import Options, OutputType
from darkroom.catalog.acceleration import step_cache
from darkroom.catalog.card import Card
from darkroom.catalog.catalog import Catalog
from darkroom.catalog.guidance import resolve_guidance
from darkroom.catalog.normalise import prepare_task, read, read_or_default, respelled
from darkroom.errors import DarkroomError, InvalidParameter, NotFound, Problem
from darkroom.types import (
    MAX_SEED,
    Acceleration,
    AdapterStage,
    AdapterUse,
    FaceRefinement,
    ImageFormat,
    ImageRequest,
    Output,
    Value,
)

FORMATS = {"JPG": ImageFormat.JPEG, "PNG": ImageFormat.PNG, "WEBP": ImageFormat.WEBP}
LONGEST_TTL = 100 * 365 * 86400  # seconds; the contract names no maximum, a database's integer and a calendar have one
BLANK = "__BLANK__"  # the documented token for "no prompt"
FACE_PATHS = ("advancedFeatures.ultralytics", "ultralytics")
FACE_FIELDS = {
    "positivePrompt": "positive_prompt",
    "negativePrompt": "negative_prompt",
    "CFGScale": "guidance",
    "confidence": "confidence",
    "inpaintSize": "inpaint_size",
    "maskBlur": "mask_blur",
    "maskPadding": "mask_padding",
    "steps": "steps",
    "strength": "strength",
}


class Refused(DarkroomError):
    """A task with one or more wrong fields, all of them told. card: whose rules were broken."""

    code = "invalid_parameter"

    def __init__(self, violations: Sequence[DarkroomError], card: Card | None) -> None:
        super().__init__(" ".join(violation.message for violation in violations))
        self.violations = tuple(violations)
        self.card = card


class Parsed(Value, frozen=True, kw_only=True):
    """references: as the client gave them. sized: the client gave a size; else the first reference does.

    ttl_seconds: of the files, None for the server's default. spelled: see `Prepared`.
    """

    card: Card
    request: ImageRequest
    options: Options
    references: tuple[str, ...] = ()
    sized: bool = True
    ttl_seconds: int | None = None
    spelled: dict[str, str] = {}


def parse(task: Mapping[str, Any], catalog: Catalog, *, default_acceleration: str = "") -> Parsed:
    """Raises Refused with every violation, fields as the client spelled them, in the order the hosted API checks."""
    card = model_card(task, catalog)
    prepared = prepare_task(card, task)
    wire = prepared.task
    violations: list[DarkroomError] = list(prepared.violations)
    if not violations:
        violations += unstorable(wire)
    if violations:
        raise Refused(violations, card)
    try:
        parsed = _parsed(card, wire, default_acceleration)
    except InvalidParameter as error:  # a rule over several fields
        raise Refused([respelled(error, prepared.spelled)], card) from None
    return msgspec.structs.replace(parsed, spelled=prepared.spelled)


def model_card(task: Mapping[str, Any], catalog: Catalog) -> Card:
    """The card a task names. Raises Refused: without a card nothing else can be checked."""
    name = task.get("model")
    if isinstance(name, str) and name.strip():
        try:
            return catalog.resolve(name)
        except NotFound as error:
            raise Refused([error], None) from None
    problem = Problem.TYPE if name else Problem.MISSING
    message = "'model' must be a string such as 'runware:400@5'." if name else "'model' is required."
    raise Refused([InvalidParameter(message, parameter="model", problem=problem, expected="string")], None)


def unstorable(wire: Mapping[str, Any]) -> list[DarkroomError]:
    """Text with a NUL character: no database keeps it, no tokenizer reads it."""
    return [
        InvalidParameter(
            f"'{name}' contains a NUL character.", parameter=name, problem=Problem.FORMAT, expected="string"
        )
        for name, value in wire.items()
        if has_nul(value)
    ]


def has_nul(value: object) -> bool:
    if isinstance(value, Mapping):
        return any("\0" in name or has_nul(inner) for name, inner in value.items())
    if isinstance(value, list):
        return any(map(has_nul, value))
    return isinstance(value, str) and "\0" in value


def _parsed(card: Card, wire: dict[str, Any], default_acceleration: str) -> Parsed:
    def value(path: str) -> Any:
        return read_or_default(card, wire, path)

    steps = value("steps") or card.defaults.steps
    guidance, cfg_scale = resolve_guidance(card, read(wire, "CFGScale"), read(wire, "settings.trueCFGScale"))
    level = acceleration_of(card, wire, default_acceleration)
    seed = read(wire, "seed")
    outputs = value("outputType")
    request = ImageRequest(
        card=card.id,
        prompt=prompt_of(wire["positivePrompt"]),
        negative_prompt=read(wire, "negativePrompt", ""),
        width=read(wire, "width", card.defaults.width),
        height=read(wire, "height", card.defaults.height),
        steps=steps,
        seed=secrets.randbelow(2**32) if seed is None else min(seed, MAX_SEED),
        count=value("numberResults"),
        guidance=guidance,
        cfg_scale=cfg_scale,
        sampler=read(wire, "scheduler", "Default"),
        adapters=adapters_of(wire),
        acceleration=level,
        step_cache=step_cache(card, level, read(wire, "acceleratorOptions"), steps, "acceleratorOptions"),
        faces=faces_of(wire),
        upsample_prompt=bool(value("providerSettings.bfl.promptUpsampling")),
        check_safety=checks_safety(wire),
        safety_tolerance=read(wire, "providerSettings.bfl.safetyTolerance", 2),
        output=Output(format=FORMATS[value("outputFormat")], quality=value("outputQuality")),
    )
    options = Options(
        task_uuid=wire["taskUUID"],
        outputs=tuple(dict.fromkeys(OutputType(o) for o in (outputs if isinstance(outputs, list) else [outputs]))),
        sync=value("deliveryMethod") == "sync",
        webhook_url=read(wire, "webhookURL"),
        upload_url=read(wire, "uploadEndpoint"),
        include_cost=bool(value("includeCost")),
        seed_sent=seed if seed is not None and seed > MAX_SEED else None,
    )
    return Parsed(
        card=card,
        request=request,
        options=options,
        references=tuple(read(wire, "inputs.referenceImages", ())),
        sized="width" in wire,
        ttl_seconds=ttl_of(wire, options),
    )


def ttl_of(wire: Mapping[str, Any], options: Options) -> int | None:
    """Seconds the files are kept, None for the server's default; a ttl counts only for results given by URL."""
    ttl = read(wire, "ttl")
    return None if ttl is None or OutputType.URL not in options.outputs else min(int(ttl), LONGEST_TTL)


def acceleration_of(card: Card, wire: Mapping[str, Any], server_default: str) -> Acceleration:
    """The client's level, else the operator's, else the card's; a card without levels keeps its own."""
    level = read(wire, "acceleration") or (server_default if "acceleration" in card.parameters else "")
    return Acceleration(level or card.defaults.acceleration)


def prompt_of(text: str) -> str:
    return "" if text.strip() == BLANK else text


def adapters_of(wire: Mapping[str, Any]) -> tuple[AdapterUse, ...]:
    return tuple(
        AdapterUse(
            adapter=entry["model"],
            weight=float(entry.get("weight", 1.0)),
            stage=AdapterStage(entry.get("transformer", "both")),
        )
        for entry in wire.get("lora", ())
    )


def faces_of(wire: Mapping[str, Any]) -> FaceRefinement | None:
    """The object's presence switches the pass on, empty or not."""
    for path in FACE_PATHS:
        given = read(wire, path)
        if given is not None:
            return msgspec.convert({FACE_FIELDS[name]: value for name, value in given.items()}, FaceRefinement)
    return None


def checks_safety(wire: Mapping[str, Any]) -> bool:
    """mode wins over checkContent, which alone means fast."""
    mode = read(wire, "safety.mode")
    return mode != "none" if mode is not None else bool(read(wire, "safety.checkContent", False))


def fitted_size(card: Card, width: int, height: int) -> tuple[int, int]:
    """The size of an edit that names none: that of its first reference, scaled into the card's range, in its steps.

    A reference above the card's pixel limit is read scaled down to it, and gives the size it is read at.
    """
    rules = card.parameters["width"]
    low, high, step = int(rules.min or 16), int(rules.max or 2048), int(rules.step or 16)
    scale = min(1.0, (card.references.max_pixels / (width * height)) ** 0.5, high / max(width, height))
    scale = max(scale, low / min(width, height))

    def side(pixels: int) -> int:
        return int(min(high, max(low, step * round(pixels * scale / step))))

    return side(width), side(height)
