"""Which engine to build, as data: what a server hands to the process that runs it.

Importing this loads no torch; build_engine does, in the process that calls it.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from darkroom.engine.fake import FakeEngine
from darkroom.types import EngineEvent, EngineStatus, Job, Value

if TYPE_CHECKING:  # a child process gets a spec and has no use for settings
    from darkroom.config import Settings


SPIN_COUNT: Final = "10000"


class Make(StrEnum):
    """Whose pictures: a model's, or the fake's drawings."""

    MODEL = "model"
    FAKE = "fake"


class EngineSpec(Value, frozen=True, kw_only=True):
    """Everything build_engine needs. The fields are those of Settings; step_ms: of the fake, per step."""

    make: Make
    models: str = ""
    embedded: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantise: str = "none"
    decoder: str = ""
    compile: str = "auto"
    compiled: str = ""
    attention: str = "auto"
    warm_sizes: tuple[tuple[int, int], ...] = ()
    memory_bytes: int = 0
    offload: bool = False
    max_rows: int = 16
    max_tokens: int = 65536
    kv_bank_bytes: int = 2 << 30
    kv_bank_host_bytes: int = 0
    kv_bank_format: str = "exact"
    text_cache_entries: int = 64
    faces: str = ""
    safety: str = ""
    step_ms: float = 0.0


def engine_spec(settings: Settings, device: str) -> EngineSpec:
    """The engine that the settings ask for, on one of their devices."""
    return EngineSpec(
        make=Make.FAKE if settings.engine.value == Make.FAKE.value else Make.MODEL,
        models=str(settings.models),
        embedded=str(settings.embedded) if settings.embedded else None,
        device=device,
        dtype=settings.dtype,
        quantise=settings.quantise,
        decoder=str(settings.decoder) if settings.decoder else "",
        compile=settings.compile,
        compiled=str((settings.data / "compiled").absolute()),
        attention=settings.attention,
        warm_sizes=settings.sizes_to_warm,
        memory_bytes=settings.memory_bytes,
        offload=settings.offload,
        max_rows=settings.max_rows,
        max_tokens=settings.max_tokens,
        kv_bank_bytes=settings.kv_bank_bytes,
        kv_bank_host_bytes=settings.kv_bank_host_bytes,
        kv_bank_format=settings.kv_bank_format,
        text_cache_entries=settings.text_cache_entries,
        faces=str(settings.faces_folder),
        safety=str(settings.safety_folder),
    )


class SteppedEngine(Protocol):
    """What the model's engine and the fake have in common: all that a pool knows of an engine."""

    @property
    def idle(self) -> bool: ...

    def add(self, job: Job) -> None: ...

    def cancel(self, job_id: str) -> None: ...

    def step(self) -> list[EngineEvent]: ...

    def status(self) -> EngineStatus: ...

    def warm(self, card_id: str) -> None: ...

    def use_idle_time(self) -> bool: ...


def _spin_shortly() -> None:
    """Has OpenMP's threads wait for each other asleep, after a short spin, unless the environment says how they wait.

    The runtime's own spin is thirty times as long: on a machine whose cores others keep busy, the thread that is waited
    for then has no core to run on, and a pass takes many times as long (benchmarks/LOG.md). Read when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def build_engine(spec: EngineSpec) -> SteppedEngine:
    """The engine of a spec. Raises what loading it raises; the model's takes seconds."""
    if spec.make is Make.FAKE:
        return FakeEngine(step_ms=spec.step_ms, max_rows=spec.max_rows)
    _spin_shortly()
    from darkroom.catalog.catalog import load_catalog
    from darkroom.catalog.installed import Installed
    from darkroom.engine.engine import Engine
    from darkroom.engine.options import EngineOptions

    options = EngineOptions(
        device=spec.device,
        dtype=spec.dtype,
        quantise=spec.quantise,
        decoder=spec.decoder,
        compile=spec.compile,
        compiled=spec.compiled,
        attention=spec.attention,
        warm_sizes=spec.warm_sizes,
        memory_bytes=spec.memory_bytes,
        offload=spec.offload,
        max_rows=spec.max_rows,
        max_tokens=spec.max_tokens,
        kv_bank_bytes=spec.kv_bank_bytes,
        kv_bank_host_bytes=spec.kv_bank_host_bytes,
        kv_bank_format=spec.kv_bank_format,
        text_cache_entries=spec.text_cache_entries,
        faces=spec.faces,
        safety=spec.safety,
    )
    embedded = Path(spec.embedded) if spec.embedded else None
    return Engine(load_catalog(), Installed(Path(spec.models), embedded), options)
