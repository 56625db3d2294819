"""What the fields of a task become. What may be sent at all is tested in test_table.py."""

from __future__ import annotations

from typing import Any

import pytest

from darkroom.api.runware.options import OutputType
from darkroom.api.runware.parse import Parsed, Refused, fitted_size, parse
from darkroom.types import (
    MAX_SEED,
    Acceleration,
    AdapterStage,
    AdapterUse,
    FaceRefinement,
    ImageFormat,
    Output,
    StepCacheKind,
)
from tests.api.servers import CATALOG

UUID = "5e1d2bde-c882-4900-9d4d-0669648c8a8a"


def parsed(model: str = "runware:400@5", default_acceleration: str = "", **fields: Any) -> Parsed:
    task = {
        "taskType": "imageInference",
        "taskUUID": UUID,
        "model": model,
        "positivePrompt": "a boat",
        "width": 512,
        "height": 256,
        **fields,
    }
    given = {name: value for name, value in task.items() if value is not ...}
    return parse(given, CATALOG, default_acceleration=default_acceleration)


def test_defaults_are_the_cards() -> None:
    found = parsed(acceleration="none")
    request = found.request
    assert (request.card, request.steps, request.cfg_scale, request.count) == ("runware:400@5", 28, 3.5, 1)
    assert (request.width, request.height) == (512, 256)
    assert request.output == Output(format=ImageFormat.JPEG, quality=95)
    assert (found.options.sync, found.options.outputs, found.ttl_seconds) == (True, (OutputType.URL,), None)
    assert 0 <= request.seed < 2**32
    assert parsed("bfl:6@1").request.steps == 28
    assert parsed("runware:400@6").request.steps == 4


def test_a_seed_above_what_a_generator_takes_is_clamped_and_remembered() -> None:
    found = parsed(seed=9223372036854776000)
    assert (found.request.seed, found.options.seed_sent) == (MAX_SEED, 9223372036854776000)
    assert parsed(seed=5).options.seed_sent is None


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, Acceleration.HIGH),
        ({"acceleration": "none"}, Acceleration.NONE),
        ({"acceleration": "LOW"}, Acceleration.LOW),
    ],
)
def test_the_level_of_acceleration(fields: dict[str, Any], level: Acceleration) -> None:
    assert parsed(**fields).request.acceleration is level


def test_the_operators_default_holds_where_the_client_says_nothing_and_the_card_has_levels() -> None:
    assert parsed(default_acceleration="none").request.acceleration is Acceleration.NONE
    assert parsed(default_acceleration="none", acceleration="high").request.acceleration is Acceleration.HIGH
    assert parsed("bfl:6@1", default_acceleration="high").request.acceleration is Acceleration.NONE


def test_accelerator_options_win_over_the_level() -> None:
    cache = parsed(
        acceleration="none", acceleratorOptions={"teaCache": True, "teaCacheDistance": 0.3}
    ).request.step_cache
    assert cache is not None
    assert (cache.kind, cache.threshold) == (StepCacheKind.TEA, 0.3)


def test_a_rule_over_several_fields_names_them_as_they_were_sent() -> None:
    with pytest.raises(Refused) as refused:
        parsed(steps=2, acceleratorOptions={"fbcache": True, "cacheStopStep": 3})
    [error] = refused.value.violations
    assert error.parameter == "acceleratorOptions.cacheStopStep"
    assert "'acceleratorOptions.cacheStopStep'" in error.message
    with pytest.raises(Refused) as refused:
        parsed(acceleratorOptions={"cacheStopStep": 3, "cacheEndStepPercentage": 50})
    [error] = refused.value.violations
    assert error.parameter == ("acceleratorOptions.cacheStopStep", "acceleratorOptions.cacheEndStepPercentage")


def test_loras_keep_their_order_weight_and_stage() -> None:
    request = parsed(lora=[{"model": "a:1@1"}, {"model": "b:1@1", "weight": -0.5, "transformer": "HIGH"}]).request
    assert request.adapters == (
        AdapterUse(adapter="a:1@1", weight=1.0, stage=AdapterStage.BOTH),
        AdapterUse(adapter="b:1@1", weight=-0.5, stage=AdapterStage.HIGH),
    )


@pytest.mark.parametrize("place", ["top", "advancedFeatures"])
@pytest.mark.parametrize("model", ["runware:400@5", "runware:400@6"])
def test_the_face_pass_in_both_places(model: str, place: str) -> None:
    faces = {"CFGScale": 4, "steps": 7, "strength": 0.5, "maskBlur": 1, "positivePrompt": "a face"}
    fields = {"ultralytics": faces} if place == "top" else {"advancedFeatures": {"ultralytics": faces}}
    assert parsed(model, **fields).request.faces == FaceRefinement(
        positive_prompt="a face", guidance=4, steps=7, strength=0.5, mask_blur=1
    )


def test_an_empty_face_object_switches_the_pass_on() -> None:
    assert parsed(advancedFeatures={"ultralytics": {}}).request.faces == FaceRefinement()
    assert parsed().request.faces is None


@pytest.mark.parametrize(
    ("safety", "checked"),
    [
        ({}, False),
        ({"checkContent": True}, True),
        ({"mode": "fast"}, True),
        ({"checkContent": True, "mode": "none"}, False),
        ({"checkContent": False, "mode": "fast"}, True),
    ],
)
def test_the_mode_wins_over_check_content(safety: dict[str, Any], checked: bool) -> None:
    assert parsed(safety=safety).request.check_safety is checked


def test_the_older_name_of_check_content() -> None:
    assert parsed(checkNSFW=True).request.check_safety


def test_provider_settings() -> None:
    request = parsed("bfl:6@1", providerSettings={"bfl": {"promptUpsampling": True, "safetyTolerance": 5}}).request
    assert (request.upsample_prompt, request.safety_tolerance) == (True, 5)


def test_output_types_may_be_several_and_ttl_counts_for_urls_only() -> None:
    found = parsed(outputType=["dataURI", "url"], ttl=90)
    assert found.options.outputs == (OutputType.DATA_URI, OutputType.URL)
    assert found.ttl_seconds == 90
    assert parsed(outputType="base64Data", ttl=90).ttl_seconds is None


@pytest.mark.parametrize("ttl", [10**12, 10**30, 1e300])
def test_a_ttl_beyond_every_calendar_is_a_century(ttl: float) -> None:
    assert parsed(ttl=ttl).ttl_seconds == 100 * 365 * 86400


def test_a_blank_prompt() -> None:
    assert parsed(positivePrompt="__BLANK__").request.prompt == ""


def test_whole_numbers_may_be_written_with_a_point() -> None:
    request = parsed(steps=4.0, seed=7.0).request
    assert (request.steps, request.seed) == (4, 7)
    assert isinstance(request.steps, int)


def test_a_size_may_be_left_out_with_references() -> None:
    found = parsed(width=..., height=..., inputs={"referenceImages": ["x"]})
    assert not found.sized
    assert found.references == ("x",)
    with pytest.raises(Refused):
        parsed(width=..., height=...)


@pytest.mark.parametrize(
    ("model", "reference", "size"),
    [
        ("runware:400@5", (512, 512), (512, 512)),
        ("runware:400@5", (500, 300), (496, 304)),
        ("runware:400@5", (4000, 3000), (1184, 880)),  # read at one megapixel
        ("runware:400@5", (64, 64), (128, 128)),  # never below the smallest side
        ("runware:400@5", (512, 64), (1024, 128)),
        ("bfl:6@1", (128, 128), (256, 256)),
        ("runware:400@5", (8000, 1000), (2048, 256)),  # never above the longest side
    ],
)
def test_the_size_a_reference_gives(model: str, reference: tuple[int, int], size: tuple[int, int]) -> None:
    assert fitted_size(CATALOG.resolve(model), *reference) == size
