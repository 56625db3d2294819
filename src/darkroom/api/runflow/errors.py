"""Runflow's errors: flat `{code, message, errors}`, one table for what we raise and one for what the framework raises.

CODES      our code → HTTP status and `code` of the answer to a request that was refused
FRAMEWORK  HTTP status → `code`, for what the framework raises on its own (404, 405, 413 …)
FAILURES   our code → `failure_code` and `failure_stage_code` of a run that was accepted and then failed
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from fastapi import Response
from starlette.exceptions import HTTPException

from darkroom.errors import DarkroomError, InputImageError, InvalidParameter, NotFound, Overloaded, Problem
from darkroom.tasks.task import Fault

log = structlog.get_logger(__name__)

CODES: dict[str, tuple[int, str]] = {
    "invalid_parameter": (422, "VALIDATION_ERROR"),
    "not_found": (404, "NOT_FOUND"),
    "conflict": (409, "CONFLICT"),
    "unauthorized": (401, "UNAUTHORIZED"),
    "overloaded": (429, "RATE_LIMITED"),
    "model_not_installed": (503, "MODEL_UNAVAILABLE"),
    "feature_not_installed": (503, "MODEL_UNAVAILABLE"),
    "input_image": (422, "VALIDATION_ERROR"),
    "download": (422, "VALIDATION_ERROR"),
    "address_refused": (422, "VALIDATION_ERROR"),
    "weights": (503, "MODEL_UNAVAILABLE"),
    "storage": (503, "STORAGE_UNAVAILABLE"),
    "bad_request": (400, "BAD_REQUEST"),
    "forbidden": (403, "PERMISSION_DENIED"),
}
NOT_FOUND = {
    "task": "RUN_NOT_FOUND",
    "model": "MODEL_NOT_FOUND",
    "batch": "BATCH_NOT_FOUND",
    "asset": "ASSET_NOT_FOUND",
}
INTERNAL = (500, "INTERNAL_ERROR")

FRAMEWORK: dict[int, str] = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMITED",
    503: "UNAVAILABLE",
}

FAILURES: dict[str, tuple[str, str]] = {
    "invalid_parameter": ("INPUT_VALIDATION_FAILED", "preprocess"),
    "input_image": ("INPUT_VALIDATION_FAILED", "preprocess"),
    "download": ("INPUT_FETCH_FAILED", "preprocess"),
    "address_refused": ("INPUT_FETCH_FAILED", "preprocess"),
    "not_found": ("INPUT_FETCH_FAILED", "preprocess"),
    "model_not_installed": ("MODEL_UNAVAILABLE", "dispatch"),
    "feature_not_installed": ("MODEL_UNAVAILABLE", "dispatch"),
    "weights": ("MODEL_UNAVAILABLE", "dispatch"),
    "engine_lost": ("SERVER_RESTARTED", "dispatch"),
    "inference": ("INFERENCE_FAILED", "inference"),
    "out_of_memory": ("OUT_OF_MEMORY", "inference"),
    "storage": ("OUTPUT_STORE_FAILED", "postprocess"),
}
UNKNOWN_FAILURE = ("INTERNAL_ERROR", "inference")

TYPES: dict[Problem, str] = {  # `type` of an entry of `errors`
    Problem.MISSING: "missing",
    Problem.UNKNOWN: "unknown_field",
    Problem.TYPE: "type",
    Problem.BELOW: "range",
    Problem.ABOVE: "range",
    Problem.STEP: "step",
    Problem.CHOICE: "enum",
    Problem.TOO_SHORT: "length",
    Problem.TOO_LONG: "length",
    Problem.TOO_FEW: "length",
    Problem.TOO_MANY: "length",
    Problem.FORMAT: "format",
    Problem.INCOMPATIBLE: "conflict",
}


class Rejected(DarkroomError):
    """A request with one or more wrong fields; all of them are told at once."""

    code = "invalid_parameter"

    def __init__(self, violations: Sequence[InvalidParameter | InputImageError]) -> None:
        super().__init__(" ".join(violation.message for violation in violations))
        self.violations = tuple(violations)


class BadRequest(DarkroomError):
    """The body is not what any endpoint could read: not JSON, not an object."""

    code = "bad_request"


class Forbidden(DarkroomError):
    """The caller may not do this (an upload URL that expired or was made up)."""

    code = "forbidden"


def flat(error: Exception) -> Response:
    """The answer to any exception that reaches a Runflow path; what is not ours becomes a 500 without its text."""
    if isinstance(error, DarkroomError):
        return _ours(error)
    if isinstance(error, HTTPException):
        code = FRAMEWORK.get(error.status_code, "BAD_REQUEST" if error.status_code < 500 else INTERNAL[1])
        return answer(body(code, _sentence(error)), error.status_code, dict(error.headers or {}))
    log.error("A Runflow request failed.", exc_info=error)
    return _internal()


def failure(fault: Fault | None) -> tuple[str, str]:
    """failure_code and failure_stage_code of a run that ended with this fault."""
    return FAILURES.get(fault.code, UNKNOWN_FAILURE) if fault else UNKNOWN_FAILURE


def entries(violation: InvalidParameter | InputImageError) -> list[dict[str, Any]]:
    """`errors`: for each field at fault its path, the same as a list, what is wrong, and the kind of that."""
    kind = TYPES[violation.problem] if isinstance(violation, InvalidParameter) else "image"
    paths = (violation.parameter,) if isinstance(violation.parameter, str) else violation.parameter or ("",)
    return [{"field": path, "loc": location(path), "msg": violation.message, "type": kind} for path in paths]


def location(path: str) -> list[str | int]:
    """input.image_urls[1] → ["input", "image_urls", 1]."""
    parts = path.replace("[", ".").replace("]", "").split(".")
    return [int(part) if part.isdigit() else part for part in parts if part]


def body(code: str, message: str, errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "errors": errors}


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, encoded once."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _ours(error: DarkroomError) -> Response:
    status, code = CODES.get(error.code, INTERNAL)
    if status == INTERNAL[0]:
        log.error("A Runflow request failed.", exc_info=error)
        return _internal()
    headers: dict[str, str] = {}
    errors = None
    if isinstance(error, NotFound):
        code = NOT_FOUND.get(error.what, code)
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, Rejected):
        errors = [each for violation in error.violations for each in entries(violation)]
    elif isinstance(error, InvalidParameter | InputImageError):
        errors = entries(error)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer(body(code, error.message, errors), status, headers)


def _internal() -> Response:
    message = "The server could not answer this request. It is not your fault; the server's log says more."
    return answer(body(INTERNAL[1], message), INTERNAL[0])


def _sentence(error: HTTPException) -> str:
    if error.status_code == 405 and error.detail == HTTPStatus.METHOD_NOT_ALLOWED.phrase:
        return f"This path does not take this method. It takes: {(error.headers or {}).get('Allow', 'another')}."
    return str(error.detail)
