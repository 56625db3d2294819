"""Jobs in, events out: order, batching, previews, cancelling, failing alone, memory, seeds."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from darkroom.engine.runner import Runner
from darkroom.engine.scheduler import StepScheduler
from darkroom.errors import WeightsError
from darkroom.types import (
    MAX_SEED,
    AdapterFile,
    AdapterStage,
    AdapterUse,
    Ended,
    EngineEvent,
    Failure,
    Job,
    Picture,
    Preview,
    Progress,
    Stage,
    StepCache,
    StepCacheKind,
)
from tests import tiny
from tests.engine.conftest import CARDS, FreeCompany, image, job, make_engine, picture, pictures, run
from tests.engine.lora_files import Example


def mixed_jobs() -> list[Job]:
    """Five kinds of request; those of one card differ in steps, seed, guidance, sampler, references or caches."""
    references = (image(96, 64, seed=1), image(80, 80, seed=2))
    return [
        job("base", "plain", steps=3, seed=1),
        job("base", "guided", steps=5, seed=2, cfg_scale=4.0, negative_prompt="green"),
        job("base", "edit", steps=4, seed=3, cfg_scale=2.0, references=references),
        job("kv", "kv", steps=4, seed=4, references=references, count=2),
        job("flex", "dev", steps=3, seed=5, guidance=2.5),
        job("base", "heun", steps=4, seed=6, sampler="Heun"),
        job("base", "noisy", steps=4, seed=7, sampler="Euler a"),
        job("base", "cached", steps=6, seed=8, step_cache=StepCache(kind=StepCacheKind.FIRST_BLOCK, threshold=0.5)),
    ]


def test_mixed_jobs_batched_and_interleaved_are_each_as_alone() -> None:
    alone: dict[tuple[str, int], Picture] = {}
    for each in mixed_jobs():
        alone |= pictures(run(make_engine(), each))
    engine = make_engine(FreeCompany())
    together = pictures(run(engine, *mixed_jobs()))
    assert together.keys() == alone.keys()
    for key, made in together.items():
        assert made.pixels == alone[key].pixels, key
    counters = engine.status().counters
    assert counters["row_steps"] > counters["forwards"], "nothing was batched"


def test_latents_of_a_batch_are_equal_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    original = Runner.velocities

    def watched(self: Runner, transformer: Any, rows: Sequence[Any]) -> list[torch.Tensor]:
        found = original(self, transformer, rows)
        for row, velocity in zip(rows, found, strict=True):
            seen.setdefault(row.task, []).append(velocity)
        return found

    monkeypatch.setattr(Runner, "velocities", watched)
    jobs = [job("base", str(n), steps=3 + n, seed=n, cfg_scale=1.0 + n) for n in range(4)]
    for each in jobs:
        run(make_engine(), each)
    alone, seen = seen, {}
    run(make_engine(FreeCompany()), *jobs)
    for name, found in seen.items():
        assert all(torch.equal(a, b) for a, b in zip(alone[name], found, strict=True))


def test_the_results_of_a_job_are_those_of_its_seeds() -> None:
    made = pictures(run(make_engine(), job(count=3, seed=MAX_SEED - 1)))
    assert [made["job", n].seed for n in range(3)] == [MAX_SEED - 1, MAX_SEED, 0]
    for n in range(3):
        single = picture(run(make_engine(), job(seed=made["job", n].seed)))
        assert single.pixels == made["job", n].pixels
    assert made["job", 0].pixels != made["job", 1].pixels


def test_only_the_results_that_are_still_owed_are_made() -> None:
    events = run(make_engine(), job(count=4, results=(1, 3)))
    assert sorted(result for _, result in pictures(events)) == [1, 3]
    assert [type(event) for event in events].count(Ended) == 1


def test_progress_counts_every_step_of_every_result() -> None:
    events = run(make_engine(), job("base", count=2, steps=3, references=[image(64, 64)]))
    for result in range(2):
        told = [(event.stage, event.step) for event in events if isinstance(event, Progress) and event.result == result]
        assert told == [
            (Stage.TEXT, 0),
            (Stage.REFERENCES, 0),
            *((Stage.DENOISE, step) for step in range(4)),
            (Stage.DECODE, 3),
        ]


def test_a_sampler_of_two_calls_counts_steps_not_calls() -> None:
    events = run(make_engine(), job("base", steps=3, sampler="Heun"))
    told = [event.step for event in events if isinstance(event, Progress) and event.stage is Stage.DENOISE]
    assert told == [0, 1, 2, 3]


def test_every_job_ends_once_and_last() -> None:
    events = run(make_engine(), *(job(name=str(n), seed=n) for n in range(5)))
    last = {event.task: event for event in events}
    assert all(isinstance(event, Ended) and not event.cancelled for event in last.values())
    assert Counter(event.task for event in events if isinstance(event, Ended)) == Counter(last.keys())


def test_previews_come_when_asked_and_look_like_the_picture() -> None:
    events = run(make_engine(), job("base", steps=7, preview_every=2, width=128, height=64))
    previews = [event for event in events if isinstance(event, Preview)]
    assert [event.step for event in previews] == [2, 4, 6]
    sizes = {Image.open(io.BytesIO(event.jpeg)).size for event in previews}
    assert sizes == {(128, 64)}
    assert all(len(event.jpeg) < 20_000 for event in previews)
    assert not [event for event in run(make_engine(), job("base")) if isinstance(event, Preview)]


def test_a_cancelled_job_leaves_between_steps_and_no_other_notices() -> None:
    engine = make_engine()
    alone = picture(run(make_engine(), job(name="stays", seed=5)))
    for each in (job(name="goes", steps=50), job(name="stays", seed=5)):
        engine.add(each)
    events: list[EngineEvent] = []
    while not any(isinstance(event, Progress) and event.task == "goes" and event.step == 2 for event in events):
        events += engine.step()
    engine.cancel("goes")
    engine.cancel("unknown")
    rest = run(engine)
    assert [event for event in rest if event.task == "goes"] == [Ended(task="goes", cancelled=True)]
    assert picture([*events, *rest]).pixels == alone.pixels
    assert engine.status().rows == 0
    assert engine.step() == []


def test_a_job_is_cancelled_wherever_it_is() -> None:
    for steps_before in range(12):
        engine = make_engine()
        engine.add(job("kv", steps=2, references=[image(64, 64)]))
        events = [event for _ in range(steps_before) for event in engine.step()]
        engine.cancel("job")
        events += run(engine)
        assert isinstance(events[-1], Ended)
        assert [type(event) for event in events].count(Ended) == 1
        assert engine.idle
        assert not engine._bank.kept.users() and not engine._shelf.users(), "something is still held"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(job(name="bad", sampler="no such sampler"), "invalid_parameter", id="sampler"),
        pytest.param(job("base", "bad", references=[image(64, 640)]), "input_image", id="aspect"),
        pytest.param(job("base", "bad", references=[image(64, 60)]), "input_image", id="size"),
        pytest.param(job("base", "bad", references=[image(64, 64)] * 5), "input_image", id="count"),
        pytest.param(job(name="bad", card="acme:1@1"), "not_found", id="card"),
    ],
)
def test_a_bad_job_fails_alone(bad: Job, code: str) -> None:
    events = run(make_engine(), job(name="good"), bad, job(name="also good"))
    failures = [event for event in events if isinstance(event, Failure)]
    assert [(event.task, event.code) for event in failures] == [("bad", code)]
    assert {task for task, _ in pictures(events)} == {"good", "also good"}


def break_forward(monkeypatch: pytest.MonkeyPatch, task: str, error: Exception, at_most: int | None = None) -> None:
    """Every forward pass with a row of this task (in a batch of more than at_most rows) raises."""
    original = Runner.velocities

    def breaking(self: Runner, transformer: Any, rows: Sequence[Any]) -> list[torch.Tensor]:
        if any(row.task == task for row in rows) and (at_most is None or len(rows) > at_most):
            raise error
        return original(self, transformer, rows)

    monkeypatch.setattr(Runner, "velocities", breaking)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("/secret/path is broken"), "inference"), (torch.OutOfMemoryError("no"), "out_of_memory")],
)
def test_a_row_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    alone = {name: picture(run(make_engine(), job(name=name, seed=n))) for n, name in enumerate("abcde")}
    break_forward(monkeypatch, "c", error)
    events = run(make_engine(FreeCompany()), *(job(name=name, seed=n) for n, name in enumerate("abcde")))
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert (failure.task, failure.code) == ("c", code)
    assert "secret" not in failure.message
    made = pictures(events)
    assert {task for task, _ in made} == set("abde")
    assert all(made[name, 0].pixels == alone[name].pixels for name in "abde")


def test_a_batch_too_large_for_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {n: picture(run(make_engine(), job(seed=n))) for n in range(4)}
    break_forward(monkeypatch, "2", torch.OutOfMemoryError("no"), at_most=2)
    made = pictures(run(make_engine(FreeCompany()), *(job(name=str(n), seed=n) for n in range(4))))
    assert all(made[str(n), 0].pixels == alone[n].pixels for n in range(4))


def test_latents_that_overflow_are_an_error_not_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Runner.velocities
    monkeypatch.setattr(Runner, "velocities", lambda *args: [v * float("nan") for v in original(*args)])
    events = run(make_engine(), job())
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert failure.code == "inference"
    assert not pictures(events)


def test_max_rows_bounds_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    original = StepScheduler.admit

    def watched(self: StepScheduler[Any], row: Any) -> None:
        nonlocal most
        original(self, row)
        most = max(most, len(self.running))

    monkeypatch.setattr(StepScheduler, "admit", watched)
    events = run(make_engine(max_rows=3), job(count=5), *(job(name=str(n)) for n in range(4)))
    assert most == 3
    assert len(pictures(events)) == 9


def test_a_job_of_many_results_lets_a_later_one_through() -> None:
    events = run(make_engine(max_rows=2), job(name="many", count=12, steps=8), job(name="one", steps=2))
    finished = [event.task for event in events if isinstance(event, Picture)]
    assert finished.index("one") < 4


def test_the_record_says_how_the_picture_was_made() -> None:
    record = picture(run(make_engine(), job("kv", references=[image(64, 64)]))).record
    assert set(record.stage_ms) == {Stage.TEXT, Stage.REFERENCES, Stage.DENOISE, Stage.DECODE}
    assert all(value > 0 for value in record.stage_ms.values())
    assert (record.steps_computed, record.steps_reused, record.references_reused) == (3, 0, 0)
    assert (record.model, record.demo, record.prompt_truncated) == ("runware:400@6", True, False)
    assert record.peak_bytes > 0


def test_reused_steps_are_in_the_record() -> None:
    cache = StepCache(kind=StepCacheKind.FIRST_BLOCK, threshold=10.0, max_consecutive=2)
    record = picture(run(make_engine(), job("base", steps=8, step_cache=cache))).record
    assert record.steps_reused > 0
    assert record.steps_computed + record.steps_reused == 8


def test_a_prompt_that_is_too_long_is_said_to_be() -> None:
    record = picture(run(make_engine(), job(prompt="a red circle above a blue square " * 20))).record
    assert record.prompt_truncated
    assert "tokens" in record.warnings[0]


def test_status_tells_what_is_loaded() -> None:
    engine = make_engine()
    assert engine.status().loaded == ()
    engine.warm("runware:400@5")
    loaded = {card.card: card for card in engine.status().loaded}
    assert loaded["runware:400@5"].bytes > 100_000
    assert "bfl:6@1" not in loaded
    assert engine.idle


def test_a_budget_for_one_card_makes_cards_take_turns() -> None:
    budget = 1_200_000  # fits one card with dev's text encoder
    engine = make_engine(memory_bytes=budget)
    jobs = [job("base", "a"), job("flex", "b"), job("base", "c"), job("flex", "d")]
    alone = {each.id: picture(run(make_engine(), each)).pixels for each in jobs}
    events = run(engine, *jobs)
    assert {task: made.pixels for (task, _), made in pictures(events).items()} == alone
    assert sum(engine._shelf.loaded().values()) <= budget
    assert engine.status().counters["loads"] > 5, "everything fitted: the test shows nothing"


def test_a_card_that_cannot_be_warmed_is_held_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()

    def broken(models: object) -> None:
        raise WeightsError("The tokenizer cannot be read.")

    monkeypatch.setattr(engine._shelf, "tokenizer", broken)
    with pytest.raises(WeightsError):
        engine.warm(CARDS["base"])
    assert engine._shelf.users() == 0


def test_shared_parts_are_loaded_once() -> None:
    engine = make_engine()
    run(engine, job("base", "a"), job("distilled", "b"), job("kv", "c"))
    assert engine.status().counters["loads"] == 5  # three networks, one autoencoder, one text encoder


def test_jobs_with_nothing_owed_end_at_once() -> None:
    assert run(make_engine(), job(results=())) == [Ended(task="job")]


def test_the_same_job_is_not_taken_twice() -> None:
    events = run(make_engine(), job(), job())
    assert len(pictures(events)) == 1
    assert [type(event) for event in events].count(Ended) == 1


def write_adapters(folder: Path) -> tuple[AdapterFile, ...]:
    network = tiny.transformer("base")
    files = []
    for seed, name in enumerate(("ink", "gold")):
        save_file(Example(network, seed=seed).diffusers(), folder / f"{name}.safetensors")
        files.append(AdapterFile(adapter=name, path=str(folder / f"{name}.safetensors")))
    return tuple(files)


def test_requests_with_different_adapters_interleave_without_touching_each_other(tmp_path: Path) -> None:
    files = write_adapters(tmp_path)
    ink, gold = AdapterUse(adapter="ink", weight=0.8), AdapterUse(adapter="gold", weight=-0.5)
    late = AdapterUse(adapter="ink", weight=0.8, stage=AdapterStage.LOW)
    sets = {
        "none": (),
        "ink": (ink,),
        "both": (ink, gold),
        "late": (late,),
        "off": (AdapterUse(adapter="ink", weight=0),),
    }
    jobs = [
        msgspec.structs.replace(job(variant, f"{variant} {name}", adapters=uses, steps=6, **extra), adapters=files)
        for name, uses in sets.items()
        for variant, extra in (("base", {"cfg_scale": 3.0}), ("kv", {"references": [image(64, 64)]}))
    ]
    alone = {each.id: picture(run(make_engine(), each)).pixels for each in jobs}
    engine = make_engine()
    together = {task: made.pixels for (task, _), made in pictures(run(engine, *jobs)).items()}
    assert together == alone
    for variant in ("base", "kv"):
        assert alone[f"{variant} off"] == alone[f"{variant} none"], "weight 0 is the network itself"
        different = {alone[f"{variant} {name}"].data for name in ("none", "ink", "both", "late")}
        assert len(different) == 4
    assert engine.status().counters["row_steps"] > engine.status().counters["forwards"]


def test_references_are_read_anew_for_other_adapters(tmp_path: Path) -> None:
    files, engine = write_adapters(tmp_path), make_engine()
    reused = []
    for weight in (0.0, 0.5, 0.5, 1.0):
        uses = (AdapterUse(adapter="ink", weight=weight),)
        asked = job("kv", references=[image(64, 64)], adapters=uses)
        reused.append(picture(run(engine, msgspec.structs.replace(asked, adapters=files))).record.references_reused)
    assert reused == [0, 0, 1, 0]


def test_an_adapter_that_is_not_here_is_said_to_be() -> None:
    events = run(make_engine(), job(adapters=(AdapterUse(adapter="acme:1@1"),)))
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert (failure.code, failure.parameter) == ("not_found", "lora")
