from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.normalise import prepare_task, read, read_or_default
from darkroom.errors import Problem
from tests.catalog.test_table import valid_task

CATALOG = load_catalog()
BASE = CATALOG.resolve("runware:400@5")
KV = CATALOG.resolve("runware:400@6")


def prepared(**changes: Any) -> dict[str, Any]:
    result = prepare_task(BASE, valid_task(BASE) | changes)
    assert [v.message for v in result.violations] == []
    return result.task


@pytest.mark.parametrize(
    ("sent", "path", "becomes"),
    [
        ({"outputFormat": "jpg"}, "outputFormat", "JPG"),
        ({"outputFormat": "Jpeg"}, "outputFormat", "JPG"),
        ({"outputType": "BASE64DATA"}, "outputType", "base64Data"),
        ({"outputType": ["url", "datauri"]}, "outputType", ["URL", "dataURI"]),
        ({"scheduler": "EulerDiscreteScheduler"}, "scheduler", "Euler DiscreteScheduler"),
        ({"scheduler": "dpm++ 2m karras"}, "scheduler", "DPM++ 2M Karras"),
        ({"acceleration": "HIGH"}, "acceleration", "high"),
        ({"checkNSFW": True}, "safety.checkContent", True),
        ({"referenceImages": ["a"]}, "inputs.referenceImages", ["a"]),
        ({"inputs": {"references": ["a"]}}, "inputs.referenceImages", ["a"]),
        ({"inputs": {"references": ["a"], "referenceImages": ["a"]}}, "inputs.referenceImages", ["a"]),
        ({"inputs": {"referenceImages": [{"image": "a", "tag": "x"}]}}, "inputs.referenceImages", ["a"]),
        ({"ultralytics": {"steps": 4.0}}, "advancedFeatures.ultralytics.steps", 4),
        ({"acceleratorOptions": {"fbcache": True}}, "acceleratorOptions.fbCache", True),
        ({"acceleratorOptions": {"cacheStopStep": 5}}, "acceleratorOptions.cacheEndStep", 5),
        ({"model": "bfl-flux-2-klein-4b-base"}, "model", "runware:400@5"),
        ({"steps": 8.0}, "steps", 8),
    ],
)
def test_what_clients_send_becomes_what_the_page_documents(sent: dict[str, Any], path: str, becomes: Any) -> None:
    assert read(prepared(**sent), path) == becomes


def test_lora_entries_are_normalised_one_by_one() -> None:
    task = prepared(lora=[{"model": "a:1@1", "transformer": "HIGH"}, {"model": "b:1@1", "weight": None}])
    assert task["lora"] == [{"model": "a:1@1", "transformer": "high"}, {"model": "b:1@1"}]


def test_the_request_itself_is_left_alone() -> None:
    sent = valid_task(BASE) | {"ultralytics": {"steps": 4}, "referenceImages": ["a"], "seed": None}
    copy = deepcopy(sent)
    prepare_task(BASE, sent)
    assert sent == copy


def test_the_other_place_of_faces_for_the_other_card() -> None:
    task = valid_task(KV) | {"advancedFeatures": {"ultralytics": {"inpaintSize": 512}}}
    result = prepare_task(KV, task)
    assert result.violations == []
    assert result.task["ultralytics"] == {"inpaintSize": 512}
    assert "advancedFeatures" not in result.task


def test_both_places_at_once_are_refused() -> None:
    task = valid_task(BASE) | {"ultralytics": {"steps": 1}, "advancedFeatures": {"ultralytics": {"steps": 2}}}
    [violation] = prepare_task(BASE, task).violations
    assert violation.problem is Problem.INCOMPATIBLE
    assert violation.parameter == ("advancedFeatures.ultralytics", "ultralytics")


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"ultralytics": {"steps": 0}}, "ultralytics.steps"),
        ({"acceleratorOptions": {"cacheStopStep": 0}}, "acceleratorOptions.cacheStopStep"),
        ({"referenceImages": []}, "referenceImages"),
        ({"referenceImages": [1]}, "referenceImages[0]"),
        ({"checkNSFW": "yes"}, "checkNSFW"),
    ],
)
def test_errors_name_the_field_as_it_was_sent(sent: dict[str, Any], field: str) -> None:
    [violation] = prepare_task(BASE, valid_task(BASE) | sent).violations
    assert violation.parameter == field
    assert f"'{field}'" in violation.message


def test_an_object_in_the_wrong_type_is_refused_not_lost() -> None:
    task = valid_task(BASE) | {"inputs": 5, "referenceImages": ["a"]}
    assert [v.parameter for v in prepare_task(BASE, task).violations] == ["inputs"]


def test_defaults() -> None:
    assert read_or_default(BASE, {}, "steps") == 28
    assert read_or_default(BASE, {"steps": 3}, "steps") == 3
    assert read_or_default(BASE, {"safety": {"mode": "fast"}}, "safety.mode") == "fast"
    assert read_or_default(BASE, {}, "nowhere.at.all") is None
