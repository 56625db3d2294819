"""The fake engine keeps the real one's promises: same picture for the same request, one end per job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest

from darkroom.engine.fake import FakeEngine
from darkroom.types import Ended, EngineEvent, Failure, ImageRequest, Job, Picture, Pixels, Preview, Progress

REQUEST = ImageRequest(card="runware:400@5", prompt="a red circle", width=64, height=48, steps=3, seed=7)


def job(
    name: str = "job", results: Sequence[int] = (0,), references: tuple[Pixels, ...] = (), **changes: object
) -> Job:
    request = msgspec.structs.replace(REQUEST, **changes)
    return Job(id=name, request=request, results=tuple(results), references=references)


def run(engine: FakeEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while not engine.idle:
        events += engine.step()
    return events


def pictures(events: list[EngineEvent]) -> dict[tuple[str, int], bytes]:
    return {(event.task, event.result): event.pixels.data for event in events if isinstance(event, Picture)}


def alone(job: Job) -> dict[tuple[str, int], bytes]:
    engine = FakeEngine()
    engine.add(job)
    return pictures(run(engine))


def test_jobs_together_give_the_pictures_they_give_alone() -> None:
    jobs = [job("a", (0, 1), count=2), job("b", steps=5, seed=20), job("c", width=80, prompt="a blue square")]
    engine = FakeEngine(max_rows=3)
    for each in jobs:
        engine.add(each)
    together = pictures(run(engine))
    assert together == alone(jobs[0]) | alone(jobs[1]) | alone(jobs[2])
    assert len(set(together.values())) == 4
    assert len(together["c", 0]) == 80 * 48 * 3


def test_a_result_is_the_picture_of_its_own_seed() -> None:
    assert alone(job(results=(1,), count=2))["job", 1] == alone(job(seed=8))["job", 0]


def test_references_and_adapters_show() -> None:
    red = Pixels(width=16, height=16, data=b"\xff\0\0" * 256)
    assert alone(job(references=(red,))) != alone(job())


def test_steps_progress_and_previews() -> None:
    engine = FakeEngine()
    engine.add(job(steps=4, preview_every=2))
    events = run(engine)
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert [event.step for event in events if isinstance(event, Preview)] == [2]
    assert isinstance(events[-1], Ended)
    assert engine.step() == []


def test_cancel_between_steps_leaves_the_others_alone() -> None:
    engine = FakeEngine()
    engine.add(job("a", (0, 1), count=2))
    engine.add(job("b"))
    engine.step()
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("unknown")
    events = run(engine)
    assert [event for event in events if event.task == "a"] == [Ended(task="a", cancelled=True)]
    assert ("b", 0) in pictures(events)


def test_markers_rehearse_failures() -> None:
    engine = FakeEngine()
    engine.add(job("one", (0, 1), prompt="x [fail 1]", count=2))
    engine.add(job("memory", prompt="x [oom]"))
    events = run(engine)
    assert [(e.task, e.result, e.code) for e in events if isinstance(e, Failure)] == [
        ("one", 1, "inference"),
        ("memory", 0, "out_of_memory"),
    ]
    assert sorted(event.task for event in events if isinstance(event, Ended)) == ["memory", "one"]
    engine.add(job(prompt="x [crash]"))
    with pytest.raises(RuntimeError):
        engine.step()


def test_the_safety_check_is_told_only_when_asked_for() -> None:
    engine = FakeEngine()
    engine.add(job("unasked", prompt="x [nsfw]"))
    engine.add(job("asked", prompt="x [nsfw]", check_safety=True))
    engine.add(job("clean", check_safety=True))
    found = {event.task: event.nsfw for event in run(engine) if isinstance(event, Picture)}
    assert found == {"unasked": None, "asked": True, "clean": False}


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, darkroom.engine.fake; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
