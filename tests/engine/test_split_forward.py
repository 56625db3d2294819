"""The forward in parts is the stock forward to the bit, in every mode, and may go on with some of the samples."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)

from darkroom.engine.split_forward import (
    ModelInputs,
    embed,
    extract,
    finish_blocks,
    forward,
    modulated_input,
    project,
    rotary,
    run_blocks,
)
from tests import tiny

DTYPES = [torch.float32, torch.bfloat16]
TEXT, PICTURE, REFERENCE = 12, 24, 10


def model(variant: str, dtype: torch.dtype) -> Any:
    made = tiny.transformer(variant).to(dtype)
    if variant == "kv":
        for block in made.transformer_blocks:
            block.attn.set_processor(Flux2KVAttnProcessor())
        for block in made.single_transformer_blocks:
            block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    return made


def inputs(made: Any, dtype: torch.dtype, *, references: int = 0, seed: int = 0) -> ModelInputs:
    """Three samples at different noise levels and guidance. references: tokens after the picture."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tokens = PICTURE + references
    ids = torch.stack(
        [torch.zeros(tokens), torch.arange(tokens) // 6, torch.arange(tokens) % 6, torch.zeros(tokens)], 1
    )
    ids[PICTURE:, 0] = 10
    text_ids = torch.zeros(TEXT, 4)
    text_ids[:, 3] = torch.arange(TEXT)
    return ModelInputs(
        latents=random(3, tokens, made.config.in_channels),
        text=random(3, TEXT, made.config.joint_attention_dim),
        sigma=torch.tensor([1.0, 0.908, 0.3331]).to(dtype),
        image_ids=ids,
        text_ids=text_ids,
        picture_tokens=PICTURE,
        guidance=torch.tensor([4.0, 1.0, 2.5]).to(dtype) if made.config.guidance_embeds else None,
    )


@torch.no_grad()
def stock(made: Any, given: ModelInputs, **kv: Any) -> Any:
    return made(
        hidden_states=given.latents,
        encoder_hidden_states=given.text,
        timestep=given.sigma,
        img_ids=given.image_ids,
        txt_ids=given.text_ids,
        guidance=given.guidance,
        return_dict=False,
        **kv,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("references", [0, REFERENCE])
@pytest.mark.parametrize("variant", ["base", "flex", "kv"])
def test_full_forward_is_the_stock_one(variant: str, references: int, dtype: torch.dtype) -> None:
    made = model(variant, dtype)
    given = inputs(made, dtype, references=references)
    assert torch.equal(forward(made, given), stock(made, given)[0][:, :PICTURE])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extracting_and_using_reference_kv_is_the_stock_way(dtype: torch.dtype) -> None:
    made = model("kv", dtype)
    given = inputs(made, dtype, references=REFERENCE)
    theirs, their_cache = stock(made, given, kv_cache_mode="extract", num_ref_tokens=REFERENCE)
    ours, our_cache = extract(made, given, REFERENCE)
    assert torch.equal(ours, theirs)
    layers = (*our_cache.double_block_caches, *our_cache.single_block_caches)
    their_layers = (*their_cache.double_block_caches, *their_cache.single_block_caches)
    for mine, yours in zip(layers, their_layers, strict=True):
        assert torch.equal(mine.k_ref, yours.k_ref) and torch.equal(mine.v_ref, yours.v_ref)

    picture = inputs(made, dtype, seed=1)
    cached = stock(made, picture, kv_cache_mode="cached", kv_cache=their_cache)[0]
    assert torch.equal(forward(made, replace(picture, references=our_cache)), cached)
    assert not torch.equal(forward(made, picture), cached)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extraction_needs_no_picture_and_no_text(dtype: torch.dtype) -> None:
    made = model("kv", dtype)
    given = inputs(made, dtype, references=REFERENCE)
    _, full = extract(made, given, REFERENCE)
    alone = replace(
        given,
        latents=given.latents[:, :REFERENCE],
        text=given.text[:, :0],
        image_ids=given.image_ids[:REFERENCE],
        text_ids=given.text_ids[:0],
        picture_tokens=0,
    )
    _, cache = extract(made, alone, REFERENCE)
    for mine, yours in zip(cache.single_block_caches, full.single_block_caches, strict=True):
        torch.testing.assert_close(mine.k_ref, yours.k_ref)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("chosen", [[0, 1, 2], [1, 2], [0, 2], [2]])
def test_some_samples_may_go_on_alone(chosen: list[int], depth: int) -> None:
    made = model("kv", torch.float32)
    _, cache = extract(made, inputs(made, torch.float32, references=REFERENCE), REFERENCE)
    given = replace(inputs(made, torch.float32, seed=1), references=cache)
    together = forward(made, given)
    stream = run_blocks(made, embed(made, given), 0, depth).take(chosen)
    apart = project(made, stream, finish_blocks(made, stream, depth))
    torch.testing.assert_close(apart, together[chosen], rtol=1e-5, atol=1e-5)  # other batch sizes, other summation


def test_shared_reference_kv_is_not_copied_when_samples_part() -> None:
    made = model("kv", torch.float32)
    given = inputs(made, torch.float32, references=REFERENCE)
    single = replace(given, latents=given.latents[:1], text=given.text[:1], sigma=given.sigma[:1])
    _, cache = extract(made, single, REFERENCE)
    for layer in (*cache.double_block_caches, *cache.single_block_caches):
        k, v = layer.get()
        layer.store(k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1))
    stream = embed(made, replace(inputs(made, torch.float32), references=cache)).take([0, 2])
    assert stream.references is not None
    (taken, _), (whole, _) = stream.references.get_double(0).get(), cache.get_double(0).get()
    assert taken.shape[0] == 2 and taken.data_ptr() == whole.data_ptr()


def test_positions_may_be_kept_between_steps() -> None:
    made = model("base", torch.float32)
    given = inputs(made, torch.float32, references=REFERENCE)
    kept = replace(given, rotary=rotary(made, given.image_ids, given.text_ids))
    assert torch.equal(forward(made, kept), forward(made, given))


def test_modulated_input_is_what_the_first_block_attends_to() -> None:
    made = model("base", torch.float32)
    given, seen = inputs(made, torch.float32), []
    hook = made.transformer_blocks[0].attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    forward(made, given)
    hook.remove()
    assert torch.equal(seen[0], modulated_input(made, embed(made, given)))
