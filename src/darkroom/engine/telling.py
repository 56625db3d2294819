"""What an engine tells of its jobs: events, collected until the step that made them is over."""

from __future__ import annotations

import logging

import torch

from darkroom.engine.active import ActiveJob
from darkroom.engine.row import Row
from darkroom.errors import DarkroomError, InferenceError, OutOfMemory
from darkroom.types import EngineEvent, Failure, Preview, Progress, Stage

log = logging.getLogger(__name__)


class Telling:
    """Events in the order they happened."""

    def __init__(self) -> None:
        self._events: list[EngineEvent] = []

    def __len__(self) -> int:
        return len(self._events)

    def take(self) -> list[EngineEvent]:
        """Everything since the last call."""
        events, self._events = self._events, []
        return events

    def tell(self, event: EngineEvent) -> None:
        self._events.append(event)

    def stage(self, job: ActiveJob, stage: Stage) -> None:
        """A stage of a job that has no rows yet, for every result that is open."""
        for result in sorted(job.open):
            self.tell(Progress(task=job.job.id, result=result, stage=stage, step=0, steps=job.request.steps))

    def progress(self, row: Row, stage: Stage) -> None:
        if row.patch:  # the picture's own steps are done; its bar does not start again for a face
            return
        self.tell(Progress(task=row.task, result=row.result, stage=stage, step=row.run.step, steps=row.run.steps))

    def preview(self, row: Row, jpeg: bytes) -> None:
        self.tell(Preview(task=row.task, result=row.result, step=row.run.step, steps=row.run.steps, jpeg=jpeg))

    def failure(self, task: str, result: int, error: BaseException) -> None:
        self.tell(failure(task, result, error))


def failure(task: str, result: int, error: BaseException) -> Failure:
    """What a caller is told of an error: ours as it is, a library's without its words, which may hold paths."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
        error = OutOfMemory("The device has not enough memory for this image: ask for a smaller one, or fewer at once.")
    if not isinstance(error, DarkroomError):
        log.error("result %d of job %s failed", result, task, exc_info=error)
        error = InferenceError(f"The engine could not make this image ({type(error).__name__}); the log says more.")
    parameter = ", ".join(error.parameter) if isinstance(error.parameter, tuple) else error.parameter
    return Failure(task=task, result=result, code=error.code, message=error.message, parameter=parameter)
