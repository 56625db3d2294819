"""Where every token stands: the four coordinates (time, row, column, text index) that rotary embeddings are made of.

    text          0, 0, 0, index
    picture       0, row, column, 0
    reference k   10·k, row, column, 0      k = 1, 2, …

All are (tokens, 4), int64, on the CPU. Source: black-forest-labs/flux2 src/flux2/sampling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

REFERENCE_SPACING = 10


@lru_cache(maxsize=64)
def text_positions(length: int) -> Tensor:
    return _grid(0, 1, 1, length)


@lru_cache(maxsize=256)
def picture_positions(height: int, width: int) -> Tensor:
    """height, width: in tokens."""
    return _grid(0, height, width, 1)


def reference_positions(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """sizes: (height, width) in tokens of each reference, in order."""
    return torch.cat([_grid(REFERENCE_SPACING * k, *size, 1) for k, size in enumerate(sizes, start=1)])


def _grid(time: int, height: int, width: int, length: int) -> Tensor:
    axes = torch.tensor([time]), torch.arange(height), torch.arange(width), torch.arange(length)
    return torch.cartesian_prod(*axes)
