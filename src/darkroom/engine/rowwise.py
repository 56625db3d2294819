"""Why a batch gives the same bits as its rows alone on a CPU.

A matrix product over many tokens gives every token the same result whatever stands beside it. A product with a single
vector does not: alone it runs as matrix times vector, in a batch as matrix times matrix, and the two add in another
order (6e-7 apart in fp32). The only single vectors of the network are the timestep's: its embedding and the
modulations made from it. Computing those row by row makes batched and single pictures equal, and costs microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SINGLE_VECTOR = ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation.", "norm_out.linear")


class RowwiseLinear(nn.Linear):
    """nn.Linear that multiplies a (rows, channels) input row by row on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 2 or input.shape[0] < 2 or input.device.type != "cpu":
            return super().forward(input)
        rows = [super(RowwiseLinear, self).forward(input[row : row + 1]) for row in range(len(input))]
        return torch.cat(rows)


def make_rowwise(transformer: nn.Module) -> None:
    """Turn the layers that see one vector a row into RowwiseLinear, in place and keeping their weights."""
    for name, module in transformer.named_modules():
        if type(module) is nn.Linear and name.startswith(SINGLE_VECTOR):
            module.__class__ = RowwiseLinear
