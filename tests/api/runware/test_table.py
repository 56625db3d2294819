"""Every parameter of every card over HTTP: missing, wrong type, below, above, off step, not in the list; and the edges
that must pass. The cases are made from the cards, the codes are those of the contract, written out here.

All cases of a card go in one request: tasks are independent of each other. A dry run makes no pictures.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.catalog.card import Card, Kind, Parameter
from tests.api.servers import CATALOG, serving
from tests.catalog.test_adapters import write_safetensors

ADAPTER = "acme"
DRY_RUN = {"X-Runware-Dry-Run": "1"}
FACES = {
    name: f"invalid{name[0].upper()}{name[1:]}"
    for name in (
        "CFGScale",
        "confidence",
        "inpaintSize",
        "maskBlur",
        "maskPadding",
        "negativePrompt",
        "positivePrompt",
        "steps",
        "strength",
    )
}
CODES = {  # field → code of a wrong value
    "advancedFeatures": "invalidAdvancedFeatures",
    "taskUUID": "invalidTaskUUID",
    "model": "invalidModel",
    "positivePrompt": "invalidPositivePrompt",
    "negativePrompt": "invalidNegativePrompt",
    "width": "invalidWidth",
    "height": "invalidHeight",
    "seed": "invalidSeed",
    "steps": "invalidSteps",
    "scheduler": "invalidScheduler",
    "CFGScale": "invalidCFGScale",
    "numberResults": "invalidNumberResults",
    "outputType": "invalidOutputType",
    "outputFormat": "invalidOutputFormat",
    "outputQuality": "invalidOutputQuality",
    "ttl": "invalidTtl",
    "includeCost": "invalidIncludeCost",
    "deliveryMethod": "invalidDeliveryMethod",
    "webhookURL": "invalidWebhookURL",
    "uploadEndpoint": "invalidUploadEndpoint",
    "safety.checkContent": "invalidSafety",
    "safety.mode": "invalidSafetyMode",
    "safety.tolerance": "invalidSafetyTolerance",
    "safety.checkInputs": "invalidSafetyCheckInputs",
    "inputs.referenceImages": "invalidReferenceImages",
    "routing": "invalidRouting",
    "acceleration": "invalidAcceleration",
    "acceleratorOptions": "invalidAcceleratorOptions",
    "acceleratorOptions.cacheEndStep": "invalidCacheEndStep",
    "acceleratorOptions.cacheEndStepPercentage": "invalidCacheEndStepPercentage",
    "acceleratorOptions.cacheMaxConsecutiveSteps": "invalidCacheMaxConsecutiveSteps",
    "acceleratorOptions.cacheStartStep": "invalidCacheStartStep",
    "acceleratorOptions.cacheStartStepPercentage": "invalidCacheStartStepPercentage",
    "acceleratorOptions.fbCache": "invalidFbCache",
    "acceleratorOptions.fbCacheThreshold": "invalidFbCacheThreshold",
    "acceleratorOptions.teaCache": "invalidTeaCache",
    "acceleratorOptions.teaCacheDistance": "invalidTeaCacheDistance",
    "acceleratorOptions.dbCache": "invalidDbCache",
    "acceleratorOptions.dbCacheThreshold": "invalidDbCacheThreshold",
    "acceleratorOptions.dbCacheSkipInterval": "invalidDbCacheSkipInterval",
    "lora": "invalidLora",
    "lora.model": "invalidLoraModel",
    "lora.weight": "invalidLoraWeight",
    "lora.transformer": "invalidLoraTransformer",
    "settings.trueCFGScale": "invalidTrueCFGScale",
    "ultralytics": "invalidUltralytics",
    "advancedFeatures.ultralytics": "invalidUltralytics",
    **{f"ultralytics.{name}": code for name, code in FACES.items()},
    **{f"advancedFeatures.ultralytics.{name}": code for name, code in FACES.items()},
    "providerSettings.bfl.promptUpsampling": "invalidPromptUpsampling",
    "providerSettings.bfl.safetyTolerance": "invalidSafetyTolerance",
}
REQUIRED = {
    "positivePrompt": "missingPositivePrompt",
    "model": "missingModel",
    "width": "missingDimensionParameters",
    "height": "missingDimensionParameters",
}
COUNTS = {"inputs.referenceImages": "invalidReferenceImagesCount"}
WRONG_TYPE = {  # a value of another type, never one that is read leniently (28.0 is 28)
    Kind.STRING: 5,
    Kind.INTEGER: "28",
    Kind.FLOAT: "3.5",
    Kind.BOOLEAN: "true",
    Kind.OBJECT: 7,
    Kind.ARRAY: 7,
}
TEXTS = {"uri": "https://example.com/a", "uuid": "9d1d2bde-c882-4900-9d4d-0669648c8a8a"}


def good(path: str, parameter: Parameter) -> list[Any]:
    """Values that must pass: both ends of the range, every choice, the longest list."""
    if path == "taskUUID" or parameter.value is not None:
        return []  # every task has its own; the only value is in every task
    if parameter.choices:
        return [*parameter.choices, parameter.choices[0].swapcase(), *parameter.choice_aliases]
    match parameter.type:
        case Kind.INTEGER | Kind.FLOAT:
            ends = [end for end in (parameter.min, parameter.max) if end is not None]
            inside = [ends[0] + parameter.step] if parameter.step and ends else []
            return [*ends, *inside]
        case Kind.STRING if parameter.format:
            return [TEXTS[parameter.format]]
        case Kind.STRING:
            return ["x" * length for length in (parameter.min_length, parameter.max_length) if length]
        case Kind.BOOLEAN:
            return [True, False]
        case Kind.ARRAY if parameter.items is Kind.STRING:
            return [["https://example.com/a.png"] * count for count in (1, parameter.max_items or 3)]
    return []


def bad(path: str, parameter: Parameter) -> Iterator[tuple[str, Any, str]]:
    """(what is wrong, value, code)."""
    code = CODES[path]
    yield "type", WRONG_TYPE[parameter.type], code
    if parameter.choices:
        yield "choice", "no such choice", code
    if parameter.value is not None and path != "model" and path != "taskType":
        yield "value", "another", code
    if parameter.min is not None:
        yield "below", parameter.min - (parameter.step or 1), code
    if parameter.max is not None:
        yield "above", above(parameter), code
    if parameter.step is not None:
        yield "step", (parameter.min or 0) + parameter.step / 2, code
    if parameter.type is Kind.INTEGER:
        yield "fraction", (parameter.min or 0) + 0.5, code
    if parameter.min_length:
        yield "short", "x" * (parameter.min_length - 1), code
    if parameter.max_length:
        yield "long", "x" * (parameter.max_length + 1), code
    if parameter.format:
        yield "format", "not that", code
    if parameter.min_items:
        yield "few", [], COUNTS.get(path, code)
    if parameter.max_items:
        yield "many", ["https://example.com/a.png"] * (parameter.max_items + 1), COUNTS.get(path, code)


def above(parameter: Parameter) -> int | float:
    """The next value after the maximum; doubles have no 2^63 + 1."""
    maximum = parameter.max or 0
    return maximum + (parameter.step or 1) if maximum < 2**53 else maximum * 2


def task_with(card: Card, path: str, value: Any) -> dict[str, Any]:
    """A valid task of the card with one field set. An entry of `lora` is made whole around its field."""
    side = int(card.parameters["width"].min or 128)
    task: dict[str, Any] = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": card.id,
        "positivePrompt": "a lighthouse",
        "width": side,
        "height": side,
    }
    if path.startswith(("acceleratorOptions.cacheEndStep", "acceleratorOptions.cacheStartStep")):
        task["steps"] = 50
    *parents, name = path.split(".")
    if parents == ["lora"]:
        task["lora"] = [{"model": ADAPTER, name: value}]
        return task
    node = task
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = copy.deepcopy(value)
    return task


def bad_cases(card: Card) -> list[tuple[str, dict[str, Any], str]]:
    """(name, task, code)."""
    found = []
    for path, parameter in card.parameters.items():
        if path == "taskType":
            continue  # another type is another handler's affair
        for kind, value, code in bad(path, parameter):
            found.append((f"{path} {kind}", task_with(card, path, value), code))
    return found


def good_cases(card: Card) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path, parameter in card.parameters.items():
        values = [ADAPTER] if path == "lora.model" else good(path, parameter)
        found += [(f"{path} = {str(value)[:40]}", task_with(card, path, value)) for value in values]
    return found


def missing_cases(card: Card) -> list[tuple[dict[str, Any], str]]:
    """(task without a required field, code)."""
    found = []
    for name, code in REQUIRED.items():
        task = task_with(card, "positivePrompt", "a lighthouse")
        del task[name]
        found.append((task, code))
    return found


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
async def test_every_wrong_value_is_refused_by_name(card: Card, tmp_path: Path) -> None:
    cases = bad_cases(card)
    assert len(cases) > 60
    async with serving(tmp_path, features=frozenset({"safety", "faces"})) as server:
        response = await server.post(*(task for _, task, _ in cases), **DRY_RUN)
        incomplete = missing_cases(card)
        lacking = await server.post(*(task for task, _ in incomplete), **DRY_RUN)
    errors: dict[str, list[dict[str, Any]]] = {}
    for error in response.json()["errors"]:
        errors.setdefault(error.get("taskUUID", ""), []).append(error)
    assert response.json()["data"] == []
    for name, task, code in cases:
        [error] = errors[task["taskUUID"]] if isinstance(task["taskUUID"], str) else errors[""]
        path = name.partition(" ")[0]
        assert error["code"] == code, (name, error)
        assert error["parameter"].replace("[0]", "") == path, (name, error)
        assert path.rpartition(".")[2] in error["message"], (name, error)
        assert error["taskType"] == "imageInference"
        if path not in ("taskUUID", "model"):
            assert error["documentation"].partition("#")[0].endswith(card.slug)
    assert [error["code"] for error in lacking.json()["errors"]] == [code for _, code in incomplete]


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.id)
async def test_every_edge_passes(card: Card, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    write_safetensors(tmp_path / "adapters" / f"{ADAPTER}.safetensors", ["x.lora_A.weight"])
    cases = good_cases(card)
    nulls = {path: None for path, parameter in card.parameters.items() if "." not in path and not parameter.required}
    cases.append(("null is not given", {**nulls, **task_with(card, "positivePrompt", "a lighthouse")}))
    async with serving(tmp_path, features=frozenset({"safety", "faces"})) as server:
        response = await server.post(*(task for _, task in cases), **DRY_RUN)
    refused = {error["taskUUID"]: error["message"] for error in response.json().get("errors", ())}
    assert {name: refused[task["taskUUID"]] for name, task in cases if task["taskUUID"] in refused} == {}
    assert {item["taskUUID"] for item in response.json()["data"]} == {task["taskUUID"] for _, task in cases}
