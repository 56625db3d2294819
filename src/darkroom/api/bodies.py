"""What is wrong with a body that should be JSON and cannot be read, in words for whoever wrote the program."""

from __future__ import annotations

import json
import re

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def why_unreadable(body: bytes | str) -> str:
    """How a sentence about this body goes on: "The body …"."""
    try:
        text = body.decode() if isinstance(body, bytes) else body
    except UnicodeDecodeError as error:
        return f"is not UTF-8: byte {error.start + 1} belongs to no character"
    try:
        json.loads(text, parse_constant=_refuse)
    except RecursionError:
        return "is nested too deeply"
    except json.JSONDecodeError as error:
        told = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        return f"is not JSON: {told} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        return f"is not JSON: {error}"
    if not SURROGATE.search(text):
        return "is not JSON: one of its numbers is too large"
    return (
        "has half a character in it, an escape such as \\ud83d without its other half: "
        "that is what is left where a text was cut in the middle of an emoji"
    )


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number there")
