"""Layers in 8 bits: how far their products are from the exact ones, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from darkroom.engine import weights
from darkroom.engine.float8 import Float8, to_float8
from darkroom.engine.float8_linear import Float8Linear, quantise
from darkroom.engine.kv import extract
from darkroom.engine.split_forward import forward
from tests import tiny
from tests.engine.conftest import image
from tests.engine.test_kv import references
from tests.engine.test_split_forward import inputs

CPU = torch.device("cpu")


def network(variant: str = "distilled") -> Any:
    folder = Path(tiny.embedded()) / variant / "transformer"
    return weights.load_transformer(folder, CPU, torch.float32, kv_references=variant == "kv")


class Blocks(nn.Module):
    """As much of a transformer as quantise asks for: one layer of 96 to 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Linear(96, 64, bias=False)])
        self.single_transformer_blocks = nn.ModuleList([nn.Linear(96, 60, bias=False), nn.Linear(96, 64)])


def layer() -> tuple[Float8Linear, torch.Tensor]:
    """A layer in 8 bits and the weights that it had."""
    blocks = Blocks().requires_grad_(False)
    exact = blocks.transformer_blocks[0].weight.clone()
    quantise(blocks, CPU)
    made = blocks.transformer_blocks[0]
    assert isinstance(made, Float8Linear)
    return made, exact


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 96, generator=torch.Generator().manual_seed(seed))


def relative(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def test_products_are_those_of_the_rounded_numbers() -> None:
    made, exact = layer()
    given = tokens(40)
    rounded = to_float8(given, dim=1).widen(torch.float32) @ Float8(made.weight, made.scale).widen(torch.float32).T
    assert relative(made(given), rounded) < 1e-3, "the rest is the order of the sum"
    assert 0.005 < relative(made(given), given @ exact.T) < 0.05
    assert relative(made(given.bfloat16()).float(), given @ exact.T) < 0.05


def test_a_token_is_rounded_by_itself() -> None:
    made, _ = layer()
    quiet, loud = tokens(1, seed=1), 1e4 * tokens(7, seed=2)
    assert torch.allclose(made(torch.cat([quiet, loud]))[:1], made(quiet), rtol=1e-5, atol=1e-6)


def test_shapes_are_those_of_a_linear_layer() -> None:
    made, _ = layer()
    assert made(tokens(6).view(2, 3, 96)).shape == (2, 3, 64)
    assert made(torch.zeros(1, 0, 96)).shape == (1, 0, 64)
    assert made.weight.shape == (64, 96) and made.weight.element_size() == 1


def test_a_device_without_such_products_widens_the_weights() -> None:
    made, exact = layer()
    made.native = False
    given = tokens(5)
    assert torch.equal(made(given), given @ Float8(made.weight, made.scale).widen(torch.float32).T)
    assert relative(made(given), given @ exact.T) < 0.04


def test_only_layers_that_fit_are_changed() -> None:
    blocks = Blocks().requires_grad_(False)
    quantise(blocks, CPU)
    assert [type(module) for module in blocks.single_transformer_blocks] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("variant", ["distilled", "flex"])
def test_a_network_keeps_its_names_and_most_of_its_velocity(variant: str) -> None:
    exact, small = network(variant), network(variant)
    quantise(small, CPU)
    changed = {name for name, module in small.named_modules() if isinstance(module, Float8Linear)}
    linear = {name for name, module in exact.named_modules() if isinstance(module, nn.Linear)}
    assert changed == {name for name in linear if "transformer_blocks." in name}
    assert small.dtype == exact.dtype, "what is asked of a network's format stays the answer"
    before = sum(exact.get_submodule(name).weight.nbytes for name in changed)
    after = weights.module_bytes(small) - (weights.module_bytes(exact) - before)
    assert before / 4 < after < before / 3.5, "a byte for four, and the scales"
    given = inputs(exact, torch.float32)
    assert 0.001 < relative(forward(small, given), forward(exact, given)) < 0.15


def test_references_can_be_read_by_a_network_in_8_bits() -> None:
    exact, small = network("kv"), network("kv")
    quantise(small, CPU)
    given = references(image(64, 64, seed=1))
    for mine, theirs in zip(extract(small, given).single, extract(exact, given).single, strict=True):
        assert relative(mine.get()[1], theirs.get()[1]) < 0.15
