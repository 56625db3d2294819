"""Our errors in the words of the task API: one table of codes and HTTP statuses, one rule for names of fields.

The official SDKs sort errors by the spelling of `code` and retry by HTTP status. Two rules follow. Codes are taken
from those the SDKs know. And whatever happens to a task that was accepted is told with a status below 500: a retry
would send the same taskUUID, which is used up.
"""

from __future__ import annotations

import re
from typing import Any

from darkroom.api.errors import headers_for, sentence, unexpected
from darkroom.api.pages import anchor
from darkroom.catalog.card import Card
from darkroom.errors import DarkroomError, InputImageError, InvalidParameter, NotFound, Problem, Unauthorized
from darkroom.tasks.task import Fault
from darkroom.types import Value

MANUAL = "/docs/api/runware"

CODES: dict[str, tuple[str, int]] = {  # code of errors.py → code on the wire, HTTP status
    "internal": ("internalServerError", 500),
    "invalid_parameter": ("invalidParameter", 400),  # refined by the field: invalidSteps, missingModel…
    "not_found": ("taskNotFound", 404),  # refined by what was not found
    "conflict": ("conflictTaskUUID", 400),
    "unauthorized": ("invalidApiKey", 401),
    "overloaded": ("rateLimitExceeded", 429),
    "model_not_installed": ("modelUnavailable", 400),
    "feature_not_installed": ("modelUnavailable", 400),  # the operator's to mend: the parameter itself is supported
    "input_image": ("invalidReferenceImages", 400),
    "download": ("downloadFailed", 400),
    "address_refused": ("downloadFailed", 400),
    "weights": ("modelUnavailable", 400),
    "inference": ("inferenceError", 400),
    "out_of_memory": ("inferenceError", 400),
    "engine_lost": ("processingFailed", 400),
    "cancelled": ("taskCancelled", 400),
    "upload": ("uploadFailed", 400),
    "unsupported": ("unsupportedTaskType", 400),
    "malformed": ("invalidRequest", 400),
    "lease_lost": ("internalServerError", 500),
    "storage": ("internalServerError", 500),
    "configuration": ("internalServerError", 500),
}
NOT_FOUND = {"task": "taskNotFound", "model": "modelNotFound", "adapter": "modelNotFound", "media": "mediaNotFound"}
FRAMEWORK = {
    400: "invalidRequest",
    403: "forbidden",
    404: "notFound",
    405: "unsupportedMethod",
    413: "valueTooLarge",
    503: "serviceUnavailable",
}
PREFIXED = re.compile(r"^(lora|safety)(?:\[\d+\])?\.(\w+)$")  # these fields' codes carry their parent's name
FIELD_NAMES = {  # where the rule would not give the code that clients know
    "inputs.referenceImages": "ReferenceImages",
    "safety.checkContent": "Safety",
}


class WireError(Value, frozen=True, kw_only=True):
    """One entry of `errors` and the HTTP status it would have alone."""

    body: dict[str, Any]
    status: int
    headers: dict[str, str] = {}


class Unsupported(DarkroomError):
    """A task type that this server does not have."""

    code = "unsupported"


class Malformed(DarkroomError):
    """The body is not what the task API takes: not JSON, not an array of objects."""

    code = "malformed"


def wire_error(
    error: BaseException, *, task: dict[str, Any] | None = None, card: Card | None = None, base: str = ""
) -> WireError:
    """Any exception as an entry of `errors`. task: the one at fault, echoed as far as it can be trusted to be text."""
    if not isinstance(error, DarkroomError):
        return _entry("internalServerError", 500, unexpected(error), link=documentation(base, None, None), task=task)
    code, status = code_of(error)
    expected = error.expected if isinstance(error, InvalidParameter) else None
    message = error.message
    if status >= 500:
        message = unexpected(error)
    link = documentation(base, card, error.parameter)
    return _entry(code, status, message, error.parameter, expected, link, task=task, headers=headers_for(error))


def wire_fault(fault: Fault, *, task: dict[str, Any], base: str = "", card: Card | None = None) -> WireError:
    """A failure that was written down with its task."""
    code, status = CODES.get(fault.code, CODES["internal"])
    if fault.code == "weights" and fault.parameter and fault.parameter.startswith("lora"):
        code = "invalidLora"
    if fault.code == "not_found":  # the task was found: what it refers to was deleted before its turn came
        code = "modelNotFound" if (fault.parameter or "").startswith("lora") else "mediaNotFound"
    if fault.code == "input_image" and not (fault.parameter or "").startswith(("inputs", "referenceImages")):
        code = "processingFailed"
    link = documentation(base, card, fault.parameter)
    return _entry(code, min(status, 400), fault.message, fault.parameter, None, link, task=task)


def code_of(error: DarkroomError) -> tuple[str, int]:
    """The code on the wire and the HTTP status of an error."""
    code, status = CODES.get(error.code, CODES["internal"])
    match error:
        case InvalidParameter():
            return _code_of_field(error), status
        case NotFound(what=what):
            return NOT_FOUND.get(what, "mediaNotFound"), status
        case Unauthorized(missing=True):
            return "missingApiKey", status
        case InputImageError(parameter=str(name)) if code == "invalidReferenceImages" and "eference" not in name:
            return f"invalid{field_name(name)}", status
    return code, status


def _code_of_field(error: InvalidParameter) -> str:
    names = (error.parameter,) if isinstance(error.parameter, str) else error.parameter or ()
    if error.problem is Problem.UNKNOWN:
        return (
            "mismatchProviderSettingsProvider"
            if names[0].split(".")[0] == "providerSettings" and names[0].count(".") <= 1
            else "unsupportedParameter"
        )
    if error.problem is Problem.INCOMPATIBLE and len(names) > 1:
        return "incompatibleParameters"
    if error.problem is Problem.MISSING:
        return (
            "missingDimensionParameters" if "width" in names or "height" in names else f"missing{field_name(names[0])}"
        )
    name = field_name(names[0])
    if name == "ReferenceImages" and error.problem in (Problem.TOO_FEW, Problem.TOO_MANY):
        return "invalidReferenceImagesCount"
    return f"invalid{name}"


def field_name(path: str) -> str:
    """A field as codes spell it: "acceleratorOptions.fbCache" → FbCache, "lora[0].weight" → LoraWeight."""
    plain = re.sub(r"\[\d+\]$", "", path)
    if plain in FIELD_NAMES:
        return FIELD_NAMES[plain]
    if found := PREFIXED.match(plain):
        return _capital(found[1]) + _capital(found[2])
    return _capital(plain.rpartition(".")[2]) or "Parameter"


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


def documentation(base: str, card: Card | None, parameter: str | tuple[str, ...] | None) -> str:
    """This server's own page on a parameter, or on errors."""
    first = parameter if isinstance(parameter, str) else (parameter or ("",))[0]
    path = re.sub(r"\[\d+\]", "", first or "")
    if card is not None and path in card.parameters:
        return f"{base}/docs/models/{card.slug}#{anchor(path)}"
    if card is not None and path:
        return f"{base}/docs/models/{card.slug}"
    return f"{base}{MANUAL}#errors"


def _entry(
    code: str,
    status: int,
    message: str,
    parameter: str | tuple[str, ...] | None = None,
    expected: str | None = None,
    link: str | None = None,
    *,
    task: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> WireError:
    body: dict[str, Any] = {"code": code, "message": message}
    if parameter:
        body["parameter"] = parameter if isinstance(parameter, str) else list(parameter)
    if expected:
        body["type"] = expected
    if link:
        body["documentation"] = link
    for name in ("taskType", "taskUUID"):
        value = (task or {}).get(name)
        if isinstance(value, str) and len(value) <= 64:
            body[name] = value
    return WireError(body=body, status=status, headers=headers or {})


def answer(error: DarkroomError, base: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """A whole HTTP answer for an error before any task was looked at: status, body, headers."""
    task = {"taskType": "authentication"} if isinstance(error, Unauthorized) else None
    wire = wire_error(error, task=task, base=base)
    return wire.status, {"data": [], "errors": [wire.body]}, wire.headers


def framework(status: int, message: str | None = None, base: str = "") -> dict[str, Any]:
    """The body for what the framework refuses at /v1, or we failed at."""
    code = FRAMEWORK.get(status, "internalServerError" if status >= 500 else "invalidRequest")
    if status == 405:
        message = "/v1 takes POST with a JSON array of tasks, or a WebSocket."
    error = {"code": code, "message": message or sentence(status), "documentation": f"{base}{MANUAL}#errors"}
    return {"data": [], "errors": [error]}
