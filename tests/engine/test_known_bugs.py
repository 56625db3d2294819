"""Bugs of other FLUX.2 servers, each under its name: what must not happen here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from darkroom.engine.runner import Runner
from darkroom.engine.samplers import SAMPLERS
from darkroom.types import Preview
from tests.engine.conftest import image, job, make_engine, picture, pictures, run

REFERENCES = (image(96, 64, seed=1), image(64, 128, seed=2))


@pytest.fixture
def latent_shapes(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The shapes of all latents that samplers move."""
    seen: set[tuple[int, ...]] = set()
    original = Runner.velocities

    def watched(self: Runner, transformer: Any, rows: Sequence[Any]) -> list[torch.Tensor]:
        seen.update(tuple(row.run.latents.shape) for row in rows)
        found = original(self, transformer, rows)
        seen.update(tuple(velocity.shape) for velocity in found)
        return found

    monkeypatch.setattr(Runner, "velocities", watched)
    return seen


@pytest.mark.parametrize("name", ["Default", "Heun", "DPM++ 2M", "KDPM2AncestralDiscreteScheduler", "UniPC"])
def test_the_sampler_never_steps_reference_tokens(latent_shapes: set[tuple[int, ...]], name: str) -> None:
    """InvokeAI 9510, 9274: reference tokens went through the sampler; second-order ones saw twice the tokens."""
    assert any(sampler.name == name for sampler in SAMPLERS)
    events = run(make_engine(), job("base", references=REFERENCES, sampler=name, preview_every=1, cfg_scale=2.0))
    assert latent_shapes == {(1, 4 * 6, 16)}
    sizes = {Image.open(io.BytesIO(event.jpeg)).size for event in events if isinstance(event, Preview)}
    assert sizes == {(64, 96)}


@pytest.mark.parametrize(("width", "height"), [(176, 128), (128, 176)])
def test_the_picture_has_the_size_asked_for_whatever_the_references(width: int, height: int) -> None:
    """InvokeAI 9507, diffusers 13349, ai-toolkit 707: shifted, cropped or turned by the reference's size."""
    made = picture(run(make_engine(), job("base", references=REFERENCES, width=width, height=height))).pixels
    assert (made.width, made.height) == (width, height)


def test_a_reference_a_pixel_larger_changes_nothing_but_that_pixel() -> None:
    """diffusers 13349: the margin that is no whole token is cropped evenly, not scaled away."""
    inner = image(96, 64, seed=1)
    framed = Image.new("RGB", (98, 66), "red")
    framed.paste(inner, (1, 1))
    made = [picture(run(make_engine(), job("base", references=[each]))).pixels for each in (inner, framed)]
    assert made[0] == made[1]


def test_a_request_never_sees_the_references_of_the_one_before() -> None:
    """ComfyUI-Flux2Klein-Enhancer 13: the cache of the last request leaked into the next."""
    engine = make_engine()
    for references in ([REFERENCES[0]], [REFERENCES[1]], [], REFERENCES, REFERENCES[::-1]):
        asked = job("kv", references=references)
        assert picture(run(engine, asked)).pixels == picture(run(make_engine(), asked)).pixels


def test_results_of_one_task_with_references_share_a_batch() -> None:
    """ComfyUI 14389: a batch larger than the one the cache was made with crashed."""
    engine = make_engine()
    made = pictures(run(engine, job("kv", references=REFERENCES, count=3)))
    assert len({each.pixels.data for each in made.values()}) == 3
    more = pictures(run(engine, job("kv", references=REFERENCES, count=5)))
    assert all(more["job", n].pixels == made["job", n].pixels for n in range(3))


def test_guidance_and_negative_prompt_reach_a_base_model() -> None:
    """SGLang 25661, mold 125: Base was run as if it were distilled, without CFG or negative prompt."""
    engine = make_engine()
    plain, guided, negative = (
        picture(run(engine, job("base", **changes))).pixels.data
        for changes in ({}, {"cfg_scale": 4.0}, {"cfg_scale": 4.0, "negative_prompt": "green heart"})
    )
    assert len({plain, guided, negative}) == 3


def test_a_batched_picture_is_the_single_one_at_every_batch_size() -> None:
    """SGLang 28502: pictures got worse when requests were batched; the advice was batches of one."""
    single = picture(run(make_engine(), job(seed=7))).pixels
    for others in (1, 2, 5):
        jobs = [job(name=str(n), seed=7 if n == 0 else n) for n in range(others + 1)]
        assert pictures(run(make_engine(), *jobs))["0", 0].pixels == single
