"""Adapters through the engine: they change pictures, keep to their request, and fail alone and by name."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from darkroom.engine.engine import Engine
from darkroom.types import (
    AdapterFile,
    AdapterStage,
    AdapterUse,
    Failure,
    ImageRequest,
    Job,
    Pixels,
    StepCache,
    StepCacheKind,
)
from tests import tiny
from tests.engine.conftest import CARDS, PROMPT, image, make_engine, picture, pictures, run, to_pixels
from tests.engine.lora_files import LAYERS, Example, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterFile]:
    folder = tmp_path_factory.mktemp("adapters")
    network = tiny.transformer("base")
    states = {
        "one": Example(network, 1).diffusers(),
        "two": Example(network, 2, LAYERS[2:6]).kohya(),
        "wide": Example(tiny.transformer("base", num_attention_heads=3)).bfl(),
    }
    for name, state in states.items():
        write(folder / f"{name}.safetensors", state)
    return {name: AdapterFile(adapter=name, path=str(folder / f"{name}.safetensors")) for name in states}


def use(name: str, weight: float = 1.0, stage: AdapterStage = AdapterStage.BOTH) -> AdapterUse:
    return AdapterUse(adapter=name, weight=weight, stage=stage)


def job(files: dict[str, AdapterFile], name: str, *uses: AdapterUse, card: str = "base", **changes: Any) -> Job:
    fields = {"prompt": PROMPT, "width": 64, "height": 96, "steps": 6, "seed": 3} | changes
    references = tuple(to_pixels(each) for each in fields.pop("references", ()))
    request = ImageRequest(card=CARDS[card], adapters=uses, **fields)
    wanted = tuple(files[each.adapter] for each in uses)
    return Job(id=name, request=request, results=(0,), adapters=wanted, references=references)


def pixels(engine: Engine, made: Job) -> Pixels:
    return picture(run(engine, made)).pixels


def test_an_adapter_changes_the_picture_by_its_weight_and_zero_is_none(files: dict[str, AdapterFile]) -> None:
    engine = make_engine()
    plain = pixels(engine, job(files, "plain"))
    seen = [pixels(engine, job(files, str(weight), use("one", weight))) for weight in (-1.0, 0.5, 1.0)]
    assert len({each.data for each in (plain, *seen)}) == 4
    assert pixels(engine, job(files, "zero", use("one", 0.0))) == plain
    assert pixels(engine, job(files, "after")) == plain


def test_a_picture_is_that_of_weights_changed_by_hand(files: dict[str, AdapterFile], tmp_path: Path) -> None:
    """What the engine draws with an adapter is what a network with the adapter merged into its weights draws."""
    engine, merged = make_engine(), make_engine()
    adapted = picture(run(engine, job(files, "a", use("one", 0.5))))
    run(merged, job(files, "warm"))
    network = next(part.module for key, part, _ in merged._shelf._parts if "base" in str(key.path))
    state = load_file(files["one"].path)
    for key in [key for key in state if "lora_A" in key]:
        module = network.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
        module.weight += 0.5 * state[key.replace("lora_A", "lora_B")] @ state[key]
    by_hand = picture(run(merged, job(files, "b")))
    ours, theirs = (
        torch.frombuffer(bytearray(each.pixels.data), dtype=torch.uint8).int() for each in (adapted, by_hand)
    )
    assert (ours - theirs).abs().max() <= 1


def test_requests_with_different_sets_run_in_turns_and_each_is_as_alone(files: dict[str, AdapterFile]) -> None:
    jobs = [
        job(files, "none", seed=1),
        job(files, "one", use("one"), seed=2),
        job(files, "both", use("one", 0.7), use("two", -1.5), seed=3, cfg_scale=3.0),
        job(files, "swapped", use("two", -1.5), use("one", 0.7), seed=4, steps=4),
        job(files, "gated", use("one", 1.0, AdapterStage.HIGH), use("two", 1.0, AdapterStage.LOW), seed=5),
        job(files, "same", use("one"), seed=6),
    ]
    alone = {name: made for each in jobs for name, made in pictures(run(make_engine(), each)).items()}
    engine = make_engine()
    together = pictures(run(engine, *jobs))
    assert {name: made.pixels for name, made in together.items()} == {n: made.pixels for n, made in alone.items()}
    counters = engine.status().counters
    assert counters["row_steps"] > counters["forwards"], "rows with the same set share their steps"


def test_stages_act_on_their_part_of_the_noise_range(files: dict[str, AdapterFile]) -> None:
    engine = make_engine()
    seen = [pixels(engine, job(files, stage, use("one", 1.0, stage))) for stage in AdapterStage]
    assert len({each.data for each in seen}) == 3
    # One step, at full noise: low never acts, high is all there is.
    plain = pixels(engine, job(files, "plain", steps=1))
    assert pixels(engine, job(files, "low", use("one", 1.0, AdapterStage.LOW), steps=1)) == plain
    high = pixels(engine, job(files, "high", use("one", 1.0, AdapterStage.HIGH), steps=1))
    assert high == pixels(engine, job(files, "both", use("one"), steps=1)) != plain


def test_kept_reference_keys_are_those_of_the_adapters(files: dict[str, AdapterFile]) -> None:
    references = (image(64, 64, seed=1),)
    jobs = [
        job(files, str(weight), *([use("one", weight)] if weight else []), card="kv", references=references)
        for weight in (0, 1.0, -1.0, 1.0)
    ]
    alone = [picture(run(make_engine(), each)) for each in jobs]
    engine = make_engine()
    for number, (each, expected) in enumerate(zip(jobs, alone, strict=True)):
        made = picture(run(engine, msgspec.structs.replace(each, id=str(number))))
        assert made.pixels == expected.pixels
        assert made.record.references_reused == (1 if number == 3 else 0)


def test_a_step_cache_and_an_adapter_go_together(files: dict[str, AdapterFile]) -> None:
    cache = StepCache(kind=StepCacheKind.TEA, threshold=1e9, max_consecutive=2)
    made = picture(run(make_engine(), job(files, "a", use("one"), step_cache=cache, steps=9)))
    assert (made.record.steps_computed, made.record.steps_reused) == (4, 5)
    assert made.pixels != pixels(make_engine(), job(files, "b", step_cache=cache, steps=9))


def test_a_step_cache_starts_anew_where_an_adapter_does(files: dict[str, AdapterFile]) -> None:
    """Steps 0 to 3 stand above the limit between the stages, 4 to 7 below: 0 and 4 are computed, and the last."""
    cache = StepCache(kind=StepCacheKind.TEA, threshold=1e9, max_consecutive=99, refresh_interval=99)
    counts = []
    for stage in (AdapterStage.BOTH, AdapterStage.LOW):
        made = picture(run(make_engine(), job(files, stage, use("one", 1.0, stage), step_cache=cache, steps=8)))
        counts.append(made.record.steps_computed)
    assert counts == [2, 3]


def test_an_adapter_for_another_model_fails_alone_and_names_its_file(files: dict[str, AdapterFile]) -> None:
    events = run(make_engine(), job(files, "bad", use("wide")), job(files, "good", use("one")))
    (told,) = (event for event in events if isinstance(event, Failure))
    assert (told.task, told.code) == ("bad", "weights")
    assert "'wide.safetensors'" in told.message and "another size" in told.message
    assert str(Path(files["wide"].path).parent) not in told.message
    assert list(pictures(events)) == [("good", 0)]
