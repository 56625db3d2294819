"""Drives an engine: obeys commands between two steps, steps while there is work, sleeps when there is none.

Before it sleeps it lets the engine use the time for what makes later work faster, piece by piece.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator

from darkroom.engine.frames import AnyCommand, AnyMessage, Cancel, Ready, Report, Reported, Run, Stop, Told, Warm
from darkroom.engine.spec import SteppedEngine
from darkroom.errors import DarkroomError

log = logging.getLogger(__name__)


class EngineLoop:
    """One engine on one thread. call() may be used from any thread and before run(), which is the engine's own.

    tell: takes what the engine has to say; called on the engine's thread.
    """

    def __init__(self, tell: Callable[[AnyMessage], None]) -> None:
        self._tell = tell
        self._inbox: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._step_began: float | None = None

    def call(self, command: AnyCommand) -> None:
        self._inbox.put(command)

    def run(self, engine: SteppedEngine) -> None:
        """Until Stop. Raises what a step raises: the engine is not to be used after that."""
        self._tell(Ready())
        while True:
            self._use_idle_time(engine)
            for command in self._waiting_commands(engine.idle):
                if isinstance(command, Stop):
                    return
                self._obey(engine, command)
            self._step_began = time.monotonic()
            events = engine.step()
            self._step_began = None
            if events:
                self._tell(Told(events=tuple(events)))

    def step_seconds(self) -> float:
        """How long the step that runs has taken so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def _waiting_commands(self, idle: bool) -> Iterator[AnyCommand]:
        if idle:
            yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _use_idle_time(self, engine: SteppedEngine) -> None:
        """Until there is something to do, or nothing left to use it for."""
        self._step_began = time.monotonic()
        while engine.idle and self._inbox.empty() and engine.use_idle_time():
            self._step_began = time.monotonic()
        self._step_began = None

    def _obey(self, engine: SteppedEngine, command: AnyCommand) -> None:
        match command:
            case Run(job=job):
                engine.add(job)
            case Cancel(job=job_id):
                engine.cancel(job_id)
            case Report(number=number):
                self._tell(Reported(number=number, status=engine.status()))
            case Warm(card=card):
                self._warm(engine, card)

    def _warm(self, engine: SteppedEngine, card: str) -> None:
        self._step_began = time.monotonic()
        try:
            engine.warm(card)
        except DarkroomError as error:  # a request for the card will say the same to who asked for it
            log.warning("%s could not be loaded ahead of its first task: %s", card, error.message)
        self._step_began = None
