from __future__ import annotations

import torch
from torch import nn

from darkroom.engine.rowwise import RowwiseLinear, make_rowwise
from tests import tiny


def test_rows_together_are_as_rows_alone() -> None:
    layer = nn.Linear(160, 960, bias=False)
    rows = torch.randn(4, 160)
    alone = torch.cat([layer(rows[n : n + 1]) for n in range(4)])
    layer.__class__ = RowwiseLinear
    assert torch.equal(layer(rows), alone)
    assert torch.equal(layer(rows[:1]), alone[:1])


def test_layers_that_see_tokens_are_left_alone() -> None:
    network = tiny.transformer()
    make_rowwise(network)
    changed = {name for name, module in network.named_modules() if isinstance(module, RowwiseLinear)}
    assert changed == {
        "time_guidance_embed.timestep_embedder.linear_1",
        "time_guidance_embed.timestep_embedder.linear_2",
        "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.linear",
        "single_stream_modulation.linear",
        "norm_out.linear",
    }


def test_a_batch_of_any_size_gives_every_sample_its_own_bits() -> None:
    network = tiny.transformer("flex")
    make_rowwise(network)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 24, 16, generator=generator)
    text = torch.randn(5, 20, 48, generator=generator)
    sigma, guidance = torch.rand(5, generator=generator), torch.rand(5, generator=generator) * 4
    positions = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6), torch.arange(1))

    def velocity(first: int, last: int) -> torch.Tensor:
        found: torch.Tensor = network(
            hidden_states=latents[first:last],
            encoder_hidden_states=text[first:last],
            timestep=sigma[first:last],
            guidance=guidance[first:last],
            img_ids=positions,
            txt_ids=torch.zeros(20, 4),
            return_dict=False,
        )[0]
        return found

    alone = torch.cat([velocity(n, n + 1) for n in range(5)])
    for size in range(2, 6):
        assert torch.equal(velocity(0, size), alone[:size])
