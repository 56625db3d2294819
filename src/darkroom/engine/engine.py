"""The engine: takes jobs, and with every step does one unit of work for one of them or for a batch of them.

    engine.add(job)
    while not engine.idle:
        for event in engine.step(): ...

A job waits, is prepared stage by stage (preparation.py) and is ready. Then every result is a row of its own
(starting.py), denoised step by step among the rows of other jobs, and decoded (finishing.py). A step does the work
nearest to a picture first: it decodes, else prepares a job, else denoises.

What fails, fails alone: a job before it has rows, a row afterwards. A batch that does not fit into memory is halved.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch

from darkroom.catalog.catalog import Catalog
from darkroom.catalog.installed import Installed
from darkroom.engine import finishing, starting
from darkroom.engine.active import ActiveJob
from darkroom.engine.costs import Costs
from darkroom.engine.devices import dtype_name, memory_used, start_peak, wait_for
from darkroom.engine.enlarging import enlarged
from darkroom.engine.measures import Measures
from darkroom.engine.options import EngineOptions
from darkroom.engine.preparation import Preparation, Work
from darkroom.engine.retouch import Retouch
from darkroom.engine.row import Row
from darkroom.engine.runner import Runner
from darkroom.engine.scheduler import StepScheduler
from darkroom.engine.shelf import NoRoom
from darkroom.engine.stock import Stock
from darkroom.engine.telling import Telling
from darkroom.errors import DarkroomError
from darkroom.types import CardStatus, Ended, EngineEvent, EngineStatus, Job, Pixels, Stage

log = logging.getLogger(__name__)

PREPARED_AHEAD: Final = 2  # jobs made ready before there is a free row, so that a freed row never waits for text
COUNTERS: Final = ("forwards", "row_steps", "steps_reused", "pictures", "failures", "cancelled")
# What a job's own data can make fail. Anything else is a bug of ours and ends the engine, which is started again.
STAGE_ERRORS: Final = (DarkroomError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)


class Engine:
    """Not thread-safe: one thread adds, cancels and steps. Raises ConfigurationError for a device that is not here.

    costs: what is known of the device's passes; nothing, unless it is given.
    """

    def __init__(
        self, catalog: Catalog, installed: Installed, options: EngineOptions, costs: Costs | None = None
    ) -> None:
        self._catalog = catalog
        self._stock = Stock(installed, options)
        self._shelf = self._stock.shelf
        self._bank = self._stock.bank
        self.device = self._stock.device
        self.dtype = self._stock.dtype
        self._telling = Telling()
        self._preparation = Preparation(catalog, self._stock, self._telling)
        self._runner = Runner(self._stock.tuning)
        self._scheduler: StepScheduler[Row] = StepScheduler(options.max_rows, options.max_tokens, costs)
        self._jobs: dict[str, ActiveJob] = {}
        self._waiting: deque[ActiveJob] = deque()
        self._preparing: tuple[ActiveJob, Work] | None = None  # and the stage that comes next
        self._ready: deque[ActiveJob] = deque()
        self._to_retouch: deque[tuple[Row, Retouch, int]] = deque()
        self._to_decode: deque[Row] = deque()
        self._counters = dict.fromkeys(COUNTERS, 0.0)
        self._measures = Measures(self.device)
        start_peak(self.device)

    # --- what a pool calls ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing to do and nothing to tell."""
        return not (self._jobs or self._telling)

    def add(self, job: Job) -> None:
        """Take a job. What is wrong with it is told as Failure events by later steps."""
        if job.id in self._jobs:
            log.warning("job %s runs already; it is not taken twice", job.id)
            return
        active = ActiveJob(job)
        self._jobs[job.id] = active
        if not job.results:
            self._end(active)
        else:
            self._waiting.append(active)

    def cancel(self, job_id: str) -> None:
        """Take a job out between two steps; the next step tells Ended(cancelled=True). Unknown ids are ignored."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._counters["cancelled"] += 1
            self._end(job, cancelled=True)

    def step(self) -> list[EngineEvent]:
        """One unit of work, and what there is to tell since the last; [] when idle or still at it."""
        _ = self._decode_next() or self._prepare_next() or self._denoise_next()
        return self._telling.take()

    def warm(self, card_id: str) -> None:
        """Load a card's weights ahead of its first job. Raises NotFound, ModelNotInstalled, WeightsError."""
        models = self._shelf.locate(self._catalog.resolve(card_id))
        try:
            self._shelf.use(models)
        except NoRoom:
            log.info("%s is not loaded ahead: the cards at work leave no room", card_id)
            return
        try:
            self._shelf.tokenizer(models)
            self._stock.prepare_tuning(models)
        finally:
            self._shelf.release(models)

    def use_idle_time(self) -> bool:
        """One piece of what makes later pictures faster (tuning.py); False when there is none. Only while idle."""
        return self._stock.tuning.rehearse_next(self._shelf)

    def status(self) -> EngineStatus:
        loaded = self._shelf.loaded()
        cards = (
            CardStatus(card=card.id, bytes=held, device=str(self.device), dtype=dtype_name(self.dtype))
            for card in self._catalog.cards
            if (held := self._stock.bytes_held(card, loaded))
        )
        return EngineStatus(
            ready=True,
            device=str(self.device),
            dtype=dtype_name(self.dtype),
            loaded=tuple(cards),
            rows=len(self._scheduler.running) + len(self._to_decode),
            memory_bytes=memory_used(self.device),
            counters=self._counters | {"jobs": float(len(self._jobs))} | self._stock.counters(),
            distributions=self._measures.told(),
        )

    # --- jobs become rows ----------------------------------------------------------------------------------------

    def _prepare_next(self) -> bool:
        """The next stage of the job in preparation, or the first of another. False when there is none."""
        if self._preparing is None:
            return self._begin_next()
        job, work = self._preparing
        self._preparing = None
        self._attempt(job, partial(self._prepare, work=work))
        self._admit()
        return True

    def _begin_next(self) -> bool:
        """Load the card of the job that waits longest. False while rows at work leave no room for it."""
        job = self._next_to_begin()
        if job is None:
            return False
        try:
            self._attempt(job, partial(self._prepare, work=self._preparation.load))
        except NoRoom:
            return False
        if job in self._waiting:
            self._waiting.remove(job)
        return True

    def _next_to_begin(self) -> ActiveJob | None:
        """The job that waits longest; while enough jobs are ready for a place, one that is in a hurry."""
        unserved = sum(1 for job in self._ready if not job.rows)
        ahead = max(PREPARED_AHEAD, self._scheduler.free_rows)
        if unserved < ahead:
            return self._waiting[0] if self._waiting else None
        if unserved < ahead + self._scheduler.reserved_rows:
            return next((job for job in self._waiting if self._scheduler.in_hurry(job.work)), None)
        return None

    def _prepare(self, job: ActiveJob, work: Work) -> None:
        following = work(job)
        if following is None:
            self._ready.append(job)
        else:
            self._preparing = (job, following)

    def _admit(self) -> None:
        """Give free rows to faces that wait for one, then to ready jobs, one result each in turn."""
        while self._to_retouch and self._scheduler.free_rows > len(self._to_decode):
            row, retouch, place = self._to_retouch.popleft()
            self._attempt_row(row, partial(self._start_face, retouch=retouch, place=place))
        while (job := self._next_to_start()) is not None:
            self._ready.remove(job)
            self._attempt(job, self._start_result)
            if job.unstarted and job.job.id in self._jobs:
                self._ready.append(job)

    def _next_to_start(self) -> ActiveJob | None:
        if self._scheduler.free_rows <= len(self._to_decode):
            return None
        return next((job for job in self._ready if self._scheduler.has_room(job.work)), None)

    def _start_result(self, job: ActiveJob) -> None:
        row = starting.result_row(self._stock, job, job.unstarted.popleft())
        self._start(job, row)
        self._telling.progress(row, Stage.DENOISE)

    def _start_face(self, picture: Row, retouch: Retouch, place: int) -> None:
        job = self._jobs[picture.task]
        self._start(job, starting.face_row(self._stock, job, picture, retouch, place))

    def _start(self, job: ActiveJob, row: Row) -> None:
        job.rows.append(row)
        self._scheduler.admit(row)

    # --- rows become pictures ------------------------------------------------------------------------------------

    def _denoise_next(self) -> bool:
        self._admit()
        batch = self._scheduler.next_batch()
        if batch:
            self._denoise(batch)
        return bool(batch)

    def _denoise(self, batch: Sequence[Row]) -> None:
        """One step of these rows; when it fails, of parts of them, down to the row that fails alone. One that has left
        meanwhile, because a row of the same picture failed, is passed over."""
        batch = [row for row in batch if row in self._scheduler.running]
        if not batch:
            return
        began = time.perf_counter()
        try:
            transformer = self._shelf.part(batch[0].models.transformer)
            with self._measures.forward(len(batch), self._scheduler.costs.learner(batch)):
                velocities = self._runner.velocities(transformer, batch)
        except STAGE_ERRORS as error:
            if len(batch) == 1:
                self._fail_row(batch[0], error)
                return
            if isinstance(error, torch.OutOfMemoryError):
                self._scheduler.costs.too_large(batch)
            self._free_memory(error)
            half = len(batch) // 2
            self._denoise(batch[:half])
            self._denoise(batch[half:])
            return
        self._counters["forwards"] += 1
        self._counters["row_steps"] += len(batch)
        for row, velocity in zip(batch, velocities, strict=True):
            if row in self._scheduler.running:
                self._attempt_row(row, partial(self._advance, velocity=velocity))
        if any(row.run.done for row in batch):
            wait_for(self.device)
        seconds = time.perf_counter() - began
        for row in batch:
            row.denoise_seconds += seconds

    def _advance(self, row: Row, velocity: torch.Tensor) -> None:
        run, step = row.run, row.run.step
        latents, sigma = run.latents, run.sigma
        run.advance(velocity)
        if run.step == step:  # a sampler that calls the model twice is half-way through the step
            return
        self._telling.progress(row, Stage.DENOISE)
        every = row.request.preview_every
        if every and run.step % every == 0 and not run.done:
            previewer = self._shelf.previewer(row.models)
            self._telling.preview(row, previewer.jpeg(latents - sigma * velocity, row.height, row.width))
        if run.done:
            self._scheduler.leave(row)
            self._to_decode.append(row)

    def _decode_next(self) -> bool:
        if not self._to_decode:
            return False
        row = self._to_decode.popleft()
        self._attempt_row(row, self._finish)
        self._admit()
        return True

    def _finish(self, row: Row) -> None:
        """Decode a row. A face goes back to its picture; a picture waits for its faces, or is told."""
        self._telling.progress(row, Stage.DECODE)
        pixels = finishing.decode(self._stock, row)
        if row.patch:
            if finishing.put_back(row, row.patch, pixels):
                self._deliver(row.patch.origin, row.patch.retouch.result())
            return
        asked = self._jobs[row.task].job.request
        pixels = enlarged(pixels, asked.width, asked.height)
        retouch = finishing.faces_of(self._stock, row, pixels)
        if retouch is None:
            self._deliver(row, pixels)
        else:
            self._to_retouch.extend((row, retouch, place) for place in range(len(retouch.found)))

    def _deliver(self, row: Row, pixels: Pixels) -> None:
        job = self._jobs[row.task]
        picture = finishing.picture_of(self._stock, job, row, pixels)
        self._counters["pictures"] += 1
        self._counters["steps_reused"] += picture.record.steps_reused
        self._telling.tell(picture)
        self._close(job, row.result)

    # --- what fails ----------------------------------------------------------------------------------------------

    def _attempt(self, job: ActiveJob, work: Callable[[ActiveJob], None]) -> None:
        """Do a job's work; if that fails, every result that has not come yet does."""
        try:
            work(job)
        except STAGE_ERRORS as error:
            self._free_memory(error)
            for result in sorted(job.open):
                self._telling.failure(job.job.id, result, error)
            self._counters["failures"] += len(job.open)
            self._end(job)

    def _attempt_row(self, row: Row, work: Callable[[Row], None]) -> None:
        try:
            work(row)
        except STAGE_ERRORS as error:
            self._fail_row(row, error)

    def _fail_row(self, row: Row, error: BaseException) -> None:
        self._free_memory(error)
        job = self._jobs.get(row.task)
        if job is None or row.result not in job.open:  # another face of the picture failed before, and with it all
            return
        self._counters["failures"] += 1
        self._telling.failure(row.task, row.result, error)
        self._drop([other for other in job.rows if other.result == row.result])
        self._close(job, row.result)

    def _free_memory(self, error: BaseException) -> None:
        if isinstance(error, torch.OutOfMemoryError) and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _close(self, job: ActiveJob, result: int) -> None:
        """One result is told; the job ends with its last."""
        job.open.discard(result)
        if not job.open:
            self._end(job)

    def _drop(self, rows: Sequence[Row]) -> None:
        """Rows that nothing more is done for, faces of them that wait included."""
        self._to_retouch = deque(waiting for waiting in self._to_retouch if waiting[0] not in rows)
        for row in rows:
            if row in self._scheduler.running:
                self._scheduler.leave(row)
            if row in self._to_decode:
                self._to_decode.remove(row)

    def _end(self, job: ActiveJob, *, cancelled: bool = False) -> None:
        del self._jobs[job.job.id]
        for queue in (self._waiting, self._ready):
            if job in queue:
                queue.remove(job)
        if self._preparing is not None and self._preparing[0] is job:
            self._preparing = None
        self._drop(job.rows)
        if job.kv_key is not None:
            self._bank.release(job.kv_key)
        if job.models is not None:
            self._shelf.release(job.models)
        self._telling.tell(Ended(task=job.job.id, cancelled=cancelled))
