from __future__ import annotations

import torch

from darkroom.engine.lean import LEAN, make_lean
from tests import tiny


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


def test_the_network_computes_the_same() -> None:
    network = tiny.transformer()
    before = velocity(network)
    make_lean(network)
    assert torch.equal(velocity(network), before)


def test_every_attention_is_swapped_and_keeps_its_weights() -> None:
    network = tiny.transformer()
    names = list(network.state_dict())
    make_lean(network)
    kinds = {type(block.attn) for block in (*network.transformer_blocks, *network.single_transformer_blocks)}
    assert kinds == set(LEAN.values())
    assert list(network.state_dict()) == names
