"""A lean autoencoder is the stock one to the bit, both ways."""

from __future__ import annotations

import pytest
import torch

from darkroom.engine.from_diffusers import ResnetBlock2D
from darkroom.engine.lean_vae import LeanResidual, make_lean
from tests import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_autoencoder_computes_the_same(dtype: torch.dtype) -> None:
    vae = tiny.vae(tiny.TINY._replace(vae_channels=(8, 16, 16, 8))).to(dtype)
    generator = torch.Generator().manual_seed(0)
    pixels, cells = torch.rand(1, 3, 48, 32, generator=generator), torch.randn(1, 4, 6, 4, generator=generator)

    def found() -> list[torch.Tensor]:
        moments = vae.encode(pixels.to(dtype)).latent_dist.mode()
        return [moments, vae.decode(cells.to(dtype), return_dict=False)[0]]

    before = found()
    make_lean(vae)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found(), before, strict=True))


def test_every_residual_block_is_swapped_and_keeps_its_weights() -> None:
    vae = tiny.vae()
    names, stock = list(vae.state_dict()), sum(type(module) is ResnetBlock2D for module in vae.modules())
    make_lean(vae)
    assert sum(type(module) is LeanResidual for module in vae.modules()) == stock > 0
    assert list(vae.state_dict()) == names


def test_a_block_leaves_what_it_is_given_alone() -> None:
    vae = tiny.vae()
    make_lean(vae)
    block = next(module for module in vae.modules() if isinstance(module, LeanResidual))
    given = torch.randn(1, block.in_channels, 4, 4)
    before = given.clone()
    block(given)
    assert torch.equal(given, before)


@pytest.mark.parametrize(
    "more",
    [
        {"output_scale_factor": 2.0},
        {"up": True},
        {"dropout": 0.5},
        {"non_linearity": "gelu"},
        {"time_embedding_norm": "scale_shift"},
    ],
)
def test_a_block_that_does_more_is_left_alone(more: dict[str, object]) -> None:
    block = ResnetBlock2D(in_channels=8, temb_channels=None, groups=2, **more)
    make_lean(block)
    assert type(block) is ResnetBlock2D
