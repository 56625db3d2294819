"""Linear layers that multiply in 8 bits: half of the weights' bytes, and about twice the rate where the device can.

    quantise(transformer, device)              # after loading; lossy

Weights are rounded once, with a scale for every output channel; activations at every call, with a scale for every
token, so no token's rounding depends on what stands beside it. Products are summed in float32 and leave in the
activations' format. Only the layers inside the blocks are changed, which hold nineteen of twenty weights; embeddings,
modulations and the output, which all tokens go through once, stay as they are.

The product is torch._scaled_mm: on CUDA from compute capability 8.9, and on a CPU. Other devices widen the weights
before they multiply, which saves the bytes but no time.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from darkroom.engine.float8 import Float8, to_float8

MULTIPLE: Final = 16  # of channels in and out, which the kernels ask for
CAPABILITY: Final = (8, 9)  # Ada and Hopper; older GPUs have no 8-bit products


class Float8Linear(nn.Linear):
    """nn.Linear with 8-bit weights. scale: (out, 1), float32. native: multiply in 8 bits too."""

    scale: Tensor
    native: bool

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.reshape(-1, input.shape[-1])
        if not self.native:
            product = functional.linear(tokens, Float8(self.weight, self.scale).widen(tokens.dtype))
        elif tokens.shape[0] == 0:  # the text of a pass that only reads references
            product = tokens.new_empty(0, self.out_features)
        else:
            product = self._multiply(to_float8(tokens, dim=1), tokens.dtype)
        return product.view(*input.shape[:-1], self.out_features)

    def _multiply(self, tokens: Float8, dtype: torch.dtype) -> Tensor:
        product = torch._scaled_mm(
            tokens.values,
            self.weight.t(),
            scale_a=tokens.scale,
            scale_b=self.scale.t(),
            out_dtype=torch.bfloat16 if tokens.values.is_cuda else dtype,  # CUDA's kernel has no other
            use_fast_accum=True,
        )
        return product.to(dtype)


@torch.no_grad()
def quantise(transformer: Any, device: torch.device) -> None:
    """Round the weights of the blocks to 8 bits, layer by layer on their way to the device, and move the rest there.

    In place; module names, and the shapes of weights, stay what adapters know them by.
    """
    native = _multiplies(device)
    for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
        for module in blocks.modules():
            if type(module) is nn.Linear and _fits(module):
                _convert(module, device, native)
    transformer.to(device)


def _convert(module: nn.Linear, device: torch.device, native: bool) -> None:
    small = to_float8(module.weight.to(device), dim=1)
    module.__class__ = Float8Linear
    module.weight = nn.Parameter(small.values, requires_grad=False)
    module.register_buffer("scale", small.scale)
    module.native = native  # type: ignore[assignment]


def _fits(module: nn.Linear) -> bool:
    return module.bias is None and module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _multiplies(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CAPABILITY
    return device.type == "cpu"
