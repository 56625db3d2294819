"""Errors of the routes both dialects share: flat, with the same list of fields beside it.

    {"code": "NOT_FOUND", "message": "…", "errors": [{"code": "NOT_FOUND", "message": "…", "parameter": "…"}]}

Never a traceback: what nobody expected is logged under a number, and the caller is told the number.
"""

from __future__ import annotations

import secrets
from typing import Any

import structlog

from darkroom.errors import DarkroomError, Overloaded, Unauthorized

log = structlog.get_logger(__name__)

STATUS = {  # code of errors.py → HTTP status; whatever is not here is ours: 500
    "invalid_parameter": 422,
    "not_found": 404,
    "conflict": 409,
    "unauthorized": 401,
    "overloaded": 429,
    "model_not_installed": 503,
    "feature_not_installed": 503,
    "input_image": 422,
    "download": 422,
    "address_refused": 422,
    "weights": 422,
}
REASONS = {
    400: "BAD_REQUEST",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    500: "INTERNAL_ERROR",
    503: "UNAVAILABLE",
}


def flat(code: str, message: str, parameter: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """The body of an error."""
    entry: dict[str, Any] = {"code": code, "message": message}
    if parameter:
        entry["parameter"] = parameter if isinstance(parameter, str) else list(parameter)
    return {"code": code, "message": message, "errors": [entry]}


def describe(error: DarkroomError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error we raised."""
    return STATUS.get(error.code, 500), flat(error.code.upper(), error.message, error.parameter), headers_for(error)


def headers_for(error: DarkroomError) -> dict[str, str]:
    if isinstance(error, Overloaded):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


class BodyTooLarge(Exception):
    """A request's body is longer than DARKROOM_BODY_BYTES."""


def framework(status: int, message: str | None = None) -> dict[str, Any]:
    """The body for what the framework refuses (no such path, no such method, too long) or we failed at: no field of
    the request is at fault, so there is no list of fields.
    """
    return {"code": REASONS.get(status, f"HTTP_{status}"), "message": message or sentence(status), "errors": None}


def sentence(status: int) -> str:
    """What an HTTP status means here."""
    messages = {
        400: "The request cannot be read.",
        403: "This page may not call this server.",
        404: "There is nothing at this address. /docs lists what there is.",
        405: "This address does not take this method.",
        413: "The request is larger than this server takes.",
        503: "The server stops. What it had accepted is kept: ask for it again when it is back.",
    }
    return messages.get(status, "The request was refused.")


def unexpected(error: BaseException) -> str:
    """Log a failure of ours and return the sentence that a caller may see."""
    number = secrets.token_hex(4)
    log.error("request_failed", incident=number, exc_info=error)
    return f"Something went wrong on this server. Its log has the details under {number}."
