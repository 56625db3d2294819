"""The training networks against the stock pipelines: same positions, schedule, latents, prompts and text states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer

from training.draw import Scene, Thing, render
from training.export import deep_text_encoder, save, scheduler
from training.flex import build_flex_encoder, deep_flex_encoder, encode_flex_prompts, flex_tokenizer
from training.model import (
    build_text_encoder,
    build_transformer,
    image_positions,
    install_kv,
    text_positions,
    text_states,
    to_tokens,
    velocity,
)
from training.sample import Sampler
from training.schedule import sigmas
from training.tokens import encode_prompts, train
from training.vae import build as build_vae
from training.vae import encode, patchify, unpatchify

PROMPTS = ["a red circle above a blue square", "", "Ein großes Haus"]


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return train(size=400, lines=300)


@pytest.fixture(scope="module")
def transformer() -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    model = build_transformer()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    return model.eval()


def test_positions_are_the_pipelines() -> None:
    latents = torch.zeros(1, 32, 6, 4)
    assert torch.equal(image_positions(6, 4), Flux2KleinPipeline._prepare_latent_ids(latents)[0].float())
    assert torch.equal(text_positions(9), Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 9, 8))[0].float())
    references = Flux2KleinPipeline._prepare_image_ids([latents, torch.zeros(1, 32, 2, 2)])[0].float()
    assert torch.equal(torch.cat([image_positions(6, 4, 1), image_positions(2, 2, 2)]), references)


def test_a_stretched_grid_lies_on_the_large_one() -> None:
    small, large = image_positions(8, 8, stretch=2), image_positions(16, 16)
    assert torch.allclose(small.mean(0), large.mean(0))


@pytest.mark.parametrize(("steps", "tokens"), [(4, 256), (28, 256), (8, 64), (4, 1024)])
def test_noise_levels_are_the_pipelines(steps: int, tokens: int) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    stock = scheduler()
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    assert torch.allclose(stock.sigmas, sigmas(steps, tokens), atol=1e-6)


def test_latents_are_the_pipelines() -> None:
    torch.manual_seed(1)
    z = torch.randn(2, 8, 6, 4)
    assert torch.equal(patchify(z), Flux2KleinPipeline._patchify_latents(z))
    assert torch.equal(unpatchify(patchify(z)), z)


def test_klein_prompts_and_states_survive_the_export(tokenizer: Qwen2Tokenizer) -> None:
    small = build_text_encoder(len(tokenizer)).eval()
    deep = deep_text_encoder(small.state_dict(), len(tokenizer))
    ids, mask = encode_prompts(tokenizer, PROMPTS, 48)
    with torch.no_grad():
        ours = text_states(small, ids, mask)
        stock = Flux2KleinPipeline._get_qwen3_prompt_embeds(deep, tokenizer, PROMPTS, max_sequence_length=48)
    assert torch.equal(ours, stock)


def test_dev_prompts_and_states_survive_the_export(tokenizer: Qwen2Tokenizer) -> None:
    own = flex_tokenizer(tokenizer)
    small = build_flex_encoder(len(own)).eval()
    deep = deep_flex_encoder(small.state_dict(), len(own))
    ids, mask = encode_flex_prompts(own, PROMPTS, 256)
    with torch.no_grad():
        ours = text_states(small, ids, mask)
        stock = Flux2Pipeline._get_mistral_3_small_prompt_embeds(deep, own, PROMPTS, max_sequence_length=256)
    assert torch.equal(ours, stock)


def test_kv_masking_keeps_references_to_themselves(transformer: Flux2Transformer2DModel) -> None:
    """Through the stock class: the KV variant draws the same when its cache is made under another prompt."""
    model = build_transformer()
    model.load_state_dict(transformer.state_dict())
    install_kv(model)
    torch.manual_seed(2)
    noisy, given, text = torch.randn(1, 16, 32), torch.randn(1, 16, 32), torch.randn(1, 8, 192)
    ids, given_ids = image_positions(4, 4), image_positions(4, 4, 1)
    with torch.no_grad():
        whole = velocity(model, noisy, torch.tensor([0.8]), text, ids, given, given_ids, kv=True)
        cache = model(
            hidden_states=torch.cat([given, torch.randn(1, 16, 32)], 1),
            encoder_hidden_states=torch.randn(1, 8, 192),
            timestep=torch.tensor([0.1]),
            img_ids=torch.cat([given_ids, ids]),
            txt_ids=text_positions(8),
            kv_cache_mode="extract",
            num_ref_tokens=16,
            return_dict=False,
        )[1]
        cached = model(
            hidden_states=noisy,
            encoder_hidden_states=text,
            timestep=torch.tensor([0.8]),
            img_ids=ids,
            txt_ids=text_positions(8),
            kv_cache=cache,
            kv_cache_mode="cached",
            return_dict=False,
        )[0]
        full = velocity(transformer, noisy, torch.tensor([0.8]), text, ids, given, given_ids)
    assert torch.allclose(whole, cached, atol=1e-5)
    assert not torch.allclose(whole, full, atol=1e-3)


def test_the_sampler_draws_what_the_pipeline_draws(
    tokenizer: Qwen2Tokenizer, transformer: Flux2Transformer2DModel, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    vae, small = build_vae().eval(), build_text_encoder(len(tokenizer)).eval()
    reference = render(Scene((Thing("star", "red", 0.5, 0.5, 0.2),), "white"), 64, 64)
    sampler = Sampler(transformer, small, tokenizer, vae, text_length=32)
    ours = sampler.draw(PROMPTS[:1], 64, 64, 3, 2.0, seed=5, references=[[reference]])[0]
    deep = deep_text_encoder(small.state_dict(), len(tokenizer))
    pipeline = Flux2KleinPipeline(scheduler(), vae, deep, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    from PIL import Image

    latents = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(5))
    stock = pipeline(
        prompt=PROMPTS[0],
        image=Image.fromarray(reference),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=2.0,
        latents=latents,
        max_sequence_length=32,
        output_type="np",
    ).images[0]
    assert np.abs(ours / 255 - stock).max() < 0.02
    save(deep, tmp_path / "text_encoder")  # the exported folder loads strictly
    from transformers import Qwen3ForCausalLM

    loaded, report = Qwen3ForCausalLM.from_pretrained(tmp_path / "text_encoder", output_loading_info=True)
    assert loaded.config.num_hidden_layers == 28 and not report["missing_keys"] and not report["unexpected_keys"]


def test_encoding_is_what_the_pipeline_does_with_a_reference() -> None:
    torch.manual_seed(4)
    vae = build_vae().eval()
    vae.bn.running_mean.normal_()
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    pipeline = Flux2KleinPipeline(scheduler(), vae, None, None, build_transformer())
    with torch.no_grad():
        ours, stock = encode(vae, picture), pipeline._encode_vae_image(picture, generator=None)
    assert torch.allclose(to_tokens(ours), to_tokens(stock), atol=1e-5)
