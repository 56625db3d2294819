"""8-bit floats: what they keep, in numbers."""

from __future__ import annotations

import pytest
import torch

from darkroom.engine.float8 import ABSOLUTE_ERROR, LARGEST, RELATIVE_ERROR, to_float8


def spread(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of very different sizes: an outlier in each row beside many that nearly vanish."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator)
    return numbers * torch.exp(4 * torch.randn(shape, generator=generator))


@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_every_number_comes_back_within_the_bound(dim: int | tuple[int, ...], seed: int) -> None:
    given = spread(64, 96, seed=seed)
    small = to_float8(given, dim)
    error = (small.widen(torch.float32) - given).abs()
    bound = torch.maximum(RELATIVE_ERROR * given.abs(), ABSOLUTE_ERROR * small.scale)
    assert (error <= 1.0001 * bound).all()
    assert (error > 0.8 * bound).any(), "the bound is not far from what happens"


def test_the_largest_number_of_a_group_is_exact() -> None:
    given = torch.tensor([[3.0, -0.1], [0.5, 100.0]])
    small = to_float8(given, dim=1)
    assert small.values.float().abs().amax(dim=1).tolist() == [LARGEST, LARGEST]
    assert torch.allclose(small.widen(torch.float32).diagonal(), given.diagonal(), rtol=1e-6)


def test_groups_do_not_touch_each_other() -> None:
    quiet, loud = spread(1, 32, seed=1), 1e6 * spread(1, 32, seed=2)
    together = to_float8(torch.cat([quiet, loud]), dim=1).widen(torch.float32)
    assert torch.equal(together[:1], to_float8(quiet, dim=1).widen(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_formats(dtype: torch.dtype) -> None:
    small = to_float8(torch.zeros(3, 4, dtype=dtype), dim=1)
    assert torch.equal(small.widen(dtype), torch.zeros(3, 4, dtype=dtype))
    assert small.values.element_size() == 1 and small.scale.shape == (3, 1)
    assert to_float8(torch.full((1, 4), 1e38), dim=1).widen(torch.float32).isfinite().all()
