"""A lean network is the stock one to the bit, whatever its blocks are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from darkroom.engine.lean import LEAN, LeanSingleBlock, make_lean, returns_part
from tests import tiny
from tests.engine.test_split_forward import REFERENCE, TEXT, inputs, model, stock


def velocity(network: torch.nn.Module, **more: object) -> torch.Tensor:
    found: torch.Tensor = network(
        hidden_states=torch.arange(96.0).view(1, 6, 16).sin(),
        encoder_hidden_states=torch.arange(240.0).view(1, 5, 48).cos(),
        timestep=torch.tensor([0.5]),
        img_ids=torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3), torch.arange(1)),
        txt_ids=torch.zeros(5, 4),
        return_dict=False,
        **more,
    )[0]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["base", "flex"])
def test_the_network_computes_the_same(variant: str, dtype: torch.dtype) -> None:
    network = model(variant, dtype)
    given = inputs(network, dtype, references=REFERENCE)
    before = stock(network, given)[0]
    make_lean(network)
    assert torch.equal(stock(network, given)[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_references_are_kept_apart_and_used_the_same(dtype: torch.dtype) -> None:
    network = model("kv", dtype)
    given, picture = inputs(network, dtype, references=REFERENCE), inputs(network, dtype, seed=1)

    def found() -> list[torch.Tensor]:
        extracted, cache = stock(network, given, kv_cache_mode="extract", num_ref_tokens=REFERENCE)
        layers = (*cache.double_block_caches, *cache.single_block_caches)
        return [
            extracted,
            stock(network, picture, kv_cache_mode="cached", kv_cache=cache)[0],
            *(tensor for layer in layers for tensor in layer.get()),
        ]

    before = found()
    make_lean(network)
    assert all(torch.equal(a, b) for a, b in zip(found(), before, strict=True))


def test_another_attention_is_used_where_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = tiny.transformer(), []
    make_lean(network)
    block = network.transformer_blocks[0]
    original = type(block.attn).forward
    monkeypatch.setattr(type(block.attn), "forward", lambda *a, **k: asked.append(1) or original(*a, **k))
    expected = velocity(network)
    assert not asked
    block.attn.processor._attention_backend = "_native_math"
    torch.testing.assert_close(velocity(network), expected)
    assert asked


def test_every_part_is_swapped_and_keeps_its_weights() -> None:
    network = tiny.transformer()
    names = list(network.state_dict())
    make_lean(network)
    blocks = (*network.transformer_blocks, *network.single_transformer_blocks)
    assert {type(part) for block in blocks for part in (block, block.attn)} == set(LEAN.values())
    assert list(network.state_dict()) == names


# 12 + 20 tokens are a whole block of the attention kernel; of 12 + 21 it would compute the last one in another order.
@pytest.mark.parametrize("pictures", [4, 20, 21, 52, 116, 308])
@pytest.mark.parametrize("rest", [0, 1, 32])
@pytest.mark.parametrize("hooked", [False, True])
def test_part_of_a_block_is_that_part_of_the_whole(pictures: int, rest: int, hooked: bool) -> None:
    block, given = single_block(TEXT + pictures + rest)
    before = [argument.clone() for argument in given[:3:2]]
    wanted = slice(TEXT, TEXT + pictures)
    whole = block(*given)[:, wanted]
    if hooked:  # as adapters do it; whoever uses part of the weight must notice
        block.attn.to_qkv_mlp_proj.register_forward_hook(lambda _layer, _given, output: output * 2)
        whole = block(*given)[:, wanted]
    assert torch.equal(block(*given, kept=wanted), whole)
    assert all(torch.equal(a, b) for a, b in zip(given[:3:2], before, strict=True)), "its arguments are left alone"


def test_a_stock_block_is_not_asked_for_part_of_its_tokens() -> None:
    network, tokens = tiny.transformer(), torch.zeros(1, 4, 32)
    block = network.single_transformer_blocks[-1]
    assert not returns_part(block, tokens)
    make_lean(network)
    assert returns_part(block, tokens) and not returns_part(block, tokens.to("meta"))
    block.compile(backend="eager")
    assert not returns_part(block, tokens)


def single_block(tokens: int) -> tuple[LeanSingleBlock, tuple[Any, ...]]:
    """A lean block and its arguments."""
    network = tiny.transformer()
    make_lean(network)
    generator = torch.Generator().manual_seed(0)
    angles = torch.randn(tokens, 8, generator=generator).repeat_interleave(2, dim=1)
    x, modulation = torch.randn(2, tokens, 32, generator=generator), torch.randn(2, 96, generator=generator)
    return network.single_transformer_blocks[-1], (x, None, modulation, (angles.cos(), angles.sin()))
