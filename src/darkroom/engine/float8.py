"""Numbers in 8 bits: float8 e4m3 with a scale for each group that shares one.

    small = to_float8(keys, dim=(1, 3))        # a scale per head: the largest of its numbers becomes 448
    small.widen(torch.bfloat16)

Four significant bits: a number comes back within a sixteenth of itself, or, where it is smaller than 2^-6 of the
scale, within 2^-10 of the scale. The scale of a group is its largest number over 448.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

FORMAT: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0
RELATIVE_ERROR: Final = 2.0**-4  # of a number; half of the last of four significant bits
ABSOLUTE_ERROR: Final = 2.0**-10  # of the scale; half of the smallest step


class Float8(NamedTuple):
    """values: float8, of the tensor's shape. scale: float32, 1 along the dimensions that share one."""

    values: Tensor
    scale: Tensor

    def widen(self, dtype: torch.dtype) -> Tensor:
        """The numbers again, as far as 8 bits have kept them."""
        return (self.values.to(torch.float32) * self.scale).to(dtype)


def to_float8(tensor: Tensor, dim: int | tuple[int, ...]) -> Float8:
    """A tensor in 8 bits. dim: the dimensions whose numbers share a scale. Zeros stay zeros."""
    largest = tensor.abs().amax(dim=dim, keepdim=True).to(torch.float32)
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return Float8((tensor.to(torch.float32) / scale).clamp(-LARGEST, LARGEST).to(FORMAT), scale)
