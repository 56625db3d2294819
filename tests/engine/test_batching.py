"""Rows of one size share a forward whatever their references, and every one of them is as alone, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from darkroom.engine.runner import Runner
from darkroom.types import AdapterFile, AdapterUse, Job, StepCache, StepCacheKind
from tests import tiny
from tests.engine.conftest import FreeCompany, image, job, make_engine, pictures, run
from tests.engine.lora_files import Example

ONE, OTHER, TURNED, WIDE = image(96, 64, seed=1), image(80, 80, seed=2), image(64, 96, seed=3), image(128, 64, seed=4)
REFERENCES = {
    "none": (),
    "one": (ONE,),
    "turned": (TURNED,),  # as many tokens as "one", at other places
    "two": (OTHER, ONE),
    "same two": (OTHER, ONE),
    "three": (WIDE, ONE, OTHER),
}


@dataclass
class Watched:
    """What the runner was asked and gave. tasks: of each forward. velocities: of each task, step by step."""

    tasks: list[tuple[str, ...]] = field(default_factory=list)
    velocities: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    seen, original = Watched(), Runner.velocities

    def velocities(self: Runner, transformer: Any, rows: Sequence[Any]) -> list[torch.Tensor]:
        found = original(self, transformer, rows)
        seen.tasks.append(tuple(row.task for row in rows))
        for row, velocity in zip(rows, found, strict=True):
            seen.velocities.setdefault(row.task, []).append(velocity)
        return found

    monkeypatch.setattr(Runner, "velocities", velocities)
    yield seen


def mixed(variant: str, **changes: Any) -> list[Job]:
    """A job for each list of references; every other one with another number of steps, seed and guidance."""
    jobs = []
    for number, (name, references) in enumerate(REFERENCES.items()):
        cfg = 3.0 if number % 2 else 1.0
        asked = {"steps": 3 + number % 3, "seed": number, "cfg_scale": cfg, "guidance": 1.0 + number} | changes
        jobs.append(job(variant, name, references=references, **asked))
    return jobs


def assert_as_alone(watched: Watched, jobs: Sequence[Job], **options: Any) -> Watched:
    """Together and one by one. Returns what was seen of them together."""
    made = pictures(run(make_engine(FreeCompany(), **options), *jobs))
    together = Watched(watched.tasks[:], dict(watched.velocities))
    watched.velocities.clear()
    for each in jobs:
        alone = pictures(run(make_engine(**options), each))
        assert alone[each.id, 0].pixels == made[each.id, 0].pixels, each.id
    for name, velocities in together.velocities.items():
        alone_velocities = watched.velocities[name]
        assert len(velocities) == len(alone_velocities)
        for step, (a, b) in enumerate(zip(velocities, alone_velocities, strict=True)):
            assert torch.equal(a, b), (name, step, float((a - b).abs().max()))
    return together


@pytest.mark.parametrize("variant", ["base", "kv", "flex"])
def test_rows_share_forwards_whatever_their_references_and_guidance(watched: Watched, variant: str) -> None:
    together = assert_as_alone(watched, mixed(variant))
    assert set(REFERENCES) in [set(tasks) for tasks in together.tasks], "no forward had all of them"


@pytest.mark.parametrize("kind", [StepCacheKind.TEA, StepCacheKind.FIRST_BLOCK, StepCacheKind.DUAL_BLOCK])
@pytest.mark.parametrize("variant", ["base", "kv"])
def test_step_caches_part_rows_with_other_references(watched: Watched, variant: str, kind: StepCacheKind) -> None:
    jobs = []
    for number, each in enumerate(mixed(variant, steps=6)):
        cache = StepCache(kind=kind, threshold=0.3 if number < 4 else 0.05, max_consecutive=2)
        request = msgspec.structs.replace(each.request, step_cache=cache if number % 3 else None)
        jobs.append(msgspec.structs.replace(each, request=request))
    together = assert_as_alone(watched, jobs)
    assert max(len(tasks) for tasks in together.tasks) == len(REFERENCES)


def test_adapters_act_on_rows_with_other_references(watched: Watched, tmp_path: Path) -> None:
    save_file(Example(tiny.transformer("base"), seed=0).diffusers(), tmp_path / "ink.safetensors")
    files = (AdapterFile(adapter="ink", path=str(tmp_path / "ink.safetensors")),)
    jobs = mixed("base", adapters=(AdapterUse(adapter="ink", weight=0.8),))
    together = assert_as_alone(watched, [msgspec.structs.replace(each, adapters=files) for each in jobs])
    assert max(len(tasks) for tasks in together.tasks) == len(REFERENCES)


def test_other_sizes_and_other_models_keep_to_themselves(watched: Watched) -> None:
    jobs = [job("base", "small"), job("base", "wide", width=96), job("kv", "kv"), job("base", "small too", seed=9)]
    assert_as_alone(watched, jobs)
    assert {frozenset(tasks) for tasks in watched.tasks if len(tasks) > 1} == {frozenset({"small", "small too"})}


def test_bf16_stays_within_its_rounding(watched: Watched) -> None:
    jobs = mixed("base")
    together = pictures(run(make_engine(FreeCompany(), dtype="bf16"), *jobs))
    for each in jobs:
        alone = pictures(run(make_engine(dtype="bf16"), each))[each.id, 0].pixels
        pairs = zip(alone.data, together[each.id, 0].pixels.data, strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 4  # observed here: see docs/benchmarks.md
