"""The engine's interface without a model: draws a pattern from prompt, seed and size. Needs no torch and no numpy.

For work on the API and the playground, and for tests of everything around an engine: batching, progress, previews,
cancelling and failing behave as the real one's do. The same card, prompt, seed, size, references and adapters always
give the same picture. A prompt may carry markers that rehearse what is hard to provoke otherwise:

    [fail]       every result fails ("inference")         [fail 1]   only the result with index 1 does
    [oom]        every result fails ("out_of_memory")     [nsfw]     found unsafe, when the request asks for the check
    [crash]      step() raises, as a bug in an engine would: its process dies and is restarted
    [slow 250]   each denoising step takes 250 milliseconds
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import deque
from typing import Final

from PIL import Image, ImageChops, ImageDraw

from darkroom.engine.tally import BATCH_ROWS, STEP_SECONDS, Tally
from darkroom.errors import InferenceError, OutOfMemory
from darkroom.types import (
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
    Record,
    Stage,
    result_seed,
)

PREVIEW_SIDE: Final = 256
MARKER = re.compile(r"\[(fail|oom|nsfw|crash|slow)(?: (\d+))?\]")


class FakeRow:
    """One picture in flight."""

    def __init__(self, job: Job, result: int) -> None:
        self.job = job
        self.result = result
        self.step = 0
        self.last_turn = 0
        self.started = time.perf_counter()

    @property
    def batch_key(self) -> tuple[str, int, int]:
        request = self.job.request
        return request.card, request.width, request.height


class FakeEngine:
    """add, step, cancel: the loop of engine/engine.py over drawn pictures.

    step_ms: how long one step of one batch takes. max_rows: pictures in flight; the others wait.
    """

    def __init__(self, *, step_ms: float = 0.0, max_rows: int = 16) -> None:
        self.step_ms = step_ms
        self.max_rows = max_rows
        self.jobs: dict[str, int] = {}  # results still owed, by job
        self.waiting: deque[FakeRow] = deque()
        self.running: list[FakeRow] = []
        self.events: list[EngineEvent] = []  # what add and cancel have to say, told by the next step
        self.cards: set[str] = set()
        self.turn = 0
        self.steps = 0
        self.pictures = 0
        self.step_seconds = Tally(STEP_SECONDS)
        self.batch_rows = Tally(BATCH_ROWS)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self.events)

    def add(self, job: Job) -> None:
        """Take a job. Its results become rows; a job without results ends at the next step."""
        self.cards.add(job.request.card)
        self.jobs[job.id] = len(job.results)
        if not job.results:
            self._end(job.id)
        self.waiting.extend(FakeRow(job, result) for result in job.results)

    def cancel(self, job_id: str) -> None:
        """Take a job's rows out; the next step tells Ended(cancelled=True). Unknown ids are ignored."""
        if self.jobs.pop(job_id, None) is None:
            return
        self.waiting = deque(row for row in self.waiting if row.job.id != job_id)
        self.running = [row for row in self.running if row.job.id != job_id]
        self.events.append(Ended(task=job_id, cancelled=True))

    def step(self) -> list[EngineEvent]:
        """One step of the batch that waited longest; what changed, [] when idle."""
        batch = self._next_batch()
        if batch:
            self._spend(batch)
        for row in batch:
            self._advance(row)
        told, self.events = self.events, []
        return told

    def status(self) -> EngineStatus:
        return EngineStatus(
            ready=True,
            device="fake",
            dtype="fp32",
            loaded=tuple(CardStatus(card=card, bytes=0, device="fake", dtype="fp32") for card in sorted(self.cards)),
            rows=len(self.running) + len(self.waiting),
            counters={"forwards": float(self.steps), "pictures": float(self.pictures)},
            distributions={"step_seconds": self.step_seconds.told(), "batch_rows": self.batch_rows.told()},
        )

    def use_idle_time(self) -> bool:
        return False

    def warm(self, card_id: str) -> None:
        self.cards.add(card_id)

    def _next_batch(self) -> list[FakeRow]:
        self.turn += 1
        while self.waiting and len(self.running) < self.max_rows:
            row = self.waiting.popleft()
            row.last_turn = self.turn
            self.running.append(row)
        if not self.running:
            return []
        key = min(self.running, key=lambda row: row.last_turn).batch_key
        return [row for row in self.running if row.batch_key == key]

    def _spend(self, batch: list[FakeRow]) -> None:
        self.steps += 1
        began = time.perf_counter()
        milliseconds = max([self.step_ms, *(float(markers(row.job).get("slow") or 0) for row in batch)])
        if milliseconds:
            time.sleep(milliseconds / 1000)
        self.step_seconds.add(time.perf_counter() - began)
        self.batch_rows.add(len(batch))

    def _advance(self, row: FakeRow) -> None:
        request = row.job.request
        row.last_turn = self.turn
        found = markers(row.job)
        if "crash" in found:
            raise RuntimeError("the prompt asked for a crash")
        if "oom" in found:
            return self._fail(row, OutOfMemory("The device has too little memory for this size; make it smaller."))
        if "fail" in found and found["fail"] in (None, row.result):
            return self._fail(row, InferenceError("The picture could not be made: its prompt asked for a failure."))
        row.step += 1
        self.events.append(
            Progress(task=row.job.id, result=row.result, stage=Stage.DENOISE, step=row.step, steps=request.steps)
        )
        if request.preview_every and row.step % request.preview_every == 0 and row.step < request.steps:
            self.events.append(preview(row))
        if row.step >= request.steps:
            self._finish(row)

    def _finish(self, row: FakeRow) -> None:
        request = row.job.request
        denoised = time.perf_counter()
        image = draw(row.job, row.result)
        pixels = Pixels(width=request.width, height=request.height, data=image.tobytes())
        record = Record(
            stage_ms={
                Stage.TEXT: 0.0,
                Stage.REFERENCES: 0.0,
                Stage.DENOISE: (denoised - row.started) * 1000,
                Stage.DECODE: (time.perf_counter() - denoised) * 1000,
            },
            steps_computed=request.steps,
            prompt=f"{request.prompt}, in fine detail" if request.upsample_prompt else None,
            model="fake",
            demo=True,
        )
        nsfw = "nsfw" in markers(row.job) if request.check_safety else None
        if nsfw and request.hide_unsafe:
            pixels = pixels.blacked_out()
        self.events.append(
            Picture(
                task=row.job.id,
                result=row.result,
                seed=result_seed(request, row.result),
                pixels=pixels,
                record=record,
                nsfw=nsfw,
            )
        )
        self.pictures += 1
        self._leave(row)

    def _fail(self, row: FakeRow, error: InferenceError) -> None:
        self.events.append(Failure(task=row.job.id, result=row.result, code=error.code, message=error.message))
        self._leave(row)

    def _leave(self, row: FakeRow) -> None:
        self.running.remove(row)
        self.jobs[row.job.id] -= 1
        if not self.jobs[row.job.id]:
            self._end(row.job.id)

    def _end(self, job_id: str) -> None:
        del self.jobs[job_id]
        self.events.append(Ended(task=job_id))


def markers(job: Job) -> dict[str, int | None]:
    """What the prompt asks to rehearse: marker to its number."""
    found = MARKER.findall(job.request.prompt)
    return {name: int(number) if number else None for name, number in found}


def draw(job: Job, result: int) -> Image.Image:
    """A gradient with shapes, all from one hash; references as small pictures along the lower edge."""
    request = job.request
    parts = (request.card, request.prompt, str(result_seed(request, result)), *(str(use) for use in request.adapters))
    dice = hashlib.shake_128("\0".join(parts).encode()).digest(64)
    size = (request.width, request.height)
    slope = Image.linear_gradient("L").rotate(90 * (dice[0] % 4)).resize(size)
    image = Image.merge("RGB", [slope.point([_mix(dice[1 + c], dice[4 + c], i) for i in range(256)]) for c in range(3)])
    pen = ImageDraw.Draw(image)
    for at in range(8, 56, 8):
        _shape(pen, size, dice[at : at + 8])
    side = min(size) // 4
    for place, reference in enumerate(job.references):
        small = Image.frombytes("RGB", (reference.width, reference.height), reference.data)
        small.thumbnail((side, side))
        image.paste(small, (place * side % request.width, request.height - small.height))
    return image


def preview(row: FakeRow) -> Preview:
    """The picture under noise that thins out with every step, at most PREVIEW_SIDE pixels wide and high."""
    request = row.job.request
    image = draw(row.job, row.result)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    noise = Image.merge("RGB", [Image.effect_noise(image.size, 80)] * 3)
    blended = ImageChops.blend(noise, image, row.step / request.steps)
    buffer = io.BytesIO()
    blended.save(buffer, "JPEG", quality=75)
    return Preview(task=row.job.id, result=row.result, step=row.step, steps=request.steps, jpeg=buffer.getvalue())


def _mix(first: int, last: int, position: int) -> int:
    return first + (last - first) * position // 255


def _shape(pen: ImageDraw.ImageDraw, size: tuple[int, int], dice: bytes) -> None:
    width, height = size
    x, y = dice[0] * width // 256, dice[1] * height // 256
    radius = 1 + dice[2] * min(size) // 1024
    box = (x - radius, y - radius, x + radius, y + radius)
    colour = (dice[3], dice[4], dice[5])
    if dice[6] % 2:
        pen.ellipse(box, fill=colour)
    else:
        pen.rectangle(box, fill=colour)
