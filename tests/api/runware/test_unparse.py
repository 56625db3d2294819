"""What a request is told back as, read again, is the same request: no parameter is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from darkroom.api.runware.parse import parse
from darkroom.api.runware.unparse import task_of
from darkroom.catalog.card import Card
from darkroom.types import ImageRequest
from tests.api.runware.test_parse import UUID, parsed
from tests.api.servers import CATALOG

SIZE = {"width": 512, "height": 768}  # every card knows it
FACES = {"positivePrompt": "a calm face", "CFGScale": 4.5, "confidence": 0.5, "maskBlur": 9, "maskPadding": 3}
EVERYTHING: dict[str, Any] = {
    "negativePrompt": "blurry",
    "seed": 12,
    "steps": 20,
    "numberResults": 3,
    "CFGScale": 2.25,
    "settings": {"trueCFGScale": 3},
    "scheduler": "Euler",
    "lora": [{"model": "darkroom:1@1", "weight": -0.5, "transformer": "low"}],
    "acceleration": "none",
    "acceleratorOptions": {"dbCache": True, "dbCacheThreshold": 0.4, "cacheStartStep": 2, "dbCacheSkipInterval": 3},
    "advancedFeatures": {"ultralytics": {**FACES, "negativePrompt": "grin", "steps": 7, "strength": 0.15}},
    "safety": {"checkContent": True},
    "outputFormat": "WEBP",
    "outputQuality": 80,
    "ttl": 600,
    "inputs": {"referenceImages": ["a-picture", "another"]},
}


def again(card: Card, request: ImageRequest, ttl_seconds: int | None = None) -> Any:
    return parse({**task_of(request, card, ttl_seconds), "taskUUID": UUID}, CATALOG)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("runware:400@5", EVERYTHING),
        ("runware:400@1", EVERYTHING),
        ("runware:400@6", {"ultralytics": {**FACES, "inpaintSize": 512}, "positivePrompt": "__BLANK__"}),
        ("runware:400@6", {"ultralytics": dict.fromkeys(("CFGScale", "confidence", "maskBlur", "strength"), 0)}),
        ("bfl:6@1", {"providerSettings": {"bfl": {"promptUpsampling": True, "safetyTolerance": 5}}, "CFGScale": 4}),
    ],
)
def test_every_parameter_comes_back(model: str, fields: dict[str, Any]) -> None:
    first = parsed(model, **SIZE | fields)
    request = replace(first.request, references=first.references)
    second = again(first.card, request, first.ttl_seconds)
    assert second.request == first.request
    assert (second.references, second.ttl_seconds) == (first.references, first.ttl_seconds)


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
def test_what_was_left_to_the_card_is_left_to_it(card: Card) -> None:
    first = parsed(card.id, **SIZE).request
    told = task_of(first, card)
    assert again(card, first).request == first
    features = {"acceleratorOptions", "ultralytics", "advancedFeatures", "safety", "ttl", "providerSettings"}
    assert not features & set(told)


def windows() -> st.SearchStrategy[dict[str, int]]:
    start, end = st.integers(0, 3), st.integers(4, 8)
    return st.fixed_dictionaries({}, optional={"cacheStartStep": start, "cacheEndStep": end})


def caches() -> st.SearchStrategy[dict[str, Any]]:
    hundredths = st.integers(0, 100).map(lambda value: value / 100)
    consecutive = st.integers(1, 5)
    more = st.fixed_dictionaries({}, optional={"cacheMaxConsecutiveSteps": consecutive})
    kinds = st.one_of(
        st.just({}),
        st.sampled_from(["fbCache", "teaCache", "dbCache"]).map(lambda name: {name: False}),
        hundredths.map(lambda value: {"fbCache": True, "fbCacheThreshold": value}),
        hundredths.map(lambda value: {"teaCache": True, "teaCacheDistance": value}),
        st.tuples(hundredths, st.integers(1, 30)).map(
            lambda both: {"dbCache": True, "dbCacheThreshold": both[0], "dbCacheSkipInterval": both[1]}
        ),
    )
    return st.tuples(kinds, windows(), more).map(lambda parts: parts[0] | parts[1] | parts[2])


@settings(deadline=None)
@given(caches(), st.sampled_from(["none", "low", "medium", "high"]), st.integers(8, 50))
@pytest.mark.parametrize("model", ["runware:400@5", "runware:400@1"])
def test_every_cache_comes_back(model: str, options: dict[str, Any], level: str, steps: int) -> None:
    first = parsed(model, acceleration=level, acceleratorOptions=options, steps=steps, **SIZE)
    second = again(first.card, first.request).request
    assert second.acceleration is first.request.acceleration
    ours, theirs = first.request.step_cache, second.step_cache
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert theirs.threshold == pytest.approx(ours.threshold, abs=1e-9)
        for name in ("kind", "start_step", "end_step", "max_consecutive", "refresh_interval"):
            assert getattr(theirs, name) == getattr(ours, name), name


def test_what_the_runs_api_takes_more_finely_is_rounded_to_what_the_card_takes() -> None:
    card = CATALOG.resolve("runware:400@5")
    request = replace(parsed(card.id).request, cfg_scale=2.5551)
    assert again(card, request).request.cfg_scale == 2.56
    assert again(card, replace(request, cfg_scale=0.0)).request.cfg_scale == 1.0  # both are off


def test_two_passes_that_are_off_stay_off() -> None:
    first = parsed("runware:400@5", CFGScale=1)
    assert again(first.card, first.request).request.cfg_scale == 1.0
