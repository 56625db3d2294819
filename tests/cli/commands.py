"""Running command lines in a test: status, stdout and stderr, in a folder of the test's own, with the fake engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass
class Ended:
    status: int
    out: str
    error: str


class Command(Protocol):
    def __call__(self, *arguments: str) -> Ended: ...
