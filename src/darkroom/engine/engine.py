"""The engine: takes jobs, and with every step does one unit of work for one of them or for a batch of them.

    engine.add(job)
    while not engine.idle:
        for event in engine.step(): ...

A job passes through queues: its card is loaded, its prompts encoded, its references encoded and, for a KV model, their
keys and values computed. Then every result is a row of its own, denoised step by step among the rows of other jobs,
and decoded. A step does the work nearest to a picture first: it decodes, else prepares a job, else denoises.

What fails, fails alone: a job before it has rows, a row afterwards. A batch that does not fit into memory is halved.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch

from darkroom.catalog.card import Card
from darkroom.catalog.catalog import Catalog
from darkroom.catalog.installed import Installed
from darkroom.engine import kv, vae
from darkroom.engine.active import ActiveJob
from darkroom.engine.devices import dtype_name, memory_used, peak_bytes, pick_device, pick_dtype, start_peak, wait_for
from darkroom.engine.extras import Extras
from darkroom.engine.faces import to_image
from darkroom.engine.kv import KVBank, KVKey
from darkroom.engine.lora import AdapterBank, Attached, active, applied
from darkroom.engine.references import ReferenceEncoder
from darkroom.engine.retouch import Patch, Retouch, find_faces, patch_request, start_patch
from darkroom.engine.row import Conditioning, Row, start_run
from darkroom.engine.runner import Runner
from darkroom.engine.safety import is_unsafe
from darkroom.engine.samplers import sampler
from darkroom.engine.scheduler import StepScheduler
from darkroom.engine.shelf import NoRoom, PartKey, Shelf
from darkroom.engine.step_cache import RowCache
from darkroom.engine.text_encode import Encoded, PromptEncoder
from darkroom.errors import DarkroomError, InferenceError, NotFound, OutOfMemory
from darkroom.types import (
    AdapterUse,
    CardStatus,
    Ended,
    EngineEvent,
    EngineStatus,
    Failure,
    Job,
    Picture,
    Pixels,
    Preview,
    Progress,
    Stage,
    Value,
    result_seed,
)

log = logging.getLogger(__name__)

PREPARED_AHEAD: Final = 2  # jobs made ready before there is a free row, so that a freed row never waits for text
REFERENCE_BYTES: Final = 64 << 20  # latents of recent references; a megapixel takes 2 MB
ADAPTER_BYTES: Final = 2 << 30  # adapters kept beside the weights; one of a 9B model has 50 to 500 MB
COUNTERS: Final = ("forwards", "row_steps", "steps_reused", "pictures", "failures", "cancelled")
# What a job's own data can make fail. Anything else is a bug of ours and ends the engine, which is started again.
STAGE_ERRORS: Final = (DarkroomError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)


class EngineOptions(Value, frozen=True, kw_only=True):
    """device: auto, cpu, cuda, cuda:N, mps. dtype: auto, fp32, bf16. memory_bytes: of weights, 0 is what there is.

    offload: large parts take turns on the device. max_rows: images in flight. max_tokens: of one forward pass.
    kv_bank_bytes: reference K/V kept between tasks. text_cache_entries: prompts kept.
    faces, safety: folders of the face detector and the safety classifier, where the operator has installed them.
    """

    device: str = "auto"
    dtype: str = "auto"
    memory_bytes: int = 0
    offload: bool = False
    max_rows: int = 16
    max_tokens: int = 65536
    kv_bank_bytes: int = 2 << 30
    text_cache_entries: int = 64
    faces: str = ""
    safety: str = ""


class Engine:
    """Not thread-safe: one thread adds, cancels and steps. Raises ConfigurationError for a device that is not here."""

    def __init__(self, catalog: Catalog, installed: Installed, options: EngineOptions) -> None:
        self.device = pick_device(options.device)
        self.dtype = pick_dtype(options.dtype, self.device)
        self._catalog = catalog
        self._shelf = Shelf(
            installed, self.device, self.dtype, budget_bytes=options.memory_bytes, offload=options.offload
        )
        self._prompts = PromptEncoder(options.text_cache_entries)
        self._references = ReferenceEncoder(REFERENCE_BYTES)
        self._bank = KVBank(options.kv_bank_bytes)
        self._adapters = AdapterBank(ADAPTER_BYTES)
        self._runner = Runner()
        self._extras = Extras(Path(options.faces), Path(options.safety))
        self._scheduler: StepScheduler[Row] = StepScheduler(options.max_rows, options.max_tokens)
        self._jobs: dict[str, ActiveJob] = {}
        self._waiting: deque[ActiveJob] = deque()
        self._to_encode: deque[ActiveJob] = deque()
        self._to_reference: deque[ActiveJob] = deque()
        self._to_extract: deque[ActiveJob] = deque()
        self._ready: deque[ActiveJob] = deque()
        self._to_retouch: deque[tuple[Row, Retouch, int]] = deque()
        self._to_decode: deque[Row] = deque()
        self._told: list[EngineEvent] = []
        self._counters = dict.fromkeys(COUNTERS, 0.0)
        start_peak(self.device)

    # --- what a pool calls ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing to do and nothing to tell."""
        return not (self._jobs or self._told)

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
        told, self._told = self._told, []
        return told

    def warm(self, card_id: str) -> None:
        """Load a card's weights ahead of its first job. Raises NotFound, ModelNotInstalled, WeightsError."""
        models = self._shelf.locate(self._catalog.resolve(card_id))
        try:
            self._shelf.use(models)
        except NoRoom:
            log.info("%s is not loaded ahead: the cards at work leave no room", card_id)
            return
        self._shelf.tokenizer(models)
        self._shelf.release(models)

    def status(self) -> EngineStatus:
        loaded = self._shelf.loaded()
        cards = (
            CardStatus(card=card.id, bytes=held, device=str(self.device), dtype=dtype_name(self.dtype))
            for card in self._catalog.cards
            if (held := self._bytes_held(card, loaded))
        )
        return EngineStatus(
            ready=True,
            device=str(self.device),
            dtype=dtype_name(self.dtype),
            loaded=tuple(cards),
            rows=len(self._scheduler.running) + len(self._to_decode),
            memory_bytes=memory_used(self.device),
            counters=self._counters | self._cache_counters(),
        )

    # --- jobs become rows ----------------------------------------------------------------------------------------

    def _prepare_next(self) -> bool:
        """The next stage of the job that is furthest, or the beginning of another. False when there is none."""
        stages: tuple[tuple[deque[ActiveJob], Callable[[ActiveJob], None]], ...] = (
            (self._to_extract, self._extract),
            (self._to_reference, self._encode_references),
            (self._to_encode, self._encode_text),
        )
        for queue, work in stages:
            if queue:
                self._attempt(queue.popleft(), work)
                self._admit()
                return True
        return self._begin_next()

    def _begin_next(self) -> bool:
        """Load the card of the job that waits longest. False while rows at work leave no room for it."""
        unserved = sum(1 for job in self._ready if not job.rows)
        if not self._waiting or unserved >= max(PREPARED_AHEAD, self._scheduler.free_rows):
            return False
        job = self._waiting[0]
        try:
            self._attempt(job, self._load)
        except NoRoom:
            return False
        if self._waiting and self._waiting[0] is job:
            self._waiting.popleft()
        return True

    def _load(self, job: ActiveJob) -> None:
        card = self._catalog.resolve(job.request.card)
        chosen = sampler(job.request.sampler)
        if job.request.faces:
            _ = self._extras.detector
        if job.request.check_safety:
            _ = self._extras.classifier
        models = self._shelf.locate(card)
        self._shelf.use(models)
        job.models = models
        job.adapters = tuple(self._attach(job, use) for use in job.request.adapters)
        if models.located.stands_in_for:
            missing, there = models.located.stands_in_for, models.located.variant
            job.warnings.append(f"The embedded model has no {missing} variant yet: its {there} one draws this card.")
        if chosen.warning:
            job.warnings.append(chosen.warning)
        self._to_encode.append(job)

    def _attach(self, job: ActiveJob, use: AdapterUse) -> Attached:
        file = next((file for file in job.job.adapters if file.adapter == use.adapter), None)
        if file is None:
            raise NotFound(f"The adapter '{use.adapter}' is not here.", what="adapter", parameter="lora")
        key = job.loaded.transformer
        adapter = self._adapters.get(file, key, self._shelf.part(key))
        stat = Path(file.path).stat()
        job.adapter_files[adapter.name] = (file.path, stat.st_mtime_ns, stat.st_size)
        return Attached(adapter, use.weight, use.stage)

    def _encode_text(self, job: ActiveJob) -> None:
        self._tell_stage(job, Stage.TEXT)
        with job.clock(Stage.TEXT):
            job.positive = self._encode_prompt(job, self._final_prompt(job))
            if job.request.cfg_scale > 1:
                job.negative = self._encode_prompt(job, job.request.negative_prompt)
        self._note_truncation(job, job.positive)
        (self._to_reference if job.job.references else self._ready).append(job)

    def _final_prompt(self, job: ActiveJob) -> str:
        """The prompt, or the longer one that the card's text model writes."""
        request, models = job.request, job.loaded
        if not request.upsample_prompt:
            return request.prompt
        if models.located.demo:
            job.warnings.append("The embedded model's text encoder can read, not write: the prompt was used as it is.")
            return request.prompt
        writer = self._extras.writer(models, self.device, self.dtype)
        job.prompt_used = writer.write(request.prompt, seed=request.seed, editing=bool(request.references))
        return job.prompt_used

    def _encode_prompt(self, job: ActiveJob, prompt: str) -> Encoded:
        models = job.loaded
        return self._prompts.encode(
            self._shelf.part(models.text_encoder),
            self._shelf.tokenizer(models),
            models.text_encoder,
            models.located.text,
            models.located.text_length,
            prompt,
        )

    def _encode_references(self, job: ActiveJob) -> None:
        self._tell_stage(job, Stage.REFERENCES)
        models = job.loaded
        with job.clock(Stage.REFERENCES):
            job.references = self._references.encode(
                self._shelf.part(models.vae), models.vae, job.job.scope, job.job.references, models.card.references
            )
        (self._to_extract if models.card.kv_references else self._ready).append(job)

    def _extract(self, job: ActiveJob) -> None:
        """Keys and values of the references: from the bank, or computed and put there."""
        models, references = job.loaded, job.references
        assert references is not None
        acting = active(job.adapters, 0.0)  # references are clean images
        names = tuple((job.adapter_files[adapter.name], weight) for adapter, weight in acting)
        key = KVKey(models.transformer, names, job.job.scope, references.hashes)
        with job.clock(Stage.REFERENCES):
            known = self._bank.use(key)
            job.references_reused = len(references.hashes) if known else 0
            if known is None:
                transformer = self._shelf.part(models.transformer)
                with applied(transformer, acting):
                    known = kv.extract(transformer, references)
                self._bank.put(key, known)
        job.kv_key, job.kv = key, known
        self._ready.append(job)

    def _admit(self) -> None:
        """Give free rows to faces that wait for one, then to ready jobs, one result each in turn."""
        while self._to_retouch and self._scheduler.free_rows > len(self._to_decode):
            row, retouch, place = self._to_retouch.popleft()
            self._attempt_row(row, partial(self._start_patch, retouch=retouch, place=place))
        while self._ready and self._scheduler.free_rows > len(self._to_decode):
            job = self._ready.popleft()
            self._attempt(job, self._start_row)
            if job.unstarted and job.job.id in self._jobs:
                self._ready.append(job)

    def _start_row(self, job: ActiveJob) -> None:
        request, models = job.request, job.loaded
        positive = job.positive
        assert positive is not None
        result = job.unstarted.popleft()
        transformer = self._shelf.part(models.transformer)
        unit = vae.token_pixels(self._shelf.part(models.vae))
        height, width = request.height // unit, request.width // unit
        seed = result_seed(request, result)
        channels = transformer.config.in_channels
        cache = request.step_cache
        row = Row(
            task=job.job.id,
            result=result,
            seed=seed,
            request=request,
            models=models,
            conditioning=Conditioning(
                positive.embeddings, job.negative.embeddings if job.negative else None, job.references, job.kv
            ),
            run=start_run(request, seed, channels, height, width, self.device, positive.embeddings.dtype),
            height=height,
            width=width,
            adapters=job.adapters,
            step_cache=RowCache(cache, request.steps, models.card.tea_coefficients) if cache else None,
        )
        job.rows.append(row)
        self._scheduler.admit(row)
        self._tell_progress(row, Stage.DENOISE)

    def _start_patch(self, row: Row, retouch: Retouch, place: int) -> None:
        """A row for one face of a finished picture."""
        job, models = self._jobs[row.task], row.models
        request = patch_request(row.request, retouch.found[place][1], models.card.guidance)
        autoencoder = self._shelf.part(models.vae)
        positive = self._encode_prompt(job, request.prompt).embeddings
        negative = self._encode_prompt(job, request.negative_prompt).embeddings if request.cfg_scale > 1 else None
        unit = vae.token_pixels(autoencoder)
        patch = Row(
            task=row.task,
            result=row.result,
            seed=row.seed,
            request=request,
            models=models,
            conditioning=Conditioning(positive, negative),
            run=start_patch(autoencoder, retouch, place, request.sampler, row.seed + place, positive.dtype),
            height=request.height // unit,
            width=request.width // unit,
            adapters=job.adapters,
            patch=Patch(retouch, place, row),
        )
        job.rows.append(patch)
        self._scheduler.admit(patch)

    # --- rows become pictures ------------------------------------------------------------------------------------

    def _denoise_next(self) -> bool:
        self._admit()
        batch = self._scheduler.next_batch()
        if batch:
            self._denoise(batch)
        return bool(batch)

    def _denoise(self, batch: Sequence[Row]) -> None:
        """One step of these rows; when it fails, of parts of them, down to the row that fails alone."""
        began = time.perf_counter()
        try:
            velocities = self._runner.velocities(self._shelf.part(batch[0].models.transformer), batch)
        except STAGE_ERRORS as error:
            if len(batch) == 1:
                self._fail_row(batch[0], error)
                return
            self._free_memory(error)
            half = len(batch) // 2
            self._denoise(batch[:half])
            self._denoise(batch[half:])
            return
        self._counters["forwards"] += 1
        self._counters["row_steps"] += len(batch)
        for row, velocity in zip(batch, velocities, strict=True):
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
        self._tell_progress(row, Stage.DENOISE)
        every = row.request.preview_every
        if every and run.step % every == 0 and not run.done:
            self._tell_preview(row, latents - sigma * velocity)
        if run.done:
            self._scheduler.leave(row)
            self._to_decode.append(row)

    def _decode_next(self) -> bool:
        if not self._to_decode:
            return False
        row = self._to_decode.popleft()
        self._attempt_row(row, self._decode)
        self._admit()
        return True

    def _decode(self, row: Row) -> None:
        self._tell_progress(row, Stage.DECODE)
        began = time.perf_counter()
        if not row.run.latents.isfinite().all():
            raise InferenceError("Denoising ran out of the number range; another sampler or fp32 avoids it.")
        pixels = vae.decode(self._shelf.part(row.models.vae), row.run.latents, row.height, row.width)
        row.decode_seconds = time.perf_counter() - began
        if row.patch:
            self._put_back(row, row.patch, pixels)
        elif not self._send_faces(row, pixels):
            self._deliver(row, pixels)

    def _send_faces(self, row: Row, pixels: Pixels) -> bool:
        """Queue the faces of a picture for refining. False when there is nothing to refine."""
        settings = row.request.faces
        if settings is None or settings.strength == 0:
            return False
        retouch = find_faces(self._extras.detector, pixels, settings)
        if retouch is None:
            return False
        self._to_retouch.extend((row, retouch, place) for place in range(len(retouch.found)))
        return True

    def _put_back(self, row: Row, patch: Patch, pixels: Pixels) -> None:
        """One face has come back; with the last one the picture is whole."""
        origin: Row = patch.origin
        patch.retouch.parts[patch.place] = to_image(pixels)
        origin.denoise_seconds += row.denoise_seconds
        origin.decode_seconds += row.decode_seconds
        if patch.retouch.done:
            self._deliver(origin, patch.retouch.result())

    def _deliver(self, row: Row, pixels: Pixels) -> None:
        job = self._jobs[row.task]
        nsfw = None
        if row.request.check_safety:
            nsfw = is_unsafe(self._extras.classifier, to_image(pixels), row.request.safety_tolerance)
        record = job.record(row, peak=peak_bytes(self.device))
        self._counters["pictures"] += 1
        self._counters["steps_reused"] += record.steps_reused
        self._told.append(
            Picture(task=row.task, result=row.result, seed=row.seed, pixels=pixels, record=record, nsfw=nsfw)
        )
        self._close(job, row.result)

    # --- what fails ----------------------------------------------------------------------------------------------

    def _attempt(self, job: ActiveJob, work: Callable[[ActiveJob], None]) -> None:
        """Do a job's work; if that fails, every result that has not come yet does."""
        try:
            work(job)
        except STAGE_ERRORS as error:
            self._free_memory(error)
            for result in sorted(job.open):
                self._told.append(failure(job.job.id, result, error))
            self._counters["failures"] += len(job.open)
            self._end(job)

    def _attempt_row(self, row: Row, work: Callable[[Row], None]) -> None:
        try:
            work(row)
        except STAGE_ERRORS as error:
            self._fail_row(row, error)

    def _fail_row(self, row: Row, error: BaseException) -> None:
        self._free_memory(error)
        self._counters["failures"] += 1
        self._told.append(failure(row.task, row.result, error))
        if row in self._scheduler.running:
            self._scheduler.leave(row)
        self._close(self._jobs[row.task], row.result)

    def _free_memory(self, error: BaseException) -> None:
        if isinstance(error, torch.OutOfMemoryError) and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _close(self, job: ActiveJob, result: int) -> None:
        """One result is told; the job ends with its last."""
        job.open.discard(result)
        if not job.open:
            self._end(job)

    def _end(self, job: ActiveJob, *, cancelled: bool = False) -> None:
        del self._jobs[job.job.id]
        for queue in (self._waiting, self._to_encode, self._to_reference, self._to_extract, self._ready):
            if job in queue:
                queue.remove(job)
        self._to_retouch = deque(waiting for waiting in self._to_retouch if waiting[0].task != job.job.id)
        for row in job.rows:
            if row in self._scheduler.running:
                self._scheduler.leave(row)
            if row in self._to_decode:
                self._to_decode.remove(row)
        if job.kv_key is not None:
            self._bank.release(job.kv_key)
        if job.models is not None:
            self._shelf.release(job.models)
        self._told.append(Ended(task=job.job.id, cancelled=cancelled))

    # --- what is told --------------------------------------------------------------------------------------------

    def _tell_stage(self, job: ActiveJob, stage: Stage) -> None:
        for result in sorted(job.open):
            self._told.append(Progress(task=job.job.id, result=result, stage=stage, step=0, steps=job.request.steps))

    def _tell_progress(self, row: Row, stage: Stage) -> None:
        if row.patch:  # the picture's own steps are done; its bar does not start again for a face
            return
        self._told.append(
            Progress(task=row.task, result=row.result, stage=stage, step=row.run.step, steps=row.run.steps)
        )

    def _tell_preview(self, row: Row, estimate: torch.Tensor) -> None:
        jpeg = self._shelf.previewer(row.models).jpeg(estimate, row.height, row.width)
        self._told.append(Preview(task=row.task, result=row.result, step=row.run.step, steps=row.run.steps, jpeg=jpeg))

    def _note_truncation(self, job: ActiveJob, encoded: Encoded) -> None:
        job.truncated = encoded.truncated
        if encoded.truncated:
            length = job.loaded.located.text_length
            job.warnings.append(
                f"The prompt has {encoded.tokens} tokens; only its beginning fits into the {length} the model reads."
            )

    def _bytes_held(self, card: Card, loaded: Mapping[PartKey, int]) -> int:
        """Of a card's parts in memory, if its network is."""
        try:
            models = self._shelf.locate(card)
        except DarkroomError:
            return 0
        return sum(loaded.get(key, 0) for key in models.parts) if models.transformer in loaded else 0

    def _cache_counters(self) -> dict[str, float]:
        return {
            "loads": float(self._shelf.loads),
            "jobs": float(len(self._jobs)),
            **self._prompts.kept.counters("text_cache"),
            **self._references.kept.counters("reference_cache"),
            **self._bank.kept.counters("kv_bank"),
            **self._adapters.kept.counters("adapters"),
        }


def failure(task: str, result: int, error: BaseException) -> Failure:
    """What a caller is told of an error: ours as it is, a library's without its words, which may hold paths."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
        error = OutOfMemory("The device has not enough memory for this image: ask for a smaller one, or fewer at once.")
    if not isinstance(error, DarkroomError):
        log.error("result %d of job %s failed", result, task, exc_info=error)
        error = InferenceError(f"The engine could not make this image ({type(error).__name__}); the log says more.")
    parameter = ", ".join(error.parameter) if isinstance(error.parameter, tuple) else error.parameter
    return Failure(task=task, result=result, code=error.code, message=error.message, parameter=parameter)
