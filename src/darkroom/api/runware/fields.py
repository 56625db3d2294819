"""Checking a utility task: the validator of image tasks, over a schema the handler keeps beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darkroom.api.runware.parse import Refused
from darkroom.catalog.validate import Validator, without_nulls

TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}


class Form:
    """What one task type takes, beside taskType and taskUUID. properties: name → JSON Schema."""

    def __init__(self, properties: Mapping[str, Any], required: Sequence[str] = ()) -> None:
        self.properties = {"taskType": {"type": "string"}, "taskUUID": {"type": "string"}, **properties}
        self.validator = Validator(
            {
                "type": "object",
                "properties": self.properties,
                "required": list(required),
                "additionalProperties": False,
            }
        )

    def read(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """The task without nulls, choices in their documented case. Raises Refused with every violation."""
        given = {name: self._spelled(name, value) for name, value in without_nulls(task).items()}
        if violations := self.validator.violations(given):
            raise Refused(violations, None)
        return given

    def _spelled(self, name: str, value: Any) -> Any:
        """Enumerated values are compared without case."""
        choices = self.properties.get(name, {}).get("enum", ())
        if not isinstance(value, str):
            return value
        return next((choice for choice in choices if choice.casefold() == value.casefold()), value)
