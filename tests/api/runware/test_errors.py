"""The table of codes: complete, and in words that the official SDKs sort rightly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from darkroom.api.runware.errors import CODES, field_name, wire_error, wire_fault
from darkroom.errors import DarkroomError, InferenceError, InvalidParameter, Overloaded, Problem, StorageError
from darkroom.tasks.task import Fault
from tests.api.servers import TestServer

UUID = "5e1d2bde-c882-4900-9d4d-0669648c8a8a"


def every_error(base: type[DarkroomError] = DarkroomError) -> Iterator[type[DarkroomError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == "darkroom.errors":
            yield from every_error(kind)


@pytest.mark.parametrize("kind", sorted(every_error(), key=lambda kind: kind.code), ids=lambda kind: kind.code)
def test_every_error_has_its_line(kind: type[DarkroomError]) -> None:
    assert kind.code in CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_what_happens_to_an_accepted_task_is_never_a_server_error(code: str) -> None:
    """The SDKs repeat a request after a 5xx, and its taskUUID would be refused."""
    assert wire_fault(Fault(code=code, message="x"), task={}).status < 500


def category(code: str) -> str:
    """How the new SDKs sort codes, as far as ours go (their rules, in their order)."""
    rules = (
        ("rateLimit", "RateLimit" in code or code == "rateLimitExceeded"),
        ("auth", "ApiKey" in code),
        ("notFound", code.endswith(("NotFound", "Expired"))),
        ("serverError", code == "internalServerError"),
        (
            "provider",
            code in ("inferenceError", "processingFailed", "downloadFailed", "uploadFailed", "modelUnavailable"),
        ),
        ("validation", code.startswith(("invalid", "missing", "conflict", "unsupported", "value", "array", "max"))),
    )
    return next((name for name, fits in rules if fits), "unknown")


@pytest.mark.parametrize("code", sorted({code for code, _ in CODES.values()} - {"taskCancelled"}))
def test_the_sdks_know_what_to_make_of_every_code(code: str) -> None:
    assert category(code) != "unknown"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("steps", "Steps"),
        ("CFGScale", "CFGScale"),
        ("acceleratorOptions.fbCacheThreshold", "FbCacheThreshold"),
        ("lora[3].weight", "LoraWeight"),
        ("lora", "Lora"),
        ("lora[0]", "Lora"),
        ("safety.mode", "SafetyMode"),
        ("safety.checkContent", "Safety"),
        ("inputs.referenceImages[2]", "ReferenceImages"),
        ("referenceImages[0]", "ReferenceImages"),
    ],
)
def test_names_of_fields_in_codes(path: str, name: str) -> None:
    assert field_name(path) == name


@pytest.mark.parametrize(
    ("parameter", "code"),
    [
        ("providerSettings", "mismatchProviderSettingsProvider"),  # a model that has none
        ("providerSettings.openai", "mismatchProviderSettingsProvider"),
        ("providerSettings.bfl.raw", "unsupportedParameter"),
        ("providerSetting", "unsupportedParameter"),
    ],
)
def test_settings_of_a_provider_that_the_model_has_not(parameter: str, code: str) -> None:
    assert wire_error(InvalidParameter("x", parameter=parameter, problem=Problem.UNKNOWN)).body["code"] == code


def test_a_full_queue_says_when_to_come_back() -> None:
    wire = wire_error(Overloaded("full", retry_after_seconds=7))
    assert (wire.status, wire.headers) == (429, {"Retry-After": "7"})


def test_a_rule_over_several_fields_names_all_of_them() -> None:
    error = InvalidParameter("x", parameter=("a", "b"), problem=Problem.INCOMPATIBLE)
    assert wire_error(error).body["parameter"] == ["a", "b"]


def test_our_own_failures_tell_a_number_only() -> None:
    for error in (StorageError("the disk /data is full"), RuntimeError("/root/secret.py")):
        body = wire_error(error).body
        assert "/" not in body["message"]
        assert body["code"] == "internalServerError"
    assert wire_error(InferenceError("no picture")).body["message"] == "no picture"


def test_identifiers_are_echoed_only_when_they_can_be_some() -> None:
    body = wire_error(InferenceError("x"), task={"taskUUID": "u" * 65, "taskType": ["x"]}).body
    assert "taskUUID" not in body
    assert "taskType" not in body


async def test_every_error_has_its_page(server: TestServer) -> None:
    async with server.client() as client:
        long = {"content-length": str(1 << 40)}
        answers = [
            await client.put("/v1"),
            await client.post("/v1", content=b"x", headers=long),
            await client.post("/v1", content=b"x"),
            await client.post("/v1", json=[{}]),
        ]
        for answer in answers:
            [error] = answer.json()["errors"]
            page = await client.get(error["documentation"].removeprefix("http://darkroom.test"))
            assert page.status_code == 200
            assert 'id="errors"' in page.text


@pytest.mark.parametrize(
    ("model", "given", "named"),
    [
        ("runware:400@5", {"checkNSFW": True}, "checkNSFW"),
        ("runware:400@5", {"safety": {"checkContent": True}}, "safety"),
        ("runware:400@5", {"ultralytics": {}}, "ultralytics"),
        ("runware:400@5", {"advancedFeatures": {"ultralytics": {}}}, "advancedFeatures.ultralytics"),
        ("runware:400@6", {"ultralytics": {}}, "ultralytics"),
    ],
)
async def test_what_is_not_installed_is_named_as_it_was_asked_for(
    server: TestServer, model: str, given: dict[str, object], named: str
) -> None:
    task = {"taskType": "imageInference", "taskUUID": UUID, "model": model, "positivePrompt": "a boat", **given}
    [error] = (await server.post({**task, "width": 512, "height": 512})).json()["errors"]
    assert error["parameter"] == named
    assert f"`{named}`" in error["message"]


async def test_an_emoji_cut_in_half_is_called_that(server: TestServer) -> None:
    async with server.client() as client:
        answer = (await client.post("/v1", content=rb'[{"positivePrompt": "a boat \ud83d"}]')).json()
    assert "emoji" in answer["errors"][0]["message"]


async def test_flex_takes_the_empty_object_that_clients_send(server: TestServer) -> None:
    task = {"taskType": "imageInference", "taskUUID": UUID, "model": "bfl:6@1", "positivePrompt": "a boat"}
    task |= {"width": 512, "height": 512, "steps": 1, "advancedFeatures": {}}
    assert "errors" not in (await server.post(task)).json()
