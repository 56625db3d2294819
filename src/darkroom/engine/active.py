"""A job in the engine: how far it is, what its results share, and what its record will say."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from darkroom.engine.kv import KVKey, ReferenceKV
from darkroom.engine.lora import Attached
from darkroom.engine.references import References
from darkroom.engine.row import Row, work_of
from darkroom.engine.shelf import CardModels
from darkroom.engine.text_encode import Encoded
from darkroom.types import Job, Record, Stage


class ActiveJob:
    """request: as the network gets it, of the size it draws; the job's own says how large pictures are to be.
    open: results not told yet. unstarted: results that have no row yet. The rest is filled stage by stage."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request = job.request
        self.open = set(job.results)
        self.unstarted = deque(job.results)
        self.rows: list[Row] = []
        self.models: CardModels | None = None
        self.adapters: tuple[Attached, ...] = ()
        self.adapter_files: dict[str, tuple[str, int, int]] = {}  # path, time and size: names an adapter's content
        self.positive: Encoded | None = None
        self.negative: Encoded | None = None
        self.references: References | None = None
        self.kv_key: KVKey | None = None
        self.kv: ReferenceKV | None = None
        self.references_reused = 0
        self.truncated = False
        self.prompt_used: str | None = None
        self.warnings: list[str] = []
        self._stage_ms: dict[str, float] = {}

    @property
    def work(self) -> float:
        """How much there is to do for one of its pictures (row.work_of)."""
        return work_of(self.request)

    @property
    def loaded(self) -> CardModels:
        """The models of a job that has passed its first stage."""
        assert self.models is not None
        return self.models

    @contextmanager
    def clock(self, stage: Stage) -> Iterator[None]:
        """Adds what happens inside to the time of a stage."""
        began = time.perf_counter()
        yield
        self._stage_ms[stage] = self._stage_ms.get(stage, 0.0) + 1000 * (time.perf_counter() - began)

    def record(self, row: Row, *, peak: int) -> Record:
        """How one of its pictures was made. peak: bytes."""
        own = {Stage.DENOISE: 1000 * row.denoise_seconds, Stage.DECODE: 1000 * row.decode_seconds}
        reused = row.step_cache.reused_steps if row.step_cache else 0
        return Record(
            stage_ms={name: round(value, 3) for name, value in (self._stage_ms | own).items()},
            steps_computed=row.run.steps - reused,
            steps_reused=reused,
            prompt=self.prompt_used,
            prompt_truncated=self.truncated,
            references_reused=self.references_reused,
            peak_bytes=peak,
            model=self.loaded.card.id,
            demo=self.loaded.located.demo,
            warnings=tuple(self.warnings),
        )
