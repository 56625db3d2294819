"""Every error Darkroom raises on purpose. Each dialect maps `code` to its own shape and status in one table.

    DarkroomError
    ├── InvalidParameter      a value of the request is wrong (Problem says how)
    ├── NotFound              no such task, model, image or adapter, or not this key's
    ├── Conflict              an identifier is used already
    ├── Unauthorized          no key, or not one of ours
    ├── Overloaded            the queue is full; try again after retry_after_seconds
    ├── ModelNotInstalled     the card is known, its weights are not here
    ├── FeatureNotInstalled   an optional part (face detector, safety classifier) is not here
    ├── InputImageError       an input image cannot be fetched, read or accepted
    │   ├── DownloadFailed    the URL of an input cannot be fetched
    │   └── AddressRefused    a caller's URL points where the server must not go
    ├── WeightsError          a weights or adapter file does not fit the model
    ├── InferenceError        the engine could not make the image
    │   ├── OutOfMemory
    │   └── EngineLost        the engine process died more often than a task is retried
    ├── LeaseLost             a worker reports on a task that is no longer its own
    ├── StorageError          a picture could not be stored
    └── ConfigurationError    the operator's settings do not fit together

A message says what was wrong and what to do, in one sentence or two, and never shows a path or a traceback
of the server to a caller.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Problem(StrEnum):
    """In which way a parameter is wrong."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    TYPE = "type"
    BELOW = "below"
    ABOVE = "above"
    STEP = "step"
    CHOICE = "choice"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_FEW = "too_few"
    TOO_MANY = "too_many"
    FORMAT = "format"
    INCOMPATIBLE = "incompatible"


class DarkroomError(Exception):
    """Base. code: stable, snake_case. parameter: dotted path(s) at fault, as the client spelled them."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, parameter: str | tuple[str, ...] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter


class InvalidParameter(DarkroomError):
    """expected: the type asked for, in the schema's words ("integer", "array"), where that helps."""

    code = "invalid_parameter"

    def __init__(
        self,
        message: str,
        *,
        parameter: str | tuple[str, ...],
        problem: Problem,
        expected: str | None = None,
        allowed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, parameter=parameter)
        self.problem = problem
        self.expected = expected
        self.allowed = allowed


class NotFound(DarkroomError):
    """what: "task", "model", "media", "adapter", "key"."""

    code = "not_found"

    def __init__(self, message: str, *, what: str, parameter: str | None = None) -> None:
        super().__init__(message, parameter=parameter)
        self.what = what


class Conflict(DarkroomError):
    code = "conflict"


class Unauthorized(DarkroomError):
    """missing: no key was given at all."""

    code = "unauthorized"

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message, parameter="apiKey")
        self.missing = missing


class Overloaded(DarkroomError):
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ModelNotInstalled(DarkroomError):
    code = "model_not_installed"


class FeatureNotInstalled(DarkroomError):
    code = "feature_not_installed"


class InputImageError(DarkroomError):
    code = "input_image"


class DownloadFailed(InputImageError):
    code = "download"


class AddressRefused(InputImageError):
    code = "address_refused"


class WeightsError(DarkroomError):
    code = "weights"


class InferenceError(DarkroomError):
    code = "inference"


class OutOfMemory(InferenceError):
    code = "out_of_memory"


class EngineLost(InferenceError):
    code = "engine_lost"


class LeaseLost(DarkroomError):
    code = "lease_lost"


class StorageError(DarkroomError):
    code = "storage"


class ConfigurationError(DarkroomError):
    code = "configuration"
