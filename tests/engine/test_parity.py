"""The engine against the diffusers pipelines, on the same weights: latents equal to the bit, and so the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from darkroom.engine import vae as autoencoder
from darkroom.types import ImageRequest
from tests import tiny
from tests.engine.conftest import EverySize, image, job, make_engine, picture, pipeline, request, run

REFERENCES = (image(96, 64, seed=1), image(70, 130, seed=2))


class Latents:
    """Sees the latents that the engine decodes. draw: decode them, which takes seconds at the larger sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last: Tensor | None = None
        self.draw = True
        self._decode = autoencoder.decode
        monkeypatch.setattr("darkroom.engine.vae.decode", self.decode)

    def decode(self, vae: Any, latents: Tensor, height: int, width: int) -> Any:
        self.last = autoencoder.cells(vae, latents, height, width)
        return self._decode(vae, latents if self.draw else latents[:, :1], *((height, width) if self.draw else (1, 1)))


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> Latents:
    return Latents(monkeypatch)


def diffusers(
    variant: str,
    asked: ImageRequest,
    references: Sequence[Image.Image],
    *,
    latent: bool,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The same request through the pipeline of the variant."""
    pipe = pipeline(variant, dtype)
    arguments: dict[str, Any] = {}
    if references:
        arguments["image"] = list(references)
    if variant == "flex":
        arguments["guidance_scale"] = asked.guidance
    if variant == "base":
        arguments["guidance_scale"] = asked.cfg_scale
        if asked.cfg_scale > 1:
            negative, _ = pipe.encode_prompt(asked.negative_prompt, max_sequence_length=tiny.TEXT_LENGTH)
            arguments["negative_prompt_embeds"] = negative
    return pipe(
        prompt=asked.prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.steps,
        generator=torch.Generator().manual_seed(asked.seed),
        max_sequence_length=tiny.TEXT_LENGTH,
        output_type="latent" if latent else "pil",
        **arguments,
    ).images[0]


@pytest.mark.parametrize(
    ("variant", "references", "changes"),
    [
        pytest.param("distilled", 0, {}, id="no guidance"),
        pytest.param("distilled", 0, {"steps": 1}, id="one step"),
        pytest.param("distilled", 0, {"width": 144, "height": 48}, id="non-square"),
        pytest.param("distilled", 0, {"seed": 2**63 - 1}, id="largest seed"),
        pytest.param("distilled", 1, {}, id="one reference"),
        pytest.param("distilled", 2, {}, id="two references of different sizes"),
        pytest.param("base", 0, {"cfg_scale": 1.0, "steps": 8}, id="base without guidance"),
        pytest.param("base", 0, {"cfg_scale": 4.0, "steps": 8}, id="cfg, empty negative"),
        pytest.param("base", 0, {"cfg_scale": 3.5, "negative_prompt": "blue heart"}, id="cfg, real negative"),
        pytest.param("base", 2, {"cfg_scale": 4.0, "negative_prompt": "blue"}, id="cfg with references"),
        pytest.param("kv", 0, {}, id="kv without references"),
        pytest.param("kv", 1, {}, id="kv, one reference"),
        pytest.param("kv", 2, {"steps": 4}, id="kv, two references"),
        pytest.param("flex", 0, {"guidance": 2.5}, id="dev, embedded guidance"),
        pytest.param("flex", 2, {"guidance": 4.0, "width": 96, "height": 64}, id="dev with references"),
    ],
)
def test_latents_and_pictures_are_those_of_diffusers(
    latents: Latents, variant: str, references: int, changes: dict[str, Any]
) -> None:
    asked, given = request(variant, **changes), REFERENCES[:references]
    made = picture(run(make_engine(), job(variant, references=given, **changes)))
    expected = diffusers(variant, asked, given, latent=False)
    assert made.pixels.data == expected.tobytes()
    assert (made.pixels.width, made.pixels.height) == expected.size == (asked.width, asked.height)
    theirs = diffusers(variant, asked, given, latent=True)
    if variant == "flex":  # this pipeline gives its latents before they are unpacked
        theirs = autoencoder.cells(pipeline(variant).vae, theirs[None], asked.height // 16, asked.width // 16)[0]
    assert latents.last is not None
    assert torch.equal(latents.last[0], theirs)


@pytest.mark.parametrize(("width", "height", "tokens"), [(1040, 1056, 4290), (1040, 1072, 4355)])
def test_both_sides_of_the_jump_at_4300_tokens(latents: Latents, width: int, height: int, tokens: int) -> None:
    changes = {"width": width, "height": height, "steps": 2}
    assert width * height // 256 == tokens
    latents.draw = False
    run(make_engine(kind=EverySize), job("distilled", **changes))
    theirs = diffusers("distilled", request("distilled", **changes), (), latent=True)
    assert latents.last is not None
    assert torch.equal(latents.last[0], theirs)


@pytest.mark.parametrize(("variant", "references"), [("distilled", 0), ("base", 0), ("distilled", 1), ("kv", 2)])
def test_bf16_is_that_of_diffusers_too(latents: Latents, variant: str, references: int) -> None:
    given, scale = REFERENCES[:references], 4.0 if variant == "base" else 1.0
    run(make_engine(dtype="bf16"), job(variant, references=given, cfg_scale=scale))
    theirs = diffusers(variant, request(variant, cfg_scale=scale), given, latent=True, dtype=torch.bfloat16)
    assert latents.last is not None
    assert torch.equal(latents.last[0], theirs)
