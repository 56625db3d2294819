"""What an engine measures of its own work: how long its forward passes take, and how many rows share one.

On a GPU a pass is still running when the call that started it returns. Its time is therefore taken by two marks in the
device's own queue and read when both have gone by: nothing waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from darkroom.engine.tally import BATCH_ROWS, STEP_SECONDS, Tally
from darkroom.types import Distribution

Learn = Callable[[float], None]
"""Takes the seconds of a pass as soon as they are known."""


class Measures:
    """Of one engine, on its thread."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = Tally(STEP_SECONDS)
        self._rows = Tally(BATCH_ROWS)
        self._marks: deque[tuple[Any, Any, Learn]] = deque()

    @contextmanager
    def forward(self, rows: int, learn: Learn = lambda _seconds: None) -> Iterator[None]:
        """Around one forward pass for so many rows; one that raises is not counted."""
        began = time.perf_counter()
        start = self._mark()
        yield
        end = self._mark()
        if start and end:
            self._marks.append((start, end, learn))
        else:
            self._took(time.perf_counter() - began, learn)
        self._rows.add(rows)
        self._read()

    def told(self) -> dict[str, Distribution]:
        """For an engine's status."""
        self._read()
        return {"step_seconds": self._seconds.told(), "batch_rows": self._rows.told()}

    def _mark(self) -> Any:
        """A torch.cuda.Event in the device's queue; None where there is no queue."""
        if not self._on_gpu:
            return None
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def _read(self) -> None:
        """Take the times of passes whose end has gone by; they end in the order they began."""
        while self._marks and self._marks[0][1].query():
            start, end, learn = self._marks.popleft()
            self._took(start.elapsed_time(end) / 1000, learn)

    def _took(self, seconds: float, learn: Learn) -> None:
        self._seconds.add(seconds)
        learn(seconds)
