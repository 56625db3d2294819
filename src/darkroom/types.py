"""The frozen values that cross folders: what is asked for, what happens, what comes out.

They are msgspec structs, so that one definition serves the database (JSON), the frames between
processes (msgpack) and the code in between. Nothing here knows a wire format, a tensor or a table.
Images are 8-bit RGB, rows top to bottom. Times are milliseconds unless a name says otherwise.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

MAX_SEED = 2**63 - 1


class GuidanceKind(StrEnum):
    """How a model is steered towards its prompt; a fact of its card."""

    CFG = "cfg"  # undistilled: two passes, the negative prompt is real
    EMBEDDED = "embedded"  # guidance-distilled: the scale is an input of the network
    NONE = "none"  # step-distilled: the scale has no effect


class AdapterStage(StrEnum):
    """On which part of the noise range a LoRA acts: high noise (composition), low noise (detail) or both."""

    HIGH = "high"
    LOW = "low"
    BOTH = "both"


class StepCacheKind(StrEnum):
    FIRST_BLOCK = "first_block"
    DUAL_BLOCK = "dual_block"
    TEA = "tea"


class Acceleration(StrEnum):
    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ImageFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class Stage(StrEnum):
    """Where the time of one image goes."""

    QUEUE = "queue"
    TEXT = "text"
    REFERENCES = "references"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE = "encode"


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values below: frozen, compared by content."""


class AdapterUse(Value, frozen=True, kw_only=True):
    """One LoRA of a request. weight: -4 to 4, 0 is the same as leaving it out."""

    adapter: str
    weight: float = 1.0
    stage: AdapterStage = AdapterStage.BOTH


class StepCache(Value, frozen=True, kw_only=True):
    """When a denoising step may reuse what an earlier one computed.

    threshold: relative change below which a step is reused; higher reuses more (the sense of the
    published methods; a dialect that documents the opposite converts). Steps count from 0; reuse is
    allowed for start_step <= step < end_step (None: the last step). After max_consecutive reused
    steps one is computed, and every refresh_interval steps in any case.
    """

    kind: StepCacheKind
    threshold: float
    start_step: int = 0
    end_step: int | None = None
    max_consecutive: int = 3
    refresh_interval: int = 5


class FaceRefinement(Value, frozen=True, kw_only=True):
    """A second, local pass over every face found. inpaint_size, mask_blur, mask_padding: pixels.

    confidence and strength: 0 to 1. Empty prompts mean those of the picture.
    """

    positive_prompt: str = ""
    negative_prompt: str = ""
    guidance: float = 8.0
    confidence: float = 0.9
    inpaint_size: int = 1024
    mask_blur: int = 5
    mask_padding: int = 5
    steps: int = 20
    strength: float = 0.3


class Output(Value, frozen=True, kw_only=True):
    """How a picture is encoded. quality: 20 to 99, for JPEG and WEBP. metadata: write the parameters into the file."""

    format: ImageFormat = ImageFormat.JPEG
    quality: int = 95
    metadata: bool = True


class ImageRequest(Value, frozen=True, kw_only=True):
    """What one task asks for, checked against its card and complete: no field is left to a default further down.

    card: the card's id. width, height: pixels, multiples of 16. steps: denoising steps.
    seed: of the first result; result i uses seed + i, wrapping after MAX_SEED. count: results.
    guidance: the scalar fed to a guidance-embedded network, ignored by the others.
    cfg_scale: classifier-free guidance with a second, negative pass; 1 or less switches it off.
    sampler: a name of engine.samplers. references: ids of stored images, in the order the prompt means.
    check_safety: have a classifier look at each picture. hide_unsafe: what it flags is handed over black.
    preview_every: a small preview every so many steps, 0 for none.
    """

    card: str
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    count: int = 1
    negative_prompt: str = ""
    guidance: float = 1.0
    cfg_scale: float = 1.0
    sampler: str = "Default"
    references: tuple[str, ...] = ()
    adapters: tuple[AdapterUse, ...] = ()
    acceleration: Acceleration = Acceleration.NONE
    step_cache: StepCache | None = None
    faces: FaceRefinement | None = None
    upsample_prompt: bool = False
    check_safety: bool = False
    hide_unsafe: bool = False
    safety_tolerance: int = 2
    output: Output = Output()
    preview_every: int = 0


def result_seed(request: ImageRequest, result: int) -> int:
    """The seed of one result, so that any single image of a task can be made again by its own seed."""
    return (request.seed + result) % (MAX_SEED + 1)


class Pixels(Value, frozen=True, kw_only=True):
    """An image without a file format. data: height * width * 3 bytes of sRGB."""

    width: int
    height: int
    data: bytes

    def blacked_out(self) -> Pixels:
        return Pixels(width=self.width, height=self.height, data=bytes(len(self.data)))


class MediaKind(StrEnum):
    """What a stored file is to its owner."""

    RESULT = "result"  # made by a task
    REFERENCE = "reference"  # given inline or by URL with a request
    UPLOAD = "upload"  # sent in by itself, to be used later


class Media(Value, frozen=True, kw_only=True):
    """A stored file. id: UUIDv4. bytes: its length. sha256: hex. Times are aware UTC; expires_at: None for never."""

    id: str
    owner: str
    kind: MediaKind
    content_type: str
    extension: str
    width: int
    height: int
    bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None

    @property
    def name(self) -> str:
        """Of the file, in URLs and on disk."""
        return f"{self.id}.{self.extension}"


class AdapterFile(Value, frozen=True, kw_only=True):
    """Where the worker found an adapter: an absolute path of a safetensors file, never one a caller chose."""

    adapter: str
    path: str


class Job(Value, frozen=True, kw_only=True):
    """What the engine is handed: a request with everything it refers to already resolved.

    id: of the task. results: indices still to be made (all of them at the first attempt).
    references: decoded, upright, opaque, in order. scope: whose caches may be shared (the owner's key).
    """

    id: str
    request: ImageRequest
    results: tuple[int, ...]
    references: tuple[Pixels, ...] = ()
    adapters: tuple[AdapterFile, ...] = ()
    scope: str = ""


class Record(Value, frozen=True, kw_only=True):
    """How one picture was made: goes into the task's record, the file's metadata and the answers.

    stage_ms: milliseconds by stage (queue excluded from the engine's part until the worker adds it).
    prompt: the one really used, when it is not the request's. text_tokens: of the prompt before truncation.
    references_reused: reference K/V found in the bank instead of computed. file_bytes: of the encoded picture, 0 until
    it is stored.
    """

    stage_ms: dict[str, float] = {}
    steps_computed: int = 0
    steps_reused: int = 0
    prompt: str | None = None
    prompt_truncated: bool = False
    references_reused: int = 0
    peak_bytes: int = 0
    file_bytes: int = 0
    model: str = ""
    demo: bool = False
    warnings: tuple[str, ...] = ()


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that happened to a job. task: the job's id. result: index of the image, counting from 0."""

    task: str


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    """step of steps are done for this result, which is now in this stage."""

    result: int
    stage: Stage
    step: int
    steps: int


class Preview(Event, frozen=True, kw_only=True, tag="preview"):
    """What the image would be if denoising ended here (the x0 estimate), as a small JPEG."""

    result: int
    step: int
    steps: int
    jpeg: bytes


class Picture(Event, frozen=True, kw_only=True, tag="picture"):
    """One result is ready. nsfw: None means nobody looked."""

    result: int
    seed: int
    pixels: Pixels
    record: Record
    nsfw: bool | None = None


class Failure(Event, frozen=True, kw_only=True, tag="failure"):
    """One result could not be made; the others go on. code: of errors.py."""

    result: int
    code: str
    message: str
    parameter: str | None = None


class Ended(Event, frozen=True, kw_only=True, tag="ended"):
    """The engine is done with the job: every result was a picture or a failure, or the job was cancelled."""

    cancelled: bool = False


EngineEvent = Progress | Preview | Picture | Failure | Ended


class CardStatus(Value, frozen=True, kw_only=True):
    """One card as the engine holds it. bytes: of weights in memory."""

    card: str
    bytes: int
    device: str
    dtype: str


class Distribution(Value, frozen=True, kw_only=True):
    """How often values fell where: counts[i] of them above bounds[i - 1] and at most bounds[i]; the last above all.

    total: of all values. Grows from the start of an engine.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class EngineStatus(Value, frozen=True, kw_only=True):
    """What is loaded and what is free. memory_bytes: resident (CPU) or allocated (GPU); rows: images in flight.

    counters grow from the start of the engine; those that end in _size stand for what is kept now. distributions:
    step_seconds of forward passes, and batch_rows that shared one.
    """

    ready: bool
    device: str = "cpu"
    dtype: str = "fp32"
    loaded: tuple[CardStatus, ...] = ()
    rows: int = 0
    memory_bytes: int = 0
    counters: dict[str, float] = {}
    distributions: dict[str, Distribution] = {}
