from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.normalise import prepare_task
from darkroom.catalog.validate import Validator, validate_task
from darkroom.errors import Problem
from tests.catalog.test_table import valid_task

CARD = load_catalog().resolve("runware:400@5")
FLEX = load_catalog().resolve("bfl:6@1")


def violations(**changes: Any) -> list[tuple[Any, Problem]]:
    task = {key: value for key, value in (valid_task(CARD) | changes).items() if value != "LEFT OUT"}
    return [(v.parameter, v.problem) for v in validate_task(CARD, task)]


def test_all_801_two_decimal_weights_pass() -> None:
    weights = [round(hundredths / 100, 2) for hundredths in range(-400, 401)]
    refused = [w for w in weights if violations(lora=[{"model": "a:1@1", "weight": w}])]
    assert len(weights) == 801
    assert refused == []


def test_all_1901_two_decimal_scales_pass_and_three_decimals_do_not() -> None:
    scales = [round(hundredths / 100, 2) for hundredths in range(100, 2001)]
    assert [s for s in scales if violations(CFGScale=s, settings={"trueCFGScale": s})] == []
    assert violations(CFGScale=3.505) == [("CFGScale", Problem.STEP)]
    assert violations(lora=[{"model": "a:1@1", "weight": 0.123}]) == [("lora[0].weight", Problem.STEP)]


def test_order_is_unknown_then_missing_then_prompt_then_values() -> None:
    found = violations(nonsense=1, taskUUID="LEFT OUT", width=100, height=5000, positivePrompt="", steps=0)
    assert found == [
        ("nonsense", Problem.UNKNOWN),
        ("taskUUID", Problem.MISSING),
        ("positivePrompt", Problem.TOO_SHORT),
        ("width", Problem.BELOW),
        ("height", Problem.ABOVE),
        ("steps", Problem.BELOW),
    ]


def test_sizes_come_together_or_from_a_reference() -> None:
    assert violations(width="LEFT OUT") == [(("width", "height"), Problem.MISSING)]
    assert violations(height="LEFT OUT", inputs={"referenceImages": ["a"]}) == [(("width", "height"), Problem.MISSING)]
    both = violations(width="LEFT OUT", height="LEFT OUT")
    assert both == [(("width", "height", "inputs.referenceImages"), Problem.MISSING)]
    assert violations(width="LEFT OUT", height="LEFT OUT", inputs={"referenceImages": ["a"]}) == []


def test_one_or_several_output_types() -> None:
    assert violations(outputType=["URL", "dataURI"]) == []
    assert violations(outputType=["URL", "URL"]) == []  # said twice is said
    assert violations(outputType=[]) == [("outputType", Problem.TOO_FEW)]
    assert violations(outputType="TIFF") == [("outputType", Problem.CHOICE)]
    assert violations(outputType=["URL", "TIFF"]) == [("outputType[1]", Problem.CHOICE)]
    assert violations(outputType=7) == [("outputType", Problem.TYPE)]


def test_a_nested_unknown_name_has_its_full_path() -> None:
    found = validate_task(FLEX, valid_task(FLEX) | {"providerSettings": {"bfl": {"raw": True}}})
    assert [(v.parameter, v.problem) for v in found] == [("providerSettings.bfl.raw", Problem.UNKNOWN)]
    assert found[0].allowed == ("promptUpsampling", "safetyTolerance")


@pytest.mark.parametrize("name", ["negativePrompt", "scheduler", "acceleration", "lora", "settings"])
def test_flex_refuses_what_its_page_does_not_have(name: str) -> None:
    found = validate_task(FLEX, valid_task(FLEX) | {name: "x"})
    assert [(v.parameter, v.problem) for v in found] == [(name, Problem.UNKNOWN)]


def test_any_name_of_the_card_is_its_model() -> None:
    assert violations(model="BFL-FLUX-2-klein-4b-base") == []
    assert violations(model="runware:400@6") == [("model", Problem.CHOICE)]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"positivePrompt": "a\ud800b"}, "positivePrompt"),
        ({"lora": [{"model": "\udfff"}]}, "lora[0].model"),
    ],
)
def test_lone_surrogates_are_refused(value: dict[str, Any], path: str) -> None:
    assert violations(**value) == [(path, Problem.FORMAT)]


def test_what_is_missing_is_told_with_its_type() -> None:
    task = valid_task(CARD)
    without = {name: value for name, value in task.items() if name not in ("positivePrompt", "width", "height")}
    found = {violation.parameter: violation.expected for violation in validate_task(CARD, without)}
    assert found == {"positivePrompt": "string", ("width", "height", "inputs.referenceImages"): "integer|string[]"}
    [half] = validate_task(CARD, {name: value for name, value in task.items() if name != "height"})
    assert half.expected == "integer"


@pytest.mark.parametrize("url", ["http://", "https:///path", "http://?x", "http://#x"])
def test_a_url_needs_a_host(url: str) -> None:
    assert violations(webhookURL=url, uploadEndpoint=url) == [
        ("webhookURL", Problem.FORMAT),
        ("uploadEndpoint", Problem.FORMAT),
    ]


def test_a_long_text_is_checked_in_no_time() -> None:
    began = time.process_time()  # not the clock: other work on the machine is no reason to fail
    assert violations(nonsense="é" * 20_000_000) == [("nonsense", Problem.UNKNOWN)]
    assert time.process_time() - began < 0.5


def test_long_values_are_not_repeated() -> None:
    for violation in validate_task(CARD, valid_task(CARD) | {"steps": 10**400, "scheduler": "x" * 10**6}):
        assert len(violation.message) < 600


@pytest.mark.parametrize("depth", [20, 900, 50_000])
@pytest.mark.parametrize("name", ["routing", "lora", "nonsense"])
def test_endless_nesting_is_refused_not_fatal(name: str, depth: int) -> None:
    nested: Any = 1
    for level in range(depth):
        nested = {"a": nested} if level % 2 else [nested]
    task = valid_task(CARD) | {name: nested}
    [violation] = prepare_task(CARD, task).violations
    assert (violation.parameter, violation.problem) == (name, Problem.FORMAT)


def test_every_message_can_be_encoded() -> None:
    for violation in validate_task(CARD, valid_task(CARD) | {"bad\ud800name": 1}):
        violation.message.encode()
        str(violation.parameter).encode()


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**64, 1e308, float("inf"), float("nan")])
def test_extreme_numbers_are_refused_not_fatal(number: float) -> None:
    assert violations(steps=number)[0][0] == "steps"


def test_seed_up_to_the_printed_number() -> None:
    assert violations(seed=9223372036854776000) == []
    assert violations(seed=9223372036854776001) == [("seed", Problem.ABOVE)]


def test_other_schemas() -> None:
    validator = Validator({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}})
    assert validator.violations({"n": 1, "more": True}) == []
    assert [(v.parameter, v.problem) for v in validator.violations({"n": 0})] == [("n", Problem.BELOW)]
    assert [(v.parameter, v.problem, v.expected) for v in validator.violations([])] == [("", Problem.TYPE, "object")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({p.split(".")[0] for p in CARD.parameters} | {"x"})), JSON, max_size=6))
def test_any_json_gets_an_answer(changes: dict[str, Any]) -> None:
    for violation in validate_task(CARD, valid_task(CARD) | changes):
        assert violation.message
        assert violation.parameter is not None
