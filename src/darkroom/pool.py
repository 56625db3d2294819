"""The seam between tasks and engines: run a job, cancel it, ask what is loaded.

Today an engine in this process (tests, `darkroom generate`) or one supervised child process per device; the same
Protocol fits replicas on other machines. What crosses it is data only.

A pool has seats, one per engine. A seat keeps an engine running: it starts another one when the first dies. A line is
the connection between the runs of a seat and the engine that happens to sit there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, Protocol, TypeVar

from darkroom.engine.frames import AnyCommand, AnyMessage, Cancel, Ready, Report, Reported, Run, Stop, Told, Warm
from darkroom.engine.loop import EngineLoop
from darkroom.engine.process import EngineProcess
from darkroom.engine.spec import EngineSpec, SteppedEngine
from darkroom.errors import ConfigurationError, EngineLost
from darkroom.types import Distribution, Ended, EngineEvent, EngineStatus, Job

STATUS_SECONDS: Final = 1.0  # an engine in a long step does not answer; its last status stands for it then
BACKOFF_SECONDS: Final = (0.1, 0.5, 2.0, 5.0, 10.0)  # before the n-th restart in a row
STEADY_SECONDS: Final = 60.0  # up for so long, and the next restart counts as the first
STOP_SECONDS: Final = 5.0

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class EnginePool(Protocol):
    """Runs jobs on engines. Many jobs run at once; the engine batches their steps."""

    async def start(self) -> None:
        """Start the engines; returns when they take jobs. Raises ConfigurationError when one does not start."""

    async def stop(self) -> None:
        """Stop them; jobs that still run are given up."""

    def run(self, job: Job) -> AsyncGenerator[EngineEvent, None]:
        """Run one job; its last event is Ended. Raises EngineLost when the engine died under it (run it again)."""

    async def cancel(self, job_id: str) -> None:
        """Take its rows out between two steps; the run ends with Ended(cancelled=True). Unknown ids are ignored."""

    async def warm(self, card: str) -> None:
        """Ask for a card's weights ahead of its first job; returns at once."""

    async def status(self) -> EngineStatus:
        """What is loaded and what is free, as of the last time the engine answered within a second."""

    async def watch(self) -> None:
        """Returns when the pool is stopped; raises what the supervision itself died of."""


class SeatedPool:
    """EnginePool over seats: a job goes to the seat with the least to do."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats

    async def start(self) -> None:
        try:
            await asyncio.gather(*(seat.start() for seat in self._seats))
        except ConfigurationError:
            await self.stop()
            raise

    async def stop(self) -> None:
        await asyncio.gather(*(seat.stop() for seat in self._seats))

    def run(self, job: Job) -> AsyncGenerator[EngineEvent, None]:
        return min(self._seats, key=lambda seat: seat.line.load).line.run(job)

    async def cancel(self, job_id: str) -> None:
        for seat in self._seats:
            seat.line.cancel(job_id)

    async def warm(self, card: str) -> None:
        for seat in self._seats:
            seat.line.call(Warm(card=card))

    async def watch(self) -> None:
        await asyncio.gather(*(seat.watch() for seat in self._seats))

    async def status(self) -> EngineStatus:
        return combined(await asyncio.gather(*(seat.line.status() for seat in self._seats)))


class LocalPool(SeatedPool):
    """An engine on a thread of this process. One that raises is thrown away and built anew."""

    def __init__(self, build: Callable[[], SteppedEngine]) -> None:
        super().__init__([ThreadSeat(build)])


class ChildPool(SeatedPool):
    """One supervised child process per spec, and so per device."""

    def __init__(self, specs: Sequence[EngineSpec]) -> None:
        self._processes = [ProcessSeat(spec, f"engine {number}") for number, spec in enumerate(specs)]
        super().__init__(self._processes)

    @property
    def pids(self) -> list[int | None]:
        """Of the processes that run now; None where one is being started for the first time."""
        return [seat.pid for seat in self._processes]


class Line:
    """The runs of one seat and the way to its engine. All on the event loop's thread."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._call: Callable[[AnyCommand], None] | None = None
        self._runs: dict[str, asyncio.Queue[EngineEvent | EngineLost]] = {}
        self._unsent: dict[str, Job] = {}  # registered while no engine was there
        self._left: Counter[str] = Counter()  # runs that nobody listens to any more and that have not ended yet
        self._reports: dict[int, asyncio.Future[EngineStatus]] = {}
        self._numbers = itertools.count()
        self._status = EngineStatus(ready=False)

    @property
    def load(self) -> int:
        return len(self._runs)

    def open(self, call: Callable[[AnyCommand], None]) -> None:
        """An engine is being started, and this is how it is told something (it need not be ready)."""
        self._call = call

    def call(self, command: AnyCommand) -> None:
        """Tell the engine; nothing when there is none."""
        if self._call:
            self._call(command)

    def take(self, message: AnyMessage) -> None:
        """Something the engine said."""
        match message:
            case Told(events=events):
                for event in events:
                    self._pass_on(event)
            case Reported(number=number, status=status):
                self._status = status
                if report := self._reports.get(number):
                    _resolve(report, status)
            case Ready():
                self.ready.set()
                for job in self._unsent.values():
                    self.call(Run(job=job))
                self._unsent.clear()

    def lose(self, why: str, *, all_runs: bool = False) -> None:
        """The engine is gone: its runs raise EngineLost. Those it never got wait for the next, unless all_runs."""
        self.ready.clear()
        self._call = None
        self._left.clear()
        self._status = EngineStatus(ready=False)
        for report in self._reports.values():
            _resolve(report, self._status)
        for job_id, runner in self._runs.items():
            if all_runs or job_id not in self._unsent:
                runner.put_nowait(EngineLost(why))

    async def run(self, job: Job) -> AsyncGenerator[EngineEvent, None]:
        if job.id in self._runs:
            raise ValueError(f"job {job.id} runs already")
        events: asyncio.Queue[EngineEvent | EngineLost] = asyncio.Queue()
        self._runs[job.id] = events
        if self.ready.is_set():
            self.call(Run(job=job))
        else:
            self._unsent[job.id] = job
        ended = False
        try:
            while not ended:
                event = await events.get()
                ended = isinstance(event, Ended | EngineLost)
                if isinstance(event, EngineLost):
                    raise event
                yield event
        finally:
            while not (ended or events.empty()):
                ended = isinstance(events.get_nowait(), Ended | EngineLost)
            if not ended and job.id not in self._unsent:
                self._left[job.id] += 1  # the same job may be run again before the engine has heard of it
                self.call(Cancel(job=job.id))
            del self._runs[job.id]
            self._unsent.pop(job.id, None)

    def cancel(self, job_id: str) -> None:
        if self._unsent.pop(job_id, None):
            self._runs[job_id].put_nowait(Ended(task=job_id, cancelled=True))
        elif job_id in self._runs:
            self.call(Cancel(job=job_id))

    def _pass_on(self, event: EngineEvent) -> None:
        if event.task in self._left:
            if isinstance(event, Ended):
                self._left[event.task] -= 1
                self._left += Counter()  # drops what is zero
        elif runner := self._runs.get(event.task):
            runner.put_nowait(event)

    async def status(self) -> EngineStatus:
        if not self.ready.is_set():
            return self._status
        number = next(self._numbers)
        self._reports[number] = report = asyncio.get_running_loop().create_future()
        self.call(Report(number=number))
        try:
            return await asyncio.wait_for(report, STATUS_SECONDS)
        except TimeoutError:
            return self._status
        finally:
            self._reports.pop(number, None)


class Seat(ABC):
    """Keeps an engine running. Subclasses say how one is run once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = Line()
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        self._stopping = False
        self._keeper = asyncio.create_task(self._keep(), name=self.name)
        ready = asyncio.create_task(self.line.ready.wait())
        await asyncio.wait({self._keeper, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._keeper.done():
            self._keeper.result()

    async def watch(self) -> None:
        keeper = self._keeper
        if keeper:
            await asyncio.wait({keeper})
            if not keeper.cancelled():
                keeper.result()

    async def stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        self._stopping = True
        if self.line.ready.is_set():
            self.line.call(Stop())
            await asyncio.wait({keeper}, timeout=STOP_SECONDS)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self.line.lose("The engine was stopped.", all_runs=True)

    async def _keep(self) -> None:
        """Raises ConfigurationError when the first engine never becomes ready; later ones are tried for ever."""
        failures, ever_ready = 0, False
        while not self._stopping:
            began = time.monotonic()
            why = await self._serve()
            ever_ready = ever_ready or self.line.ready.is_set()
            if not ever_ready:
                raise ConfigurationError(f"The engine does not start: {why}")
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            hopeless = failures >= len(BACKOFF_SECONDS)
            self.line.lose("The engine ended while it worked on this task.", all_runs=hopeless)
            if not self._stopping:
                log.error("%s ended and is started again: %s", self.name, why)
                await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1] if failures else 0)

    @abstractmethod
    async def _serve(self) -> str:
        """Run one engine from start to end; returns why it ended."""


class ThreadSeat(Seat):
    def __init__(self, build: Callable[[], SteppedEngine]) -> None:
        super().__init__("engine")
        self._build = build

    async def _serve(self) -> str:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        engine_loop = EngineLoop(lambda message: call_soon(loop, self.line.take, message))
        self.line.open(engine_loop.call)
        threading.Thread(target=self._work, args=(engine_loop, loop, ended), name=self.name, daemon=True).start()
        try:
            return await ended
        except asyncio.CancelledError:
            engine_loop.call(Stop())
            raise

    def _work(self, engine_loop: EngineLoop, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[str]) -> None:
        try:
            engine_loop.run(self._build())
            why = "it was stopped"
        except ConfigurationError as error:
            why = error.message
        except Exception as error:
            log.exception("%s raised", self.name)
            why = f"{type(error).__name__}: {error}"
        call_soon(loop, _resolve, ended, why)


class ProcessSeat(Seat):
    """pid: of the process that sits here now."""

    def __init__(self, spec: EngineSpec, name: str) -> None:
        super().__init__(name)
        self._spec = spec
        self.pid: int | None = None

    async def _serve(self) -> str:
        try:
            process = await EngineProcess.start(self._spec, self.line.take)
        except OSError as error:  # too many processes or files, or too little memory: later there may be room
            return f"it could not be started: {error.strerror or error}"
        self.pid = process.pid
        self.line.open(process.call)
        return await process.wait()


def combined(statuses: Sequence[EngineStatus]) -> EngineStatus:
    """Of several engines: ready when all are, counts added up."""
    if len(statuses) == 1:
        return statuses[0]
    counters: dict[str, float] = {}
    distributions: dict[str, Distribution] = {}
    for status in statuses:
        for name, value in status.counters.items():
            counters[name] = counters.get(name, 0.0) + value
        for name, one in status.distributions.items():
            distributions[name] = summed(distributions[name], one) if name in distributions else one
    return EngineStatus(
        ready=all(status.ready for status in statuses),
        device=", ".join(status.device for status in statuses),
        dtype=statuses[0].dtype,
        loaded=tuple(card for status in statuses for card in status.loaded),
        rows=sum(status.rows for status in statuses),
        memory_bytes=sum(status.memory_bytes for status in statuses),
        counters=counters,
        distributions=distributions,
    )


def summed(one: Distribution, other: Distribution) -> Distribution:
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Distribution(bounds=one.bounds, counts=counts, total=one.total + other.total)


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """From an engine's thread; nothing when the loop is closed and so nobody listens."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[Answer], value: Answer) -> None:
    if not future.done():
        future.set_result(value)
