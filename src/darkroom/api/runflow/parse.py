"""A run's body → what it asks for → ImageRequest. Pure: nothing is fetched, stored or looked up here.

parse_run(rules, body)                     the envelope and `input`, checked; every violation is told at once
image_request(run, card, media, …)         with its references stored, complete down to the last default
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from darkroom.api.bodies import why_unreadable
from darkroom.api.runflow.errors import BadRequest, Rejected
from darkroom.api.runflow.schema import (
    DEFAULT_PRESET,
    PRESETS,
    envelope,
    input_schema,
    needs_images,
    takes_images,
)
from darkroom.catalog.acceleration import step_cache
from darkroom.catalog.card import Card, RunflowModel
from darkroom.catalog.guidance import resolve_guidance
from darkroom.catalog.validate import Validator
from darkroom.errors import InputImageError, InvalidParameter, Problem
from darkroom.media.fetch import check_url
from darkroom.types import MAX_SEED, Acceleration, GuidanceKind, ImageFormat, ImageRequest, Output, Value

MAX_METADATA = 16 * 1024  # bytes of JSON
MULTIPLE = 16  # pixels: the side of one latent token
RANDOM_SEEDS = 2**32  # drawn seeds survive JavaScript's numbers
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,30}):")
ASSET = re.compile(r"runflow://assets/([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})/?")


class RunBody(Value, frozen=True, kw_only=True):
    """A checked body. size: None when the first reference gives it. image_field: how the references were called.

    input: as sent. ignored: fields of it nobody knows.
    """

    input: dict[str, Any]
    prompt: str
    size: tuple[int, int] | None
    count: int
    steps: int
    seed: int | None
    format: ImageFormat
    check_safety: bool
    sync: bool
    guidance: float | None
    images: tuple[str, ...] = ()
    image_field: str = "input.image_urls"
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    client_ref: str | None = None
    ignored: tuple[str, ...] = ()


class ModelRules:
    """What a body for one model must look like, compiled once."""

    def __init__(self, card: Card, model: RunflowModel) -> None:
        self.card = card
        self.model = model
        schema = input_schema(card, model)
        self.properties: dict[str, Any] = schema["properties"]
        self.required = ("prompt", "image_urls") if needs_images(model) else ("prompt",)
        self._preset = Validator(envelope(schema))
        self._custom = Validator(envelope(input_schema(card, model, custom_size=True)))

    def violations(self, body: Mapping[str, Any]) -> list[InvalidParameter]:
        sent = body.get("input")
        custom = isinstance(sent, dict) and isinstance(sent.get("image_size"), dict)
        return [_sized(each) for each in (self._custom if custom else self._preset).violations(body)]


def _sized(violation: InvalidParameter) -> InvalidParameter:
    """What is wrong with a size tells of its other form, too, which the schema of the one cannot know."""
    if violation.parameter != "input.image_size":
        return violation
    return InvalidParameter(
        f'{violation.message} Or send an object such as {{"width": 1024, "height": 768}}.',
        parameter=violation.parameter,
        problem=violation.problem,
        expected=violation.expected,
        allowed=violation.allowed,
    )


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises BadRequest."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadRequest(f"The body {why_unreadable(data)}.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body must be a JSON object such as {"input": {…}}.')
    return body


def parse_run(rules: ModelRules, body: Mapping[str, Any]) -> RunBody:
    """Check a body against its model. Raises Rejected with every violation."""
    found = [*rules.violations(body), *_beyond_schema(rules, body)]
    if found:
        raise Rejected(found)
    sent: dict[str, Any] = body["input"]
    given = {name: value for name, value in sent.items() if value is not None}
    images, field = _images(given)
    guidance = given.get("guidance_scale")
    return RunBody(
        input=sent,
        prompt=given["prompt"],
        size=_size(given, of_reference=bool(images)),
        count=int(given.get("num_images", 1)),
        steps=int(given.get("num_inference_steps", given.get("steps", rules.card.defaults.steps))),
        seed=seed_within(int(given["seed"])) if "seed" in given else None,
        format=ImageFormat(given.get("output_format", rules.model.output_format)),
        check_safety=given.get("enable_safety_checker", True),
        sync=given.get("sync_mode", False),
        guidance=float(guidance) if guidance is not None else None,
        images=images,
        image_field=field,
        callback_url=body.get("callback_url"),
        metadata=body.get("metadata"),
        client_ref=body.get("client_ref"),
        ignored=tuple(name[:100] for name in given if name not in rules.properties),
    )


def image_request(
    run: RunBody,
    card: Card,
    references: Sequence[tuple[str, int, int]],
    *,
    acceleration: Acceleration,
    can_check_safety: bool,
    metadata: bool,
    draw_seed: Callable[[int], int] = secrets.randbelow,
) -> ImageRequest:
    """The request with no field left open. references: (media id, width, height) in order."""
    width, height = fit_size(card, *(run.size or references[0][1:]))
    guidance, cfg_scale = resolve_guidance(card, run.guidance, None)
    return ImageRequest(
        card=card.id,
        prompt=run.prompt,
        width=width,
        height=height,
        steps=run.steps,
        seed=run.seed if run.seed is not None else draw_seed(RANDOM_SEEDS),
        count=run.count,
        guidance=guidance,
        cfg_scale=cfg_scale,
        references=tuple(media_id for media_id, _, _ in references),
        acceleration=acceleration,
        step_cache=step_cache(card, acceleration, None, run.steps, ""),
        check_safety=run.check_safety and can_check_safety,
        hide_unsafe=run.check_safety and can_check_safety,
        output=Output(format=run.format, metadata=metadata),
    )


def fit_size(card: Card, width: int, height: int) -> tuple[int, int]:
    """The nearest size the model can make: scaled down as a whole if a side is too long, then rounded to 16."""
    scale = min(1.0, _limit(card, "width")[1] / width, _limit(card, "height")[1] / height)
    return _fit_side(card, "width", width * scale), _fit_side(card, "height", height * scale)


def seed_within(seed: int) -> int:
    """The seed as the engine takes it. Any number is one; those that are out of range stand for the one of the drawn
    seeds' range that they are equal to, modulo its size."""
    return seed if 0 <= seed <= MAX_SEED else seed % RANDOM_SEEDS


def warnings_of(run: RunBody, card: Card, *, can_check_safety: bool) -> tuple[str, ...]:
    """What was accepted and changes nothing."""
    found = []
    if run.guidance is not None and card.guidance is GuidanceKind.NONE:
        found.append("guidance_scale has no effect on a step-distilled model.")
    if run.input.get("enable_safety_checker") and not can_check_safety:
        found.append("No safety checker is installed: the pictures were not checked and nsfw_detected is null.")
    return tuple(found)


def _beyond_schema(rules: ModelRules, body: Mapping[str, Any]) -> list[InvalidParameter]:
    """What a schema cannot say, or not as clearly."""
    found = bad_callback(body)
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and (size := len(msgspec.json.encode(metadata))) > MAX_METADATA:
        message = f"'metadata' must have at most {MAX_METADATA} bytes as JSON; it has {size}."
        found.append(InvalidParameter(message, parameter="metadata", problem=Problem.TOO_LONG))
    sent = body.get("input")
    if not isinstance(sent, dict):
        return found
    if not takes_images(rules.model):
        found.extend(
            _no_images(rules.model, name) for name in ("image_urls", "image_url") if sent.get(name) is not None
        )
    else:
        found.extend(_bad_schemes(sent))
    return found


def bad_callback(body: Mapping[str, Any]) -> list[InvalidParameter]:
    """A callback_url that nobody could call: the same look at it as when it is called."""
    url = body.get("callback_url")
    try:
        if isinstance(url, str):
            check_url(url)
    except InputImageError as error:
        message = f"'callback_url' cannot be used. {error.message}"
        return [InvalidParameter(message, parameter="callback_url", problem=Problem.FORMAT)]
    return []


def _no_images(model: RunflowModel, name: str) -> InvalidParameter:
    return InvalidParameter(
        f"'input.{name}' is not taken by {model.id}, which makes pictures from text alone; "
        f"send the run to {model.id}/edit.",
        parameter=f"input.{name}",
        problem=Problem.INCOMPATIBLE,
    )


def _bad_schemes(sent: Mapping[str, Any]) -> list[InvalidParameter]:
    urls = sent.get("image_urls")
    named = [(f"input.image_urls[{place}]", url) for place, url in enumerate(urls if isinstance(urls, list) else ())]
    named.append(("input.image_url", sent.get("image_url")))
    return [_bad_scheme(name, url) for name, url in named if isinstance(url, str) and not _known_scheme(url)]


def _known_scheme(url: str) -> bool:
    match = SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    return scheme in ("http", "https", "data") or (scheme == "runflow" and asset_id(url) is not None)


def _bad_scheme(name: str, url: str) -> InvalidParameter:
    match = SCHEME.match(url)
    what = f"has the scheme {match[1]}" if match else "has no scheme"
    if match and match[1].lower() == "runflow":
        what = "is not of the form runflow://assets/{id}"
    return InvalidParameter(
        f"'{name}' {what}; an HTTP(S) URL, a data URI or runflow://assets/{{id}} is needed.",
        parameter=name,
        problem=Problem.FORMAT,
    )


def asset_id(url: str) -> str | None:
    """The id in runflow://assets/{id}, None for anything else."""
    match = ASSET.fullmatch(url)
    return match[1].lower() if match else None


def _images(given: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    if "image_urls" in given or "image_url" not in given:
        return tuple(given.get("image_urls", ())), "input.image_urls"
    return (given["image_url"],), "input.image_url"


def _size(given: Mapping[str, Any], *, of_reference: bool) -> tuple[int, int] | None:
    """Explicit numbers beat a preset; without either a reference gives the size, else the default preset."""
    size = given.get("image_size")
    if "width" in given:
        return int(given["width"]), int(given["height"])
    if isinstance(size, dict):
        return int(size["width"]), int(size["height"])
    if size is None and of_reference:
        return None
    return PRESETS[size or DEFAULT_PRESET]


def _limit(card: Card, name: str) -> tuple[int, int]:
    rules = card.parameters[name]
    return int(rules.min or MULTIPLE), int(rules.max or MULTIPLE)


def _fit_side(card: Card, name: str, pixels: float) -> int:
    low, high = _limit(card, name)
    rounded = int(pixels / MULTIPLE + 0.5) * MULTIPLE
    return min(max(rounded, -(-low // MULTIPLE) * MULTIPLE), high // MULTIPLE * MULTIPLE)
