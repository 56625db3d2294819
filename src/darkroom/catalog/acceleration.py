"""From a request's acceleration level and its twelve options to the engine's StepCache.

Directions. The API documents fbCacheThreshold and dbCacheThreshold with "lower values reuse more"; the published
methods, and this engine, reuse a step when its change is *below* the threshold, so that higher reuses more. The
documented direction holds at the API and is turned round here, once:

    engine threshold = residual_scale · (1 − value)     fbCache, dbCache: 0 → 0.16, the default 0.25 → 0.12, 1 → never
    engine threshold = tea_scale · value                teaCacheDistance: documented the usual way round

The two scales are facts of the card. 0.12 is in the range published for FLUX (0.08 to 0.2: PSNR 30 dB and above).

Levels. `none` and `low` reuse nothing (low is for what leaves the picture equal, which the engine does anyway);
`medium` and `high` are the card's presets. An explicit switch wins over the level: true replaces its preset, false
for the preset's own cache turns it off. Start, end and consecutive steps, given alone, adjust the preset; of a window
with one end given the other is open: the first or the last step. A threshold without its switch has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from darkroom.catalog.card import CachePreset, Card
from darkroom.errors import InvalidParameter, Problem
from darkroom.types import Acceleration, StepCache, StepCacheKind, Value


class CacheOptions(Value, frozen=True, kw_only=True, rename="camel"):
    """The options by their documented meaning; None: not given. Percentages are of the steps, 0 to 100."""

    tea_cache: bool | None = None
    tea_cache_distance: float = 0.5
    fb_cache: bool | None = None
    fb_cache_threshold: float = 0.25
    db_cache: bool | None = None
    db_cache_threshold: float = 0.25
    db_cache_skip_interval: int = 5
    cache_start_step: int | None = None
    cache_end_step: int | None = None
    cache_start_step_percentage: int | None = None
    cache_end_step_percentage: int | None = None
    cache_max_consecutive_steps: int | None = None


WIRE = {field.name: field.encode_name for field in msgspec.structs.fields(CacheOptions)}
SWITCHES = {
    "tea_cache": StepCacheKind.TEA,
    "fb_cache": StepCacheKind.FIRST_BLOCK,
    "db_cache": StepCacheKind.DUAL_BLOCK,
}
SWITCH_OF = {kind: name for name, kind in SWITCHES.items()}
DEFAULT_CONSECUTIVE = 3


def step_cache(
    card: Card, level: Acceleration, options: Mapping[str, Any] | None, steps: int, at: str
) -> StepCache | None:
    """The cache one request runs with, None for none.

    options: as on the wire, already valid one by one against the card's schema. steps: those the request runs.
    at: the options' place in the request, for errors. Raises InvalidParameter for a rule over several fields.
    """
    given = msgspec.convert(dict(options or {}), CacheOptions)
    _check_alternatives(given, at)
    start, end = _window(given, steps, at)
    preset = {Acceleration.MEDIUM: card.acceleration.medium, Acceleration.HIGH: card.acceleration.high}.get(level)
    switched = [kind for name, kind in SWITCHES.items() if getattr(given, name)]
    if switched:
        cache = _explicit(card, switched[0], given)
    elif preset is not None and not _switched_off(preset.kind, given):
        cache = _of_preset(preset, given, steps)
    else:
        return None
    if start is not None or end is not None:
        cache = msgspec.structs.replace(cache, start_step=start or 0, end_step=end)
    # A step is computed every `steps` steps at the latest: more would say the same.
    return msgspec.structs.replace(cache, refresh_interval=min(cache.refresh_interval, steps))


def cache_options(card: Card, level: Acceleration, cache: StepCache | None, steps: int) -> dict[str, Any]:
    """step_cache backwards: options, as on the wire, that give this cache; {} when the level alone does."""
    preset = {Acceleration.MEDIUM: card.acceleration.medium, Acceleration.HIGH: card.acceleration.high}.get(level)
    if cache is None:
        return {WIRE[SWITCH_OF[preset.kind]]: False} if preset else {}
    if preset and (cache.kind, cache.threshold) == (preset.kind, preset.threshold):
        usual = _of_preset(preset, CacheOptions(), steps)
        options: dict[str, Any] = {}
    else:
        usual = StepCache(kind=cache.kind, threshold=cache.threshold, max_consecutive=DEFAULT_CONSECUTIVE)
        options = _switched_on(card, cache)
    if cache.max_consecutive != usual.max_consecutive:
        options["cache_max_consecutive_steps"] = cache.max_consecutive
    if (cache.start_step, cache.end_step) != (usual.start_step, usual.end_step):
        options |= {"cache_start_step": cache.start_step, "cache_end_step": cache.end_step}
    return {WIRE[name]: value for name, value in options.items() if value is not None}


def _switched_on(card: Card, cache: StepCache) -> dict[str, Any]:
    """Thresholds to two places, as they are sent."""
    match cache.kind:
        case StepCacheKind.TEA:
            return {"tea_cache": True, "tea_cache_distance": _hundredths(cache.threshold / card.acceleration.tea_scale)}
        case StepCacheKind.FIRST_BLOCK:
            value = _hundredths(1 - cache.threshold / card.acceleration.residual_scale)
            return {"fb_cache": True, "fb_cache_threshold": value}
        case StepCacheKind.DUAL_BLOCK:
            value = _hundredths(1 - cache.threshold / card.acceleration.residual_scale)
            interval = max(1, cache.refresh_interval - 1)
            return {"db_cache": True, "db_cache_threshold": value, "db_cache_skip_interval": interval}


def _hundredths(value: float) -> float:
    return min(1.0, max(0.0, round(value, 2)))


def _explicit(card: Card, kind: StepCacheKind, given: CacheOptions) -> StepCache:
    consecutive = given.cache_max_consecutive_steps or DEFAULT_CONSECUTIVE
    scale = card.acceleration.residual_scale
    refresh = consecutive + 1  # never reached before `consecutive` is
    match kind:
        case StepCacheKind.TEA:
            threshold = card.acceleration.tea_scale * given.tea_cache_distance
        case StepCacheKind.FIRST_BLOCK:
            threshold = scale * (1 - given.fb_cache_threshold)
        case StepCacheKind.DUAL_BLOCK:
            threshold, refresh = scale * (1 - given.db_cache_threshold), given.db_cache_skip_interval + 1
    return StepCache(kind=kind, threshold=threshold, max_consecutive=consecutive, refresh_interval=refresh)


def _of_preset(preset: CachePreset, given: CacheOptions, steps: int) -> StepCache:
    consecutive = given.cache_max_consecutive_steps or preset.max_consecutive
    return StepCache(
        kind=preset.kind,
        threshold=preset.threshold,
        start_step=round(preset.start * steps),
        end_step=round(preset.end * steps),
        max_consecutive=consecutive,
        refresh_interval=consecutive + 1,
    )


def _switched_off(kind: StepCacheKind, given: CacheOptions) -> bool:
    return any(getattr(given, name) is False for name, other in SWITCHES.items() if other is kind)


def _check_alternatives(given: CacheOptions, at: str) -> None:
    on = [name for name in SWITCHES if getattr(given, name)]
    if len(on) > 1:
        raise _incompatible(on, at, "are alternatives: switch one of them on")
    for bound in ("cache_start_step", "cache_end_step"):
        both = [bound, f"{bound}_percentage"]
        if all(getattr(given, name) is not None for name in both):
            raise _incompatible(both, at, "say the same in steps and in percent: give one of them")


def _window(given: CacheOptions, steps: int, at: str) -> tuple[int | None, int | None]:
    """(start, end) in steps, None where the request does not say. Start before end, end at most steps."""
    start, end = given.cache_start_step, given.cache_end_step
    start_name, end_name = "cache_start_step", "cache_end_step"
    if given.cache_start_step_percentage is not None:
        start_name, start = "cache_start_step_percentage", steps * given.cache_start_step_percentage // 100
    if given.cache_end_step_percentage is not None:
        end_name, end = "cache_end_step_percentage", -(-steps * given.cache_end_step_percentage // 100)
    percentages = given.cache_start_step_percentage, given.cache_end_step_percentage
    if percentages[0] is not None and percentages[1] is not None and percentages[0] >= percentages[1]:
        raise _out_of_order(end_name, start_name, percentages[0], at)
    if end is not None and end > steps:
        raise _invalid(end_name, at, Problem.ABOVE, f"must be at most the number of steps, {steps}; {end} was given")
    if start is not None and end is not None and start >= end:
        raise _out_of_order(end_name, start_name, start, at)
    if start is not None and start >= steps:
        raise _invalid(start_name, at, Problem.ABOVE, f"must be below the number of steps, {steps}; {start} was given")
    return start, end


def _invalid(name: str, at: str, problem: Problem, rule: str) -> InvalidParameter:
    field = f"{at}.{WIRE[name]}"
    return InvalidParameter(f"'{field}' {rule}.", parameter=field, problem=problem, expected="integer")


def _out_of_order(end: str, start: str, value: int, at: str) -> InvalidParameter:
    return _invalid(end, at, Problem.BELOW, f"must be greater than '{at}.{WIRE[start]}', which is {value}")


def _incompatible(names: list[str], at: str, rule: str) -> InvalidParameter:
    fields = tuple(f"{at}.{WIRE[name]}" for name in names)
    quoted = " and ".join(f"'{field}'" for field in fields)
    return InvalidParameter(f"{quoted} {rule}.", parameter=fields, problem=Problem.INCOMPATIBLE)
